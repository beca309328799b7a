"""What happens to images before the model sees them, one by one and then as a batch.

    transform = make_eval_transform("squash", 224)    # uint8 (3, H, W) -> uint8 (3, 224, 224)
    transform = make_train_transform(Augmentation("crop_flip", color_jitter=0.2), 224)    # the same, at random
    change = make_batch_transform(seed=0, mixup_alpha=0.2)    # change(batch, epoch, step) -> batch

Scaling and normalisation are the model's first layer; here pixels stay uint8, which is what makes it quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dataset.batches import Batch, Transform

GREY = 127  # of what an augmentation leaves empty: near 0 once normalised


# ---- resize rules ----


def squash(image_size: int) -> Transform:
    """Resize to a square whatever the shape: nothing is cut off, objects are stretched."""
    return v2.Resize((image_size, image_size), antialias=True)


def center_crop(image_size: int) -> Transform:
    """Resize the short side to 8/7 of the size (224 -> 256) and cut out the middle."""
    return v2.Compose([v2.Resize(round(image_size * 8 / 7), antialias=True), v2.CenterCrop(image_size)])


def letterbox(image_size: int) -> Transform:
    """Resize the long side to the size, and fill up with 0 on both sides: shape and edges are kept."""
    return partial(_fit, image_size=image_size)


def _fit(image: Tensor, image_size: int) -> Tensor:
    longest = max(image.shape[-2:])
    size = [max(1, round(side * image_size / longest)) for side in image.shape[-2:]]
    return F.center_crop(F.resize(image, size, antialias=True), [image_size, image_size])


def make_eval_transform(name: str, image_size: int) -> Transform:
    """The transform called `name` in RESIZE_RULES."""
    return RESIZE_RULES[name](image_size)


# ---- one image ----


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training image."""

    name: str = "crop_flip"  # one of AUGMENTATIONS: which part of the image, mirrored or not
    crop_scale_min: float = 0.5  # crop_flip: smallest share of the area that is kept
    policy: str = "none"  # one of POLICIES
    color_jitter: float = 0.0  # brightness, contrast and saturation by up to +- this share, hue by up to half of it
    rotation_degrees: float = 0.0  # by up to this angle either way
    erasing_probability: float = 0.0  # that a rectangle turns grey
    erasing_max_share: float = 0.25  # of the area, at most

    @property
    def is_random(self) -> bool:
        """Whether one image gives different pictures."""
        return self.describe() != "none"

    def describe(self) -> str:
        """All that decides the pictures but size and resize rule, in one line; "none" where nothing is drawn."""
        parts = (
            (self.name != "none", f"{self.name} {self.crop_scale_min}" if self.name == "crop_flip" else self.name),
            (self.policy != "none", self.policy),
            (self.color_jitter, f"color jitter {self.color_jitter}"),
            (self.rotation_degrees, f"rotation {self.rotation_degrees}"),
            (self.erasing_probability, f"erasing {self.erasing_probability} up to {self.erasing_max_share}"),
        )
        return ", ".join(text for is_on, text in parts if is_on) or "none"


def make_train_transform(augmentation: Augmentation, image_size: int, resize_rule: str = "squash") -> Transform:
    """The transform that draws as `augmentation` says; where it crops, `resize_rule` has no say.

    Resizing comes first, since all else costs by the pixel. Rotation and erasing come last: the grey that they leave
    would enter the contrast and the histogram that colours are changed by.
    """
    strength, share = augmentation.color_jitter, augmentation.erasing_max_share
    steps = [
        AUGMENTATIONS[augmentation.name](image_size, resize_rule, augmentation.crop_scale_min),
        POLICIES[augmentation.policy](),
    ]
    if strength:
        steps.append(v2.ColorJitter(strength, strength, strength, hue=min(strength / 2, 0.5)))
    if angle := augmentation.rotation_degrees:
        steps.append(v2.RandomRotation((-angle, angle), interpolation=v2.InterpolationMode.BILINEAR, fill=GREY))
    if augmentation.erasing_probability:  # Zhong et al. 2020, whose smallest share is 0.02
        steps.append(v2.RandomErasing(augmentation.erasing_probability, (min(0.02, share), share), value=GREY))
    return v2.Compose(steps)


def whole(image_size: int, resize_rule: str, crop_scale_min: float) -> Transform:
    """The image as the resize rule leaves it."""
    return make_eval_transform(resize_rule, image_size)


def flip(image_size: int, resize_rule: str, crop_scale_min: float) -> Transform:
    """The image as the resize rule leaves it, mirrored or not."""
    return v2.Compose([make_eval_transform(resize_rule, image_size), v2.RandomHorizontalFlip()])


def crop_flip(image_size: int, resize_rule: str, crop_scale_min: float) -> Transform:
    """A random part of the image, at least `crop_scale_min` of its area, resized to a square; mirrored or not."""
    crop = v2.RandomResizedCrop(image_size, scale=(crop_scale_min, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


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
    """`transform(image)`, drawn from `seed`: the same picture whatever was drawn before and in which process."""
    with draw_from(seed):
        return transform(image)


@contextmanager
def draw_from(seed: int) -> Iterator[None]:
    """Let torch's CPU random numbers start at `seed`, and put their state back afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


# ---- a batch ----


def make_batch_transform(
    seed: int,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    multi_scale_sizes: Sequence[int] = (),
    steps_per_size: int = 10,
) -> Callable[[Batch, int, int], Batch]:
    """`change(batch, epoch, step) -> batch`, on the batch's device; without options it gives back what it gets.

    Pictures of the largest of `multi_scale_sizes` (pixels) are resized to one of them, drawn anew every
    `steps_per_size` steps of an epoch. Each image is mixed with its neighbour: by mixup (Zhang et al. 2018), CutMix
    (Yun et al. 2019) or, with both alphas above 0, either at random. Targets and weights are mixed by the same
    shares; what is unknown (NaN) in one of the two images stays unknown. Mixed images are float, 0 to 255.
    What is drawn depends on `seed`, epoch and step alone.
    """
    kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
    mixers = [kind(alpha=alpha) for kind, alpha in kinds if alpha]
    mix = v2.RandomChoice(mixers) if mixers else None

    def change(batch: Batch, epoch: int, step: int) -> Batch:
        if multi_scale_sizes:
            size = int(np.random.default_rng([seed, epoch, step // steps_per_size]).choice(multi_scale_sizes))
            batch = batch._replace(images=F.resize(batch.images, [size, size], antialias=True))
        if mix:
            labels = torch.column_stack([batch.targets, batch.weights])  # torchvision mixes one tensor of labels
            with draw_from(int(np.random.default_rng([seed, epoch, step]).integers(2**32))):
                images, labels = mix(batch.images.float(), labels)
            batch = batch._replace(images=images, targets=labels[:, :-1], weights=labels[:, -1])
        return batch

    return change


RESIZE_RULES: dict[str, Callable[[int], Transform]] = {
    "squash": squash,
    "center_crop": center_crop,
    "letterbox": letterbox,
}
AUGMENTATIONS: dict[str, Callable[[int, str, float], Transform]] = {
    "none": whole,
    "flip": flip,
    "crop_flip": crop_flip,
}
POLICIES: dict[str, Callable[[], Transform]] = {
    "none": lambda: identity,
    "auto_augment": lambda: v2.AutoAugment(fill=GREY),  # Cubuk et al. 2019, found on ImageNet
    "rand_augment": lambda: v2.RandAugment(fill=GREY),  # Cubuk et al. 2020, two operations at magnitude 9
    "trivial_augment": lambda: v2.TrivialAugmentWide(fill=GREY),  # Müller and Hutter 2021
}
