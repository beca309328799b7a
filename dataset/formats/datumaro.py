"""datumaro: `annotations/<subset>.json` and `images/<subset>/`, as Datumaro and CVAT ("Datumaro 1.0") write it.

It is only read. An image's labels are the classes of its annotations, whatever their type; any other is absent. The
classes are the file's own list, in its order. The subset's name says the split; where none does (CVAT writes
`default.json`), all is training data. Items without a picture, such as point clouds, are an error.

See open-edge-platform/datumaro: src/datumaro/plugins/data_formats/datumaro/{base,exporter}.py, and
https://docs.cvat.ai/docs/dataset_management/formats/format-datumaro/.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from dataset.class_names import require_unique
from dataset.export_files import describe_left_out
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import place_images
from dataset.json_files import looks_like, parse_json
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.splits import sort_files
from dataset.table import Table, map_classes
from dataset.text_files import read_text
from utils import InputError


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    return sort_files(file for file in (root / "annotations").glob("*.json") if is_datumaro(file))


def explain_left_out(root: Path) -> str:
    return describe_left_out(find_files(root), [root / "annotations"], (".json",), is_datumaro)


def is_datumaro(file: Path) -> bool:
    """Whether the file seems to hold Datumaro's two lists: labels in categories, and items."""
    return looks_like(file, "{", r'"categories"\s*:\s*\{', r'"label"\s*:\s*\{', r'"items"\s*:\s*\[')


def read(source: SplitSource) -> Table:
    files = find_files(source.root)
    tables = [read_file(file, source.root) for file in files[source.split]]
    first, *others = tables
    others = [map_classes(table, first.classes, "of one file", "of another") for table in others]
    return join_files([first, *others], files[source.split])


def read_file(file: Path, root: Path) -> Table:
    data = parse_json(read_text(file), file)
    try:
        labels = data["categories"]["label"]["labels"]
        classes = require_unique([label["name"] for label in labels], lambda index: f"{file}: label {index}")
        items = [(str(item["id"]), find_image(item), find_labels(item, len(classes), file)) for item in data["items"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no Datumaro file: {type(error).__name__} {str(error)[:200]}") from error
    if not classes:
        raise InputError(f"{file}: categories.label.labels is empty")
    if lost := [name for name, image, _ in items if not image]:
        raise InputError(f"{file}: {len(lost)} of {len(items)} items have no image, the first: {lost[0][:80]!r}")
    if not items:
        raise InputError(f"{file} lists no images")
    folders = [root / "images" / file.stem, root / "images", root / file.stem, root]
    folder, images = place_images(file, root, folders, [image for _, image, _ in items])
    rows = Rows(folder, root, classes)
    for (name, _, columns), image in zip(items, images, strict=True):
        where = f"{file}: item {name[:80]!r}"
        rows.add(image, mark_columns(columns, (), len(classes), where), where)
    return rows.make_table(file)


def find_image(item: dict[str, Any]) -> str:
    """The image's path; `id.jpg` where it is not written, as Datumaro reads it. "" where the item is no image."""
    image = item.get("image")
    if image is None:
        return ""
    return str(image.get("path") or f"{item['id']}.jpg")


def find_labels(item: dict[str, Any], num_classes: int, file: Path) -> list[int]:
    """The indices of the classes that the item's annotations have; captions have none."""
    found = [annotation.get("label_id") for annotation in item.get("annotations") or ()]
    indices = sorted({index for index in found if index is not None}, key=str)
    for index in indices:
        if not isinstance(index, int) or not 0 <= index < num_classes:
            raise InputError(
                f"{file}: item {str(item['id'])[:80]!r}: label_id {reprlib.repr(index)} is none of the "
                f"{num_classes} labels"
            )
    return indices


FORMAT = Format(
    expects="annotations/train.json of Datumaro (datumaro)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
    explain_left_out=explain_left_out,
)
