"""Low-rank adaptation (LoRA): a pretrained backbone stands still, and small matrices beside its weights train.

    adapt(model.backbone, rank=8)       # from now on the backbone's layers use W + B A
    weights = list_trained(model.backbone)      # the A and B of all layers; of a plain backbone, all its parameters
    plain = merge(model)                # a copy with W + B A in the place of W: the same keys as before `adapt`

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3. Their factor alpha / r is 1 here: with
Adam it does what the learning rate does (their section 4.1). Norms and biases stand still with the rest, as there.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils import InputError

Network = TypeVar("Network", bound=nn.Module)


class LowRank(nn.Module):
    """Maps a weight W (D, ...), taken as a matrix of D rows, to W + B A, of at most the given rank. B A is 0 at first.

    A has the start of torch's own linear layers, as in the authors' code.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        num_outputs, num_inputs = weight.flatten(1).shape
        rank = min(rank, num_outputs, num_inputs)
        self.a = nn.Parameter(weight.new_empty(rank, num_inputs))
        self.b = nn.Parameter(weight.new_zeros(num_outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # as precise as when it is merged
            return weight + (self.b @ self.a).view_as(weight)


def adapt(backbone: nn.Module, rank: int) -> None:
    """Let the matrices of `backbone` be W + B A, and only A and B train. Raises InputError if there is no matrix.

    Matrices are the weights of linear layers, of attention, and of convolutions, which are linear maps of patches; but
    not those of convolutions in groups, as depthwise ones: theirs are a few numbers a channel.
    """
    matrices = [(layer, name) for layer in backbone.modules() for name in _list_matrices(layer)]
    if not matrices:
        raise InputError("LORA_RANK finds no linear layer and no convolution in the backbone: set it to 0")
    backbone.requires_grad_(False)
    for layer, name in matrices:
        parametrize.register_parametrization(layer, name, LowRank(getattr(layer, name), rank))


def _list_matrices(layer: nn.Module) -> list[str]:
    """The names of those of the layer's own parameters that get a low-rank part."""
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        return ["weight"]
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
        return ["in_proj_weight"]
    return []


def list_trained(backbone: nn.Module) -> list[nn.Parameter]:
    """The parameters of `backbone` that train when it is not frozen: those of its low-rank parts, if it has any."""
    parts = [module for module in backbone.modules() if isinstance(module, LowRank)]
    return [parameter for module in parts or [backbone] for parameter in module.parameters()]


def merge(network: Network) -> Network:
    """A copy of `network` without low-rank parts, that computes the same; `network` itself if it has none."""
    if not any(isinstance(module, LowRank) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for layer in list(network.modules()):
        if not parametrize.is_parametrized(layer):
            continue
        matrices = {name: nn.Parameter(getattr(layer, name).detach()) for name in _list_matrices(layer)}
        # not parametrize.remove_parametrizations: it changes the layer's class, which the copy shares with the original
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        layer._parameters = matrices | layer._parameters  # in the order of a plain layer
    return network
