"""Computes the images of concurrent requests together, in batches.

    queue = BatchQueue(compute=partial(look_at, model), batch_size=32, wait_seconds=0.002, size=256)
    running = asyncio.create_task(queue.run())
    with queue.hold(2):                                 # until two images of a request are answered
        answer = await queue.compute(await prepare(...))

When the model is free, it gets a batch of the images that are ready. If other held images are still being decoded, the
batch waits for them, up to `wait_seconds`. An image that is alone never waits. If the model refuses a batch
(InputError), its images are computed one by one: an image without an answer fails no other request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from utils import InputError

Result = TypeVar("Result")
Other = TypeVar("Other")


class Waiting(NamedTuple, Generic[Result]):
    """An image uint8 (3, H, W) that is ready to be computed, and the answer that its request waits for."""

    image: Tensor
    answer: asyncio.Future[Result]


class BatchQueue(Generic[Result]):
    """Calls `compute`, images uint8 (B, 3, H, W) -> B answers, in a separate thread, one batch at a time.

    `size` is the most images that may be held at the same time.
    """

    def __init__(
        self, compute: Callable[[Tensor], Sequence[Result]], batch_size: int, wait_seconds: float, size: int
    ) -> None:
        self.compute_batch, self.batch_size, self.wait_seconds, self.size = compute, batch_size, wait_seconds, size
        self.held = 0  # images that were accepted and are not answered yet
        self.ready: asyncio.Queue[Waiting[Result]] = asyncio.Queue()
        self.pool: ThreadPoolExecutor | None = None  # of one thread, while this runs: nothing else runs the model
        self.alone = asyncio.Lock()

    def has_room(self, num_images: int) -> bool:
        """Whether `num_images` more images may be held."""
        return self.held + num_images <= self.size

    @contextmanager
    def hold(self, num_images: int) -> Iterator[None]:
        """Count `num_images` images as held until the end of `with`."""
        self.held += num_images
        try:
            yield
        finally:
            self.held -= num_images

    async def compute(self, image: Tensor) -> Result:
        """Wait for the answer to an image uint8 (3, H, W).

        Raises InputError if the model has no answer for this image. Any other error is one of its whole batch.
        """
        waiting: Waiting[Result] = Waiting(image, asyncio.get_running_loop().create_future())
        self.ready.put_nowait(waiting)
        return await waiting.answer

    async def run_alone(self, function: Callable[[], Other]) -> Other:
        """Call `function`, which runs the model in another way, between two batches, and return or raise what it does.

        One waits at a time, so that batches have their turns, too.
        """
        async with self.alone:
            assert self.pool is not None, "the queue does not run"
            return await asyncio.get_running_loop().run_in_executor(self.pool, function)

    async def run(self) -> None:
        """Compute batches until this task is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="model") as self.pool:
            while True:
                batch = await self._collect()
                try:
                    answers = await loop.run_in_executor(self.pool, self._compute, [waiting.image for waiting in batch])
                    for waiting, answer in zip(batch, answers, strict=True):
                        if waiting.answer.done():  # its request was cancelled
                            continue
                        if isinstance(answer, InputError):
                            waiting.answer.set_exception(answer)
                        else:
                            waiting.answer.set_result(answer)
                except Exception as error:  # is passed to the requests of this batch; the queue goes on
                    for waiting in batch:
                        if not waiting.answer.done():
                            waiting.answer.set_exception(error)

    def _compute(self, images: list[Tensor]) -> Sequence[Result | InputError]:
        """An answer for each image, or why the model has none."""
        try:
            # numpy, since torch.stack wakes threads that then spin on the cores which the model and the decoders need:
            # with it an image takes a third more time
            return self.compute_batch(torch.from_numpy(np.stack([image.numpy() for image in images])))
        except InputError as error:
            if len(images) == 1:
                return [error]
        return [answer for image in images for answer in self._compute([image])]

    async def _collect(self) -> list[Waiting[Result]]:
        """Wait for the next batch. The model is free now, so held images that are not in it are being decoded."""
        batch = [await self.ready.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wait_seconds):
                while len(batch) < self.batch_size and self.held > len(batch):
                    batch.append(await self.ready.get())
        return batch
