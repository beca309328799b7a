"""How an image of any size gets the size that a model sees.

    transform = make_eval_transform("squash", 224)    # uint8 (3, H, W) -> uint8 (3, 224, 224)
    transform = make_eval_transform("squash", (256, 448))    # -> uint8 (3, 256, 448): height, width

By torch alone, with the pixels of torchvision's transforms: these import torch's compiler, which takes as long as torch
itself, and a prediction does not need it. What is drawn at random in training is in dataset/augmentations.py.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from dataset import timm_rules
from dataset.batches import Transform
from dataset.image_sizes import Size, as_size
from dataset.timm_rules import TimmTransform
from limits import ImageSize


def squash(size: Size) -> Transform:
    """Resize to the size, whatever the shape: nothing is cut off, objects are stretched."""
    return partial(resize, size=size)


def center_crop(size: Size) -> Transform:
    """Resize, without stretching, until the image covers 8/7 of the size (224 -> 256), and cut out the middle."""
    return partial(cover_and_cut, size=size)


def find_cover(size: Size) -> Size:
    """The size that `center_crop` lets an image cover, before it cuts out `size`."""
    return size.scaled(8 / 7)


def letterbox(size: Size) -> Transform:
    """Resize until the image fits into the size, and fill the rest with 0: nothing is cut off or stretched."""
    return partial(fit, size=size)


def identity(image: Tensor) -> Tensor:
    """The image as it is: for images that are prepared already."""
    return image


def resize(image: Tensor, size: Size) -> Tensor:
    """The image uint8 (3, H, W) in `size`: bilinear, with antialiasing."""
    if image.shape[-2:] == size:
        return image
    pixels = image[None]
    if pixels.is_contiguous(memory_format=torch.channels_last):
        # a decoded image has its colours side by side: the batch of one says so in its strides, and is not copied
        pixels = image.movedim(0, -1)[None].movedim(-1, 1)
    if not _resizes_bytes():
        pixels = pixels.float()
    resized = functional.interpolate(pixels, list(size), mode="bilinear", align_corners=False, antialias=True)[0]
    return resized if resized.dtype == torch.uint8 else resized.round_().to(torch.uint8)


@functools.cache
def _resizes_bytes() -> bool:
    """Whether this processor resizes uint8 directly, in fixed point; on others float32 is quicker, and exact."""
    has_vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return has_vectors or platform.machine() in ("aarch64", "arm64")


def resize_to_cover(image: Tensor, size: Size) -> Tensor:
    """Resize without stretching: one side of the image becomes that of `size`, the other one is no shorter."""
    return resize(image, find_covering(Size(*image.shape[-2:]), size))


def find_covering(image: Size, size: Size) -> Size:
    """The size to which `resize_to_cover` resizes an image."""
    if image.width * size.height >= image.height * size.width:  # wider than `size`
        return Size(size.height, int(size.height * image.width / image.height))
    return Size(int(size.width * image.height / image.width), size.width)


def cover_and_cut(image: Tensor, size: Size) -> Tensor:
    """See center_crop."""
    covering = resize_to_cover(image, find_cover(size))
    top, left = (round((side - kept) / 2) for side, kept in zip(covering.shape[-2:], size, strict=True))
    return covering[..., top : top + size.height, left : left + size.width]


def fit(image: Tensor, size: Size) -> Tensor:
    """See letterbox."""
    fitting = find_fitting(Size(*image.shape[-2:]), size)
    rest_height, rest_width = size.height - fitting.height, size.width - fitting.width
    borders = [rest_width // 2, (rest_width + 1) // 2, rest_height // 2, (rest_height + 1) // 2]
    return functional.pad(resize(image, fitting), borders)


def find_fitting(image: Size, size: Size) -> Size:
    """The size to which `fit` resizes an image."""
    if image.width * size.height >= image.height * size.width:  # wider than `size`
        return Size(max(1, round(image.height * size.width / image.width)), size.width)
    return Size(size.height, max(1, round(image.width * size.height / image.height)))


def make_eval_transform(name: str, image_size: ImageSize) -> Transform:
    """The transform called `name` in RESIZE_RULES, or a rule of timm's, to a side or (height, width) in pixels."""
    size = as_size(image_size)
    return TimmTransform(name, size) if name.startswith(timm_rules.START) else RESIZE_RULES[name](size)


RESIZE_RULES: dict[str, Callable[[Size], Transform]] = {
    "squash": squash,
    "center_crop": center_crop,
    "letterbox": letterbox,
}
