"""What comparing images with the training images says: of a test as a whole, and of single images, for pages.

    measured = measure_by_novelty(novelty, probabilities, targets, thresholds)
    say(describe_novelty(novelty), describe_f1(measured))
    nearest = find_alike(features, rows=[7, 12], most=3)        # of the images themselves: rows, cosines

How an image is compared, and with which file, is in models/novelty.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

import distributed
import metrics
from evaluation.pages import count
from evaluation.prediction_files import RowFile
from evaluation.predictions import Compared
from export.engines import TorchRun
from models.novelty import NOVEL, NUM_NEAREST, REFERENCE_FILE, Nearest, choose_nearest, normalise
from predictor import Predictor

MOST_NOVEL = 0.1  # share of the images that are measured apart from the rest
FEWEST_IMAGES = 100  # that are divided like this
ROWS_AT_ONCE = 256  # images whose cosines to all others are in memory together
UNLIKE = "unlike the training images"
MOST_SEEN = 0.05  # share of test images that may seem to have been trained on: other splits can have the same names

# ---- a test ----


def count_nearest(model: Predictor) -> int:
    """How many training images a record of the model names; 0 where it compares with none."""
    return min(NUM_NEAREST, len(model.reference.names)) if model.reference and model.compares else 0


def describe_reference(model: Predictor) -> str:
    """What the model compares images with, or why it does not, in words."""
    if not isinstance(model.run, TorchRun):
        return "not known: only a checkpoint in engine torch compares images with the training images"
    if model.reference is None:
        return f"not known: there is no {REFERENCE_FILE} of this model; a test of labelled images makes it"
    if not model.compares:
        return "not known: only images in the model's own size are compared, and TEST_SCALES leaves it out"
    return f"compared with {count(len(model.reference.names), 'training image')}"


def number_names(model: Predictor) -> dict[str, int]:
    """{name of a training image: its row in the model's reference}."""
    return {name: row for row, name in enumerate(model.reference.names)} if model.reference else {}


def read_compared(model: Predictor, rows: RowFile) -> Compared | None:
    """How the images in `rows`, those of all processes, compare with the training images; None: they were not."""
    if model.reference is None or not model.compares:
        return None
    novelty, nearest = distributed.join(rows.read("novelty")), distributed.join(rows.read("nearest"))
    return Compared(novelty, nearest, model.reference.names)


def measure_by_novelty(
    novelty: NDArray[np.floating],
    probabilities: NDArray[np.float32],
    targets: ArrayLike,
    thresholds: ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, float | None]:
    """Whether a model is worse on images that are unlike its training images: `novelty` is (N,), the rest as measured.

    `share_unlike` is the share of images with NOVEL or more; `f1_samples_most_novel` and `f1_samples_rest` are the mean
    F1 of an image among the most novel tenth and among the others, None for fewer than FEWEST_IMAGES images.
    """
    measured: dict[str, float | None] = {"share_unlike": float((novelty >= NOVEL).mean())}
    order = np.argsort(-novelty, kind="stable")
    num_novel = round(MOST_NOVEL * len(novelty))
    for name, rows in (("most_novel", order[:num_novel]), ("rest", order[num_novel:])):
        f1 = None
        if len(novelty) >= FEWEST_IMAGES:
            limits = (min_labels, max_labels)
            f1 = metrics.measure(probabilities[rows], np.asarray(targets)[rows], thresholds, *limits)["f1_samples"]
        measured[f"f1_samples_{name}"] = f1
    return measured


def count_seen(compared: Compared, paths: Sequence[str]) -> int:
    """How many of the images are most like a training image of the same name: it was probably trained on."""
    nearest = [compared.names[row] for row in compared.nearest[:, 0]]
    return sum(f"/{Path(path).as_posix()}".endswith(f"/{name}") for path, name in zip(paths, nearest, strict=True))


def describe_novelty(novelty: NDArray[np.floating]) -> str:
    """How many images are unlike the training images, in words."""
    num_unlike = int((novelty >= NOVEL).sum())
    return (
        f"{num_unlike:,} of {len(novelty):,} images ({num_unlike / max(1, len(novelty)):.1%}) are {UNLIKE}: farther "
        f"from them than {NOVEL:.0%} of these are from each other"
    )


def describe_f1(measured: dict[str, float | None]) -> str:
    """The F1 on the most novel images and on the rest, in words; "" where it was not measured."""
    most_novel, rest = measured["f1_samples_most_novel"], measured["f1_samples_rest"]
    if most_novel is None or rest is None:
        return ""
    return f"mean F1 of an image: {most_novel:.4f} on the most novel tenth, {rest:.4f} on the others"


# ---- single images ----


def is_unlike(novelty: float | None) -> bool:
    """Whether an image of this novelty is said to be unlike the training images."""
    return novelty is not None and novelty >= NOVEL


def find_alike(features: NDArray[np.floating], rows: Sequence[int], most: int = NUM_NEAREST) -> Nearest:
    """For each of the images `rows` the `most` others that are nearest to it, of N images with `features` (N, D).

    Copies count: two copies with different labels are worth seeing.
    """
    unit, found = normalise(features), []
    for block in np.array_split(np.asarray(rows, dtype=np.intp), len(rows) // ROWS_AT_ONCE + 1):
        cosines = unit[block] @ unit.T
        cosines[np.arange(len(block)), block] = -np.inf
        found.append(choose_nearest(cosines, min(most, len(unit) - 1)))
    return Nearest(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
