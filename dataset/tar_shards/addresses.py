"""Where shards lie that are not in the data set's folder: what a line of shards.txt may say, and how that is opened.

    address = read_address("https://host/train-000000.tar", root, "shards.txt:3")
    require_readable([address], commands=False)
    with open_address(address) as stream: ...

A data set is data: only files and web addresses are read. Everything else that webdataset opens (`pipe:`, `gs:`, `hf:`
and more) runs a command, and is opened only where the constant SHARD_COMMANDS says so.
"""

from __future__ import annotations

import base64
import http.client
import re
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from dataset.files import make_absolute, open_file
from utils import InputError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
TIMEOUT_SECONDS = 30.0  # without a byte from a server


class Address(NamedTuple):
    """Where a shard lies."""

    kind: Literal["here", "file", "web", "command"]  # here: in the data set's folder
    text: str = ""  # the path of the file, the URL, or what webdataset opens
    where: str = ""  # the line of shards.txt that says so

    def find_file(self, here: Path) -> Path | None:
        """The file of the shard, which is `here` where it lies in the data set's folder; None for all others."""
        if self.kind == "here":
            return here
        return Path(self.text) if self.kind == "file" else None


HERE = Address("here")


class BrokenTransfer(Exception):
    """Why a shard did not arrive whole."""


def read_address(line: str, root: Path, where: str) -> Address:
    """The address in a `line` of shards.txt in `root`: a path (also one from `root` on), `file:`, `http:`, `https:`.

    All else is a command. Raises InputError.
    """
    scheme = match[0].lower() if (match := SCHEME.match(line)) else ""
    if scheme in ("http:", "https:"):
        return Address("web", line, where)
    if scheme not in ("", "file:"):
        return Address("command", line, where)
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


def require_readable(addresses: Iterable[Address], commands: bool) -> None:
    """Raise InputError where one of `addresses` is a command, unless `commands` allows it."""
    for address in addresses:
        if address.kind == "command" and not commands:
            raise InputError(
                f"{address.where}: {address.text[:80]!r} is neither a path nor an http or https address, so reading it "
                "may run a command: bring the shard here, or, if you trust the file, set SHARD_COMMANDS = True (check "
                "runs none all the same)"
            )


def open_address(address: Address) -> Any:
    """A stream with the bytes of the shard: `read(size)`, `close()`, `with`. Raises BrokenTransfer, InputError."""
    try:
        if address.kind == "file":
            return open_file(address.text)
        if address.kind == "web":
            return WebStream(address.text)
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


def shorten_error(error: BaseException) -> str:
    """What `error` says, in one line."""
    return (str(error) or type(error).__name__).replace("\n", " ")[:300]


class WebStream:
    """What a web server sends for `url`. Raises OSError, ValueError or HTTPException where it cannot be opened.

    The handlers are named one by one, so that a server cannot send us on to anything but http and https. No program is
    run for it, as webdataset would.
    """

    def __init__(self, url: str) -> None:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.UnknownHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            opener.add_handler(handler())
        parts = urlsplit(url)
        account, _, host = parts.netloc.rpartition("@")
        address = quote(parts._replace(netloc=host).geturl(), safe="%/:=&?~#+!$,;'@()*[]")
        request = urllib.request.Request(address)
        if account:  # not sent to where the server may send us on to
            secret = base64.b64encode(unquote(account).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {secret}")
        self.response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end. Raises BrokenTransfer where the server ends before it said it would."""
        try:
            data = self.response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenTransfer(shorten_error(error)) from error
        if not data and self.response.length:
            raise BrokenTransfer(f"the server broke off, {self.response.length:,} bytes before the end")
        return data

    def close(self) -> None:
        self.response.close()

    def __enter__(self) -> WebStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
