"""The validation scores and thresholds that are saved beside a checkpoint.

    scores = read_scores(find_folder(checkpoint_path) / SCORES_FILE)
    scores.probabilities, scores.targets        # (N, C) both

Thresholds and calibration are tuned on them, without any image or network.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import metrics
from dataset import whole_files
from dataset.array_files import read_named_arrays
from dataset.class_names import normalise_saved
from dataset.table import Table
from dataset.text_files import CsvFile
from evaluation.tables import guard_cell
from models import checkpoints
from utils import InputError, first_line

SCORES_FILE, THRESHOLDS_FILE, THRESHOLDS_TABLE = "validation_scores.npz", "thresholds.npy", "thresholds.csv"


class SavedScores(NamedTuple):
    """What a model predicts for N labelled images, and their labels."""

    probabilities: NDArray[np.float32]  # (N, C)
    targets: NDArray[np.int8]  # (N, C): 1 present, 0 absent, -1 unknown
    paths: list[str]  # of the N images
    classes: tuple[str, ...]  # names of the C classes
    identity: str = ""  # which checkpoint predicted, see `identify`; "": not known


# of the arrays in the file: dtype.kind, dimensions
KINDS = dict(zip(SavedScores._fields, (("f", 2), ("i", 2), ("U", 1), ("U", 1), ("U", 0)), strict=True))


def find_folder(checkpoint: Path) -> Path:
    """The folder with the scores and thresholds of a checkpoint X.pt: the run's folder X, or else that of X.pt."""
    run_folder = checkpoint.with_suffix("")
    return run_folder if run_folder.is_dir() else checkpoint.parent


def save_scores(
    path: Path,
    probabilities: ArrayLike,
    targets: ArrayLike,
    paths: Sequence[str],
    classes: Sequence[str],
    identity: str = "",
) -> None:
    """Write probabilities and targets, both (N, C) (unknown: -1 or NaN), the N image paths and the C class names.

    `identity` is what `identify` gives for the checkpoint.
    """
    present, known = metrics.as_known(targets)
    arrays = {
        "probabilities": np.asarray(probabilities, dtype=np.float32),
        "targets": np.where(known, present, -1).astype(np.int8),
        "paths": np.array([str(image_path) for image_path in paths], dtype=str),
        "classes": np.array(classes, dtype=str),
        "identity": np.array(identity),
    }

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # numpy would add .npz to a name, but not to an open file
            np.savez_compressed(file, **arrays)

    whole_files.write_atomically(path, write)


def read_scores(path: Path) -> SavedScores:
    """Read what `save_scores` wrote to `path`. Runs no code from the file.

    Raises InputError where the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise InputError(
            f"there are no validation scores {path}: training.py saves them with a checkpoint; train again"
        )
    try:
        probabilities, targets, paths, classes, identity = read_named_arrays(path, KINDS)
    except (OSError, ValueError, LookupError) as error:
        raise InputError(
            f"cannot read the scores {path}: it is damaged, or no file of this project ({first_line(error)})"
        ) from error
    if probabilities.shape != (len(paths), len(classes)) or targets.shape != probabilities.shape:
        raise InputError(
            f"the scores {path} do not fit together: probabilities {probabilities.shape}, targets {targets.shape}, "
            f"{len(paths)} paths, {len(classes)} classes"
        )
    return SavedScores(probabilities, targets, paths.tolist(), normalise_saved(classes.tolist()), str(identity))


def save_thresholds(folder: Path, classes: Sequence[str], values: Sequence[float]) -> None:
    """Write (C,) thresholds in the order of the `classes`: as float32, and in a table with the classes' names.

    The table is for people: names are as `tables.guard_cell` writes them.
    """
    thresholds = np.asarray(values, dtype=np.float32)

    def write_array(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, thresholds)

    def write_table(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(CsvFile(file))
            writer.writerow(["name", "threshold"])
            for name, threshold in zip(classes, thresholds.tolist(), strict=True):
                writer.writerow([guard_cell(name), f"{threshold:.9g}"])  # nine digits give the same float32 again

    whole_files.write_atomically(folder / THRESHOLDS_FILE, write_array)
    whole_files.write_atomically(folder / THRESHOLDS_TABLE, write_table)


def save_with_scores(path: Path, checkpoint: Mapping[str, Any], scores: SavedScores | None) -> None:
    """Save `checkpoint` at `path` and, if there are any, the scores that its thresholds were tuned on.

    The checkpoint comes last: whoever finds it finds its scores, too.
    """
    if scores:
        folder = find_folder(path)
        save_scores(folder / SCORES_FILE, *scores)
        save_thresholds(folder, checkpoint["classes"], checkpoint["thresholds"])
    checkpoints.save(path, checkpoint)


def find_scores(checkpoint: Path, metadata: Mapping[str, Any]) -> SavedScores | None:
    """The scores that were saved with the checkpoint X.pt; None where they are missing, or of another checkpoint.

    Raises InputError where they are damaged.
    """
    file = find_folder(checkpoint) / SCORES_FILE
    scores = read_scores(file) if file.is_file() else None
    return scores if scores and scores.identity in ("", identify(metadata)) else None


def find_val_fingerprint(checkpoint: Path, metadata: Mapping[str, Any]) -> str:
    """Which validation images, labels and classes F1 of a checkpoint X.pt is over: 16 hexadecimal digits.

    They stand in its `metadata` or, for an older run, follow from the scores saved with it. "" where it has none.
    """
    if known := metadata.get("dataset", {}).get("val_fingerprint"):
        return str(known)
    with suppress(InputError):  # damaged scores say nothing
        if scores := find_scores(checkpoint, metadata):
            return Table(scores.paths, scores.targets, scores.classes).fingerprint()
    return ""


def identify(metadata: Mapping[str, Any]) -> str:
    """A text that differs between the checkpoints of a run: model, epoch and F1."""
    return f"{metadata['model_name']}, epoch {metadata.get('epoch')}, F1 {metadata.get('best_f1')}"
