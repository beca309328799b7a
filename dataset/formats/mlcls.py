"""mlcls, PaddleX's MLClsDataset: `label.txt` with `index name`; `<split>.txt` like that of train_list."""

from __future__ import annotations

import re
from pathlib import Path

from dataset.class_names import require_unique
from dataset.formats.base import Format, SplitSource
from dataset.formats.train_list import Names, has_labels, parse_list, write_list
from dataset.splits import find_named, require_one
from dataset.table import SPLITS, Table
from dataset.text_files import read_first_lines, read_lines, replace_text, require_lines
from utils import InputError

INDEX = re.compile(r"\s*\d+\s")  # at the beginning of a line in label.txt


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    names = root / "label.txt"
    if not names.is_file():
        return []
    has_names = any(INDEX.match(line) for line in read_first_lines(names))
    return [file for file in find_named(root, "{}.txt", split) if has_labels(file, has_names)]


def read(source: SplitSource) -> Table:
    file = require_one(files_of_split(source.root, source.split), source.split)
    names = Names(read_label_txt(source.root / "label.txt"), "label.txt")
    return parse_list(source, file, read_lines(file), names, files_of_split)


def read_label_txt(path: Path) -> tuple[str, ...]:
    """The class names in PaddleX's label.txt: `index name` a line, indices 0...C-1 in any order."""
    lines = list(read_lines(path))
    names: dict[int, tuple[str, int]] = {}
    for number, line in lines:
        index, _, name = line.strip().partition(" ")
        if not (index.isascii() and index.isdigit() and len(index) <= 10) or int(index) >= len(lines):
            raise InputError(
                f"{path}:{number}: {line.strip()[:80]!r} does not begin with an index 0...{len(lines) - 1}, as the "
                f"{len(lines)} classes need; names alone belong into classes.txt, the images then into train_list.txt"
            )
        if int(index) in names:
            raise InputError(f"{path}:{number}: index {index} stands here a second time")
        names[int(index)] = name, number
    if not names:
        raise InputError(f"{path} is empty: write a line `index name` a class into it")
    ordered = [names[index] for index in range(len(names))]
    return require_unique([name for name, _ in ordered], lambda index: f"{path}:{ordered[index][1]}")


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    require_lines(table.classes)
    replace_text(root / "label.txt", "".join(f"{index} {name}\n" for index, name in enumerate(table.classes)))
    write_list(root / f"{split}.txt", FORMAT.images_folder(split), table, names)


FORMAT = Format(
    expects="label.txt and train.txt (mlcls)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="images",
)
