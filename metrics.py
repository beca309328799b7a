"""Numbers from scores: pure functions of probabilities (N, C) and targets (N, C).

Probabilities lie in 0...1; a target is 1 present, 0 absent, -1 or NaN unknown. Unknown entries count nowhere.
A prediction is `probability >= threshold`. Definitions: scikit-learn's where it has them, with 0 for 0 / 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]


class Ranking(NamedTuple):
    """One class's distinct scores, highest first, and what predicting down to each of them gives: all (K,)."""

    scores: Floats
    true_positives: NDArray[np.int64]
    predicted: NDArray[np.int64]


def rank(scores: Floats, positives: NDArray[np.bool_]) -> Ranking:
    """Rank (N,) scores with their (N,) labels. Equal scores make one entry, so ties have no order.

    A float of 0 or more sorts as its bits do, and the sign bit is free: the label goes into the lowest bit of
    the shifted score, and one sort of plain integers orders both.
    """
    integer = np.uint32 if scores.dtype == np.float32 else np.uint64
    packed = (np.ascontiguousarray(scores).view(integer) << integer(1)) | positives
    packed.sort()
    packed = packed[::-1]
    bits = packed >> integer(1)
    last = np.flatnonzero(np.append(bits[1:] != bits[:-1], True)) if len(bits) else np.zeros(0, dtype=np.int64)
    true_positives = np.cumsum((packed & integer(1)).astype(np.int64))[last]
    return Ranking(bits[last].view(scores.dtype), true_positives, last + 1)


def rank_classes(probabilities: ArrayLike, targets: ArrayLike) -> list[Ranking]:
    """`rank` of each class over its known entries. Raises ValueError for scores outside 0...1."""
    probabilities, present, known = _as_scores(probabilities, targets)
    return [rank(p[k], y[k]) for p, y, k in zip(probabilities.T, present.T, known.T, strict=True)]


def average_precision(probabilities: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """(C,) AP = sum over ranks of (recall gained) x precision; NaN where a class has no positive."""
    result = []
    for _, true_positives, predicted in rank_classes(probabilities, targets):
        positives = true_positives[-1] if len(true_positives) else 0
        gained = np.diff(true_positives, prepend=0)
        result.append((gained * true_positives / predicted).sum() / positives if positives else np.nan)
    return np.array(result, dtype=np.float64)


def measure(probabilities: ArrayLike, targets: ArrayLike, thresholds: float | ArrayLike) -> dict[str, float]:
    """Every metric by its name, for a threshold of all classes or (C,) one a class.

    mAP is the mean over the `num_classes_in_mAP` classes that have positives (NaN if none has). CP, CR: mean
    precision, recall over classes, CF1 their harmonic mean; OP, OR, OF1: the same of all entries pooled.
    """
    probabilities, present, known = _as_scores(probabilities, targets)
    predicted = predict(probabilities, thresholds) & known
    present = present & known
    hits = predicted & present
    by_class = [matrix.sum(axis=0) for matrix in (hits, predicted, present)]
    by_image = [matrix.sum(axis=1) for matrix in (hits, predicted, present)]
    pooled = [counts.sum() for counts in by_class]
    f1, positives = f1_of(*by_class), by_class[2]
    ap = average_precision(probabilities, np.where(known, present, -1))
    class_precision, class_recall = _divide(by_class[0], by_class[1]), _divide(by_class[0], positives)
    wrong = (predicted != present) & known
    numbers = {
        "mAP": ap[~np.isnan(ap)].mean() if not np.isnan(ap).all() else np.nan,
        "num_classes_in_mAP": (~np.isnan(ap)).sum(),
        "CP": class_precision.mean(),
        "CR": class_recall.mean(),
        "CF1": _harmonic_mean(class_precision.mean(), class_recall.mean()),
        "OP": _divide(pooled[0], pooled[1]),
        "OR": _divide(pooled[0], pooled[2]),
        "OF1": f1_of(*pooled),
        "f1_micro": f1_of(*pooled),
        "f1_macro": f1.mean(),
        "f1_weighted": _divide((f1 * positives).sum(), positives.sum()),
        "f1_samples": f1_of(*by_image).mean(),
        "exact_match": (~wrong.any(axis=1)).mean(),
        "hamming_loss": _divide(wrong.sum(), known.sum()),
    }
    return {name: float(number) for name, number in numbers.items()}


def predict(probabilities: ArrayLike, thresholds: float | ArrayLike) -> NDArray[np.bool_]:
    """(N, C) `probability >= threshold`, compared in the precision of the probabilities."""
    probabilities = np.asarray(probabilities)
    return probabilities >= np.asarray(thresholds, dtype=probabilities.dtype)


def f1_of(hits: ArrayLike, predicted: ArrayLike, present: ArrayLike) -> NDArray[np.float64]:
    """2 TP / (predicted + present), elementwise; 0 where nothing is predicted or present."""
    return _divide(2 * np.asarray(hits), np.asarray(predicted) + np.asarray(present))


def as_known(targets: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(present, known), both (N, C), of a matrix of 1, 0 and -1 or NaN."""
    targets = np.asarray(targets)
    return targets == 1, targets >= 0  # NaN >= 0 is False


def _as_scores(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    probabilities = np.asarray(probabilities)
    if probabilities.dtype not in (np.float32, np.float64):
        probabilities = probabilities.astype(np.float32)
    present, known = as_known(targets)
    if probabilities.ndim != 2 or probabilities.shape != present.shape:
        raise ValueError(f"probabilities {probabilities.shape} and targets {present.shape} must be of one shape (N, C)")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in 0...1: a NaN, or logits in their place?")
    return probabilities + probabilities.dtype.type(0), present, known  # + 0: -0.0 becomes 0.0


def _divide(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Elementwise division in which 0 / 0 is 0."""
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
