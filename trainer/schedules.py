"""Schedules by name: how the learning rates change over a run.

    schedule = make_schedule("cosine", optimizer, Plan([100] * 10, warmup_epochs=1))
    optimizer.step()
    schedule.step()

A schedule gives a factor for every group's rate, from the number of optimizer steps done. It does not depend on
whether the backbone is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Plan:
    """The length of a run, and the options of the schedules."""

    epoch_steps: Sequence[int]  # optimizer steps of each epoch
    milestones: Sequence[int] = ()  # multistep: epochs after which the rate drops
    decay_factor: float = 0.1  # multistep, step: what a drop multiplies the rate by
    step_epochs: int = 40  # step: epochs between drops
    warmup_epochs: float = 0.0  # cosine, warmup_steps: epochs before the full rate
    onecycle_peak: float = 0.3  # onecycle: share of the run before the peak

    @property
    def num_steps(self) -> int:
        """The optimizer steps of the run."""
        return sum(self.epoch_steps)

    @property
    def num_epochs(self) -> int:
        """The epochs of the run."""
        return len(self.epoch_steps)

    def find_step(self, epochs: float) -> float:
        """The number of steps done after `epochs`, which may be a fraction."""
        whole = min(int(epochs), self.num_epochs - 1)
        return sum(self.epoch_steps[:whole]) + (epochs - whole) * self.epoch_steps[whole]


def make_schedule(name: str, optimizer: Optimizer, plan: Plan) -> LambdaLR:
    """The schedule called `name` in SCHEDULES. Call its `step()` after each optimizer step."""
    factor = SCHEDULES[name]
    return LambdaLR(optimizer, lambda step: factor(step, plan))


def multistep(step: int, plan: Plan) -> float:
    """Multiply by `decay_factor` after each epoch of `milestones`."""
    return plan.decay_factor ** sum(step >= plan.find_step(epoch) for epoch in plan.milestones)


def stepwise(step: int, plan: Plan) -> float:
    """Multiply by `decay_factor` after every `step_epochs` epochs."""
    drops = range(plan.step_epochs, plan.num_epochs, plan.step_epochs)
    return plan.decay_factor ** sum(step >= plan.find_step(epoch) for epoch in drops)


def cosine(step: int, plan: Plan) -> float:
    """Rise linearly over `warmup_epochs`, then fall along half a cosine to 0 (Loshchilov and Hutter 2017).

    There are no restarts.
    """
    warmup = min(round(plan.find_step(plan.warmup_epochs)), plan.num_steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _anneal(1, 0, (step - warmup) / (plan.num_steps - warmup))


def onecycle(step: int, plan: Plan) -> float:
    """Rise from 1/25 to 1, then fall to 1e-4 / 25, both along half a cosine (Smith and Topin 2018).

    The rates are those of torch's OneCycleLR. Momentum does not change.
    """
    peak, last = plan.onecycle_peak * plan.num_steps - 1, plan.num_steps - 1
    if step < peak:
        return _anneal(1 / 25, 1, step / peak)
    return _anneal(1, 1e-4 / 25, (step - peak) / (last - peak))


def warmup_steps(step: int, plan: Plan) -> float:
    """0.1 during `warmup_epochs`, then 1; divide by 10 after 1.5, 2.5 and 3.5 quarters of the epochs after warm-up."""
    if step < plan.find_step(plan.warmup_epochs):
        return 0.1
    quarter = (plan.num_epochs - plan.warmup_epochs) / 4
    # rates drop a whole number of epochs after warm-up
    drops = [plan.warmup_epochs + int(count * quarter) for count in (1.5, 2.5, 3.5)]
    return 0.1 ** sum(step >= plan.find_step(epoch) for epoch in drops)


def _anneal(start: float, end: float, share: float) -> float:
    """The value between `start` and `end` along half a cosine, after `share` (0 to 1) of the way."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


SCHEDULES: dict[str, Callable[[int, Plan], float]] = {
    "multistep": multistep,
    "step": stepwise,
    "cosine": cosine,
    "onecycle": onecycle,
    "warmup_steps": warmup_steps,
}
