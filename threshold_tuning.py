"""Tunes a checkpoint's thresholds and calibration again, by the THRESHOLD_* constants: no image and no network needed.

    python threshold_tuning.py [recipe.py ...] [--NAME value ...]

Reads the validation images' probabilities that training saved with the checkpoint MODEL_PATH and rewrites that one
file: `thresholds`, `best_threshold` (the global one), `min_labels`, `max_labels`, `calibration`. Beside the scores it
writes thresholds.npy, (C,) float32 in the order of the classes. Copies and files exported before keep what they have.
"""

from __future__ import annotations

import sys

import config
import overrides

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds

from collections.abc import Mapping
from typing import Any

import numpy as np

import metrics
import utils
from evaluation.saved_scores import SCORES_FILE, THRESHOLDS_FILE, SavedScores, find_folder, read_scores, save_thresholds
from evaluation.tuning import tune_checkpoint
from export import engines
from models import checkpoints
from thresholds import Policy
from trainer.from_config import choose_policy


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
