"""Thresholds that make an F1 best on given scores: the exact optimum, not a grid. Fit them on validation images.

A threshold lies midway between the lowest score that is predicted and the next one below it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics import Floats, Ranking, as_known, f1_of, measure, rank, rank_classes

DEFAULT_THRESHOLD = 0.5  # where no score has a positive: there is nothing to tune on


def tune_global(probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted") -> float:
    """The one threshold for all classes at which `metric` (a key of TUNED_METRICS) is highest."""
    scores, values = TUNED_METRICS[metric](probabilities, targets)
    return _threshold_at_best(scores, values)


def tune_per_class(probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted") -> NDArray[np.float64]:
    """(C,) thresholds, each with the best F1 of its class; `tune_global`'s for a class without positives.

    `metric` is the one that this global threshold makes best.
    """
    rankings = rank_classes(probabilities, targets)
    fallback = tune_global(probabilities, targets, metric)
    return np.array([_threshold_at_best(r.scores, _f1_curve(r)) if _positives(r) else fallback for r in rankings])


def cross_fit(
    probabilities: ArrayLike,
    targets: ArrayLike,
    tune: Callable[[ArrayLike, ArrayLike], float | NDArray[np.float64]] = tune_global,
    metric: str = "f1_weighted",
    folds: int = 5,
    seed: int = 0,
) -> float:
    """`metric` of all images, each predicted with thresholds tuned on the other folds' images.

    The tuned thresholds' own score is too good by what they fitted to these very images; this one is not.
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    folds = min(folds, len(probabilities))
    fold_of = np.random.default_rng(seed).permutation(len(probabilities)) % folds
    thresholds = np.empty(probabilities.shape)
    for fold in range(folds):
        thresholds[fold_of == fold] = tune(probabilities[fold_of != fold], targets[fold_of != fold])
    return measure(probabilities, targets, thresholds)[metric]


def _f1_curve(ranking: Ranking) -> NDArray[np.float64]:
    """(K,) F1 of a class when it is predicted down to each of its scores."""
    return f1_of(ranking.true_positives, ranking.predicted, _positives(ranking))


def _positives(ranking: Ranking) -> int:
    return int(ranking.true_positives[-1]) if len(ranking.true_positives) else 0


def _weighted_f1_curve(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.float64]]:
    """Support-weighted mean F1 at each distinct score of all classes: (scores, values), highest score first."""
    rankings = rank_classes(probabilities, targets)
    return _mean_f1_curve(rankings, np.array([_positives(ranking) for ranking in rankings], dtype=float))


def _macro_f1_curve(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.float64]]:
    """Plain mean F1 over the classes, likewise."""
    rankings = rank_classes(probabilities, targets)
    return _mean_f1_curve(rankings, np.ones(len(rankings)))


def _micro_f1_curve(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.float64]]:
    """F1 of all entries pooled, likewise."""
    present, known = as_known(targets)
    ranking = rank(np.asarray(probabilities)[known], present[known])
    return ranking.scores, _f1_curve(ranking)


def _mean_f1_curve(rankings: list[Ranking], weights: NDArray[np.float64]) -> tuple[Floats, NDArray[np.float64]]:
    """A class's F1 only moves at its own scores: sort the moves of all classes together and add them up."""
    weights = weights / max(weights.sum(), 1)
    scores = np.concatenate([ranking.scores for ranking in rankings])
    moves = np.concatenate(
        [weight * np.diff(_f1_curve(r), prepend=0.0) for weight, r in zip(weights, rankings, strict=True)]
    )
    order = np.argsort(scores)[::-1]
    scores, values = scores[order], np.cumsum(moves[order])
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    return scores[last], values[last]


def _threshold_at_best(scores: Floats, values: NDArray[np.float64]) -> float:
    """Midway between the best of the (K,) falling scores and the next; the highest where several are best."""
    if not len(values) or values.max() <= 0:
        return DEFAULT_THRESHOLD
    # sums in another order differ in the last digits: what is equal up to those is equal
    best = int(np.argmax(values >= values.max() - 1e-12))
    score, below = scores[best], scores[best + 1] if best + 1 < len(scores) else scores.dtype.type(0)
    middle = (score + below) / 2
    return float(middle if middle > below else score)  # neighbouring floats have nothing between them


TUNED_METRICS: dict[str, Callable[[ArrayLike, ArrayLike], tuple[Floats, NDArray[np.float64]]]] = {
    "f1_weighted": _weighted_f1_curve,
    "f1_macro": _macro_f1_curve,
    "f1_micro": _micro_f1_curve,
}
