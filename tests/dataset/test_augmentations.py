"""dataset/augmentations.py: pixels of each transform, mixed batches against their formula, and draws that follow
their seed.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from dataset import augmentations, loading, resize_rules
from dataset.augmentations import Augmentation
from dataset.batches import Batch
from dataset.table import Table

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


@pytest.mark.parametrize("rule", resize_rules.RESIZE_RULES)
@pytest.mark.parametrize("name", augmentations.AUGMENTATIONS)
@pytest.mark.parametrize("policy", augmentations.POLICIES)
def test_every_transform_gives_a_uint8_square(name: str, policy: str, rule: str) -> None:
    augmentation = Augmentation(name, 0.5, policy, 0.2, 10, 0.5)
    for transform in (
        augmentations.make_train_transform(augmentation, 32, rule),
        resize_rules.make_eval_transform(rule, 32),
    ):
        transform = pickle.loads(pickle.dumps(transform))  # as loading processes that are spawned get it
        for seed in range(30):  # a policy has many operations
            image = augmentations.apply_seeded(transform, RAMP, seed)
            assert image.shape == (3, 32, 32)
            assert image.dtype == torch.uint8


def test_squash_keeps_the_edges_and_center_crop_the_shape() -> None:
    squashed = resize_rules.make_eval_transform("squash", 32)(RAMP)
    cropped = resize_rules.make_eval_transform("center_crop", 32)(RAMP)
    assert squashed[0, 0, 0] < 8
    assert squashed[0, 0, -1] > 244
    step = RAMP.float().mean(dim=(0, 1)).diff().mean() * 40 / round(32 * 8 / 7)  # brightness a pixel, after resizing
    assert cropped[0, 16].float().diff().mean() == pytest.approx(step.item(), rel=0.05)
    assert cropped[0, 16, 15].item() == pytest.approx(126, abs=5)


@pytest.mark.parametrize("turned", [False, True])
def test_letterbox_keeps_shape_and_edges_between_bars_of_0(turned: bool) -> None:
    picture = resize_rules.make_eval_transform("letterbox", 32)(RAMP.mT if turned else RAMP)
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
    letterbox = resize_rules.make_eval_transform("letterbox", 32)
    assert torch.equal(letterbox(SQUARE), SQUARE)
    line = letterbox(torch.full((3, 1, 1000), 200, dtype=torch.uint8))
    assert (line == 200).sum() == 3 * 32


def make_scene(height: int, width: int) -> Image.Image:
    """A picture that tells its axes apart: its left half is red, green rises downwards, blue slowly to the right."""
    y, x = np.indices((height, width)) / [[[height]], [[width]]]
    return Image.fromarray(np.stack([255 * (x < 0.5), 250 * y, 120 * x], axis=2).astype(np.uint8))


def resize_by_pil(picture: Image.Image, rule: str, height: int, width: int) -> Image.Image:
    """What RESIZE_RULES say, by PIL, which has the width first."""
    bilinear = Image.Resampling.BILINEAR
    if rule == "squash":
        return picture.resize((width, height), bilinear)
    if rule == "letterbox":
        inside, canvas = ImageOps.contain(picture, (width, height), bilinear), Image.new("RGB", (width, height))
        canvas.paste(inside, ((width - inside.width) // 2, (height - inside.height) // 2))
        return canvas
    whole = ImageOps.cover(picture, (round(width * 8 / 7), round(height * 8 / 7)), bilinear)
    left, top = (whole.width - width) // 2, (whole.height - height) // 2
    return whole.crop((left, top, left + width, top + height))


@pytest.mark.parametrize("rule", resize_rules.RESIZE_RULES)
@pytest.mark.parametrize("size", [(40, 88), (88, 40), (64, 64)])
@pytest.mark.parametrize("shape", [(120, 168), (168, 120), (90, 300)])
def test_a_loaded_batch_is_what_pil_makes_of_the_files(
    rule: str, size: tuple[int, int], shape: tuple[int, int], tmp_path: Path
) -> None:
    scene = make_scene(*shape)
    scene.save(tmp_path / "a.png")
    scene.save(tmp_path / "b.jpg", quality=100, subsampling=0)
    table = Table([str(tmp_path / "a.png"), str(tmp_path / "b.jpg")], np.zeros((2, 1), np.int8), ("a",))
    batch = next(iter(loading.make_loader(table, resize_rules.make_eval_transform(rule, size), batch_size=2)))
    assert batch.images.shape == (2, 3, *size)
    expected = np.asarray(resize_by_pil(scene, rule, *size)).astype(float)
    for image in batch.images.permute(0, 2, 3, 1).numpy().astype(float):
        assert np.quantile(np.abs(image - expected), 0.98) <= 6, "but for the edge of the red"
        assert np.abs(image - expected).mean() < 3


@pytest.mark.parametrize("shape", [(120, 160), (161, 121), (90, 300), (64, 64), (300, 77)])
def test_a_square_is_resized_by_torchvision(shape: tuple[int, int]) -> None:
    """torchvision knows squares by their side; what is said of both sides gives the same pixels."""
    image = torch.from_numpy(np.array(make_scene(*shape))).permute(2, 0, 1)
    for side in (32, 56, 75):
        cropped = v2.Compose([v2.Resize(round(side * 8 / 7), antialias=True), v2.CenterCrop(side)])(image)
        for size in (side, (side, side)):
            assert torch.equal(resize_rules.make_eval_transform("center_crop", size)(image), cropped)
        shrunk = v2.Resize(side, antialias=True)(image) if min(shape) > side else image
        assert torch.equal(augmentations.shrink(side)(image), shrunk)


@pytest.mark.parametrize("size", [(30, 60), (60, 30)])
def test_a_shrunk_image_just_covers_an_oblong_size(size: tuple[int, int]) -> None:
    for shape in ((120, 160), (160, 120), (100, 200)):
        image = torch.from_numpy(np.array(make_scene(*shape))).permute(2, 0, 1)
        height, width = augmentations.shrink(size)(image).shape[1:]
        assert height >= size[0]
        assert width >= size[1]
        assert (height == size[0]) or (width == size[1])
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.04)
    small = torch.zeros(3, 200, size[1] - 1, dtype=torch.uint8)
    assert augmentations.shrink(size)(small) is small


# ---- one image ----


@pytest.mark.parametrize("size", [(24, 56), (56, 24), (40, 40)])
def test_random_crops_have_the_shape_of_the_size_or_nearly(size: tuple[int, int]) -> None:
    """The part of an image that a crop shows is as wide as it is high, but for up to 4/3 and the size's proportion."""
    y, x = np.indices((250, 250))
    places = torch.from_numpy(np.stack([x, y, np.full_like(x, 255)])).to(torch.uint8)  # where each pixel is
    transform = augmentations.make_train_transform(Augmentation("crop_flip", 0.1), size)
    shapes = []
    for seed in range(60):
        picture = augmentations.apply_seeded(transform, places, seed).float()
        assert picture.shape == (3, *size)
        seen_width = abs(picture[0, :, -1] - picture[0, :, 0]).mean().item() * size[1] / (size[1] - 1)
        seen_height = (picture[1, -1] - picture[1, 0]).mean().item() * size[0] / (size[0] - 1)
        shapes.append(seen_width / seen_height / (size[1] / size[0]))
    assert 0.7 < min(shapes) < 0.85
    assert 1.2 < max(shapes) < 1.42


@pytest.mark.parametrize("policy", augmentations.POLICIES)
def test_every_transform_keeps_an_oblong_size(policy: str) -> None:
    for name in augmentations.AUGMENTATIONS:
        for rule in resize_rules.RESIZE_RULES:
            transform = augmentations.make_train_transform(
                Augmentation(name, 0.5, policy, 0.2, 10, 0.5), (24, 56), rule
            )
            transform = pickle.loads(pickle.dumps(transform))
            assert augmentations.apply_seeded(transform, RAMP, 3).shape == (3, 24, 56)


@pytest.mark.parametrize("rule", resize_rules.RESIZE_RULES)
def test_no_augmentation_is_the_resize_rule(rule: str) -> None:
    plain = augmentations.make_train_transform(NOTHING, 32, rule)
    assert torch.equal(plain(RAMP), resize_rules.make_eval_transform(rule, 32)(RAMP))


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
        assert torch.equal(batch.images[3], resize_rules.make_eval_transform("squash", side)(SQUARE))
        assert torch.equal(batch.weights, ramp.weights)
    change = augmentations.make_batch_transform(seed=0, multi_scale_sizes=((16, 40),))
    oblong = change(ramp, 1, 0).images
    assert oblong.shape == (5, 3, 16, 40)
    assert torch.equal(oblong[3], resize_rules.make_eval_transform("squash", (16, 40))(SQUARE))


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
