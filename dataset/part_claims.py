"""Which process makes which part of a folder: any number of them, on any number of machines that share a disk.

    claims = Claims(folder, num_parts=100)
    while claim := claims.take():           # None: all parts are there
        with claim:                         # given back after an error, and when the part is there
            ...                             # claim.beat() from time to time, then rename a file to claim.part

A part is there when its file has its name: `part-000017.parquet`. Who makes it holds a file `.part-000017.claim-0`,
which only one process can create, and writes into it anew every BEAT_SECONDS. Where that ends, another process takes
the part over with `.part-000017.claim-1`, which again only one can create. A process of the same machine is known to be
gone at once; of one elsewhere, when its file has not changed for PATIENCE_SECONDS of our own clock: no two machines
need to agree on the time.

Nothing depends on claims but time: should two processes make the same part, because one stood still for long or because
a disk showed a file late, the second renames the same content over the first's.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dataset.whole_files import has_ended, name_process, remove_leftovers
from utils import InputError, explain

BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 300.0  # a batch, or a pause in the reading of a shard, is shorter
LOOK_SECONDS = 1.0, 30.0  # between two looks for a part that its process has left: at first, and after a while
DIGITS = 6  # of a part's number, at least
ENDING = ".parquet"
NAME = re.compile(r"part-(\d{6,})\.parquet|\.part-(\d{6,})\.claim-(\d{1,9})")


def name_part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:0{DIGITS}}{ENDING}"


class Found(NamedTuple):
    """What lies in the folder."""

    done: set[int]
    claims: dict[int, int]  # part: its highest claim


def look(folder: Path, num_parts: int) -> Found:
    """Which of the parts are done, and which are claimed. Raises InputError."""
    found = Found(set(), {})
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = NAME.fullmatch(entry.name)
                if match is None:
                    continue
                if match[1]:
                    number = int(match[1])
                    if number < num_parts and entry.name == name_part(folder, number).name:
                        found.done.add(number)
                else:
                    number, claim = int(match[2]), int(match[3])
                    found.claims[number] = max(claim, found.claims.get(number, 0))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {explain(error)}") from error
    return found


class Claim:
    """A part that this process makes."""

    def __init__(self, folder: Path, number: int, count: int, owner: str) -> None:
        self.folder, self.number, self.count, self.owner = folder, number, count, owner
        self.part = name_part(folder, number)
        self.num_beats, self.last_beat = 0, time.monotonic()

    def beat(self) -> None:
        """Show that this process is at work; it takes no time unless BEAT_SECONDS have gone by. Raises InputError."""
        if time.monotonic() - self.last_beat < BEAT_SECONDS:
            return
        self.last_beat, self.num_beats = time.monotonic(), self.num_beats + 1
        with suppress(FileNotFoundError):  # another process has finished the part
            _write(_name_claim(self.folder, self.number, self.count), f"{self.owner} {self.num_beats}", os.O_TRUNC)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        """Give the part back: with it, when it is there, all claims to it."""
        earliest = 0 if self.part.exists() else self.count
        for count in range(self.count, earliest - 1, -1):
            _remove(_name_claim(self.folder, self.number, count))


class Claims:
    """The parts 0 to `num_parts` - 1 that are not yet in `folder`. `report` is told how many are done, at each look."""

    def __init__(self, folder: Path, num_parts: int, report: Callable[[int], object] = lambda num_done: None) -> None:
        self.folder, self.num_parts, self.report, self.owner = folder, num_parts, report, name_process()
        self.seen: dict[Path, tuple[str, float]] = {}  # what was in a claim, and since when
        self.first = zlib.crc32(self.owner.encode()) % num_parts  # not all processes look for parts at the same place

    def take(self) -> Claim | None:
        """The next part for this process. Waits while others are at all that are left; None: all are done.

        Raises InputError where the folder cannot be written.
        """
        pause, longest = LOOK_SECONDS
        while True:
            found = look(self.folder, self.num_parts)
            self.report(len(found.done))
            open_numbers = [
                number
                for offset in range(self.num_parts)
                if (number := (self.first + offset) % self.num_parts) not in found.done
            ]
            if not open_numbers:
                self._tidy(found)
                return None
            for number in open_numbers:
                if number not in found.claims and (claim := self._try(number, 0)):
                    return claim
            for number in open_numbers:
                count = found.claims.get(number)
                if count is not None and self._is_left(number, count) and (claim := self._try(number, count + 1)):
                    return claim
            time.sleep(pause)
            pause = min(1.5 * pause, longest)

    def _try(self, number: int, count: int) -> Claim | None:
        """Create the claim; None: another process has been quicker, or the part is there meanwhile."""
        path = _name_claim(self.folder, number, count)
        try:
            _write(path, self.owner, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        if name_part(self.folder, number).exists():
            _remove(path)
            return None
        self.first = (number + 1) % self.num_parts
        return Claim(self.folder, number, count, self.owner)

    def _is_left(self, number: int, count: int) -> bool:
        """Whether the process with this claim is gone, or has shown nothing of itself for PATIENCE_SECONDS."""
        path = _name_claim(self.folder, number, count)
        try:
            content = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # given back since
            return False
        except OSError as error:
            raise InputError(f"cannot read {path}: {explain(error)}") from error
        owner = content.partition(" ")[0]
        if owner == self.owner:  # of an earlier process with our number: we hold no claim while we look for one
            return True
        if has_ended(owner):
            return True
        now = time.monotonic()
        before, since = self.seen.setdefault(path, (content, now))
        if before != content:
            self.seen[path] = (content, now)
            return False
        return now - since > PATIENCE_SECONDS

    def _tidy(self, found: Found) -> None:
        """Remove what killed processes have left, now that all parts are there."""
        for number, count in found.claims.items():
            for lower in range(count + 1):
                _remove(_name_claim(self.folder, number, lower))
        remove_leftovers(self.folder)


def _name_claim(folder: Path, number: int, count: int) -> Path:
    return folder / f".part-{number:0{DIGITS}}.claim-{count}"


def _write(path: Path, text: str, flags: int) -> None:
    """Write a claim. Raises FileExistsError, FileNotFoundError and, for all else, InputError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {explain(error)}") from error


def _remove(path: Path) -> None:
    with suppress(OSError):  # another process has removed it, or the disk is gone: it is looked at again
        path.unlink()
