"""The annotation formats: each is recognised, read into a table, and written from one.

    table = FORMATS["mlcls"].read(root, "train")
    FORMATS["csv"].write(table, other_root, "train", names)    # names: the images' paths within images_folder("train")

Splits are called "train", "val" and "test" in every format, whatever its files are called.

coco_cls      `images/<split>-resized/a.jpg` and `labels/<split>/a.cls` (see label_files.py), `classes.txt`
train_list    `<split>_list.txt`: `path<TAB>1,0,-1` (1 present, 0 absent, -1 or blank unknown), `classes.txt`
mlcls         `label.txt`: `index name`; `<split>.txt` like train_list's (PaddleX's MLClsDataset)
image_folder  `<split>/<class>/a.jpg`, one label an image; `classes.txt`, where it is there, orders the classes
classes_json  `<split>.json`: {"classes": [names], "images": [[path, [names present], [names unknown]?], ...]}
coco_json     `annotations/instances_<split>*.json`, images in `<split>*/` or `images/<split>*/`; classes by rising id;
              an image's "unknown_category_ids" are unknown
csv           `<split>.csv`, or one file with a column `split`. Other columns: `image_path`; `labels` (names joined by
              a separator, in quotes where they hold it) or one a class (1, 0, -1 or blank); `group`, if any
webdataset    `<split>-000000.tar` and so on, or a `shards.txt` of where they lie; `<split>.index.csv` (see
              dataset_shards.py); `classes.txt`, where it is there, orders the classes

Paths are relative to the data set's folder, except in classes_json, where they are relative to the file.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset_files import (
    IMAGE_EXTENSIONS,
    find_line,
    find_missing,
    find_path,
    list_files,
    make_absolute,
    read_json,
    read_lines,
    read_text,
    replace_text,
    require_stems,
)
from dataset_shards import (
    SEPARATOR,
    decode_name,
    encode_name,
    list_shard_splits,
    name_index,
    read_index,
    write_shards,
)
from dataset_table import Table, join_tables
from label_files import read_label_files, write_label_files
from utils import InputError

SPLITS = ("train", "val", "test")
UNKNOWN = 255  # what -1 is as a byte
VALUES = {"1": 1, "0": 0, "-1": UNKNOWN, "": UNKNOWN, "nan": UNKNOWN}
VALUES |= {"1.0": 1, "0.0": 0, "-1.0": UNKNOWN, "true": 1, "false": 0}  # as pandas writes them
CSV_COLUMNS = ("image_path", "labels", "split", "group")  # what else a csv has are classes
UNKNOWN_IDS = "unknown_category_ids"  # of an image in coco_json
NEAREST = 10  # classes that a name which is none might have meant


@dataclass(frozen=True)
class ReadOptions:
    """What reading some of the formats depends on."""

    separator: str = ";"  # csv: between the names in the column `labels`
    count_crowds: bool = True  # coco_json: whether an annotation of a crowd makes its class present
    cache_folder: Path | None = None  # coco_cls: where an index of the label files is kept; None: nowhere
    shard_cache_gb: float = 50.0  # webdataset: of shards from elsewhere that are kept in `cache_folder`
    check_label_files: bool = True  # coco_cls: False: the index notices new and renamed label files, not edited ones


class Source(NamedTuple):
    """What a reader reads: the split of the data set in `root`; the rest as in `Format.read`."""

    root: Path
    split: str
    images_dir: Path | None
    labels_dir: Path | None
    classes: Sequence[str] | None
    options: ReadOptions


@dataclass(frozen=True)
class Format:
    """One annotation format; `images_folder(split)` is where it has a split's images when it is written here.

    With `in_shards`, images are no files of their own: the writer packs those at the table's paths.
    """

    list_splits: Callable[[Path], list[str]]
    reader: Callable[[Source], Table]
    writer: Callable[[Table, Path, str, list[str]], None]
    images_folder: Callable[[str], str]
    name_images: Callable[[Table, list[str]], list[str]] = lambda table, names: names
    shorten_names: Callable[[Table, list[str]], list[str]] = lambda table, names: names  # undoes name_images
    in_shards: bool = False

    def recognise(self, root: Path) -> bool:
        """Whether `root` looks like a data set in this format."""
        return bool(self.list_splits(root))

    def read(
        self,
        root: Path,
        split: str,
        images_dir: str | Path | None = None,
        labels_dir: str | Path | None = None,
        classes: Sequence[str] | None = None,
        options: ReadOptions = ReadOptions(),
    ) -> Table:
        """The table of one split, sorted by path. Raises InputError, with file and line, for what is wrong.

        `images_dir` and `labels_dir` replace the folders that coco_cls and coco_json would look in, `classes` are the
        names where the data set does not bring its own.
        """
        root = make_absolute(root)
        images, labels = (None if path is None else make_absolute(path) for path in (images_dir, labels_dir))
        if labels is None and split not in (splits := self.list_splits(root)):
            raise InputError(f"{root} has no split {split!r} in this format; it has {', '.join(splits) or 'none'}")
        return self.reader(Source(root, split, images, labels, classes, options))

    def write(self, table: Table, root: Path, split: str, image_names: list[str]) -> None:
        """Write the labels of a split, and the class names; replaced lists stay beside the new ones as `.bak`.

        `image_names` are the images' paths within `images_folder(split)`, where the caller places them, as
        `name_images(table, names)` gives them; that raises InputError for what the format cannot hold.
        """
        if self.name_images(table, self.shorten_names(table, image_names)) != image_names:
            raise InputError(f"{root}: the images of {split} do not lie in a folder of their class each")
        self.writer(table, root, split, image_names)


class Rows:
    """The rows of a table in the making, as a file lists them.

    Paths are relative to `base` and must not leave `inside`; a path that comes again counts once.
    """

    def __init__(self, base: Path, inside: Path, classes: Sequence[str]) -> None:
        self.base, self.inside, self.classes = str(make_absolute(base)), str(make_absolute(inside)), tuple(classes)
        self.rows: dict[str, tuple[bytes, str, Callable[[], str]]] = {}

    def add(self, text: str, values: bytes, where: Callable[[], str], group: str = "") -> None:
        """One image, its labels as a byte each (1, 0, UNKNOWN), and where that stands."""
        path = find_path(self.base, text)
        if not path.startswith(self.inside.rstrip(os.sep) + os.sep):
            raise InputError(
                f"{where()}: the path {text!r} leaves the data set's folder {self.inside}"
                if text.strip()
                else f"{where()}: the path of the image is missing"
            )
        known = self.rows.setdefault(path, (values, group, where))
        if known[:2] != (values, group):
            what = "labels or another group" if group or known[1] else "labels"
            raise InputError(f"{where()}: {text!r} has other {what} here than at {known[2]()}")

    def make_table(self, file: Path, has_groups: bool = False) -> Table:
        """The table, sorted by path. Raises InputError when an image, or every line of `file`, is missing."""
        if not self.rows:
            raise InputError(f"{file} lists no images")
        paths = sorted(self.rows)
        missing = find_missing(paths)
        if missing:
            where = self.rows[missing[0]][2]()
            raise InputError(f"{len(missing)} of {len(paths)} images do not exist, the first: {missing[0]} ({where})")
        values = b"".join(self.rows[path][0] for path in paths)
        targets = np.frombuffer(values, dtype=np.int8).reshape(len(paths), len(self.classes)).copy()
        groups = tuple(self.rows[path][1] for path in paths) if has_groups else None
        return Table(paths, targets, self.classes, groups)


# ---- class names and label values ----


def read_classes(root: Path, default: Sequence[str] | None) -> tuple[str, ...]:
    """The names in `root/classes.txt`, one a line in index order; `default` where there is no such file."""
    path = root / "classes.txt"
    if not path.is_file():
        if default is None:
            raise InputError(f"{path} is missing: write the class names into it, one a line, in index order")
        return tuple(default)
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise InputError(f"{path} is empty: write the class names into it, one a line, in index order")
    return require_unique(lines, lambda index: f"{path}:{index + 1}")


def require_unique(names: Iterable[Any], where: Callable[[int], str]) -> tuple[str, ...]:
    """The class names without white space around them; InputError for one that is empty or stands twice."""
    unique: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where(index)}: a class name is empty, or no text: {name!r}")
        if unique.setdefault(name.strip(), index) != index:
            raise InputError(f"{where(index)}: class {name.strip()!r} stands here a second time")
    return tuple(unique)


def join_files(tables: Sequence[Table], files: Iterable[Path]) -> Table:
    """The tables of several files of one split as one. Raises InputError when two of them list the same image."""
    table = join_tables(tables)
    path, count = Counter(table.paths).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path} is listed in more than one of {', '.join(map(str, files))}")
    return table


def find_class(name: str, columns: dict[str, int], where: Callable[[], str]) -> int:
    """The column of class `name`; InputError with the ten nearest names when it is none."""
    column = columns.get(name)
    if column is None:
        nearest = difflib.get_close_matches(name, columns, NEAREST, cutoff=0.0)
        raise InputError(f"{where()}: {name!r} is no class; the nearest: {', '.join(nearest)}")
    return column


def parse_values(texts: Sequence[str], classes: Sequence[str], where: Callable[[], str]) -> bytes:
    """A byte for each class: 1, 0 or UNKNOWN."""
    if len(texts) != len(classes):
        raise InputError(f"{where()}: {len(texts)} labels, but there are {len(classes)} classes")
    try:
        return bytes([VALUES[text] for text in texts])
    except KeyError:  # a space somewhere, or a mistake
        values = [VALUES.get(text.strip().lower()) for text in texts]
        if None in values:
            index = values.index(None)
            raise InputError(
                f"{where()}: {texts[index].strip()!r} for class {classes[index]!r} is none of 1 (present), "
                "0 (absent) and -1 or blank (unknown)"
            ) from None
        return bytes(value or 0 for value in values)


def mark(present: Iterable[int], unknown: Iterable[int], num_classes: int, where: Callable[[], str]) -> bytes:
    """A byte for each class from the columns of those present and unknown."""
    values = bytearray(num_classes)
    for column in present:
        values[column] = 1
    for column in unknown:
        if values[column] == 1:
            raise InputError(f"{where()}: a class is both present and unknown")
        values[column] = UNKNOWN
    return bytes(values)


def require_lines(names: Iterable[str]) -> None:
    """Raise InputError for a class name or path that does not fit on a line."""
    for name in names:
        if not name.strip() or "\n" in name or "\r" in name or name[0] == "\ufeff":
            raise InputError(f"{name!r} cannot stand on a line of a list: rename it, or choose csv or coco_json")


def write_classes(root: Path, classes: Sequence[str]) -> None:
    """Write classes.txt."""
    require_lines(classes)
    replace_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))


def require_listable(names: Sequence[str]) -> None:
    """Raise InputError for a file name that would not be taken for an image when the folder is listed."""
    require_endings(names)
    for name in names:
        if "/." in f"/{name}":
            raise InputError(f"{name} is hidden, or lies in a hidden folder: rename it")


def require_endings(names: Sequence[str]) -> None:
    """Raise InputError for a file name that is none of an image."""
    for name in names:
        if not name.lower().endswith(tuple(IMAGE_EXTENSIONS)):
            raise InputError(f"{name} has none of the endings {', '.join(sorted(IMAGE_EXTENSIONS))}: rename it")


# ---- coco_cls ----


def list_coco_cls_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / "images").is_dir() and (root / "labels" / split).is_dir()]


def read_coco_cls(source: Source) -> Table:
    images_dir = source.images_dir or source.root / coco_cls_images(source.split)
    labels_dir = source.labels_dir or source.root / "labels" / source.split
    names, options = read_classes(source.root, source.classes), source.options
    images, targets = read_label_files(
        images_dir, labels_dir, len(names), options.cache_folder, options.check_label_files
    )
    return Table([f"{images_dir}{os.sep}{name}" for name in images], targets, names)


def coco_cls_images(split: str) -> str:
    return f"images/{split}-resized"


def name_coco_cls_images(table: Table, names: list[str]) -> list[str]:
    require_listable(names)
    require_stems(names)
    return names


def write_coco_cls(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_label_files(root / "labels" / split, names, table.targets)


# ---- train_list and mlcls: a line an image ----


def list_split_files(root: Path, ending: str) -> list[str]:
    return [split for split in SPLITS if (root / f"{split}{ending}").is_file()]


def images_in_splits(split: str) -> str:
    return f"images/{split}"


def read_list(file: Path, root: Path, classes: Callable[[int], Sequence[str]]) -> Table:
    """The table of a list of `path<TAB>1,0,-1`; `classes(count)` are the names for so many labels a line."""
    rows = None
    for number, line in read_lines(file):
        path, tab, labels = line.rpartition("\t")

        def where(number: int = number) -> str:
            return f"{file}:{number}"

        if not tab:
            raise InputError(f"{where()}: no TAB between path and labels: {line[:80]!r}")
        values = labels.split(",")
        rows = rows or Rows(root, root, classes(len(values)))
        rows.add(path, parse_values(values, rows.classes, where), where)
    if rows is None:
        raise InputError(f"{file} lists no images")
    return rows.make_table(file)


def write_list(file: Path, folder: str, table: Table, names: list[str]) -> None:
    require_lines(names)
    lines = [
        f"{os.path.normpath(os.path.join(folder, name))}\t{','.join(map(str, row))}\n"
        for name, row in zip(names, table.targets.tolist(), strict=True)
    ]
    replace_text(file, "".join(lines))


def read_train_list(source: Source) -> Table:
    def name_classes(count: int) -> Sequence[str]:
        fits = source.classes is not None and len(source.classes) == count
        return read_classes(source.root, source.classes if fits else None)

    return read_list(source.root / f"{source.split}_list.txt", source.root, name_classes)


def write_train_list(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_list(root / f"{split}_list.txt", images_in_splits(split), table, names)


def list_mlcls_splits(root: Path) -> list[str]:
    return list_split_files(root, ".txt") if (root / "label.txt").is_file() else []


def read_mlcls(source: Source) -> Table:
    names = read_label_txt(source.root / "label.txt")
    return read_list(source.root / f"{source.split}.txt", source.root, lambda _: names)


def read_label_txt(path: Path) -> tuple[str, ...]:
    """The class names in PaddleX's label.txt: `index name` a line, indices 0...C-1 in any order."""
    lines = list(read_lines(path))
    names: dict[int, tuple[str, int]] = {}
    for number, line in lines:
        index, _, name = line.strip().partition(" ")
        if not (index.isascii() and index.isdigit()) or int(index[:10]) >= len(lines):
            raise InputError(
                f"{path}:{number}: {line.strip()[:80]!r} does not begin with an index 0...{len(lines) - 1}, as the "
                f"{len(lines)} classes need"
            )
        if int(index) in names:
            raise InputError(f"{path}:{number}: index {index} stands here a second time")
        names[int(index)] = name, number
    if not names:
        raise InputError(f"{path} is empty: write a line `index name` a class into it")
    ordered = [names[index] for index in range(len(names))]
    return require_unique([name for name, _ in ordered], lambda index: f"{path}:{ordered[index][1]}")


def write_mlcls(table: Table, root: Path, split: str, names: list[str]) -> None:
    require_lines(table.classes)
    replace_text(root / "label.txt", "".join(f"{index} {name}\n" for index, name in enumerate(table.classes)))
    write_list(root / f"{split}.txt", "images", table, names)


# ---- image_folder ----


def list_class_folders(root: Path, split: str) -> list[str]:
    """The class folders of a split; those with a dot before their name are none."""
    folder = root / split
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def list_image_folder_splits(root: Path) -> list[str]:
    # a folder `images` beside one `labels` is another tool's layout, not two classes
    folders = {split: list_class_folders(root, split) for split in SPLITS}
    return [split for split, found in folders.items() if found and not {"images", "labels"} <= set(found)]


def read_image_folder(source: Source) -> Table:
    root, split = source.root, source.split
    found = {name for any_split in SPLITS for name in list_class_folders(root, any_split)}
    names = read_classes(root, sorted(found))
    columns = {name: column for column, name in enumerate(names)}
    rows = Rows(root / split, root, names)
    files, _ = list_files(root / split, IMAGE_EXTENSIONS)
    for file in files:
        name, slash, _ = file.partition("/")
        if name[0] == ".":
            continue

        def where(file: str = file) -> str:
            return str(root / split / file)

        if not slash:
            raise InputError(f"{where()} lies in no class folder: move it into {root / split}/<class>/")
        rows.add(file, mark([find_class(name, columns, where)], (), len(names), where), where)
    return rows.make_table(root / split)


def name_image_folder_images(table: Table, names: list[str]) -> list[str]:
    """Each name under its class's folder. Raises InputError for an image of two labels, or of none."""
    for path, row in zip(table.paths, table.targets, strict=True):
        if np.count_nonzero(row == 1) != 1 or (row == -1).any():
            present, unknown = ([table.classes[column] for column in np.flatnonzero(row == value)] for value in (1, -1))
            raise InputError(
                f"{path} has {len(present)} label(s) {', '.join(present[:3])}, and {len(unknown)} unknown: an "
                "image_folder takes images of exactly one; choose another format"
            )
    for name in table.classes:
        if "/" in name or "\0" in name or name[0] == "." or len(os.fsencode(name)) > 255:
            raise InputError(f"the class name {name!r} cannot be that of a folder: rename it, or choose another format")
    require_listable(names)
    if _all_in(names, folders := name_folders(table)) and shorten_image_folder_names(table, names) == names:
        return names  # so they would come back as they are
    return [f"{folder}{name}" for folder, name in zip(folders, names, strict=True)]


def shorten_image_folder_names(table: Table, names: list[str]) -> list[str]:
    """Names without the class's folder, unless the classes have images of the same name."""
    folders = name_folders(table)
    short = [name.removeprefix(folder) for folder, name in zip(folders, names, strict=True)]
    stems = {name.rpartition(".")[0] for name in short}
    return short if _all_in(names, folders) and len(stems) == len(names) else names


def name_folders(table: Table) -> list[str]:
    return [f"{table.classes[column]}/" for column in (table.targets == 1).argmax(axis=1)]


def _all_in(names: list[str], folders: list[str]) -> bool:
    return all(name.startswith(folder) for name, folder in zip(names, folders, strict=True))


def write_image_folder(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    for name in table.classes:
        (root / split / name).mkdir(parents=True, exist_ok=True)


# ---- classes_json ----


def read_classes_json(source: Source) -> Table:
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


def write_json(file: Path, **lists: list[Any]) -> None:
    """Write {"name": [items]} with an item a line, where an error can be told by its line."""
    parts = []
    for name, items in lists.items():
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        parts.append(f'"{name}": [\n{lines}\n]')
    replace_text(file, "{\n" + ",\n".join(parts) + "\n}\n")


# ---- coco_json ----


def list_coco_json_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"instances_{split}*.json"))


def list_coco_json_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if list_coco_json_files(root / "annotations", split)]


def read_coco_json(source: Source) -> Table:
    tables = []
    files = list_coco_json_files(source.labels_dir or source.root / "annotations", source.split)
    for file in files:
        name = file.stem.removeprefix("instances_")
        folders = [source.images_dir] if source.images_dir else [source.root / name, source.root / "images" / name]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is None:
            raise InputError(f"{file}: its images are not there; expected {' or '.join(map(str, folders))}")
        tables.append(read_coco_json_file(file, folder, source.images_dir or source.root, source.options.count_crowds))
    if not tables:
        raise InputError(f"{source.labels_dir} holds no instances_{source.split}*.json")
    return join_files(tables, files)


def read_coco_json_file(file: Path, folder: Path, inside: Path, count_crowds: bool) -> Table:
    data, text = read_json(file)
    parts = ("images", "annotations", "categories")
    if not (isinstance(data, dict) and all(isinstance(data.get(part), list) for part in parts)):
        raise InputError(f'{file}: expected {{"images": [...], "annotations": [...], "categories": [...]}}')
    try:
        categories = sorted((category["id"], category["name"]) for category in data["categories"])
        names = require_unique([name for _, name in categories], lambda index: f"{file}: category {categories[index]}")
        columns = {id: column for column, (id, _) in enumerate(categories)}
        present: dict[Any, set[int]] = {image["id"]: set() for image in data["images"]}
        if len(columns) < len(names) or len(present) < len(data["images"]):
            raise InputError(f"{file}: two {'categories' if len(columns) < len(names) else 'images'} have the same id")
        for annotation in data["annotations"]:
            if count_crowds or not annotation.get("iscrowd"):
                present[annotation["image_id"]].add(columns[annotation["category_id"]])
        rows = Rows(folder, inside, names)
        seen: Counter[str] = Counter()
        for image in data["images"]:
            name = image["file_name"]
            seen[name] += 1

            def where(name: str = name, occurrence: int = seen[name]) -> str:
                return f"{file}:{find_line(text, name, occurrence)}"

            unknown = [columns[id] for id in image.get(UNKNOWN_IDS, ())]
            rows.add(name, mark(present[image["id"]], unknown, len(names), where), where)
    except KeyError as error:
        raise InputError(f"{file}: {error.args[0]!r} is missing, or is the id of no image or category") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"{file} is no COCO annotation file: {error}") from error
    return rows.make_table(file)


def write_coco_json(table: Table, root: Path, split: str, names: list[str]) -> None:
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


# ---- csv ----


def list_csv_files(root: Path) -> dict[str, list[Path]]:
    """The files that each split is in: `<split>.csv`, or else whatever has a column `split`."""
    own = {split: root / f"{split}.csv" for split in SPLITS}
    files = {split: [file] for split, file in own.items() if file.is_file() and "image_path" in read_header(file)}
    if files:
        return files
    shared = [file for file in sorted(root.glob("*.csv")) if {"image_path", "split"} <= set(read_header(file))]
    found = {split for file in shared for split in _list_splits_in(file, file.stat().st_mtime_ns)}
    return {split: shared for split in SPLITS if split in found}


@functools.lru_cache  # asked for several times before a run begins
def _list_splits_in(file: Path, changed: int) -> set[str]:
    """What stands in the column `split` of a csv file that was last `changed` at that time."""
    return {row["split"].strip() for _, row in read_csv(file)}


def read_header(file: Path) -> list[str]:
    """The names of the columns of a csv file; none where it is something else."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            return [name.strip() for name in next(csv.reader(lines), [])]
    except csv.Error:
        return []
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def read_csv(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of the rows of a csv file, the header left out."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        header = require_unique(next(reader, []), lambda index: f"{file}:1: column {index + 1}")
        for row in reader:
            if len(row) != len(header) and row:
                raise InputError(f"{file}:{reader.line_num}: {len(row)} cells, but {len(header)} columns")
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: {error}") from error


def split_names(cell: str, separator: str) -> list[str]:
    """The names in a cell of the column `labels`; a name in quotes may hold the separator."""
    names = next(csv.reader([cell], delimiter=separator, skipinitialspace=True), []) if '"' in cell else None
    return [name.strip() for name in (names or cell.split(separator)) if name.strip()]


def read_csv_split(source: Source) -> Table:
    root, split, separator = source.root, source.split, source.options.separator
    files = list_csv_files(root)
    tables = []
    for file in files[split]:
        header = read_header(file)
        names = tuple(name for name in header if name not in CSV_COLUMNS)
        by_name = "labels" in header
        if by_name:  # whatever is named in any split
            cells = (row.get("labels", "") for some in {*chain(*files.values())} for _, row in read_csv(some))
            names = read_classes(root, sorted({name for cell in cells for name in split_names(cell, separator)}))
        if not names:
            raise InputError(f"{file}: neither a column `labels` that names a class nor a column of a class")
        columns = {name: column for column, name in enumerate(names)}
        rows = Rows(root, root, names)
        for number, row in read_csv(file):

            def where(file: Path = file, number: int = number) -> str:
                return f"{file}:{number}"

            row_split = row.get("split", split).strip()
            if row_split not in SPLITS:
                raise InputError(f"{where()}: the split {row_split!r} is none of {', '.join(SPLITS)}")
            if row_split != split:
                continue
            if by_name:
                labels = [find_class(name, columns, where) for name in split_names(row["labels"], separator)]
                values = mark(labels, (), len(names), where)
            else:
                values = parse_values([row[name] for name in names], names, where)
            rows.add(row["image_path"], values, where, row.get("group", "").strip())
        if rows.rows or len(files[split]) == 1:
            tables.append(rows.make_table(file, "group" in header))
    return join_files(tables, files[split])


def name_csv_images(table: Table, names: list[str]) -> list[str]:
    for name in set(table.classes) & set(CSV_COLUMNS):
        raise InputError(f"a class is called {name!r}, which means something else in a csv: rename it")
    return names


def write_csv(table: Table, root: Path, split: str, names: list[str]) -> None:
    """A column a class, which holds every table; the names' order is that of the columns."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    groups = [] if table.groups is None else [table.groups]
    writer.writerow(["image_path", *(["group"] if groups else []), *table.classes])
    for name, row, *group in zip(names, table.targets.tolist(), *groups, strict=True):
        writer.writerow([os.path.normpath(os.path.join(images_in_splits(split), name)), *group, *row])
    replace_text(root / f"{split}.csv", buffer.getvalue())


# ---- webdataset ----


def read_webdataset(source: Source) -> Table:
    root, options = source.root, source.options
    indexes = {}
    splits = list_shard_splits(root) if not (root / "classes.txt").is_file() else [source.split]
    for split in splits:  # without a list, the classes are whatever is named in any split
        indexes[split] = read_index(
            root, split, lambda: read_classes(root, source.classes), options.cache_folder, options.shard_cache_gb
        )
    named = {cell for index in indexes.values() for cell in chain(index.labels, index.unknown)}
    names = read_classes(root, sorted({name for cell in named for name in split_names(cell, SEPARATOR)}))
    columns = {name: column for column, name in enumerate(names)}
    index, file = indexes[source.split], name_index(root, source.split)

    paths = [f"{root}{os.sep}{shard}/{member}" for shard, member in zip(index.shards, index.members, strict=True)]

    @functools.cache  # the same few combinations again and again
    def parse(labels: str, unknown: str) -> bytes:
        def where() -> str:
            row = next(
                r for r, cells in enumerate(zip(index.labels, index.unknown, strict=True)) if cells == (labels, unknown)
            )
            return f"{file}: {index.shards[row]}/{index.members[row]}"

        seen, unsure = (
            [find_class(name, columns, where) for name in split_names(cell, SEPARATOR)] for cell in (labels, unknown)
        )
        return mark(seen, unsure, len(names), where)

    values = b"".join(map(parse, index.labels, index.unknown))
    return Table(paths, np.frombuffer(values, dtype=np.int8).reshape(len(paths), len(names)).copy(), names)


def name_members(table: Table, names: list[str]) -> list[str]:
    require_endings(names)
    members = [encode_name(name) for name in names]
    require_stems(members)
    odd = next((name for name in members if any("\ud800" <= letter <= "\udfff" for letter in name)), None)
    if odd:
        raise InputError(f"a name is not valid UTF-8, rename it first: {odd!a}")
    return members


def write_webdataset(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    labels = [
        (
            [table.classes[column] for column in np.flatnonzero(row == 1)],
            [table.classes[column] for column in np.flatnonzero(row == -1)],
        )
        for row in table.targets
    ]
    write_shards(root, split, table.paths, names, labels)


# ---- all of them ----

FORMATS: dict[str, Format] = {
    "coco_cls": Format(list_coco_cls_splits, read_coco_cls, write_coco_cls, coco_cls_images, name_coco_cls_images),
    "train_list": Format(
        lambda root: list_split_files(root, "_list.txt"), read_train_list, write_train_list, images_in_splits
    ),
    "mlcls": Format(list_mlcls_splits, read_mlcls, write_mlcls, lambda _: "images"),
    "image_folder": Format(
        list_image_folder_splits,
        read_image_folder,
        write_image_folder,
        lambda split: split,
        name_image_folder_images,
        shorten_image_folder_names,
    ),
    "classes_json": Format(
        lambda root: list_split_files(root, ".json"), read_classes_json, write_classes_json, images_in_splits
    ),
    "coco_json": Format(list_coco_json_splits, read_coco_json, write_coco_json, lambda split: split),
    "csv": Format(
        lambda root: list(list_csv_files(root)), read_csv_split, write_csv, images_in_splits, name_csv_images
    ),
    "webdataset": Format(
        list_shard_splits,
        read_webdataset,
        write_webdataset,
        lambda split: split,
        name_members,
        lambda table, names: [decode_name(name) for name in names],
        in_shards=True,
    ),
}
