"""models/depths.py: how far below the top a layer lies, against hand-made lists and timm's own rates."""

from __future__ import annotations

import re

import pytest
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from models import backbones, low_rank
from models.depths import count_layers_above

# name of a parameter -> how many layers lie above it
EXPECTED = {
    "resnet18": {
        "conv1.weight": 8, "bn1.bias": 8, "layer1.0.conv1.weight": 7, "layer1.1.bn2.weight": 6,
        "layer2.0.downsample.0.weight": 5, "layer4.0.conv2.weight": 1, "layer4.1.bn2.bias": 0,
    },
    "vgg11_bn": {"features.0.weight": 7, "features.1.bias": 7, "features.4.weight": 6, "features.26.weight": 0},
    "vit_b_32": {
        "network.class_token": 12, "network.conv_proj.weight": 12, "network.encoder.pos_embedding": 12,
        "network.encoder.layers.encoder_layer_0.ln_1.weight": 11,
        "network.encoder.layers.encoder_layer_11.mlp.3.bias": 0, "network.encoder.ln.weight": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_torchvisions_layers_follow_each_other(name: str) -> None:
    with torch.device("meta"):
        network = backbones.make_backbone(name, 64, gives_map=True).module
    found = count_layers_above(network)
    assert {key: found[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert found.keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "timm/test_vit"])
def test_low_rank_parts_lie_as_deep_as_their_weights(name: str) -> None:
    network = backbones.make_backbone(name, 64, gives_map=True).module
    before = count_layers_above(network)
    low_rank.adapt(network, 2)
    for key, number in count_layers_above(network).items():
        plain = re.sub(r"parametrizations\.(\w+)\..*", r"\1", key)
        assert number == before[plain], key


def test_a_network_without_blocks_has_a_layer_for_each_convolution_also_with_low_rank_parts() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    plain = {
        "0.weight": 2,
        "0.bias": 2,
        "1.weight": 2,
        "1.bias": 2,
        "3.weight": 1,
        "3.bias": 1,
        "4.weight": 0,
        "4.bias": 0,
    }
    assert count_layers_above(network) == plain
    low_rank.adapt(network, 2)
    found = {key: number for key, number in count_layers_above(network).items() if key.endswith((".a", ".b"))}
    ends = ("parametrizations.weight.0.a", "parametrizations.weight.0.b")
    assert found == {f"{place}.{end}": number for place, number in ((0, 2), (3, 1), (4, 0)) for end in ends}


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_efficientnet", "timm/test_convnext"])
def test_timms_layers_are_those_of_its_own_layer_decay(name: str) -> None:
    network = backbones.make_backbone(name, 64, gives_map=True).module
    layers_above = count_layers_above(network)
    groups = param_groups_layer_decay(network.network, layer_decay=0.5)  # pyright: ignore[reportArgumentType]
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    expected = {key: scales[id(parameter)] for key, parameter in network.named_parameters()}
    assert {key: 0.5**number for key, number in layers_above.items()} == expected
    assert len({*expected.values()}) > 3


def test_a_network_without_a_layer_has_no_depth() -> None:
    assert count_layers_above(nn.BatchNorm2d(3)) == {"weight": 0, "bias": 0}
    assert count_layers_above(nn.Flatten()) == {}
