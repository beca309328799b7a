"""recipes/: each one trains two steps at a small size, validates, saves, and is read back and tested."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COLOURS, make_small_run, write_dataset

import config
import dataset_readers
import metrics
import models_factory
import overrides
import predictor
import testing
import training
from constants.spaces import Varied
from dataset import augmentations, stratified_split
from models import checkpoints

FILES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.py"))
SPACES = [path for path in FILES if path.name.startswith("search_")]  # for search.py: no constants of one run
RECIPES = [path for path in FILES if path not in SPACES]
# two steps, no frozen epoch (so no search for a head), random weights: none is to be had everywhere
SHORT = {
    "NUM_EPOCHS": 1,
    "IMAGE_SIZE": 32,
    "GROWING_IMAGE_SIZES": "()",
    "TRAIN_BATCH_SIZE": 8,
    "WARMUP_EPOCHS": 0.4,
    "HEAD_FIT": "steps",
}


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("few") / "set", num_train=16, num_test=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that does not outlive its test: the largest recipe leaves gigabytes, which need no disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe: Path, few_images: Path, folder: Path) -> None:
    """The checkpoint, read back, gives the validation that it was chosen by, and predictions for every test image."""
    overrides.apply([str(recipe)], config)
    short = SHORT | ({"HEAD": "linear"} if config.HEAD == "kernel" else {})  # steps do not train a kernel head
    chosen = {
        name: getattr(config, name) for name in ("MODEL_NAME", "HEAD", "LOSS", "OPTIMIZER", "RESIZE_RULE", "SEED")
    }
    small = [
        option for option in make_small_run(few_images, folder) if not option.startswith(("--MODEL_NAME", "--SEED"))
    ]
    arguments = [str(recipe), *small, *(f"--{name}={value}" for name, value in short.items())]
    training.main(arguments)

    (path,) = folder.glob("trained_models/*/*.pt")
    last = checkpoints.load(path.with_suffix("") / "last.pt")
    assert last["training_state"]["engine"]["schedule"]["last_epoch"] == 2
    (record,) = last["training_state"]["state"]["history"]
    assert np.isfinite(record["train_loss"])

    checkpoint = checkpoints.load(path)
    assert {name: checkpoint["config"][name] for name in chosen} == chosen | {"HEAD": short.get("HEAD", chosen["HEAD"])}
    assert_reproduces(path, checkpoint, few_images)
    testing.main(arguments)
    result = json.loads((folder / "predictions" / "evaluate_result.json").read_text())
    assert result["num_images"] == 4
    assert set(result["classes"]) == set(COLOURS)


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_spaces(space: Path) -> None:
    """Several constants vary; with the first value of each, the constants agree."""
    varied: dict[str, Varied] = {}
    overrides.apply([str(space)], config, varied=varied)
    assert len(varied) > 2
    overrides.apply([str(space), *(f"--{name}={choice.values[0]}" for name, choice in varied.items())], config)


def assert_reproduces(path: Path, checkpoint: dict[str, Any], dataset: Path) -> None:
    """In the batch that validation ran: a random network of a hundred layers magnifies any other rounding."""
    table = dataset_readers.read_dataset(dataset, split="train")
    _, val = stratified_split.split_table(table, checkpoint["config"]["VAL_SPLIT"], checkpoint["config"]["SPLIT_SEED"])
    model = models_factory.restore_model(checkpoint, path).eval()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's annotations
    resize = augmentations.make_eval_transform(checkpoint["resize_rule"], checkpoint["image_size"])
    images = torch.stack([predictor.read_image(image, resize) for image in val.paths])
    with torch.inference_mode():
        probabilities = model(images).sigmoid().numpy()
    measured = metrics.measure(probabilities, val.targets, checkpoint["best_threshold"])
    for name in ("mAP", "f1_weighted"):
        assert checkpoint["metrics"][name] == pytest.approx(measured[name], abs=1e-6)
