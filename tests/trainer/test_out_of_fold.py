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
from PIL import Image

import config
import dataset_readers
import overrides
from evaluation import test_results
from evaluation.saved_scores import SavedScores
from trainer import head_search, out_of_fold
from utils import InputError


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[Any]]:
    """What find_head is given. A function takes its place that gives .75 for a label, and .25 for what is none."""
    given: dict[str, Any] = {}

    class Found:
        pass

    def find_head(
        features: NDArray[np.float32], targets: NDArray[np.float32], fold_of: Any, device: Any, fold_targets: Any
    ) -> Any:
        given.update(features=features, targets=targets, fold_of=fold_of, fold_targets=fold_targets)
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
    assert heads["fold_targets"].shape == (5, *rejected.shape)


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
        rows=rows,
        targets=targets.astype(np.float32),
        fold_of=np.arange(3),
        dataset="f",
        device=torch.device("cpu"),
        table=table,
    )


# ---- scores that exist ----


def test_of_two_splits_with_the_same_names_the_test_beside_the_scores_says_which(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("blue", "blue", "red")):
            path = tmp_path / "twins" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), name).save(path)
    overrides.apply([f"--DATASET_FOLDER={tmp_path / 'twins'}", f"--LOCAL_ROOT={tmp_path}"], config)
    table = dataset_readers.read_dataset(tmp_path / "twins", split="test")
    probabilities = np.linspace(0, 1, table.targets.size, dtype=np.float32).reshape(table.targets.shape)
    scores = SavedScores(probabilities, table.targets, table.paths, table.classes)
    ruler = test_results.make_ruler(table.paths, table.targets, table.classes)
    run = tmp_path / "run"
    test_results.save_test(run, {"split": "test"}, scores, ruler, {}, [0.5, 0.5])
    predicted = out_of_fold.read(run / "test_scores.npz")
    assert predicted.table.paths == table.paths
    np.testing.assert_array_equal(predicted.probabilities, probabilities)
    (tmp_path / "moved").mkdir()
    (run / "test_scores.npz").rename(tmp_path / "moved" / "test_scores.npz")
    message = r"its 3 images may be those of train or test: .* test_result\.json beside it says the split$"
    with pytest.raises(InputError, match=message):
        out_of_fold.read(tmp_path / "moved" / "test_scores.npz")
    (tmp_path / "moved" / "test_scores.npz").rename(run / "test_scores.npz")
    content = (run / "test_result.json").read_text()
    (run / "test_result.json").write_text(content.replace('"tested": "2', '"tested": "1'))
    with pytest.raises(
        InputError, match=r"test_scores\.npz is not of test_result\.json beside it: test the run again$"
    ):
        out_of_fold.read(run / "test_scores.npz")
