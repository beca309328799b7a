"""Reads shards from their beginning to their end: for their index, or image by image.

for shard in scan_shards(root, shards): ...             # where each image lies, and its labels
for member in read_members(address): ...                # the images themselves, whatever their labels
"""

from __future__ import annotations

import itertools
import os
import reprlib
import struct
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dataset.class_names import is_unicode, join_names
from dataset.files import IMAGE_EXTENSIONS, MOST_IMAGE_BYTES, open_file
from dataset.json_files import parse_json
from dataset.tar_shards.addresses import Address, open_address
from dataset.tar_shards.resuming import BrokenTransfer, shorten_error, try_again
from utils import InputError, Progress

BLOCK = 512  # bytes; everything in a tar file is a multiple of it
SEPARATOR = ";"  # between the names in a cell of the index
UNKNOWN_MARK = "?"  # before the index of a class that is unknown, in a .cls and in a cell of the index
MOST_READ_BYTES = 1 << 20  # of a header with a long name, or of the labels of a sample
MOST_PADDING = 1 << 20  # bytes of zeros at a tar's end: it fills records of 10,240 bytes, `tar -b` up to this size
TOO_LARGE = f"it has more than the {MOST_IMAGE_BYTES:,} bytes of an image"
TAR_ERRORS = (  # what tarfile raises over damaged files
    tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError, struct.error,
)  # fmt: skip
END_OF_TAR: Any = tarfile.EOFHeaderError  # pyright: ignore[reportAttributeAccessIssue]


class DamagedShard(InputError):
    """A shard is no whole tar file: what follows the damage cannot be read."""


class IndexRow(NamedTuple):
    """An image in a shard: `size` bytes from `offset` on; cells with the names of its classes, and of unknown ones.

    Classes that the shard gives by their indices stay so, `0;?2`: what they are called may be corrected later.
    """

    shard: str
    member: str
    offset: int
    size: int
    labels: str
    unknown: str
    indices: str


class ScannedShard(NamedTuple):
    """The rows of a shard, and the size and time of its file where it is one."""

    rows: list[IndexRow]
    stat: os.stat_result | None


def scan_shards(root: Path, shards: Mapping[str, Address]) -> Iterator[ScannedShard]:
    """What is in each of `shards` (name: where it lies), with progress. Raises InputError."""
    with Progress("reading shards", len(shards)) as progress:
        for name, address in shards.items():
            shard = root / name
            try:
                if file := address.find_file(shard):
                    stat = file.stat()  # before it is read
                    with open_file(file) as stream:
                        tar = _open_tar(stream, "r:", shard)  # images are skipped
                        rows = list(_scan(tar, shard))
                        _require_end(shard, stream, tar.offset)
                else:
                    stat, rows = None, try_again(partial(_scan_stream, address, shard))
            except (OSError, BrokenTransfer) as error:
                raise InputError(f"cannot read {shard}: {shorten_error(error)}") from error
            yield ScannedShard(rows, stat)
            progress.step(1)


def _scan_stream(address: Address, shard: Path) -> list[IndexRow]:
    with open_address(address) as stream:
        tar: Any = _open_tar(stream, "r|", shard, tarinfo=_Header)
        rows = list(_scan(tar, shard))
        _read_to_end(tar, shard)
    return rows


class Member(NamedTuple):
    """An image in a shard."""

    name: str
    data: bytes
    error: str = ""  # why it was not read; "" if it was


def read_members(address: Address, num_bytes: int | None = None) -> Iterator[Member]:
    """The images of the shard at `address`, in its order, one at a time: labels and other members are passed over.

    With `num_bytes` its file must be as large. A name that stands in it twice is two images. Raises DamagedShard where
    the tar file is damaged or cut short, once all before was given, and InputError where it cannot be read.
    """
    try:
        with open_address(address) as stream:
            if num_bytes is not None and (found := os.fstat(stream.fileno()).st_size) != num_bytes:
                raise InputError(f"{address.public} has {found:,} bytes, and had {num_bytes:,} when this began")
            tar: Any = _open_tar(stream, "r|", address.public, bufsize=MOST_READ_BYTES, tarinfo=_Header)
            for member in _list_members(tar, address.public):
                tar.members.clear()  # it would keep them all
                if not _holds_image(member):
                    continue
                if member.size > MOST_IMAGE_BYTES:
                    yield Member(member.name, b"", TOO_LARGE)
                else:
                    yield Member(member.name, _read_member(tar, member, address.public))
            _read_to_end(tar, address.public)
    except (OSError, BrokenTransfer) as error:
        where = f" ({address.where})" if address.where else ""
        raise InputError(f"cannot read {address.public}{where}: {shorten_error(error)}") from error


def _open_tar(stream: Any, mode: Any, shard: Path | str, **options: Any) -> _Tar:
    try:
        return _Tar.open(fileobj=stream, mode=mode, **options)
    except TAR_ERRORS as error:
        raise _explain(shard, error) from error


def _explain(shard: Path | str, error: Exception) -> InputError:
    return DamagedShard(f"{shard} is no whole tar file without compression: {shorten_error(error)}")


class _Tar(tarfile.TarFile):
    """A tar file that is read forwards, in small pieces."""

    has_ended = False  # whether the mark that ends a tar file was read, where a _Header looks for it

    def __init__(self, name: Any, mode: Any, fileobj: Any, **options: Any) -> None:
        forward: Any = _Forward(fileobj)
        super().__init__(name, mode, forward, **options)


class _Header(tarfile.TarInfo):
    """The header of a member, which tells the mark that ends a tar file from damage: tarfile ends at both."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except END_OF_TAR:
            tarfile.has_ended = True
            raise


class _Forward:
    """The file of a tar. Headers may lie: a negative size leads back, over and over; a huge one takes all memory."""

    def __init__(self, file: Any) -> None:
        self.file, self.tell, self.close = file, file.tell, file.close

    def read(self, size: int) -> bytes:
        if size > MOST_READ_BYTES:
            raise tarfile.ReadError(f"a header, or labels, of {size:,} bytes")
        return self.file.read(size)

    def seek(self, position: int) -> None:
        if position < self.file.tell():
            raise tarfile.ReadError("a header with a negative size")
        self.file.seek(position)


def _require_end(shard: Path, stream: Any, offset: int) -> None:
    """Raise InputError unless the zeros that end a tar file are at `offset`: it may be cut between two members."""
    stream.seek(offset)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise InputError(f"{shard} is cut short: the mark that ends a tar file is missing; copy it anew")
    _require_padding(shard, stream)


def _read_to_end(tar: Any, shard: Path | str) -> None:
    """Read what follows the last member: a command that cannot write to its end would fail. Raises DamagedShard."""
    if not tar.has_ended:
        raise DamagedShard(f"{shard} is damaged or cut short: it lacks the mark that ends a tar file")
    _require_padding(shard, tar.fileobj)


def _require_padding(shard: Path | str, stream: Any) -> None:
    """Read on behind the mark that ends a tar file, and raise DamagedShard where that is more than padding.

    A header that was overwritten by zeros looks like the mark; so does what a broken download never wrote.
    """
    num_bytes = 0
    while data := stream.read(MOST_READ_BYTES):
        num_bytes += len(data)
        if data.count(0) < len(data):
            raise DamagedShard(f"{shard} is damaged, or several tar files in one: more follows the mark that ends it")
        if num_bytes > MOST_PADDING:
            raise DamagedShard(
                f"{shard} is damaged, or not copied to its end: more than {MOST_PADDING:,} zeros follow the mark that "
                "ends it"
            )


def _scan(tar: tarfile.TarFile, shard: Path) -> Iterator[IndexRow]:
    """The rows of one shard. Members that follow each other with the same key are a sample."""
    num_images = 0
    for _, sample in itertools.groupby(_list_members(tar, shard), key=lambda member: _split_key(member)[0]):
        images: list[tarfile.TarInfo] = []
        labels: dict[str, bytes] = {}
        for member in sample:
            type = _split_key(member)[1]
            if _holds_image(member):
                images.append(member)
            elif type in ("json", "cls"):
                if member.size > MOST_READ_BYTES:
                    raise InputError(f"{shard}: {member.name} holds labels, of {member.size:,} bytes: that is too much")
                labels[type] = _read_member(tar, member, shard)
        if images:
            num_images += len(images)
            cells = [join_names(found, SEPARATOR) for found in parse_labels(labels, f"{shard}/{images[0].name}")]
            for image in images:
                yield IndexRow(shard.name, os.path.normpath(image.name), image.offset_data, image.size, *cells)
    if not num_images:
        raise InputError(f"{shard} holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")


def _list_members(tar: tarfile.TarFile, shard: Path | str) -> Iterator[tarfile.TarInfo]:
    """The members that are ordinary files, without hidden ones. Raises InputError for a damaged tar file."""
    while True:
        try:
            member = tar.next()
        except TAR_ERRORS as error:
            raise _explain(shard, error) from error
        if member is None:
            return
        if member.isreg() and not member.issparse() and _split_key(member)[0]:
            yield member


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path | str) -> bytes:
    try:
        content = tar.extractfile(member)
        return b"".join(iter(partial(content.read, MOST_READ_BYTES), b"")) if content else b""
    except TAR_ERRORS as error:
        raise _explain(shard, error) from error


def _holds_image(member: tarfile.TarInfo) -> bool:
    return f".{_split_key(member)[1]}".endswith(tuple(IMAGE_EXTENSIONS))


def _split_key(member: tarfile.TarInfo) -> tuple[str, str]:
    """(key, type in lower case) of a member, cut at the first dot of its last part; no key for a hidden file."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, type = name.partition(".")
    return folder + slash + stem if stem else "", type.lower()


def parse_labels(labels: Mapping[str, bytes], where: str) -> tuple[list[str], list[str], list[str]]:
    """(names of the classes present, of those unknown, indices) from the .json or .cls of a sample. Raises InputError.

    An index of a class that is unknown begins with ?, as in a .cls.
    """
    data = parse_json(labels.get("json", b"null"), where)
    try:
        words = labels["cls"].decode("ascii").split() if "cls" in labels else None
        present_indices = [int(word) for word in words or () if word[0] != UNKNOWN_MARK]
        unknown_indices = [int(word[1:]) for word in words or () if word[0] == UNKNOWN_MARK]
    except ValueError as error:
        raise InputError(f"{where}: its labels are no class indices: {shorten_error(error)}") from error
    if isinstance(data, dict) and "labels" in data:
        present, unknown = data["labels"], data.get("unknown", [])
    elif words is not None:
        present, unknown = present_indices, unknown_indices
    else:
        raise InputError(f'{where} has neither a .json with "labels" nor a .cls beside it')
    if not (isinstance(present, list) and isinstance(unknown, list)):
        raise InputError(f"{where}: its labels are {reprlib.repr(present)}, not a list")
    names, indices = _tell_apart(present, where)
    unknown_names, others = _tell_apart(unknown, where)
    return names, unknown_names, [*indices, *(f"{UNKNOWN_MARK}{index}" for index in others)]


def _tell_apart(labels: list[Any], where: str) -> tuple[list[str], list[str]]:
    """(the class names among `labels`, the class indices). Raises InputError for what is neither."""
    names, indices = [], []
    for label in labels:
        if isinstance(label, str) and label.strip() and is_unicode(label):
            names.append(label.strip())
        elif isinstance(label, int) and not isinstance(label, bool) and label >= 0:
            indices.append(str(label))
        else:
            raise InputError(f"{where}: {reprlib.repr(label)} is neither a class name nor a class index")
    return names, indices
