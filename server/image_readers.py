"""Decides which image is decoded when, so that large ones neither fill the memory nor keep small ones waiting.

readers = ImageReaders(max_work=50_000_000)
tensor = await readers.run(work=width * height, read=lambda: decode(content))
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class Waiting(NamedTuple):
    work: int
    turn: asyncio.Future[None]


class ImageReaders:
    """Threads that decode images. The work of an image is its pixels, times how often they are gone over.

    Those that are decoded at the same time have up to 1.25 x `max_work` together: one as large as an image may be, and
    small ones beside it. The next is by turns the smallest and the oldest of those that wait: a small one does not wait
    for all the large ones before it, and no large one waits for ever.
    """

    def __init__(self, max_work: int) -> None:
        self.max_work, self.limit = max_work, max_work * 5 // 4
        self.num_threads = max(2, os.cpu_count() or 1)
        self.pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="reader")
        self.waiting: list[Waiting] = []  # the oldest first
        self.num_running = self.work = 0
        self.takes_smallest = True

    async def run(self, work: int, read: Callable[[], Result]) -> Result:
        """Call `read` in a thread, when it is its turn, and return or raise what it does."""
        loop = asyncio.get_running_loop()
        waiting = Waiting(min(work, self.max_work), loop.create_future())
        self.waiting.append(waiting)
        self._start()
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._end(waiting)
            else:
                self.waiting.remove(waiting)
                self._start()
            raise
        # Not `await run_in_executor`: were this task cancelled, the thread would go on uncounted.
        reading = loop.run_in_executor(self.pool, read)
        reading.add_done_callback(lambda _: self._end(waiting))
        return await asyncio.shield(reading)

    def _start(self) -> None:
        """Give turns to those that wait, as far as there are threads and room."""
        while self.waiting and self.num_running < self.num_threads:
            chosen = min(self.waiting, key=lambda one: one.work) if self.takes_smallest else self.waiting[0]
            if self.work + chosen.work > self.limit:
                return
            self.takes_smallest = not self.takes_smallest
            self.waiting.remove(chosen)
            self.num_running += 1
            self.work += chosen.work
            chosen.turn.set_result(None)

    def _end(self, waiting: Waiting) -> None:
        self.num_running -= 1
        self.work -= waiting.work
        self._start()

    def close(self) -> None:
        self.pool.shutdown()
