"""models/batchnorm_sync.py on one process's images: torch's own formulas; tests of several processes:
test_distributed.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

import distributed
from models import batchnorm_sync

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.BatchNorm1d(3),
    "2d": lambda: nn.BatchNorm2d(3),
    "no weight": lambda: nn.BatchNorm2d(3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "timm's, with an activation": lambda: BatchNormAct2d(3, act_layer=nn.SiLU),
}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two processes, the other without images."""
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "add_up", lambda tensor: tensor)


def train(layer: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Outputs, input gradients, and in the end the layer's gradients and state."""
    torch.manual_seed(1)
    results = []
    for batch in batches:
        batch = batch.clone().requires_grad_()
        output = layer(batch)
        (output * torch.randn_like(output)).sum().backward()
        assert batch.grad is not None
        results += [output.detach(), batch.grad]
    return results + [p.grad for p in layer.parameters() if p.grad is not None] + list(layer.state_dict().values())


@pytest.mark.parametrize("name", LAYERS)
def test_values_gradients_and_statistics_are_torchs(name: str, pair: None) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double().train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    shape = (5, 3) if name == "1d" else (5, 3, 4, 2)
    batches = [3 * torch.randn(shape, dtype=torch.float64) + 7 for _ in range(3)]
    converted = batchnorm_sync.convert(copy.deepcopy(layer), torch.device("cpu"))
    assert list(converted.state_dict()) == list(layer.state_dict())
    for found, expected in zip(train(converted, batches), train(layer, batches), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(converted.eval()(batches[0]), layer.eval()(batches[0]), atol=1e-10, rtol=1e-10)


def test_half_precision_is_computed_in_float32(pair: None) -> None:
    torch.manual_seed(0)
    batch = (100 + torch.randn(64, 3, 8, 8)).bfloat16()
    layer = batchnorm_sync.convert(nn.BatchNorm2d(3), torch.device("cpu"))
    output = layer(batch)
    assert output.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(3).double()(batch.double())
    torch.testing.assert_close(output.double(), expected, rtol=2.0**-8, atol=1e-4)  # rounded once, to bfloat16


def test_evaluation_and_one_process_are_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.randn(4, 3, 2, 2)
    layer, original = batchnorm_sync.convert(nn.BatchNorm2d(3), torch.device("cpu")), nn.BatchNorm2d(3)
    assert torch.equal(layer(batch), original(batch))
    monkeypatch.setattr(distributed, "count", lambda: 2)
    assert torch.equal(layer.eval()(batch), original.eval()(batch)), "nothing is exchanged"
