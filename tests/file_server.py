"""A server of files on this machine, with faults to be set."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """What `files` hold, over HTTP; with faults to be set."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tag = '"version 1"'
        self.takes_ranges = True
        self.break_after: list[int] = []  # bytes of the next answers; after these, answers are whole
        self.status: int | None = None  # answered to everything
        self.requests: list[tuple[str, str | None, int]] = []  # path, Range, bytes sent
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/base"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, data = handler.headers.get("Range"), self.files.get(handler.path.removeprefix("/base/"))
        if self.status or data is None:
            self.requests.append((handler.path, wanted, 0))
            handler.send_error(self.status or 404)
            return
        start = 0
        if wanted and self.takes_ranges and handler.headers.get("If-Range", self.tag) == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.requests.append((handler.path, wanted, 0))
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) - start))
        if self.tag:
            handler.send_header("ETag", self.tag)
        end = start + self.break_after.pop(0) if self.break_after else len(data)
        self.requests.append((handler.path, wanted, len(data[start:end])))  # before the test can look
        handler.end_headers()
        handler.wfile.write(data[start:end])

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
