"""trainer/validation.py: loss, probabilities and metrics of a validation split against a loop written out in
float64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_products_rng
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.utils.data import DataLoader

import config
import losses
import thresholds
from dataset import loading
from dataset.batches import Batch
from dataset.table import Table
from trainer import feature_cache, validation
from utils import InputError

CPU = torch.device("cpu")
NUM_IMAGES, NUM_CLASSES = 70, 3
WEIGHT = np.array([[2.0, 0.0, -1.0, 0.5], [0.0, 1.5, 1.0, 0.0], [-1.0, 0.5, 2.0, 1.0]])
BIAS = np.array([-0.5, 0.25, 1.0])
POS_WEIGHT = np.array([1.0, 3.0, 0.5])


def draw() -> tuple[np.ndarray, np.ndarray]:
    """(70, 4) features and (70, 3) targets. The last six images are the hardest: each label is wrong."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_IMAGES, 4)).astype(np.float32)
    logits = features.astype(np.float64) @ WEIGHT.T + BIAS
    targets = logits + rng.normal(0, 2, logits.shape) > 0
    targets[-6:] = logits[-6:] < 0
    return features, targets.astype(np.int8)


def make_loader(features: np.ndarray, targets: np.ndarray, batch_size: int) -> DataLoader[Batch]:
    table = Table([f"{row}.jpg" for row in range(NUM_IMAGES)], targets, ("a", "b", "c"))
    return feature_cache.make_feature_loader([features[:, :, None, None]], table, batch_size)


def make_network() -> nn.Module:
    linear = nn.Linear(4, NUM_CLASSES)
    linear.load_state_dict({"weight": torch.tensor(WEIGHT), "bias": torch.tensor(BIAS)})
    return nn.Sequential(nn.Flatten(), linear, nn.Dropout(0.5)).train()


def make_objective() -> losses.Objective:
    """In training it would weigh, smooth and sum up; validation compares epochs by the plain loss."""
    loss = losses.BCEWithLogits(torch.tensor(POS_WEIGHT, dtype=torch.float32))
    return losses.Objective(
        loss, {"ohem": losses.ENTRY_WEIGHTS["ohem"]()}, label_smoothing=0.2, reduction="sum"
    ).train()


def score(batch_size: int, features: np.ndarray, targets: np.ndarray) -> validation.Scores:
    return validation.compute_scores(make_network(), make_loader(features, targets, batch_size), make_objective(), CPU)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_no_file_stays_open_for_a_batch_of_a_loading_process() -> None:
    """Tensors come from it as open files, of which a process may have 1024: 62,000 images in batches of 64."""
    features, targets = draw()
    table = Table([f"{row}.jpg" for row in range(NUM_IMAGES)], targets, ("a", "b", "c"))
    dataset = feature_cache.FeatureDataset([features[:, :, None, None]], table)
    network, counts = make_network(), []
    network.register_forward_hook(lambda *_: counts.append(len(list(Path("/proc/self/fd").iterdir()))))
    options = loading.LoadingOptions(loading.LoadingProcesses(1))
    loader = loading.load_batches(dataset, 2, options=options)
    scores = validation.compute_scores(network, loader, make_objective(), CPU)
    assert len(counts) == NUM_IMAGES // 2
    assert max(counts[-10:]) <= max(counts[:10])
    assert np.array_equal(scores.targets, targets)


def compute_entries(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability and loss of each image and class, one at a time, in float64."""
    probabilities, entries = np.zeros((2, NUM_IMAGES, NUM_CLASSES))
    for image in range(NUM_IMAGES):
        for label in range(NUM_CLASSES):
            logit = sum(WEIGHT[label][i] * float(features[image][i]) for i in range(4)) + BIAS[label]
            p = 1 / (1 + np.exp(-logit))
            probabilities[image][label] = p
            entries[image][label] = -POS_WEIGHT[label] * np.log(p) if targets[image][label] == 1 else -np.log(1 - p)
    return probabilities, entries


@pytest.mark.parametrize("batch_size", [32, 70, 1])
def test_the_loss_is_the_mean_over_all_images_however_they_are_batched(batch_size: int) -> None:
    features, targets = draw()
    probabilities, entries = compute_entries(features, targets)
    scores = score(batch_size, features, targets)
    assert scores.loss == pytest.approx(entries.mean(), rel=1e-6)
    np.testing.assert_allclose(scores.probabilities, probabilities, atol=1e-6)
    assert np.array_equal(scores.targets, targets)
    batches = [entries[first : first + 32].mean() for first in (0, 32, 64)]
    assert abs(np.mean(batches) - entries.mean()) > 0.1, "a mean of the batches' means is another number"


def test_unknown_labels_are_left_out_of_their_batch() -> None:
    features, targets = draw()
    _, entries = compute_entries(features, targets)
    marked = np.where(np.random.default_rng(1).random(targets.shape) < 0.3, -1, targets).astype(np.int8)
    total = 0.0
    for first in (0, 32, 64):
        rows = slice(first, first + 32)
        known = [loss for loss, label in zip(entries[rows].flat, marked[rows].flat, strict=True) if label >= 0]
        total += sum(known) / len(known) * len(entries[rows])
    scores = score(32, features, marked)
    assert scores.loss == pytest.approx(total / NUM_IMAGES, rel=1e-6)
    assert np.array_equal(scores.targets, np.where(marked < 0, np.nan, marked), equal_nan=True)


def test_the_threshold_is_the_best_and_every_metric_is_measured_at_it() -> None:
    features, targets = draw()
    found = validation.measure_scores(many := repeat(score(32, features, targets), 3))
    targets = many.targets
    probabilities, reached = found.scores.probabilities, found.measured

    def measure_f1(threshold: float) -> float:
        return float(f1_score(targets, probabilities >= np.float32(threshold), average="weighted", zero_division=0))

    assert found.f1 == reached["f1_weighted"] == pytest.approx(measure_f1(found.threshold), abs=1e-9)
    assert found.f1 == pytest.approx(max(measure_f1(value) for value in np.unique(probabilities)), abs=1e-9)
    assert reached["mAP"] == pytest.approx(average_precision_score(targets, probabilities), abs=1e-9)
    assert 0 < reached["f1_weighted_cross_fitted"] <= 1
    assert found.make_record() == {
        "val_loss": found.scores.loss,
        "val_f1": found.f1,
        "val_f1_cross_fitted": reached["f1_weighted_cross_fitted"],
        "val_mAP": reached["mAP"],
        "threshold": found.threshold,
    }


def repeat(scores: validation.Scores, times: int) -> validation.Scores:
    """The scores of so many times as many images."""
    return validation.Scores(np.tile(scores.probabilities, (times, 1)), np.tile(scores.targets, (times, 1)), 0.0)


def test_few_images_choose_by_the_cross_fitted_f1() -> None:
    """The F1 at the threshold tuned on themselves is too good; each fifth is measured at a threshold of the others."""
    features, targets = draw()
    scores = score(32, features, targets)
    assert validation.cross_fits(thresholds.FEW_IMAGES - 1)
    assert not validation.cross_fits(thresholds.FEW_IMAGES)
    found = validation.measure_scores(scores, validation.cross_fits(NUM_IMAGES))
    assert found.chosen_by == "f1_weighted_cross_fitted"
    assert found.threshold == thresholds.tune_plateau(scores.probabilities, targets)
    fold_of = make_products_rng(0).permutation(NUM_IMAGES) % 5
    predicted = np.zeros(targets.shape, dtype=bool)
    for fold in range(5):
        others = fold_of != fold
        threshold = thresholds.tune_plateau(scores.probabilities[others], targets[others])
        predicted[~others] = scores.probabilities[~others] >= np.float32(threshold)
    expected = f1_score(targets, predicted, average="weighted", zero_division=0)
    assert found.f1 == found.make_record()["val_f1"] == pytest.approx(expected, abs=1e-9)
    assert found.f1 != found.measured["f1_weighted"]
    earlier = validation.measure_scores(scores)  # as a run that was interrupted before there was this rule
    assert earlier.f1 == found.measured["f1_weighted"]


def test_the_standard_error_is_that_of_what_is_predicted() -> None:
    features, targets = draw()
    scores = score(32, features, targets)
    config.LABELS_PER_IMAGE = "one"
    found = validation.measure_scores(scores)
    predicted = np.eye(NUM_CLASSES, dtype=bool)[scores.probabilities.argmax(axis=1)]
    expected = thresholds.standard_error(predicted, targets, "f1_macro")
    assert found.measured["f1_macro_standard_error"] == expected > 0


def test_probabilities_that_are_no_numbers_are_one_line() -> None:
    probabilities = np.full((2, NUM_CLASSES), np.nan, dtype=np.float32)
    with pytest.raises(InputError, match="validation gave probabilities that are no numbers: lower the rates"):
        validation.measure_scores(validation.Scores(probabilities, np.zeros((2, NUM_CLASSES)), 0.0))
