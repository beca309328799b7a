"""testing.py and predictor.py: the JSON says what the model says; metrics are those of the predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_run
from sklearn.metrics import average_precision_score, f1_score

import augmentations
import checkpoints
import dataset_readers
import models_factory
import predictor
import testing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint of random weights."""
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, image_size=32)
    checkpoint = {
        "model_state": model.state_dict(),
        "model_name": "resnet18",
        "head": "linear_bn",
        "classes": ["red", "green", "blue"],
        "image_size": 32,
        "resize_rule": "squash",
        "best_threshold": 0.52,
        "best_f1": 0.61234,
        "epoch": 3,
        "config": {"TRAIN_BATCH_SIZE": 8, "USE_DIFFERENTIAL_LR": True, "HEAD_BASE_LR": 0.001},
    }
    checkpoints.save(tmp_path / "trained_models" / "best_model.pt", checkpoint)
    return tmp_path


def change_checkpoint(folder: Path, **changes: Any) -> None:
    path = folder / "trained_models" / "best_model.pt"
    checkpoints.save(path, checkpoints.load(path) | changes)


def compute_by_hand(folder: Path, dataset: Path) -> dict[str, np.ndarray]:
    """Probabilities of each test image, one at a time, straight from the parts."""
    checkpoint = checkpoints.load(folder / "trained_models" / "best_model.pt")
    model = models_factory.make_model("resnet18", 3, image_size=32)
    model.load_state_dict(checkpoint["model_state"])
    resize = augmentations.make_eval_transform("squash", 32)
    rows = {}
    for path in sorted((dataset / "images" / "test-resized").iterdir()):
        image = resize(torch.from_numpy(dataset_readers.decode_image(path)).permute(2, 0, 1))
        with torch.no_grad():
            rows[path.stem] = model.eval()(image[None]).sigmoid()[0].numpy()
    return rows


def read_predictions(folder: Path) -> tuple[Path, dict[str, list[int]]]:
    (file,) = (folder / "predictions").glob("predictions_*.json")
    return file, json.loads(file.read_text())


def test_predictions_are_the_classes_at_or_above_the_threshold(folder: Path, shared_dataset: Path) -> None:
    testing.main([*make_small_run(shared_dataset, folder), "--TEST_BATCH_SIZE=5", "--IMAGE_SIZE=64"])
    file, predictions = read_predictions(folder)
    expected = compute_by_hand(folder, shared_dataset)
    assert predictions == {stem: np.flatnonzero(row >= 0.52).tolist() for stem, row in expected.items()}
    assert list(predictions) == sorted(expected)
    assert file.name == "predictions_resnet18_f1-0.6123_epoch3_bs8_lr0.001_th0.52_testbs5.json"


def test_metrics_are_those_of_the_predictions(folder: Path, shared_dataset: Path) -> None:
    testing.main(make_small_run(shared_dataset, folder))
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    rows = compute_by_hand(folder, shared_dataset)
    probabilities = np.stack([rows[stem] for stem in sorted(rows)])
    targets = dataset_readers.read_dataset(shared_dataset, split="test").targets
    assert result["num_images"] == 12
    assert result["metrics"]["mAP"] == pytest.approx(average_precision_score(targets, probabilities), abs=1e-6)
    weighted = f1_score(targets, probabilities >= 0.52, average="weighted", zero_division=0)
    assert result["metrics"]["f1_weighted"] == pytest.approx(weighted, abs=1e-9)
    assert [entry["positives"] for entry in result["classes"].values()] == targets.sum(axis=0).tolist()


def test_without_labels_only_predictions_are_written(folder: Path, shared_dataset: Path, tmp_path: Path) -> None:
    testing.main([*make_small_run(shared_dataset, folder), f"--TEST_LABELS_DIR={tmp_path / 'none'}"])
    assert len(read_predictions(folder)[1]) == 12
    assert not (folder / "predictions" / "evaluate_result.json").exists()


def test_a_checkpoint_without_threshold_takes_the_constant(folder: Path, shared_dataset: Path) -> None:
    change_checkpoint(folder, best_threshold=None)
    testing.main([*make_small_run(shared_dataset, folder), "--TH_MULTI_LABEL=0.45"])
    expected = compute_by_hand(folder, shared_dataset)
    assert read_predictions(folder)[1] == {s: np.flatnonzero(row >= 0.45).tolist() for s, row in expected.items()}


def test_predictor_streams_lists_and_folders_alike(folder: Path, shared_dataset: Path) -> None:
    model = predictor.load(folder / "trained_models" / "best_model.pt", "cpu")
    images = shared_dataset / "images" / "test-resized"
    records = list(model.predict(images, batch_size=7))
    assert [Path(record.path) for record in records] == sorted(images.iterdir())
    chosen = sorted(images.iterdir())[3:6]
    again = list(model.predict(chosen[::-1], batch_size=1))
    assert [Path(record.path) for record in again] == chosen[::-1]
    for record, other in zip(again, records[5:2:-1], strict=True):
        np.testing.assert_allclose(record.probabilities, other.probabilities, atol=1e-5)
        assert record.names == [("red", "green", "blue")[label] for label in record.labels]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["red", "blue", "green"]}, "classes are not the model's 3, or not in their order"),
        ({"classes": ["red", "green"]}, "do not fit resnet18"),
        ({"model_name": "resnet99"}, "there is no backbone 'resnet99'"),
        ({"format": "something"}, "is not a checkpoint of this project"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(
    folder: Path, shared_dataset: Path, changes: dict[str, Any], message: str, fails: Callable[..., str]
) -> None:
    path = folder / "trained_models" / "best_model.pt"
    torch.save(checkpoints.load(path) | changes, path)
    assert message in fails(testing.main, make_small_run(shared_dataset, folder))
    assert not (folder / "predictions").exists()


def test_missing_things_are_one_line(folder: Path, dataset: Path, fails: Callable[..., str]) -> None:
    arguments = make_small_run(dataset, folder)
    assert "there is no checkpoint" in fails(testing.main, [*arguments, f"--MODEL_PATH={folder / 'gone.pt'}"])
    assert "cannot read folder" in fails(testing.main, [*arguments, f"--TEST_IMAGES_DIR={folder / 'gone'}"])
    (dataset / "images" / "test-resized" / "test004.jpg").write_bytes(b"broken")
    assert "cannot read image" in fails(testing.main, arguments)
    assert not (folder / "predictions").exists(), "the file is complete or absent"
