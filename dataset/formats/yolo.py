"""yolo: boxes of YOLO in text files, `class x y width height` a line; an image's labels are the classes of its boxes.

It is only read. What lies there may be any of

    data.yaml  images/train/a.jpg  labels/train/a.txt    Ultralytics, CVAT, Datumaro, FiftyOne
    data.yaml  train/images/a.jpg  train/labels/a.txt    Roboflow
    classes.txt  images/a.jpg  labels/a.txt              Label Studio: all is training data
    obj.names  train.txt  obj_train_data/a.jpg and a.txt CVAT's "YOLO 1.1", Datumaro, Darknet
    obj.names  images.txt  data/a.jpg and a.txt          FiftyOne's YOLOv4: all is training data

Lines may have more numbers, of polygons or key points: only the class counts. The YAML file, whatever its name, has
`names` (a list, or a number and a name a line) and for train, val and test a folder, a list of images, or several.
A path that is not there, such as Roboflow's `../train/images`, is taken by the longest end of it that is; where none
is, or none is given, the usual folders count. A split whose paths are nowhere is left out, and said. The labels of
`.../images/.../a.jpg` lie in `.../labels/.../a.txt`, those of any other image beside it. An image without boxes, or
without a file of labels, is background: it has no label, and how many there are is said. Where two splits name the same
images, they are those of the first.

See https://docs.ultralytics.com/datasets/detect/ (the format only), https://roboflow.com/formats/yolov8-pytorch-txt,
https://docs.cvat.ai/docs/dataset_management/formats/format-yolo/ and format-yolo-ultralytics/ beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dataset.class_names import read_classes, require_unique
from dataset.files import IMAGE_EXTENSIONS, list_files
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import place_images
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import WORDS, find_folders
from dataset.table import SPLITS, Table
from dataset.text_files import read_lines
from dataset.yaml_files import read_yaml
from utils import InputError, warn

BOX_NUMBERS = 5  # of a line, at least: class, x, y, width, height


class Layout(NamedTuple):
    """What lies in the folder: the file that names the classes; the folders and lists of images of each split.

    `repeated` are the splits that name the same images as another one: {"val": "train"}.
    """

    names: Path
    images: dict[str, list[Path]]
    repeated: dict[str, str]


# ---- which files ----


def list_splits(root: Path) -> list[str]:
    return list(found.images) if (found := find_layout(root)) else []


def files_of_split(root: Path, split: str) -> list[Path]:
    return found.images.get(split, []) if (found := find_layout(root)) else []


def find_layout(root: Path) -> Layout | None:
    """What a YAML file says, or Darknet's lists, or else the usual folders; None where `root` is no such data set."""
    files = sorted(file for ending in ("*.yaml", "*.yml") for file in root.glob(ending) if file.is_file())
    entries = {file: found for file in files if "names" in (found := read_entries(file))}
    for file, found in entries.items():
        if images := find_images(root, found):
            return make_layout(file, images)
    texts = [root / name for name in ("obj.names", "classes.txt", "labels/classes.txt") if (root / name).is_file()]
    names = next(iter([*entries, *texts]), None)
    if names is None:
        return None
    images = find_lists(root) if names.name == "obj.names" else {}
    images = images or find_box_folders(root)
    return make_layout(names, images) if images else None


def find_lists(root: Path) -> dict[str, list[Path]]:
    """{split: Darknet's list of its images}; FiftyOne's `images.txt` is of all."""
    lists = {split: [root / f"{word}.txt" for word in WORDS if WORDS[word] == split] for split in SPLITS}
    found = {split: present for split in SPLITS if (present := [file for file in lists[split] if file.is_file()])}
    return found or ({"train": [root / "images.txt"]} if (root / "images.txt").is_file() else {})


def find_box_folders(root: Path) -> dict[str, list[Path]]:
    """{split: its folders of images} where files of labels lie in the folders `labels` that belong to them."""
    for place, images, labels in ((root, "{0}/images", "{0}/labels"), (root / "images", "images/{0}", "labels/{0}")):
        found = {
            split: [
                root / images.format(folder.name) for folder in folders if has_boxes(root / labels.format(folder.name))
            ]
            for split, folders in find_folders(place).items()
        }
        if any(found.values()):
            return {split: found[split] for split in SPLITS if found[split]}
    return {"train": [root / "images"]} if has_boxes(root / "labels") else {}


def make_layout(names: Path, images: dict[str, list[Path]]) -> Layout:
    """The layout, without the splits that have the same folders and lists as one before them."""
    first = {split: next(other for other in images if images[other] == images[split]) for split in images}
    repeated = {split: other for split, other in first.items() if split != other}
    return Layout(names, {split: images[split] for split in images if split not in repeated}, repeated)


def has_boxes(folder: Path) -> bool:
    """Whether a folder has files of labels in it, not in folders below."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:  # the first such file ends it
        return any(entry.name.endswith(".txt") and entry.name != "classes.txt" for entry in entries)


def read_entries(file: Path) -> dict[str, Any]:
    """What a YAML file holds by name; {} where it is something else, or none."""
    try:
        data = read_yaml(file)
    except InputError:
        return {}
    return data if isinstance(data, dict) else {}


def find_images(root: Path, entries: dict[str, Any]) -> dict[str, list[Path]]:
    """{split: its folders and lists of images} of the paths in `entries`; those that are nowhere are left out."""
    found: dict[str, list[Path]] = {}
    for word, value in entries.items():
        if word in WORDS and value:
            texts = value if isinstance(value, list) else [value]
            paths = [path for text in texts if isinstance(text, str) and (path := find_end(root, text))]
            if paths:
                found.setdefault(WORDS[word], []).extend(paths)
    return {split: found[split] for split in SPLITS if split in found}


def find_end(root: Path, text: str) -> Path | None:
    """The longest end of the path `text` that is there, from `root` on: `../train/images` is `root/train/images`.

    The last part alone does only where it names a split: `images` of `/data/test/images` may be any folder.
    """
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        is_clear = start == 0 or start < len(parts) - 1 or PurePosixPath(parts[-1]).stem in WORDS
        if is_clear and (path := root.joinpath(*parts[start:])).exists():
            return path
    return None


# ---- reading ----


def read(source: SplitSource) -> Table:
    root, split = source.root, source.split
    layout = find_layout(root)
    assert layout is not None, "list_splits has looked"
    classes = read_names(layout.names)
    images = list_images(root, layout, split)
    rows, counts = Rows(root, root, classes), {"without boxes": 0, "without a file of labels": 0}
    for image, where in images.items():
        labels = find_labels(root, image)
        present: set[int] = set()
        if not labels.is_file():
            counts["without a file of labels"] += 1
        elif not (present := set(read_boxes(labels, len(classes)))):
            counts["without boxes"] += 1
        rows.add(image, mark_columns(present, (), len(classes), str(labels)), where)
    first = layout.images[split][0]
    table = rows.make_table(first)  # whether the images are there comes before what is beside them
    for word, value in read_entries(layout.names).items() if layout.names.suffix in (".yaml", ".yml") else ():
        if word in WORDS and value and not find_images(root, {word: value}):
            warn(f"{layout.names}: {word} is {str(value)[:200]}, which is not there")
    for other, same in layout.repeated.items():
        if same == split:
            warn(f"{layout.names}: {other} has the same images as {split}, and is no split of its own")
    if counts["without a file of labels"] == len(images):
        expected = find_labels(root, next(iter(images)))
        raise InputError(f"{first}: no image of {split} has a file of labels, such as {expected}")
    if any(counts.values()):
        shown = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        warn(f"{first}: of {len(images):,} images {shown}: they have no label")
    return table


def read_names(file: Path) -> tuple[str, ...]:
    """The classes by their numbers. Raises InputError where a number has no name."""
    if file.name == "classes.txt":
        return read_classes(file.parent, None)
    if file.suffix == ".names":
        return require_unique([line for _, line in read_lines(file)], lambda index: f"{file}: class {index}")
    names = read_entries(file)["names"]
    if isinstance(names, dict):
        missing = next((index for index in range(len(names)) if str(index) not in names), None)
        if missing is not None:
            raise InputError(f"{file}: there are {len(names)} names, but class {missing} has none")
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: names are a list, or a line `0: name` a class, but {str(names)[:80]!r}")
    names = require_unique(names, lambda index: f"{file}: class {index}")
    listed = read_classes(file.parent, names)  # LabelImg writes a classes.txt, too
    if listed != names and {*listed} == {*names}:
        raise InputError(
            f"{file} and {file.parent / 'classes.txt'} have the classes in another order, and the boxes their numbers: "
            "remove the wrong one"
        )
    return names


def list_images(root: Path, layout: Layout, split: str) -> dict[str, str]:
    """{path of an image from `root` on: where it is listed} of a split, without those of the splits before it."""
    found = {name: dict(list_all(root, layout.images[name])) for name in SPLITS[: SPLITS.index(split) + 1]
             if name in layout.images}  # fmt: skip
    images = found.pop(split)
    for name, others in found.items():
        if same := images.keys() & others.keys():
            warn(f"{layout.names}: {len(same):,} of {len(images):,} images of {split} are those of {name}: left out")
            images = {image: where for image, where in images.items() if image not in same}
            if not images:
                raise InputError(f"{layout.names}: {split} has the same images as {name}: name others, or none")
    if not images:
        raise InputError(f"no images in {', '.join(map(str, layout.images[split]))}")
    return images


def list_all(root: Path, places: list[Path]) -> Iterator[tuple[str, str]]:
    """(path of an image from `root` on, where it is listed) of all images in folders and in lists."""
    for place in places:
        if place.is_dir():
            prefix = os.path.relpath(place, root)
            for name in list_files(place, IMAGE_EXTENSIONS)[0]:
                yield os.path.normpath(f"{prefix}/{name}"), f"{place}/{name}"
        else:
            lines = [(f"{place}:{number}", line.strip()) for number, line in read_lines(place)]
            if not lines:
                raise InputError(f"{place} lists no images")
            names = [str(end.relative_to(root)) if (end := find_end(root, name)) else name for _, name in lines]
            folder, names = place_images(place, root, [root], names)
            for (where, line), name in zip(lines, names, strict=True):
                image = os.path.normpath(os.path.relpath(folder / name, root))
                if image.startswith(".."):  # its labels would be read from there, too
                    raise InputError(f"{where}: the path {line[:300]!r} leaves the data set's folder {root}")
                yield image, where


def find_labels(root: Path, image: str) -> Path:
    """Where the labels of an image lie: beside it, or in `labels` where it lies in `images`."""
    parts = list(PurePosixPath(image).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        last = max(place for place, part in enumerate(parts[:-1]) if part == "images")
        parts[last] = "labels"
    return root.joinpath(*parts)


def read_boxes(file: Path, num_classes: int) -> Iterator[int]:
    """The class of each box in a file. Raises InputError for a line that is no box."""
    for number, line in read_lines(file):
        words = line.split()
        try:
            values = [float(word) for word in words]
            index = int(values[0])
        except (ValueError, OverflowError):
            values, index = [], -1
        if len(values) < BOX_NUMBERS:
            raise InputError(f"{file}:{number}: expected a box, `class x y width height`: {line.strip()[:80]!r}")
        if index != values[0] or not 0 <= index < num_classes:
            raise InputError(f"{file}:{number}: {words[0][:20]!r} is none of the classes 0...{num_classes - 1}")
        yield index


FORMAT = Format(
    expects="data.yaml and labels/train/*.txt (yolo)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
