"""The validation scores and thresholds that lie with a checkpoint."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import metrics
import utils
from utils import InputError

SCORES_FILE, THRESHOLDS_FILE = "validation_scores.npz", "thresholds.npy"


class SavedScores(NamedTuple):
    """What a model says of labelled images, and what is true."""

    probabilities: NDArray[np.float32]  # (N, C)
    targets: NDArray[np.int8]  # (N, C): 1 present, 0 absent, -1 unknown
    paths: list[str]
    classes: tuple[str, ...]
    identity: str = ""  # of the checkpoint, see `identify`; "": unknown


def find_folder(checkpoint: Path) -> Path:
    """Where scores and thresholds of a checkpoint X.pt lie: in the run's folder X or, without one, beside it."""
    own = checkpoint.with_suffix("")
    return own if own.is_dir() else checkpoint.parent


def save_scores(
    path: Path,
    probabilities: ArrayLike,
    targets: ArrayLike,
    paths: Sequence[str],
    classes: Sequence[str],
    identity: str = "",
) -> None:
    """Write (N, C) probabilities and targets (unknown: -1 or NaN), with the N image paths and C class names.

    `identity` says whose they are: what `identify` gives for the checkpoint.
    """
    present, known = metrics.as_known(targets)
    arrays = {
        "probabilities": np.asarray(probabilities, dtype=np.float32),
        "targets": np.where(known, present, -1).astype(np.int8),
        "paths": np.array([str(each) for each in paths], dtype=str),
        "classes": np.array(classes, dtype=str),
        "identity": np.array(identity),
    }

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy would put .npz after it
            np.savez_compressed(file, **arrays)

    utils.write_atomically(path, write)


def read_scores(path: Path) -> SavedScores:
    """The scores in `path`. Raises InputError unless it is a whole file of `save_scores`; runs no code from it."""
    if not path.is_file():
        raise InputError(
            f"there are no validation scores {path}: training.py saves them with a checkpoint; train again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            probabilities, targets, paths, classes, identity = (file[name] for name in SavedScores._fields)
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read the scores {path}: it is damaged, or no file of this project ({error})"
        ) from error
    if probabilities.shape != (len(paths), len(classes)) or targets.shape != probabilities.shape:
        raise InputError(
            f"the scores {path} do not fit together: probabilities {probabilities.shape}, targets {targets.shape}, "
            f"{len(paths)} paths, {len(classes)} classes"
        )
    return SavedScores(probabilities, targets, paths.tolist(), tuple(classes.tolist()), str(identity))


def save_thresholds(path: Path, values: Sequence[float]) -> None:
    """Write (C,) thresholds as float32, in the order of the classes."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, np.asarray(values, dtype=np.float32))

    utils.write_atomically(path, write)


def identify(metadata: Mapping[str, Any]) -> str:
    """What tells a checkpoint from others of its run."""
    return f"{metadata['model_name']}, epoch {metadata.get('epoch')}, F1 {metadata.get('best_f1')}"
