"""Trains in less memory: blocks of a network keep their input only, and are computed again in the backward pass.

    checkpoint_activations(model.backbone)      # from now on

A step then takes about a third longer (Chen et al. 2016).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.batchnorm_statistics import keep_statistics
from utils import InputError


def checkpoint_activations(backbone: nn.Module) -> None:
    """Make every block of `backbone` keep only its input in training. Raises InputError if there are no blocks."""
    blocks = find_blocks(backbone)
    if not blocks:
        raise InputError(
            f"ACTIVATION_CHECKPOINTING finds no blocks in {type(backbone).__name__}: set it to False, and "
            "MICRO_BATCH_SIZE lower"
        )
    for block in blocks:
        block.__class__ = _make_forgetting(type(block))  # and not block.forward = ...: a copy would run the original


def find_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The residual blocks, transformer layers and the like of `backbone`.

    They are the members of sequences that are neither a sequence themselves nor a single layer.
    """
    return list(_walk(backbone, isinstance(backbone, nn.Sequential)))


def _walk(module: nn.Module, is_sequence: bool) -> Iterator[nn.Module]:
    """Yield the blocks within `module`, which is a sequence or not."""
    for child in module.children():
        child_is_sequence = isinstance(child, nn.Sequential | nn.ModuleList)
        # what torch's parametrize hangs on a layer, as models/low_rank.py does, makes no block of it
        has_layers = any(name != "parametrizations" for name, _ in child.named_children())
        has_parameters = any(True for _ in child.parameters())
        if is_sequence and not child_is_sequence and has_layers and has_parameters:
            yield child
        else:
            yield from _walk(child, child_is_sequence)


@functools.cache
def _make_forgetting(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `kind` whose forward pass in training is computed again in the backward pass."""

    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        run = functools.partial(kind.forward, self)
        if not (self.training and torch.is_grad_enabled()):
            return run(*inputs, **options)

        def make_contexts() -> tuple[Any, Any]:
            """One context for each pass: in the second pass, BatchNorm has counted this batch already."""
            return nullcontext(), keep_statistics(self)

        return checkpoint(run, *inputs, use_reentrant=False, context_fn=make_contexts, **options)

    return type(kind.__name__, (kind,), {"forward": forward})
