"""Training in less memory: a network's blocks forget what they computed, and compute it again on the way back.

checkpoint_activations(model.backbone)      # from here on; a step takes about a third longer (Chen et al. 2016)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from optimization import keep_statistics
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
        block.forward = _forget(block)


def find_blocks(backbone: nn.Module) -> list[nn.Module]:
    """What stands in the outermost sequences of two or more modules with parameters."""

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        parts = [child for child in module.children() if any(True for _ in child.parameters())]
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(parts) > 1:
            yield from parts
        else:
            for part in parts:
                yield from walk(part)

    return list(walk(backbone))


def _forget(block: nn.Module) -> Any:
    forward = block.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), keep_statistics(block)  # the second pass: BatchNorm has noted this batch already

    def run(*inputs: Any, **options: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return run
