"""trainer/feature_cache.py: training the head on kept features is training it on images, only quicker."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_small_run
from float64 import float64

import models_factory
import training
from dataset import augmentations, loading
from dataset_readers import read_dataset
from models import checkpoints
from models_factory import MultiLabelModel
from trainer import feature_cache
from utils import InputError


@pytest.fixture
def frozen_run(shared_dataset: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that is frozen for two epochs of three."""
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "own.pth")
    own = ["--NUM_EPOCHS=3", "--FREEZE_BACKBONE=True", "--UNFREEZE_BACKBONE_EPOCH=3", "--RESUME=never"]
    return [*make_small_run(shared_dataset, tmp_path), *own, f"--PRETRAINED_WEIGHTS={tmp_path / 'own.pth'}"]


def train(arguments: list[str], folder: Path, **constants: object) -> dict[str, Any]:
    """The state of a run after its last epoch."""
    folder.mkdir(exist_ok=True)
    options = [f"--{name}={value}" for name, value in constants.items()]
    training.main([*arguments, f"--TRAINED_MODELS_FOLDER={folder}", *options])
    (last,) = folder.glob("*/*/last.pt")
    return checkpoints.load(last)


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Alike as far as rounding goes: features are kept in float32, folded BatchNorm adds up in another order."""
    for key, value in one["model_state"].items():
        torch.testing.assert_close(value, other["model_state"][key], rtol=1e-5, atol=1e-6)
    histories = [last["training_state"]["state"]["history"] for last in (one, other)]
    for record, expected in zip(*histories, strict=True):
        assert record["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)
        assert record["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)


@pytest.mark.parametrize(("augmentation", "views"), [("none", 1), ("crop_flip", 2)])
def test_same_weights_as_without_it(
    frozen_run: list[str], tmp_path: Path, augmentation: str, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One view without augmentation, or as many views as frozen epochs: the pictures are the naive loop's."""
    frozen_run += ["--NUM_EPOCHS=2"]  # the third would train the backbone
    with float64():
        naive = train(frozen_run, tmp_path / "naive", FROZEN_FEATURE_VIEWS=0, AUGMENTATION=augmentation)
        assert not (tmp_path / "cache").exists()
        quick = train(frozen_run, tmp_path / "quick", FROZEN_FEATURE_VIEWS=views, AUGMENTATION=augmentation)
    assert_alike(quick, naive)
    # also of whole training images, which new images are compared with: without augmentation they are there already
    assert len(list((tmp_path / "cache").iterdir())) == views + 1 + (augmentation != "none")

    def refuse(*_: object) -> None:
        raise AssertionError("features are computed again")

    monkeypatch.setattr(feature_cache, "_compute", refuse)
    with float64():
        again = train(frozen_run, tmp_path / "again", FROZEN_FEATURE_VIEWS=views, AUGMENTATION=augmentation)
    for key, value in again["model_state"].items():
        assert torch.equal(value, quick["model_state"][key])


def test_joined_features_are_kept_and_trained_on_as_without_it(frozen_run: list[str], tmp_path: Path) -> None:
    frozen_run += ["--NUM_EPOCHS=2", "--AUGMENTATION=none", "--FEATURES=mean_and_max"]
    with float64():
        naive = train(frozen_run, tmp_path / "naive", FROZEN_FEATURE_VIEWS=0)
        quick = train(frozen_run, tmp_path / "quick", FROZEN_FEATURE_VIEWS=1)
    assert_alike(quick, naive)
    assert quick["features"] == naive["features"] == "mean_and_max"
    assert quick["model_state"]["head.linear.weight"].shape[1] == 2 * 1280
    assert feature_cache.FeatureFile(next((tmp_path / "cache").glob("*.npy"))).shape[1:] == (2560, 1, 1)


def test_too_large_is_said_and_done_the_naive_way(
    frozen_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    naive = train(frozen_run, tmp_path / "naive", FROZEN_FEATURE_VIEWS=0)
    capsys.readouterr()
    large = train(frozen_run, tmp_path / "large", FROZEN_FEATURE_VIEWS=1, FEATURE_CACHE_GB=1e-5)
    assert "frozen features are not kept: 0.000205 GB, more than FEATURE_CACHE_GB = 1e-05" in capsys.readouterr().out
    for key, value in large["model_state"].items():
        assert torch.equal(value, naive["model_state"][key])


def test_the_log_counts_the_pass_over_the_images(frozen_run: list[str], tmp_path: Path) -> None:
    train(frozen_run, tmp_path)
    (log,) = tmp_path.glob("*/*/log.csv")
    first, second, _ = csv.DictReader(log.open())
    assert float(first["preparation_seconds"]) > 0
    assert float(first["seconds"]) > float(first["preparation_seconds"])
    assert float(second["preparation_seconds"]) == 0


def test_a_network_of_the_same_tensors_and_another_name_has_features_of_its_own(
    frozen_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm has pairs that differ in the activation alone, and share their weights."""
    from models.own_backbones import OWN_BACKBONES

    class Doubled(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor, self.layer = factor, torch.nn.Conv2d(3, 4, 8, stride=8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.factor * self.layer(images)

    for name, factor in (("once", 1.0), ("twice", 2.0)):
        monkeypatch.setitem(OWN_BACKBONES, name, lambda factor=factor: Doubled(factor))
    torch.save(Doubled(1.0).state_dict(), tmp_path / "weights.pth")
    options = {"PRETRAINED_WEIGHTS": tmp_path / "weights.pth", "NUM_EPOCHS": 1, "CACHE_FOLDER": tmp_path / "cache"}
    options |= {"AUGMENTATION": "none", "FROZEN_FEATURE_VIEWS": 1, "UNFREEZE_BACKBONE_EPOCH": 0}
    kept: list[set[str]] = []
    for name in ("once", "twice"):
        train(frozen_run, tmp_path / name, MODEL_NAME=name, **options)
        kept.append({path.name for path in (tmp_path / "cache").glob("features_*.npy")})
    assert len(kept[1]) == 2 * len(kept[0])


def test_features_that_are_not_finite_end_the_run(shared_dataset: Path, tmp_path: Path) -> None:
    table = read_dataset(shared_dataset, split="test")
    model = models_factory.make_model("mobilenet_v2", 3, image_size=32)
    torch.nn.init.constant_(model.backbone.get_submodule("features.18.0").get_parameter("weight"), float("inf"))
    loader = loading.make_loader(table, augmentations.make_eval_transform("squash", 32), 5)
    with pytest.raises(InputError, match="the backbone's features are not all finite: with MIXED_PRECISION off"):
        feature_cache.read_features(
            model=model, loader=loader, table=table, shape=(1280, 1, 1), pixels="squash", folder=tmp_path
        )
    assert not [*tmp_path.glob("*.npy")]


class CountingHead(torch.nn.Module):
    """A head that wants the whole map."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.flatten(1)[:, :3]


@pytest.mark.parametrize("pools", [True, False])
def test_features_are_the_backbones(shared_dataset: Path, tmp_path: Path, pools: bool) -> None:
    table = read_dataset(shared_dataset, split="test")
    model = models_factory.make_model("mobilenet_v2", 3, image_size=64)
    model = model if pools else MultiLabelModel(model.backbone, CountingHead(), (0.5,) * 3, (0.5,) * 3)
    transform = augmentations.make_eval_transform("squash", 64)
    shape = feature_cache.measure_features(model, 64)
    assert shape == ((1280, 1, 1) if pools else (1280, 2, 2))
    loader = loading.make_loader(table, transform, 5)
    features = feature_cache.read_features(
        model=model, loader=loader, table=table, shape=shape, pixels="squash", folder=tmp_path
    )
    assert features.shape == (12, *shape)
    model.eval()
    with torch.no_grad():
        images = torch.cat([batch.images for batch in loader])
        expected = model.extract_features(images)
        np.testing.assert_allclose(model.head(torch.tensor(features[np.arange(12)])), model.head(expected), atol=1e-4)


def test_a_file_that_is_shortened_is_one_line_under_a_run_and_made_anew_by_the_next(
    shared_dataset: Path, tmp_path: Path
) -> None:
    table = read_dataset(shared_dataset, split="test")
    model = models_factory.make_model("mobilenet_v2", 3, image_size=32)
    loader = loading.make_loader(table, augmentations.make_eval_transform("squash", 32), 5)

    def read() -> feature_cache.FeatureFile:
        return feature_cache.read_features(
            model=model, loader=loader, table=table, shape=(1280, 1, 1), pixels="squash", folder=tmp_path
        )

    features = read()
    expected = features[np.arange(12)]
    (file,) = tmp_path.glob("*.npy")
    assert np.array_equal(expected, np.load(file))
    os.truncate(file, file.stat().st_size - 6)
    assert np.array_equal(features[np.array([3, 1])], expected[[3, 1]])
    with pytest.raises(InputError, match=r"\.npy was shortened by another program: the same command computes its"):
        features[np.array([11])]
    again = read()
    assert np.array_equal(again[np.arange(12)], expected)
    file.unlink()
    assert np.array_equal(again[np.arange(12)], expected), "a deleted file can be read to its end"


def test_files_are_told_apart_by_all_that_decides_features(dataset: Path) -> None:
    table = read_dataset(dataset, split="test")
    model = models_factory.make_model("mobilenet_v2", 3, image_size=32)
    keys = [feature_cache._identify(model, table, "squash"), feature_cache._identify(model, table, "crop")]
    keys.append(feature_cache._identify(model, table.select(range(11)), "squash"))
    os.utime(table.paths[3], ns=(1, 1))
    keys.append(feature_cache._identify(model, table, "squash"))
    assert keys[-1] == feature_cache._identify(model, table, "squash")
    model.backbone.get_submodule("features.0.1").get_buffer("running_mean")[2] += 1e-3
    keys.append(feature_cache._identify(model, table, "squash"))
    model.mean += 1
    keys.append(feature_cache._identify(model, table, "squash"))
    assert len(set(keys)) == len(keys)


def test_a_feature_loader_gives_the_image_loaders_batches(shared_dataset: Path) -> None:
    """Same order, targets and last batch; each epoch its view, and after the last the first again."""
    table = read_dataset(shared_dataset, split="train")
    rows = np.arange(len(table), dtype=np.float32).reshape(-1, 1, 1, 1)
    features = feature_cache.make_feature_loader([rows, rows + 1000], table, 13, shuffle=True, seed=5)
    images = loading.make_loader(table, augmentations.identity, 13, shuffle=True, seed=5)
    for epoch, offset in ((1, 0), (2, 1000), (3, 0)):
        for loader in (features, images):
            loading.set_epoch(loader, epoch)
        for ours, theirs in zip(features, images, strict=True):
            assert torch.equal(ours.targets, theirs.targets)
            expected = table.targets[(ours.images.flatten() - offset).long()]
            assert np.array_equal(ours.targets.numpy(), expected)


def test_a_feature_loader_takes_targets_and_weights_as_the_image_loader_does(shared_dataset: Path) -> None:
    table = read_dataset(shared_dataset, split="train")
    targets = np.random.default_rng(0).random(table.targets.shape, dtype=np.float32)
    weights = np.linspace(0, 2, len(table), dtype=np.float32)
    rows = np.zeros((len(table), 1, 1, 1), dtype=np.float32)
    own = {"shuffle": True, "seed": 5, "targets": targets, "weights": weights}
    features = feature_cache.make_feature_loader([rows], table, 13, **own)
    images = loading.make_loader(table, augmentations.identity, 13, **own)
    for ours, theirs in zip(features, images, strict=True):
        assert torch.equal(ours.targets, theirs.targets)
        assert torch.equal(ours.weights, theirs.weights)


def test_a_damaged_file_of_features_is_one_line_and_is_made_again(tmp_path: Path) -> None:
    whole = tmp_path / "features.npy"
    np.save(whole, np.ones((3, 4, 1, 1), np.float32))
    features = feature_cache._open_whole(whole, (3, 4, 1, 1))
    assert features is not None
    assert features[np.arange(3)].sum() == 12
    content = whole.read_bytes()
    for name, damaged in {
        "empty": b"",
        "cut short": content[:-4],
        "10^12 rows": content.replace(b"(3, 4, 1, 1), }" + b" " * 12, b"(3000000000000, 4, 1, 1), }"),
        "a header without an end": content.replace(b"}", b" "),
        "a header that is long": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        "another shape": content.replace(b"(3, 4, 1, 1)", b"(4, 3, 1, 1)"),
        "whole numbers": content.replace(b"<f4", b"<i4"),
        "another file": b"PK\x03\x04",
    }.items():
        assert damaged != content, name
        whole.write_bytes(damaged)
        assert feature_cache._open_whole(whole, (3, 4, 1, 1)) is None, name
        if name != "another shape":
            with pytest.raises(InputError, match=r"features\.npy [^\n]+$"):
                feature_cache.FeatureFile(whole)
