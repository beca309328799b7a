"""Shows where in an image a model sees a class: maps over the positions of its features, laid over the image.

    trace = follow(model, image)                            # image: uint8 (3, H, W), as the resize rule leaves it
    maps = METHODS["grad-cam"](trace, [0, 7])               # (2, h, w), of classes 0 and 7
    size = Size(224, 224)                                   # that the model sees
    frame = UNDO_RESIZE_RULES["letterbox"](480, 640, size)  # where it lies on an image 480 high and 640 wide
    spread(maps[0], frame, 480, 640)                        # (480, 640), NaN at pixels that the model did not see
    draw_map(photograph, maps[0], "squash", size)           # the photograph under the colours of the map

The image runs through the network once. Each class then costs only a backward pass through the last layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from dataset.image_sizes import Size
from heads import Linear, LinearBN, MLDecoder, pool
from models_factory import MultiLabelModel
from utils import InputError

Frame = tuple[float, float, float, float]  # left, top, right, bottom of a rectangle, in pixels of the image

COLOURS = "inferno"  # one of matplotlib's colour maps; equal steps of the value look equal
STRENGTH = 0.6  # share of the colours where they cover the photograph


@dataclass(frozen=True)
class Trace:
    """What a model computed for one image, with what gradients need."""

    model: MultiLabelModel
    size: Size  # of the image
    outputs: list[tuple[nn.Module, Tensor]]  # layers of the backbone and what they gave, in the order in which they ran
    features: Tensor  # (1, D, h, w) or (1, T, D), the input of the head
    logits: Tensor  # (C,)


class Grid(NamedTuple):
    """A layer's output, and how its values are arranged as a map."""

    layer: nn.Module | None  # None: no position affects the logits of this image, and of another one some may
    output: Tensor
    arrange: Callable[[Tensor], Tensor]  # a tensor of the output's shape -> (D, h, w)

    @property
    def values(self) -> Tensor:
        """The output as (D, h, w)."""
        return self.arrange(self.output)


def follow(model: MultiLabelModel, image: Tensor, layer: nn.Module | None = None) -> Trace:
    """Run the model on an image, uint8 (3, H, W) on the model's device. The model stays in eval mode afterwards.

    With a `layer`, that of `find_grid` for an earlier image of the same size, gradients are kept from there on only,
    which takes less time and memory.
    """
    model.eval()
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            return output
        if layer is not None:
            torch.set_grad_enabled(True)
            output = output.detach().requires_grad_().clone()  # a clone may be changed in place by the next layer
        outputs.append((module, output))
        return output

    layers = [layer] if layer is not None else list_layers(model.backbone)
    hooks = [module.register_forward_hook(keep) for module in layers]
    try:
        with torch.set_grad_enabled(layer is None):
            features = model.extract_features(image[None].float().requires_grad_())
            logits = model.head(features)[0]
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(model, Size(*image.shape[1:]), outputs, features, logits)


def list_layers(backbone: nn.Module) -> list[nn.Module]:
    """The layers whose outputs may be a map: all but those inside an attention.

    Queries, keys and values are not the features of a place.
    """
    return [module for name, module in backbone.named_modules() if "attn" not in name and "attention" not in name]


def find_grid(trace: Trace) -> Grid:
    """The output of the last layer whose positions affect the logits. Raises InputError where there is none.

    For a transformer that classifies by its class token, this is the norm before the attention of the last block:
    later layers give no gradient to the other positions.
    """
    for layer, output in reversed(trace.outputs):
        arrange = _find_arrangement(trace, output)
        if arrange is None:
            continue
        gradient = torch.autograd.grad(trace.logits.sum(), output, retain_graph=True, allow_unused=True)[0]
        if gradient is not None and (arrange(gradient).any() or not gradient.any()):
            return Grid(layer if gradient.any() else None, output, arrange)
    raise InputError("no layer of this backbone gives a map or a grid of tokens: it has no class activation maps")


def _find_arrangement(trace: Trace, output: Tensor) -> Callable[[Tensor], Tensor] | None:
    """A function that makes (D, h, w) of an output shaped (1, D, h, w), (1, h, w, D) or, as tokens, (1, T, D).

    Returns None for an output whose positions form no grid of the image's shape, or only one position.
    """
    if len(output) != 1:
        return None
    if output.dim() == 3:
        num_tokens = output.shape[1]
        num_extra = _count_extra_tokens(trace, num_tokens)
        grid = None if num_extra is None else _find_grid_shape(num_tokens - num_extra, trace.size)
        if grid is None:
            return None
        return lambda tokens: tokens[0, num_extra:].T.unflatten(1, grid)
    if output.dim() == 4 and _is_map(output.shape[2:], trace.size):
        return lambda features: features[0]
    if output.dim() == 4 and _is_map(output.shape[1:3], trace.size):
        return lambda features: features[0].permute(2, 0, 1)
    return None


def _count_extra_tokens(trace: Trace, num_tokens: int) -> int | None:
    """How many tokens come before those of the positions: the class token, registers. None if the rest is no grid."""
    network = getattr(trace.model.backbone, "network", None)
    num_prefix_tokens = getattr(network, "num_prefix_tokens", None)  # of timm's networks
    if num_prefix_tokens is None:
        counts = range(num_tokens)
        return next((count for count in counts if _find_grid_shape(num_tokens - count, trace.size)), None)
    return num_prefix_tokens


def _find_grid_shape(num_positions: int, size: Size) -> tuple[int, int] | None:
    """(h, w) of `num_positions` patches, more than one, that cover an image of `size`; None if so many do not.

    h and w have the image's proportions, but for rounding. Example: 448 patches of an image of 256 x 448 pixels are
    16 x 28.
    """
    if num_positions < 2:
        return None
    shapes = [(h, num_positions // h) for h in range(1, num_positions + 1) if num_positions % h == 0]
    height, width = min(shapes, key=lambda shape: abs(shape[0] * size.width - shape[1] * size.height))
    if size.is_square:
        return (height, width) if height == width else None
    off_by = min(abs(size.width * height / size.height - width), abs(size.height * width / size.width - height))
    return (height, width) if off_by < 1 else None


def _is_map(shape: Sequence[int], size: Size) -> bool:
    """Whether positions of `shape` (h, w), more than one, are a map of an image of `size`, within one position."""
    height, width = shape
    if size.is_square:
        return height == width > 1
    lowest = max((height - 1) / size.height, (width - 1) / size.width)
    return height * width > 1 and lowest <= min((height + 1) / size.height, (width + 1) / size.width)


# ---- methods ----


def cam(trace: Trace, labels: Sequence[int]) -> Tensor:
    """CAM (Zhou et al. 2016): for each of K labels the sum of the channels, times the head's weights of that label.

    Returns (K, h, w); the mean of a map is the logit without its bias. Raises InputError where head or backbone do
    more with the features than to average them.
    """
    head = trace.model.head
    if isinstance(head, Linear):
        weight = head.weight
    elif isinstance(head, LinearBN):
        norm = head.norm
        assert norm.running_var is not None
        weight = head.linear.weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None]
    else:
        raise InputError("MAP_METHOD cam needs the head linear or linear_bn: set it to grad-cam")
    values = find_grid(trace).values
    pooled, mean = pool(trace.features)[0], values.mean(dim=(1, 2))
    if mean.shape != pooled.shape or not torch.allclose(mean, pooled, rtol=1e-3, atol=1e-4):
        raise InputError(
            "MAP_METHOD cam needs a backbone whose map is averaged for the head, but this one, with FEATURES "
            f"{trace.model.features}, joins other features or has layers in between: set it to grad-cam"
        )
    return torch.einsum("kd,dhw->khw", weight[list(labels)], values).detach()


def grad_cam(trace: Trace, labels: Sequence[int]) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): the sum of the channels, times the mean of their gradients; (K, h, w).

    Negative values are set to 0.
    """

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        return gradient.mean(dim=(1, 2))

    return _weigh(trace, labels, weigh)


def grad_cam_plus_plus(trace: Trace, labels: Sequence[int]) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018): as `grad_cam`, with positive gradients only, each times its alpha."""

    def weigh(values: Tensor, gradient: Tensor) -> Tensor:
        # eq. 19: alpha = g^2 / (2 g^2 + sum(A) g^3), divided by g^2. In the paper A is never negative. In a transformer
        # it may be, and without relu() the sum could then make alpha infinite
        alpha = 1 / (2 + values.relu().sum(dim=(1, 2), keepdim=True) * gradient.relu())
        return (alpha * gradient.relu()).sum(dim=(1, 2))

    return _weigh(trace, labels, weigh)


def _weigh(trace: Trace, labels: Sequence[int], weigh: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """For each of K labels the sum of the channels, times their weights, without what is negative; (K, h, w).

    `weigh(values, gradient)` gives the weights (D,) from the channels (D, h, w) and their gradient (D, h, w).
    """
    grid = find_grid(trace)
    maps = []
    for label in labels:
        gradient = torch.autograd.grad(trace.logits[label], grid.output, retain_graph=True)[0]
        weights = weigh(grid.values, grid.arrange(gradient))
        maps.append(torch.einsum("d,dhw->hw", weights, grid.values).relu().detach())
    return torch.stack(maps)


def attention(trace: Trace, labels: Sequence[int]) -> Tensor:
    """The attention of the query of each label's group at each position, (K, h, w).

    The attention at all tokens, also those without a position, sums to 1. Raises InputError for another head than
    ml_decoder.
    """
    head = trace.model.head
    if not isinstance(head, MLDecoder):
        raise InputError("MAP_METHOD attention needs the head ml_decoder: set it to grad-cam")
    with torch.no_grad():
        weights = head.attend(trace.features)[1]
    assert weights is not None
    group_size = head.weight.shape[1]
    chosen = weights[0, [label // group_size for label in labels]]  # (K, T)
    if trace.features.dim() == 4:
        return chosen.unflatten(1, trace.features.shape[2:])
    arrange = _find_arrangement(trace, chosen.T[None])
    if arrange is None:
        raise InputError(f"the {chosen.shape[1]} tokens of this backbone are no grid: set MAP_METHOD to grad-cam")
    return arrange(chosen.T[None])


# ---- from what the model sees back to the image: undoing the resize rules of dataset/augmentations.py ----


def undo_squash(height: int, width: int, size: Size) -> Frame:
    """The model sees the whole image."""
    return 0, 0, width, height


def undo_center_crop(height: int, width: int, size: Size) -> Frame:
    """The model sees the middle of the image."""
    covered = size.scaled(8 / 7)
    return _center(
        height,
        width,
        seen_height=min(height * size.height / covered.height, width * size.height / covered.width),
        seen_width=min(height * size.width / covered.height, width * size.width / covered.width),
    )


def undo_letterbox(height: int, width: int, size: Size) -> Frame:
    """The model sees the image with bars, which lie outside the image."""
    return _center(
        height,
        width,
        seen_height=max(height, width * size.height / size.width),
        seen_width=max(width, height * size.width / size.height),
    )


def _center(height: int, width: int, seen_height: float, seen_width: float) -> Frame:
    return (width - seen_width) / 2, (height - seen_height) / 2, (width + seen_width) / 2, (height + seen_height) / 2


def spread(values: Tensor, frame: Frame, height: int, width: int) -> Tensor:
    """Stretch a map (h, w) over `frame` of an image: (height, width), bilinear, with NaN outside the frame."""
    left, top, right, bottom = frame
    x = (torch.arange(width, device=values.device) + 0.5 - left) / (right - left)
    y = (torch.arange(height, device=values.device) + 0.5 - top) / (bottom - top)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)  # (height, width, 2), 0 to 1 inside
    spread_out = functional.grid_sample(
        values[None, None], 2 * points[None] - 1, mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    inside = ((points >= 0) & (points <= 1)).all(dim=2)
    return spread_out.masked_fill(~inside, torch.nan)


def draw_map(photograph: Image.Image, values: Tensor, resize_rule: str, image_size: Size) -> Image.Image:
    """The photograph under the colours of a map (h, w), which are scaled to the map's largest value.

    Where the model did not see the photograph it has no colours, and a white frame around what was seen.
    """
    import matplotlib as mpl

    width, height = photograph.size
    frame = UNDO_RESIZE_RULES[resize_rule](height, width, image_size)
    largest = float(values.max())
    if largest > 0:
        values = values / largest
    shares = spread(values, frame, height, width).numpy()
    colours = mpl.colormaps[COLOURS](np.nan_to_num(shares).clip(0, 1))[..., :3] * 255
    strength = np.where(np.isnan(shares), 0, STRENGTH)[..., None]
    mixed = (1 - strength) * np.asarray(photograph) + strength * colours
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    if np.isnan(shares).any():
        left, top, right, bottom = (round(value) for value in frame)
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline="white")
    return picture


METHODS: dict[str, Callable[[Trace, Sequence[int]], Tensor]] = {
    "cam": cam,
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus_plus,
    "grad-camm++": grad_cam_plus_plus,  # as a published system spells it
    "attention": attention,
}

# (height, width of the image, size that the model sees), all in pixels -> where what it sees lies on the image
UNDO_RESIZE_RULES: dict[str, Callable[[int, int, Size], Frame]] = {
    "squash": undo_squash,
    "center_crop": undo_center_crop,
    "letterbox": undo_letterbox,
}
