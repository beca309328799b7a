"""Images in parts, for more of them than fit into memory: each shard is a part, or so many lines of a list.

    images = find_images(Path("list.txt"))          # or a folder of .tar files, one of them, a pattern, a list of them
    plan = images.make_plan()                       # plain values; once, for all processes
    for picture in images.read_part(plan, 17): ...  # the images of a part, one at a time

A list is read once, for where its parts begin; then each process reads the lines of its part alone.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from dataset.files import find_path, make_absolute, open_file
from dataset.image_selection import ADDRESS, LIST_ENDING
from dataset.tar_shards.addresses import Address, expand_numbers, read_address, require_readable
from dataset.tar_shards.scanning import read_members
from dataset.text_files import read_first_lines, read_lines
from utils import InputError

PART_LINES = 10_000  # of a list
MOST_PART_BYTES = 64 << 20  # of these lines: more is no list
BLOCK_BYTES = 1 << 20  # of a list that are read at a time
SHARD_ENDING = ".tar"
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE

Plan = dict[str, Any]  # what is kept of the images, for all processes: it can be written as JSON


class ListedPicture(NamedTuple):
    """An image of a part."""

    name: str  # as the list has it; of an image in a shard, the shard's address, / and the member's name
    content: str | bytes  # the path of its file, or the content of one
    error: str = ""  # why there is no content; "" where there is


class Images(Protocol):
    """Images in parts."""

    def make_plan(self) -> Plan:
        """What the parts are, with "num_parts". Raises InputError."""
        ...

    def require_same(self, plan: Plan) -> None:
        """Raise InputError, which says what differs, where a plan is of other images than these."""
        ...

    def name_part(self, number: int) -> str:
        """What a part is called where something is wrong with all of it."""
        ...

    def read_part(self, plan: Plan, number: int) -> Iterator[ListedPicture]:
        """The images of a part, in order, one at a time. Raises InputError, and DamagedShard at a shard's damage."""
        ...


def find_images(where: Path, commands: bool = False) -> Images:
    """The images that `where` names, which is read no further than to tell what it is.

    It is a folder of .tar files, one of them, a pattern, or a .txt list: of images or of shards, a path or address a
    line. Shards that a command reads need `commands`. Raises InputError.
    """
    where = where.expanduser()
    if where.is_dir():
        listed = where / "shards.txt"
        shards = sorted(str(path) for path in where.iterdir() if path.suffix == SHARD_ENDING and path.is_file())
        if listed.is_file() and shards:
            raise InputError(
                f"{where} has .tar files and shards.txt, which may name others: name the one that is meant"
            )
        if listed.is_file():
            return ShardImages(_read_shard_list(listed), commands)
        if not shards:
            _complain(where)
        return ShardImages([Address("file", path) for path in shards], commands)
    if where.suffix.lower() == LIST_ENDING and where.is_file():
        first = next((line for line in read_first_lines(where) if not line.startswith("#")), "").strip()
        if ADDRESS.match(first) and not _names_shard(first):
            raise InputError(
                f"{where} lists addresses, and single images are not fetched: download them, or pack shards"
            )
        return ShardImages(_read_shard_list(where), commands) if _names_shard(first) else ImageList(where)
    paths = [str(where)] if where.is_file() else sorted(glob.glob(str(where), recursive=True))  # noqa: PTH207
    if not paths or not all(path.endswith(SHARD_ENDING) for path in paths):
        _complain(where)
    return ShardImages([Address("file", path) for path in paths], commands)


def _complain(where: Path) -> NoReturn:
    raise InputError(
        f"parts are made of .tar shards (a folder of them, a pattern) or of a .txt list with a path a line, and "
        f"{where} is none of these: find {where} -name '*.jpg' > list.txt"
    )


def _names_shard(line: str) -> bool:
    return line.partition("?")[0].endswith(SHARD_ENDING)


def _read_shard_list(path: Path) -> list[Address]:
    """The shards of a list, in its order. Raises InputError for a line that names none."""
    addresses = []
    for number, line in read_lines(path):
        line, where = line.strip(), f"{path}:{number}"
        if line.startswith("#"):
            continue
        for text in expand_numbers(line, where):
            if not _names_shard(text):
                raise InputError(f"{where}: {text[:80]!r} does not end in {SHARD_ENDING}, as the other lines do")
            addresses.append(read_address(text, make_absolute(path).parent, where))
    return addresses


class ShardImages:
    """Images in shards: each is a part."""

    def __init__(self, addresses: Sequence[Address], commands: bool) -> None:
        require_readable(addresses, commands)
        self.addresses = addresses
        self.digest = hashlib.sha256(
            "\n".join(address.public for address in addresses).encode(errors="surrogateescape")
        ).hexdigest()

    def make_plan(self) -> Plan:
        sizes = []
        for address in self.addresses:
            try:
                sizes.append(Path(address.text).stat().st_size if address.kind == "file" else None)
            except OSError as error:
                raise InputError(f"cannot read {address.text} ({address.where}): {error.strerror}") from error
        return {"kind": "shards", "num_parts": len(self.addresses), "sha256": self.digest, "bytes": sizes}

    def require_same(self, plan: Plan) -> None:
        if plan["kind"] != "shards" or plan["sha256"] != self.digest:
            _complain_of_others(plan)

    def name_part(self, number: int) -> str:
        return self.addresses[number].public

    def read_part(self, plan: Plan, number: int) -> Iterator[ListedPicture]:
        address = self.addresses[number]
        for member in read_members(address, plan["bytes"][number]):
            yield ListedPicture(f"{address.public}/{member.name}", member.data, member.error)


class ImageList:
    """The images that a text file lists, a path a line: PART_LINES lines are a part."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, str(make_absolute(path).parent)

    def make_plan(self) -> Plan:
        """Where each part begins and ends, and a digest of its bytes: the list is read once."""
        ends: list[int] = []
        digests: list[str] = []
        digest, num_lines, position, names_any = hashlib.blake2b(digest_size=8), 0, 0, False
        try:
            with open_file(self.path) as file:
                while block := file.read(BLOCK_BYTES):
                    if not position and block.startswith(UTF_16):
                        raise InputError(f"{self.path} is UTF-16: save it as UTF-8")
                    names_any = names_any or bool(block.strip())
                    line_ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
                    start = 0
                    for end in line_ends[PART_LINES - 1 - num_lines :: PART_LINES].tolist():
                        digest.update(block[start:end])
                        ends.append(position + end)
                        digests.append(digest.hexdigest())
                        digest, start = hashlib.blake2b(digest_size=8), end
                    digest.update(block[start:])
                    num_lines = (num_lines + len(line_ends)) % PART_LINES
                    position += len(block)
                    if position - (ends[-1] if ends else 0) > MOST_PART_BYTES:
                        raise InputError(f"{self.path} is no list of paths: its lines are too long")
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        if not ends and not num_lines and self._ends_lines_by_cr():
            raise InputError(f"{self.path} ends its lines by CR alone: tr '\\r' '\\n' < {self.path} > list.txt")
        if position > (ends[-1] if ends else 0):
            ends.append(position)
            digests.append(digest.hexdigest())
        if not names_any:
            raise InputError(f"{self.path} names no image: it has a path a line")
        return {"kind": "list", "num_parts": len(ends), "lines": PART_LINES, "ends": ends, "digests": digests}

    def _ends_lines_by_cr(self) -> bool:
        """Of a list without LF: whether it has more than one line all the same."""
        return len(read_first_lines(self.path)) > 1

    def require_same(self, plan: Plan) -> None:
        """By its size, and by its last part; `read_part` compares each part that it reads."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        if plan["kind"] != "list" or size != plan["ends"][-1]:
            _complain_of_others(plan)
        self._read_bytes(plan, plan["num_parts"] - 1)

    def name_part(self, number: int) -> str:
        return f"part {number} of {self.path}"

    def read_part(self, plan: Plan, number: int) -> Iterator[ListedPicture]:
        data = self._read_bytes(plan, number)
        # a name need not be UTF-8: it is found as the system has it
        text = data.decode("utf-8-sig" if number == 0 else "utf-8", errors="surrogateescape")
        for line in map(str.strip, text.split("\n")):  # not splitlines: names may hold U+2028
            if "\0" in line:
                yield ListedPicture(line, "", "no path holds the character \\0")
            elif line:
                yield ListedPicture(line, find_path(self.root, line))

    def _read_bytes(self, plan: Plan, number: int) -> bytes:
        start = plan["ends"][number - 1] if number else 0
        try:
            with open_file(self.path) as file:
                file.seek(start)
                data = file.read(plan["ends"][number] - start)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        if hashlib.blake2b(data, digest_size=8).hexdigest() != plan["digests"][number]:
            first = number * plan["lines"] + 1
            raise InputError(f"{self.path} has changed since its parts were begun: from line {first:,} on it differs")
        return data


def _complain_of_others(plan: Plan) -> NoReturn:
    begun = f"{plan['num_parts']:,} shard{'s' * (plan['num_parts'] != 1)}"
    if plan["kind"] != "shards":
        begun = f"a list of {plan['ends'][-1]:,} bytes"
    raise InputError(f"its parts are of other images, {begun}")
