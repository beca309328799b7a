"""image_folder: `<split>/<class>/a.jpg`, one label an image; `classes.txt`, where it is there, orders the classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dataset.files import IMAGE_EXTENSIONS, list_files
from dataset.formats.base import SPLITS, SplitSource
from dataset.formats.rows import Rows, find_class, mark, read_classes, require_listable, write_classes
from dataset.table import Table
from utils import InputError


def list_class_folders(root: Path, split: str) -> list[str]:
    """The class folders of a split; those with a dot before their name are none."""
    folder = root / split
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def list_image_folder_splits(root: Path) -> list[str]:
    # a folder `images` beside one `labels` is another tool's layout, not two classes
    folders = {split: list_class_folders(root, split) for split in SPLITS}
    return [split for split, found in folders.items() if found and not {"images", "labels"} <= set(found)]


def read_image_folder(source: SplitSource) -> Table:
    root, split = source.root, source.split
    found = {name for any_split in SPLITS for name in list_class_folders(root, any_split)}
    names = read_classes(root, sorted(found))
    columns = {name: column for column, name in enumerate(names)}
    rows = Rows(root / split, root, names)
    files, _ = list_files(root / split, IMAGE_EXTENSIONS)
    for file in files:
        name, slash, _ = file.partition("/")
        if name[0] == ".":
            continue

        def where(file: str = file) -> str:
            return str(root / split / file)

        if not slash:
            raise InputError(f"{where()} lies in no class folder: move it into {root / split}/<class>/")
        rows.add(file, mark([find_class(name, columns, where)], (), len(names), where), where)
    return rows.make_table(root / split)


def name_image_folder_images(table: Table, names: list[str]) -> list[str]:
    """Each name under its class's folder. Raises InputError for an image of two labels, or of none."""
    for path, row in zip(table.paths, table.targets, strict=True):
        if np.count_nonzero(row == 1) != 1 or (row == -1).any():
            present, unknown = ([table.classes[column] for column in np.flatnonzero(row == value)] for value in (1, -1))
            raise InputError(
                f"{path} has {len(present)} label(s) {', '.join(present[:3])}, and {len(unknown)} unknown: an "
                "image_folder takes images of exactly one; choose another format"
            )
    for name in table.classes:
        if "/" in name or "\0" in name or name[0] == "." or len(os.fsencode(name)) > 255:
            raise InputError(f"the class name {name!r} cannot be that of a folder: rename it, or choose another format")
    require_listable(names)
    if _all_in(names, folders := name_folders(table)) and shorten_image_folder_names(table, names) == names:
        return names  # so they would come back as they are
    return [f"{folder}{name}" for folder, name in zip(folders, names, strict=True)]


def shorten_image_folder_names(table: Table, names: list[str]) -> list[str]:
    """Names without the class's folder, unless the classes have images of the same name."""
    folders = name_folders(table)
    short = [name.removeprefix(folder) for folder, name in zip(folders, names, strict=True)]
    stems = {name.rpartition(".")[0] for name in short}
    return short if _all_in(names, folders) and len(stems) == len(names) else names


def name_folders(table: Table) -> list[str]:
    return [f"{table.classes[column]}/" for column in (table.targets == 1).argmax(axis=1)]


def _all_in(names: list[str], folders: list[str]) -> bool:
    return all(name.startswith(folder) for name, folder in zip(names, folders, strict=True))


def write_image_folder(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    for name in table.classes:
        (root / split / name).mkdir(parents=True, exist_ok=True)
