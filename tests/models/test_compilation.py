"""models/compilation.py: blocks give what they gave, keep their names, and are compiled once, whatever the sizes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import models_factory
from models import compilation
from trainer.step import Statistics


class Block(nn.Module):
    """A residual block as those of a ResNet, small."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


@pytest.fixture(autouse=True)
def dynamo() -> Iterator[None]:
    """Nothing is compiled yet, and what is compiled here is forgotten."""
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


def make_network() -> nn.Sequential:
    """Two kinds of blocks, of which there are two and three."""
    torch.manual_seed(0)
    stages = OrderedDict(
        stem=nn.Conv2d(3, 4, 3),
        narrow=nn.Sequential(Block(4), Block(4)),
        between=nn.Conv2d(4, 6, 2, stride=2),
        wide=nn.Sequential(Block(6), Block(6), Block(6)),
    )
    return nn.Sequential(stages).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def run(network: nn.Module, num_images: int, side: int, trains: bool = True) -> list[Tensor]:
    """The output and, in training, the gradients of the weights, which are cleared."""
    network.train(trains)
    images = torch.rand(num_images, 3, side, side, generator=torch.Generator().manual_seed(num_images))
    if not trains:
        with torch.inference_mode():
            return [network(images)]
    output = network(images)
    output.square().mean().backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    network.zero_grad(set_to_none=True)
    return [output.detach(), *gradients]


def count_compiled() -> int:
    return counters["stats"]["unique_graphs"]


def test_no_other_size_compiles_again() -> None:
    """Growing images, a last smaller batch, and validation in between, with statistics kept as a training step does.

    All batches have 16 images or more: from there on torch takes another kernel for a convolution on a CPU.
    """
    network = make_network()
    Statistics(network.buffers())
    compilation.compile_blocks(network, backend="aot_eager")
    run(network, 24, 16)
    assert count_compiled() == 2, "blocks that are alike share their code"
    run(network, 24, 16, trains=False)
    assert count_compiled() == 4, "evaluation is compiled once more"
    for num_images, side in ((17, 16), (24, 24), (24, 33), (19, 16)):
        run(network, num_images, side)
        run(network, 2 * num_images, side, trains=False)
    assert count_compiled() == 4
    assert not counters["graph_break"]


def test_blocks_give_what_they_gave() -> None:
    network, compiled = make_network(), make_network()
    names = [*compiled.state_dict()]
    compilation.compile_blocks(compiled, backend="aot_eager")
    assert [*compiled.state_dict()] == names
    for num_images, side, trains in ((8, 16, True), (5, 24, True), (4, 16, False)):
        expected, found = run(network, num_images, side, trains), run(compiled, num_images, side, trains)
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)
    assert count_compiled() > 0
    before = count_compiled()
    run(copy.deepcopy(compiled), 7, 40)
    assert count_compiled() == before, "a copy, such as a moving average, is not compiled"


def test_more_kinds_of_blocks_than_torch_compiles_by_itself() -> None:
    """Beyond its limit of 8 it would go on without compiling, with a warning."""
    kinds = range(1, 24, 2)
    network = nn.Sequential(nn.Sequential(*(Block(4, kernel) for kernel in kinds)))
    compilation.compile_blocks(network, backend="eager")
    for _ in range(2):
        network(torch.rand(2, 4, 8, 8))
    assert count_compiled() == len(kinds) == 12


@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [
        ("resnet18", "BasicBlock", 8),
        ("efficientnet_b0", "MBConv", 16),  # not the squeeze and excitation within
        ("timm/convnext_atto", "ConvNeXtBlock", 12),  # not the four stages
        ("timm/vit_tiny_patch16_224", "Block", 12),
        ("vgg11", "Sequential", 1),
    ],
)
def test_which_parts_are_compiled(name: str, kind: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append((module, options)))
    with torch.device("meta"):
        backbone = models_factory.make_model(name, 3, "linear", image_size=32).backbone
    compilation.compile_blocks(backbone)
    assert [type(module).__name__ for module, _ in compiled] == [kind] * number
    assert all(options == {"dynamic": True} for _, options in compiled)
