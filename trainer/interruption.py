"""SIGTERM and Ctrl-C, met when a run can be saved: between two steps, not within one.

with Interruption("the same command goes on") as interruption:
    with interruption.delayed():
        ...                     # a signal only sets interruption.came
    ...                         # here it ends the run at once
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from utils import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Takes both signals over while it is entered; a second one ends the run at once in any case."""

    def __init__(self, advice: str) -> None:
        self.advice = advice  # what to do to go on from what was saved
        self.came = self._is_delayed = False
        self._process = os.getpid()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # signals are the main thread's
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in getattr(self, "_before", {}).items():
            signal.signal(number, handler)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Inside, a signal waits for someone to look at `came`."""
        self._is_delayed = True
        try:
            yield
        finally:
            self._is_delayed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loading process, which inherits this: the step needs its images
            return
        if self.came or not self._is_delayed:
            raise Stopped(f"{signal.Signals(number).name}; what was saved last stays: {self.advice}")
        self.came = True
        print(f"{signal.Signals(number).name}: saving after this step; again: at once", file=sys.stderr, flush=True)
