"""automl: a CSV file without a header, with rows `TRAIN,gs://bucket/a.jpg,cat,dog` (only read).

Google's AutoML Vision and Vertex AI import such files (cloud.google.com/vision/automl/docs/prepare and
cloud.google.com/vision/automl/object-detection/docs/csv-format): what the row is for, the image, its labels. The first
may be missing; TRAIN, VALIDATION and TEST are splits, in capitals or not; what is UNASSIGNED is train. For detection, a
row has one label and eight numbers or blanks, the corners of a box; other numbers after a label stop. An image that
stands in several rows has all their labels. The images are looked for in the folder, by the ends of their paths:
nothing is fetched.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from dataset.csv_files import read_header
from dataset.csv_files import read_rows as read_csv_rows
from dataset.files import has_image_ending
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import ImageFinder
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import WORDS
from dataset.table import SPLITS, Table
from utils import InputError

BOX_CELLS = 9  # a label, and the corners of its box
SPLIT_OF = WORDS | {"unassigned": "train"}


class Row(NamedTuple):
    split: str
    image: str
    labels: list[str]
    where: str


def list_splits(root: Path) -> list[str]:
    found = {row.split for file in find_files(root) for row in read_rows(file)}
    return [split for split in SPLITS if split in found]


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root)


def find_files(root: Path) -> list[Path]:
    return [file for file in sorted(root.glob("*.csv")) if file.is_file() and begins_rightly(read_header(file))]


def begins_rightly(cells: list[str]) -> bool:
    """Whether the first row is one of data, not of names of columns."""
    use, image = cells[:2] if cells[1:] and cells[0].lower() in SPLIT_OF else ("", (cells or [""])[0])
    return has_image_ending(image) and (bool(use) or image.startswith("gs://"))


def read_rows(file: Path) -> list[Row]:
    rows = []
    for line, cells in read_csv_rows(file):
        texts = [cell.strip() for cell in cells]
        use = texts.pop(0).lower() if texts[0].lower() in (*SPLIT_OF, "") else ""
        where = f"{file}:{line}"
        if not texts:
            raise InputError(f"{where}: {cells[0]!r} stands alone: an image and its labels are to follow")
        image, *labels = texts
        rows.append(Row(SPLIT_OF.get(use, "train"), image, leave_box_out(labels, where), where))
    return rows


def leave_box_out(cells: list[str], where: str) -> list[str]:
    """The labels in the cells after an image. Raises InputError where the numbers after a label are no whole box."""
    numbers = [*filter(None, cells[1:])]
    if numbers and all(map(is_number, numbers)):
        if len(cells) == BOX_CELLS:
            cells = cells[:1]
        elif not all(map(str.isdecimal, filter(None, cells))):  # whole numbers alone are names of classes
            raise InputError(
                f"{where}: the numbers after {cells[0][:80]!r} are labels or a box: for a box write {BOX_CELLS - 1} "
                "cells after its label, numbers or blanks; for labels put the numbers first"
            )
    return [*filter(None, cells)]


def is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def read(source: SplitSource) -> Table:
    root, files = source.root, find_files(source.root)
    entries = [row for file in files for row in read_rows(file)]
    index = source.choose_classes(name for row in entries for name in row.labels)
    finder = ImageFinder(root)
    labels: dict[str, tuple[str, set[int]]] = {}  # by image: where it stands first, its classes
    for row in entries:
        if row.split == source.split:
            _, present = labels.setdefault(row.image, (row.where, set()))
            present |= {*index.find_all(row.labels, row.where)}
    rows = Rows(root, root, index.classes)
    for image, (where, present) in labels.items():
        rows.add(finder.find(image, where), mark_columns(present, (), len(index.classes), where), where)
    return rows.make_table(files[0])


FORMAT = Format(
    expects="a .csv with rows TRAIN,gs://bucket/a.jpg,label (automl)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
