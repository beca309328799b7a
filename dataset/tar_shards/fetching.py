"""Shards that lie elsewhere: copied into a folder, dropped when there is no room."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dataset.locks import hold
from dataset.tar_shards.addresses import Address, open_address
from dataset.tar_shards.resuming import BrokenTransfer, shorten_error, try_again
from utils import InputError, explain

CHUNK = 1 << 20  # bytes that are read at a time


def fetch_shard(address: Address, name: str, file: Path, num_bytes: int, limit_gb: float) -> None:
    """Copy the shard `name` from `address` to `file`, once, however many processes ask for it.

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
                try_again(partial(_copy, address, temporary, num_bytes, limit))
                os.replace(temporary, file)
            except BrokenTransfer as error:
                raise InputError(f"cannot fetch {name} as {address.where} says: {error}") from error
            finally:
                temporary.unlink(missing_ok=True)
        with hold(folder / "room.lock"):
            make_room(folder, limit, file)  # what follows the shard's last image was not counted
    except OSError as error:
        raise InputError(f"cannot keep {name} in {folder}: {explain(error)}") from error


def _copy(address: Address, file: Path, least: int, most: int) -> None:
    """Copy what is at `address`, `least` to `most` bytes, over `file`. Raises BrokenTransfer, InputError."""
    with file.open("r+b") as target:
        size = 0
        stream = open_address(address)
        try:
            while chunk := _read(stream):
                size += target.write(chunk)
                if size > most:
                    raise InputError(f"SHARD_CACHE_GB is {most / 1e9:g}, but {address.where} gives more than that")
        except BaseException:
            with suppress(OSError):  # the first error says why
                stream.close()
            raise
        try:
            stream.close()  # a command says only now whether it has succeeded
        except OSError as error:
            raise BrokenTransfer(shorten_error(error)) from error
        if size < least:
            raise BrokenTransfer(f"{size:,} bytes came, but its index needs {least:,}")
        target.truncate(size)
        target.flush()
        os.fsync(target.fileno())


def _read(stream: Any) -> bytes:
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
