"""How far a run is. A checkpoint keeps it, and an interrupted run goes on from it.

    state = RunState()
    is_best = state.note_validation(epoch=1, f1=0.8, threshold=0.4, min_delta=0.0)
    state.close_epoch(record)

Whoever trains an epoch counts its steps, images and seconds in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """How far a run is, in plain types only: what it resumes from, besides model, optimizer and schedule."""

    # the epochs that are done
    epoch: int = 0  # the last epoch that is done
    seconds: float = 0.0  # that the epochs took
    history: list[dict[str, Any]] = field(default_factory=list)  # a record for each epoch
    num_skipped: int = 0  # steps that were left out, because their gradient was not finite; also of the present epoch
    closed: str = ""  # when the last of these epochs was done, "2026-03-01 12:00:00"
    finished: bool = False  # whether the run has ended

    # the present epoch, `epoch` + 1
    step: int = 0  # steps done
    loss_total: float = 0.0  # the sum over these steps of mean loss x images
    num_images: int = 0  # of these steps
    epoch_seconds: float = 0.0  # that these steps took; at the end of the epoch also its preparation
    num_taken: int = 0  # those of these steps whose gradient was finite
    num_left_out: int = 0  # those of these steps whose gradient was not finite
    rates: dict[str, float] = field(default_factory=dict)  # learning rates at the start of the epoch

    # validations
    best_f1: float = -1.0
    best_epoch: int = 0
    best_threshold: float | None = None
    threshold: float | None = None  # of the last validation
    stopping_f1: float = -1.0  # the highest F1, as early stopping counts: smaller gains than `min_delta` are none
    validations_without_gain: int = 0  # in a row, compared with `stopping_f1`

    def note_validation(self, epoch: int, f1: float, threshold: float, min_delta: float) -> bool:
        """Take note of a validation. Returns whether it is the best of the run.

        For early stopping it counts as a gain only if `f1` rose by more than `min_delta`.
        """
        self.threshold = threshold
        if f1 > self.stopping_f1 + min_delta:
            self.stopping_f1, self.validations_without_gain = f1, 0
        else:
            self.validations_without_gain += 1
        if f1 <= self.best_f1:
            return False
        self.best_f1, self.best_epoch, self.best_threshold = f1, epoch, threshold
        return True

    def close_epoch(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch that is done to the history, and start to count for the next epoch."""
        self.epoch = record["epoch"]
        self.seconds += record["seconds"]
        self.history.append(record)
        self.closed = time.strftime("%Y-%m-%d %H:%M:%S")
        self.step = self.num_images = self.num_taken = self.num_left_out = 0
        self.loss_total = self.epoch_seconds = 0.0
