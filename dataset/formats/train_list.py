"""train_list: `<split>_list.txt` with a line `path<TAB>1,0,-1` for each image, and `classes.txt`.

1 is present, 0 absent, -1 or blank unknown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dataset.files import read_lines, replace_text
from dataset.formats.base import SplitSource
from dataset.formats.rows import Rows, images_in_splits, parse_values, read_classes, require_lines, write_classes
from dataset.table import Table
from utils import InputError


def read_list(file: Path, root: Path, classes: Callable[[int], Sequence[str]]) -> Table:
    """The table of a list of `path<TAB>1,0,-1`; `classes(count)` are the names for so many labels a line."""
    rows = None
    for number, line in read_lines(file):
        path, tab, labels = line.rpartition("\t")

        def where(number: int = number) -> str:
            return f"{file}:{number}"

        if not tab:
            raise InputError(f"{where()}: no TAB between path and labels: {line[:80]!r}")
        values = labels.split(",")
        rows = rows or Rows(root, root, classes(len(values)))
        rows.add(path, parse_values(values, rows.classes, where), where)
    if rows is None:
        raise InputError(f"{file} lists no images")
    return rows.make_table(file)


def write_list(file: Path, folder: str, table: Table, names: list[str]) -> None:
    require_lines(names)
    lines = [
        f"{os.path.normpath(os.path.join(folder, name))}\t{','.join(map(str, row))}\n"
        for name, row in zip(names, table.targets.tolist(), strict=True)
    ]
    replace_text(file, "".join(lines))


def read_train_list(source: SplitSource) -> Table:
    def name_classes(count: int) -> Sequence[str]:
        fits = source.classes is not None and len(source.classes) == count
        return read_classes(source.root, source.classes if fits else None)

    return read_list(source.root / f"{source.split}_list.txt", source.root, name_classes)


def write_train_list(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_list(root / f"{split}_list.txt", images_in_splits(split), table, names)
