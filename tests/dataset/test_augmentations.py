"""dataset/augmentations.py: pixels of each transform, mixed batches against their formula, and draws that follow
their seed.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dataset import augmentations
from dataset.augmentations import Augmentation
from dataset.batches import Batch

RAMP = (torch.arange(64).repeat(40, 1) * 4).to(torch.uint8).repeat(3, 1, 1)  # (3, 40, 64), brighter to the right
SQUARE = (torch.arange(32) * 7).to(torch.uint8).expand(3, 32, 32).contiguous()  # a ramp that no resize rule changes
EVERYTHING = Augmentation("crop_flip", 0.5, "rand_augment", 0.4, 20, 0.9)
NOTHING = Augmentation("none")


def draw(augmentation: Augmentation, image: Tensor, num_pictures: int) -> list[Tensor]:
    """Pictures of 32 x 32 pixels, of the seeds from 0 on."""
    transform = augmentations.make_train_transform(augmentation, 32)
    return [augmentations.apply_seeded(transform, image, seed) for seed in range(num_pictures)]


def make_noise() -> Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# ---- resize rules ----


@pytest.mark.parametrize("rule", augmentations.RESIZE_RULES)
@pytest.mark.parametrize("name", augmentations.AUGMENTATIONS)
@pytest.mark.parametrize("policy", augmentations.POLICIES)
def test_every_transform_gives_a_uint8_square(name: str, policy: str, rule: str) -> None:
    augmentation = Augmentation(name, 0.5, policy, 0.2, 10, 0.5)
    for transform in (
        augmentations.make_train_transform(augmentation, 32, rule),
        augmentations.make_eval_transform(rule, 32),
    ):
        transform = pickle.loads(pickle.dumps(transform))  # as loading processes that are spawned get it
        for seed in range(30):  # a policy has many operations
            image = augmentations.apply_seeded(transform, RAMP, seed)
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


@pytest.mark.parametrize("turned", [False, True])
def test_letterbox_keeps_shape_and_edges_between_bars_of_0(turned: bool) -> None:
    picture = augmentations.make_eval_transform("letterbox", 32)(RAMP.mT if turned else RAMP)
    picture = picture.mT if turned else picture
    inside = picture[:, 6:26]  # 64 x 40 pixels become 32 x 20, with bars of 6
    assert torch.equal(inside.float(), inside[:1, :1].float().expand(3, 20, 32))
    expected = RAMP.float().unflatten(2, (32, 2)).mean(dim=3)[0, 0]  # at half the size: the mean of two neighbours
    assert torch.allclose(inside[0, 0, 1:-1].float(), expected[1:-1], atol=1)
    assert inside[0, 0, 0] < 8
    assert inside[0, 0, -1] > 244
    assert not picture[:, :6].any()
    assert not picture[:, 26:].any()


def test_letterbox_leaves_a_square_and_takes_a_line() -> None:
    letterbox = augmentations.make_eval_transform("letterbox", 32)
    assert torch.equal(letterbox(SQUARE), SQUARE)
    line = letterbox(torch.full((3, 1, 1000), 200, dtype=torch.uint8))
    assert (line == 200).sum() == 3 * 32


# ---- one image ----


@pytest.mark.parametrize("rule", augmentations.RESIZE_RULES)
def test_no_augmentation_is_the_resize_rule(rule: str) -> None:
    plain = augmentations.make_train_transform(NOTHING, 32, rule)
    assert torch.equal(plain(RAMP), augmentations.make_eval_transform(rule, 32)(RAMP))


def test_flip_mirrors_half_of_the_pictures_and_does_nothing_else() -> None:
    mirrored = [torch.equal(picture, SQUARE.flip(-1)) for picture in draw(Augmentation("flip"), SQUARE, 200)]
    assert 70 < sum(mirrored) < 130
    plain = [torch.equal(picture, SQUARE) for picture in draw(Augmentation("flip"), SQUARE, 200)]
    assert [not is_mirrored for is_mirrored in mirrored] == plain


def test_crop_flip_mirrors_half_of_the_pictures_and_keeps_enough_of_each() -> None:
    pictures = [picture[0, 16].float() for picture in draw(Augmentation("crop_flip", 0.5), RAMP, 200)]
    mirrored = sum(bool(picture[0] > picture[-1]) for picture in pictures)
    assert 70 < mirrored < 130
    spans = [abs((picture[-1] - picture[0]).item()) / 252 for picture in pictures]
    assert min(spans) > 0.3  # half of the area at a shape of 3:4 keeps more than that of the width
    assert min(spans) < 0.75


def test_erasing_turns_a_rectangle_of_at_most_the_share_grey() -> None:
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    sizes = []
    for picture in draw(Augmentation("none", erasing_probability=0.5, erasing_max_share=0.25), image, 300):
        erased = picture[0] != 200
        rows, columns = erased.any(dim=1), erased.any(dim=0)
        height, width = int(rows.sum()), int(columns.sum())
        assert torch.equal(erased, rows[:, None] & columns)  # one rectangle
        assert int(erased.sum()) == height * width
        assert (picture[:, erased] == 127).all()
        assert height * width <= 0.25 * 32**2 + (height + width) / 2 + 0.25  # its sides are rounded
        sizes.append(height * width / 32**2)
    assert 110 < sum(size > 0 for size in sizes) < 190
    assert max(sizes) > 0.2


def test_erasing_may_be_small() -> None:
    pictures = draw(Augmentation("none", erasing_probability=1.0, erasing_max_share=0.01), SQUARE, 20)
    assert all(0 < (picture != SQUARE).any(dim=0).sum() <= 16 for picture in pictures)


def test_rotation_turns_about_the_middle_and_leaves_grey_corners() -> None:
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    image[:, :, 16:] = 40  # an upright edge through the middle
    angles = []
    for picture in draw(Augmentation("none", rotation_degrees=20), image, 100):
        # the edge's place in the rows 8 above and 8 below the middle: where light becomes dark
        above, below = ((picture[0, row, 4:28].float() - 40).sum() / 160 for row in (7, 24))
        angles.append(np.degrees(np.arctan2((above - below).item(), 17)))
        if abs(angles[-1]) > 8:
            assert {picture[0, 0, 0].item(), picture[0, 0, -1].item(), picture[2, -1, 0].item()} == {127}
    assert -21 < min(angles) < -16
    assert 16 < max(angles) < 21
    assert abs(np.mean(angles)) < 3


@pytest.mark.parametrize(("strength", "hue"), [(0.2, 0.1), (1.0, 0.5)])
def test_color_jitter_is_torchvisions_with_half_of_the_strength_for_hue(strength: float, hue: float) -> None:
    image = make_noise()
    jitter = v2.ColorJitter(strength, strength, strength, hue)
    for seed, picture in enumerate(draw(Augmentation("none", color_jitter=strength), image, 10)):
        assert torch.equal(picture, augmentations.apply_seeded(jitter, image, seed))


@pytest.mark.parametrize("policy", [name for name in augmentations.POLICIES if name != "none"])
def test_every_policy_changes_most_pictures_and_fills_with_grey(policy: str) -> None:
    image, grey = make_noise(), torch.full((3, 32, 32), 127, dtype=torch.uint8)
    augmentation = Augmentation("none", policy=policy)
    assert sum(not torch.equal(picture, image) for picture in draw(augmentation, image, 100)) > 60
    for picture in draw(augmentation, grey, 300):
        values = set(picture.unique().tolist())
        assert len(values) == 1 or (len(values) == 2 and 127 in values and 0 not in values)


def test_describe_names_what_is_on_and_only_that() -> None:
    assert NOTHING.describe() == Augmentation("none", crop_scale_min=0.9).describe() == "none"
    assert EVERYTHING.describe() == (
        "crop_flip 0.5, rand_augment, color jitter 0.4, rotation 20, erasing 0.9 up to 0.25"
    )
    assert Augmentation("flip", 0.3).describe() == "flip"


@pytest.mark.parametrize(
    "augmentation",
    [
        NOTHING,
        *(Augmentation(name) for name in augmentations.AUGMENTATIONS if name != "none"),
        *(Augmentation("none", policy=policy) for policy in augmentations.POLICIES if policy != "none"),
        Augmentation("none", color_jitter=0.1),
        Augmentation("none", rotation_degrees=5),
        Augmentation("none", erasing_probability=0.5),
    ],
    ids=Augmentation.describe,
)
def test_is_random_says_whether_pictures_differ(augmentation: Augmentation) -> None:
    pictures = draw(augmentation, RAMP, 20)
    assert augmentation.is_random == any(not torch.equal(picture, pictures[0]) for picture in pictures)


def test_a_seed_decides_the_picture_alone() -> None:
    transform = augmentations.make_train_transform(EVERYTHING, 32)
    torch.manual_seed(1)
    first = augmentations.apply_seeded(transform, RAMP, 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(augmentations.apply_seeded(transform, RAMP, 7), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(augmentations.apply_seeded(transform, RAMP, 8), first)


# ---- a batch ----


def make_batch(size: int = 32) -> Batch:
    """Five images of one value each; of four classes each image has one, and of image 2 class 3 is unknown."""
    values = torch.tensor([0, 60, 120, 180, 240], dtype=torch.uint8)
    targets = torch.eye(5, 4)
    targets[2, 3] = float("nan")
    images = values[:, None, None, None].expand(5, 3, size, size).contiguous()
    return Batch(images, targets, torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25]))


def are_equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(one, other, strict=True))


def assert_labels_are_mixed(mixed: Batch, share: float) -> None:
    """Targets and weights are `share` of their own and the rest of the image before; unknown where either is."""
    plain = make_batch()
    for new, old in ((mixed.targets, plain.targets), (mixed.weights, plain.weights)):
        old = old.double().numpy()
        expected = share * old + (1 - share) * np.roll(old, 1, axis=0)
        np.testing.assert_allclose(new.numpy(), expected, rtol=1e-4, atol=1e-6)  # NaN only where NaN is expected
    assert np.isnan(mixed.targets.numpy()).nonzero()[0].tolist() == [2, 3]


def test_mixup_is_the_formula() -> None:
    mix = augmentations.make_batch_transform(seed=0, mixup_alpha=0.2)
    plain, shares = make_batch(), []
    for step in range(100):
        mixed = mix(plain, 1, step)
        share = mixed.targets[0, 0].item()  # of image 0, which alone has class 0
        assert_labels_are_mixed(mixed, share)
        values = plain.images.double().numpy()
        expected = share * values + (1 - share) * np.roll(values, 1, axis=0)
        assert mixed.images.dtype == torch.float32
        np.testing.assert_allclose(mixed.images.numpy(), expected, rtol=1e-4, atol=1e-2)
        shares.append(share)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.2)  # of Beta(0.2, 0.2)
    assert are_equal(plain, make_batch())


def test_cutmix_pastes_a_rectangle_and_mixes_labels_by_its_area() -> None:
    mix = augmentations.make_batch_transform(seed=0, cutmix_alpha=1.0)
    plain, shares = make_batch(), []
    for step in range(50):
        mixed = mix(plain, 1, step)
        pasted = mixed.images != plain.images
        rectangle = pasted[0, 0]
        assert torch.equal(rectangle, rectangle.any(dim=1)[:, None] & rectangle.any(dim=0))
        assert torch.equal(pasted, rectangle.expand_as(pasted))  # the same one in all images and channels
        assert torch.equal(mixed.images[pasted], plain.images.roll(1, 0)[pasted].float())
        assert mixed.images.dtype == torch.float32
        shares.append(1 - rectangle.double().mean().item())
        assert_labels_are_mixed(mixed, shares[-1])
    assert min(shares) < 0.4
    assert max(shares) > 0.9


def test_with_both_alphas_each_batch_is_mixed_one_way_or_the_other() -> None:
    mix = augmentations.make_batch_transform(seed=0, mixup_alpha=1.0, cutmix_alpha=1.0)
    batches = [mix(make_batch(), 1, step) for step in range(100)]
    assert 30 < sum(len(batch.images[0].unique()) == 1 for batch in batches) < 70  # mixup leaves images of one value


def test_without_options_a_batch_stays_as_it_is() -> None:
    batch = make_batch()
    assert augmentations.make_batch_transform(seed=0)(batch, 1, 0) is batch


def test_sizes_change_every_few_steps() -> None:
    change = augmentations.make_batch_transform(seed=0, multi_scale_sizes=(16, 24, 32), steps_per_size=3)
    ramp = make_batch()._replace(images=SQUARE.expand(5, -1, -1, -1))
    batches = [[change(ramp, epoch, step) for step in range(60)] for epoch in (1, 2)]
    sizes = np.array([[batch.images.shape[-1] for batch in epoch] for epoch in batches])
    assert (sizes.reshape(2, 20, 3) == sizes[:, ::3, None]).all()
    assert set(sizes[0]) == set(sizes[1]) == {16, 24, 32}
    assert (sizes[0] != sizes[1]).any()
    for batch in batches[0]:
        side = batch.images.shape[-1]
        assert batch.images.shape == (5, 3, side, side)
        assert torch.equal(batch.images[3], augmentations.make_eval_transform("squash", side)(SQUARE))
        assert torch.equal(batch.weights, ramp.weights)


@pytest.mark.parametrize(
    "options", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}]
)
def test_seed_epoch_and_step_decide_a_batch_alone(options: dict[str, Any]) -> None:
    options |= {"multi_scale_sizes": (16, 32), "steps_per_size": 2}
    places = [(epoch, step) for epoch in (1, 2) for step in range(8)]
    torch.manual_seed(1)
    change = augmentations.make_batch_transform(3, **options)
    first = [change(make_batch(), *place) for place in places]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = augmentations.make_batch_transform(3, **options)
    for place, batch in reversed(list(zip(places, first, strict=True))):  # also when others were drawn before
        assert are_equal(again(make_batch(), *place), batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({batch.targets.nan_to_num().sum(dim=1).numpy().tobytes() for batch in first}) == len(places)
    other = augmentations.make_batch_transform(4, **options)
    assert not are_equal(other(make_batch(), *places[0]), first[0])
