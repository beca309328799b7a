"""thresholds.py against trying every score there is, with scikit-learn's F1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import f1_score

import metrics
import thresholds
from utils import InputError


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


def tune_by_definition(probabilities: np.ndarray, targets: np.ndarray, average: str) -> float:
    """The threshold of the highest best score, trying every one; counts and F1 written out."""
    present, known = targets == 1, targets >= 0
    scores = np.unique(probabilities[known])
    values = []
    for score in scores:
        predicted = (probabilities >= score) & known
        hits, total = (predicted & present).sum(axis=0), predicted.sum(axis=0) + present.sum(axis=0)
        if average == "micro":
            hits, total = hits.sum(keepdims=True), total.sum(keepdims=True)
        f1 = 2 * hits / np.maximum(total, 1)
        weights = present.sum(axis=0) if average == "weighted" else np.ones(len(f1))
        values.append((f1 * weights).sum() / max(weights.sum(), 1))
    if not len(scores) or max(values) == 0:
        return thresholds.DEFAULT_THRESHOLD
    best = int(np.flatnonzero(np.array(values) >= max(values) - 1e-12)[-1])
    below = scores[best - 1] if best else scores.dtype.type(0)
    middle = (scores[best] + below) / 2
    return float(middle if middle > below else scores[best])


SCORES = {
    "distinct": lambda p: p,
    "eight values": lambda p: np.floor(p * 8) / 8,
    "0 or 1": np.round,
    "all equal": lambda p: np.full_like(p, 0.3),
    "within one step of the grid": lambda p: p * 1e-6,
    "neighbouring floats": lambda p: 0.5 + np.floor(p * 40) * 2.0**-24,
}


@pytest.mark.parametrize("sizes", [(2**12, 2**12), (2, 1), (1, 3), (8, 16)], ids=str)
@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
@pytest.mark.parametrize("scores", SCORES)
def test_looking_closer_finds_the_same_bits(
    scores: str, average: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, at_once = sizes
    monkeypatch.setattr(thresholds, "GRID", grid)
    monkeypatch.setattr(thresholds, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(metrics, "ENTRIES_AT_ONCE", 13)
    monkeypatch.setattr(metrics, "CLASSES_AT_ONCE", 2)
    rng = np.random.default_rng(0)
    for num_images, share, hidden in ((1, 0.5, 0.0), (50, 0.05, 0.0), (50, 0.5, 0.4), (70, 1.0, 0.0)):
        for dtype in (np.float32, np.float64):
            targets = np.where(rng.random((num_images, 5)) < hidden, -1, rng.random((num_images, 5)) < share)
            targets[:, 1] = np.minimum(targets[:, 1], 0)  # no positive
            probabilities = SCORES[scores](rng.random((num_images, 5))).astype(dtype)
            expected = tune_by_definition(probabilities, targets, average)
            assert thresholds.tune_global(probabilities, targets, f"f1_{average}") == expected


def test_several_equally_good_thresholds_give_the_highest() -> None:
    # F1 is 2/3 both at 0.9 (one hit of two) and at 0.2 (two hits, two misses)
    probabilities = np.array([[0.9], [0.6], [0.4], [0.2]])
    assert thresholds.tune_global(probabilities, np.array([[1], [0], [0], [1]])) == pytest.approx(0.75)
    assert thresholds.tune_per_class(probabilities, np.array([[1], [0], [0], [1]]))[0] == pytest.approx(0.75)


def test_another_metric_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean f1_micro"):
        thresholds.tune_global(np.zeros((2, 2)), np.zeros((2, 2)), metric="f1_mikro")


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


@pytest.mark.parametrize("tune", [thresholds.tune_global, thresholds.tune_per_class])
def test_cross_fitting_is_the_loop_over_folds(tune: Callable[..., float | np.ndarray]) -> None:
    probabilities, targets = draw(4, 8)
    fold_of = np.random.default_rng(3).permutation(60) % 3
    predicted = np.zeros(targets.shape, dtype=bool)
    for fold in range(3):
        tuned = tune(probabilities[fold_of != fold], targets[fold_of != fold])
        predicted[fold_of == fold] = metrics.predict(probabilities[fold_of == fold], tuned)
    expected = f1_score(targets, predicted, average="macro", zero_division=0)
    value = thresholds.cross_fit(probabilities, targets, tune, metric="f1_macro", folds=3, seed=3)
    assert value == pytest.approx(expected, abs=1e-12)


def test_cross_fitting_one_image_has_nothing_to_tune_on() -> None:
    assert thresholds.cross_fit(np.array([[0.6, 0.4]]), np.array([[1, 1]]), metric="f1_samples") == pytest.approx(2 / 3)
