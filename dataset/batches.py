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
    """What a model is trained on: images, their labels, and how much each image counts.

    `images` are uint8 (B, 3, H, W), or float in the same range of 0-255 once they were mixed; `targets` float (B, C),
    NaN where unknown; `weights` float (B,). A loader may give, in place of images, what `to` makes them of on the
    device: dataset/device_pictures.py.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; the copy overlaps computing when the tensors are pinned."""
        overlaps = device.type == "cuda"  # copies to other devices may be read before they are done
        return Batch(*(tensor.to(device, non_blocking=overlaps) for tensor in self))


def as_float_targets(targets: NDArray[np.int8] | NDArray[np.float32]) -> Tensor:
    """`targets` (B, C) as float32: 1, 0, fractions, and NaN for what is unknown (-1 or NaN)."""
    return torch.from_numpy(np.where(targets < 0, np.float32("nan"), targets.astype(np.float32)))
