"""What several formats share: rows of a table in the making, class names, values of labels."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.files import IMAGE_EXTENSIONS, find_missing, find_path, make_absolute, read_text, replace_text
from dataset.formats.base import SPLITS
from dataset.table import Table, join_tables
from utils import InputError

UNKNOWN = 255  # what -1 is as a byte
VALUES = {"1": 1, "0": 0, "-1": UNKNOWN, "": UNKNOWN, "nan": UNKNOWN}
VALUES |= {"1.0": 1, "0.0": 0, "-1.0": UNKNOWN, "true": 1, "false": 0}  # as pandas writes them
NEAREST = 10  # classes that a name which is none might have meant


class Rows:
    """The rows of a table in the making, as a file lists them.

    Paths are relative to `base` and must not leave `inside`; a path that comes again counts once.
    """

    def __init__(self, base: Path, inside: Path, classes: Sequence[str]) -> None:
        self.base, self.inside, self.classes = str(make_absolute(base)), str(make_absolute(inside)), tuple(classes)
        self.rows: dict[str, tuple[bytes, str, Callable[[], str]]] = {}

    def add(self, text: str, values: bytes, where: Callable[[], str], group: str = "") -> None:
        """One image, its labels as a byte each (1, 0, UNKNOWN), and where that stands."""
        path = find_path(self.base, text)
        if not path.startswith(self.inside.rstrip(os.sep) + os.sep):
            raise InputError(
                f"{where()}: the path {text!r} leaves the data set's folder {self.inside}"
                if text.strip()
                else f"{where()}: the path of the image is missing"
            )
        known = self.rows.setdefault(path, (values, group, where))
        if known[:2] != (values, group):
            what = "labels or another group" if group or known[1] else "labels"
            raise InputError(f"{where()}: {text!r} has other {what} here than at {known[2]()}")

    def make_table(self, file: Path, has_groups: bool = False) -> Table:
        """The table, sorted by path. Raises InputError when an image, or every line of `file`, is missing."""
        if not self.rows:
            raise InputError(f"{file} lists no images")
        paths = sorted(self.rows)
        missing = find_missing(paths)
        if missing:
            where = self.rows[missing[0]][2]()
            raise InputError(f"{len(missing)} of {len(paths)} images do not exist, the first: {missing[0]} ({where})")
        values = b"".join(self.rows[path][0] for path in paths)
        targets = np.frombuffer(values, dtype=np.int8).reshape(len(paths), len(self.classes)).copy()
        groups = tuple(self.rows[path][1] for path in paths) if has_groups else None
        return Table(paths, targets, self.classes, groups)


def read_classes(root: Path, default: Sequence[str] | None) -> tuple[str, ...]:
    """The names in `root/classes.txt`, one a line in index order; `default` where there is no such file."""
    path = root / "classes.txt"
    if not path.is_file():
        if default is None:
            raise InputError(f"{path} is missing: write the class names into it, one a line, in index order")
        return tuple(default)
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise InputError(f"{path} is empty: write the class names into it, one a line, in index order")
    return require_unique(lines, lambda index: f"{path}:{index + 1}")


def require_unique(names: Iterable[Any], where: Callable[[int], str]) -> tuple[str, ...]:
    """The class names without white space around them; InputError for one that is empty or stands twice."""
    unique: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where(index)}: a class name is empty, or no text: {name!r}")
        if unique.setdefault(name.strip(), index) != index:
            raise InputError(f"{where(index)}: class {name.strip()!r} stands here a second time")
    return tuple(unique)


def join_files(tables: Sequence[Table], files: Iterable[Path]) -> Table:
    """The tables of several files of one split as one. Raises InputError when two of them list the same image."""
    table = join_tables(tables)
    path, count = Counter(table.paths).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path} is listed in more than one of {', '.join(map(str, files))}")
    return table


def find_class(name: str, columns: dict[str, int], where: Callable[[], str]) -> int:
    """The column of class `name`; InputError with the ten nearest names when it is none."""
    column = columns.get(name)
    if column is None:
        nearest = difflib.get_close_matches(name, columns, NEAREST, cutoff=0.0)
        raise InputError(f"{where()}: {name!r} is no class; the nearest: {', '.join(nearest)}")
    return column


def parse_values(texts: Sequence[str], classes: Sequence[str], where: Callable[[], str]) -> bytes:
    """A byte for each class: 1, 0 or UNKNOWN."""
    if len(texts) != len(classes):
        raise InputError(f"{where()}: {len(texts)} labels, but there are {len(classes)} classes")
    try:
        return bytes([VALUES[text] for text in texts])
    except KeyError:  # a space somewhere, or a mistake
        values = [VALUES.get(text.strip().lower()) for text in texts]
        if None in values:
            index = values.index(None)
            raise InputError(
                f"{where()}: {texts[index].strip()!r} for class {classes[index]!r} is none of 1 (present), "
                "0 (absent) and -1 or blank (unknown)"
            ) from None
        return bytes(value or 0 for value in values)


def mark(present: Iterable[int], unknown: Iterable[int], num_classes: int, where: Callable[[], str]) -> bytes:
    """A byte for each class from the columns of those present and unknown."""
    values = bytearray(num_classes)
    for column in present:
        values[column] = 1
    for column in unknown:
        if values[column] == 1:
            raise InputError(f"{where()}: a class is both present and unknown")
        values[column] = UNKNOWN
    return bytes(values)


def require_lines(names: Iterable[str]) -> None:
    """Raise InputError for a class name or path that does not fit on a line."""
    for name in names:
        if not name.strip() or "\n" in name or "\r" in name or name[0] == "\ufeff":
            raise InputError(f"{name!r} cannot stand on a line of a list: rename it, or choose csv or coco_json")


def write_classes(root: Path, classes: Sequence[str]) -> None:
    """Write classes.txt."""
    require_lines(classes)
    replace_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))


def require_listable(names: Sequence[str]) -> None:
    """Raise InputError for a file name that would not be taken for an image when the folder is listed."""
    require_endings(names)
    for name in names:
        if "/." in f"/{name}":
            raise InputError(f"{name} is hidden, or lies in a hidden folder: rename it")


def require_endings(names: Sequence[str]) -> None:
    """Raise InputError for a file name that is none of an image."""
    for name in names:
        if not name.lower().endswith(tuple(IMAGE_EXTENSIONS)):
            raise InputError(f"{name} has none of the endings {', '.join(sorted(IMAGE_EXTENSIONS))}: rename it")


def list_split_files(root: Path, ending: str) -> list[str]:
    return [split for split in SPLITS if (root / f"{split}{ending}").is_file()]


def images_in_splits(split: str) -> str:
    return f"images/{split}"


def write_json(file: Path, **lists: list[Any]) -> None:
    """Write {"name": [items]} with an item a line, where an error can be told by its line."""
    parts = []
    for name, items in lists.items():
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        parts.append(f'"{name}": [\n{lines}\n]')
    replace_text(file, "{\n" + ",\n".join(parts) + "\n}\n")


def split_names(cell: str, separator: str) -> list[str]:
    """The names in a cell of the column `labels`; a name in quotes may hold the separator."""
    names = next(csv.reader([cell], delimiter=separator, skipinitialspace=True), []) if '"' in cell else None
    return [name.strip() for name in (names or cell.split(separator)) if name.strip()]
