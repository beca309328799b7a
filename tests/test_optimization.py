"""optimization.py: groups, and each schedule against torch's own or its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import optimization
from models_factory import MultiLabelModel


def make_model() -> MultiLabelModel:
    return MultiLabelModel(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (0.5,) * 3, (0.5,) * 3)


def run_schedule(name: str, **options: float | tuple[int, ...]) -> list[float]:
    """The backbone's rate at each of 6 x 5 steps."""
    optimizer = optimization.make_optimizer("sgd", make_model(), 0.5, 1.0)
    schedule = optimization.make_schedule(name, optimizer, steps_per_epoch=5, num_epochs=6, **options)
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == pytest.approx(2 * rates[-1])
        optimizer.step()
        schedule.step()
    return rates


def test_multistep_is_torchs_counted_in_epochs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.3)
    expected = []
    for _ in range(6):
        expected += [optimizer.param_groups[0]["lr"]] * 5
        optimizer.step()
        reference.step()
    assert run_schedule("multistep", milestones=(2, 4), decay_factor=0.3) == pytest.approx(expected)


def test_cosine_rises_in_a_line_and_falls_to_zero() -> None:
    rates = run_schedule("cosine", warmup_epochs=1.0)
    assert rates[:6] == pytest.approx([0.5 * (step + 1) / 6 for step in range(5)] + [0.5])
    assert rates[5:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 25)) for step in range(25)])


@pytest.mark.parametrize("name", optimization.OPTIMIZERS)
def test_every_optimizer_moves_both_groups_and_leaves_a_frozen_backbone(name: str) -> None:
    model = make_model()
    optimizer = optimization.make_optimizer(name, model, 0.1, 0.1, weight_decay=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head"]
    model.freeze_backbone(True)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randint(0, 255, (4, 3, 2, 2), dtype=torch.uint8)).square().sum().backward()
        optimizer.step()

    step()
    after = model.state_dict()
    assert torch.equal(after["backbone.weight"], before["backbone.weight"])
    assert not torch.equal(after["head.1.weight"], before["head.1.weight"])
    model.freeze_backbone(False)
    step()
    assert not torch.equal(model.state_dict()["backbone.weight"], before["backbone.weight"])
