"""Optimizers and schedules by name, sharpness-aware steps (SAM), and the moving average of the weights (EMA).

    optimizer = make_optimizer("adamw", model, backbone_lr=1e-4, head_lr=1e-3, weight_decay=1e-2)
    schedule = make_schedule("cosine", optimizer, Plan([100] * 10, warmup_epochs=1))
    average = make_average(model, decay=0.9997)

    compute_loss(batch).backward()
    with climb(model, rho=0.05):            # only for sharpness-aware steps: these two lines
        compute_loss(batch).backward()
    optimizer.step()
    schedule.step()
    average.update_parameters(model)

A schedule gives a factor for every group's rate, from the number of optimizer steps done. It does not depend on
whether the backbone is frozen.
"""

# torch._foreach_* work on a list of tensors in one kernel; torch's own optimizers and gradient clipping use them
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.batchnorm_statistics import keep_statistics
from models_factory import MultiLabelModel

Tensors = list[Tensor] | tuple[Tensor, ...]

# ---- optimizers ----


def make_optimizer(
    name: str,
    model: MultiLabelModel,
    backbone_lr: float,
    head_lr: float,
    weight_decay: float = 0.0,
    decays_norms_and_biases: bool = True,
) -> Optimizer:
    """The optimizer called `name` in OPTIMIZERS, over parameter groups named "backbone" and "head".

    With `decays_norms_and_biases` False, the parameters of `list_undecayed` form two more groups without weight decay:
    "backbone, no decay" and "head, no decay". A group without parameters is left out.

    The parameters of a frozen backbone belong to its group from the start: the optimizer skips parameters without a
    gradient. A parameter of the head with `requires_grad` False never trains, so it belongs to no group.
    """
    undecayed = set() if decays_norms_and_biases else list_undecayed(model)
    rates = {"backbone": backbone_lr, "head": head_lr}
    groups: dict[str, dict[str, Any]] = {}
    for suffix, decay in (("", weight_decay), (", no decay", 0.0)):
        for part, lr in rates.items():
            groups[part + suffix] = {"name": part + suffix, "params": [], "lr": lr, "weight_decay": decay}
    for key, parameter in model.named_parameters():
        part = key.partition(".")[0]
        if part == "backbone" or parameter.requires_grad:
            suffix = ", no decay" if key in undecayed else ""
            groups[part + suffix]["params"].append(parameter)
    make = OPTIMIZERS[name]
    options: dict[str, Any] = {}
    is_on_gpu = next(model.parameters()).device.type == "cuda"
    if is_on_gpu and "fused" in inspect.signature(make).parameters:
        options["fused"] = True  # one kernel for all parameters; on a CPU it gains nothing
    return make([group for group in groups.values() if group["params"]], **options)


def list_undecayed(model: nn.Module) -> set[str]:
    """The names of parameters that often get no weight decay: those of norms, biases, and what a network itself names.

    Parameters of norms and biases have at most one dimension. A timm network names further ones in
    `no_weight_decay()`, such as position embeddings and class tokens.
    """
    patterns = []
    for prefix, module in model.named_modules():
        for name in getattr(module, "no_weight_decay", tuple)():
            patterns.append(f"{prefix}.{name}".removeprefix("."))
    return {
        key
        for key, parameter in model.named_parameters()
        if parameter.dim() <= 1 or any(fnmatchcase(key, pattern) for pattern in patterns)
    }


@contextmanager
def climb(model: nn.Module, rho: float) -> Iterator[None]:
    """Sharpness-aware minimisation (Foret et al. 2021): inside the `with` block, weights w become w + rho * g / ||g||.

    g are the gradients of the first backward pass, which comes before the block; their scale does not matter. ||g|| is
    one norm over all of them. On entry they are cleared. A second backward pass over the same batch, inside the block,
    gives the gradients that the optimizer applies afterwards, to the old weights w. BatchNorm statistics stay those of
    the first pass.
    """
    trained = [weight for weight in model.parameters() if weight.grad is not None]
    weights = [weight.detach() for weight in trained]
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    before = [weight.clone() for weight in weights]  # subtracting the step again would not give w to the last bit
    length = torch.nn.utils.get_total_norm(gradients)
    smallest = torch.finfo(length.dtype).tiny  # where all gradients are 0, the weights stay
    torch._foreach_mul_(gradients, rho / length.clamp(min=smallest))  # in place: they are cleared below
    torch._foreach_add_(weights, gradients)
    model.zero_grad()
    try:
        with keep_statistics(model):
            yield
    finally:
        torch._foreach_copy_(weights, before)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the model's weights and BatchNorm statistics; the averaged model is `.module`.

    Call `update_parameters(model)` after each step. The first update copies. Update n + 1 keeps the share
    min(decay, (1 + n) / (10 + n)) of the average, so that the first weights are soon forgotten. Integers, such as
    BatchNorm's number of batches, are copied.
    """

    @torch.no_grad()
    def blend(averages: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        if averages[0].is_floating_point():  # torch calls this once for each type of number
            n = int(average.n_averaged)  # on the CPU; reading `num_averaged`, a copy on the weights' device, would wait
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, current, n)
        else:
            torch._foreach_copy_(averages, current)

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    return average


# ---- schedules ----


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


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "radam": torch.optim.RAdam,
}
SCHEDULES: dict[str, Callable[[int, Plan], float]] = {
    "multistep": multistep,
    "step": stepwise,
    "cosine": cosine,
    "onecycle": onecycle,
    "warmup_steps": warmup_steps,
}
