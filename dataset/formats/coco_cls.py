"""coco_cls: `images/<split>-resized/a.jpg` and `labels/<split>/a.cls` (see dataset/label_files.py), `classes.txt`."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.class_names import read_classes, write_classes
from dataset.files import require_listable, require_stems
from dataset.formats.base import Format, SplitSource
from dataset.label_files import read_label_files, write_label_files
from dataset.table import SPLITS, Table


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / "images").is_dir() and holds_labels(root / "labels" / split)]


def holds_labels(folder: Path) -> bool:
    """Whether `folder` is there, and does not hold .txt files alone, which are YOLO's boxes."""
    if not folder.is_dir():
        return False
    has_boxes = False
    with os.scandir(folder) as entries:
        for entry in entries:  # the first file of labels ends it
            if entry.name.endswith(".cls"):
                return True
            has_boxes = has_boxes or entry.name.endswith(".txt")
    return not has_boxes


def files_of_split(root: Path, split: str) -> list[Path]:
    return [root / FORMAT.images_folder(split), root / "labels" / split]


def read(source: SplitSource) -> Table:
    images_dir = source.images_dir or source.root / FORMAT.images_folder(source.split)
    labels_dir = source.labels_dir or source.root / "labels" / source.split
    classes, options = read_classes(source.root, source.classes), source.options
    images, targets = read_label_files(
        images_dir, labels_dir, len(classes), options.cache_folder, options.check_label_files
    )
    return Table([f"{images_dir}{os.sep}{name}" for name in images], targets, classes)


def name_images(table: Table, names: list[str]) -> list[str]:
    require_listable(names)
    require_stems(names)
    return names


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_label_files(root / "labels" / split, names, table.targets)


FORMAT = Format(
    expects="images/ and labels/train/ (coco_cls)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="images/{split}-resized",
    name_images=name_images,
    precedence=1,  # this project's own layout, which may lie beside the lists it was made from
    known_by_labels_dir=True,
    takes_folders=True,
    split_by_folder=True,
)
