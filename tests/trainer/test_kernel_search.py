"""The kernel head: against scikit-learn's kernel ridge regression, and Platt scaling by its logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from platt_scaling import Rows, calibrate, calibrate_by_folds
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge
from test_head_search import WithoutFloat64
from torch.nn import functional

from heads import Kernel
from trainer import kernel_search
from trainer.head_search import FoundHead
from trainer.kernel_search import PENALTIES, count_landmarks, find_kernel_head

NUM_IMAGES, NUM_FEATURES, NUM_CLASSES = 160, 6, 3


@pytest.fixture
def features() -> NDArray[np.float32]:
    scales = np.linspace(0.1, 30, NUM_FEATURES)  # of very different size, and not around 0
    return (np.random.default_rng(1).normal(size=(NUM_IMAGES, NUM_FEATURES)) * scales + 5).astype(np.float32)


@pytest.fixture
def targets(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first class is a ball, which no border that is straight encloses; the others have a straight one."""
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    logits = standard @ np.random.default_rng(2).normal(size=(NUM_FEATURES, NUM_CLASSES))
    logits[:, 0] = 2 * (NUM_FEATURES - 2 - (standard**2).sum(axis=1))
    return (np.random.default_rng(3).random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.fixture
def fold_of() -> NDArray[np.intp]:
    return np.random.default_rng(4).permutation(NUM_IMAGES) % 4


def standardise(features: NDArray[np.float32], training: NDArray[np.float32] | None = None) -> Rows:
    """Standardised as `training`, by default `features`, of which two have a mean squared distance of 1."""
    training = features if training is None else training
    mean, std = training.mean(axis=0, dtype=np.float64), training.std(axis=0, dtype=np.float64)
    std = np.where(std > 0, std, 1)
    own = (training - mean) / std
    return (features - mean) / std / np.sqrt(cdist(own, own, "sqeuclidean").mean())


def compare(points: Rows, landmarks: Rows) -> Rows:
    return np.exp(-cdist(points, landmarks, "sqeuclidean"))


def center(kernel: Rows, weights: Rows, among: Rows | None = None) -> Rows:
    """The products of images and training images once the weighted mean of training is taken away from both.

    `kernel` (B, N) are those of the images, `among` (N, N) those of training, by default `kernel`.
    """
    among, shares = kernel if among is None else among, weights / weights.sum()
    return kernel - (kernel @ shares)[:, None] - among @ shares + shares @ among @ shares


def predict_by_folds(kernel: Rows, wanted: Rows, fold_of: NDArray[np.intp], penalty: float, weights: Rows) -> Rows:
    """(N,) by scikit-learn's regressions, each image by one without its fold."""
    predicted = np.empty(len(kernel))
    for fold in np.unique(fold_of):
        outside = fold_of == fold
        ridge = KernelRidge(alpha=penalty, kernel="precomputed")
        ridge.fit(kernel[np.ix_(~outside, ~outside)], wanted[~outside], weights[~outside])
        predicted[outside] = ridge.predict(kernel[np.ix_(outside, ~outside)])
    return predicted


def run_head(found: FoundHead, features: NDArray[np.float32]) -> Rows:
    """Logits (N, C) of the head that was found."""
    num_landmarks, num_axes = found.state["landmarks"].shape
    head = Kernel(features.shape[1], len(found.bias), num_landmarks, num_axes)
    head.load_state_dict(found.state)
    with torch.no_grad():
        return head(torch.from_numpy(features)[:, :, None, None]).double().numpy()


def test_the_head_is_a_kernel_ridge_regression_with_platts_probabilities(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    targets[:, 2] = np.arange(NUM_IMAGES) % 40 == 7  # a rare class
    found = find_kernel_head(features, targets, fold_of)
    points, ones = standardise(features), np.ones(NUM_IMAGES)
    kernel, logits = center(compare(points, points), ones), run_head(found, features)
    assert found.num_heads == 4 * len(PENALTIES)
    assert found.state["landmarks"].shape[0] == count_landmarks(NUM_IMAGES)
    for number in range(NUM_CLASSES):
        labels = targets[:, number].astype(np.float64)
        wanted = labels - labels.mean()
        by_penalty = {penalty: predict_by_folds(kernel, wanted, fold_of, penalty, ones) for penalty in PENALTIES}
        errors = {penalty: ((by_penalty[penalty] - wanted) ** 2).sum() for penalty in PENALTIES}
        penalty = min(PENALTIES, key=lambda penalty: abs(penalty - found.penalties[number]))
        assert errors[penalty] == pytest.approx(min(errors.values()), rel=1e-4)
        predicted = by_penalty[penalty]
        platt = calibrate(predicted, labels, ones)
        if platt.coef_[0, 0] <= 0:  # nothing was learnt: the test of classes without a positive says what comes then
            continue
        np.testing.assert_allclose(
            found.out_of_fold[:, number], calibrate_by_folds(predicted, labels, ones, fold_of), atol=2e-3
        )
        ridge = KernelRidge(alpha=penalty, kernel="precomputed").fit(kernel, wanted)
        expected = platt.decision_function(ridge.predict(kernel)[:, None])
        np.testing.assert_allclose(logits[:, number], expected, atol=2e-2)
    entries, own = torch.from_numpy(found.out_of_fold), torch.from_numpy(logits)
    assert found.out_of_fold_loss == pytest.approx(
        functional.binary_cross_entropy(entries, torch.from_numpy(targets)).item(), rel=1e-4
    )
    assert found.train_loss == pytest.approx(
        functional.binary_cross_entropy_with_logits(own, torch.from_numpy(targets).double()).item(), rel=1e-3
    )
    ball = found.out_of_fold[:, 0]
    assert ball[targets[:, 0] == 1].mean() > ball[targets[:, 0] == 0].mean() + 0.2


def test_images_weights_and_unknown_entries_count_as_they_should(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    """Weights as shares of the effective number of images; an unknown entry as its class's frequency."""
    given = np.random.default_rng(5).integers(1, 4, NUM_IMAGES).astype(np.float32)
    pos_weight = torch.tensor([1.0, 3.0, 2.0])
    unknown = targets.copy()
    unknown[::5, 1], unknown[1::7, 2] = np.nan, -1
    found = find_kernel_head(features, unknown, fold_of, given, pos_weight, label_smoothing=0.1)
    points, logits, weights = standardise(features), run_head(found, features), given * given.sum() / (given**2).sum()
    kernel = center(compare(points, points), weights)
    for number in range(NUM_CLASSES):
        known = unknown[:, number] >= 0
        labels = np.where(known, targets[:, number], 0).astype(np.float64)
        frequency = (weights * known * labels).sum() / (weights * known).sum()
        wanted = np.where(known, labels - frequency, 0)
        by_penalty = {penalty: predict_by_folds(kernel, wanted, fold_of, penalty, weights) for penalty in PENALTIES}
        errors = {penalty: (weights * (by_penalty[penalty] - wanted) ** 2).sum() for penalty in PENALTIES}
        penalty = min(PENALTIES, key=lambda penalty: abs(penalty - found.penalties[number]))
        assert errors[penalty] == pytest.approx(min(errors.values()), rel=1e-4)
        predicted = by_penalty[penalty]
        smooth = 0.9 * labels + 0.05
        positive, negative = smooth * pos_weight[number].item(), 1 - smooth
        soft, entry_weights = positive / (positive + negative), weights * known * (positive + negative)
        np.testing.assert_allclose(
            found.out_of_fold[:, number], calibrate_by_folds(predicted, soft, entry_weights, fold_of), atol=2e-3
        )
        ridge = KernelRidge(alpha=penalty, kernel="precomputed").fit(kernel, wanted, weights)
        platt = calibrate(predicted, soft, entry_weights)
        expected = platt.decision_function(ridge.predict(kernel)[:, None])
        np.testing.assert_allclose(logits[:, number], expected, atol=2e-2)


def test_equal_weights_change_nothing(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    expected = find_kernel_head(features, targets, fold_of)
    found = find_kernel_head(features, targets, fold_of, weights=np.full(NUM_IMAGES, 0.01, np.float32))
    np.testing.assert_array_equal(found.penalties, expected.penalties)
    np.testing.assert_allclose(found.out_of_fold, expected.out_of_fold, atol=1e-4)
    np.testing.assert_allclose(run_head(found, features), run_head(expected, features), atol=1e-3)


def test_few_images_that_count_are_few(features: NDArray[np.float32], fold_of: NDArray[np.intp]) -> None:
    """Of a class that none of them has, they do not say that it is as rare as all images would."""
    weights = np.zeros(NUM_IMAGES, np.float32)
    weights[:4] = 1
    found = find_kernel_head(features, np.zeros((NUM_IMAGES, 1), np.float32), fold_of, weights)
    probabilities = 1 / (1 + np.exp(-run_head(found, features)))
    np.testing.assert_allclose(probabilities, 1 / (4 + 2), atol=1e-3)


def test_new_images_are_as_far_from_the_landmarks_as_they_are() -> None:
    """Few images of training span little of the space: most of what a new one has lies outside."""
    random = np.random.default_rng(7)
    features = random.normal(size=(40 + 50, 600)).astype(np.float32)
    training, new = features[:40], features[40:]
    targets = (training[:, :2] > 0).astype(np.float32)
    fold_of = np.arange(40) % 4
    found = find_kernel_head(training, targets, fold_of)
    points = standardise(training)
    among = compare(points, points)
    kernel, ones = center(among, np.ones(40)), np.ones(40)
    similar = center(compare(standardise(new, training), points), ones, among)
    for number in range(2):
        wanted = targets[:, number].astype(np.float64) - targets[:, number].mean()
        ridge = KernelRidge(alpha=found.penalties[number], kernel="precomputed").fit(kernel, wanted)
        for images, products in ((training, kernel), (new, similar)):
            logits = run_head(found, images)[:, number]
            slope, shift = np.polyfit(ridge.predict(kernel), run_head(found, training)[:, number], 1)
            np.testing.assert_allclose(logits, slope * ridge.predict(products) + shift, atol=1e-3 * abs(slope))


def test_more_images_than_landmarks(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    fold_of: NDArray[np.intp],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All images train: the regression has a weight for each landmark, as Nystroem's method says, and fewer axes.

    Of a distance along the other axes only what the two images have in length counts.
    """
    monkeypatch.setattr(kernel_search, "MOST_LANDMARKS", 40)
    monkeypatch.setattr(kernel_search, "NUM_AXES", 4)
    monkeypatch.setattr(kernel_search, "AT_ONCE", 50)
    found = find_kernel_head(features, targets, fold_of)
    standard = standardise(features)
    turned = standard @ np.linalg.svd(standard, full_matrices=False)[2].T
    outside = (turned[:, 4:] ** 2).sum(axis=1)
    distances = cdist(turned[:, :4], turned[:, :4], "sqeuclidean") + outside[:, None] + outside
    logits = run_head(found, features)
    state = {name: tensor.double().numpy() for name, tensor in found.state.items()}
    assert state["landmarks"].shape == (40, 4)
    own = (features - state["mean"]) * state["scale"] @ state["axes"]  # the landmarks are 40 of these
    chosen = cdist(state["landmarks"], own).argmin(axis=1)
    assert len(set(chosen)) == 40
    similar, among = np.exp(-distances[:, chosen]), np.exp(-distances[np.ix_(chosen, chosen)])
    similar = similar - similar.mean(axis=0)
    for number in range(NUM_CLASSES):
        labels = targets[:, number].astype(np.float64)
        weight = np.linalg.solve(
            similar.T @ similar + found.penalties[number] * among, similar.T @ (labels - labels.mean())
        )
        expected = similar @ weight
        assert np.corrcoef(logits[:, number], expected)[0, 1] > 0.999, "logits are these, times a slope, plus a shift"


def test_a_feature_that_hardly_changes_outvotes_no_other(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    features = np.concatenate([features, np.full((NUM_IMAGES, 1), 6, np.float32)], axis=1)
    features[3, -1] = 5.999  # an activation that ends at 6
    found = find_kernel_head(features, targets, fold_of)
    changed = features.copy()
    changed[:, -1] = 5.5
    np.testing.assert_allclose(run_head(found, changed), run_head(found, features), atol=0.5)


def test_equal_images_get_equal_probabilities() -> None:
    features = np.full((6, 5), 0.1, np.float32)
    targets = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [0, 1], [0, 0]], np.float32)
    logits = run_head(find_kernel_head(features, targets, np.arange(6) % 3), features)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits, logits[:1].repeat(6, axis=0), atol=1e-6)


@pytest.mark.parametrize(("num_images", "num_features"), [(60, 200), (12, 700), (3, 4)])
def test_fewer_images_than_features_and_classes_without_a_positive(num_images: int, num_features: int) -> None:
    random = np.random.default_rng(6)
    features = random.normal(size=(num_images, num_features)).astype(np.float32)
    features[:, 1] = 7.0  # a feature that never changes
    targets = (random.random((num_images, 5)) < 0.3).astype(np.float32)
    targets[:, 0], targets[:, 1], targets[:, 2] = 0, 1, np.nan
    targets[0, 3], targets[1:, 3] = 1, 0
    found = find_kernel_head(features, targets, np.arange(num_images) % 3)
    assert found.state["landmarks"].shape == (num_images, min(512, num_features)), "as a new head of so many images"
    logits = run_head(found, features)
    assert np.isfinite(logits).all()
    assert np.isfinite(found.out_of_fold).all()
    assert logits[:, 3].argmax() == 0, "its one positive, though each fold without it predicts it wrong"
    probabilities = 1 / (1 + np.exp(-logits[:, :3]))
    np.testing.assert_allclose(probabilities, probabilities[:1].repeat(num_images, axis=0), atol=1e-6)
    assert probabilities[0, 0] == pytest.approx(1 / (num_images + 2), abs=0.02)
    assert probabilities[0, 1] == pytest.approx((num_images + 1) / (num_images + 2), abs=0.02)
    counts = np.delete(targets, 2, axis=1).sum(axis=0)
    assert probabilities[0, 2] == pytest.approx(((counts + 0.5) / (num_images + 1)).mean())


def test_a_device_without_float64_will_do(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    expected = find_kernel_head(features, targets, fold_of)
    with WithoutFloat64():
        found = find_kernel_head(features, targets, fold_of)
    assert torch.equal(found.weight, expected.weight)
