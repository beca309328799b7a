"""csv: `<split>.csv`, or one file with a column `split`.

Other columns: `image_path`; `labels` (names joined by a separator, in quotes where they hold it; a JSON or Python list;
or Label Studio's `{"choices": [...]}`) or one a class (1, 0, -1 or blank); `group`, if any.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from dataset.class_names import find_class, read_classes, require_unique
from dataset.csv_files import names_labels
from dataset.files import open_file
from dataset.formats.base import Format, SplitSource
from dataset.label_cells import split_cell
from dataset.label_values import mark_columns, parse_values
from dataset.rows import Rows, join_files
from dataset.table import SPLITS, Table
from dataset.text_files import read_text, replace_text
from utils import InputError

MOST_HEADER_BYTES = 1 << 22  # of the first line of a file that may be anything
COLUMNS = ("image_path", "labels", "split", "group")  # every other column is a class


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """The files of each split: `<split>.csv`; where there is none of these, every file with a column `split`."""
    named = {split: root / f"{split}.csv" for split in SPLITS}
    files = {split: [file] for split, file in named.items() if is_table(file)}
    if files:
        return files
    shared = [
        file
        for file in sorted(root.glob("*.csv"))
        if file.is_file() and {"image_path", "split"} <= set(read_header(file))
    ]
    found = {split for file in shared for split in _list_splits_in(file, *_stamp(file))}
    return {split: shared for split in SPLITS if split in found}


def is_table(file: Path) -> bool:
    """Whether it has a column `image_path`, and is no file of label_rows, where `label` is no class but names them."""
    header = read_header(file) if file.is_file() else []
    return "image_path" in header and not names_labels(file, header)


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@functools.lru_cache  # asked for several times before a run begins
def _list_splits_in(file: Path, size: int, changed: int) -> set[str]:
    """What stands in the column `split` of a csv file of that size that was last `changed` at that time."""
    return {row["split"].strip() for _, row in read_rows(file)}


def read_header(file: Path) -> list[str]:
    """The names of the columns of a csv file; none where it is something else."""
    try:
        with open_file(file) as stream:
            text = stream.read(MOST_HEADER_BYTES).decode("utf-8-sig", errors="replace")
        return [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
    except csv.Error:
        return []
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of the rows of a csv file, without the header."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = require_unique(next(reader, []), lambda index: f"{file}:1: column {index + 1}")
        for row in reader:
            if len(row) != len(header) and row:
                raise InputError(f"{file}:{reader.line_num}: {len(row)} cells, but {len(header)} columns")
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}") from error


def read(source: SplitSource) -> Table:
    root, split, separator = source.root, source.split, source.options.separator
    files = find_files(root)
    tables = []
    for file in files[split]:
        header = read_header(file)
        classes = tuple(name for name in header if name not in COLUMNS)
        by_name = "labels" in header
        if by_name:  # without a list, the classes are what is named in any split
            all_files = {*chain(*files.values())}
            names = {
                name
                for any_file in all_files
                for number, row in read_rows(any_file)
                for name in split_cell(row.get("labels", ""), separator, f"{any_file}:{number}")
            }
            classes = read_classes(root, sorted(names))
        if not classes:
            raise InputError(f"{file}: neither a column `labels` that names a class nor a column of a class")
        columns = {name: column for column, name in enumerate(classes)}
        rows = Rows(root, root, classes)
        for number, row in read_rows(file):
            where = f"{file}:{number}"
            row_split = row.get("split", split).strip()
            if row_split not in SPLITS:
                raise InputError(f"{where}: the split {row_split!r} is none of {', '.join(SPLITS)}")
            if row_split != split:
                continue
            if by_name:
                present = [find_class(name, columns, where) for name in split_cell(row["labels"], separator, where)]
                values = mark_columns(present, (), len(classes), where)
            else:
                values = parse_values([row[name] for name in classes], classes, where)
            rows.add(row["image_path"], values, where, row.get("group", "").strip())
        if rows.rows or len(files[split]) == 1:
            tables.append(rows.make_table(file, "group" in header))
    return join_files(tables, files[split])


def name_images(table: Table, names: list[str]) -> list[str]:
    for name in set(table.classes) & set(COLUMNS):
        raise InputError(f"a class is called {name!r}, which means something else in a csv: rename it")
    return names


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    """Write a column for each class, which any table fits into and which keeps the order of the classes."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    groups = [] if table.groups is None else [table.groups]
    writer.writerow(["image_path", *(["group"] if groups else []), *table.classes])
    for name, row, *group in zip(names, table.targets.tolist(), *groups, strict=True):
        writer.writerow([os.path.normpath(os.path.join(FORMAT.images_folder(split), name)), *group, *row])
    replace_text(root / f"{split}.csv", buffer.getvalue())


FORMAT = Format(
    expects="train.csv (commas, a column image_path)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    name_images=name_images,
    keeps_groups=True,
    splits_share_files=True,
)
