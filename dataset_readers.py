"""Reads a data set in any annotation format into one and the same table.

    table = read_dataset("~/ms-coco/ms-coco-dataset", split="train")    # .paths, .targets (N, C), .classes

dataset/formats/ has a file for each format; dataset/loading.py makes batches from the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dataset.class_names import show_names
from dataset.csv_files import read_header
from dataset.files import IMAGE_EXTENSIONS, find_path, list_images, make_absolute
from dataset.formats import FORMATS
from dataset.formats.base import Format, ReadOptions
from dataset.table import Table, drop_repeats, join_tables, map_classes
from dataset.text_files import read_lines
from dataset.unknown_folders import explain_folder, explain_missing
from utils import InputError, suggest, warn

__all__ = ["IMAGE_EXTENSIONS", "ReadOptions", "Table", "join_tables", "list_images", "map_classes"]  # public, too


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

    `root` may be several folders, which are joined: their classes agree by name, and with format "auto" each may have
    another format. `images_dir` and `labels_dir` replace the usual folders of one split of the first root, in formats
    that take them. `classes` are the names where the data set does not bring its own. `group_pattern` is a regular
    expression whose first group finds an image's source in its path. Raises InputError for what is missing or wrong.
    """
    roots = [make_absolute(folder) for folder in ([root] if isinstance(root, str | Path) else root)]
    tables = []
    for number, folder in enumerate(roots):
        images, labels = (images_dir, labels_dir) if number == 0 else (None, None)
        name = recognise_format(folder, labels) if format == "auto" else format
        chosen = find_format(name)
        if (images or labels) and (split is None or not chosen.takes_folders):
            names = " or ".join(name for name, known in FORMATS.items() if known.takes_folders)
            raise InputError(f"images_dir and labels_dir are for one split of {names}, not for {name}")
        if labels is None or not make_absolute(labels).is_dir():
            require_format(folder, name)
        splits = [split] if split else chosen.list_splits(folder)
        for split_name in splits:
            tables.append(chosen.read(folder, split_name, images, labels, classes, options or ReadOptions()))
    table = tables[0] if len(tables) == 1 else drop_repeats(join_tables(tables))
    return table if group_pattern is None else find_groups(table, group_pattern)


def recognise_format(root: str | Path, labels_dir: str | Path | None = None) -> str:
    """The name of the format of `root`, by what lies there; a folder of labels `labels_dir` may say it alone.

    Raises InputError where no format fits, or more than one.
    """
    root = make_absolute(root)
    if name := _recognise_labels(root, labels_dir):
        return name
    if not root.is_dir():
        raise InputError(explain_missing(root))
    found = find_formats(root)
    if len(found) > 1:
        claims = " and ".join(f"{name} ({show_names(name_files(root, name), 2)})" for name in found)
        raise InputError(
            f"{root} is in more than one format: {claims}: set DATASET_FORMAT to {' or '.join(found)}, or move the "
            "files of the others away"
        )
    if not found:
        raise InputError(f"{root} is in no known format: {explain_folder(root)} (see docs/data_formats.md)")
    return found[0]


def _recognise_labels(root: Path, labels_dir: str | Path | None) -> str | None:
    """The format that is known by the folder `labels_dir` alone: it lies outside `root`, or holds this format's labels.

    Folders with the same names in `root` are of several formats, such as YOLO's.
    """
    folder = None if labels_dir is None else make_absolute(labels_dir)
    if folder is None or not folder.is_dir():
        return None
    for name, format in FORMATS.items():
        if format.holds_labels and (not folder.is_relative_to(root) or format.holds_labels(folder)):
            return name
    return None


def name_files(root: Path, format: str) -> list[str]:
    """The files and folders, from `root` on, by which it seems to be in `format`."""
    chosen = FORMATS[format]
    files = [file for split in chosen.list_splits(root) for file in chosen.files_of_split(root, split)]
    return list(dict.fromkeys(file.relative_to(root).as_posix() for file in files if file.exists()))


def require_format(root: str | Path, name: str) -> None:
    """Raise InputError, which says what fits, where nothing in `root` is in the format `name`."""
    root = make_absolute(root)
    if not root.is_dir():
        raise InputError(explain_missing(root))
    chosen = find_format(name)
    if not chosen.list_splits(root):
        found = find_formats(root)
        advice = explain_folder(root)
        if found:
            advice = f"it fits {' or '.join(found)}: set DATASET_FORMAT to that, or to auto"
        raise InputError(f"{root} has no split of format {name} (DATASET_FORMAT): expected {chosen.expects}; {advice}")


def find_formats(root: Path) -> list[str]:
    """The names of the formats that `root` may be in; of those that fit, the ones with the highest precedence."""
    found = [name for name, format in FORMATS.items() if format.recognise(root)]
    highest = max((FORMATS[name].precedence for name in found), default=0)
    return [name for name in found if FORMATS[name].precedence == highest]


def find_format(name: str) -> Format:
    """The format called `name`. Raises InputError."""
    if name not in FORMATS:
        raise InputError(f"unknown data set format {name!r}{suggest(name, FORMATS)}: it is one of {', '.join(FORMATS)}")
    return FORMATS[name]


def list_splits(root: str | Path, format: str = "auto") -> list[str]:
    """Those of "train", "val", "test" that the data set in `root` has."""
    root = make_absolute(root)
    return find_format(recognise_format(root) if format == "auto" else format).list_splits(root)


def list_columns(root: str | Path, split: str) -> list[str]:
    """The columns that each file of `split` has, of a data set in the format csv."""
    headers = [read_header(file) for file in find_format("csv").files_of_split(make_absolute(root), split)]
    return [name for name in headers[0] if all(name in header for header in headers)] if headers else []


def has_split(root: str | Path, format: str, split: str, labels_dir: str | Path | None = None) -> bool:
    """Whether there are labels of `split`: in `labels_dir`, if the format can be known by it, else in `root`."""
    root = make_absolute(root)
    if format == "auto":
        if _recognise_labels(root, labels_dir):
            return True
        if not find_formats(root):
            return False
        format = recognise_format(root)
    chosen = find_format(format)
    if chosen.holds_labels and labels_dir is not None:
        return make_absolute(labels_dir).is_dir()
    return split in chosen.list_splits(root)


def find_groups(table: Table, pattern: str) -> Table:
    """`table` with each image's source: what the first group of `pattern` finds in its path, "" where it is not there.

    Example: the pattern `camera(\\d+)` gives the image `camera12/0001.jpg` the source "12".
    """
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

    Warns of lines that name no file. Images of other splits may be listed: they are skipped without a word.
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
