"""Numbers from scores: pure functions of probabilities (N, C) and targets (N, C).

Probabilities lie in 0...1; a target is 1 present, 0 absent, -1 or NaN unknown. Unknown entries count nowhere.
`predict` decides which classes an image has. Definitions: scikit-learn's where it has them, with 0 for 0 / 0.
Work goes by blocks of rows or of classes, so that a million rows of 80 classes need little more than themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils import InputError

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

ENTRIES_AT_ONCE = 2**16  # of rows taken together: their temporary copies stay in a core's cache
CLASSES_AT_ONCE = 16  # a cache line of float32 scores: reading one class reads them all
RANK_STEPS = 2**14  # a power of two, so that score x RANK_STEPS is exact
RESAMPLED_AT_ONCE = 2**25  # resamples x images whose counts, 8 bytes each, are held together
TOP = 3  # classes an image that the metrics ending in _top3 take as predicted
NUM_BINS = 15  # of equal width, for calibration: as Guo et al. (2017)


class Ranking(NamedTuple):
    """The distinct scores of one class's positives, highest first, and what predicting down to each gives: all (K,)."""

    scores: Floats
    true_positives: NDArray[np.int64]
    predicted: NDArray[np.int64]


class Tallies(NamedTuple):
    """Sums over the images of B resamples: (B, C) of each class's known entries, (B,) of what each image has."""

    known: NDArray[np.float64]
    positives: NDArray[np.float64]
    predicted: NDArray[np.float64]
    hits: NDArray[np.float64]
    predicted_top: NDArray[np.float64]  # among the TOP most probable classes of their image
    hits_top: NDArray[np.float64]
    num_images: int  # in each resample
    f1: NDArray[np.float64]  # of images
    jaccard: NDArray[np.float64]
    exact: NDArray[np.float64]
    gaps: NDArray[np.float64]  # (B, NUM_BINS): present - probability, by bin of the probability


class Curve(NamedTuple):
    """Precision and recall of one class when it is predicted from each of K thresholds on, highest first: all (K,)."""

    thresholds: Floats
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def rank_scores(scores: Floats, positives: Bools) -> Ranking:
    """Rank (N,) scores with their (N,) labels. Equal scores make one entry, so ties have no order.

    Counting is cheaper than sorting: only entries in a step of 1 / RANK_STEPS that has a positive are sorted.
    There a float of 0 or more sorts as its bits do, and the sign bit is free (-0.0 loses it): the label goes into the
    lowest bit of the shifted score, and one sort of plain integers orders both.
    """
    step = (scores * RANK_STEPS).astype(np.int64)
    has_positive = np.zeros(RANK_STEPS + 1, dtype=bool)
    has_positive[step[positives]] = True
    near = has_positive[step]
    elsewhere = np.where(has_positive, 0, np.bincount(step, minlength=len(has_positive)))
    above = elsewhere[::-1].cumsum()[::-1]

    integer = np.uint32 if scores.dtype == np.float32 else np.uint64
    packed = (scores[near].view(integer) << integer(1)) | positives[near]
    packed.sort()
    packed = packed[::-1]
    bits = packed >> integer(1)
    last = np.flatnonzero(np.append(bits[1:] != bits[:-1], True)[: len(bits)])
    true_positives = np.cumsum(packed & integer(1), dtype=np.int64)[last]
    gains = np.diff(true_positives, prepend=0) > 0
    distinct = bits[last[gains]].view(scores.dtype)
    return Ranking(distinct, true_positives[gains], last[gains] + 1 + above[(distinct * RANK_STEPS).astype(np.int64)])


def rank_classes(probabilities: ArrayLike, targets: ArrayLike) -> Iterator[Ranking]:
    """`rank` of each class over its known entries, one at a time. Raises InputError for scores outside 0...1."""
    for scores, present in read_known(*as_scores(probabilities, targets)):
        yield rank_scores(scores, present)


def average_precision(probabilities: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """(C,) AP = sum over ranks of (recall gained) x precision; NaN where a class has no positive."""
    result = []
    for _, true_positives, predicted in rank_classes(probabilities, targets):
        gained = np.diff(true_positives, prepend=0)
        summed = (gained * true_positives / predicted).sum()
        result.append(summed / true_positives[-1] if len(true_positives) else np.nan)
    return np.array(result, dtype=np.float64)


def precision_recall_curve(probabilities: ArrayLike, targets: ArrayLike) -> Iterator[Curve]:
    """The `Curve` of each class at the scores of its positives; in between, recall stays and precision falls.

    Empty for a class without positives. Raises as `rank_classes` does.
    """
    for scores, true_positives, predicted in rank_classes(probabilities, targets):
        yield Curve(scores, true_positives / predicted, true_positives / true_positives[-1:])


def measure(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, float]:
    """Every metric by its name, for what `predict` makes of the probabilities.

    mAP is the mean over the `num_classes_in_mAP` classes that have positives (NaN if none has). CP, CR: mean
    precision, recall over classes, CF1 their harmonic mean; OP, OR, OF1: the same of all entries pooled. Those ending
    in _top3 take each image's 3 most probable classes as predicted (Gong et al. 2014), all where there are fewer.
    sample_accuracy: mean Jaccard index of the images; label_accuracy: mean over classes of the share of right entries.
    ECE: the expected calibration error over all entries (Naeini et al. 2015), in NUM_BINS bins of equal width.
    Raises InputError for scores outside 0...1, shapes that differ, or no images.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    tallies = _tally(probabilities, targets, thresholds, min_labels, max_labels)
    measured = _metrics_of(tallies, average_precision(probabilities, targets)[None])
    return {name: float(values[0]) for name, values in measured.items()}


def measure_classes(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> dict[str, NDArray]:
    """(C,) each: a class's positives, how often it is predicted, threshold, AP, P, R, F1 and accuracy.

    Accuracy is the share of right entries. `thresholds` are one number or (C,). Raises as `measure` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    tallies = _tally(probabilities, targets, thresholds, min_labels, max_labels)
    measured = _class_metrics_of(tallies, average_precision(probabilities, targets)[None])
    return {
        "positives": tallies.positives[0].astype(np.int64),
        "predicted": tallies.predicted[0].astype(np.int64),
        "threshold": np.broadcast_to(np.asarray(thresholds, dtype=np.float64), probabilities.shape[1]),
        **{name: values[0] for name, values in measured.items()},
    }


def confusion(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> NDArray[np.int64]:
    """(C, 2, 2) numbers of entries, [[true negatives, false positives], [false negatives, true positives]].

    Raises as `measure` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    thresholds = _spread_thresholds(thresholds, probabilities)
    sums = np.zeros((4, probabilities.shape[1]), dtype=np.int64)
    for rows in read_rows(probabilities):
        present, known = as_known(targets[rows])
        predicted = predict(probabilities[rows], thresholds[rows], min_labels, max_labels) & known
        sums += [entries.sum(axis=0) for entries in (known, present, predicted, predicted & present)]
    known, positives, predicted, hits = sums
    entries = known - positives - predicted + hits, predicted - hits, positives - hits, hits
    return np.stack(entries, axis=1).reshape(-1, 2, 2)


def bootstrap(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    min_labels: int = 0,
    max_labels: int = 0,
) -> tuple[dict[str, tuple[float, float]], dict[str, NDArray[np.float64]]]:
    """(low, high) of every metric of `measure`; (2, C) lows and highs of AP, P, R, F1, accuracy of `measure_classes`.

    They are the middle `level` of the values over resampled images. Each of `num_samples` resamples draws N images
    with replacement (Efron 1979, percentile intervals); the model and the thresholds stay. A class without a positive
    in a resample has no part in that one's mAP, and a resample without any has none in mAP's interval, which is NaN
    where no resample has one. Raises as `measure` does.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    if num_samples < 1 or not 0 < level < 1:
        raise InputError(f"bootstrap: num_samples {num_samples} must be 1 or more, level {level} between 0 and 1")
    num_images = len(probabilities)
    rng = np.random.default_rng(seed)
    parts = []
    for chunk in _chunks(num_samples, max(1, RESAMPLED_AT_ONCE // num_images)):
        counts = np.empty((chunk.stop - chunk.start, num_images))
        for row in counts:
            row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        ap = np.stack([_resample_ap(*entries, counts) for entries in read_classes(probabilities, targets)], axis=1)
        tallies = _tally(probabilities, targets, thresholds, min_labels, max_labels, counts)
        parts.append((_metrics_of(tallies, ap), _class_metrics_of(tallies, ap)))
    ends = (1 - level) / 2, (1 + level) / 2

    def find_ends(values: NDArray[np.float64]) -> NDArray[np.float64]:
        values = values[~np.isnan(values)]
        return np.quantile(values, ends) if len(values) else np.full(2, np.nan)

    whole, by_class = (
        {name: np.concatenate([values[name] for values in resampled]) for name in resampled[0]}
        for resampled in zip(*parts, strict=True)
    )
    intervals = {name: find_ends(values) for name, values in whole.items()}
    return (
        {name: (float(low), float(high)) for name, (low, high) in intervals.items()},
        {name: np.stack([find_ends(column) for column in each.T], axis=1) for name, each in by_class.items()},
    )


def predict(probabilities: ArrayLike, thresholds: float | ArrayLike, min_labels: int = 0, max_labels: int = 0) -> Bools:
    """(N, C) `probability >= threshold`, compared in the precision of the probabilities.

    An image with fewer than `min_labels` gets its most probable other classes besides, one with more than
    `max_labels` (0: no limit) keeps its most probable ones: of equal ones the first.
    """
    probabilities = np.asarray(probabilities)
    predicted = probabilities >= np.asarray(thresholds, dtype=probabilities.dtype)
    counts = predicted.sum(axis=1) if min_labels or max_labels else np.zeros(0, dtype=np.int64)
    few = np.flatnonzero(counts < min_labels)
    if len(few):
        predicted[few] = _find_top(np.where(predicted[few], 2, probabilities[few]), min_labels)
    many = np.flatnonzero(counts > max_labels) if max_labels else few[:0]
    if len(many):
        predicted[many] = _find_top(np.where(predicted[many], probabilities[many], -1), max_labels)
    return predicted


def f_beta_of(hits: ArrayLike, predicted: ArrayLike, present: ArrayLike, beta: float = 1.0) -> NDArray[np.float64]:
    """(1 + beta²) TP / (predicted + beta² present), elementwise; 0 where nothing is predicted or present.

    Recall counts beta times as much as precision (van Rijsbergen 1979).
    """
    return divide((1 + beta**2) * np.asarray(hits), np.asarray(predicted) + beta**2 * np.asarray(present))


def as_known(targets: ArrayLike) -> tuple[Bools, Bools]:
    """(present, known), both (N, C), of a matrix of 1, 0 and -1 or NaN."""
    targets = np.asarray(targets)
    return targets == 1, targets >= 0  # NaN >= 0 is False


def as_scores(probabilities: ArrayLike, targets: ArrayLike, at_least: int = 0) -> tuple[Floats, NDArray]:
    """Both as arrays (N, C), N `at_least` so many; probabilities float32 or float64. Raises InputError."""
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    if probabilities.dtype not in (np.float32, np.float64):
        probabilities = probabilities.astype(np.float32)
    if probabilities.ndim != 2 or probabilities.shape != targets.shape or not probabilities.shape[1]:
        raise InputError(f"probabilities {probabilities.shape} and targets {targets.shape} must be of one shape (N, C)")
    if len(probabilities) < at_least:
        raise InputError("there are no images to measure: probabilities and targets are empty")
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):  # a NaN makes both NaN
        raise InputError("probabilities must lie in 0...1: a NaN, or logits in their place?")
    return probabilities, targets


def read_classes(probabilities: Floats, targets: NDArray) -> Iterator[tuple[Floats, Bools, Bools]]:
    """(scores, present, known) of each class, all (N,) and contiguous."""
    for classes in _chunks(probabilities.shape[1], CLASSES_AT_ONCE):
        scores, block = (np.ascontiguousarray(matrix[:, classes].T) for matrix in (probabilities, targets))
        yield from zip(scores, *as_known(block), strict=True)


def read_known(probabilities: Floats, targets: NDArray) -> Iterator[tuple[Floats, Bools]]:
    """(scores, present) of each class's known entries."""
    for scores, present, known in read_classes(probabilities, targets):
        yield (scores, present) if known.all() else (scores[known], present[known])


def read_rows(probabilities: Floats) -> Iterator[slice]:
    """Slices of rows that hold about ENTRIES_AT_ONCE entries each."""
    return _chunks(len(probabilities), max(1, ENTRIES_AT_ONCE // max(1, probabilities.shape[1])))


def find_bins(probabilities: Floats) -> NDArray[np.int64]:
    """Which of NUM_BINS bins of equal width each lies in, 0 on; on an edge, the lower one, as scikit-learn has it."""
    # exact in float64 for float32 probabilities
    return np.maximum(np.ceil(probabilities * np.float64(NUM_BINS)).astype(np.int64), 1) - 1


def divide(numerator: ArrayLike, denominator: ArrayLike, nothing: float = 0.0) -> NDArray[np.float64]:
    """Elementwise division in which 0 / 0 is `nothing`."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full_like(numerator, nothing), where=denominator != 0)


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _tally(
    probabilities: Floats,
    targets: NDArray,
    thresholds: float | ArrayLike,
    min_labels: int,
    max_labels: int,
    counts: NDArray[np.float64] | None = None,
) -> Tallies:
    """Sums over images, each taken (B, N) `counts` times, by default once. Of whole numbers they are exact."""
    num_images, num_classes = probabilities.shape
    thresholds = _spread_thresholds(thresholds, probabilities)
    counts = np.ones((1, num_images)) if counts is None else counts
    sums = np.zeros((len(counts), 6 * num_classes + 3 + NUM_BINS))
    for rows in read_rows(probabilities):
        scores = probabilities[rows]
        present, known = as_known(targets[rows])
        predicted = predict(scores, thresholds[rows], min_labels, max_labels) & known
        top = _find_top(scores.copy(), TOP) & known
        hit = predicted & present
        by_class = np.concatenate((known, present, predicted, hit, top, top & present), axis=1, dtype=np.float64)
        positives, guesses, hits = (entries.sum(axis=1) for entries in (present, predicted, hit))
        jaccard = divide(hits, positives + guesses - hits)
        exact = (hits == guesses) & (hits == positives)
        by_image = np.stack((f_beta_of(hits, guesses, positives), jaccard, exact), axis=1)
        bins = find_bins(scores) + NUM_BINS * np.arange(len(scores))[:, None]
        gaps = np.bincount(
            bins.ravel(), ((present - scores.astype(np.float64)) * known).ravel(), len(scores) * NUM_BINS
        )
        sums += counts[:, rows] @ np.concatenate((by_class, by_image, gaps.reshape(-1, NUM_BINS)), axis=1)
    by_class = np.moveaxis(sums[:, : 6 * num_classes].reshape(len(sums), 6, -1), 1, 0)
    f1, jaccard, exact, *gaps = sums[:, 6 * num_classes :].T
    gaps = np.stack(gaps, axis=1)
    return Tallies(*by_class, num_images=num_images, f1=f1, jaccard=jaccard, exact=exact, gaps=gaps)


def _spread_thresholds(thresholds: float | ArrayLike, probabilities: Floats) -> Floats:
    """(N, C) thresholds, of one number or (C,) one a class."""
    thresholds, num_classes = np.asarray(thresholds), probabilities.shape[1]
    if thresholds.shape[-1:] not in ((), (1,), (num_classes,)) or np.isnan(thresholds).any():
        raise InputError(
            f"thresholds must be one number or {num_classes}, one a class: found {thresholds.shape} or a NaN"
        )
    return np.broadcast_to(thresholds, probabilities.shape)


def _find_top(scores: Floats, count: int) -> Bools:
    """(N, C) whether each is one of the `count` largest of its row, of equal ones the first. Overwrites `scores`."""
    images, top = np.arange(len(scores)), np.zeros(scores.shape, dtype=bool)
    for _ in range(min(count, scores.shape[1])):
        largest = scores.argmax(axis=1)
        top[images, largest] = True
        scores[images, largest] = -2
    return top


def _metrics_of(tallies: Tallies, ap: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Every metric, (B,) each, of tallies and (B, C) AP."""
    positives, predicted, hits, num_images = tallies.positives, tallies.predicted, tallies.hits, tallies.num_images
    num_known, num_positives, num_predicted, num_hits = (values.sum(axis=1) for values in tallies[:4])
    f1 = f_beta_of(hits, predicted, positives)
    in_map = ~np.isnan(ap)
    return {
        "mAP": divide(np.where(in_map, ap, 0).sum(axis=1), in_map.sum(axis=1), nothing=np.nan),
        "num_classes_in_mAP": in_map.sum(axis=1),
        **_averages_of(hits, predicted, positives),
        **{
            f"{name}_top{TOP}": values
            for name, values in _averages_of(tallies.hits_top, tallies.predicted_top, positives).items()
        },
        "f1_micro": f_beta_of(num_hits, num_predicted, num_positives),
        "f1_macro": f1.mean(axis=1),
        "f1_weighted": divide((f1 * positives).sum(axis=1), num_positives),
        "f1_samples": tallies.f1 / num_images,
        "exact_match": tallies.exact / num_images,
        "hamming_loss": divide(num_positives + num_predicted - 2 * num_hits, num_known),
        "sample_accuracy": tallies.jaccard / num_images,
        "label_accuracy": _class_metrics_of(tallies, ap)["accuracy"].mean(axis=1),
        "ECE": divide(np.abs(tallies.gaps).sum(axis=1), num_known),
    }


def _averages_of(
    hits: NDArray[np.float64], predicted: NDArray[np.float64], positives: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Precision, recall, F1 as means over classes (C...) and over all (O...), (B,) each, of (B, C) counts."""
    class_precision, class_recall = divide(hits, predicted).mean(axis=1), divide(hits, positives).mean(axis=1)
    pooled = hits.sum(axis=1), predicted.sum(axis=1), positives.sum(axis=1)
    return {
        "CP": class_precision,
        "CR": class_recall,
        "CF1": divide(2 * class_precision * class_recall, class_precision + class_recall),
        "OP": divide(pooled[0], pooled[1]),
        "OR": divide(pooled[0], pooled[2]),
        "OF1": f_beta_of(*pooled),
    }


def _class_metrics_of(tallies: Tallies, ap: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Every metric of the classes, (B, C) each."""
    known, positives, predicted, hits = tallies[:4]
    return {
        "AP": ap,
        "P": divide(hits, predicted),
        "R": divide(hits, positives),
        "F1": f_beta_of(hits, predicted, positives),
        "accuracy": divide(known - positives - predicted + 2 * hits, known),
    }


def _resample_ap(scores: Floats, present: Bools, known: Bools, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) AP of a class's (N,) entries, each counted (B, N) times; NaN where none of the positives is drawn.

    Precision only matters at the scores of positives: they part the entries into segments, once for all resamples.
    """
    images = np.flatnonzero(present)
    levels, level_of = np.unique(scores[images], return_inverse=True)
    segment_of = np.where(known, np.searchsorted(levels, scores, side="right"), 0)  # 0: below every positive
    ap = np.full(len(counts), np.nan)
    for i, count in enumerate(counts):
        gained = np.bincount(level_of, count[images], len(levels))[::-1]
        true_positives = gained.cumsum()
        predicted = np.bincount(segment_of, count, len(levels) + 1)[:0:-1].cumsum()
        if gained.any():  # where nothing is predicted yet, nothing is gained
            ap[i] = (gained * true_positives / np.maximum(predicted, 1)).sum() / true_positives[-1]
    return ap
