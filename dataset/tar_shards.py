"""Images in shards, tar files of some thousand images each, as the library webdataset writes and reads them.

    write_shards(root, "train", paths, names, labels)    # train-000000.tar, ..., and train.index.csv
    index = read_index(root, "train", lambda: classes)   # from then on read_image(member) finds the bytes

A sample is two members, `KEY.jpg` (the file as it is, with its own ending) and `KEY.json`: {"labels": [names],
"unknown": [names]}. Shards of others may have `KEY.cls` (class indices) for the latter. An image's path is that of its
member: `root/train-000003.tar/sub/000123.jpg`. The index says where in which shard each image begins, so none is
parsed again; it is made by one scan where it is missing. Labels are read from the index alone.

Shards that lie elsewhere stand in `shards.txt` in `root`, a line each: whatever webdataset opens, such as
`https://host/train-000000.tar` or `pipe:ssh host cat /data/train-000000.tar`, which runs that command. Each is fetched
when its first image is asked for, and kept while there is room. Only this needs the library, and writing does.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tarfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.files import IMAGE_EXTENSIONS, read_lines, replace_text
from utils import InputError, Progress, warn

SHARD_IMAGES = 10_000  # in a shard that is written, at most
SHARD_BYTES = 500_000_000  # likewise, of images; what takes longest to fetch, and is kept or dropped as a whole
SHARDS_AT_ONCE = 8  # that shuffled training reads from at a time
SHARDS_OPEN = 16  # that a process keeps open
COLUMNS = ("shard", "member", "offset", "size", "labels", "unknown")
SEPARATOR = ";"  # between the names in a cell of the index
TRIES = 4  # of fetching a shard
RETRY_SECONDS = 1.0  # before the second try; twice as long before each further one
BLOCK = 512  # bytes, which everything in a tar file is a multiple of
SHARD = re.compile(r"(?:train|val|test)-[^/\s'\"?&#]*\.tar")
MEMBER = re.compile(r"(.*?/(?:train|val|test)-[^/]*\.tar)/(.+)", re.DOTALL)
ODD = re.compile(r"%|\n|\r|\A__|\.(?=[^/]*\Z)")  # in a name without ending, what webdataset would misread
CODE = re.compile(r"%(25|0A|0D|5F|2E)")


class Index(NamedTuple):
    """Of each image, sorted by path: shard, member, bytes from `offset` on, names as they stand in their cells."""

    shards: list[str]
    members: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[str]
    unknown: list[str]


class ShardSource(NamedTuple):
    """Where a shard lies that is not in the data set's folder, and where it is kept once it is fetched."""

    url: str
    folder: Path | None
    limit_gb: float


@dataclass(frozen=True)
class Shard:
    """What is in one shard: sorted `names` of members (M,) as bytes, their `offsets` and `sizes` (M,)."""

    path: str
    names: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    source: ShardSource | None

    def find(self, member: str) -> int:
        """The row of `member`. Raises InputError."""
        name = member.encode(errors="surrogateescape")
        row = int(np.searchsorted(self.names, np.array(name, self.names.dtype)))  # another type would be a copy of all
        if row == len(self.names) or self.names[row] != name:
            raise InputError(f"cannot read image {self.path}/{member}: the index lists no such image")
        return row

    @functools.cached_property
    def digest(self) -> str:
        """Changes with what the index says of the shard, and with where it lies."""
        digest = hashlib.sha256((self.source.url if self.source else self.path).encode(errors="surrogateescape"))
        for column in (self.names, self.offsets, self.sizes):
            digest.update(column.tobytes())
        return digest.hexdigest()[:15]

    @property
    def num_bytes(self) -> int:
        """The least that the shard's file has: up to the end of its last image."""
        return -(-int((self.offsets + self.sizes).max()) // BLOCK) * BLOCK


_shards: dict[str, Shard] = {}  # by path: what this process, or the one it was forked from, has read the index of


# ---- names and paths ----


def encode_name(name: str) -> str:
    """The name of the member for an image called `name`: webdataset takes all after a file's first dot for its type."""
    stem, dot, ending = name.rpartition(".")
    return ODD.sub(lambda match: f"%{ord(match[0][0]):02X}{match[0][1:]}", stem) + dot + ending


def decode_name(member: str) -> str:
    """The name of which `encode_name` makes `member`; as it is where that makes none."""
    name = CODE.sub(lambda match: chr(int(match[1], 16)), member)
    return name if encode_name(name) == member else member


def find_blocks(paths: Sequence[str]) -> NDArray[np.int64] | None:
    """(N,) the number of the shard that each image is in, -1 for image files; None where there are no shards."""
    numbers: dict[str, int] = {}
    blocks = np.full(len(paths), -1, dtype=np.int64)
    for row, path in enumerate(paths):
        shard = split_member(path)
        if shard:
            blocks[row] = numbers.setdefault(shard[0].path, len(numbers))
    return blocks if numbers else None


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
    split = file.name.partition("-")[0]
    if match[1] not in _shards and not file.is_dir() and name_index(file.parent, split).is_file():
        read_index(file.parent, split, lambda: ())  # a process that was not forked from one that read it
    return (_shards[match[1]], match[2]) if match[1] in _shards else None


# ---- reading images ----


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image file, or of a member of a shard. Raises OSError, or InputError where that says more."""
    member = split_member(os.fspath(path))
    if member is None:
        with open(path, "rb") as file:
            return file.read()
    shard, name = member
    row = shard.find(name)
    size, offset = int(shard.sizes[row]), int(shard.offsets[row])
    data = open_shard(shard.path).read(size, offset)
    if len(data) < size:
        raise InputError(f"cannot read image {path}: its shard ends before; delete the index if the shard is a new one")
    return data


def stamp_images(paths: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(size in bytes, time of last change in nanoseconds) of each image; a shard's time for its members.

    For shards that lie elsewhere, a number in place of the time that changes with their index. Raises OSError.
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
            changed[shard.path] = int(shard.digest, 16) if shard.source else Path(shard.path).stat().st_mtime_ns
        yield int(shard.sizes[shard.find(name)]), changed[shard.path]


class OpenFile:
    """A file that is closed when nobody refers to it any more, so not while a thread is reading."""

    def __init__(self, path: str | Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)

    def read(self, size: int, offset: int) -> bytes:
        """So many bytes from a place, or up to the file's end; processes that share the file do not disturb it."""
        return os.pread(self.number, size, offset)


@functools.lru_cache(maxsize=SHARDS_OPEN)
def open_shard(path: str) -> OpenFile:
    """The file of the shard, fetched first where it lies elsewhere and is not here."""
    shard = _shards[path]
    if shard.source is None:
        return OpenFile(path)
    if shard.source.folder is None:
        raise InputError(f"{path} lies elsewhere, and this process does not know CACHE_FOLDER: set NUM_WORKERS = 0")
    file = shard.source.folder / f"{shard.digest}-{Path(path).name}"
    while True:
        try:
            os.utime(file)  # used last
            return OpenFile(file)
        except FileNotFoundError:  # or dropped by another process since
            fetch_shard(shard, file)


# ---- shards that lie elsewhere ----


def fetch_shard(shard: Shard, file: Path) -> None:
    """Bring a shard to `file`, once, however many processes ask for it. Raises InputError after some tries."""
    assert shard.source is not None
    url, folder, limit = shard.source.url, file.parent, int(shard.source.limit_gb * 1e9)
    name = Path(shard.path).name
    if shard.num_bytes > limit:
        raise InputError(f"SHARD_CACHE_GB is {shard.source.limit_gb}, but {name} alone has {shard.num_bytes / 1e9:.3g}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(file.with_suffix(".lock")):
            if file.exists():
                return
            temporary = file.with_suffix(".part")
            with _lock(folder / "room.lock"):
                make_room(folder, limit - shard.num_bytes)
                temporary.touch()
                os.truncate(temporary, shard.num_bytes)  # others count it as it will be
            try:
                _try_to_copy(url, temporary, shard.num_bytes)
                os.replace(temporary, file)
            except BrokenTransfer as error:
                raise InputError(f"cannot fetch {name} as shards.txt says: {error}") from error
            finally:
                temporary.unlink(missing_ok=True)
        with _lock(folder / "room.lock"):
            make_room(folder, limit, file)  # what follows its last image was not counted
    except OSError as error:
        raise InputError(f"cannot keep {name} in {folder}: {error.strerror}") from error


class BrokenTransfer(Exception):
    """Why a shard did not arrive whole."""


def _try_to_copy(url: str, file: Path, least: int) -> None:
    """Copy what is at `url`, at least that many bytes, over `file`. Raises BrokenTransfer when no try succeeds."""
    for number in range(TRIES):
        try:
            _copy(url, file, least)
            break
        except BrokenTransfer:
            if number == TRIES - 1:
                raise
            time.sleep(RETRY_SECONDS * 2**number)


def _copy(url: str, file: Path, least: int) -> None:
    with file.open("r+b") as target:
        size = 0
        stream = open_url(url)
        try:
            while chunk := _read(stream):
                size += target.write(chunk)
        except BaseException:
            with suppress(OSError):  # what came first says why
                stream.close()
            raise
        try:
            stream.close()  # a command says only now whether it has succeeded
        except OSError as error:
            raise BrokenTransfer(_say(error)) from error
        if size < least:
            raise BrokenTransfer(f"{size:,} bytes came, but its index needs {least:,}")
        target.truncate(size)
        target.flush()
        os.fsync(target.fileno())


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(1 << 20)
    except OSError as error:
        raise BrokenTransfer(_say(error)) from error


def _say(error: Exception) -> str:
    return str(error).replace("\n", " ")[:300]


def open_url(url: str) -> IO[bytes]:
    """What webdataset opens for `url`. Raises BrokenTransfer, InputError."""
    gopen = import_webdataset(f"reading {url[:80]}").gopen
    try:
        return gopen(url)
    except (OSError, ValueError) as error:
        raise BrokenTransfer(_say(error)) from error


def import_webdataset(purpose: str) -> Any:
    """The library. Raises InputError where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise InputError(f"{purpose} needs {error.name}: pip install -r requirements-shards.txt") from error
    return webdataset


def make_room(folder: Path, num_bytes: int, keep: Path | None = None) -> None:
    """Drop the shards used longest ago until those in `folder` have at most `num_bytes`; call it under a lock."""
    stats = {path: path.stat() for path in folder.iterdir() if path.suffix in (".tar", ".part")}
    total = sum(stat.st_size for stat in stats.values())
    for path in sorted(stats, key=lambda path: (path.suffix == ".tar", stats[path].st_mtime_ns)):
        if path.suffix == ".part":
            with _lock(path.with_suffix(".lock"), wait=False) as left_behind:
                if not left_behind:  # it is being fetched
                    continue
                path.unlink(missing_ok=True)
        elif total > num_bytes and path != keep:
            path.unlink(missing_ok=True)  # whoever has it open reads on
        else:
            continue
        total -= stats[path].st_size


@contextmanager
def _lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold `path` against other processes and threads; False where it is taken and we do not `wait`."""
    import fcntl  # not on Windows

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


# ---- the index ----


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


def list_shard_splits(root: Path) -> list[str]:
    """Those of "train", "val", "test" that there are shards of."""
    found = {name.partition("-")[0] for name in list_shards(root)}
    return [split for split in ("train", "val", "test") if split in found]


def read_index(
    root: Path,
    split: str,
    classes: Callable[[], Sequence[str]],
    cache_folder: Path | None = None,
    limit_gb: float = 0.0,
) -> Index:
    """The images of `split` in the shards in `root`, which `read_image` knows from then on.

    Where there is no index, or a shard is newer, the shards are read once for it; `classes` are then the names of class
    indices. Shards that lie elsewhere are kept in `cache_folder`, at most `limit_gb`. Raises InputError.
    """
    file = name_index(root, split)
    shards = {name: url for name, url in list_shards(root).items() if name.startswith(f"{split}-")}
    if not file.is_file() or _is_outdated(file, [root / name for name, url in shards.items() if not url]):
        write_index(file, scan_shards(root, shards, classes))
    index = _parse_index(file)
    if differing := set(index.shards) ^ set(shards):
        where = "not in the index" if min(differing) in shards else "in the index, but not there"
        raise InputError(f"{file}: {min(differing)} is {where}; restore it, or delete the index to have it made anew")
    _register(root, index, shards, None if cache_folder is None else cache_folder / "shards", limit_gb)
    return index


def _is_outdated(index: Path, shards: Sequence[Path]) -> bool:
    """Whether one of `shards` was written after `index`."""
    written = index.stat().st_mtime_ns
    return any(shard.stat().st_mtime_ns > written for shard in shards)


def write_index(file: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Write rows of COLUMNS."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    replace_text(file, buffer.getvalue())


def join_names(names: Iterable[str]) -> str:
    """Names in one cell, in quotes where they need them."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=SEPARATOR, lineterminator="").writerow(names)
    return buffer.getvalue()


def _parse_index(file: Path) -> Index:
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
        shards, members, offsets, sizes, labels, unknown = map(list, zip(*rows, strict=True))
        index = Index(shards, members, [int(n) for n in offsets], [int(n) for n in sizes], labels, unknown)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read {file}: {error}; delete it to have it made anew") from error
    for member in members:
        if {"", ".", ".."} & set(member.split("/")):
            raise InputError(f"{file}: {member!r} is no name of a member")
    if min(index.offsets) < BLOCK or min(index.sizes) < 0:
        raise InputError(f"{file}: an image begins before byte {BLOCK}, or has a negative size")
    return index


def _register(root: Path, index: Index, urls: Mapping[str, str], folder: Path | None, limit_gb: float) -> None:
    """Let `read_image` know the members of `index`."""
    largest = 0
    end = 0
    for name, own in itertools.groupby(index.shards):
        start, end = end, end + sum(1 for _ in own)
        path = f"{root}{os.sep}{name}"
        names = np.array([member.encode(errors="surrogateescape") for member in index.members[start:end]])
        offsets, sizes = (np.array(some[start:end], dtype=np.int64) for some in (index.offsets, index.sizes))
        if (twice := np.flatnonzero(names[1:] == names[:-1])).size:
            raise InputError(f"{path}: {index.members[start + int(twice[0])]} is in it twice")
        source = ShardSource(urls[name], folder, limit_gb) if urls[name] else None
        shard = Shard(path, names, offsets, sizes, source)
        if source is None and Path(path).stat().st_size < shard.num_bytes:
            raise InputError(f"{path} is shorter than its index says: copy it anew, or delete the index")
        largest = max(largest, shard.num_bytes if source else 0)
        _shards[path] = shard
    if folder and SHARDS_AT_ONCE * largest > limit_gb * 1e9:
        warn(
            f"SHARD_CACHE_GB is {limit_gb}: training reads from {SHARDS_AT_ONCE} shards at a time, up to "
            f"{SHARDS_AT_ONCE * largest / 1e9:.3g} GB; with less it fetches shards again and again"
        )
    open_shard.cache_clear()


# ---- reading a shard from its beginning to its end ----


def scan_shards(
    root: Path, shards: Mapping[str, str], classes: Callable[[], Sequence[str]]
) -> Iterator[tuple[object, ...]]:
    """The rows of the index of `shards` (name: URL, or "" for those in `root`), with progress."""
    with Progress("reading shards", len(shards)) as progress:
        for name, url in shards.items():
            try:
                if url:
                    with open_url(url) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                        yield from _scan(tar, f"{root}{os.sep}{name}", classes)
                        while stream.read(1 << 20):  # what fills the last block: a command that cannot end is an error
                            pass
                else:
                    with tarfile.open(root / name, "r:") as tar:  # images are skipped
                        yield from _scan(tar, f"{root}{os.sep}{name}", classes)
                        _require_end(root / name, tar.offset)
            except tarfile.TarError as error:
                raise InputError(f"{root / name} is no whole tar file without compression: {_say(error)}") from error
            except (OSError, BrokenTransfer) as error:
                raise InputError(f"cannot read {root / name}: {_say(error)}") from error
            progress.step(1)


def _require_end(shard: Path, offset: int) -> None:
    """Raise InputError unless the zeros that end a tar file are at `offset`: it may be cut between two members."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise InputError(f"{shard} is cut short: the mark that ends a tar file is missing; copy it anew")


def _scan(tar: tarfile.TarFile, path: str, classes: Callable[[], Sequence[str]]) -> Iterator[tuple[object, ...]]:
    """The rows of one shard. A sample is what stands next to each other with the same name up to the first dot."""
    key, images, labels = "", [], {}

    def make_rows() -> Iterator[tuple[object, ...]]:
        if images:
            present, unknown = parse_labels(labels, f"{path}/{images[0].name}", classes)
            cells = join_names(present), join_names(unknown)
            for image in images:
                yield Path(path).name, os.path.normpath(image.name), image.offset_data, image.size, *cells

    num_images = 0
    for member in tar:
        folder, slash, name = member.name.rpartition("/")
        stem, _, type = name.partition(".")
        if not member.isreg() or member.issparse() or not stem:
            continue
        if key != folder + slash + stem:
            yield from make_rows()
            key, images, labels = folder + slash + stem, [], {}
        if f".{type.lower()}".endswith(tuple(IMAGE_EXTENSIONS)):
            images.append(member)
            num_images += 1
        elif type.lower() in ("json", "cls"):
            content = tar.extractfile(member)
            labels[type.lower()] = content.read() if content else b""
    yield from make_rows()
    if not num_images:
        raise InputError(f"{path} holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))})")


def parse_labels(
    labels: Mapping[str, bytes], where: str, classes: Callable[[], Sequence[str]]
) -> tuple[list[str], list[str]]:
    """(names of those present, of those unknown) from the .json or .cls of a sample. Raises InputError."""
    try:
        data = json.loads(labels.get("json", b"null"))
        words = labels["cls"].decode("ascii").split() if "cls" in labels else None
        indices = [[int(word) for word in words or () if word[0] != "?"]]
        indices += [[int(word[1:]) for word in words or () if word[0] == "?"]]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its labels are neither JSON nor class indices: {_say(error)}") from error
    if isinstance(data, dict) and "labels" in data:
        present, unknown = data["labels"], data.get("unknown", [])
    elif words is not None:
        present, unknown = indices
    else:
        raise InputError(f'{where} has neither a .json with "labels" nor a .cls beside it')
    if not (isinstance(present, list) and isinstance(unknown, list)):
        raise InputError(f"{where}: its labels are {str(present)[:80]}, not a list")
    names = [[_name_label(label, where, classes) for label in some] for some in (present, unknown)]
    return names[0], names[1]


def _name_label(label: object, where: str, classes: Callable[[], Sequence[str]]) -> str:
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names := classes()):
        return names[label]
    raise InputError(f"{where}: {label!r} is neither a class name nor one of the {len(classes())} class indices")


# ---- writing ----


def write_shards(
    root: Path, split: str, paths: Sequence[str], names: Sequence[str], labels: Sequence[tuple[list[str], list[str]]]
) -> None:
    """Pack the images at `paths` into shards in `root` as members `names`, with (present, unknown) class names each.

    Complete or not at all. Raises InputError.
    """
    writer_class = import_webdataset("writing shards").ShardWriter
    staging = root / f".{split}.shards.tmp"
    pattern = f"{staging}{os.sep}".replace("%", "%%") + f"{split}-%06d.tar"
    options: dict[str, Any] = {"maxcount": SHARD_IMAGES, "maxsize": SHARD_BYTES, "verbose": 0, "post": _flush}
    options |= {"encoder": False, "mtime": 0, "format": "PAX_FORMAT"}  # any name; the same bytes each time
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with writer_class(pattern, **options) as writer, Progress(f"packing {split}", len(names)) as progress:
            for row in sorted(range(len(names)), key=names.__getitem__):
                key, _, ending = names[row].rpartition(".")
                present, unknown = labels[row]
                said = {"labels": present} | ({"unknown": unknown} if unknown else {})
                try:
                    data = read_bytes(paths[row])
                except OSError as error:
                    raise InputError(f"cannot read image {paths[row]}: {error.strerror}") from error
                writer.write({"__key__": key, ending: data, "json": json.dumps(said, ensure_ascii=False).encode()})
                progress.step(1)
        shards = sorted(path.name for path in staging.iterdir())
        rows = list(scan_shards(staging, dict.fromkeys(shards, ""), lambda: ()))
        for name in shards:
            os.replace(staging / name, root / name)
        write_index(name_index(root, split), rows)
    except OSError as error:
        raise InputError(f"cannot write {root}: {error} (free some space or choose another folder)") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _flush(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
