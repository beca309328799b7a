"""What moves the weights: optimizers and schedules by name, sharpness-aware steps, averaged weights.

    optimizer = make_optimizer("adamw", model, backbone_lr=1e-4, head_lr=1e-3, weight_decay=1e-2)
    schedule = make_schedule("cosine", optimizer, Plan([100] * 10, warmup_epochs=1))
    average = make_average(model, decay=0.9997)

    compute_loss(batch).backward()
    with climb(model, rho=0.05):    # these two lines make it a sharpness-aware step
        compute_loss(batch).backward()
    optimizer.step()
    schedule.step()
    average.update_parameters(model)

A schedule is a factor on every group's rate, as a function of the optimizer steps done; whether the backbone
is frozen does not enter it.
"""

# torch._foreach_*, which torch's own optimizers and gradient clipping are made of: one kernel for all tensors
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
    """The optimizer called `name` in OPTIMIZERS over groups named "backbone" and "head".

    Without `decays_norms_and_biases`, what `list_undecayed` names stands in two more groups, "backbone, no decay" and
    "head, no decay". A group without parameters is left out. A frozen backbone stands in it from the start: without a
    gradient it is left alone. In the head, `requires_grad` False means for good, and is left out.
    """
    undecayed = set() if decays_norms_and_biases else list_undecayed(model)
    groups: dict[str, dict[str, Any]] = {
        part + kind: {"name": part + kind, "params": [], "lr": lr, "weight_decay": decay}
        for kind, decay in (("", weight_decay), (", no decay", 0.0))
        for part, lr in (("backbone", backbone_lr), ("head", head_lr))
    }
    for key, parameter in model.named_parameters():
        part = key.partition(".")[0]
        if part == "backbone" or parameter.requires_grad:
            groups[part + ", no decay" if key in undecayed else part]["params"].append(parameter)
    make = OPTIMIZERS[name]
    on_gpu = next(model.parameters()).device.type == "cuda"
    # one kernel for all parameters, where the optimizer has one; on a CPU no gain
    options = {"fused": True} if on_gpu and "fused" in inspect.signature(make).parameters else {}
    return make([group for group in groups.values() if group["params"]], **options)


def list_undecayed(model: nn.Module) -> set[str]:
    """The parameters that weight decay is often kept from: of norms, biases, and what a network itself exempts.

    Norms and biases have one dimension or none. A timm network names others in `no_weight_decay()`, such as position
    embeddings and class tokens.
    """
    shapes = {key: parameter.dim() for key, parameter in model.named_parameters()}
    patterns = [
        f"{place}.{name}".removeprefix(".")
        for place, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", tuple)()
    ]
    return {key for key, dim in shapes.items() if dim <= 1 or any(fnmatchcase(key, name) for name in patterns)}


@contextmanager
def climb(model: nn.Module, rho: float) -> Iterator[None]:
    """Sharpness-aware minimisation (Foret et al. 2021): inside, the weights w are w + rho * g / ||g||.

    g are the gradients of a first backward pass, at any scale, with one norm over all of them. They are cleared; those
    of a second pass over the same batch, inside, are what the optimizer then applies to w. BatchNorm statistics are
    those of the first pass.
    """
    trained = [(weight.detach(), weight.grad) for weight in model.parameters() if weight.grad is not None]
    weights, steps = [weight for weight, _ in trained], [gradient for _, gradient in trained]
    before = [weight.clone() for weight in weights]  # w + step - step would not be w to the last bit
    length = torch.nn.utils.get_total_norm(steps)
    torch._foreach_mul_(steps, rho / length.clamp(min=torch.finfo(length.dtype).tiny))  # all gradients 0: w stays
    torch._foreach_add_(weights, steps)
    model.zero_grad()
    try:
        with keep_statistics(model):
            yield
    finally:
        torch._foreach_copy_(weights, before)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and statistics: `update_parameters(model)` after each step, `.module`.

    The first update copies; update n + 1 keeps the share min(decay, (1 + n) / (10 + n)) of what was, so that the
    start is soon forgotten. Integers, such as BatchNorm's number of batches, are copied.
    """

    @torch.no_grad()
    def blend(averages: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        if averages[0].is_floating_point():  # torch hands over one type at a time
            n = int(average.n_averaged)  # on the CPU, while the argument is a copy on the weights' device
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, current, n)
        else:
            torch._foreach_copy_(averages, current)

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    return average


# ---- schedules ----


@dataclass(frozen=True)
class Plan:
    """The run that a schedule is laid over, and what the schedules take."""

    epoch_steps: Sequence[int]  # of the optimizer, in each epoch
    milestones: Sequence[int] = ()  # multistep: epochs
    decay_factor: float = 0.1  # multistep, step: what a drop multiplies by
    step_epochs: int = 40  # step: epochs between drops
    warmup_epochs: float = 0.0  # cosine, warmup_steps
    onecycle_peak: float = 0.3  # onecycle: share of the run before the peak

    @property
    def num_steps(self) -> int:
        return sum(self.epoch_steps)

    @property
    def num_epochs(self) -> int:
        return len(self.epoch_steps)

    def find_step(self, epochs: float) -> float:
        """The steps done after so many epochs."""
        whole = min(int(epochs), self.num_epochs - 1)
        return sum(self.epoch_steps[:whole]) + (epochs - whole) * self.epoch_steps[whole]


def make_schedule(name: str, optimizer: Optimizer, plan: Plan) -> LambdaLR:
    """The schedule called `name` in SCHEDULES; call its `step()` after each optimizer step."""
    factor = SCHEDULES[name]
    return LambdaLR(optimizer, lambda step: factor(step, plan))


def multistep(step: int, plan: Plan) -> float:
    """Times `decay_factor` after each of the `milestones`."""
    return plan.decay_factor ** sum(step >= plan.find_step(epoch) for epoch in plan.milestones)


def stepwise(step: int, plan: Plan) -> float:
    """Times `decay_factor` after every `step_epochs` epochs."""
    drops = range(plan.step_epochs, plan.num_epochs, plan.step_epochs)
    return plan.decay_factor ** sum(step >= plan.find_step(epoch) for epoch in drops)


def cosine(step: int, plan: Plan) -> float:
    """Up in a line over `warmup_epochs`, then half a cosine down to 0 (Loshchilov and Hutter 2017, no restarts)."""
    warmup = min(round(plan.find_step(plan.warmup_epochs)), plan.num_steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _anneal(1, 0, (step - warmup) / (plan.num_steps - warmup))


def onecycle(step: int, plan: Plan) -> float:
    """From 1/25 up to 1 and down to 1e-4 / 25, each half a cosine (Smith and Topin 2018).

    The rates of torch's OneCycleLR; momentum is not cycled.
    """
    peak, last = plan.onecycle_peak * plan.num_steps - 1, plan.num_steps - 1
    if step < peak:
        return _anneal(1 / 25, 1, step / peak)
    return _anneal(1, 1e-4 / 25, (step - peak) / (last - peak))


def warmup_steps(step: int, plan: Plan) -> float:
    """A tenth over `warmup_epochs`; then 1, and a tenth of it after 1.5, 2.5 and 3.5 quarters of the rest."""
    if step < plan.find_step(plan.warmup_epochs):
        return 0.1
    quarter = (plan.num_epochs - plan.warmup_epochs) / 4
    drops = (plan.warmup_epochs + int(count * quarter) for count in (1.5, 2.5, 3.5))  # whole epochs after warm-up
    return 0.1 ** sum(step >= plan.find_step(epoch) for epoch in drops)


def _anneal(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine, after `share` of the way."""
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
