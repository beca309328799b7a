"""Labels that a person has looked at again: a csv beside the data set, which itself stays as it is.

    corrections = read_corrections(Path("corrections.csv"), "~/ms-coco/ms-coco-dataset")
    corrected = correct_labels(table, corrections)      # .table, .num_changed, .num_confirmed

A line is `path,class,given,corrected`: the image from the data set's folder on, the name of the class, the label that
was there, and the right one; 1 present, 0 absent, -1 unknown. Where both are the same, the label was confirmed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dataset.class_names import quote_names, to_nfc
from dataset.csv_files import read_cells, read_rows
from dataset.files import find_missing, find_path, make_absolute
from dataset.table import Table
from dataset.tar_shards import split_member
from utils import InputError, suggest

COLUMNS = ("path", "class", "given", "corrected")
LABELS = {"1": 1, "0": 0, "-1": -1}


class Correction(NamedTuple):
    """A label that a person has looked at."""

    line: int  # of the file, from 1
    path: str  # of the image, absolute
    name: str  # of the class
    given: int  # the label that was there: 1 present, 0 absent, -1 unknown
    corrected: int  # the right one


class Corrections(NamedTuple):
    """What a file holds: each label once."""

    file: Path
    lines: list[Correction]


class Corrected(NamedTuple):
    """A table with the labels of a file of corrections."""

    table: Table
    num_changed: int  # labels of this table
    num_confirmed: int


def read_corrections(file: str | Path, root: str | Path) -> Corrections:
    """Read `file`, whose paths begin at the folder `root`.

    Raises InputError, with the line, for other columns, for what is no label, for an image that does not exist, and for
    two lines that say different things of one label.
    """
    file, base = make_absolute(file), str(make_absolute(root))
    lines: dict[tuple[str, str], Correction] = {}
    for correction in _parse(file, base):
        first = lines.setdefault((correction.path, correction.name), correction)
        if first[3:] != correction[3:]:
            raise InputError(
                f"{file}:{correction.line}: line {first.line} says of {correction.name!r} in {correction.path} that "
                f"{_describe(first)}, and this one that {_describe(correction)}: delete one of them"
            )
    missing = {path for path in find_missing(path for path, _ in lines) if split_member(path) is None}
    for correction in lines.values():
        if correction.path in missing:
            raise InputError(
                f"{file}:{correction.line}: there is no image {correction.path}{_suggest_path(correction.path, base)}: "
                "correct the line, or delete it"
            )
    return Corrections(file, list(lines.values()))


def _parse(file: Path, base: str) -> Iterator[Correction]:
    """The lines of `file`, whose paths begin at the folder `base`. Raises InputError for other columns, or labels."""
    _, first = next(read_rows(file), (1, []))
    header = [to_nfc(name.strip()) for name in first]
    if not {*COLUMNS} <= {*header}:
        found = f"has {quote_names(header)}" if header else "is empty"
        raise InputError(f"{file}:1: this file {found}: expected the columns {','.join(COLUMNS)}, in small letters")
    for line, (path, name, *labels) in read_cells(file, COLUMNS):
        for column, label in zip(COLUMNS[2:], labels, strict=True):
            if label not in LABELS:
                raise InputError(f"{file}:{line}: {column} is {label!r}: expected 1 present, 0 absent or -1 unknown")
        given, corrected = (LABELS[label] for label in labels)
        yield Correction(line, find_path(base, path), to_nfc(name), given, corrected)


def _suggest_path(path: str, base: str) -> str:
    """Suggest the file below `base` that is `path` in other capitals, or without a spreadsheet's apostrophe before it.

    For the end of an error message; "" if there is none.
    """
    name = os.path.relpath(path, base)
    for wanted in (name, name.removeprefix("'")):
        found = Path(base)
        for part in Path(wanted).parts:
            same = [entry for entry in _list_names(found) if entry.casefold() == part.casefold()]
            if not same:
                break
            found /= part if part in same else same[0]
        else:
            return f" (did you mean {found.relative_to(base)}?)"
    return ""


def _list_names(folder: Path) -> list[str]:
    """What `folder` holds, sorted; nothing where it cannot be listed."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _describe(correction: Correction) -> str:
    return f"{correction.given} becomes {correction.corrected}"


def correct_labels(table: Table, corrections: Corrections) -> Corrected:
    """`table` with the corrected labels. Lines of images that it does not hold, as those of other splits, are left out.

    Raises InputError, with the line, for a class that the table does not have, and for a label that is not, or no
    longer, the one that was corrected.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    wanted = {correction.path for correction in corrections.lines}
    for row, path in enumerate(table.paths):
        if (absolute := str(make_absolute(path))) in wanted:
            rows_of[absolute].append(row)
    column_of = {name: column for column, name in enumerate(table.classes)}
    targets = table.targets.copy()
    num_changed = num_confirmed = 0
    for line, path, name, given, corrected in corrections.lines:
        where = f"{corrections.file}:{line}:"
        if name not in column_of:
            raise InputError(f"{where} {name!r} is no class of the data set{suggest(name, table.classes)}")
        for row in rows_of.get(path, ()):
            if (found := int(table.targets[row, column_of[name]])) != given:
                raise InputError(
                    f"{where} {name!r} in {path} was {given} when it was corrected, and is {found} in the data set "
                    "now: delete the line, or list the suspects anew"
                )
            targets[row, column_of[name]] = corrected
            num_changed += given != corrected
            num_confirmed += given == corrected
    return Corrected(replace(table, targets=targets), num_changed, num_confirmed)
