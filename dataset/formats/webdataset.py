"""webdataset: `<split>-000000.tar` and so on, or a `shards.txt` of where they lie; `<split>.index.csv`.

`classes.txt`, where it is there, orders the classes. See dataset/tar_shards.py.
"""

from __future__ import annotations

import functools
import os
from itertools import chain
from pathlib import Path

import numpy as np

from dataset.files import require_stems
from dataset.formats.base import SplitSource
from dataset.formats.rows import find_class, mark, read_classes, require_endings, split_names, write_classes
from dataset.table import Table
from dataset.tar_shards import SEPARATOR, encode_name, list_shard_splits, name_index, read_index, write_shards
from utils import InputError


def read_webdataset(source: SplitSource) -> Table:
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
