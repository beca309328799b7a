"""HEAD_FIT search in a run: all images cross-validated, or before the backbone trains those of the training split."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_small_run, write_dataset
from numpy.typing import NDArray

import dataset_readers
import metrics
import predictor
import thresholds
import training
from dataset import stratified_split
from evaluation import saved_scores
from models import checkpoints
from trainer import head_search, missing_labels
from trainer.head_search import find_head
from trainer.kernel_search import find_kernel_head

SEARCH = ["--MODEL_NAME=efficientnet_lite0", "--PRETRAINED_WEIGHTS=default", "--FREEZE_BACKBONE=True"]
SEARCH += ["--HEAD=linear", "--HEAD_FIT=search", "--USE_POS_WEIGHT=False"]


def find_checkpoint(folder: Path) -> Path:
    (path,) = (folder / "trained_models").glob("*/*.pt")
    return path


@pytest.mark.parametrize("head", ["linear", "kernel"])
def test_every_image_trains_and_is_predicted_by_a_head_without_it(
    head: str, small_run: list[str], shared_dataset: Path, tmp_path: Path
) -> None:
    training.main([*small_run, *SEARCH, f"--HEAD={head}", "--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"])
    path = find_checkpoint(tmp_path)
    checkpoint = checkpoints.load(path)
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    (file,) = (tmp_path / "cache").glob("features_*.npy")
    features = np.load(file).reshape(len(table), -1)
    fold_of = stratified_split.divide_rows(table.targets, 5, checkpoint["config"]["SPLIT_SEED"])
    search = find_kernel_head if head == "kernel" else find_head
    expected = search(features, table.targets.astype(np.float32), fold_of)
    for name, tensor in expected.state.items():
        np.testing.assert_allclose(checkpoint["model_state"][f"head.{name}"].numpy(), tensor.numpy(), atol=1e-5)

    scores = saved_scores.read_scores(path.with_suffix("") / saved_scores.SCORES_FILE)
    assert list(scores.paths) == list(table.paths)
    np.testing.assert_allclose(scores.probabilities, expected.out_of_fold, atol=1e-5)
    np.testing.assert_array_equal(scores.targets, table.targets)
    assert checkpoint["dataset"]["num_train"] == checkpoint["dataset"]["num_val"] == 40
    threshold = thresholds.choose_tuner(40)(scores.probabilities, scores.targets)
    assert checkpoint["best_threshold"] == pytest.approx(threshold, abs=1e-6)
    measured = metrics.measure(scores.probabilities, scores.targets, threshold)
    assert checkpoint["metrics"]["mAP"] == pytest.approx(measured["mAP"], abs=1e-6)
    assert checkpoint["metrics"]["f1_weighted"] == pytest.approx(measured["f1_weighted"], abs=1e-6)

    seen = np.stack([record.probabilities for record in predictor.load(path, "cpu").predict(table.paths)])
    if head == "kernel":
        state = {name: tensor.numpy() for name, tensor in expected.state.items()}
        points = (features - state["mean"]) * state["scale"]
        distances = ((points[:, None] - state["landmarks"] @ state["axes"].T) ** 2).sum(axis=-1)
        inputs = np.exp(-distances)
    else:
        inputs = features
    logits = inputs @ expected.weight.numpy().T + expected.bias.numpy()
    np.testing.assert_allclose(seen, 1 / (1 + np.exp(-logits)), atol=1e-3)


def test_positives_are_weighed_by_the_labels_as_they_are_written(
    small_run: list[str], shared_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As steps weigh them: what ABSENT_MEANS unknown leaves out is written as absent."""
    given: dict[str, Any] = {}

    def predict(features: Any, targets: NDArray[np.int8]) -> NDArray[np.floating]:
        return np.where(targets == 1, 0.5, np.linspace(0, 1, len(targets))[:, None])  # too high for half of the images

    def find(features: Any, targets: NDArray[np.floating], *arguments: Any, **options: Any) -> Any:
        given.update(options, targets=targets)
        return find_head(features, targets, *arguments, **options)

    monkeypatch.setattr(missing_labels, "predict_left_out", predict)
    monkeypatch.setattr(head_search, "find_head", find)
    options = ["--ABSENT_MEANS=unknown", "--USE_POS_WEIGHT=True", "--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"]
    training.main([*small_run, *SEARCH, *options])
    assert np.isnan(given["targets"]).any(), "some negatives are left out"
    assert given["fold_targets"].shape == (5, *given["targets"].shape)
    assert (given["fold_targets"] == -1).any()
    written = dataset_readers.read_dataset(shared_dataset, split="train").targets
    expected = (written == 0).sum(axis=0) / (written == 1).sum(axis=0)  # none is above POS_WEIGHT_CAP
    np.testing.assert_allclose(given["pos_weight"].numpy(), expected, rtol=1e-6)


def test_a_loss_that_weighs_no_positives_gets_a_head_that_does_not(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def find(*arguments: Any, pos_weight: Any, **options: Any) -> Any:
        given.append(pos_weight)
        return find_head(*arguments, pos_weight=pos_weight, **options)

    monkeypatch.setattr(head_search, "find_head", find)
    training.main([*small_run, *SEARCH, "--LOSS=asymmetric", "--USE_POS_WEIGHT=True", "--UNFREEZE_BACKBONE_EPOCH=2"])
    assert given == [None]


def test_the_backbone_trains_on_from_the_head_that_was_found(small_run: list[str], tmp_path: Path) -> None:
    steps = ["--NUM_EPOCHS=3", "--UNFREEZE_BACKBONE_EPOCH=2", "--SCHEDULE=cosine", "--EMA_DECAY=0.9"]
    training.main([*small_run, *SEARCH, *steps])
    path = find_checkpoint(tmp_path)
    dataset = checkpoints.load(path)["dataset"]
    assert (dataset["num_train"], dataset["num_val"]) == (30, 10)
    with open(path.with_suffix("") / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frozen"] for row in rows] == ["True", "False", "False"]
    # the search takes no step of the schedule: the second epoch begins at the full rate
    assert [float(row["lr_head"]) for row in rows][:2] == [1e-3, 1e-3]
    assert float(rows[2]["lr_head"]) == pytest.approx(5e-4)
    assert rows[0]["steps_left_out"] == "0"


def test_an_interrupted_search_goes_on_with_the_next_epoch(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*small_run, *SEARCH, "--NUM_EPOCHS=2", "--UNFREEZE_BACKBONE_EPOCH=2"]
    training.main([*arguments, f"--TRAINED_MODELS_FOLDER={tmp_path / 'whole'}"])
    calls = []

    def stop(*rest: object) -> None:
        calls.append(rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            training.main(arguments)
    assert len(calls) == 1
    with monkeypatch.context() as patch:
        patch.setattr(training.head_fit, "find_head", stop)  # the search is done
        training.main(arguments)
    (whole,) = (tmp_path / "whole").glob("*/*/last.pt")
    (resumed,) = (tmp_path / "trained_models").glob("*/*/last.pt")
    weights = [checkpoints.load(path)["model_state"] for path in (whole, resumed)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_four_images_are_enough_and_the_folds_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No split is drawn of which the validation images could be too few."""
    dataset = write_dataset(tmp_path / "set", num_train=4, num_test=2)
    arguments = [*make_small_run(dataset, tmp_path), *SEARCH, "--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"]
    training.main([*arguments, "--VAL_SPLIT=0.1"])
    printed, warned = capsys.readouterr()
    assert "44 compared in 4 folds" in printed
    assert "4 images, trained on and cross-validated" in printed
    assert "32 px, whole" in printed
    assert not {"TRAIN_BATCH_SIZE", "VAL_SPLIT"} & set(warned.replace(",", " ").split())


def test_a_head_that_is_searched_is_not_taken_over(
    small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*small_run, *SEARCH, "--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"]
    training.main(arguments)
    first = find_checkpoint(tmp_path)
    capsys.readouterr()
    training.main([*arguments, f"--PRETRAINED_WEIGHTS={first}", f"--LOCAL_ROOT={tmp_path / 'second'}"])
    assert "taken over" not in capsys.readouterr().out
    weights = [
        checkpoints.load(path)["model_state"]["head.weight"] for path in (first, find_checkpoint(tmp_path / "second"))
    ]
    np.testing.assert_allclose(weights[0].numpy(), weights[1].numpy(), atol=1e-5)


def test_one_source_cannot_be_cross_validated(small_run: list[str], fails: Any) -> None:
    frozen = ["--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"]
    line = fails(training.main, [*small_run, *SEARCH, *frozen, "--GROUP_PATTERN=(train)"])
    assert "all 40 training images are of one source (" in line
    assert "set a GROUP_PATTERN that tells sources apart, or none" in line


def test_few_images_are_few_where_they_are_cross_validated(
    small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    training.main([*small_run, *SEARCH, "--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"])
    output = "".join(capsys.readouterr())
    assert "40 validation images are few" in output
    assert "larger than the training split" not in output
