"""Which labels are probably wrong, by the probabilities of models that have not seen the image: confident learning.

    thresholds = measure_thresholds(probabilities, targets)
    is_suspect = find_suspects(probabilities, targets, thresholds)      # (N, C) bool
    questions = rank(list_questions(probabilities, targets, thresholds, is_suspect))    # the most suspect first

Northcutt et al. 2021 ("Confident learning", JAIR): a label is suspect where the model is surer of the other one than it
is, on average, of those that have it. Thyagarajan et al. 2022 do so for each class by itself where an image may have
several. Targets (N, C) are 1 present, 0 absent, -1 unknown; probabilities (N, C) lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_LABELS = 10  # of a class, present and absent: a mean of fewer probabilities is one of noise


class Thresholds(NamedTuple):
    """How sure the models are of labels, on average over the images that have them: the self-confidence of a class."""

    present: NDArray[np.float64]  # (C,) mean probability where it is present; NaN: fewer than LEAST_LABELS
    absent: NDArray[np.float64]  # (C,) mean of 1 - probability where it is absent
    share: float  # of the known labels, those that are present


class Change(NamedTuple):
    """A label, and what it would become."""

    column: int  # of the class
    given: int  # 1 present, 0 absent
    suggested: int


class Question(NamedTuple):
    """Whether a label of an image is right; of one label an image, whether another one is."""

    row: int  # of the image
    score: float  # how sure the models are of the label that is given, 0 to 1: the lowest is the most suspect
    changes: tuple[Change, ...]  # all of them, or none


def measure_thresholds(probabilities: NDArray[np.floating], targets: NDArray[np.int8]) -> Thresholds:
    """The means over the images that have a label (Northcutt et al. 2021, eq. 2), for both labels of each class."""
    present = _average(probabilities, targets == 1)
    absent = 1 - _average(probabilities, targets == 0)
    is_rare = np.isnan(present) | np.isnan(absent)
    share = np.count_nonzero(targets == 1) / max(np.count_nonzero(targets != -1), 1)
    return Thresholds(np.where(is_rare, np.nan, present), np.where(is_rare, np.nan, absent), share)


def _average(probabilities: NDArray[np.floating], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(C,) means over the `chosen` images of each class; NaN where they are fewer than LEAST_LABELS."""
    count = chosen.sum(axis=0)
    total = np.sum(probabilities, axis=0, where=chosen, dtype=np.float64)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count >= LEAST_LABELS)


def find_suspects(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], thresholds: Thresholds
) -> NDArray[np.bool_]:
    """(N, C) which labels are suspect: the other one is as probable as on images that have it, and more than this one.

    Without the second condition, classes that are hard to see would name many images that hardly show them.
    """
    missing = (targets == 0) & (probabilities >= thresholds.present) & (probabilities > 0.5)
    too_many = (targets == 1) & (1 - probabilities >= thresholds.absent) & (probabilities < 0.5)
    return missing | too_many


def score_labels(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], thresholds: Thresholds
) -> NDArray[np.float64]:
    """(N, C) how sure the models are of each label that is given, 0 to 1; NaN: unknown.

    Of an absent label it is 1 - p, its self-confidence. The odds p / (1 - p) of a present label are multiplied by
    (1 - s) / s, with the share s of labels that are present. This takes labels too many to be as frequent as missing
    ones. The self-confidences as they are take each label to be wrong with the same probability: where a tenth is
    present, nine labels too many would come on one that is missing, and most of what is listed first would be right.
    """
    share = thresholds.share
    present = probabilities * (1 - share)
    total = present + (1 - probabilities) * share
    present = np.divide(present, total, out=np.full(probabilities.shape, 0.5), where=total > 0)
    return np.where(targets == 1, present, np.where(targets == 0, 1 - probabilities, np.nan))


def list_questions(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.int8],
    thresholds: Thresholds,
    is_suspect: NDArray[np.bool_],
) -> list[Question]:
    """A question for each suspect label."""
    scores = score_labels(probabilities, targets, thresholds)
    rows, columns = np.nonzero(is_suspect)
    given, scores = targets[rows, columns], scores[rows, columns]
    return [
        Question(row, score, (Change(column, label, 1 - label),))
        for row, column, label, score in zip(
            rows.tolist(), columns.tolist(), given.tolist(), scores.tolist(), strict=True
        )
    ]


def list_swaps(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], thresholds: Thresholds
) -> list[Question]:
    """The same for images with one label each: whether another class is right.

    Of the classes that are as probable as on images that have them, the most probable is suggested (Northcutt et al.
    2021, eq. 1). Rows of `probabilities` sum to 1. Images without exactly one label are left out.
    """
    given, every = targets.argmax(axis=1), np.arange(len(targets))
    candidates = np.where(probabilities >= thresholds.present, probabilities, -1.0)  # of a rare class it is NaN
    suggested = candidates.argmax(axis=1)
    is_suspect = candidates[every, suggested] > probabilities[every, given]
    is_suspect &= (targets == 1).sum(axis=1) == 1
    questions = []
    for row in np.flatnonzero(is_suspect).tolist():
        changes = (Change(int(given[row]), 1, 0), Change(int(suggested[row]), 0, 1))
        questions.append(Question(row, float(probabilities[row, given[row]]), changes))
    return questions


def rank(questions: Iterable[Question]) -> list[Question]:
    """The most suspect first; an image is as suspect as its most suspect label, and its questions stay together."""
    questions, lowest = list(questions), {}
    for question in questions:
        lowest[question.row] = min(question.score, lowest.get(question.row, 1.0))
    return sorted(questions, key=lambda question: (lowest[question.row], question.row, question.score))
