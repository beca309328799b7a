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

MAX_THREADS = 8  # as many decode more images than one server process answers
Result = TypeVar("Result")


class Waiting(NamedTuple):
    work: int
    turn: asyncio.Future[None]


class Lane:
    """Threads, and the images that wait for one.

    The smallest comes first, until those that came later have done as much work as the oldest needs: then it is the
    oldest. So a small image does not wait for all the large ones before it, and none waits for ever.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_free = num_threads
        self.pool = ThreadPoolExecutor(num_threads, thread_name_prefix="reader")
        self.waiting: list[Waiting] = []  # the oldest first
        self.overtaken = 0  # work of images that came later than the oldest, and first

    async def run(self, work: int, read: Callable[[], Result]) -> Result:
        loop = asyncio.get_running_loop()
        waiting = Waiting(work, loop.create_future())
        self.waiting.append(waiting)
        self._start()
        await waiting.turn
        try:
            return await loop.run_in_executor(self.pool, read)
        finally:
            self.num_free += 1
            self._start()

    def _start(self) -> None:
        """Give turns to those that wait, as far as there are threads."""
        while self.waiting and self.num_free:
            oldest, chosen = self.waiting[0], min(self.waiting, key=lambda one: one.work)
            self.overtaken += chosen.work
            if chosen is oldest or self.overtaken > oldest.work:
                chosen, self.overtaken = oldest, 0
            self.waiting.remove(chosen)
            if chosen.turn.cancelled():  # the server was told twice to end
                continue
            self.num_free -= 1
            chosen.turn.set_result(None)


class ImageReaders:
    """Threads that decode images. The work of an image is its pixels, times how often they are gone over.

    An image of more than a quarter of `max_work` is decoded by a thread that has only such images, one at a time.
    """

    def __init__(self, max_work: int) -> None:
        self.most_small = max_work // 4
        self.small = Lane(min(max(2, os.cpu_count() or 1), MAX_THREADS))
        self.large = Lane(1)

    async def run(self, work: int, read: Callable[[], Result]) -> Result:
        """Call `read` in a thread, when it is its turn, and return or raise what it does."""
        lane = self.small if work <= self.most_small else self.large
        return await lane.run(work, read)

    def close(self) -> None:
        for lane in (self.small, self.large):
            lane.pool.shutdown()
