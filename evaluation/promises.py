"""What a model promises, and what it gains by leaving images to a person: its words, and what test images show.

    promise = make_promise(policy, num_images=1000, metadata=checkpoint)     # kept in the checkpoint, and exported
    kept = check_promise(promise, predicted, targets)
    kept.found, kept.low, kept.high, kept.holds
    gains = measure_gains(predicted, targets, is_left)                       # {"f1_weighted": Gain(...), ...}

The threshold that keeps a promise, and the doubt from which on an image is left, are found by thresholds.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import metrics
from thresholds import CONFIDENCE, PROMISES, Goal, Policy, find_influences, rate_images

Z = 1.96  # standard errors to either end of a 95 % interval
APPROXIMATELY = "; approximately, "  # in the words of a promise, before why it is no more than that


class Kept(NamedTuple):
    """What the mean share of `thresholds.rate_images` is on labelled images, beside what was promised."""

    found: float
    low: float  # ends of the 95 % interval, as these images are a draw: `metrics.find_score_interval`
    high: float
    num_images: int  # that count: all, or for precision those that get a label
    holds: bool  # whether it is as promised, or below it by no more than chance in the draw of both splits may make it


class Gain(NamedTuple):
    """A metric of all images, of those that the model decides on, and the difference."""

    all: float
    decided: float
    low: float  # ends of the 95 % interval of decided - all
    high: float


def make_promise(policy: Policy, num_images: int, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """What thresholds that were tuned by `policy` promise, in plain types; None where its goal promises nothing.

    `num_images` are the validation images that they were tuned on, and `metadata` is the checkpoint's: it says what
    else these images were used for.
    """
    if policy.goal not in PROMISES:
        return None
    metric = policy.goal.removeprefix("guaranteed_")
    level = policy.recall if metric == "recall" else policy.precision
    if metric == "recall":
        what = f"{level:.4g} or more of an image's labels are found, on average"
        source = "conformal risk control, Angelopoulos et al. 2024"
    else:
        what = f"{level:.4g} or more of the labels that an image gets are right, on average over images that get any"
        source = f"with confidence {CONFIDENCE:g}; Learn then Test, Angelopoulos et al. 2025"
    words = f"on new images that are drawn as the {num_images:,} validation images were, {what} ({source})"
    return {
        "metric": metric,
        "level": level,
        "confidence": None if metric == "recall" else CONFIDENCE,
        "num_images": num_images,
        "words": f"{words}{_describe_reuse(metadata)}",
    }


def _describe_reuse(metadata: Mapping[str, Any]) -> str:
    """Why the promise holds approximately only: what else the validation images decided; "" for nothing."""
    if is_cross_validated(metadata):
        return f"{APPROXIMATELY}since each of these was predicted by a model of other folds, not by this one"
    if metadata.get("config", {}).get("NUM_EPOCHS") == 1:
        return ""
    return f"{APPROXIMATELY}since the same images chose the epoch"


def is_cross_validated(metadata: Mapping[str, Any]) -> bool:
    """Whether all training images are the validation images, too, each predicted by a model that has not seen it."""
    constants, dataset = metadata.get("config", {}), metadata.get("dataset", {})
    is_searched = constants.get("HEAD_FIT") == "search" and dataset.get("num_train") == dataset.get("num_val")
    return is_searched or metadata.get("weights") == "averaged over folds"


def check_promise(promise: Mapping[str, Any], predicted: ArrayLike, targets: ArrayLike) -> Kept | None:
    """Measure what was promised on other images: `predicted` (N, C) bool, `targets` (N, C) with -1 or NaN for unknown.

    Returns None where no image gets a label, and so none has a precision.
    """
    goal: Goal = "guaranteed_recall" if promise["metric"] == "recall" else "guaranteed_precision"
    shares = rate_images(predicted, targets, goal)
    if not len(shares):
        return None
    found, deviation = shares.mean(keepdims=True), shares.std(ddof=min(1, len(shares) - 1))
    t = metrics.find_t(metrics.LEVEL, np.array([len(shares) - 1]))
    low, high = metrics.find_score_interval(found, deviation / np.sqrt([len(shares)]), len(shares), t)[:, 0]
    # The threshold is of one draw of validation images, and these are another: what is found varies with both. Of the
    # validation images the same share gets a label.
    variance = (1 / len(shares)) * (1 + len(np.asarray(targets)) / promise["num_images"])
    error = deviation * np.sqrt([variance])
    highest = np.maximum(found + t * error, metrics.find_score_interval(found, error, 1 / variance, t)[1])
    return Kept(
        found=float(found[0]),
        low=float(low),
        high=float(high),
        num_images=len(shares),
        holds=bool(highest[0] >= promise["level"]),
    )


def describe_kept(promise: Mapping[str, Any], kept: Kept | None) -> str:
    """A line: "promised recall 0.9: found 0.912 (0.903 to 0.921) on 1,000 test images".

    Where it is not kept, it goes on with what may be the cause: the numbers cannot tell which.
    """
    if kept is None:
        return f"promised {promise['metric']} {promise['level']:.4g}: no test image gets a label"
    of = "test images" if promise["metric"] == "recall" else "test images that get a label"
    line = (
        f"promised {promise['metric']} {promise['level']:.4g}: found {kept.found:.3f} ({kept.low:.3f} to "
        f"{kept.high:.3f}) on {kept.num_images:,} {of}"
    )
    if kept.found >= promise["level"]:
        return line
    if kept.holds:
        return f"{line}; below it by no more than chance may"
    causes = [
        "these images may be of another kind than the validation images",
        f"the {promise['num_images']:,} validation images may be an unlucky draw",
    ]
    if why := promise["words"].partition(APPROXIMATELY)[2]:
        causes.append(f"or it matters that the promise holds approximately only, {why}")
    else:
        causes[-1] = f"or {causes[-1]}"
    return f"{line}: it is not kept; {', '.join(causes)}"


def measure_gains(predicted: ArrayLike, targets: ArrayLike, is_left: ArrayLike) -> dict[str, Gain]:
    """What the images that are not left to a person have more of f1_weighted, f1_samples and exact_match than all have.

    `predicted` (N, C) bool, `targets` (N, C) with -1 or NaN for unknown, `is_left` (N,) bool. The intervals are those
    of the infinitesimal jackknife, as of `thresholds.standard_error`: an image in both has a share in both. Images
    without a known label count nowhere. Returns {} where all others are left.
    """
    present, known = metrics.as_known(targets)
    has_known = known.any(axis=1)
    predicted, decided = np.asarray(predicted) & known, has_known & ~np.asarray(is_left)
    if not decided.any():
        return {}
    guesses, positives, hits = (entries.sum(axis=1) for entries in (predicted, present, predicted & present))
    by_image = {
        "f1_samples": metrics.f_beta_of(hits, guesses, positives),
        "exact_match": ((hits == guesses) & (hits == positives)).astype(np.float64),
    }
    gains = {}
    for name in ("f1_weighted", *by_image):
        values, influences = [], []
        for rows in (has_known, decided):
            influence = np.zeros(len(decided))
            if name in by_image:
                value = by_image[name][rows].mean()
                influence[rows] = (by_image[name][rows] - value) / rows.sum()
            else:
                value = average_f1(predicted[rows], present[rows])
                influence[rows] = find_influences(predicted[rows], np.asarray(targets)[rows])
            values.append(float(value))
            influences.append(influence)
        gain, error = values[1] - values[0], Z * float(np.sqrt(((influences[1] - influences[0]) ** 2).sum()))
        gains[name] = Gain(values[0], values[1], gain - error, gain + error)
    return gains


def average_f1(predicted: NDArray[np.bool_], present: NDArray[np.bool_]) -> float:
    """The f1_weighted of `metrics.measure`, of known entries that are predicted and present, (N, C) both."""
    positives = present.sum(axis=0)
    f1 = metrics.f_beta_of((predicted & present).sum(axis=0), predicted.sum(axis=0), positives)
    return float(metrics.divide((f1 * positives).sum(), positives.sum()))
