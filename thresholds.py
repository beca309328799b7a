"""Thresholds: from which probability on a class is predicted. Tune them on validation images, never on training images.

    threshold = tune_global(probabilities, targets)                 # one for all classes, best by weighted F1
    class_thresholds = tune_per_class(probabilities, targets)       # (C,)
    decision = decide(probabilities, targets, Policy(scope="per_class", goal="f_beta", beta=2.0))
    decision.thresholds, decision.cross_fitted["shrunk"]["f1_weighted"]

Probabilities (N, C) and targets (N, C) are as in metrics.py, for N images and C classes. A tuned threshold is the
exact optimum over all scores that occur, not the best of a grid. It lies midway between the lowest score that is
predicted and the next one below. If it is best to predict nothing, it lies midway between the highest score and 1. Of
equally good thresholds the highest is taken. With few images that optimum is chosen by noise: `tune_plateau`.
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

DEFAULT_THRESHOLD = 0.5  # where there is no positive to tune on
EQUAL = 1e-12  # numbers that differ by less are equal: sums in another order differ in their last digits
GRID = 2**12  # steps of the first look at a curve; a power of two, so that score x GRID is exact
SCORES_AT_ONCE = 2**12  # at how many scores a later look measures a curve
FOLDS = 5  # into how many parts cross-fitting divides the images
# Images below which noise chooses the exact optimum: F1 is known to ± 0.03 on 100. The middle of all thresholds that
# are as good within a standard error then reaches 0.001 (of 200 images) to 0.008 (of 30) more on other photographs:
# benchmarks/few_validation_images.py. Training takes this number, too: below it epochs are chosen by the cross-fitted
# F1, and a choice that rests on noise is named.
FEW_IMAGES = 200
# The strengths k that are tried. 0 leaves each class its own threshold, infinity gives all classes the global one.
SHRINKAGES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, np.inf)
EXTREME_LOGIT = 16.0  # where thresholds are blended, their logits lie between -16 and 16

Goal = Literal["f1", "f_beta", "precision", "recall", "cost"]


@dataclass(frozen=True)
class Policy:
    """What the thresholds are to be good for, and how many classes an image may have.

    Goals: "f1" and "f_beta" make F highest. "precision" reaches at least `precision`, then makes recall highest;
    "recall" reaches at least `recall`, then makes precision highest. "cost" makes the sum of the costs lowest.
    """

    scope: Literal["global", "per_class"] = "global"  # one threshold for all classes, or one for each
    goal: Goal = "f1"
    beta: float = 1.0  # goal f_beta: recall counts so many times as much as precision
    precision: float = 0.95
    recall: float = 0.9
    false_positive_cost: float = 1.0
    false_negative_cost: float = 1.0
    min_labels: int = 0  # as in metrics.predict
    max_labels: int = 0  # 0: no limit


@dataclass(frozen=True)
class Decision:
    """The thresholds that a policy asks for, and how good all kinds of thresholds are.

    `in_sample` and `cross_fitted` have the keys "global", "per_class" and "shrunk" (what `decide` returns for the scope
    "per_class"), each with the numbers of `measure_goal`. `in_sample` measures the images that the thresholds were
    tuned on, and is too good. `cross_fitted` measures each image with thresholds tuned on others.
    """

    thresholds: NDArray[np.float64]  # (C,)
    threshold: float  # the global one
    shrinkage: float  # k of "shrunk": a class with n positives keeps the share n / (n + k) of its own threshold
    unreachable: tuple[int, ...]  # classes for which no threshold reaches the precision: they are hardly ever predicted
    in_sample: dict[str, dict[str, float]]
    cross_fitted: dict[str, dict[str, float]]


class Counts(NamedTuple):
    """The counts of one class when it is predicted down to each of K scores: (K,) each."""

    hits: NDArray[np.int64]  # positives that are predicted
    predicted: NDArray[np.int64]
    positives: int  # of the class, predicted or not


class Stretch(NamedTuple):
    """The scores of one class in a stretch of 0...1, rising, and the counts that lie above the stretch."""

    scores: Floats  # of all known entries
    scores_of_positives: Floats
    predicted_above: int
    hits_above: int
    positives: int  # of the class, wherever they lie


def tune_global(
    probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", policy: Policy = Policy()
) -> float:
    """The one threshold for all classes that is best by the goal of `policy`.

    For the goals f1 and f_beta, `metric` is made highest: "f1_weighted", "f1_macro" or "f1_micro" (for f_beta, the same
    mean of F-beta). For precision, recall and cost, all entries are pooled. `min_labels` and `max_labels` play no role.
    Without a positive the threshold is DEFAULT_THRESHOLD. Raises InputError for another metric, probabilities outside
    0...1, or shapes that differ.

        tune_global([[0.9], [0.6], [0.2], [0.1]], [[1], [1], [0], [0]])    # 0.4
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
        average_f, beta = TUNED_METRICS[metric], _choose_beta(policy)
        columns = present.any(axis=0) | (metric == "f1_micro")  # F is 0 without positives, wherever the threshold lies
        scores = (probabilities, targets) if columns.all() else (probabilities[:, columns], targets[:, columns])
        best = _find_best(*scores, lambda classes: average_f(classes, beta))
    else:
        ranking = rank_scores(probabilities[known], present[known])
        choice = GOALS[policy.goal](ranking, policy)
        best = None if choice is None else ranking.scores[choice]
    # The highest score and the highest one below the best, block by block: a mask of all entries would take memory.
    highest = below = probabilities.dtype.type(0)
    for rows in read_rows(probabilities):
        highest = max(highest, np.max(probabilities[rows], where=known[rows], initial=0))
        if best is not None:
            is_below = known[rows] & (probabilities[rows] < best)
            below = max(below, np.max(probabilities[rows], where=is_below, initial=0))
    return _above(highest) if best is None else _between(best, below)


def tune_plateau(
    probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", policy: Policy = Policy()
) -> float:
    """The middle, in logits, of all thresholds whose F is within one standard error of the best.

    For a few images: the optimum itself is then chosen by noise. Takes what `tune_global` takes, for the metrics
    "f1_weighted" and "f1_macro"; for the goals precision, recall and cost it returns what that returns.
    """
    probabilities, targets = as_scores(probabilities, targets)
    best = tune_global(probabilities, targets, metric, policy)
    present, _ = as_known(targets)
    if policy.goal not in ("f1", "f_beta") or not present.any():
        return best
    beta = _choose_beta(policy)
    edges = np.unique(probabilities[present])  # as in `tune_global`, only scores of positives matter
    edges = edges[:: len(edges) // SCORES_AT_ONCE + 1]
    stretches = [
        _cut(*entries, edges[0], probabilities.dtype.type(2)) for entries in read_known(probabilities, targets)
    ]
    values = TUNED_METRICS[metric]((_count(stretch, edges) for stretch in stretches), beta)
    error = standard_error(probabilities >= probabilities.dtype.type(best), targets, metric, beta)
    good = edges[values >= values.max() - error]
    if len(good) == 1:  # to lie midway below that score is safer than to lie on it
        return best
    low, high = _logit(np.array([good[0], good[-1]], dtype=np.float64))
    return float(1 / (1 + np.exp(-(low + high) / 2)))


def choose_tuner(num_images: int) -> Callable[..., float]:
    """`tune_plateau` for fewer than FEW_IMAGES images, else `tune_global`."""
    return tune_plateau if num_images < FEW_IMAGES else tune_global


def standard_error(predicted: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", beta: float = 1.0) -> float:
    """The standard error of "f1_weighted" or "f1_macro" (with `beta`, of F-beta), as other images would be drawn.

    `predicted` (N, C) bool says which classes each image gets. F is a function of sums over images. To first order,
    image i changes it by u_i, its influence, and the error is sqrt(sum u_i²) (the infinitesimal jackknife: Efron 1982,
    chapter 6). Raises InputError for another metric.
    """
    if metric not in ("f1_weighted", "f1_macro"):
        raise InputError(f"there is a standard error of f1_weighted and f1_macro, not of {metric!r}")
    present, known = as_known(targets)
    predicted = np.asarray(predicted) & known
    hits, positives = predicted & present, present.sum(axis=0)
    sizes = predicted.sum(axis=0) + beta**2 * positives  # F of a class is (1 + beta²) hits / size
    f = divide((1 + beta**2) * hits.sum(axis=0), sizes)
    changes = divide((1 + beta**2) * hits - f * (predicted + beta**2 * present), sizes)  # (N, C), of each class's F
    if metric == "f1_macro":
        influences = changes.mean(axis=1)
    else:  # the mean is weighted by positives, which images change, too
        total = max(positives.sum(), 1)
        mean = f @ positives / total
        influences = (changes @ positives + present @ (f - mean)) / total
    return float(np.sqrt((influences**2).sum()))


def tune_per_class(
    probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", policy: Policy = Policy()
) -> NDArray[np.float64]:
    """The threshold of each class that is best for this class by the goal of `policy`, (C,) float64.

    A class without positives gets the threshold of `tune_global` with this `metric`; the other classes do not depend on
    `metric`. Thresholds of rare classes are noisy: see `tune_shrunk`. Raises InputError as `tune_global` does.
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
    """The threshold of each class, (C,) float64, with those of rare classes moved toward the global one.

    How far they are moved is decided by cross-fitting: these are the thresholds of `decide` for the scope "per_class".
    """
    return decide(probabilities, targets, replace(policy, scope="per_class"), folds, seed).thresholds


def decide(probabilities: ArrayLike, targets: ArrayLike, policy: Policy, folds: int = FOLDS, seed: int = 0) -> Decision:
    """Tune the thresholds that `policy` asks for, and measure how good they and those of the other scope are.

    For the scope "per_class", the thresholds are shrunk: the logit of a class's threshold is blended with that of the
    global one, and a class with n positives keeps the share n / (n + k) of its own. The strength k is one of
    SHRINKAGES: the best one for images of each fold with thresholds tuned on the other folds. The cross-fitted numbers
    of a fold use the k that is best on the remaining folds, so no image has a say in how it is measured.
    With fewer than FEW_IMAGES images the global threshold is that of `tune_plateau`.

    `seed` draws the folds. Raises InputError for probabilities outside 0...1, shapes that differ, or no images.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    limits, tune_all = (policy.min_labels, policy.max_labels), choose_tuner(len(probabilities))

    def tune(rows: Bools) -> list[NDArray[np.float64]]:
        """Thresholds (C,) tuned on these images, for each of SHRINKAGES."""
        scores = probabilities[rows], targets[rows]
        class_thresholds = tune_per_class(*scores, policy=policy)
        global_threshold = tune_all(*scores, policy=policy)
        positives = (scores[1] == 1).sum(axis=0)
        return [shrink(class_thresholds, global_threshold, positives, strength) for strength in SHRINKAGES]

    fold_of = assign_folds(len(probabilities), folds, seed)
    counts_of_folds = []  # for each fold, (strengths, C, 2, 2): confusion with thresholds tuned on the other folds
    for fold in range(fold_of.max() + 1):
        held_out = fold_of == fold
        scores = probabilities[held_out], targets[held_out]
        counts_of_folds.append(np.array([confusion(*scores, tuned, *limits) for tuned in tune(~held_out)]))
    total = np.sum(counts_of_folds, axis=0)
    shrunk = np.sum([counts[_choose_strength(total - counts, policy)] for counts in counts_of_folds], axis=0)
    strengths = {"global": len(SHRINKAGES) - 1, "per_class": 0, "shrunk": _choose_strength(total, policy)}
    cross_fitted = {"global": total[strengths["global"]], "per_class": total[strengths["per_class"]], "shrunk": shrunk}
    tuned = {}
    in_sample = {}
    thresholds_by_strength = tune(np.ones(len(probabilities), dtype=bool))
    for name, strength in strengths.items():
        tuned[name] = thresholds_by_strength[strength]
        in_sample[name] = confusion(probabilities, targets, tuned[name], *limits)
    return Decision(
        thresholds=tuned["shrunk" if policy.scope == "per_class" else "global"],
        threshold=float(tuned["global"][0]),
        shrinkage=SHRINKAGES[strengths["shrunk"]],
        unreachable=_find_unreachable(probabilities, targets, policy),
        in_sample={name: measure_goal(counts, policy) for name, counts in in_sample.items()},
        cross_fitted={name: measure_goal(counts, policy) for name, counts in cross_fitted.items()},
    )


def measure_goal(counts: NDArray[np.int64], policy: Policy) -> dict[str, float]:
    """What a policy is judged by: weighted F1 and the numbers of its goal, by name.

    `counts` are those of `metrics.confusion`, (C, 2, 2). The goal f_beta adds the weighted mean of F-beta; precision
    and recall add OP and OR, those of all entries pooled; cost adds the mean cost of an entry.
    """
    misses, positives = counts[:, 1, 0], counts[:, 1].sum(axis=1)
    hits, predicted = counts[:, 1, 1], counts[:, :, 1].sum(axis=1)

    def average_f(beta: float) -> float:
        f = f_beta_of(hits, predicted, positives, beta)
        return float(divide((f * positives).sum(), positives.sum()))

    measured = {"f1_weighted": average_f(1.0)}
    if policy.goal == "f_beta":
        measured[f"f{policy.beta:g}_weighted"] = average_f(policy.beta)
    elif policy.goal in ("precision", "recall"):
        measured["OP"] = float(divide(hits.sum(), predicted.sum()))
        measured["OR"] = float(divide(hits.sum(), positives.sum()))
    elif policy.goal == "cost":
        costs = policy.false_positive_cost * (predicted - hits) + policy.false_negative_cost * misses
        measured["cost"] = float(divide(costs.sum(), counts.sum()))
    return measured


def shrink(
    class_thresholds: NDArray[np.float64], global_threshold: float, positives: NDArray[np.int64], strength: float
) -> NDArray[np.float64]:
    """Move the thresholds of classes (C,) toward the global one; the fewer `positives` (C,), the further. Returns (C,).

    The logits are blended: a class with n positives keeps the share n / (n + strength) of its own.
    """
    num_classes = len(class_thresholds)
    everywhere = np.full(num_classes, global_threshold)
    shares = np.zeros(num_classes) if np.isinf(strength) else divide(positives, positives + strength)
    logits = shares * _logit(class_thresholds) + (1 - shares) * _logit(everywhere)
    blended = 1 / (1 + np.exp(-logits))
    # A share of 0 or 1 gives the threshold itself: the way through the logit and back would round it.
    return np.select([shares == 0, shares == 1], [everywhere, class_thresholds], blended)


def assign_folds(num_images: int, folds: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each image, (N,), drawn with `seed`. There are no more folds than images."""
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
    """The `metric` of all images, where each image is predicted with thresholds tuned on the images of other folds.

    A metric of the images that thresholds were tuned on is too good, since the thresholds fit their noise; this one is
    not. `tune` is a function of (probabilities, targets) that returns a threshold or (C,) thresholds, and `metric` any
    name that `metrics.measure` knows. Raises InputError for probabilities outside 0...1, shapes that differ, or no
    images.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    fold_of = assign_folds(len(probabilities), folds, seed)
    tuned = [tune(probabilities[fold_of != fold], targets[fold_of != fold]) for fold in range(fold_of.max() + 1)]
    thresholds = np.array(tuned, dtype=probabilities.dtype).reshape(len(tuned), -1)  # (folds, 1 or C)
    return measure(probabilities, targets, thresholds[fold_of], min_labels, max_labels)[metric]


def _find_best(
    probabilities: Floats, targets: NDArray, curve: Callable[[Iterator[Counts]], NDArray[np.float64]]
) -> np.floating | None:
    """The score at which `curve`, F over scores, is highest, exactly; None where F is 0 everywhere.

    Predicting every class down to that score is best. Only scores of positives matter: to predict more without a hit
    makes no F better.

    Measuring the curve at every score would be slow, so this is a branch and bound. The curve is measured at some
    scores, the edges. For the interval between two neighbouring edges a bound says how high the curve could be in it.
    Where the bound does not reach the highest value so far, the interval is closed. The next look measures scores
    inside the intervals that are still open, until none is left. The first look takes the edges of a grid, at which
    counting needs no sorting; most intervals are closed by it.

    An edge of the grid need not be a score. Where such an edge is as good as the best, the next score of a positive
    above it is as good too; it is the higher one, and is taken.
    """
    edges = (np.arange(GRID + 1) / GRID).astype(probabilities.dtype)
    measured = curve(_with_bounds(_count_on_grid(*entries)) for entries in read_known(probabilities, targets))
    values, bounds = measured[: len(edges)], measured[len(edges) :]
    if values.max() <= 0:
        return None
    tried = edges
    is_open = bounds >= values.max() - 2 * EQUAL
    # Sort only the scores in the stretch from the first open interval to the last.
    low, high = edges[:-1][is_open].min(initial=1), edges[1:][is_open].max(initial=0)
    stretches = [_cut(*entries, low, high) for entries in read_known(probabilities, targets)]
    has_more = True
    while has_more and is_open.any():
        chosen, has_more = _choose_scores(stretches, edges, is_open)
        edges_of_open = edges[np.append(is_open, False) | np.append(False, is_open)]
        new_edges = np.union1d(edges_of_open, chosen)
        # Closed intervals in a row are now one interval. It stays closed, though its bound is wider than theirs.
        is_open = is_open[np.searchsorted(edges, new_edges[:-1], side="right") - 1]
        edges = new_edges
        measured = curve(_with_bounds(_count(stretch, edges)) for stretch in stretches)
        tried, values = np.append(tried, edges), np.append(values, measured[: len(edges)])
        is_open &= measured[len(edges) :] >= values.max() - 2 * EQUAL
    return tried[values >= values.max() - EQUAL].max()


def _count_on_grid(scores: Floats, present: Bools) -> Counts:
    """The counts of a class at the GRID + 1 edges of the grid, from its known entries (N,).

    One bincount does it: entries of step i without a positive go to bin 2 i, those of positives to bin 2 i + 1.
    """
    step_of = (scores * GRID).astype(np.int64)
    by_step = np.bincount(2 * step_of + present, minlength=2 * (GRID + 1)).reshape(-1, 2)
    from_step = by_step[::-1].cumsum(axis=0)[::-1]  # in this step and all higher ones
    return Counts(hits=from_step[:, 1], predicted=from_step.sum(axis=1), positives=int(from_step[0, 1]))


def _cut(scores: Floats, present: Bools, low: np.floating, high: np.floating) -> Stretch:
    """The stretch of scores from `low` to below `high`, from the known entries (N,) of a class."""
    inside = (scores >= low) & (scores < high)
    above = scores >= high
    return Stretch(
        scores=np.sort(scores[inside]),
        scores_of_positives=np.sort(scores[inside & present]),
        predicted_above=int(above.sum()),
        hits_above=int((above & present).sum()),
        positives=int(present.sum()),
    )


def _count(stretch: Stretch, edges: Floats) -> Counts:
    """The counts of a class at rising edges (K,), which all lie in the stretch."""
    num_positives, num_scores = len(stretch.scores_of_positives), len(stretch.scores)
    return Counts(
        hits=stretch.hits_above + num_positives - np.searchsorted(stretch.scores_of_positives, edges),
        predicted=stretch.predicted_above + num_scores - np.searchsorted(stretch.scores, edges),
        positives=stretch.positives,
    )


def _with_bounds(counts: Counts) -> Counts:
    """Append to the counts at K edges the K - 1 best ones that are possible between two neighbouring edges.

    Best is to have all positives of the interval predicted, and none of its other entries.
    """
    hits, predicted, positives = counts
    least_predicted = predicted[1:] + hits[:-1] - hits[1:]
    return Counts(np.append(hits, hits[:-1]), np.append(predicted, least_predicted), positives)


def _choose_scores(stretches: list[Stretch], edges: Floats, is_open: Bools) -> tuple[Floats, bool]:
    """Scores of positives inside the open ones of the K - 1 intervals between edges (K,); and whether there are more.

    At most SCORES_AT_ONCE are chosen: every `stride`-th of each class. The stride is doubled when they get too many.
    """
    chosen, stride = edges[:0], 1
    is_open = np.concatenate(([False], is_open, [False]))  # what lies below the first edge or above the last is closed
    for stretch in stretches:
        scores = stretch.scores_of_positives
        interval_of = np.searchsorted(edges, scores, side="right")
        candidates = scores[is_open[interval_of] & (edges[interval_of - 1] != scores)]  # edges are measured already
        chosen = np.append(chosen, candidates[::stride])
        while len(chosen) > SCORES_AT_ONCE:
            chosen, stride = chosen[::2], 2 * stride
    return chosen, stride > 1


def _weighted_f(classes: Iterator[Counts], beta: float) -> NDArray[np.float64]:
    """The mean of F over classes, weighted by their positives, at K scores: (K,)."""
    total, positives = np.zeros(()), 0
    for counts in classes:
        total = total + counts.positives * f_beta_of(*counts, beta)
        positives += counts.positives
    return total / max(positives, 1)


def _macro_f(classes: Iterator[Counts], beta: float) -> NDArray[np.float64]:
    """The plain mean of F over classes at K scores: (K,)."""
    total, num_classes = np.zeros(()), 0
    for counts in classes:
        total = total + f_beta_of(*counts, beta)
        num_classes += 1
    return total / max(num_classes, 1)


def _micro_f(classes: Iterator[Counts], beta: float) -> NDArray[np.float64]:
    """F of all entries pooled at K scores: (K,)."""
    hits, predicted, positives = np.zeros(()), np.zeros(()), 0
    for counts in classes:
        hits, predicted = hits + counts.hits, predicted + counts.predicted
        positives += counts.positives
    return f_beta_of(hits, predicted, positives, beta)


# The next four functions choose down to which entry of its ranking a class is predicted; None means not at all.


def _choose_highest_f(ranking: Ranking, policy: Policy) -> int | None:
    """The highest score at which F is highest."""
    f = f_beta_of(ranking.true_positives, ranking.predicted, ranking.true_positives[-1], _choose_beta(policy))
    return int(np.argmax(f >= f.max() - EQUAL))


def _choose_precise(ranking: Ranking, policy: Policy) -> int | None:
    """The lowest score that is precise enough: every score of a ranking has a positive, so recall is highest there."""
    precise = np.flatnonzero(ranking.true_positives / ranking.predicted >= policy.precision)
    return int(precise[-1]) if len(precise) else None


def _choose_complete(ranking: Ranking, policy: Policy) -> int | None:
    """The most precise score of those with enough recall."""
    precision = ranking.true_positives / ranking.predicted
    recall = ranking.true_positives / ranking.true_positives[-1]
    return int(np.argmax(np.where(recall >= policy.recall, precision, -1)))


def _choose_cheapest(ranking: Ranking, policy: Policy) -> int | None:
    """The highest score at which the costs are lowest; None if it costs as little to predict nothing."""
    misses = ranking.true_positives[-1] - ranking.true_positives
    false_positives = ranking.predicted - ranking.true_positives
    costs = policy.false_positive_cost * false_positives + policy.false_negative_cost * misses
    cost_of_nothing = policy.false_negative_cost * ranking.true_positives[-1]
    if costs.min() >= cost_of_nothing * (1 - EQUAL):
        return None
    return int(np.argmax(costs <= costs.min() * (1 + EQUAL)))


def _choose_strength(counts: NDArray[np.int64], policy: Policy) -> int:
    """The index in SHRINKAGES of the best `counts` (strengths, C, 2, 2) by the goal; of equally good ones the last."""

    def rate(index: int) -> tuple[float, ...]:
        """What is compared, the best is the largest; the index decides between equally good ones."""
        measured = measure_goal(counts[index], policy)
        if policy.goal == "precision":
            if measured["OP"] >= policy.precision:
                return 1.0, measured["OR"], index
            return 0.0, measured["OP"], index
        if policy.goal == "recall":
            if measured["OR"] >= policy.recall:
                return 1.0, measured["OP"], index
            return 0.0, measured["OR"], index
        if policy.goal == "cost":
            return -measured["cost"], index
        return list(measured.values())[-1], index  # weighted F1, or the F-beta that stands after it

    return max(range(len(counts)), key=rate)


def _find_unreachable(probabilities: Floats, targets: NDArray, policy: Policy) -> tuple[int, ...]:
    """The classes with positives for which no threshold reaches the precision.

    With one threshold for all classes, these are all of them or none.
    """
    if policy.goal != "precision":
        return ()
    present, known = as_known(targets)
    with_positives = np.flatnonzero(present.any(axis=0)).tolist()
    if policy.scope == "global":
        ranking = rank_scores(probabilities[known], present[known])
        return tuple(with_positives) if _choose_precise(ranking, policy) is None else ()
    unreachable = []
    for label, ranking in enumerate(rank_classes(probabilities, targets)):
        if label in with_positives and _choose_precise(ranking, policy) is None:
            unreachable.append(label)
    return tuple(unreachable)


def _choose_beta(policy: Policy) -> float:
    return policy.beta if policy.goal == "f_beta" else 1.0


def _between(score: np.floating, below: np.floating) -> float:
    """A threshold midway between `score` and the next one below, or `score` where no float lies between them."""
    middle = (score + below) / 2
    return float(middle if middle > below else score)


def _above(score: np.floating) -> float:
    """A threshold that even the highest score does not reach: midway to 1, or the next float where none is between."""
    middle = (score + score.dtype.type(1)) / 2
    return float(middle if middle > score else np.nextafter(score, score.dtype.type(2)))


def _logit(thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits of thresholds, which may be 0, 1 or above, within -EXTREME_LOGIT...EXTREME_LOGIT."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(thresholds) - np.log1p(-np.minimum(thresholds, 1))
    return np.clip(logits, -EXTREME_LOGIT, EXTREME_LOGIT)


TUNED_METRICS: dict[str, Callable[[Iterator[Counts], float], NDArray[np.float64]]] = {
    "f1_weighted": _weighted_f,
    "f1_macro": _macro_f,
    "f1_micro": _micro_f,
}

GOALS: dict[Goal, Callable[[Ranking, Policy], int | None]] = {
    "f1": _choose_highest_f,
    "f_beta": _choose_highest_f,
    "precision": _choose_precise,
    "recall": _choose_complete,
    "cost": _choose_cheapest,
}
