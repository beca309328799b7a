"""Name -> backbone; backbone + head -> `MultiLabelModel`.

model = make_model("resnet18", num_classes=80, head="linear_bn", weights="default", image_size=224)
logits = model(images)    # uint8 (B, 3, H, W) RGB -> (B, 80)

`python model_comparison.py` lists the names and compares backbones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heads import HEADS, needs_map
from models import backbones, pretrained
from models.backbones import list_names, read_pixels, require_name
from utils import InputError


def make_example(image_size: int) -> Tensor:
    """Two images of noise uint8 (2, 3, S, S), always the same; an example of one would fix the batch size at one."""
    return torch.randint(0, 256, (2, 3, image_size, image_size), generator=torch.Generator(), dtype=torch.uint8)


def restore_model(checkpoint: dict[str, Any], path: Path) -> MultiLabelModel:
    """The model whose tensors `checkpoint`, read from `path`, holds. Raises InputError when they do not fit it."""
    model = make_model(
        checkpoint["model_name"],
        len(checkpoint["classes"]),
        checkpoint["head"],
        image_size=checkpoint["image_size"],
        head_options=checkpoint.get("head_options"),
    )
    try:
        model.load_state_dict(checkpoint["model_state"])
    except RuntimeError as error:
        raise InputError(
            f"the tensors in {path} do not fit {checkpoint['model_name']}: {str(error).split(':')[-1].strip()}"
        ) from error
    return model


def require_size(run: Callable[[torch.Tensor], torch.Tensor], image_size: int, name: str, advice: str) -> None:
    """Raise InputError, which says what to set, unless `run`, a model, takes images of `image_size` pixels."""
    try:
        with torch.no_grad():
            run(make_example(image_size))
    except (RuntimeError, ValueError, AssertionError) as error:  # each network says it in its own way
        raise InputError(f"{name} does not take images of {image_size} px: set {advice}") from error


__all__ = ["MultiLabelModel", "list_names", "make_model", "read_pixels", "require_name"]


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
        self.loaded: pretrained.Loaded | None = None  # what pretrained weights filled
        self.backbone_is_frozen = False
        self.keeps_statistics = False  # True: the backbone's BatchNorm normalises in training as it does in use

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images uint8, or float in the same 0-255 range."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_is_frozen):
            features = self.extract_features(images)
        if self.training or not torch.is_autocast_enabled(features.device.type):
            return self.head(features)
        with torch.autocast(features.device.type, enabled=False):  # logits of 8 bits would tie in metrics
            return self.head(features.float())

    def extract_features(self, images: Tensor) -> Tensor:
        """What the head works on: a feature map (B, D, h, w), or tokens (B, T, D), of such images."""
        return self.backbone(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Float (B, 3, H, W) as the backbone's weights expect it."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    @property
    def head_pools(self) -> bool:
        """Whether the head uses nothing but the mean of the features over all positions."""
        return bool(getattr(self.head, "pools", False))

    def freeze_backbone(self, frozen: bool) -> None:
        """Keep the backbone as it is, BatchNorm statistics included, or let it train again."""
        self.backbone_is_frozen = frozen
        self.backbone.requires_grad_(not frozen)
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
    image_size: int = 224,
    weights_folder: str | Path | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> MultiLabelModel:
    """The backbone `name` with a new `head` for `num_classes`.

    `weights`: "default" (the published ones, kept in `weights_folder`), None (random) or a file: .pth, .safetensors,
    a checkpoint of this project. Normalisation follows them. Raises InputError for an unknown name (with the nearest),
    a size that the network does not take, and weights that cannot be had or do not fit.
    """
    if head not in HEADS:
        raise InputError(f"there is no head {head!r}: it is one of {', '.join(HEADS)}")
    options = dict(head_options or {})
    backbone = backbones.make_backbone(name, image_size, gives_map=needs_map(head, **options))
    num_features = backbone.shape[0] if len(backbone.shape) == 3 else backbone.shape[1]
    model = MultiLabelModel(
        backbone.module, HEADS[head](num_features, num_classes, **options), backbone.mean, backbone.std
    )
    if weights is not None:
        folder = Path(weights_folder) if weights_folder else None
        model.loaded = pretrained.load_weights(backbone.module, name, weights, folder)
        for kept, own in ((model.loaded.mean, model.mean), (model.loaded.std, model.std)):
            if kept is not None:
                own.copy_(kept)
    return model
