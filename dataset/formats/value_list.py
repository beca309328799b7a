"""value_list: `<split>.txt` with lines `path 0 1 0`, and `classes.txt` or `Concepts81.txt` with the names (only read).

As in the lists of NUS-WIDE and others that come with papers on hashing (Cao et al., HashNet, ICCV 2017;
github.com/thuml/HashNet): `train.txt`, `test.txt` and `database.txt`, which holds `train.txt` and is left.
`Concepts81.txt` is NUS-WIDE's own (Chua et al., CIVR 2009), in the order of its labels. Where nothing names them, the
classes are label_0 and so on. With `label.txt` beside such a list, the format is mlcls.
"""

from __future__ import annotations

from pathlib import Path

from dataset.class_names import require_unique
from dataset.files import has_image_ending
from dataset.formats.base import Format, SplitSource
from dataset.formats.train_list import Names, choose_names, parse_list, split_line
from dataset.label_values import VALUES
from dataset.splits import find_named, require_one
from dataset.table import SPLITS, Table
from dataset.text_files import read_first_lines, read_lines

CONCEPTS = ("Concepts81.txt", "ConceptsList/Concepts81.txt")


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    if (root / "label.txt").is_file():
        return []
    return [file for file in find_named(root, "{}.txt", split) if file.is_file() and has_values(file)]


def has_values(file: Path) -> bool:
    """Whether one of its first lines is an image and values."""
    parts = map(split_line, read_first_lines(file))
    return any(has_image_ending(path) and bool(labels) and {*labels} <= {*VALUES} for path, labels in parts)


def read(source: SplitSource) -> Table:
    root = source.root
    file = require_one(files_of_split(root, source.split), source.split)
    lines = list(read_lines(file))
    concepts = next((root / name for name in CONCEPTS if (root / name).is_file()), None)
    given = None if source.classes is None else Names(source.classes, "CLASSES")
    if concepts:
        found = list(read_lines(concepts))
        classes = require_unique([name for _, name in found], lambda index: f"{concepts}:{found[index][0]}")
        given = Names(classes, concepts.name)
    return parse_list(source, file, lines, choose_names(file, lines, root, given), files_of_split)


FORMAT = Format(
    expects="train.txt with lines `path 0 1 0` (value_list)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
