"""Folds BatchNorm into the layers before it: the same output from fewer operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from utils import warn

TOLERANCE = 1e-3  # of the largest logit: what folding or conversion may change


def fold_batchnorm(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `module` in eval mode with every BatchNorm that follows a convolution or Linear folded into it.

    What follows what is seen on `example`, an input of `module`. Where the output on it changes, the copy is left as it
    was, with a warning: a convolution whose output goes elsewhere as well, or a network that magnifies rounding.
    """
    original, module = module, deepcopy(module).eval().requires_grad_(False)
    expected, pairs = _find_pairs(module, example)
    for before, norm in pairs:
        layer, batchnorm = module.get_submodule(before), module.get_submodule(norm)
        assert isinstance(batchnorm, _BatchNorm)
        if isinstance(layer, nn.Linear):
            module.set_submodule(before, fuse_linear_bn_eval(layer, batchnorm))
        else:
            module.set_submodule(before, fuse_conv_bn_eval(layer, batchnorm))  # pyright: ignore[reportArgumentType]
        # timm's BatchNormAct2d has its activation inside
        rest = [part for name, part in batchnorm.named_children() if name in ("drop", "act")]
        module.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())
    module.requires_grad_(False)
    with torch.no_grad():
        change = measure_change(module(example), expected)
    if not change <= TOLERANCE:  # also where it is not a number
        warn(f"BatchNorm is not folded: it would change the output of {type(module).__name__} by {change:.1e} of it")
        return deepcopy(original).eval().requires_grad_(False)
    return module


def _find_pairs(module: nn.Module, example: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """The output of `module`, and the names of each (convolution or Linear, BatchNorm that alone takes its output)."""
    calls: Counter[str] = Counter()
    producers: dict[int, str] = {}  # by the identity of their output
    consumers: dict[int, list[str]] = {}
    alive: list[Any] = []  # an identity lasts as long as its object

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] += 1
            alive.extend((*inputs, output))
            for tensor in inputs:
                consumers.setdefault(id(tensor), []).append(name)
            is_flat_linear = isinstance(layer, nn.Linear) and output.dim() == 2  # else BatchNorm takes another axis
            if is_flat_linear or isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                producers[id(output)] = name

        return note

    layers = dict(module.named_modules())
    hooks = [
        layer.register_forward_hook(watch(name))
        for name, layer in layers.items()
        if isinstance(layer, _BatchNorm) or not any(layer.children())
    ]
    try:
        with torch.no_grad():
            output = module(example)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(before, consumers.get(tensor, [])) for tensor, before in producers.items()]
    return output, [
        (before, after[0])
        for before, after in pairs
        if len(after) == 1 and calls[before] == calls[after[0]] == 1 and _is_foldable(layers[after[0]])
    ]


def _is_foldable(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def measure_change(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
