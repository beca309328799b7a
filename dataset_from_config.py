"""The data set that config.py names, for the scripts: which splits it has, and each as a table."""

from __future__ import annotations

from pathlib import Path

import config
import dataset_readers
from dataset_formats import SPLITS, ReadOptions
from dataset_table import Table
from utils import InputError


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
