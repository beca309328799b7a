"""dataset/plans.py and dataset/device_pictures.py: a batch made at once from plans, against the transforms themselves.

What a GPU computes is computed here on CPU tensors.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.transforms import v2

from dataset import augmentations, device_pictures
from dataset.augmentations import Augmentation, apply_seeded, make_eval_transform, make_train_transform
from dataset.batches import Batch, Transform
from dataset.device_pictures import SentImages, send
from dataset.plans import MOST_SENT, make_planner, take_part
from dataset.resize_rules import RESIZE_RULES
from dataset.resize_weights import Side, make_weights
from dataset.timm_rules import INTERPOLATIONS

Pixels = NDArray[np.uint8]
SIZES = [(32, 32), (24, 56), (56, 24)]
# heights and widths: as large, larger, smaller than the pictures, too large to be sent, sides of a pixel
SHAPES = [(32, 32), (50, 41), (33, 75), (20, 13), (9, 60), (300, 210), (1, 40), (37, 1), (1, 1), (64, 64), (24, 56)]
EVERYTHING = Augmentation("crop_flip", 0.3, "rand_augment", 0.4, 20, 0.9)


def draw_image(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Smooth colours with noise, black, white and grey areas."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    image = np.clip(image + rng.integers(-20, 21, image.shape), 0, 255)
    image[: height // 5, : width // 3] = 0
    image[-(height // 5) - 1 :, -(width // 4) - 1 :] = 255
    image[: height // 4, width // 2 :] = rng.integers(0, 256)
    return image.astype(np.uint8)


def draw_images(shapes: Sequence[tuple[int, int]]) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [draw_image(rng, *shape) for shape in shapes]


def make_on_cpu(transform: Transform, images: Sequence[Pixels]) -> Tensor:
    """The pictures as a loading process makes them by itself, of the seeds from 0 on."""
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    return torch.stack([apply_seeded(transform, image, seed) for seed, image in enumerate(tensors)])


def send_images(transform: Transform, images: Sequence[Pixels], first_seed: int = 0) -> SentImages:
    draw = make_planner(transform)
    parts = [
        take_part(image, draw(len(image), image.shape[1], first_seed + number)) for number, image in enumerate(images)
    ]
    return send(pickle.loads(pickle.dumps(parts)))  # as between processes


def measure_difference(pictures: Tensor, expected: Tensor) -> int:
    assert pictures.shape == expected.shape
    assert pictures.dtype == expected.dtype == torch.uint8
    return int((pictures.int() - expected.int()).abs().max())


# ---- resizing ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize("name", augmentations.AUGMENTATIONS)
def test_resized_and_mirrored_pictures_are_the_transforms_but_for_rounding(
    name: str, rule: str, size: tuple[int, int]
) -> None:
    images = draw_images(SHAPES * 3)
    transform = make_train_transform(Augmentation(name, 0.2), size, rule)
    expected = make_on_cpu(transform, images)
    assert measure_difference(send_images(transform, images).to("cpu"), expected) <= 1


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_resized_pictures_are_the_bits_of_torchs_integers(rule: str) -> None:
    """Where torch resizes in whole numbers, as on processors with AVX2, so are all that are made from plans."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch resizes in float32 here")
    images = draw_images([(40, 40), (50, 41), (33, 75), (20, 13), (64, 64)])
    transform = make_eval_transform(rule, 32)
    assert torch.equal(send_images(transform, images).to("cpu"), make_on_cpu(transform, images))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_timms_rules_give_the_bits_of_timm(interpolation: str, mode: str, size: tuple[int, int]) -> None:
    images = draw_images([shape for shape in SHAPES if min(shape) > 1])
    for share in (0.875, 1.0):
        transform = make_eval_transform(f"timm {mode} {share} {interpolation} 0.485,0.456,0.406", size)
        assert torch.equal(send_images(transform, images).to("cpu"), make_on_cpu(transform, images))


@pytest.mark.parametrize("shape", [(80, 40), (40, 80), (81, 32), (300, 200)])
def test_a_crop_that_is_larger_than_is_worth_sending_is_resized_in_the_loading_process(shape: tuple[int, int]) -> None:
    (image,) = draw_images([shape])
    transform = make_eval_transform("squash", 32)
    part = take_part(image, make_planner(transform)(*shape, 0))
    is_resized = max(shape) > MOST_SENT * 32
    assert part.pixels.shape == ((32, 32, 3) if is_resized else (*shape, 3))
    if is_resized:
        assert torch.equal(send([part]).to("cpu"), make_on_cpu(transform, [image]))


def test_only_what_the_picture_shows_is_sent() -> None:
    (image,) = draw_images([(40, 70)])
    part = take_part(image, make_planner(make_eval_transform("center_crop", 32))(40, 70, 0))
    assert part.pixels.shape[0] < 40
    assert part.pixels.shape[1] < 40
    assert part.pixels.untyped_storage().nbytes() == part.pixels.numel(), "the image is not kept"


def test_images_that_are_ready_stay_as_they_are() -> None:
    images = draw_images([(24, 56)] * 4)
    sent = send_images(augmentations.identity, images)
    assert sent.is_ready
    assert torch.equal(sent.to("cpu"), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        send_images(augmentations.identity, draw_images([(24, 56), (24, 55)]))


def test_halves_of_weights_have_8_bits_as_pixels_have() -> None:
    """So a GPU that multiplies in TF32, or even in bfloat16, computes the same."""
    sides = [Side(0, 100, 40, 0, 40), Side(0, 100, 7, -3, 40), Side(0, 30, 40, 0, 40, is_mirrored=True)]
    table = torch.tensor([[*side, side.unit] for side in sides])
    weights = make_weights(table, 40, 100, max(side.num_taps for side in sides))
    assert torch.equal(weights.halves.bfloat16().float(), weights.halves)
    high, low = weights.halves.double().chunk(2, dim=1)
    sums = ((256 * high + low) / weights.unit).sum(dim=2)
    assert torch.allclose(sums[weights.is_inside], torch.tensor(1.0, dtype=torch.float64), atol=1e-3)
    assert (sums[~weights.is_inside] == 0).all()


def test_16_bits_around_it_do_not_change_pictures() -> None:
    images = draw_images(SHAPES)
    sent = send_images(make_train_transform(EVERYTHING, 32), images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sent.to("cpu"), send_images(make_train_transform(EVERYTHING, 32), images).to("cpu"))


# ---- what follows ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "augmentation",
    [
        *(Augmentation("flip", policy=policy) for policy in augmentations.POLICIES),
        Augmentation("flip", color_jitter=0.4),
        Augmentation("flip", color_jitter=1.0),
        Augmentation("flip", rotation_degrees=180),
        Augmentation("flip", erasing_probability=0.7, erasing_max_share=0.9),
        Augmentation("flip", 0.5, "trivial_augment", 0.3, 30, 0.5),
    ],
    ids=Augmentation.describe,
)
def test_from_the_resized_picture_on_all_bits_are_the_transforms(
    augmentation: Augmentation, size: tuple[int, int]
) -> None:
    images = draw_images([size] * 120)  # which no resize rule changes
    transform = make_train_transform(augmentation, size)
    expected = make_on_cpu(transform, images)
    found = send_images(transform, images).to("cpu")
    different = [number for number in range(len(images)) if not torch.equal(found[number], expected[number])]
    assert not different


def test_a_gpu_finds_the_same_places_without_a_product_of_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    places, matrices = torch.rand(1, 50, 3, generator=generator), torch.rand(4, 3, 2, generator=generator)
    expected = places.double().expand(4, -1, -1) @ matrices.double()
    assert torch.allclose(device_pictures.multiply_exactly(places, matrices).double(), expected, rtol=1e-6)


@pytest.mark.parametrize("angle", [0, 90, 180, 270, 360, -90, 45])
@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_quarter_turns_are_those_of_torchvision(angle: int, size: tuple[int, int]) -> None:
    transform = v2.RandomRotation((angle, angle), v2.InterpolationMode.BILINEAR, fill=augmentations.GREY)
    images = draw_images([size])
    assert torch.equal(send_images(transform, images).to("cpu"), make_on_cpu(transform, images))


def test_pictures_too_small_for_an_operation_are_the_transforms() -> None:
    for policy in augmentations.POLICIES:
        for size in ((1, 1), (2, 5), (1, 9)):
            images = draw_images([size] * 60)
            transform = make_train_transform(Augmentation("none", policy=policy, erasing_probability=0.5), size)
            assert torch.equal(send_images(transform, images).to("cpu"), make_on_cpu(transform, images))


@pytest.mark.parametrize("augmentation", [EVERYTHING, Augmentation("crop_flip", 0.5, "trivial_augment")])
def test_a_batch_has_the_bits_of_its_images_alone_however_it_is_cut(
    augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw_images(SHAPES * 4)
    transform = make_train_transform(augmentation, (24, 56))
    together = send_images(transform, images).to("cpu")
    alone = [send_images(transform, [image], seed).to("cpu") for seed, image in enumerate(images)]
    assert torch.equal(together, torch.cat(alone))
    monkeypatch.setattr(device_pictures, "CHUNK_BYTES", 1e6)
    assert torch.equal(send_images(transform, images).to("cpu"), together)


def test_drawing_leaves_the_random_numbers_of_the_run_alone() -> None:
    draw = make_planner(make_train_transform(EVERYTHING, 32))
    before = torch.get_rng_state()
    plan = draw(50, 40, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(50, 40, 3) == plan
    assert draw(50, 40, 4) != plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_transform_without_a_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="no plan of RandomVerticalFlip"):
        make_planner(v2.Compose([v2.RandomVerticalFlip()]))


# ---- what a loader does with them ----


def test_a_batch_is_pinned_and_moved_as_one_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    images = draw_images(SHAPES)
    transform = make_train_transform(EVERYTHING, 32)
    sent = send_images(transform, images)
    assert len(sent) == len(images)
    batch: Any = Batch(sent, torch.zeros(len(images), 2), torch.ones(len(images)))  # pyright: ignore[reportArgumentType]
    batch = type(batch)(*(value.pin_memory() for value in batch))  # as torch's loader does
    assert len(pinned) == 4 + 2
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.images, sent.to("cpu"))
    assert moved.images.is_contiguous()


@pytest.mark.parametrize(
    "augmentation", [EVERYTHING, *(Augmentation("flip", policy=policy) for policy in augmentations.POLICIES)]
)
def test_nothing_is_read_back_from_the_device(augmentation: Augmentation) -> None:
    sent = send_images(make_train_transform(augmentation, 32, "letterbox"), draw_images(SHAPES * 3))
    border = send_images(make_eval_transform("timm border 1.0 bicubic 0.5,0.4,0.3", 32), draw_images([(40, 50)]))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        device_pictures.make_pictures(sent)
        device_pictures.make_pictures(border)
    names = {event.key for event in profiler.key_averages()}
    assert "aten::bmm" in names
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}
