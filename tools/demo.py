"""The data set of `python dataset_tools.py demo`: pictures drawn by tools/demo_images.py, in the layout of config.py.

demo(root, ((train_images, train_labels, 1000), (test_images, test_labels, 200)), image_size=128, seed=0)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import utils
from dataset import whole_files
from dataset.json_files import read_json
from tools.demo_images import KINDS, draw_image, sample_kinds
from utils import InputError

DRAWING = 1  # raised when the pictures change, so that a demo drawn before is replaced
MOST_IMAGES = 10**7  # of a demo: a marker that names more is not ours
MARKER = "demo.json"  # in DATASET_FOLDER: what was drawn there, and whether it was finished


def draw_dataset(root: Path, splits: Sequence[tuple[Path, Path, int]], image_size: int, seed: int) -> None:
    """Draw train and test images with labels into `root`, unless that very demo is there already.

    `splits` are train and test: a folder of images, one of labels, and how many. Raises InputError when a folder
    holds anything that an earlier `demo` did not write.
    """
    counts = [count for *_, count in splits]
    if counts[0] < 1 or counts[1] < 0 or image_size < 32 or seed < 0:
        raise InputError("demo needs DEMO_TRAIN_IMAGES 1, DEMO_TEST_IMAGES 0, DEMO_IMAGE_SIZE 32, DEMO_SEED 0, or more")
    wanted = {
        "made_by": "dataset_tools.py demo",
        "drawing": DRAWING,
        "image_size": image_size,
        "seed": seed,
        "counts": counts,
    }
    found = read_marker(root, [folder for split in splits for folder in split[:2]])
    files = [pair for images, labels, count in splits for pair in list_files(images, labels, count)]
    if found == {**wanted, "complete": True} and all(file.is_file() for pair in files for file in pair):
        utils.say(f"{root} holds this demo already: nothing to draw")
        return
    if found:  # marked as incomplete first: an interruption from here on only means drawing again
        save_marker(root, {**found, "complete": False})
        for (images, labels, _), count in zip(splits, found["counts"], strict=True):
            for pair in list_files(images, labels, count):
                for file in pair:
                    file.unlink(missing_ok=True)
    save_marker(root, {**wanted, "complete": False})
    try:
        positives = save_images(splits, seed, image_size)
        names = "".join(f"{name}\n" for name in KINDS)
        (root / "classes.txt").write_text(names, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the demo in {root}: {utils.explain(error)}") from error
    save_marker(root, {**wanted, "complete": True})
    print_summary(root, positives, counts)


def read_marker(root: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """What an earlier `demo` wrote under `root`; {} when there is nothing; InputError when it is something else."""
    marker = root / MARKER
    if marker.is_file():
        try:
            found = read_json(marker)
        except InputError:
            found = None
        if isinstance(found, dict) and found.get("made_by") == "dataset_tools.py demo":
            counts = found.get("counts")
            if isinstance(counts, list) and list(map(type, counts)) == [int, int] and max(counts) <= MOST_IMAGES:
                return found
    for folder in (root, *folders):
        other = next((p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")), None)
        if other:
            raise InputError(f"{other} was not drawn by demo: choose another DATASET_FOLDER")
    return {}


def save_marker(root: Path, marker: dict[str, Any]) -> None:
    whole_files.write_text(root / MARKER, json.dumps(marker, indent=1) + "\n")


def list_files(images: Path, labels: Path, count: int) -> list[tuple[Path, Path]]:
    """The (image, label file) paths of one split of `count` images."""
    return [(images / f"demo{index:05}.jpg", labels / f"demo{index:05}.cls") for index in range(count)]


def save_images(splits: Sequence[tuple[Path, Path, int]], seed: int, size: int) -> np.ndarray:
    """Draw and write all images and label files; how many images of each split show each class, (splits, C)."""
    positives = np.zeros((len(splits), len(KINDS)), dtype=int)
    with utils.Progress("drawing", sum(count for *_, count in splits)) as progress:
        for split, (images, labels, count) in enumerate(splits):
            images.mkdir(parents=True, exist_ok=True)
            labels.mkdir(parents=True, exist_ok=True)
            for index, (image_path, label_path) in enumerate(list_files(images, labels, count)):
                rng = np.random.default_rng([seed, split, index])
                image, kinds = draw_image(rng, sample_kinds(rng), size)
                image.save(image_path, quality=88)
                label_path.write_text("".join(f"{kind}\n" for kind in kinds), encoding="utf-8")
                positives[split, kinds] += 1
                progress.step(1)
    return positives


def print_summary(root: Path, positives: np.ndarray, counts: Sequence[int]) -> None:
    per_image = positives.sum() / sum(counts)
    utils.say(f"{root}: {counts[0]} train and {counts[1]} test images, {per_image:.2f} labels an image")
    utils.say(f"  {'images that show':18}{'train':>6}{'test':>6}")
    for kind, (train, test) in zip(KINDS, positives.T, strict=True):
        utils.say(f"  {kind:18}{train:6}{test:6}")
