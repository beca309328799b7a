"""config.py: the choices it offers are what the registries hold; its classes are COCO's; system defaults hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest

import calibration
import class_activation_maps
import config
import export_onnx
import heads
import losses
import overrides
import serving
import testing
import thresholds
from dataset import augmentations, formats, resize_rules
from evaluation import activation_maps, prediction_files, prediction_parts
from export import engines, export_formats
from trainer import loggers, optimizers, schedules

RECIPES = Path(config.__file__).parent / "recipes"
MODULES = (config, testing, export_onnx, class_activation_maps, serving)
REGISTRIES: dict[str, Iterable[str]] = {
    "HEAD": heads.HEADS,
    "LOSS": losses.LOSSES,
    "LOSS_REDUCTION": losses.REDUCTIONS,
    "ENTRY_WEIGHTS": losses.ENTRY_WEIGHTS,
    "OPTIMIZER": optimizers.OPTIMIZERS,
    "SCHEDULE": schedules.SCHEDULES,
    "RESIZE_RULE": resize_rules.RESIZE_RULES,
    "AUGMENTATION": augmentations.AUGMENTATIONS,
    "AUGMENTATION_POLICY": augmentations.POLICIES,
    "TEST_ENGINE": ("auto", *engines.ENGINES_OF["checkpoint"]),
    "SERVING_ENGINE": engines.ENGINES_OF["checkpoint"],
    "MAP_METHOD": activation_maps.METHODS,
    "PREDICTION_FILES": (*prediction_files.PREDICTION_FILES, prediction_parts.PARTS),
    "EXPORT_FORMATS": export_formats.EXPORT_FORMATS,
    "LOGGERS": loggers.LOGGERS,
    "CALIBRATION": ("none", *calibration.METHODS),
    "THRESHOLD_GOAL": (*thresholds.GOALS, *thresholds.PROMISES),
    "DATASET_FORMAT": ("auto", *formats.FORMATS),
}


@pytest.mark.parametrize("name", REGISTRIES)
def test_choices_are_the_registrys(name: str) -> None:
    (annotation,) = (c.annotation for module in MODULES for c in overrides.list_constants(module) if c.name == name)
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    choices = get_args(annotation)
    assert (get_args(choices[0]) if choices[1:] == (...,) else choices) == tuple(REGISTRIES[name])


def test_every_constant_says_what_it_means() -> None:
    assert not [c.name for module in MODULES for c in overrides.list_constants(module) if not c.comment]


def test_the_sections_that_do_not_decide_what_is_learned() -> None:
    """All others name the checkpoint file: one without its * would let two configurations share a file."""
    sections = dict.fromkeys(c.section for c in overrides.list_constants(config))
    assert [section for section in sections if not section.endswith("*")] == [
        "Your data", "Files and folders", "Reading", "Testing", "Thresholds and calibration", "Machine",
        "Interruptions", "Reports", "Classes",
    ]  # fmt: skip


def test_defaults_of_the_layout() -> None:
    home = Path.home() / "ms-coco"
    assert home / "ms-coco-dataset" / "images" / "train-resized" == config.TRAIN_IMAGES_DIR
    assert home / "ms-coco-dataset" / "labels" / "train" == config.TRAIN_LABELS_DIR
    assert home / "trained_models" / "best_model.pt" == config.MODEL_PATH == config.BEST_MODEL_PATH
    assert (config.MODEL_NAME, config.NUM_CLASSES, config.NUM_WORKERS) == ("resnet18", 80, None)


def test_classes_are_cocos_in_order(photographs: Path) -> None:
    names = (photographs / "coco-mini80" / "classes.txt").read_text().split("\n")
    assert list(config.CLASSES) == [name for name in names if name]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    is_space = recipe.stem.startswith("search_")
    overrides.apply([str(recipe)], config, varied={} if is_space else None)
    if recipe.stem != "demo":  # it names all constants that the demo depends on, so that no edit of config.py breaks it
        assert len(recipe.read_text().splitlines()) <= 30
