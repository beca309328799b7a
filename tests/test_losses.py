"""losses.py against formulas written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import losses


def draw(num_rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, 4, generator=generator) * 3
    return logits, (torch.rand(num_rows, 4, generator=generator) < 0.4).float()


def bce(x: np.ndarray, y: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """-(w y log p + (1 - y) log(1 - p)), with the logarithms of a sigmoid written stably."""
    log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    return -(weight * y * log_p + (1 - y) * log_q)


@pytest.mark.parametrize("pos_weight", [None, [1.0, 2.0, 0.5, 9.0]])
def test_bce_is_its_formula_in_value_and_gradient(pos_weight: list[float] | None) -> None:
    logits, targets = draw()
    weight = None if pos_weight is None else torch.tensor(pos_weight)
    logits.requires_grad_()
    loss = losses.LOSSES["bce_with_logits"](pos_weight=weight)(logits, targets)
    x, y = logits.detach().double().numpy(), targets.double().numpy()
    w = np.ones(4) if pos_weight is None else np.array(pos_weight)
    np.testing.assert_allclose(loss.detach().numpy(), bce(x, y, w), rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    p = 1 / (1 + np.exp(-x))
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), -w * y * (1 - p) + (1 - y) * p, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", ["zeros", "ones", "unknown", "empty"])
def test_every_loss_is_finite_at_the_edges(name: str, dtype: torch.dtype, row: str) -> None:
    logits = torch.tensor([[60.0, -60.0, 0.0, 1.0]] * 3, dtype=dtype)
    targets = {"zeros": torch.zeros(3, 4), "ones": torch.ones(3, 4), "unknown": torch.full((3, 4), torch.nan)}
    target = targets.get(row, torch.zeros(0, 4))
    logits = logits[: len(target)].clone().requires_grad_()
    loss = losses.LOSSES[name]()(logits, target)
    assert loss.shape == target.shape
    assert loss.dtype == torch.float32
    reduced = losses.reduce_loss(loss, target, torch.ones(len(target)))
    reduced.backward()
    assert logits.grad is not None
    assert torch.isfinite(reduced)
    assert torch.isfinite(logits.grad).all()
    if row == "unknown":
        assert reduced == 0
        assert (logits.grad == 0).all()


def test_unknown_entries_leave_the_mean_of_the_known() -> None:
    logits, targets = draw()
    targets[1, 2] = targets[3, 0] = torch.nan
    known = ~targets.isnan()
    loss = losses.LOSSES["bce_with_logits"]()(logits, targets)
    assert (loss[~known] == 0).all()
    expected = bce(logits[known].double().numpy(), targets[known].double().numpy()).mean()
    assert losses.reduce_loss(loss, targets, torch.ones(6)).item() == pytest.approx(expected, rel=1e-5)


def test_image_weights_weigh_the_mean() -> None:
    loss = torch.tensor([[1.0, 3.0], [10.0, 20.0]])
    weights = torch.tensor([3.0, 1.0])
    assert losses.reduce_loss(loss, torch.zeros(2, 2), weights) == pytest.approx((3 * 1 + 3 * 3 + 10 + 20) / 8)


def test_pos_weight_counts_negatives_over_positives() -> None:
    targets = np.array([[1, 0, -1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    assert losses.count_pos_weight(targets).tolist() == [3.0, 1.0, 2.0, 1.0]
    assert losses.count_pos_weight(targets, cap=2.5).tolist() == [2.5, 1.0, 2.0, 1.0]
    assert losses.count_pos_weight(np.where(targets < 0, np.nan, targets)).tolist() == [3.0, 1.0, 2.0, 1.0]
