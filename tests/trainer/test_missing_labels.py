"""trainer/missing_labels.py and ABSENT_MEANS: which negatives count for nothing, because their label may be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import SEED_SHIFT, make_small_run
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

import training
from dataset.batches import as_float_targets
from dataset_readers import read_dataset
from trainer import head_search, kernel_search, missing_labels, training_data
from trainer.run import Run
from utils import Stopped


def make_data(num_images: int = 30) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    random = np.random.default_rng(0)
    features = random.normal(3, 2, (num_images, 5)).astype(np.float32)
    features[:, 4] = 1  # says nothing
    return features, (features[:, :3] + random.normal(0, 1, (num_images, 3)) > 4).astype(np.int8)


def test_a_prediction_is_that_of_a_ridge_regression_without_the_image() -> None:
    features, targets = make_data()
    predicted = missing_labels.predict_left_out(features, targets, penalty=0.5)
    standard = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    for row in range(len(features)):
        others = np.arange(len(features)) != row
        regression = Ridge(alpha=0.5 * len(features)).fit(standard[others], targets[others])
        np.testing.assert_allclose(predicted[row], regression.predict(standard[[row]])[0], rtol=1e-4, atol=1e-5)


def test_an_unknown_target_counts_as_the_frequency() -> None:
    features, targets = make_data()
    targets[7, 1] = -1
    frequency = (targets[:, 1] == 1).sum() / 29
    standard = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    others = np.arange(len(features)) != 3
    replaced = np.where(targets[:, 1] == -1, frequency, targets[:, 1])
    regression = Ridge(alpha=4.0 * len(features)).fit(standard[others], replaced[others])
    predicted = missing_labels.predict_left_out(features, targets)
    np.testing.assert_allclose(predicted[3, 1], regression.predict(standard[[3]])[0], rtol=1e-4, atol=1e-5)


def test_negatives_above_the_quantile_of_their_class_are_rejected() -> None:
    targets = np.array([[1, 0], [1, 0], [1, 0], [0, 0], [0, -1], [0, 0], [-1, 0]], np.int8)
    predicted = np.float32([[0.1, 9], [0.3, 9], [0.5, 9], [0.31, 9], [0.3, 9], [0.2, 9], [0.9, 9]])
    expected = targets.copy()
    expected[3, 0] = -1  # above the median .3 of its class; the second class has no positive to compare with
    kept = targets.copy()
    for scores in (predicted, predicted * 100 - 7):
        np.testing.assert_array_equal(missing_labels.reject_probable_negatives(targets, scores, 0.5, 1), expected)
    np.testing.assert_array_equal(targets, kept)
    np.testing.assert_array_equal(missing_labels.reject_probable_negatives(targets, predicted, 0.5, 4), targets)


def test_labels_that_were_taken_away_are_found() -> None:
    """Of a class that the features show plainly, those that are missing are rejected, and nearly nothing else."""
    random = np.random.default_rng(0)
    full = (random.random((400, 2)) < 0.3).astype(np.int8)
    features = np.concatenate([full + random.normal(0, 0.1, (400, 2)), random.normal(0, 1, (400, 3))], axis=1)
    is_missing = (full == 1) & (random.random(full.shape) < 0.5)
    targets = np.where(is_missing, 0, full).astype(np.int8)
    predicted = missing_labels.predict_left_out(features.astype(np.float32), targets)
    rejected = missing_labels.reject_probable_negatives(targets, predicted, 0.2)
    assert (rejected[is_missing] == -1).mean() > 0.7
    assert (rejected[full == 0] == 0).all()


# ---- in a run ----


@pytest.fixture
def run_arguments(shared_dataset: Path, tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "own.pth")
    own = [f"--PRETRAINED_WEIGHTS={tmp_path / 'own.pth'}", "--ABSENT_MEANS=unknown"]
    return [*make_small_run(shared_dataset, tmp_path), *own]


def test_a_run_trains_without_them_and_validates_with_all(
    run_arguments: list[str],
    shared_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs: list[Run] = []
    monkeypatch.setattr(training, "train", runs.append)
    training.main(run_arguments)
    printed = capsys.readouterr().out
    data, table = runs[0].data, read_dataset(shared_dataset)
    written = dict(zip(table.paths, table.targets, strict=True))
    np.testing.assert_array_equal(data.val.targets, [written[path] for path in data.val.paths])

    (path,) = (tmp_path / "cache").glob("features_*.npy")
    labels = np.array([written[path] for path in data.train.paths])
    predicted = missing_labels.predict_left_out(np.load(path)[:, :, 0, 0], labels)
    expected = missing_labels.reject_probable_negatives(labels, predicted)
    assert (expected == -1).any()
    np.testing.assert_array_equal(data.train.targets, expected)
    assert f"missing: {(expected == -1).sum()} of the {(labels == 0).sum()} absent labels" in printed.replace(",", "")


def test_a_run_goes_on_with_the_same_labels(
    run_arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted run finds them by the backbone that it began with, not by the one that it has trained."""
    found: list[NDArray[np.int8]] = []
    leave_out = training_data.leave_out_missing

    def note(*arguments: object) -> training_data.Data:
        data = leave_out(*arguments)  # pyright: ignore[reportArgumentType]
        found.append(data.train.targets)
        return data

    def stop(_: object) -> None:
        raise Stopped("between two epochs")

    monkeypatch.setattr(training, "leave_out_missing", note)
    stop_if_asked = training.stop_if_asked
    monkeypatch.setattr(training, "stop_if_asked", stop)
    with pytest.raises(Stopped):
        training.main(run_arguments)
    monkeypatch.setattr(training, "stop_if_asked", stop_if_asked)
    training.main(run_arguments)
    assert "resumes  after epoch 1" in capsys.readouterr().out
    assert (found[0] == -1).any()
    np.testing.assert_array_equal(found[0], found[1])


def test_labels_that_say_what_is_unknown_are_refused(
    run_arguments: list[str], tmp_path: Path, fails: Callable[[Callable[[list[str]], None], list[str]], str]
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "train_list.txt").write_text("".join(f"{n}.jpg\t1,{-1 if n == 3 else 0}\n" for n in range(12)))
    for number in range(12):
        torchvision.io.write_jpeg(torch.zeros(3, 32, 32, dtype=torch.uint8), str(folder / f"{number}.jpg"))
    line = fails(training.main, [*run_arguments, f"--DATASET_FOLDER={folder}", "--DATASET_FORMAT=train_list"])
    assert "ABSENT_MEANS is unknown" in line
    assert "but of 1 of the labels here the data set says itself that it is unknown: set ABSENT_MEANS" in line


@pytest.mark.parametrize("find", [head_search.find_head, kernel_search.find_kernel_head])
def test_labels_that_a_fold_holds_out_tell_its_heads_nothing(find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which negatives are unknown to a head must not depend on the labels that it is measured by."""
    monkeypatch.setattr(head_search, "PENALTIES", (0.25,))  # else all labels together choose one
    monkeypatch.setattr(kernel_search, "PENALTIES", (1.0,))
    rng = np.random.default_rng(SEED_SHIFT)
    features = rng.normal(size=(120, 20)).astype(np.float32)
    targets = (rng.random((120, 2)) < 0.3).astype(np.int8)
    fold_of = np.arange(120) % 4
    held_out = fold_of == 0
    others = targets.copy()
    others[held_out] = 1 - others[held_out]

    def order(labels: NDArray[np.int8], by_folds: bool) -> NDArray[np.intp]:
        """The order of the images of fold 0 by heads that learned from the others."""
        predicted = missing_labels.predict_left_out(features, labels)
        rejected = missing_labels.reject_probable_negatives(labels, predicted)
        of_folds = missing_labels.reject_for_folds(features, labels, fold_of) if by_folds else None
        found = find(features, as_float_targets(rejected).numpy(), fold_of, fold_targets=of_folds)
        return found.out_of_fold[held_out].argsort(axis=0)

    assert np.array_equal(order(targets, by_folds=True), order(others, by_folds=True))
    assert not np.array_equal(order(targets, by_folds=False), order(others, by_folds=False))


def test_what_a_fold_rejects_is_what_its_images_alone_reject() -> None:
    rng = np.random.default_rng(SEED_SHIFT)
    features, fold_of = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    targets = (rng.random((60, 2)) < 0.4).astype(np.int8)
    of_folds = missing_labels.reject_for_folds(features, targets, fold_of)
    assert of_folds.shape == (3, 60, 2)
    for fold in range(3):
        inside = fold_of != fold
        predicted = missing_labels.predict_left_out(features[inside], targets[inside])
        expected = missing_labels.reject_probable_negatives(targets[inside], predicted)
        assert np.array_equal(of_folds[fold, inside], expected)
        assert (expected == -1).any()


def test_too_large_features_are_refused(
    run_arguments: list[str], fails: Callable[[Callable[[list[str]], None], list[str]], str]
) -> None:
    line = fails(training.main, [*run_arguments, "--FEATURE_CACHE_GB=1e-9"])
    assert "the features of 30 images are" in line
    assert "FEATURE_CACHE_GB is 1e-09: raise it" in line
