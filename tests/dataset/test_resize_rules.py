"""dataset/resize_rules.py: the pixels are torchvision's, however an image lies in memory."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from dataset import resize_rules
from dataset.image_sizes import Size

SIZES = (Size(32, 32), Size(17, 64), Size(90, 41), Size(2, 3), Size(200, 230))  # torch fails at 1 x 1 of some layouts


def draw_image(height: int, width: int, layout: str) -> torch.Tensor:
    """Noise, uint8 (3, height, width): as decoders give it, channel by channel, or cut out of a larger image."""
    noise = torch.randint(0, 256, (height + 5, width + 7, 3), dtype=torch.uint8)
    if layout == "cut":
        return noise[2 : height + 2, 3 : width + 3].permute(2, 0, 1)
    image = noise[:height, :width].contiguous().permute(2, 0, 1)
    return image if layout == "decoded" else image.contiguous()


@pytest.mark.parametrize("layout", ["decoded", "contiguous", "cut"])
@pytest.mark.parametrize("shape", [(64, 64), (120, 161), (161, 90), (1, 50), (50, 1), (1, 1), (17, 64)])
def test_pixels_are_those_of_torchvision(shape: tuple[int, int], layout: str) -> None:
    image = draw_image(*shape, layout)
    for size in SIZES:
        resized = resize_rules.make_eval_transform("squash", size)(image)
        assert resized.dtype == torch.uint8
        assert torch.equal(resized, F.resize(image, list(size), antialias=True))
        height, width = shape
        scale = min(Fraction(size.height, height), Fraction(size.width, width))
        inside = [max(1, round(height * scale)), max(1, round(width * scale))]
        boxed = F.center_crop(F.resize(image, inside, antialias=True), list(size))
        assert torch.equal(resize_rules.make_eval_transform("letterbox", size)(image), boxed)


def test_an_image_of_the_size_is_not_copied() -> None:
    image = draw_image(32, 32, "decoded")
    assert resize_rules.make_eval_transform("squash", 32)(image) is image
