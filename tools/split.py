"""A data set divided anew into train, val and test: `python dataset_tools.py split`.

    split_dataset("~/photos", "auto", {"train": 80, "val": 10, "test": 10}, seed=0)

dataset/stratified_split.py chooses the images of each split; here their labels are written, and the old ones kept.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dataset.files import make_absolute
from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.stratified_split import describe_split, split_table
from dataset.table import Table, drop_repeats, join_tables
from dataset.tar_shards import split_member
from dataset.text_files import name_backup
from dataset_readers import read_dataset, recognise_format
from utils import InputError, explain, make_console, say


def split_dataset(
    root: str | Path,
    format: str,
    percents: Mapping[str, int],
    seed: int,
    *,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
) -> None:
    """Divide the images of the data set in `root` anew, and print the labels of each split.

    `percents` are those of "train", "val" and "test"; with 0 for test, a test split that is there stays as it is.
    Replaced lists are kept as `.bak`. Where the folder of an image says its split, the new folders hold links to the
    same files, and the old ones are kept, too. Raises InputError.
    """
    if min(percents.values()) < 0 or sum(percents.values()) != 100 or not percents["train"]:
        shown = ", ".join(f"{name.upper()}_PERCENT {percent}" for name, percent in percents.items())
        raise InputError(f"{shown}: make them 0 or more, that of train above 0, and 100 together")
    root = make_absolute(root)
    format = recognise_format(root) if format == "auto" else format
    FORMATS[format].require_writer()
    old = {
        name: read_dataset(root, format, name, classes=classes, group_pattern=group_pattern, options=options)
        for name in FORMATS[format].list_splits(root)
    }
    kept = {"test": old.pop("test")} if "test" in old and not percents["test"] else {}
    if not old:
        raise InputError(f"{root} has a test split only, which TEST_PERCENT 0 leaves as it is: nothing to split")
    rest, taken, remaining = drop_repeats(join_tables(list(old.values()))), {}, 100
    for name in ("test", "val"):
        if percents[name]:
            rest, taken[name] = split_table(rest, percents[name] / remaining, seed)
            remaining -= percents[name]
    new = {"train": rest, **{name: taken[name] for name in ("val", "test") if name in taken}}
    if not FORMATS[format].splits_share_files:
        kept = {}  # its files are not touched
    description = describe_split(new)  # before anything is replaced: whatever ends this must leave the old splits
    backups = replace_splits(root, format, old | kept, new | kept)
    make_console().print(description)
    say(f"replaced, and kept: {', '.join(backups)}")


def replace_splits(root: Path, format: str, old: Mapping[str, Table], new: Mapping[str, Table]) -> list[str]:
    """Put the splits `new` in the place of `old`, once all of them are written. Returns the names of the backups."""
    staging = root / ".split.tmp"
    writer, images_folder = FORMATS[format], FORMATS[format].images_folder
    old_files = [path for name in old for path in writer.files_of_split(root, name)]
    old_split = {path: name for name, table in old.items() for path in table.paths}

    def folder_of(path: str) -> Path:
        member = split_member(path)
        folders = [Path(member[0].path)] if member else writer.files_of_split(root, old_split[path])
        return next(folder for folder in folders if Path(path).is_relative_to(folder))

    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name, table in new.items():
            if not writer.split_by_folder:
                names = [os.path.relpath(path, root / images_folder(name)) for path in table.paths]
            else:
                names = name_images(table.paths, old_split, folder_of)
                if writer.in_shards:
                    names = writer.name_images(table, writer.shorten_names(table, names))
                else:
                    for path, image_name in zip(table.paths, names, strict=True):
                        link(path, staging / images_folder(name) / image_name)
            writer.write(table, staging, name, names)
        backups = []
        for path in filter(Path.exists, old_files):  # one after the other: several splits may have the same file
            backups.append(path.rename(name_backup(path)).relative_to(root).as_posix())
        for name in new:
            for path in writer.files_of_split(staging, name):
                target = root / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        for path in staging.glob("*"):  # class names, and folders that a format wants to see
            if not (root / path.name).exists():
                path.rename(root / path.name)
    except OSError as error:
        raise InputError(f"cannot write the split of {root}: {explain(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return backups


def name_images(paths: Sequence[str], split_of: Mapping[str, str], folder_of: Callable[[str], Path]) -> list[str]:
    """Paths within a split's folder; images of two old splits that would have the same get the splits' names."""
    names = [Path(path).relative_to(folder_of(path)) for path in paths]
    counts = Counter(name.with_suffix("") for name in names)
    return [
        (name.with_name(f"{split_of[path]}_{name.name}") if counts[name.with_suffix("")] > 1 else name).as_posix()
        for path, name in zip(paths, names, strict=True)
    ]


def link(path: str, target: Path) -> None:
    """Give the file a second name; copy it where the disk has no hard links. A symbolic link would break later."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not Path(path).is_file():  # a copy of a device would fill the disk
        raise InputError(f"{path} is no ordinary file: remove it from the data set")
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
