"""How far below the top of a backbone each of its parameters lies, counted in layers.

count_layers_above(model.backbone)      # {"conv1.weight": 8, ..., "layer4.1.bn2.bias": 0} for a ResNet-18
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from models.backbones import TimmBackbone
from models.recomputation import find_blocks


def count_layers_above(backbone: nn.Module) -> dict[str, int]:
    """{name of a parameter: how many layers lie above its own}; 0 for the top layer.

    A layer is a residual block, a transformer layer or the like. For timm's networks timm says which parameters belong
    together; for others see `_count_blocks`.
    """
    if isinstance(backbone, TimmBackbone) and hasattr(backbone.network, "group_matcher"):
        from timm.models import group_parameters

        matcher = backbone.network.group_matcher(coarse=False)
        groups: Any = group_parameters(backbone.network, matcher, reverse=True)
        depths = {f"network.{name}": depth for name, depth in groups.items()}
    else:
        depths = _count_blocks(backbone)
    top = max(depths.values(), default=0)
    return {name: top - depth for name, depth in depths.items()}


def _count_blocks(backbone: nn.Module) -> dict[str, int]:
    """{name of a parameter: its depth}, by the order of the parameters, which is that of the forward pass.

    A layer begins with each block, or, in a network without blocks such as VGG, with each convolution or linear layer.
    What stands before the first of them has depth 0; what stands between two belongs to the one before.
    """
    starts = find_blocks(backbone) or [layer for layer in backbone.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    numbers = {parameter: number for number, start in enumerate(starts, 1) for parameter in start.parameters()}
    depths: dict[str, int] = {}
    depth = 0
    for name, parameter in backbone.named_parameters():
        depth = numbers.get(parameter, depth)
        depths[name] = depth
    return depths
