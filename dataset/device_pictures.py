"""Makes the pictures of a batch at once, on a GPU, from the pixels and plans (dataset/plans.py) that processes sent.

    images = send([take_part(image, plan), ...])    # in a loading process
    pictures = images.to(device)                    # uint8 (B, 3, h, w)

A picture is that which the transform makes on a CPU, but for the rounding where it is resized: by at most 1 of 255. All
that decides comes from the plans: the device is never asked for a value, which would make the CPU wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import groupby, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional._color import _hsv_to_rgb, _rgb_to_grayscale_image, _rgb_to_hsv

from dataset.augmentations import GREY
from dataset.image_sizes import Size
from dataset.plans import BLACK, Operation, Part
from dataset.resize_weights import make_weights

CHUNK_BYTES = 256e6  # that are worked on at a time, so that a large batch takes little memory beside itself
FLOATS_OF_OPERATION = 10  # for each number of a picture: that of `hue`, which has the most
NUM_VALUES = 6  # of an operation at most


class Group(NamedTuple):
    """Neighbouring pictures of a sorted batch that are changed alike."""

    name: str  # a key of OPERATIONS; "" where nothing is changed
    start: int
    end: int


@dataclass(frozen=True)
class SentImages:
    """The images of a batch before they become pictures. It stands where `Batch.images` stands.

    Operations come in rounds: in each, the pictures are sorted by operation, and every one is changed once at most.
    """

    pixels: Tensor  # uint8 (B, H, W, 3): what was taken out of the images, padded to the largest
    sides: Tensor  # int64 (B, 2, 8): rows and columns as make_weights takes them
    order: Tensor  # int64 (rounds, 2, B): how a round sorts the pictures, and how it sorts them back
    values: Tensor  # float32 (rounds, B, NUM_VALUES): the numbers of the operations, sorted in the same way
    rounds: list[list[Group]]
    size: Size  # of all pictures
    num_taps: tuple[int, int]  # of rows and columns
    fill: tuple[int, ...]
    is_ready: bool  # whether the pixels are the resized pictures

    def __len__(self) -> int:
        return len(self.pixels)

    def _change_tensors(self, change: Callable[[Tensor], Tensor]) -> SentImages:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)})

    def pin_memory(self) -> SentImages:
        """The same in pinned memory, from which copies to a GPU overlap computing; the loader calls it."""
        return self._change_tensors(Tensor.pin_memory)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tensor:
        """The pictures, uint8 (B, 3, h, w) on `device`."""
        return make_pictures(self._change_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking)))


def send(parts: Sequence[Part]) -> SentImages:
    """Put together what is sent of a batch's images. Raises ValueError unless their pictures get the same size."""
    plans = [part.plan for part in parts]
    alike = {(plan.size, plan.fill) for plan in plans}
    if len(alike) != 1:
        raise ValueError(f"the pictures of a batch differ in size or in the colour of borders: {sorted(alike)}")
    ((size, fill),) = alike
    heights, widths = zip(*(part.pixels.shape[:2] for part in parts), strict=True)
    pixels = torch.zeros(len(parts), max(heights), max(widths), 3, dtype=torch.uint8, device=parts[0].pixels.device)
    for room, part in zip(pixels, parts, strict=True):
        room[: len(part.pixels), : part.pixels.shape[1]] = part.pixels
    sides = [[[*side, side.unit] for side in (plan.rows, plan.columns)] for plan in plans]
    rounds, order, values = _sort_operations([plan.operations for plan in plans])
    return SentImages(
        pixels=pixels,
        sides=torch.tensor(sides),
        order=order,
        values=values,
        rounds=rounds,
        size=size,
        num_taps=(max(plan.rows.num_taps for plan in plans), max(plan.columns.num_taps for plan in plans)),
        fill=fill,
        is_ready=all(plan.rows.is_ready and plan.columns.is_ready for plan in plans),
    )


def _sort_operations(operations: Sequence[Sequence[Operation]]) -> tuple[list[list[Group]], Tensor, Tensor]:
    """`rounds`, `order` and `values` of SentImages, of the operations of each picture."""
    rounds: list[list[Group]] = []
    order, values = [], []
    for operations_of_round in zip_longest(*operations, fillvalue=Operation("")):
        rows = sorted(range(len(operations)), key=lambda row, found=operations_of_round: found[row].name)
        ordered = [operations_of_round[row] for row in rows]
        groups, end = [], 0
        for name, group in groupby(ordered, key=lambda operation: operation.name):
            start, end = end, end + len(list(group))
            groups.append(Group(name, start, end))
        rounds.append(groups)
        order.append([rows, np.argsort(rows).tolist()])
        values.append([operation.values + (0.0,) * (NUM_VALUES - len(operation.values)) for operation in ordered])
    shape = (len(rounds), len(operations))
    return (
        rounds,
        torch.tensor(order, dtype=torch.int64).reshape(shape[0], 2, shape[1]),
        torch.tensor(values, dtype=torch.float32).reshape(*shape, NUM_VALUES),
    )


def make_pictures(images: SentImages) -> Tensor:
    """The pictures, uint8 (B, 3, h, w), on the device where the images are."""
    with torch.autocast(images.pixels.device.type, enabled=False):  # which would round to 16 bits
        pictures = images.pixels.permute(0, 3, 1, 2).contiguous() if images.is_ready else _resize(images)
        for groups, (sort, sort_back), values in zip(images.rounds, images.order, images.values, strict=True):
            pictures = pictures.index_select(0, sort)
            changed = []
            for name, start, end in groups:
                for rows in _cut(start, end, FLOATS_OF_OPERATION * pictures[0].numel()):
                    changed.append(OPERATIONS[name](pictures[rows], values[rows]))
            pictures = torch.cat(changed).index_select(0, sort_back)
    return pictures


def _cut(start: int, end: int, num_floats: int) -> list[slice]:
    """Cut a batch's rows into ranges of at most CHUNK_BYTES, where each row takes `num_floats` values of float32."""
    at_once = max(1, int(CHUNK_BYTES // (4 * num_floats)))
    return [slice(row, min(row + at_once, end)) for row in range(start, end, at_once)]


# ---- resizing ----


def _resize(images: SentImages) -> Tensor:
    """The resized pictures, uint8 (B, 3, h, w)."""
    height, width = images.size
    old_height, old_width = images.pixels.shape[1:3]
    # pixels; two products, their sum and what is left of it; two halves of the weights, whose places have 64 bits
    num_floats = 3 * old_height * old_width + 12 * width * (old_height + height)
    num_floats += 5 * (old_height * height + old_width * width)
    return torch.cat([_resize_rows(images, rows) for rows in _cut(0, len(images), num_floats)])


def _resize_rows(images: SentImages, chosen: slice) -> Tensor:
    """`_resize` of some rows of the batch. First widths, then heights, and whole numbers between them, as on a CPU."""
    (height, width), sides = images.size, images.sides[chosen]
    pixels = images.pixels[chosen]
    number, old_height, old_width, _ = pixels.shape
    columns = make_weights(sides[:, 1], width, old_width, images.num_taps[1])
    rows = make_weights(sides[:, 0], height, old_height, images.num_taps[0])
    lines = pixels.permute(0, 1, 3, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (B, H, 3, W)
    lines = columns.sum_columns(lines.flatten(1, 2)).reshape(number, old_height, 3 * width)
    pictures = rows.sum_rows(lines).reshape(number, height, 3, width).permute(0, 2, 1, 3)
    if images.fill != BLACK:
        is_inside = rows.is_inside[:, None, :, None] & columns.is_inside[:, None, None, :]
        fill = torch.tensor(images.fill, dtype=torch.float32).to(pixels.device, non_blocking=True)
        pictures = torch.where(is_inside, pictures, fill[:, None, None])
    return pictures.to(torch.uint8, memory_format=torch.contiguous_format)


# ---- operations: pictures uint8 (B, 3, h, w), values float32 (B, NUM_VALUES) -> pictures ----
# They are those of torchvision, which takes one value for all pictures of a batch. From the same pictures on, a CPU
# gives the same bits.


def keep(pictures: Tensor, values: Tensor) -> Tensor:
    return pictures


def brightness(pictures: Tensor, values: Tensor) -> Tensor:
    return _as_pixels(pictures * _column(values, 0))


def saturation(pictures: Tensor, values: Tensor) -> Tensor:
    return _blend(pictures, _make_grey(pictures), values)


def contrast(pictures: Tensor, values: Tensor) -> Tensor:
    return _blend(pictures, _make_grey(pictures).mean(dim=(1, 2, 3), keepdim=True), values)


def sharpness(pictures: Tensor, values: Tensor) -> Tensor:
    """Blend all but the edge with the mean of 3 x 3 pixels, of which that in the middle counts five times."""
    if min(pictures.shape[-2:]) <= 2:
        return pictures
    changed = pictures.float()
    inner = changed[..., 1:-1, 1:-1]
    blurred = (avg_pool2d(changed, 3, stride=1, divisor_override=1) + 4 * inner).div_(13).round_()
    inner.addcmul_(blurred.sub_(inner), _column(values, 1))
    return _as_pixels(changed)


def hue(pictures: Tensor, values: Tensor) -> Tensor:
    hues, saturations, brightnesses = _rgb_to_hsv(F.to_dtype(pictures, torch.float32, scale=True)).unbind(1)
    hues = (hues + _column(values, 0)[:, 0]).remainder_(1.0)
    turned = _hsv_to_rgb(torch.stack((hues, saturations, brightnesses), dim=1))
    return F.to_dtype(turned, torch.uint8, scale=True)


def posterize(pictures: Tensor, values: Tensor) -> Tensor:
    return pictures & _column(values, 0).to(torch.uint8)


def solarize(pictures: Tensor, values: Tensor) -> Tensor:
    return torch.where(pictures >= _column(values, 0), ~pictures, pictures)


def autocontrast(pictures: Tensor, values: Tensor) -> Tensor:
    """Stretch each colour to 0-255. torchvision's own would read a value back from the device."""
    darkest, brightest = (find(pictures, dim=(2, 3), keepdim=True).float() for find in (torch.amin, torch.amax))
    is_flat = darkest == brightest
    scale = ((brightest - darkest) * (1.0 / 255)).masked_fill(is_flat, 1.0)
    return _as_pixels((pictures - darkest.masked_fill(is_flat, 0.0)).div_(scale))


def equalize(pictures: Tensor, values: Tensor) -> Tensor:
    return F.equalize(pictures)


def invert(pictures: Tensor, values: Tensor) -> Tensor:
    return ~pictures


def erase(pictures: Tensor, values: Tensor) -> Tensor:
    """Turn a rectangle grey: its top, left, height and width."""
    top, left, height, width = (_column(values, number) for number in range(4))
    rows = torch.arange(pictures.shape[2], device=pictures.device)[:, None]
    columns = torch.arange(pictures.shape[3], device=pictures.device)
    is_erased = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return pictures.masked_fill(is_erased, GREY)


def turn(pictures: Tensor, values: Tensor, quarters: int) -> Tensor:
    return torch.rot90(pictures, quarters, dims=(2, 3))


def warp(pictures: Tensor, values: Tensor, interpolation: str) -> Tensor:
    """Move pixels, see `_warp` in dataset/plans.py; what comes from outside is grey."""
    covered = pad(pictures.float(), (0, 0, 0, 0, 0, 1), value=1.0)  # a fourth colour: how much is from inside
    moved = grid_sample(covered, _find_places(pictures, values), interpolation, align_corners=False)
    colours, inside = moved[:, :3], moved[:, 3:]
    if interpolation == "nearest":
        colours = colours.masked_fill(inside < 0.5, GREY)
    else:
        colours = (colours - GREY).mul_(inside).add_(GREY)
    return colours.round_().to(torch.uint8)


def _find_places(pictures: Tensor, values: Tensor) -> Tensor:
    """Where each pixel comes from, float32 (B, h, w, 2)."""
    number, _, height, width = pictures.shape
    places = torch.ones(height, width, 3, device=pictures.device)
    places[..., 0] = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=pictures.device)
    places[..., 1] = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=pictures.device)[:, None]
    matrices = values.view(number, 2, 3).transpose(1, 2)
    if pictures.device.type == "cpu":
        found = places.view(1, -1, 3).expand(number, -1, -1).bmm(matrices)  # as torchvision, to the bit
    else:
        found = multiply_exactly(places.view(1, -1, 3), matrices)
    return found.view(number, height, width, 2)


def multiply_exactly(places: Tensor, matrices: Tensor) -> Tensor:
    """(B, N, 2) of (1, N, 3) and (B, 3, 2). A GPU's bmm may multiply in TF32, which is a tenth of a pixel beside it."""
    return (places[..., None] * matrices[:, None]).sum(2)


def _column(values: Tensor, number: int) -> Tensor:
    """One number of each picture, (B, 1, 1, 1)."""
    return values[:, number, None, None, None]


def _as_pixels(pictures: Tensor) -> Tensor:
    return pictures.clamp_(0, 255).to(torch.uint8)


def _make_grey(pictures: Tensor) -> Tensor:
    """Float32 (B, 1, h, w)."""
    return _rgb_to_grayscale_image(pictures, preserve_dtype=False).floor_()


def _blend(pictures: Tensor, others: Tensor, values: Tensor) -> Tensor:
    """Mix pictures with others, in the shares of the first two values."""
    # addcmul multiplies and adds in one step wherever torchvision's add does, and so rounds alike
    return _as_pixels(torch.addcmul(pictures * _column(values, 0), others, _column(values, 1)))


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "": keep,
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "hue": hue,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "erase": erase,
    "turn_90": partial(turn, quarters=1),
    "turn_180": partial(turn, quarters=2),
    "turn_270": partial(turn, quarters=3),
    "warp_nearest": partial(warp, interpolation="nearest"),
    "warp_bilinear": partial(warp, interpolation="bilinear"),
}
