"""testing.py: the JSON says what the model says, also after a kill; metrics are those of the predictions."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_run, write_dataset
from sklearn.metrics import average_precision_score, f1_score

import config
import dataset_readers
import export_onnx
import metrics
import models_factory
import overrides
import predictor
import testing
from dataset import augmentations, bad_images, decoding, locks
from evaluation import neighbours, prediction_files, test_results
from evaluation.prediction_files import RowFile
from evaluation.predictions import Compared, Predictions
from export import engines
from models import checkpoints
from trainer.from_config import ImagesToPredict


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
        image = resize(torch.from_numpy(decoding.decode_image(path)).permute(2, 0, 1))
        with torch.no_grad():
            rows[path.stem] = model.eval()(image[None]).sigmoid()[0].numpy()
    return rows


def write_list(folder: Path, dataset: Path) -> Path:
    """A list of the test images."""
    path = folder / "list.txt"
    path.write_text("".join(f"{image}\n" for image in sorted((dataset / "images" / "test-resized").iterdir())))
    return path


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "warning: no test image has a label, so that mAP is undefined, and precision, recall and F1 are 0 "),
        ("?0\n?1\n?2\n", "warning: no label of any test image is known, so that no metric says anything: "),
    ],
)
def test_a_test_split_without_labels_is_said(
    folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    for path in (dataset / "labels" / "test").iterdir():
        path.write_text(text)
    testing.main([*make_small_run(dataset, folder), "--BOOTSTRAP_SAMPLES=0"])
    err = capsys.readouterr().err
    assert err.count(message) == 1
    assert f"is TEST_LABELS_DIR right? It is {dataset / 'labels' / 'test'}\n" in err
    file = folder / "predictions" / "evaluate_result.json"
    if text:
        assert not file.exists(), "zeros would stand for the test of the run"
    else:
        assert json.loads(file.read_text())["metrics"]["mAP"] is None


def test_metrics_are_those_of_the_predictions(folder: Path, shared_dataset: Path) -> None:
    testing.main(make_small_run(shared_dataset, folder))
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    rows = compute_by_hand(folder, shared_dataset)
    probabilities = np.stack([rows[stem] for stem in sorted(rows)])
    targets = dataset_readers.read_dataset(shared_dataset, split="test").targets
    assert result["done_flag"] is True
    assert result["num_images"] == 12
    assert result["metrics"]["mAP"] == pytest.approx(average_precision_score(targets, probabilities), abs=1e-6)
    weighted = f1_score(targets, probabilities >= 0.52, average="weighted", zero_division=0)
    assert result["metrics"]["f1_weighted"] == pytest.approx(weighted, abs=1e-9)
    assert [entry["positives"] for entry in result["classes"].values()] == targets.sum(axis=0).tolist()
    f1 = f1_score(targets, probabilities >= 0.52, average=None, zero_division=0)
    assert [entry["F1"] for entry in result["classes"].values()] == pytest.approx(f1, abs=1e-9)
    assert [entry["threshold"] for entry in result["classes"].values()] == pytest.approx([0.52] * 3, abs=1e-7)
    intervals, class_intervals = metrics.bootstrap(probabilities, targets, 0.52, num_samples=1000)
    assert result["intervals"].keys() == result["metrics"].keys() - {"num_classes_in_mAP"}
    assert result["slices"] == {}
    for name, ends in result["intervals"].items():
        assert ends == pytest.approx(intervals[name], abs=1e-6), name
    low, high = class_intervals["R"]
    assert [entry["R_low"] for entry in result["classes"].values()] == pytest.approx(low, abs=1e-6)
    assert [entry["R_high"] for entry in result["classes"].values()] == pytest.approx(high, abs=1e-6)
    model = (folder / "trained_models" / "best_model.pt").read_bytes()
    assert result["model_sha256"] == hashlib.sha256(model).hexdigest()
    written = {path.name for path in (folder / "predictions").glob("evaluate_*")}
    pictures = {f"evaluate_{name}.png" for name in ("confusion", "precision_recall", "reliability")}
    assert written == {"evaluate_result.json", "evaluate_classes.csv", *pictures}


# ---- the test of a run ----


@pytest.fixture
def run(folder: Path, shared_dataset: Path) -> Path:
    """The folder of the run whose checkpoint `folder` holds; best_model.pt is a copy of it."""
    constants = {
        "DATASET_FOLDER": str(shared_dataset),
        "TEST_IMAGES_DIR": str(shared_dataset / "images" / "test-resized"),
        "TEST_LABELS_DIR": str(shared_dataset / "labels" / "test"),
    }
    change_checkpoint(folder, run="resnet18/seed0_0a1b2c3d", config=constants)
    run = folder / "trained_models" / "resnet18" / "seed0_0a1b2c3d"
    run.mkdir(parents=True)
    checkpoints.save(run.with_suffix(".pt"), checkpoints.load(folder / "trained_models" / "best_model.pt"))
    return run


def read_test(run: Path) -> test_results.TestResult:
    test = test_results.read_test(run)
    assert test is not None
    return test


def test_the_test_of_a_copy_lies_with_its_run(
    run: Path, folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*make_small_run(shared_dataset, folder), "--BOOTSTRAP_SAMPLES=20"]
    testing.main(arguments)
    test = read_test(run)
    assert f"saved: {run / 'test_result.json'} and test_scores.npz: the test of the run" in capsys.readouterr().out
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    assert test.metrics == result["metrics"]
    assert {name: [*ends] for name, ends in test.intervals.items()} == result["intervals"]
    assert (test.stale, test.views, test.run) == ("", "", "resnet18/seed0_0a1b2c3d")
    assert test.thresholds == pytest.approx([0.52] * 3)
    table = dataset_readers.read_dataset(shared_dataset, split="test")
    assert test.ruler == test_results.make_ruler(table.paths, table.targets, table.classes)
    scores, rows = test_results.read_test_scores(run), compute_by_hand(folder, shared_dataset)
    assert scores.paths == [f"{stem}.jpg" for stem in sorted(rows)]
    np.testing.assert_allclose(scores.probabilities, [rows[stem] for stem in sorted(rows)], atol=1e-6)
    np.testing.assert_array_equal(scores.targets, table.targets)
    testing.main([*arguments, "--TEST_FLIP=True", f"--MODEL_PATH={run.with_suffix('.pt')}"])
    assert read_test(run).views == "flip"
    assert read_test(run).ruler == test.ruler


def keep_test(
    dataset: Path, folder: Path, *arguments: str, path: Path | None = None, num_images: int = 12, **changes: Any
) -> None:
    """What testing.py does with a test once it is measured. Its probabilities are all one half."""
    overrides.apply([*make_small_run(dataset, folder), *arguments], config, testing)
    table = dataset_readers.read_dataset(dataset, split="test").select(range(num_images))
    values = np.full(table.targets.shape, 0.5, np.float32)
    path = path or config.MODEL_PATH
    sidecar = checkpoints.read_sidecar(folder / "trained_models" / "best_model.pt") or {}
    model: Any = SimpleNamespace(
        path=path, metadata=sidecar | changes, classes=table.classes, thresholds=np.full(3, 0.5, np.float32)
    )
    result = {"engine": "torch", "calibration": "none", "min_labels": 0, "max_labels": 0, "num_images": num_images}
    result |= {"num_images_left_out": 0, "metrics": {"mAP": 0.5}, "intervals": {}, "classes": {}}
    predictions: Any = SimpleNamespace(probabilities=values)
    testing.keep_with_run(result, predictions, ImagesToPredict(table, True, {}), model)


@pytest.mark.parametrize(
    ("arguments", "format"),
    [
        (["--TEST_SPLIT=train"], "checkpoint"),
        (["--TEST_SPLIT=val"], "checkpoint"),
        (["--TEST_ENGINE=openvino", "--TEST_INT8=True"], "checkpoint"),
        ([], "onnx"),
        ([], "openvino"),
        ([], "torchscript"),
        ([], "pt2"),
    ],
)
def test_other_splits_exported_files_and_int8_leave_the_test_of_the_run_alone(
    arguments: list[str], format: str, run: Path, folder: Path, shared_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_test(shared_dataset, folder)
    before = (run / "test_result.json").read_bytes()
    monkeypatch.setattr(engines, "recognise", lambda path: format)
    keep_test(shared_dataset, folder, *arguments, num_images=11)
    assert (run / "test_result.json").read_bytes() == before


def test_a_model_that_is_not_the_runs_present_one_is_not_kept_as_its_test(
    run: Path, folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, words in (
        ({"epoch": 4}, "its weights are of another epoch or training"),
        ({"thresholds": [0.1, 0.2, 0.3]}, "its thresholds or its calibration were tuned again"),
        ({"run": "resnet18/gone"}, f"there is no folder of its run, {run.parent / 'gone'}"),
        ({"run": None}, "best_model.pt does not say which run it is of: it is an older one, or no run's"),
    ):
        keep_test(shared_dataset, folder, **changes)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("this test is not kept with a run: ")
        assert line.endswith(words)
    assert [*run.iterdir()] == []


def test_a_test_of_other_images_takes_the_place_of_the_runs_own_only_if_the_run_names_them(
    run: Path, folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = (checkpoints.read_sidecar(folder / "trained_models" / "best_model.pt") or {})["config"]
    others = constants | {"DATASET_FOLDER": "/elsewhere/set"}  # of the run; the test images are of shared_dataset
    keep_test(shared_dataset, folder, num_images=11, config=others)
    assert read_test(run).num_images == 11, "there was no test: its ruler says what it is of"
    keep_test(shared_dataset, folder, config=others)
    assert read_test(run).num_images == 11
    message = (
        f"warning: this test is not kept with its run: {run / 'test_result.json'} is by another ruler (other test "
        "images (11 and 12)); if this one shall count, delete that file and test again\n"
    )
    assert capsys.readouterr().err == message
    keep_test(shared_dataset, folder, "--TEST_FLIP=True", num_images=11, config=others)
    assert read_test(run).views == "flip", "the same ruler, wherever the images lie"
    capsys.readouterr()
    keep_test(shared_dataset, folder)
    assert read_test(run).num_images == 12
    assert "in place of a test by another ruler: other test images (11 and 12)\n" in capsys.readouterr().out
    (run / "test_result.json").write_text("{}")
    keep_test(shared_dataset, folder)
    assert "; this test takes its place" in capsys.readouterr().err
    assert read_test(run).num_images == 12


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


@pytest.mark.parametrize("num_blue", [1, 12])
def test_rare_classes_are_said_at_the_interval_of_map(
    num_blue: int, folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(sorted((dataset / "labels" / "test").iterdir())):
        path.write_text("0\n1\n" + "2\n" * (number < num_blue))
    testing.main([*make_small_run(dataset, folder), "--BOOTSTRAP_SAMPLES=10"])
    line = "classes with fewer than 5 positives: 1; with so few AP comes out too high, and the interval of mAP reaches "
    assert (line in capsys.readouterr().out) is (num_blue == 1)


def test_without_labels_only_predictions_are_written(folder: Path, shared_dataset: Path, tmp_path: Path) -> None:
    testing.main([*make_small_run(shared_dataset, folder), f"--TEST_LABELS_DIR={tmp_path / 'none'}"])
    assert len(read_predictions(folder)[1]) == 12
    assert not list((folder / "predictions").glob("evaluate_*"))


@pytest.mark.parametrize("format", ["coco_cls", "csv"])
def test_any_folder_is_predicted_without_the_labels_of_the_test_split(
    format: str, folder: Path, dataset: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new-photos"
    new.mkdir()
    for path in sorted((dataset / "images" / "test-resized").iterdir())[:5]:
        (new / path.name).write_bytes(path.read_bytes())
    if format == "csv":
        (dataset / "labels").rename(tmp_path / "labels")
        (dataset / "test.csv").write_text("image_path,labels\nimages/test-resized/test000.jpg,red\n")
    arguments = make_small_run(dataset, folder)
    testing.main(arguments)
    path, of_split = read_predictions(folder)
    (folder / "predictions" / "evaluate_result.json").unlink()
    testing.main([*arguments, f"--TEST_IMAGES_DIR={new}"])
    assert json.loads(path.read_text()) == of_split
    (other,) = path.parent.glob(f"{path.stem}_new-photos-*.json")
    predicted = json.loads(other.read_text())
    assert [*predicted] == [f"test{number:03}" for number in range(5)]
    assert predicted["test000"] == of_split["test000"]
    assert not (folder / "predictions" / "evaluate_result.json").exists(), "labels are those of the split"
    if format == "coco_cls":  # with both folders set, it is measured
        for path in new.iterdir():
            (tmp_path / "own" / f"{path.stem}.cls").parent.mkdir(exist_ok=True)
            (tmp_path / "own" / f"{path.stem}.cls").write_text("0\n")
        testing.main([*arguments, f"--TEST_IMAGES_DIR={new}", f"--TEST_LABELS_DIR={tmp_path / 'own'}"])
        result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
        assert [entry["positives"] for entry in result["classes"].values()] == [5, 0, 0]


def test_a_checkpoint_without_threshold_takes_the_constant(folder: Path, shared_dataset: Path) -> None:
    change_checkpoint(folder, best_threshold=None, best_f1=None)  # as of an epoch that was not validated
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


def test_an_exported_file_is_measured_by_the_same_command(folder: Path, shared_dataset: Path) -> None:
    arguments = make_small_run(shared_dataset, folder)
    export_onnx.main([*arguments, "--EXPORT_FORMATS=torchscript", "--EXPORT_CHECK_IMAGES=3"])
    (exported,) = (folder / "exported_models").glob("*.pt")
    results = []
    for path in (folder / "trained_models" / "best_model.pt", exported):
        testing.main([*arguments, f"--MODEL_PATH={path}"])
        results.append(json.loads((folder / "predictions" / "evaluate_result.json").read_text()))
    ours, theirs = sorted((folder / "predictions").glob("predictions_*.json"), key=lambda file: len(file.name))
    assert theirs.stem == f"{ours.stem}_torchscript", "neither overwrites the other"
    assert theirs.read_text() == ours.read_text()
    assert results[1]["metrics"] == pytest.approx(results[0]["metrics"], abs=1e-6)
    assert results[1]["model_sha256"] != results[0]["model_sha256"]


def test_a_test_on_training_images_is_said_to_be_one(
    folder: Path, shared_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a data set is split after the training."""
    arguments = [*make_small_run(shared_dataset, folder), "--BOOTSTRAP_SAMPLES=0"]
    names = [f"test{number:03}.jpg" for number in range(12)]
    for nearest, said in ((np.arange(12), True), (np.zeros(12, int), True), (np.roll(np.arange(12), 1), False)):
        compared = Compared(np.full(12, 0.5, np.float32), nearest[:, None], names)
        monkeypatch.setattr(neighbours, "read_compared", lambda model, rows, compared=compared: compared)
        testing.main(arguments)
        num_seen = (nearest == np.arange(12)).sum()
        line = f"warning: by their names and looks, the model was trained on {num_seen} or more of the 12 test images, "
        assert (line in capsys.readouterr().err) == said


def test_int8_images_are_spaced_evenly(shared_dataset: Path, tmp_path: Path) -> None:
    overrides.apply([*make_small_run(shared_dataset, tmp_path), "--INT8_CALIBRATION_IMAGES=5"], config)
    names = [Path(path).name for path in testing.choose_int8_images()]
    assert names == ["train000.jpg", "train008.jpg", "train016.jpg", "train024.jpg", "train032.jpg"]
    config.INT8_CALIBRATION_IMAGES = 300
    assert len(set(testing.choose_int8_images())) == 40


def test_damaged_images_do_not_calibrate_int8_on_request(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "images" / "train-resized" / "train008.jpg").write_bytes(b"broken")
    tried: list[str] = []
    judge = bad_images.judge_image
    monkeypatch.setattr(bad_images, "judge_image", lambda path: tried.append(path) or judge(path))
    overrides.apply([*make_small_run(dataset, tmp_path), "--INT8_CALIBRATION_IMAGES=5"], config)
    evenly = testing.choose_int8_images()
    assert [Path(path).stem for path in evenly] == ["train000", "train008", "train016", "train024", "train032"]
    assert not tried
    config.BAD_IMAGES = "skip"
    assert testing.choose_int8_images() == [evenly[0], *evenly[2:]]
    assert sorted(tried) == evenly, "of all training images only those that were chosen"
    assert "warning: 1 of 5 images are left out: cannot read image" in capsys.readouterr().err
    shutil.rmtree(dataset / "labels")
    names = [Path(path).stem for path in testing.choose_int8_images()]
    assert names == ["train000", "train016", "train024", "train032"], "without labels, too"


def test_a_damaged_training_image_stops_int8_unless_it_is_left_out(
    folder: Path, dataset: Path, fails: Callable[..., str]
) -> None:
    for package in ("openvino", "onnx", "onnxscript", "nncf"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-export.txt")
    (dataset / "images" / "train-resized" / "train008.jpg").write_bytes(b"broken")
    arguments = [*make_small_run(dataset, folder), "--TEST_ENGINE=openvino", "--TEST_INT8=True"]
    arguments += ["--INT8_CALIBRATION_IMAGES=5", "--BOOTSTRAP_SAMPLES=0"]
    message = fails(testing.main, arguments)
    assert re.match(r"error: cannot read image .*train008\.jpg: ", message)
    assert not list((folder / "cache").glob("*.onnx"))
    testing.main([*arguments, "--BAD_IMAGES=skip"])
    assert len(list((folder / "cache").glob("best_model_int8_*.onnx"))) == 1
    assert len(read_predictions(folder)[1]) == 12


def test_a_damaged_image_stops_an_export_unless_it_is_left_out(
    folder: Path, dataset: Path, fails: Callable[..., str]
) -> None:
    (dataset / "images" / "test-resized" / "test004.jpg").write_bytes(b"broken")
    arguments = [*make_small_run(dataset, folder), "--EXPORT_FORMATS=torchscript", "--EXPORT_CHECK_IMAGES=3"]
    message = fails(export_onnx.main, arguments)
    assert re.match(r"error: cannot read image .*test004\.jpg: ", message)
    export_onnx.main([*arguments, "--BAD_IMAGES=skip"])
    (report,) = (folder / "exported_models").glob("*.json")
    assert json.loads(report.read_text())["num_images"] == 2


@pytest.mark.parametrize(
    ("constants", "causes"),
    [
        ({}, ""),
        ({"TEST_INT8": True}, "TEST_INT8"),
        ({"TEST_SCALES": (1.0, 1.5)}, "TEST_SCALES"),
        ({"TEST_INT8": True, "TEST_SCALES": (1.0, 1.5)}, "TEST_INT8 and TEST_SCALES"),
    ],
)
def test_thresholds_of_other_probabilities_are_said_once_where_they_decide(
    constants: dict[str, Any],
    causes: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(testing, name, value)
    message = (
        f"warning: the thresholds were tuned on other probabilities than those with {causes}: compare the metrics of "
        "tests with and without\n"
    )
    one_label = {"min_labels": 1, "max_labels": 1}
    without_thresholds = {"min_labels": 0, "max_labels": 0, "best_threshold": None}
    for changes, expected in (({}, message if causes else ""), (one_label, ""), (without_thresholds, "")):
        change_checkpoint(folder, **changes)
        testing.warn_of_moved_probabilities(predictor.load(folder / "trained_models" / "best_model.pt", "cpu"))
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize("kind", ["names", "parts"])
def test_a_test_and_its_parts_warn_of_other_sizes_once(
    kind: str, folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "parts":
        pytest.importorskip("pyarrow", reason="Parquet files need pyarrow (requirements-parquet.txt)")
    listed = write_list(folder, shared_dataset)
    arguments = [*make_small_run(shared_dataset, folder), f"--TEST_IMAGES_DIR={listed}", f"--PREDICTION_FILES={kind}"]
    testing.main([*arguments, "--TEST_SCALES=1,1.5"])
    assert capsys.readouterr().err.count("tuned on other probabilities than those with TEST_SCALES: ") == 1


def test_parts_of_int8_are_of_the_same_calibration_images(
    folder: Path,
    shared_dataset: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By names and sizes: on another machine the same images lie elsewhere, and are of another time."""
    pytest.importorskip("pyarrow", reason="Parquet files need pyarrow (requirements-parquet.txt)")
    monkeypatch.setattr(testing, "open_model", lambda *_: predictor.load(config.MODEL_PATH, "cpu"))  # makes no file
    listed = write_list(folder, shared_dataset)

    def make_arguments(dataset: Path, num_images: int) -> list[str]:
        options = [f"--TEST_IMAGES_DIR={listed}", "--PREDICTION_FILES=parts", "--TEST_ENGINE=openvino"]
        options += ["--TEST_INT8=True", f"--INT8_CALIBRATION_IMAGES={num_images}"]
        return [*make_small_run(dataset, folder), *options]

    testing.main(make_arguments(shared_dataset, 5))
    image = shutil.copytree(shared_dataset, folder / "copy") / "images" / "train-resized" / "train000.jpg"
    os.utime(image, (0, 0))
    capsys.readouterr()
    testing.main(make_arguments(folder / "copy", 5))
    assert "1 of 1 part was done: going on" in capsys.readouterr().out
    found = r"was begun with INT8_CALIBRATION_IMAGES 5 images \([0-9a-f]{16}\), and it is %d images \([0-9a-f]{16}\): "
    assert re.search(found % 4, fails(testing.main, make_arguments(folder / "copy", 4)))
    image.write_bytes(image.read_bytes() + b"\0")
    assert re.search(found % 5, fails(testing.main, make_arguments(folder / "copy", 5)))


def test_the_engine_and_its_speed_are_printed(
    folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    testing.main(make_small_run(shared_dataset, folder))
    text = capsys.readouterr().out
    assert "  engine  torch\n" in text
    assert re.search(r"^\d+\.\d images/s, from the first file to the last probability$", text, re.MULTILINE)


def test_missing_things_are_one_line(folder: Path, dataset: Path, fails: Callable[..., str]) -> None:
    arguments = make_small_run(dataset, folder)
    assert "there is no model" in fails(testing.main, [*arguments, f"--MODEL_PATH={folder / 'gone.pt'}"])
    gone = folder / "gone"
    message = f"error: TEST_IMAGES_DIR is {gone}: there is no such folder or file"
    assert fails(testing.main, [*arguments, f"--TEST_IMAGES_DIR={gone}"]) == message
    assert "nothing matches" in fails(testing.main, [*arguments, f"--TEST_IMAGES_DIR={gone}/*.jpg"])
    (dataset / "images" / "test-resized" / "test004.jpg").write_bytes(b"broken")
    assert "cannot read image" in fails(testing.main, arguments)
    assert not list((folder / "predictions").glob("[!.]*")), "the file is complete or absent"


def test_where_the_data_set_is_missing_the_models_own_is_named(
    folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = folder / "trained_models" / "best_model.pt"
    arguments = [f"--LOCAL_ROOT={folder}", f"--DATASET_FOLDER={tmp_path / 'gone'}", "--DEVICE=cpu"]
    assert "trained on" not in fails(testing.main, arguments), "an old file, which does not say"
    change_checkpoint(folder, config={"DATASET_FOLDER": "/elsewhere/set"})
    message = fails(testing.main, arguments)
    assert f"there is no folder {tmp_path / 'gone'}: set DATASET_FOLDER" in message
    end = f"; the model was trained on /elsewhere/set: `python testing.py {path}` takes all constants of its run"
    assert message.endswith(end)
    change_checkpoint(folder, config={"DATASET_FOLDER": str(tmp_path / "gone")})
    assert "trained on" not in fails(testing.main, arguments)


@pytest.mark.parametrize("splits", [["train"], ["train", "val"]])
def test_a_set_without_a_test_split_is_said_with_the_splits_it_has(
    splits: list[str], folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "csv").mkdir()
    for split in splits:
        (tmp_path / "csv" / f"{split}.csv").write_text("image_path,labels\na.jpg,red\n")
    message = fails(testing.main, make_small_run(tmp_path / "csv", folder))
    assert re.search(
        rf"csv, read as csv, has no test split: .* or TEST_SPLIT to {' or '.join(splits)}; or make one", message
    )
    assert "test-resized" not in message


def test_one_file_a_pattern_and_a_list_are_predicted(
    folder: Path, shared_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shared_dataset / "images" / "test-resized"
    (tmp_path / "odd[1].jpg").write_bytes((images / "test003.jpg").read_bytes())
    (tmp_path / "some.txt").write_text(f"odd[1].jpg\n{images / 'test001.jpg'}\n")
    every = {
        stem: np.flatnonzero(row >= 0.52).tolist() for stem, row in compute_by_hand(folder, shared_dataset).items()
    }
    for where, word, expected in (
        (images / "test002.jpg", "test002", {"test002": every["test002"]}),
        (images / "*[13].jpg", "test-resized", {stem: every[stem] for stem in ("test001", "test003", "test011")}),
        (tmp_path / "odd[1].jpg", "odd[1]", {"odd[1]": every["test003"]}),
        (tmp_path / "some.txt", "some", {"odd[1]": every["test003"], "test001": every["test001"]}),
    ):
        testing.main([*make_small_run(shared_dataset, folder), f"--TEST_IMAGES_DIR={where}"])
        output = capsys.readouterr().out
        saved = re.search(r"^saved: (.+)$", output, re.MULTILINE)
        assert saved
        assert re.search(rf"_{re.escape(word)}-[0-9a-f]{{6}}\.json$", saved[1])
        found = json.loads(Path(saved[1]).read_text())  # of a list, names start at the folder that its images share
        assert {name.split("/")[-1]: labels for name, labels in found.items()} == expected
        assert f"\n{len(expected)} image{'s' if len(expected) > 1 else ''}, " in output
    assert not list((folder / "predictions").glob("evaluate_*")), "their labels are not those of the test split"


def test_each_choice_of_images_has_a_file_of_its_own(tmp_path: Path) -> None:
    """A folder, a pattern in it, a folder and a file that are called the same."""
    (tmp_path / "a" / "new").mkdir(parents=True)
    (tmp_path / "b" / "new").mkdir(parents=True)
    for name in ("a/new.jpg", "a/new.txt", "a/new/1.JPG"):
        (tmp_path / name).touch()
    paths = [str(tmp_path / "a" / "new" / "1.JPG")]
    words = ("a/new", "b/new", "a/new.jpg", "a/new.txt", "a/new/*.JPG", "a/new/*.jpg", "a/**/*.JPG")
    names = {testing.name_choice(tmp_path / word, paths) for word in words}
    assert len(names) == len(words)
    assert all(re.fullmatch(r"new-[0-9a-f]{6}", name) for name in names)
    assert testing.name_choice(tmp_path / "b" / ".." / "a" / "new", paths) in names, "the same folder"


def test_the_labels_of_a_few_images_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.array([[0.719, 0.2, 0.951], [0.1, 0.3, 0.4], [0.2, 0.6, 0.1]] + [[0.9, 0.1, 0.1]] * 8, np.float32)
    paths = [f"/set/{'sub/' * (number == 2)}\x1b{number}.jpg" for number in range(11)]
    lines = [r"\x1b0.jpg: Löwe 0.95, red 0.72", r"\x1b1.jpg: no label", r"sub/\x1b2.jpg: gr\x1b[2J 0.60"]
    lines += [rf"\x1b{number}.jpg: red 0.90" for number in range(3, 10)]
    for count, last in (
        (11, "11 images, 1.00 labels each, 1 without any"),
        (10, "10 images, "),
        (1, "1 image, 2 labels"),
    ):
        predictions = Predictions(
            paths=paths[:count],
            names=paths[:count],
            probabilities=rows[:count],
            classes=("red", "gr\x1b[2J", "Löwe"),
            decide=lambda block: [np.flatnonzero(row >= 0.5).tolist() for row in block],
        )
        testing.print_summary(predictions, {})
        printed = capsys.readouterr().out.splitlines()
        assert printed[:-1] == ([] if count == 11 else lines[:count])
        assert printed[-1].startswith(last)


def test_images_of_a_few_are_marked_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.array([[0.9, 0.1], [0.6, 0.5], [0.1, 0.9]], np.float32)
    predictions = Predictions(
        paths=["/set/0.jpg", "/set/1.jpg", "/set/2.jpg"],
        names=["0", "1", "2"],
        probabilities=rows,
        classes=("red", "green"),
        decide=lambda block: [np.flatnonzero(row >= 0.5).tolist() for row in block],
        compared=Compared(np.array([0.995, 0.2, 0.2]), np.zeros((3, 1), int), ["a.jpg"]),
        abstain=lambda block: [bool(row[1] == 0.5) for row in block],
    )
    testing.print_summary(predictions, {})
    first, second, third, left, total, unlike = capsys.readouterr().out.splitlines()
    assert first == "0.jpg: red 0.90 (unlike the training images)"
    assert second == "1.jpg: red 0.60, green 0.50 (left to a person: ABSTAIN)"
    assert third == "2.jpg: green 0.90"
    assert left == "1 of 3 images left to a person: see ..._abstained.json"
    assert total == "3 images, 1.33 labels each, 0 without any"
    assert unlike.startswith("1 of 3 images (33.3%) are unlike the training images: ")


def test_of_many_labels_the_most_probable_are_printed() -> None:
    names = [f"c{number}" for number in range(30)]
    values = np.linspace(0.9, 0.61, 30, dtype=np.float32)
    text = testing.describe_labels(predictor.Record("a.jpg", values, [*range(30)], names, tuple(names)))
    assert text.startswith("c0 0.90, c1 0.89, ")
    assert text.endswith(", c19 0.71, 10 more")


def test_of_one_label_an_image_no_threshold_is_told(
    folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_checkpoint(folder, thresholds=[0.3, 0.4, 0.5], min_labels=1, max_labels=1)
    testing.main([*make_small_run(shared_dataset, folder), "--BOOTSTRAP_SAMPLES=0"])
    assert " classes  3, the most probable one is predicted\n" in capsys.readouterr().out
    assert read_predictions(folder)[0].name.endswith("_lr0.001_testbs64_min1_max1.json")


def test_an_image_that_cannot_be_read_keeps_what_was_finished(
    folder: Path, dataset: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*make_small_run(dataset, folder), "--TEST_BATCH_SIZE=3", "--PREDICTION_FILES=probabilities"]
    image = dataset / "images" / "test-resized" / "test007.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    assert "test007.jpg" in fails(testing.main, arguments)
    image.write_bytes(whole)
    capsys.readouterr()
    testing.main(arguments)
    assert "6 of 12 images were done: going on" in capsys.readouterr().out
    assert not list((folder / "predictions").glob(".*")), "what was kept is removed at the end"
    expected = compute_by_hand(folder, dataset)
    assert read_predictions(folder)[1] == {stem: np.flatnonzero(row >= 0.52).tolist() for stem, row in expected.items()}


def test_damaged_images_are_left_out_on_request(
    folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = compute_by_hand(folder, dataset)
    images, labels = dataset / "images" / "test-resized", dataset / "labels" / "test"
    (images / "test004.jpg").write_bytes(b"broken")
    (labels / "test004.cls").write_text("0\n1\n2\n")
    testing.main([*make_small_run(dataset, folder), "--BAD_IMAGES=skip"])
    del expected["test004"]
    assert read_predictions(folder)[1] == {stem: np.flatnonzero(row >= 0.52).tolist() for stem, row in expected.items()}
    assert re.search(r"^left out: cannot read image .*test004\.jpg", capsys.readouterr().out, re.MULTILINE)
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    assert (result["num_images"], result["num_images_left_out"]) == (11, 1)
    table = dataset_readers.read_dataset(dataset, split="test")
    kept = [row for row, path in enumerate(table.paths) if not path.endswith("test004.jpg")]
    assert [entry["positives"] for entry in result["classes"].values()] == table.targets[kept].sum(axis=0).tolist()

    testing.main([*make_small_run(dataset, folder), "--BAD_IMAGES=skip", f"--TEST_LABELS_DIR={folder / 'none'}"])
    assert read_predictions(folder)[1].keys() == expected.keys(), "without labels, too"


def test_a_threshold_and_limits_a_class_are_the_checkpoints(folder: Path, shared_dataset: Path) -> None:
    rows = compute_by_hand(folder, shared_dataset)
    medians = np.median(list(rows.values()), axis=0)
    change_checkpoint(folder, thresholds=medians.tolist(), min_labels=1, max_labels=2)
    testing.main([*make_small_run(shared_dataset, folder), "--PREDICTION_FILES=names,records"])
    lowest, highest = medians.astype(np.float32).min(), medians.astype(np.float32).max()
    (file,) = (folder / "predictions").glob(f"predictions_*testbs64_th{lowest:.4g}-{highest:.4g}_min1_max2.json")
    predictions = json.loads(file.read_text())
    for stem, row in rows.items():
        above = sorted(np.flatnonzero(row >= medians.astype(np.float32)), key=lambda c: -row[c])
        assert predictions[stem] == sorted(above[:2] or [int(row.argmax())])
    assert {len(labels) for labels in predictions.values()} == {1, 2}
    names = json.loads(file.with_name(f"{file.stem}_names.json").read_text())
    assert names == {stem: [("red", "green", "blue")[c] for c in labels] for stem, labels in predictions.items()}
    records = json.loads(file.with_name(f"{file.stem}_records.json").read_text())
    assert [sorted(record["class_ids"]) for record in records] == list(predictions.values())
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    assert (result["min_labels"], result["max_labels"]) == (1, 2)
    assert [entry["predicted"] for entry in result["classes"].values()] == [
        sum(c in labels for labels in predictions.values()) for c in range(3)
    ]


def test_each_test_has_short_files_of_its_own(folder: Path, shared_dataset: Path) -> None:
    """Two tests that differ in a threshold do not replace each other's files."""
    options = ["--PREDICTION_FILES=csv,jsonl,parquet", "--BOOTSTRAP_SAMPLES=0"]
    arguments = [*make_small_run(shared_dataset, folder), *options]
    rows = compute_by_hand(folder, shared_dataset)
    found: dict[float, set[Path]] = {}
    for threshold in (0.52, 0.48):
        change_checkpoint(folder, best_threshold=threshold)
        before = {*(folder / "predictions").glob("predictions_resnet18_test_*")}
        testing.main(arguments)
        after = {*(folder / "predictions").glob("predictions_resnet18_test_*")}
        new = found[threshold] = after - before
        assert {path.suffix for path in new} == {".csv", ".jsonl", ".parquet"}
        (file,) = (path for path in new if path.suffix == ".jsonl")
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            above = {("red", "green", "blue")[c] for c in np.flatnonzero(rows[Path(record["file"]).stem] >= threshold)}
            assert {*record["labels"]} == above
            assert "novelty" not in record
    assert len(found[0.52] | found[0.48]) == len(after) == 6


def test_other_splits_are_predicted_into_files_of_their_own(
    folder: Path, dataset: Path, fails: Callable[..., str]
) -> None:
    arguments = make_small_run(dataset, folder)
    testing.main([*arguments, "--TEST_SPLIT=train", "--BOOTSTRAP_SAMPLES=0"])
    file, predictions = read_predictions(folder)
    assert file.stem.endswith("_train")
    assert list(predictions) == [f"train{index:03}" for index in range(40)]
    result = json.loads((folder / "predictions" / "evaluate_result_train.json").read_text())
    targets = dataset_readers.read_dataset(dataset, split="train").targets
    assert [entry["positives"] for entry in result["classes"].values()] == targets.sum(axis=0).tolist()
    assert (folder / "predictions" / "evaluate_confusion_train.png").is_file()
    message = fails(testing.main, [*arguments, "--TEST_SPLIT=val"])
    assert "has no val split of its own, which training splits off the train split" in message

    for name in ("images", "labels"):
        source = dataset / name / ("test-resized" if name == "images" else "test")
        source.rename(dataset / name / source.name.replace("test", "val"))
    testing.main([*arguments, "--TEST_SPLIT=val"])
    predictions = json.loads(next((folder / "predictions").glob("predictions_*_val.json")).read_text())
    assert list(predictions) == [f"test{index:03}" for index in range(12)]


def test_all_that_decides_probabilities_names_what_is_kept(folder: Path, shared_dataset: Path) -> None:
    arguments = make_small_run(shared_dataset, folder)
    names = []
    for change in ([], ["--TEST_FLIP=True"], ["--TEST_SCALES=1,1.5"], ["--TEST_BATCH_SIZE=5"], ["another model"]):
        if change == ["another model"]:
            change_checkpoint(folder, epoch=4)
        overrides.apply([*arguments, *[each for each in change if each.startswith("--")]], config, testing)
        model = predictor.load(config.MODEL_PATH, "cpu", flip=testing.TEST_FLIP, scales=testing.TEST_SCALES)
        names.append(testing.name_rows(model, ["/a/1.jpg", "/a/b/2.jpg"], []))
        assert testing.name_rows(model, ["/a/b/2.jpg", "/a/3.jpg"], []) == names[-1], (
            "rows say which images they are of"
        )
        testing.TEST_FLIP, testing.TEST_SCALES, config.TEST_BATCH_SIZE = False, (1.0,), 64
    assert len(set(names)) == len(names)
    images = [str(path) for path in sorted((shared_dataset / "images" / "train-resized").iterdir())[:2]]
    assert len({testing.name_rows(model, images, some) for some in ([], images, images[::-1], images[:1])}) == 4
    assert testing.name_rows(model, images, []) not in names, "another folder"
    config.TEST_SPLIT = "train"
    assert testing.name_rows(model, ["/a/1.jpg", "/a/b/2.jpg"], []) not in names


def run_slowly(arguments: list[str], kill_at: int) -> None:
    """testing.py with a pause after each image, and a long one once `kill_at` images are kept: time to kill it."""
    append, done = RowFile.append, []

    def append_slowly(rows: RowFile, probabilities: np.ndarray, *compared: Any) -> None:
        append(rows, probabilities, *compared)
        done.append(probabilities)
        time.sleep(0.02 if len(done) < kill_at + 4 else 60)  # up to a batch of 4 is not yet in the file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowFile, "append", append_slowly)
        testing.main(arguments)


def test_a_killed_run_goes_on_to_the_same_files(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "many", num_train=2, num_test=90)
    arguments = [*make_small_run(dataset, folder), "--TEST_BATCH_SIZE=4", "--PREDICTION_FILES=scores,probabilities"]
    arguments += [f"--TEST_LABELS_DIR={folder / 'none'}"]
    predictions = folder / "predictions"
    context = multiprocessing.get_context("forkserver")  # a fork of this process would share its threads' locks
    context.set_forkserver_preload(["testing"])  # importing torch takes seconds: once is enough
    rng = random.Random(0)
    for least in (0, 40):
        kill_at = rng.randint(least + 8, least + 35)
        process = context.Process(target=run_slowly, args=(arguments, kill_at))
        process.start()
        while not [file for file in predictions.glob(".*.partial") if file.stat().st_size >= kill_at * 20]:
            assert process.is_alive(), "it ended before it was killed"
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (kept,) = predictions.iterdir()
        with open(kept, "ab") as file:  # part of a row, as a write may leave it
            file.write(b"half of it")
    capfd.readouterr()
    testing.main(arguments)
    done = re.search(r"^(\d+) of 90 images were done: going on$", capfd.readouterr().out, re.MULTILINE)
    assert done
    assert int(done[1]) >= 48
    assert int(done[1]) % 4 == 0
    found = {file.name: file.read_bytes() for file in predictions.iterdir()}
    shutil.rmtree(predictions)
    testing.main(arguments)
    assert found == {file.name: file.read_bytes() for file in predictions.iterdir()}
    assert len(found) == 3


def test_what_other_numbers_of_processes_left_is_removed_in_the_end(
    folder: Path, shared_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "name_rows", lambda *_: ".predictions_12ab")
    (folder / "predictions").mkdir()
    for name in (".predictions_12ab_0of2.partial", ".predictions_12ab_1of2.partial", ".predictions_34cd.partial"):
        (folder / "predictions" / name).touch()
    testing.main(make_small_run(shared_dataset, folder))
    assert [file.name for file in (folder / "predictions").glob(".*")] == [".predictions_34cd.partial"]


def test_the_files_of_two_tests_side_by_side_are_not_mixed(
    folder: Path, shared_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them writes evaluate_result.json, tables and pictures while the other waits."""
    held = []

    def look(*arguments: Any) -> None:
        with locks.hold(testing.PREDICTIONS_FOLDER / locks.LOCK, wait=False) as is_free:
            held.append(not is_free)

    monkeypatch.setattr(testing, "write_predictions", look)
    monkeypatch.setattr(testing, "evaluate", look)
    testing.main(make_small_run(shared_dataset, folder))
    assert held == [True, True]
    with locks.hold(testing.PREDICTIONS_FOLDER / locks.LOCK, wait=False) as is_free:
        assert is_free


def test_images_of_the_same_name_in_two_folders_keep_apart() -> None:
    assert prediction_files.name_images(["/set/test/cat/1.jpg", "/set/test/dog/1.jpg"]) == ["cat/1", "dog/1"]
    assert prediction_files.name_images(["/set/test/a.b.jpg", "/set/test/c.png"]) == ["a.b", "c"]
    assert prediction_files.name_images(["/set/a.jpg", "/set/a.png", "/set/b.jpg"]) == ["a.jpg", "a.png", "b.jpg"]


# ---- slices ----


@pytest.fixture
def sliced(folder: Path, dataset: Path) -> Path:
    """The small data set with its test split as a csv, which has a column of the camera; every third has none."""
    lines = ["image_path,labels,camera,(odd)"]
    table = dataset_readers.read_dataset(dataset, split="test")
    for number, (path, row) in enumerate(zip(table.paths, table.targets, strict=True)):
        names = ";".join(table.classes[c] for c in np.flatnonzero(row))
        camera = ("north", "south", "")[number % 3]
        lines.append(f"{Path(path).relative_to(dataset).as_posix()},{names},{camera},{number % 2}")
    shutil.rmtree(dataset / "labels")
    (dataset / "test.csv").write_text("\n".join(lines))
    return dataset


def test_metrics_of_each_slice(folder: Path, sliced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*make_small_run(sliced, folder), "--BOOTSTRAP_SAMPLES=20"]
    testing.main([*arguments, r"--SLICES=camera,test00([0-4])"])
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())["slices"]
    assert [*result] == ["camera", "test00([0-4])"]
    assert [*result["camera"]["slices"]] == ["north", "south", ""]
    assert [*result["test00([0-4])"]["slices"]] == ["0", "1", "2", "3", "4", ""]
    rows = compute_by_hand(folder, sliced)
    table = dataset_readers.read_dataset(sliced, split="test")
    probabilities = np.stack([rows[stem] for stem in sorted(rows)])
    for start, name in enumerate(("north", "south", "")):
        found = result["camera"]["slices"][name]
        part = slice(start, None, 3)
        expected = metrics.measure(probabilities[part], table.targets[part], 0.52)
        assert found["metrics"] == pytest.approx(expected, abs=1e-6)
        assert (found["num_images"], found["num_positives"]) == (4, table.targets[part].sum())
    assert result["camera"]["num_pairs"] == 3 + 15
    out = capsys.readouterr().out
    assert "fewer than 30 images, which say little: north (4), south (4), (none) (4)" in out
    lines = (folder / "predictions" / "slices.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 + 6
    assert lines[0].startswith("slicing,slice,images,labels,mAP,mAP_low,mAP_high,num_classes_in_mAP,CP,CP_low,")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("camra", "'camra' is neither a column (the csv of test has image_path, labels, camera, (odd)) nor a regular "),
        ("(odd)", "SLICES '(odd)' is a column of the csv, and a regular expression with one group, too: rename the "),
        (
            "lamp|door",
            "(it has no group; on the command line, one that is all a group has quotes of its own: \"'(a|b)'\")",
        ),
        ("(a)(b)", "with one group (it has 2 groups: those that only hold together are written (?:...); on the "),
        ("(lamp)", "SLICES '(lamp)' finds nothing in any path, such as "),
    ],
)
def test_slices_that_are_not_there_stop_before_anything_is_predicted(
    folder: Path, sliced: Path, name: str, message: str, fails: Callable[..., str]
) -> None:
    assert message in fails(testing.main, [*make_small_run(sliced, folder), f"--SLICES='{name}'"])
    assert not (folder / "predictions").exists()


def test_a_format_without_columns_is_said(folder: Path, shared_dataset: Path, fails: Callable[..., str]) -> None:
    error = fails(testing.main, [*make_small_run(shared_dataset, folder), "--SLICES=camera"])
    assert (
        f"'camera' is neither a column ({shared_dataset} is read as coco_cls, and columns are only read from" in error
    )
