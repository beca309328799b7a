"""A real browser for tests of pages: headless Chromium, driven over its DevTools protocol.

conftest.py has it as the fixture `browser`: `browser.open(url)`, `browser.evaluate("document.title")`.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import websocket

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The program, if one of BROWSERS is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Browser:
    """One page of a headless Chromium: its commands, and the events that came with their answers."""

    def __init__(self, program: str, folder: Path) -> None:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([program, *options], stdout=quiet, stderr=quiet)
        port_file = folder / "DevToolsActivePort"
        wait_until(lambda: port_file.is_file() and port_file.read_text().count("\n") > 0, 60)
        port = port_file.read_text().split()[0]
        pages = [one for one in httpx2.get(f"http://127.0.0.1:{port}/json").json() if one["type"] == "page"]
        self.connection = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
        self.numbers, self.events = itertools.count(1), []
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv())
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        wait_until(lambda: self.evaluate("document.readyState") == "complete")

    def drop(self, *files: Path) -> None:
        """Drag files from the desktop and let them go over the middle of the window."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def press(self, key: str, times: int = 1) -> None:
        code = {"Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Home": 36, "End": 35}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                more = text if kind == "keyDown" else {}
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def take_screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.wait(20)


def wait_until(happens: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
