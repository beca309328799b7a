"""A table in parts whose label distributions agree: VAL_SPLIT of training.py, and `dataset_tools.py split`.

    train, val = split_table(table, 0.1, seed=0)        # stratified over all labels at once, whole groups
    Console().print(describe_split({"train": train, "val": val}))

Images are shared out from those with the rarest label to those with the commonest, as in iterative stratification
(Sechidis et al. 2011), but all labels of an image have a say: it goes where it leaves the smaller chi-square distance
between the labels of the part and its share of those seen so far. Swaps then take what distance they can.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset.files import make_absolute, name_backup
from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.formats.coco_json import list_coco_json_files
from dataset.formats.csv import list_csv_files
from dataset.stratified_split import describe_split, split_table
from dataset.table import Table, drop_repeats, join_tables
from dataset.tar_shards import list_shards, name_index, split_member
from utils import InputError

if TYPE_CHECKING:
    pass


# ---- the verb ----


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
    """Divide the images of the data set in `root` anew, and print the labels of each part.

    `percents` are those of "train", "val" and "test"; with 0 for test, a test split that is there stays as it is.
    Replaced lists are kept as `.bak`. Where a format has each split's images in a folder of its own, the new folders
    hold links to the same files, and the old ones are kept, too. Raises InputError.
    """
    from rich.console import Console

    from dataset_readers import read_dataset, recognise_format  # torch, which the rest of this file does not need

    if min(percents.values()) < 0 or sum(percents.values()) != 100 or not percents["train"]:
        shown = ", ".join(f"{name.upper()}_PERCENT {percent}" for name, percent in percents.items())
        raise InputError(f"{shown}: make them 0 or more, that of train above 0, and 100 together")
    root = make_absolute(root)
    format = recognise_format(root) if format == "auto" else format
    old = {
        name: read_dataset(root, format, name, classes=classes, group_pattern=group_pattern, options=options)
        for name in FORMATS[format].list_splits(root)
    }
    kept = {"test": old.pop("test")} if "test" in old and not percents["test"] else {}
    if not old:
        raise InputError(f"{root} has a test split only, which TEST_PERCENT 0 leaves as it is: nothing to split")
    rest, parts, remaining = drop_repeats(join_tables(list(old.values()))), {}, 100
    for name in ("test", "val"):
        if percents[name]:
            rest, parts[name] = split_table(rest, percents[name] / remaining, seed)
            remaining -= percents[name]
    parts = {"train": rest, **{name: parts[name] for name in ("val", "test") if name in parts}}
    if format != "csv":
        kept = {}  # stays where it is; only a csv may have all splits in one file
    backups = replace_splits(root, format, old | kept, parts | kept)
    Console().print(describe_split(parts))
    print(f"replaced, and kept: {', '.join(backups)}")


def replace_splits(root: Path, format: str, old: Mapping[str, Table], new: Mapping[str, Table]) -> list[str]:
    """Put the splits `new` in the place of `old`, after everything is written; the names of what is kept of these."""
    staging = root / ".split.tmp"
    writer, images_folder = FORMATS[format], FORMATS[format].images_folder
    old_split = {path: name for name, table in old.items() for path in table.paths}
    if writer.in_shards and (elsewhere := [name for name, url in list_shards(root).items() if url]):
        raise InputError(f"{root}: {elsewhere[0]} lies elsewhere, as shards.txt says: split needs it here")

    def folder_of(path: str) -> Path:
        member = split_member(path)
        return Path(member[0].path) if member else root / images_folder(old_split[path])

    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name, table in new.items():
            if format not in OWN_FOLDERS:
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
        for name in old:
            for path in filter(Path.exists, LISTS[format](root, name)):
                backups.append(path.rename(name_backup(path)).relative_to(root).as_posix())
        for name in new:
            for path in LISTS[format](staging, name):
                target = root / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        for path in staging.glob("*"):  # class names, and folders that a format wants to see
            if not (root / path.name).exists():
                path.rename(root / path.name)
    except OSError as error:
        raise InputError(f"cannot write the split of {root}: {error}") from error
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
    """The same file under another name; a copy where the disk has no such links (a symbolic one would lose its aim)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


OWN_FOLDERS = (
    "coco_cls",
    "image_folder",
    "webdataset",
)  # formats in which the folder of an image says which split it is in
LISTS: dict[str, Callable[[Path, str], list[Path]]] = {  # what makes a split, in each format
    "coco_cls": lambda root, split: [root / "images" / f"{split}-resized", root / "labels" / split],
    "train_list": lambda root, split: [root / f"{split}_list.txt"],
    "mlcls": lambda root, split: [root / f"{split}.txt"],
    "image_folder": lambda root, split: [root / split],
    "classes_json": lambda root, split: [root / f"{split}.json"],
    "coco_json": lambda root, split: list_coco_json_files(root / "annotations", split),
    "csv": lambda root, split: list_csv_files(root).get(split, []),
    "webdataset": lambda root, split: [
        *(root / name for name in list_shards(root) if name.startswith(f"{split}-")),
        name_index(root, split),
    ],
}
