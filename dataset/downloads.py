"""Downloads files over HTTP, in as many attempts as it takes; an interrupted download is gone on with.

    fetch_bytes(["https://example.org/a.zip"], folder / "a.zip", num_bytes=252_907_541)

    fetch_checked(urls, folder / "a.zip", num_bytes=252_907_541, checksum="sha256:113a...")

What has arrived lies in `a.zip.part` until it is whole.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import utils
from utils import InputError

MAX_FAILURES = 6  # in a row, without a byte more than before, until a download is given up
FIRST_WAIT_SECONDS = 1.0  # before the next attempt; doubled each time
TIMEOUT_SECONDS = 60.0  # without an answer or a byte
CHUNK_BYTES = 1 << 20
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # no fault of the server


class Refused(Exception):
    """The server does not have the file: no use in asking it again."""


def fetch_checked(urls: Sequence[str], path: Path, num_bytes: int | None, checksum: str) -> None:
    """Download to `path` from the first of `urls` that gives it, unless it is there; check its bytes.

    `checksum` is "algorithm:hexadecimal digits". Raises InputError if no server gives the published bytes.
    """
    for _ in range(2):  # what was put together in several attempts may be wrong once
        if not path.is_file():
            fetch_bytes(urls, path, num_bytes)
            urls = [*urls[1:], urls[0]]
        algorithm, _, wanted = checksum.partition(":")
        utils.say(f"checking {path.name}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found == wanted:
            return
        utils.warn(f"{path} is not the file that was published ({algorithm} {found} instead of {wanted}): removed")
        path.unlink()
    raise InputError(f"{path.name} was downloaded twice and is not the file that was published: try again later")


def fetch_bytes(urls: Sequence[str], path: Path, num_bytes: int | None = None) -> None:
    """Download to `path`, from the first of `urls` that gives it: `num_bytes`, or as many as the server says (None).

    What arrives goes to a file `.part`, which later attempts and later processes go on with. Raises InputError if no
    server gives the file, or if it cannot be written.
    """
    urls = list(urls)
    part = path.with_name(f"{path.name}.part")
    most, failures, reason = _count_bytes(part), 0, ""
    progress = ByteProgress(f"downloading {path.name}", num_bytes or 0)
    with progress:
        while urls and failures < MAX_FAILURES:
            if failures:
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (failures - 1))
            url = urls[failures % len(urls)]
            try:
                if num_bytes is None or _count_bytes(part) != num_bytes:
                    _transfer(url, part, num_bytes, progress)
                os.replace(part, path)
                _tag_of(part).unlink(missing_ok=True)
                return
            except Refused as error:
                urls, reason = [other for other in urls if other != url], f"{url}: {error}"
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise InputError(f"cannot write {part}: {utils.explain(error)}") from error
                failures, reason = failures + 1, f"{url}: {str(error) or type(error).__name__}"
            if _count_bytes(part) > most:
                most, failures = _count_bytes(part), 0
    raise InputError(
        f"{path.name}: {reason}; {_count_bytes(part) / 1e6:.1f} of {progress.total / 1e6:.1f} MB are here, and the "
        "same command goes on from there"
    )


def _transfer(url: str, part: Path, num_bytes: int | None, progress: ByteProgress) -> None:
    """Append to `part` what it lacks, or write it anew where the server does not give a rest.

    Raises Refused, or OSError and HTTPException for what may be better at the next attempt.
    """
    start = _count_bytes(part)
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if _tag_of(part).is_file():  # the rest of the same file only; of another one, all
            request.add_header("If-Range", _tag_of(part).read_text())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no such rest: what is here is of another file
            part.unlink(missing_ok=True)
        if error.code in (401, 403, 404, 410):
            raise Refused(str(error)) from error
        raise
    with response:
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise ConnectionError("the server sent another part of the file than the one asked for")
        length = response.headers.get("Content-Length")
        total = num_bytes
        if length:
            total = start + int(length)
        if total is None:  # an answer that breaks off would be taken for the whole file
            raise Refused("the server does not say how long the file is")
        if num_bytes not in (None, total):
            raise Refused(f"the file there has {total} bytes, the published one {num_bytes}")
        progress.restart(start, total)
        tag = response.headers.get("ETag", "")
        if not tag or tag.startswith("W/"):  # weak: may not be asked for
            tag = response.headers.get("Last-Modified", "")
        with part.open("ab" if start else "wb") as file:
            _tag_of(part).write_text(tag) if tag else _tag_of(part).unlink(missing_ok=True)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                progress.add(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if _count_bytes(part) != total:
        raise ConnectionError("the server broke off")


def _count_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _tag_of(part: Path) -> Path:
    """Where it is kept which version of the file `part` is of, in the server's words."""
    return part.with_suffix(".tag")


class ByteProgress(utils.Progress):
    """Progress over a file's bytes, which may begin anew or within."""

    def restart(self, num_bytes: int, total: int) -> None:
        """Of `total` bytes `num_bytes` are there already, and none of them came now."""
        self.done, self.start, self.first, self.total = num_bytes, time.perf_counter(), num_bytes, total
        if self.live:
            self.live.update(self.task, total=total)

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        rate = (self.done - self.first) / max(self.seconds, 1e-9)
        left = utils.format_duration((self.total - self.done) / max(rate, 1e-9))
        self.show(f"{self.done / 1e6:.0f}/{self.total / 1e6:.0f} MB  {rate / 1e6:.1f} MB/s  {left} left")
