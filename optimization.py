"""Optimizers and learning-rate schedules, by name: `make_optimizer(...)`, `make_schedule(...)`.

A schedule is a factor on every group's rate, as a function of the optimizer steps done; whether the backbone
is frozen does not enter it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from models_factory import MultiLabelModel


def make_optimizer(
    name: str, model: MultiLabelModel, backbone_lr: float, head_lr: float, weight_decay: float = 0.0
) -> Optimizer:
    """The optimizer called `name` in OPTIMIZERS over two groups, named "backbone" and "head".

    Frozen parameters stand in it from the start: without a gradient they are left alone.
    """
    groups = [
        {"name": "backbone", "params": list(model.backbone.parameters()), "lr": backbone_lr},
        {"name": "head", "params": list(model.head.parameters()), "lr": head_lr},
    ]
    on_gpu = next(model.parameters()).device.type == "cuda"
    return OPTIMIZERS[name](groups, weight_decay=weight_decay, fused=on_gpu)  # one kernel; on a CPU no gain


def make_schedule(
    name: str,
    optimizer: Optimizer,
    steps_per_epoch: int,
    num_epochs: int,
    milestones: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_epochs: float = 0.0,
) -> LambdaLR:
    """The schedule called `name` in SCHEDULES; call its `step()` after each optimizer step."""
    factor = SCHEDULES[name](steps_per_epoch, num_epochs, milestones, decay_factor, warmup_epochs)
    return LambdaLR(optimizer, factor)


def multistep(
    steps_per_epoch: int, num_epochs: int, milestones: Sequence[int], decay_factor: float, warmup_epochs: float
) -> Callable[[int], float]:
    """Times `decay_factor` after each of the `milestones` (epochs)."""
    return lambda step: decay_factor ** sum(step >= epoch * steps_per_epoch for epoch in milestones)


def cosine(
    steps_per_epoch: int, num_epochs: int, milestones: Sequence[int], decay_factor: float, warmup_epochs: float
) -> Callable[[int], float]:
    """Up in a line over `warmup_epochs`, then half a cosine down to 0 (Loshchilov and Hutter 2017, no restarts)."""
    warmup, total = round(warmup_epochs * steps_per_epoch), num_epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return factor


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
SCHEDULES: dict[str, Callable[..., Callable[[int], float]]] = {"multistep": multistep, "cosine": cosine}
