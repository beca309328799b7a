"""evaluation/promises.py and what uses it: promises in words, kept or not; images left to a person, and what is gained.

From tuning to the checkpoint, the table of threshold_tuning.py, testing.py and its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_run
from scipy import stats

import calibration
import config
import export_onnx
import metrics
import models_factory
import predictor
import testing
import threshold_tuning
import thresholds
from evaluation import promises, saved_scores
from evaluation.saved_scores import SavedScores
from models import checkpoints
from predictor import Predictor
from thresholds import Policy
from utils import InputError

CLASSES = ("red", "green", "blue")
RECALL = {"metric": "recall", "level": 0.9, "confidence": None, "num_images": 1000, "words": "on new images ..."}


def make_scores(num_images: int = 300, shift: float = 0.0) -> SavedScores:
    """Scores of three classes; a tenth of the targets is unknown. Probabilities are too high by `shift` in logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-0.5, 2.5, (num_images, 3))
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    targets[rng.random(targets.shape) < 0.1] = -1
    probabilities = (1 / (1 + np.exp(-logits - shift))).astype(np.float32)
    return SavedScores(probabilities, targets, [f"val/{number:03}.jpg" for number in range(num_images)], CLASSES)


# ---- words ----


def test_a_promise_says_what_how_sure_and_by_what() -> None:
    promise = promises.make_promise(Policy(goal="guaranteed_recall", recall=0.9), 1000, {})
    assert promise == {
        "metric": "recall",
        "level": 0.9,
        "confidence": None,
        "num_images": 1000,
        "words": "on new images that are drawn as the 1,000 validation images were, 0.9 or more of an image's labels "
        "are found, on average (conformal risk control, Angelopoulos et al. 2024); approximately, since the same "
        "images chose the epoch",
    }
    promise = promises.make_promise(Policy(goal="guaranteed_precision"), 50, {"config": {"NUM_EPOCHS": 1}})
    assert promise is not None
    assert (promise["level"], promise["confidence"]) == (0.95, 0.9)
    assert promise["words"].endswith(
        "0.95 or more of the labels that an image gets are right, on average over images that get any (with confidence "
        "0.9; Learn then Test, Angelopoulos et al. 2025)"
    )
    assert promises.make_promise(Policy(goal="recall"), 50, {}) is None


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"config": {"NUM_EPOCHS": 10, "HEAD_FIT": "search"}, "dataset": {"num_train": 9, "num_val": 3}}, "chose"),
        ({"config": {"NUM_EPOCHS": 1, "HEAD_FIT": "search"}, "dataset": {"num_train": 9, "num_val": 9}}, "other folds"),
        ({"weights": "averaged over folds", "dataset": {"num_train": 9, "num_val": 0}}, "other folds"),
    ],
)
def test_a_promise_says_why_it_holds_approximately(metadata: dict[str, Any], reason: str) -> None:
    promise = promises.make_promise(Policy(goal="guaranteed_recall"), 9, metadata)
    assert promise is not None
    assert reason in promise["words"].partition("; approximately, since ")[2]


# ---- kept or not ----


def make_found(num_images: int, num_whole: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of images with two labels, of which `num_whole` images get both and the others one."""
    targets = np.tile(np.int8([1, 1, 0]), (num_images, 1))
    predicted = targets == 1
    predicted[num_whole:, 1] = False
    return predicted, targets


@pytest.mark.parametrize(
    ("num_whole", "found", "holds", "words"),
    [
        (850, 0.925, True, "promised recall 0.9: found 0.925 (0.913 to 0.935) on 1,000 test images"),
        (790, 0.895, True, "on 1,000 test images; below it by no more than chance may"),
        (
            700,
            0.850,
            False,
            "on 1,000 test images: it is not kept; these images may be of another kind than the validation images, or "
            "the 1,000 validation images may be an unlucky draw",
        ),
    ],
)
def test_what_is_found_is_compared_with_what_was_promised(
    num_whole: int, found: float, holds: bool, words: str
) -> None:
    kept = promises.check_promise(RECALL, *make_found(1000, num_whole))
    assert kept is not None
    assert (kept.found, kept.num_images, kept.holds) == (pytest.approx(found), 1000, holds)
    error = stats.sem([1.0] * num_whole + [0.5] * (1000 - num_whole))
    reach = stats.t.ppf(0.975, 999)
    for end in (kept.low, kept.high):  # of a share with this standard error: its own error goes with v (1 - v)
        assert abs(found - end) == pytest.approx(
            reach * error * np.sqrt(end * (1 - end) / (found * (1 - found))), rel=1e-4
        )
    assert words in promises.describe_kept(RECALL, kept)


def test_precision_is_of_the_images_that_get_a_label() -> None:
    promise = RECALL | {"metric": "precision"}
    predicted, targets = make_found(10, 0)
    predicted[:6] = False
    predicted[6, 2] = True
    kept = promises.check_promise(promise, predicted, targets)
    assert kept is not None
    assert (kept.num_images, kept.found) == (4, pytest.approx(3.5 / 4))
    assert "on 4 test images that get a label" in promises.describe_kept(promise, kept)
    nothing = promises.check_promise(promise, np.zeros_like(predicted), targets)
    assert promises.describe_kept(promise, nothing) == "promised precision 0.9: no test image gets a label"


@pytest.mark.parametrize(("metric", "num_chosen"), [("recall", 200), ("precision", 400)])
def test_chance_in_both_draws_is_counted(metric: str, num_chosen: int) -> None:
    """Of precision only the images that get a label count, among the validation images as among the test images."""
    num_images, num_shown = 2 * num_chosen, num_chosen if metric == "precision" else 2 * num_chosen
    shares = np.array([1.0] * (num_shown // 2) + [0.5] * (num_shown // 2))
    present = np.tile(np.int8([1, 1]), (num_images, 1))
    halves = np.ones((num_images, 2), dtype=bool)
    halves[num_shown // 2 : num_shown, 1] = False
    halves[num_shown:] = False
    predicted, targets = (halves, present) if metric == "recall" else (present == 1, halves.astype(np.int8))
    if metric == "precision":
        predicted[num_shown:] = False
    for num_validation in (50, 10**6):
        num_of_both = 1 / (1 / num_shown + num_images / num_shown / num_validation)
        reach = stats.t.ppf(0.975, num_shown - 1) * shares.std(ddof=1) / np.sqrt(num_of_both)
        for further in (0.99, 1.01):
            promise = RECALL | {"metric": metric, "level": 0.75 + further * reach, "num_images": num_validation}
            kept = promises.check_promise(promise, predicted, targets)
            assert kept is not None
            assert (kept.found, kept.num_images) == (0.75, num_shown)
            assert kept.holds == (further < 1)
            assert ("it is not kept" in promises.describe_kept(promise, kept)) == (further > 1)


def test_a_few_images_break_no_promise() -> None:
    """All of them alike: they show no error, but they are two."""
    targets = np.ones((2, 3), dtype=np.int8)
    for predicted, found in ((np.zeros((2, 3), dtype=bool), 0.0), (np.ones((2, 3), dtype=bool), 1.0)):
        kept = promises.check_promise(RECALL, predicted, targets)
        assert kept is not None
        assert (kept.found, kept.holds) == (found, True)
        assert kept.high - kept.low > 0.9
    kept = promises.check_promise(RECALL, targets[:1] == 0, targets[:1])
    assert kept is not None
    assert (kept.low, kept.high, kept.holds) == (0, pytest.approx(1), True)


def test_the_causes_of_a_broken_promise_are_those_that_it_has() -> None:
    promise = promises.make_promise(Policy(goal="guaranteed_recall"), 300, {"weights": "averaged over folds"})
    assert promise is not None
    line = promises.describe_kept(promise, promises.check_promise(promise, *make_found(1000, 500)))
    assert line.endswith(
        "it is not kept; these images may be of another kind than the validation images, the 300 validation images may "
        "be an unlucky draw, or it matters that the promise holds approximately only, since each of these was "
        "predicted by a model of other folds, not by this one"
    )


# ---- what is gained by leaving images to a person ----


def test_gains_are_differences_of_metrics_with_the_bootstraps_error() -> None:
    probabilities, targets, *_ = make_scores(400)
    predicted = metrics.predict(probabilities, 0.4)
    is_left = thresholds.measure_doubt(probabilities, predicted) > 0.35
    gains = promises.measure_gains(predicted, targets, is_left)
    everyone = metrics.measure(probabilities, targets, 0.4)
    decided = metrics.measure(probabilities[~is_left], targets[~is_left], 0.4)
    rng = np.random.default_rng(1)
    draws: dict[str, list[float]] = {name: [] for name in gains}
    for _ in range(300):
        rows = rng.integers(0, 400, 400)
        kept = rows[~is_left[rows]]
        of_all = metrics.measure(probabilities[rows], targets[rows], 0.4)
        of_kept = metrics.measure(probabilities[kept], targets[kept], 0.4)
        for name in gains:
            draws[name].append(of_kept[name] - of_all[name])
    for name, gain in gains.items():
        assert (gain.all, gain.decided) == (pytest.approx(everyone[name]), pytest.approx(decided[name])), name
        assert (gain.high + gain.low) / 2 == pytest.approx(gain.decided - gain.all)
        assert (gain.high - gain.low) / 2 / 1.96 == pytest.approx(np.std(draws[name]), rel=0.25), name
    assert gains["f1_weighted"].low > 0
    assert promises.measure_gains(predicted, targets, np.ones(400, dtype=bool)) == {}


def test_images_without_a_known_label_are_no_gain() -> None:
    probabilities, targets, *_ = make_scores(400)
    predicted, is_left = metrics.predict(probabilities, 0.4), np.arange(400) % 3 == 0
    targets[100:200] = -1
    has_known = (targets >= 0).any(axis=1)
    is_right = ((predicted == (targets == 1)) | (targets < 0)).all(axis=1)
    gains = promises.measure_gains(predicted, targets, is_left)
    expected = is_right[has_known].mean(), is_right[has_known & ~is_left].mean()
    assert gains["exact_match"][:2] == pytest.approx(expected, abs=1e-12)
    among_known = promises.measure_gains(predicted[has_known], targets[has_known], is_left[has_known])
    assert gains.keys() == among_known.keys()
    for name, gain in gains.items():
        assert gain == pytest.approx(tuple(among_known[name]), abs=1e-12), name
    assert promises.measure_gains(predicted, targets, has_known) == {}, "of those that are decided nothing is known"


# ---- from scores to a checkpoint ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint of random weights, and scores of its validation images."""
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, image_size=32)
    checkpoint = {
        "model_state": model.state_dict(),
        "model_name": "resnet18",
        "head": "linear_bn",
        "classes": list(CLASSES),
        "image_size": 32,
        "resize_rule": "squash",
        "best_threshold": 0.5,
        "best_f1": 0.7,
        "epoch": 3,
        "config": {"NUM_EPOCHS": 5},
    }
    checkpoints.save(tmp_path / "trained_models" / "best_model.pt", checkpoint)
    saved_scores.save_scores(tmp_path / "trained_models" / saved_scores.SCORES_FILE, *make_scores())
    return tmp_path


def tune(folder: Path, *arguments: str) -> dict[str, Any]:
    path = folder / "trained_models" / "best_model.pt"
    threshold_tuning.main([f"--MODEL_PATH={path}", *arguments])
    return checkpoints.load(path)


def test_a_promise_stands_in_checkpoint_sidecar_and_exports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = tune(folder, "--THRESHOLD_GOAL=guaranteed_recall", "--THRESHOLD_RECALL=0.8", "--ABSTAIN=0.1")
    scores = make_scores()
    policy = Policy(goal="guaranteed_recall", recall=0.8, abstain=0.1)
    threshold = thresholds.tune_global(scores.probabilities, scores.targets, policy=policy)
    assert after["thresholds"] == [np.float32(threshold)] * 3
    assert Policy(**after["threshold_policy"]) == policy
    assert after["promise"] == promises.make_promise(policy, 300, after)
    sidecar = json.loads((folder / "trained_models" / "best_model.json").read_text())
    assert (sidecar["promise"], sidecar["abstention"]) == (after["promise"], after["abstention"])
    config.MODEL_PATH = folder / "trained_models" / "best_model.pt"
    exported = export_onnx.make_metadata(after, "logits")
    assert (exported["promise"], exported["abstention"]) == (after["promise"], after["abstention"])
    out = capsys.readouterr().out
    assert "goal: 0.8 of an image's labels found on new images, at the highest threshold; labels an image: 0 to" in out
    assert f"promised: {after['promise']['words']}\n" in out
    assert "left to a person: 0.1 of the images, those that it is least sure of\n" in out
    found = after["threshold_report"]["in_sample"]["global"]["image_recall"]
    assert 0.8 < found < 0.82
    assert f"image_recall │ {found:9.4f} │" in out
    after = tune(folder)
    assert (after["promise"], after["abstention"]) == (None, None), "nothing of an earlier goal stays"


def test_what_cannot_be_promised_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    after = tune(folder, "--THRESHOLD_GOAL=guaranteed_precision", "--THRESHOLD_PRECISION=0.99")
    assert after["promise"] is None
    assert min(after["thresholds"]) > make_scores().probabilities.max()
    assert (
        "warning: nothing is promised: no threshold is shown to have a precision of 0.99 by 300 validation images; it "
        "is now above the probabilities of all of these, so that hardly anything is predicted; promise less"
        in capsys.readouterr().err
    )
    path = folder / "trained_models" / "best_model.pt"
    before = path.read_bytes()
    arguments = [f"--MODEL_PATH={path}", "--THRESHOLD_GOAL=guaranteed_recall", "--THRESHOLD_RECALL=0.999"]
    assert "for which it takes 999 validation images or more, and there are 300" in fails(
        threshold_tuning.main, arguments
    )
    assert path.read_bytes() == before


# ---- predicting ----


def make_predictor(metadata: dict[str, Any], calibration: str = "none") -> Predictor:
    values = {"classes": list(CLASSES), "image_size": 32, "resize_rule": "squash", "model_name": "resnet18"}
    return Predictor(
        lambda images: images, values | metadata, Path("model.pt"), torch.device("cpu"), calibration=calibration
    )


@pytest.mark.parametrize("method", ["none", "temperature", "platt"])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_share_asked_for_is_left_whichever_calibration_is_in_use(folder: Path, method: str, shift: float) -> None:
    scores = make_scores(shift=shift)
    saved_scores.save_scores(folder / "trained_models" / saved_scores.SCORES_FILE, *scores)
    after = tune(folder, "--ABSTAIN=0.2", "--MIN_LABELS=1")
    model = make_predictor(after, method)
    probabilities = scores.probabilities
    if method != "none":
        probabilities = calibration.apply_to_probabilities(probabilities, after["calibration"][method])
    abstains = np.array(model.abstain(probabilities.astype(np.float32)))
    predicted = metrics.predict(scores.probabilities, after["thresholds"], 1)
    platt = calibration.apply_to_probabilities(scores.probabilities, after["calibration"]["platt"])
    doubt = thresholds.measure_doubt(platt, predicted)
    assert abstains.sum() == pytest.approx(60, abs=1)
    assert doubt[abstains].min() > doubt[~abstains].max() - 1e-3
    assert make_predictor(after | {"abstention": None}).abstain(scores.probabilities) == [False] * 300


def test_a_softmax_model_abstains_by_its_own_probabilities(folder: Path) -> None:
    path, scores = folder / "trained_models" / "best_model.pt", make_scores()
    checkpoints.save(path, checkpoints.load(path) | {"activation": "softmax"})
    probabilities = scores.probabilities / scores.probabilities.sum(axis=1, keepdims=True)
    saved_scores.save_scores(path.parent / saved_scores.SCORES_FILE, *scores._replace(probabilities=probabilities))
    after = tune(folder, "--ABSTAIN=0.1", "--MIN_LABELS=1", "--MAX_LABELS=1")
    abstains = np.array(make_predictor(after).abstain(probabilities))
    assert abstains.sum() == 30
    assert probabilities[abstains].max(axis=1).max() < probabilities[~abstains].max(axis=1).min()


def test_relating_two_calibrations_undoes_one_and_applies_the_other() -> None:
    platt, temperature = {"scale": [2.0, 0.5], "bias": [1.0, -1.0]}, {"scale": [0.7], "bias": [0.0]}
    probabilities = np.array([[0.1, 0.6], [0.9, 0.3]])
    used = calibration.apply_to_probabilities(probabilities, temperature)
    related = calibration.apply_to_probabilities(used, calibration.relate(platt, temperature))
    np.testing.assert_allclose(related, calibration.apply_to_probabilities(probabilities, platt), rtol=1e-12)


def test_testing_says_what_was_promised_and_gained_and_marks_images(
    folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "trained_models" / "best_model.pt"
    arguments = [*make_small_run(shared_dataset, folder), "--BOOTSTRAP_SAMPLES=0", "--PREDICTION_FILES=records"]
    images = sorted((shared_dataset / "images" / "test-resized").iterdir())
    model = predictor.load(path, "cpu")
    records = list(model.predict(images))
    probabilities = np.stack([record.probabilities for record in records])
    doubt = thresholds.measure_doubt(probabilities, metrics.predict(probabilities, model.thresholds))
    cut = float(np.sort(doubt)[-3:-1].mean())
    checkpoints.save(path, checkpoints.load(path) | {"promise": RECALL, "abstention": {"share": 0.1, "cut": cut}})
    expected = [image.stem for image, value in zip(images, doubt, strict=True) if value > cut]
    assert len(expected) == 2

    testing.main(arguments)
    out = capsys.readouterr().out
    assert "promised recall 0.9: found " in out
    assert "2 of 12 images left to a person, 10 decided" in out
    names = {file.name.partition("testbs64")[2]: file for file in (folder / "predictions").glob("predictions_*")}
    assert json.loads(names["_abstained.json"].read_text()) == expected
    labels = json.loads(names[".json"].read_text())
    assert labels == {image.stem: record.labels for image, record in zip(images, records, strict=True)}, (
        "all keep theirs"
    )
    marked = [record.get("abstains", False) for record in json.loads(names["_records.json"].read_text())]
    assert marked == [image.stem in expected for image in images]
    assert [record.abstains for record in predictor.load(path, "cpu").predict(images)] == marked
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    targets = testing.read_test_images(model).table.targets
    shares = thresholds.rate_images(metrics.predict(probabilities, model.thresholds), targets, "guaranteed_recall")
    assert result["promise"]["found"] == pytest.approx(shares.mean(), abs=1e-9)
    assert result["promise"]["words"] == RECALL["words"]
    assert result["abstention"]["num_left"] == 2
    assert result["abstention"]["metrics"]["f1_weighted"]["all"] == pytest.approx(result["metrics"]["f1_weighted"])

    checkpoints.save(path, checkpoints.load(path) | {"promise": None, "abstention": None})
    testing.main(arguments)
    assert not [*(folder / "predictions").glob("*_abstained.json")], "of the model as it was"
    assert "promise" not in json.loads((folder / "predictions" / "evaluate_result.json").read_text())


def test_an_empty_list_of_images_is_json(tmp_path: Path) -> None:
    from evaluation.prediction_files import write_abstained
    from evaluation.predictions import Predictions

    predictions = Predictions(
        paths=["a.jpg"],
        names=["a"],
        probabilities=np.zeros((1, 1), np.float32),
        classes=["red"],
        decide=lambda rows: [[]] * len(rows),
        abstain=lambda rows: [False],
    )
    write_abstained(tmp_path / "a.json", predictions)
    assert json.loads((tmp_path / "a.json").read_text()) == []


@pytest.mark.parametrize("value", [{"share": 0.1}, {"share": 0.1, "cut": "high"}])
def test_a_checkpoint_whose_abstention_is_odd_is_one_line(folder: Path, value: Any) -> None:
    path = folder / "trained_models" / "best_model.pt"
    checkpoints.save(path, checkpoints.load(path) | {"abstention": value})
    with pytest.raises(InputError, match=r"^[^\n]*abstention is [^\n]*$"):
        predictor.load(path, "cpu")
