"""Annotations of which each image has a file of its own: beside it, or in another folder under the same name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dataset.files import IMAGE_EXTENSIONS, list_files, open_file
from dataset.formats.base import SplitSource
from dataset.label_values import UNKNOWN, mark_columns
from dataset.rows import Rows
from dataset.splits import find_folders
from dataset.table import SPLITS, Table
from utils import InputError, warn

# Where tools put these files, from a split's folder on; "" is beside the images, which also lie in other folders then
FOLDERS = ("", "annotations", "Annotations", "labels", "images", "data", "xmls", "ann", "json")
MOST_ENTRIES = 1000  # of a folder that are looked at to see what it holds: it may have a million images
START_BYTES = 4096  # of a file that are looked at to see what it is


class Labels(NamedTuple):
    """What one file says: {name of a class: 1, or UNKNOWN}, and the names of classes that it lists as absent."""

    values: dict[str, int]
    absent: Sequence[str] = ()


def find_places(root: Path, ending: str, is_annotation: Callable[[bytes], bool]) -> dict[str, list[Path]]:
    """{split: the folders that hold it}: those that are called like it, else `root`, where it is all training data.

    A folder counts where it, or one of FOLDERS in it, has a file with that `ending` whose first bytes are those of an
    annotation. Folders of splits may also lie in such a folder: `Annotations/train/` belongs to `root`.
    """
    folders = find_folders(root)
    found = {
        split: [place for place in folders[split] if _holds(place, ending, is_annotation)]
        for split in SPLITS
    }  # fmt: skip
    if any(found.values()):
        return {split: found[split] for split in SPLITS if found[split]}
    return {"train": [root]} if _holds(root, ending, is_annotation) else {}


def _holds(place: Path, ending: str, is_annotation: Callable[[bytes], bool]) -> bool:
    for folder in FOLDERS:
        if (place / folder).is_dir():
            with os.scandir(place / folder) as entries:
                names = [entry.name for entry in islice(entries, MOST_ENTRIES)]
            first = min((name for name in names if name.lower().endswith(ending) and name[0] != "."), default=None)
            if first and is_annotation(_read_start(place / folder / first)):
                return True
    return False


def _read_start(file: Path) -> bytes:
    try:
        with open_file(file) as stream:
            return stream.read(START_BYTES).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""


def read_table(
    source: SplitSource, places: dict[str, list[Path]], ending: str, read_labels: Callable[[Path], Labels]
) -> Table:
    """The table of a split from the files of all splits, so that each has the same classes.

    An image's file has its name and lies beside it or, where only one image of the folder has that name, anywhere in
    the folder. Images without a file are left out, and said: nobody has looked at them yet.
    """
    found = {place: {file: read_labels(file) for file in list_annotations(place, ending)}
             for folders in places.values() for place in folders}  # fmt: skip
    names = {name for labels in found.values() for each in labels.values() for name in (*each.values, *each.absent)}
    index, split = source.choose_classes(names), source.split
    if not index.classes:
        raise InputError(f"{places[split][0]}: no {ending} file names a class")
    rows = Rows(source.root, source.root, index.classes)
    for place in places[split]:
        images = list_files(place, IMAGE_EXTENSIONS)[0]
        for file, image in match(place, found[place], images):
            where, values = str(file), found[place][file].values
            present = index.find_all([name for name, value in values.items() if value == 1], where)
            unknown = index.find_all([name for name, value in values.items() if value == UNKNOWN], where)
            rows.add(str(place / image), mark_columns(present, unknown, len(index.classes), where), where)
        if alone := len(images) - sum(path.startswith(f"{place}{os.sep}") for path in rows.rows):
            warn(f"{place}: {alone:,} of {len(images):,} images have no {ending} file, and are left out")
    return rows.make_table(places[split][0])


def list_annotations(place: Path, ending: str) -> Iterator[Path]:
    for name in list_files(place, frozenset({ending}))[0]:
        yield place / name


def match(place: Path, files: dict[Path, Labels], images: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """(file, its image). Raises InputError where there is none, or more than one."""
    beside = defaultdict(list)
    anywhere = defaultdict(list)
    for image in images:
        stem = image.rpartition(".")[0]
        beside[stem].append(image)
        anywhere[stem.rpartition("/")[2]].append(image)
    for file in files:
        stem = file.relative_to(place).with_suffix("").as_posix()
        found = beside.get(stem) or anywhere.get(file.stem, [])
        if len(found) > 1:
            raise InputError(f"{file} may be of {found[0]} or {found[1]} in {place}: remove one")
        if not found:
            raise InputError(f"{file}: there is no image {file.stem!r} in {place}")
        yield file, found[0]
