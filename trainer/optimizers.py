"""Optimizers by name, sharpness-aware steps (SAM), and the moving average of the weights (EMA).

optimizer = make_optimizer("adamw", model, backbone_lr=1e-4, head_lr=1e-3, weight_decay=1e-2)
average = MovingAverage(model, decay=0.9997)

compute_loss(batch).backward()
with climb(model, rho=0.05):            # only for sharpness-aware steps: these two lines
    compute_loss(batch).backward()
optimizer.step()
average.update_parameters(model)
"""

# torch._foreach_* work on a list of tensors in one kernel; torch's own optimizers and gradient clipping use them
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.batchnorm_statistics import keep_statistics
from models.depths import count_layers_above
from models.low_rank import list_trained
from models_factory import MultiLabelModel


def make_optimizer(
    name: str,
    model: MultiLabelModel,
    backbone_lr: float,
    head_lr: float,
    weight_decay: float = 0.0,
    decays_norms_and_biases: bool = True,
    layer_decay: float = 1.0,
    undecayed: Collection[nn.Parameter] = (),
    is_fused: bool = True,
) -> Optimizer:
    """The optimizer called `name` in OPTIMIZERS, over parameter groups named "backbone" and "head".

    With `layer_decay` below 1, the rate of a backbone layer is backbone_lr * layer_decay**n, where n layers lie above
    it: lower layers are more general, and move less (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT). Such a layer's
    group is called "backbone, n below the top".

    The parameters `undecayed` and, with `decays_norms_and_biases` False, those of `list_undecayed` form more groups
    without weight decay: "backbone, no decay" and "head, no decay", and so on. A group without parameters is left out.

    The parameters of a frozen backbone belong to its group from the start: the optimizer skips parameters without a
    gradient. Its own weights beside low-rank parts, and a parameter of the head with `requires_grad` False, never
    train, so they belong to no group.

    `is_fused`: one kernel steps all parameters, and allows `step_if`, where torch has it; on a CPU or a GPU of CUDA.
    """
    undecayed_names = set() if decays_norms_and_biases else list_undecayed(model)
    undecayed_parameters = {*undecayed}  # a set goes by identity
    trained = {*list_trained(model.backbone), *(weight for weight in model.head.parameters() if weight.requires_grad)}
    layers_above = count_layers_above(model.backbone) if layer_decay < 1 else {}
    rates = {"backbone": backbone_lr}
    for number in range(1, 1 + max(layers_above.values(), default=0)):
        rates[_name_layer(number)] = backbone_lr * layer_decay**number
    rates["head"] = head_lr
    groups: dict[str, dict[str, Any]] = {}
    for suffix, decay in (("", weight_decay), (", no decay", 0.0)):
        for part, lr in rates.items():
            groups[part + suffix] = {"name": part + suffix, "params": [], "lr": lr, "weight_decay": decay}
    for key, parameter in model.named_parameters():
        if parameter in trained:
            part, _, name_within = key.partition(".")
            layer = part if part == "head" else _name_layer(layers_above.get(name_within, 0))
            decays = key not in undecayed_names and parameter not in undecayed_parameters
            groups[layer + ("" if decays else ", no decay")]["params"].append(parameter)
    make = OPTIMIZERS[name]
    options: dict[str, Any] = {}
    if is_fused and "fused" in inspect.signature(make).parameters:
        options["fused"] = True
    return make([group for group in groups.values() if group["params"]], **options)


def _name_layer(number: int) -> str:
    """The name of the group of the backbone layer with `number` layers above it."""
    return f"backbone, {number} below the top" if number else "backbone"


def get_part(group: dict[str, Any]) -> str:
    """The part that a group of `make_optimizer` is of: "backbone" or "head"."""
    return group["name"].partition(",")[0]


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


def lay_out_state(optimizer: Optimizer) -> None:
    """Give tensors of a state that was loaded the memory order of their weights: fused kernels go by memory alone."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                values[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether `step_if` may be called: the optimizer is fused, also after it took over the groups of a saved one."""
    return all(group.get("fused") for group in optimizer.param_groups)


def step_if(optimizer: Optimizer, where: Tensor) -> None:
    """Let a fused `optimizer` take a step if `where`, a scalar on its device, is True. Nothing is read back for it.

    Its kernels leave weights and state as they are where `found_inf` is 1: torch made that for GradScaler.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if group.get("momentum") and weight.grad is not None and "momentum_buffer" not in optimizer.state[weight]:
                # SGD's first step would otherwise make it, and leave it undefined if the step is left out
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    optimizer.found_inf = (~where).float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()


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


class MovingAverage(nn.Module):
    """An exponential moving average of a model's weights and BatchNorm statistics; the averaged model is `module`.

    Call `update_parameters(model)` after each step. The first update takes the model's weights. Update n + 1 keeps the
    share min(decay, (1 + n) / (10 + n)) of the average, so that the first weights are soon forgotten. Integers, such as
    BatchNorm's number of batches, are copied. torch's AveragedModel reads n back from the device in each update.
    """

    n_averaged: Tensor  # updates that were done; named as in torch's AveragedModel

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model), decay
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long, device=next(model.parameters()).device))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, where: Tensor | bool = True) -> None:
        """Update the average by the weights of `model` if `where`, which may be a scalar on the device."""
        tensors = ((*part.parameters(), *part.buffers()) for part in (self.module, model))
        pairs = list(zip(*tensors, strict=True))
        averages, weights = zip(*((a, w) for a, w in pairs if a.is_floating_point()), strict=True)
        n = self.n_averaged.to(averages[0].dtype)
        share = torch.where(n > 0, (9 / (10 + n)).clamp(min=1 - self.decay), 1.0) * where  # of the new weights
        self.n_averaged += where
        changes = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)
        counts = [(a, w) for a, w in pairs if not a.is_floating_point()]
        if counts:
            torch._foreach_copy_([average for average, _ in counts], [current for _, current in counts])


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "radam": torch.optim.RAdam,
}
