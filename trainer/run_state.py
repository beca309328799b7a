"""How far a run is. A checkpoint keeps it, and an interrupted run goes on from it.

    state = RunState()
    is_best = state.note_validation(epoch=1, f1=0.8, threshold=0.4, min_delta=0.0)
    state.close_epoch(record)

Whoever trains an epoch counts its steps, images and seconds in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from models.metadata import is_count, is_list, is_measured, is_number, is_object


@dataclass
class RunState:
    """How far a run is, in plain types only: what it resumes from, besides model, optimizer and schedule."""

    # the epochs that are done
    epoch: int = 0  # the last epoch that is done
    seconds: float = 0.0  # that the epochs took
    history: list[dict[str, Any]] = field(default_factory=list)  # a record for each epoch
    num_skipped: int = 0  # the sum of `num_left_out` over all epochs and the present one
    closed: str = ""  # when the last of these epochs was done, "2026-03-01 12:00:00"
    finished: bool = False  # whether the run has ended
    logger_ids: dict[str, str] = field(default_factory=dict)  # {logger: what it knows the run by}

    # the present epoch, `epoch` + 1
    step: int = 0  # steps done
    loss_total: float = 0.0  # the sum over these steps of mean loss x images
    num_images: int = 0  # of these steps
    epoch_seconds: float = 0.0  # that these steps took; at the end of the epoch also its preparation
    num_taken: int = 0  # those of these steps whose gradient was finite
    num_left_out: int = 0  # those of these steps whose gradient was not finite, without the next ones
    num_overflowed: int = 0  # those that overflowed in half precision, while the scaler lowers its scale
    rates: dict[str, float] = field(default_factory=dict)  # learning rates at the start of the epoch

    # validations
    cross_fits: bool = False  # whether F1 is the cross-fitted one here, as for few validation images
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
        self.step = self.num_images = self.num_taken = self.num_left_out = self.num_overflowed = 0
        self.closed = time.strftime("%Y-%m-%d %H:%M:%S")
        self.loss_total = self.epoch_seconds = 0.0


def is_record(value: Any) -> bool:
    """Whether `value` is the record of an epoch: its number, and other numbers, True or False."""
    return is_object(value, lambda part: isinstance(part, bool) or is_measured(part)) and is_count(value.get("epoch"))


# keys: the types of RunState's fields as they are written there; values: whether a value from a file is of that type
TYPES: dict[str, Callable[[Any], bool]] = {
    "int": is_count,
    "float": lambda value: value is not None and is_measured(value),
    "float | None": is_measured,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "list[dict[str, Any]]": lambda value: is_list(value, is_record),
    "dict[str, str]": lambda value: is_object(value, lambda part: isinstance(part, str)),
    "dict[str, float]": lambda value: is_object(value, is_number),
}


def read_state(values: Any) -> RunState:
    """The RunState with `values`, which come from a file. Raises ValueError for an unknown name or a wrong type."""
    types = {member.name: str(member.type) for member in fields(RunState)}
    for name, value in values.items() if isinstance(values, dict) else [("state", values)]:
        if name not in types or not TYPES[types[name]](value):
            raise ValueError(f"{name!r} of the run's state is not {types.get(name, 'known')}")
    return RunState(**values)


def require_alike(found: Any, expected: Any, place: str) -> None:
    """Raise ValueError if `found`, which comes from a file, has other names, types or shapes than `expected`.

    Where `expected` holds None or nothing, as before the first step, anything may stand. `place` is for the message.
    """
    if isinstance(expected, Tensor):
        alike = isinstance(found, Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    elif is_number(expected):
        alike = is_number(found) or isinstance(found, float)
    else:
        alike = expected is None or isinstance(found, type(expected))
    if not alike:
        raise ValueError(f"{place} is a {type(found).__name__} of another form than the run's")
    content: Any = found
    if isinstance(expected, dict) and expected:
        if content.keys() != expected.keys():
            raise ValueError(f"{place} has other names than the run's")
        for name, value in expected.items():
            require_alike(content[name], value, f"{place}, {name}")
    elif isinstance(expected, list | tuple) and expected:
        if len(content) != len(expected):
            raise ValueError(f"{place} has {len(content)} values, not {len(expected)}")
        for index, value in enumerate(expected):
            require_alike(content[index], value, f"{place}, {index}")
