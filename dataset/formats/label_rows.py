"""label_rows: `<split>.csv` with an image and its `label`: a name, names joined by commas, or a row for each.

It is only read.

    image_path,label          image,label
    a.jpg,"cat,dog"           a.jpg,cat
    b.jpg,dog                 a.jpg,dog

The first is LightlyTrain's (docs.lightly.ai/train/stable/image_classification.html, "CSV-based Datasets"), where labels
may be numbers of classes, too: `classes.txt` names them. In the second, as in lists of search results or of votes, an
image stands once for each of its labels. What may be one name with a comma, or several, is an error unless
`classes.txt` tells. A label that an image does not have is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.class_names import read_classes, split_names
from dataset.csv_files import names_labels, read_cells
from dataset.formats.base import Format, SplitSource
from dataset.formats.csv import read_header
from dataset.image_finder import find_folder
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import find_split, require_one, sort_files
from dataset.table import Table
from utils import InputError

IMAGES = ("image_path", "image", "image_name", "image_id", "filename", "file_name", "fname", "path")
LABEL = "label"


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """{split: files}: those whose names say a split, or the only CSV file; others may be results or notes."""
    files = [file for file in root.glob("*.csv") if file.name != "metadata.csv"]  # which is Hugging Face's
    found = [file for file in files if (find_split(file.stem) or len(files) == 1) and find_image_column(file)]
    return sort_files(found)


def find_image_column(file: Path) -> str | None:
    """The image's column, where the only other is a `label` that holds names."""
    header = read_header(file) if file.is_file() else []
    images = [name for name in header if name in IMAGES]
    return images[0] if len(images) == 1 and names_labels(file, header) else None


def read(source: SplitSource) -> Table:
    root, split = source.root, source.split
    files = {name: require_one(found, name) for name, found in find_files(root).items()}
    rows_of = {name: read_rows(file) for name, file in files.items()}  # all: every split has the same classes
    known = read_classes(root, ())
    names_in = choose_reading(rows_of.values(), known, root)
    index = source.choose_classes(name for rows in rows_of.values() for row in rows for name in names_in[row.cell])
    labels: dict[str, tuple[str, set[int]]] = {}  # by image: where it stands first, its classes
    for row in rows_of[split]:
        _, present = labels.setdefault(row.image, (row.where, set()))
        present |= {*index.find_all(names_in[row.cell], row.where)}
    folders = (".", "images", split, f"images/{split}", f"{split}_images")
    rows = Rows(find_folder(root, folders, next(iter(labels), "")), root, index.classes)
    for image, (where, present) in labels.items():
        rows.add(image, mark_columns(present, (), len(index.classes), where), where)
    return rows.make_table(files[split])


class Row(NamedTuple):
    image: str
    cell: str
    where: str


def read_rows(file: Path) -> list[Row]:
    column = find_image_column(file)
    assert column is not None, "find_files has looked"
    return [Row(image, cell, f"{file}:{line}") for line, (image, cell) in read_cells(file, (column, LABEL))]


def choose_reading(tables: Iterable[Sequence[Row]], known: Sequence[str], root: Path) -> dict[str, list[str]]:
    """{cell: the names in it}. Raises InputError where a cell with a comma may hold one name or several.

    It holds several where it shares one with another cell, and no image stands twice. `known` names decide.
    """
    tables = list(tables)
    cells = sorted({row.cell for rows in tables for row in rows})
    whole = {cell: [cell] if cell else [] for cell in cells}
    parts = {cell: split_names(cell, ",") for cell in cells}
    named = {name for names in parts.values() for name in names}
    if named <= {str(index) for index in range(len(known))} - set(known):  # numbers of classes
        return {cell: [known[int(name)] for name in names] for cell, names in parts.items()}
    joined = [cell for cell in cells if len(parts[cell]) > 1]
    if not joined or set(cells) - {""} <= set(known):
        return whole
    counts = Counter(name for names in parts.values() for name in set(names))
    shared = [cell for cell in joined if any(counts[name] > 1 for name in parts[cell])]
    repeated = any(len({row.image for row in rows}) < len(rows) for rows in tables)
    if known or (len(shared) == len(joined) and not repeated):
        return parts
    if not shared and repeated:
        return whole
    raise InputError(
        f"{root}: is {joined[0][:80]!r} one label, or {len(parts[joined[0]])}? Write the names of the classes into "
        f"{root / 'classes.txt'}, one a line"
    )


FORMAT = Format(
    expects="train.csv with an image and its label (label_rows)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
