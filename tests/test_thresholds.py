"""thresholds.py against trying every score there is, with scikit-learn's F1."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

import metrics
import thresholds


def draw(seed: int, ties: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((60, 4)) < 0.3).astype(np.int8)
    probabilities = np.clip(targets * 0.25 + rng.random((60, 4)) * 0.75, 0, 1)
    return (np.floor(probabilities * ties) / ties if ties else probabilities).astype(np.float32), targets


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
@pytest.mark.parametrize("ties", [0, 8])
@pytest.mark.parametrize("seed", range(3))
def test_global_threshold_is_the_best_of_all(seed: int, ties: int, average: str) -> None:
    probabilities, targets = draw(seed, ties)
    best = max(
        f1_score(targets, probabilities >= score, average=average, zero_division=0)
        for score in np.unique(probabilities)
    )
    threshold = thresholds.tune_global(probabilities, targets, metric=f"f1_{average}")
    reached = f1_score(targets, metrics.predict(probabilities, threshold), average=average, zero_division=0)
    assert reached == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("ties", [0, 8])
def test_per_class_thresholds_are_the_best_of_each_class(ties: int) -> None:
    probabilities, targets = draw(3, ties)
    tuned = thresholds.tune_per_class(probabilities, targets)
    assert tuned.shape == (4,)
    for label in range(4):
        y, p = targets[:, label], probabilities[:, label]
        best = max(f1_score(y, p >= score) for score in np.unique(p))
        assert f1_score(y, p >= np.float32(tuned[label])) == pytest.approx(best, abs=1e-12)


def test_threshold_lies_midway_between_neighbouring_scores() -> None:
    probabilities = np.array([[0.9], [0.6], [0.2], [0.1]], dtype=np.float32)
    assert thresholds.tune_global(probabilities, np.array([[1], [1], [0], [0]])) == pytest.approx(0.4)
    assert thresholds.tune_global(probabilities, np.ones((4, 1))) == pytest.approx(0.05)


def test_neighbouring_floats_are_still_told_apart() -> None:
    high = np.float32(0.3)
    low = np.nextafter(high, np.float32(0))
    threshold = thresholds.tune_global(np.array([[high], [low]]), np.array([[1], [0]]))
    assert metrics.predict(np.array([[high], [low]]), threshold).tolist() == [[True], [False]]


def test_a_class_without_positives_takes_the_global_threshold() -> None:
    probabilities, targets = draw(0, 0)
    targets[:, 1] = 0
    tuned = thresholds.tune_per_class(probabilities, targets)
    assert tuned[1] == thresholds.tune_global(probabilities, targets)


def test_without_any_positive_the_default_stays() -> None:
    assert thresholds.tune_global(np.full((5, 2), 0.7), np.zeros((5, 2))) == thresholds.DEFAULT_THRESHOLD
    assert (thresholds.tune_per_class(np.full((5, 2), 0.7), np.zeros((5, 2))) == thresholds.DEFAULT_THRESHOLD).all()


def test_unknown_entries_do_not_move_a_threshold() -> None:
    probabilities, targets = draw(1, 0)
    marked = np.vstack([targets, np.full((20, 4), -1)])
    noise = np.random.default_rng(9).random((20, 4)).astype(np.float32)
    for tune in (thresholds.tune_global, thresholds.tune_per_class):
        assert np.array_equal(tune(np.vstack([probabilities, noise]), marked), tune(probabilities, targets))


def test_cross_fitting_shows_what_tuning_on_noise_is_worth() -> None:
    rng = np.random.default_rng(0)
    probabilities, targets = rng.random((60, 20)).astype(np.float32), rng.integers(0, 2, (60, 20))
    tuned = thresholds.tune_per_class(probabilities, targets)
    in_sample = metrics.measure(probabilities, targets, tuned)["f1_weighted"]
    honest = thresholds.cross_fit(probabilities, targets, thresholds.tune_per_class)
    assert honest < in_sample


def test_cross_fitting_uses_the_other_folds_only() -> None:
    probabilities, targets = draw(2, 0)
    seen = []

    def tune(p: np.ndarray, t: np.ndarray) -> float:
        seen.append(len(p))
        return 0.5

    value = thresholds.cross_fit(probabilities, targets, tune, folds=4)
    assert seen == [45] * 4
    assert value == pytest.approx(metrics.measure(probabilities, targets, 0.5)["f1_weighted"])
