"""webdataset: `<split>-000000.tar` and so on, or a `shards.txt` of where they lie; `<split>.index.csv`.

`classes.txt`, where it is there, orders the classes. See dataset/tar_shards/.

The numbers in a `.cls`, or in place of names in a `.json`, are class indices: `classes.txt` names them, else CLASSES
where somebody has edited it. COCO's names, which it has before, are those of no other data set: there the classes are
label_0, label_1 and so on, and that is said.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from dataset.class_names import ClassIndex, name_labels, read_classes, show_names, split_names, write_classes
from dataset.files import require_endings, require_stems
from dataset.formats.base import Format, SplitSource
from dataset.label_values import mark_columns
from dataset.table import SPLITS, Table, require_room
from dataset.tar_shards.index import list_shards, name_index, name_split
from dataset.tar_shards.reading import register_split
from dataset.tar_shards.scanning import SEPARATOR, UNKNOWN_MARK, IndexRow
from dataset.tar_shards.writing import write_shards
from utils import InputError, warn_once

# What webdataset would misread in a name without its ending: %, line ends, __ at the beginning, . in the last part.
ODD = re.compile(r"%|\n|\r|\A__|\.(?=[^/]*\Z)")
CODE = re.compile(r"%(25|0A|0D|5F|2E)")
COCO_NAMES = "d7654b2610157284"  # what `hash_names` gives for the names that config.CLASSES has until it is edited

Cells = tuple[str, str, str]  # of a row of the index: the names of classes present, of those unknown, the indices


def list_splits(root: Path) -> list[str]:
    found = {name_split(name) for name in list_shards(root)}
    return [split for split in SPLITS if split in found]


def files_of_split(root: Path, split: str) -> list[Path]:
    """The shards and their index. Raises InputError when a shard of the data set lies elsewhere."""
    shards = list_shards(root)
    elsewhere = [name for name, address in shards.items() if address.kind != "here"]
    if elsewhere:
        raise InputError(f"{root}: {elsewhere[0]} lies elsewhere, as shards.txt says: split needs it here")
    return [*(root / name for name in shards if name_split(name) == split), name_index(root, split)]


def read(source: SplitSource) -> Table:
    root, options = source.root, source.options
    splits = list_splits(root) if not (root / "classes.txt").is_file() else [source.split]
    indexes = {  # without a list, the classes are what is named in any split
        split: register_split(root, split, options.cache_folder, options.shard_cache_gb, options.shard_commands)
        for split in splits
    }
    index, name_of = choose_classes(source, chain.from_iterable(indexes.values()))
    classes = index.classes

    require_room(len(indexes[source.split]), len(classes))
    paths, rows = [], []
    row_of: dict[Cells, bytes] = {}  # the same few combinations of labels occur again and again
    for row in indexes[source.split]:
        cells = find_cells(row)
        if cells not in row_of or index.skips_unknown:  # which counts every label
            where = f"{name_index(root, source.split)}: {row.shard}/{row.member}"
            present, unknown = (index.find_all(names, where) for names in name_cells(cells, name_of, where))
            row_of[cells] = mark_columns(present, unknown, len(classes), where)
        paths.append(f"{root}{os.sep}{row.shard}/{row.member}")
        rows.append(row_of[cells])
    targets = np.frombuffer(b"".join(rows), dtype=np.int8).reshape(len(paths), len(classes)).copy()
    return Table(paths, targets, classes)


def find_cells(row: IndexRow) -> Cells:
    return row.labels, row.unknown, row.indices


def choose_classes(source: SplitSource, rows: Iterable[IndexRow]) -> tuple[ClassIndex, Mapping[str, str]]:
    """(the classes of the `rows` of all splits, {index, as the rows have it: the name of its class}).

    Raises InputError where the rows have names and indices, and nothing says which names the indices have.
    """
    found = {find_cells(row) for row in rows}
    named = {name for *cells, _ in found for cell in cells for name in split_names(cell, SEPARATOR)}
    indices = {text.removeprefix(UNKNOWN_MARK) for *_, cell in found for text in split_names(cell, SEPARATOR)}
    if not indices:
        return source.choose_classes(named), {}
    file, classes = source.root / "classes.txt", source.classes
    if file.is_file() or (classes and hash_names(classes) != COCO_NAMES):
        name_of = {str(index): name for index, name in enumerate(read_classes(source.root, classes))}
        return source.choose_classes(named | {name_of[index] for index in indices & name_of.keys()}), name_of
    ordered = sorted(indices, key=lambda text: (len(text), text))  # 2 before 10
    if named:
        raise InputError(
            f"{source.root}: labels are names, such as {min(named)[:80]!r}, and indices, such as {ordered[0][:20]}, "
            f"which nothing names: write the names of the classes into {file}, one a line, in index order"
        )
    name_of = {index: f"label_{index}" for index in ordered}
    warn_once(
        f"{source.root}: nothing names its classes, so they are {show_names([*name_of.values()], 3)}: write their "
        f"names into {file}, one a line, in index order, or into CLASSES"
    )
    return source.index_classes([*name_of.values()]), name_of


def hash_names(names: Sequence[str]) -> str:
    """16 hexadecimal digits that change with any of the `names`, and with their order."""
    return hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()[:16]


def name_cells(cells: Cells, name_of: Mapping[str, str], where: str) -> tuple[list[str], list[str]]:
    """(names of the classes present, of those unknown). Raises InputError for an index that no class has."""
    present, unknown = (split_names(cell, SEPARATOR) for cell in cells[:2])
    for text in split_names(cells[2], SEPARATOR):
        index = text.removeprefix(UNKNOWN_MARK)
        if index not in name_of:
            raise InputError(f"{where}: class index {index[:20]} is outside 0...{len(name_of) - 1}")
        (present if index == text else unknown).append(name_of[index])
    return present, unknown


def name_images(table: Table, names: list[str]) -> list[str]:
    """The names of the members that hold the images."""
    require_endings(names)
    members = [encode_name(name) for name in names]
    require_stems(members)
    odd = next((name for name in members if any("\ud800" <= letter <= "\udfff" for letter in name)), None)
    if odd:
        raise InputError(f"a name is not valid UTF-8, rename it first: {odd!a}")
    return members


def shorten_names(table: Table, names: list[str]) -> list[str]:
    return [decode_name(name) for name in names]


def encode_name(name: str) -> str:
    """The name of the member for an image called `name`: `a.b.jpg` becomes `a%2Eb.jpg`.

    webdataset takes all that follows the first dot of a file's name for its type.
    """
    stem, dot, ending = name.rpartition(".")
    return ODD.sub(lambda match: f"%{ord(match[0][0]):02X}{match[0][1:]}", stem) + dot + ending


def decode_name(member: str) -> str:
    """The name that `encode_name` turns into `member`; `member` itself where there is no such name."""
    name = CODE.sub(lambda match: chr(int(match[1], 16)), member)
    return name if encode_name(name) == member else member


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    write_shards(root, split, table.paths, names, [name_labels(row, table.classes) for row in table.targets])


FORMAT = Format(
    expects="train-000000.tar or shards.txt (webdataset)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="{split}",
    in_shards=True,
    name_images=name_images,
    shorten_names=shorten_names,
    split_by_folder=True,
)
