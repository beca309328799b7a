"""coco_cls: `images/<split>-resized/a.jpg` and `labels/<split>/a.cls` (see dataset/label_files.py), `classes.txt`."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.files import require_stems
from dataset.formats.base import SPLITS, SplitSource
from dataset.formats.rows import read_classes, require_listable, write_classes
from dataset.label_files import read_label_files, write_label_files
from dataset.table import Table


def list_coco_cls_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / "images").is_dir() and (root / "labels" / split).is_dir()]


def read_coco_cls(source: SplitSource) -> Table:
    images_dir = source.images_dir or source.root / coco_cls_images(source.split)
    labels_dir = source.labels_dir or source.root / "labels" / source.split
    names, options = read_classes(source.root, source.classes), source.options
    images, targets = read_label_files(
        images_dir, labels_dir, len(names), options.cache_folder, options.check_label_files
    )
    return Table([f"{images_dir}{os.sep}{name}" for name in images], targets, names)


def coco_cls_images(split: str) -> str:
    return f"images/{split}-resized"


def name_coco_cls_images(table: Table, names: list[str]) -> list[str]:
    require_listable(names)
    require_stems(names)
    return names


def write_coco_cls(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_label_files(root / "labels" / split, names, table.targets)
