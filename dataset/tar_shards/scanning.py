"""Reads shards from their beginning to their end: where each image lies, and its labels. Their index is made of it."""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset.class_names import join_names
from dataset.files import IMAGE_EXTENSIONS
from dataset.tar_shards.fetching import CHUNK, BrokenTransfer, open_url, shorten_error
from utils import InputError, Progress

BLOCK = 512  # bytes; everything in a tar file is a multiple of it
SEPARATOR = ";"  # between the names in a cell of the index


class IndexRow(NamedTuple):
    """An image in a shard: `size` bytes from `offset` on; cells with the names of its classes, and of unknown ones."""

    shard: str
    member: str
    offset: int
    size: int
    labels: str
    unknown: str


def scan_shards(root: Path, shards: Mapping[str, str], classes: Callable[[], Sequence[str]]) -> Iterator[IndexRow]:
    """The rows of the index of `shards` (name: URL, or "" for those in `root`), with progress.

    `classes` gives the names of class indices; it is called only where there are any. Raises InputError.
    """
    with Progress("reading shards", len(shards)) as progress:
        for name, url in shards.items():
            try:
                if url:
                    with open_url(url) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                        yield from _scan(tar, root, name, classes)
                        while stream.read(CHUNK):  # a command that cannot write to its end would fail
                            pass
                else:
                    with tarfile.open(root / name, "r:") as tar:  # images are skipped
                        yield from _scan(tar, root, name, classes)
                        _require_end(root / name, tar.offset)
            except tarfile.TarError as error:
                message = f"{root / name} is no whole tar file without compression: {shorten_error(error)}"
                raise InputError(message) from error
            except (OSError, BrokenTransfer) as error:
                raise InputError(f"cannot read {root / name}: {shorten_error(error)}") from error
            progress.step(1)


def _require_end(shard: Path, offset: int) -> None:
    """Raise InputError unless the zeros that end a tar file are at `offset`: it may be cut between two members."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise InputError(f"{shard} is cut short: the mark that ends a tar file is missing; copy it anew")


def _scan(tar: tarfile.TarFile, root: Path, shard: str, classes: Callable[[], Sequence[str]]) -> Iterator[IndexRow]:
    """The rows of one shard. Members that follow each other with the same key are a sample."""
    path = f"{root}{os.sep}{shard}"
    num_images = 0
    members = (member for member in tar if member.isreg() and not member.issparse() and _split_key(member)[0])
    for _, sample in itertools.groupby(members, key=lambda member: _split_key(member)[0]):
        images: list[tarfile.TarInfo] = []
        labels: dict[str, bytes] = {}
        for member in sample:
            type = _split_key(member)[1]
            if f".{type}".endswith(tuple(IMAGE_EXTENSIONS)):
                images.append(member)
            elif type in ("json", "cls"):
                content = tar.extractfile(member)
                labels[type] = content.read() if content else b""
        if images:
            num_images += len(images)
            present, unknown = parse_labels(labels, f"{path}/{images[0].name}", classes)
            cells = join_names(present, SEPARATOR), join_names(unknown, SEPARATOR)
            for image in images:
                yield IndexRow(shard, os.path.normpath(image.name), image.offset_data, image.size, *cells)
    if not num_images:
        raise InputError(f"{path} holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")


def _split_key(member: tarfile.TarInfo) -> tuple[str, str]:
    """(key, type in lower case) of a member, cut at the first dot of its last part; no key for a hidden file."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, type = name.partition(".")
    return folder + slash + stem if stem else "", type.lower()


def parse_labels(
    labels: Mapping[str, bytes], where: str, classes: Callable[[], Sequence[str]]
) -> tuple[list[str], list[str]]:
    """(names of the classes present, of those unknown) from the .json or .cls of a sample. Raises InputError."""
    try:
        data = json.loads(labels.get("json", b"null"))
        words = labels["cls"].decode("ascii").split() if "cls" in labels else None
        present_indices = [int(word) for word in words or () if word[0] != "?"]
        unknown_indices = [int(word[1:]) for word in words or () if word[0] == "?"]
    except (ValueError, RecursionError) as error:
        message = f"{where}: its labels are neither JSON nor class indices: {shorten_error(error)}"
        raise InputError(message) from error
    if isinstance(data, dict) and "labels" in data:
        present, unknown = data["labels"], data.get("unknown", [])
    elif words is not None:
        present, unknown = present_indices, unknown_indices
    else:
        raise InputError(f'{where} has neither a .json with "labels" nor a .cls beside it')
    if not (isinstance(present, list) and isinstance(unknown, list)):
        raise InputError(f"{where}: its labels are {str(present)[:80]}, not a list")
    present_names = [_name_label(label, where, classes) for label in present]
    return present_names, [_name_label(label, where, classes) for label in unknown]


def _name_label(label: object, where: str, classes: Callable[[], Sequence[str]]) -> str:
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names := classes()):
        return names[label]
    raise InputError(f"{where}: {label!r} is neither a class name nor one of the {len(classes())} class indices")
