"""Metrics: pure functions of probabilities (N, C) and targets (N, C), for N images and C classes.

    measured = measure(probabilities, targets, thresholds=0.5)     # {"mAP": ..., "f1_weighted": ..., ...}
    by_class = measure_classes(probabilities, targets, 0.5)        # {"AP": (C,), "P": (C,), ...}
    intervals, class_intervals = bootstrap(probabilities, targets, 0.5)
    differences = compare(probabilities_a, probabilities_b, targets, 0.5, 0.4)    # {"mAP": Difference(...), ...}
    p = adjust_holm([difference["mAP"].p for difference in differences_to_many])

Probabilities lie between 0 and 1, both included. A target is 1 for present, 0 for absent, -1 or NaN for unknown. An
entry is one class of one image; unknown entries count nowhere, nor do images without a known one. `thresholds` is one
number or (C,), one for each class; `predict` says which classes an image gets. Definitions are those of scikit-learn
where it has them, and 0 / 0 is 0.

How it is fast: everything is counted, by NumPy, in blocks of rows or of classes. A block's temporary copies stay in
the processor's cache, and a million images with 80 classes need little more memory than their scores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils import InputError

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

ENTRIES_AT_ONCE = 2**16  # entries in a block of rows: their temporary copies fit into the cache of a core
CLASSES_AT_ONCE = 16  # one cache line holds 16 float32 scores: reading one of these classes reads them all
RANK_STEPS = 2**14  # steps into which `rank_scores` divides 0...1; a power of two, so that score x RANK_STEPS is exact
RESAMPLED_AT_ONCE = 2**25  # numbers in a block of the bootstrap: a resample has one an image and eight a class
RANKED_AT_ONCE = 128  # images of a block of `_resample_ap`: float32 counts so few of them without rounding
LEVEL = 0.95  # of an interval
CLASS_METRICS = ("AP", "P", "R", "F1", "accuracy")  # those of `measure_classes`
STUDENT_STEPS = 20_000  # in which Student's distribution is summed up
TINY = 1e-12  # in place of 0 where it divides
TOP = 3  # how many classes of an image the metrics ending in _top3 take as predicted
F1_OF_ENTRIES = ("OF1", f"OF1_top{TOP}", "f1_micro", "f1_weighted")  # 2 J / (1 + J), J a share of entries
NUM_BINS = 15  # bins of equal width for calibration, as many as Guo et al. (2017) use


class Ranking(NamedTuple):
    """The K distinct scores that positives of one class have, highest first, and the counts at each score: all (K,).

    Other scores are of no interest: predicting down to them adds false positives only.
    """

    scores: Floats
    true_positives: NDArray[np.int64]  # positives with this score or a higher one
    predicted: NDArray[np.int64]  # entries with this score or a higher one
    above: NDArray[np.int64]  # entries with a higher score


class Tallies(NamedTuple):
    """Sums over the images of B resamples, from which every metric is computed. B is 1 for the images themselves.

    The first six are numbers of known entries by class, (B, C). The next four are sums over images, (B,), to which an
    image without a known entry adds 0.
    """

    known: NDArray[np.float64]
    positives: NDArray[np.float64]
    predicted: NDArray[np.float64]
    hits: NDArray[np.float64]  # positives that are predicted
    predicted_top: NDArray[np.float64]  # entries among the TOP most probable classes of their image
    hits_top: NDArray[np.float64]
    num_images: NDArray[np.float64]  # those with a known entry
    f1: NDArray[np.float64]  # F1 of each image
    jaccard: NDArray[np.float64]  # Jaccard index of each image
    exact: NDArray[np.float64]  # 1 for an image with all known entries right
    gaps: NDArray[np.float64]  # (B, NUM_BINS): present - probability of the entries whose probability is in the bin


class Measured(NamedTuple):
    """Metrics of B resamples by name: those of `measure`, (B,), and those of each class, (B, C)."""

    overall: dict[str, NDArray[np.float64]]
    by_class: dict[str, NDArray[np.float64]]


class Resampled(NamedTuple):
    """A model's metrics on N images, and in B resamples of these."""

    value: Measured  # (1,) and (1, C)
    drawn: Measured  # (B,) and (B, C)
    tallies: Tallies  # of the images
    overcount: NDArray[np.float64]  # (C,) part of the AP that comes from counting a positive in its own precision


class Difference(NamedTuple):
    """What a metric of model b has more than that of model a: a float each, or (C,) where it is of each class."""

    value: Any  # b - a, on the images themselves
    low: Any  # ends of the 95 % interval
    high: Any
    p: Any  # two-sided: how probable so large a difference is where there is none; below .05 where 0 is left out


class Curve(NamedTuple):
    """Precision and recall of one class at K thresholds, the highest first: all (K,). K is 0 without positives."""

    predicted: NDArray[np.int64]  # entries with this threshold's score or a higher one
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def thin_out(self, most: int, predicted: int = 0) -> Curve:
        """The curve with about `most` of its points: the first, the last, and those around `predicted` entries.

        So the drawn curve still passes through the point of the threshold that predicts so many entries.
        """
        last = len(self.predicted) - 1
        if last < most:
            return self
        at = np.searchsorted(self.predicted, predicted)
        kept = np.unique([*np.linspace(0, last, most).astype(int), *np.clip([at - 1, at], 0, last)])
        return Curve(self.predicted[kept], self.precision[kept], self.recall[kept])


def rank_scores(scores: Floats, positives: Bools) -> Ranking:
    """Rank the scores (N,) of one class, float32 or float64 in 0...1; `positives` (N,) says which are of positives.

    Equal scores make one entry of the ranking, so the order of ties plays no role.
    """
    if not positives.any():  # most of ten thousand classes on few images
        return Ranking(scores[:0], *np.zeros((3, 0), dtype=np.int64))
    # Counting is faster than sorting. 0...1 is divided into RANK_STEPS steps, and only entries in a step with a
    # positive are sorted. Of the others it matters only how many lie above a score, which is counted by steps.
    step_of = (scores * RANK_STEPS).astype(np.int64)
    has_positive = np.zeros(RANK_STEPS + 1, dtype=bool)
    has_positive[step_of[positives]] = True
    to_sort = has_positive[step_of]
    num_unsorted = np.where(has_positive, 0, np.bincount(step_of, minlength=len(has_positive)))
    num_unsorted_from = num_unsorted[::-1].cumsum()[::-1]  # in this step and all higher ones

    # One sort of plain integers orders scores and labels together. Floats of 0 or more have the order of their bits
    # read as an integer. Their sign bit is 0; shifting the bits to the left drops it (that of -0.0, too) and makes
    # the lowest bit free for the label.
    integer = np.uint32 if scores.dtype == np.float32 else np.uint64
    packed = (scores[to_sort].view(integer) << integer(1)) | positives[to_sort]
    packed.sort()
    packed = packed[::-1]
    bits = packed >> integer(1)
    last_of_ties = np.flatnonzero(np.append(bits[1:] != bits[:-1], True)[: len(bits)])
    true_positives = np.cumsum(packed & integer(1), dtype=np.int64)[last_of_ties]
    gains = np.diff(true_positives, prepend=0) > 0  # the scores that a positive has
    distinct = bits[last_of_ties[gains]].view(scores.dtype)
    num_above = num_unsorted_from[(distinct * RANK_STEPS).astype(np.int64)]
    return Ranking(
        scores=distinct,
        true_positives=true_positives[gains],
        predicted=last_of_ties[gains] + 1 + num_above,
        above=np.append(0, last_of_ties[:-1] + 1)[gains] + num_above,
    )


def rank_classes(probabilities: ArrayLike, targets: ArrayLike) -> Iterator[Ranking]:
    """The `Ranking` of each class over its known entries, one class after the other.

    Raises InputError for probabilities outside 0...1 or shapes that differ.
    """
    for scores, present in read_known(*as_scores(probabilities, targets)):
        yield rank_scores(scores, present)


def average_precision(probabilities: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Average precision of each class, (C,) float64; NaN for a class without a positive.

    AP is the sum over ranks of (recall gained) x precision, with equal scores in one rank, as in scikit-learn. Raises
    InputError for probabilities outside 0...1 or shapes that differ.

        average_precision([[0.9, 0.2], [0.8, 0.3], [0.1, 0.4]], [[1, 0], [0, 0], [1, 0]])    # array([0.8333, nan])
    """
    return _measure_ap(probabilities, targets)[0]


def _measure_ap(probabilities: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """(2, C): `average_precision`, and how much of it comes from counting a positive in its own precision.

    Among entries as probable as a positive or more, that positive is always a hit; the precision of the others there
    says how often a new entry would be. With few positives AP is much higher than the AP of all that could be drawn.
    Of a positive with no other entry there nothing is known, and nothing is taken off.
    """
    result = []
    for _, true_positives, predicted, _ in rank_classes(probabilities, targets):
        if not len(true_positives):
            result.append((np.nan, np.nan))
            continue
        gained = np.diff(true_positives, prepend=0)
        precision = true_positives / predicted
        of_others = divide(true_positives - 1, predicted - 1, undefined=1.0)
        total = [(gained * values).sum() / true_positives[-1] for values in (precision, precision - of_others)]
        result.append(tuple(total))
    return np.array(result, dtype=np.float64).reshape(-1, 2).T


def precision_recall_curve(probabilities: ArrayLike, targets: ArrayLike) -> Iterator[Curve]:
    """The `Curve` of each class, one after the other, with all scores as thresholds.

    From a positive's score down to the next one's, recall stays and precision falls: of the scores between them only
    the lowest has a point, as with `drop_intermediate` of scikit-learn. The curve of a class without positives is
    empty. Raises InputError for probabilities outside 0...1 or shapes that differ.
    """
    for scores, present in read_known(*as_scores(probabilities, targets)):
        _, hits, predicted, above = rank_scores(scores, present)
        if not len(hits):
            yield Curve(predicted, *np.zeros((2, 0)))
            continue
        # at the lowest score above each positive's score, at that score, and at last at the lowest of all
        num_predicted = np.append(np.column_stack([above, predicted]), len(scores))
        num_hits = np.append(np.column_stack([np.append(0, hits[:-1]), hits]), hits[-1])
        is_new = np.diff(num_predicted, prepend=0) > 0
        num_predicted, num_hits = num_predicted[is_new], num_hits[is_new]
        yield Curve(num_predicted, num_hits / num_predicted, num_hits / hits[-1])


def measure(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, float]:
    """Every metric by its name; `predict` with these thresholds and limits says which classes an image gets.

        mAP                     mean AP over the `num_classes_in_mAP` classes that have positives; NaN if none has
        CP, CR, CF1             mean precision and mean recall over classes, and the harmonic mean of the two
        OP, OR, OF1             precision, recall and F1 of all entries pooled
        CP_top3 ... OF1_top3    these six with the 3 most probable classes of an image as predicted (Gong et al. 2014)
        f1_micro, f1_macro      F1 of all entries pooled; mean F1 over classes
        f1_weighted             mean F1 over classes, weighted by their positives
        f1_samples              mean F1 over images
        exact_match             share of images with all known entries right
        hamming_loss            share of wrong entries
        sample_accuracy         mean Jaccard index over images
        label_accuracy          mean over classes of the share of right entries
        ECE                     expected calibration error over all entries, in NUM_BINS bins (Naeini et al. 2015)

    Raises InputError for probabilities outside 0...1, shapes that differ, no images, or thresholds that are not
    one number or C.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    tallies = _tally(probabilities, targets, thresholds, min_labels, max_labels)
    measured = _measure_tallies(tallies, average_precision(probabilities, targets)[None])
    return {name: float(values[0]) for name, values in measured.overall.items()}


def measure_classes(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, NDArray]:
    """Numbers of each class, all (C,): positives, predicted, threshold, AP, P, R, F1, accuracy.

    `positives` and `predicted` count known entries, P is precision, R recall, and accuracy the share of right entries.
    Raises InputError as `measure` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    tallies = _tally(probabilities, targets, thresholds, min_labels, max_labels)
    measured = _measure_tallies(tallies, average_precision(probabilities, targets)[None])
    return {
        "positives": tallies.positives[0].astype(np.int64),
        "predicted": tallies.predicted[0].astype(np.int64),
        "threshold": np.broadcast_to(np.asarray(thresholds, dtype=np.float64), probabilities.shape[1]),
        **{name: measured.by_class[name][0] for name in CLASS_METRICS},
    }


def confusion(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> NDArray[np.int64]:
    """The confusion matrix of each class, (C, 2, 2): numbers of known entries, as scikit-learn arranges them.

        [[true negatives, false positives], [false negatives, true positives]]

    Raises InputError as `measure` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    thresholds = _spread_thresholds(thresholds, probabilities)
    counts = np.zeros((4, probabilities.shape[1]), dtype=np.int64)
    for rows in read_rows(probabilities):
        present, known = as_known(targets[rows])
        predicted = predict(probabilities[rows], thresholds[rows], min_labels, max_labels) & known
        counts += [entries.sum(axis=0) for entries in (known, present, predicted, predicted & present)]
    known, positives, predicted, hits = counts
    cells = known - positives - predicted + hits, predicted - hits, positives - hits, hits
    return np.stack(cells, axis=1).reshape(-1, 2, 2)


def confuse_classes(probabilities: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Which class images of each class are taken for, (C, C), where each image has one label and gets one.

    Row: the class that is there; column: the most probable one. The sum of the diagonal over all is the accuracy.
    Raises InputError as `measure` does, and for an image that has not exactly one label.

        confuse_classes([[0.9, 0.2], [0.6, 0.4]], [[1, 0], [0, 1]])    # [[1, 0], [1, 0]]
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    present, _ = as_known(targets)
    if (present.sum(axis=1) != 1).any():
        raise InputError(f"image {int(np.argmax(present.sum(axis=1) != 1))} has not exactly one label")
    predicted = predict(probabilities, 1.0, min_labels=1, max_labels=1)
    num_classes = probabilities.shape[1]
    pairs = present.argmax(axis=1) * num_classes + predicted.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def bootstrap(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
    min_labels: int = 0,
    max_labels: int = 0,
) -> tuple[dict[str, tuple[float, float]], dict[str, NDArray[np.float64]]]:
    """Confidence intervals of the metrics, as other images of the same kind would have been drawn (Efron 1979).

    Returns ({metric of `measure`: (low, high)}, {AP, P, R, F1, accuracy of `measure_classes`: (2, C) lows and highs});
    `num_classes_in_mAP` has none. They are `find_intervals` of `resample`. The same `seed` draws the same images.

    Raises InputError as `measure` does, for fewer than 2 resamples and a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"bootstrap: level {level} must be between 0 and 1")
    found = resample(probabilities, targets, thresholds, num_samples, seed, min_labels, max_labels)
    return find_intervals(found, level)


def resample(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    num_samples: int = 1000,
    seed: int = 0,
    min_labels: int = 0,
    max_labels: int = 0,
) -> Resampled:
    """The metrics on the images, and in `num_samples` resamples of N of the N images, drawn with replacement.

    Model and thresholds stay as they are. A resample may lack a class. Were it left out of the means over classes, or
    counted as 0, they would be means of something else, and all on one side of the metric. So it keeps there what it
    has on the images themselves. Raises InputError as `bootstrap` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    (found,) = _resample([(probabilities, thresholds)], targets, num_samples, seed, min_labels, max_labels)
    return found


def find_intervals(
    resampled: Resampled, level: float = LEVEL
) -> tuple[dict[str, tuple[float, float]], dict[str, NDArray[np.float64]]]:
    """What `bootstrap` returns, from the metrics in resamples.

    Every metric is a share, between 0 and 1, and has the score interval of a share (Wilson 1927): all shares v with

        |value - v| <= t sqrt(v (1 - v) / n)

    It contains the value, stays between 0 and 1, and is not empty at 0 and 1. t is Student's, of the number of images
    with a known entry less 1 degrees of freedom, and n the number of images on which a plain share would have the
    standard error of the resamples (Korn and Graubard 1998): for narrow intervals this is value ± t x standard error.

    Metrics of pooled entries (OP, OR, OF1, those ending in _top3, f1_micro, f1_weighted, hamming_loss) claim no more
    than Wilson's interval of these entries does: few of them lie in many images, and where all are right resamples
    show no error. An arm is as long as the longer of the two. With 3 labels predicted, all right, OP is .44 to 1.

    Of a class, P, R, and accuracy are plain shares of n = its predicted, its positive, and all entries; F1 is
    2 J / (1 + J), J the share of hits among the entries that are predicted or positive. AP has the standard error of
    the resamples, and t of its positives less 1.

    Resamples tell too little of means over classes with few positives: recall that is 1 on one positive is 1 in all of
    them. So each class adds to an arm of the interval, squared, by how much that of its own interval is longer than
    z x its standard error (MOVER: Zou and Donner 2008). The lower arm of mAP is longer by its `overcount`, too, since
    the value is too high by that. How often such intervals contain the truth: benchmarks/interval_coverage.py.

    Percentiles of the resamples, bias-corrected or not (BCa: Efron 1987; DiCiccio and Efron 1996), leave the value out
    where nearly all resamples lie on one side of it, and contain the truth less often where classes are rare: what
    resamples cannot show, no choice of their percentiles mends.
    """
    value, drawn, tallies, overcount = resampled
    t = find_t(level, tallies.num_images - 1)
    class_intervals = _find_class_intervals(resampled, level)
    added = _find_added_arms(resampled, class_intervals, level)
    of_entries = _find_entry_intervals(resampled, t)
    intervals = {}
    for name, values in value.overall.items():
        if name == "num_classes_in_mAP":
            continue
        ends = find_score_interval(values, _find_error(drawn.overall[name]), tallies.num_images, t)[:, 0]
        if name in of_entries:
            ends = np.array([min(ends[0], of_entries[name][0]), max(ends[1], of_entries[name][1])])
        arms = np.sqrt((ends - values) ** 2 + added.get(name, 0))
        if name == "mAP":
            arms[0] += np.nanmean(overcount) if (overcount >= 0).any() else np.nan
        intervals[name] = float(max(values[0] - arms[0], 0)), float(min(values[0] + arms[1], 1))
    return intervals, {name: class_intervals[name] for name in CLASS_METRICS}


def _find_class_intervals(resampled: Resampled, level: float) -> dict[str, NDArray[np.float64]]:
    """{metric of `_class_metrics_of`: (2, C) lows and highs}, as `find_intervals` says."""
    known, positives, predicted, hits, predicted_top, hits_top = (counts[0] for counts in resampled.tallies[:6])
    z = NormalDist().inv_cdf((1 + level) / 2)
    counts = {
        "P": (hits, predicted),
        "R": (hits, positives),
        "accuracy": (known - positives - predicted + 2 * hits, known),
        "P_top": (hits_top, predicted_top),
        "R_top": (hits_top, positives),
    }
    intervals = {name: _find_wilson_interval(divide(*pair), pair[1], z) for name, pair in counts.items()}
    concerned = positives + predicted - hits
    jaccard = _find_wilson_interval(divide(hits, concerned), concerned, z)
    intervals["F1"] = 2 * jaccard / (1 + jaccard)
    ap, error = resampled.value.by_class["AP"][0], _find_error(resampled.drawn.by_class["AP"])
    t = find_t(level, np.maximum(positives - 1, 1))  # one positive has no degree of freedom: with 1, t is 12.7
    effective = divide(ap * (1 - ap), error**2)
    intervals["AP"] = _find_wilson_interval(ap, np.where(effective > 0, effective, positives), t)
    return intervals


def _find_entry_intervals(resampled: Resampled, t: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """{metric of pooled entries: (2,) ends of the Wilson interval of as many entries, each drawn by itself}."""
    known, positives, predicted, hits, predicted_top, hits_top = (counts[0] for counts in resampled.tallies[:6])
    concerned, all_positives = positives + predicted - hits, positives.sum()
    counts = {
        "OP": predicted.sum(),
        "OR": all_positives,
        "OF1": concerned.sum(),
        "f1_micro": concerned.sum(),
        # a mean over classes, weighted by positives: as many entries as have its variance (Kish 1965)
        "f1_weighted": divide(all_positives**2, divide(positives**2, concerned).sum()),
        "hamming_loss": known.sum(),
        f"OP_top{TOP}": predicted_top.sum(),
        f"OR_top{TOP}": all_positives,
        f"OF1_top{TOP}": (positives + predicted_top - hits_top).sum(),
    }
    intervals = {}
    for name, num in counts.items():
        value = resampled.value.overall[name]
        if name in F1_OF_ENTRIES:
            jaccard = _find_wilson_interval(value / (2 - value), num, t)[:, 0]
            intervals[name] = 2 * jaccard / (1 + jaccard)
        else:
            intervals[name] = _find_wilson_interval(value, num, t)[:, 0]
    return intervals


def _find_added_arms(
    resampled: Resampled, class_intervals: Mapping[str, NDArray[np.float64]], level: float
) -> dict[str, NDArray[np.float64]]:
    """(2,) what the classes add to the squared arms below and above each mean over classes, by name."""
    value, drawn, tallies, _ = resampled
    z, num_classes = NormalDist().inv_cdf((1 + level) / 2), tallies.positives.shape[1]

    def average(name: str, counts: NDArray[np.bool_], total: int = num_classes) -> NDArray[np.float64]:
        longer = (class_intervals[name] - value.by_class[name]) ** 2 - (z * _find_error(drawn.by_class[name])) ** 2
        return np.maximum(longer[:, counts], 0).sum(axis=1) / max(total, 1) ** 2

    has_positives = tallies.positives[0] > 0
    has_ap = ~np.isnan(value.by_class["AP"][0])
    added = {
        "mAP": average("AP", has_ap, has_ap.sum()),
        "f1_macro": average("F1", has_positives),
        "label_accuracy": average("accuracy", tallies.known[0] > 0),
    }
    for ending, of_class, predicted in (("", "", tallies.predicted), (f"_top{TOP}", "_top", tallies.predicted_top)):
        cp, cr = value.overall[f"CP{ending}"], value.overall[f"CR{ending}"]
        of_cp, of_cr = average(f"P{of_class}", predicted[0] > 0), average(f"R{of_class}", has_positives)
        # derivatives of 2 CP CR / (CP + CR)
        by_cp, by_cr = (divide(2 * other**2, (cp + cr) ** 2) for other in (cr, cp))
        added |= {f"CP{ending}": of_cp, f"CR{ending}": of_cr, f"CF1{ending}": by_cp**2 * of_cp + by_cr**2 * of_cr}
    return added


def find_score_interval(
    share: NDArray[np.float64], error: NDArray[np.float64], num: ArrayLike, t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, K) ends of the score interval of K shares with these standard errors; of `num` images where an error is 0.

    `t` (K,) or (1,) says how many standard errors it reaches. See `find_intervals`.
    """
    effective = divide(share * (1 - share), error**2)
    return _find_wilson_interval(share, np.where(effective > 0, effective, num), t)


def _find_wilson_interval(
    share: NDArray[np.float64], num: ArrayLike, t: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, K) ends of Wilson's interval (1927) of K shares, of `num` each; 0 to 1 where that is 0."""
    width = divide(np.full_like(share, t**2), num, undefined=1 / TINY)
    middle = (share + width / 2) / (1 + width)
    half = np.sqrt(width * share * (1 - share) + width**2 / 4) / (1 + width)
    return np.stack((np.minimum(middle - half, share).clip(0), np.maximum(middle + half, share).clip(None, 1)))


def compare(
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    targets: ArrayLike,
    thresholds_a: float | ArrayLike,
    thresholds_b: float | ArrayLike,
    samples: int = 1000,
    seed: int = 0,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, Difference]:
    """How much better model b is than model a, {metric of `measure`: `Difference` of b - a}, paired over images.

    Each of `samples` resamples draws N of the N images with replacement, the same for both models. What makes an image
    hard for both is in both, so the interval of the difference is narrower than those of the two metrics. It is
    difference ± t x its standard deviation over the resamples, t Student's of N - 1 degrees of freedom (the standard
    interval of Efron and Tibshirani 1993, chapter 12); p is 1 - the level of the widest such interval that leaves out
    0. What rare classes add to the intervals of the two metrics (`find_intervals`) adds here, too, as far as the two do
    not correlate over the resamples (Zou and Donner 2008). A standard deviation counts as no less than difference /
    (N + 1): so much one more image without a difference would make. Metrics of pooled entries are of these where they
    are fewer than N: OP of the labels predicted, by the model with fewer, OR and F1 of the positives, hamming_loss of
    the known entries. One entry shows nothing: its interval is -1 to 1, its p 1. Images without a known entry do not
    count in N.

    Of `hamming_loss` and ECE a difference below 0 is the better one. The same `seed` draws the same images, those of
    `bootstrap`. p is of one comparison: of many, some are small by luck (`adjust_holm`).

        difference = compare(probabilities_a, probabilities_b, targets, 0.5, 0.4)["mAP"]
        is_better = difference.low > 0

    Raises InputError as `measure` does, and for fewer than 2 resamples.
    """
    a, b = _resample_both(
        probabilities_a, probabilities_b, targets, thresholds_a, thresholds_b, samples, seed, min_labels, max_labels
    )
    return subtract(a, b)


def compare_classes(
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    targets: ArrayLike,
    thresholds_a: float | ArrayLike,
    thresholds_b: float | ArrayLike,
    samples: int = 1000,
    seed: int = 0,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, Difference]:
    """`compare` for each class: {AP, P, R, F1, accuracy of `measure_classes`: `Difference` of (C,) numbers}.

    In place of the N images stand those that a metric is of: of AP, R and F1 the positives of the class, of P the
    entries that are predicted, by the model with fewer. So two positives show little, and one shows nothing: its
    interval is -1 to 1, its p 1. All are NaN for the AP of a class without a positive.
    """
    a, b = _resample_both(
        probabilities_a, probabilities_b, targets, thresholds_a, thresholds_b, samples, seed, min_labels, max_labels
    )
    return subtract_classes([a], [b])


def compare_groups(
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    targets: ArrayLike,
    thresholds_a: float | ArrayLike,
    thresholds_b: float | ArrayLike,
    samples: int = 1000,
    seed: int = 0,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, Difference]:
    """`compare` for models that were trained with several seeds: whether b is better than a with other seeds, too.

    `probabilities_a` is (S_a, N, C), `probabilities_b` (S_b, N, C), of the same N images. Thresholds are one number, or
    (S, C) with a row a seed. A difference is that of the two means over seeds. With one seed each it is `compare`.

    Both images and seeds vary, as in a hierarchical bootstrap (Davison and Hinkley 1997, section 3.8; Bouthillier et
    al. 2021). Images are drawn again, the same for all models. Seeds are not: drawn from three of them, their variance
    comes out a third too small. What they add is known without drawing, the unbiased variance s² / S of each mean. The
    interval is difference ± t x sqrt(variance over images + s_a² / S_a + s_b² / S_b), with t of the degrees of freedom
    of Welch (1947) and Satterthwaite (1946).

    Few seeds: s is then hardly known, and t is large: with two seeds each up to 12.7 in place of 1.96, with three 4.3,
    with five 2.8. So what is found is sound, but of small differences nothing is found. One seed says nothing of how
    much seeds matter: a group of one adds no variance, and the result is of this one model.

    Raises InputError as `compare` does.
    """
    groups = [_as_group(probabilities_a, thresholds_a, "a"), _as_group(probabilities_b, thresholds_b, "b")]
    checked = [as_scores(scores, targets, at_least=1) for group in groups for scores, _ in group]
    all_thresholds = [at for group in groups for _, at in group]
    models = [(scores, at) for (scores, _), at in zip(checked, all_thresholds, strict=True)]
    found = _resample(models, checked[0][1], samples, seed, min_labels, max_labels)
    return subtract_groups(found[: len(groups[0])], found[len(groups[0]) :])


def _as_group(probabilities: ArrayLike, thresholds: float | ArrayLike, name: str) -> list[tuple[NDArray, Any]]:
    """(probabilities (N, C), thresholds) of each seed."""
    scores, at = np.asarray(probabilities), np.asarray(thresholds)
    if scores.ndim != 3 or not len(scores):
        raise InputError(f"probabilities_{name} {scores.shape} must be of the shape (seeds, images, classes)")
    if at.ndim and (at.ndim != 2 or len(at) != len(scores)):
        raise InputError(f"thresholds_{name} {at.shape} must be one number, or (seeds, classes) of {len(scores)} seeds")
    return list(zip(scores, at if at.ndim else [at] * len(scores), strict=True))


def adjust_holm(p: ArrayLike) -> NDArray[np.float64]:
    """The p of K comparisons, (K,), so adjusted that they may be read as if there were one (Holm 1979).

    The smallest is multiplied by K, the next by K - 1, and so on; none comes out below a smaller one, or above 1. That
    there is no difference in any of those with an adjusted p below .05 has a probability of .05 at most. NaN stays NaN,
    and is not counted. Raises InputError for what is no probability.

        adjust_holm([0.01, 0.04, 0.03])    # array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p, dtype=np.float64)
    defined = np.flatnonzero(~np.isnan(p))
    if p.ndim != 1 or not ((p[defined] >= 0) & (p[defined] <= 1)).all():
        raise InputError(f"adjust_holm: {p.tolist()} are not p of one comparison each: (K,), between 0 and 1")
    order = defined[np.argsort(p[defined], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


def subtract(a: Resampled, b: Resampled, level: float = LEVEL) -> dict[str, Difference]:
    """{metric of `measure`: `Difference` of b - a}: of two models on the same resamples, as in `compare`.

    Or of one model on other images: then the two have to be resampled with different seeds, so that chance is not
    shared.
    """
    return subtract_groups([a], [b], level)


def subtract_groups(a: Sequence[Resampled], b: Sequence[Resampled], level: float = LEVEL) -> dict[str, Difference]:
    """{metric of `measure`: `Difference` of the mean over models b and that over models a}, as in `compare_groups`."""
    num_images = min(float(found.tallies.num_images[0]) for found in (*a, *b))
    nums = [_count_entries(found.tallies) for found in (*a, *b)]
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    arms_a, arms_b = (
        [_find_added_arms(found, _find_class_intervals(found, LEVEL), LEVEL) for found in group] for group in (a, b)
    )
    differences = {}
    for name in b[0].value.overall:
        if name == "num_classes_in_mAP":
            continue
        drawn_a, drawn_b = (np.mean([found.drawn.overall[name] for found in group], axis=0) for group in (a, b))
        added = [
            float(np.mean([arms[name].mean() / z**2 if name in arms else 0.0 for arms in each]))
            for each in (arms_a, arms_b)
        ]
        found = _subtract_means(
            [[one.value.overall[name] for one in group] for group in (a, b)],
            np.array([_find_variance(drawn_a, drawn_b, added)]),
            np.array([min(num_images, *(each.get(name, num_images) for each in nums))]),
            level,
        )
        differences[name] = Difference(*(float(numbers[0]) for numbers in found))
    return differences


def _count_entries(tallies: Tallies) -> dict[str, float]:
    """{metric of pooled entries: how many entries a difference in it is of}, for one model; as for each class."""
    known, positives, predicted, _, predicted_top, _ = (float(counts[0].sum()) for counts in tallies[:6])
    of_positives = ("OR", f"OR_top{TOP}", *F1_OF_ENTRIES)
    return {
        **dict.fromkeys(of_positives, positives),
        "OP": predicted,
        f"OP_top{TOP}": predicted_top,
        "hamming_loss": known,
    }


def subtract_classes(a: Sequence[Resampled], b: Sequence[Resampled], level: float = LEVEL) -> dict[str, Difference]:
    """`subtract_groups` for each class, as in `compare_classes`: {metric of CLASS_METRICS: `Difference` of (C,)}."""
    known, positives = (counts[0] for counts in a[0].tallies[:2])
    nums = {"P": np.min([found.tallies.predicted[0] for found in (*a, *b)], axis=0), "accuracy": known}
    differences = {}
    for name in CLASS_METRICS:
        drawn_a, drawn_b = (np.mean([found.drawn.by_class[name] for found in group], axis=0) for group in (a, b))
        differences[name] = _subtract_means(
            [[found.value.by_class[name][0] for found in group] for group in (a, b)],
            _find_error(drawn_b - drawn_a) ** 2,
            nums.get(name, positives),
            level,
        )
    return differences


def _subtract_means(
    values: Sequence[Sequence[NDArray[np.float64]]], variance: NDArray[np.float64], num: NDArray, level: float
) -> Difference:
    """The `Difference` of K metrics, the mean over models b less that over a, from (values a, values b), (K,) a model.

    `variance` (K,) is that of the differences over images, and `num` (K,) is of how many images each metric is.
    """
    means = [np.mean(group, axis=0) for group in values]
    seeds = [(np.var(group, axis=0, ddof=1) / len(group), len(group) - 1) for group in values if len(group) > 1]
    return _find_difference(means[1] - means[0], variance, num, seeds, level)


def _find_variance(drawn_a: NDArray[np.float64], drawn_b: NDArray[np.float64], added: Sequence[float]) -> float:
    """The variance of drawn_b - drawn_a, (B,) both, where the variances are `added` that they do not show.

    What is added correlates as what is drawn.
    """
    variances = drawn_a.var(ddof=1), drawn_b.var(ddof=1)
    shown = np.sqrt(variances[0] * variances[1])
    correlation = np.cov(drawn_a, drawn_b)[0, 1] / shown if shown > 0 else 0.0
    whole = np.sqrt((variances[0] + added[0]) * (variances[1] + added[1]))
    return float(max((drawn_b - drawn_a).var(ddof=1) + sum(added) - 2 * correlation * (whole - shown), 0))


def _find_difference(
    value: NDArray[np.float64],
    variance: NDArray[np.float64],
    num: NDArray,
    seeds: Sequence[tuple[NDArray[np.float64], int]] = (),
    level: float = LEVEL,
) -> Difference:
    """The `Difference` of each of K metrics from its value (K,), b - a, and the variance (K,) of that over images.

    `num` (K,) is of how many images each is; `seeds` are variances (K,) to add, and their degrees of freedom.
    """
    variance = np.maximum(variance, (value / (num + 1)) ** 2)
    degrees = np.maximum(num - 1, 0).astype(np.float64)
    if seeds:  # Welch (1947), Satterthwaite (1946)
        parts = [(variance, np.maximum(degrees, TINY)), *seeds]
        variance = np.sum([part for part, _ in parts], axis=0)
        degrees = divide(variance**2, sum(part**2 / count for part, count in parts), undefined=1.0)
    error = np.sqrt(variance)
    reach = np.where(num > 1, find_t(level, degrees) * error, 2)  # one image says nothing
    p = np.where(num > 1, find_p(divide(np.abs(value), error), degrees).clip(0, 1), 1)
    low, high = np.maximum(value - reach, -1), np.minimum(value + reach, 1)
    return Difference(value, low, high, np.where(np.isnan(value), np.nan, p))


def _find_error(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard errors (K,) of K metrics: their standard deviations over the resamples, (B, K) or (B,)."""
    error = drawn.reshape(len(drawn), -1).std(axis=0, ddof=1)
    return np.where(error < TINY, 0, error)  # sums in another order


def find_t(level: float, degrees: NDArray) -> NDArray[np.float64]:
    """The t (K,) between -t and t of which Student's distribution has `level`, with K `degrees` of freedom.

    A very large one where there are none: then nothing is known.

        find_t(0.95, np.array([2, 1000]))    # array([4.303, 1.962])
    """
    t = np.full(len(degrees), 1 / TINY)
    for count in np.unique(degrees[degrees > 0]):
        angles, outside = _integrate_student(float(count))
        t[degrees == count] = np.sqrt(count) * np.tan(np.interp(1 - level, outside[::-1], angles[::-1]))
    return t


def find_p(t: NDArray[np.float64], degrees: NDArray) -> NDArray[np.float64]:
    """The probability (K,) that Student's distribution is `t` (K,) or more away from 0; 1 with 0 degrees of freedom."""
    p = np.ones(len(t))
    for count in np.unique(degrees[degrees > 0]):
        angles, outside = _integrate_student(float(count))
        chosen = degrees == count
        p[chosen] = np.interp(np.arctan(t[chosen] / np.sqrt(count)), angles, outside)
    return p


@functools.lru_cache(maxsize=32)
def _integrate_student(degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles, rising from 0, and the probability that Student's t is sqrt(degrees) x tan(angle) or more away from 0.

    The density of the angle is cos(angle)^(degrees - 1), up to a factor.
    """
    angles = np.linspace(0, min(np.pi / 2, 12 / np.sqrt(degrees)), STUDENT_STEPS + 1)
    density = np.cos(angles) ** (degrees - 1)
    areas = density[1:] + density[:-1]
    outside = np.append(areas[::-1].cumsum()[::-1], 0)
    return angles, outside / outside[0]  # which the sum of the areas in another order would miss by a rounding


def _resample_both(
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    targets: ArrayLike,
    thresholds_a: float | ArrayLike,
    thresholds_b: float | ArrayLike,
    samples: int,
    seed: int,
    min_labels: int,
    max_labels: int,
) -> list[Resampled]:
    """Both models on the same resamples."""
    scores_a, targets = as_scores(probabilities_a, targets, at_least=1)
    scores_b, _ = as_scores(probabilities_b, targets)
    models = (scores_a, thresholds_a), (scores_b, thresholds_b)
    return _resample(models, targets, samples, seed, min_labels, max_labels)


def _resample(
    models: Sequence[tuple[Floats, float | ArrayLike]],
    targets: NDArray,
    num_samples: int,
    seed: int,
    min_labels: int,
    max_labels: int,
) -> list[Resampled]:
    """`resample` of each of `models`, (probabilities, thresholds), all on the same resamples."""
    if num_samples < 2:
        raise InputError(f"a bootstrap needs 2 resamples or more, not {num_samples}")
    num_images, num_classes = targets.shape
    rng = np.random.default_rng(seed)
    tallies = [_tally(scores, targets, at, min_labels, max_labels) for scores, at in models]
    aps = [_measure_ap(scores, targets) for scores, _ in models]
    values = [_measure_tallies(tally, ap[:1]) for tally, ap in zip(tallies, aps, strict=True)]
    chunks: list[list[Measured]] = [[] for _ in models]
    for chunk in _chunks(num_samples, max(1, RESAMPLED_AT_ONCE // max(num_images, 8 * num_classes))):
        # A resample is kept as how often it has each image, so no scores are copied, and what is computed for an image
        # serves all resamples of the chunk.
        counts = np.empty((num_images, chunk.stop - chunk.start), dtype=np.float32)
        for column in counts.T:
            column[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        for (scores, at), value, measured in zip(models, values, chunks, strict=True):
            ap = np.stack([_resample_ap(*entries, counts) for entries in read_classes(scores, targets)], axis=1)
            drawn = _tally(scores, targets, at, min_labels, max_labels, counts)
            measured.append(_measure_tallies(drawn, ap, value.by_class))
    return [
        Resampled(value, Measured(*(_join([part[kind] for part in measured]) for kind in (0, 1))), tally, ap[1])
        for value, measured, tally, ap in zip(values, chunks, tallies, aps, strict=True)
    ]


def _join(chunks: list[dict[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """The values of all resamples by name, from those of each chunk of resamples."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def predict(probabilities: ArrayLike, thresholds: float | ArrayLike, min_labels: int = 0, max_labels: int = 0) -> Bools:
    """Which classes each image gets, (N, C) bool: those with `probability >= threshold`.

    The comparison is in the precision of the probabilities; what is neither float32 nor float64 becomes float32 first.
    An image with fewer than `min_labels` classes also gets its most probable others, up to that number. An image with
    more than `max_labels` (0 means no limit) keeps its most probable ones. Of equally probable classes the first is
    taken.

        predict([[0.9, 0.2], [0.3, 0.1]], 0.5, min_labels=1)    # [[True, False], [True, False]]
    """
    probabilities = _as_floats(probabilities)
    predicted = probabilities >= np.asarray(thresholds, dtype=probabilities.dtype)
    if min_labels or max_labels:
        counts = predicted.sum(axis=1)
        too_few = np.flatnonzero(counts < min_labels)
        if len(too_few):  # 2 is above every probability: what is predicted stays
            predicted[too_few] = _find_top(np.where(predicted[too_few], 2, probabilities[too_few]), min_labels)
        too_many = np.flatnonzero(counts > max_labels) if max_labels else []
        if len(too_many):  # -1 is below every probability: nothing is added
            predicted[too_many] = _find_top(np.where(predicted[too_many], probabilities[too_many], -1), max_labels)
    return predicted


def f_beta_of(hits: ArrayLike, predicted: ArrayLike, present: ArrayLike, beta: float = 1.0) -> NDArray[np.float64]:
    """F-beta of counts, elementwise: (1 + beta²) hits / (predicted + beta² present) (van Rijsbergen 1979).

    Recall counts `beta` times as much as precision. The result is 0 where nothing is predicted or present.
    """
    return divide((1 + beta**2) * np.asarray(hits), np.asarray(predicted) + beta**2 * np.asarray(present))


def as_known(targets: ArrayLike) -> tuple[Bools, Bools]:
    """(present, known) of targets (N, C) that are 1, 0, and -1 or NaN for unknown: both (N, C) bool."""
    targets = np.asarray(targets)
    return targets == 1, targets >= 0  # NaN >= 0 is False


def as_scores(probabilities: ArrayLike, targets: ArrayLike, at_least: int = 0) -> tuple[Floats, NDArray]:
    """Return both as arrays (N, C); the probabilities are float32 or float64.

    Raises InputError for shapes that differ, fewer than `at_least` images, and probabilities outside 0...1.
    """
    probabilities, targets = _as_floats(probabilities), np.asarray(targets)
    if probabilities.ndim != 2 or probabilities.shape != targets.shape or not probabilities.shape[1]:
        raise InputError(f"probabilities {probabilities.shape} and targets {targets.shape} must be of one shape (N, C)")
    if len(probabilities) < at_least:
        raise InputError("there are no images to measure: probabilities and targets are empty")
    # A NaN makes minimum and maximum NaN, and NaN >= 0 is False.
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise InputError("probabilities must lie in 0...1: a NaN, or logits in their place?")
    return probabilities, targets


def _as_floats(probabilities: ArrayLike) -> Floats:
    """The same as an array of float32 or float64: what is neither becomes float32."""
    probabilities = np.asarray(probabilities)
    return probabilities if probabilities.dtype in (np.float32, np.float64) else probabilities.astype(np.float32)


def read_classes(probabilities: Floats, targets: NDArray) -> Iterator[tuple[Floats, Bools, Bools]]:
    """(scores, present, known) of each class, one class after the other: all (N,) and contiguous.

    CLASSES_AT_ONCE columns are copied together: a row's scores of these classes lie in the same cache line.
    """
    for classes in _chunks(probabilities.shape[1], CLASSES_AT_ONCE):
        scores, block = (np.ascontiguousarray(matrix[:, classes].T) for matrix in (probabilities, targets))
        yield from zip(scores, *as_known(block), strict=True)


def read_known(probabilities: Floats, targets: NDArray) -> Iterator[tuple[Floats, Bools]]:
    """(scores, present) of the known entries of each class, one class after the other."""
    for scores, present, known in read_classes(probabilities, targets):
        if known.all():  # no copy then
            yield scores, present
        else:
            yield scores[known], present[known]


def read_rows(probabilities: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows, one after the other, that hold about ENTRIES_AT_ONCE entries each."""
    return _chunks(len(probabilities), max(1, ENTRIES_AT_ONCE // max(1, probabilities.shape[1])))


def find_bins(probabilities: Floats) -> NDArray[np.int64]:
    """The bin of each probability, 0 to NUM_BINS - 1, all of equal width.

    An edge belongs to the lower bin, as in scikit-learn.
    """
    # The product of a float32 probability and NUM_BINS is exact in float64.
    return np.maximum(np.ceil(probabilities * np.float64(NUM_BINS)).astype(np.int64), 1) - 1


def divide(numerator: ArrayLike, denominator: ArrayLike, undefined: ArrayLike = 0.0) -> NDArray[np.float64]:
    """Elementwise division, in float64; the result is `undefined`, one number or more, where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full_like(numerator, undefined), where=denominator != 0)


def _chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of `size` that make up 0...total; the last one may be shorter."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _tally(
    probabilities: Floats,
    targets: NDArray,
    thresholds: float | ArrayLike,
    min_labels: int,
    max_labels: int,
    counts: NDArray[np.float32] | None = None,
) -> Tallies:
    """Sum over the images; `counts` (N, B) says how often each image is in each resample, None: all of them once.

    Everything about an image is one row of numbers; `counts`.T @ rows sums it for all resamples in one matrix product.
    Sums of whole numbers are exact in float64, so the order of adding does not matter.
    """
    num_classes = probabilities.shape[1]
    thresholds = _spread_thresholds(thresholds, probabilities)
    counts = np.ones((len(probabilities), 1), dtype=np.float32) if counts is None else counts
    sums = np.zeros((counts.shape[1], 6 * num_classes + 4 + NUM_BINS))
    for rows in read_rows(probabilities):
        scores = probabilities[rows]
        present, known = as_known(targets[rows])
        predicted = predict(scores, thresholds[rows], min_labels, max_labels) & known
        top = _find_top(scores.copy(), TOP) & known
        hit = predicted & present
        by_class = np.concatenate((known, present, predicted, hit, top, top & present), axis=1, dtype=np.float64)
        positives, guesses, hits = (entries.sum(axis=1) for entries in (present, predicted, hit))
        jaccard = divide(hits, positives + guesses - hits)
        has_known = known.any(axis=1)
        exact = (hits == guesses) & (hits == positives) & has_known
        by_image = np.stack((has_known, f_beta_of(hits, guesses, positives), jaccard, exact), axis=1)
        # One bincount for all images: each image has NUM_BINS bins of its own.
        bins = find_bins(scores) + NUM_BINS * np.arange(len(scores))[:, None]
        gaps = (present - scores.astype(np.float64)) * known
        gaps_by_bin = np.bincount(bins.ravel(), gaps.ravel(), len(scores) * NUM_BINS).reshape(-1, NUM_BINS)
        sums += counts[rows].T.astype(np.float64) @ np.concatenate((by_class, by_image, gaps_by_bin), axis=1)
    by_class, by_image, gaps = np.split(sums, (6 * num_classes, 6 * num_classes + 4), axis=1)
    known, positives, predicted, hits, predicted_top, hits_top = np.split(by_class, 6, axis=1)
    num_images, f1, jaccard, exact = by_image.T
    return Tallies(
        known=known,
        positives=positives,
        predicted=predicted,
        hits=hits,
        predicted_top=predicted_top,
        hits_top=hits_top,
        num_images=num_images,
        f1=f1,
        jaccard=jaccard,
        exact=exact,
        gaps=gaps,
    )


def _spread_thresholds(thresholds: float | ArrayLike, probabilities: Floats) -> Floats:
    """Thresholds (N, C) from one number, (C,), or (N, C). Raises InputError for another shape or a NaN."""
    thresholds, num_classes = np.asarray(thresholds), probabilities.shape[1]
    if thresholds.shape[-1:] not in ((), (1,), (num_classes,)) or np.isnan(thresholds).any():
        raise InputError(
            f"thresholds must be one number or {num_classes}, one a class: found {thresholds.shape} or a NaN"
        )
    return np.broadcast_to(thresholds, probabilities.shape)


def _find_top(scores: Floats, count: int) -> Bools:
    """Mark the `count` largest scores of each row, (N, C) bool; of equal ones the first. Overwrites `scores`.

    For the few classes that are asked for, `argmax` again and again is faster than sorting the rows.
    """
    images, top = np.arange(len(scores)), np.zeros(scores.shape, dtype=bool)
    for _ in range(min(count, scores.shape[1])):
        largest = scores.argmax(axis=1)
        top[images, largest] = True
        scores[images, largest] = -2
    return top


def _measure_tallies(
    tallies: Tallies, ap: NDArray[np.float64], kept: Mapping[str, NDArray[np.float64]] | None = None
) -> Measured:
    """Every metric from the tallies and the AP (B, C). `kept`: those of each class, (1, C), as `_class_metrics_of`."""
    by_class = _class_metrics_of(tallies, ap, kept)
    return Measured(_metrics_of(tallies, by_class), by_class)


def _metrics_of(tallies: Tallies, by_class: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Every metric of `measure`, (B,) each, from the tallies and the metrics of each class (B, C)."""
    positives, predicted, hits, num_images = tallies.positives, tallies.predicted, tallies.hits, tallies.num_images
    num_known, num_positives, num_predicted, num_hits = (values.sum(axis=1) for values in tallies[:4])
    ap, f1 = by_class["AP"], by_class["F1"]
    in_map = ~np.isnan(ap)
    averages = _averages_of(by_class["P"], by_class["R"], hits, predicted, positives)
    averages_top = _averages_of(
        by_class["P_top"], by_class["R_top"], tallies.hits_top, tallies.predicted_top, positives
    )
    return {
        "mAP": divide(np.where(in_map, ap, 0).sum(axis=1), in_map.sum(axis=1), undefined=np.nan),
        "num_classes_in_mAP": in_map.sum(axis=1),
        **averages,
        **{f"{name}_top{TOP}": values for name, values in averages_top.items()},
        "f1_micro": f_beta_of(num_hits, num_predicted, num_positives),
        "f1_macro": f1.mean(axis=1),
        "f1_weighted": divide((f1 * positives).sum(axis=1), num_positives),
        "f1_samples": divide(tallies.f1, num_images),
        "exact_match": divide(tallies.exact, num_images),
        "hamming_loss": divide(num_positives + num_predicted - 2 * num_hits, num_known),
        "sample_accuracy": divide(tallies.jaccard, num_images),
        "label_accuracy": by_class["accuracy"].mean(axis=1),
        "ECE": divide(np.abs(tallies.gaps).sum(axis=1), num_known),
    }


def _averages_of(
    class_precision: NDArray[np.float64],
    class_recall: NDArray[np.float64],
    hits: NDArray[np.float64],
    predicted: NDArray[np.float64],
    positives: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 over classes (C...) and over all entries (O...), (B,) each, all from (B, C)."""
    mean_precision, mean_recall = class_precision.mean(axis=1), class_recall.mean(axis=1)
    num_hits, num_predicted, num_positives = hits.sum(axis=1), predicted.sum(axis=1), positives.sum(axis=1)
    return {
        "CP": mean_precision,
        "CR": mean_recall,
        "CF1": divide(2 * mean_precision * mean_recall, mean_precision + mean_recall),
        "OP": divide(num_hits, num_predicted),
        "OR": divide(num_hits, num_positives),
        "OF1": f_beta_of(num_hits, num_predicted, num_positives),
    }


def _class_metrics_of(
    tallies: Tallies, ap: NDArray[np.float64], kept: Mapping[str, NDArray[np.float64]] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Every metric of a class, (B, C) each, from the tallies and the AP (B, C): CLASS_METRICS, P_top and R_top.

    A resample may have drawn no positive of a class, or nothing that is predicted as it. The class then has there what
    it has on the images themselves, which is `kept` (1, C). Without `kept` AP is NaN then, and the others are 0.
    """
    known, positives, predicted, hits, predicted_top, hits_top = tallies[:6]
    counts = {
        "P": (hits, predicted),
        "R": (hits, positives),
        "F1": (2 * hits, np.where(positives > 0, positives + predicted, 0)),
        "accuracy": (known - positives - predicted + 2 * hits, known),
        "P_top": (hits_top, predicted_top),
        "R_top": (hits_top, positives),
    }
    return {
        "AP": ap if kept is None else np.where(np.isnan(ap), kept["AP"], ap),
        **{
            name: divide(numerator, denominator, undefined=0.0 if kept is None else kept[name])
            for name, (numerator, denominator) in counts.items()
        },
    }


def _resample_ap(scores: Floats, present: Bools, known: Bools, counts: NDArray[np.float32]) -> NDArray[np.float64]:
    """AP (B,) of one class in B resamples, from its entries (N,); NaN for a resample without a positive of it.

    `counts` (N, B) says how often each image is in each resample. Sorting every resample would be slow. But the order
    of the images is the same in all of them, and precision only matters at the scores that positives have. So the
    images are sorted once and taken a block after the other; a product of matrices counts those of a block.
    """
    total, hits_before, entries_before = (np.zeros(counts.shape[1]) for _ in range(3))
    positives = np.flatnonzero(present)
    if not len(positives):
        return np.full(len(total), np.nan)
    ranked = np.flatnonzero(known & (scores >= scores[positives].min()))  # below these there is no positive
    ranked = ranked[np.argsort(-scores[ranked])]
    # Precision is asked for where the entries end that have the score of a positive, all of them.
    ends = np.searchsorted(-scores[ranked], np.unique(-scores[positives]), side="right")
    hits_so_far = hits_before  # up to the last such end; of equal scores, some may lie in the next block
    for block in _chunks(len(ranked), RANKED_AT_ONCE):
        images, first, last = ranked[block], *np.searchsorted(ends, (block.start, block.stop), side="right")
        drawn = counts[images]
        is_hit = present[images]
        if first < last:
            is_before = np.arange(block.start, block.stop) < ends[first:last, None]  # (ends, images)
            entries = entries_before + is_before.astype(np.float32) @ drawn
            hits = hits_before + (is_before & is_hit).astype(np.float32) @ drawn
            gained = np.diff(hits, axis=0, prepend=hits_so_far[None])
            total += (gained * hits / np.maximum(entries, 1)).sum(axis=0)  # gained is 0 where there are no entries
            hits_so_far = hits[-1]
        entries_before = entries_before + drawn.sum(axis=0)
        hits_before = hits_before + is_hit.astype(np.float32) @ drawn
    return divide(total, hits_before, undefined=np.nan)
