"""How timm resizes images, as a text in a model's metadata: "timm center 0.875 bicubic".

    rule = write_rule(settings)                           # of the `pretrained_cfg` in timm's config.json
    transform = TimmTransform(rule, Size(224, 224))    # uint8 (3, H, W) -> uint8 (3, 224, 224), by timm's code

This project's own rules are in dataset/augmentations.py. Imports no torch until a transform is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataset.image_sizes import Size
from utils import InputError

if TYPE_CHECKING:
    from torch import Tensor

START = "timm "
MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
NUMBER = r"\d(?:\.\d{1,17})?"
# mode, share of the resized image that is cut out, interpolation; the mean of pixels fills the borders
PATTERN = re.compile(
    rf"{START}({'|'.join(MODES)}) ({NUMBER}) ({'|'.join(INTERPOLATIONS)}) ({NUMBER},{NUMBER},{NUMBER})"
)


def is_rule(text: Any) -> bool:
    """Whether `text` is what `write_rule` gives."""
    found = PATTERN.fullmatch(text) if isinstance(text, str) else None
    return found is not None and float(found[2]) > 0


def write_rule(settings: Mapping[str, Any], mean: list[float]) -> str:
    """The rule of timm's `settings`, with timm's defaults. Raises InputError if they are none that timm has."""
    share = settings.get("crop_pct") or 0.875
    mode, interpolation = settings.get("crop_mode") or "center", settings.get("interpolation") or "bicubic"
    fill = ",".join(f"{value:.6f}" for value in mean)
    rule = f"{START}{mode} {share} {interpolation} {fill}"
    if not is_rule(rule):
        raise InputError(
            f"timm resizes by crop_mode {', '.join(MODES)}, a crop_pct above 0 and interpolation "
            f"{', '.join(INTERPOLATIONS)}, not by {mode!r}, {share!r}, {interpolation!r}"
        )
    return rule


class TimmTransform:
    """The transform that a rule says, uint8 (3, H, W) -> uint8 of `size`: timm's own, which resizes PIL images."""

    def __init__(self, rule: str, size: Size) -> None:
        from timm.data.transforms_factory import create_transform

        found = PATTERN.fullmatch(rule)
        assert found is not None
        self.size, self.mode, self.share, self.interpolation = size, found[1], float(found[2]), found[3]
        self.mean = tuple(map(float, found[4].split(",")))
        self.change: Any = create_transform(
            (3, size.height, size.width),
            crop_mode=self.mode,
            crop_pct=self.share,
            interpolation=self.interpolation,
            mean=self.mean,
            normalize=False,
        )

    def __call__(self, image: Tensor) -> Tensor:
        from PIL import Image

        return self.change(Image.fromarray(image.permute(1, 2, 0).numpy()))

    def find_resized(self, image: Size) -> Size:
        """The size to which timm resizes an image, before its middle is cut out."""
        inner = Size(*(math.floor(side / self.share) for side in self.size))
        if self.mode == "squash":
            return inner
        if self.mode == "center" and inner.is_square:  # torchvision, which rounds down
            short, long = inner.height, int(inner.height * max(image) / min(image))
            return Size(short, long) if image.height < image.width else Size(long, short)
        ratios = [side / target for side, target in zip(image, inner, strict=True)]
        ratio = max(ratios) if self.mode == "border" else min(ratios)
        return Size(*(round(side / ratio) for side in image))

    def find_fill(self) -> tuple[int, ...]:
        """The colour of the borders, RGB."""
        return tuple(round(255 * value) for value in self.mean) if self.mode == "border" else (0, 0, 0)
