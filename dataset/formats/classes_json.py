"""classes_json: `<split>.json`, {"classes": [names], "images": [[path, [names present], [names unknown]?], ...]}."""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

from dataset.class_names import name_labels, require_unique
from dataset.formats.base import Format, SplitSource
from dataset.formats.coco_json import is_coco
from dataset.formats.label_studio import is_export
from dataset.json_files import JsonLine, looks_like, parse_json, write_json
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import find_named, require_one
from dataset.table import SPLITS, Table, require_room
from dataset.text_files import read_text
from utils import InputError

CLASSES = r'"classes"\s*:\s*\[\s*["\]]'  # a list of names
IMAGES = r'"images"\s*:\s*\[\s*\['  # a list of lists


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [file for file in find_named(root, "{}.json", split) if seems_ours(file)]


def seems_ours(file: Path) -> bool:
    """Whether it holds one of the two lists as they are here: many tools write a `train.json`."""
    ours = looks_like(file, "{", CLASSES) or looks_like(file, "{", IMAGES)
    return ours and not (is_coco(file) or is_export(file))


def read(source: SplitSource) -> Table:
    file = require_one(files_of_split(source.root, source.split), source.split)
    text = read_text(file)
    data = parse_json(text, file)
    if not (isinstance(data, dict) and isinstance(data.get("classes"), list) and isinstance(data.get("images"), list)):
        raise InputError(f'{file}: expected {{"classes": [...], "images": [[path, [names]], ...]}}')
    classes = require_unique(data["classes"], lambda index: locate_class(file, text, data["classes"][index]))
    index = source.index_classes(classes)
    require_room(len(data["images"]), len(classes))
    rows = Rows(file.parent, source.root, index.classes)
    seen: Counter[str] = Counter()
    for number, entry in enumerate(data["images"], start=1):
        if not is_entry(entry):
            raise InputError(f"{file}: image {number} is {reprlib.repr(entry)}, not [path, [names], [unknown names]?]")
        path, present_names, unknown_names = entry if len(entry) == 3 else (*entry, [])
        seen[path] += 1
        where = JsonLine(file, text, path, seen[path])
        present = index.find_all(present_names, where)
        unknown = index.find_all(unknown_names, where)
        rows.add(path, mark_columns(present, unknown, len(index.classes), where), where)
    return rows.make_table(file)


def locate_class(file: Path, text: str, name: object) -> str:
    """Where the class `name` stands for the second time."""
    return str(JsonLine(file, text, name, 2)) if isinstance(name, str | float | int | None) else str(file)


def is_entry(entry: Any) -> bool:
    """Whether `entry` is a path and one or two lists of names."""
    return (
        isinstance(entry, list)
        and len(entry) in (2, 3)
        and isinstance(entry[0], str)
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in entry[1:])
    )


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    images = []
    for name, row in zip(names, table.targets, strict=True):
        path = os.path.normpath(os.path.join(FORMAT.images_folder(split), name))
        present, unknown = name_labels(row, table.classes)
        images.append([path, present, unknown] if unknown else [path, present])
    write_json(root / f"{split}.json", classes=list(table.classes), images=images)


FORMAT = Format(
    expects="train.json (classes_json)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
)
