"""trainer/teachers.py: targets from files and from models, against the formula in float64 and predictor.py's
probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

import losses
import models_factory
import predictor
from dataset import augmentations, probability_files
from dataset.batches import Batch
from dataset.loading import make_loader
from dataset.table import Table
from dataset_readers import read_dataset
from limits import ImageSize
from models import checkpoints
from trainer import teachers
from utils import InputError

CLASSES = ("red", "green", "blue")
CPU = torch.device("cpu")


def mix(labels: np.ndarray, probabilities: np.ndarray, weight: float, temperature: float) -> np.ndarray:
    """The formula, for known labels."""
    taught = expit(logit(probabilities.astype(np.float64)) / temperature)
    return (1 - weight) * labels + weight * taught


# ---- from files ----


@pytest.fixture
def table(tmp_path: Path) -> Table:
    targets = np.random.default_rng(1).integers(0, 2, (6, 3)).astype(np.int8)
    return Table([f"{tmp_path}/{row}.jpg" for row in range(6)], targets, CLASSES)


def write(file: Path, values: np.ndarray, rows: range, header: str = "") -> Path:
    lines = [f"{row}.jpg," + ",".join(map(repr, values[row].tolist())) for row in rows]
    file.write_text(header + "\n".join(lines))
    return file


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 0.5), (0.9, 5.0)])
def test_soft_targets_follow_the_formula(table: Table, tmp_path: Path, weight: float, temperature: float) -> None:
    given = np.random.default_rng(0).random((6, 3))
    given[0] = [0, 1, 0.5]
    targets = teachers.make_soft_targets(
        table, [write(tmp_path / "t.csv", given, range(6))], weight, temperature=temperature
    )
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, mix(table.targets, given, weight, temperature), atol=1e-6)


def test_an_extreme_temperature_leaves_no_hole(table: Table, tmp_path: Path) -> None:
    given = np.random.default_rng(0).random((6, 3))
    file = write(tmp_path / "t.csv", given, range(6))
    np.testing.assert_array_equal(teachers.make_soft_targets(table, [file], 1.0, 1e-6), given > 0.5)
    np.testing.assert_allclose(teachers.make_soft_targets(table, [file], 1.0, 1e6), 0.5, atol=1e-3)


def test_files_are_averaged_over_those_that_have_the_image_and_the_class(
    table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = np.random.default_rng(0).random((2, 6, 3))
    files = [
        write(tmp_path / "a.csv", one, range(4)),
        write(tmp_path / "b.csv", other[:, [2, 0]], range(2, 5), "image_path,blue,red\n"),  # others in another order
    ]
    expected = np.full((6, 3), np.nan)
    expected[:4] = one[:4]
    for column in (0, 2):
        expected[2:4, column] = (one[2:4, column] + other[2:4, column]) / 2
        expected[4, column] = other[4, column]
    np.testing.assert_allclose(probability_files.read_probabilities(table, files), expected, atol=1e-6)

    targets = teachers.make_soft_targets(table, files, 0.4)
    known = np.nan_to_num(expected, nan=0.5)
    np.testing.assert_allclose(
        targets, np.where(np.isnan(expected), table.targets, mix(table.targets, known, 0.4, 1)), atol=1e-6
    )
    warned = capsys.readouterr().err
    assert f"1 of 6 training images have no teacher's probabilities and keep their labels, the first: {tmp_path}/5.jpg" in warned  # fmt: skip  # noqa: E501


def test_a_teacher_fills_in_unknown_labels(table: Table, tmp_path: Path) -> None:
    table.targets[:, 1] = -1
    given = np.random.default_rng(0).random((6, 3))
    targets = teachers.make_soft_targets(table, [write(tmp_path / "t.csv", given, range(5))], 0.25, 2.0)
    np.testing.assert_allclose(targets[:5, 1], mix(table.targets[:5, 1], given[:5, 1], 1.0, 2.0), atol=1e-6)
    assert np.isnan(targets[5, 1])
    np.testing.assert_array_equal(targets[5, ::2], table.targets[5, ::2])


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("image_path,red,grene,blue\n", 3, r"t.csv:1: 'grene' is no class of the data set \(did you mean green\?\)"),
        ("image_path,red,red,blue\n", 3, "t.csv:1: a class is named twice"),
        ("", 2, "t.csv has 2 probabilities a line for 3 classes: let its first line name the classes"),
        ("image_path,red,blue\n", 3, "t.csv:2: 4 columns where 3 are expected"),
    ],
)
def test_other_classes_are_refused(table: Table, tmp_path: Path, header: str, columns: int, message: str) -> None:
    file = write(tmp_path / "t.csv", np.zeros((6, columns)), range(6), header)
    with pytest.raises(InputError, match=message):
        teachers.make_soft_targets(table, [file], 0.5)


# ---- from models ----


def read_batch(dataset: Path, image_size: ImageSize = 32) -> tuple[Batch, Table]:
    table = read_dataset(dataset, split="test")
    loader = make_loader(table, augmentations.make_eval_transform("squash", image_size), len(table))
    return next(iter(loader)), table


def save_model(
    path: Path,
    images: torch.Tensor,
    classes: tuple[str, ...],
    seed: int,
    image_size: ImageSize = 32,
    activation: str = "sigmoid",
) -> Path:
    """A random network whose BatchNorms know `images`."""
    torch.manual_seed(seed)
    model = models_factory.make_model("mobilenet_v2", len(classes), "linear", image_size=image_size)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        model.train()(images)  # else the logits of a random network are all alike
    checkpoint = {
        "model_state": model.state_dict(),
        "model_name": "mobilenet_v2",
        "head": "linear",
        "classes": list(classes),
        "image_size": image_size,
        "resize_rule": "squash",
        "activation": activation,
    }
    checkpoints.save(path, checkpoint)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, shared_dataset: Path) -> list[Path]:
    folder, images = tmp_path_factory.mktemp("models"), read_batch(shared_dataset)[0].images
    return [
        save_model(folder / "a.pt", images, CLASSES, 0),
        save_model(folder / "b.pt", images, ("blue", "violet", "red"), 1, 48),
        save_model(folder / "c.pt", images, CLASSES[::-1], 2, activation="softmax"),
    ]


def predict(model: Path, table: Table) -> np.ndarray:
    records = predictor.load(model, "cpu").predict(table.paths)
    return np.stack([record.probabilities for record in records])


def test_a_model_teaches_what_it_would_predict(shared_dataset: Path, models: list[Path]) -> None:
    batch, table = read_batch(shared_dataset)
    given = predict(models[0], table)
    assert given.std() > 0.05, "else there is nothing to learn"
    taught = teachers.make_teacher([models[0]], CLASSES, CPU, 0.7, 2.0)(batch, 1, 0)
    np.testing.assert_allclose(taught.targets, mix(table.targets, given, 0.7, 2.0), atol=1e-3)
    assert torch.equal(taught.images, batch.images)
    assert torch.equal(taught.weights, batch.weights)


def test_a_teacher_of_another_shape_sees_the_pictures_in_its_own(shared_dataset: Path, tmp_path: Path) -> None:
    """The files' pictures are 36 x 48: the student's batch keeps their pixels, so the teacher loses none."""
    batch, table = read_batch(shared_dataset, (36, 48))
    teacher = save_model(tmp_path / "oblong.pt", read_batch(shared_dataset, (32, 96))[0].images, CLASSES, 0, (32, 96))
    given = predict(teacher, table)
    assert given.std() > 0.05, "else there is nothing to learn"
    taught = teachers.make_teacher([teacher], CLASSES, CPU, 1.0)(batch, 1, 0)
    np.testing.assert_allclose(taught.targets, given, atol=1e-3)
    assert taught.images.shape[2:] == (36, 48)


def test_models_are_averaged_by_the_names_of_their_classes(shared_dataset: Path, models: list[Path]) -> None:
    """`green` is of two of them; `violet` is nothing to learn; softmax is one model's own way."""
    batch, table = read_batch(shared_dataset, 48)
    small = batch._replace(images=augmentations.F.resize(batch.images, [32, 32], antialias=True))
    a, c = (teachers.make_teacher([models[index]], CLASSES, CPU, 1.0)(small, 1, 0).targets.numpy() for index in (0, 2))
    b = predict(models[1], table)
    expected = np.stack([(a[:, 0] + b[:, 2] + c[:, 0]) / 3, (a[:, 1] + c[:, 1]) / 2, (a[:, 2] + b[:, 0] + c[:, 2]) / 3])
    np.testing.assert_allclose(c.sum(axis=1), 1, atol=1e-3)
    taught = teachers.make_teacher(models, CLASSES, CPU, 1.0)(batch, 1, 0)
    np.testing.assert_allclose(taught.targets, expected.T, atol=1e-3)


def test_a_class_without_teacher_keeps_its_label(shared_dataset: Path, models: list[Path]) -> None:
    batch, table = read_batch(shared_dataset, 48)
    given = predict(models[1], table)
    unknown = batch.targets.clone()
    unknown[0] = torch.nan
    taught = teachers.make_teacher([models[1]], CLASSES, CPU, 0.5)(batch._replace(targets=unknown), 1, 0).targets
    assert torch.equal(taught[1:, 1], batch.targets[1:, 1])
    assert taught[0, 1].isnan()
    np.testing.assert_allclose(taught[0, ::2], given[0, [2, 0]], atol=1e-3)
    np.testing.assert_allclose(taught[1:, 0], mix(table.targets[1:, 0], given[1:, 2], 0.5, 1), atol=1e-3)


def test_pieces_make_no_difference(shared_dataset: Path, models: list[Path]) -> None:
    batch, _ = read_batch(shared_dataset)
    whole, pieces = (
        teachers.make_teacher(models, CLASSES, CPU, 0.5, images_at_once=size)(batch, 1, 0) for size in (64, 5)
    )
    torch.testing.assert_close(whole.targets, pieces.targets, rtol=0, atol=1e-3)


def test_teaching_comes_before_mixing(shared_dataset: Path, models: list[Path]) -> None:
    """Mixing draws what it would have drawn, and a loss of mixed targets can be learned from."""
    batch, _ = read_batch(shared_dataset)
    teach = teachers.make_teacher([models[0]], CLASSES, CPU, 0.5)
    change = augmentations.make_batch_transform(0, mixup_alpha=1.0)
    taught = teach(batch, 1, 0)
    mixed = change(taught, 1, 0)
    share = (change(batch, 1, 0).images - batch.images.roll(1, 0)) / (batch.images.float() - batch.images.roll(1, 0))
    share = share[share.isfinite()].median().item()
    expected = share * taught.targets + (1 - share) * taught.targets.roll(1, 0)
    torch.testing.assert_close(mixed.targets, expected, rtol=0, atol=1e-4)
    logits = torch.zeros_like(mixed.targets, requires_grad=True)
    objective = losses.Objective(losses.BCEWithLogits())
    objective(logits, mixed.targets, mixed.weights).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (0.5 - mixed.targets) / mixed.targets.numel())


def test_teaching_leaves_the_random_numbers_of_the_run_alone(shared_dataset: Path, models: list[Path]) -> None:
    batch, _ = read_batch(shared_dataset)
    teach = teachers.make_teacher([models[0]], CLASSES, CPU, 0.5)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    teach(batch, 1, 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_teacher_of_other_things_is_refused(models: list[Path], tmp_path: Path) -> None:
    make: Callable[..., object] = teachers.make_teacher
    with pytest.raises(InputError, match=r"the teacher .*a\.pt has none of the data set's 2 classes"):
        make([models[0]], ("cat", "dog"), CPU, 0.5)
    with pytest.raises(InputError, match=r"there is no checkpoint .*nowhere\.pt"):
        make([tmp_path / "nowhere.pt"], CLASSES, CPU, 0.5)
