"""Time and memory of loading as the list of images grows from a thousand to a million: both should stay flat.

    python benchmarks/growth.py FOLDER    # a folder of image files; the lists repeat them

Medians of rounds in which all lengths take turns: seconds until the first batch (a process is started, the list is
shuffled), milliseconds an image in the batches after it, and the memory that the loading process has for itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools
import statistics
import time

import numpy as np
import torch

import utils
from dataset import augmentations, loading
from dataset.files import list_images
from dataset.table import Table

LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS = 5
NUM_CLASSES = 80
BATCH_SIZE = 32
NUM_BATCHES = 12
IMAGE_SIZE = 224


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        raise utils.InputError("name a folder of image files: python benchmarks/growth.py FOLDER")
    torch.set_num_threads(1)
    files = list_images(Path(argv[0]))
    tables = {length: make_table(list(itertools.islice(itertools.cycle(files), length))) for length in LENGTHS}
    measured = {length: [] for length in LENGTHS}
    for _, length in itertools.product(range(ROUNDS), LENGTHS):
        measured[length].append(measure(tables[length]))
    print(f"{'images':>10}{'first batch s':>16}{'ms/image':>12}{'worker MB':>12}")
    for length, rows in measured.items():
        first, each, private = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{length:10,}{first:16.2f}{1000 * each:12.2f}{private / 1e6:12.0f}")


def make_table(paths: list[str]) -> Table:
    targets = np.zeros((len(paths), NUM_CLASSES), dtype=np.int8)
    return Table(paths, targets, tuple(map(str, range(NUM_CLASSES))))


def measure(table: Table) -> tuple[float, float, int]:
    """(seconds until the first batch, seconds an image after it, bytes of the loading process)."""
    transform = augmentations.make_train_transform(augmentations.Augmentation("crop_flip", 0.5), IMAGE_SIZE)
    loader = loading.make_loader(table, transform, BATCH_SIZE, shuffle=True, num_workers=1)
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(NUM_BATCHES):
        next(batches)
    each = (time.perf_counter() - start) / NUM_BATCHES / BATCH_SIZE
    (worker,) = batches._workers  # pyright: ignore[reportAttributeAccessIssue]
    return first, each, read_private_bytes(worker.pid)


def read_private_bytes(pid: int) -> int:
    """Memory of a process that no other shares, in bytes (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


if __name__ == "__main__":
    utils.run_script(main)
