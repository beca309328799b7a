"""csv: `<split>.csv`, or one file with a column `split`.

Other columns: `image_path`; `labels` (names joined by a separator, in quotes where they hold it) or one a class (1, 0,
-1 or blank); `group`, if any.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from dataset.files import read_text, replace_text
from dataset.formats.base import SPLITS, SplitSource
from dataset.formats.rows import (
    Rows,
    find_class,
    images_in_splits,
    join_files,
    mark,
    parse_values,
    read_classes,
    require_unique,
    split_names,
)
from dataset.table import Table
from utils import InputError

CSV_COLUMNS = ("image_path", "labels", "split", "group")  # what else a csv has are classes


def list_csv_files(root: Path) -> dict[str, list[Path]]:
    """The files that each split is in: `<split>.csv`, or else whatever has a column `split`."""
    own = {split: root / f"{split}.csv" for split in SPLITS}
    files = {split: [file] for split, file in own.items() if file.is_file() and "image_path" in read_header(file)}
    if files:
        return files
    shared = [file for file in sorted(root.glob("*.csv")) if {"image_path", "split"} <= set(read_header(file))]
    found = {split for file in shared for split in _list_splits_in(file, file.stat().st_mtime_ns)}
    return {split: shared for split in SPLITS if split in found}


@functools.lru_cache  # asked for several times before a run begins
def _list_splits_in(file: Path, changed: int) -> set[str]:
    """What stands in the column `split` of a csv file that was last `changed` at that time."""
    return {row["split"].strip() for _, row in read_csv(file)}


def read_header(file: Path) -> list[str]:
    """The names of the columns of a csv file; none where it is something else."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            return [name.strip() for name in next(csv.reader(lines), [])]
    except csv.Error:
        return []
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def read_csv(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of the rows of a csv file, the header left out."""
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


def read_csv_split(source: SplitSource) -> Table:
    root, split, separator = source.root, source.split, source.options.separator
    files = list_csv_files(root)
    tables = []
    for file in files[split]:
        header = read_header(file)
        names = tuple(name for name in header if name not in CSV_COLUMNS)
        by_name = "labels" in header
        if by_name:  # whatever is named in any split
            cells = (row.get("labels", "") for some in {*chain(*files.values())} for _, row in read_csv(some))
            names = read_classes(root, sorted({name for cell in cells for name in split_names(cell, separator)}))
        if not names:
            raise InputError(f"{file}: neither a column `labels` that names a class nor a column of a class")
        columns = {name: column for column, name in enumerate(names)}
        rows = Rows(root, root, names)
        for number, row in read_csv(file):

            def where(file: Path = file, number: int = number) -> str:
                return f"{file}:{number}"

            row_split = row.get("split", split).strip()
            if row_split not in SPLITS:
                raise InputError(f"{where()}: the split {row_split!r} is none of {', '.join(SPLITS)}")
            if row_split != split:
                continue
            if by_name:
                labels = [find_class(name, columns, where) for name in split_names(row["labels"], separator)]
                values = mark(labels, (), len(names), where)
            else:
                values = parse_values([row[name] for name in names], names, where)
            rows.add(row["image_path"], values, where, row.get("group", "").strip())
        if rows.rows or len(files[split]) == 1:
            tables.append(rows.make_table(file, "group" in header))
    return join_files(tables, files[split])


def name_csv_images(table: Table, names: list[str]) -> list[str]:
    for name in set(table.classes) & set(CSV_COLUMNS):
        raise InputError(f"a class is called {name!r}, which means something else in a csv: rename it")
    return names


def write_csv(table: Table, root: Path, split: str, names: list[str]) -> None:
    """A column a class, which holds every table; the names' order is that of the columns."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    groups = [] if table.groups is None else [table.groups]
    writer.writerow(["image_path", *(["group"] if groups else []), *table.classes])
    for name, row, *group in zip(names, table.targets.tolist(), *groups, strict=True):
        writer.writerow([os.path.normpath(os.path.join(images_in_splits(split), name)), *group, *row])
    replace_text(root / f"{split}.csv", buffer.getvalue())
