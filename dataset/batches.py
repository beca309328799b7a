"""What a batch holds, and what a transform is: images uint8 (B, 3, H, W) RGB, targets (B, C), weights (B,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


class Batch(NamedTuple):
    """What a model is trained on: the images, their labels and how much each image counts."""

    images: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; the copy overlaps computing when the tensors are pinned."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def as_float_targets(targets: NDArray[np.int8] | NDArray[np.float32]) -> Tensor:
    """(B, C) float32 of 1, 0, fractions and, for unknown (-1 or NaN), NaN."""
    return torch.from_numpy(np.where(targets < 0, np.float32("nan"), targets.astype(np.float32)))
