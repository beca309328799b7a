"""What happens to an image before the model sees it: uint8 (3, H, W) in, uint8 (3, S, S) out.

Scaling and normalisation are the model's first layer; here pixels stay uint8, which is what makes it quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

Transform = Callable[[Tensor], Tensor]


def squash(image_size: int) -> Transform:
    """Resize to a square whatever the shape: nothing is cut off, objects are stretched."""
    return v2.Resize((image_size, image_size), antialias=True)


def center_crop(image_size: int) -> Transform:
    """Resize the short side to 8/7 of the size (224 -> 256) and cut out the middle."""
    return v2.Compose([v2.Resize(round(image_size * 8 / 7), antialias=True), v2.CenterCrop(image_size)])


def crop_flip(image_size: int, crop_scale_min: float) -> Transform:
    """A random part of the image, at least `crop_scale_min` of its area, resized to a square; mirrored or not."""
    crop = v2.RandomResizedCrop(image_size, scale=(crop_scale_min, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def make_eval_transform(name: str, image_size: int) -> Transform:
    """The transform called `name` in RESIZE_RULES."""
    return RESIZE_RULES[name](image_size)


def make_train_transform(name: str, image_size: int, crop_scale_min: float, resize_rule: str = "squash") -> Transform:
    """The transform called `name` in AUGMENTATIONS; "none" is `resize_rule` alone."""
    augment = AUGMENTATIONS[name]
    return augment(image_size, crop_scale_min) if augment else make_eval_transform(resize_rule, image_size)


def identity(image: Tensor) -> Tensor:
    """For images that are prepared already."""
    return image


def shrink(short_side: int) -> Transform:
    """Resize to `short_side` pixels; an image that is no larger stays as it is."""
    resize = v2.Resize(short_side, antialias=True)
    return lambda image: image if min(image.shape[-2:]) <= short_side else resize(image)


def find_short_side(image_size: int, crop_scale_min: float) -> int:
    """The short side, in pixels, at which the smallest random crop of a square image still has `image_size`."""
    return math.ceil(image_size / math.sqrt(crop_scale_min))


def apply_seeded(transform: Transform, image: Tensor, seed: int) -> Tensor:
    """`transform(image)` with torch's CPU random numbers starting at `seed`, and put back afterwards.

    So the picture depends on the seed alone, not on what was drawn before or in which process.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        return transform(image)
    finally:
        generator.set_state(state)


RESIZE_RULES: dict[str, Callable[[int], Transform]] = {"squash": squash, "center_crop": center_crop}
AUGMENTATIONS: dict[str, Callable[[int, float], Transform] | None] = {"none": None, "crop_flip": crop_flip}
