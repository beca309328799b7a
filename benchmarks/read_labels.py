"""Reading the .cls files of a large data set: a plain loop against dataset/label_files.py, cold and from its index.

    python benchmarks/read_labels.py [DATASET_FOLDER]    # without it, 118,000 images as in COCO are made up, empty

A plain loop lists the images with pathlib, and reads and parses one label file after another. All ways take turns.
The file cache of the system is filled first; `index, folders` compares the times of the folders only
(CHECK_LABEL_FILES = False), `index` those of every label file as well, which is what the rest of its time goes into.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

import utils
from dataset.files import list_images
from dataset.label_files import SETTLED_SECONDS, read_label_files

NUM_IMAGES = 118_287  # COCO's train2017
NUM_CLASSES = 80
MEAN_LABELS = 2.9
ROUNDS = 5


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(argv[0]) if argv else make_dataset(Path(temporary) / "set")
        images_dir, labels_dir, cache = root / "images" / "train-resized", root / "labels" / "train", Path(temporary)
        time.sleep(SETTLED_SECONDS + 0.1)  # an index of younger files is not kept
        expected = read_plainly(images_dir, labels_dir)
        ways: dict[str, Callable[[], object]] = {
            "plain loop": lambda: read_plainly(images_dir, labels_dir),
            "read": lambda: read_label_files(images_dir, labels_dir, NUM_CLASSES),
            "index": lambda: read_label_files(images_dir, labels_dir, NUM_CLASSES, cache),
            "index, folders": lambda: read_label_files(images_dir, labels_dir, NUM_CLASSES, cache, check_files=False),
            "plain listing": lambda: sorted(path for path in images_dir.iterdir() if path.suffix.lower() == ".jpg"),
            "list_images": lambda: list_images(images_dir),
        }
        assert np.array_equal(read_label_files(images_dir, labels_dir, NUM_CLASSES, cache)[1], expected)
        assert list(cache.glob("labels_*.npy")), "the label files were changed a moment ago: try again"
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
        print(f"{len(expected):,} images, {ROUNDS} rounds: median seconds, and the median ratio of the rounds")
        for name, taken in seconds.items():
            plain = seconds["plain listing" if "list" in name else "plain loop"]
            ratio = statistics.median(p / t for p, t in zip(plain, taken, strict=True))
            print(f"{name:16}{statistics.median(taken):8.3f} s{ratio:8.1f}")


def make_dataset(root: Path) -> Path:
    """Label files as COCO has them, and empty image files."""
    rng = np.random.default_rng(0)
    images, labels = root / "images" / "train-resized", root / "labels" / "train"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index, count in enumerate(rng.poisson(MEAN_LABELS, NUM_IMAGES)):
        present = np.unique(rng.integers(0, NUM_CLASSES, count))
        (labels / f"{index:012}.cls").write_text("".join(f"{label}\n" for label in present))
        (images / f"{index:012}.jpg").touch()
    return root


def read_plainly(images_dir: Path, labels_dir: Path) -> np.ndarray:
    """(N, C) targets, as most would read them."""
    images = sorted(path for path in images_dir.iterdir() if path.suffix.lower() == ".jpg")
    targets = np.zeros((len(images), NUM_CLASSES), dtype=np.int8)
    for row, path in zip(targets, images, strict=True):
        for line in (labels_dir / f"{path.stem}.cls").read_text().splitlines():
            if line.strip():
                row[int(line)] = 1
    return targets


if __name__ == "__main__":
    utils.run_script(main)
