"""dataset/timm_rules.py: what config.json says about resizing becomes timm's own transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from dataset.resize_rules import make_eval_transform
from dataset.timm_rules import is_rule, write_rule
from models.metadata import check_metadata
from utils import InputError

MEAN = [0.485, 0.456, 0.406]


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("share", "interpolation"), [(0.875, "bicubic"), (1.0, "bilinear")])
def test_pixels_are_timms(mode: str, share: float, interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    rule = write_rule({"crop_pct": share, "crop_mode": mode, "interpolation": interpolation}, MEAN)
    found = make_eval_transform(rule, (32, 48))(torch.from_numpy(pixels).permute(2, 0, 1))
    options: Any = {"crop_pct": share, "crop_mode": mode, "interpolation": interpolation, "mean": tuple(MEAN)}
    expected: Any = create_transform((3, 32, 48), **options, std=(1.0,) * 3)
    normalised = expected(Image.fromarray(pixels))  # a float, of which only the division by 255 and the mean are undone
    assert torch.equal(found, ((normalised + torch.tensor(MEAN).view(3, 1, 1)) * 255).round().to(torch.uint8))


def test_what_is_not_said_is_timms_default() -> None:
    assert write_rule({}, [0.5] * 3) == "timm center 0.875 bicubic 0.500000,0.500000,0.500000"


@pytest.mark.parametrize(
    "settings", [{"crop_pct": -1}, {"crop_pct": "1; x"}, {"crop_mode": "x"}, {"interpolation": "x"}]
)
def test_what_timm_does_not_have_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="timm resizes by crop_mode center, squash, border"):
        write_rule(settings, MEAN)


def test_metadata_may_name_such_a_rule_and_no_other() -> None:
    rule = write_rule({}, MEAN)
    assert is_rule(rule)
    assert check_metadata({"resize_rule": rule}, "x")["resize_rule"] == rule
    for other in ("timm", "timm center 0 bicubic 0.5,0.5,0.5", f"{rule} ", 3):
        with pytest.raises(InputError, match="resize_rule is"):
            check_metadata({"resize_rule": other}, "x")
