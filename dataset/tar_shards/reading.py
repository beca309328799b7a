"""Reads single images from shards: which shard a path means, where in it the image lies, and its bytes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.files import BINARY, MOST_IMAGE_BYTES, open_file, read_at
from dataset.splits import WORDS, require_one
from dataset.tar_shards.addresses import Address, require_readable
from dataset.tar_shards.fetching import fetch_shard
from dataset.tar_shards.index import list_shards, name_index, name_split, read_index
from dataset.tar_shards.scanning import BLOCK, IndexRow
from utils import InputError, warn

SHARDS_AT_ONCE = 8  # that shuffled training reads from at a time
SHARDS_OPEN = 16  # that a process keeps open
MEMBER = re.compile(rf"(.*?/(?:{'|'.join(WORDS)})-[^/]*\.tar)/(.+)", re.DOTALL)


class RemoteShard(NamedTuple):
    """Where a shard lies that is not in the data set's folder, and where it is kept once it is fetched."""

    address: Address
    folder: Path | None
    limit_gb: float


@dataclass(frozen=True)
class Shard:
    """What is in one shard: sorted `names` of members (M,) as bytes, their `offsets` and `sizes` (M,)."""

    path: str
    names: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    remote: RemoteShard | None

    def find(self, member: str) -> int:
        """The row of `member`. Raises InputError."""
        name = member.encode(errors="surrogateescape")
        row = int(np.searchsorted(self.names, np.array(name, self.names.dtype)))  # another type would copy all names
        if row == len(self.names) or self.names[row] != name:
            raise InputError(f"cannot read image {self.path}/{member}: the index lists no such image")
        return row

    @functools.cached_property
    def digest(self) -> str:
        """Hexadecimal digits that change with what the index says of the shard, and with where it lies."""
        digest = hashlib.sha256(
            (self.remote.address.text if self.remote else self.path).encode(errors="surrogateescape")
        )
        for column in (self.names, self.offsets, self.sizes):
            digest.update(column.tobytes())
        return digest.hexdigest()[:15]

    @property
    def num_bytes(self) -> int:
        """The least size of the shard's file: up to the end of its last image."""
        return -(-int((self.offsets + self.sizes).max()) // BLOCK) * BLOCK


_shards: dict[str, Shard] = {}  # by path: those whose index was read by this process, or by the one it was forked from


# ---- shards and paths ----


def register_split(
    root: Path, split: str, cache_folder: Path | None = None, limit_gb: float = 0.0, commands: bool = False
) -> list[IndexRow]:
    """Read the index of `split` in `root`; from then on `read_bytes` finds its images.

    Shards that lie elsewhere are kept in `cache_folder`, at most `limit_gb`. Unless `commands` allows it, no shard is
    read by a command. Raises InputError.
    """
    found = list_shards(root)
    require_readable(found.values(), commands)  # of all splits, before anything is opened
    shards = {name: address for name, address in found.items() if name_split(name) == split}
    shard_of = {name.partition("-")[0]: root / name for name in shards}  # by the word for the split
    require_one(list(shard_of.values()), split)
    index = read_index(root, split, shards)
    _register(root, index, shards, None if cache_folder is None else cache_folder / "shards", limit_gb)
    return index


def _register(
    root: Path, index: list[IndexRow], shards: Mapping[str, Address], folder: Path | None, limit_gb: float
) -> None:
    largest = 0
    for name, shard_rows in itertools.groupby(index, key=lambda row: row.shard):
        rows = list(shard_rows)
        path = f"{root}{os.sep}{name}"
        names = np.array([row.member.encode(errors="surrogateescape") for row in rows])
        if (twice := np.flatnonzero(names[1:] == names[:-1])).size:
            raise InputError(f"{path}: {rows[int(twice[0])].member} is in it twice")
        offsets = np.array([row.offset for row in rows], dtype=np.int64)
        sizes = np.array([row.size for row in rows], dtype=np.int64)
        remote = None if shards[name].kind == "here" else RemoteShard(shards[name], folder, limit_gb)
        shard = Shard(path, names, offsets, sizes, remote)
        if remote is None and Path(path).stat().st_size < shard.num_bytes:
            raise InputError(f"{path} is shorter than its index says: copy it anew, or delete the index")
        largest = max(largest, shard.num_bytes if remote else 0)
        _shards[path] = shard
    if folder and SHARDS_AT_ONCE * largest > limit_gb * 1e9:
        warn(
            f"SHARD_CACHE_GB is {limit_gb}: training reads from {SHARDS_AT_ONCE} shards at a time, up to "
            f"{SHARDS_AT_ONCE * largest / 1e9:.3g} GB; with less it fetches shards again and again"
        )
    open_shard.cache_clear()


def split_member(path: str) -> tuple[Shard, str] | None:
    """(the shard, the member in it) that `path` means; None for the path of a file."""
    shard, _, member = path.partition(".tar/")
    known = _shards.get(f"{shard}.tar") if member else None
    if known or not member:
        return (known, member) if known else None
    match = MEMBER.fullmatch(path)
    if match is None:
        return None
    file = Path(match[1])
    split = name_split(file.name)
    if match[1] not in _shards and not file.is_dir() and name_index(file.parent, split).is_file():
        register_split(file.parent, split)  # a process that was not forked from one that read it
    return (_shards[match[1]], match[2]) if match[1] in _shards else None


def find_blocks(paths: Sequence[str]) -> NDArray[np.int64] | None:
    """(N,) the number of the shard that each image is in, -1 for image files; None where there are no shards."""
    numbers: dict[str, int] = {}
    blocks = np.full(len(paths), -1, dtype=np.int64)
    for row, path in enumerate(paths):
        member = split_member(path)
        if member:
            blocks[row] = numbers.setdefault(member[0].path, len(numbers))
    return blocks if numbers else None


# ---- images ----


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image file, or of a member of a shard. Raises OSError, or InputError where that says more."""
    member = split_member(os.fspath(path))
    if member is None:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_IMAGE_BYTES:
                raise InputError(f"cannot read image {path}: it has {size:,} bytes, and an image {MOST_IMAGE_BYTES:,}")
            return file.read(MOST_IMAGE_BYTES)
    shard, name = member
    row = shard.find(name)
    size, offset = int(shard.sizes[row]), int(shard.offsets[row])
    data = open_shard(shard.path).read(size, offset)
    if len(data) < size:
        raise InputError(f"cannot read image {path}: its shard ends before; delete the index if the shard is a new one")
    return data


def stamp_images(paths: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(size in bytes, time of last change in nanoseconds) of each image; a shard's time for its members.

    For shards that lie elsewhere, a number that changes with their index takes the place of the time. Raises OSError.
    """
    changed: dict[str, int] = {}
    for path in paths:
        member = split_member(path)
        if member is None:
            stat = Path(path).stat()
            yield stat.st_size, stat.st_mtime_ns
            continue
        shard, name = member
        if shard.path not in changed:
            changed[shard.path] = int(shard.digest, 16) if shard.remote else Path(shard.path).stat().st_mtime_ns
        yield int(shard.sizes[shard.find(name)]), changed[shard.path]


class OpenFile:
    """A file that is closed when nobody refers to it any more, so not while a thread is reading."""

    def __init__(self, path: str | Path) -> None:
        self.number = os.open(path, os.O_RDONLY | BINARY)
        weakref.finalize(self, os.close, self.number)

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, or up to the file's end. Processes that share the file do not disturb it."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: read_at(self.number, memoryview(buffer), offset)])


@functools.lru_cache(maxsize=SHARDS_OPEN)
def open_shard(path: str) -> OpenFile:
    """The file of the shard, fetched first where it lies elsewhere and is not kept."""
    shard = _shards[path]
    if shard.remote is None:
        return OpenFile(path)
    address, folder, limit_gb = shard.remote
    if folder is None:
        raise InputError(f"{path} lies elsewhere, and this process does not know CACHE_FOLDER: set NUM_WORKERS = 0")
    name = Path(path).name
    file = folder / f"{shard.digest}-{name}"
    while True:
        try:
            os.utime(file)  # used last
            return OpenFile(file)
        except FileNotFoundError:  # or dropped by another process since
            fetch_shard(address, name, file, shard.num_bytes, limit_gb)
