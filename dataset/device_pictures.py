"""Makes the pictures of a batch at once, on a GPU, from what loading processes sent: pixels and plans (dataset/plans.py).

    images = send([take_part(image, plan), ...])    # in a loading process
    pictures = images.to(device)                    # uint8 (B, 3, h, w)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dataset.plans import Part


@dataclass
class SentImages:
    """The images of a batch before they become pictures. It stands where `Batch.images` stands."""

    pixels: Tensor  # uint8 (B, H, W, 3), padded to the largest

    def __len__(self) -> int:
        return len(self.pixels)

    def pin_memory(self) -> SentImages:
        """The same in pinned memory: the loader calls it."""
        raise NotImplementedError

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tensor:
        """The pictures, uint8 (B, 3, h, w) on `device`."""
        return make_pictures(self, device)


def send(parts: Sequence[Part]) -> SentImages:
    """Put the parts of a batch's images together. All pictures must get the same size: ValueError."""
    raise NotImplementedError


def make_pictures(images: SentImages, device: torch.device | str) -> Tensor:
    """The pictures, uint8 (B, 3, h, w) on `device`."""
    raise NotImplementedError
