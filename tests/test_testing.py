"""testing.py: the JSON says what the model says; metrics are those of the predictions."""

from __future__ import annotations

import json
import re
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
import config
import dataset_readers
import metrics
import models_factory
import overrides
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
    intervals = metrics.bootstrap(probabilities, targets, 0.52, num_samples=1000)
    assert result["intervals"].keys() == result["metrics"].keys()
    for name, ends in result["intervals"].items():
        assert ends == pytest.approx(intervals[name], abs=1e-6), name


def test_another_order_of_classes_is_mapped_by_name(folder: Path, shared_dataset: Path) -> None:
    """What the model calls red is measured against what the data set calls red, wherever either has it."""
    change_checkpoint(folder, classes=["blue", "red", "green"])
    testing.main(make_small_run(shared_dataset, folder))
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    rows = compute_by_hand(folder, shared_dataset)
    probabilities = np.stack([rows[stem] for stem in sorted(rows)])
    table = dataset_readers.read_dataset(shared_dataset, split="test")
    for column, name in enumerate(["blue", "red", "green"]):
        targets = table.targets[:, table.classes.index(name)]
        expected = average_precision_score(targets, probabilities[:, column])
        assert result["classes"][name]["AP"] == pytest.approx(expected, abs=1e-6)


def test_intervals_are_left_out_on_request(
    folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for samples, shown in ((0, False), (20, True)):
        testing.main([*make_small_run(shared_dataset, folder), f"--BOOTSTRAP_SAMPLES={samples}"])
        result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
        assert bool(result["intervals"]) is shown
        assert ("95 % interval" in capsys.readouterr().out) is shown


def test_without_labels_only_predictions_are_written(folder: Path, shared_dataset: Path, tmp_path: Path) -> None:
    testing.main([*make_small_run(shared_dataset, folder), f"--TEST_LABELS_DIR={tmp_path / 'none'}"])
    assert len(read_predictions(folder)[1]) == 12
    assert not (folder / "predictions" / "evaluate_result.json").exists()


def test_a_checkpoint_without_threshold_takes_the_constant(folder: Path, shared_dataset: Path) -> None:
    change_checkpoint(folder, best_threshold=None)
    testing.main([*make_small_run(shared_dataset, folder), "--TH_MULTI_LABEL=0.45"])
    expected = compute_by_hand(folder, shared_dataset)
    assert read_predictions(folder)[1] == {s: np.flatnonzero(row >= 0.45).tolist() for s, row in expected.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["red", "pink", "blue"]}, "differ; only of the data set: green; only of the model: pink"),
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


@pytest.mark.parametrize("int8", [False, True])
def test_another_engine_predicts_what_torch_does(folder: Path, shared_dataset: Path, int8: bool) -> None:
    for package in ("openvino", "onnx", "onnxscript", "nncf"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-export.txt")
    arguments = [*make_small_run(shared_dataset, folder), "--TEST_ENGINE=openvino", f"--TEST_INT8={int8}"]
    testing.main([*arguments, "--INT8_CALIBRATION_IMAGES=7"])
    (kept,) = (folder / "cache").glob("*.onnx")
    file, predictions = read_predictions(folder)
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    if int8:
        assert kept.name.startswith("best_model_int8_")
        assert file.stem.endswith("_int8"), "predictions in float are not overwritten"
        assert result["engine"] == "openvino, int8"
        assert len(predictions) == 12
    else:
        assert kept.name.startswith("best_model_float_")
        assert result["engine"] == "openvino"
        expected = compute_by_hand(folder, shared_dataset)
        assert predictions == {stem: np.flatnonzero(row >= 0.52).tolist() for stem, row in expected.items()}


def test_calibration_images_are_spaced_evenly(shared_dataset: Path, tmp_path: Path) -> None:
    overrides.apply([*make_small_run(shared_dataset, tmp_path), "--INT8_CALIBRATION_IMAGES=5"], config)
    names = [Path(path).name for path in testing.choose_calibration_images()]
    assert names == ["train000.jpg", "train008.jpg", "train016.jpg", "train024.jpg", "train032.jpg"]
    config.INT8_CALIBRATION_IMAGES = 300
    assert len(set(testing.choose_calibration_images())) == 40


def test_the_engine_and_its_speed_are_printed(
    folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    testing.main(make_small_run(shared_dataset, folder))
    text = capsys.readouterr().out
    assert "  engine  torch\n" in text
    assert re.search(r"^\d+\.\d images/s, from the first file to the last probability$", text, re.MULTILINE)


def test_missing_things_are_one_line(folder: Path, dataset: Path, fails: Callable[..., str]) -> None:
    arguments = make_small_run(dataset, folder)
    assert "there is no checkpoint" in fails(testing.main, [*arguments, f"--MODEL_PATH={folder / 'gone.pt'}"])
    assert "cannot read folder" in fails(testing.main, [*arguments, f"--TEST_IMAGES_DIR={folder / 'gone'}"])
    (dataset / "images" / "test-resized" / "test004.jpg").write_bytes(b"broken")
    assert "cannot read image" in fails(testing.main, arguments)
    assert not (folder / "predictions").exists(), "the file is complete or absent"


def test_images_of_the_same_name_in_two_folders_keep_apart() -> None:
    assert testing.name_images(["/set/test/cat/1.jpg", "/set/test/dog/1.jpg"]) == ["cat/1", "dog/1"]
    assert testing.name_images(["/set/test/a.b.jpg", "/set/test/c.png"]) == ["a.b", "c"]
    assert testing.name_images(["/set/a.jpg", "/set/a.png", "/set/b.jpg"]) == ["a.jpg", "a.png", "b.jpg"]
