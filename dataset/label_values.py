"""The labels of one image as a byte for each class, in the making of a table: 1 present, 0 absent, UNKNOWN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataset.json_files import JsonLine
from utils import InputError

UNKNOWN = 255  # -1 as a byte
VALUES = {"1": 1, "0": 0, "-1": UNKNOWN, "": UNKNOWN, "nan": UNKNOWN}
VALUES |= {"1.0": 1, "0.0": 0, "-1.0": UNKNOWN, "true": 1, "false": 0}  # as pandas writes them


def parse_values(texts: Sequence[str], classes: Sequence[str], where: str | JsonLine) -> bytes:
    """The labels from a text for each class: `["1", "", "0"]`. Raises InputError for any other text."""
    if len(texts) != len(classes):
        raise InputError(f"{where}: {len(texts)} labels, but there are {len(classes)} classes")
    try:
        return bytes([VALUES[text] for text in texts])
    except KeyError:  # white space, capitals, or a mistake
        values = [VALUES.get(text.strip().lower()) for text in texts]
        if None in values:
            index = values.index(None)
            raise InputError(
                f"{where}: {texts[index].strip()!r} for class {classes[index]!r} is none of 1 (present), "
                "0 (absent) and -1 or blank (unknown)"
            ) from None
        return bytes(value or 0 for value in values)


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
