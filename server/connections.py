"""Limits at the socket, before a request reaches the application: uvicorn's HTTP protocol, which has none of them.

    server = Server(app, Limits(connections=576, body_bytes=20_000_000), record=print, announce=...)
    server.run(sockets=[listener])

A connection has a time for each head (request line and headers), and heads and trailers have a size. It is closed if
its client does not read its answer. If there are as many connections as there may be, a new one takes the place of that
whose request has been arriving for the longest time: who sends a whole request is not kept out by those who do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import make_error

SMALL_PIECE = 256  # bytes; a body in smaller pieces than this on average costs more time than it is worth
MAX_WAITING = 16  # requests of a connection that come before the earlier ones are answered
FREE_PIECES = 1000  # pieces of any size
REST_PAUSE = 0.1  # seconds between two reads (of 256 KB) of the rest of a body that was refused


class Limits(NamedTuple):
    """What one connection may do, in bytes and seconds, and how many there may be."""

    connections: int
    body_bytes: int  # of a request's body, with what chunks add to it
    head_bytes: int = 16 * 1024  # of the request line and headers, and of trailers
    head_seconds: float = 10.0  # from the connection, or from the last answer, to the end of a head
    stalled_seconds: float = 10.0  # for the rest of a body that was refused, and for 64 KB of an answer to be taken
    linger_seconds: float = 1.0  # for a refused client to see its answer, which it may lose when the connection ends


def derive_limits(queue_size: int, max_bytes: int) -> Limits:
    """Limits for a queue of `queue_size` images and files of up to `max_bytes`.

    There are twice as many connections as images may wait, since half of them may be idle, as far as the system allows
    so many open files. In base64 a file is a third larger; chunks may add as much again.
    """
    connections = 2 * queue_size + 64
    with suppress(ImportError):  # on Windows there is no such limit
        import resource

        connections = min(connections, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100, 16))
    return Limits(connections=connections, body_bytes=2 * max_bytes * 4 // 3 + 2**20)


Record = Callable[[str, int], None]  # of a client that was refused here: its address, and the status


class Peers:
    """The connections of a server, without those that were refused."""

    def __init__(self) -> None:
        self.open: set[LimitedProtocol] = set()
        # those without a request, or with one whose end has not come; that which has been arriving longest is first
        self.arriving: dict[LimitedProtocol, None] = {}

    def forget(self, connection: LimitedProtocol) -> None:
        self.open.discard(connection)
        self.arriving.pop(connection, None)


class LimitedProtocol(HttpToolsProtocol):
    def __init__(self, *arguments: Any, limits: Limits, peers: Peers, record: Record, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limits, self.peers, self.record = limits, peers, record
        self.in_head = True  # the next bytes belong to a head
        self.num_heads = 0
        self.part_of_head = 0  # bytes of a head that is not complete
        self.fields_bytes = self.body_bytes = self.num_pieces = 0  # of the present request
        self.since = self.loop.time()  # since when the present request has been arriving
        self.unsent, self.unsent_since = 0, self.since  # bytes that the client has not taken, at the time of a look
        self.refusal: tuple[int, str] | None = None
        self.present: RequestResponseCycle | None = None  # the request that the application has; others wait for it

    # ---- what uvicorn and the parser call ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(1, self._look)
        self.peers.open.add(self)
        self.peers.arriving[self] = None
        if len(self.peers.open) > self.limits.connections:
            oldest = next(iter(self.peers.arriving))
            message = f"all {self.limits.connections} connections are in use: send requests without pauses"
            oldest.refuse(503, message, linger_seconds=0)  # else those that linger would be too many

    def connection_lost(self, exc: Exception | None) -> None:
        self.peers.forget(self)
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.refusal:
            return
        was_in_head, num_heads = self.in_head, self.num_heads
        super().data_received(data)
        if self.refusal:
            return
        if not self.in_head:
            self.body_bytes += len(data)
            if self.cycle.response_complete:  # the rest of a refused body: many of them must not take all the time
                self.flow.pause_reading()
                self.loop.call_later(REST_PAUSE, self._read_on)
            elif self.body_bytes > self.limits.body_bytes:
                self.refuse(413, f"the request takes more than {self.limits.body_bytes / 2**20:g} MB on the wire")
        elif was_in_head and self.num_heads == num_heads:
            self.part_of_head += len(data)
            if self.part_of_head > self.limits.head_bytes:
                self.refuse(431, self._say_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.fields_bytes = self.body_bytes = self.num_pieces = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_fields(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:  # also of trailers
        super().on_header(name, value)
        self._count_fields(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        self.num_heads += 1
        self.in_head, self.part_of_head = False, 0
        super().on_headers_complete()
        if len(self.pipeline) > MAX_WAITING:
            self._stop(400, f"more than {MAX_WAITING} requests came before the answer to the first")

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.num_pieces += 1
        if self.num_pieces > FREE_PIECES + self.body_bytes // SMALL_PIECE:
            self._stop(400, f"the body comes in chunks of less than {SMALL_PIECE} bytes")

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.in_head = True
        if self._is_answering():
            self.peers.arriving.pop(self, None)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.present = cycle
        if self.in_head:  # it has waited for an earlier request, and is complete
            self.peers.arriving.pop(self, None)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        if self in self.peers.open:
            self.peers.arriving.pop(self, None)
            self.peers.arriving[self] = None  # as the last
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """The parser, or a callback above, has stopped: uvicorn calls this to answer."""
        if self.in_head and self._is_answering():  # a whole request came before what is wrong: it gets its answer
            assert self.present
            self.present.keep_alive = False
            self.pipeline.clear()
            self.flow.pause_reading()
            self.refusal = (400, msg)
            return
        self.refuse(*(self.refusal or (400, msg)))

    # ---- limits ----

    def is_ending(self) -> bool:
        return self.refusal is not None or self.transport.is_closing()

    def refuse(self, status: int, message: str, linger_seconds: float | None = None) -> None:
        """Answer with an error, and close the connection; what else comes is not read."""
        self.peers.forget(self)
        if self.transport.is_closing():
            self.transport.abort()
            return
        self.refusal = (status, message)
        cannot_answer = bool(self.pipeline or self.transport.get_write_buffer_size())
        if self.present and self._is_answering():
            cannot_answer |= self.present.response_started
        self._leave()
        self.pipeline.clear()
        self.flow.pause_reading()
        self.record(self.client[0] if self.client else "-", status)
        if cannot_answer:  # it would come amid another answer
            self.transport.abort()
            return
        body = make_error(status, message).model_dump_json().encode()
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        linger_seconds = self.limits.linger_seconds if linger_seconds is None else linger_seconds
        self.loop.call_later(linger_seconds, self.transport.close)

    def _is_answering(self) -> bool:
        """Whether a request is with the application."""
        return self.present is not None and not self.present.response_complete

    def _read_on(self) -> None:
        if self.parser and not self.is_ending():
            self.flow.resume_reading()

    def _leave(self) -> None:
        """Tell the application, if it has a request, that the client has left. uvicorn tells only the last request."""
        if self.present and self._is_answering():
            self.present.disconnected = True
            self.present.message_event.set()

    def _count_fields(self, num_bytes: int) -> None:
        self.fields_bytes += num_bytes
        if self.fields_bytes > self.limits.head_bytes:
            self._stop(431, self._say_too_large())

    def _say_too_large(self) -> str:
        return f"the request's address and headers are larger than {self.limits.head_bytes // 1024} KB"

    def _stop(self, status: int, message: str) -> None:
        """Stop the parser, which then lets `send_400_response` be called."""
        self.refusal = (status, message)
        raise ValueError(message)

    def _look(self) -> None:
        """Once a second: close the connection if its client does not do its part."""
        if self.parser is None:  # the connection is lost
            return
        self.loop.call_later(1, self._look)
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent <= self.unsent - 2**16:
            self.unsent, self.unsent_since = unsent, now
        elif now - self.unsent_since > self.limits.stalled_seconds:
            self.transport.abort()
            return
        self.unsent = self.unsent or unsent
        if self.is_ending() or self._is_answering():
            return
        if self.in_head and now - self.since > self.limits.head_seconds:
            if self.part_of_head:
                self.refuse(408, f"the head of the request did not come within {self.limits.head_seconds:g} seconds")
            else:
                self.transport.close()  # browsers open connections for later
        elif not self.in_head and now - self.since > self.limits.stalled_seconds:
            self.transport.close()  # the answer was sent long ago, and the body goes on


class Server(uvicorn.Server):
    """uvicorn with `limits`; it calls `announce` once it listens, and `record` for each client that is refused here."""

    def __init__(self, app: ASGIApp, limits: Limits, record: Record, announce: Callable[[], None]) -> None:
        protocol = cast(type[asyncio.Protocol], partial(LimitedProtocol, limits=limits, peers=Peers(), record=record))
        # "error": uvicorn would warn of each broken request, in as many lines as others like to send
        super().__init__(uvicorn.Config(app, http=protocol, ws="none", log_level="error", access_log=False))
        self.announce = announce

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.announce()
