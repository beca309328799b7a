"""Shards that lie elsewhere: opened through webdataset, copied into a folder, dropped when there is no room."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dataset.locks import hold
from utils import InputError, explain

TRIES = 4  # of fetching a shard
RETRY_SECONDS = 1.0  # before the second try; twice as long before each further one
CHUNK = 1 << 20  # bytes that are read at a time


class BrokenTransfer(Exception):
    """Why a shard did not arrive whole."""


def open_url(url: str) -> IO[bytes]:
    """What webdataset opens for `url`. Raises BrokenTransfer, InputError."""
    gopen = import_webdataset(f"reading {url[:80]}").gopen
    try:
        return gopen(url)
    except (OSError, ValueError) as error:
        raise BrokenTransfer(shorten_error(error)) from error


def import_webdataset(purpose: str) -> Any:
    """The library. Raises InputError where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise InputError(f"{purpose} needs {error.name}: pip install -r requirements-shards.txt") from error
    return webdataset


def shorten_error(error: Exception) -> str:
    """What `error` says, in one line."""
    return str(error).replace("\n", " ")[:300]


def fetch_shard(url: str, name: str, file: Path, num_bytes: int, limit_gb: float) -> None:
    """Copy the shard `name` from `url` to `file`, once, however many processes ask for it.

    It has at least `num_bytes`. Shards in the folder of `file` that were used longest ago are dropped until all of them
    fit into `limit_gb`. Raises InputError when all tries fail.
    """
    folder, limit = file.parent, int(limit_gb * 1e9)
    if num_bytes > limit:
        raise InputError(f"SHARD_CACHE_GB is {limit_gb}, but {name} alone has {num_bytes / 1e9:.3g}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold(file.with_suffix(".lock")):
            if file.exists():
                return
            temporary = file.with_suffix(".part")
            with hold(folder / "room.lock"):
                make_room(folder, limit - num_bytes)
                temporary.touch()
                os.truncate(temporary, num_bytes)  # other processes count it with its later size
            try:
                _try_to_copy(url, temporary, num_bytes)
                os.replace(temporary, file)
            except BrokenTransfer as error:
                raise InputError(f"cannot fetch {name} as shards.txt says: {error}") from error
            finally:
                temporary.unlink(missing_ok=True)
        with hold(folder / "room.lock"):
            make_room(folder, limit, file)  # what follows the shard's last image was not counted
    except OSError as error:
        raise InputError(f"cannot keep {name} in {folder}: {explain(error)}") from error


def _try_to_copy(url: str, file: Path, num_bytes: int) -> None:
    """Copy what is at `url`, at least `num_bytes`, over `file`. Raises BrokenTransfer when no try succeeds."""
    for number in range(TRIES):
        try:
            _copy(url, file, num_bytes)
            break
        except BrokenTransfer:
            if number == TRIES - 1:
                raise
            time.sleep(RETRY_SECONDS * 2**number)


def _copy(url: str, file: Path, num_bytes: int) -> None:
    with file.open("r+b") as target:
        size = 0
        stream = open_url(url)
        try:
            while chunk := _read(stream):
                size += target.write(chunk)
        except BaseException:
            with suppress(OSError):  # the first error says why
                stream.close()
            raise
        try:
            stream.close()  # a command says only now whether it has succeeded
        except OSError as error:
            raise BrokenTransfer(shorten_error(error)) from error
        if size < num_bytes:
            raise BrokenTransfer(f"{size:,} bytes came, but its index needs {num_bytes:,}")
        target.truncate(size)
        target.flush()
        os.fsync(target.fileno())


def _read(stream: IO[bytes]) -> bytes:
    """The next bytes. An error of the stream is a BrokenTransfer, unlike one of the disk that is written to."""
    try:
        return stream.read(CHUNK)
    except OSError as error:
        raise BrokenTransfer(shorten_error(error)) from error


def make_room(folder: Path, num_bytes: int, keep: Path | None = None) -> None:
    """Drop the shards used longest ago until those in `folder` have at most `num_bytes`; call it under a lock."""
    stats = {path: path.stat() for path in folder.iterdir() if path.suffix in (".tar", ".part")}
    total = sum(stat.st_size for stat in stats.values())
    for path in sorted(stats, key=lambda path: (path.suffix == ".tar", stats[path].st_mtime_ns)):
        if path.suffix == ".part":
            with hold(path.with_suffix(".lock"), wait=False) as left_behind:
                if not left_behind:  # it is being fetched
                    continue
                path.unlink(missing_ok=True)
        elif total > num_bytes and path != keep:
            path.unlink(missing_ok=True)  # whoever has it open reads on
        else:
            continue
        total -= stats[path].st_size
