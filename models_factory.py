"""Makes models: name -> backbone; backbone + head -> `MultiLabelModel`.

    model = make_model("resnet18", num_classes=80, head="linear_bn", weights="default", image_size=224)
    logits = model(images)    # uint8 (B, 3, H, W) RGB -> (B, 80)
    model = make_model("resnet18", num_classes=80, image_size=(256, 448))    # height, width

`python model_comparison.py` lists the names and compares backbones.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from dataset.class_names import show_names
from dataset.image_sizes import Size, as_size
from heads import HEADS, copy_classes, needs_map
from limits import ImageSize
from models import backbones, low_rank, pretrained, published_weights
from models.backbones import list_names, read_pixels, require_name
from models.features import OWN
from utils import InputError

# what other modules import from here; list_names, read_pixels and require_name are made in models/backbones.py
__all__ = [
    "MultiLabelModel",
    "list_names",
    "make_example",
    "make_model",
    "read_pixels",
    "require_name",
    "require_size",
    "restore_model",
]

SPARE_NUMBERS = 150_000_000  # that a network may have besides twice those of its file: VGG's classifier, left out


class Form(NamedTuple):
    """The shape of a tensor, and the kind of its numbers."""

    shape: tuple[int, ...]
    numbers: str  # "fractions" or "whole numbers"

    def __str__(self) -> str:
        return f"{self.shape} of {self.numbers}"


class MultiLabelModel(nn.Module):
    """uint8 images (B, 3, H, W) -> scaling and normalisation -> backbone -> head -> logits (B, C)."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        # in units of 0-255 pixels, and part of the state dict: a checkpoint keeps its normalisation
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)
        self.features = OWN  # which FEATURES of models/features.py the backbone gives
        self.loaded: pretrained.Loaded | None = None  # how much of the backbone pretrained weights filled
        self.backbone_is_frozen = False
        self.keeps_statistics = False  # True: the backbone's BatchNorm uses its running statistics in training, too

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W): uint8, or float in the same range 0-255."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_is_frozen):
            features = self.extract_features(images)
        if self.training or not torch.is_autocast_enabled(features.device.type):
            return self.head(features)
        # In evaluation the head computes in float32: bf16 logits keep 8 bits, and many would be equal in the metrics.
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    def extract_features(self, images: Tensor) -> Tensor:
        """The input of the head for images (B, 3, H, W): a feature map (B, D, h, w) or tokens (B, T, D)."""
        return self.backbone(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in 0-255 -> float of the same shape, as the backbone's weights expect it."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    @property
    def head_pools(self) -> bool:
        """Whether the head uses only the mean of the features over all positions."""
        return bool(getattr(self.head, "pools", False))

    def freeze_backbone(self, frozen: bool) -> None:
        """Freeze the backbone's weights and BatchNorm statistics, or let them train again.

        Of a backbone with low-rank parts (models/low_rank.py), these alone train again.
        """
        self.backbone_is_frozen = frozen
        for weight in low_rank.list_trained(self.backbone):
            weight.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiLabelModel:
        super().train(mode)
        for module in self.backbone.modules():
            if self.backbone_is_frozen or (self.keeps_statistics and isinstance(module, _BatchNorm)):
                module.training = False
        return self


def make_model(
    name: str,
    num_classes: int,
    head: str = "linear_bn",
    weights: str | None = None,
    image_size: ImageSize = 224,
    weights_folder: str | Path | None = None,
    head_options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    features: str = OWN,
) -> MultiLabelModel:
    """Make the backbone `name` with a new head for `num_classes` classes, for images of `image_size`.

    The model takes images in 0-255. `image_size` is the side of a square in pixels, or (height, width).
    `weights` fill the backbone. They are "default" (the published weights, kept in `weights_folder`), None (random
    weights), a name of models/published_weights.py (kept there, too) or a file: .pth, .safetensors or a checkpoint of
    this project. The normalisation follows the weights.
    With `classes`, the names of the classes, a checkpoint of this project with the same head fills the head, too: for
    the classes of the same names. `model.loaded` says what was filled.
    `features` says what a head that pools sees, by a name of models/features.py, or "auto": what the authors of the
    network use; `model.features` is then its name.
    Raises InputError for an unknown name (the message lists the nearest names), for an image size that the network
    does not take, for features that it does not have, and for weights that are not available or do not fit.

        model = make_model("timm/resnet18", num_classes=80, head="ml_decoder", weights="default", image_size=224)
    """
    if head not in HEADS:
        raise InputError(f"there is no head {head!r}: it is one of {', '.join(HEADS)}")
    options = dict(head_options or {})
    size = as_size(image_size)
    gives_map = needs_map(head, **options)
    require_name(name)
    features = backbones.choose_features(features, name, gives_map)
    backbone = backbones.make_backbone(name, size, gives_map, features)
    num_features = backbone.shape[0] if len(backbone.shape) == 3 else backbone.shape[1]
    try:
        head_module = HEADS[head](num_features, num_classes, **options)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"there is no head {head} with options {options}: {str(error).splitlines()[0]}") from error
    model = MultiLabelModel(
        backbone=backbone.module,
        head=head_module,
        mean=backbone.mean,
        std=backbone.std,
    )
    model.features = features
    if weights is not None:
        folder = Path(weights_folder) if weights_folder else None
        weights = published_weights.choose_weights(weights, folder)
        model.loaded = pretrained.load_weights(backbone.module, name, weights, folder, size)
        if model.loaded.mean is not None:
            model.mean.copy_(model.loaded.mean)
        if model.loaded.std is not None:
            model.std.copy_(model.loaded.std)
        model.loaded = _take_over_head(model, head, classes or (), weights)
    return model


def _take_over_head(model: MultiLabelModel, name: str, classes: Sequence[str], source: str) -> pretrained.Loaded:
    """Fill the head, called `name`, from the checkpoint that was loaded.

    Returns what was loaded, without the checkpoint.
    """
    head, loaded = model.head, model.loaded
    assert loaded is not None
    checkpoint = loaded.checkpoint
    loaded = loaded._replace(checkpoint=None, head_name=checkpoint["head"] if checkpoint else "")
    if checkpoint is None or not classes:
        return loaded
    if checkpoint["head"] != name:
        return loaded._replace(head=f"the head is new (the file's is {checkpoint['head']})")
    if (theirs := checkpoint.get("features", OWN)) != model.features:
        return loaded._replace(head=f"the head is new (the file's sees FEATURES {theirs}, not {model.features})")
    state = {
        key.removeprefix("head."): value for key, value in checkpoint["model_state"].items() if key.startswith("head.")
    }
    pretrained.require_finite(state, f"the head in {source}")
    taken = copy_classes(head, classes, state, checkpoint["classes"])
    if taken is None:
        return loaded._replace(head="the head is new (the file's has other options or features)")
    new = [name for name in classes if name not in set(taken)]
    text = f"the head is taken over for {len(taken)} of {len(classes)} classes"
    if new:
        text += f", new: {show_names(new)}"
    return loaded._replace(taken=tuple(taken), head=text)


def restore_model(checkpoint: dict[str, Any], path: Path) -> MultiLabelModel:
    """Make the model of `checkpoint`, which was read from `path`. Raises InputError if its tensors do not fit."""
    name, num_classes, head = checkpoint["model_name"], len(checkpoint["classes"]), checkpoint["head"]
    make = functools.partial(
        make_model,
        backbones.name_network(checkpoint),
        num_classes,
        head,
        image_size=as_size(checkpoint["image_size"]),
        head_options=checkpoint.get("head_options") or {},
        features=checkpoint.get("features", OWN),  # older ones do not name them
    )
    state = checkpoint["model_state"]
    model = None
    try:
        with _limit_tensors(2 * sum(value.numel() for value in state.values()) + SPARE_NUMBERS):
            model = make()
        forms = _list_forms(model)
    except InputError:  # what is wrong is found out without memory
        forms = _foresee_forms(make)
    problem = forms and _find_misfit({key: _describe(value) for key, value in state.items()}, forms)
    if not problem:
        model = make() if model is None else model
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            problem = str(error).split(":")[-1].strip()
        else:
            return model
    raise InputError(f"the tensors in {path} do not fit {name} with head {head}: {problem}")


@contextmanager
def _limit_tensors(most: int) -> Iterator[None]:
    """Within `with`, making modules with more than `most` numbers in parameters and buffers raises InputError.

    A small file may name a network of 20 GB: it is found out before anything of this size is made.
    """
    number = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal number
        number += 0 if tensor is None else tensor.numel()
        if number > most:
            raise InputError(f"the network has more than {most:,} numbers")

    hooks = [
        register(count)
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _foresee_forms(make: Callable[[], MultiLabelModel]) -> dict[str, Form] | None:
    """The forms of the tensors of the model that `make` makes, without memory for them; None if that is impossible.

    Raises the InputError of `make`. Takes seconds, since torch has to import its compiler.
    """
    try:
        with torch.device("meta"):
            return _list_forms(make())
    except InputError as error:
        if "meta" in str(error):  # the network looks at numbers while it is made
            return None
        raise


def _list_forms(model: nn.Module) -> dict[str, Form]:
    return {key: _describe(value) for key, value in model.state_dict().items()}


def _describe(tensor: Tensor) -> Form:
    return Form(tuple(tensor.shape), "fractions" if tensor.is_floating_point() else "whole numbers")


def _find_misfit(found: Mapping[str, Form], expected: Mapping[str, Form]) -> str | None:
    """How the forms `found` differ from those `expected`, in words; None if they do not."""
    for key, form in expected.items():
        if key not in found:
            return f"{key} is missing, as are {len(expected.keys() - found.keys()) - 1} others"
        if found[key] != form:
            return f"{key} is {found[key]}, expected {form}"
    extra = [key for key in found if key not in expected]
    return f"{len(extra)} more than it has, such as {reprlib.repr(extra[0])}" if extra else None


def make_example(image_size: ImageSize) -> Tensor:
    """Two images of noise, uint8 (2, 3, H, W), always the same.

    Two, because exporters take the batch size of an example with one image for a constant.
    """
    return torch.randint(0, 256, (2, 3, *as_size(image_size)), generator=torch.Generator(), dtype=torch.uint8)


def require_size(run: Callable[[Tensor], Tensor], size: Size, name: str, advice: str) -> None:
    """Raise InputError if `run`, the model called `name`, does not take images of `size`.

    `advice` ends the message: it says which constant to set.
    """
    try:
        with torch.no_grad():
            run(make_example(size))
    except (RuntimeError, ValueError, AssertionError) as error:  # networks refuse a size with different errors
        raise InputError(f"{name} does not take images of {size} px: set {advice}") from error
