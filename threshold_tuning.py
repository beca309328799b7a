"""Tunes a checkpoint's thresholds and calibration again, by the THRESHOLD_* constants: no image and no network needed.

    python threshold_tuning.py [recipe.py ...] [--NAME value ...]

Reads the validation images' probabilities that training saved with the checkpoint MODEL_PATH and rewrites that one
file: `thresholds`, `best_threshold` (the global one), `min_labels`, `max_labels`, `calibration`. Beside the scores it
writes thresholds.npy, (C,) float32 in the order of the classes. Copies and files exported before keep what they have.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import config
import overrides

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds

import numpy as np
from numpy.typing import ArrayLike, NDArray

import calibration
import checkpoints
import engines
import metrics
import thresholds
import utils
from thresholds import Policy
from utils import InputError

SCORES_FILE, THRESHOLDS_FILE = "validation_scores.npz", "thresholds.npy"


class SavedScores(NamedTuple):
    """What a model says of labelled images, and what is true."""

    probabilities: NDArray[np.float32]  # (N, C)
    targets: NDArray[np.int8]  # (N, C): 1 present, 0 absent, -1 unknown
    paths: list[str]
    classes: tuple[str, ...]
    identity: str = ""  # of the checkpoint, see `identify`; "": unknown


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    engines.require_checkpoint(config.MODEL_PATH, "whose thresholds stay")
    checkpoint = checkpoints.load(config.MODEL_PATH)
    policy = choose_policy(len(checkpoint["classes"]))
    folder = find_folder(config.MODEL_PATH)
    scores = read_scores(folder / SCORES_FILE)
    updates = tune_checkpoint(checkpoint, scores, policy)
    checkpoints.save(config.MODEL_PATH, checkpoint | updates)
    save_thresholds(folder / THRESHOLDS_FILE, updates["thresholds"])
    print_report(scores, policy, updates)
    print(f"saved: {config.MODEL_PATH}\n       {folder / THRESHOLDS_FILE}")


def choose_policy(num_classes: int) -> Policy:
    """What the constants ask of thresholds. Raises InputError where a model of `num_classes` cannot do so."""
    if num_classes < config.MIN_LABELS:
        raise InputError(f"MIN_LABELS is {config.MIN_LABELS}, but there are {num_classes} classes: set it lower")
    return Policy(
        scope=config.THRESHOLD_SCOPE,
        goal=config.THRESHOLD_GOAL,
        beta=config.THRESHOLD_BETA,
        precision=config.THRESHOLD_PRECISION,
        recall=config.THRESHOLD_RECALL,
        false_positive_cost=config.FALSE_POSITIVE_COST,
        false_negative_cost=config.FALSE_NEGATIVE_COST,
        min_labels=config.MIN_LABELS,
        max_labels=config.MAX_LABELS,
    )


def find_folder(checkpoint: Path) -> Path:
    """Where scores and thresholds of a checkpoint X.pt lie: in the run's folder X or, without one, beside it."""
    own = checkpoint.with_suffix("")
    return own if own.is_dir() else checkpoint.parent


# ---- what lies on the disk ----


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


# ---- tuning ----


def tune_checkpoint(metadata: Mapping[str, Any], scores: SavedScores, policy: Policy) -> dict[str, Any]:
    """The keys of a checkpoint's `metadata` that tuning on `scores` by `policy` changes, in plain types.

    Raises InputError for the scores of a model with other classes.
    """
    classes = tuple(metadata["classes"])
    if scores.classes != classes:
        differing = next((pair for pair in zip(scores.classes, classes, strict=False) if pair[0] != pair[1]), None)
        detail = f"{differing[0]!r} in place of {differing[1]!r}" if differing else f"{len(scores.classes)} classes"
        raise InputError(
            f"the scores are another model's: {detail}, where this one has {len(classes)} classes; train again"
        )
    if scores.identity not in ("", identify(metadata)):
        raise InputError(
            f"the scores are of another checkpoint ({scores.identity}) than this one ({identify(metadata)}): tune the "
            "run's own checkpoint, or best_model.pt"
        )
    labelled = scores.probabilities, scores.targets
    decision = thresholds.decide(*labelled, policy)
    is_sigmoid = metadata.get("activation", "sigmoid") == "sigmoid"
    methods = calibration.fit(*labelled) if is_sigmoid else {}
    measure_error = calibration.expected_calibration_error
    errors = {"none": {"in_sample": measure_error(*labelled), "cross_fitted": measure_error(*labelled)}}
    for name, method in methods.items():
        fitted = calibration.apply_to_probabilities(scores.probabilities, method)
        cross_fitted = calibration.cross_fit(*labelled, calibration.METHODS[name])
        errors[name] = {
            "in_sample": measure_error(fitted, scores.targets),
            "cross_fitted": measure_error(cross_fitted, scores.targets),
        }
    one_sided = calibration.find_one_sided(scores.targets).tolist() if is_sigmoid else []
    return {
        "best_threshold": decision.threshold,
        "thresholds": decision.thresholds.astype(np.float32).tolist(),
        "min_labels": policy.min_labels,
        "max_labels": policy.max_labels,
        "calibration": methods,
        "threshold_policy": asdict(policy),
        "threshold_report": {
            "num_images": len(scores.paths),
            "in_sample": decision.in_sample,
            "cross_fitted": decision.cross_fitted,
            "shrinkage": decision.shrinkage if np.isfinite(decision.shrinkage) else None,  # JSON has no infinity
            "unreachable": [classes[label] for label in decision.unreachable],
            "ECE": errors,
            "platt_as_temperature": [classes[label] for label in one_sided],
        },
    }


# ---- printing ----


def print_report(scores: SavedScores, policy: Policy, updates: Mapping[str, Any]) -> None:
    """What was tuned, and how good it is: in-sample, and on images that it was not tuned on."""
    from rich.console import Console
    from rich.table import Table as Grid

    report, console = updates["threshold_report"], Console()
    print(f"{report['num_images']} validation images, {len(scores.classes)} classes")
    print(f"goal: {describe_goal(policy)}; labels an image: {policy.min_labels} to {policy.max_labels or 'all'}\n")

    strength = "∞" if report["shrinkage"] is None else f"{report['shrinkage']:g}"
    used = "shrunk" if policy.scope == "per_class" else "global"
    ways = {
        "global": f"global, {updates['best_threshold']:.4f}",
        "per_class": "per class",
        "shrunk": f"per class, shrunk with k = {strength}",
    }
    ways[used] += " *"
    grid = Grid("thresholds", "number", "in-sample", "cross-fitted")
    for way, text in ways.items():
        for name in report["in_sample"][way]:
            grid.add_row(text, name, *(f"{report[kind][way][name]:.4f}" for kind in ("in_sample", "cross_fitted")))
            text = ""
        grid.add_section()
    _align(grid)
    console.print(grid)
    print("* saved; shrunk: a class with n positives keeps n / (n + k) of its own threshold, in logits")
    print("in-sample: tuned on these very images; cross-fitted: on the other folds'\n")

    grid = Grid("calibration", "ECE in-sample", "ECE cross-fitted", "scale of logits")
    for name, error in report["ECE"].items():
        scales = updates["calibration"][name]["scale"] if name != "none" else [1.0]
        low, high = f"{min(scales):.3f}", f"{max(scales):.3f}"
        cells = [f"{error[kind]:.4f}" for kind in ("in_sample", "cross_fitted")]
        grid.add_row(name, *cells, low if low == high else f"{low} to {high}")
    _align(grid)
    console.print(grid)

    limits = policy.min_labels, policy.max_labels
    columns = metrics.measure_classes(scores.probabilities, scores.targets, updates["thresholds"], *limits)
    shown = ("positives", "threshold", "predicted", "P", "R", "F1")
    grid = Grid("class", *shown, title="at the saved thresholds, in-sample", title_justify="left")
    for label, name in enumerate(scores.classes):
        values = [columns[column][label] for column in shown]
        grid.add_row(name, *(f"{each:.4f}" if isinstance(each, np.floating) else str(each) for each in values))
    _align(grid)
    console.print(grid)
    if report["unreachable"]:
        utils.warn(
            f"no threshold reaches that precision, so they are hardly predicted: {', '.join(report['unreachable'])}"
        )
    if report["platt_as_temperature"]:
        utils.warn(
            "platt takes the temperature for classes all or none of whose validation images have them: "
            + ", ".join(report["platt_as_temperature"])
        )


def describe_goal(policy: Policy) -> str:
    """The goal for a person to read."""
    costs = policy.false_positive_cost, policy.false_negative_cost
    return {
        "f1": "highest weighted F1",
        "f_beta": f"highest weighted F{policy.beta:g}",
        "precision": f"precision of {policy.precision:g} or more, then highest recall",
        "recall": f"recall of {policy.recall:g} or more, then highest precision",
        "cost": "least cost: {:g} a label too many, {:g} one missing".format(*costs),
    }[policy.goal]


def _align(grid: Any) -> None:
    """All columns but the first to the right."""
    for column in grid.columns[1:]:
        column.justify = "right"


if __name__ == "__main__":
    utils.run_script(main)
