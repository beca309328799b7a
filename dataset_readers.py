"""Reads a data set in any annotation format into one and the same table.

    table = read_dataset("~/ms-coco/ms-coco-dataset", split="train")    # .paths, .targets (N, C), .classes

dataset/formats/ has a file for each format; dataset/loading.py makes batches from the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dataset.files import IMAGE_EXTENSIONS, find_path, list_images, make_absolute, read_lines
from dataset.formats import FORMATS
from dataset.formats.base import Format, ReadOptions
from dataset.table import Table, drop_repeats, join_tables, map_classes
from utils import InputError, suggest, warn

__all__ = ["IMAGE_EXTENSIONS", "ReadOptions", "Table", "join_tables", "list_images", "map_classes"]  # for others, too


def read_dataset(
    root: str | Path | Sequence[str | Path],
    format: str = "auto",
    split: str | None = None,
    *,
    images_dir: str | Path | None = None,
    labels_dir: str | Path | None = None,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
) -> Table:
    """Read one split ("train", "val", "test"), or all there are, of the data set in `root`, each sorted by path.

    Several roots are joined: their classes agree by name, their formats may differ when `format` is "auto".
    `images_dir` and `labels_dir` are where coco_cls or coco_json has the split of the first root, when not where it
    usually has them; `classes` are the names where the data set does not bring its own; `group_pattern` is a regular
    expression whose first group finds an image's source in its path. Raises InputError for what is missing or wrong.
    """
    roots = [root] if isinstance(root, str | Path) else list(root)
    folders = [(images_dir, labels_dir), *[(None, None)] * (len(roots) - 1)]
    tables = []
    for one, (images, labels) in zip(roots, folders, strict=True):
        one = make_absolute(one)
        name = recognise_format(one, labels) if format == "auto" else format
        format_read = find_format(name)
        if (images or labels) and (split is None or name not in ("coco_cls", "coco_json")):
            raise InputError(f"images_dir and labels_dir are for one split of coco_cls or coco_json, not for {name}")
        splits = [split] if split else format_read.list_splits(one)
        if not splits:
            raise InputError(f"{one} has no split of format {name}")
        tables += [format_read.read(one, part, images, labels, classes, options or ReadOptions()) for part in splits]
    table = tables[0] if len(tables) == 1 else drop_repeats(join_tables(tables))
    return table if group_pattern is None else find_groups(table, group_pattern)


def recognise_format(root: str | Path, labels_dir: str | Path | None = None) -> str:
    """The name of the format that `root` is in, by what lies there; coco_cls, too, where there is a `labels_dir`.

    Raises InputError where that is none, or more than one.
    """
    root = make_absolute(root)
    if labels_dir is not None and make_absolute(labels_dir).is_dir():
        return "coco_cls"
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: set DATASET_FOLDER to where the data set is")
    found = find_formats(root)
    if len(found) > 1:
        raise InputError(f"{root} is in more than one format: set DATASET_FORMAT to {' or '.join(found)}")
    if not found:
        raise InputError(
            f"{root} is in no known format: expected images/ and labels/train/ (coco_cls), train_list.txt, label.txt "
            "and train.txt (mlcls), train/<class>/ (image_folder), train.json (classes_json), "
            "annotations/instances_train*.json (coco_json) or train.csv (commas, a column image_path), "
            "train-000000.tar or shards.txt (webdataset), or the same for val or test"
        )
    return found[0]


def find_formats(root: Path) -> list[str]:
    """The formats that `root` may be in."""
    found = [name for name, format in FORMATS.items() if format.recognise(root)]
    if "coco_cls" in found:
        return ["coco_cls"]  # this project's own layout, beside what it was made from
    if len(found) > 1:
        return [name for name in found if name != "image_folder"]  # other formats have their images in folders, too
    return found


def find_format(name: str) -> Format:
    """The format called `name`. Raises InputError."""
    if name not in FORMATS:
        raise InputError(f"unknown data set format {name!r}{suggest(name, FORMATS)}: it is one of {', '.join(FORMATS)}")
    return FORMATS[name]


def list_splits(root: str | Path, format: str = "auto") -> list[str]:
    """Those of "train", "val", "test" that the data set in `root` has."""
    root = make_absolute(root)
    return find_format(recognise_format(root) if format == "auto" else format).list_splits(root)


def has_split(root: str | Path, format: str, split: str, labels_dir: str | Path | None = None) -> bool:
    """Whether there are labels of `split`: in `labels_dir`, or in what else the data set in `root` is made of."""
    root = make_absolute(root)
    if labels_dir is not None and format in ("auto", "coco_cls") and make_absolute(labels_dir).is_dir():
        return True
    if format == "auto":
        if not find_formats(root):
            return False
        format = recognise_format(root)
    return not (format == "coco_cls" and labels_dir is not None) and split in find_format(format).list_splits(root)


def find_groups(table: Table, pattern: str) -> Table:
    """`table` with each image's source: what the first group of `pattern` finds in its path, "" where it does not."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"GROUP_PATTERN {pattern!r} is no regular expression: {error}") from error
    if not expression.groups:
        raise InputError(f"GROUP_PATTERN {pattern!r} has no group (...) that finds an image's source")
    found = map(expression.search, table.paths)
    groups = tuple((match[1] or "") if match else "" for match in found)
    if not any(groups):
        raise InputError(f"GROUP_PATTERN {pattern!r} finds no source in any path, such as {table.paths[0]}")
    return replace(table, groups=groups)


def exclude(table: Table, file: Path, root: str | Path) -> Table:
    """`table` without the images that `file` lists: a path a line, from the folder `root` on; # begins a comment.

    Warns of lines that name no file; images of other splits may well be listed.
    """
    base = str(make_absolute(root))
    listed = {find_path(base, line): number for number, line in read_lines(file) if not line.startswith("#")}
    paths = [str(make_absolute(path)) for path in table.paths]
    unknown = [path for path in listed.keys() - set(paths) if not Path(path).exists()]
    if unknown:
        number = min(listed[path] for path in unknown)
        warn(f"{file}: {len(unknown)} line(s) name no file in {base}, the first is line {number}")
    kept = [row for row, path in enumerate(paths) if path not in listed]
    if not kept:
        raise InputError(f"{file} excludes all {len(table)} images")
    return table.select(kept)
