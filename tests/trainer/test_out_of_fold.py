"""trainer/out_of_fold.py: which images and labels the heads get, and that the results are those of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_small_run
from numpy.typing import NDArray

import config
import dataset_readers
import overrides
from trainer import head_search, out_of_fold


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[Any]]:
    """What find_head is given. A function takes its place that gives .75 for a label, and .25 for what is none."""
    given: dict[str, Any] = {}

    class Found:
        pass

    def find_head(features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: Any, device: Any) -> Any:
        given.update(features=features, targets=targets, fold_of=fold_of)
        found = Found()
        found.out_of_fold = np.where(targets == 1, 0.75, 0.25).astype(np.float32)  # pyright: ignore
        return found

    monkeypatch.setattr(head_search, "find_head", find_head)
    return given


@pytest.fixture
def run(shared_dataset: Path, tmp_path: Path) -> list[str]:
    """A frozen backbone of random weights."""
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    return [
        *make_small_run(shared_dataset, tmp_path), f"--PRETRAINED_WEIGHTS={tmp_path / 'weights.pth'}",
        "--FREEZE_BACKBONE=True", "--UNFREEZE_BACKBONE_EPOCH=0",
    ]  # fmt: skip


@pytest.mark.parametrize("search", [(), ("--HEAD=linear", "--HEAD_FIT=search", "--NUM_EPOCHS=1")])
def test_each_training_image_is_predicted_once(
    run: list[str], search: tuple[str, ...], heads: dict[str, NDArray[Any]], shared_dataset: Path
) -> None:
    overrides.apply([*run, *search], config)
    predicted = out_of_fold.predict()
    expected = dataset_readers.read_dataset(shared_dataset, split="train")
    rows = [expected.paths.index(path) for path in predicted.table.paths]
    assert sorted(rows) == list(range(40))
    np.testing.assert_array_equal(predicted.table.targets, expected.targets[rows])
    np.testing.assert_array_equal(predicted.probabilities, np.where(expected.targets[rows] == 1, 0.75, 0.25))
    np.testing.assert_array_equal(predicted.learned, predicted.table.targets)
    assert heads["features"].shape == (40, 1280)
    assert np.unique(heads["fold_of"], return_counts=True)[1].tolist() == [8] * 5


def test_labels_that_are_probably_missing_are_not_learned(run: list[str], heads: dict[str, NDArray[Any]]) -> None:
    overrides.apply([*run, "--ABSENT_MEANS=unknown"], config)
    predicted = out_of_fold.predict()
    rejected = predicted.learned == -1
    assert 0 < rejected.sum() < rejected.size
    assert (predicted.table.targets[rejected] == 0).all()
    np.testing.assert_array_equal(np.isnan(heads["targets"]), rejected)


def test_probabilities_of_one_label_sum_to_one(
    run: list[str], heads: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides.apply(run, config)
    monkeypatch.setattr(config, "LABELS_PER_IMAGE", "one")
    monkeypatch.setattr(out_of_fold.search_features, "read_features", read_one_label)
    predicted = out_of_fold.predict()
    np.testing.assert_allclose(predicted.probabilities, np.where(np.eye(3)[[0, 1, 2]] == 1, 0.6, 0.2), rtol=1e-6)


def read_one_label() -> out_of_fold.search_features.Features:
    targets = np.eye(3, dtype=np.int8)
    table = dataset_readers.Table(["a.jpg", "b.jpg", "c.jpg"], targets, ("a", "b", "c"))
    rows = np.zeros((3, 4), np.float32)
    return out_of_fold.search_features.Features(
        rows, targets.astype(np.float32), np.arange(3), "f", torch.device("cpu"), table
    )
