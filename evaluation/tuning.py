"""Tunes the thresholds and the calibration of a checkpoint on its saved scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

import calibration
import thresholds
from evaluation.saved_scores import SavedScores, identify
from thresholds import Policy
from utils import InputError


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
