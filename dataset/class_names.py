"""Class names: `classes.txt`, names that are written twice or are none, several names in a cell or in a message."""

from __future__ import annotations

import csv
import difflib
import io
import reprlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.json_files import JsonLine
from dataset.text_files import read_text, replace_text, require_lines
from utils import InputError

LONGEST = 100  # letters of a name in an error
NEAREST = 10  # names that an error proposes in place of an unknown one


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


def write_classes(root: Path, classes: Sequence[str]) -> None:
    """Write classes.txt."""
    require_lines(classes)
    replace_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))


def require_unique(names: Iterable[Any], where: Callable[[int], str]) -> tuple[str, ...]:
    """The class names without white space around them; InputError for one that is empty or stands twice."""
    unique: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where(index)}: a class name is empty, or no text: {reprlib.repr(name)}")
        if not is_unicode(name):
            raise InputError(f"{where(index)}: a class name is no valid Unicode: {name[:LONGEST]!a}")
        if unique.setdefault(name.strip(), index) != index:
            raise InputError(f"{where(index)}: class {name.strip()[:80]!r} stands here a second time")
    return tuple(unique)


def is_unicode(name: str) -> bool:
    """Whether any file can hold `name`: text from JSON, or a folder's name, may have half of a pair of surrogates."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def is_text(name: str) -> bool:
    """Whether `name` is text, or the name of a file: JSON can also write half of a pair of surrogates."""
    try:
        return bool(name.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        return False


def find_class(name: str, columns: dict[str, int], where: str | JsonLine) -> int:
    """The column of class `name`; InputError with the ten nearest names when there is no such class."""
    column = columns.get(name)
    if column is None:
        names = [column_name[:LONGEST] for column_name in columns]  # the time grows with the square of the length
        nearest = difflib.get_close_matches(name[:LONGEST], names, NEAREST, cutoff=0.0)
        raise InputError(f"{where}: {name[:LONGEST]!r} is no class; the nearest: {', '.join(nearest)}")
    return column


def name_labels(row: NDArray[np.int8], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of the classes present, of those unknown) in a row (C,) of a table's targets."""
    present, unknown = ([classes[column] for column in np.flatnonzero(row == value).tolist()] for value in (1, -1))
    return present, unknown


def split_names(cell: str, separator: str) -> list[str]:
    """The names in a cell; a name in quotes may hold the separator. `dog; "cat; black"` holds two."""
    try:
        names = next(csv.reader([cell], delimiter=separator, skipinitialspace=True), []) if '"' in cell else None
    except csv.Error as error:
        raise InputError(f"the names {cell[:LONGEST]!r} cannot be told apart: {error}") from error
    return [name.strip() for name in (names or cell.split(separator)) if name.strip()]


def show_names(names: Collection[str], most: int = 10) -> str:
    """The first `most` names for a message, and how many more there are: "cat, dog, and 9,998 more"."""
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown}, and {len(names) - most:,} more"


def quote_names(names: Collection[str], most: int = 10) -> str:
    """The same with each name in quotes, so that blanks, commas and signs of no width are seen: "'cat', 'hot dog '"."""
    return show_names([shorten(name) for name in names], most)


def shorten(name: str) -> str:
    """A name in quotes, without its middle where it is long."""
    return repr(name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}")


def join_names(names: Iterable[str], separator: str) -> str:
    """The names in one cell, in quotes where they need them: what `split_names` reads."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=separator, lineterminator="").writerow(names)
    return buffer.getvalue()
