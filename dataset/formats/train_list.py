"""train_list: `<split>_list.txt` with a line `path<TAB>1,0,-1` for each image, and `classes.txt`.

1 is present, 0 absent, -1 or blank unknown. A line may also have blanks or TABs between all: `path 1 0 -1`, as in the
lists of NUS-WIDE that papers on hashing share (Cao et al., HashNet, ICCV 2017).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.class_names import read_classes, write_classes
from dataset.formats.base import Format, SplitSource
from dataset.label_values import VALUES, choose_values, decide_values, name_values, parse_values
from dataset.rows import Rows
from dataset.splits import find_named, require_one
from dataset.table import SPLITS, Table
from dataset.text_files import read_first_lines, read_lines, replace_text, require_lines
from utils import InputError, warn

VALUES_ALONE = ("0", "1", "-1")  # what no image is called: its name has an ending


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    has_names = (root / "classes.txt").is_file()
    return [file for file in find_named(root, "{}_list.txt", split) if has_labels(file, has_names)]


def has_labels(file: Path, has_names: bool) -> bool:
    """Whether one of its first lines has labels after a path, or it has no line.

    Other tools list bare names, or the names of classes, in such files. Beside a list of classes (`has_names`), a TAB
    is enough: all its first lines may have a mistake.
    """
    if not file.is_file():
        return False
    lines = read_first_lines(file)
    return not lines or any(
        (has_names and "\t" in line) or any(label.strip().lower() in VALUES for label in split_line(line)[1])
        for line in lines
    )


def read(source: SplitSource) -> Table:
    file = require_one(files_of_split(source.root, source.split), source.split)
    lines = list(read_lines(file))
    names = choose_names(file, lines, source.root, None if source.classes is None else Names(source.classes, "CLASSES"))
    return parse_list(source, file, lines, names, files_of_split)


class Names(NamedTuple):
    """The names of the classes, and the file, line or constant that says them."""

    classes: Sequence[str]
    source: str


def choose_names(file: Path, lines: Sequence[tuple[int, str]], root: Path, given: Names | None) -> Names:
    """The names in `classes.txt`, or those `given` where their number is that of the labels, else label_0, label_1 ...

    Warns in the last case. Raises InputError where the only value of a line may also be the number of its class.
    """
    number, line = lines[0] if lines else (0, "")
    num_labels = len(split_line(line)[1])
    if (root / "classes.txt").is_file():
        return Names(read_classes(root, None), "classes.txt")
    if given and len(given.classes) == num_labels:
        return given
    if num_labels == 1:
        raise InputError(
            f"{file}:{number}: one value after the path is 1 or 0 for the only class, or the number of a class, and "
            f"nothing says which: write the name of the only class into {root / 'classes.txt'}, or a csv with names"
        )
    if num_labels:
        others = f" ({given.source} has {len(given.classes)} names)" if given else ""
        warn(
            f"{file}: nothing names its {num_labels} labels, so they are label_0 to label_{num_labels - 1}: "
            f"write their names into {root / 'classes.txt'}, one a line{others}"
        )
    return Names([f"label_{index}" for index in range(num_labels)], f"line {number}")


def parse_list(
    source: SplitSource,
    file: Path,
    lines: Iterable[tuple[int, str]],
    names: Names,
    files_of_split: Callable[[Path, str], list[Path]],
) -> Table:
    """The table of the (number, text) lines `path<TAB>1,0,-1`, or `path 1 0 -1`, of `file`.

    `files_of_split` are the format's: what -1 means is judged over all splits.
    """
    classes = names.classes
    rows = Rows(source.root, source.root, classes)
    values = choose_values(source.options.minus_one)

    def list_others() -> Iterator[bytes]:
        for split in SPLITS:
            for other in files_of_split(source.root, split) if split != source.split else ():
                for number, line in read_lines(other):
                    yield parse_values(split_line(line)[1], classes, f"{other}:{number}", values)

    for number, line in lines:
        path, labels = split_line(line)
        where = f"{file}:{number}"
        if not labels:
            raise InputError(f"{where}: no TAB between path and labels: {line[:80]!r}")
        if len(labels) != len(classes):
            raise InputError(f"{where}: {len(labels)} labels, but there are {len(classes)} classes in {names.source}")
        rows.add(path, parse_values(labels, classes, where, values), where)
    return decide_values(rows.make_table(file), file, list_others)


def split_line(line: str) -> tuple[str, list[str]]:
    """(path, labels) of a line `path<TAB>1,0,-1` or `path 1 0 -1`; no labels where it is neither.

    Nor are there any in `path 1`: other tools write the index of an image's only class so.
    """
    path, tab, labels = line.rpartition("\t")
    if tab and path.rpartition("\t")[2] not in VALUES_ALONE:
        return path, labels.split(",")
    words = line.split()
    count = 0
    while count < len(words) and words[-1 - count] in VALUES_ALONE:
        count += 1
    return (line.rsplit(maxsplit=count)[0], words[-count:]) if 1 < count < len(words) else (line, [])


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_list(root / f"{split}_list.txt", FORMAT.images_folder(split), table, names)


def write_list(file: Path, folder: str, table: Table, names: list[str]) -> None:
    """Write a line `path<TAB>1,0,-1` for each image; its path is `folder/name`."""
    require_lines(names)
    texts = name_values(table)
    lines = [
        f"{os.path.normpath(os.path.join(folder, name))}\t{','.join(texts[value] for value in row)}\n"
        for name, row in zip(names, table.targets.tolist(), strict=True)
    ]
    replace_text(file, "".join(lines))


FORMAT = Format(
    expects="train_list.txt",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
)
