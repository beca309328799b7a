"""trainer/doctor.py: each finding from a small real run that deserves it; none from runs that are as they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import dataset_readers
import heads
import losses
import metrics
import thresholds
import utils
from dataset import augmentations, loading
from dataset.batches import Batch
from dataset.stratified_split import split_table
from dataset.table import Table
from models import inference
from models_factory import MultiLabelModel, make_model
from trainer import optimizers
from trainer.doctor import LONGEST_STEP, PATIENCE, Doctor, describe_noise, find_shared_images
from utils import InputError

GREY = (0.45, 0.45, 0.45)
SPREAD = (0.2, 0.2, 0.2)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Table]:
    """140 training and 60 validation images."""
    root = write_dataset(tmp_path_factory.mktemp("doctor") / "set", num_train=200, num_test=0)
    return split_table(dataset_readers.read_dataset(root, split="train"), 0.3, seed=0)


def make_small_model(make_head: Callable[[], nn.Module] = lambda: heads.LinearBN(32, 3)) -> MultiLabelModel:
    """Two convolutions and a head: what trains in a second."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 5, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
    ]
    return MultiLabelModel(nn.Sequential(*layers), make_head(), GREY, SPREAD)


@dataclass
class Run:
    """What training.py does, small: `train` calls the doctor as it does."""

    train_split: Table
    val_split: Table
    model: MultiLabelModel = field(default_factory=make_small_model)
    loss: nn.Module = field(default_factory=losses.BCEWithLogits)
    reduction: str = "mean"
    optimizer: str = "adam"
    rate: float = 1e-3
    weight_decay: float = 0.0
    decay_factor: float = 1.0  # of the rates, after each epoch
    ema_decay: float = 0.0
    averages: bool = True  # False: forgets to
    epochs: int = 3
    frozen_epochs: int = 0
    batch_size: int = 16
    threshold: float | None = None
    spoil: Callable[[MultiLabelModel], None] | None = None  # after the optimizer was made

    def train(self, doctor: Doctor | None = None) -> Doctor:
        self.doctor = doctor or Doctor(say=lambda text: self.said.append(text))
        self.said: list[str] = []
        torch.manual_seed(0)
        model, objective = self.model, losses.Objective(self.loss, {}, 0.0, self.reduction)
        average = optimizers.MovingAverage(model, self.ema_decay) if self.ema_decay else None
        optimizer = optimizers.make_optimizer(self.optimizer, model, self.rate, self.rate, self.weight_decay)
        loader, val_loader = self.make_loader(self.train_split, shuffle=True), self.make_loader(self.val_split)
        schedule = LambdaLR(optimizer, lambda epoch: self.decay_factor**epoch)
        if self.spoil:
            self.spoil(model)
        self.doctor.look_at_data(self.train_split, self.val_split)
        self.doctor.look_at_labels(self.train_split, self.val_split)
        self.doctor.look_at_sizes(
            num_train=len(self.train_split), num_val=len(self.val_split), batch_size=self.batch_size
        )
        for epoch in range(1, self.epochs + 1):
            model.freeze_backbone(epoch <= self.frozen_epochs)
            model.train()
            objective.train()
            loading.set_epoch(loader, epoch)
            self.doctor.watch(model, optimizer, average)
            total, skipped = 0.0, 0
            for step, batch in enumerate(loader):
                logits = model(batch.images)
                if epoch == 1 and step == 0:
                    self.doctor.look_at_first_step(
                        network=model,
                        batch=batch,
                        logits=logits.detach(),
                        objective=objective,
                        optimizer=optimizer,
                        batch_size=len(batch.images),
                    )
                loss = objective(logits, batch.targets, batch.weights)
                entries = self.loss(logits.detach(), batch.targets)
                mean_loss = losses.reduce_loss(entries, batch.targets, batch.weights).item()
                optimizer.zero_grad()
                loss.backward()
                if loss.isfinite():
                    optimizer.step()
                    total += mean_loss
                else:
                    skipped += 1
                if average and self.averages:
                    average.update_parameters(model)
            schedule.step()
            steps = len(loader) - skipped
            self.doctor.look_at_epoch(
                model=model,
                optimizer=optimizer,
                average=average,
                loss=total / max(steps, 1),
                num_taken=steps,
                num_left_out=skipped,
            )
            for network in [model, *([average.module] if average else [])]:
                self.validate(network, val_loader, objective, is_last=epoch == self.epochs)
        return self.doctor

    def make_loader(self, table: Table, shuffle: bool = False) -> DataLoader[Batch]:
        transform = augmentations.make_eval_transform("squash", 32)
        return loading.make_loader(table, transform, self.batch_size, shuffle=shuffle)

    def validate(
        self, network: nn.Module, loader: DataLoader[Batch], objective: losses.Objective, is_last: bool
    ) -> None:
        found: list[float] = []
        targets: list[Tensor] = []
        objective.eval()

        def note(batch: Batch, logits: Tensor) -> None:
            found.append(objective(logits, batch.targets, batch.weights).item())
            targets.append(batch.targets)

        scores = np.concatenate(
            list(inference.compute_probabilities(network, loader, torch.device("cpu"), on_batch=note))
        )
        known = torch.cat(targets).numpy()
        threshold = self.threshold
        if threshold is None:
            threshold = 0.5 if np.isnan(scores).any() else thresholds.tune_global(scores, known)
        self.scores = scores, known, threshold
        self.doctor.look_at_validation(
            probabilities=scores,
            targets=known,
            threshold=threshold,
            classes=self.val_split.classes,
            loss=float(np.mean(found)),
            is_last=is_last,
        )


class Deaf(heads.LinearBN):
    """Lets no gradient through to the backbone."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.detach())


def make_sigmoid_head() -> nn.Module:
    return nn.Sequential(heads.LinearBN(32, 3), nn.Dropout(0.2), nn.Sigmoid())


def replace_head(model: MultiLabelModel) -> None:
    model.head = heads.LinearBN(32, 3)


def make_linear_model() -> MultiLabelModel:
    return make_small_model(lambda: heads.Linear(32, 3))


def make_loud_model() -> MultiLabelModel:
    """A network without norms that stand in for a wrong scale, and a normalisation in the wrong unit."""
    torch.manual_seed(0)
    model = make_model("resnet18", 3, "linear", image_size=32)
    model.std /= 255
    return model


def look_at_scores(doctor: Doctor, probabilities: np.ndarray, targets: np.ndarray, threshold: float) -> None:
    """A validation that is not the last, with a loss that says nothing."""
    classes = ("blue", "green", "red")
    doctor.look_at_validation(
        probabilities=probabilities, targets=targets, threshold=threshold, classes=classes, loss=1.0
    )


def weigh_positives(*weights: float) -> nn.Module:
    return losses.BCEWithLogits(torch.tensor(weights))


# ---- each finding ----


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        (
            lambda: {"model": make_small_model(make_sigmoid_head)},
            {"double sigmoid"},
            "the sigmoid at the end of HEAD",
        ),
        (
            lambda: {"model": make_loud_model(), "frozen_epochs": 1, "epochs": 1},
            {"blown-up start"},
            "PRETRAINED_WEIGHTS",
        ),
        (
            lambda: {"optimizer": "sgd", "rate": 0.5, "reduction": "sum", "epochs": 1},
            {"step too long"},
            '"sum" makes it 48 times as long as "mean"',  # 16 images x 3 classes
        ),
        (
            lambda: {"optimizer": "sgd", "rate": 100.0, "epochs": 2},
            {"step too long"},
            "HEAD_BASE_LR",
        ),
        (
            lambda: {  # a head whose rate grows a hundredfold each epoch; frozen features keep images apart
                "model": make_linear_model(),
                "frozen_epochs": 4,
                "rate": 0.01,
                "decay_factor": 100.0,
                "batch_size": 4,
                "epochs": 4,
                "threshold": 0.5,
            },
            {"loss rose"},
            "CLIP_GRADIENT_NORM",
        ),
        (lambda: {"weight_decay": 10.0}, {"weight decay"}, 'OPTIMIZER = "adamw"'),
        (
            lambda: {"decay_factor": 1e-4, "epochs": 4},
            {"rate of the backbone", "rate of the head"},
            "rate was 1e-11 for a whole epoch",
        ),
        (lambda: {"spoil": replace_head}, {"head not training"}, "no weight of the head changed"),
        (
            lambda: {"model": make_small_model(lambda: Deaf(32, 3)), "epochs": 2},
            {"backbone not training"},
            "of the backbone",
        ),
        (lambda: {"ema_decay": 0.99, "averages": False, "epochs": 2}, {"average dead"}, "lower EMA_DECAY"),
        (
            lambda: {"optimizer": "sgd", "rate": 1e30, "epochs": 1},
            {"step too long", "not finite", "validation loss"},
            "8 step(s)",  # all but the first
        ),
        (lambda: {"threshold": 0.999}, {"all negative"}, "THRESHOLD_GOAL and TH_MULTI_LABEL"),
        (
            lambda: {"model": make_linear_model(), "rate": 0.2, "loss": weigh_positives(1e4, 1e4, 1e4), "epochs": 4},
            {"same for every image"},
            "the same probabilities",
        ),
        (
            lambda: {"model": make_linear_model(), "rate": 0.03, "loss": weigh_positives(1e4, 1e4, 1e4), "epochs": 4},
            {"threshold at the edge"},
            "crowded at 1",
        ),
        (
            lambda: {"model": make_linear_model(), "rate": 0.01, "loss": weigh_positives(1e-4, 5, 5), "threshold": 0.5},
            {"never predicted"},
            "1 class(es) are never predicted for a validation image: red (",
        ),
    ],
)
def test_a_run_with_a_mistake_is_told(
    splits: tuple[Table, Table], options: Callable[[], dict[str, Any]], expected: set[str], words: str
) -> None:
    run = Run(*splits, **options())
    found = run.train().findings
    assert set(found) == expected
    assert run.said == list(found.values()), "each once"
    assert any(words in text for text in run.said), run.said


def test_labels_of_other_images_leave_nothing_but_predicting_everything(splits: tuple[Table, Table]) -> None:
    """The worst of other labels: a class is present where its scores are lowest, so that each other threshold costs
    positives and gains nothing."""
    run = Run(*splits, epochs=2)
    run.train()
    scores = run.scores[0]
    targets = (scores.argsort(axis=0).argsort(axis=0) < 0.4 * len(scores)).astype(np.int8)
    threshold = thresholds.tune_global(scores, targets)
    assert (scores >= threshold).all()
    found = Doctor(say=lambda text: None)
    for _ in range(PATIENCE):
        assert not found.findings
        look_at_scores(found, scores, targets, threshold)
    assert set(found.findings) == {"all positive"}


def test_copies_are_found_and_their_f1_is_compared(splits: tuple[Table, Table], tmp_path: Path) -> None:
    """Copies whose labels can be learned, among images whose labels are all wrong."""
    train, val = splits
    copies = [shutil.copy(path, tmp_path) for path in train.paths[:25]]
    targets = np.concatenate([train.targets[:25], 1 - val.targets])
    leaking = Table([*copies, *val.paths], targets, val.classes)
    run = Run(train, leaking, threshold=0.5)
    found = run.train().findings
    assert {"copies", "F1 from copies"} <= set(found)
    assert f"25 of {len(leaking)} validation images" in found["copies"]
    assert f"{copies[0]} of {train.paths[0]}" in found["copies"]
    scores, known, threshold = run.scores
    for rows in (slice(25), slice(25, None), slice(None)):
        assert f"{metrics.measure(scores[rows], known[rows], threshold)['f1_weighted']:.3f}" in found["F1 from copies"]


def test_copies_that_gain_nothing_are_named_but_not_compared(splits: tuple[Table, Table], tmp_path: Path) -> None:
    train, val = splits
    copies = [shutil.copy(path, tmp_path) for path in train.paths[:25]]
    mixed = Table([*copies, *val.paths], np.concatenate([train.targets[:25], val.targets]), val.classes)
    assert set(Run(train, mixed).train().findings) == {"copies"}


def test_sources_on_both_sides(splits: tuple[Table, Table]) -> None:
    train, val = splits
    doctor = Doctor(say=lambda text: None)
    names = ["", "a", "b", "c"]
    groups = [tuple(np.resize(names[first:last], len(table))) for table, first, last in ((train, 0, 3), (val, 2, 4))]
    doctor.look_at_data(replace(train, groups=groups[0]), replace(val, groups=groups[1]))
    assert "1 source(s), such as b," in doctor.findings["sources"]
    known = Doctor(say=lambda text: None)
    known.look_at_data(replace(train, groups=("", "a") * 70), replace(val, groups=("", "b") * 30))
    assert not known.findings, "a source that is not known is none"


# ---- runs as they should be ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_decay": 0.9997, "frozen_epochs": 1, "epochs": 4},
        {"optimizer": "sgd", "rate": 0.1},
        {"optimizer": "sgd", "rate": 0.001, "reduction": "sum"},
        {"reduction": "sum"},
        {"loss": losses.Asymmetric()},
        {"weight_decay": 1e-3},
        {"optimizer": "adamw", "weight_decay": 1.0},
        {"loss": weigh_positives(1.0, 2.0, 3.0), "rate": 3e-3, "decay_factor": 0.1},
    ],
)
def test_a_healthy_run_is_told_nothing(splits: tuple[Table, Table], options: dict[str, Any]) -> None:
    run = Run(*splits, **options)
    assert not run.train().findings
    scores, known, threshold = run.scores
    assert metrics.measure(scores, known, threshold)["f1_weighted"] > 0.8, (
        "else it is not healthy: everything predicted gives 0.6"
    )
    assert not run.said


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("linear_bn", {"ema_decay": 0.9997, "optimizer": "sgd", "rate": 0.05, "epochs": 2}),
        ("ml_decoder", {"loss": losses.Asymmetric(), "epochs": 2}),
        ("cosine", {"loss": losses.AsymmetricAngular(), "frozen_epochs": 1, "epochs": 2}),
    ],
)
def test_a_real_network_on_few_images_is_told_that_they_are_few(
    shared_dataset: Path, head: str, options: dict[str, Any]
) -> None:
    train, val = split_table(dataset_readers.read_dataset(shared_dataset, split="train"), 0.25, seed=0)
    torch.manual_seed(0)
    run = Run(train, val, model=make_model("mobilenet_v2", 3, head, image_size=32), batch_size=8, **options)
    assert set(run.train().findings) == {"few validation images"}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_ten_images_are_told_that_they_are_few(splits: tuple[Table, Table], optimizer: str) -> None:
    run = Run(splits[0].select(range(10)), splits[1].select(range(5)), optimizer=optimizer, rate=0.01, epochs=8)
    assert set(run.train().findings) == {"few validation images", "batch larger than the split"}


# ---- the limits ----


def test_the_longest_step_is_polyaks(splits: tuple[Table, Table]) -> None:
    """A linear head's rate * |gradient|^2 / loss, in float64, on both sides of the limit; two equal parts."""
    features = torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(0)).double().repeat(2, 1, 1, 1)
    targets = torch.tensor([[1.0, 0, 0]] * 6)
    model = MultiLabelModel(nn.Identity(), heads.Linear(4, 3), GREY, SPREAD)
    weight, bias = (w.detach().double().numpy() for w in model.head.parameters())
    x, y = features.flatten(1).numpy(), targets.double().numpy()
    p = 1 / (1 + np.exp(-(x @ weight.T + bias)))
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
    squared = (((p - y).T @ x) ** 2).sum() + ((p - y).sum(axis=0) ** 2).sum()
    for factor, expected in ((0.99, set()), (1.01, {"step too long"})):
        rate = factor * LONGEST_STEP * loss / squared
        objective = losses.Objective(losses.BCEWithLogits(), {}, 0.0, "sum").train()
        optimizer = optimizers.make_optimizer("sgd", model, rate, rate)
        found = Doctor(say=lambda text: None)
        batch = Batch(features.float(), targets, torch.ones(6))
        parts = [Batch(*(tensor[rows] for tensor in batch)) for rows in (slice(3), slice(3, 6))]
        optimizer.zero_grad()
        for number, part in enumerate(parts):
            logits = model.head(part.images)
            if number == 0:
                found.look_at_first_step(
                    network=model.head,
                    batch=part,
                    logits=logits.detach(),
                    objective=objective,
                    optimizer=optimizer,
                    batch_size=len(batch.images),
                )
            objective(logits, part.targets, part.weights).backward()
        before = [w.detach().clone() for w in model.parameters()]
        optimizer.step()
        optimizer.step()
        for w, old in zip(model.parameters(), before, strict=True):
            w.data.copy_(old)
        assert set(found.findings) == expected


def look_at_labels(train: list[list[int]], val: list[list[int]], has_teachers: bool = False) -> dict[str, str]:
    """The findings on these targets, of classes a, b, c, ..."""
    tables = []
    for name, targets in (("train", train), ("val", val)):
        matrix = np.array(targets, dtype=np.int8)
        classes = tuple("abcdefghijklmnopqrstuvwxyz"[: matrix.shape[1]])
        tables.append(Table([f"{name}{row}.jpg" for row in range(len(matrix))], matrix, classes))
    doctor = Doctor(say=lambda text: None)
    doctor.look_at_labels(*tables, has_teachers=has_teachers)
    return doctor.findings


def test_classes_and_images_that_cannot_be_learned_are_named() -> None:
    """a is as it should be; b never present, c never known to be absent, d never known, e in training alone."""
    train = [[1, 0, 1, -1, 1], [0, -1, 1, -1, 0], [-1] * 5]
    val = [[1, 0, 1, -1, 0], [0, 0, 1, -1, 0]]
    found = look_at_labels(train, val)
    assert set(found) == {
        "training images without a known label",
        "classes without a known label",
        "classes without a positive",
        "classes without a known negative",
        "classes not measured",
    }
    assert found["training images without a known label"].startswith("no label of 1 of 3 training images is known")
    assert found["classes without a known label"].startswith("1 class(es) without a known label in the training")
    assert ": 'd'; nothing is learned of them" in found["classes without a known label"]
    assert ": 'b'; they are learned as always absent" in found["classes without a positive"]
    assert "without 1 of 5 classes: 'c' (is -1 'absent' here? Then" in found["classes without a known negative"]
    assert set(look_at_labels([[1, 0, 1], [1, 1, 0]], val=[[1, 1, 1]])) == {"classes without a negative"}
    assert found["classes not measured"].endswith("does not measure them: 'e'")
    assert look_at_labels(train, val, has_teachers=True) == {}
    assert look_at_labels([[1, 0], [0, 1]], [[1, 1]]) == {}


def test_classes_of_one_image_each_choose_nothing() -> None:
    found = look_at_labels([[1, 0, 0, 0], [0, 1, 0, 0]], [[0, 0, 1, 0], [0, 0, 0, 1]])
    assert set(found) == {"no class in both splits", "classes without a positive"}


def test_thousands_of_classes_are_counted_and_ten_named() -> None:
    classes = tuple(f"class {number}" for number in range(5000))
    targets = np.zeros((3, 5000), dtype=np.int8)
    targets[:2, 0] = 1
    table = Table(["a.jpg", "b.jpg", "c.jpg"], targets, classes)
    doctor = Doctor(say=lambda text: None)
    doctor.look_at_labels(table, table)
    (text,) = doctor.findings.values()
    assert "4,999 class(es) without a positive in the training split: 'class 1', 'class 2'," in text
    assert "'class 10', and 4,989 more; they are learned as always absent" in text
    assert len(text) < 300


def test_a_backbone_that_would_train_after_the_last_epoch() -> None:
    found = []
    for is_frozen, unfreeze_epoch, num_epochs in ((True, 4, 2), (True, 4, 4), (True, 0, 2), (False, 4, 2)):
        doctor = Doctor(say=lambda text: None)
        doctor.look_at_freezing(is_frozen=is_frozen, unfreeze_epoch=unfreeze_epoch, num_epochs=num_epochs)
        found.append(list(doctor.findings.values()))
    assert found[1:] == [[], [], []]
    assert "train from epoch 4 on (UNFREEZE_BACKBONE_EPOCH), after the last one (NUM_EPOCHS 2)" in found[0][0]


@pytest.mark.parametrize(("num_val", "error"), [(30, "± 0.18"), (10, "± 0.31"), (49, "± 0.14"), (50, "")])
def test_few_validation_images_choose_by_noise(num_val: int, error: str) -> None:
    """Half the width of the 95 % interval of 1/2, by the normal approximation of the binomial distribution."""
    doctor = Doctor(say=lambda text: None)
    doctor.look_at_sizes(num_train=500, num_val=num_val, batch_size=500)
    assert list(doctor.findings) == ["few validation images"] * bool(error)
    if error:
        assert f"{num_val} validation images are few" in doctor.findings["few validation images"]
        assert error in doctor.findings["few validation images"]


@pytest.mark.parametrize(
    ("is_drawn", "advice"),
    [
        (True, ": raise VAL_SPLIT, set FOLDS = 5, or give the data set a val split"),
        (False, ": more validation images would tell more"),
    ],
)
def test_few_images_of_a_val_split_are_not_drawn_by_val_split(is_drawn: bool, advice: str) -> None:
    doctor = Doctor(say=lambda text: None)
    doctor.look_at_sizes(num_train=500, num_val=40, batch_size=8, val_is_drawn=is_drawn)
    text = doctor.findings["few validation images"]
    assert advice in text
    assert ("VAL_SPLIT" in text) is is_drawn


NOISY = {1: 0.30, 2: 0.50, 3: 0.51, 4: 0.505, 5: 0.52}


@pytest.mark.parametrize(
    ("validated", "num_images", "is_said"),
    [
        (NOISY, 40, True),
        (NOISY, 200, False),  # many images
        ({1: 0.30, 2: 0.40, 3: 0.45, 4: 0.46, 5: 0.52}, 40, False),  # a real lead
        ({1: 0.30, 2: 0.40, 3: 0.44, 4: 0.51, 5: 0.52}, 40, False),  # two of five
        ({1: 0.5}, 40, False),  # nothing to choose
        ({}, 40, False),
    ],
)
def test_a_choice_by_noise_is_said(validated: dict[int, float], num_images: int, is_said: bool) -> None:
    text = describe_noise(validated, 0.03, num_images, val_is_drawn=True)
    assert (text is not None) is is_said
    if text:
        assert text == (
            "the choice among epochs 2 to 5 rests on noise: F1 of 4 of them differs by at most 0.020, its standard "
            "error on 40 images is 0.030; more validation images (VAL_SPLIT), or all of them in turn (FOLDS), would "
            "tell"
        )
        assert "VAL_SPLIT" not in (describe_noise(validated, 0.03, num_images, val_is_drawn=False) or "")


def test_a_batch_larger_than_the_split_is_one_step() -> None:
    doctor = Doctor(say=lambda text: None)
    doctor.look_at_sizes(num_train=30, num_val=60, batch_size=31)
    assert "an epoch is a single step of all 30 images" in doctor.findings["batch larger than the split"]


def test_an_epoch_without_a_step_and_a_run_without_one(splits: tuple[Table, Table]) -> None:
    model, doctor = make_small_model(), Doctor(say=lambda text: None)
    optimizer = optimizers.make_optimizer("adam", model, 0.1, 0.1, 0.0)

    def look(num_taken: int, num_overflowed: int, loss: float | None) -> None:
        doctor.look_at_epoch(
            model=model,
            optimizer=optimizer,
            average=None,
            loss=loss,
            num_taken=num_taken,
            num_overflowed=num_overflowed,
            num_seen=0,
        )

    look(10, 3, 0.7)
    assert not doctor.findings, "fp16 looks for its scale at the start of every run"
    look(0, 4, None)
    assert "all 4 overflowed in half precision" in doctor.findings["overflow"]
    doctor.look_at_end(num_taken=10)
    assert set(doctor.findings) == {"overflow"}
    doctor.look_at_end(num_taken=0)
    assert "holds the weights as they began" in doctor.findings["nothing learned"]


def test_slow_loading_is_measured_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(utils.time, "perf_counter", lambda: clock[0])

    def take(seconds: float) -> None:
        clock[0] += seconds

    waiting = utils.Waiting(take(0.03) for _ in range(10))
    for _ in waiting:
        take(0.01)
    share, seconds = waiting.seconds / clock[0], clock[0]
    assert share == pytest.approx(0.75)

    def look(
        num_workers: int,
        chosen: int,
        cache: str,
        share: float = share,
        epochs: int = 10**5,
        looks: int = 2,
        pictures_on: str = "",
    ) -> str:
        doctor = Doctor(say=lambda text: None)
        for _ in range(looks):
            doctor.look_at_loading(
                waiting_share=share,
                seconds=seconds,
                epochs_left=epochs,
                num_workers=num_workers,
                default_num_workers=chosen,
                image_cache=cache,
                pictures_on=pictures_on,
            )
        return doctor.findings.get("slow loading", "")

    assert f"{1 / (1 - share):.1f} times as fast" in look(1, 8, "none")
    assert "NUM_WORKERS = None (8 processes here; it is 1)" in look(1, 8, "none")
    assert "IMAGE_CACHE = " in look(8, 8, "none")
    assert "dataset_tools.py resize" in look(0, 0, "disk")
    assert not look(1, 8, "none", looks=1), "the first epoch fills caches"
    assert not look(1, 8, "none", epochs=100), "a minute is not worth a word"
    assert not look(1, 8, "none", share=0.5)
    assert "PICTURES_ON" not in look(8, 8, "none")

    gpu = partial(look, share=0.21)  # a fifth of a GPU's time is worth a word
    assert "NUM_WORKERS = None (8 processes here; it is 1)" in gpu(1, 8, "none", pictures_on="cpu")
    assert 'set PICTURES_ON = "auto"' in gpu(8, 8, "none", pictures_on="cpu")
    assert gpu(8, 8, "none", pictures_on="auto").endswith(
        'set IMAGE_CACHE = "memory" or "disk", or PICTURES_ON = "gpu", by which the GPU decodes JPEGs, too'
    )
    assert gpu(8, 8, "none", pictures_on="gpu").endswith('set IMAGE_CACHE = "memory" or "disk"')
    assert "dataset_tools.py resize" in gpu(15, 8, "disk", pictures_on="auto")
    assert not look(1, 8, "none", share=0.2, pictures_on="auto")


def test_a_model_that_has_just_begun_is_given_time(splits: tuple[Table, Table]) -> None:
    scores, targets = np.full((60, 3), 0.4), splits[1].targets.astype(np.float32)
    found = Doctor(say=lambda text: None)
    trained = np.where(targets == 1, 0.9, 0.1)
    for probabilities in (scores, scores, trained, scores, scores):
        look_at_scores(found, probabilities, targets, 0.5)
    assert not found.findings
    look_at_scores(found, scores, targets, 0.5)
    assert set(found.findings) == {"same for every image"}


def test_a_resumed_run_repeats_nothing(splits: tuple[Table, Table]) -> None:
    """Two validations before and one after: the third in a row."""
    said: list[str] = []
    first, second, third = (Doctor(said.append) for _ in range(3))
    scores, targets = np.full((60, 3), 0.4), splits[1].targets

    def validate(found: Doctor) -> None:
        look_at_scores(found, scores, targets, 0.5)

    validate(first)
    validate(first)
    assert not said
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    validate(second)
    assert len(said) == 1
    third.load_state_dict(second.state_dict())
    validate(third)
    assert len(said) == 1


def test_the_doctor_changes_nothing(splits: tuple[Table, Table], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages and random numbers of a run with it, and of one without, to the last bit."""

    def train() -> tuple[list[Tensor], Tensor]:
        run = Run(*splits, model=make_small_model(make_sigmoid_head), ema_decay=0.99, epochs=2)
        run.train()
        return [tensor.clone() for tensor in run.model.state_dict().values()], torch.rand(3)

    with_it = train()
    for name in ("look_at_data", "look_at_first_step", "watch", "look_at_epoch", "look_at_validation"):
        monkeypatch.setattr(Doctor, name, lambda *arguments, **named: None)
    without, number = train()
    assert all(map(torch.equal, with_it[0], without))
    assert torch.equal(with_it[1], number)


# ---- copies ----


def test_copies_are_those_of_equal_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [rng.bytes(size) for size in rng.integers(1, 6, 40)]  # few sizes, small: chance copies
    contents += [bytes([first]) + bytes(20_000) for first in range(5)]  # alike in size and middle
    contents += [b"", rng.bytes(9000)]
    rows = {"train": rng.permutation(len(contents)), "val": rng.permutation(len(contents))[:30]}
    paths: dict[str, list[str]] = {}
    for split, chosen in rows.items():
        (tmp_path / split).mkdir()
        paths[split] = [str(tmp_path / split / str(number)) for number in range(len(chosen))]
        for path, row in zip(paths[split], chosen, strict=True):
            data = contents[row] if split == "train" or row % 2 else contents[row] + b"!"
            Path(path).write_bytes(data)
    known = {Path(path).read_bytes() for path in paths["train"]}
    found = find_shared_images(paths["train"], paths["val"])
    for path, twin in zip(paths["val"], found, strict=True):
        assert (twin is not None) == (Path(path).read_bytes() in known)
        assert twin is None or (twin in paths["train"] and Path(twin).read_bytes() == Path(path).read_bytes())
    assert 5 < sum(twin is not None for twin in found) < 25


def test_a_file_that_is_gone_is_named(splits: tuple[Table, Table], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read image .*gone\.jpg"):
        find_shared_images([str(tmp_path / "gone.jpg")], splits[1].paths)
