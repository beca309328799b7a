"""Where shards lie that are not in the data set's folder: what a line of shards.txt may say, and how that is opened.

    address = read_address("https://host/train-000000.tar", root, "shards.txt:3")
    require_readable([address], commands=False)
    with open_address(address) as stream: ...

A data set is data: only files, web addresses and objects in S3 are read. Everything else that webdataset opens
(`pipe:`, `gs:`, `hf:` and more) runs a command, and is opened only where the constant SHARD_COMMANDS says so.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from dataset.files import make_absolute, open_file
from dataset.tar_shards.object_storage import ObjectStream
from dataset.tar_shards.resuming import BrokenTransfer, ResumedStream, shorten_error
from dataset.tar_shards.web import WebStream
from utils import InputError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
NUMBERS = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
MOST_SHARDS = 1_000_000  # that a line stands for


class Address(NamedTuple):
    """Where a shard lies."""

    kind: Literal["here", "file", "web", "s3", "command"]  # here: in the data set's folder
    text: str = ""  # the path of the file, the URL, or what webdataset opens
    where: str = ""  # the line of shards.txt that says so

    @property
    def public(self) -> str:
        """`text` without what may be a secret: the account in front of a web server's name, and what follows a `?`."""
        if self.kind != "web":
            return self.text
        parts = urlsplit(self.text)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def find_file(self, here: Path) -> Path | None:
        """The file of the shard, which is `here` where it lies in the data set's folder; None for all others."""
        if self.kind == "here":
            return here
        return Path(self.text) if self.kind == "file" else None


HERE = Address("here")


def expand_numbers(line: str, where: str) -> list[str]:
    """The lines that a `line` of shards.txt stands for: s3://bucket/train-{000000..000099}.tar are a hundred.

    A command is left as it is. Raises InputError for numbers that do not rise, and for more than MOST_SHARDS.
    """
    match = None if is_command(line) else NUMBERS.search(line)
    if match is None:
        return [line]
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise InputError(f"{where}: the numbers of {match[0]} do not rise")
    ends = expand_numbers(line[match.end() :], where)
    if (last - first + 1) * len(ends) > MOST_SHARDS:
        raise InputError(f"{where}: {line[:80]!r} stands for more than {MOST_SHARDS:,} shards")
    has_zeros = any(len(number) > 1 and number[0] == "0" for number in match.groups())
    width = max(map(len, match.groups())) if has_zeros else 0
    return [f"{line[: match.start()]}{number:0{width}}{end}" for number in range(first, last + 1) for end in ends]


def read_address(line: str, root: Path, where: str) -> Address:
    """The address in a `line` of shards.txt in `root`: a path (also one from `root` on), `file:`, `http(s):`, `s3:`.

    All else is a command. Raises InputError.
    """
    if is_command(line):
        return Address("command", line, where)
    scheme = match[0].lower() if (match := SCHEME.match(line)) else ""
    if scheme in ("http:", "https:"):
        return Address("web", line, where)
    if scheme == "s3:":
        bucket, _, key = line[len("s3://") :].partition("/")
        if line[3:5] != "//" or not bucket or not key:
            raise InputError(f"{where}: {line[:80]!r} is no address in object storage: s3://BUCKET/train-000000.tar")
        return Address("s3", f"s3://{bucket}/{key}", where)
    path = line
    if scheme:
        path = line[len(scheme) :]
        if path.startswith("//"):
            host, _, path = path[2:].partition("/")
            path = f"/{path}"
            if host not in ("", "localhost"):
                raise InputError(f"{where}: a file: address names the host {host[:80]!r}: write file:///path")
        path = unquote(path)
    if "\0" in path:
        raise InputError(f"{where}: no path holds the character \\0")
    return Address("file", str(make_absolute(root / path)), where)


def is_command(line: str) -> bool:
    """Whether reading the shard of this line of shards.txt may run a command: it is none of the addresses we know."""
    match = SCHEME.match(line)
    return match is not None and match[0].lower() not in ("file:", "http:", "https:", "s3:")


def require_readable(addresses: Iterable[Address], commands: bool) -> None:
    """Raise InputError where one of `addresses` is a command, unless `commands` allows it."""
    for address in addresses:
        if address.kind == "command" and not commands:
            raise InputError(
                f"{address.where}: {address.text[:80]!r} is neither a path nor an http, https or s3 address, so "
                "reading it may run a command: bring the shard here, or, if you trust the file, set SHARD_COMMANDS = "
                "True (check runs none all the same)"
            )


def open_address(address: Address) -> Any:
    """A stream with the bytes of the shard: `read(size)`, `close()`, `with`. Raises BrokenTransfer, InputError."""
    if address.kind == "web":
        return ResumedStream(lambda position: WebStream(address.text, position))
    if address.kind == "s3":
        return ResumedStream(lambda position: ObjectStream(address.text, position))
    try:
        if address.kind == "file":
            return open_file(address.text)
        return import_webdataset(f"reading {address.text[:80]}").gopen(address.text)
    except InputError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BrokenTransfer(shorten_error(error)) from error


def import_webdataset(purpose: str) -> Any:
    """The library. Raises InputError where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise InputError(f"{purpose} needs {error.name}: pip install -r requirements-shards.txt") from error
    return webdataset
