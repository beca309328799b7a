"""calibration.py against scikit-learn's logistic regression and Platt scaling, and scores made with known scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_products_rng
from sklearn.calibration import _SigmoidCalibration
from sklearn.linear_model import LogisticRegression

import calibration
import metrics
from utils import InputError


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def draw(num_images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 5) logits in float64 and targets, of classes that need other scales and biases."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_images, 5)) < (0.5, 0.3, 0.2, 0.1, 0.05)).astype(np.int8)
    logits = rng.normal(-1, 1, targets.shape) + targets * np.array((2.0, 1.0, 3.0, 0.5, 2.0))
    return logits * np.array((1, 2, 0.5, 1, 3)), targets


def test_platt_is_scikit_learns() -> None:
    logits, targets = draw()
    fitted = calibration.fit_platt(sigmoid(logits), targets)
    for label in range(5):
        expected = _SigmoidCalibration().fit(logits[:, label], targets[:, label])  # of -(a x + b)
        assert fitted["scale"][label] == pytest.approx(-expected.a_, abs=1e-4)
        assert fitted["bias"][label] == pytest.approx(-expected.b_, abs=1e-4)


def test_platt_is_logistic_regression_toward_smoothed_targets() -> None:
    logits, targets = draw()
    fitted = calibration.fit_platt(sigmoid(logits), targets)
    for label in range(5):
        x, y = logits[:, [label]], targets[:, label]
        high, low = (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2)
        share = np.where(y == 1, high, low)  # an entry counts as so much of a positive, and the rest as a negative
        twice, labels = np.concatenate((x, x)), np.repeat([1, 0], len(x))
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        model.fit(twice, labels, sample_weight=np.concatenate((share, 1 - share)))
        assert fitted["scale"][label] == pytest.approx(model.coef_[0, 0], abs=1e-6)
        assert fitted["bias"][label] == pytest.approx(np.ravel(model.intercept_)[0], abs=1e-6)


@pytest.mark.parametrize("unknown", [None, -1, np.nan])
def test_temperature_is_logistic_regression_of_the_known_entries(unknown: float | None) -> None:
    logits, targets = draw()
    known = np.ones(targets.shape, bool) if unknown is None else np.random.default_rng(1).random(targets.shape) < 0.7
    marked = targets if unknown is None else np.where(known, targets, unknown)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logits[known][:, None], targets[known])
    fitted = calibration.fit_temperature(sigmoid(logits), marked)
    assert fitted == {"scale": [pytest.approx(float(model.coef_.item()), abs=1e-6)], "bias": [0.0]}


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_a_known_scale_is_found(scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, (20_000, 4))
    targets = (rng.random(logits.shape) < sigmoid(logits)).astype(np.int8)
    probabilities = sigmoid(logits / scale).astype(np.float32)
    fitted = calibration.fit(probabilities, targets)
    assert fitted["temperature"]["scale"][0] == pytest.approx(scale, rel=0.02)
    assert fitted["platt"]["scale"] == pytest.approx([scale] * 4, rel=0.06)
    assert fitted["platt"]["bias"] == pytest.approx([0] * 4, abs=0.08)
    before = calibration.expected_calibration_error(probabilities, targets)
    after = [calibration.apply_to_probabilities(probabilities, method) for method in fitted.values()]
    for calibrated in after:
        assert calibration.expected_calibration_error(calibrated, targets) < 0.01
    assert before > 0.04 or scale == 1


def test_known_biases_are_found() -> None:
    rng = np.random.default_rng(0)
    logits, biases = rng.normal(0, 2, (20_000, 3)), np.array((-2.0, 0.0, 1.0))
    targets = rng.random(logits.shape) < sigmoid(1.5 * logits + biases)
    fitted = calibration.fit_platt(sigmoid(logits), targets)
    assert fitted["scale"] == pytest.approx([1.5] * 3, rel=0.05)
    assert fitted["bias"] == pytest.approx(biases, abs=0.1)


def test_one_sided_classes_take_the_temperature() -> None:
    logits, targets = draw()
    targets[:, 1], targets[:, 3], targets[:, 4] = 0, 1, -1
    assert calibration.find_one_sided(targets).tolist() == [1, 3, 4]
    fitted = calibration.fit(sigmoid(logits), targets)
    (temperature,) = fitted["temperature"]["scale"]
    for label in range(5):
        assert (fitted["platt"]["scale"][label] == temperature) == (label in (1, 3, 4))
        assert (fitted["platt"]["bias"][label] == 0) == (label in (1, 3, 4))


def test_a_scale_stays_above_zero_with_the_best_bias_beside_it() -> None:
    logits, targets = draw()
    fitted = calibration.fit_platt(sigmoid(-logits), targets)  # the higher, the less likely
    assert fitted["scale"] == [calibration.MIN_SCALE] * 5
    calibrated = calibration.apply_to_probabilities(sigmoid(-logits), fitted)
    positives = targets.sum(axis=0)
    smoothed = positives * (positives + 1) / (positives + 2) + (400 - positives) / (400 - positives + 2)
    assert calibrated.mean(axis=0) == pytest.approx(smoothed / 400, abs=1e-7)  # where the derivative by the bias is 0


def test_scores_that_separate_give_a_large_scale_and_an_end() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    probabilities = np.where(targets, 0.7, 0.3)
    assert 30 < calibration.fit_temperature(probabilities, targets)["scale"][0] <= calibration.MAX_SCALE
    assert np.isfinite(calibration.fit_platt(probabilities, targets)["scale"]).all()
    reversed_scores = calibration.fit_temperature(1 - probabilities, targets)["scale"]
    assert reversed_scores == [calibration.MIN_SCALE]


def test_scores_of_0_and_1_can_be_fitted() -> None:
    probabilities = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.0], [1.0, 1.0]], dtype=np.float32)
    for method in calibration.fit(probabilities, np.array([[0, 1], [1, 0], [0, 1], [0, 1]])).values():
        calibrated = calibration.apply_to_probabilities(probabilities, method)
        assert np.isfinite(calibrated).all()
        assert ((calibrated == 0) == (probabilities == 0)).all()
        assert ((calibrated == 1) == (probabilities == 1)).all()


@pytest.mark.parametrize("targets", [np.full((3, 2), -1), np.zeros((0, 2))])
def test_nothing_known_leaves_all_as_it_is(targets: np.ndarray) -> None:
    fitted = calibration.fit(np.full(targets.shape, 0.3), targets)
    assert fitted["temperature"] == {"scale": [1.0], "bias": [0.0]}
    assert fitted["platt"] == {"scale": [1.0, 1.0], "bias": [0.0, 0.0]}


def test_logits_are_refused() -> None:
    with pytest.raises(InputError, match="logits"):
        calibration.fit(np.full((3, 2), 2.0), np.zeros((3, 2)))


METHOD = {"scale": [0.5, 1.0, 3.0], "bias": [1.0, -2.0, 0.25]}


def test_apply_scales_and_shifts_tensors_and_arrays_alike() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (10, 3)).astype(np.float32)
    expected = logits * np.array(METHOD["scale"], np.float32) + np.array(METHOD["bias"], np.float32)
    array, tensor = calibration.apply(logits, METHOD), calibration.apply(torch.from_numpy(logits), METHOD)
    assert array.dtype == np.float32
    assert tensor.dtype == torch.float32
    assert np.array_equal(array, expected)
    assert tensor.numpy() == pytest.approx(expected, abs=1e-6)
    temperature = {"scale": [2.0], "bias": [0.0]}
    assert np.array_equal(calibration.apply(logits, temperature), 2 * logits)


def test_probabilities_are_calibrated_as_their_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (10, 3))
    expected = sigmoid(calibration.apply(logits, METHOD))
    assert calibration.apply_to_probabilities(sigmoid(logits), METHOD) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", [METHOD, {"scale": [0.3], "bias": [0.0]}])
def test_mapped_thresholds_predict_the_same(method: dict[str, list[float]]) -> None:
    probabilities = np.random.default_rng(0).random((500, 3)).astype(np.float32)
    for thresholds in ([0.4, 0.01, 0.97], 0.6, [0.0, 1.0, 0.5], [1.0000001, -0.1, 0.5]):
        mapped = calibration.map_thresholds(thresholds, method)
        calibrated = calibration.apply_to_probabilities(probabilities, method)
        assert np.array_equal(calibrated >= mapped, probabilities >= np.asarray(thresholds))


def test_reliability_and_its_error_are_counted_bin_by_bin() -> None:
    rng = np.random.default_rng(0)
    probabilities = np.append(rng.random((300, 2)), [[0.0, 1.0], [0.2, 0.4]], axis=0).astype(np.float32)
    probabilities[(probabilities > 0.6) & (probabilities < 0.7)] = 0.5  # a bin that is empty
    targets = np.where(rng.random(probabilities.shape) < 0.1, -1, rng.random(probabilities.shape) < probabilities)
    bins = calibration.measure_reliability(probabilities, targets)
    exact, error = probabilities.astype(np.float64), 0.0
    for step in range(15):
        inside = (exact > step / 15) & (exact <= (step + 1) / 15) & (targets >= 0)
        inside |= (step == 0) & (exact == 0) & (targets >= 0)
        assert bins.counts[step] == inside.sum()
        if not inside.any():
            assert np.isnan(bins.probability[step])
            assert np.isnan(bins.present[step])
            continue
        mean, present = exact[inside].mean(), targets[inside].mean()
        assert bins.probability[step] == pytest.approx(mean, abs=1e-12)
        assert bins.present[step] == pytest.approx(present, abs=1e-12)
        error += inside.sum() / (targets >= 0).sum() * abs(mean - present)
    assert (bins.counts == 0).any()
    assert calibration.expected_calibration_error(probabilities, targets) == pytest.approx(error, abs=1e-12)
    assert metrics.measure(probabilities, targets, 0.5)["ECE"] == pytest.approx(error, abs=1e-12)


def test_cross_fitting_calibrates_each_fold_by_the_others() -> None:
    logits, targets = draw(60)
    probabilities, fold_of = sigmoid(logits), make_products_rng(2).permutation(60) % 4
    calibrated = calibration.cross_fit(probabilities, targets, calibration.fit_platt, folds=4, seed=2)
    for fold in range(4):
        here = fold_of == fold
        method = calibration.fit_platt(probabilities[~here], targets[~here])
        expected = sigmoid(logits[here] * method["scale"] + method["bias"])
        assert calibrated[here] == pytest.approx(expected, abs=1e-12)
