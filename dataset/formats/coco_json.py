"""coco_json: `annotations/instances_<split>*.json`, images in `<split>*/` or `images/<split>*/`; classes by rising id.

An image's "unknown_category_ids" are unknown.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dataset.class_names import require_unique
from dataset.formats.base import Format, SplitSource
from dataset.json_files import JsonLine, parse_json, write_json
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.table import SPLITS, Table, require_room
from dataset.text_files import read_text
from utils import InputError

UNKNOWN_IDS = "unknown_category_ids"  # the key of an image's unknown classes
LISTS = ("images", "annotations", "categories")


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    return list_files(root / "annotations", split)


def list_files(folder: Path, split: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"instances_{split}*.json") if file.is_file())


def read(source: SplitSource) -> Table:
    tables = []
    files = list_files(source.labels_dir or source.root / "annotations", source.split)
    for file in files:
        name = file.stem.removeprefix("instances_")
        folders = [source.images_dir] if source.images_dir else [source.root / name, source.root / "images" / name]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is None:
            raise InputError(f"{file}: its images are not there; expected {' or '.join(map(str, folders))}")
        tables.append(read_file(file, folder, source.images_dir or source.root, source.options.count_crowds))
    if not tables:
        raise InputError(f"{source.labels_dir} holds no instances_{source.split}*.json")
    return join_files(tables, files)


def read_file(file: Path, folder: Path, inside: Path, count_crowds: bool) -> Table:
    """The table of one annotation file, whose images lie in `folder`; their paths must not leave `inside`."""
    text = read_text(file)
    data = parse_json(text, file)
    if not (isinstance(data, dict) and all(isinstance(data.get(key), list) for key in LISTS)):
        raise InputError(f'{file}: expected {{"images": [...], "annotations": [...], "categories": [...]}}')
    try:
        categories = sorted((category["id"], category["name"]) for category in data["categories"])
        classes = require_unique(
            [name for _, name in categories], lambda index: f"{file}: category {reprlib.repr(categories[index])}"
        )
        columns = {id: column for column, (id, _) in enumerate(categories)}
        present: dict[Any, set[int]] = {image["id"]: set() for image in data["images"]}
        if len(columns) < len(classes):
            raise InputError(f"{file}: two categories have the same id")
        if len(present) < len(data["images"]):
            raise InputError(f"{file}: two images have the same id")
        for annotation in data["annotations"]:
            if count_crowds or not annotation.get("iscrowd"):
                present[annotation["image_id"]].add(columns[annotation["category_id"]])
        require_room(len(present), len(classes))
        rows = Rows(folder, inside, classes)
        seen: Counter[str] = Counter()
        for image in data["images"]:
            name = image["file_name"]
            seen[name] += 1
            where = JsonLine(file, text, name, seen[name])
            unknown = [columns[id] for id in image.get(UNKNOWN_IDS, ())]
            rows.add(name, mark_columns(present[image["id"]], unknown, len(classes), where), where)
    except KeyError as error:
        raise InputError(
            f"{file}: {reprlib.repr(error.args[0])} is missing, or is the id of no image or category"
        ) from error
    except (TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no COCO annotation file: {str(error)[:200]}") from error
    return rows.make_table(file)


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    images, annotations = [], []
    for number, (name, row) in enumerate(zip(names, table.targets, strict=True), start=1):
        unknown = (np.flatnonzero(row == -1) + 1).tolist()
        images.append({"id": number, "file_name": name} | ({UNKNOWN_IDS: unknown} if unknown else {}))
        for column in np.flatnonzero(row == 1).tolist():
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": column + 1, "iscrowd": 0}
            annotations.append(annotation)
    categories = [{"id": column + 1, "name": name} for column, name in enumerate(table.classes)]
    (root / split).mkdir(parents=True, exist_ok=True)
    file = root / "annotations" / f"instances_{split}.json"
    write_json(file, images=images, annotations=annotations, categories=categories)


FORMAT = Format(
    expects="annotations/instances_train*.json (coco_json)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="{split}",
    takes_folders=True,
)
