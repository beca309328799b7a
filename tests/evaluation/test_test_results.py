"""evaluation/test_results.py: a ruler changes with what it measures by; a test is never taken for another's."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_readers
import metrics
from dataset import whole_files
from dataset.formats import FORMATS
from dataset.table import Table
from evaluation import test_results
from evaluation.saved_scores import SavedScores
from evaluation.test_results import describe_difference, make_ruler
from models import checkpoints
from utils import InputError

CLASSES = ("red", "green", "blue")
NAMES = ["b.jpg", "a/2.jpg", "a/1.jpg", "c.png"]
TARGETS = np.array([[1, 0, 0], [0, 1, -1], [1, 1, 0], [0, 0, 1]], np.int8)


def write_images(folder: Path, **contents: bytes) -> list[str]:
    """Files with the names NAMES; what they hold is never decoded."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents.get(Path(name).stem, name.encode() * 50))
    return [str(folder / name) for name in NAMES]


# ---- rulers ----


def test_a_ruler_depends_on_neither_the_folder_nor_the_order_of_reading(tmp_path: Path) -> None:
    ruler = make_ruler(write_images(tmp_path / "set"), TARGETS, CLASSES)
    (tmp_path / "set").rename(tmp_path / "moved")
    paths = [str(tmp_path / "moved" / name) for name in NAMES]
    assert make_ruler(paths, TARGETS, CLASSES) == ruler
    order = np.random.default_rng(0).permutation(len(NAMES))
    assert make_ruler([paths[row] for row in order], TARGETS[order], CLASSES) == ruler
    assert (ruler.num_images, ruler.num_classes) == (4, 3)
    assert all(len(text) == 16 for text in ruler if isinstance(text, str))


def test_a_changed_byte_name_label_class_or_definition_is_another_ruler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path / "set")
    ruler = make_ruler(paths, TARGETS, CLASSES)
    unknown = np.where(TARGETS == -1, 0, TARGETS)
    others = {
        "test images of the same names with other content": (write_images(tmp_path / "x", b=b"B"), TARGETS, CLASSES),
        "other test images (4 and 3)": (paths[:3], TARGETS[:3], CLASSES),
        "other labels of the same test images": (paths, unknown, CLASSES),
        "other classes, or in another order": (paths, TARGETS, ("green", "red", "blue")),
        "other classes (3 and 2)": (paths, TARGETS[:, :2], CLASSES[:2]),
        "test images of the same names with other content; other labels": (
            write_images(tmp_path / "y", c=b""),
            1 - TARGETS,
            CLASSES,
        ),
        "other test images (4 and 3); other classes (3 and 2)": (paths[:3], TARGETS[:3, :2], CLASSES[:2]),
    }
    for words, other in others.items():
        found = make_ruler(*other)
        assert found.fingerprint != ruler.fingerprint
        assert describe_difference(ruler, found) == words
    renamed = [*paths[:3], f"{paths[3]}.png"]
    Path(paths[3]).rename(renamed[3])
    assert describe_difference(ruler, make_ruler(renamed, TARGETS, CLASSES)) == "other test images (4 each)"
    Path(renamed[3]).rename(paths[3])
    assert describe_difference(ruler, make_ruler(paths, TARGETS, CLASSES)) == ""
    monkeypatch.setattr(test_results, "DEFINITIONS", test_results.DEFINITIONS + 1)
    found = make_ruler(paths, TARGETS, CLASSES)
    assert found.fingerprint != ruler.fingerprint
    versions = f"version {ruler.definitions} and {found.definitions}"
    assert describe_difference(ruler, found) == f"other definitions of the metrics ({versions})"


def test_metrics_mean_what_they_did_when_definitions_was_last_raised() -> None:
    """By hand, with an unknown label, a class that is never predicted, and images without a right or a known label."""
    probabilities = [[0.9, 0.2, 0.4], [0.8, 0.7, 0.3], [0.3, 0.6, 0.6], [0.1, 0.4, 0.2], [0.9, 0.1, 0.1]]
    targets = [[1, 0, 1], [1, 1, 0], [0, 1, -1], [1, 0, 0], [-1, -1, -1]]
    expected = {
        "mAP": (11 / 12 + 1 + 1) / 3,
        "CP": 2 / 3,
        "CR": 5 / 9,
        "CF1": 20 / 33,
        "OP": 1,
        "OR": 2 / 3,
        "OF1": 0.8,
        "f1_macro": 0.6,
        "f1_weighted": 4.4 / 6,
        "f1_samples": 2 / 3,
        "exact_match": 0.5,
        "hamming_loss": 2 / 11,
        "sample_accuracy": 0.625,
    }
    measured = metrics.measure(probabilities, targets, 0.5)
    found = {name: measured[name] for name in expected}
    assert found == pytest.approx(expected), "raise DEFINITIONS in evaluation/test_results.py, and correct this test"
    assert test_results.DEFINITIONS == 2


def test_members_of_shards_are_hashed_and_a_missing_file_is_named(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (4, 4), (number, 0, 0)).save(paths[-1])
    table = Table(paths, TARGETS[[0, 2, 3]], CLASSES)
    FORMATS["webdataset"].write(table, tmp_path / "shards", "test", ["0.png", "1.png", "2.png"])
    packed = dataset_readers.read_dataset(tmp_path / "shards", "webdataset", "test")
    assert make_ruler(packed.paths, packed.targets, packed.classes).num_images == 3
    with pytest.raises(InputError, match=r"^cannot read image .*gone\.jpg: No such file"):
        make_ruler([*paths, str(tmp_path / "gone.jpg")], TARGETS, CLASSES)


# ---- tests ----


def make_run(root: Path, name: str = "lr0.001_seed0_0a1b2c3d", **metadata: Any) -> tuple[Path, dict[str, Any]]:
    """(the folder of a run, the metadata of its checkpoint)."""
    folder = root / "resnet18" / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "model_state": {"weight": torch.zeros(1)},
        "model_name": "resnet18",
        "head": "linear",
        "classes": [*CLASSES],
        "image_size": 32,
        "resize_rule": "squash",
        "run": f"resnet18/{name}",
        "weights": "raw",
        "epoch": 3,
        "best_f1": 0.1 + 0.2,
        "best_threshold": 0.5,
        "thresholds": [0.5, float(np.float32(0.3)), 0.5],
        "metrics": {"mAP": 0.7, "CP": float("nan")},
        "saved": "2026-11-28T18:40:00",
    } | metadata
    checkpoints.save(test_results.find_checkpoint(folder), checkpoint)
    return folder, checkpoint


def make_result() -> dict[str, Any]:
    """What testing.py writes into evaluate_result.json."""
    return {
        "done_flag": True,
        "model": "best_model.pt",
        "engine": "torch",
        "calibration": "none",
        "min_labels": 0,
        "max_labels": 2,
        "num_images": 4,
        "num_images_left_out": 1,
        "metrics": {"mAP": 0.25, "CP": None},
        "intervals": {"mAP": [0.2, 0.3], "CP": [None, None]},
        "classes": {"red": {"AP": 0.5}, "green": {"AP": None}, "blue": {"AP": 0.0}},
    }


def save(folder: Path, metadata: dict[str, Any], paths: list[str], views: str = "") -> np.ndarray:
    """Save a test of the run; its probabilities (4, 3)."""
    probabilities = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    scores = SavedScores(probabilities, TARGETS, paths, CLASSES)
    ruler = make_ruler(paths, TARGETS, CLASSES)
    test_results.save_test(folder, make_result(), scores, ruler, metadata, metadata["thresholds"], views)
    return probabilities


def test_a_test_is_read_as_it_was_saved_in_the_order_of_names(tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path)
    assert test_results.read_test(folder) is None
    paths = write_images(tmp_path / "set")
    probabilities = save(folder, metadata, paths, "flip")
    test = test_results.read_test(folder)
    assert test is not None
    assert (test.run, test.stale, test.views) == ("resnet18/lr0.001_seed0_0a1b2c3d", "", "flip")
    assert test.ruler == make_ruler(paths, TARGETS, CLASSES)
    assert test.metrics == pytest.approx({"mAP": 0.25, "CP": np.nan}, nan_ok=True)
    assert test.intervals["mAP"] == (0.2, 0.3)
    assert np.isnan(test.intervals["CP"]).all()
    assert np.isnan(test.classes["green"]["AP"])
    assert np.float32(test.thresholds).tolist() == np.float32([0.5, 0.3, 0.5]).tolist()
    assert (test.min_labels, test.max_labels, test.num_images, test.num_images_left_out) == (0, 2, 4, 1)
    scores = test_results.read_test_scores(folder)
    assert scores.paths == ["a/1.jpg", "a/2.jpg", "b.jpg", "c.png"]
    order = [2, 1, 0, 3]
    np.testing.assert_array_equal(scores.probabilities, probabilities[order])
    np.testing.assert_array_equal(scores.targets, TARGETS[order])
    content = json.loads((folder / "test_result.json").read_text())
    assert content.keys() >= make_result().keys()
    assert content["ruler"] == test.ruler._asdict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 4}, "its weights are of another epoch or training"),
        ({"saved": "2026-11-29T00:00:00"}, "its weights are of another epoch or training"),
        ({"metrics": {"mAP": 0.71, "CP": float("nan")}}, "its weights are of another epoch or training"),
        ({"thresholds": [0.5, 0.31, 0.5]}, "its thresholds or its calibration were tuned again"),
        ({"max_labels": 1}, "its thresholds or its calibration were tuned again"),
        ({"calibration": {"temperature": {"scale": [2.0], "bias": [0.0]}}}, "its thresholds or its calibration "),
        (None, "is gone, or cannot be read"),
    ],
)
def test_numbers_of_another_checkpoint_are_never_shown(
    changes: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    folder, metadata = make_run(tmp_path)
    save(folder, metadata, write_images(tmp_path / "set"))
    checkpoint = test_results.find_checkpoint(folder)
    if changes is None:
        checkpoint.unlink()
    else:
        checkpoints.save(checkpoint, checkpoints.load(checkpoint) | {"seconds": 1.0, "threshold_report": {}})
        test = test_results.read_test(folder)
        assert test is not None
        assert test.stale == "", "what decides nothing may change"
        checkpoints.save(checkpoint, checkpoints.load(checkpoint) | changes)
    test = test_results.read_test(folder)
    assert test is not None
    assert words in test.stale
    assert (test.metrics, test.intervals, test.classes) == ({}, {}, {})


def test_a_copy_knows_its_run_wherever_that_lies(tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path / "trained_models")
    models, elsewhere = tmp_path / "trained_models", tmp_path / "elsewhere"
    for path in (test_results.find_checkpoint(folder), models / "best_model.pt", elsewhere / "copy.pt"):
        assert test_results.find_place(path, metadata, models) == (folder, "")
    assert test_results.find_place(models / "best_model.pt", metadata, elsewhere).folder == folder, "beside the copy"
    place = test_results.find_place(elsewhere / "copy.pt", metadata, elsewhere)
    assert place == (None, f"there is no folder of its run, {elsewhere / metadata['run']}")
    for changes, words in (
        ({"epoch": 9}, "its weights are of another epoch or training"),
        ({"best_threshold": 0.4}, "its thresholds or its calibration were tuned again"),
    ):
        place = test_results.find_place(models / "best_model.pt", metadata | changes, models)
        expected = f"{models / 'best_model.pt'} is another model than {test_results.find_checkpoint(folder)}: {words}"
        assert place == (None, expected)


def test_an_older_checkpoint_is_known_by_its_place(tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path)
    path = test_results.find_checkpoint(folder)
    del metadata["run"]
    checkpoints.save(path, metadata)
    assert test_results.find_place(path, metadata, tmp_path) == (folder, "")
    copied = test_results.find_place(tmp_path / "best_model.pt", metadata, tmp_path)
    assert copied.folder is None
    assert "does not say which run it is of" in copied.reason


def test_a_renamed_run_keeps_its_place_by_its_own_file(tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path)
    moved = folder.with_name("mine")
    for ending in ("", ".pt", ".json"):
        folder.with_name(f"{folder.name}{ending}").rename(folder.with_name(f"mine{ending}"))
    assert test_results.find_place(moved.with_name("mine.pt"), metadata, tmp_path) == (moved, "")


def test_killed_between_its_files_no_test_is_left_that_does_not_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, metadata = make_run(tmp_path)
    paths = write_images(tmp_path / "set")
    save(folder, metadata, paths)

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    for step in ("save_scores", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(test_results if step == "save_scores" else whole_files, step, die)
            with pytest.raises(KeyboardInterrupt):
                save(folder, metadata, paths, "flip")
        assert test_results.read_test(folder) is None
        with pytest.raises(InputError, match=r"holds no whole test: python testing\.py --MODEL_PATH"):
            test_results.read_test_scores(folder)
        save(folder, metadata, paths)
        assert test_results.read_test_scores(folder).paths


def test_two_tests_at_once_leave_one_whole_test(tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path)
    paths = write_images(tmp_path / "set")
    threads = [threading.Thread(target=save, args=(folder, metadata, paths, views)) for views in ("", "flip") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    test = test_results.read_test(folder)
    assert test is not None
    assert test_results.read_test_scores(folder).classes == CLASSES
    assert sorted(path.name for path in folder.iterdir()) == ["test_result.json", "test_scores.npz"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("ruler"),
        lambda content: content["ruler"].pop("targets"),
        lambda content: content["ruler"].update(num_images="4"),
        lambda content: content.update(thresholds=[0.5]),
        lambda content: content.update(metrics={"mAP": "high"}),
        lambda content: content.update(intervals={"mAP": [0.1]}),
        lambda content: content.update(classes=[1]),
        lambda content: content.update(num_images=-1),
        lambda content: content.update(views=None),
        lambda content: content.update(checkpoint=[]),
        lambda content: content.update(version=2),
        lambda content: content.update(version=True),
        lambda content: content.update(metrics={"mAP": 5}),
        lambda content: content.update(metrics={"mAP": -1}),
        lambda content: content.update(metrics={"f1_weighted": 1e308}),
        lambda content: content.update(metrics={"CF1": float("inf")}),
        lambda content: content.update(intervals={"mAP": [0.4, 0.3]}),
        lambda content: content.update(intervals={"mAP": [-0.4, 0.3]}),
        lambda content: content.update(min_labels=99),
        lambda content: content.update(min_labels=3, max_labels=2),
        lambda content: content.clear(),
    ],
)
def test_a_damaged_result_is_one_line(change: Any, tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path)
    save(folder, metadata, write_images(tmp_path / "set"))
    path = folder / "test_result.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"^{path} [^\n]+: test the run again$"):
        test_results.read_test(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("targets", 1, "has other labels than the ruler in test_result.json beside it: test the run again"),
        ("probabilities", float("nan"), "holds probabilities that are none, from 0 to 1: test the run again"),
        ("probabilities", 7, "holds probabilities that are none, from 0 to 1: test the run again"),
    ],
)
def test_scores_that_were_changed_are_not_compared(field: str, value: float, message: str, tmp_path: Path) -> None:
    folder, metadata = make_run(tmp_path)
    save(folder, metadata, write_images(tmp_path / "set"))
    path = folder / "test_scores.npz"
    with np.load(path) as file:
        arrays = {name: file[name].copy() for name in file.files}
    arrays[field][3, 0] = value
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=rf"^{path} {message}$"):
        test_results.read_test_scores(folder)


def test_another_fingerprint_of_equal_parts_is_a_difference(tmp_path: Path) -> None:
    ruler = make_ruler(write_images(tmp_path / "set"), TARGETS, CLASSES)
    other = ruler._replace(fingerprint="a" * 16)
    words = f"other fingerprints ({ruler.fingerprint} and {'a' * 16}) of what looks the same"
    assert describe_difference(ruler, other) == words
