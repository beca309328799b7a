"""What is known about requests: numbers for Prometheus, and a log with one line for each.

    2026-11-28T09:00:00.123 127.0.0.1 POST /predict 200 48213 12.5

that is the time, client, method, path, status, bytes of the body that was received, milliseconds. What a client chose
is written as in an address (%0A for a line end), so that it can neither begin a line nor hold a blank.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import utils

OTHER_PATH = "other"  # the label of all addresses that the server does not have
MAX_PATH = 200  # letters of a path in the log
MAX_LINES = 10_000  # that wait to be written


class Monitor:
    """Counts requests, and writes them to `log`. `paths` are those that get a label of their own."""

    def __init__(self, paths: Collection[str], log: RequestLog | None = None) -> None:
        self.paths, self.log = frozenset(paths), log
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("serving_requests", "requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("serving_request_seconds", "until the answer", ["path"], registry=self.registry)
        self.images = Counter("serving_images", "images that were answered", registry=self.registry)

    def watch(self, name: str, text: str, measure: Callable[[], float]) -> None:
        """Let /metrics have the present value of `measure()` as `serving_<name>`."""
        Gauge(f"serving_{name}", text, registry=self.registry).set_function(measure)

    def record(
        self, client: str, status: int, method: str = "-", path: str = "-", num_bytes: int = 0, seconds: float = 0.0
    ) -> None:
        """Count a request. Those that were refused before their address was known have `path` "-"."""
        label = path if path in self.paths else OTHER_PATH
        self.requests.labels(label, status).inc()
        self.seconds.labels(label).observe(seconds)
        if self.log:
            now = datetime.now().isoformat(timespec="milliseconds")
            words = [quote(word[:MAX_PATH], safe="/:", errors="replace") for word in (client, method, path)]
            self.log.write(f"{now} {' '.join(words)} {status} {num_bytes} {seconds * 1000:.1f}\n")

    def render(self) -> bytes:
        return generate_latest(self.registry)


class RequestWatch:
    """ASGI middleware around all others, which tells `monitor` of each request when it is answered."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self.app, self.monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, num_bytes = time.perf_counter(), 500, 0

        async def count() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, count, watch)
        finally:
            client = scope["client"][0] if scope.get("client") else "-"
            seconds = time.perf_counter() - start
            self.monitor.record(client, status, scope["method"], scope["path"], num_bytes, seconds)


class RequestLog:
    """Appends lines to a file in a thread of its own, so that no request waits for the disk.

    If the disk is so slow or full that lines cannot be written, they are counted, and a line says how many are missing.
    Raises InputError if the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # until `close`
        except OSError as error:
            raise utils.InputError(f"cannot write SERVING_LOG {path}: {error.strerror}") from error
        self.lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self.num_missing, self.has_warned = 0, False
        self.thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self.thread.start()

    def write(self, line: str) -> None:
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.num_missing += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self.lines.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (line := self.lines.get()) is not None:
            lines = [line]
            while not self.lines.empty() and len(lines) < MAX_LINES:
                if (line := self.lines.get()) is None:
                    self._append(lines)
                    return
                lines.append(line)
            self._append(lines)

    def _append(self, lines: list[str]) -> None:
        missing, self.num_missing = self.num_missing, 0
        text = "".join([f"{missing} lines are missing here\n"] * bool(missing) + lines)
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            self.num_missing += missing + len(lines)
            if not self.has_warned:
                utils.warn(f"cannot write SERVING_LOG {self.path}: {error.strerror}; requests are answered without it")
            self.has_warned = True
