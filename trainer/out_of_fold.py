"""Probabilities of labelled images by models that have not seen them, for `python dataset_tools.py suspects`.

    predicted = predict()                                   # of all training images: heads on frozen features, in folds
    predicted = read(Path("validation_scores.npz"))         # or what a run has predicted
    predicted.table, predicted.probabilities                # the images and their labels, (N, C)

Reads config.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import config
import heads
import utils
from dataset.batches import as_float_targets
from dataset.files import make_absolute
from dataset.table import Table, map_classes
from evaluation import saved_scores, test_results
from trainer import from_config, head_search, missing_labels, search_features
from utils import InputError


class OutOfFold(NamedTuple):
    """Labelled images, and what models that have not seen them predict."""

    table: Table
    probabilities: NDArray[np.float32]  # (N, C)
    learned: NDArray[np.int8]  # (N, C) the labels that the models learned from; -1: none of them did
    features: NDArray[np.float32] | None = None  # (N, D) of the images; None: they are not at hand


class Learned(NamedTuple):
    """Heads on the features of the frozen backbone, and what they learned from."""

    features: search_features.Features  # of all training images
    labels: NDArray[np.int8]  # (N, C) that counted; -1: unknown
    head: head_search.FoundHead


def has_one_label() -> bool:
    """Whether the constants say that each image has exactly one label."""
    return config.LOSS == "softmax" or config.LABELS_PER_IMAGE == "one"


def learn(verb: str) -> Learned:
    """Train logistic regressions on the features of the frozen backbone, of all training images, for `verb`.

    With ABSENT_MEANS "unknown" they do not learn from those absent labels that are probably missing. Raises InputError
    for a head that looks at positions.
    """
    if heads.needs_map(config.HEAD, reweights_channels=config.HEAD == "gcn" and config.GCN_REWEIGHTS_CHANNELS):
        raise InputError(
            f"HEAD {config.HEAD} looks at all positions of an image, and {verb} takes pooled features: name "
            "recipes/frozen_features.py, or set HEAD = 'linear'"
        )
    features = search_features.read_features()
    labels, fold_targets = features.table.targets, None
    if config.ABSENT_MEANS == "unknown":
        fold_targets = missing_labels.reject_for_folds(features.rows, labels, features.fold_of)
        predicted = missing_labels.predict_left_out(features.rows, labels)
        labels = missing_labels.reject_probable_negatives(labels, predicted)
    head = head_search.find_head(
        features.rows,
        as_float_targets(labels).numpy(),
        features.fold_of,
        device=features.device,
        fold_targets=fold_targets,
    )
    return Learned(features, labels, head)


def predict() -> OutOfFold:
    """Probabilities of the training images by `learn`: each fold's images, by heads that learned from the others."""
    learned = learn("suspects")
    features = learned.features
    return OutOfFold(features.table, normalise(learned.head.out_of_fold), learned.labels, features.rows)


def normalise(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (N, C) of which those of an image are 1 together, where each image has one label."""
    return probabilities / probabilities.sum(axis=1, keepdims=True) if has_one_label() else probabilities


def read(file: Path) -> OutOfFold:
    """The scores that a run has saved in `file`, of images that it did not train on, with the data set's labels now.

    The images are those of one split: the one that the test beside `file` names, or else the one that has the most of
    them. Raises InputError where none has any, or where two have as many.
    """
    file = file.expanduser()
    scores = saved_scores.read_scores(file)
    named = test_results.find_split(file, scores)
    tables = {split: from_config.read_split(split) for split in from_config.list_splits() if named in ("", split)}
    rows = {split: _find_rows(table, scores.paths) for split, table in tables.items()}
    counts = {split: int((found >= 0).sum()) for split, found in rows.items()}
    most = max(counts.values(), default=0)
    splits = [split for split, count in counts.items() if count == most]
    if not most:
        where = f"the split {named} of {config.DATASET_FOLDER}" if named else config.DATASET_FOLDER
        raise InputError(f"{file}: none of its {len(scores.paths):,} images, such as {scores.paths[0]}, is in {where}")
    if len(splits) > 1:
        raise InputError(
            f"{file}: its {most:,} images may be those of {' or '.join(splits)}: they have the same names. Name the "
            f"{test_results.SCORES_FILE} in the folder of its run: {test_results.RESULT_FILE} beside it says the split"
        )
    table, found = tables[splits[0]], rows[splits[0]]
    map_classes(Table(scores.paths, scores.targets, scores.classes), table.classes, f"of {file}", "of the data set")
    columns = [scores.classes.index(name) for name in table.classes]
    if most < len(scores.paths):
        utils.warn(
            f"{file}: {len(scores.paths) - most:,} of its {len(scores.paths):,} images are not in {splits[0]} now"
        )
    chosen = np.flatnonzero(found >= 0)
    table = table.select(chosen)
    return OutOfFold(table, scores.probabilities[found[chosen]][:, columns], table.targets)


def _find_rows(table: Table, names: list[str]) -> NDArray[np.intp]:
    """(N,) which of `names` each image of `table` is, -1: none. They are paths, or names from a common folder on."""
    row_of = {name: row for row, name in enumerate(names)}
    absolute = [str(make_absolute(path)) for path in table.paths]
    found = np.array([row_of.get(path, -1) for path in absolute], dtype=np.intp)
    if (found >= 0).any():
        return found
    folder = os.path.commonpath([str(Path(path).parent) for path in absolute])
    return np.array([row_of.get(os.path.relpath(path, folder), -1) for path in absolute], dtype=np.intp)
