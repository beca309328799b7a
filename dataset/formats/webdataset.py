"""webdataset: `<split>-000000.tar` and so on, or a `shards.txt` of where they lie; `<split>.index.csv`.

`classes.txt`, where it is there, orders the classes. See dataset/tar_shards/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from dataset.class_names import name_labels, read_classes, split_names, write_classes
from dataset.files import require_endings, require_stems
from dataset.formats.base import Format, SplitSource
from dataset.label_values import mark_columns
from dataset.table import SPLITS, Table, require_room
from dataset.tar_shards.index import list_shards, name_index, name_split
from dataset.tar_shards.reading import register_split
from dataset.tar_shards.scanning import SEPARATOR
from dataset.tar_shards.writing import write_shards
from utils import InputError

# What webdataset would misread in a name without its ending: %, line ends, __ at the beginning, . in the last part.
ODD = re.compile(r"%|\n|\r|\A__|\.(?=[^/]*\Z)")
CODE = re.compile(r"%(25|0A|0D|5F|2E)")


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
    indexes = {}
    splits = list_splits(root) if not (root / "classes.txt").is_file() else [source.split]
    for split in splits:  # without a list, the classes are what is named in any split
        indexes[split] = register_split(
            root,
            split,
            lambda: read_classes(root, source.classes),
            options.cache_folder,
            options.shard_cache_gb,
            options.shard_commands,
        )
    cells = {cell for members in indexes.values() for row in members for cell in (row.labels, row.unknown)}
    index = source.choose_classes(name for cell in cells for name in split_names(cell, SEPARATOR))
    classes = index.classes

    require_room(len(indexes[source.split]), len(classes))
    paths, rows = [], []
    row_of: dict[tuple[str, str], bytes] = {}  # the same few combinations of labels occur again and again
    for shard, member, _, _, labels, unknown in indexes[source.split]:
        if (labels, unknown) not in row_of or index.skips_unknown:  # which counts every label
            where = f"{name_index(root, source.split)}: {shard}/{member}"
            present = index.find_all(split_names(labels, SEPARATOR), where)
            unsure = index.find_all(split_names(unknown, SEPARATOR), where)
            row_of[labels, unknown] = mark_columns(present, unsure, len(classes), where)
        paths.append(f"{root}{os.sep}{shard}/{member}")
        rows.append(row_of[labels, unknown])
    targets = np.frombuffer(b"".join(rows), dtype=np.int8).reshape(len(paths), len(classes)).copy()
    return Table(paths, targets, classes)


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
