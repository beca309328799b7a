"""evaluation/mistakes.py: pairs of classes and confident mistakes, against counting one image after the other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix

from evaluation import mistakes
from evaluation.mistakes import LEAST_COUNT, LEAST_SURPRISE, MOST_OF_CLASS, Errors, Mistake, read_errors

Arrays = tuple[np.ndarray, np.ndarray]
THRESHOLDS = np.array([0.5, 0.4, 0.6, 0.5, 0.5, 0.3])


@pytest.fixture
def scores() -> Arrays:
    """(1000, 6) probabilities and targets, some unknown. Where 0 is there and missed, 1 is often said wrongly."""
    rng = np.random.default_rng(0)
    targets = (rng.random((1000, 6)) < [0.3, 0.2, 0.1, 0.4, 0.05, 0]).astype(np.int8)
    probabilities = np.where(targets == 1, 0.7, 0.2) + rng.normal(0, 0.2, targets.shape)
    taken_for = (targets[:, 0] == 1) & (targets[:, 1] == 0) & (rng.random(1000) < 0.4)
    probabilities[taken_for, 0], probabilities[taken_for, 1] = 0.1, 0.9
    targets[rng.random(targets.shape) < 0.05] = -1
    return probabilities.clip(0, 1).astype(np.float32), targets


def list_errors(scores: Arrays) -> list[tuple[set[int], set[int], set[int]]]:
    """Of each image the classes that are said wrongly, that are missed, and that are there."""
    found = []
    for probabilities, targets in zip(*scores, strict=True):
        said = {c for c in range(6) if probabilities[c] >= np.float32(THRESHOLDS[c])}
        there = {c for c in range(6) if targets[c] == 1}
        found.append(({c for c in said if targets[c] == 0}, there - said, there))
    return found


def measure_by_scipy(table: list[list[int]]) -> float:
    result: Any = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    return result.statistic


@pytest.mark.parametrize("kept", [1, mistakes.KEPT_AT_ONCE])
@pytest.mark.parametrize("kind", ["instead", "beside"])
def test_pairs_are_those_that_counting_finds(
    scores: Arrays, kind: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mistakes, "KEPT_AT_ONCE", kept)
    monkeypatch.setattr("metrics.ENTRIES_AT_ONCE", 600)  # several blocks
    found = getattr(mistakes.find_confusions(read_errors(*scores, THRESHOLDS), 6), kind)
    images = [(wrong, missed if kind == "instead" else there) for wrong, missed, there in list_errors(scores)]
    expected = {}
    for said, other in itertools.product(range(6), repeat=2):
        both = sum(said in wrong and other in others for wrong, others in images)
        first = sum(said in wrong for wrong, _ in images)
        second = sum(other in others for _, others in images)
        if both < LEAST_COUNT or both * len(images) <= first * second:
            continue
        table = [[both, first - both], [second - both, len(images) - first - second + both]]
        surprise = measure_by_scipy(table)
        if surprise >= LEAST_SURPRISE:
            expected[said, other] = (both, first * second / len(images), surprise)
    assert {(pair.said, pair.there): pair[2:] for pair in found} == {
        pair: pytest.approx(values) for pair, values in expected.items()
    }
    assert (1, 0) in expected
    assert [pair.surprise for pair in found] == sorted((pair.surprise for pair in found), reverse=True)


def test_with_one_label_an_image_the_pairs_are_those_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(1)
    is_class = rng.integers(0, 4, 400)
    taken_for = np.where(rng.random(400) < 0.6, is_class, (is_class + 1) % 4)
    targets, probabilities = np.eye(4, dtype=np.int8)[is_class], np.eye(4, dtype=np.float32)[taken_for] * 0.4
    found = mistakes.find_confusions(read_errors(probabilities, targets, 0.9, 1, 1), 4).instead
    matrix = confusion_matrix(is_class, taken_for)
    assert {(pair.there, pair.said): pair.num_images for pair in found} == {
        (c, (c + 1) % 4): matrix[c, (c + 1) % 4] for c in range(4)
    }


def test_without_mistakes_or_images_there_is_nothing() -> None:
    targets = np.eye(5, dtype=np.int8)
    for rows in (targets, targets[:0]):
        errors = [*read_errors(rows.astype(np.float32), rows, 0.5)]
        assert mistakes.find_confusions(errors, 5) == ([], [])
        assert mistakes.find_most_confident(errors, 3) == ([], [])


def test_surprise_is_nothing_where_events_are_independent_and_finite_where_cells_are_empty() -> None:
    found = mistakes.measure_surprise([10, 20, 0, 100], [20, 20, 0, 100], [50, 20, 30, 100], 100)
    reference = measure_by_scipy([[20, 0], [0, 80]])
    assert found == pytest.approx([0, reference, 0, 0], abs=1e-9)


@pytest.mark.parametrize("kept", [1, mistakes.KEPT_AT_ONCE])
def test_the_most_confident_mistakes_are_those_of_a_sorted_list(
    scores: Arrays, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of another image, and few of a class."""
    monkeypatch.setattr(mistakes, "KEPT_AT_ONCE", kept)
    monkeypatch.setattr("metrics.ENTRIES_AT_ONCE", 600)
    probabilities = scores[0]
    found = mistakes.find_most_confident(read_errors(*scores, THRESHOLDS), 8)
    images = list_errors(scores)
    for kind, mistaken in enumerate(found):
        sign = 1 if kind else -1
        labels = [(row, c) for row, image in enumerate(images) for c in image[kind]]
        labels.sort(key=lambda label: (sign * float(probabilities[label]), label))
        expected: list[Mistake] = []
        for row, c in labels:
            is_new = row not in [mistake.row for mistake in expected]
            if len(expected) < 8 and is_new and sum(mistake.label == c for mistake in expected) < MOST_OF_CLASS:
                expected.append(Mistake(row, c, float(probabilities[row, c])))
        assert mistaken == expected
        assert len(expected) == 8


def test_blocks_hold_all_images_once_and_unknown_labels_are_no_mistakes(
    scores: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.ENTRIES_AT_ONCE", 600)
    blocks: list[Errors] = [*read_errors(*scores, THRESHOLDS)]
    assert [block.start for block in blocks] == [*range(0, 1000, 100)]
    wrong, missed = (np.concatenate([getattr(block, kind) for block in blocks]) for kind in ("wrong", "missed"))
    unknown = scores[1] == -1
    assert unknown.any()
    assert not (wrong | missed)[unknown].any()
    said = scores[0] >= THRESHOLDS.astype(np.float32)
    assert np.array_equal((wrong | missed)[~unknown], (said != (scores[1] == 1))[~unknown])
