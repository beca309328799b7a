"""createml: Apple's Create ML, a JSON list of images with their labels or boxes, beside the images. It is only read.

    [{"filename": "a.jpg", "annotations": ["cat", "dog"]}]
    [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}}]}]

The image is `filename`, `image` or `imagefilename`; the labels are `annotations` or, with the last, `annotation`. An
image's labels are those of its boxes; any other is absent. The file has any name, such as `annotations.json` or
Roboflow's `<split>/_annotations.createml.json`; its folder, or its name, says the split. `classes.txt`, where it is
there, orders the classes.

https://developer.apple.com/documentation/createmlcomponents/creating-a-multi-label-image-classifier,
https://developer.apple.com/documentation/createml/building-an-object-detector-data-source,
https://developer.apple.com/documentation/createml/mlobjectdetector/datasource (`imagefilename`, `annotation`)
"""

from __future__ import annotations

import reprlib
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dataset.export_files import describe_left_out, find_exports
from dataset.formats.base import Format, SplitSource
from dataset.formats.label_studio import is_export as is_label_studio
from dataset.image_finder import place_images
from dataset.json_files import JsonLine, looks_like, parse_json
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.table import Table
from dataset.text_files import read_text
from utils import InputError

IMAGES, LABELS = ("filename", "image", "imagefilename"), ("annotations", "annotation")
BOX = r'\{\s*"(label|coordinates|uniqueIdentifier)"'


class Entry(NamedTuple):
    """What the list says of an image: its path as it is written, the names of its labels, where it stands."""

    image: str
    names: list[str]
    where: JsonLine


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    return find_exports(root, (".json",), is_createml)


def explain_left_out(root: Path) -> str:
    return describe_left_out(find_files(root), [root], (".json",), is_createml)


def is_createml(file: Path) -> bool:
    """Whether the file seems to be a list of images with annotations that are names or boxes."""
    image, labels = rf'"({"|".join(IMAGES)})"\s*:\s*"', rf'"({"|".join(LABELS)})"\s*:\s*\[\s*("|\]|{BOX})'
    return looks_like(file, "[{", image, labels) and not is_label_studio(file)


def read(source: SplitSource) -> Table:
    root, files = source.root, find_files(source.root)
    entries = {file: read_entries(file) for file in chain.from_iterable(files.values())}
    names = {name for found in entries.values() for entry in found for name in entry.names}
    index = source.choose_classes(names)
    if not index.classes:
        raise InputError(f"{files[source.split][0]}: no image has a label")
    tables = []
    for file in files[source.split]:
        folders = [file.parent, root / "images", root / source.split, file.parent / "images"]
        folder, images = place_images(file, root, folders, [entry.image for entry in entries[file]])
        rows = Rows(folder, root, index.classes)
        for entry, image in zip(entries[file], images, strict=True):
            present = index.find_all(entry.names, entry.where)
            rows.add(image, mark_columns(present, (), len(index.classes), entry.where), entry.where)
        tables.append(rows.make_table(file))
    return join_files(tables, files[source.split])


def read_entries(file: Path) -> list[Entry]:
    """What the file says of each image. Raises InputError for what is wrong."""
    text = read_text(file)
    entries: list[Entry] = []
    seen: Counter[str] = Counter()
    for number, item in enumerate(parse_json(text, file), start=1):
        image = find_value(item, IMAGES)
        labels = find_value(item, LABELS)
        names = [find_name(label) for label in labels] if isinstance(labels, list) else [None]
        if not isinstance(image, str) or None in names:
            raise InputError(
                f'{file}: image {number} is {reprlib.repr(item)}, not {{"image": ..., "annotations": [...]}} with '
                "names, or boxes with a label"
            )
        seen[image] += 1
        entries.append(Entry(image, [name for name in names if name], JsonLine(file, text, image, seen[image])))
    if not entries:
        raise InputError(f"{file} lists no images")
    return entries


def find_value(item: Any, keys: tuple[str, ...]) -> Any:
    """What stands under the only one of `keys` that `item` has; None where there is none, or two."""
    found = [key for key in keys if isinstance(item, dict) and key in item]
    return item[found[0]] if len(found) == 1 else None


def find_name(label: Any) -> str | None:
    """The name in an annotation: a text, or a box with a label. None for anything else."""
    name = label.get("label") if isinstance(label, dict) else label
    return name.strip() or None if isinstance(name, str) else None


FORMAT = Format(
    expects="annotations.json of Create ML (createml)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
    explain_left_out=explain_left_out,
)
