"""Processes and what they take, runs of training.py and testing.py and what they reach: for the other scripts here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table as Grid

import config
import dataset_readers
import utils
from dataset import stratified_split
from dataset.table import Table
from utils import InputError

REPOSITORY = Path(__file__).resolve().parents[1]

Figures = dict[str, float]


# ---- processes ----


class Process(NamedTuple):
    """What a process took."""

    startup: float  # seconds until its first line of output
    seconds: float  # in all
    cpu_seconds: float  # of all cores, its children's too
    memory: float  # peak resident memory, MB


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
    seconds = time.perf_counter() - start
    return Process(startup, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


# ---- data sets made of links ----


def select_evenly(table: Table, num_images: int) -> Table:
    """`num_images` rows at even distances, the first and the last among them; 0: all."""
    _require_images(table, num_images)
    return table.select(np.linspace(0, len(table) - 1, num_images or len(table)).round().astype(int))


def select_stratified(table: Table, num_images: int, seed: int) -> Table:
    """`num_images` rows with the same share of each label as all have, drawn by `seed`; 0: all."""
    _require_images(table, num_images)
    if num_images in (0, len(table)):
        return table
    return stratified_split.split_table(table, num_images / len(table), seed)[1]


def _require_images(table: Table, num_images: int) -> None:
    if num_images > len(table):
        raise InputError(f"{num_images} images are asked for but the data set has {len(table)} in that split")


def link_dataset(table: Table, folder: Path, split: str) -> None:
    """Write a split of a data set in the layout of config.py, its images as links. Unknown labels become absent."""
    images, labels = folder / "images" / f"{split}-resized", folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in table.classes), encoding="utf-8")
    for path, row in zip(map(Path, table.paths), table.targets, strict=True):
        (images / path.name).symlink_to(path.resolve())
        (labels / f"{path.stem}.cls").write_text("".join(f"{label}\n" for label in np.flatnonzero(row == 1)))


def link_subset(dataset_folder: Path, parent: Path, num_train: int, seed: int, num_held_out: int = 0) -> Path:
    """A data set of `num_train` training images (0: all), drawn by `seed`, in a folder in `parent`, made only once.

    With `num_held_out` so many training images are its test images, so that something can be chosen by them, and are
    not trained on; which ones does not depend on `seed`. Returns the data set's folder: `dataset_folder` itself where
    it already is what is asked for.
    """
    train = dataset_readers.read_dataset(dataset_folder, split="train")
    if not num_held_out and num_train in (0, len(train)):
        return dataset_folder.absolute()
    digest = name_by(str(dataset_folder.absolute()), train.fingerprint())
    folder = parent.absolute() / f"data_{digest}_{num_train}_seed{seed}_{num_held_out}"
    if folder.exists():
        return folder
    if num_held_out:
        _require_images(train, num_held_out)
        train, test = stratified_split.split_table(train, num_held_out / len(train), 0)
    else:
        test = dataset_readers.read_dataset(dataset_folder, split="test")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    link_dataset(select_stratified(train, num_train, seed), partial, "train")
    link_dataset(test, partial, "test")
    partial.rename(folder)
    return folder


def name_by(*texts: str) -> str:
    """Eight characters for a file's name, others for other `texts`."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]


# ---- training and testing ----


def name_files(folder: Path, data: Path) -> list[str]:
    """The constants of a run on the data set `data` that writes into `folder`, where no cache lies yet."""
    files = {
        "LOCAL_ROOT": folder,
        "DATASET_FOLDER": data,
        "CACHE_FOLDER": folder / "cache",
        "PRETRAINED_MODELS_FOLDER": config.PRETRAINED_MODELS_FOLDER,
        "TENSORBOARD_FOLDER": folder / "runs",
    }
    return [f"--{name}={Path(path).absolute()}" for name, path in files.items()]


def read_result(folder: Path) -> Figures:
    """What testing.py wrote into `folder`, the run's LOCAL_ROOT."""
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    predicted = sum(row["predicted"] for row in result["classes"].values())
    return {
        "mAP": result["metrics"]["mAP"],
        "f1": result["metrics"]["f1_weighted"],
        "ECE": result["metrics"]["ECE"],
        "labels": predicted / result["num_images"],
    }


def run_once(folder: Path, data: Path, arguments: Sequence[str]) -> Figures:
    """Train and test with the constants `arguments` in `folder`; or what an earlier call with the same found there.

    Features and images that are computed once are computed within the run. Raises InputError when a script fails.
    After a change of the code, delete the folder: what is done is not done again.

    Example: {"mAP": 0.69, "f1": 0.68, "ECE": 0.02, "labels": 1.9, "seconds": 60.0, "cpu_seconds": 110.0}
    """
    file = folder / "figures.json"
    constants = [*arguments, *name_files(folder, data)]
    if file.is_file():
        done = json.loads(file.read_text())
        if done["constants"] == constants:
            return done["figures"]
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted: its cache would shorten this one
    folder.mkdir(parents=True)
    training = run_process("training.py", *constants)
    run_process("testing.py", *constants, "--BOOTSTRAP_SAMPLES=0")
    figures = {**read_result(folder), "seconds": training.seconds, "cpu_seconds": training.cpu_seconds}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for checkpoint in folder.rglob("*.pt"):
        checkpoint.unlink()
    file.write_text(json.dumps({"constants": constants, "figures": figures}, indent=1))
    return figures


# ---- printing ----


def describe(values: Iterable[float], digits: int = 3) -> str:
    """The mean and in brackets the spread, highest - lowest: "0.690 (0.004)"; of one value the value alone."""
    values = list(values)
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({max(values) - min(values):.{digits}f})"


def print_table(rows: Iterable[Sequence[str]], titles: Sequence[str]) -> None:
    """Print a table; only the first column is broken where there is no room."""
    grid = Grid()
    grid.add_column(titles[0], overflow="fold")
    for title in titles[1:]:
        grid.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    utils.make_console().print(grid)


def parse_numbers(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]"""
    return [int(number) for number in text.split(",")]
