"""config.py: the choices it offers are what the registries hold; its classes are COCO's; system defaults hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest

import activation_maps
import augmentations
import calibration
import config
import conversion
import dataset_formats
import engines
import heads
import losses
import optimization
import overrides
import prediction_files

REGISTRIES: dict[str, Iterable[str]] = {
    "HEAD": heads.HEADS,
    "LOSS": losses.LOSSES,
    "LOSS_REDUCTION": losses.REDUCTIONS,
    "ENTRY_WEIGHTS": losses.ENTRY_WEIGHTS,
    "OPTIMIZER": optimization.OPTIMIZERS,
    "SCHEDULE": optimization.SCHEDULES,
    "RESIZE_RULE": augmentations.RESIZE_RULES,
    "AUGMENTATION": augmentations.AUGMENTATIONS,
    "AUGMENTATION_POLICY": augmentations.POLICIES,
    "TEST_ENGINE": ("auto", *engines.ENGINES),
    "SERVING_ENGINE": engines.ENGINES,
    "MAP_METHOD": activation_maps.METHODS,
    "PREDICTION_FILES": prediction_files.PREDICTION_FILES,
    "EXPORT_FORMATS": conversion.FORMATS,
    "CALIBRATION": ("none", *calibration.METHODS),
    "DATASET_FORMAT": ("auto", *dataset_formats.FORMATS),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_choices_are_the_registrys(name: str) -> None:
    (annotation,) = (c.annotation for c in overrides.list_constants(config) if c.name == name)
    choices = get_args(annotation)
    assert (get_args(choices[0]) if choices[1:] == (...,) else choices) == tuple(REGISTRIES[name])


def test_every_constant_says_what_it_means() -> None:
    assert not [c.name for c in overrides.list_constants(config) if not c.comment]


def test_defaults_of_the_layout() -> None:
    home = Path.home() / "ms-coco"
    assert home / "ms-coco-dataset" / "images" / "train-resized" == config.TRAIN_IMAGES_DIR
    assert home / "ms-coco-dataset" / "labels" / "train" == config.TRAIN_LABELS_DIR
    assert home / "trained_models" / "best_model.pt" == config.MODEL_PATH == config.BEST_MODEL_PATH
    assert (config.MODEL_NAME, config.NUM_CLASSES, config.NUM_WORKERS) == ("resnet18", 80, None)


def test_classes_are_cocos_in_order(photographs: Path) -> None:
    names = (photographs / "coco-mini80" / "classes.txt").read_text().split("\n")
    assert list(config.CLASSES) == [name for name in names if name]


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.py")), ids=lambda path: path.stem
)
def test_every_recipe_is_valid(recipe: Path) -> None:
    overrides.apply([str(recipe)], config)
    assert len(recipe.read_text().splitlines()) <= 30
