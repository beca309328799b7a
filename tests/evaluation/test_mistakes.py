"""evaluation/mistakes.py: pairs of classes and confident mistakes, against counting one image after the other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix

from evaluation import mistakes
from evaluation.mistakes import CHANCE_OF_ANY, LEAST_COUNT, MOST_OF_CLASS, Errors, Mistake, read_errors

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
    ever_wrong, ever_other = (set[int]().union(*labels) for labels in zip(*images, strict=True))
    num_pairs = sum(said != other for said in ever_wrong for other in ever_other)
    limit = stats.chi2.isf(CHANCE_OF_ANY / num_pairs, df=1)
    expected = {}
    for said, other in itertools.product(range(6), repeat=2):
        known = (scores[1][:, [said, other]] >= 0).all(axis=1)
        of_both = [image for image, is_known in zip(images, known, strict=True) if is_known]
        both = sum(said in wrong and other in others for wrong, others in of_both)
        first = sum(said in wrong for wrong, _ in of_both)
        second = sum(other in others for _, others in of_both)
        if both < LEAST_COUNT or both * len(of_both) <= first * second:
            continue
        table = [[both, first - both], [second - both, len(of_both) - first - second + both]]
        surprise = measure_by_scipy(table)
        if surprise >= limit:
            expected[said, other] = (both, first * second / len(of_both), surprise)
    assert {(pair.said, pair.there): pair[2:] for pair in found} == {
        pair: pytest.approx(values) for pair, values in expected.items()
    }
    assert (1, 0) in expected
    assert [pair.surprise for pair in found] == sorted((pair.surprise for pair in found), reverse=True)


def make_pair() -> Arrays:
    """(1000, 2) probabilities and targets. Of the first 100, 0 is said wrongly on 20, 1 missed on 20, both on 4."""
    probabilities, targets = np.zeros((1000, 2), np.float32), np.zeros((1000, 2), np.int8)
    probabilities[:20, 0] = 1
    targets[:100:5, 1] = 1
    return probabilities, targets


def test_a_pair_is_counted_among_the_images_with_known_labels_of_both() -> None:
    probabilities, targets = make_pair()
    (pair,) = mistakes.find_confusions(read_errors(probabilities, targets, 0.5), 2).instead
    assert pair[:4] == (0, 1, 4, pytest.approx(0.4))
    targets[100:] = -1  # of 100 images, 4 are what chance makes of 20 and 20
    assert mistakes.find_confusions(read_errors(probabilities, targets, 0.5), 2) == ([], [])


def test_a_pair_among_many_has_to_be_more_surprising() -> None:
    """G^2 of 12.7 is much for the pair of two classes, and little for one of ten thousand pairs."""
    probabilities, targets = (np.pad(values, ((0, 0), (0, 100))) for values in make_pair())
    others = np.arange(2, 102)
    probabilities[100 + others, others] = 1  # each is said wrongly on one image, and missed on another
    targets[300 + others, others] = 1
    errors = [*read_errors(probabilities, targets, 0.5)]
    assert mistakes.find_confusions(errors, 102).instead == []
    (pair,) = mistakes.find_confusions(read_errors(*make_pair(), 0.5), 2).instead
    assert pair.surprise == pytest.approx(measure_by_scipy([[4, 16], [16, 964]]))


@pytest.mark.parametrize("num_pairs", [1, 50, 1_000_000])
def test_the_limit_is_bonferronis_of_chi_squared(num_pairs: int) -> None:
    expected = stats.chi2.isf(CHANCE_OF_ANY / num_pairs, df=1)
    assert mistakes.find_limit(num_pairs) == pytest.approx(expected, rel=1e-6)


def test_independent_mistakes_of_many_classes_are_no_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 x 39,800 pairs; a limit that one pair reaches by chance in a thousand tests names more than five of them."""
    rng = np.random.default_rng(3)
    said, targets = rng.random((2000, 200)) < 0.05, (rng.random((2000, 200)) < 0.05).astype(np.int8)
    targets[rng.random(targets.shape) < 0.1] = -1
    errors = [*read_errors(said.astype(np.float32), targets, 0.5)]
    assert sum(map(len, mistakes.find_confusions(errors, 200))) <= 1
    monkeypatch.setattr(mistakes, "find_limit", lambda num_pairs: stats.chi2.isf(0.001, df=1))
    assert sum(map(len, mistakes.find_confusions(errors, 200))) > 5


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
