"""The search over linear heads: against scikit-learn's logistic regression, and against heads trained one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import SEED_SHIFT
from numpy.typing import NDArray
from platt_scaling import Rows, calibrate, calibrate_by_folds
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from heads import HEADS
from losses import LOSSES
from trainer import head_search
from trainer.head_search import PENALTIES, SMOOTHING, Way, find_head, search_heads

NUM_IMAGES, NUM_FEATURES, NUM_CLASSES = 240, 12, 3


@pytest.fixture
def features() -> NDArray[np.float32]:
    scales = np.linspace(0.1, 30, NUM_FEATURES)  # of very different size, and not around 0
    return (np.random.default_rng(1).normal(size=(NUM_IMAGES, NUM_FEATURES)) * scales + 5).astype(np.float32)


@pytest.fixture
def targets(features: NDArray[np.float32]) -> NDArray[np.float32]:
    random = np.random.default_rng(2)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    logits = standard @ random.normal(size=(NUM_FEATURES, NUM_CLASSES)) - np.array([0.0, 1.0, 2.0])
    return (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.fixture
def fold_of() -> NDArray[np.intp]:
    return np.random.default_rng(3).permutation(NUM_IMAGES) % 4


def fit_reference(
    features: NDArray[np.floating],
    labels: NDArray[np.floating],
    penalty: float,
    weights: NDArray[np.floating],
    pos_weight: float = 1.0,
) -> LogisticRegression:
    """scikit-learn's, on features that are standardised already. Its C weighs the sum over images.

    With a label smoothed to .85 an image is .85 of a positive, which counts `pos_weight` times, and .15 of a negative.
    """
    soft = (1 - SMOOTHING) * labels + SMOOTHING / 2
    counts = np.concatenate([pos_weight * soft * weights, (1 - soft) * weights])
    regression = LogisticRegression(C=1 / (2 * penalty * counts.sum()), tol=1e-9, max_iter=10_000)
    return regression.fit(np.tile(features.astype(np.float64), (2, 1)), np.repeat([1, 0], len(labels)), counts)


def predict_by_folds(
    features: NDArray[np.floating],
    labels: NDArray[np.floating],
    fold_of: NDArray[np.intp],
    penalty: float,
    weights: NDArray[np.floating],
    pos_weight: float = 1.0,
) -> Rows:
    """(N,) logits by `fit_reference`, each image's by one without its fold."""
    logits = np.empty(len(labels))
    for fold in np.unique(fold_of):
        outside = fold_of == fold
        reference = fit_reference(features[~outside], labels[~outside], penalty, weights[~outside], pos_weight)
        logits[outside] = reference.decision_function(features[outside])
    return logits


def scale(logits: Rows, by_folds: Rows, platt: LogisticRegression) -> Rows:
    """`platt`, fitted on logits out of fold, of all that the head itself gives: both count from their mean."""
    return platt.decision_function((logits - logits.mean() + by_folds.mean())[:, None])


class WithoutFloat64(TorchFunctionMode):
    """A device without float64, as Apple's GPUs: only what was brought to the CPU may become that."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            self.on_cpu.append(result)
        assert func is not torch.Tensor.double or any(args[0] is tensor for tensor in self.on_cpu)
        return result


def test_a_device_without_float64_will_do(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    expected = find_head(features, targets, fold_of)
    with WithoutFloat64():
        found = find_head(features, targets, fold_of)
    assert torch.equal(found.weight, expected.weight)
    with pytest.raises(AssertionError), WithoutFloat64():
        torch.ones(1).double()


def test_the_head_is_a_logistic_regression_with_platts_probabilities(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    found = find_head(features, targets, fold_of)
    mean, std, ones = features.mean(axis=0), features.std(axis=0), np.ones(NUM_IMAGES)
    standard = (features - mean) / std
    for number in range(NUM_CLASSES):
        labels, penalty = targets[:, number].astype(np.float64), found.penalties[number]
        reference = fit_reference(standard, labels, penalty, ones)
        by_folds = predict_by_folds(standard, labels, fold_of, penalty, ones)
        platt = calibrate(by_folds, labels, ones)
        expected = reference.coef_[0] * platt.coef_[0, 0]
        np.testing.assert_allclose(found.weight[number].numpy() * std, expected, atol=5e-3)
        logits = features @ found.weight[number].numpy() + found.bias[number].item()
        np.testing.assert_allclose(logits, scale(reference.decision_function(standard), by_folds, platt), atol=2e-2)
        expected = calibrate_by_folds(by_folds, labels, ones, fold_of)
        np.testing.assert_allclose(found.out_of_fold[:, number], expected, atol=5e-3)
    entries = torch.from_numpy(found.out_of_fold)
    assert found.out_of_fold_loss == pytest.approx(
        functional.binary_cross_entropy(entries, torch.from_numpy(targets)).item(), rel=1e-4
    )


def test_the_penalty_of_a_class_is_that_of_the_least_loss_out_of_fold(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    """The cross-entropy with smoothed labels, which the regressions learn from."""
    found = find_head(features, targets, fold_of)
    standard, ones = (features - features.mean(axis=0)) / features.std(axis=0), np.ones(NUM_IMAGES)
    for number in range(NUM_CLASSES):
        labels = targets[:, number].astype(np.float64)
        soft, losses = (1 - SMOOTHING) * labels + SMOOTHING / 2, []
        for penalty in PENALTIES:
            probabilities = 1 / (1 + np.exp(-predict_by_folds(standard, labels, fold_of, penalty, ones)))
            losses.append(-(soft * np.log(probabilities) + (1 - soft) * np.log(1 - probabilities)).mean())
        assert losses[PENALTIES.index(found.penalties[number])] == pytest.approx(min(losses), abs=1e-4)


def test_images_weights_and_unknown_entries_count_as_they_should(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    weights = np.random.default_rng(4).uniform(0.2, 3, NUM_IMAGES)
    pos_weight = torch.tensor([1.0, 3.0, 2.0])
    unknown = targets.copy()
    unknown[::5, 1] = np.nan
    unknown[1::7, 2] = -1
    found = find_head(features, unknown, fold_of, weights=weights, pos_weight=pos_weight)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    for number in range(NUM_CLASSES):
        labels, penalty = targets[:, number].astype(np.float64), found.penalties[number]
        heavier = pos_weight[number].item()
        counts = weights * weights.sum() / np.square(weights).sum()  # together the effective number
        counts = np.where(unknown[:, number] >= 0, counts, 0)
        reference = fit_reference(standard, labels, penalty, counts, heavier)
        by_folds = predict_by_folds(standard, labels, fold_of, penalty, counts, heavier)
        platt = calibrate(by_folds, labels, np.where(labels == 1, heavier * counts, counts))
        logits = features @ found.weight[number].numpy() + found.bias[number].item()
        np.testing.assert_allclose(logits, scale(reference.decision_function(standard), by_folds, platt), atol=2e-2)


def test_smoothed_labels_are_what_the_probabilities_are_of(
    features: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    """On classes so rare that smoothing more than doubles their mean."""
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    targets = (standard[:, :NUM_CLASSES] > 1.6).astype(np.float32)
    for label_smoothing in (0.0, 0.2):
        found = find_head(features, targets, fold_of, label_smoothing=label_smoothing)
        share = (1 - label_smoothing) * targets.mean(axis=0) + label_smoothing / 2
        np.testing.assert_allclose(found.out_of_fold.mean(axis=0), share, atol=0.02)


def test_more_features_than_images(targets: NDArray[np.float32]) -> None:
    """Of random numbers nothing can be learned: Platt scaling makes the logits small, and their order stays."""
    features = np.random.default_rng(5).normal(size=(60, 200)).astype(np.float32)
    labels = targets[:60].astype(np.float64)
    found = find_head(features, targets[:60], np.arange(60) % 3)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    for number in range(NUM_CLASSES):
        reference = fit_reference(standard, labels[:, number], found.penalties[number], np.ones(60))
        logits = features @ found.weight[number].numpy() + found.bias[number].item()
        assert np.corrcoef(logits, reference.decision_function(standard))[0, 1] > 1 - 1e-3


def test_a_class_with_one_kind_of_label_gets_the_same_probability_everywhere(
    features: NDArray[np.float32], targets: NDArray[np.float32]
) -> None:
    """Its frequency by Platt's targets, also where the folds, of 34 and 35 images, have others."""
    labels = targets.copy()
    labels[:, 0], labels[:, 1] = 0, np.nan
    labels[:3, 1] = 1
    features[:, 4] = 7.0  # a feature that never changes
    found = find_head(features, labels, np.arange(NUM_IMAGES) % 7)
    assert found.weight[:2].abs().max() == 0
    assert found.bias[:2].sigmoid().tolist() == pytest.approx([1 / (NUM_IMAGES + 2), 4 / 5], rel=1e-3)
    assert found.out_of_fold[:, 0] == pytest.approx(1 / (NUM_IMAGES + 2), rel=0.2)
    assert np.isfinite(found.out_of_fold).all()
    assert torch.isfinite(found.weight).all()


def test_a_class_without_any_known_label_gets_the_mean_frequency(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    """At 1/2 it would be predicted on every image."""
    labels = targets.copy()
    labels[:, 1] = np.nan
    found = find_head(features, labels, fold_of)
    assert found.weight[1].abs().max() == 0
    known = np.delete(labels, 1, axis=1)
    expected = ((known.sum(axis=0) + 0.5) / (len(known) + 1)).mean()
    assert found.bias[1].sigmoid().item() == pytest.approx(expected, abs=1e-5)
    for fold in np.unique(fold_of):
        inside, outside = known[fold_of != fold], found.out_of_fold[fold_of == fold, 1]
        assert outside == pytest.approx(((inside.sum(axis=0) + 0.5) / (len(inside) + 1)).mean(), abs=1e-5)


def test_many_classes_are_searched_a_few_at_a_time(
    features: NDArray[np.float32],
    targets: NDArray[np.float32],
    fold_of: NDArray[np.intp],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classes share nothing but the steps of L-BFGS."""
    together = find_head(features, targets, fold_of)
    monkeypatch.setattr(head_search, "LOGITS_AT_ONCE", 2 * NUM_IMAGES * len(PENALTIES))
    sizes: list[int] = []
    fit = head_search._fit

    def note(space: Any, rows: Any, labels: torch.Tensor, *rest: Any) -> Any:
        sizes.append(labels.shape[1])
        return fit(space, rows, labels, *rest)

    monkeypatch.setattr(head_search, "_fit", note)
    apart = find_head(features, targets, fold_of)
    num_folds = len(np.unique(fold_of))
    assert sizes == [2] * num_folds + [1] * num_folds + [NUM_CLASSES]
    alike = apart.penalties == together.penalties  # L-BFGS stops early: of two penalties as good either may be chosen
    np.testing.assert_allclose(apart.out_of_fold[:, alike], together.out_of_fold[:, alike], atol=5e-3)
    np.testing.assert_allclose(apart.out_of_fold_loss, together.out_of_fold_loss, rtol=0.01)


def test_a_rate_that_is_too_high_spoils_no_other_head(
    features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: NDArray[np.intp]
) -> None:
    good = Way(epochs=1)
    results = search_heads(features, targets, [good, Way(epochs=1, rate=float("inf"))], fold_of)
    assert not np.isfinite(results[1].probabilities).any()
    assert np.isnan(results[1].mAP)
    (alone,) = search_heads(features, targets, [good], fold_of)
    assert results[0].mAP == pytest.approx(alone.mAP)


@pytest.mark.parametrize(
    ("head", "loss"),
    [("linear", "bce_with_logits"), ("linear_bn", "focal"), ("linear", "zlpr"), ("linear", "splc")],
)
def test_heads_side_by_side_are_those_trained_one_by_one(
    head: str, loss: str, features: NDArray[np.float32], targets: NDArray[np.float32]
) -> None:
    """Two ways in two folds at once, against torch's Adam on the images of one fold alone."""
    fold_of = np.arange(NUM_IMAGES) // (NUM_IMAGES // 2)
    labels = targets.copy()
    labels[::9, 0] = np.nan
    cap = 5.0 if loss == "bce_with_logits" else None
    ways = [
        Way(
            head=head, loss=loss, rate=rate, weight_decay=decay, label_smoothing=smoothing, pos_weight_cap=cap, epochs=2
        )
        for rate, decay, smoothing in ((3e-3, 0.0, 0.1), (3e-2, 1e-3, 0.0))
    ]
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    labels[5::31] = np.nan  # images without a known label
    results = search_heads(features, labels, ways, fold_of, seed=7 + SEED_SHIFT)
    for way, result in zip(ways, results, strict=True):
        assert result.way == way
        for fold in range(2):
            outside = fold_of == fold
            expected = train_alone(way, torch.from_numpy(features), torch.from_numpy(labels), outside)
            np.testing.assert_allclose(result.probabilities[outside], expected[outside].numpy(), atol=2e-4)


def train_alone(way: Way, images: torch.Tensor, labels: torch.Tensor, outside: NDArray[np.bool_]) -> torch.Tensor:
    """Probabilities (N, C) of one head, in the order of batches that `search_heads` has for seed 7."""
    generator = torch.Generator().manual_seed(7)
    network: Any = HEADS[way.head](NUM_FEATURES, NUM_CLASSES).train()
    limit = NUM_FEATURES**-0.5
    start = torch.rand(NUM_FEATURES, 1, NUM_CLASSES, generator=generator).mul(2 * limit).sub(limit)
    linear: Any = network if way.head == "linear" else network.linear
    with torch.no_grad():
        linear.weight.copy_(start[:, 0].T)
        linear.bias.zero_()
    if way.head == "linear_bn":
        linear.bias.requires_grad_(False)  # its gradient is rounding alone
    inside = torch.from_numpy(~outside)
    options = {}
    if way.pos_weight_cap:
        seen = labels[inside]
        options["pos_weight"] = ((seen == 0).sum(dim=0) / (seen == 1).sum(dim=0)).clamp_max(way.pos_weight_cap)
    loss_of: Any = LOSSES[way.loss](**options)
    optimizer = torch.optim.Adam(network.parameters(), way.rate, weight_decay=way.weight_decay)
    batches = list(range(0, NUM_IMAGES, way.batch_size))
    num_batches = len(batches) - (NUM_IMAGES % way.batch_size < way.batch_size / 2)  # the rest joins the last one
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, way.epochs * num_batches)
    for epoch in range(1, way.epochs + 1):
        if way.loss == "splc":  # it corrects labels from the second epoch on
            loss_of.start_epoch(epoch)
        order = torch.randperm(NUM_IMAGES, generator=generator)
        for number in range(num_batches):
            end = None if number == num_batches - 1 else batches[number + 1]
            rows = order[batches[number] : end]
            kept = rows[inside[rows]]
            smoothed = (1 - way.label_smoothing) * labels[kept] + way.label_smoothing / 2
            entries = loss_of(network(images[kept][:, :, None, None]), smoothed)
            is_known = torch.isfinite(labels[kept])
            known = is_known.sum() if entries.dim() == 2 else is_known.any(dim=1).sum()
            (entries.sum() / known).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        return network.eval()(images[:, :, None, None]).sigmoid()
