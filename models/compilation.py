"""torch.compile of a backbone's blocks: each kind of block is compiled once, not the network as a whole.

    compile_blocks(model.backbone)      # in place; names of weights stay, and so do checkpoints

Blocks that are built alike share their compiled code, so a start takes a fraction of the time that the whole network
takes (torch's recipe "regional compilation"). Sizes are dynamic from the start: growing images, a last smaller batch
and other batches in validation compile nothing again. Training, evaluation and a frozen pass are compiled once each,
and so is what torch itself computes otherwise: a single image, or convolutions of 16 images and more on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.recomputation import find_blocks

FORMS = 8  # in which a block is compiled, at most: training or evaluation, with gradients or not, one image or several


def compile_blocks(backbone: nn.Module, **options: Any) -> None:
    """Compile the innermost blocks of `backbone` when each is called first. `options` are those of torch.compile."""
    blocks = find_innermost_blocks(backbone)
    # torch keeps what it compiled by the code, which all blocks share, and beyond this limit would no longer compile
    limits = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage]
    limits.recompile_limit = max(limits.recompile_limit, FORMS * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in blocks:
        block.compile(dynamic=True, **options)


def find_innermost_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of which `module` consists, such as those of each stage of a ConvNeXt; [module] without any, as VGG.

    A few small ones within a block, such as squeeze and excitation, do not count: most weights must lie in them.
    """
    blocks = find_blocks(module)
    if 2 * sum(map(count_parameters, blocks)) <= count_parameters(module):
        return [module]
    return [inner for block in blocks for inner in find_innermost_blocks(block)]


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
