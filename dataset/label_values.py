"""The labels of one image as a byte for each class, in the making of a table: 1 present, 0 absent, UNKNOWN.

What -1 means is decided here, for all formats of this project with 1, 0 and -1 (MINUS_ONE):

    values = choose_values(options.minus_one)
    rows.add(path, parse_values(texts, classes, where, values), where)
    table = decide_values(rows.make_table(file), file, lambda: labels_of_other_splits)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dataset.json_files import JsonLine
from dataset.table import Table
from utils import InputError, warn_once

UNKNOWN = 255  # -1 as a byte
UNDECIDED = 254  # -2 as a byte: a -1 of which the whole data set tells whether it is unknown
CROSS = 2  # a cross in a table, with which a blank cell is absent
MinusOne = Literal["auto", "unknown", "absent"]

VALUES = {"1": 1, "0": 0, "-1": UNKNOWN, "": UNKNOWN, "nan": UNKNOWN}
VALUES |= {"1.0": 1, "0.0": 0, "-1.0": UNKNOWN, "true": 1, "false": 0}  # as pandas writes them
# What people and spreadsheets write into the column of a class: words, and numbers with a decimal comma
WORDS = {"yes": 1, "no": 0, "y": 1, "n": 0, "ja": 1, "nein": 0, "wahr": 1, "falsch": 0, "x": CROSS}
WORDS |= {"1,0": 1, "0,0": 0, "-1,0": UNKNOWN}
MINUS_ONES = ("-1", "-1.0", "-1,0")


def choose_values(minus_one: MinusOne, words: bool = False) -> dict[str, int]:
    """{text: byte}, of VALUES and, with `words`, WORDS, where -1 is what MINUS_ONE says."""
    values = VALUES | WORDS if words else VALUES
    byte = {"auto": UNDECIDED, "unknown": UNKNOWN, "absent": 0}[minus_one]
    return values | {text: byte for text in MINUS_ONES if text in values}


def parse_values(
    texts: Sequence[str],
    classes: Sequence[str],
    where: str | JsonLine,
    values: Mapping[str, int] = VALUES,
    advice: str = "",
) -> bytes:
    """The labels from a text for each class: `["1", "", "0"]`. Raises InputError, with `advice`, for any other text."""
    if len(texts) != len(classes):
        raise InputError(f"{where}: {len(texts)} labels, but there are {len(classes)} classes")
    try:
        return bytes([values[text] for text in texts])
    except KeyError:  # white space, capitals, or a mistake
        found = [values.get(text.strip().lower()) for text in texts]
        if None in found:
            index = found.index(None)
            raise InputError(
                f"{where}: {texts[index].strip()[:80]!r} for class {classes[index]!r} is none of 1 (present), "
                f"0 (absent) and -1 or blank (unknown){advice}"
            ) from None
        return bytes(value or 0 for value in found)


def decide_values(table: Table, file: Path, others: Callable[[], Iterable[bytes]]) -> Table:
    """`table`, made with `choose_values`, with 1, 0 and -1 only; `others` gives the labels of the other splits.

    -1 is unknown where 0 occurs, too, in any split. Where it never does, -1 may also stand for absent, as in CelebA:
    InputError. Beside crosses, and where no 0 occurs, blank is absent, and that is said.
    """
    undecided = bool((table.targets == UNDECIDED - 256).any())
    crossed, has_zero = (bool((table.targets == value).any()) for value in (CROSS, 0))
    in_doubt = undecided or crossed or bool((table.targets == UNKNOWN - 256).any())
    if in_doubt and not has_zero:
        for labels in others():
            has_zero, crossed = has_zero or 0 in labels, crossed or CROSS in labels
    if not undecided and not crossed:
        return table
    if undecided and not has_zero:
        raise InputError(
            f"{file}: labels are -1, and never 0: is -1 absent here, as in CelebA, or unknown? Set MINUS_ONE = "
            "'absent' or 'unknown'"
        )
    targets = np.where(table.targets == CROSS, np.int8(1), table.targets)
    if crossed and not has_zero:
        warn_once(f"{file}: present is marked with x, so blank cells are read as absent, not as unknown")
        targets[targets == UNKNOWN - 256] = 0
    targets[targets == UNDECIDED - 256] = -1
    return replace(table, targets=targets)


def name_values(table: Table) -> dict[int, str]:
    """{label: how a list says it}: unknown is blank in a table without a 0, where -1 might also stand for absent."""
    return {1: "1", 0: "0", -1: "-1" if (table.targets == 0).any() else ""}


def mark_columns(present: Iterable[int], unknown: Iterable[int], num_classes: int, where: str | JsonLine) -> bytes:
    """The labels from the columns of the classes present and unknown; all others are absent."""
    values = bytearray(num_classes)
    for column in present:
        values[column] = 1
    for column in unknown:
        if values[column] == 1:
            raise InputError(f"{where}: a class is both present and unknown")
        values[column] = UNKNOWN
    return bytes(values)
