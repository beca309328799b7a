"""How long to train so that it takes so many minutes: for the peers whose schedule has to know its length beforehand.

Each takes a few steps with a network of its own that is then thrown away, and predicts a few images. The minutes are
of training and validating; start-up and these first steps come on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

NUM_STEPS = 4  # that are timed, after one that is not
NUM_PREDICTED = 64  # images


@dataclass(frozen=True)
class Pace:
    """Seconds an image."""

    unfrozen: float  # of a training step
    validation: float
    frozen: float = 0.0  # of a training step with a frozen backbone


class Length(NamedTuple):
    """A frozen epoch, then `epochs` unfrozen ones, of `images` random training images each."""

    epochs: int
    images: int


def count_epochs(seconds: float, pace: Pace, num_train: int, num_val: int) -> float:
    """Epochs, also a part of one, each with a validation, that take `seconds` together."""
    return seconds / (num_train * pace.unfrozen + num_val * pace.validation)


def plan_fine_tuning(seconds: float, pace: Pace, num_train: int, num_val: int, batch_size: int) -> Length:
    """A frozen epoch and as many unfrozen ones as take `seconds` together, each with a validation.

    Epochs are whole: there is one more than fits, and all are of fewer images, at least a batch.
    """
    validation = num_val * pace.validation
    frozen, unfrozen = num_train * pace.frozen, num_train * pace.unfrozen
    epochs = max(1, math.ceil((seconds - frozen - validation) / (unfrozen + validation)))
    share = (seconds - (1 + epochs) * validation) / (frozen + epochs * unfrozen)
    return Length(epochs, min(num_train, max(batch_size, round(num_train * share))))
