"""Which shards a data set has, and the index of a split: `<split>.index.csv`, a line for each image."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dataset.tar_shards.scanning import BLOCK, IndexRow, scan_shards
from dataset.text_files import read_lines, replace_text
from utils import InputError

COLUMNS = IndexRow._fields
SHARD = re.compile(r"(?:train|val|test)-[^/\s'\"?&#]*\.tar")


def name_index(root: Path, split: str) -> Path:
    return root / f"{split}.index.csv"


def list_shards(root: Path) -> dict[str, str]:
    """{name: its line in shards.txt, "" where it lies in `root`} of the shards, sorted. Raises InputError."""
    found: dict[str, str] = {}
    listed = root / "shards.txt"
    if listed.is_file():
        for number, line in read_lines(listed):
            line = line.strip()
            names = SHARD.findall(line)
            if line.startswith("#"):
                continue
            if not names:
                raise InputError(f"{listed}:{number}: no name such as train-000000.tar stands in {line[:80]!r}")
            if names[-1] in found:
                raise InputError(f"{listed}:{number}: {names[-1]} stands here a second time")
            found[names[-1]] = line
    if root.is_dir():
        with os.scandir(root) as entries:
            found |= {entry.name: "" for entry in entries if SHARD.fullmatch(entry.name) and entry.is_file()}
    return dict(sorted(found.items()))


def read_index(root: Path, split: str, shards: dict[str, str], classes: Callable[[], Sequence[str]]) -> list[IndexRow]:
    """The index of `shards`, those of `split` (name: URL, or "" for those in `root`), sorted by path.

    Where there is none, or where a shard is newer, it is made first; `classes` gives the names of class indices then.
    Raises InputError.
    """
    file = name_index(root, split)
    if not file.is_file() or _is_outdated(file, [root / name for name, url in shards.items() if not url]):
        write_index(file, scan_shards(root, shards, classes))
    index = _parse_index(file)
    if differing := {row.shard for row in index} ^ set(shards):
        where = "not in the index" if min(differing) in shards else "in the index, but not there"
        raise InputError(f"{file}: {min(differing)} is {where}; restore it, or delete the index to have it made anew")
    return index


def _is_outdated(index: Path, shards: Sequence[Path]) -> bool:
    """Whether one of `shards` was written after `index`."""
    written = index.stat().st_mtime_ns
    return any(shard.stat().st_mtime_ns > written for shard in shards)


def write_index(file: Path, rows: Iterable[IndexRow]) -> None:
    """Write a line for each image."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    replace_text(file, buffer.getvalue())


def _parse_index(file: Path) -> list[IndexRow]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = tuple(next(reader, ()))
            rows = [row for row in reader if row]
        if header != COLUMNS:
            raise InputError(f"{file}:1: the columns are {', '.join(header)}, not {', '.join(COLUMNS)}")
        odd = next((row for row in rows if len(row) != len(COLUMNS)), None)
        if odd is not None:
            raise InputError(f"{file}: {len(odd)} cells, but {len(COLUMNS)} columns: {','.join(odd)[:80]}")
        if not rows:
            raise InputError(f"{file} lists no images")
        rows.sort(key=lambda row: f"{row[0]}/{row[1]}")
        index = [IndexRow(row[0], row[1], int(row[2]), int(row[3]), row[4], row[5]) for row in rows]
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {error}; delete it to have it made anew") from error
    for row in index:
        if {"", ".", ".."} & set(row.member.split("/")):
            raise InputError(f"{file}: {row.member!r} is no name of a member")
    if any(row.offset < BLOCK or row.size < 0 for row in index):
        raise InputError(f"{file}: an image begins before byte {BLOCK}, or has a negative size")
    return index
