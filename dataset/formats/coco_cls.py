"""coco_cls: `images/<split>-resized/a.jpg` and `labels/<split>/a.cls` (see dataset/label_files.py), `classes.txt`."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.class_names import read_classes, show_names, write_classes
from dataset.files import require_listable, require_stems
from dataset.formats.base import Format, SplitSource
from dataset.label_files import read_label_files, write_label_files
from dataset.splits import find_folders, find_named, require_one
from dataset.table import Table
from utils import InputError


def list_splits(root: Path) -> list[str]:
    folders = find_folders(root / "labels") if (root / "images").is_dir() else {}
    endings = {split: {_find_ending(folder) for folder in folders[split]} for split in folders}
    if not any(".cls" in found for found in endings.values()):
        # without a label only the folders of images tell: others have folders of labels with these names, too
        splits = [split for split in folders if folders[split] and not any(map(_holds_files, folders[split]))]
        return [split for split in splits if find_named(root / "images", "{}-resized", split)]
    return [split for split in folders if endings[split] - {".txt"}]


def holds_labels(folder: Path) -> bool:
    return _find_ending(folder) == ".cls"


def _holds_files(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_file() for entry in entries)


def _find_ending(folder: str | Path) -> str | None:
    """.cls, or .txt, of the files in `folder`; of those in folders below, where it has neither."""
    ending, folders = None, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".cls"):
                return ".cls"  # the first ends it: there may be a million
            if entry.name.endswith(".txt"):
                ending = ".txt"
            elif entry.is_dir():
                folders.append(entry.path)
    return ending or next(filter(None, map(_find_ending, folders)), None)


def files_of_split(root: Path, split: str) -> list[Path]:
    return [*find_image_folders(root, split), *find_folders(root / "labels")[split]]


def find_image_folders(root: Path, split: str) -> list[Path]:
    """The folders of the images of a split; the usual one where there is none."""
    return find_named(root / "images", "{}-resized", split) or [root / FORMAT.images_folder(split)]


def read(source: SplitSource) -> Table:
    root, split = source.root, source.split
    images_dir = source.images_dir or require_one(find_image_folders(root, split), split)
    labels_dir = source.labels_dir or require_one(find_folders(root / "labels")[split], split)
    if not images_dir.is_dir():
        names = show_names([f"{path.name}/" for path in sorted(images_dir.parent.glob("*")) if path.is_dir()]) or "none"
        raise InputError(
            f"there is no folder {images_dir} for the images of {labels_dir} (folders beside it: {names}): rename the "
            f"one that is meant{f', or set {split.upper()}_IMAGES_DIR' if split != 'val' else ''}"
        )
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
    takes_folders=True,
    holds_labels=holds_labels,
    split_by_folder=True,
)
