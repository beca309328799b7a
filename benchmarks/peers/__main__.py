"""This repository against what people would use instead: the same images, network, weights, epochs and rates.

    python -m benchmarks.peers DATASET_FOLDER --frozen-epochs 3 --unfrozen-epochs 2 --seeds 0,1,2
    python -m benchmarks.peers DATASET_FOLDER --train-images 200 --test-images 100 --only plain,ours
    python -m benchmarks.peers DATASET_FOLDER --ours="recipes/coco18_efficientnet_lite0.py --NUM_EPOCHS 5"

plain: plain.py, the usual loop, the baseline. fastai: with_fastai.py (requirements-benchmarks.txt). ours: training.py
and testing.py, with the constants of --ours last, which may thus leave what is the same for all. Training and testing
are processes of their own, the peers take turns, and each run ends with its figures as a line of JSON. Then medians
over the turns and in brackets the median of (plain's figure / this one) of each turn: above 1 is quicker or smaller.

start-up: until the first line of output, which is printed before the first batch. epoch: the mean pass over the
training images, without validation (an epoch that also fills a cache is in the mean). training in all: the whole
process, with start-up, validation and threshold. test images: without start-up, with all that follows (so take
hundreds). Others on the machine move any figure by factors: more --rounds. Needs Linux or macOS (memory).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import config
import dataset_readers
import metrics
import utils
from benchmarks.peers.task import Task
from dataset import stratified_split
from dataset.table import Table
from utils import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = {"plain": "benchmarks.peers.plain", "fastai": "benchmarks.peers.with_fastai", "ours": ""}
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

Figures = dict[str, float]


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
                figures = measure(name, task, data, shlex.split(options.ours))
                results[name].append(figures)
                print(json.dumps({"peer": name, "seed": seed, **figures}), flush=True)
    print_results(
        results,
        f"{Task.model_name}, {Task.image_size} px, batches of {Task.batch_size}; {len(train)} training and validation "
        f"images, {len(test)} test images; {os.cpu_count()} processors",
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
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PEERS), help="plain,fastai,ours")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--rounds", type=int, default=1, help="turns of every seed")
    parser.add_argument("--ours", default="", metavar="'[recipe.py] --NAME value'", help="constants of config.py")
    options = parser.parse_args(argv)
    for name in options.only:
        if name not in PEERS:
            raise InputError(f"there is no peer {name!r}{utils.suggest(name, PEERS)}; known: {', '.join(PEERS)}")
    if "fastai" in options.only and importlib.util.find_spec("fastai") is None:
        raise InputError(
            "fastai is not installed: pip install -r requirements-benchmarks.txt, or leave it out (--only plain,ours)"
        )
    if options.frozen_epochs + options.unfrozen_epochs < 1 or options.rounds < 1:
        raise InputError("nothing to measure: --rounds, and --frozen-epochs or --unfrozen-epochs, must be at least 1")
    return options


# ---- the same for all ----


def select_evenly(table: Table, num_images: int) -> Table:
    """`num_images` rows at even distances, the first and the last among them; 0: all."""
    if num_images > len(table):
        raise InputError(f"{num_images} images are asked for but the data set has {len(table)} in that split")
    return table.select(np.linspace(0, len(table) - 1, num_images or len(table)).round().astype(int))


def link_dataset(table: Table, folder: Path, split: str) -> None:
    """Write a split of a data set in the layout of config.py, its images as links. Unknown labels become absent."""
    images, labels = folder / "images" / f"{split}-resized", folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in table.classes), encoding="utf-8")
    for path, row in zip(map(Path, table.paths), table.targets, strict=True):
        (images / path.name).symlink_to(path.resolve())
        (labels / f"{path.stem}.cls").write_text("".join(f"{label}\n" for label in np.flatnonzero(row == 1)))


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
    """The task as a command line of training.py and testing.py; `more` changes anything but files and folders."""
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
    files = {
        "LOCAL_ROOT": task.folder,
        "DATASET_FOLDER": data,
        "CACHE_FOLDER": Path(task.folder) / "cache",
        "PRETRAINED_MODELS_FOLDER": task.weights_folder,
        "TENSORBOARD_FOLDER": Path(task.folder) / "runs",
    }
    as_arguments = [[f"--{name}={value}" for name, value in constants.items()] for constants in (recipe, files)]
    return [*as_arguments[0], *more, *as_arguments[1]]


# ---- measuring ----


class Process(NamedTuple):
    """What a process took: seconds until its first line of output, seconds in all, its peak resident memory in MB."""

    startup: float
    seconds: float
    memory: float


def run_process(*command: str) -> Process:
    """Run `python command` in the repository. Raises InputError when it fails (its stderr has been shown)."""
    quiet = [sys.executable, "-W", "ignore"]  # the libraries' deprecations
    start = time.perf_counter()
    with subprocess.Popen([*quiet, *command], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        startup = time.perf_counter() - start
        process.stdout.read()
        # unlike getrusage, of this child alone; a child never shows less than this script had, which trains nothing
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        script = next(word for word in command if not word.startswith("-"))
        raise InputError(f"{script} ended with status {process.returncode}: see its message above")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
    return Process(startup, time.perf_counter() - start, usage.ru_maxrss / unit)


def measure(name: str, task: Task, data: Path, more: Sequence[str]) -> Figures:
    """Train and test once by the peer `name`; what TITLES lists, in seconds and MB."""
    if name == "ours":
        constants = make_constants(task, data, more)
        training, testing = run_process("training.py", *constants), run_process("testing.py", *constants)
        result = json.loads((Path(task.folder) / "predictions" / "evaluate_result.json").read_text())
        mean_ap = result["metrics"]["mAP"]
    else:
        file = str(task.save())
        training, testing = (run_process("-m", PEERS[name], verb, file) for verb in ("train", "test"))
        targets = dataset_readers.read_dataset(data, split="test").targets
        mean_ap = metrics.measure(np.load(task.probabilities), targets, 0.5)["mAP"]
    return {
        "startup": training.startup,
        **average_epochs(next(Path(task.folder).rglob("log.csv"))),
        "training": training.seconds,
        "training_memory": training.memory,
        "test_startup": testing.startup,
        "test_1000": (testing.seconds - testing.startup) / len(task.test) * 1000,
        "test_memory": testing.memory,
        "mAP": mean_ap,
    }


def average_epochs(log: Path) -> Figures:
    """Mean seconds of a frozen and of an unfrozen epoch, as far as there was one, by a run's log.csv."""
    with open(log) as file:
        epochs = [(row["frozen"] == "True", float(row["seconds"])) for row in csv.DictReader(file)]
    kinds = {"frozen_epoch": True, "unfrozen_epoch": False}
    seconds = {name: [s for frozen, s in epochs if frozen is kind] for name, kind in kinds.items()}
    return {name: statistics.mean(values) for name, values in seconds.items() if values}


# ---- printing ----


def make_rows(results: dict[str, list[Figures]]) -> list[list[str]]:
    """A row for each of TITLES that was measured: the title, then a cell for each peer."""
    rows = []
    for key, title in TITLES.items():
        cells = [make_cell(key, turns, results.get("plain", [])) for turns in results.values()]
        if any(cells):
            rows.append([title, *cells])
    return rows


def make_cell(key: str, turns: list[Figures], plain: list[Figures]) -> str:
    """The median over turns and, in brackets, of its comparison with `plain` in the same turn; empty: not measured."""
    if any(key not in figures for figures in turns):
        return ""
    text = f"{statistics.median(figures[key] for figures in turns):.{3 if key == 'mAP' else 1}f}"
    pairs = [(figures[key], base[key]) for figures, base in zip(turns, plain, strict=False) if key in base]
    if turns is plain or not pairs:
        return text
    if key == "mAP":
        return f"{text} ({statistics.median(own - base for own, base in pairs):+.3f})"
    return f"{text} ({statistics.median(base / own for own, base in pairs):.2f}x)"


def print_results(results: dict[str, list[Figures]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table as Grid

    print(f"\n{title}; medians of {len(next(iter(results.values())))}")
    grid = Grid("", *results)
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in make_rows(results):
        grid.add_row(*row)
    Console().print(grid)


if __name__ == "__main__":
    utils.run_script(main)
