"""Calibration: makes probabilities mean what they say. Of the entries given probability p, a share of p is present.

    methods = fit(probabilities, targets)      # of validation images: {"temperature": {...}, "platt": {...}}
    logits = apply(logits, methods["platt"])
    thresholds = map_thresholds(thresholds, methods["platt"])   # the same classes are predicted as before

A fitted method is {"scale": [...], "bias": [...]}, each with one number for all classes or one for each class; scales
are above 0. A calibrated logit is scale x logit + bias, and the sigmoid of it is the calibrated probability.

Probabilities (N, C) and targets (N, C) are as in metrics.py; the probabilities come from a sigmoid. Fitting computes in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics import NUM_BINS, as_known, as_scores, divide, find_bins, read_known, read_rows
from thresholds import FOLDS, assign_folds

if TYPE_CHECKING:
    from torch import Tensor

Method = Mapping[str, Sequence[float]]
Logits = TypeVar("Logits", "Tensor", NDArray[np.floating])

MIN_SCALE, MAX_SCALE = 1e-2, 1e2  # beyond these, float32 could not tell the probabilities apart any more
CERTAIN = 2.0**-24  # fitting clips probabilities to CERTAIN...1 - CERTAIN: no float32 below 1 is nearer to 1
MAX_STEPS = 100  # of Newton's method; it usually takes about six
ENOUGH = 1e-16  # fitting ends when a step gains less than this loss for each entry


class Entries(NamedTuple):
    """Entries of a logistic regression: the logit to fit is weights (D,) @ columns + offset."""

    columns: NDArray[np.float64]  # (D, N)
    targets: NDArray[np.float64]  # (N,), which may be fractions
    offset: NDArray[np.float64] | float = 0.0  # (N,), or one number
    counts: NDArray[np.float64] | float = 1.0  # (N,), or one number: how often an entry counts


class Reliability(NamedTuple):
    """What a reliability diagram shows: the entries by their probability, in NUM_BINS bins of equal width, (NUM_BINS,).

    `probability` and `present` are NaN where a bin is empty.
    """

    counts: NDArray[np.int64]  # how many entries are in the bin
    probability: NDArray[np.float64]  # their mean probability
    present: NDArray[np.float64]  # the share of them that is present


def apply(logits: Logits, method: Method) -> Logits:
    """Calibrate logits (..., C), a tensor or an array. The result has the same type, shape and precision."""
    if isinstance(logits, np.ndarray | np.floating):
        scale, bias = (np.asarray(method[name], dtype=logits.dtype) for name in ("scale", "bias"))
    else:
        scale, bias = (logits.new_tensor(method[name]) for name in ("scale", "bias"))
    return logits * scale + bias


def apply_to_probabilities(probabilities: ArrayLike, method: Method) -> NDArray[np.float64]:
    """Calibrate probabilities (..., C) of a sigmoid. Returns float64 of the same shape; 0 stays 0, and 1 stays 1."""
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + np.exp(-apply(_logit(np.asarray(probabilities, dtype=np.float64)), method)))


def relate(method: Method, used: Method) -> dict[str, list[float]]:
    """The method that turns probabilities calibrated by `used` into those calibrated by `method`."""
    scale = np.asarray(method["scale"]) / np.asarray(used["scale"])
    bias = np.asarray(method["bias"]) - scale * np.asarray(used["bias"])
    return {"scale": scale.tolist(), "bias": bias.tolist()}


def map_thresholds(thresholds: ArrayLike, method: Method) -> NDArray[np.float64]:
    """Thresholds for calibrated probabilities that predict the same classes as `thresholds` do for those before.

    `thresholds` is one number or (C,). Returns (C,), or (1,) if both the thresholds and the method are the same for all
    classes. Thresholds of 0 or less and of 1 or more stay as they are. Rounding can change the prediction of a
    probability that is as near to its threshold as two neighbouring floats are.
    """
    thresholds = np.asarray(thresholds, dtype=np.float64)
    is_outside = (thresholds <= 0) | (thresholds >= 1)
    return np.where(is_outside, thresholds, apply_to_probabilities(np.clip(thresholds, 0, 1), method))


def fit(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, dict[str, list[float]]]:
    """Fit every method of METHODS on probabilities (N, C) of a sigmoid and their targets (N, C). Returns them by name.

    Use validation images. Raises InputError for probabilities outside 0...1 or shapes that differ.
    """
    return {name: fit_method(probabilities, targets) for name, fit_method in METHODS.items()}


def fit_temperature(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, list[float]]:
    """Temperature scaling: one scale for all logits, with which the known entries are likeliest; the bias is 0.

    The scale is 1 / the temperature of Guo et al. (2017). It stays within MIN_SCALE...MAX_SCALE, and is 1 if nothing is
    known. Raises InputError as `fit` does.
    """
    probabilities, targets = as_scores(probabilities, targets)
    entries = []
    for rows in read_rows(probabilities):
        present, known = as_known(targets[rows])
        entries.append(Entries(_logit_of_scores(probabilities[rows][known])[None], present[known].astype(np.float64)))
    (scale,) = fit_logistic(entries, np.ones(1))
    return {"scale": [float(np.clip(scale, MIN_SCALE, MAX_SCALE))], "bias": [0.0]}


def fit_platt(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, list[float]]:
    """Platt scaling: a scale and a bias for each class (Platt 1999).

    With P known positives and N known negatives of a class, the targets are (P + 1) / (P + 2) for present and
    1 / (N + 2) for absent, so that few entries do not make a class certain. A scale stays within
    MIN_SCALE...MAX_SCALE; where this changes it, the bias is the best one for the changed scale. A class without known
    positives or without known negatives (see `find_one_sided`) gets the scale of `fit_temperature`.
    Raises InputError as `fit` does.
    """
    probabilities, targets = as_scores(probabilities, targets)
    one_sided = set(find_one_sided(targets).tolist())
    method = fit_temperature(probabilities, targets) if one_sided else {"scale": [1.0], "bias": [0.0]}
    num_classes = probabilities.shape[1]
    scales, biases = method["scale"] * num_classes, method["bias"] * num_classes
    for label, (scores, present) in enumerate(read_known(probabilities, targets)):
        if label in one_sided:
            continue
        positives, negatives = int(present.sum()), int((~present).sum())
        smoothed = np.where(present, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        logits = _logit_of_scores(scores)
        ones = np.ones_like(logits)
        scale, bias = fit_logistic([Entries(np.stack((logits, ones)), smoothed)], np.array((1.0, 0.0)))
        limited = np.clip(scale, MIN_SCALE, MAX_SCALE)
        if limited != scale:
            (bias,) = fit_logistic([Entries(ones[None], smoothed, offset=limited * logits)], np.zeros(1))
        scales[label], biases[label] = float(limited), float(bias)
    return {"scale": scales, "bias": biases}


def find_one_sided(targets: ArrayLike) -> NDArray[np.int64]:
    """The indices of classes that have no known positive or no known negative in targets (N, C)."""
    present, known = as_known(targets)
    positives, count = present.sum(axis=0), known.sum(axis=0)
    return np.flatnonzero((positives == 0) | (positives == count))


def cross_fit(
    probabilities: ArrayLike,
    targets: ArrayLike,
    fit_method: Callable[[ArrayLike, ArrayLike], Method],
    folds: int = FOLDS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Calibrated probabilities (N, C) for an honest measurement: each image by what images of other folds gave.

    `fit_method` is a function of METHODS. The folds are those of `thresholds.assign_folds`. Raises InputError as
    `fit` does, and for no images.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    fold_of = assign_folds(len(probabilities), folds, seed)
    calibrated = np.empty(probabilities.shape)
    for fold in range(fold_of.max() + 1):
        held_out = fold_of == fold
        method = fit_method(probabilities[~held_out], targets[~held_out])
        calibrated[held_out] = apply_to_probabilities(probabilities[held_out], method)
    return calibrated


def measure_reliability(probabilities: ArrayLike, targets: ArrayLike) -> Reliability:
    """The `Reliability` of all known entries. Raises InputError for probabilities outside 0...1."""
    probabilities, targets = as_scores(probabilities, targets)
    counts = np.zeros(NUM_BINS, dtype=np.int64)
    probability_sums, present_sums = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    for rows in read_rows(probabilities):  # copies of all entries, in float64, would take most of the time
        present, known = as_known(targets[rows])
        scores = probabilities[rows][known].astype(np.float64)
        bins = find_bins(scores)
        counts += np.bincount(bins, minlength=NUM_BINS)
        probability_sums += np.bincount(bins, scores, NUM_BINS)
        present_sums += np.bincount(bins, present[known], NUM_BINS)
    return Reliability(
        counts=counts,
        probability=divide(probability_sums, counts, undefined=np.nan),
        present=divide(present_sums, counts, undefined=np.nan),
    )


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean |share present - mean probability| over bins, weighted by their entries (Naeini et al. 2015).

    This is the ECE of `metrics.measure`. Raises InputError for probabilities outside 0...1.
    """
    counts, probability, present = measure_reliability(probabilities, targets)
    return float(divide(np.nansum(counts * np.abs(present - probability)), counts.sum()))


def fit_logistic(entries: list[Entries], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the columns, (D,), that make the targets of all entries likeliest, by Newton's method.

    The loss is convex. A step that is so long that the loss rises again is halved. Where the columns separate the
    targets the loss has no minimum, and the weights grow until a step gains nothing.
    """

    def compute_derivatives(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gradient (D,) and curvature (D, D) of the loss."""
        gradient, curvature = np.zeros(len(weights)), 1e-12 * np.eye(len(weights))  # so that it can be inverted
        # einsum in place of @: for one or two columns, a BLAS that starts threads takes ten times as long.
        for columns, targets, offset, counts in entries:
            with np.errstate(over="ignore"):
                probabilities = 1 / (1 + np.exp(-(np.einsum("d,dn->n", weights, columns) + offset)))
            gradient += np.einsum("dn,n->d", columns, counts * (probabilities - targets))
            curvature += np.einsum("dn,en->de", columns * (counts * probabilities * (1 - probabilities)), columns)
        return gradient, curvature

    weights, num_entries = start, sum(len(each.targets) for each in entries)
    gradient, curvature = compute_derivatives(weights)
    for _ in range(MAX_STEPS):
        step = np.linalg.solve(curvature, gradient)
        slope = gradient @ step  # the loss falls by about half of it
        if slope <= ENOUGH * num_entries:
            break
        new_weights = weights - step
        gradient, curvature = compute_derivatives(new_weights)
        while gradient @ step < -slope / 4 and np.abs(step).max() > ENOUGH:
            step, slope = step / 2, slope / 2
            new_weights = weights - step
            gradient, curvature = compute_derivatives(new_weights)
        weights = new_weights
    return weights


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits of probabilities; those of 0 and 1 are infinite."""
    return np.log(probabilities) - np.log1p(-probabilities)


def _logit_of_scores(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Finite logits to fit: probabilities are clipped to CERTAIN...1 - CERTAIN."""
    return _logit(np.clip(probabilities.astype(np.float64), CERTAIN, 1 - CERTAIN))


METHODS: dict[str, Callable[[ArrayLike, ArrayLike], dict[str, list[float]]]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
}
