"""How much each old pixel counts in each new one where torch resizes: bilinear, with antialiasing.

    weights = make_weights(sides, kept=224, sent=448, num_taps=6)    # of a batch, on a device
    resized = weights.sum_columns(pixels)                            # float32 (B, N, 448) -> (B, N, 224)

Old pixel j and new pixel i of a side that is resized from `length` to `resized` pixels lie
|(2j + 1) resized - (2i + 1) length| apart, in whole numbers. The nearer, the more j counts; it counts nothing from
2 max(length, resized) on. torch rounds weights to 16 bits, and so do we: torch's pixels come out, to the bit, but for
the few weights that lie midway between two numbers of 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

MOST_BITS = 22  # of a weight's power of 2, in torch
LARGEST_WEIGHT = 2.0**15 - 0.5  # weights are multiplied by the largest power of 2 with which they stay below this


class Side(NamedTuple):
    """How one side of an image becomes that of its picture. In pixels."""

    start: int  # where the crop begins in the image
    length: int  # of the crop
    resized: int  # of what the crop is resized to
    first: int  # resized pixel with which the picture begins; below 0, the picture begins with a border
    kept: int  # of the picture
    is_mirrored: bool = False
    offset: int = 0  # where the pixels that are sent begin in the crop

    @property
    def is_ready(self) -> bool:
        """Whether the picture is the crop as it is."""
        return self.length == self.resized == self.kept and self.first == 0 and not self.is_mirrored

    @property
    def reach(self) -> int:
        """The distance from which on an old pixel counts nothing."""
        return 2 * max(self.length, self.resized)

    @property
    def num_taps(self) -> int:
        """The largest number of old pixels that count in a new one."""
        return self.reach // self.resized + 1

    @property
    def unit(self) -> int:
        """The power of 2 by which weights are multiplied before they are rounded."""
        edge = self._replace(first=0, kept=1).find_needed()  # the weights of the first new pixel are the largest
        nearness = [self.reach - abs((2 * old + 1) * self.resized - self.length) for old in edge]
        largest = max(nearness) / sum(nearness)
        return 2 ** sum(largest * 2.0**bits < LARGEST_WEIGHT for bits in range(1, MOST_BITS + 1))

    def find_needed(self) -> range:
        """The pixels of the crop that count in the picture."""
        first, last = max(self.first, 0), min(self.first + self.kept, self.resized) - 1
        begin = ((2 * first + 1) * self.length - self.reach - self.resized) // (2 * self.resized) + 1
        end = ((2 * last + 1) * self.length + self.reach - self.resized) // (2 * self.resized) + 1
        return range(max(begin, 0), min(end, self.length))


class Weights(NamedTuple):
    """The weights of a batch of sides, in whole numbers: (256 high + low) / unit.

    High and low are multiplied apart. They have 8 bits, as pixels have, so that products and their sums are exact even
    where a GPU multiplies in TF32 or bfloat16.
    """

    halves: Tensor  # float32 (B, 2 kept, sent): high of all new pixels, then low
    unit: Tensor  # float32 (B, 1, 1)
    is_inside: Tensor  # bool (B, kept): False in the border

    def sum_rows(self, pixels: Tensor) -> Tensor:
        """The resized side (B, kept, N) of float32 (B, sent, N), in whole numbers from 0 to 255."""
        return self._join(*self.halves.bmm(pixels).chunk(2, dim=1))

    def sum_columns(self, pixels: Tensor) -> Tensor:
        """The resized side (B, N, kept) of float32 (B, N, sent), in whole numbers from 0 to 255."""
        return self._join(*pixels.bmm(self.halves.transpose(1, 2)).chunk(2, dim=2))

    def _join(self, high: Tensor, low: Tensor) -> Tensor:
        summed = torch.add(low, high, alpha=256.0)
        return summed.add_(self.unit / 2).div_(self.unit).floor_().clamp_(0, 255)


def make_weights(sides: Tensor, kept: int, sent: int, num_taps: int) -> Weights:
    """The weights of `sides`, int64 (B, 8): those of Side, and its unit. All pictures have `kept` pixels.

    `sent` old pixels are at hand, of which at most `num_taps` count in a new one.
    """
    _, length, resized, first, _, is_mirrored, offset, unit = sides[:, :, None].unbind(1)
    reach = 2 * torch.maximum(length, resized)
    places = torch.arange(kept, device=sides.device)
    new = torch.where(is_mirrored > 0, kept - 1 - places, places) + first  # (B, kept)
    is_inside = (new >= 0) & (new < resized)

    # of each new pixel: the old ones from the first that counts on
    middle = (2 * new + 1) * length
    begin = (middle - reach - resized).div(2 * resized, rounding_mode="floor") + 1
    old = begin[:, :, None] + torch.arange(num_taps, device=sides.device)  # (B, kept, num_taps)
    distances = ((2 * old + 1) * resized[:, :, None] - middle[:, :, None]).abs()
    exists = (old >= 0) & (old < length[:, :, None]) & is_inside[:, :, None]
    nearness = (reach[:, :, None] - distances).clamp_(min=0) * exists
    shares = nearness.double() / nearness.sum(2, keepdim=True).clamp_(min=1)

    whole = (shares * unit[:, :, None] + 0.5).floor_()
    high = (whole / 256).floor_()
    taps = pad(torch.stack([high, whole - 256 * high], dim=1).float(), (1, 1))  # 0 before and after them
    tap = torch.arange(sent, device=sides.device) + (offset - begin + 1)[:, :, None]  # (B, kept, sent)
    tap = tap.clamp_(0, num_taps + 1)[:, None].expand(-1, 2, -1, -1)
    return Weights(taps.gather(3, tap).flatten(1, 2), unit[:, :, None].float(), is_inside)
