"""A hundred kills: ten runs that differ most, each killed ten times at random, end with the bits of an untouched run.

    python tests/kills.py [CONFIGURATION ...] [--kills 10] [--seed 0] [--keep]

Each run is started by the same command until it ends, and is killed at random moments on the way: mostly by SIGKILL,
sometimes by SIGTERM. A run that ends before it was killed often enough is followed by another in a new folder. Weights,
thresholds, logs and predictions are compared bit by bit, runs.csv has one line, and no temporary file is left. The exit
status is 1 where anything differs; with --keep the folder is not removed.

Runs take seconds: drawn pictures of 48 pixels, a small network, and processes that are forked with torch imported.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from launching import finish, launch, launch_together

MODEL = "timm/test_resnet.r160_in1k"  # 0.5 million parameters, with BatchNorm
SHARE_OF_SIGTERM = 0.3
SECONDS_ALONE = 3.0  # that a process goes on when the other was killed; torchrun would end it, too
UNCOMPARED = (  # clocks and folders; and where random numbers stand after the last epoch, from which nobody goes on
    "seconds", "images_per_second", "waiting_share", "preparation_seconds", "epoch_seconds", "closed", "saved",
    "config", "git_commit", "random",
)  # fmt: skip


class Configuration(NamedTuple):
    """What is run, and what it stands for."""

    options: tuple[str, ...]
    script: str = "training"
    processes: int = 1
    dataset: str = "pictures"


CONFIGURATIONS: dict[str, Configuration] = {
    "augmentation": Configuration(
        (
            "--AUGMENTATION=crop_flip",
            "--AUGMENTATION_POLICY=trivial_augment",
            "--COLOR_JITTER=0.3",
            "--ROTATION_DEGREES=10",
            "--ERASING_PROBABILITY=0.3",
            "--EMA_DECAY=0.9",
        )
    ),
    "sam": Configuration(("--SAM_RHO=0.05", "--MIXUP_ALPHA=0.4", "--CUTMIX_ALPHA=1.0", "--USE_TENSORBOARD=True")),
    "multi_scale": Configuration(("--MULTI_SCALE_SIZES=32,48", "--IMAGE_CACHE=disk", "--SAVE_EVERY_N_EPOCHS=1")),
    "teacher": Configuration(("--TEACHER_CHECKPOINTS={folder}/teacher/trained_models/best_model.pt",)),
    "ghm": Configuration(("--ENTRY_WEIGHTS=ghm,ohem", "--HEAD=per_label_mlp", "--MLP_HIDDEN=8")),
    "shards": Configuration(("--NUM_WORKERS=2",), dataset="shards"),
    "growing": Configuration(
        (
            "--PRETRAINED_WEIGHTS={folder}/own.pth",
            "--FREEZE_BACKBONE=True",
            "--UNFREEZE_BACKBONE_EPOCH=2",
            "--FROZEN_FEATURE_VIEWS=1",
            "--GROWING_IMAGE_SIZES=32,40",
            "--LORA_RANK=2",
            "--LAYER_DECAY=0.8",
        )
    ),
    "micro_batches": Configuration(("--MICRO_BATCH_SIZE=4", "--HEAD=gcn", "--CALIBRATION=platt")),
    "two_processes": Configuration(("--EMA_DECAY=0.9",), processes=2),
    "testing": Configuration(
        (
            "--MODEL_PATH={folder}/teacher/trained_models/best_model.pt",
            "--TEST_BATCH_SIZE=2",
            "--TEST_FLIP=True",
            "--PREDICTION_FILES=names,scores,records,pictures,probabilities,csv,jsonl,parquet,label_studio,fiftyone",
        ),
        script="testing",
    ),
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="*", metavar="CONFIGURATION", help=", ".join(CONFIGURATIONS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    chosen = parser.parse_args(arguments)
    names = chosen.configurations or [*CONFIGURATIONS]
    if unknown := {*names} - {*CONFIGURATIONS}:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(CONFIGURATIONS)}")
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    try:
        require_end(launch_prepare(folder), folder / "prepare.txt")
        print(f"{'configuration':16}{'kills':>6}{'SIGTERM':>9}{'runs':>6}{'differ':>8}{'seconds':>9}", flush=True)
        problems = [problem for name in names for problem in attack(name, folder, chosen.kills, chosen.seed)]
        print("\n".join(problems) or "every run ended with the bits of an untouched one")
        status = 1 if problems else 0
    finally:
        if chosen.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    sys.exit(status)


def launch_prepare(folder: Path) -> BaseProcess:
    """Draw the pictures, pack them into shards, make weights and train a teacher, in a process of its own."""
    from launching import CONTEXT

    process = CONTEXT.Process(target=prepare, args=(folder,))
    process.start()
    return process


def prepare(folder: Path) -> None:
    import timm
    import torch

    import training
    from tools.convert import convert_dataset
    from tools.demo import draw_dataset

    torch.set_num_threads(1)
    output = os.open(folder / "prepare.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    root = folder / "pictures"
    splits = [
        (root / "images" / f"{split}-resized", root / "labels" / split, number)
        for split, number in (("train", 40), ("test", 12))
    ]
    draw_dataset(root, splits, image_size=48, seed=0)
    convert_dataset(root, "coco_cls", "webdataset", folder / "shards")
    torch.manual_seed(0)
    torch.save(timm.create_model(MODEL.removeprefix("timm/")).state_dict(), folder / "own.pth")
    training.main([*make_arguments("ghm", folder, folder / "teacher"), "--SEED=7", "--ENTRY_WEIGHTS="])


def make_arguments(name: str, folder: Path, run_folder: Path) -> list[str]:
    """The command line of a run that writes into `run_folder`."""
    configuration = CONFIGURATIONS[name]
    values = {
        "LOCAL_ROOT": run_folder,
        "DATASET_FOLDER": folder / configuration.dataset,
        "TENSORBOARD_FOLDER": run_folder / "runs",
        "DEVICE": "cpu",
        "BOOTSTRAP_SAMPLES": 20,
    }
    if configuration.script == "training":
        values.pop("BOOTSTRAP_SAMPLES")
        values |= {
            "MODEL_NAME": MODEL,
            "IMAGE_SIZE": 32,
            "NUM_EPOCHS": 3,
            "PRETRAINED_WEIGHTS": None,
            "FREEZE_BACKBONE": False,
            "TRAIN_BATCH_SIZE": 8,
            "VAL_SPLIT": 0.25,
            "SCHEDULE": "cosine",
            "SAVE_EVERY_MINUTES": 0.00001,  # after each step
        }
    options = [option.format(folder=folder) for option in configuration.options]
    return [*(f"--{constant}={value}" for constant, value in values.items()), *options]


def start(name: str, folder: Path, run_folder: Path) -> list[BaseProcess]:
    """Start the run's command."""
    configuration, arguments = CONFIGURATIONS[name], make_arguments(name, folder, run_folder)
    run_folder.mkdir(exist_ok=True)
    if configuration.processes == 1:
        return [launch(configuration.script, arguments, run_folder / "output.txt")]
    return launch_together(configuration.script, arguments, configuration.processes, run_folder)


def attack(name: str, folder: Path, num_kills: int, seed: int) -> Iterator[str]:
    """Kill the run `num_kills` times, print a line of the table, and yield what differs from an untouched run."""
    draw, began = random.Random(f"{name} {seed}"), time.perf_counter()
    untouched = folder / f"{name}_untouched"
    before = time.perf_counter()
    processes = start(name, folder, untouched)
    require_end(processes[0], untouched / "output.txt")
    finish(*processes)
    seconds = time.perf_counter() - before
    expected = read_files(untouched)
    kills: list[signal.Signals] = []
    problems: list[str] = []
    num_runs = 0
    while len(kills) < num_kills:
        num_runs += 1
        run_folder = folder / f"{name}_{num_runs}"
        while True:
            processes = start(name, folder, run_folder)
            if len(kills) < num_kills:
                number = signal.SIGTERM if draw.random() < SHARE_OF_SIGTERM else signal.SIGKILL
                if kill_later(processes, draw.uniform(0.0, seconds), number, draw):
                    kills.append(number)
            statuses = finish(*processes)
            if statuses == [0] * len(statuses) or has_finished(run_folder):
                break
            allowed = {0, 1, 75, -signal.SIGKILL, -signal.SIGTERM}  # 1: the other process of two was killed
            if not {*statuses} <= (allowed if len(statuses) > 1 else allowed - {1}):
                yield f"{name}, run {num_runs}: exit statuses {statuses}: {read_end(run_folder)}"
                return
        found = read_files(run_folder)
        problems += [f"{name}, run {num_runs}: {difference}" for difference in compare(found, expected)]
    terms = kills.count(signal.SIGTERM)
    print(
        f"{name:16}{len(kills):6}{terms:9}{num_runs:6}{len(problems):8}{time.perf_counter() - began:9.0f}", flush=True
    )
    yield from problems


def kill_later(processes: list[BaseProcess], seconds: float, number: signal.Signals, draw: random.Random) -> bool:
    """Send one of the processes a signal after some seconds. Returns whether all of them were still running."""
    processes[0].join(seconds)
    if not all(process.is_alive() for process in processes):
        return False
    victim = draw.choice(processes)
    assert victim.pid
    os.kill(victim.pid, number)
    victim.join()
    for process in processes:  # another one may wait for the victim
        process.join(SECONDS_ALONE)
        process.kill()
    return True


def require_end(process: BaseProcess, output: Path) -> None:
    if finish(process) != [0]:
        raise SystemExit(f"an untouched run failed:\n{output.read_text()}")


def read_end(run_folder: Path) -> str:
    return " | ".join(file.read_text()[-300:].strip() for file in run_folder.glob("*.txt"))


# ---- what is compared ----


def has_finished(run_folder: Path) -> bool:
    """Whether a run wrote its last file before it was killed: nothing is left that the command would go on with."""
    from models import checkpoints

    files = [*run_folder.glob("trained_models/*/*/last.pt")]
    return bool(files) and checkpoints.load(files[0])["training_state"]["state"]["finished"]


def read_files(run_folder: Path) -> dict[str, Any]:
    """All that must not depend on interruptions: {file: content}, without times."""
    from models import checkpoints

    contents: dict[str, Any] = {}
    for file in sorted(run_folder.rglob("*")):
        name = file.relative_to(run_folder).as_posix()
        if not file.is_file() or name.startswith("runs/") or name.endswith((".txt", ".log", ".lock", ".json")):
            continue
        if file.suffix in (".pt", ".pth"):
            contents[name] = drop_times(checkpoints.load(file))
        elif file.name == "runs.csv":
            contents[name] = len(file.read_text().splitlines())
        elif file.name == "log.csv":
            contents[name] = [drop_times(row) for row in csv.DictReader(file.open())]
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                contents[name] = {key: arrays[key].tobytes() for key in arrays}
        elif file.suffix != ".png" or name.startswith("predictions"):  # the picture of the curves shows seconds
            contents[name] = file.read_bytes()
    for file in run_folder.glob("predictions/*.json"):
        contents[file.name] = file.read_bytes()
    return contents


def drop_times(value: Any) -> Any:
    """`value` without UNCOMPARED, in dicts and lists within it."""
    if isinstance(value, dict):
        return {key: drop_times(item) for key, item in value.items() if key not in UNCOMPARED}
    return [drop_times(item) for item in value] if isinstance(value, list | tuple) else value


def compare(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What differs, in words."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is left over" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        place = find_difference(found[name], expected[name])
        if place is not None:
            problems.append(f"{name}{place} differs")
    return problems


def find_difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two contents differ first; None where they do not."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if torch.equal(one, other) else place
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{place}/{key}", one[key], other[key]) for key in one]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{place}/{index}", a, b) for index, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        same = one == other or (one != one and other != other)  # NaN is no difference
        return None if same else place
    return next((found for name, a, b in pairs if (found := find_difference(a, b, name)) is not None), None)


if __name__ == "__main__":
    main(sys.argv[1:])
