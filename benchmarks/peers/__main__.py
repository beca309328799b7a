"""This repository against what people would use instead: the same images, network and weights.

    python -m benchmarks.peers DATASET_FOLDER --frozen-epochs 3 --unfrozen-epochs 2 --seeds 0,1,2
    python -m benchmarks.peers DATASET_FOLDER --train-images 200 --test-images 100 --only plain,ours
    python -m benchmarks.peers DATASET_FOLDER --ours="recipes/coco18_efficientnet_lite0.py --NUM_EPOCHS 5"
    python -m benchmarks.peers DATASET_FOLDER --minutes 5 --ours recipes/frozen_features.py

plain: plain.py, the usual loop. fastai: with_fastai.py; transformers: with_transformers.py, the Hugging Face Trainer,
with --minutes only (both: requirements-benchmarks.txt). ours: training.py and testing.py, with the constants of --ours
last, which may thus leave what is the same for all. Training and testing are processes of their own, the peers take
turns, and each run ends with its figures as a line of JSON.

Without --minutes all train the same epochs at the same rates. Then follow medians over the turns and in brackets the
median of (plain's figure / this one) of each turn: above 1 is quicker or smaller. start-up: until the first line of
output, which is printed before the first batch. epoch: the mean pass over the training images, without validation (an
epoch that also fills a cache is in the mean). training in all: the whole process, with start-up, validation and
threshold. test images: without start-up, with all that follows (so take hundreds).

With --minutes each of the others trains as its documentation recommends, as long as fits into so many minutes of
training and validation; their start-up, and the few steps that a schedule is planned by (pace.py), come on top. ours
trains by the recipe of --ours: see that its process takes no longer. In brackets stands the median difference to ours
or, for seconds and images a second, ours / this one. Weighted F1 is at the threshold that is best on the validation
images, the same rule for all, and at .5.

Others on the machine move any figure by factors: more --rounds. Needs Linux or macOS (memory).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shlex
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import config
import dataset_readers
import metrics
import thresholds
import utils
from benchmarks.peers.task import Task, read_targets
from benchmarks.runs import (
    Figures,
    Process,
    link_dataset,
    name_files,
    parse_numbers,
    print_table,
    read_result,
    run_process,
    select_evenly,
)
from dataset import probability_files, stratified_split
from utils import InputError

PEERS = {  # name -> what runs it
    "plain": "benchmarks.peers.plain",
    "fastai": "benchmarks.peers.with_fastai",
    "transformers": "benchmarks.peers.with_transformers",
    "ours": "",
}
VAL_SPLIT = 0.1
TITLES = {
    "startup": "start-up, s",
    "frozen_epoch": "frozen epoch, s",
    "unfrozen_epoch": "unfrozen epoch, s",
    "training": "training in all, s",
    "training_memory": "peak memory of training, MB",
    "test_startup": "start-up of testing, s",
    "test_1000": "1,000 test images, s",
    "test_memory": "peak memory of testing, MB",
    "mAP": "test mAP",
}
MINUTES_TITLES = {
    "mAP": "test mAP",
    "f1": "weighted F1",
    "f1_at_half": "weighted F1 at .5",
    "ECE": "ECE",
    "training": "training in all, s",
    "cpu_seconds": "of it on all cores, s",
    "images_per_second": "training images a second",
    "epochs": "epochs",
}
QUALITIES = ("mAP", "f1", "f1_at_half", "ECE")  # compared by their difference


def main(argv: list[str]) -> None:
    options = parse(argv)
    results: dict[str, list[Figures]] = {name: [] for name in options.only}
    train = select_evenly(dataset_readers.read_dataset(options.dataset_folder, split="train"), options.train_images)
    test = select_evenly(dataset_readers.read_dataset(options.dataset_folder, split="test"), options.test_images)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        link_dataset(train, data, "train")
        link_dataset(test, data, "test")
        for turn, seed in enumerate(options.seeds * options.rounds):
            for name in options.only if turn % 2 == 0 else reversed(options.only):
                folder = Path(temporary) / f"{turn}_{name}"  # its own: no cache of an earlier turn lies there
                folder.mkdir()
                task = make_task(data, folder, seed, options.frozen_epochs, options.unfrozen_epochs)
                task = replace(task, minutes=options.minutes, transformers_lr=options.transformers_lr)
                figures = (measure_minutes if task.minutes else measure)(name, task, data, shlex.split(options.ours))
                results[name].append(figures)
                print(json.dumps({"peer": name, "seed": seed, **figures}), flush=True)
    print_results(
        results,
        MINUTES_TITLES if options.minutes else TITLES,
        "ours" if options.minutes else "plain",
        f"{Task.model_name}, {Task.image_size} px, batches of {Task.batch_size}; {len(train)} training and validation "
        f"images, {len(test)} test images; {os.cpu_count()} processors"
        + (f"; {options.minutes:g} minutes; ours: {options.ours}" if options.minutes else ""),
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_folder", type=Path, help="a data set with test labels")
    parser.add_argument("--frozen-epochs", type=int, default=1)
    parser.add_argument("--unfrozen-epochs", type=int, default=1)
    parser.add_argument("--train-images", type=int, default=0, help="evenly spaced; with validation; 0: all")
    parser.add_argument("--test-images", type=int, default=0, help="evenly spaced; 0: all")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training, instead of epochs")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"{','.join(PEERS)}; default: all that can")
    parser.add_argument("--seeds", type=parse_numbers, default=[0])
    parser.add_argument("--rounds", type=int, default=1, help="turns of every seed")
    parser.add_argument("--ours", default="", metavar="'[recipe.py] --NAME value'", help="constants of config.py")
    parser.add_argument("--transformers-lr", type=float, default=5e-5, help="of the Trainer; that of its guide: 5e-5")
    options = parser.parse_args(argv)
    options.only = options.only or [name for name in PEERS if options.minutes or name != "transformers"]
    for name in options.only:
        if name not in PEERS:
            raise InputError(f"there is no peer {name!r}{utils.suggest(name, PEERS)}; known: {', '.join(PEERS)}")
    if "transformers" in options.only and not options.minutes:
        raise InputError("the Trainer has no frozen epochs: give --minutes, or leave it out (--only plain,fastai,ours)")
    if "ours" in options.only and options.minutes and not options.ours:
        raise InputError('say what ours trains in these minutes: --ours="recipe.py [--NAME value ...]"')
    if options.frozen_epochs + options.unfrozen_epochs < 1 or options.rounds < 1:
        raise InputError("nothing to measure: --rounds, and --frozen-epochs or --unfrozen-epochs, must be at least 1")
    for name in ("fastai", "transformers"):
        if name in options.only and importlib.util.find_spec(name) is None:
            raise InputError(
                f"{name} is not installed: pip install -r requirements-benchmarks.txt, or leave it out "
                "(--only plain,ours)"
            )
    return options


# ---- the same for all ----


def make_task(data: Path, folder: Path, seed: int, frozen_epochs: int, unfrozen_epochs: int) -> Task:
    """The task in the data set `data`, with the split that training.py makes of it for `seed`."""
    train, val = stratified_split.split_table(dataset_readers.read_dataset(data, split="train"), VAL_SPLIT, seed)
    return Task(
        folder=str(folder),
        train=train.paths,
        val=val.paths,
        test=dataset_readers.read_dataset(data, split="test").paths,
        num_classes=len(train.classes),
        frozen_epochs=frozen_epochs,
        unfrozen_epochs=unfrozen_epochs,
        seed=seed,
        weights_folder=str(config.PRETRAINED_MODELS_FOLDER),
    )


def make_constants(task: Task, data: Path, more: Sequence[str]) -> list[str]:
    """The task as a command line of training.py and testing.py; `more` changes anything but files and folders.

    With minutes `more` is the recipe: of the task it gets the images and the seed.
    """
    recipe = {
        "DATASET_FORMAT": "coco_cls",
        "VAL_SPLIT": VAL_SPLIT,
        "IMAGE_SIZE": task.image_size,
        "RESIZE_RULE": "squash",
        "AUGMENTATION": "crop_flip",
        "CROP_SCALE_MIN": task.crop_scale_min,
        "MODEL_NAME": task.model_name,
        "HEAD": "linear_bn",
        "PRETRAINED_WEIGHTS": task.weights,
        "FREEZE_BACKBONE_AT_START": task.frozen_epochs > 0,
        "UNFREEZE_BACKBONE_EPOCH": task.frozen_epochs + 1,
        "NUM_EPOCHS": task.frozen_epochs + task.unfrozen_epochs,
        "TRAIN_BATCH_SIZE": task.batch_size,
        "TEST_BATCH_SIZE": task.batch_size,
        "OPTIMIZER": "adam",
        "USE_DIFFERENTIAL_LR": True,
        "BACKBONE_BASE_LR": task.backbone_lr,
        "HEAD_BASE_LR": task.head_lr,
        "SCHEDULE": "multistep",
        "LR_MILESTONES": "()",
        "USE_POS_WEIGHT": True,
        "POS_WEIGHT_CAP": 0,
        "SEED": task.seed,
        "SPLIT_SEED": task.seed,
    }
    if task.minutes:
        recipe = {name: recipe[name] for name in ("DATASET_FORMAT", "VAL_SPLIT", "SEED", "SPLIT_SEED")}
    return [*(f"--{name}={value}" for name, value in recipe.items()), *more, *name_files(Path(task.folder), data)]


# ---- measuring ----


def measure(name: str, task: Task, data: Path, more: Sequence[str]) -> Figures:
    """Train and test once by the peer `name`; what TITLES lists, in seconds and MB."""
    training, testing = train_and_test(name, task, data, more)
    if name == "ours":
        mean_ap = read_result(Path(task.folder))["mAP"]
    else:
        targets = dataset_readers.read_dataset(data, split="test").targets
        mean_ap = metrics.measure(np.load(task.probabilities), targets, 0.5)["mAP"]
    return {
        "startup": training.startup,
        **average_epochs(find_log(task)),
        "training": training.seconds,
        "training_memory": training.memory,
        "test_startup": testing.startup,
        "test_1000": (testing.seconds - testing.startup) / len(task.test) * 1000,
        "test_memory": testing.memory,
        "mAP": mean_ap,
    }


def measure_minutes(name: str, task: Task, data: Path, more: Sequence[str]) -> Figures:
    """Train for the task's minutes and test once by the peer `name`; what MINUTES_TITLES lists."""
    training, _ = train_and_test(name, task, data, more)
    table = dataset_readers.read_dataset(data, split="test")
    if name == "ours":
        (file,) = (Path(task.folder) / "predictions").glob("*_probabilities.csv")
        probabilities = probability_files.read_probabilities(table, [file])
        f1 = read_result(Path(task.folder))["f1"]
    else:
        probabilities = np.load(task.probabilities)
        targets = [read_targets(path, task.num_classes) for path in task.val]
        threshold = thresholds.tune_global(np.load(task.val_probabilities), targets)
        f1 = metrics.measure(probabilities, table.targets, threshold)["f1_weighted"]
    measured = metrics.measure(probabilities, table.targets, 0.5)
    return {
        "mAP": measured["mAP"],
        "f1": f1,
        "f1_at_half": measured["f1_weighted"],
        "ECE": measured["ECE"],
        "training": training.seconds,
        "cpu_seconds": training.cpu_seconds,
        **count_images(find_log(task), len(task.train)),
    }


def train_and_test(name: str, task: Task, data: Path, more: Sequence[str]) -> tuple[Process, Process]:
    """Both processes of the peer `name`."""
    if name == "ours":
        constants = make_constants(task, data, more)
        written = ["--PREDICTION_FILES=probabilities"] if task.minutes else []
        return run_process("training.py", *constants), run_process("testing.py", *constants, *written)
    file = str(task.save())
    return run_process("-m", PEERS[name], "train", file), run_process("-m", PEERS[name], "test", file)


def find_log(task: Task) -> Path:
    return next(Path(task.folder).rglob("log.csv"))


def average_epochs(log: Path) -> Figures:
    """Mean seconds of a frozen and of an unfrozen epoch, as far as there was one, by a run's log.csv."""
    with open(log) as file:
        epochs = [(row["frozen"] == "True", float(row["seconds"])) for row in csv.DictReader(file)]
    kinds = {"frozen_epoch": True, "unfrozen_epoch": False}
    seconds = {name: [s for frozen, s in epochs if frozen is kind] for name, kind in kinds.items()}
    return {name: statistics.mean(values) for name, values in seconds.items() if values}


def count_images(log: Path, num_train: int) -> Figures:
    """Training images a second of all epochs together, and how often all `num_train` were seen, by a run's log.csv."""
    with open(log) as file:
        epochs = [(float(row["seconds"]), float(row.get("images", num_train))) for row in csv.DictReader(file)]
    seconds, images = map(sum, zip(*epochs, strict=True))
    return {"images_per_second": images / seconds, "epochs": images / num_train}


# ---- printing ----


def make_rows(
    results: Mapping[str, list[Figures]], titles: Mapping[str, str] = TITLES, base: str = "plain"
) -> list[list[str]]:
    """A row for each of `titles` that was measured: the title, then a cell for each peer, compared with `base`."""
    rows = []
    for key, title in titles.items():
        cells = [make_cell(key, turns, results.get(base, [])) for turns in results.values()]
        if any(cells):
            rows.append([title, *cells])
    return rows


def make_cell(key: str, turns: list[Figures], base: list[Figures]) -> str:
    """The median over turns and, in brackets, of its comparison with `base` in the same turn; empty: not measured."""
    if any(key not in figures for figures in turns):
        return ""
    text = f"{statistics.median(figures[key] for figures in turns):.{3 if key in QUALITIES else 1}f}"
    pairs = [(figures[key], other[key]) for figures, other in zip(turns, base, strict=False) if key in other]
    if turns is base or not pairs:
        return text
    if key in QUALITIES:
        return f"{text} ({statistics.median(own - other for own, other in pairs):+.3f})"
    return f"{text} ({statistics.median(other / own for own, other in pairs):.2f}x)"


def print_results(results: Mapping[str, list[Figures]], titles: Mapping[str, str], base: str, heading: str) -> None:
    utils.say("", f"{heading}; medians of {len(next(iter(results.values())))}")
    print_table(make_rows(results, titles, base), ["", *results])


if __name__ == "__main__":
    utils.run_script(main)
