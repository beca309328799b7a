"""Limits of bodies while they are read: the size and speed of each, and the bytes of all of them in memory."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.request_queue import BatchQueue

RETRY_SECONDS = 1  # a client that found no room may try again after this time


class UploadLimits(NamedTuple):
    """Sizes in bytes, times in seconds."""

    form_bytes: int  # of one request with files
    json_bytes: int  # of one request in JSON, where the image is in base64
    total_bytes: int  # of all bodies that are being read or not answered yet
    seconds: float = 60.0  # for a whole body, so that a slow one cannot keep the server from ending
    free_seconds: float = 5.0  # a body may take this time, and a second more for each:
    bytes_per_second: float = 16 * 1024


def derive_limits(max_bytes: int, num_classes: int, queue_size: int) -> UploadLimits:
    """Limits for files of up to `max_bytes`, and a model with `num_classes`.

    In JSON an image of that size has 4 letters for 3 bytes, and a line end (2 letters in JSON) for 76; beside it stand
    thresholds. All bodies together may have 1 MB for each image of the queue, and that is at least four large bodies.
    """
    json_bytes = max_bytes * 4 // 3 * 78 // 76 + 4096 + 64 * num_classes
    return UploadLimits(max_bytes, json_bytes, total_bytes=max(queue_size * 2**20, 4 * json_bytes))


class BodyMemory:
    """The bytes of all bodies that are being read, or whose requests are not answered yet."""

    held_bytes = 0


class UploadGuard:
    """ASGI middleware that refuses a request while its body is read, once it is too large, too slow, or has no room.

    If the queue is full, the body is not read at all. A body has no place in the queue before all of it is there. The
    more a body has or announces, the earlier it finds the memory full: large ones leave room for small ones. The
    HTTPException is raised in the application, where it reads.
    """

    def __init__(self, app: ASGIApp, queue: BatchQueue, limits: UploadLimits, memory: BodyMemory) -> None:
        self.app, self.queue, self.limits, self.memory = app, queue, limits, memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits, headers = self.limits, Headers(scope=scope)
        max_bytes = limits.json_bytes if read_type(headers) == "application/json" else limits.form_bytes
        declared = read_length(headers)
        num_bytes, is_complete, start = 0, False, 0.0

        async def read() -> Message:
            nonlocal num_bytes, is_complete, start
            if is_complete:
                return await receive()  # the message that the client has left
            if not start:
                require_room(self.queue, 1)
                start = asyncio.get_running_loop().time()
            if declared > max_bytes:
                raise too_large(max_bytes)
            allowed = limits.free_seconds + num_bytes / limits.bytes_per_second
            try:
                async with asyncio.timeout_at(start + min(limits.seconds, allowed)):
                    message = await receive()
            except TimeoutError:
                raise too_slow(limits) from None
            size = len(message.get("body", b""))
            num_bytes += size
            self.memory.held_bytes += size
            is_complete = not message.get("more_body", False)
            if num_bytes > max_bytes:
                raise too_large(max_bytes)
            if self.memory.held_bytes - num_bytes + max(num_bytes, declared) > limits.total_bytes:
                raise too_full("other requests fill the memory for them")
            return message

        try:
            await self.app(scope, read, send)
        finally:
            self.memory.held_bytes -= num_bytes


def read_type(headers: Headers) -> str:
    """The media type that a request says its body has; "" if it says none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def read_length(headers: Headers) -> int:
    """The length in bytes that a request says its body has, or 0. The server's parser lets only numbers through."""
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


def require_room(queue: BatchQueue, num_images: int) -> None:
    """Raise HTTPException 503 if the queue does not take `num_images` more."""
    if not queue.has_room(num_images):
        raise too_full(f"{queue.held} of at most {queue.size} images are waiting")


def too_full(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}: try again in {RETRY_SECONDS} s", {"Retry-After": str(RETRY_SECONDS)})


def too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {max_bytes / 2**20:g} MB")


def too_slow(limits: UploadLimits) -> HTTPException:
    return HTTPException(
        408,
        f"the request came too slowly: {limits.bytes_per_second / 1024:g} KB a second after the first "
        f"{limits.free_seconds:g} seconds, and all of it within {limits.seconds:g} seconds",
    )
