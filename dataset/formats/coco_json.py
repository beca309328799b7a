"""coco_json: COCO's `{"images": [...], "annotations": [...], "categories": [...]}`; classes by rising id.

A split is `annotations/instances_<split>*.json`, with images in `<split>*/` or `images/<split>*/`, as it is downloaded
and written here. Where there is none, a split is what holds these three lists, whatever its name: a file in the folder
or in `annotations/` (CVAT's `instances_default.json`, PaddleX's `instance_train.json`, Label Studio's `result.json`),
or Roboflow's `<split>/_annotations.coco.json`; the images are looked for where such tools put them.

An image's classes are those of its annotations; every other class is absent, except its "unknown_category_ids". A
category that only groups others is no class: another category names it as its supercategory, and no annotation of any
split has it. Roboflow writes such a one with the id 0 (https://github.com/roboflow/rf-detr/pull/1303).

https://cocodataset.org/#format-data, https://docs.cvat.ai/docs/dataset_management/formats/format-coco/,
https://labelstud.io/guide/export#COCO
"""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dataset.class_names import require_unique
from dataset.export_files import describe_left_out
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import place_images
from dataset.json_files import JsonLine, looks_like, parse_json, write_json
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.splits import find_folders, find_split, list_words, require_one, sort_files
from dataset.table import SPLITS, Table, require_room
from dataset.text_files import read_text
from utils import InputError

UNKNOWN_IDS = "unknown_category_ids"  # the key of an image's unknown classes
LISTS = ("images", "annotations", "categories")
MOST_FILES = 20  # JSON files in a folder: with more, they are one an image, which is another format

# ---- which files ----


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """The annotation files of each split."""
    usual = {split: list_files(root / "annotations", split) for split in SPLITS}
    if any(usual.values()):
        return {split: usual[split] for split in SPLITS if usual[split]}
    folders = {
        split: [folder / "_annotations.coco.json" for folder in found] for split, found in find_folders(root).items()
    }
    exported = {split: [file for file in files if is_coco(file)] for split, files in folders.items()}
    if any(exported.values()):
        return {split: exported[split] for split in SPLITS if exported[split]}
    found = [sorted(folder.glob("*.json")) for folder in (root, root / "annotations")]
    return sort_files(file for files in found if len(files) <= MOST_FILES for file in files if is_coco(file))


def list_files(folder: Path, split: str) -> list[Path]:
    """`instances_<split>*.json` and, as CVAT calls them, `instances_Validation.json`."""
    return sorted(
        file
        for file in folder.glob("instances_*.json")
        if (file.stem.removeprefix("instances_").startswith(split) or find_split(file.stem) == split) and file.is_file()
    )


def explain_left_out(root: Path) -> str:
    """Which files are read in no split; COCO has files of keypoints and the like of each split beside its instances."""
    return describe_left_out(
        find_files(root),
        [root, root / "annotations"],
        (".json",),
        lambda file: find_split(file.stem) is None and is_coco(file),
    )


def is_coco(file: Path) -> bool:
    """Whether the file seems to hold COCO's three lists."""
    return looks_like(file, "{", *(rf'"{name}"\s*:\s*\[' for name in LISTS))


# ---- reading ----


def read(source: SplitSource) -> Table:
    in_folder = source.labels_dir
    found = {source.split: list_files(in_folder, source.split)} if in_folder else find_files(source.root)
    files = found[source.split]
    if not files:
        raise InputError(f"{in_folder} holds no instances_{source.split}*.json")
    if files[0].name == "_annotations.coco.json":
        require_one(files, source.split)
    file_of = {tuple(list_words(file.stem)): file for file in files}  # val2014 and val2017 go together, valid does not
    require_one(list(file_of.values()), source.split)
    tables = [read_file(file, source, chain.from_iterable(found.values())) for file in files]
    return join_files(tables, files)


def read_file(file: Path, source: SplitSource, files: Iterable[Path]) -> Table:
    """The table of one annotation `file`; `files` are those of all splits."""
    text = read_text(file)
    data = parse_lists(text, file)
    try:
        groups = find_groups(data, file, files)
        categories = sorted((entry["id"], entry["name"]) for entry in data["categories"] if entry["name"] not in groups)
        classes = require_unique(
            [name for _, name in categories], lambda index: f"{file}: category {reprlib.repr(categories[index])}"
        )
        columns = {id: column for column, (id, _) in enumerate(categories)}
        present: dict[Any, set[int]] = {image["id"]: set() for image in data["images"]}
        for annotation in data["annotations"]:
            if source.options.count_crowds or not annotation.get("iscrowd"):
                try:
                    present[annotation["image_id"]].add(columns[annotation["category_id"]])
                except KeyError:
                    raise InputError(f"{file}: {explain_annotation(annotation, present, columns)}") from None
        require_room(len(present), len(classes))
        names = [image["file_name"] for image in data["images"]]
        inside = source.images_dir or source.root
        folder, names = place_images(file, inside, list_image_folders(file, source), names)
        rows = Rows(folder, inside, classes)
        seen: Counter[str] = Counter()
        for image, name in zip(data["images"], names, strict=True):
            seen[image["file_name"]] += 1
            where = JsonLine(file, text, image["file_name"], seen[image["file_name"]])
            unknown = [find_column(id, columns, where) for id in image.get(UNKNOWN_IDS, ())]
            rows.add(name, mark_columns(present[image["id"]], unknown, len(classes), where), where)
    except (TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no COCO annotation file: {str(error)[:200]}") from error
    return rows.make_table(file)


def parse_lists(text: str, file: Path) -> dict[str, list[Any]]:
    """What the file holds. Raises InputError where a list is missing, or an image or category without what names it."""
    data = parse_json(text, file)
    if not isinstance(data, dict):
        raise InputError(f'{file}: expected {{"images": [...], "annotations": [...], "categories": [...]}}')
    for key in LISTS:
        if not isinstance(data.get(key), list):
            raise InputError(f'{file}: the list "{key}" is missing')
    require_entries(data["images"], "image", "file_name", file)
    require_entries(data["categories"], "category", "name", file)
    return data


def require_entries(entries: list[Any], what: str, key: str, file: Path) -> None:
    """Raise InputError for an image or a category without its `key`, a text, or without an id of its own."""
    of_id: dict[Any, Any] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{file}: {what} {number} of {len(entries)}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is {reprlib.repr(entry)}, no object")
        id = entry.get("id")
        if not isinstance(id, int | str):
            raise InputError(f"{where}: its id is {reprlib.repr(id)}" if "id" in entry else f"{where}: 'id' is missing")
        if not isinstance(entry.get(key), str):
            raise InputError(f"{file}: {what} {reprlib.repr(id)}: {key!r} is missing, or is no text")
        if of_id.setdefault(id, entry) is not entry:
            both = " and ".join(reprlib.repr(other[key]) for other in (of_id[id], entry))
            raise InputError(f"{file}: {what} {reprlib.repr(id)} stands there twice: {both}")
    if len({type(id) for id in of_id}) > 1:
        raise InputError(f"{file}: some ids of {what} entries are numbers, and some are texts")


def find_groups(data: dict[str, list[Any]], file: Path, files: Iterable[Path]) -> set[str]:
    """The names of categories that only group others in the `files` of all splits; `data` is what `file` holds."""
    group_of = {entry["name"]: entry.get("supercategory") for entry in data["categories"]}
    groups = {group for name, group in group_of.items() if group in group_of and group != name}
    for other in [file, *(other for other in files if other != file)] if groups else []:
        content = data if other == file else parse_lists(read_text(other), other)
        name_of = {entry["id"]: entry["name"] for entry in content["categories"]}
        ids = chain.from_iterable(image.get(UNKNOWN_IDS, ()) for image in content["images"])
        used = {*ids, *(annotation.get("category_id") for annotation in content["annotations"])}
        groups -= {name_of.get(id) for id in used}
    return groups if len(groups) < len(group_of) else set()


def explain_annotation(annotation: dict[str, Any], images: Collection[Any], categories: Collection[Any]) -> str:
    """What is wrong with an annotation whose image or category is not there; the ids of those that are."""
    where = f"annotation {reprlib.repr(annotation.get('id'))}"
    for key, what, ids in (("image_id", "image", images), ("category_id", "category", categories)):
        if key not in annotation:
            return f"{where}: {key!r} is missing"
        id = annotation[key]
        if id not in ids:
            return f"{where}: {key} {reprlib.repr(id)} is the id of no {what}{explain_type(id, ids)}"
        where += f" (image {reprlib.repr(id)})"
    return where


def explain_type(id: Any, ids: Collection[Any]) -> str:
    """That `id` is a text and the others are numbers, or the other way round, where this is all that is wrong."""
    other = next((other for other in ids if str(other) == str(id)), None)
    return "" if other is None else f", while {other!r} is: write both as numbers, or both as texts"


def find_column(id: Any, columns: dict[Any, int], where: JsonLine) -> int:
    """The column of an image's unknown class."""
    if id not in columns:
        raise InputError(
            f"{where}: {UNKNOWN_IDS}: {reprlib.repr(id)} is the id of no category{explain_type(id, columns)}"
        )
    return columns[id]


def list_image_folders(file: Path, source: SplitSource) -> list[Path]:
    """Where the images of `file` may lie, the likeliest first."""
    if source.images_dir:
        return [source.images_dir]
    root, name = source.root, file.stem.removeprefix("instances_")
    folders = [root / name, root / "images" / name, file.parent, root, root / "images", root / "data"]
    return folders + [folder for place in (root, root / "images") for folder in find_folders(place)[source.split]]


# ---- writing ----


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    if any(name.startswith("../") for name in names):  # images that stay in other folders: their paths from `root` on
        names = [os.path.normpath(f"{split}/{name}") for name in names]
    else:
        (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, (name, row) in enumerate(zip(names, table.targets, strict=True), start=1):
        unknown = (np.flatnonzero(row == -1) + 1).tolist()
        images.append({"id": number, "file_name": name} | ({UNKNOWN_IDS: unknown} if unknown else {}))
        for column in np.flatnonzero(row == 1).tolist():
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": column + 1, "iscrowd": 0}
            annotations.append(annotation)
    categories = [{"id": column + 1, "name": name} for column, name in enumerate(table.classes)]
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
    explain_left_out=explain_left_out,
)
