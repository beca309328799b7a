"""The size of the images that a model sees: one kind of value inside, made from a number or a pair at the entrance.

    size = as_size(224)           # Size(height=224, width=224)
    size = as_size((256, 448))    # 256 pixels high and 448 wide: the height comes first, as in (B, 3, H, W)
    str(size)                     # "256x448", in texts and in names of files; a square is "224"
    size.as_plain()               # [256, 448], in files; a square is 224

PIL and OpenCV have the width first. Imports no torch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from limits import ImageSize
from utils import InputError

LARGEST_STEP = 32  # pixels; the usual networks halve an image five times


class Size(NamedTuple):
    """Height and width of an image, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}" if self.is_square else f"{self.height}x{self.width}"

    @property
    def is_square(self) -> bool:
        return self.height == self.width

    def as_plain(self) -> int | list[int]:
        """The size as files have it: a square is a number, as it was before there were others."""
        return self.height if self.is_square else [self.height, self.width]

    def with_short_side(self, side: int) -> Size:
        """The size whose shorter side is `side` pixels; the other one follows in proportion.

        It is rounded to a multiple of the largest number up to 32 that divides `side` and both sides of this size: what
        a network of patches asks of a size holds for the new one, too. Example: of 192 x 336, 128 gives 128 x 224.
        """
        if self.is_square:
            return Size(side, side)
        common = math.gcd(side, self.height, self.width)
        step = max(number for number in range(1, LARGEST_STEP + 1) if common % number == 0)
        long = max(step, round(side * max(self) / min(self) / step) * step)
        return Size(side, long) if self.height < self.width else Size(long, side)

    def scaled(self, factor: float) -> Size:
        """Both sides times `factor`."""
        return Size(round(self.height * factor), round(self.width * factor))


def as_size(value: ImageSize) -> Size:
    """The size of `value`: the side of a square, or (height, width). Raises InputError for anything else."""
    sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, tuple | list) else ()
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(f"an image size is {value!r}: it is the side of a square in pixels, or (height, width)")
    return Size(*sides)
