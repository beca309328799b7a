"""threshold_tuning.py: what it writes for a checkpoint, from scores alone."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calibration
import config
import metrics
import threshold_tuning
import thresholds
from dataset import locks
from evaluation import saved_scores
from evaluation.saved_scores import SavedScores
from models import checkpoints
from thresholds import Policy
from trainer import from_config
from utils import InputError

CLASSES = ("red", "green", "blue", "grey")


def make_scores(num_images: int = 120) -> SavedScores:
    """Scores of four classes; grey has no positive, and a tenth is unknown."""
    rng = np.random.default_rng(0)
    targets = (rng.random((num_images, 4)) < (0.6, 0.3, 0.05, 0)).astype(np.int8)
    logits = rng.normal(-1, 1.5, targets.shape) + 2 * targets + (1, 0, -2, -3)
    targets[rng.random(targets.shape) < 0.1] = -1
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return SavedScores(probabilities, targets, [f"val/{index:03}.jpg" for index in range(num_images)], CLASSES)


def write_checkpoint(
    path: Path, scores: SavedScores | None = None, folder: Path | None = None, **changes: object
) -> Path:
    """A checkpoint without thresholds, as runs wrote before there were any, and the scores of its validation images."""
    plain = {
        "model_state": {"weight": torch.arange(3.0)},
        "model_name": "resnet18",
        "head": "linear",
        "classes": list(CLASSES),
        "image_size": 32,
        "resize_rule": "squash",
        "best_threshold": 0.5,
        "best_f1": 0.7,
    }
    checkpoints.save(path, plain | changes)
    if scores:
        saved_scores.save_scores((folder or path.parent) / "validation_scores.npz", *scores)
    return path


def run(path: Path, *arguments: str) -> dict:
    threshold_tuning.main([f"--MODEL_PATH={path}", *arguments])
    return checkpoints.load(path)


def test_scores_come_back_as_they_were_saved(tmp_path: Path) -> None:
    scores = make_scores()
    file = tmp_path / "new" / "scores.npz"
    saved_scores.save_scores(file, *scores)
    read = saved_scores.read_scores(file)
    assert [path.name for path in file.parent.iterdir()] == ["scores.npz"]
    assert read.probabilities.dtype == np.float32
    assert np.array_equal(read.probabilities, scores.probabilities)
    assert read.targets.dtype == np.int8
    assert np.array_equal(read.targets, scores.targets)
    assert (read.paths, read.classes) == (scores.paths, scores.classes)
    as_floats = np.where(scores.targets < 0, np.nan, scores.targets.astype(float))
    saved_scores.save_scores(file, scores.probabilities, as_floats, [Path("ä/b.jpg")] * 120, CLASSES)
    read = saved_scores.read_scores(file)
    assert np.array_equal(read.targets, scores.targets)
    assert read.paths[0] == "ä/b.jpg"


def write_pickle(file: Path) -> None:
    np.savez(file, **{name: np.array([{}], dtype=object) for name in SavedScores._fields})


def write_misfit(file: Path) -> None:
    saved_scores.save_scores(file, np.zeros((3, 2)), np.zeros((3, 2)), ["a", "b"], ["x", "y"])


def write_half(file: Path) -> None:
    saved_scores.save_scores(file, *make_scores())
    file.write_bytes(file.read_bytes()[:900])


def write_array(name: str, array: Any, header: dict[str, Any] | None = None) -> Callable[[Path], None]:
    """A function that writes scores with `array` in place of what is called `name`, or with `header` and no values."""

    def write(file: Path) -> None:
        saved_scores.save_scores(file, *make_scores())
        with np.load(file) as saved:
            arrays = {**saved, name: np.asarray(array)}
        with zipfile.ZipFile(file, "w") as archive:
            for key, values in arrays.items():
                with archive.open(f"{key}.npy", "w") as entry:
                    if key == name and header:
                        np.lib.format.write_array_header_1_0(entry, {"fortran_order": False, **header})
                    else:
                        np.save(entry, values)

    return write


DAMAGED = {
    "a header of 10^12 numbers": (write_array("targets", 0, {"descr": "|i1", "shape": (10**12, 3)}), "damaged"),
    "a header of 10^10 numbers": (write_array("targets", 0, {"descr": "<f4", "shape": (10**10,)}), "damaged"),
    "a header of 10^40 numbers": (write_array("targets", 0, {"descr": "|i1", "shape": (10**20, 10**20)}), "damaged"),
    "texts of a gigabyte": (write_array("paths", 0, {"descr": "<U1000000000", "shape": (120,)}), "damaged"),
    "words as probabilities": (write_array("probabilities", [["a", "b"]]), "damaged"),
    "a single number": (write_array("probabilities", 0.5), "damaged"),
    "a single path": (write_array("paths", "a.jpg"), "damaged"),
    "numbers as paths": (write_array("paths", range(120)), "damaged"),
    "names in two dimensions": (write_array("classes", [["a"]]), "damaged"),
    "no file": (lambda file: None, "train again"),
    "text": (lambda file: file.write_text("scores"), "damaged"),
    "empty": (lambda file: file.write_bytes(b""), "damaged"),
    "half a file": (write_half, "damaged"),
    "another file": (lambda file: np.savez(file, scores=np.zeros(3)), "damaged"),
    "an array": (lambda file: np.save(file.open("wb"), np.zeros(3)), "damaged"),
    "pickled objects": (write_pickle, "damaged"),
    "shapes that differ": (write_misfit, "do not fit"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_scores_file_is_refused(tmp_path: Path, kind: str) -> None:
    write, message = DAMAGED[kind]
    file = tmp_path / "validation_scores.npz"
    write(file)
    with pytest.raises(InputError, match=message) as error:
        saved_scores.read_scores(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_a_checkpoint_that_a_run_trains_is_left_alone(tmp_path: Path) -> None:
    """It would take the place of a better one that the run saves meanwhile."""
    (tmp_path / "run").mkdir()
    path = write_checkpoint(tmp_path / "run.pt", make_scores(), tmp_path / "run")
    before = path.read_bytes()
    with locks.own(tmp_path / "run"), pytest.raises(InputError, match="run is in use by process"):
        run(path)
    assert path.read_bytes() == before
    assert run(path)["thresholds"]


@pytest.mark.parametrize("scope", ["global", "per_class"])
def test_a_checkpoint_is_tuned_and_nothing_else_of_it_changes(tmp_path: Path, scope: str) -> None:
    scores = make_scores()
    path = write_checkpoint(tmp_path / "best_model.pt", scores)
    before = checkpoints.load(path)
    after = run(path, f"--THRESHOLD_SCOPE={scope}", "--MIN_LABELS=1", "--MAX_LABELS=3")

    labelled = scores.probabilities, scores.targets
    policy = Policy(scope, min_labels=1, max_labels=3)
    decision = thresholds.decide(*labelled, policy)
    expected = (
        [thresholds.tune_plateau(*labelled)] * 4 if scope == "global" else thresholds.tune_shrunk(*labelled, policy)
    )
    assert after["thresholds"] == np.asarray(expected, dtype=np.float32).tolist()
    assert after["best_threshold"] == thresholds.tune_plateau(*labelled), "120 images are few"
    assert (after["min_labels"], after["max_labels"]) == (1, 3)
    assert after["calibration"] == calibration.fit(*labelled)
    assert after["threshold_policy"]["scope"] == scope
    assert Policy(**after["threshold_policy"]) == policy
    report = after["threshold_report"]
    assert (report["in_sample"], report["cross_fitted"]) == (decision.in_sample, decision.cross_fitted)
    assert report["num_images"] == 120
    assert report["platt_as_temperature"] == ["grey"]
    measured = metrics.measure(*labelled, after["thresholds"], 1, 3)["f1_weighted"]
    assert report["in_sample"]["shrunk" if scope == "per_class" else "global"]["f1_weighted"] == pytest.approx(measured)
    for name, method in (*after["calibration"].items(), ("none", {"scale": [1.0], "bias": [0.0]})):
        calibrated = calibration.apply_to_probabilities(scores.probabilities, method)
        error = metrics.measure(calibrated, scores.targets, 0.5)["ECE"]
        assert report["ECE"][name]["in_sample"] == pytest.approx(error, abs=1e-6)
        if name != "none":
            held_out = calibration.cross_fit(*labelled, calibration.METHODS[name])
            error = metrics.measure(held_out, scores.targets, 0.5)["ECE"]
            assert report["ECE"][name]["cross_fitted"] == pytest.approx(error, abs=1e-12)

    del after["model_state"]["weight"]  # compared below
    changed = {name for name in after if name != "model_state" and after[name] != before.get(name)}
    added = {"thresholds", "min_labels", "max_labels", "calibration", "threshold_policy", "threshold_report"}
    assert changed == {"best_threshold", *added}
    assert (after["promise"], after["abstention"]) == (None, None)
    assert torch.equal(checkpoints.load(path)["model_state"]["weight"], before["model_state"]["weight"])
    sidecar = json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert sidecar == {name: value for name, value in after.items() if name != "model_state"}
    saved = np.load(tmp_path / "thresholds.npy", allow_pickle=False)
    assert saved.dtype == np.float32
    assert saved.tolist() == after["thresholds"]
    with open(tmp_path / "thresholds.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "threshold"]
    assert [name for name, _ in rows] == list(CLASSES)
    assert [np.float32(value) for _, value in rows] == saved.tolist()


def test_tuning_again_gives_the_same(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "best_model.pt", make_scores())
    arguments = ["--THRESHOLD_SCOPE=per_class", "--THRESHOLD_GOAL=recall", "--THRESHOLD_RECALL=0.8"]
    first = run(path, *arguments)
    assert first["threshold_policy"] | {"goal": "recall", "recall": 0.8} == first["threshold_policy"]
    assert run(path, *arguments)["thresholds"] == first["thresholds"]
    assert run(path)["thresholds"] != first["thresholds"]


def test_a_run_has_its_files_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = write_checkpoint(tmp_path / "run.pt", make_scores(), tmp_path / "run")
    assert saved_scores.find_folder(path) == tmp_path / "run"
    run(path)
    assert (tmp_path / "run" / "thresholds.npy").is_file()
    assert not (tmp_path / "thresholds.npy").exists()
    assert saved_scores.find_folder(tmp_path / "best_model.pt") == tmp_path


def test_every_constant_reaches_the_policy() -> None:
    config.THRESHOLD_SCOPE, config.THRESHOLD_GOAL = "per_class", "cost"
    config.THRESHOLD_BETA, config.THRESHOLD_PRECISION, config.THRESHOLD_RECALL = 3.0, 0.8, 0.7
    config.FALSE_POSITIVE_COST, config.FALSE_NEGATIVE_COST = 5.0, 6.0
    config.MIN_LABELS, config.MAX_LABELS, config.ABSTAIN = 1, 2, 0.25
    assert from_config.choose_policy(4) == Policy("per_class", "cost", 3.0, 0.8, 0.7, 5.0, 6.0, 1, 2, 0.25)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["red", "blue", "green", "grey"], "'green' in place of 'blue'"),
        (["red", "green", "blue"], "4 classes, where this one has 3"),
    ],
)
def test_scores_of_another_model_are_refused(
    tmp_path: Path, classes: list[str], message: str, fails: Callable[..., str]
) -> None:
    path = write_checkpoint(tmp_path / "best_model.pt", make_scores(), classes=classes)
    before = path.read_bytes()
    assert message in fails(threshold_tuning.main, [f"--MODEL_PATH={path}"])
    assert path.read_bytes() == before
    assert not (tmp_path / "thresholds.npy").exists()


def test_more_labels_than_classes_and_exported_files_are_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    path = write_checkpoint(tmp_path / "best_model.pt", make_scores())
    before = path.read_bytes()
    assert "MIN_LABELS is 5, but there are 4" in fails(
        threshold_tuning.main, [f"--MODEL_PATH={path}", "--MIN_LABELS=5", "--MAX_LABELS=0"]
    )
    assert path.read_bytes() == before
    exported = tmp_path / "best_model.onnx"
    exported.write_bytes(b"\x08\x07")
    message = fails(threshold_tuning.main, [f"--MODEL_PATH={exported}"])
    assert f"{exported} is onnx, whose thresholds stay: set MODEL_PATH to the checkpoint (.pt)" in message


def test_without_scores_nothing_is_done(tmp_path: Path, fails: Callable[..., str]) -> None:
    path = write_checkpoint(tmp_path / "best_model.pt")
    assert "no validation scores" in fails(threshold_tuning.main, [f"--MODEL_PATH={path}"])


def test_a_softmax_model_has_thresholds_but_no_calibration(tmp_path: Path) -> None:
    scores = make_scores()
    probabilities = scores.probabilities / scores.probabilities.sum(axis=1, keepdims=True)
    path = write_checkpoint(
        tmp_path / "best_model.pt", scores._replace(probabilities=probabilities), activation="softmax"
    )
    after = run(path)
    assert after["calibration"] == {}
    assert after["thresholds"] == [np.float32(thresholds.tune_plateau(probabilities, scores.targets))] * 4
    assert [*after["threshold_report"]["ECE"]] == ["none"]


def test_the_table_has_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = make_scores()
    scores.probabilities[(scores.targets[:, 0] == 0).argmax(), 0] = 0.9999  # the highest of red's, and not red
    path = write_checkpoint(tmp_path / "best_model.pt", scores)
    goal = ("--THRESHOLD_GOAL=precision", "--THRESHOLD_PRECISION=0.999", "--THRESHOLD_SCOPE=per_class")
    after = run(path, *goal)
    captured = capsys.readouterr()
    report = after["threshold_report"]
    lines = captured.out.splitlines()
    assert "goal: precision of 0.999 or more, then highest recall; labels an image: 0 to all" in lines
    for way in ("global", "per_class", "shrunk"):
        for name, value in report["in_sample"][way].items():
            row = f"{name} │ {value:9.4f} │ {report['cross_fitted'][way][name]:12.4f} │"
            assert any(row in line for line in lines), row
    for name, error in report["ECE"].items():
        assert any(name in line and f"{error['cross_fitted']:.4f}" in line for line in lines)
    for name, threshold in zip(CLASSES, after["thresholds"], strict=True):
        assert any(line.startswith(f"│ {name}") and f"{threshold:.4f}" in line for line in lines)
    assert max(map(len, lines[:-2])) <= 92
    assert "red" in report["unreachable"]
    assert f"no threshold reaches that precision, so they are hardly predicted: {', '.join(report['unreachable'])}" in (
        captured.err
    )
    assert "platt" not in captured.err, "it is not in use"
    run(path, *goal, "--CALIBRATION=platt")
    assert "platt takes the temperature for classes all or none of whose validation images have them: grey\n" in (
        capsys.readouterr().err
    )


def test_a_spreadsheet_takes_no_name_in_the_table_of_thresholds_for_a_formula(tmp_path: Path) -> None:
    names = ["=1+1", "a,b", "ü\udcff"]
    saved_scores.save_thresholds(tmp_path, names, [0.25, 1 / 3, 0.5])
    with open(tmp_path / "thresholds.csv", encoding="utf-8", newline="") as file:
        assert [*csv.reader(file)][1:] == [["'=1+1", "0.25"], ["a,b", "0.333333343"], ["ü\\udcff", "0.5"]]


def make_separate_scores(present: tuple[float, ...], absent: tuple[float, ...]) -> SavedScores:
    """40 images that have all classes but grey, or none: of each class, the scores where present and where absent."""
    targets = np.tile(np.int8([[1, 1, 1, 0], [0, 0, 0, 0]]), (20, 1))
    probabilities = np.tile(np.float32([present, absent]), (20, 1))
    return SavedScores(probabilities, targets, [f"{number}.jpg" for number in range(40)], CLASSES)


def test_classes_that_keep_the_global_threshold_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = make_separate_scores(present=(0.9, 0.3, 0.3, 0.1), absent=(0.6, 0.1, 0.1, 0.1))
    path = write_checkpoint(tmp_path / "best_model.pt", apart)
    own = run(path, "--THRESHOLD_SCOPE=per_class")
    assert own["thresholds"][0] > 0.6 > 0.3 > own["thresholds"][1]
    words = f"the global threshold {own['best_threshold']:.4f}"
    warned = capsys.readouterr().err
    assert f"warning: these classes have {words}, since no validation image shows them: grey\n" in warned
    run(path)
    assert "the global threshold" not in capsys.readouterr().err, "it was asked for"

    alike = make_separate_scores(present=(0.9, 0.9, 0.9, 0.1), absent=(0.1, 0.1, 0.1, 0.1))
    after = run(write_checkpoint(path, alike), "--THRESHOLD_SCOPE=per_class")
    assert set(after["thresholds"]) == {np.float32(after["best_threshold"])}
    words = f"all classes have the global threshold {after['best_threshold']:.4f} all the same: "
    assert f"warning: THRESHOLD_SCOPE is per_class, and {words}" in capsys.readouterr().err


def test_of_thousands_of_classes_a_hundred_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    num_classes = 1000
    rng = np.random.default_rng(0)
    targets = np.zeros((40, num_classes), dtype=np.int8)
    targets[:, 900:] = rng.random((40, 100)) < 0.5
    targets[0, 900:] = 1
    names = tuple(f"class{number}" for number in range(num_classes))
    scores = SavedScores(rng.random(targets.shape, dtype=np.float32), targets, [f"{n}.jpg" for n in range(40)], names)
    path = write_checkpoint(tmp_path / "best_model.pt", scores, classes=list(names))
    assert len(run(path, "--CALIBRATION=platt")["thresholds"]) == num_classes
    printed = capsys.readouterr()
    shown = [
        line.split()[1] for line in printed.out.splitlines() if line.startswith("│ class") and "class " not in line
    ]
    assert shown == list(names[900:])
    assert "the 100 classes with the most positives of 1,000; thresholds.npy has all" in printed.out
    assert "class0, class1, class2, class3, class4, class5, class6, class7, class8, class9, and 890 more" in printed.err


def test_the_scores_of_another_checkpoint_of_the_run_are_refused(tmp_path: Path) -> None:
    """`model_epoch_006.pth` lies where the best epoch's scores do."""
    path = write_checkpoint(tmp_path / "best.pt", epoch=4)
    identity = saved_scores.identify(checkpoints.load(path))
    saved_scores.save_scores(tmp_path / "validation_scores.npz", *make_scores()._replace(identity=identity))
    run(path)
    other = write_checkpoint(tmp_path / "model_epoch_006.pth", epoch=6, best_f1=0.6)
    before = other.read_bytes()
    with pytest.raises(InputError, match=r"of another checkpoint \(resnet18, epoch 4, F1 0.7\) than this one"):
        run(other)
    assert other.read_bytes() == before


def test_brackets_in_class_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would take them for markup: `[/b]` ends the script, `[red]` vanishes."""
    names = ("cat [/b]", "[red] dog", "bird", "fish")
    scores = make_scores()._replace(classes=names)
    path = write_checkpoint(tmp_path / "best_model.pt", scores, classes=list(names))
    run(path)
    lines = capsys.readouterr().out.splitlines()
    for name in names:
        assert any(line.startswith(f"│ {name} ") for line in lines), name
