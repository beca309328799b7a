"""trainer/folds.py: FOLDS runs, each image predicted by the one that did not train on it, their weights averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_small_run, write_dataset
from torch import nn

import config
import dataset_readers
import metrics
import model_performance_table
import overrides
import predictor
import thresholds
import training
from dataset.table import Table
from evaluation import saved_scores
from models import checkpoints
from tools.split import split_dataset
from trainer import best_model, folds, records, training_data
from utils import InputError, Stopped


def test_weights_are_averaged_and_whole_numbers_are_the_first() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 5)).astype(np.float32)
    states = [{"weight": torch.tensor(value), "steps": torch.tensor(7 + n)} for n, value in enumerate(values)]
    average = folds.average_weights(iter(states))
    np.testing.assert_allclose(average["weight"], values.astype(np.float64).mean(axis=0), rtol=1e-6)
    assert average["weight"].dtype == torch.float32
    assert average["steps"] == 7
    with pytest.raises(InputError, match="different tensors"):
        folds.average_weights([states[0], {"weight": torch.zeros(5, 4), "steps": torch.tensor(0)}])


def test_averaged_linear_heads_give_the_mean_of_their_logits() -> None:
    heads = [nn.Linear(6, 3) for _ in range(4)]
    features = torch.randn(10, 6)
    averaged = nn.Linear(6, 3)
    averaged.load_state_dict(folds.average_weights(head.state_dict() for head in heads))
    expected = torch.stack([head(features) for head in heads]).mean(dim=0)
    torch.testing.assert_close(averaged(features), expected)


def read_fold(dataset: Path, fold: int, *options: str) -> training_data.Data:
    overrides.apply([f"--DATASET_FOLDER={dataset}", "--FOLDS=4", *options], config)
    return training_data.read_data(fold)


def test_each_image_is_validated_on_in_one_fold(shared_dataset: Path) -> None:
    parts = [read_fold(shared_dataset, fold) for fold in range(1, 5)]
    assert sorted(path for part in parts for path in part.val.paths) == parts[0].table.paths
    assert [len(part.val) for part in parts] == [10] * 4
    for part in parts:
        assert sorted(part.train.paths + part.val.paths) == part.table.paths
    assert read_fold(shared_dataset, 1, "--SPLIT_SEED=5").val.paths != parts[0].val.paths


def test_folds_have_names_of_their_own_and_one_in_common(shared_dataset: Path) -> None:
    names = [records.name_files(read_fold(shared_dataset, fold)) for fold in (1, 2)]
    together = records.name_files(read_fold(shared_dataset, 1)._replace(fold=0))
    assert len({files.folder for files in (*names, together)}) == 3
    assert {files.fold_of for files in names} == {together.folder.name}
    assert "_seed0_fold2of4_" in names[1].folder.name
    assert "_seed0_4folds_" in together.folder.name
    data = read_fold(shared_dataset, 0, "--FOLDS=1")
    assert (config.FOLDS, records.name_files(data).fold_of) == (0, "")


@pytest.mark.parametrize(
    ("num_images", "options", "message"),
    [
        (7, [], "FOLDS 4 divides 7 images into folds of 1 to 2: each needs at least 2"),
        (40, ["--GROUP_PATTERN=(train0)"], "FOLDS 4 divides 40 images into folds of 0 to 40"),
    ],
)
def test_folds_that_are_too_small_are_one_line(
    num_images: int, options: list[str], message: str, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "set", num_images)
    with pytest.raises(InputError) as error:
        read_fold(tmp_path / "set", 1, *options)
    assert str(error.value).startswith(message)


def test_a_val_split_and_folds_do_not_go_together(dataset: Path) -> None:
    split_dataset(dataset, "coco_cls", {"train": 70, "val": 30, "test": 0}, 0)
    with pytest.raises(
        InputError, match=r"^FOLDS 4 validates on parts of .* has a val split of its own: set FOLDS = 0"
    ):
        read_fold(dataset, 1)


@pytest.fixture(scope="module")
def ended(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The folder of three folds, of which the second was stopped and gone on with; and the folds whose epochs ran."""
    folder, ran = tmp_path_factory.mktemp("folds"), []
    before = dict(config.__dict__)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), folder / "own.pth")
    values = {"FOLDS": 3, "FREEZE_BACKBONE": True, "UNFREEZE_BACKBONE_EPOCH": 0, "HEAD": "linear", "HEAD_BASE_LR": 0.01}
    values["PRETRAINED_WEIGHTS"] = folder / "own.pth"
    arguments = [*make_small_run(shared_dataset, folder), *(f"--{name}={value}" for name, value in values.items())]
    train_epoch = training.train_epoch

    def train_or_stop(run: Any, epoch: int) -> dict[str, Any]:
        ran.append(run.data.fold)
        if ran == [1, 1, 2, 2]:
            raise Stopped("stopped")
        return train_epoch(run, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_epoch", train_or_stop)
        patch.setattr(folds, "measure_seen", lambda *arguments: 1.0)
        with pytest.raises(Stopped):
            training.main(arguments)
        training.main(arguments)
    config.__dict__.update(before)
    return folder, ran


def load_all(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the checkpoints of the folds, that of all together)."""
    found = [checkpoints.load(path) for path in sorted(folder.glob("trained_models/*/*fold*.pt"))]
    *each, together = sorted(found, key=lambda checkpoint: checkpoint["fold"] or 9)
    return each, together


def test_the_same_command_goes_on_with_the_fold_it_was_in(ended: tuple[Path, list[int]]) -> None:
    assert ended[1] == [1, 1, 2, 2, 2, 3, 3]
    each, together = load_all(ended[0])
    assert [checkpoint["fold"] for checkpoint in (*each, together)] == [1, 2, 3, 0]


def test_the_averaged_model_is_the_mean_of_the_folds(ended: tuple[Path, list[int]]) -> None:
    each, together = load_all(ended[0])
    best = checkpoints.load(ended[0] / "trained_models" / "best_model.pt")
    for name, value in together["model_state"].items():
        states = [checkpoint["model_state"][name] for checkpoint in each]
        expected = torch.stack(states).double().mean(dim=0) if value.is_floating_point() else states[0]
        torch.testing.assert_close(value, expected.to(value.dtype))
        assert torch.equal(best["model_state"][name], value)
    assert together["best_f1"] is None, "no image is left to measure it on"
    assert together["metrics"] == {}
    assert predictor.load(ended[0] / "trained_models" / "best_model.pt", "cpu").classes == ("red", "green", "blue")


def test_scores_out_of_fold_choose_the_thresholds(ended: tuple[Path, list[int]], shared_dataset: Path) -> None:
    """Each image is predicted by the fold that validated on it: by the file of that fold, once more."""
    each, together = load_all(ended[0])
    (path,) = ended[0].glob("trained_models/*/*3folds*.pt")
    scores = saved_scores.read_scores(path.with_suffix("") / saved_scores.SCORES_FILE)
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    assert scores.paths == table.paths
    assert np.array_equal(scores.targets, table.targets)
    for fold in range(1, 4):
        (model_path,) = ended[0].glob(f"trained_models/*/*fold{fold}of3*.pt")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "SPLIT_SEED", each[0]["config"]["SPLIT_SEED"])
            overrides.apply([f"--DATASET_FOLDER={shared_dataset}", "--FOLDS=3"], config)
            config.SPLIT_SEED = each[0]["config"]["SPLIT_SEED"]
            held_out = training_data.read_data(fold).val.paths
        found = predictor.load(model_path, "cpu").predict(held_out, batch_size=3)
        rows = [table.paths.index(name) for name in held_out]
        np.testing.assert_allclose(scores.probabilities[rows], [r.probabilities for r in found], atol=1e-5)
    assert together["best_threshold"] == thresholds.tune_plateau(scores.probabilities, scores.targets)
    measured = metrics.measure(scores.probabilities, scores.targets, together["best_threshold"])
    assert together["folds"]["out_of_fold"]["mAP"] == measured["mAP"]
    assert together["folds"]["out_of_fold"]["f1_weighted"] == measured["f1_weighted"]
    assert together["folds"]["f1"] == [checkpoint["best_f1"] for checkpoint in each]


def test_what_the_folds_reached_is_said_and_in_the_table(
    ended: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    each, _ = load_all(ended[0])
    f1 = [checkpoint["best_f1"] for checkpoint in each]
    (path,) = ended[0].glob("trained_models/*/*3folds*.pt")
    log = (path.with_suffix("") / "train.log").read_text()
    assert f"3 folds, mean ± standard deviation: F1 {np.mean(f1):.4f} ± {np.std(f1, ddof=1):.4f} (weighted, " in log
    assert "all 40 images, each predicted by the run that did not train on it: F1 " in log
    assert "its own F1 was not measured on held-out images" in log
    model_performance_table.main([f"--CHECKPOINTS_ROOT={ended[0] / 'trained_models'}", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3, "a heading, and one row for all"
    assert f"{np.mean(f1):.3f} ± {np.std(f1, ddof=1):.3f}".replace("0.", ".") in lines[2]


def test_an_average_that_is_no_model_is_not_taken(
    ended: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its mAP on images that it was trained on is lower than that of the folds on images that they were not."""
    _, together = load_all(ended[0])
    saved = []
    monkeypatch.setattr(folds, "measure_seen", lambda *arguments: 0.0)
    monkeypatch.setattr(folds, "save", lambda *arguments: saved.append(arguments))
    copied: list[str] = []

    def copy(files: records.RunFiles, *others: Any, is_chosen: bool) -> list[str]:
        copied.append(files.run)
        return []

    monkeypatch.setattr(best_model, "update", copy)
    config.__dict__.update({name: together["config"][name] for name in ("FOLDS", "HEAD", "SEED", "SPLIT_SEED")})
    overrides.apply([str(next(ended[0].glob("trained_models/*/*3folds*.pt")))], config)
    folds.finish(torch.device("cpu"))
    assert saved == []
    (last,) = ended[0].glob("trained_models/*/*fold3of3*.pt")
    assert copied == [f"{last.parent.name}/{last.stem}"]
    assert "the average of the folds' weights is no model, and not saved: its mAP is 0.0000" in capsys.readouterr().err


def test_the_averaged_model_is_measured_on_all_images(ended: tuple[Path, list[int]], shared_dataset: Path) -> None:
    _, together = load_all(ended[0])
    (path,) = ended[0].glob("trained_models/*/*3folds*.pt")
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    overrides.apply([str(path)], config)
    found = folds.measure_seen(together, table, path, torch.device("cpu"))
    probabilities = [record.probabilities for record in predictor.load(path, "cpu").predict(table.paths)]
    assert found == pytest.approx(metrics.measure(probabilities, table.targets, 0.5)["mAP"], abs=1e-6)


def test_scores_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    table = Table(["a.jpg", "b.jpg"], np.array([[1], [0]], np.int8), ("cat",))
    found: list[dict[str, Any]] = []
    runs = []
    for fold in (1, 2):
        folder = tmp_path / f"fold{fold}"
        folder.mkdir()
        checkpoint = {"model_name": "resnet18", "epoch": fold, "best_f1": 0.5}
        saved_scores.save_scores(
            folder / saved_scores.SCORES_FILE,
            [[0.1 * fold]],
            table.targets[[fold - 1]],
            [table.paths[fold - 1]],
            table.classes,
            saved_scores.identify(checkpoint),
        )
        runs.append(records.RunFiles(folder))
        found.append(checkpoint)
    joined = folds.join_scores(table, runs, found)
    np.testing.assert_allclose(joined.probabilities, [[0.1], [0.2]], rtol=1e-6)
    with pytest.raises(InputError, match=r"hold no scores of b\.jpg"):
        folds.join_scores(table, runs[:1], found[:1])
    found[1]["epoch"] = 7
    with pytest.raises(InputError, match=r"fold2/validation_scores.npz is not of .*fold2.pt: delete both"):
        folds.join_scores(table, runs, found)
