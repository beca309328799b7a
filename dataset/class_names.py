"""Class names: `classes.txt`, names that are written twice or are none, several names in a cell or in a message.

Names are compared in the Unicode form NFC: an "é" may be one letter, or an "e" and an accent, as files from macOS have
it. They take that form where they enter, in lists of classes (`require_unique`) and in labels (`ClassIndex`), so that
everything later compares plain text.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.json_files import JsonLine
from dataset.text_files import CsvFile, read_text, replace_text, require_lines, split_lines
from utils import InputError

if TYPE_CHECKING:  # numpy takes time to load, which the table of runs does not need
    import numpy as np
    from numpy.typing import NDArray

LONGEST = 100  # letters of a name in an error
SEPARATORS = (",", ";", "|", "/", " ")  # that may stand between names which were not told apart
NEAREST = 10  # names that an error proposes in place of an unknown one


def read_classes(root: Path, default: Sequence[str] | None) -> tuple[str, ...]:
    """The names in `root/classes.txt`, one a line in index order; `default` where there is no such file."""
    path = root / "classes.txt"
    if not path.is_file():
        if default is None:
            raise InputError(f"{path} is missing: write the class names into it, one a line, in index order")
        return tuple(dict.fromkeys(map(to_nfc, default)))
    lines = [line.strip() for line in split_lines(read_text(path).rstrip())]
    if lines == [""]:
        raise InputError(f"{path} is empty: write the class names into it, one a line, in index order")
    return require_unique(lines, lambda index: f"{path}:{index + 1}")


def write_classes(root: Path, classes: Sequence[str]) -> None:
    """Write classes.txt."""
    require_lines(classes)
    replace_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))


def to_nfc(name: str) -> str:
    """`name` in the Unicode form in which names are compared."""
    return unicodedata.normalize("NFC", name)


def normalise_saved(names: Iterable[str]) -> tuple[str, ...]:
    """The class names of a saved model in NFC; as they are where it has two that differ only in their form."""
    names = tuple(names)
    in_nfc = tuple(map(to_nfc, names))
    return in_nfc if len({*in_nfc}) == len({*names}) else names


def fold(name: str) -> str:
    """What a name has in common with other spellings of it: `Hot_Dog`, `hot-dog` and `hotdog` are one.

    Blanks, _ and - are left out, but between numbers they mean something: 1_1 is not 11.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")  # such as a blank of no width
    text = re.sub(r"(?<=\d)[\s_-]+(?=\d)|^-(?=\d)", "\0", text)
    return re.sub(r"[\s_-]+", "", text)


def require_unique(names: Iterable[Any], where: Callable[[int], str]) -> tuple[str, ...]:
    """The class names in NFC, without white space around them; InputError for one that is empty or stands twice."""
    unique: dict[str, tuple[int, str]] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where(index)}: a class name is empty, or no text: {reprlib.repr(name)}")
        if not is_unicode(name):
            raise InputError(f"{where(index)}: a class name is no valid Unicode: {name[:LONGEST]!a}")
        text = name.strip()
        first, first_text = unique.setdefault(to_nfc(text), (index, text))
        if first_text != text:
            raise InputError(
                f"{where(index)}: {text[:80]!r} is the same class name as at {where(first)}, in another Unicode form: "
                "leave one of them out"
            )
        if first != index:
            raise InputError(f"{where(index)}: class {text[:80]!r} stands here a second time")
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


class ClassIndex:
    """Turns the names of labels, as a file has them, into columns of `classes`; every format that has names uses it.

        index = source.choose_classes({"cat", "dog", "none"})     # or source.index_classes(names), of a list of classes
        present = index.find_all(["cat", "dog"], "train.csv:2")   # [0, 1]
        rows.add(path, mark_columns(present, (), len(index.classes), where), where)

    `classes` end with those of `no_label` that no list names: they are columns like others until all is read, when
    `table.drop_no_label` takes them out. A name that is no class is an error or, where `skips_unknown`, counted in
    `skipped` and left out.
    """

    def __init__(self, classes: Sequence[str], no_label: Sequence[str] = (), skips_unknown: bool = False) -> None:
        self.classes = tuple(dict.fromkeys(map(to_nfc, [*classes, *no_label])))
        self.column_of = {name: column for column, name in enumerate(self.classes)}
        self.columns: dict[str, int | None] = {}  # of each name that was met, as it was written
        self.skips_unknown = skips_unknown
        self.skipped: Counter[str] = Counter()

    def find(self, name: str, where: str | JsonLine) -> int | None:
        """The column of the class `name`; None where it is left out. Raises InputError for a name that is no class."""
        try:
            column = self.columns[name]
        except KeyError:
            text = to_nfc(name.strip())
            column = self.columns[name] = self.column_of.get(text)
            if column is None and not self.skips_unknown:
                reason = explain_unknown(text, self.classes)
                raise InputError(f"{where}: {name[:LONGEST]!r} is no class{reason}") from None
        if column is None:
            self.skipped[name] += 1
        return column

    def find_all(self, names: Iterable[str], where: str | JsonLine) -> list[int]:
        """The columns of the classes `names`, without those that are left out."""
        names = list(names)
        columns = [self.columns.get(name) for name in names]  # all are known, mostly, and there may be millions
        if None in columns:
            columns = [self.find(name, where) for name in names]
        return [column for column in columns if column is not None]

    def list_doubles(self) -> list[str]:
        """The classes whose name was written in two Unicode forms."""
        forms = Counter(to_nfc(name) for name in {name.strip() for name in self.columns})
        return sorted(name for name, count in forms.items() if count > 1)


def explain_unknown(name: str, classes: Sequence[str]) -> str:
    """What `name` may be, which is none of `classes`; the end of an error."""
    by_fold = {fold(known): known for known in classes}
    if fold(name) in by_fold:
        return f", but {by_fold[fold(name)]!r} is: write the same in both places"
    for separator in SEPARATORS:
        parts = [part.strip() for part in name.split(separator) if part.strip()]
        if len(parts) > 1 and all(fold(part) in by_fold for part in parts):
            advice = f"set LABEL_SEPARATOR = {separator!r}" if separator != "/" else "write them one by one"
            return f", but all its parts are when it is split at {separator!r}: {advice}"
    names = [known[:LONGEST] for known in classes]  # the time grows with the square of the length
    nearest = difflib.get_close_matches(name[:LONGEST], names, NEAREST, cutoff=0.0)
    return f'; the nearest: {", ".join(nearest)}; UNKNOWN_NAMES = "skip" leaves such labels out'


def name_labels(row: NDArray[np.int8], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of the classes present, of those unknown) in a row (C,) of a table's targets."""
    present, unknown = ([classes[int(column)] for column in (row == value).nonzero()[0]] for value in (1, -1))
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


def describe_classes(classes: Sequence[str]) -> str:
    """How many there are, and the names of the first ones: "3: 'cat', 'dog', 'bird'"."""
    return f"{len(classes):,}: {quote_names(classes)}"


def shorten(name: str) -> str:
    """A name in quotes, without its middle where it is long."""
    return repr(name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}")


def join_names(names: Iterable[str], separator: str) -> str:
    """The names in one cell, in quotes where they need them: what `split_names` reads."""
    buffer = io.StringIO(newline="")
    csv.writer(CsvFile(buffer), delimiter=separator).writerow(names)
    return buffer.getvalue().removesuffix("\n")
