"""Files with numbers for each image: the probabilities of a teacher, the weights of a curriculum.

    listed = read_image_values(Path("teacher.csv"))    # .paths, .values (M, K), .names or None
    rows = match_images(listed, table.paths)    # (N,): the row of each image of a table, -1 where it has none

Each line is `path,number,...`. A first line `image_path,<name>,...` names the columns; it may be missing. A path with a
comma stands in quotes.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.class_names import to_nfc
from dataset.files import IMAGE_EXTENSIONS, find_path, make_absolute
from dataset.splits import find_split
from dataset.table import Table
from dataset.text_files import read_text
from utils import InputError, suggest, warn

HEAVIEST = 1000.0  # the largest weight that a file may hold


def read_curriculum(table: Table, file: str | Path) -> NDArray[np.float32]:
    """The weight (N,) of each image of `table`: that in `file`, else 1. Warns of images that are not listed.

    Raises InputError for what is wrong in the file, and when no image has a weight above 0.
    """
    listed = read_image_values(file, HEAVIEST)
    if listed.values.shape[1] != 1:
        raise InputError(f"{listed.file} has {listed.values.shape[1]} numbers a line: expected path,weight")
    rows = match_images(listed, table.paths)
    weights = np.where(rows < 0, np.float32(1), listed.values[rows, 0])
    if (unlisted := np.flatnonzero(rows < 0)).size:
        warn(
            f"{listed.file}: {len(unlisted)} of {len(table)} training images are not listed and keep weight 1, "
            f"the first: {table.paths[unlisted[0]]}"
        )
    if not weights.any():
        raise InputError(f"{listed.file}: all {len(table)} training images have weight 0")
    return weights


def read_probabilities(table: Table, files: Sequence[str | Path]) -> NDArray[np.float32]:
    """(N, C) probabilities of the images of `table`: the mean over the `files` that have them, NaN where none has.

    Columns are found by the names in a file's first line, or by position where it has no names. Raises InputError for
    what is wrong in a file, for classes that the table does not have, and for a file of other images.
    """
    total, count = np.zeros(table.targets.shape, np.float32), np.zeros(table.targets.shape, np.float32)
    for file in files:
        listed = read_image_values(file)
        columns, rows = _match_classes(listed, table.classes), match_images(listed, table.paths)
        taught = np.ix_(np.flatnonzero(rows >= 0), np.array(columns))
        total[taught] += listed.values[rows[rows >= 0]]
        count[taught] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _match_classes(listed: ImageValues, classes: Sequence[str]) -> list[int]:
    """The index in `classes` of each column of a file."""
    if listed.names is None:
        if listed.values.shape[1] != len(classes):
            raise InputError(
                f"{listed.file} has {listed.values.shape[1]} probabilities a line for {len(classes)} classes: "
                "let its first line name the classes, image_path,<class>,..."
            )
        return list(range(len(classes)))
    names = [to_nfc(name) for name in listed.names]
    if len(set(names)) < len(names):
        raise InputError(f"{listed.file}:1: a class is named twice")
    index_of = {name: index for index, name in enumerate(classes)}
    for name in names:
        if name not in index_of:
            raise InputError(f"{listed.file}:1: {name!r} is no class of the data set{suggest(name, classes)}")
    return [index_of[name] for name in names]


PATH_COLUMN = "image_path"  # what a first line with names begins with


class ImageValues(NamedTuple):
    """What a file holds."""

    file: Path
    paths: list[str]  # absolute
    values: NDArray[np.float32]  # (M, K)
    names: tuple[str, ...] | None  # of the K columns


def read_image_values(file: str | Path, highest: float = 1.0) -> ImageValues:
    """Read `file`. Its paths are relative to its folder, its numbers lie in 0...`highest`.

    Raises InputError, with the line, for anything else and for an image that is listed twice.
    """
    from dataset.frames import pd

    file = make_absolute(file)
    text = read_text(file)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        first = next(filter(None, reader), [])
    names = tuple(name.strip() for name in first[1:]) if first[:1] == [PATH_COLUMN] else None
    try:
        frame = pd.read_csv(
            io.BytesIO(text.encode()),  # a StringIO takes four times the room
            header=None,
            skiprows=0 if names is None else reader.line_num,
            dtype=defaultdict(lambda: np.float32, {0: str}),
            na_filter=False,
            low_memory=False,
        )
    except ValueError as error:  # the errors of pandas are ValueErrors
        raise _explain(file, text, highest) from error
    values = frame.iloc[:, 1:].to_numpy(np.float32)
    within = (values >= 0) & (values <= highest)  # NaN is not
    if values.shape[1] != len(first) - 1 or not (values.size and within.all()):
        raise _explain(file, text, highest)
    paths = [find_path(str(file.parent), path) for path in frame[0]]
    if len(set(paths)) < len(paths):
        raise _explain(file, text, highest)
    return ImageValues(file, paths, values, names)


def _explain(file: Path, text: str, highest: float) -> InputError:
    """What is wrong with `text`, and on which line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    width, seen = 0, {}
    try:
        for row in reader:
            where = f"{file}:{reader.line_num}:"
            if not row:
                continue
            is_header = not width and row[0] == PATH_COLUMN
            width = width or len(row)
            if is_header:
                continue
            if width < 2 or len(row) != width:
                return InputError(f"{where} {len(row)} columns where {max(width, 2)} are expected: path,number,...")
            for cell in row[1:]:
                if not _is_within(cell, highest):
                    return InputError(f"{where} {cell!r} is no number between 0 and {highest:g}")
            path = find_path(str(file.parent), row[0])
            if path in seen:
                return InputError(f"{where} {row[0]} stands on line {seen[path]} already: remove one")
            seen[path] = reader.line_num
    except csv.Error as error:
        return InputError(f"{file}:{reader.line_num}: {error}: this is not CSV; a path with a comma goes in quotes")
    return InputError(f"{file} lists no image: expected path,number,... a line")


def _is_within(cell: str, highest: float) -> bool:
    try:
        return bool(0 <= np.float32(cell) <= highest)
    except ValueError:
        return False


def match_images(listed: ImageValues, paths: Sequence[str]) -> NDArray[np.intp]:
    """(N,) the row in `listed` of each image of `paths`, -1 where it is not listed.

    An image is found by its whole path. Where that finds no image at all, the images have moved since the file was
    made. They are then found by the ends of their paths (`name`, then `folder/name` and so on, without the extension)
    where only one line and only one image has such an end, and that is said. A line in a folder of another split is of
    another image. Raises InputError where that finds none either.
    """
    row_of = {path: row for row, path in enumerate(listed.paths)}
    folder = str(Path.cwd())
    rows = np.array([row_of.get(find_path(folder, path), -1) for path in paths], dtype=np.intp)
    if (rows >= 0).any():
        return rows
    rows = _match_ends(listed.paths, paths)
    found = np.flatnonzero(rows >= 0).tolist()
    others = [image for image in found if _are_of_two_splits(listed.paths[rows[image]], paths[image])]
    hint = ""
    if others:
        line = listed.paths[rows[others[0]]]
        hint = f"; {line} has the name of {paths[others[0]]}, but lies in a folder of another split"
        rows[others] = -1
    if len(found) == len(others):
        advice = ": take the file of these images, or correct its paths" if others else ""
        raise InputError(
            f"{listed.file}: none of its {len(listed.paths)} images, such as {listed.paths[0]}, is one of "
            f"the data set's {len(paths)}, such as {paths[0]}{hint}{advice}"
        )
    first = int((rows >= 0).argmax())
    warn(
        f"{listed.file}: {len(found) - len(others):,} of {len(paths):,} images are found by the ends of their paths, "
        f"such as {paths[first]} by {listed.paths[rows[first]]}, since no whole path is listed{hint}"
    )
    return rows


def _are_of_two_splits(line: str, image: str) -> bool:
    """Whether the folders of two paths say two splits."""
    splits = {_find_nearest_split(os.path.split(path)[0]) for path in (line, image)}
    return len(splits - {None}) > 1


@functools.lru_cache  # many images lie in a folder
def _find_nearest_split(folder: str) -> str | None:
    """The split that the name of `folder` says, or else that of the nearest folder above it: in ~/dev/train, train."""
    return next(filter(None, map(find_split, reversed(Path(folder).parts))), None)


def _match_ends(listed: Sequence[str], paths: Sequence[str]) -> NDArray[np.intp]:
    """(N,) the row in `listed` of each of `paths` by the end of its path, -1 where it is missing or not unique."""
    lines, images = [_split(path) for path in listed], [_split(path) for path in paths]
    rows = np.full(len(paths), -1, dtype=np.intp)
    waiting = list(range(len(paths)))
    for length in range(1, max(map(len, images)) + 1):
        row_of: dict[tuple[str, ...], int] = {}
        for row, parts in enumerate(lines):
            row_of[parts[-length:]] = -1 if parts[-length:] in row_of else row
        count = Counter(parts[-length:] for parts in images)
        ambiguous = []
        for image in waiting:
            end = images[image][-length:]
            if end in row_of and row_of[end] >= 0 and count[end] == 1:
                rows[image] = row_of[end]
            elif end in row_of:
                ambiguous.append(image)
        waiting = ambiguous
    return rows


def _split(path: str) -> tuple[str, ...]:
    """The folders and the name of a path, the name without the extension of an image."""
    *folders, name = Path(path).parts
    stem, ending = os.path.splitext(name)
    return (*folders, stem if ending.lower() in IMAGE_EXTENSIONS else name)
