"""Name -> a network without its classifier: every classification network of torchvision and of timm.

    backbone = make_backbone("resnet50", image_size=224, gives_map=True)
    features = backbone.module(pixels)    # normalised (B, 3, H, W) -> a map (B, D, h, w) or tokens (B, T, D)

With `gives_map=False`, for heads that pool, the pretrained layers between the map and the classifier stay (VGG's two
hidden layers, a transformer's class token), and what comes out is (B, D, 1, 1). A name that both libraries have is
torchvision's; `timm/NAME` is timm's. A timm name may carry a tag (`resnet50.a1_in1k`), which says whose weights.
"""

from __future__ import annotations

import difflib
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = "timm/"

# the published systems' names, and what timm calls these networks
TIMM_NAMES = {
    "pp_hgnetv2_b0": "hgnetv2_b0",
    "pp_hgnetv2_b4": "hgnetv2_b4",
    "pp_hgnetv2_b6": "hgnetv2_b6",
    "pp_lcnet_x1_0": "lcnet_100",
    "clip_vit_b16": "vit_base_patch16_clip_224.openai",
    "tresnet_l": "tresnet_l",  # the ASL paper's: width 1.2, 2432 features
    "tresnet_v2_l": "tresnet_v2_l",  # ML-Decoder's and metric learning's: bottlenecks, 2048 features
    "resnest50": "resnest50d",
    "efficientnet_lite0": "tf_efficientnet_lite0",  # TensorFlow's padding, as in its published weights
}


class Backbone(NamedTuple):
    """A network without its classifier, and how its pretrained weights see pixels."""

    module: nn.Module
    shape: tuple[int, ...]  # of one image's features: (D, h, w) or (T, D)
    mean: tuple[float, ...]  # of pixels in 0-1
    std: tuple[float, ...]


def list_names() -> list[str]:
    """Every name that `make_backbone` knows, tags left out, sorted."""
    taken = {*_list_torchvision(), *TIMM_NAMES}
    return sorted([*taken, *(TIMM + name if name in taken else name for name in _list_timm())])


def require_name(name: str) -> None:
    """Raise InputError, with the nearest names, unless there is a backbone `name`."""
    if is_torchvision(name) or name in TIMM_NAMES:
        return
    import timm

    architecture, _, tag = name.removeprefix(TIMM).partition(".")
    if timm.is_model(architecture):
        if tag and f"{architecture}.{tag}" not in (tags := timm.list_pretrained(f"{architecture}.*")):
            raise InputError(f"there are no weights {name!r}; of {architecture} there are: {', '.join(tags) or 'none'}")
        return
    known = list_names()
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    found = f"the nearest: {', '.join(near)}" if near else "none is near"
    raise InputError(
        f"there is no backbone {name!r}; {found} (python models_factory.py --search PATTERN lists all {len(known)})"
    )


def make_backbone(name: str, image_size: int, gives_map: bool) -> Backbone:
    """The backbone `name` with random weights, for images of `image_size` pixels.

    Raises InputError for an unknown name, a size that it does not take, and for `gives_map` where it has none.
    """
    require_name(name)
    make = _make_torchvision if is_torchvision(name) else _make_timm
    try:
        module = make(name, image_size, gives_map)
        shape = _measure_features(module, image_size)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:  # each says it in its own way
        size = read_pixels(name).image_size
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{name} does not take images of {image_size} px ({reason}): try {size}") from error
    if shape is None:
        raise InputError(f"{name} gives no single feature map or row of tokens: choose a head that pools, as linear_bn")
    pixels = read_pixels(name)
    return Backbone(module, shape, pixels.mean, pixels.std)


class Pixels(NamedTuple):
    """What a network's published weights were trained on."""

    mean: tuple[float, ...]  # of pixels in 0-1
    std: tuple[float, ...]
    image_size: int


def read_pixels(name: str) -> Pixels:
    """What the published weights of the network `name` expect; ImageNet's usual values where there are none."""
    if name == "efficientnet_lite0":
        return Pixels((127 / 255,) * 3, (128 / 255,) * 3, 224)
    if is_torchvision(name):
        import torchvision

        transform = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
        if name in ("googlenet", "inception_v3"):  # TensorFlow's weights, which torchvision feeds by `transform_input`
            return Pixels((0.5,) * 3, (0.5,) * 3, transform.crop_size[0])
        return Pixels(tuple(transform.mean), tuple(transform.std), transform.crop_size[0])
    import timm

    config = timm.get_pretrained_cfg(get_timm_name(name))
    if config is None:
        return Pixels(IMAGENET_MEAN, IMAGENET_STD, 224)
    return Pixels(tuple(config.mean), tuple(config.std), config.input_size[-1])


def get_timm_name(name: str) -> str:
    """What timm calls the network `name`."""
    return TIMM_NAMES.get(name, name.removeprefix(TIMM))


def _measure_features(backbone: nn.Module, image_size: int) -> tuple[int, ...] | None:
    """The shape of one image's features, (D, h, w) or (T, D), read off a pass; None where they are no one tensor."""
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    backbone.train(was_training)
    return tuple(features.shape[1:]) if isinstance(features, Tensor) and features.dim() in (3, 4) else None


# ---- timm ----


@functools.cache
def _list_timm() -> list[str]:
    import timm

    return timm.list_models()


def _make_timm(name: str, image_size: int, gives_map: bool) -> nn.Module:
    import timm

    name = get_timm_name(name)
    config = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": image_size} if config and config.fixed_input_size else {}
    return TimmBackbone(timm.create_model(name, num_classes=0, **sized), gives_map, image_size)


class TimmBackbone(nn.Module):
    """A timm network that gives its features: all of them, or what it would have given to its classifier.

    All of them go through the layers before the classifier, too, where these work on each position by itself.
    """

    def __init__(self, network: Any, gives_map: bool, image_size: int) -> None:
        super().__init__()
        self.network, self.gives_map = network, gives_map
        self.uses_head = not gives_map or _unpool(network, image_size)
        self.channels_last = False
        shape = _drop_unused(network, lambda: _measure_features(self, image_size))
        sizes = {network.num_features, getattr(network, "head_hidden_size", None)}
        # some maps are (B, h, w, D)
        self.channels_last = gives_map and shape is not None and len(shape) == 3 and shape[0] not in sizes

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.network.forward_features(pixels)
        if self.uses_head:
            features = self.network.forward_head(features, pre_logits=True)
        if not self.gives_map:
            return features[:, :, None, None]
        return features.permute(0, 3, 1, 2) if self.channels_last else features


def _unpool(network: Any, image_size: int) -> bool:
    """Take pooling out of the network's head, if what is left of it then keeps every position; else False."""
    try:
        network.reset_classifier(0, global_pool="")
        with torch.no_grad():
            features = network.eval().forward_features(torch.zeros(1, 3, image_size, image_size))
            kept = network.forward_head(features, pre_logits=True)
    except (TypeError, AssertionError, RuntimeError, AttributeError):  # a network whose head cannot do without
        return False
    finally:
        network.train()
    if not isinstance(features, Tensor) or kept.dim() != features.dim():
        return False
    return sum(one != other for one, other in zip(kept.shape, features.shape, strict=True)) <= 1  # of features


def _drop_unused(network: nn.Module, run: Callable[[], Any]) -> Any:
    """What `run` gives; the parts of `network` that it does not use are replaced: they would never get a gradient."""
    used: set[nn.Module] = set()
    children = {name: child for name, child in network.named_children() if any(True for _ in child.parameters())}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: used.add(module))
        for child in children.values()
        for module in child.modules()
    ]
    result = run()
    for hook in hooks:
        hook.remove()
    for name, child in children.items():
        if used.isdisjoint(child.modules()):
            setattr(network, name, nn.Identity())
            try:
                run()
            except AttributeError:  # used without being called: rotary embeddings are asked for by `get_embed`
                setattr(network, name, child)
    return result


# ---- torchvision ----


def is_torchvision(name: str) -> bool:
    """Whether the network `name` is torchvision's."""
    return name in _list_torchvision()


@functools.cache
def _list_torchvision() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _make_torchvision(name: str, image_size: int, gives_map: bool) -> nn.Module:
    import torchvision

    family = torchvision.models.get_model_builder(name).__module__.rsplit(".", 1)[1]
    options = TORCHVISION_OPTIONS[family](image_size) if family in TORCHVISION_OPTIONS else {}
    return TORCHVISION_CUTS[family](torchvision.models.get_model(name, weights=None, **options), gives_map)


def _keep_children(*dropped: str) -> Callable[[Any, bool], nn.Module]:
    """A network whose forward is its children in turn, without those `dropped`."""
    return lambda network, gives_map: nn.Sequential(
        OrderedDict((name, child) for name, child in network.named_children() if name not in dropped)
    )


def _keep_features(network: Any, gives_map: bool) -> nn.Module:
    """The features alone, under the name they had."""
    return nn.Sequential(OrderedDict(features=network.features))


def _keep_hidden_layers(network: Any, gives_map: bool) -> nn.Module:
    """The features; for a head that pools, then all layers up to the last one, which are pretrained too."""
    if gives_map:
        return _keep_features(network, gives_map)
    parts = OrderedDict(features=network.features, avgpool=network.avgpool, flatten=nn.Flatten())
    return nn.Sequential(parts | {"classifier": network.classifier[:-1], "unflatten": nn.Unflatten(1, (-1, 1, 1))})


def _cut_convnext(network: Any, gives_map: bool) -> nn.Module:
    """ConvNeXt's features and the norm before the classifier, which follows pooling for a head that pools."""
    pool = nn.Identity() if gives_map else network.avgpool
    parts = OrderedDict(features=network.features, avgpool=pool, classifier=network.classifier[:1])
    return nn.Sequential(parts)


def _cut_maxvit(network: Any, gives_map: bool) -> nn.Module:
    """MaxViT's stem and blocks; for a head that pools, then the hidden layer after pooling."""
    parts = OrderedDict(stem=network.stem, blocks=nn.Sequential(*network.blocks))
    if gives_map:
        return nn.Sequential(parts)
    return nn.Sequential(parts | {"classifier": network.classifier[:-1], "unflatten": nn.Unflatten(1, (-1, 1, 1))})


def _cut_densenet(network: Any, gives_map: bool) -> nn.Module:
    """DenseNet's features and the ReLU that its forward applies to them."""
    return nn.Sequential(OrderedDict(features=network.features, relu=nn.ReLU()))


def _cut_swin(network: Any, gives_map: bool) -> nn.Module:
    """Swin's features and norm, (B, h, w, D) there, as (B, D, h, w)."""
    return nn.Sequential(OrderedDict(features=network.features, norm=network.norm, permute=network.permute))


class VisionTransformerBackbone(nn.Module):
    """torchvision's ViT: all tokens, or for a head that pools the class token."""

    def __init__(self, network: Any, gives_map: bool) -> None:
        super().__init__()
        network.heads = nn.Identity()
        self.network, self.gives_map = network, gives_map

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.gives_map:
            return self.network(pixels)[:, :, None, None]
        patches = self.network._process_input(pixels)
        return self.network.encoder(torch.cat([self.network.class_token.expand(len(pixels), -1, -1), patches], dim=1))


# by torchvision's file; `network, gives_map -> module`
TORCHVISION_CUTS: dict[str, Callable[[Any, bool], nn.Module]] = {
    "alexnet": _keep_hidden_layers,
    "convnext": _cut_convnext,
    "densenet": _cut_densenet,
    "efficientnet": _keep_features,
    "googlenet": _keep_children("aux1", "aux2", "avgpool", "dropout", "fc"),
    "inception": _keep_children("AuxLogits", "avgpool", "dropout", "fc"),
    "maxvit": _cut_maxvit,
    "mnasnet": lambda network, gives_map: nn.Sequential(OrderedDict(layers=network.layers)),
    "mobilenetv2": _keep_features,
    "mobilenetv3": _keep_hidden_layers,
    "regnet": _keep_children("avgpool", "fc"),
    "resnet": _keep_children("avgpool", "fc"),
    "shufflenetv2": _keep_children("fc"),
    "squeezenet": _keep_features,
    "swin_transformer": _cut_swin,
    "vgg": _keep_hidden_layers,
    "vision_transformer": VisionTransformerBackbone,
}
TORCHVISION_OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "googlenet": lambda image_size: {"aux_logits": False, "init_weights": False},
    "inception": lambda image_size: {"aux_logits": False, "init_weights": False},
    "maxvit": lambda image_size: {"input_size": (image_size, image_size)},
    "vision_transformer": lambda image_size: {"image_size": image_size},
}
