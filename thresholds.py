"""Thresholds that make an F1 best on given scores: the exact optimum, not a grid. Fit them on validation images.

A threshold lies midway between the lowest score that is predicted and the next one below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics import Bools, Floats, as_known, as_scores, f1_of, measure, rank, read_known, read_rows
from utils import InputError, suggest

DEFAULT_THRESHOLD = 0.5  # where no score has a positive: there is nothing to tune on
EQUAL = 1e-12  # sums in another order differ in the last digits: what is equal up to those is equal
GRID = 2**12  # steps of the first look at a curve; a power of two, so that score x GRID is exact
SCORES_AT_ONCE = 2**12  # scores at which a curve is measured together in the later looks


class Counts(NamedTuple):
    """What predicting a class down to each of K scores gives, (K,) each, and how many positives it has."""

    hits: NDArray[np.int64]
    predicted: NDArray[np.int64]
    positives: int


class Cut(NamedTuple):
    """A class's entries in a stretch of scores, rising, and how many lie above it; the positives of all the class."""

    scores: Floats
    of_positives: Floats
    predicted_above: int
    hits_above: int
    positives: int


def tune_global(probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted") -> float:
    """The one threshold for all classes at which `metric` (a key of TUNED_METRICS) is highest.

    The highest of several that are equally good. Raises InputError for another metric or scores outside 0...1.
    """
    if metric not in TUNED_METRICS:
        raise InputError(
            f"thresholds are tuned for {', '.join(TUNED_METRICS)}, not {metric!r}{suggest(metric, TUNED_METRICS)}"
        )
    probabilities, targets = as_scores(probabilities, targets)
    best = _find_best(probabilities, targets, TUNED_METRICS[metric])
    if best is None:
        return DEFAULT_THRESHOLD
    below = probabilities.dtype.type(0)
    for rows in read_rows(probabilities):
        lower = as_known(targets[rows])[1] & (probabilities[rows] < best)
        below = max(below, np.max(probabilities[rows], where=lower, initial=0))
    return _between(best, below)


def tune_per_class(probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted") -> NDArray[np.float64]:
    """(C,) thresholds, each with the best F1 of its class; `tune_global`'s for a class without positives.

    `metric` is the one that this global threshold makes best. Raises as `tune_global` does.
    """
    tuned = []
    for scores, present in read_known(*as_scores(probabilities, targets)):
        ranked, hits, predicted = rank(scores, present)
        if not len(hits):
            tuned.append(np.nan)
            continue
        f1 = f1_of(hits, predicted, hits[-1])
        best = ranked[np.argmax(f1 >= f1.max() - EQUAL)]
        tuned.append(_between(best, scores[scores < best].max(initial=0)))
    thresholds = np.array(tuned, dtype=np.float64)
    if np.isnan(thresholds).any():
        thresholds[np.isnan(thresholds)] = tune_global(probabilities, targets, metric)
    return thresholds


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
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    folds = min(folds, len(probabilities))
    fold_of = np.random.default_rng(seed).permutation(len(probabilities)) % folds
    tuned = [tune(probabilities[fold_of != fold], targets[fold_of != fold]) for fold in range(folds)]
    thresholds = np.array(tuned, dtype=probabilities.dtype).reshape(folds, -1)  # (folds, 1 or C)
    return measure(probabilities, targets, thresholds[fold_of])[metric]


def _find_best(
    probabilities: Floats, targets: NDArray, curve: Callable[[Iterator[Counts]], NDArray[np.float64]]
) -> np.floating | None:
    """The score down to which predicting all classes makes `curve` highest; None where that is 0.

    Branch and bound: measure the curve at some scores, the edges, bound it between each two of them, and look closer
    where the bound reaches the highest value so far. Only scores of positives matter: predicting more without a hit
    makes no F1 better. Where a step of the grid is as good as the best, the next positive above it is too, and wins.
    """
    edges = (np.arange(GRID + 1) / GRID).astype(probabilities.dtype)
    measured = curve(_with_bounds(_count_on_grid(*entries)) for entries in read_known(probabilities, targets))
    tried, values = edges, measured[: len(edges)]
    is_open = measured[len(edges) :] >= values.max() - 2 * EQUAL
    if values.max() <= 0:
        return None
    stretch = edges[:-1][is_open].min(initial=1), edges[1:][is_open].max(initial=0)
    cuts = [_cut(*entries, *stretch) for entries in read_known(probabilities, targets)]
    more = True
    while more and is_open.any():
        chosen, more = _choose_scores(cuts, edges, is_open)
        closer = np.union1d(edges[np.append(is_open, False) | np.append(False, is_open)], chosen)
        # several closed parts that now make one stay closed, though their common bound is wider
        is_open = is_open[np.searchsorted(edges, closer[:-1], side="right") - 1]
        edges = closer
        measured = curve(_with_bounds(_count(cut, edges)) for cut in cuts)
        tried, values = np.append(tried, edges), np.append(values, measured[: len(edges)])
        is_open &= measured[len(edges) :] >= values.max() - 2 * EQUAL
    return tried[values >= values.max() - EQUAL].max()


def _count_on_grid(scores: Floats, present: Bools) -> Counts:
    """Counts of a class's known entries from each of the grid's edges up."""
    step = (scores * GRID).astype(np.int64)
    by_step = np.bincount(2 * step + present, minlength=2 * (GRID + 1)).reshape(-1, 2)
    from_step = by_step[::-1].cumsum(axis=0)[::-1]
    return Counts(from_step[:, 1], from_step.sum(axis=1), int(from_step[0, 1]))


def _cut(scores: Floats, present: Bools, low: np.floating, high: np.floating) -> Cut:
    inside = (scores >= low) & (scores < high)
    above = scores >= high
    return Cut(
        scores=np.sort(scores[inside]),
        of_positives=np.sort(scores[inside & present]),
        predicted_above=int(above.sum()),
        hits_above=int((above & present).sum()),
        positives=int(present.sum()),
    )


def _count(cut: Cut, edges: Floats) -> Counts:
    """Counts from each of the rising edges up, which all lie in the cut."""
    hits = cut.hits_above + len(cut.of_positives) - np.searchsorted(cut.of_positives, edges)
    predicted = cut.predicted_above + len(cut.scores) - np.searchsorted(cut.scores, edges)
    return Counts(hits, predicted, cut.positives)


def _with_bounds(counts: Counts) -> Counts:
    """(K,) counts at the K edges, then the K - 1 best that could be between each two: every hit, no miss."""
    hits, predicted, positives = counts
    least_predicted = predicted[1:] + hits[:-1] - hits[1:]
    return Counts(np.append(hits, hits[:-1]), np.append(predicted, least_predicted), positives)


def _choose_scores(cuts: list[Cut], edges: Floats, is_open: Bools) -> tuple[Floats, bool]:
    """Scores of positives inside the open of the (K - 1) parts between (K,) edges, and whether there are more.

    At most SCORES_AT_ONCE: from each class every n-th, with n doubled when they become too many.
    """
    chosen, every = edges[:0], 1
    is_open = np.concatenate(([False], is_open, [False]))  # also below and above all edges
    for cut in cuts:
        part = np.searchsorted(edges, cut.of_positives, side="right")
        candidates = cut.of_positives[is_open[part] & (edges[part - 1] != cut.of_positives)]
        chosen = np.append(chosen, candidates[::every])
        while len(chosen) > SCORES_AT_ONCE:
            chosen, every = chosen[::2], 2 * every
    return chosen, every > 1


def _weighted_f1(classes: Iterator[Counts]) -> NDArray[np.float64]:
    """(K,) support-weighted mean of the classes' F1."""
    total, positives = np.zeros(()), 0
    for counts in classes:
        total = total + counts.positives * f1_of(*counts)
        positives += counts.positives
    return total / max(positives, 1)


def _macro_f1(classes: Iterator[Counts]) -> NDArray[np.float64]:
    """(K,) plain mean of the classes' F1."""
    total, num_classes = np.zeros(()), 0
    for counts in classes:
        total = total + f1_of(*counts)
        num_classes += 1
    return total / max(num_classes, 1)


def _micro_f1(classes: Iterator[Counts]) -> NDArray[np.float64]:
    """(K,) F1 of all entries pooled."""
    hits, predicted, positives = np.zeros(()), np.zeros(()), 0
    for counts in classes:
        hits, predicted = hits + counts.hits, predicted + counts.predicted
        positives += counts.positives
    return f1_of(hits, predicted, positives)


def _between(score: np.floating, below: np.floating) -> float:
    middle = (score + below) / 2
    return float(middle if middle > below else score)  # neighbouring floats have nothing between them


TUNED_METRICS: dict[str, Callable[[Iterator[Counts]], NDArray[np.float64]]] = {
    "f1_weighted": _weighted_f1,
    "f1_macro": _macro_f1,
    "f1_micro": _micro_f1,
}
