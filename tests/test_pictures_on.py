"""PICTURES_ON: whole runs whose pictures are made, and decoded, where the model runs: here on the CPU.

They see what a run sees whose loading processes make the pictures, within rounding, in the same order.
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

import config
import models_factory
import predictor
import testing
import training
from dataset.batches import Batch
from dataset.device_decoding import SentFiles
from dataset.device_pictures import SentImages
from models import checkpoints, devices
from predictor import Predictor
from trainer import feature_cache, training_data
from trainer.build import Trainer
from utils import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
CPU = torch.device("cpu")
WAYS = {"cpu": (False, False), "auto": (True, False), "gpu": (True, True)}  # makes pictures, decodes on the device


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that lets every run make its pictures as with a value of PICTURES_ON where there is a GPU."""
    choose = devices.choose_settings

    def place(pictures_on: str, num_workers: int = 0) -> None:
        makes, decodes = WAYS[pictures_on]

        def choose_placed(device: torch.device, **options: Any) -> devices.DeviceSettings:
            settings = choose(device, **options | {"pictures_on": "auto"})
            return settings._replace(
                makes_pictures_on_gpu=makes, decodes_on_gpu=decodes, num_workers=settings.num_workers or num_workers
            )

        monkeypatch.setattr(devices, "choose_settings", choose_placed)
        monkeypatch.setattr(predictor, "choose_settings", choose_placed)

    return place


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches of all steps, as the loader gives them, each with its epoch and step in place of weights."""
    batches: list[Batch] = []
    take_step = training.take_step

    def look(trainer: Trainer, network: Any, batch: Batch, epoch: int, step: int, *more: Any) -> Any:
        batches.append(batch._replace(weights=torch.tensor([epoch, step])))
        return take_step(trainer, network, batch, epoch, step, *more)

    monkeypatch.setattr(training, "take_step", look)
    return batches


def make_arguments(dataset: Path, folder: Path, *options: str) -> list[str]:
    unfrozen = ["--NUM_EPOCHS=2", "--FREEZE_BACKBONE=False", "--AUGMENTATION=crop_flip", "--SAVE_EVERY_MINUTES=0.00001"]
    return [*make_small_run(dataset, folder), *unfrozen, *options]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("trained_models/*/*/last.pt")
    return checkpoints.load(path)["model_state"]


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    ("pictures_on", "kind", "options"),
    [
        ("auto", SentImages, []),
        ("auto", SentImages, ["--IMAGE_CACHE=memory"]),
        ("auto", SentImages, ["--IMAGE_CACHE=memory", "--AUGMENTATION=none"]),
        ("gpu", SentFiles, []),
        ("gpu", SentImages, ["--IMAGE_CACHE=memory"]),
    ],
)
def test_a_run_sees_the_same_pictures_in_the_same_order(
    pictures_on: str,
    kind: type,
    options: list[str],
    place: Callable[..., None],
    seen: list[Batch],
    shared_dataset: Path,
    tmp_path: Path,
) -> None:
    taken = {}
    for way in ("cpu", pictures_on):
        place(way)
        seen.clear()
        training.main(make_arguments(shared_dataset, tmp_path / way, *options))
        taken[way] = list(seen)
    assert len(taken["cpu"]) == len(taken[pictures_on]) > 4
    for ours, plain in zip(taken[pictures_on], taken["cpu"], strict=True):
        assert isinstance(ours.images, kind)
        assert torch.equal(ours.targets, plain.targets)
        assert torch.equal(ours.weights, plain.weights)
        pictures = ours.to(CPU).images
        assert pictures.dtype == torch.uint8
        assert (pictures.int() - plain.images.int()).abs().max() <= (1 if pictures_on == "auto" else 3)


@pytest.mark.parametrize("pictures_on", ["auto", "gpu"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    pictures_on: str, place: Callable[..., None], shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(pictures_on)
    training.main(make_arguments(shared_dataset, tmp_path / "whole"))
    arguments = make_arguments(shared_dataset, tmp_path / "cut")
    take_step = training.take_step

    def fail(trainer: Trainer, network: Any, batch: Batch, epoch: int, step: int, *more: Any) -> Any:
        if (epoch, step) == (2, 1):
            raise Killed
        return take_step(trainer, network, batch, epoch, step, *more)

    monkeypatch.setattr(training, "take_step", fail)
    with pytest.raises(Killed):
        training.main(arguments)
    monkeypatch.setattr(training, "take_step", take_step)
    training.main(arguments)
    assert_same(read_weights(tmp_path / "cut"), read_weights(tmp_path / "whole"))


def test_more_processes_where_the_model_waits_change_nothing(
    place: Callable[..., None],
    shared_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training.main(make_arguments(shared_dataset, tmp_path / "alone", "--NUM_EPOCHS=3"))
    assert "the model waited" not in capsys.readouterr().out
    place("cpu", num_workers=1)
    monkeypatch.setattr(training_data, "count_free_cores", lambda: 2)
    prepare = training.prepare_stage
    used = []

    def wait(trainer: Trainer, data: Any, caches: Any, epoch: int, present: Any) -> Any:
        stage = prepare(
            trainer, data, caches, epoch, present and present._replace(waiting_share=0.5 if epoch == 2 else 0)
        )
        used.append((stage.train_loader.num_workers, stage.val_loader.num_workers, stage.processes.ahead))
        return stage

    monkeypatch.setattr(training, "prepare_stage", wait)
    training.main(make_arguments(shared_dataset, tmp_path / "waits", "--NUM_EPOCHS=3"))
    assert used == [(1, 1, 2), (2, 2, 2), (2, 2, 2)]
    expected = "the model waited 50% of the epoch for images: from now on 2 loading processes, 2 batches ahead each"
    assert capsys.readouterr().out.count(expected) == 1
    assert_same(read_weights(tmp_path / "waits"), read_weights(tmp_path / "alone"))


def test_processes_that_the_constant_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do more load where the model waited for kept features."""
    waited: Any = type(
        "Stage", (), {"network": 0, "waiting_share": 0.9, "processes": training_data.LoadingProcesses(1)}
    )
    trainer: Any = type("Trainer", (), {"model": 0})
    monkeypatch.setattr(training_data, "count_free_cores", lambda: 4)
    monkeypatch.setattr(config, "NUM_WORKERS", None)
    assert training_data.choose_processes(trainer, waited) == (2, 2)
    trainer.model = 1
    assert training_data.choose_processes(trainer, waited) == (1, 2)
    trainer.model = 0
    monkeypatch.setattr(config, "NUM_WORKERS", 1)
    assert training_data.choose_processes(trainer, waited) == (1, 2)


def test_features_of_other_pictures_are_not_taken(
    place: Callable[..., None], shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a run whose pictures the processor made stay apart from those whose pictures the device made."""
    described, read = [], feature_cache.read_features

    def look(**options: Any) -> Any:
        described.append(options["pixels"])
        return read(**options)

    monkeypatch.setattr(feature_cache, "read_features", look)
    files: set[str] = set()
    for way in WAYS:
        place(way)
        described.clear()
        frozen = ["--NUM_EPOCHS=1", "--FREEZE_BACKBONE=True", "--UNFREEZE_BACKBONE_EPOCH=0", "--RESUME=never"]
        pretrained = ["--MODEL_NAME=efficientnet_lite0", "--PRETRAINED_WEIGHTS=default"]
        training.main([*make_small_run(shared_dataset, tmp_path), *frozen, *pretrained])
        found = {path.name for path in (tmp_path / "cache").glob("features_*.npy")}
        assert len(found - files) == 3, "for training and validation, and to compare images with"
        files = found
        ending = {"cpu": "on cpu", "auto": "on cpu, pictures made on the GPU",
                  "gpu": "on cpu, pictures decoded and made on the GPU"}[way]  # fmt: skip
        assert {text.rpartition(" px, off ")[2] for text in described} == {ending}


def test_the_batch_of_too_many_failures_holds_pictures(
    place: Callable[..., None], shared_dataset: Path, tmp_path: Path, fails: Any
) -> None:
    place("auto")
    options = ["--NON_FINITE_LIMIT=1", "--MIXED_PRECISION=off", "--BACKBONE_BASE_LR=1e30", "--HEAD_BASE_LR=1e30"]
    assert "the last batch is in" in fails(training.main, make_arguments(shared_dataset, tmp_path, *options))
    (path,) = tmp_path.rglob("non_finite_batch*")
    images = torch.load(path, weights_only=True)["images"]
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (3, 32, 32)


# ---- predictions ----


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, image_size=32)
    values = {"model_name": "resnet18", "head": "linear_bn", "image_size": 32, "resize_rule": "squash"}
    path = tmp_path / "trained_models" / "best_model.pt"
    classes = ["red", "green", "blue"]
    checkpoints.save(path, {"model_state": model.state_dict(), "classes": classes, "best_threshold": 0.52} | values)
    return path


def collect(model: Predictor, images: Any, **options: Any) -> tuple[list[str], list[np.ndarray]]:
    """(the paths of the records, the pictures that the model saw)."""
    pictures: list[np.ndarray] = []
    run = model.run

    def look(batch: torch.Tensor) -> torch.Tensor:
        pictures.extend(batch.numpy())
        return run(batch)

    model.run = look
    return [record.path for record in model.predict(images, batch_size=5, **options)], pictures


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("pictures_on", ["auto", "gpu"])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.5)])
def test_a_model_predicts_from_the_same_pictures(
    num_workers: int,
    pictures_on: str,
    scales: tuple[float, ...],
    place: Callable[..., None],
    checkpoint: Path,
    shared_dataset: Path,
) -> None:
    images = sorted((shared_dataset / "images" / "test-resized").iterdir())
    paths, expected = collect(predictor.load(checkpoint, "cpu", scales=scales), images)
    assert paths == [*map(str, images)]
    place(pictures_on)
    model = predictor.load(checkpoint, "cpu", scales=scales)
    assert model.makes_on_gpu
    mixed = [images[0], images[1].read_bytes(), *images[2:]]
    for chosen in (images, iter(images), mixed):
        model = predictor.load(checkpoint, "cpu", scales=scales)
        again, pictures = collect(model, chosen, num_workers=num_workers)
        assert [path for path in again if path] == [path for path in paths if path in again]
        assert len(again) == len(paths)
        for ours, plain in zip(pictures, expected, strict=True):
            assert np.abs(ours.astype(int) - plain).max() <= (1 if pictures_on == "auto" else 3)
    assert list(model.predict([], num_workers=num_workers)) == []


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("pictures_on", ["auto", "gpu"])
def test_an_unreadable_image_is_one_line_after_the_batches_before_it(
    num_workers: int,
    pictures_on: str,
    place: Callable[..., None],
    checkpoint: Path,
    shared_dataset: Path,
    tmp_path: Path,
) -> None:
    images = sorted((shared_dataset / "images" / "test-resized").iterdir())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    place(pictures_on)
    records = predictor.load(checkpoint, "cpu").predict([*images[:4], broken, *images[4:]], 4, num_workers)
    assert [Path(next(records).path) for _ in range(4)] == images[:4]
    with pytest.raises(InputError, match=rf"^cannot read image {broken}: [^\n]+$"):
        next(records)


@pytest.mark.parametrize("pictures_on", ["auto", "gpu"])
def test_a_test_comes_to_the_same(
    pictures_on: str, place: Callable[..., None], checkpoint: Path, shared_dataset: Path, tmp_path: Path
) -> None:
    arguments = [*make_small_run(shared_dataset, tmp_path), "--BOOTSTRAP_SAMPLES=0"]
    results, names = {}, {}
    for way in ("cpu", pictures_on):
        place(way)
        testing.main(arguments)
        results[way] = json.loads((tmp_path / "predictions" / "evaluate_result.json").read_text())["metrics"]
        names[way] = testing.name_rows(testing.open_model(CPU, []), ["a/b.jpg"], [])
    assert results["cpu"] == pytest.approx(results[pictures_on], abs=0.05)
    assert names["cpu"] != names[pictures_on], "an interrupted test does not go on with other pictures"


@pytest.mark.parametrize(("begun", "later"), [("gpu", "cpu"), ("cpu", "gpu")])
def test_parts_are_of_pictures_that_were_made_in_one_place(
    begun: str,
    later: str,
    place: Callable[..., None],
    checkpoint: Path,
    shared_dataset: Path,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    pytest.importorskip("pyarrow", reason="Parquet files need pyarrow (requirements-parquet.txt)")
    listed = tmp_path / "list.txt"
    images = sorted((shared_dataset / "images" / "test-resized").iterdir())
    listed.write_text("".join(f"{image}\n" for image in images))
    arguments = [*make_small_run(shared_dataset, tmp_path), f"--MODEL_PATH={checkpoint}", "--PREDICTION_FILES=parts"]
    arguments.append(f"--TEST_IMAGES_DIR={listed}")
    place(begun)
    testing.main(arguments)
    settings = json.loads((tmp_path / "predictions" / "parts" / "_parts.json").read_text())["settings"]
    assert settings["PICTURES_ON"] == begun
    place(later)
    expected = f"parts was begun with PICTURES_ON {begun}, and it is {later}: delete"
    assert expected in fails(testing.main, arguments)


def test_a_gpu_is_needed_where_it_is_named(
    checkpoint: Path, shared_dataset: Path, tmp_path: Path, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "PICTURES_ON is gpu, and the device is cpu: set it to auto, or DEVICE to a GPU"
    arguments = [*make_small_run(shared_dataset, tmp_path), "--DEVICE=cpu", "--PICTURES_ON=gpu"]
    assert expected in fails(testing.main, arguments)
    monkeypatch.setattr(training, "read_data", None)  # before data and weights are read
    assert expected in fails(training.main, arguments)
    with pytest.raises(InputError, match=expected):
        predictor.load(checkpoint, "cpu", pictures_on="gpu")
