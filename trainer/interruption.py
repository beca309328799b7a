"""Takes SIGTERM and Ctrl-C over, so that a run ends where it can be saved: between two steps, not within one.

    with Interruption("the same command goes on from there") as interruption:
        with interruption.delayed():
            ...                     # a signal only sets interruption.came
        ...                         # a signal ends the run at once

The text says how to go on from what was saved. It is a part of the message with which the run ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from utils import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Handles both signals within its `with` block. The second signal always ends the run at once.

    To end the run it raises `utils.Stopped`.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice  # how to go on from what was saved
        self.came = False  # whether a signal came
        self._is_delayed = self._is_over = False
        self._process = os.getpid()
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            self._old_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Within this `with` block the first signal only sets `came`; the block has to look at it."""
        self._is_delayed = True
        try:
            yield
        finally:
            self._is_delayed = False

    def end(self) -> None:
        """Take no notice of signals from now on: the last file is written, and there is nothing to go on with."""
        self._is_over = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loading process, which inherits this handler; the step needs its images
            return
        if self._is_over:
            return
        if self.came or not self._is_delayed:
            raise Stopped(f"{signal.Signals(number).name}; what was saved last stays: {self.advice}")
        self.came = True
        print(f"{signal.Signals(number).name}: saving after this step; again: at once", file=sys.stderr, flush=True)
