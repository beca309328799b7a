"""Transfers that break, and go on from where they broke: of a shard on a web server, or in object storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
TRIES = 4  # of a transfer, without a byte that came in between
RETRY_SECONDS = 1.0  # before the second try; twice as long before each further one


class BrokenTransfer(Exception):
    """Why a shard did not arrive whole."""


class RefusedTransfer(BrokenTransfer):
    """Why a shard will not arrive, however often it is asked for: it is not there, or we may not read it."""


class Stream(Protocol):
    """The bytes of a shard, from some place in it on."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class VersionedStream(Stream, Protocol):
    """A stream that says which content it is of."""

    version: tuple[object, ...]  # another one for another content


class ResumedStream:
    """The bytes of a shard. Where the transfer breaks, it is begun again from there.

    `open_at(position)` opens it. `read` raises BrokenTransfer when TRIES in a row bring no byte, and when the shard has
    another version than at its beginning.

        stream = ResumedStream(lambda position: WebStream(url, position))
    """

    def __init__(self, open_at: Callable[[int], VersionedStream]) -> None:
        self.open_at, self.position = open_at, 0
        self.stream: VersionedStream | None = open_at(0)
        self.version = self.stream.version

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""

        def read_on() -> bytes:
            try:
                if self.stream is None:
                    self.stream = self.open_at(self.position)
                    if self.stream.version != self.version:
                        raise RefusedTransfer("it was replaced while it was read")
                return self.stream.read(size)
            except BrokenTransfer:
                self.close()
                raise

        data = try_again(read_on)
        self.position += len(data)
        return data

    def close(self) -> None:
        if self.stream is not None:
            stream, self.stream = self.stream, None
            stream.close()

    def __enter__(self) -> ResumedStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def try_again(action: Callable[[], T]) -> T:
    """What `action` returns, in one of TRIES tries; a RefusedTransfer ends them. Raises BrokenTransfer."""
    for number in range(TRIES - 1):
        try:
            return action()
        except RefusedTransfer:
            raise
        except BrokenTransfer:
            time.sleep(RETRY_SECONDS * 2**number)
    return action()


def shorten_error(error: BaseException) -> str:
    """What `error` says, in one line."""
    return (str(error) or type(error).__name__).replace("\n", " ")[:300]
