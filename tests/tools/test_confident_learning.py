"""tools/confident_learning.py: thresholds, suspects and scores against loops that are written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tools import confident_learning
from tools.confident_learning import Change

Arrays = tuple[NDArray[np.float64], NDArray[np.int8]]


@pytest.fixture
def data() -> Arrays:
    """200 images of 5 classes, some labels unknown and some wrong; of the last class too few are present."""
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 5)) < (0.5, 0.3, 0.2, 0.15, 0.0)).astype(np.int8)
    probabilities = np.clip(0.15 + 0.6 * targets + rng.normal(0, 0.2, targets.shape), 0, 1)
    targets[:9, 4] = 1
    flipped = rng.random(targets.shape) < 0.1
    targets = np.where(flipped, 1 - targets, targets).astype(np.int8)
    targets[:, 4] = 0
    targets[:9, 4] = 1
    targets[rng.random(targets.shape) < 0.1] = -1
    return probabilities, targets


def average(values: list[float]) -> float:
    return sum(values) / len(values) if len(values) >= confident_learning.LEAST_LABELS else float("nan")


def test_thresholds_are_mean_self_confidences(data: Arrays) -> None:
    probabilities, targets = data
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    for column in range(4):
        pairs = list(zip(probabilities[:, column].tolist(), targets[:, column].tolist(), strict=True))
        assert thresholds.present[column] == pytest.approx(average([p for p, y in pairs if y == 1]))
        assert thresholds.absent[column] == pytest.approx(average([1 - p for p, y in pairs if y == 0]))
    assert np.isnan([thresholds.present[4], thresholds.absent[4]]).all()  # 9 positives at most
    assert thresholds.share == (targets == 1).sum() / (targets >= 0).sum()


def test_suspects_are_as_sure_of_the_other_label_as_those_that_have_it(data: Arrays) -> None:
    probabilities, targets = data
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    found = confident_learning.find_suspects(probabilities, targets, thresholds)
    for row in range(len(targets)):
        for column in range(5):
            p = probabilities[row, column]
            if column == 4 or targets[row, column] == -1:
                expected = False
            elif targets[row, column] == 0:
                expected = p >= thresholds.present[column] and p > 0.5
            else:
                expected = 1 - p >= thresholds.absent[column] and p < 0.5
            assert found[row, column] == expected
    assert found.sum() > 20


def test_scores_take_labels_too_many_to_be_as_frequent_as_missing_ones() -> None:
    """Of two labels, one present and one absent, with opposite odds: by the share of labels, by Bayes' rule."""
    targets = np.zeros((1, 10), dtype=np.int8)
    targets[0, 0] = 1
    probabilities = np.full((1, 10), 0.2, dtype=np.float32)
    probabilities[0, 1] = 0.8
    thresholds = confident_learning.Thresholds(np.full(10, 0.5), np.full(10, 0.5), 0.1)
    scores = confident_learning.score_labels(probabilities, targets, thresholds)
    assert scores[0, 1] == pytest.approx(0.2)
    assert scores[0, 0] == pytest.approx(0.25 * 9 / (1 + 0.25 * 9))  # the odds .2 / .8, times (1 - .1) / .1
    targets[0, 2] = -1
    assert np.isnan(confident_learning.score_labels(probabilities, targets, thresholds)[0, 2])
    everything = thresholds._replace(share=1.0)
    assert np.isfinite(confident_learning.score_labels(np.ones((1, 10)), np.ones((1, 10), np.int8), everything)).all()


def test_questions_of_an_image_stand_together_the_worst_image_first(data: Arrays) -> None:
    probabilities, targets = data
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    suspects = confident_learning.find_suspects(probabilities, targets, thresholds)
    scores = confident_learning.score_labels(probabilities, targets, thresholds)
    questions = confident_learning.rank(confident_learning.list_questions(probabilities, targets, thresholds, suspects))
    assert {(q.row, q.changes[0].column) for q in questions} == {(r, c) for r, c in np.argwhere(suspects).tolist()}
    rows = list(dict.fromkeys(question.row for question in questions))
    lowest = [min(scores[row, column] for column in np.flatnonzero(suspects[row])) for row in rows]
    assert lowest == sorted(lowest)
    for row in rows:
        own = [question for question in questions if question.row == row]
        place = questions.index(own[0])
        assert questions[place : place + len(own)] == own
        assert [question.score for question in own] == sorted(question.score for question in own)
        for question in own:
            (change,) = question.changes
            assert (change.given, change.suggested) == (targets[row, change.column], 1 - targets[row, change.column])
            assert question.score == scores[row, change.column]
    assert len(rows) < len(questions)


def test_one_label_is_compared_with_the_most_probable_of_the_confident_classes() -> None:
    rng = np.random.default_rng(1)
    given = rng.integers(0, 4, 300)
    logits = rng.normal(0, 1, (300, 5)) + 2.5 * np.eye(5)[np.where(rng.random(300) < 0.1, (given + 1) % 4, given)]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.eye(5, dtype=np.int8)[given]
    targets[0] = [1, 1, 0, 0, 0]
    targets[1] = 0
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    found = {question.row: question for question in confident_learning.list_swaps(probabilities, targets, thresholds)}
    for row in range(2, 300):
        p = probabilities[row].tolist()
        confident = [c for c in range(4) if p[c] >= thresholds.present[c]]  # of class 4 there are no positives
        best = max(confident, key=lambda c: p[c], default=given[row])
        assert (row in found) == (best != given[row] and p[best] > p[given[row]])
        if row in found:
            assert found[row].changes == (Change(int(given[row]), 1, 0), Change(best, 0, 1))
            assert found[row].score == pytest.approx(p[given[row]])
    assert not {0, 1} & found.keys()
    assert len(found) > 10


def test_nothing_known_gives_no_question() -> None:
    probabilities, targets = np.full((20, 3), 0.5, np.float32), np.full((20, 3), -1, np.int8)
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    suspects = confident_learning.find_suspects(probabilities, targets, thresholds)
    assert confident_learning.list_questions(probabilities, targets, thresholds, suspects) == []
    assert confident_learning.list_swaps(probabilities, targets, thresholds) == []
