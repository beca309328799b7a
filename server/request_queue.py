"""Images of concurrent requests, computed together in batches.

    queue = BatchQueue(model.compute, batch_size=32, wait_seconds=0.002, size=256)
    running = asyncio.create_task(queue.run())
    with queue.hold(2):                                           # two images of a request, until they are answered
        probabilities = await queue.compute(await prepare(...))   # (C,)

A batch begins when the model is free: with what is ready then, and with what becomes ready within `wait_seconds` while
held images are on their way. A lone image, with no other being read, never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Waiting(NamedTuple):
    """An image (3, S, S) that is ready, and what its request waits for."""

    image: Tensor
    probabilities: asyncio.Future[NDArray[np.float32]]


class BatchQueue:
    """`compute(images uint8 (B, 3, S, S)) -> probabilities (B, C)` runs in a thread of its own, a batch at a time."""

    def __init__(
        self, compute: Callable[[Tensor], NDArray[np.float32]], batch_size: int, wait_seconds: float, size: int
    ) -> None:
        self.compute_batch, self.batch_size, self.wait_seconds, self.size = compute, batch_size, wait_seconds, size
        self.held = 0  # images let in and not yet answered
        self.ready: asyncio.Queue[Waiting] = asyncio.Queue()

    def has_room(self, num_images: int) -> bool:
        return self.held + num_images <= self.size

    @contextmanager
    def hold(self, num_images: int) -> Iterator[None]:
        """Count `num_images` as waiting: see `has_room`."""
        self.held += num_images
        try:
            yield
        finally:
            self.held -= num_images

    async def compute(self, image: Tensor) -> NDArray[np.float32]:
        """Probabilities (C,) of a uint8 (3, S, S). Raises what the model raises over its batch."""
        waiting = Waiting(image, asyncio.get_running_loop().create_future())
        self.ready.put_nowait(waiting)
        return await waiting.probabilities

    async def run(self) -> None:
        """Compute batch after batch until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="model") as pool:
            while True:
                batch = await self._collect()
                try:
                    rows = await loop.run_in_executor(pool, self._compute, [waiting.image for waiting in batch])
                    for waiting, row in zip(batch, rows, strict=True):
                        if not waiting.probabilities.done():  # its request may have been given up
                            waiting.probabilities.set_result(row)
                except Exception as error:  # it belongs to the requests of this batch; the next one is computed
                    for waiting in batch:
                        if not waiting.probabilities.done():
                            waiting.probabilities.set_exception(error)

    def _compute(self, images: list[Tensor]) -> NDArray[np.float32]:
        # torch.stack wakes threads that then spin on the cores which model and readers need: a third more time an image
        return self.compute_batch(torch.from_numpy(np.stack([image.numpy() for image in images])))

    async def _collect(self) -> list[Waiting]:
        """The next batch, called while the model is free: held images that are not in it are on their way."""
        batch = [await self.ready.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wait_seconds):
                while len(batch) < self.batch_size and self.held > len(batch):
                    batch.append(await self.ready.get())
        return batch
