"""Tunes the thresholds and the calibration of a checkpoint on its saved scores.

    scores = read_scores(folder / SCORES_FILE)
    checkpoint |= tune_checkpoint(checkpoint, scores, policy)

Training does this at the end of a run, threshold_tuning.py at any time later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

import calibration
import metrics
import thresholds
from dataset.class_names import show_names
from evaluation.promises import make_promise
from evaluation.saved_scores import SavedScores, identify
from thresholds import Policy
from utils import InputError


def tune_checkpoint(metadata: Mapping[str, Any], scores: SavedScores, policy: Policy) -> dict[str, Any]:
    """Tune thresholds and calibration on `scores`, as `policy` asks, and from when on the model abstains.

    Returns the keys of the checkpoint's `metadata` that change, in plain types. Raises InputError where the scores are
    of another model or checkpoint, and for a promise that they are too few for.
    """
    classes = tuple(metadata["classes"])
    _require_same_classes(scores.classes, classes)
    if scores.identity not in ("", identify(metadata)):
        raise InputError(
            f"the scores are of another checkpoint ({scores.identity}) than this one ({identify(metadata)}): tune the "
            "run's own checkpoint, or best_model.pt"
        )
    probabilities, targets = scores.probabilities, scores.targets
    decision = thresholds.decide(probabilities, targets, policy)
    methods: dict[str, Any] = {}
    one_sided: list[int] = []  # classes that all or none of the images have
    if metadata.get("activation", "sigmoid") == "sigmoid":  # calibration works on the logits of a sigmoid
        methods = calibration.fit(probabilities, targets)
        one_sided = calibration.find_one_sided(targets).tolist()
    measure_error = calibration.expected_calibration_error
    error = measure_error(probabilities, targets)
    errors = {"none": {"in_sample": error, "cross_fitted": error}}  # nothing is fitted: both are the same
    for name, method in methods.items():
        in_sample = calibration.apply_to_probabilities(probabilities, method)
        cross_fitted = calibration.cross_fit(probabilities, targets, calibration.METHODS[name])
        errors[name] = {
            "in_sample": measure_error(in_sample, targets),
            "cross_fitted": measure_error(cross_fitted, targets),
        }
    class_thresholds = decision.thresholds.astype(np.float32)
    is_promised = policy.goal in thresholds.PROMISES and not decision.unreachable
    return {
        "best_threshold": decision.threshold,
        "thresholds": class_thresholds.tolist(),
        "min_labels": policy.min_labels,
        "max_labels": policy.max_labels,
        "calibration": methods,
        "promise": make_promise(policy, len(scores.paths), metadata) if is_promised else None,
        "abstention": tune_abstention(scores, class_thresholds, methods, policy) if policy.abstain else None,
        "threshold_policy": asdict(policy),
        "threshold_report": {
            "num_images": len(scores.paths),
            "in_sample": decision.in_sample,
            "cross_fitted": decision.cross_fitted,
            "shrinkage": decision.shrinkage if np.isfinite(decision.shrinkage) else None,  # JSON has no infinity
            "without_positives": [classes[label] for label in np.flatnonzero((targets != 1).all(axis=0)).tolist()],
            "unreachable": [classes[label] for label in decision.unreachable],
            "ECE": errors,
            "platt_as_temperature": [classes[label] for label in one_sided],
        },
    }


def tune_abstention(
    scores: SavedScores, class_thresholds: NDArray[np.float32], methods: Mapping[str, Any], policy: Policy
) -> dict[str, float]:
    """Find the doubt above which the model leaves an image to a person, so that `policy.abstain` of `scores` are left.

    Returns {"share": that share, "cut": the doubt}. Doubt is measured on probabilities that Platt scaling calibrated,
    whichever calibration is in use, or none: without it, a model trained with weights of positives knows less well
    where it is wrong.
    """
    predicted = metrics.predict(scores.probabilities, class_thresholds, policy.min_labels, policy.max_labels)
    probabilities = scores.probabilities
    if "platt" in methods:
        probabilities = calibration.apply_to_probabilities(probabilities, methods["platt"])
    cut = thresholds.tune_abstention(thresholds.measure_doubt(probabilities, predicted), policy.abstain)
    return {"share": policy.abstain, "cut": cut}


def describe_promise(metadata: Mapping[str, Any]) -> list[str]:
    """Lines that say what a checkpoint promises, and which images it leaves to a person; often none.

    `metadata` is that of a checkpoint, or what `tune_checkpoint` returns.
    """
    lines = []
    if promise := metadata.get("promise"):
        lines.append(f"promised: {promise['words']}")
    if abstention := metadata.get("abstention"):
        lines.append(f"left to a person: {abstention['share']:.4g} of the images, those that it is least sure of")
    return lines


def describe_fallback(metadata: Mapping[str, Any]) -> list[str]:
    """Lines that say where a checkpoint has other thresholds than were asked for, or none that can; often none.

    `metadata` is that of a checkpoint, or what `tune_checkpoint` returns.
    """
    report, policy = metadata.get("threshold_report"), metadata.get("threshold_policy", {})
    if report and policy.get("goal") == "guaranteed_precision" and metadata.get("promise") is None:
        return [
            f"nothing is promised: no threshold is shown to have a precision of {policy['precision']:.4g} by "
            f"{report['num_images']:,} validation images; it is now above the probabilities of all of these, so that "
            "hardly anything is predicted; promise less (THRESHOLD_PRECISION), or validate on more images"
        ]
    if not report or policy.get("scope") != "per_class":
        return []
    threshold = f"the global threshold {metadata['best_threshold']:.4f}"
    if report["shrinkage"] is None:
        return [
            f"THRESHOLD_SCOPE is per_class, and all classes have {threshold} all the same: on held-out images, "
            "thresholds of their own are no better"
        ]
    if names := report.get("without_positives"):
        return [f"these classes have {threshold}, since no validation image shows them: {show_names(names)}"]
    return []


def _require_same_classes(scores_classes: tuple[str, ...], model_classes: tuple[str, ...]) -> None:
    if scores_classes == model_classes:
        return
    detail = f"{len(scores_classes)} classes"
    for in_scores, in_model in zip(scores_classes, model_classes, strict=False):
        if in_scores != in_model:
            detail = f"{in_scores!r} in place of {in_model!r}"
            break
    raise InputError(
        f"the scores are another model's: {detail}, where this one has {len(model_classes)} classes; train again"
    )
