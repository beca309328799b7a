"""From a backbone's features to one logit a class: `HEADS[name](num_features, num_classes)`.

A head takes a feature map (B, D, h, w) or tokens (B, T, D) and gives logits (B, C). Its `pools` says whether all it
uses of them is `pool(features)`: then (B, D, 1, 1) of these means serve as well.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def pool(features: Tensor) -> Tensor:
    """Mean over all positions: (B, D, h, w) or (B, T, D) -> (B, D)."""
    return features.mean(dim=(2, 3)) if features.dim() == 4 else features.mean(dim=1)


class LinearBN(nn.Module):
    """Mean over positions, then Linear(D -> C) and BatchNorm1d(C)."""

    pools = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)
        self.norm = nn.BatchNorm1d(num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.linear(pool(features)))


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear_bn": LinearBN}
