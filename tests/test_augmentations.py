"""augmentations.py: sizes, the two resize rules, and random pictures that follow their seed."""

from __future__ import annotations

import pytest
import torch

import augmentations

RAMP = (torch.arange(64).repeat(40, 1) * 4).to(torch.uint8).repeat(3, 1, 1)  # (3, 40, 64), brighter to the right


@pytest.mark.parametrize("rule", augmentations.RESIZE_RULES)
@pytest.mark.parametrize("name", augmentations.AUGMENTATIONS)
def test_every_transform_gives_a_uint8_square(name: str, rule: str) -> None:
    for transform in (
        augmentations.make_train_transform(name, 32, 0.5, rule),
        augmentations.make_eval_transform(rule, 32),
    ):
        image = transform(RAMP)
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.uint8


def test_squash_keeps_the_edges_and_center_crop_the_shape() -> None:
    squashed = augmentations.make_eval_transform("squash", 32)(RAMP)
    cropped = augmentations.make_eval_transform("center_crop", 32)(RAMP)
    assert squashed[0, 0, 0] < 8
    assert squashed[0, 0, -1] > 244
    step = RAMP.float().mean(dim=(0, 1)).diff().mean() * 40 / round(32 * 8 / 7)  # brightness a pixel, after resizing
    assert cropped[0, 16].float().diff().mean() == pytest.approx(step.item(), rel=0.05)
    assert cropped[0, 16, 15].item() == pytest.approx(126, abs=5)


def test_no_augmentation_is_the_resize_rule() -> None:
    plain = augmentations.make_train_transform("none", 32, 0.5, "center_crop")
    assert torch.equal(plain(RAMP), augmentations.make_eval_transform("center_crop", 32)(RAMP))


def test_crop_flip_mirrors_half_of_the_pictures_and_keeps_enough_of_each() -> None:
    transform = augmentations.make_train_transform("crop_flip", 32, 0.5)
    pictures = [augmentations.apply_seeded(transform, RAMP, seed)[0, 16].float() for seed in range(200)]
    mirrored = sum(bool(picture[0] > picture[-1]) for picture in pictures)
    assert 70 < mirrored < 130
    spans = [abs((picture[-1] - picture[0]).item()) / 252 for picture in pictures]
    assert min(spans) > 0.3  # half of the area at a shape of 3:4 keeps more than that of the width
    assert min(spans) < 0.75


def test_a_seed_decides_the_picture_alone() -> None:
    transform = augmentations.make_train_transform("crop_flip", 32, 0.5)
    torch.manual_seed(1)
    first = augmentations.apply_seeded(transform, RAMP, 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(augmentations.apply_seeded(transform, RAMP, 7), first)
    assert torch.equal(torch.get_rng_state(), before)
