"""How much each pixel of a side counts in each pixel of the resized side, as torch and PIL resize images.

    weights = make_weights(sides, kept=224, sent=448, num_taps=7, kernel="torch")    # of a batch, on a device

Old pixel j and new pixel i of a side that is resized from `length` to `resized` lie
|(2j + 1) resized - (2i + 1) length| apart, in whole numbers. A kernel says how much j counts in i at this distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MOST_BITS = 22  # of a weight's power of 2, in torch
LARGEST_WEIGHT = 2.0**15 - 0.5  # torch rounds weights to 16 bits, with the largest power of 2 by which they fit
PIL_UNIT = 2**22  # by which PIL multiplies weights before it rounds them


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

    def find_needed(self, kernel: str) -> range:
        """The pixels of the crop that count in the picture."""
        first, last = max(self.first, 0), min(self.first + self.kept, self.resized) - 1
        reach = KERNELS[kernel].find_reach(self.length, self.resized)
        begin = ((2 * first + 1) * self.length - reach - self.resized) // (2 * self.resized) + 1
        end = ((2 * last + 1) * self.length + reach - self.resized) // (2 * self.resized) + 1
        return range(max(begin, 0), min(end, self.length))

    def count_taps(self, kernel: str) -> int:
        """The largest number of old pixels that count in a new one."""
        return KERNELS[kernel].find_reach(self.length, self.resized) // self.resized + 1

    def find_unit(self, kernel: str) -> int:
        """The power of 2 by which weights are multiplied before they are rounded."""
        if kernel != "torch":
            return PIL_UNIT
        reach = KERNELS[kernel].find_reach(self.length, self.resized)
        edge = self._replace(first=0, kept=1).find_needed(kernel)  # the weights of the first new pixel are the largest
        nearness = [reach - abs((2 * old + 1) * self.resized - self.length) for old in edge]
        largest = max(nearness) / sum(nearness)
        return 2 ** sum(largest * 2.0**bits < LARGEST_WEIGHT for bits in range(1, MOST_BITS + 1))


class Kernel(NamedTuple):
    """How much an old pixel counts in a new one."""

    weigh: Callable[[Tensor, Tensor], Tensor]  # (signed distances, the distance of one pixel) -> weights
    support: float = 1.0  # from how many pixels on it counts nothing, of the side that has fewer
    num_bytes: int = 3  # of a weight

    def find_reach(self, length: int, resized: int) -> int:
        """The distance from which on an old pixel counts nothing."""
        return round(self.support * 2 * max(length, resized))


class Weights(NamedTuple):
    """Weights of a batch of sides, as whole numbers of which `unit` is 1.

    They are kept as bytes, which are multiplied apart: like pixels, these have 8 bits. Products and their sums are
    exact even where a GPU multiplies in TF32 or bfloat16.
    """

    bytes: Tensor  # float32 (B, bytes * kept, sent): the highest bytes of all new pixels first
    unit: Tensor  # float32 (B, 1, 1)
    is_inside: Tensor  # bool (B, kept): False in the border

    def sum_rows(self, pixels: Tensor) -> Tensor:
        """The resized side (B, kept, N) of float32 (B, sent, N), in whole numbers from 0 to 255."""
        return self._join(self.bytes.bmm(pixels), dim=1)

    def sum_columns(self, pixels: Tensor) -> Tensor:
        """The resized side (B, N, kept) of float32 (B, N, sent), in whole numbers from 0 to 255."""
        return self._join(pixels.bmm(self.bytes.transpose(1, 2)), dim=2)

    def _join(self, sums: Tensor, dim: int) -> Tensor:
        joined, *lower = sums.split(self.is_inside.shape[1], dim)
        for byte in lower:
            joined = torch.add(byte, joined, alpha=256.0)
        return joined.add_(self.unit / 2).div_(self.unit).floor_().clamp_(0, 255)


def make_weights(sides: Tensor, kept: int, sent: int, num_taps: int, kernel: str) -> Weights:
    """The weights of `sides`, int64 (B, 8): those of Side, and its unit. All pictures have `kept` pixels.

    `sent` old pixels are at hand, of which at most `num_taps` count in a new one.
    """
    _, length, resized, first, _, is_mirrored, offset, unit = sides[:, :, None].unbind(1)
    weigh, support, num_bytes = KERNELS[kernel]
    pixel = 2 * torch.maximum(length, resized)
    places = torch.arange(kept, device=sides.device)
    new = torch.where(is_mirrored > 0, kept - 1 - places, places) + first  # (B, kept)
    is_inside = (new >= 0) & (new < resized)

    # of each new pixel: the old ones from the first that counts on
    reach = (pixel * support).long()
    middle = (2 * new + 1) * length
    begin = (middle - reach - resized).div(2 * resized, rounding_mode="floor") + 1
    old = begin[:, :, None] + torch.arange(num_taps, device=sides.device)  # (B, kept, num_taps)
    distances = (2 * old + 1) * resized[:, :, None] - middle[:, :, None]
    exists = (old >= 0) & (old < length[:, :, None]) & is_inside[:, :, None]
    nearness = weigh(distances.double(), pixel[:, :, None].double()) * exists
    shares = nearness / nearness.sum(2).masked_fill(~is_inside, 1.0)[:, :, None]

    unit = unit[:, :, None].double()
    rest, found = (shares * unit + 0.5).floor_(), []
    for power in reversed(range(num_bytes)):
        found.append((rest / 256**power).floor_())
        rest = rest - found[-1] * 256**power
    taps = torch.nn.functional.pad(torch.stack(found, dim=1).float(), (1, 1))  # 0 before and after them
    taps_of = torch.arange(sent, device=sides.device) + (offset - begin + 1)[:, :, None]  # (B, kept, sent)
    taps_of = taps_of.clamp_(0, num_taps + 1)[:, None].expand(-1, num_bytes, -1, -1)
    return Weights(taps.gather(3, taps_of).flatten(1, 2), unit.float(), is_inside)


# ---- kernels, by t = distance / pixel ----


def triangle(distances: Tensor, pixel: Tensor) -> Tensor:
    """1 - |t|, times `pixel`: in whole numbers."""
    return (pixel - distances.abs()).clamp_(min=0)


def box(distances: Tensor, pixel: Tensor) -> Tensor:
    """1 for -0.5 < t <= 0.5."""
    return ((distances > -pixel / 2) & (distances <= pixel / 2)).double()


def hamming(distances: Tensor, pixel: Tensor) -> Tensor:
    """sinc(t) in a window of Hamming."""
    t = (distances / pixel).abs()
    return torch.sinc(t) * (0.54 + 0.46 * torch.cos(math.pi * t)) * (t < 1)


def bicubic(distances: Tensor, pixel: Tensor) -> Tensor:
    """Keys 1981, with a = -0.5."""
    t = (distances / pixel).abs()
    near, far = (1.5 * t - 2.5) * t**2 + 1, ((t - 5) * t + 8) * t * -0.5 + 2
    return near * (t < 1) + far * ((t >= 1) & (t < 2))


def lanczos(distances: Tensor, pixel: Tensor) -> Tensor:
    """sinc(t) sinc(t / 3)."""
    t = (distances / pixel).abs()
    return torch.sinc(t) * torch.sinc(t / 3) * (t < 3)


KERNELS = {
    "torch": Kernel(triangle, num_bytes=2),  # bilinear with antialiasing, as torch resizes tensors
    "bilinear": Kernel(triangle),  # this one and those below: as PIL resizes images
    "box": Kernel(box, 0.5),
    "nearest": Kernel(box, 0.5),  # the same for an image that was resized already: see take_part
    "hamming": Kernel(hamming),
    "bicubic": Kernel(bicubic, 2.0),
    "lanczos": Kernel(lanczos, 3.0),
}
