"""Thresholds that make a goal best on given scores: the exact optimum, not a grid. Fit them on validation images.

A threshold lies midway between the lowest score that is predicted and the next one below it; where nothing is to be
predicted, midway between the highest score and 1. Of equally good ones the highest is taken.

decision = decide(probabilities, targets, Policy(scope="per_class", goal="f_beta", beta=2.0))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metrics import (
    Bools,
    Floats,
    Ranking,
    as_known,
    as_scores,
    confusion,
    divide,
    f_beta_of,
    measure,
    rank_classes,
    rank_scores,
    read_known,
    read_rows,
)
from utils import InputError, suggest

DEFAULT_THRESHOLD = 0.5  # where no score has a positive: there is nothing to tune on
EQUAL = 1e-12  # sums in another order differ in the last digits: what is equal up to those is equal
GRID = 2**12  # steps of the first look at a curve; a power of two, so that score x GRID is exact
SCORES_AT_ONCE = 2**12  # scores at which a curve is measured together in the later looks
FOLDS = 5  # of the images, for cross-fitting
SHRINKAGES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, np.inf)  # k to try: each its own, to all the global one
EXTREME_LOGIT = 16.0  # thresholds count as no further out when they are blended

Goal = Literal["f1", "f_beta", "precision", "recall", "cost"]


@dataclass(frozen=True)
class Policy:
    """What thresholds are to be good for, and how many labels an image may have."""

    scope: Literal["global", "per_class"] = "global"
    goal: Goal = "f1"
    beta: float = 1.0  # f_beta: recall counts so many times as much as precision
    precision: float = 0.95  # precision: at least this, then the highest recall
    recall: float = 0.9  # recall: at least this, then the highest precision
    false_positive_cost: float = 1.0  # cost: least in sum
    false_negative_cost: float = 1.0
    min_labels: int = 0  # of an image, as metrics.predict has it
    max_labels: int = 0


@dataclass(frozen=True)
class Decision:
    """Thresholds chosen by a policy, and what they are worth on the images they were chosen on, and on others."""

    thresholds: NDArray[np.float64]  # (C,)
    threshold: float  # the global one
    shrinkage: float  # k of "shrunk": a class with n positives keeps n / (n + k) of its own threshold
    unreachable: tuple[int, ...]  # classes whose wished-for precision no threshold has: they are hardly predicted
    in_sample: dict[str, dict[str, float]]  # of "global", "per_class", "shrunk": numbers by their name
    cross_fitted: dict[str, dict[str, float]]


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


def tune_global(
    probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", policy: Policy = Policy()
) -> float:
    """The one threshold for all classes that is best by the policy's goal.

    f1, f_beta: `metric`, a key of TUNED_METRICS, is highest (of f_beta, its kind of mean). precision, recall, cost:
    of all entries pooled. Limits on labels play no part. Raises InputError for another metric or scores outside 0...1.
    """
    if metric not in TUNED_METRICS:
        raise InputError(
            f"thresholds are tuned for {', '.join(TUNED_METRICS)}, not {metric!r}{suggest(metric, TUNED_METRICS)}"
        )
    probabilities, targets = as_scores(probabilities, targets)
    present, known = as_known(targets)
    if not present.any():
        return DEFAULT_THRESHOLD
    if policy.goal in ("f1", "f_beta"):
        curve, beta = TUNED_METRICS[metric], _choose_beta(policy)
        best = _find_best(probabilities, targets, lambda classes: curve(classes, beta))
    else:
        ranking = rank_scores(probabilities[known], present[known])
        choice = GOALS[policy.goal](ranking, policy)
        best = None if choice is None else ranking.scores[choice]
    highest, below = (probabilities.dtype.type(0),) * 2
    for rows in read_rows(probabilities):
        highest = max(highest, np.max(probabilities[rows], where=known[rows], initial=0))
        if best is not None:
            lower = known[rows] & (probabilities[rows] < best)
            below = max(below, np.max(probabilities[rows], where=lower, initial=0))
    return _above(highest) if best is None else _between(best, below)


def tune_per_class(
    probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", policy: Policy = Policy()
) -> NDArray[np.float64]:
    """(C,) thresholds, each best for its class by the policy's goal; `tune_global`'s for a class without positives.

    `metric` is the one that this global threshold makes best. Raises as `tune_global` does.
    """
    tuned = []
    for scores, present in read_known(*as_scores(probabilities, targets)):
        ranking = rank_scores(scores, present)
        if not len(ranking.scores):
            tuned.append(np.nan)
            continue
        choice = GOALS[policy.goal](ranking, policy)
        if choice is None:
            tuned.append(_above(scores.max()))
            continue
        best = ranking.scores[choice]
        tuned.append(_between(best, scores[scores < best].max(initial=0)))
    thresholds = np.array(tuned, dtype=np.float64)
    if np.isnan(thresholds).any():
        thresholds[np.isnan(thresholds)] = tune_global(probabilities, targets, metric, policy)
    return thresholds


def tune_shrunk(
    probabilities: ArrayLike,
    targets: ArrayLike,
    policy: Policy = Policy(),
    folds: int = FOLDS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(C,) thresholds of the classes, those of rare ones moved toward the global one, as far as cross-fitting says."""
    return decide(probabilities, targets, replace(policy, scope="per_class"), folds, seed).thresholds


def decide(probabilities: ArrayLike, targets: ArrayLike, policy: Policy, folds: int = FOLDS, seed: int = 0) -> Decision:
    """The thresholds that `policy` asks for, and how good they are beside those of the other scopes.

    A class with n positives has its logit(threshold) blended with the global one's by n / (n + k). Of SHRINKAGES that
    k is taken at which thresholds tuned on the other folds are best for each fold's images; the cross-fitted numbers
    of a fold use the k that is best for the remaining folds. Raises as `measure` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    limits = policy.min_labels, policy.max_labels

    def tune(rows: Bools) -> list[NDArray[np.float64]]:
        """(C,) thresholds for each of SHRINKAGES, the first each class's own, the last the global one."""
        scores = probabilities[rows], targets[rows]
        own, common = tune_per_class(*scores, policy=policy), tune_global(*scores, policy=policy)
        positives = (scores[1] == 1).sum(axis=0)
        return [shrink(own, common, positives, strength) for strength in SHRINKAGES]

    fold_of = assign_folds(len(probabilities), folds, seed)
    counted = np.array(
        [
            [confusion(probabilities[here], targets[here], each, *limits) for each in tune(~here)]
            for here in (fold_of == fold for fold in range(fold_of.max() + 1))
        ]
    )  # (folds, strengths, C, 2, 2)
    ends = {"global": len(SHRINKAGES) - 1, "per_class": 0}
    total = counted.sum(axis=0)
    shrunk = np.sum([each[_choose_strength(total - each, policy)] for each in counted], axis=0)
    chosen = _choose_strength(total, policy)
    ways = {**ends, "shrunk": chosen}
    tuned = tune(np.ones(len(probabilities), dtype=bool))
    in_sample = {name: confusion(probabilities, targets, tuned[way], *limits) for name, way in ways.items()}
    cross_fitted = {name: total[way] for name, way in ends.items()} | {"shrunk": shrunk}
    return Decision(
        thresholds=tuned[ways["shrunk" if policy.scope == "per_class" else "global"]],
        threshold=float(tuned[ends["global"]][0]),
        shrinkage=SHRINKAGES[chosen],
        unreachable=_find_unreachable(probabilities, targets, policy),
        in_sample={name: measure_goal(each, policy) for name, each in in_sample.items()},
        cross_fitted={name: measure_goal(each, policy) for name, each in cross_fitted.items()},
    )


def measure_goal(counts: NDArray[np.int64], policy: Policy) -> dict[str, float]:
    """Weighted F1 and the numbers of the policy's goal, by name, of `metrics.confusion` (C, 2, 2).

    f_beta: weighted over classes. precision, recall: those of all entries pooled, OP and OR. cost: of an entry.
    """
    misses, positives = counts[:, 1, 0], counts[:, 1].sum(axis=1)
    hits, predicted = counts[:, 1, 1], counts[:, :, 1].sum(axis=1)

    def weigh(beta: float) -> float:
        return float(divide((f_beta_of(hits, predicted, positives, beta) * positives).sum(), positives.sum()))

    measured = {"f1_weighted": weigh(1.0)}
    if policy.goal == "f_beta":
        measured[f"f{policy.beta:g}_weighted"] = weigh(policy.beta)
    elif policy.goal in ("precision", "recall"):
        measured["OP"] = float(divide(hits.sum(), predicted.sum()))
        measured["OR"] = float(divide(hits.sum(), positives.sum()))
    elif policy.goal == "cost":
        costs = policy.false_positive_cost * (predicted - hits) + policy.false_negative_cost * misses
        measured["cost"] = float(divide(costs.sum(), counts.sum()))
    return measured


def shrink(
    own: NDArray[np.float64], common: float, positives: NDArray[np.int64], strength: float
) -> NDArray[np.float64]:
    """(C,) thresholds between each class's `own` and the `common` one, blended in logits by n / (n + strength)."""
    shares = np.zeros(len(own)) if np.isinf(strength) else divide(positives, positives + strength)
    logits = [_logit(each) for each in (own, np.full(len(own), common))]
    blended = 1 / (1 + np.exp(-(shares * logits[0] + (1 - shares) * logits[1])))
    return np.select([shares == 0, shares == 1], [np.full(len(own), common), own], blended)


def assign_folds(num_images: int, folds: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """(N,) the fold of each image, drawn; no more folds than images."""
    return np.random.default_rng(seed).permutation(num_images) % min(folds, num_images)


def cross_fit(
    probabilities: ArrayLike,
    targets: ArrayLike,
    tune: Callable[[ArrayLike, ArrayLike], float | NDArray[np.float64]] = tune_global,
    metric: str = "f1_weighted",
    folds: int = FOLDS,
    seed: int = 0,
    min_labels: int = 0,
    max_labels: int = 0,
) -> float:
    """`metric` of all images, each predicted with thresholds tuned on the other folds' images.

    The tuned thresholds' own score is too good by what they fitted to these very images; this one is not.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    fold_of = assign_folds(len(probabilities), folds, seed)
    tuned = [tune(probabilities[fold_of != fold], targets[fold_of != fold]) for fold in range(fold_of.max() + 1)]
    thresholds = np.array(tuned, dtype=probabilities.dtype).reshape(len(tuned), -1)  # (folds, 1 or C)
    return measure(probabilities, targets, thresholds[fold_of], min_labels, max_labels)[metric]


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


def _weighted_f(classes: Iterator[Counts], beta: float) -> NDArray[np.float64]:
    """(K,) support-weighted mean of the classes' F."""
    total, positives = np.zeros(()), 0
    for counts in classes:
        total = total + counts.positives * f_beta_of(*counts, beta)
        positives += counts.positives
    return total / max(positives, 1)


def _macro_f(classes: Iterator[Counts], beta: float) -> NDArray[np.float64]:
    """(K,) plain mean of the classes' F."""
    total, num_classes = np.zeros(()), 0
    for counts in classes:
        total = total + f_beta_of(*counts, beta)
        num_classes += 1
    return total / max(num_classes, 1)


def _micro_f(classes: Iterator[Counts], beta: float) -> NDArray[np.float64]:
    """(K,) F of all entries pooled."""
    hits, predicted, positives = np.zeros(()), np.zeros(()), 0
    for counts in classes:
        hits, predicted = hits + counts.hits, predicted + counts.predicted
        positives += counts.positives
    return f_beta_of(hits, predicted, positives, beta)


def _choose_highest_f(ranking: Ranking, policy: Policy) -> int | None:
    f = f_beta_of(ranking.true_positives, ranking.predicted, ranking.true_positives[-1], _choose_beta(policy))
    return int(np.argmax(f >= f.max() - EQUAL))


def _choose_precise(ranking: Ranking, policy: Policy) -> int | None:
    """Down to the lowest score that still has the precision: each of a ranking's scores adds to the recall."""
    precise = np.flatnonzero(ranking.true_positives / ranking.predicted >= policy.precision)
    return int(precise[-1]) if len(precise) else None


def _choose_complete(ranking: Ranking, policy: Policy) -> int | None:
    precision, recall = ranking.true_positives / ranking.predicted, ranking.true_positives / ranking.true_positives[-1]
    return int(np.argmax(np.where(recall >= policy.recall, precision, -1)))


def _choose_cheapest(ranking: Ranking, policy: Policy) -> int | None:
    misses = ranking.true_positives[-1] - ranking.true_positives
    too_many = ranking.predicted - ranking.true_positives
    costs = policy.false_positive_cost * too_many + policy.false_negative_cost * misses
    nothing = policy.false_negative_cost * ranking.true_positives[-1]
    return int(np.argmax(costs <= costs.min() * (1 + EQUAL))) if costs.min() < nothing * (1 - EQUAL) else None


def _choose_strength(counts: NDArray[np.int64], policy: Policy) -> int:
    """Which of SHRINKAGES has the best (strengths, C, 2, 2) `counts` by the policy's goal; of equal ones the most."""

    def prefer(index: int) -> tuple[float, ...]:
        measured = measure_goal(counts[index], policy)
        if policy.goal == "precision":
            value = (1.0, measured["OR"]) if measured["OP"] >= policy.precision else (0.0, measured["OP"])
        elif policy.goal == "recall":
            value = (1.0, measured["OP"]) if measured["OR"] >= policy.recall else (0.0, measured["OR"])
        else:
            name, number = list(measured.items())[-1]
            value = (-number if name == "cost" else number,)
        return (*value, index)

    return max(range(len(counts)), key=prefer)


def _find_unreachable(probabilities: Floats, targets: NDArray, policy: Policy) -> tuple[int, ...]:
    """The classes with positives of which no threshold is precise enough; with one threshold for all, all or none."""
    if policy.goal != "precision":
        return ()
    present, known = as_known(targets)
    with_positives = np.flatnonzero(present.any(axis=0))
    if policy.scope == "global":
        is_reachable = [_choose_precise(rank_scores(probabilities[known], present[known]), policy) is not None] * len(
            present[0]
        )
    else:
        is_reachable = [
            _choose_precise(ranking, policy) is not None for ranking in rank_classes(probabilities, targets)
        ]
    return tuple(label for label in with_positives.tolist() if not is_reachable[label])


def _choose_beta(policy: Policy) -> float:
    return policy.beta if policy.goal == "f_beta" else 1.0


def _between(score: np.floating, below: np.floating) -> float:
    middle = (score + below) / 2
    return float(middle if middle > below else score)  # neighbouring floats have nothing between them


def _above(score: np.floating) -> float:
    """A threshold that `score`, the highest, does not reach: midway to 1, or the float after it."""
    middle = (score + score.dtype.type(1)) / 2
    return float(middle if middle > score else np.nextafter(score, score.dtype.type(2)))


def _logit(thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(thresholds) - np.log1p(-np.minimum(thresholds, 1))
    return np.clip(logits, -EXTREME_LOGIT, EXTREME_LOGIT)


TUNED_METRICS: dict[str, Callable[[Iterator[Counts], float], NDArray[np.float64]]] = {
    "f1_weighted": _weighted_f,
    "f1_macro": _macro_f,
    "f1_micro": _micro_f,
}

# which entry of a ranking to predict down to; None: nothing
GOALS: dict[Goal, Callable[[Ranking, Policy], int | None]] = {
    "f1": _choose_highest_f,
    "f_beta": _choose_highest_f,
    "precision": _choose_precise,
    "recall": _choose_complete,
    "cost": _choose_cheapest,
}
