"""image_folder: `<split>/<class>/a.jpg`, one label an image; `classes.txt`, where it is there, orders the classes."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.class_names import find_class, name_labels, read_classes, require_unique, write_classes
from dataset.files import is_folder, list_image_files, require_listable
from dataset.formats.base import Format, SplitSource
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.table import SPLITS, Table
from utils import InputError


def list_splits(root: Path) -> list[str]:
    # a folder `images` beside one `labels` is another tool's layout, not two classes
    folders = {split: list_class_folders(root, split) for split in SPLITS}
    return [split for split, found in folders.items() if found and not {"images", "labels"} <= set(found)]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [root / split]


def list_class_folders(root: Path, split: str) -> list[str]:
    """The class folders of a split, without hidden ones."""
    folder = root / split
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and is_folder(entry))


def read(source: SplitSource) -> Table:
    root, split = source.root, source.split
    found = {name for any_split in SPLITS for name in list_class_folders(root, any_split)}
    classes = read_classes(root, require_unique(sorted(found), lambda _: f"{root}, names of folders"))
    columns = {name: column for column, name in enumerate(classes)}
    rows = Rows(root / split, root, classes)
    for file in list_image_files(root / split).names:
        name, slash, _ = file.partition("/")
        if name[0] == ".":
            continue
        where = str(root / split / file)
        if not slash:
            raise InputError(f"{where} lies in no class folder: move it into {root / split}/<class>/")
        rows.add(file, mark_columns([find_class(name, columns, where)], (), len(classes), where), where)
    return rows.make_table(root / split)


def name_images(table: Table, names: list[str]) -> list[str]:
    """Each name under its class's folder. Raises InputError for an image of two labels, or of none."""
    for path, row in zip(table.paths, table.targets, strict=True):
        present, unknown = name_labels(row, table.classes)
        if len(present) != 1 or unknown:
            raise InputError(
                f"{path} has {len(present)} label(s) {', '.join(present[:3])}, and {len(unknown)} unknown: an "
                "image_folder takes images of exactly one; choose another format"
            )
    for name in table.classes:
        if "/" in name or "\0" in name or name[0] == "." or len(os.fsencode(name)) > 255:
            raise InputError(f"the class name {name!r} cannot be that of a folder: rename it, or choose another format")
    require_listable(names)
    folders = name_folders(table)
    if _all_in(names, folders) and shorten_names(table, names) == names:
        return names  # `shorten_names` gives them back as they are
    return [f"{folder}{name}" for folder, name in zip(folders, names, strict=True)]


def shorten_names(table: Table, names: list[str]) -> list[str]:
    """Names without the class's folder, unless images of two classes have the same name."""
    folders = name_folders(table)
    short = [name.removeprefix(folder) for folder, name in zip(folders, names, strict=True)]
    stems = {name.rpartition(".")[0] for name in short}
    return short if _all_in(names, folders) and len(stems) == len(names) else names


def name_folders(table: Table) -> list[str]:
    """The class folder of each image, with a slash."""
    return [f"{table.classes[column]}/" for column in (table.targets == 1).argmax(axis=1)]


def _all_in(names: list[str], folders: list[str]) -> bool:
    return all(name.startswith(folder) for name, folder in zip(names, folders, strict=True))


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    for name in table.classes:
        (root / split / name).mkdir(parents=True, exist_ok=True)


FORMAT = Format(
    expects="train/<class>/ (image_folder)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="{split}",
    name_images=name_images,
    shorten_names=shorten_names,
    precedence=-1,  # other formats have their images in folders, too
    split_by_folder=True,
)
