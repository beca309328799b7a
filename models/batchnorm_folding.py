"""Folds BatchNorm into the layer before it: the same output from fewer operations.

folded = fold_batchnorm(model, make_example(model_image_size))
"""

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

TOLERANCE = 1e-3  # the most by which folding or conversion may change an output, as a share of its largest value


def fold_batchnorm(module: nn.Module, example: Tensor) -> nn.Module:
    """Copy `module` in eval mode, and fold every BatchNorm that follows a convolution or Linear into that layer.

    A pass over `example`, an input of `module`, shows which layer follows which. If folding changes the output on
    `example` by more than TOLERANCE, nothing is folded, and a warning is printed. This happens if the output of a
    convolution is used in a second place, too, or if the network magnifies rounding. All of this is computed on the
    CPU, whatever device `module` and `example` are on: GPUs round convolutions to TF32, which changes as much.
    """
    device = example.device
    original, module, example = module, deepcopy(module).cpu().eval().requires_grad_(False), example.cpu()
    expected, pairs = _find_pairs(module, example)
    for before, norm in pairs:
        layer, batchnorm = module.get_submodule(before), module.get_submodule(norm)
        assert isinstance(batchnorm, _BatchNorm)
        if isinstance(layer, nn.Linear):
            module.set_submodule(before, fuse_linear_bn_eval(layer, batchnorm))
        else:
            module.set_submodule(before, fuse_conv_bn_eval(layer, batchnorm))  # pyright: ignore[reportArgumentType]
        # timm's BatchNormAct2d has a dropout and an activation inside, which stay
        rest = [child for name, child in batchnorm.named_children() if name in ("drop", "act")]
        module.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())
    module.requires_grad_(False)
    with torch.no_grad():
        change = measure_change(module(example), expected)
    if not change <= TOLERANCE:  # written so that NaN counts as a change, too
        warn(f"BatchNorm is not folded: it would change the output of {type(module).__name__} by {change:.1e} of it")
        return deepcopy(original).eval().requires_grad_(False)
    return module.to(device)


def _find_pairs(module: nn.Module, example: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """Run `module` on `example`. Returns its output, and the names (layer, BatchNorm) of each pair that can be folded.

    The layer is a convolution or Linear; the BatchNorm is the only one that takes its output.
    """
    calls: Counter[str] = Counter()
    producers: dict[int, str] = {}  # id of a tensor -> the layer whose output it is
    consumers: dict[int, list[str]] = {}  # id of a tensor -> the layers whose input it is
    alive: list[Any] = []  # keeps the tensors, so that no id is given to a second one

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] += 1
            alive.extend((*inputs, output))
            for tensor in inputs:
                consumers.setdefault(id(tensor), []).append(name)
            # after a Linear of more dimensions, BatchNorm normalises another axis
            is_flat_linear = isinstance(layer, nn.Linear) and output.dim() == 2
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
    pairs = []
    for tensor, before in producers.items():
        takers = consumers.get(tensor, [])
        if len(takers) == 1 and calls[before] == calls[takers[0]] == 1 and _is_foldable(layers[takers[0]]):
            pairs.append((before, takers[0]))
    return output, pairs


def _is_foldable(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def measure_change(output: Tensor, expected: Tensor) -> float:
    """The largest difference between two tensors, as a share of the largest value of `expected`."""
    return ((output - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
