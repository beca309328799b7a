"""Thresholds: from which probability on a class is predicted. Tune them on validation images, never on training images.

    threshold = tune_global(probabilities, targets)                 # one for all classes, best by weighted F1
    class_thresholds = tune_per_class(probabilities, targets)       # (C,)
    decision = decide(probabilities, targets, Policy(scope="per_class", goal="f_beta", beta=2.0))
    decision.thresholds, decision.cross_fitted["shrunk"]["f1_weighted"]

Probabilities (N, C) and targets (N, C) are as in metrics.py, for N images and C classes. A tuned threshold is the
exact optimum over all scores that occur, not the best of a grid. It lies midway between the lowest score that is
predicted and the next one below. If it is best to predict nothing, it lies midway between the highest score and 1, and
few scores of other images lie above it. Of equally good thresholds the highest is taken. With few images that optimum
is chosen by noise: `tune_plateau`.

The goals of PROMISES hold for images to come, not only for those that were tuned on:

    decision = decide(probabilities, targets, Policy(goal="guaranteed_recall", recall=0.9))
    rate_images(predicted, targets, "guaranteed_recall").mean()     # on other images of the same kind: 0.9 or more
"""

from __future__ import annotations

import math
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
    predict,
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

CONFIDENCE = 0.9  # of guaranteed_precision: it holds in this share of draws of validation images, or more
STEPS = 1000  # guaranteed_precision: the thresholds that are tested are 1 / STEPS, 2 / STEPS, ..., below 1
STEPS_TO_START = 100  # and the tests begin at every so many of them, going down
IMAGES_AT_ONCE = 2**10  # whose labels are counted at all these thresholds together

Goal = Literal["f1", "f_beta", "precision", "recall", "cost", "guaranteed_recall", "guaranteed_precision"]


@dataclass(frozen=True)
class Policy:
    """What the thresholds are to be good for, and how many classes an image may have.

    Goals: "f1" and "f_beta" make F highest. "precision" reaches at least `precision`, then makes recall highest;
    "recall" reaches at least `recall`, then makes precision highest. "cost" makes the sum of the costs lowest.
    "guaranteed_recall" and "guaranteed_precision" promise `recall` or `precision` for other images, see PROMISES; they
    take one threshold for all classes.
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
    abstain: float = 0.0  # share of images on which the model should not decide, see `tune_abstention`


@dataclass(frozen=True)
class Decision:
    """The thresholds that a policy asks for, and how good all kinds of thresholds are.

    `in_sample` and `cross_fitted` have the keys "global", "per_class" and "shrunk" (what `decide` returns for the scope
    "per_class"), each with the numbers of `measure_goal`; for a goal of PROMISES "global" alone. `in_sample` measures
    the images that the thresholds were tuned on, and is too good. `cross_fitted` measures each image with thresholds
    tuned on others.
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
    Without a positive the threshold is DEFAULT_THRESHOLD. For guaranteed_recall it is 0 where there are too few images
    to promise anything (see `require_promise`). Raises InputError for another metric, probabilities outside 0...1, or
    shapes that differ.

        tune_global([[0.9], [0.6], [0.2], [0.1]], [[1], [1], [0], [0]])    # 0.4
    """
    if metric not in TUNED_METRICS:
        raise InputError(
            f"thresholds are tuned for {', '.join(TUNED_METRICS)}, not {metric!r}{suggest(metric, TUNED_METRICS)}"
        )
    probabilities, targets = as_scores(probabilities, targets)
    present, known = as_known(targets)
    if not present.any() and policy.goal not in PROMISES:
        return DEFAULT_THRESHOLD
    if policy.goal in ("f1", "f_beta"):
        average_f, beta = TUNED_METRICS[metric], _choose_beta(policy)
        columns = present.any(axis=0) | (metric == "f1_micro")  # F is 0 without positives, wherever the threshold lies
        scores = (probabilities, targets) if columns.all() else (probabilities[:, columns], targets[:, columns])
        best = _find_best(*scores, lambda classes: average_f(classes, beta))
    elif policy.goal in PROMISES:
        best = PROMISES[policy.goal](probabilities, targets, policy)
        if policy.goal == "guaranteed_precision" and best is not None:
            return float(best)  # the test is of this very threshold: a lower one, midway to the next score, may fail
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
    return float(np.sqrt((find_influences(predicted, targets, metric, beta) ** 2).sum()))


def find_influences(
    predicted: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", beta: float = 1.0
) -> NDArray[np.float64]:
    """By how much each image changes the metric, to first order, (N,): see `standard_error`, which takes the same."""
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
    return influences


def tune_per_class(
    probabilities: ArrayLike, targets: ArrayLike, metric: str = "f1_weighted", policy: Policy = Policy()
) -> NDArray[np.float64]:
    """The threshold of each class that is best for this class by the goal of `policy`, (C,) float64.

    A class without positives gets the threshold of `tune_global` with this `metric`; the other classes do not depend on
    `metric`. Thresholds of rare classes are noisy: see `tune_shrunk`. Raises InputError as `tune_global` does, and for
    a goal of PROMISES.
    """
    if policy.goal in PROMISES:
        raise InputError(f"{policy.goal} is a promise over all classes: it takes one threshold, the scope global")
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

    `seed` draws the folds. Raises InputError for probabilities outside 0...1, shapes that differ, no images, or what
    `require_promise` refuses.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    if policy.goal in PROMISES:
        return _decide_promise(probabilities, targets, policy, folds, seed)
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


def _decide_promise(probabilities: Floats, targets: NDArray, policy: Policy, folds: int, seed: int) -> Decision:
    """`decide` for a goal of PROMISES. Its numbers have the mean of `rate_images` beside those of `measure_goal`."""
    require_promise(policy, len(probabilities))
    limits = policy.min_labels, policy.max_labels
    threshold = tune_global(probabilities, targets, policy=policy)
    fold_of = assign_folds(len(probabilities), folds, seed)
    tuned = []
    for fold in range(fold_of.max() + 1):
        tuned.append(tune_global(probabilities[fold_of != fold], targets[fold_of != fold], policy=policy))
    measured = []
    for used in (threshold, np.array(tuned)[fold_of, None]):  # one for all images, or (N, 1)
        shares = rate_images(predict(probabilities, used, *limits), targets, policy.goal)
        numbers = measure_goal(confusion(probabilities, targets, used, *limits), policy)
        measured.append(
            numbers | {f"image_{policy.goal.removeprefix('guaranteed_')}": float(divide(shares.sum(), len(shares)))}
        )
    return Decision(
        thresholds=np.full(probabilities.shape[1], threshold),
        threshold=threshold,
        shrinkage=np.inf,
        unreachable=_find_unreachable(probabilities, targets, policy),
        in_sample={"global": measured[0]},
        cross_fitted={"global": measured[1]},
    )


def measure_goal(counts: NDArray[np.int64], policy: Policy) -> dict[str, float]:
    """What a policy is judged by: weighted F1 and the numbers of its goal, by name.

    `counts` are those of `metrics.confusion`, (C, 2, 2). The goal f_beta adds the weighted mean of F-beta; precision
    and recall, also guaranteed, add OP and OR, those of all entries pooled; cost adds the mean cost of an entry.
    """
    misses, positives = counts[:, 1, 0], counts[:, 1].sum(axis=1)
    hits, predicted = counts[:, 1, 1], counts[:, :, 1].sum(axis=1)

    def average_f(beta: float) -> float:
        f = f_beta_of(hits, predicted, positives, beta)
        return float(divide((f * positives).sum(), positives.sum()))

    measured = {"f1_weighted": average_f(1.0)}
    if policy.goal == "f_beta":
        measured[f"f{policy.beta:g}_weighted"] = average_f(policy.beta)
    elif policy.goal in ("precision", "recall", *PROMISES):
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


# ---- images on which the model should not decide ----


def measure_doubt(probabilities: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """How unsure each decision is, (N,): its expected number of wrong entries, over one more than its labels.

    `probabilities` (N, C) are calibrated, and `predicted` (N, C) bool says which classes each image gets. An entry is
    wrong with probability 1 - p where it is predicted, else with p. Of eight measures this one orders images best by
    the F1 of their labels: benchmarks/promises.py.

        measure_doubt([[0.9, 0.2], [0.6, 0.4]], [[True, False], [True, False]])    # [0.15, 0.4]
    """
    probabilities, predicted = np.asarray(probabilities, dtype=np.float64), np.asarray(predicted)
    return np.where(predicted, 1 - probabilities, probabilities).sum(axis=1) / (predicted.sum(axis=1) + 1)


def tune_abstention(doubts: NDArray[np.float64], share: float) -> float:
    """The doubt above which an image is left to a person: at most the `share` (below 1) of `doubts` (N,) lie above.

    It lies midway between the least doubt that is left and the greatest that is not. Equal doubts are never told
    apart, so fewer may be left.
    """
    decided = np.sort(doubts)[::-1][math.floor(round(share * len(doubts), 9))]
    left = doubts[doubts > decided]
    return float((decided + left.min()) / 2 if len(left) else decided)


# ---- promises: goals that hold for other images ----


def require_promise(policy: Policy, num_images: int) -> None:
    """Raise InputError for a promise that so many validation images, or the rest of the policy, cannot keep.

    Without one of PROMISES as its goal, a policy promises nothing.
    """
    if policy.goal not in PROMISES:
        return
    if policy.scope == "per_class":
        raise InputError(f"{policy.goal} is a promise over all classes: it takes one threshold, the scope global")
    if policy.max_labels or (policy.min_labels and policy.goal == "guaranteed_precision"):
        raise InputError(f"{policy.goal} is about what a threshold predicts: with labels cut or added it does not hold")
    if policy.goal == "guaranteed_recall" and policy.recall == 1:
        raise InputError("guaranteed_recall cannot promise a recall of 1: no number of validation images is enough")
    if policy.goal == "guaranteed_recall" and _count_allowed(policy.recall, num_images) < 0:
        needed = math.ceil(round(1 / (1 - policy.recall), 9)) - 1
        raise InputError(
            f"guaranteed_recall promises {policy.recall:g}, for which it takes {needed:,} validation images or more, "
            f"and there are {num_images:,}: lower THRESHOLD_RECALL, or validate on more images"
        )


def rate_images(predicted: ArrayLike, targets: ArrayLike, goal: Goal) -> NDArray[np.float64]:
    """What a goal of PROMISES promises the mean of: a share of each image's labels, (M,).

    `predicted` (N, C) bool says which classes each image gets. guaranteed_recall: the share of an image's labels that
    is found, 1 for an image without labels; of the M images of which a label is known. guaranteed_precision: the share
    of its predicted labels that is right, of the M images that get one. Unknown entries count nowhere.
    """
    present, known = as_known(targets)
    predicted = np.asarray(predicted) & known
    hits = (predicted & present).sum(axis=1)
    if goal == "guaranteed_recall":
        return divide(hits, present.sum(axis=1), undefined=1.0)[known.any(axis=1)]
    count = predicted.sum(axis=1)
    return divide(hits, count)[count > 0]


def _count_allowed(recall: float, num_images: int) -> float:
    """How many images' worth of labels may be missed: the largest sum of losses with (sum + 1) / (n + 1) <= alpha.

    Below 0 if not even a sum of 0 is that small.
    """
    return round((1 - recall) * (num_images + 1) - 1, 9)  # 1 - 0.9 is a little less than 0.1


def _choose_promised_recall(probabilities: Floats, targets: NDArray, policy: Policy) -> np.floating | None:
    """The highest score down to which everything has to be predicted; 0 for too few images, None: nothing has to be.

    Conformal risk control (Angelopoulos et al. 2024): the highest threshold with (n R + 1) / (n + 1) <= alpha, for n
    images of which a label is known, alpha = 1 - recall, and R the mean over them of the share of an image's labels
    that is missed. R rises with the threshold, and no score but a label's changes it.
    """
    present, known = as_known(targets)
    allowed = _count_allowed(policy.recall, int(known.any(axis=1).sum()))
    if allowed < 0:
        return probabilities.dtype.type(0)
    shares = 1 / np.maximum(present.sum(axis=1), 1)  # of an image's labels, that one is
    scores = probabilities[present]
    order = np.argsort(scores)
    missed = np.cumsum(shares[np.nonzero(present)[0]][order])  # above each score: with it and all lower ones missed
    too_many = np.flatnonzero(missed > allowed + 1e-9)
    return scores[int(order[too_many[0]])] if len(too_many) else None


def _choose_promised_precision(probabilities: Floats, targets: NDArray, policy: Policy) -> np.floating | None:
    """The lowest threshold that is shown to be precise enough; None if none is.

    Precision need not rise with the threshold, so this is Learn then Test (Angelopoulos et al. 2025) with fixed
    sequence testing. The hypothesis of a threshold: over images that get labels, the mean share of wrong ones among
    them is more than 1 - precision. Going down from each of several starts, thresholds are tested until one is not
    rejected; each start has its part of the error 1 - CONFIDENCE, so with CONFIDENCE none is rejected wrongly.
    Thresholds and starts are fixed before any image is seen, as the proof asks for.
    """
    candidates = (np.arange(1, STEPS) / STEPS).astype(probabilities.dtype)
    wrong, labelled = np.zeros(len(candidates)), np.zeros(len(candidates), dtype=np.int64)
    for start in range(0, len(probabilities), IMAGES_AT_ONCE):
        rows = slice(start, start + IMAGES_AT_ONCE)
        present, known = as_known(targets[rows])
        # at or above how many candidates an entry lies; each image has STEPS bins of its own
        bins = np.searchsorted(candidates, probabilities[rows], side="right")
        bins += STEPS * np.arange(len(bins))[:, None]
        by_bin = [np.bincount(bins[entries], minlength=STEPS * len(bins)) for entries in (known, present)]
        predicted, hits = (counts.reshape(-1, STEPS)[:, :0:-1].cumsum(axis=1)[:, ::-1] for counts in by_bin)
        wrong += divide(predicted - hits, predicted).sum(axis=0)
        labelled += (predicted > 0).sum(axis=0)
    starts = range(STEPS_TO_START - 1, len(candidates), STEPS_TO_START)
    level = (1 - CONFIDENCE) / len(starts)
    best, goes_on = None, False
    for step in reversed(range(len(candidates))):
        goes_on = (goes_on or step in starts) and labelled[step] > 0
        if goes_on:
            goes_on = find_p_value(wrong[step] / labelled[step], int(labelled[step]), 1 - policy.precision) <= level
        best = candidates[step] if goes_on else best
    return best


def find_p_value(risk: float, num_images: int, limit: float) -> float:
    """The p-value of Hoeffding and Bentkus that a risk is above `limit`, where its mean over `num_images` is `risk`.

    For losses in 0...1 (Bates et al. 2021, "Distribution-free, risk-controlling prediction sets"). It is small where
    `risk` is well below `limit`.

        find_p_value(0.02, 500, 0.05)    # 0.0013
    """
    if risk >= limit:
        return 1.0
    divergence = (1 - risk) * (math.log1p(-risk) - math.log1p(-limit))
    divergence += risk * math.log(risk / limit) if risk > 0 else 0.0
    counts = np.arange(math.ceil(round(num_images * risk, 9)) + 1)
    factorials = np.cumsum(np.log(np.maximum(np.arange(num_images + 1), 1)))  # their logarithms
    log_shares = factorials[-1] - factorials[counts] - factorials[num_images - counts]
    log_shares += counts * math.log(limit) + (num_images - counts) * math.log1p(-limit)
    binomial = float(np.exp(log_shares).sum())  # P(at most that many of num_images), each with probability `limit`
    return min(math.exp(-num_images * divergence), math.e * binomial, 1.0)


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

    With one threshold for all classes, these are all of them or none; for guaranteed_precision all C or none.
    """
    if policy.goal not in ("precision", "guaranteed_precision"):
        return ()
    present, known = as_known(targets)
    with_positives = np.flatnonzero(present.any(axis=0)).tolist()
    if policy.goal == "guaranteed_precision":
        is_found = _choose_promised_precision(probabilities, targets, policy) is not None
        return () if is_found else tuple(range(probabilities.shape[1]))
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

# goals that hold for other images of the same kind; these functions return the lowest score to predict, None: nothing
PROMISES: dict[Goal, Callable[[Floats, NDArray, Policy], np.floating | None]] = {
    "guaranteed_recall": _choose_promised_recall,
    "guaranteed_precision": _choose_promised_precision,
}
