"""via: the VGG Image Annotator 2: a project (JSON), or its annotations exported as JSON or CSV. It is only read.

An image's labels are what its attributes and those of its regions hold: a chosen option (`"cat"`), or several ticked
ones (`{"cat": true, "dog": true}`; VIA does not store false). Any other is absent. A project says the attributes'
types: labels are those of type radio, checkbox, dropdown and image; attributes of type text count only where there is
no other. Without types (in a JSON or CSV of annotations) they are those with ticked options, if there are any. Two
attributes that may both be texts stop: a project says which are labels. Options are named by their ids, or by what
describes them where all ids are numbers.

The file has any name, such as `via_project_1Jan2024.json`, `via_region_data.json` or `via_export_csv.csv`; its folder
or name says the split. `classes.txt`, where it is there, orders the classes; else they are a project's options, in
their order, or what is named, in alphabetical order.

See ox-vgg/via: via-2.x.y/src/via.js (project_save_confirmed, pack_via_metadata,
annotation_editor_update_region_metadata).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dataset.class_names import ClassIndex, read_classes
from dataset.csv_files import read_header
from dataset.export_files import describe_left_out, find_exports
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import place_images
from dataset.json_files import looks_like, parse_json
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.table import Table
from dataset.text_files import read_text
from utils import InputError, warn

CSV_COLUMNS = ["filename", "file_size", "file_attributes", "region_attributes"]
CHOICES = ("radio", "checkbox", "dropdown", "image")  # the types of attributes whose values are options


class Value(NamedTuple):
    """A value of an attribute of an image or of one of its regions: which, and the options that it names."""

    attribute: str
    names: list[str]
    is_ticked: bool  # a set of options, not a text that may be one


class Image(NamedTuple):
    path: str
    values: list[Value]


class Attribute(NamedTuple):
    """What a project says of an attribute: its type, and its options in their order (id: name)."""

    type: str
    options: dict[str, str]


class Export(NamedTuple):
    """What a file says: its images, and the attributes by name, where it is a project."""

    images: list[Image]
    attributes: dict[str, Attribute]
    folder: str  # the name of the folder in which the images lay, as a project may say


# ---- which files ----


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    return find_exports(root, (".json", ".csv"), is_via)


def explain_left_out(root: Path) -> str:
    return describe_left_out(find_files(root), [root], (".json", ".csv"), is_via)


def is_via(file: Path) -> bool:
    """Whether the file seems to be a project, or annotations as JSON or CSV."""
    if file.suffix == ".csv":
        return set(CSV_COLUMNS) <= {name.removeprefix("#") for name in read_header(file)}
    if looks_like(file, "{", r'"_via_img_metadata"\s*:\s*\{'):
        return True
    return looks_like(file, "{", r'"filename"\s*:\s*"', r'"regions"\s*:\s*[\[{]', r'"file_attributes"\s*:')


# ---- what a file says ----


def read_file(file: Path) -> Export:
    """What the file says. Raises InputError for what is wrong."""
    try:
        if file.suffix == ".csv":
            return Export(list(read_csv(file)), {}, "")
        data = parse_json(read_text(file), file)
        images = data.get("_via_img_metadata", data).values()
        settings = data.get("_via_settings", {}) if "_via_img_metadata" in data else {}
        folder = PurePosixPath((settings.get("core", {}).get("default_filepath") or "").replace("\\", "/")).name
        return Export([read_image(image) for image in images], read_attributes(data.get("_via_attributes", {})), folder)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is no file of VGG Image Annotator 2: {type(error).__name__} {str(error)[:200]}"
        ) from error


def read_attributes(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, Attribute]:
    """The attributes of files and regions. One of each with the same name counts as one, with the options of both."""
    found: dict[str, Attribute] = {}
    for name, attribute in chain.from_iterable(attributes.items() for attributes in kinds.values()):
        options = {str(id): str(text).strip() for id, text in (attribute.get("options") or {}).items()}
        if not all(id.isdigit() and text for id, text in options.items()):
            options = {id: id.strip() for id in options}
        before = found.get(name, Attribute("text", {}))
        kind = attribute["type"] if attribute["type"] in CHOICES else before.type
        found[name] = Attribute(kind, before.options | options)
    return found


def read_image(image: Mapping[str, Any]) -> Image:
    """An entry of the JSON; VIA 1 wrote its regions as an object."""
    regions = image["regions"].values() if isinstance(image["regions"], dict) else image["regions"]
    attributes = [image["file_attributes"], *(region["region_attributes"] for region in regions)]
    return Image(image["filename"], list(chain.from_iterable(map(read_values, attributes))))


def read_values(attributes: Mapping[str, Any]) -> list[Value]:
    """The values in a set of attributes; VIA writes [] for an empty one."""
    values = []
    for name, value in attributes.items() if attributes else ():
        if isinstance(value, dict):
            values.append(Value(name, [option for option, ticked in value.items() if ticked and option], True))
        elif str(value).strip():
            values.append(Value(name, [str(value).strip()], False))
    return values


def read_csv(file: Path) -> Iterator[Image]:
    """The images in a CSV, which has a row for each region."""
    found: dict[tuple[str, str], list[Value]] = {}  # by name and size, which VIA knows an image by
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = [name.strip().removeprefix("#") for name in next(reader, [])]
        places = [header.index(name) for name in CSV_COLUMNS]
        for row in reader:
            if len(row) != len(header) and row:
                raise InputError(f"{file}:{reader.line_num}: {len(row)} cells, but {len(header)} columns")
            if row:
                where = f"{file}:{reader.line_num}"
                image, size, *cells = (row[place] for place in places)
                values = chain.from_iterable(read_values(parse_json(cell or "{}", where)) for cell in cells)
                found.setdefault((image, size), []).extend(values)
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}") from error
    yield from (Image(path, values) for (path, _), values in found.items())


# ---- labels ----


def read(source: SplitSource) -> Table:
    root, files = source.root, find_files(source.root)
    exports = {file: read_file(file) for file in chain.from_iterable(files.values())}
    chosen = {file: choose_attributes(file, export) for file, export in exports.items()}
    names = {file: [name_labels(image, export, chosen[file]) for image in export.images]
             for file, export in exports.items()}  # fmt: skip
    index = index_classes(source, exports, chosen, chain.from_iterable(names.values()))
    if not index.classes:
        raise InputError(f"{files[source.split][0]}: no image has a label")
    tables = []
    for file in files[source.split]:
        export = exports[file]
        folders = [file.parent, root / export.folder, root / "images", root / source.split, file.parent / "images"]
        folder, paths = place_images(file, root, folders, [image.path for image in export.images])
        rows = Rows(folder, root, index.classes)
        for image, path, found in zip(export.images, paths, names[file], strict=True):
            where = f"{file}: {image.path[:200]!r}"
            present = index.find_all(found, where)
            rows.add(path, mark_columns(present, (), len(index.classes), where), where)
        tables.append(rows.make_table(file))
    return join_files(tables, files[source.split])


def choose_attributes(file: Path, export: Export) -> list[str]:
    """The attributes that hold labels. Raises InputError where two may, and nothing says which."""
    if not export.images:
        raise InputError(f"{file} lists no images")
    values = [value for image in export.images for value in image.values]
    used = list(dict.fromkeys([*export.attributes, *(value.attribute for value in values)]))
    choices = {name for name, attribute in export.attributes.items() if attribute.type in CHOICES}
    ticked = {value.attribute for value in values if value.is_ticked}
    chosen = [name for name in used if name in choices] or [name for name in used if name in ticked] or used
    if len(chosen) > 1 and not (choices or ticked):
        raise InputError(
            f"{file}: which of the attributes {', '.join(chosen)} holds the labels? Make it a dropdown, radio or "
            "checkbox in VIA, and save the project"
        )
    if len(chosen) > 1:
        warn(f"{file}: the options of {', '.join(chosen)} are all classes")
    if left := [name for name in used if name not in chosen]:
        warn(f"{file}: labels are read from {', '.join(chosen)}, not from {', '.join(left)}")
    attribute_of: dict[str, str] = {}
    for value in values:
        for name in value.names if value.attribute in chosen else ():
            if (other := attribute_of.setdefault(name, value.attribute)) != value.attribute:
                raise InputError(
                    f"{file}: {name[:80]!r} is an option of {other} and of {value.attribute}, and would be one class: "
                    "rename it in one of the two"
                )
    return chosen


def name_labels(image: Image, export: Export, chosen: list[str]) -> list[str]:
    """The names of the labels of an image."""
    names = []
    for value in image.values:
        if value.attribute in chosen:
            options = export.attributes[value.attribute].options if value.attribute in export.attributes else {}
            names += [options.get(name, name) for name in value.names]
    return list(dict.fromkeys(names))


def index_classes(
    source: SplitSource, exports: Mapping[Path, Export], chosen: Mapping[Path, list[str]], names: Iterable[list[str]]
) -> ClassIndex:
    """The classes: of `classes.txt`, else the options of all projects, and then what else is named."""
    named = set(chain.from_iterable(names))
    options = dict.fromkeys(
        name
        for file, export in exports.items()
        for attribute in chosen[file]
        if attribute in export.attributes
        for name in export.attributes[attribute].options.values()
    )
    if options and named <= set(options):
        return source.index_classes(read_classes(source.root, tuple(options)))
    return source.choose_classes(named | set(options))


FORMAT = Format(
    expects="a project, JSON or CSV of VGG Image Annotator 2 (via)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
    explain_left_out=explain_left_out,
)
