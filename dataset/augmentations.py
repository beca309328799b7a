"""Changes images before the model sees them: each image by itself, then a batch of them.

    transform = make_train_transform(Augmentation("crop_flip"), 224)    # uint8 (3, H, W) -> uint8 (3, 224, 224)
    change = make_batch_transform(seed=0, mixup_alpha=0.2)    # change(batch, epoch, step) -> batch

Pixels stay uint8, which is quick; scaling and normalisation are the model's first layer. What is not drawn at random,
the size, is in dataset/resize_rules.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dataset.batches import Batch, Transform
from dataset.image_sizes import Size, as_size
from dataset.resize_rules import identity, make_eval_transform, resize_to_cover
from limits import ImageSize

GREY = 127  # fills what an augmentation leaves empty; near 0 once normalised


# ---- one image ----


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for each training image."""

    name: str = "crop_flip"  # one of AUGMENTATIONS: which area of the image, mirrored or not
    crop_scale_min: float = 0.5  # crop_flip: smallest share of the area that is kept
    policy: str = "none"  # one of POLICIES
    color_jitter: float = 0.0  # brightness, contrast and saturation vary by up to this share, hue by half of it
    rotation_degrees: float = 0.0  # the largest angle, either way
    erasing_probability: float = 0.0  # probability that a rectangle turns grey
    erasing_max_share: float = 0.25  # the rectangle's largest share of the area

    @property
    def is_random(self) -> bool:
        """Whether the same image gives different pictures."""
        return self.describe() != "none"

    @property
    def changes_pixels(self) -> bool:
        """Whether pictures are changed beyond crops, mirroring and size: in colours, by a rotation, by erasing."""
        return bool(self.policy != "none" or self.color_jitter or self.rotation_degrees or self.erasing_probability)

    def describe(self) -> str:
        """One line of all that changes the pictures, except size and resize rule; "none" where nothing is drawn."""
        words = [f"{self.name} {self.crop_scale_min}" if self.name == "crop_flip" else self.name, self.policy]
        words = [word for word in words if word != "none"]
        if self.color_jitter:
            words.append(f"color jitter {self.color_jitter}")
        if self.rotation_degrees:
            words.append(f"rotation {self.rotation_degrees}")
        if self.erasing_probability:
            words.append(f"erasing {self.erasing_probability} up to {self.erasing_max_share}")
        return ", ".join(words) or "none"


def make_train_transform(augmentation: Augmentation, image_size: ImageSize, resize_rule: str = "squash") -> Transform:
    """The random transform that `augmentation` describes, to a side or (height, width) in pixels.

    `resize_rule` is not used where it crops.

    Resizing comes first, since the cost of all else grows with the pixels. Rotation and erasing come last: the grey
    that they leave would change the contrast and the histogram from which colours are changed.
    """
    strength, share = augmentation.color_jitter, augmentation.erasing_max_share
    steps = [
        AUGMENTATIONS[augmentation.name](as_size(image_size), resize_rule, augmentation.crop_scale_min),
        POLICIES[augmentation.policy](),
    ]
    if strength:
        steps.append(v2.ColorJitter(strength, strength, strength, hue=min(strength / 2, 0.5)))
    if angle := augmentation.rotation_degrees:
        steps.append(v2.RandomRotation((-angle, angle), interpolation=v2.InterpolationMode.BILINEAR, fill=GREY))
    if augmentation.erasing_probability:  # Zhong et al. 2020, whose smallest share is 0.02
        steps.append(v2.RandomErasing(augmentation.erasing_probability, (min(0.02, share), share), value=GREY))
    return v2.Compose(steps)


def whole(size: Size, resize_rule: str, crop_scale_min: float) -> Transform:
    """The image as the resize rule leaves it."""
    return make_eval_transform(resize_rule, size)


def flip(size: Size, resize_rule: str, crop_scale_min: float) -> Transform:
    """The image as the resize rule leaves it, mirrored or not."""
    return v2.Compose([make_eval_transform(resize_rule, size), v2.RandomHorizontalFlip()])


def crop_flip(size: Size, resize_rule: str, crop_scale_min: float) -> Transform:
    """A random crop of at least `crop_scale_min` of the image's area, resized to the size; mirrored or not.

    The crop has the proportions of `size`, stretched by up to 4/3 either way.
    """
    proportion = size.width / size.height
    ratio = (3 / 4 * proportion, 4 / 3 * proportion)  # width to height of the crop
    crop = v2.RandomResizedCrop(size, scale=(crop_scale_min, 1.0), ratio=ratio, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def shrink(image_size: ImageSize) -> Transform:
    """Resize, without stretching, until the image just covers the size; one that is no larger stays as it is."""
    size = as_size(image_size)

    def transform(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return image if height <= size.height or width <= size.width else resize_to_cover(image, size)

    return transform


def find_size_to_crop(size: Size, crop_scale_min: float) -> Size:
    """The size of an image, of the proportions of `size`, whose smallest random crop still has `size`."""
    return Size(*(math.ceil(side / math.sqrt(crop_scale_min)) for side in size))


def apply_seeded(transform: Transform, image: Tensor, seed: int) -> Tensor:
    """`transform(image)` with random numbers from `seed`: the same picture in any process, whatever ran before."""
    with draw_from(seed):
        return transform(image)


@contextmanager
def draw_from(seed: int) -> Iterator[None]:
    """Let torch's random numbers on the CPU start at `seed`, and restore their state afterwards."""
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
    multi_scale_sizes: Sequence[ImageSize] = (),
    steps_per_size: int = 10,
) -> Callable[[Batch, int, int], Batch]:
    """A function `change(batch, epoch, step) -> batch`, on the batch's device; without options it changes nothing.

    With `multi_scale_sizes` (pixels: sides or (height, width)), the images are resized to one of these sizes, drawn
    anew every `steps_per_size` steps of an epoch; they come in the largest. Each image is mixed with its neighbour by
    mixup (Zhang et al. 2018), by CutMix (Yun et al. 2019) or, with both alphas above 0, by one of them at random.
    Targets and weights are mixed in the same shares; a label that is unknown (NaN) in one of the two images stays
    unknown. Mixed images are float, 0 to 255. The random numbers depend on `seed`, epoch and step alone.
    """
    sizes = [as_size(size) for size in multi_scale_sizes]
    kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
    mixers = [kind(alpha=alpha) for kind, alpha in kinds if alpha]
    mix = v2.RandomChoice(mixers) if mixers else None

    def change(batch: Batch, epoch: int, step: int) -> Batch:
        if sizes:
            size = sizes[np.random.default_rng([seed, epoch, step // steps_per_size]).choice(len(sizes))]
            batch = batch._replace(images=F.resize(batch.images, list(size), antialias=True))
        if mix:
            labels = torch.column_stack([batch.targets, batch.weights])  # torchvision mixes one tensor of labels
            with draw_from(int(np.random.default_rng([seed, epoch, step]).integers(2**32))):
                images, labels = mix(batch.images.float(), labels)
            batch = batch._replace(images=images, targets=labels[:, :-1], weights=labels[:, -1])
        return batch

    return change


AUGMENTATIONS: dict[str, Callable[[Size, str, float], Transform]] = {
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
