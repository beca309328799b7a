"""Losses: `LOSSES[name](**options)` is a module, (logits (N, C), targets (N, C)) -> (N, C), unreduced.

A target is 1 present, 0 absent or NaN unknown; an unknown entry gives 0 and no gradient. Half-precision
logits are computed in float32. The training loop weighs and reduces, in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional


class BCEWithLogits(nn.Module):
    """Binary cross-entropy; `pos_weight` (C,) multiplies the loss of each class's positives."""

    pos_weight: Tensor | None

    def __init__(self, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        targets = targets.nan_to_num(0.0).float()
        loss = functional.binary_cross_entropy_with_logits(
            logits.float(), targets, pos_weight=self.pos_weight, reduction="none"
        )
        return torch.where(known, loss, 0.0)


def count_pos_weight(targets: ArrayLike, cap: float | None = None) -> Tensor:
    """Negatives / positives of each class, (C,) float32, from an (N, C) 0 / 1 / -1 matrix; -1 and NaN left out.

    No weight exceeds `cap` (None or 0: no cap). A class without positives, or without negatives, gets 1.
    """
    targets = np.asarray(targets)
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    both = (positives > 0) & (negatives > 0)  # a weight of 0 would keep an ever-present class from being learned
    weight = np.where(both, negatives / np.maximum(positives, 1), 1.0)
    return torch.tensor(np.minimum(weight, cap) if cap else weight, dtype=torch.float32)


def reduce_loss(loss: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over the known entries of (N, C), each image weighed by `weights` (N,); 0 where none is known."""
    entry_weights = weights[:, None] * (~targets.isnan())
    return (loss * weights[:, None]).sum() / entry_weights.sum().clamp_min(torch.finfo(loss.dtype).tiny)


LOSSES: dict[str, Callable[..., nn.Module]] = {"bce_with_logits": BCEWithLogits}


def make_loss(name: str, **options: Any) -> nn.Module:
    """The loss called `name` in LOSSES."""
    return LOSSES[name](**options)
