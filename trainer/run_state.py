"""How far a run is: what an interrupted run resumes, besides model, optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunState:
    """How far a run is: what it resumes from, besides model, optimizer and schedule. Plain types only."""

    epoch: int = 0  # the last one that is done
    step: int = 0  # steps done of the next one
    loss_total: float = 0.0  # of those steps: mean loss x images
    num_images: int = 0  # of those steps
    epoch_seconds: float = 0.0  # that those steps took; with what came before them, once all are taken
    num_taken: int = 0  # of those steps, with finite gradients
    num_left_out: int = 0  # of those steps, without
    rates: dict[str, float] = field(default_factory=dict)  # learning rates at that epoch's start
    num_skipped: int = 0  # steps left out in the whole run
    best_f1: float = -1.0
    best_epoch: int = 0
    best_threshold: float | None = None
    threshold: float | None = None  # the last validation's
    stopping_f1: float = -1.0  # the F1 that early stopping counts from
    validations_without_gain: int = 0
    seconds: float = 0.0  # spent in the epochs that are done
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # a record an epoch

    def note_validation(self, epoch: int, f1: float, threshold: float, min_delta: float) -> bool:
        """Take note of a validation; whether it is the run's best."""
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
        """Take the epoch's record into the history."""
        self.seconds += record["seconds"]
        self.epoch, self.step, self.loss_total, self.num_images, self.epoch_seconds = record["epoch"], 0, 0.0, 0, 0.0
        self.num_taken = self.num_left_out = 0
        self.history.append(record)
