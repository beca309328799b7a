"""Which shards a data set has, and the index of a split: `<split>.index.csv`, a line for each image.

The first line of each shard that is a file also says the file's size and time of change. While both are the same, the
index is used; otherwise it is made anew. A shard with an older date is another shard, too. Labels that a shard gives as
class indices stay indices: another list of classes needs no other index.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.files import MOST_IMAGE_BYTES
from dataset.splits import WORDS
from dataset.tar_shards.addresses import HERE, Address, expand_numbers, read_address
from dataset.tar_shards.scanning import BLOCK, IndexRow, ScannedShard, scan_shards
from dataset.text_files import CsvFile, read_lines, read_text, replace_text
from utils import InputError, warn

STAMP = ("shard_bytes", "shard_changed")  # changed: nanoseconds since 1970
COLUMNS = (*IndexRow._fields, *STAMP)
EARLIER = (IndexRow._fields[:-1], (*IndexRow._fields[:-1], *STAMP))  # columns that earlier versions wrote
SHARD = re.compile(rf"(?:{'|'.join(WORDS)})-[^/\s'\"?&#]*\.tar")
NUMBER = re.compile(r"\d")  # that a shard in the folder has in its name, unlike an archive such as train-images.tar
NO_INDICES = "an earlier version wrote it, which did not tell names of classes from their indices"
RESTORE = "restore it, or delete the index to have it made anew"
MOST_BYTES = 2**62  # of a shard: such numbers can be added up


def name_index(root: Path, split: str) -> Path:
    return root / f"{split}.index.csv"


def name_split(shard: str) -> str:
    """The split that a shard called so is of."""
    return WORDS[shard.partition("-")[0]]


def list_shards(root: Path) -> dict[str, Address]:
    """{name: where it lies} of the shards, sorted. Nothing is opened but shards.txt. Raises InputError."""
    found: dict[str, Address] = {}
    listed = root / "shards.txt"
    if listed.is_file():
        for number, line in read_lines(listed):
            line, where = line.strip(), f"{listed}:{number}"
            if line.startswith("#"):
                continue
            for text in expand_numbers(line, where):
                names = SHARD.findall(text)
                if not names:
                    raise InputError(f"{where}: no name such as train-000000.tar stands in {text[:80]!r}")
                if names[-1] in found:
                    raise InputError(f"{where}: {names[-1]} stands here a second time")
                found[names[-1]] = read_address(text, root, where)
    if root.is_dir():
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if SHARD.fullmatch(entry.name) and NUMBER.search(entry.name)]
        found |= {name: HERE for name in names if (root / name).is_file()}
    return dict(sorted(found.items()))


def read_index(root: Path, split: str, shards: Mapping[str, Address]) -> list[IndexRow]:
    """The index of `shards`, those of `split` (name: where it lies), sorted by path.

    Where there is none, or where a shard is another file than the index was made of, it is made first. Raises
    InputError.
    """
    file = name_index(root, split)
    if file.is_file():
        index, stamps = _parse_index(file)
        reason = _find_change(file, shards, {row.shard for row in index}, stamps) if index else NO_INDICES
        if not reason:
            return index
        warn(f"{file}: {reason}: the index is made anew")
    scanned = list(scan_shards(root, shards))
    rows = _sort([row for shard in scanned for row in shard.rows])
    _require_members(file, rows)
    try:
        write_index(file, scanned)
    except InputError as error:  # such as a data set on a disk that is read only
        warn(f"{error}; without an index, the shards are read each time")
    return rows


class _Stamp(NamedTuple):
    """What the index says of a shard that is a file."""

    num_bytes: int
    changed: int


def _find_change(
    index: Path, shards: Mapping[str, Address], indexed: Collection[str], stamps: Mapping[str, _Stamp]
) -> str:
    """Which of the `shards` is another file than the index was made of, in words; "" where none is.

    Raises InputError for a shard that is not there, and for one that is not indexed and no file.
    """
    for name in sorted(set(indexed) - set(shards)):
        raise InputError(f"{index}: {name} is in the index, but not there; {RESTORE}")
    for name, address in shards.items():
        file = address.find_file(index.with_name(name))
        if file is None:
            if name not in indexed:
                raise InputError(f"{index}: {name} is not in the index; {RESTORE}")
            continue
        try:
            stat = file.stat()
        except OSError as error:
            where = f" ({address.where})" if address.where else ""
            raise InputError(f"cannot read {file}: {error.strerror}{where}") from error
        if name not in stamps:
            return f"it does not say which size and date {name} has"
        if stamps[name] != (stat.st_size, stat.st_mtime_ns):
            return f"{name} has another size or date than the one it was made of"
    return ""


def write_index(file: Path, shards: Iterable[ScannedShard]) -> None:
    """Write a line for each image."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(CsvFile(buffer))
    writer.writerow(COLUMNS)
    for shard in shards:
        stamp = ("", "") if shard.stat is None else (shard.stat.st_size, shard.stat.st_mtime_ns)
        for row in shard.rows:
            writer.writerow((*row, *stamp))
            stamp = ("", "")  # on the first line alone
    replace_text(file, buffer.getvalue())


def _parse_index(file: Path) -> tuple[list[IndexRow], dict[str, _Stamp]]:
    """(the rows of an index, sorted by path; {shard: stamp}). No rows where an earlier version wrote it."""
    try:
        reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
        header = tuple(next(reader, ()))
        if header in EARLIER:
            return [], {}
        rows = [row for row in reader if row]
        if header != COLUMNS:
            raise InputError(f"{file}:1: the columns are {', '.join(header)[:200]}, not {', '.join(COLUMNS)}")
        odd = next((row for row in rows if len(row) != len(header)), None)
        if odd is not None:
            raise InputError(f"{file}: {len(odd)} cells, but {len(header)} columns: {','.join(odd)[:80]}")
        if not rows:
            raise InputError(f"{file} lists no images")
        index = [IndexRow(row[0], row[1], int(row[2]), int(row[3]), *row[4:7]) for row in rows]
        stamps = {row[0]: _Stamp(int(row[7]), int(row[8])) for row in rows if any(row[7:])}
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {str(error)[:200]}; delete it to have it made anew") from error
    _require_members(file, index)
    return _sort(index), stamps


def _sort(rows: list[IndexRow]) -> list[IndexRow]:
    return sorted(rows, key=lambda row: f"{row.shard}/{row.member}")


def _require_members(file: Path, index: Sequence[IndexRow]) -> None:
    """Raise InputError for a row that cannot be an image in a shard."""
    for row in index:
        if {"", ".", ".."} & set(row.member.split("/")) or "\0" in row.member:
            raise InputError(f"{file}: {row.member[:200]!r} is no name of a member")
        if row.offset < BLOCK or not 0 <= row.size <= MOST_IMAGE_BYTES or row.offset > MOST_BYTES:
            found = f"begins at byte {str(row.offset)[:25]} and has {str(row.size)[:25]} bytes"
            raise InputError(f"{file}: {row.member[:200]!r} {found}, which no image does")
