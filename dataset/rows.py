"""The rows of a table in the making, collected line by line from an annotation file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from dataset.class_names import is_text
from dataset.files import find_missing, find_path, make_absolute
from dataset.json_files import JsonLine
from dataset.table import Table, join_tables, require_room
from utils import InputError

# Set for the reading that is under way, so that no reader has to hand it on to its rows
_keeps_missing = ContextVar("keeps_missing", default=False)


@contextmanager
def keep_missing_images(keep: bool) -> Iterator[None]:
    """Until the end of `with`, let tables keep the rows of images that do not exist: ReadOptions.keep_missing."""
    token = _keeps_missing.set(keep)
    try:
        yield
    finally:
        _keeps_missing.reset(token)


def keeps_missing_images() -> bool:
    """Whether it is on."""
    return _keeps_missing.get()


class Rows:
    """Collects images and their labels, then makes a table of them.

        rows = Rows(base=root, inside=root, classes=("cat", "dog"))
        rows.add("photos/a.jpg", bytes([1, 0]), f"{file}:1")
        table = rows.make_table(file)

    Paths are relative to `base` and must not leave `inside`. A path that comes again with the same labels counts once.
    """

    def __init__(self, base: Path, inside: Path, classes: Sequence[str]) -> None:
        self.base, self.inside, self.classes = str(make_absolute(base)), str(make_absolute(inside)), tuple(classes)
        self.rows: dict[str, tuple[bytes, str, str | JsonLine]] = {}  # by path: labels, group, where that stands

    def add(self, text: str, values: bytes, where: str | JsonLine, group: str = "") -> None:
        """Add an image: its path, its labels as dataset/label_values.py makes them, and where both stand."""
        require_room(len(self.rows), len(self.classes))
        if text.strip() and ("\0" in text or not is_text(text)):
            raise InputError(f"{where}: {text[:80]!a} cannot be the path of a file")
        path = find_path(self.base, text)
        if not path.startswith(self.inside.rstrip(os.sep) + os.sep):
            if not text.strip():
                raise InputError(f"{where}: the path of the image is missing")
            raise InputError(f"{where}: the path {text[:300]!r} leaves the data set's folder {self.inside}")
        known_values, known_group, known_where = self.rows.setdefault(path, (values, group, where))
        if (known_values, known_group) != (values, group):
            what = "labels or another group" if group or known_group else "labels"
            raise InputError(f"{where}: {text[:300]!r} has other {what} here than at {known_where}")

    def make_table(self, file: Path, has_groups: bool = False) -> Table:
        """The table, sorted by path. Raises InputError when `file` lists no image, or one that does not exist."""
        if not self.rows:
            raise InputError(f"{file} lists no images")
        paths = sorted(self.rows)
        missing = find_missing(paths)
        if missing and not keeps_missing_images():
            where = self.rows[missing[0]][2]
            raise InputError(
                f"{len(missing)} of {len(paths)} images do not exist, the first: {missing[0][:300]} ({where})"
            )
        values = b"".join(self.rows[path][0] for path in paths)
        targets = np.frombuffer(values, dtype=np.int8).reshape(len(paths), len(self.classes)).copy()
        groups = tuple(self.rows[path][1] for path in paths) if has_groups else None
        return Table(paths, targets, self.classes, groups)


def join_files(tables: Sequence[Table], files: Iterable[Path]) -> Table:
    """The tables of several files of one split as one. Raises InputError when two of them list the same image."""
    table = join_tables(tables)
    path, count = Counter(table.paths).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path} is listed in more than one of {', '.join(map(str, files))}")
    return table
