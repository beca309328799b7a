"""Draws, in a loading process, what a transform would do to an image: the device does it to a whole batch later.

    draw = make_planner(transform)                    # of a transform of dataset/augmentations.py
    plan = draw(height, width, seed)                  # the same random numbers as apply_seeded(transform, image, seed)
    part = take_part(image, plan)                     # the pixels that are sent, and the plan of what is left to do
    images = device_pictures.send([part, ...])        # stands where Batch.images stands
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numpy.typing import NDArray
import numpy as np
from torch import Tensor

from dataset.batches import Transform


class Plan(NamedTuple):
    """What becomes of one image. It holds plain numbers and texts."""


class Part(NamedTuple):
    """What is sent of one image: its pixels uint8 (h, w, 3), and the plan of what is left to do to them."""

    pixels: Tensor
    plan: Plan


Planner = Callable[[int, int, int], Plan]  # (height, width, seed) -> Plan


def make_planner(transform: Transform) -> Planner:
    """A function (height, width, seed) -> Plan that draws what `transform` does to an image of this size.

    Raises ValueError for a transform that is none of dataset/augmentations.py.
    """
    raise NotImplementedError


def take_part(image: NDArray[np.uint8] | Tensor, plan: Plan) -> Part:
    """Take what `plan` needs out of `image`, uint8 (H, W, 3), on the device where it is; a large crop is resized."""
    raise NotImplementedError
