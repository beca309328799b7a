"""The data set that config.py names, for the scripts: which splits it has, and each as a table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import config
import dataset_readers
from dataset import bad_images
from dataset.files import list_images
from dataset.formats.base import SPLITS, ReadOptions
from dataset.table import Table, map_classes
from predictor import Predictor
from thresholds import Policy
from utils import InputError


class TestImages(NamedTuple):
    """What is predicted, in the order of its table; its targets are unknown where there are no labels."""

    table: Table
    has_labels: bool
    bad: dict[str, str]  # path: why it cannot be read, of images that are left out

    @property
    def paths(self) -> list[str]:
        return self.table.paths


def read_test_images(model: Predictor) -> TestImages:
    """The images of TEST_SPLIT, classes in the model's order by name.

    Raises InputError when the data set's classes are others than the model's, or where it has no such split; "test"
    may be any folder, without labels.
    """
    split = config.TEST_SPLIT
    has_labels = has_split(split)
    if has_labels:
        table = map_classes(read_split(split), model.classes)
    elif split == "test":
        paths = list_images(config.TEST_IMAGES_DIR)
        unknown = np.broadcast_to(np.int8(-1), (len(paths), len(model.classes)))  # one entry in memory
        table = Table(paths, unknown, model.classes)
    else:
        own = ", which training splits off the train split" if split == "val" else ""
        raise InputError(f"TEST_SPLIT is {split}, but {config.DATASET_FOLDER} has no {split} split of its own{own}")
    bad = {}
    if config.BAD_IMAGES == "skip":
        table, bad = bad_images.leave_out_bad_images(table, config.CACHE_FOLDER)
    return TestImages(table, has_labels, bad)


def choose_policy(num_classes: int) -> Policy:
    """What the constants ask of thresholds. Raises InputError where a model of `num_classes` cannot do so."""
    if num_classes < config.MIN_LABELS:
        raise InputError(f"MIN_LABELS is {config.MIN_LABELS}, but there are {num_classes} classes: set it lower")
    return Policy(
        scope=config.THRESHOLD_SCOPE,
        goal=config.THRESHOLD_GOAL,
        beta=config.THRESHOLD_BETA,
        precision=config.THRESHOLD_PRECISION,
        recall=config.THRESHOLD_RECALL,
        false_positive_cost=config.FALSE_POSITIVE_COST,
        false_negative_cost=config.FALSE_NEGATIVE_COST,
        min_labels=config.MIN_LABELS,
        max_labels=config.MAX_LABELS,
    )


def choose_format(split: str) -> str:
    """DATASET_FORMAT, or what is recognised for "auto"."""
    if config.DATASET_FORMAT != "auto":
        return config.DATASET_FORMAT
    return dataset_readers.recognise_format(config.DATASET_FOLDER, _find_folders(split)[1])


def has_other_test_images() -> bool:
    """Whether TEST_IMAGES_DIR is any folder of images, rather than the data set's test split."""
    return config.TEST_IMAGES_DIR != config.IMAGES_DIR / "test-resized"


def has_split(split: str) -> bool:
    """Whether there are labels of `split`, with other test images in another TEST_LABELS_DIR, too."""
    if split == "test" and has_other_test_images() and config.TEST_LABELS_DIR == config.LABELS_DIR / "test":
        return False
    labels_dir = _find_folders(split)[1]
    return dataset_readers.has_split(config.DATASET_FOLDER, config.DATASET_FORMAT, split, labels_dir)


def list_splits() -> list[str]:
    """Those of "train", "val", "test" that DATASET_FOLDER has labels of. Raises InputError where there is none."""
    splits = [split for split in SPLITS if has_split(split)]
    if not splits:
        raise InputError(f"{config.DATASET_FOLDER} has no labels of any split in the format {choose_format('train')}")
    return splits


def read_split(split: str) -> Table:
    """The images of `split`: those of EXTRA_DATASET_FOLDERS join in training, those of EXCLUDE_LIST are left out."""
    images_dir, labels_dir = _find_folders(split) if choose_format(split) == "coco_cls" else (None, None)
    table = dataset_readers.read_dataset(
        [config.DATASET_FOLDER, *(config.EXTRA_DATASET_FOLDERS if split == "train" else ())],
        config.DATASET_FORMAT,
        split,
        images_dir=images_dir,
        labels_dir=labels_dir,
        classes=config.CLASSES,
        group_pattern=config.GROUP_PATTERN,
        options=make_options(),
    )
    if config.EXCLUDE_LIST and split != "test":
        table = dataset_readers.exclude(table, config.EXCLUDE_LIST, config.DATASET_FOLDER)
    return table


def make_options() -> ReadOptions:
    """What reading depends on besides."""
    return ReadOptions(
        separator=config.LABEL_SEPARATOR,
        count_crowds=config.COUNT_CROWDS,
        cache_folder=config.CACHE_FOLDER,
        check_label_files=config.CHECK_LABEL_FILES,
        shard_cache_gb=config.SHARD_CACHE_GB,
    )


def _find_folders(split: str) -> tuple[Path | None, Path | None]:
    """Where coco_cls has the images and the labels of `split`; None: where it usually has them."""
    if split == "train":
        return config.TRAIN_IMAGES_DIR, config.TRAIN_LABELS_DIR
    return (config.TEST_IMAGES_DIR, config.TEST_LABELS_DIR) if split == "test" else (None, None)
