"""Networks with random weights, pictures for them, and what they make of these: what several tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import models_factory
from export.model_files import Export
from models_factory import MultiLabelModel

METADATA = {  # of an exported `test_resnet` with five classes
    "model_name": "test_resnet",
    "head": "linear_bn",
    "classes": list("abcde"),
    "thresholds": [0.5] * 5,
    "image_size": 64,
    "resize_rule": "squash",
    "output": "logits",
    "dynamic": ["batch"],
    "exported_by": "a test",
}


def make_random_model(name: str, head: str = "linear_bn", num_classes: int = 5, **options: Any) -> MultiLabelModel:
    """Random weights and, unlike those of a new network, random BatchNorm statistics and scales."""
    torch.manual_seed(0)
    model = models_factory.make_model(name, num_classes, head, image_size=64, head_options=options)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(tensor, low, high)
    return model.eval()


def draw_images(count: int) -> Tensor:
    """Patches of colour, uint8 (count, 3, 64, 64): they differ more between images than noise does."""
    patches = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return patches.repeat_interleave(16, 2).repeat_interleave(16, 3)


def compute_plain(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def choose_thresholds(probabilities: Tensor) -> list[float]:
    """Of each class the middle of the widest gap amid its probabilities (N, C): no rounding moves one across it."""
    chosen = []
    for values in probabilities.double().T.sort(dim=1).values:
        amid = values[len(values) // 4 : len(values) * 3 // 4]
        gap = int(amid.diff().argmax())
        assert amid[gap + 1] - amid[gap] > 4e-5, "float32 through other kernels differs by a tenth of it"
        chosen.append(float(amid[gap : gap + 2].mean()))
    return chosen


def make_export(network: nn.Module, dynamic: tuple[str, ...] = ("batch",)) -> Export:
    """What exported files are made from: `network`, with METADATA."""
    return Export(network, METADATA | {"dynamic": [*dynamic]}, lambda path: draw_images(1)[0])
