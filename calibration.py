"""Calibration: logits scaled and shifted so that of the entries given a probability p, a share of p is present.

methods = fit(probabilities, targets)            # of validation images: {"temperature": ..., "platt": ...}
logits = apply(logits, methods["platt"])
thresholds = map_thresholds(thresholds, methods["platt"])   # what was predicted stays predicted

A method is {"scale": [...], "bias": [...]}, numbers for all classes or one a class, with scales above 0:
calibrated logit = scale x logit + bias, probability = its sigmoid. Fitting computes in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics import NUM_BINS, as_known, as_scores, divide, find_bins, read_known
from thresholds import FOLDS, assign_folds

if TYPE_CHECKING:
    from torch import Tensor

Method = Mapping[str, Sequence[float]]
Logits = TypeVar("Logits", "Tensor", NDArray[np.floating])

MIN_SCALE, MAX_SCALE = 1e-2, 1e2  # beyond these, float32 could no longer tell the probabilities apart
CERTAIN = 2.0**-24  # as near to 0 or 1 as a float32 probability comes to 1: what is nearer counts as this when fitting
MAX_STEPS = 100  # Newton's: about six do
ENOUGH = 1e-16  # of an entry's loss: what a last step gains


class Part(NamedTuple):
    """Entries to fit logits to: weights @ columns + offset."""

    columns: NDArray[np.float64]  # (D, N)
    targets: NDArray[np.float64]  # (N,), fractions too
    offset: NDArray[np.float64] | float = 0.0


class Reliability(NamedTuple):
    """What a reliability diagram shows, for NUM_BINS bins of equal width: all (NUM_BINS,), NaN where a bin is empty."""

    counts: NDArray[np.int64]
    probability: NDArray[np.float64]  # the mean
    present: NDArray[np.float64]  # share of the entries


def apply(logits: Logits, method: Method) -> Logits:
    """Calibrated logits (..., C) of logits (..., C), in their precision."""
    if isinstance(logits, np.ndarray | np.floating):
        scale, bias = (np.asarray(method[name], dtype=logits.dtype) for name in ("scale", "bias"))
    else:
        scale, bias = (logits.new_tensor(method[name]) for name in ("scale", "bias"))
    return logits * scale + bias


def apply_to_probabilities(probabilities: ArrayLike, method: Method) -> NDArray[np.float64]:
    """Calibrated probabilities (..., C) of those that a sigmoid gave; 0 stays 0, 1 stays 1."""
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + np.exp(-apply(_logit(np.asarray(probabilities, dtype=np.float64)), method)))


def map_thresholds(thresholds: ArrayLike, method: Method) -> NDArray[np.float64]:
    """(C,) thresholds for calibrated probabilities, or (1,) of one for all, that predict what these (C,) predict.

    Those of 0 or less and of 1 or more stay as they are. Up to rounding, for scores as near as floats are.
    """
    thresholds = np.asarray(thresholds, dtype=np.float64)
    return np.where(
        (thresholds <= 0) | (thresholds >= 1), thresholds, apply_to_probabilities(np.clip(thresholds, 0, 1), method)
    )


def fit(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, dict[str, list[float]]]:
    """Every method of METHODS, fitted on (N, C) probabilities of a sigmoid and their targets."""
    return {name: fit_method(probabilities, targets) for name, fit_method in METHODS.items()}


def fit_temperature(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, list[float]]:
    """The one scale of all logits that makes the known entries likeliest (Guo et al. 2017: 1 / their temperature)."""
    probabilities, targets = as_scores(probabilities, targets)
    entries = read_known(probabilities, targets)
    parts = [Part(_logit_of_scores(scores)[None], present.astype(np.float64)) for scores, present in entries]
    (scale,) = _fit_logistic(parts, np.ones(1))
    return {"scale": [float(np.clip(scale, MIN_SCALE, MAX_SCALE))], "bias": [0.0]}


def fit_platt(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, list[float]]:
    """A scale and a bias for each class, toward targets that its counts smooth (Platt 1999).

    A scale is MIN_SCALE at least, the bias then the best beside it. A class without known positives or without known
    negatives has the temperature's: `find_one_sided` names them.
    """
    probabilities, targets = as_scores(probabilities, targets)
    one_sided = find_one_sided(targets)
    temperature = fit_temperature(probabilities, targets) if len(one_sided) else {"scale": [1.0], "bias": [0.0]}
    scales, biases = temperature["scale"] * probabilities.shape[1], temperature["bias"] * probabilities.shape[1]
    for label, (scores, present) in enumerate(read_known(probabilities, targets)):
        if label in one_sided:
            continue
        positives, negatives = int(present.sum()), int((~present).sum())
        smoothed = np.where(present, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        logits = _logit_of_scores(scores)
        ones = np.ones_like(logits)
        scale, bias = _fit_logistic([Part(np.stack((logits, ones)), smoothed)], np.array((1.0, 0.0)))
        limited = np.clip(scale, MIN_SCALE, MAX_SCALE)
        if limited != scale:
            (bias,) = _fit_logistic([Part(ones[None], smoothed, limited * logits)], np.zeros(1))
        scales[label], biases[label] = float(limited), float(bias)
    return {"scale": scales, "bias": biases}


def find_one_sided(targets: ArrayLike) -> NDArray[np.int64]:
    """The classes of (N, C) targets whose known entries are all present, all absent, or none."""
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
    """(N, C) calibrated probabilities, each fold's by what the other folds' images gave."""
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    fold_of = assign_folds(len(probabilities), folds, seed)
    calibrated = np.empty(probabilities.shape)
    for fold in range(fold_of.max() + 1):
        here = fold_of == fold
        calibrated[here] = apply_to_probabilities(probabilities[here], fit_method(probabilities[~here], targets[~here]))
    return calibrated


def measure_reliability(probabilities: ArrayLike, targets: ArrayLike) -> Reliability:
    """`Reliability` of all known entries. Raises InputError for scores outside 0...1."""
    probabilities, targets = as_scores(probabilities, targets)
    present, known = as_known(targets)
    scores = probabilities[known].astype(np.float64)
    bins = find_bins(scores)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, values, NUM_BINS) for values in (scores, present[known])]
    return Reliability(counts, *(divide(each, counts, undefined=np.nan) for each in sums))


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean |share present - mean probability| of the bins, by their counts (Naeini et al. 2015); `measure`'s ECE."""
    counts, probability, present = measure_reliability(probabilities, targets)
    return float(divide(np.nansum(counts * np.abs(present - probability)), counts.sum()))


def _fit_logistic(parts: list[Part], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D,) weights of the columns that make the targets of all parts likeliest, by Newton steps.

    The loss is convex; a step that goes so far that it climbs again is halved. Where the columns separate the targets
    there is no lowest point, and the weights grow until a step gains nothing.
    """

    def compute(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # einsum: a BLAS that starts threads for one or two columns takes ten times as long
        gradient, curvature = np.zeros(len(weights)), 1e-12 * np.eye(len(weights))
        for columns, targets, offset in parts:
            with np.errstate(over="ignore"):
                probabilities = 1 / (1 + np.exp(-(np.einsum("d,dn->n", weights, columns) + offset)))
            gradient += np.einsum("dn,n->d", columns, probabilities - targets)
            curvature += np.einsum("dn,en->de", columns * (probabilities * (1 - probabilities)), columns)
        return gradient, curvature

    weights, num_entries = start, sum(len(part.targets) for part in parts)
    gradient, curvature = compute(weights)
    for _ in range(MAX_STEPS):
        step = np.linalg.solve(curvature, gradient)
        slope = gradient @ step
        if slope <= ENOUGH * num_entries:
            break
        nearer = weights - step
        gradient, curvature = compute(nearer)
        while gradient @ step < -slope / 4 and np.abs(step).max() > ENOUGH:
            step, slope = step / 2, slope / 2
            nearer = weights - step
            gradient, curvature = compute(nearer)
        weights = nearer
    return weights


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(probabilities) - np.log1p(-probabilities)


def _logit_of_scores(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    return _logit(np.clip(probabilities.astype(np.float64), CERTAIN, 1 - CERTAIN))


METHODS: dict[str, Callable[[ArrayLike, ArrayLike], dict[str, list[float]]]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
}
