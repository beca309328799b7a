"""What the constants of config.py name, for training and for the scripts.

This is the data set, its splits, the test images, and the policy by which thresholds are tuned.

    table = read_split("train")
    images = read_test_images(predictor)
    policy = choose_policy(num_classes=20)

Reads config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import config
import dataset_readers
import distributed
import utils
from dataset import bad_images, label_corrections
from dataset.class_names import show_names, to_nfc
from dataset.formats.base import SPLITS, ReadOptions
from dataset.image_selection import select_images
from dataset.label_corrections import Corrections
from dataset.table import Table, map_classes
from evaluation import slices
from evaluation.prediction_files import find_base
from models import devices
from models.devices import DeviceSettings
from predictor import Predictor
from thresholds import Policy
from utils import InputError

if TYPE_CHECKING:
    from dataset.augmentations import Augmentation


def make_augmentation() -> Augmentation:
    """The augmentation of the constants: what is drawn for each training image."""
    from dataset.augmentations import Augmentation  # with torchvision's transforms, which testing does without

    return Augmentation(
        name=config.AUGMENTATION,
        crop_scale_min=config.CROP_SCALE_MIN,
        policy=config.AUGMENTATION_POLICY,
        color_jitter=config.COLOR_JITTER,
        rotation_degrees=config.ROTATION_DEGREES,
        erasing_probability=config.ERASING_PROBABILITY,
        erasing_max_share=config.ERASING_MAX_SHARE,
    )


def choose_settings(device: torch.device) -> DeviceSettings:
    """How training uses `device`."""
    return devices.choose_settings(
        device,
        precision=config.MIXED_PRECISION,
        num_workers=config.NUM_WORKERS,
        pictures_on=config.PICTURES_ON,
        compiles=config.COMPILE,
        changes_pixels=make_augmentation().changes_pixels,
    )


def choose_test_settings(device: torch.device) -> DeviceSettings:
    """How a saved model, which computes in float32, uses `device`."""
    return devices.choose_settings(device, num_workers=config.NUM_WORKERS, pictures_on=config.PICTURES_ON)


class ImagesToPredict(NamedTuple):
    """The images of TEST_SPLIT, with labels if there are any."""

    table: Table  # the model's classes, in its order; all targets are -1 (unknown) where there are no labels
    has_labels: bool
    bad: dict[str, str]  # {path: why it cannot be read} of images that are left out

    @property
    def paths(self) -> list[str]:
        """The image files, in the order of the table."""
        return self.table.paths


def read_test_images(model: Predictor) -> ImagesToPredict:
    """Read the images of TEST_SPLIT. Classes are matched with the model's by name.

    For the split "test" any images without labels will do: TEST_IMAGES_DIR is a folder, a file, a pattern or a list.
    Raises InputError where the data set has other classes than the model, or where it does not have this split, and
    where an image of the test split is in the train split, too.
    """
    try:
        return _read_test_images(model)
    except InputError as error:
        trained_on = model.metadata.get("config", {}).get("DATASET_FOLDER")
        if config.DATASET_FOLDER.expanduser().is_dir() or trained_on in (None, str(config.DATASET_FOLDER)):
            raise
        advice = f"the model was trained on {trained_on}"
        if config.MODEL_PATH.with_suffix(".json").is_file():
            advice += f": `python testing.py {config.MODEL_PATH}` takes all constants of its run"
        raise InputError(f"{error}; {advice}") from error


def _read_test_images(model: Predictor) -> ImagesToPredict:
    """`read_test_images`, whose errors know nothing of the model's run."""
    split = config.TEST_SPLIT
    has_labels = has_split(split)
    if has_labels:
        table = map_classes(read_split(split), model.classes)
        if split == "test":
            require_unseen(table)
    elif split == "test":
        paths = list_unlabelled_images(split)
        unknown = np.broadcast_to(np.int8(-1), (len(paths), len(model.classes)))  # takes the memory of one entry
        table = Table(paths, unknown, model.classes)
    else:
        message = f"TEST_SPLIT is {split}, but {config.DATASET_FOLDER} has no {split} split of its own"
        if split == "val":
            message += ", which training splits off the train split"
        raise InputError(message)
    bad = {}
    if config.BAD_IMAGES == "skip":
        table, bad = bad_images.leave_out_bad_images(table, config.CACHE_FOLDER)
    return ImagesToPredict(table, has_labels, bad)


def require_unseen(table: Table) -> None:
    """Raise InputError where an image of the test split, `table`, is in the train split, too.

    Nothing is read where that cannot be: where folders say the split, or the train split has another format and so
    lies elsewhere; nor where no label is known, so that nothing is measured. A train split that cannot be read is said.
    """
    format = choose_format("test")
    if dataset_readers.find_format(format).split_by_folder or not (table.targets >= 0).any():
        return
    try:
        train_paths = read_split("train").paths if has_split("train") and choose_format("train") == format else []
    except InputError as error:
        utils.warn(f"it is not known whether test images are trained on: {error}")
        return
    if shared := set(train_paths).intersection(table.paths):
        raise InputError(
            f"{len(shared)} images are in train and in test, the first: {min(shared)}; remove them from one, or name "
            "them in EXCLUDE_LIST, which leaves them out of train, and train again"
        )


def list_unlabelled_images(split: str) -> list[str]:
    """The image files of a split "train" or "test" without labels: TRAIN_IMAGES_DIR or TEST_IMAGES_DIR.

    Raises InputError where there is none.
    """
    name = f"{split.upper()}_IMAGES_DIR"
    where: Path = getattr(config, name)
    paths = select_images(where)
    if paths != [str(where.expanduser())] or where.expanduser().exists():
        return paths
    if where != config.IMAGES_DIR / f"{split}-resized" or (format := choose_format(split)) == "coco_cls":
        raise InputError(f"{name} is {where}: there is no such folder or file")
    message = f"{config.DATASET_FOLDER}, read as {format}, has no {split} split: set {name} to a folder of images"
    if split == "test":
        splits = " or ".join(list_splits())
        message += f", an image or a pattern such as 'photos/*.jpg' to predict, or TEST_SPLIT to {splits}"
        message += "; or make one: `python dataset_tools.py split`, and then train again"
    raise InputError(message)


def sample_split(split: str, count: int) -> tuple[Table, bool]:
    """`count` evenly spaced images of a split, or all where there are fewer, and whether they have labels.

    Without labels the split is "train" or "test", and the table has no classes. With BAD_IMAGES "skip", those of the
    chosen images that are damaged are left out; no other image is tried. Raises InputError where there are no images.
    """
    has_labels = has_split(split)
    if has_labels:
        table = read_split(split)
    else:
        paths = list_unlabelled_images(split)
        table = Table(paths, np.zeros((len(paths), 0), np.int8), ())
    count = min(count, len(table))
    table = table.select([number * len(table) // count for number in range(count)])
    if config.BAD_IMAGES == "skip":
        table, _ = bad_images.leave_out_bad_images(table, config.CACHE_FOLDER)
    return table, has_labels


def find_training_images(model: Predictor) -> dict[str, str]:
    """{name in the model's reference: path} of the training images that lie where the constants look for them."""
    if model.reference is None or not has_split("train"):
        return {}
    base = Path(find_base(read_split("train").paths))
    return {name: str(base / name) for name in model.reference.names if (base / name).is_file()}


def choose_policy(num_classes: int) -> Policy:
    """The policy of the THRESHOLD_* constants and their neighbours.

    Raises InputError where MIN_LABELS is more than `num_classes`.
    """
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
        abstain=config.ABSTAIN,
    )


def choose_format(split: str) -> str:
    """DATASET_FORMAT or, for "auto", the format that DATASET_FOLDER is recognised as."""
    if config.DATASET_FORMAT != "auto":
        return config.DATASET_FORMAT
    _, labels_dir = _find_folders(split)
    return dataset_readers.recognise_format(config.DATASET_FOLDER, labels_dir)


def has_other_test_images() -> bool:
    """Whether TEST_IMAGES_DIR was set to a folder other than that of the data set's test split."""
    return config.TEST_IMAGES_DIR != config.IMAGES_DIR / "test-resized"


def has_split(split: str) -> bool:
    """Whether there are labels of `split`. Other test images have them only if TEST_LABELS_DIR was set, too."""
    if split == "test" and has_other_test_images() and config.TEST_LABELS_DIR == config.LABELS_DIR / "test":
        return False
    _, labels_dir = _find_folders(split)
    return dataset_readers.has_split(config.DATASET_FOLDER, config.DATASET_FORMAT, split, labels_dir)


def list_splits() -> list[str]:
    """Which of "train", "val" and "test" DATASET_FOLDER has labels of. Raises InputError where it has none."""
    splits = [split for split in SPLITS if has_split(split)]
    if not splits:
        format = choose_format("train")
        dataset_readers.require_format(config.DATASET_FOLDER, format)
        raise InputError(f"{config.DATASET_FOLDER} has no labels of any split in the format {format}")
    return splits


def read_split(split: str, options: ReadOptions | None = None) -> Table:
    """The images and labels of `split`, read with `options`; None: those of the constants.

    The training split includes the images of EXTRA_DATASET_FOLDERS. Labels are as LABEL_CORRECTIONS has them. Images of
    EXCLUDE_LIST are left out, except from the test split. With a `group_column` among the options, groups are its
    cells, whatever GROUP_PATTERN says.
    """
    folders: list[str | Path] = [config.DATASET_FOLDER]
    if split == "train":
        folders += config.EXTRA_DATASET_FOLDERS
    images_dir = labels_dir = None
    if choose_format(split) == "coco_cls":
        images_dir, labels_dir = _find_folders(split)
    table = dataset_readers.read_dataset(
        folders,
        config.DATASET_FORMAT,
        split,
        images_dir=images_dir,
        labels_dir=labels_dir,
        classes=config.CLASSES,
        group_pattern=None if options and options.group_column else config.GROUP_PATTERN,
        options=options or make_options(),
    )
    table = correct_labels(table, split)
    if config.EXCLUDE_LIST and split != "test":
        table = dataset_readers.exclude(table, config.EXCLUDE_LIST, config.DATASET_FOLDER)
    return table


def read_corrections() -> Corrections | None:
    """What LABEL_CORRECTIONS holds; None where it is None."""
    if config.LABEL_CORRECTIONS is None:
        return None
    return label_corrections.read_corrections(config.LABEL_CORRECTIONS, config.DATASET_FOLDER)


def correct_labels(table: Table, split: str) -> Table:
    """The `table` of `split` with the labels of LABEL_CORRECTIONS, and says how many of them it has.

    Raises InputError for what is wrong in that file, or does not fit the labels that the data set has now.
    """
    corrections = read_corrections()
    if corrections is None:
        return table
    corrected = label_corrections.correct_labels(table, corrections)
    if distributed.is_first():
        utils.say(
            f"{corrections.file}: of the labels of {split}, {corrected.num_changed:,} are corrected and "
            f"{corrected.num_confirmed:,} confirmed"
        )
    return corrected.table


def read_slicings(names: Sequence[str], paths: Sequence[str]) -> dict[str, dict[str, NDArray[np.intp]]]:
    """The rows of each slice of `paths`, images of TEST_SPLIT: {name of `names` (SLICES): {slice: rows}}.

    A name is a column of the data set's csv, or a regular expression with one group, which is searched in whole paths.
    Raises InputError for what is neither, for what is both, for a pattern that finds nothing, and for too many slices.
    """
    format = choose_format(config.TEST_SPLIT)
    columns = dataset_readers.list_columns(config.DATASET_FOLDER, config.TEST_SPLIT) if format == "csv" else []
    slicings = {}
    for name in names:
        is_column, fault = to_nfc(name) in columns, slices.find_fault(name)
        if is_column and not fault:
            raise InputError(
                f"SLICES {name!r} is a column of the csv, and a regular expression with one group, too: rename the "
                f"column, or write the expression as '(?:){name}'"
            )
        if not fault:
            slicings[name] = slices.find_rows(name, slices.find_in_paths(name, paths))
        elif is_column:
            slicings[name] = slices.find_rows(name, read_column(to_nfc(name), paths))
        else:
            found = f"{config.DATASET_FOLDER} is read as {format}, and columns are only read from the format csv"
            if columns:
                found = f"the csv of {config.TEST_SPLIT} has {show_names(columns)}"
            raise InputError(
                f"SLICES {name!r} is neither a column ({found}) nor a regular expression over paths with one group "
                f"({fault}; on the command line, one that is all a group has quotes of its own: \"'(a|b)'\")"
            )
    return slicings


def read_column(name: str, paths: Sequence[str]) -> list[str]:
    """The cells of the column `name` of the data set's csv, for the images of `paths`, all of TEST_SPLIT."""
    table = read_split(config.TEST_SPLIT, replace(make_options(), group_column=name))
    cells = dict(zip(table.paths, table.groups or (), strict=True))
    return [cells[path] for path in paths]


def advise_on_labels(split: str) -> str:
    """Which constants to look at where no image of `split` has a label: they say where its labels are."""
    format = choose_format(split)
    if format == "coco_cls":
        name, folder = {
            "train": ("TRAIN_LABELS_DIR", config.TRAIN_LABELS_DIR),
            "val": ("LABELS_DIR", config.LABELS_DIR),
            "test": ("TEST_LABELS_DIR", config.TEST_LABELS_DIR),
        }[split]
        return f"is {name} right? It is {folder}"
    advice = f"is DATASET_FOLDER right? {config.DATASET_FOLDER} is read as {format} (DATASET_FORMAT)"
    if format == "csv":
        advice += f", with LABEL_SEPARATOR {config.LABEL_SEPARATOR!r} between two names"
    return advice


def make_options(run_commands: bool = True) -> ReadOptions:
    """The constants that the readers of some formats depend on. Without `run_commands`, SHARD_COMMANDS is False."""
    return ReadOptions(
        no_label_names=config.NO_LABEL_NAMES,
        unknown_names=config.UNKNOWN_NAMES,
        separator=config.LABEL_SEPARATOR,
        minus_one=config.MINUS_ONE,
        label_columns=config.LABEL_COLUMNS,
        count_crowds=config.COUNT_CROWDS,
        cache_folder=config.CACHE_FOLDER,
        check_label_files=config.CHECK_LABEL_FILES,
        shard_cache_gb=config.SHARD_CACHE_GB,
        shard_commands=config.SHARD_COMMANDS and run_commands,
    )


def _find_folders(split: str) -> tuple[Path | None, Path | None]:
    """The folders of images and labels of `split` in the format coco_cls; None: the format's usual folder."""
    if split == "train":
        return config.TRAIN_IMAGES_DIR, config.TRAIN_LABELS_DIR
    if split == "test":
        return config.TEST_IMAGES_DIR, config.TEST_LABELS_DIR
    return None, None
