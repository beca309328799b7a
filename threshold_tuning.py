"""Tunes a checkpoint's thresholds and calibration again, by the THRESHOLD_* constants, without images or network.

    python threshold_tuning.py [recipe.py ...] [--NAME value ...]

Reads the probabilities of the validation images, which training saved with the checkpoint MODEL_PATH. Writes into that
checkpoint: `thresholds`, `best_threshold` (the global one), `min_labels`, `max_labels`, `calibration`, `promise` (of
the goals guaranteed_...) and `abstention` (ABSTAIN). Beside the probabilities it writes thresholds.npy, (C,) float32 in
the order of the classes, and thresholds.csv, which also names them. Copies of the checkpoint, and files that were
exported from it before, stay as they are.
"""

from __future__ import annotations

import sys

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from models import network_files

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds
    network_files.import_in_parts()

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import metrics
import utils
from dataset import locks
from dataset.class_names import show_names
from evaluation.saved_scores import (
    SCORES_FILE,
    THRESHOLDS_FILE,
    THRESHOLDS_TABLE,
    SavedScores,
    find_folder,
    read_scores,
    save_thresholds,
)
from evaluation.tuning import describe_fallback, describe_promise, tune_checkpoint
from export import engines
from models import checkpoints, hub_folders
from thresholds import Policy
from trainer.from_config import choose_policy

if TYPE_CHECKING:
    from rich.table import Table as Grid

MAX_CLASSES = 100  # that are printed, those with the most positives


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    engines.require_checkpoint(config.MODEL_PATH, "whose thresholds stay")
    if hub_folders.is_ours(hub_folders.locate(config.MODEL_PATH)):
        raise utils.InputError(
            f"{config.MODEL_PATH} is a folder for the hub, whose thresholds stay: name the checkpoint (.pt)"
        )
    folder = find_folder(config.MODEL_PATH)
    if not config.MODEL_PATH.is_file():
        checkpoints.load(config.MODEL_PATH)  # says that it is missing
    with locks.own(folder):  # a run that trains this checkpoint would replace it, or be replaced by it
        checkpoint = checkpoints.load(config.MODEL_PATH)
        policy = choose_policy(len(checkpoint["classes"]))
        scores = read_scores(folder / SCORES_FILE)
        updates = tune_checkpoint(checkpoint, scores, policy)
        checkpoints.save(config.MODEL_PATH, checkpoint | updates)
        save_thresholds(folder, checkpoint["classes"], updates["thresholds"])
    print_report(scores, policy, updates)
    utils.say(f"saved: {config.MODEL_PATH}", f"       {folder / THRESHOLDS_FILE} and {THRESHOLDS_TABLE}")


# ---- printing ----


def print_report(scores: SavedScores, policy: Policy, updates: Mapping[str, Any]) -> None:
    """Print what was tuned, and how good it is: on the images it was tuned on, and cross-fitted on others."""
    report = updates["threshold_report"]
    utils.say(
        f"{report['num_images']} validation images, {len(scores.classes)} classes",
        f"goal: {describe_goal(policy)}; labels an image: {policy.min_labels} to {policy.max_labels or 'all'}",
        "",
    )
    _print_grid(make_threshold_grid(policy, updates))
    shrunk = "; shrunk: a class with n positives keeps n / (n + k) of its own threshold, in logits"
    utils.say(
        f"* saved{shrunk if 'shrunk' in report['in_sample'] else ''}",
        "in-sample: tuned on these very images; cross-fitted: on the other folds'",
        "",
    )
    _print_grid(make_calibration_grid(updates))
    _print_grid(make_class_grid(scores, policy, updates))
    if len(scores.classes) > MAX_CLASSES:
        utils.say(
            f"the {MAX_CLASSES} classes with the most positives of {len(scores.classes):,}; thresholds.npy has all"
        )
    for line in describe_promise(updates):
        utils.say(line)
    for line in describe_fallback(updates):
        utils.warn(line)
    if report["unreachable"] and policy.goal == "precision":
        utils.warn(
            f"no threshold reaches that precision, so they are hardly predicted: {show_names(report['unreachable'])}"
        )
    if report["platt_as_temperature"] and config.CALIBRATION == "platt":
        utils.warn(
            "platt takes the temperature for classes all or none of whose validation images have them: "
            + show_names(report["platt_as_temperature"])
        )


def make_threshold_grid(policy: Policy, updates: Mapping[str, Any]) -> Grid:
    """The metrics of each way to set thresholds; a star marks the way that is saved."""
    from rich.table import Table as Grid

    report = updates["threshold_report"]
    strength = "∞" if report["shrinkage"] is None else f"{report['shrinkage']:g}"
    titles = {
        "global": f"global, {updates['best_threshold']:.4f}",
        "per_class": "per class",
        "shrunk": f"per class, shrunk with k = {strength}",
    }
    titles["shrunk" if policy.scope == "per_class" else "global"] += " *"
    grid = Grid("thresholds", "number", "in-sample", "cross-fitted")
    for way, title in titles.items():
        if way not in report["in_sample"]:  # a promise takes one threshold for all classes
            continue
        in_sample, cross_fitted = report["in_sample"][way], report["cross_fitted"][way]
        for row, name in enumerate(in_sample):
            grid.add_row(title if row == 0 else "", name, f"{in_sample[name]:.4f}", f"{cross_fitted[name]:.4f}")
        grid.add_section()
    return grid


def make_calibration_grid(updates: Mapping[str, Any]) -> Grid:
    """The calibration error of each method, and by what it multiplies logits."""
    from rich.table import Table as Grid

    grid = Grid("calibration", "ECE in-sample", "ECE cross-fitted", "scale of logits")
    for name, error in updates["threshold_report"]["ECE"].items():
        scales = [1.0] if name == "none" else updates["calibration"][name]["scale"]
        low, high = f"{min(scales):.3f}", f"{max(scales):.3f}"
        scale = low if low == high else f"{low} to {high}"
        grid.add_row(name, f"{error['in_sample']:.4f}", f"{error['cross_fitted']:.4f}", scale)
    return grid


def make_class_grid(scores: SavedScores, policy: Policy, updates: Mapping[str, Any]) -> Grid:
    """Counts and metrics of each class at the thresholds that are saved; at most MAX_CLASSES."""
    from rich.table import Table as Grid

    columns = metrics.measure_classes(
        scores.probabilities,
        scores.targets,
        updates["thresholds"],
        min_labels=policy.min_labels,
        max_labels=policy.max_labels,
    )
    shown = ("positives", "threshold", "predicted", "P", "R", "F1")
    grid = Grid("class", *shown, title="at the saved thresholds, in-sample", title_justify="left")
    for label in np.sort(np.argsort(-columns["positives"], kind="stable")[:MAX_CLASSES]).tolist():
        cells = []
        for column in shown:
            value = columns[column][label]
            cells.append(f"{value:.4f}" if isinstance(value, np.floating) else str(value))
        grid.add_row(scores.classes[label], *cells)
    return grid


def describe_goal(policy: Policy) -> str:
    """The goal in words."""
    goals = {
        "f1": "highest weighted F1",
        "f_beta": f"highest weighted F{policy.beta:g}",
        "precision": f"precision of {policy.precision:g} or more, then highest recall",
        "recall": f"recall of {policy.recall:g} or more, then highest precision",
        "cost": f"least cost: {policy.false_positive_cost:g} a label too many, "
        f"{policy.false_negative_cost:g} one missing",
        "guaranteed_recall": f"{policy.recall:g} of an image's labels found on new images, at the highest threshold",
        "guaranteed_precision": f"{policy.precision:g} of an image's labels right on new images, then highest recall",
    }
    return goals[policy.goal]


def _print_grid(grid: Grid) -> None:
    """Print a table, with all columns except the first aligned to the right."""
    for column in grid.columns[1:]:
        column.justify = "right"
    utils.make_console().print(grid)


if __name__ == "__main__":
    utils.run_script(main)
