"""trainer/build.py: the constants become the parts they name; each part trains, and what it keeps is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_run
from numpy.typing import NDArray

import config
import heads
import losses
import models_factory
import overrides
import predictor
import testing
import training
from dataset.batches import Batch, as_float_targets
from dataset.table import Table
from dataset_readers import read_dataset
from evaluation import saved_scores
from models import checkpoints
from trainer import build, optimizers, records, validation
from training import take_step
from utils import InputError

TARGETS = np.array([[1, 0, 0], [0, 1, -1], [1, 1, 0], [0, 0, 0]], dtype=np.int8)


def apply(line: str) -> None:
    overrides.apply(line.split(), config)


def find_last(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("trained_models/*/*/last.pt")
    return checkpoints.load(path)


# ---- constants to parts ----


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--LOSS focal --FOCAL_GAMMA 1.5 --FOCAL_ALPHA 0.3", losses.Focal(1.5, 0.3)),
        (
            "--LOSS asymmetric --ASL_GAMMA_NEGATIVE 3 --ASL_GAMMA_POSITIVE 1 --ASL_CLIP 0.1 --ASL_FOCUSING_GRADIENT 1",
            losses.Asymmetric(3, 1, 0.1, True),
        ),
        (
            "--LOSS asymmetric_angular --HEAD cosine --ANGULAR_SCALE 9 --ANGULAR_MARGIN 0.1 --ANGULAR_BALANCE 0.6 "
            "--ANGULAR_GAMMA_NEGATIVE 2 --ANGULAR_GAMMA_POSITIVE 1 --ANGULAR_CLIP 0.1",
            losses.AsymmetricAngular(9, 0.1, 0.6, 2, 1, 0.1),
        ),
        ("--USE_POS_WEIGHT 0", losses.BCEWithLogits()),
        ("--POS_WEIGHT_CAP 1.2", losses.BCEWithLogits(torch.tensor([1.0, 1.2, 1.0]))),
        ("--LOSS softmax", losses.Softmax()),
    ],
)
def test_each_loss_gets_its_constants(line: str, expected: torch.nn.Module) -> None:
    apply(line)
    rows = np.concatenate([TARGETS, [[0, 0, -1], [1, 0, -1]]]).astype(np.int8)  # the second class: 4 to 2
    objective = build.make_objective(rows)
    logits, targets = torch.randn(6, 3), as_float_targets(rows)
    assert torch.equal(objective.loss(logits, targets), expected(logits, targets))


def test_the_objective_gets_weights_smoothing_and_reduction() -> None:
    apply(
        "--ENTRY_WEIGHTS ghm,class_weights,ohem,threshold,reject_large --GHM_BINS 7 --GHM_MOMENTUM 0.5 --OHEM_KEEP 0.4 "
        "--THRESHOLD_MARGIN 0.2 --POSITIVE_CLASS_WEIGHTS 2 --NEGATIVE_CLASS_WEIGHTS 1,2,3 --LABEL_SMOOTHING 0.1 "
        "--LOSS_REDUCTION sum"
    )
    objective = build.make_objective(TARGETS)
    weights: Any = objective.entry_weights
    assert list(weights) == ["ghm", "class_weights", "ohem", "threshold", "reject_large"]
    assert (len(weights["ghm"].counts), weights["ghm"].momentum) == (7, 0.5)
    assert weights["ohem"].keep == 0.4
    assert weights["threshold"].margin == 0.2
    assert weights["class_weights"].positive.tolist() == 2
    assert weights["class_weights"].negative.tolist() == [1, 2, 3]
    assert (objective.label_smoothing, objective.reduction) == (0.1, "sum")


@pytest.mark.parametrize(("num_classes", "scale"), [(1, 7.0), (2, 7.0), (80, math.sqrt(5) * math.log(79)), (10**7, 30)])
def test_the_angular_scale_follows_the_number_of_classes(num_classes: int, scale: float) -> None:
    apply("--ANGULAR_SCALE 0")
    assert build.choose_angular_scale(num_classes) == pytest.approx(scale)


def make_trainer(line: str, targets: NDArray[np.int8] = TARGETS) -> build.Trainer:
    apply(f"--MODEL_NAME mobilenet_v2 --PRETRAINED_WEIGHTS None --FREEZE_BACKBONE 0 --IMAGE_SIZE 32 {line}")
    table = Table([f"{i}.jpg" for i in range(4)], targets, ("a", "b", "c"))
    return build.make_trainer(table, torch.device("cpu"))


def test_the_graph_comes_from_the_training_labels_and_the_embeddings_file(tmp_path: Path) -> None:
    embeddings = np.arange(12, dtype=np.float64).reshape(3, 4)
    np.save(tmp_path / "words.npy", embeddings)
    trainer = make_trainer(f"--HEAD gcn --GCN_EMBEDDINGS {tmp_path / 'words.npy'} --GCN_LINK_PROBABILITY 0.6")
    assert trainer.head_options == {"reweights_channels": False, "cosine_scale": None, "embedding_size": 4}
    state = trainer.model.head.state_dict()
    assert torch.equal(state["embeddings"], torch.tensor(embeddings, dtype=torch.float32))
    assert torch.equal(state["adjacency"], heads.count_adjacency(TARGETS, 0.6))
    assert not torch.equal(state["adjacency"], heads.count_adjacency(TARGETS, 0.4)), "else the constant had no say"


def test_the_last_bias_starts_at_the_frequencies() -> None:
    trainer = make_trainer("--HEAD linear --USE_PRIOR_BIAS 1")
    bias = trainer.model.head.state_dict()["bias"].sigmoid()
    assert bias.tolist() == pytest.approx([0.5, 0.5, 0.5 / 3], abs=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "--HEAD linear",
        "--HEAD linear_bn",
        "--HEAD gcn --GCN_REWEIGHTS_CHANNELS 1",
        "--HEAD gcn",
        "--HEAD cosine",
        "--HEAD linear --LOSS softmax",
    ],
)
def test_a_class_without_any_known_label_begins_at_the_mean_frequency(line: str) -> None:
    """Nothing is learned of it, so that it keeps this bias. All others are what they would be, as is a softmax's."""
    torch.manual_seed(0)
    usual: Any = make_trainer(line).model.head.bias
    torch.manual_seed(0)
    targets = TARGETS.copy()
    targets[:, 1] = -1
    bias: Any = make_trainer(line, targets).model.head.bias
    if line in ("--HEAD cosine", "--HEAD gcn"):
        assert bias is None
        return
    expected = usual.detach().clone()
    if "softmax" not in line:
        expected[1] = torch.tensor((1 / 2 + 1 / 6) / 2).logit()
    torch.testing.assert_close(bias.detach(), expected)


@pytest.mark.parametrize("head", ["linear", "linear_bn", "per_label_mlp", "ml_decoder"])
def test_weight_decay_does_not_move_the_bias_of_a_class_without_labels(head: str) -> None:
    targets = TARGETS.copy()
    targets[:, 1] = -1
    trainer = make_trainer(f"--HEAD {head} --OPTIMIZER adam --WEIGHT_DECAY 0.01 --HEAD_BASE_LR 0.1", targets)
    bias: Any = trainer.model.head.bias
    before = bias.detach().clone()
    trainer.model.train()
    for _ in range(3):
        logits = trainer.model(torch.rand(4, 3, 32, 32) * 255)
        trainer.optimizer.zero_grad()
        trainer.objective(logits, as_float_targets(targets), torch.ones(4)).backward()
        trainer.optimizer.step()
    assert bias[1] == before[1]
    assert (bias[[0, 2]] != before[[0, 2]]).all()


@pytest.mark.parametrize(
    ("line", "weighs"),
    [("", True), ("--USE_POS_WEIGHT 0", False), ("--LOSS asymmetric", False), ("--LOSS hill", False)],
)
def test_only_cross_entropy_weighs_positives(line: str, weighs: bool) -> None:
    apply(line)
    assert build.weighs_positives() == weighs


def test_the_angular_loss_makes_heads_cosine() -> None:
    trainer = make_trainer("--HEAD ml_decoder --LOSS asymmetric_angular --ANGULAR_SCALE 0.1")
    logits = trainer.model.eval()(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert logits.abs().max() <= 0.1 + 1e-4
    assert make_trainer("--HEAD ml_decoder").head_options["cosine_scale"] is None


def test_sizes_that_the_network_does_not_take_end_the_run_at_once() -> None:
    with pytest.raises(InputError, match=r"levit_128s does not take images of 96 px: set GROWING_IMAGE_SIZES and"):
        make_trainer("--MODEL_NAME levit_128s --IMAGE_SIZE 64 --MULTI_SCALE_SIZES 64,96")
    with pytest.raises(InputError, match="POSITIVE_CLASS_WEIGHTS has 2 weights for 3 classes"):
        make_trainer("--ENTRY_WEIGHTS class_weights --POSITIVE_CLASS_WEIGHTS 1,2")


def test_sizes_of_oblong_images_are_shorter_sides() -> None:
    trainer = make_trainer("--IMAGE_SIZE 48,96 --MULTI_SCALE_SIZES 32,48 --MULTI_SCALE_EVERY_N_STEPS 1")
    batch = Batch(torch.zeros(2, 3, 48, 96, dtype=torch.uint8), torch.zeros(2, 3), torch.ones(2))
    sizes = {tuple(trainer.change_batch(batch, 1, step).images.shape[2:]) for step in range(20)}
    assert sizes == {(32, 64), (48, 96)}
    with pytest.raises(InputError, match=r"levit_128s does not take images of 96x192 px: set GROWING_IMAGE_SIZES"):
        make_trainer("--MODEL_NAME levit_128s --IMAGE_SIZE 64,128 --GROWING_IMAGE_SIZES 96")


def test_norms_and_biases_may_be_left_without_decay() -> None:
    trainer = make_trainer("--WEIGHT_DECAY 0.1 --DECAY_NORMS_AND_BIASES 0")
    for group in trainer.optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group["name"] in ("backbone", "head") else 0)
        assert all((parameter.dim() > 1) == (group["weight_decay"] > 0) for parameter in group["params"])


# ---- a step ----


def test_a_sharpness_aware_step_is_two_passes() -> None:
    """Weights after two steps with SAM equal those of the two passes written out."""
    line = "--SAM_RHO 0.1 --OPTIMIZER sgd --LEARNING_RATE 0.05 --USE_DIFFERENTIAL_LR 0 --LR_MILESTONES ,"
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator),
            as_float_targets(TARGETS),
            torch.ones(4),
        )
        for _ in range(2)
    ]
    torch.manual_seed(0)
    trainer = make_trainer(line)
    torch.manual_seed(1)  # dropout, if any
    trainer.model.train()
    for step, batch in enumerate(batches):
        assert take_step(trainer, trainer.model, batch, epoch=2, step=step, num_images=len(batch.images)).is_finite

    torch.manual_seed(0)
    other = make_trainer(line)
    torch.manual_seed(1)
    other.model.train()
    optimizer = torch.optim.SGD(other.model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for batch in batches:
        other.objective(other.model(batch.images), batch.targets, batch.weights).backward()
        with optimizers.climb(other.model, 0.1):
            other.objective(other.model(batch.images), batch.targets, batch.weights).backward()
        optimizer.step()
        optimizer.zero_grad()
    for one, two in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


# ---- whole runs ----


@pytest.mark.parametrize(
    "line",
    [
        "--EMA_DECAY=0.9 --ENTRY_WEIGHTS=ghm --OPTIMIZER=radam --SCHEDULE=onecycle",
        "--SAM_RHO=0.05 --MIXUP_ALPHA=0.4 --CUTMIX_ALPHA=1 --MULTI_SCALE_SIZES=32,48 --MULTI_SCALE_EVERY_N_STEPS=1",
    ],
    ids=["average and counts", "mixing and sizes"],
)
def test_a_run_that_stopped_after_an_epoch_goes_on_to_the_same_weights(
    line: str, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*make_small_run(shared_dataset, tmp_path / "whole"), *line.split()]
    training.main(arguments)
    whole = find_last(tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(*arguments: object) -> None:
        save_last(*arguments)  # pyright: ignore[reportArgumentType]
        raise Stopped

    arguments = [*make_small_run(shared_dataset, tmp_path / "stopped"), *line.split()]
    save_last = records.save_last
    monkeypatch.setattr(records, "save_last", stop)
    with pytest.raises(Stopped):
        training.main(arguments)
    monkeypatch.setattr(records, "save_last", save_last)
    training.main(arguments)
    resumed = find_last(tmp_path / "stopped")
    assert_equal(resumed["model_state"], whole["model_state"])
    assert_equal(resumed["training_state"]["engine"], whole["training_state"]["engine"])
    if "ghm" in line:
        assert whole["training_state"]["engine"]["objective"]["entry_weights.ghm.counts"].sum() > 0


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


def test_the_better_of_raw_and_averaged_weights_is_saved(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is made to favour one of the two; the checkpoint holds just those tensors and says so."""
    score = validation._score
    for favoured in ("averaged", "raw"):

        def favour(run: Any, network: Any, loader: Any, title: str, favoured: str = favoured) -> Any:
            scores = score(run, network, loader, title)
            perfect = ("averaged" in title) == (favoured == "averaged")
            return scores._replace(probabilities=scores.targets if perfect else 1 - scores.targets)

        monkeypatch.setattr(validation, "_score", favour)
        folder = tmp_path / favoured
        arguments = [f"--LOCAL_ROOT={folder}" if "LOCAL_ROOT" in option else option for option in small_run]
        training.main([*arguments, "--EMA_DECAY=0.5", "--NUM_EPOCHS=1"])
        (path,) = folder.glob("trained_models/*/*.pt")
        best, last = checkpoints.load(path), find_last(folder)
        assert best["weights"] == favoured
        average = last["training_state"]["engine"]["average"]
        for key, value in best["model_state"].items():
            assert torch.equal(value, average[f"module.{key}"] if favoured == "averaged" else last["model_state"][key])
        (record,) = last["training_state"]["state"]["history"]
        assert record["val_f1"] == record[f"val_f1_{favoured}"] == 1


def test_softmax_is_for_one_label_an_image(small_run: list[str], dataset: Path, fails: Any, tmp_path: Path) -> None:
    arguments = [*small_run, f"--DATASET_FOLDER={dataset}", "--LOSS=softmax", "--USE_POS_WEIGHT=0"]
    assert "LOSS softmax is for one label an image, but" in fails(training.main, arguments)
    for path in dataset.glob("labels/*/*.cls"):
        path.write_text((path.read_text() + "0\n")[:2])
    training.main(arguments)
    (path,) = tmp_path.glob("trained_models/*/*.pt")
    model = predictor.load(path, "cpu")
    record = next(model.predict(sorted((dataset / "images" / "test-resized").iterdir())))
    assert record.probabilities.sum() == pytest.approx(1, abs=1e-5)
    testing.main(arguments)


def test_one_label_an_image(small_run: list[str], dataset: Path, fails: Any, tmp_path: Path) -> None:
    """The most probable class is predicted, macro F1 chooses, and accuracy and who is taken for whom are written."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    arguments = [*small_run, f"--DATASET_FOLDER={dataset}", "--LOSS=softmax", "--USE_POS_WEIGHT=0"]
    arguments += ["--LABELS_PER_IMAGE=one", "--BOOTSTRAP_SAMPLES=0"]
    assert "is for one label an image, but" in fails(training.main, arguments[:-1])
    for path in dataset.glob("labels/*/*.cls"):
        path.write_text((path.read_text() + "0\n")[:2])
    training.main(arguments[:-1])
    (path,) = tmp_path.glob("trained_models/*/*.pt")
    checkpoint = checkpoints.load(path)
    scores = saved_scores.read_scores(path.with_suffix("") / saved_scores.SCORES_FILE)
    is_class, taken_for = scores.targets.argmax(axis=1), scores.probabilities.argmax(axis=1)
    expected = f1_score(is_class, taken_for, labels=[0, 1, 2], average="macro", zero_division=0)
    assert checkpoint["best_f1"] == pytest.approx(expected, abs=1e-9)
    assert checkpoint["metrics"]["exact_match"] == pytest.approx(accuracy_score(is_class, taken_for), abs=1e-9)
    assert (checkpoint["min_labels"], checkpoint["max_labels"]) == (1, 1)

    testing.main(arguments)
    folder = tmp_path / "predictions"
    table = read_dataset(dataset, split="test")
    records = list(predictor.load(path, "cpu").predict(table.paths))
    assert all(len(record.labels) == 1 for record in records)
    is_class = table.targets.argmax(axis=1)
    taken_for = np.array([record.labels[0] for record in records])
    result = json.loads((folder / "evaluate_result.json").read_text())
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy_score(is_class, taken_for))
    lines = (folder / "evaluate_class_confusion.csv").read_text().splitlines()
    assert lines[0] == "is / taken for,red,green,blue"
    counts = [[int(cell) for cell in line.split(",")[1:]] for line in lines[1:]]
    assert counts == confusion_matrix(is_class, taken_for, labels=[0, 1, 2]).tolist()
    assert (folder / "evaluate_class_confusion.png").is_file()


def test_a_checkpoints_head_is_taken_over_unless_a_constant_says_no(small_run: list[str], tmp_path: Path) -> None:
    training.main([*small_run, "--NUM_EPOCHS=1"])
    (path,) = tmp_path.glob("trained_models/*/*.pt")
    before = checkpoints.load(path)["model_state"]
    arguments = [*small_run, f"--PRETRAINED_WEIGHTS={path}", "--SEED=11"]
    taken = {}
    for value in (True, False):
        overrides.apply([*arguments, f"--TAKE_OVER_HEAD={value}"], config)
        state = build.make_trainer(
            read_dataset(config.DATASET_FOLDER, split="train"), torch.device("cpu")
        ).model.state_dict()
        assert all(torch.equal(state[key], before[key]) for key in before if key.startswith("backbone."))
        taken[value] = [torch.equal(state[key], before[key]) for key in before if key.endswith("head.linear.weight")]
    assert taken == {True: [True], False: [False]}


def test_mixing_keeps_no_features_of_a_frozen_backbone(
    small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.pth"
    torch.save(models_factory.make_model("mobilenet_v2", 3, image_size=32).state_dict(), own)
    frozen = [*small_run, f"--PRETRAINED_WEIGHTS={own}", "--FREEZE_BACKBONE=1", "--UNFREEZE_BACKBONE_EPOCH=0"]
    training.main([*frozen, "--MIXUP_ALPHA=0.4", "--NUM_EPOCHS=1"])
    out = capsys.readouterr().out
    assert "views kept" not in out
    assert "mixup 0.4" in out
    assert not list(tmp_path.glob("cache/features_*"))
    training.main([*frozen, "--NUM_EPOCHS=1"])
    assert list(tmp_path.glob("cache/features_*"))


def test_the_first_step_says_what_its_loss_is_made_of(small_run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    training.main([*small_run, "--NUM_EPOCHS=1", "--LOSS=asymmetric", "--LOSS_REDUCTION=sum"])
    out = capsys.readouterr().out
    assert "first step:\n  Asymmetric: " in out
    assert "an entry x 24 known entries (8 images x 3 classes, 0 unknown)" in out
    assert "the step takes the sum" in out
