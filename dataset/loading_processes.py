"""How many processes load batches beside a model, and how many batches each of them keeps ready.

    processes = LoadingProcesses(15).fit(batch_bytes, is_pinned=True)    # what shared memory has room for
    processes = processes.grow(waiting_share=0.2, most=31)    # after an epoch in which the model waited for batches

Neither number changes a batch: what is drawn at random depends on the image and the epoch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import distributed
from utils import warn_once

SHARED_MEMORY = Path("/dev/shm")  # where torch hands batches from one process to another, on Linux
SHORTEST_WAIT = 0.05  # share of an epoch; a model that waits less gains little by more processes
MOST_AHEAD = 4  # batches that a process keeps ready: enough to even out large and small images
IN_USE = 12  # batches that have come and are still there: until the next look at the loss, and one on its way
IN_USE_PINNED = 2  # and where they are copied into pinned memory as soon as they come


class LoadingProcesses(NamedTuple):
    """Some processes that load batches; none: the process that computes loads them, one after the other."""

    number: int
    ahead: int = 2  # batches that each keeps ready

    def grow(self, waiting_share: float, most: int) -> LoadingProcesses:
        """What to load with after an epoch: more, where the model waited during `waiting_share` (0 to 1) of it.

        That is twice as many processes, but no more than `most`; from there on they keep more batches ready.
        """
        if not self.number or waiting_share <= SHORTEST_WAIT:
            return self
        if self.number < most:
            return self._replace(number=min(2 * self.number, most))
        return self._replace(ahead=MOST_AHEAD)

    def fit(self, batch_bytes: float, is_pinned: bool) -> LoadingProcesses:
        """As many of them as have room in shared memory for batches of `batch_bytes`; says so where that is fewer.

        `is_pinned`: batches do not stay there, but come into pinned memory.

        Where there is no room, torch loses the batch, or the process dies, and a run may wait for it without end. A
        container often has 64 MB.
        """
        if not self.number or not SHARED_MEMORY.is_dir():
            return self
        found = os.statvfs(SHARED_MEMORY)
        free = found.f_bavail * found.f_frsize // distributed.place()[1]
        in_use = IN_USE_PINNED if is_pinned else IN_USE
        room = int(free / batch_bytes) - in_use
        if self.number * self.ahead <= room:
            return self
        ahead = 1 if room < 2 * self.number else room // self.number
        fitting = LoadingProcesses(max(0, min(self.number, room)), min(ahead, self.ahead))
        needed = (self.number * self.ahead + in_use) * batch_bytes
        warn_once(  # the loaders of training and validation find the same
            f"{SHARED_MEMORY} has {free / 1e9:.2g} GB free for batches, and {self.number} loading processes may need "
            f"{needed / 1e9:.2g} GB: {fitting.describe()} instead; give a container more (docker run --shm-size 8g)"
        )
        return fitting

    def describe(self) -> str:
        """Such as "4 loading processes, 2 batches ahead each"."""
        if not self.number:
            return "no loading process"
        processes = f"{self.number} loading process{'es' * (self.number > 1)}"
        return f"{processes}, {self.ahead} batch{'es' * (self.ahead > 1)} ahead each"


ALONE = LoadingProcesses(0)
