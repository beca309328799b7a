"""fiftyone: `labels.json` of FiftyOne's image classification and detection datasets, or `samples.json`; and `data/`.

It is only read. Each split is a folder of its own, such as `train/` and `validation/`, or the folder is one export.

    {"classes": ["cat", "dog"], "labels": {"a": [0, 1], "b": 0, "c": [{"label": 1, "confidence": 0.9}], "d": null}}
    {"samples": [{"filepath": "data/a.jpg", "tags": ["train"], "ground_truth": {"_cls": "Classifications", ...}}]}

A key of `labels` is the path of an image in `data/` without its ending, or the whole path. A label is an index into
`classes`, or a name where `classes` is null. An image's labels are those of its boxes, too; any other is absent. null
stands for no label; how many there are is said. Images of `data/` without a key are left out, as FiftyOne does.

In `samples.json` the labels are those of the field `ground_truth`, or of the only field that has any; a tag `train`,
`validation` or `test` says the split, and where none does, all is training data. `classes.txt`, where it is there,
orders classes that no file lists.

See https://docs.voxel51.com/user_guide/export_datasets.html, and voxel51/fiftyone: fiftyone/utils/data/exporters.py
(FiftyOneImageClassificationDatasetExporter, FiftyOneDatasetExporter).
"""

from __future__ import annotations

import functools
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dataset.class_names import require_unique
from dataset.export_files import choose_split, describe_left_out, find_exports
from dataset.files import IMAGE_EXTENSIONS, list_files
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import place_images
from dataset.json_files import looks_like, parse_json
from dataset.label_cells import require_no_vectors
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import require_one
from dataset.table import SPLITS, Table
from dataset.text_files import read_text
from utils import InputError, warn

# What a field of a sample may be, and under which key its labels stand
LABELS_OF = {
    "Classification": None,
    "Classifications": "classifications",
    "Detection": None,
    "Detections": "detections",
    "Polyline": None,
    "Polylines": "polylines",
    "Keypoint": None,
    "Keypoints": "keypoints",
}


class Image(NamedTuple):
    """An image's path, with or without its ending; the names of its labels, None for null; the split in its tags."""

    path: str
    names: list[str] | None
    split: str | None


class Export(NamedTuple):
    """What one file says; `classes` are those it lists, () where it lists none."""

    classes: tuple[str, ...]
    images: list[Image]


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """The file of each split: one for each, or one `samples.json` for all that its tags say."""
    found = find_exports(root, (".json",), is_export)
    files = list(chain.from_iterable(found.values()))
    if [file.parent for file in files] != [root]:
        return found
    tagged = {image.split for image in read_file(files[0]).images}
    return {split: files for split in SPLITS if split in tagged} or found


def explain_left_out(root: Path) -> str:
    return describe_left_out(find_files(root), [root], (".json",), is_export)


def is_export(file: Path) -> bool:
    return is_labels(file) or is_samples(file)


def is_labels(file: Path) -> bool:
    return looks_like(file, "{", r'"classes"\s*:\s*(\[|null)', r'"labels"\s*:\s*\{')


def is_samples(file: Path) -> bool:
    return looks_like(file, "{", r'"samples"\s*:\s*\[', r'"filepath"\s*:\s*"', r'"_cls"\s*:\s*"')


# ---- what a file says ----


def read_file(file: Path) -> Export:
    metadata = file.with_name("metadata.json")
    stamps = [
        (found.st_size, found.st_mtime_ns) for found in (each.stat() for each in (file, metadata) if each.is_file())
    ]
    return _read_file(file, tuple(stamps))


@functools.lru_cache(maxsize=4)  # asked for several times before a run begins
def _read_file(file: Path, stamps: tuple[tuple[int, int], ...]) -> Export:
    """`read_file` of a file, and of `metadata.json` beside it, of these sizes and times of the last change."""
    data = parse_json(read_text(file), file)
    try:
        return read_samples(file, data["samples"]) if is_samples(file) else read_labels(file, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no export of FiftyOne: {type(error).__name__} {str(error)[:200]}") from error


def read_labels(file: Path, data: dict[str, Any]) -> Export:
    """What a `labels.json` says."""
    listed = require_unique(data["classes"] or (), lambda index: f"{file}: class {index}")
    images, lists = [], []
    for key, value in data["labels"].items():
        labels = value if isinstance(value, list) else [] if value is None else [value]
        if not any(isinstance(label, dict) for label in labels):  # those of boxes repeat
            lists.append((f"{file}: {key[:80]!r}", [*map(str, labels)]))
        names = [find_name(label, listed, f"{file}: {key[:80]!r}") for label in labels]
        images.append(Image(key, None if value is None else names, None))
    require_no_vectors(lists)
    return Export(listed, images)


def find_name(label: Any, classes: Sequence[str], where: str) -> str:
    """The name of a label: text, an index into `classes`, or what stands under "label"."""
    value = label.get("label") if isinstance(label, dict) else label
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return classes[value]
    raise InputError(f"{where}: the label {reprlib.repr(value)} is no name, and no index of the {len(classes)} classes")


def read_samples(file: Path, samples: list[dict[str, Any]]) -> Export:
    """What a `samples.json` says; the dataset's classes stand in `metadata.json` beside it."""
    field = choose_field(file, samples)
    images = []
    for sample in samples:
        value = sample.get(field)
        labels = [] if value is None else value[LABELS_OF[value["_cls"]]] if LABELS_OF[value["_cls"]] else [value]
        where = f"{file}: {sample['filepath'][:200]!r}"
        names = [find_name(label, (), where) for label in labels]
        images.append(
            Image(sample["filepath"], None if value is None else names, choose_split(sample.get("tags") or ()))
        )
    metadata = file.with_name("metadata.json")
    known = parse_json(read_text(metadata), metadata) if metadata.is_file() else {}
    listed = known.get("classes", {}).get(field) or known.get("default_classes") or ()
    return Export(require_unique(listed, lambda index: f"{metadata}: class {index}"), images)


def choose_field(file: Path, samples: Iterable[Mapping[str, Any]]) -> str:
    """The field that holds the labels. Raises InputError where that may be one of several."""
    found = {
        field: None
        for sample in samples
        for field, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") in LABELS_OF
    }
    if "ground_truth" in found or len(found) == 1:
        return "ground_truth" if "ground_truth" in found else next(iter(found))
    if not found:
        raise InputError(f"{file}: no sample has a field with labels")
    raise InputError(
        f"{file}: which of the fields {', '.join(found)} holds the labels? Export it alone, or name it ground_truth"
    )


# ---- the table ----


def read(source: SplitSource) -> Table:
    root, split, files = source.root, source.split, find_files(source.root)
    file = require_one(files[split], split)
    exports = {each: read_file(each) for each in chain.from_iterable(files.values())}
    listed = exports[file].classes
    named = {name for export in exports.values() for image in export.images for name in image.names or ()}
    index = source.index_classes(listed) if listed else source.choose_classes(named)
    if not index.classes:
        raise InputError(f"{file}: no image has a label")
    is_only = list(exports) == [file] and file.parent == root  # otherwise a folder, or the file's name, says the split
    images = choose_images(file, exports[file].images, split) if is_only else exports[file].images
    if without := sum(image.names is None for image in images):
        warn(f"{file}: {without:,} of {len(images):,} images have no label (null), and are read as images of no class")
    folder, paths = find_paths(file, root, [image.path for image in images])
    rows = Rows(folder, root, index.classes)
    for image, path in zip(images, paths, strict=True):
        where = f"{file}: {image.path[:200]!r}"
        present = index.find_all(image.names or (), where)
        rows.add(path, mark_columns(present, (), len(index.classes), where), where)
    return rows.make_table(file)


def choose_images(file: Path, images: list[Image], split: str) -> list[Image]:
    """Those of a split by their tags, or all where none has one. Raises InputError where only some have one."""
    lost = [image for image in images if image.split is None]
    if len(lost) == len(images):
        return images
    if lost:
        raise InputError(
            f"{file}: {len(lost)} sample(s), such as {lost[0].path[:200]}, have no tag that says their split, while "
            "others have one: tag them train, validation or test"
        )
    return [image for image in images if image.split == split]


def find_paths(file: Path, root: Path, keys: list[str]) -> tuple[Path, Sequence[str]]:
    """(folder, the images' paths from there on) for paths that may lack their endings."""
    data = file.parent / "data"
    names = list_files(data, IMAGE_EXTENSIONS)[0] if data.is_dir() else []
    named: dict[str, list[str]] = defaultdict(list)
    for name in names:
        named[name.rpartition(".")[0]].append(name)
    for key in keys:
        if len(named[key]) > 1:
            raise InputError(f"{file}: {key[:200]!r} may be {named[key][0]} or {named[key][1]} in {data}: remove one")
    whole = [named[key][0] if named[key] else key for key in keys]
    left_out = len({*names} - {path.removeprefix("data/") for path in whole})
    if 0 < left_out < len(names):
        warn(f"{file}: it does not name {left_out:,} of {len(names):,} images in {data}; they are left out")
    return place_images(file, root, [data, file.parent], whole)


FORMAT = Format(
    expects="labels.json or samples.json of FiftyOne (fiftyone)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
    explain_left_out=explain_left_out,
)
