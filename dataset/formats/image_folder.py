"""image_folder: `<split>/<class>/a.jpg`, one label an image; `classes.txt`, where it is there, orders the classes.

People whose images have several labels put a copy into the folder of each: files of one name and with the same bytes
are one image with the labels of all their folders, with a warning.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from dataset.class_names import name_labels, show_names, write_classes
from dataset.files import SYSTEM_FOLDERS, hash_file, is_folder, list_image_files, require_listable
from dataset.formats.base import Format, SplitSource
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import find_folders, require_one
from dataset.table import SPLITS, Table
from utils import InputError, warn

# folders in which other tools put the images and labels of a split: where there are no others, these are no classes
NO_CLASSES = {"images", "imgs", "img", "jpegimages", "labels", "annotations", "masks"}  # in small letters


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [folder for folder in find_folders(root)[split] if holds_classes(folder)]


def holds_classes(folder: Path) -> bool:
    names = {name.lower() for name in list_class_folders(folder)}
    return not (names <= NO_CLASSES or names >= {"images", "labels"})


def list_class_folders(folder: Path) -> list[str]:
    """The class folders of a split's folder, without hidden ones and those that systems put there."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name[0] != "." and is_folder(entry)]
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror}") from error
    return sorted({*found} - SYSTEM_FOLDERS)


def read(source: SplitSource) -> Table:
    root = source.root
    folders = {split: files_of_split(root, split) for split in list_splits(root)}
    folder = require_one(folders[source.split], source.split)
    found = {name for any_folder in chain(*folders.values()) for name in list_class_folders(any_folder)}
    index = source.choose_classes(found)
    rows = Rows(folder, root, index.classes)
    files = [file for file in list_image_files(folder).names if file[0] != "."]
    if lost := next((file for file in files if "/" not in file), None):
        raise InputError(f"{folder / lost} lies in no class folder: move it into {folder}/<class>/")
    for file, *copies in join_copies(folder, files):
        where = str(folder / file)
        present = index.find_all([name.partition("/")[0] for name in (file, *copies)], where)
        rows.add(file, mark_columns(present, (), len(index.classes), where), where)
    return rows.make_table(folder)


def join_copies(folder: Path, files: Sequence[str]) -> Iterable[list[str]]:
    """The `files` in `folder`, each with its copies in other class folders: of the same name, and with the same bytes.

    Warns where there are copies. Only files that share name and size with another are read.
    """
    groups = split_group(files, lambda file: file.partition("/")[2])
    for measure in (lambda path: path.stat().st_size, hash_file):
        key = partial(measure_file, folder, measure)
        groups = [part for group in groups for part in split_group(group, key)]
    if not groups:
        return ([file] for file in files)
    first = [file.partition("/") for file in groups[0]]
    warn(
        f"{folder}: {len(groups):,} images lie in several class folders, such as {first[0][2]} in "
        f"{show_names([name for name, _, _ in first])}: each is read once, with the labels of all of them; if that is "
        "wrong, remove the copies in the wrong folders"
    )
    group_of = {file: group for group in groups for file in group}
    return (group_of.get(file, [file]) for file in files if file == group_of.get(file, [file])[0])


def split_group(files: Sequence[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Those of `files` that have their `key` in common, where more than one has it."""
    keys = [key(file) for file in files]
    if len({*keys}) == len(files):
        return []
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for file, found in zip(files, keys, strict=True):
        groups[found].append(file)
    return [group for group in groups.values() if len(group) > 1]


def measure_file(folder: Path, measure: Callable[[Path], Hashable], file: str) -> Hashable:
    """What `measure` gives; the file's name where it is empty or cannot be read, which is no copy of another."""
    try:
        return measure(folder / file) or file
    except OSError:
        return file


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
        is_hidden = name[0] == "." or name in SYSTEM_FOLDERS
        if "/" in name or "\0" in name or is_hidden or len(os.fsencode(name)) > 255:
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
