"""Draws, in a loading process, what a transform would do to an image: the device does it to a whole batch later.

    draw = make_planner(transform)          # of a transform of dataset/augmentations.py
    plan = draw(height, width, seed)        # with the random numbers of apply_seeded(transform, image, seed)
    part = take_part(image, plan)           # the pixels that are sent, and what is left to do to them
    images = device_pictures.send([part])   # of a batch

The loading process resizes large crops by itself, exactly as without plans: a batch of photographs of 12 megapixels
would take gigabytes. By timm's rules it resizes all of them, with PIL, which rounds otherwise than torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional._geometry import _get_inverse_affine_matrix

from dataset.augmentations import draw_from
from dataset.batches import Transform
from dataset.image_sizes import Size
from dataset.resize_rules import cover_and_cut, find_cover, find_covering, find_fitting, fit, identity, resize
from dataset.resize_weights import Side
from dataset.timm_rules import TimmTransform

# Up to this many times the picture's sides, pixels are sent as they are. Crops of photographs of 500 pixels are below
# it for pictures of 224; a batch takes at most 6.25 times the bytes of its pictures.
MOST_SENT = 2.5
BLACK = (0, 0, 0)


class Operation(NamedTuple):
    """What changes a picture after it was resized: a key of device_pictures.OPERATIONS, and its numbers."""

    name: str
    values: tuple[float, ...] = ()


class Plan(NamedTuple):
    """What becomes of one image. It holds plain numbers and texts."""

    rows: Side
    columns: Side
    interpolation: str = ""  # of PIL, for a rule of timm's; "" where torch resizes
    fill: tuple[int, ...] = BLACK  # RGB of the borders
    operations: tuple[Operation, ...] = ()

    @property
    def size(self) -> Size:
        """The picture's size."""
        return Size(self.rows.kept, self.columns.kept)

    def add(self, *operations: Operation) -> Plan:
        return self._replace(operations=self.operations + operations)

    def resize(self, size: Size | list[int], interpolation: str = "") -> Plan:
        """The plan which resizes the image, or the crop that was taken of it."""
        rows, columns = (
            side._replace(resized=pixels, kept=pixels)
            for side, pixels in zip((self.rows, self.columns), size, strict=True)
        )
        return self._replace(rows=rows, columns=columns, interpolation=interpolation)

    def cut_middle(self, size: Size | list[int], fill: tuple[int, ...] = BLACK) -> Plan:
        """The plan which cuts out the middle, or puts a border around what is smaller, as torchvision does."""
        rows, columns = (
            side._replace(first=_find_first(side.kept, pixels), kept=pixels)
            for side, pixels in zip((self.rows, self.columns), size, strict=True)
        )
        return self._replace(rows=rows, columns=columns, fill=fill)


class Part(NamedTuple):
    """What is sent of one image: its pixels uint8 (h, w, 3), and the plan of what is left to do to them."""

    pixels: Tensor
    plan: Plan


Planner = Callable[[int, int, int], Plan]  # (height, width, seed) -> Plan


def make_planner(transform: Transform) -> Planner:
    """A function (height, width, seed) -> Plan that draws what `transform` does to an image of this size.

    Raises ValueError for a transform that is none of dataset/augmentations.py.
    """
    steps = _list_steps(transform)

    def draw(height: int, width: int, seed: int) -> Plan:
        plan = Plan(Side(0, height, height, 0, height), Side(0, width, width, 0, width))
        with draw_from(seed):
            for step in steps:
                plan = step(plan)
        return plan

    return draw


def take_part(image: NDArray[np.uint8] | Tensor, plan: Plan) -> Part:
    """Take what `plan` needs out of `image`, uint8 (H, W, 3), on the device where it is; a large crop is resized."""
    pixels = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
    if plan.interpolation or _is_large(plan):  # the device does not resize as PIL does
        pixels, plan = _resize_now(pixels, plan)
    sides = []
    for dim, side in enumerate((plan.rows, plan.columns)):
        needed = side.find_needed()
        pixels = pixels.narrow(dim, side.start + needed.start, len(needed))
        sides.append(side._replace(offset=needed.start))
    return Part(pixels.contiguous(), plan._replace(rows=sides[0], columns=sides[1]))


def _is_large(plan: Plan) -> bool:
    return any(len(side.find_needed()) > MOST_SENT * side.kept for side in (plan.rows, plan.columns))


def _resize_now(pixels: Tensor, plan: Plan) -> tuple[Tensor, Plan]:
    """The resized crop as the transform makes it, without what the picture does not show, and the plan for the rest."""
    for dim, side in enumerate((plan.rows, plan.columns)):
        pixels = pixels.narrow(dim, side.start, side.length)
    height, width = plan.rows.resized, plan.columns.resized
    if plan.interpolation:
        method = Image.Resampling[plan.interpolation.upper()]
        image = Image.fromarray(pixels.cpu().numpy()).resize((width, height), method)
        pixels = torch.from_numpy(np.array(image)).to(pixels.device)
    else:
        pixels = F.resize(pixels.permute(2, 0, 1), [height, width], antialias=True).permute(1, 2, 0)
    sides = []
    for dim, side in enumerate((plan.rows, plan.columns)):
        begin, end = max(side.first, 0), min(side.first + side.kept, side.resized)
        pixels = pixels.narrow(dim, begin, end - begin)
        sides.append(Side(0, end - begin, end - begin, min(side.first, 0), side.kept, side.is_mirrored))
    return pixels, plan._replace(rows=sides[0], columns=sides[1])


def _find_first(side: int, kept: int) -> int:
    """Where `kept` pixels around the middle of a side begin, as torchvision rounds it; below 0 for a shorter side."""
    return round((side - kept) / 2) if side >= kept else -((kept - side) // 2)


# ---- steps of transforms ----


def _list_steps(transform: Any) -> list[Callable[[Plan], Plan]]:
    """The steps of `transform`, each a function of the plan so far that draws what comes next."""
    if isinstance(transform, v2.Compose):
        return [step for inner in transform.transforms for step in _list_steps(inner)]
    for kind in (getattr(transform, "func", None), type(transform), transform):
        if kind in STEPS:
            return [partial(STEPS[kind], transform)]
    raise ValueError(f"there is no plan of {transform}: enter it in STEPS of dataset/plans.py")


def _make_blank(plan: Plan) -> Tensor:
    """An image of the size that the plan gives so far, without pixels, for what torchvision draws."""
    return torch.empty(3, *plan.size, device="meta")


def _keep(step: Any, plan: Plan) -> Plan:
    return plan


def _squash(step: Any, plan: Plan) -> Plan:
    return plan.resize(step.keywords["size"])


def _cover_and_cut(step: Any, plan: Plan) -> Plan:
    size = step.keywords["size"]
    return plan.resize(find_covering(plan.size, find_cover(size))).cut_middle(size)


def _fit(step: Any, plan: Plan) -> Plan:
    size = step.keywords["size"]
    return plan.resize(find_fitting(plan.size, size)).cut_middle(size)


def _resize_as_timm(step: TimmTransform, plan: Plan) -> Plan:
    return plan.resize(step.find_resized(plan.size), step.interpolation).cut_middle(step.size, step.find_fill())


def _crop(step: Any, plan: Plan) -> Plan:
    drawn = step.make_params([_make_blank(plan)])
    rows = Side(drawn["top"], drawn["height"], drawn["height"], 0, drawn["height"])
    columns = Side(drawn["left"], drawn["width"], drawn["width"], 0, drawn["width"])
    return plan._replace(rows=rows, columns=columns).resize(Size(*step.size))


def _mirror(step: v2.RandomHorizontalFlip, plan: Plan) -> Plan:
    is_mirrored = bool(torch.rand(1) < step.p)
    return plan._replace(columns=plan.columns._replace(is_mirrored=is_mirrored))


def _jitter(step: v2.ColorJitter, plan: Plan) -> Plan:
    drawn = step.make_params([])
    names = ("brightness", "contrast", "saturation", "hue")
    factors = [(names[number], drawn[f"{names[number]}_factor"]) for number in drawn["fn_idx"].tolist()]
    return plan.add(*(_plan_factor(name, factor) for name, factor in factors if factor is not None))


def _rotate(step: v2.RandomRotation, plan: Plan) -> Plan:
    angle = step.make_params([])["angle"]
    return plan.add(*_plan_rotation(angle, plan.size, v2.InterpolationMode(step.interpolation).value))


def _erase(step: v2.RandomErasing, plan: Plan) -> Plan:
    if torch.rand(1) >= step.p:
        return plan
    drawn = step.make_params([_make_blank(plan)])
    if drawn["v"] is None:  # torchvision found no rectangle that fits
        return plan
    return plan.add(Operation("erase", (drawn["i"], drawn["j"], drawn["h"], drawn["w"])))


def _choose_by_policy(step: Any, plan: Plan) -> Plan:
    """Let torchvision's policy run on an image without pixels, and record what it would do."""
    recorded: list[Operation] = []

    def record(image: Tensor, name: str, magnitude: float, **_: Any) -> Tensor:
        recorded.extend(_plan_policy(name, magnitude, plan.size))
        return image

    recorder = copy.copy(step)
    recorder._apply_image_or_video_transform = record
    recorder(_make_blank(plan))
    return plan.add(*recorded)


def _plan_policy(name: str, magnitude: float, size: Size) -> list[Operation]:
    """What `_apply_image_or_video_transform` of torchvision's policies does."""
    if name in POLICY_FACTORS:
        return [_plan_factor(POLICY_FACTORS[name], 1.0 + magnitude)]
    match name:
        case "Identity":
            return []
        case "AutoContrast" | "Equalize" | "Invert":
            return [Operation(name.lower())]
        case "Posterize":
            return [Operation("posterize", (256 - 2 ** (8 - int(magnitude)),))]  # the bits that stay
        case "Solarize":
            return [Operation("solarize", (255 * magnitude,))]
        case "Rotate":
            return _plan_rotation(magnitude, size, "nearest")
        case "TranslateX":
            return [_warp(size, translate=[int(magnitude), 0.0])]
        case "TranslateY":
            return [_warp(size, translate=[0.0, int(magnitude)])]
        case "ShearX":
            return [_warp(size, shear=[math.degrees(math.atan(magnitude)), 0.0], corner=True)]
        case "ShearY":
            return [_warp(size, shear=[0.0, math.degrees(math.atan(magnitude))], corner=True)]
    raise ValueError(f"there is no plan of {name}: enter it in _plan_policy of dataset/plans.py")


def _plan_factor(name: str, factor: float) -> Operation:
    """The operation with the shares of the picture and of what it is blended with; `hue` reads the first alone."""
    return Operation(name, (factor, 1.0 - factor))


def _plan_rotation(angle: float, size: Size, interpolation: str) -> list[Operation]:
    """What F.rotate does: quarter turns move pixels, where the picture keeps its size."""
    angle %= 360
    if angle == 0:
        return []
    if angle == 180 or (size.is_square and angle in (90, 270)):
        return [Operation(f"turn_{angle:.0f}")]
    return [_warp(size, angle=-angle, interpolation=interpolation)]


def _warp(
    size: Size,
    angle: float = 0.0,
    translate: list[float] | None = None,
    shear: list[float] | None = None,
    corner: bool = False,
    interpolation: str = "nearest",
) -> Operation:
    """What F.affine and F.rotate do: for each pixel of the picture, where it comes from.

    The place is (x, y) in halves of the sides, from the middle; the six numbers are those by which x, y and 1 count in
    its x, then in its y. Around the `corner` instead of the middle for shears.
    """
    center = [-0.5 * size.width, -0.5 * size.height] if corner else [0.0, 0.0]
    matrix = _get_inverse_affine_matrix(center, angle, translate or [0.0, 0.0], 1.0, shear or [0.0, 0.0])
    halves = np.array([[0.5 * size.width], [0.5 * size.height]], dtype=np.float32)
    values = np.array(matrix, dtype=np.float32).reshape(2, 3) / halves  # in float32, as torchvision
    return Operation(f"warp_{interpolation}", tuple(values.ravel().tolist()))


POLICY_FACTORS = {
    "Brightness": "brightness",
    "Color": "saturation",
    "Contrast": "contrast",
    "Sharpness": "sharpness",
}
# keys: classes of steps, functions that are steps or that `partial` makes steps of; values: (step, plan so far) -> plan
STEPS: dict[Any, Callable[[Any, Plan], Plan]] = {
    identity: _keep,
    resize: _squash,
    cover_and_cut: _cover_and_cut,
    fit: _fit,
    TimmTransform: _resize_as_timm,
    v2.RandomResizedCrop: _crop,
    v2.RandomHorizontalFlip: _mirror,
    v2.AutoAugment: _choose_by_policy,
    v2.RandAugment: _choose_by_policy,
    v2.TrivialAugmentWide: _choose_by_policy,
    v2.ColorJitter: _jitter,
    v2.RandomRotation: _rotate,
    v2.RandomErasing: _erase,
}
