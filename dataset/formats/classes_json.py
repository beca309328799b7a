"""classes_json: `<split>.json`, {"classes": [names], "images": [[path, [names present], [names unknown]?], ...]}."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dataset.files import find_line, read_json
from dataset.formats.base import SplitSource
from dataset.formats.rows import Rows, find_class, images_in_splits, mark, require_unique, write_json
from dataset.table import Table
from utils import InputError


def read_classes_json(source: SplitSource) -> Table:
    file = source.root / f"{source.split}.json"
    data, text = read_json(file)
    if not (isinstance(data, dict) and isinstance(data.get("classes"), list) and isinstance(data.get("images"), list)):
        raise InputError(f'{file}: expected {{"classes": [...], "images": [[path, [names]], ...]}}')
    names = require_unique(data["classes"], lambda index: f"{file}:{find_line(text, data['classes'][index], 2)}")
    columns = {name: column for column, name in enumerate(names)}
    rows = Rows(file.parent, source.root, names)
    seen: Counter[str] = Counter()
    for number, entry in enumerate(data["images"], start=1):
        if not is_entry(entry):
            raise InputError(f"{file}: image {number} is {str(entry)[:80]}, not [path, [names], [unknown names]?]")
        path, *lists = entry
        seen[path] += 1

        def where(path: str = path, occurrence: int = seen[path]) -> str:
            return f"{file}:{find_line(text, path, occurrence)}"

        present, unknown = ([find_class(n.strip(), columns, where) for n in some] for some in (*lists, [])[:2])
        rows.add(path, mark(present, unknown, len(names), where), where)
    return rows.make_table(file)


def is_entry(entry: Any) -> bool:
    """Whether `entry` is a path and one or two lists of names."""
    return (
        isinstance(entry, list)
        and len(entry) in (2, 3)
        and isinstance(entry[0], str)
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in entry[1:])
    )


def write_classes_json(table: Table, root: Path, split: str, names: list[str]) -> None:
    images = []
    for name, row in zip(names, table.targets, strict=True):
        lists = [[table.classes[column] for column in np.flatnonzero(row == value)] for value in (1, -1)]
        path = os.path.normpath(os.path.join(images_in_splits(split), name))
        images.append([path, *(lists if lists[1] else lists[:1])])
    write_json(root / f"{split}.json", classes=list(table.classes), images=images)
