"""Numbers from scores: pure functions of probabilities (N, C) and targets (N, C).

Probabilities lie in 0...1; a target is 1 present, 0 absent, -1 or NaN unknown. Unknown entries count nowhere.
A prediction is `probability >= threshold`. Definitions: scikit-learn's where it has them, with 0 for 0 / 0.
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


class Ranking(NamedTuple):
    """The distinct scores of one class's positives, highest first, and what predicting down to each gives: all (K,)."""

    scores: Floats
    true_positives: NDArray[np.int64]
    predicted: NDArray[np.int64]


def rank(scores: Floats, positives: Bools) -> Ranking:
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
        yield rank(scores, present)


def average_precision(probabilities: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """(C,) AP = sum over ranks of (recall gained) x precision; NaN where a class has no positive."""
    result = []
    for _, true_positives, predicted in rank_classes(probabilities, targets):
        gained = np.diff(true_positives, prepend=0)
        summed = (gained * true_positives / predicted).sum()
        result.append(summed / true_positives[-1] if len(true_positives) else np.nan)
    return np.array(result, dtype=np.float64)


def measure(probabilities: ArrayLike, targets: ArrayLike, thresholds: float | ArrayLike) -> dict[str, float]:
    """Every metric by its name, for a threshold of all classes or (C,) one a class.

    mAP is the mean over the `num_classes_in_mAP` classes that have positives (NaN if none has). CP, CR: mean
    precision, recall over classes, CF1 their harmonic mean; OP, OR, OF1: the same of all entries pooled.
    Raises InputError for scores outside 0...1, shapes that differ, or no images.
    """
    probabilities, targets = as_scores(probabilities, targets, at_least=1)
    each_once = np.ones((1, len(probabilities)))
    sums = _sum_tallies(probabilities, targets, thresholds, each_once)
    ap = average_precision(probabilities, targets)[None]
    return {name: float(values[0]) for name, values in _metrics_of(sums, ap, len(probabilities)).items()}


def bootstrap(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """(low, high) of every metric of `measure`: the middle `level` of its values over resampled images.

    Each of `num_samples` resamples draws N images with replacement (Efron 1979, percentile intervals); the model and
    the thresholds stay. A class without a positive in a resample has no part in that one's mAP, and a resample
    without any has none in mAP's interval, which is NaN where no resample has one. Raises as `measure` does.
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
        ap = [_resample_ap(*entries, counts) for entries in read_classes(probabilities, targets)]
        sums = _sum_tallies(probabilities, targets, thresholds, counts)
        parts.append(_metrics_of(sums, np.stack(ap, axis=1), num_images))
    ends = ((1 - level) / 2, (1 + level) / 2)
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    values["mAP"] = values["mAP"][~np.isnan(values["mAP"])]
    intervals = {name: np.quantile(each, ends) if len(each) else (np.nan, np.nan) for name, each in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}


def predict(probabilities: ArrayLike, thresholds: float | ArrayLike) -> Bools:
    """(N, C) `probability >= threshold`, compared in the precision of the probabilities."""
    probabilities = np.asarray(probabilities)
    return probabilities >= np.asarray(thresholds, dtype=probabilities.dtype)


def f1_of(hits: ArrayLike, predicted: ArrayLike, present: ArrayLike) -> NDArray[np.float64]:
    """2 TP / (predicted + present), elementwise; 0 where nothing is predicted or present."""
    return _divide(2 * np.asarray(hits), np.asarray(predicted) + np.asarray(present))


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


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _sum_tallies(
    probabilities: Floats, targets: NDArray, thresholds: float | ArrayLike, counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(B, 3 C + 3) sums over images, each taken (B, N) times, of all that `_metrics_of` needs beside AP.

    An image gives its classes hit, predicted, present, then its number of known entries, its F1, and whether it is
    exactly right. Sums of whole numbers are exact in float64.
    """
    num_classes = probabilities.shape[1]
    thresholds = np.asarray(thresholds)
    if thresholds.shape[-1:] not in ((), (1,), (num_classes,)) or np.isnan(thresholds).any():
        raise InputError(
            f"thresholds must be one number or {num_classes}, one a class: found {thresholds.shape} or a NaN"
        )
    thresholds = np.broadcast_to(thresholds, probabilities.shape)
    sums = np.zeros((len(counts), 3 * num_classes + 3))
    for rows in read_rows(probabilities):
        present, known = as_known(targets[rows])
        predicted = predict(probabilities[rows], thresholds[rows]) & known
        entries = np.concatenate((predicted & present, predicted, present), axis=1, dtype=np.float64)
        hits, guesses, positives = entries.reshape(-1, 3, num_classes).sum(axis=2).T
        exact = (hits == guesses) & (hits == positives)
        by_image = np.stack((known.sum(axis=1), f1_of(hits, guesses, positives), exact), axis=1)
        sums += counts[:, rows] @ np.concatenate((entries, by_image), axis=1)
    return sums


def _metrics_of(sums: NDArray[np.float64], ap: NDArray[np.float64], num_images: int) -> dict[str, NDArray[np.float64]]:
    """Every metric, (B,) each, of (B, 3 C + 3) `_sum_tallies` and (B, C) AP."""
    by_class = np.moveaxis(sums[:, :-3].reshape(len(sums), 3, -1), 1, 0)
    pooled = by_class.sum(axis=2)
    (hits, predicted, positives), f1 = by_class, f1_of(*by_class)
    num_known, f1_of_images, num_exact = sums[:, -3:].T
    in_map = ~np.isnan(ap)
    class_precision, class_recall = _divide(hits, predicted).mean(axis=1), _divide(hits, positives).mean(axis=1)
    return {
        "mAP": _divide(np.where(in_map, ap, 0).sum(axis=1), in_map.sum(axis=1), nothing=np.nan),
        "num_classes_in_mAP": in_map.sum(axis=1),
        "CP": class_precision,
        "CR": class_recall,
        "CF1": _divide(2 * class_precision * class_recall, class_precision + class_recall),
        "OP": _divide(pooled[0], pooled[1]),
        "OR": _divide(pooled[0], pooled[2]),
        "OF1": f1_of(*pooled),
        "f1_micro": f1_of(*pooled),
        "f1_macro": f1.mean(axis=1),
        "f1_weighted": _divide((f1 * positives).sum(axis=1), pooled[2]),
        "f1_samples": f1_of_images / num_images,
        "exact_match": num_exact / num_images,
        "hamming_loss": _divide(pooled[1] + pooled[2] - 2 * pooled[0], num_known),
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


def _divide(numerator: ArrayLike, denominator: ArrayLike, nothing: float = 0.0) -> NDArray[np.float64]:
    """Elementwise division in which 0 / 0 is `nothing`."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.full_like(numerator, nothing), where=denominator != 0)
