"""cvat, its "CVAT for images 1.1": an XML file in the folder, images in `images/`. It is only read.

CVAT's file is `annotations.xml`; Datumaro writes `train.xml` and `val.xml`, FiftyOne `labels.xml` and its images in
`data/`.

An image's labels are those of its tags, boxes, polygons, masks and so on; every other label of the project is absent.
The classes are the labels in `<meta>`, in their order. The split is the image's `subset` (an export of a project has
one; "Validation" is val), or in the file's name; where nothing says one, all is training data. An annotation's
attributes are ignored.

See https://docs.cvat.ai/docs/dataset_management/formats/xml_format/ and format-cvat/ beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dataset.class_names import require_unique
from dataset.export_files import MOST_FILES, describe_left_out
from dataset.files import open_file
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import place_images
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.splits import find_folders, find_split, sort_files
from dataset.table import SPLITS, Table, map_classes
from dataset.xml_files import read_xml
from utils import InputError

START_BYTES = 4096  # of a file, in which its first element begins


class Image(NamedTuple):
    """An `<image>`: its path, its subset, the labels of its annotations."""

    name: str
    subset: str
    labels: tuple[str, ...]


def list_splits(root: Path) -> list[str]:
    return list(find_images(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return list(find_images(root).get(split, ()))


def find_images(root: Path) -> dict[str, dict[Path, list[Image]]]:
    """{split: {file: its images}}, by the images' subsets; by the files' names, where these say a split."""
    files = list_files(root)
    named = sort_files(files)
    if len(files) == 1 and find_split(files[0].stem) is None:
        subsets = sort_images(read_images(files[0])[1])
        return {split: {files[0]: images} for split, images in subsets.items()}
    return {split: {file: list(read_images(file)[1]) for file in found} for split, found in named.items()}


def list_files(root: Path) -> list[Path]:
    """`annotations.xml`, else the files of CVAT in the folder; with many, they are one an image: another format."""
    if is_cvat(root / "annotations.xml"):
        return [root / "annotations.xml"]
    files = sorted(root.glob("*.xml"))
    return [file for file in files if is_cvat(file)] if len(files) <= MOST_FILES else []


def explain_left_out(root: Path) -> str:
    return describe_left_out(sort_files(list_files(root)), [root], (".xml",), is_cvat)


def is_cvat(file: Path) -> bool:
    """Whether the file's first element is `<annotations>`."""
    if not file.is_file():
        return False
    try:
        with open_file(file) as stream:
            return b"<annotations>" in stream.read(START_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def read_images(file: Path) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """(class names, images) of the file."""
    found = file.stat()
    return _read_images(file, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # asked for several times before a run begins
def _read_images(file: Path, size: int, changed: int) -> tuple[tuple[str, ...], tuple[Image, ...]]:
    """`read_images` of a file of that size that was last `changed` at that time."""
    document = read_xml(file)
    if document.find("track") is not None:
        raise InputError(f'{file} has tracks, so it is "CVAT for video": export it as "CVAT for images"')
    labels = [label for label in document.iterfind("meta/*/labels/label") if label.find("parent") is None]
    names = [label.findtext("name", "") for label in labels]
    images = []
    for element in document.iterfind("image"):
        shapes = [shape.get("label") for shape in element]
        found = tuple(dict.fromkeys(label.strip() for label in shapes if label))
        images.append(Image(element.get("name", ""), element.get("subset", ""), found))
    return require_unique(names, lambda index: f"{file}: label {index + 1} in <meta>"), tuple(images)


def sort_images(images: tuple[Image, ...]) -> Mapping[str, list[Image]]:
    """{split: its images}, by their subsets."""
    split_of = {image.subset: find_split(image.subset) for image in images}
    if not any(split_of.values()):
        return {"train": list(images)}
    splits = {split: [image for image in images if split_of[image.subset] == split] for split in SPLITS}
    return {split: found for split, found in splits.items() if found}


def read(source: SplitSource) -> Table:
    found = find_images(source.root)[source.split]
    tables = [read_file(file, images, source) for file, images in found.items()]
    first, *others = tables
    others = [map_classes(table, first.classes, "of one file", "of another") for table in others]
    return join_files([first, *others], found)


def read_file(file: Path, chosen: list[Image], source: SplitSource) -> Table:
    """The table of the `chosen` images of a file."""
    root, (classes, images) = source.root, read_images(file)
    lost = [image for image in images if find_split(image.subset) is None]
    if 0 < len(lost) < len(images):
        raise InputError(
            f"{file}: {len(lost)} image(s), such as {lost[0].name}, are in the subset {lost[0].subset!r}, which is no "
            "split, while others are in one: call it Train, Validation or Test in CVAT"
        )
    if not classes:
        raise InputError(f"{file}: there is no label in <meta>")
    index = source.index_classes(classes)
    folders = [root / "images", root, *find_folders(root / "images")[source.split], *find_folders(root)[source.split]]
    folder, names = place_images(file, root, [*folders, root / "data"], [image.name for image in chosen])
    rows = Rows(folder, root, index.classes)
    for image, name in zip(chosen, names, strict=True):
        where = f"{file}: image {image.name[:300]!r}"
        present = index.find_all(image.labels, where)
        rows.add(name, mark_columns(present, (), len(index.classes), where), where)
    return rows.make_table(file)


FORMAT = Format(
    expects="annotations.xml of CVAT (cvat)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
    explain_left_out=explain_left_out,
)
