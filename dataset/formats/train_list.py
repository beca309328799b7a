"""train_list: `<split>_list.txt` with a line `path<TAB>1,0,-1` for each image, and `classes.txt`.

1 is present, 0 absent, -1 or blank unknown. A line may also have blanks or TABs between all: `path 1 0 -1`, as in the
lists of NUS-WIDE that papers on hashing share (Cao et al., HashNet, ICCV 2017).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dataset.class_names import read_classes, write_classes
from dataset.files import open_file
from dataset.formats.base import Format, SplitSource
from dataset.label_values import choose_values, decide_values, name_values, parse_values
from dataset.rows import Rows
from dataset.table import SPLITS, Table
from dataset.text_files import read_lines, replace_text, require_lines
from utils import InputError, warn

VALUES_ALONE = ("0", "1", "-1")  # what no image is called: its name has an ending
MOST_LINE_BYTES = 1 << 20  # of the first line of a file that may be anything


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if has_labels(name_list(root, split))]


def has_labels(file: Path) -> bool:
    """Whether its first line has labels after a path, or it has no line: other tools list bare names in such files."""
    if not file.is_file():
        return False
    line = read_first_line(file)
    return "\t" in line or bool(split_line(line)[1]) or not line


def read_first_line(file: Path) -> str:
    """The first line that is not blank of a file that may be anything; "" where there is none."""
    try:
        with open_file(file) as stream:
            text = stream.read(MOST_LINE_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    return next((line.removesuffix("\r") for line in text.split("\n") if line.strip()), "")


def files_of_split(root: Path, split: str) -> list[Path]:
    return [name_list(root, split)]


def name_list(root: Path, split: str) -> Path:
    return root / f"{split}_list.txt"


def read(source: SplitSource) -> Table:
    file = name_list(source.root, source.split)
    lines = list(read_lines(file))
    classes = choose_classes(file, lines, source.root, source.classes)
    return parse_list(source, file, lines, classes, lambda split: name_list(source.root, split))


def choose_classes(
    file: Path, lines: Sequence[tuple[int, str]], root: Path, given: Sequence[str] | None
) -> tuple[str, ...]:
    """The names in `classes.txt`, or those `given` where their number is that of the labels, else label_0, label_1 ...

    Warns in the last case.
    """
    num_labels = len(split_line(lines[0][1])[1]) if lines else 0
    numbered = tuple(f"label_{index}" for index in range(num_labels))
    fits = given is not None and len(given) == num_labels
    classes = read_classes(root, given if fits else numbered)
    if numbered and classes == numbered and not (root / "classes.txt").is_file():
        warn(
            f"{file}: nothing names its {num_labels} labels, so they are label_0 to label_{num_labels - 1}: write "
            f"their names into {root / 'classes.txt'}, one a line"
        )
    return classes


def parse_list(
    source: SplitSource,
    file: Path,
    lines: Iterable[tuple[int, str]],
    classes: Sequence[str],
    name_list: Callable[[str], Path],
) -> Table:
    """The table of the (number, text) lines `path<TAB>1,0,-1`, or `path 1 0 -1`, of `file`.

    `name_list` names the file of each split: what -1 means is judged over all.
    """
    rows = Rows(source.root, source.root, classes)
    values = choose_values(source.options.minus_one)

    def list_others() -> Iterator[bytes]:
        for other in [name_list(split) for split in SPLITS if split != source.split]:
            for number, line in read_lines(other) if has_labels(other) else ():
                yield parse_values(split_line(line)[1], classes, f"{other}:{number}", values)

    for number, line in lines:
        path, labels = split_line(line)
        where = f"{file}:{number}"
        if not labels:
            raise InputError(f"{where}: no TAB between path and labels: {line[:80]!r}")
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
    write_list(name_list(root, split), FORMAT.images_folder(split), table, names)


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
