"""Training in less memory: a network's blocks forget what they computed, and compute it again on the way back.

checkpoint_activations(model.backbone)      # from here on; a step takes about a third longer (Chen et al. 2016)
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
    """Make every block of `backbone` keep its input alone. Raises InputError for a network without blocks."""
    blocks = find_blocks(backbone)
    if not blocks:
        raise InputError(
            f"ACTIVATION_CHECKPOINTING finds no blocks in {type(backbone).__name__}: set it to False, and "
            "MICRO_BATCH_SIZE lower"
        )
    for block in blocks:
        block.__class__ = _make_forgetting(type(block))  # a copy of the block then has it, too, and runs itself


def find_blocks(backbone: nn.Module) -> list[nn.Module]:
    """What stands in sequences and is no sequence itself, nor a single layer: residual blocks, transformer layers."""

    def walk(module: nn.Module, in_sequence: bool) -> Iterator[nn.Module]:
        for child in module.children():
            is_sequence = isinstance(child, nn.Sequential | nn.ModuleList)
            if in_sequence and not is_sequence and any(child.children()) and any(True for _ in child.parameters()):
                yield child
            else:
                yield from walk(child, is_sequence)

    return list(walk(backbone, isinstance(backbone, nn.Sequential)))


@functools.cache
def _make_forgetting(kind: type[nn.Module]) -> type[nn.Module]:
    """The class `kind` with a forward pass in training that is done again on the way back."""

    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        run = functools.partial(kind.forward, self)
        if not (self.training and torch.is_grad_enabled()):
            return run(*inputs, **options)
        # the second pass: BatchNorm has noted this batch already
        contexts = lambda: (nullcontext(), keep_statistics(self))  # noqa: E731
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return type(kind.__name__, (kind,), {"forward": forward})
