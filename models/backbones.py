"""Makes backbones: name -> a network without its classifier. Knows all classification networks of torchvision and timm.

    backbone = make_backbone("resnet50", image_size=224, gives_map=True)    # or (height, width)
    features = backbone.module(pixels)    # normalised (B, 3, H, W) -> a map (B, D, h, w) or tokens (B, T, D)

`gives_map=False` is for heads that pool: the network then keeps its pretrained layers between the map and the
classifier (VGG's two hidden layers, a transformer's class token), and gives (B, D, 1, 1). With other `features` than
"own" it gives (B, D', 1, 1) of the map or tokens, as models/features.py says. If both libraries have a
name, the plain name is torchvision's network and `timm/NAME` is timm's. A timm name may end in a tag that says which
weights are meant, as in `resnet50.a1_in1k`. Networks of your own are in models/own_backbones.py.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from constants.other_systems import WORDS
from dataset.image_sizes import Size, as_size
from limits import ImageSize
from models import network_files
from models.features import FEATURES, LAST_BLOCKS, NUM_BLOCKS, OWN, PARTS, Pooling, find_default
from models.own_backbones import OWN_BACKBONES
from utils import InputError

CLASS_TOKENS = ("cls_token", "class_token")  # names under which networks keep their class token
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = "timm/"

# names that published systems use -> the names of these networks in timm
TIMM_NAMES = {
    "pp_hgnetv2_b0": "hgnetv2_b0",
    "pp_hgnetv2_b4": "hgnetv2_b4",
    "pp_hgnetv2_b6": "hgnetv2_b6",
    "pp_lcnet_x1_0": "lcnet_100",
    "clip_vit_b16": "vit_base_patch16_clip_quickgelu_224.openai",  # QuickGELU, as its weights were learned with
    "tresnet_l": "tresnet_l",  # the ASL paper's: width 1.2, 2432 features
    "tresnet_v2_l": "tresnet_v2_l",  # ML-Decoder's and metric learning's: bottlenecks, 2048 features
    "resnest50": "resnest50d",
    # TensorFlow's padding, as in their published weights
    **{f"efficientnet_lite{number}": f"tf_efficientnet_lite{number}" for number in range(5)},
}
MEANT_BEFORE = {"clip_vit_b16": "vit_base_patch16_clip_224.openai"}  # in checkpoints that do not say their network


class Backbone(NamedTuple):
    """A network without its classifier, and the normalisation of pixels that its pretrained weights expect."""

    module: nn.Module
    shape: tuple[int, ...]  # of the features of one image: (D, h, w) or (T, D)
    mean: tuple[float, ...]  # one number for each colour channel, for pixels in 0-1
    std: tuple[float, ...]


def list_names() -> list[str]:
    """All names that `make_backbone` knows, sorted and without tags."""
    import torchvision

    from_torchvision = torchvision.models.list_models(module=torchvision.models)
    names = {*from_torchvision, *TIMM_NAMES, *OWN_BACKBONES}
    from_timm = [TIMM + name if name in names else name for name in _list_timm()]
    return sorted([*names, *from_timm])


def require_name(name: str) -> None:
    """Raise InputError if there is no backbone `name`, with the nearest names, or if there are two."""
    if name in OWN_BACKBONES:
        if is_torchvision(name) or name in {*TIMM_NAMES, *_list_timm()}:
            raise InputError(f"{name} in models/own_backbones.py is also a network of torchvision or timm: rename it")
        return
    if is_torchvision(name) or name in TIMM_NAMES:
        return
    architecture, dot, tag = name.removeprefix(TIMM).partition(".")
    registry = network_files.import_registry(architecture)
    if registry.is_model(architecture):
        tags = registry.list_pretrained(f"{architecture}.*") if dot else []
        if dot and f"{architecture}.{tag}" not in tags:
            raise InputError(f"there are no weights {name!r}; of {architecture} there are: {', '.join(tags) or 'none'}")
        return
    known = list_names()
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    meaning = WORDS.get(name.lower().replace("-", "_"))
    if meaning:
        advice = f"it is {meaning} here"
    elif near:
        advice = f"the nearest: {', '.join(near)}"
    else:
        advice = "none is near"
    raise InputError(
        f"there is no backbone {name!r}; {advice} (python model_comparison.py --search PATTERN lists all {len(known)})"
    )


def make_backbone(name: str, image_size: ImageSize, gives_map: bool, features: str = OWN) -> Backbone:
    """Make the backbone `name` with random weights, for images of `image_size`.

    Raises InputError for an unknown name, for a size that the network does not take, if `gives_map` asks for a
    feature map that the network does not have, and for `features` that it does not have.
    """
    require_name(name)
    size = as_size(image_size)
    module, shape = _make_module(name, size, gives_map or features != OWN)
    if shape is None and name in OWN_BACKBONES:
        raise InputError(f"{name} in models/own_backbones.py gives no map (B, D, h, w) or tokens (B, T, D)")
    if shape is None and features != OWN:
        raise InputError(f"{name} has no FEATURES {features}, since it gives no single feature map: set it to own")
    if shape is None:
        raise InputError(f"{name} gives no single feature map or row of tokens: choose a head that pools, as linear_bn")
    if features != OWN:
        module, shape = _add_pooling(module, shape, name, size, features)
    pixels = read_pixels(name)
    return Backbone(module, shape, pixels.mean, pixels.std)


def _make_module(name: str, size: Size, gives_map: bool) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Make the network `name` without its classifier. Returns it with the shape of its features, None for others.

    Raises InputError for a size that it does not take.
    """
    try:
        if name in OWN_BACKBONES:
            module = OWN_BACKBONES[name]()
        elif is_torchvision(name):
            module = _make_torchvision(name, size, gives_map)
        else:
            module = _make_timm(name, size, gives_map)
        return module, module.shape if isinstance(module, TimmBackbone) else _measure_features(module, size)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:  # a size is refused in many ways
        known = read_pixels(name).image_size
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if name in OWN_BACKBONES:
            raise InputError(f"{name} in models/own_backbones.py: {type(error).__name__}: {reason}") from error
        raise InputError(f"{name} does not take images of {size} px ({reason}): try {known}") from error


def choose_features(features: str, name: str, gives_map: bool) -> str:
    """What FEATURES means for the network `name`: "auto" becomes what the authors of its published weights use.

    `gives_map`: the head looks at all positions itself. Raises InputError if `features` then asks for pooled ones.
    """
    if features not in ("auto", *FEATURES):
        raise InputError(f"there are no FEATURES {features!r}: auto, {', '.join(FEATURES)}")
    if gives_map and features not in ("auto", OWN):
        raise InputError(f"FEATURES {features} is for heads that pool, and this head looks at all positions: set auto")
    if features != "auto":
        return features
    if gives_map or is_torchvision(name) or name in OWN_BACKBONES:
        return OWN
    config = read_timm_config(name)
    return find_default(f"{config.architecture}.{config.tag}") if config else OWN


def _add_pooling(
    module: nn.Module, shape: tuple[int, ...], name: str, size: Size, features: str
) -> tuple[nn.Module, tuple[int, ...]]:
    """Put a pooling behind `module`, the network `name`, which gives a map or tokens of `shape`.

    Returns the module that gives `features` (B, D', 1, 1), and (D', 1, 1). Raises InputError if it does not have them.
    """
    network = getattr(module, "network", module)
    has_class_token, num_prefix_tokens = False, 0
    if len(shape) == 2:
        places = (network, getattr(network, "embeds", None))
        tokens = [getattr(place, key, None) for place in places for key in CLASS_TOKENS]
        has_class_token = any(isinstance(token, Tensor) for token in tokens)
        num_prefix_tokens = getattr(network, "num_prefix_tokens", int(has_class_token))
    has_patches = len(shape) == 3 or shape[0] > num_prefix_tokens  # PiT gives its class token only
    has = {"class": has_class_token, "mean": has_patches, "max": has_patches}
    available = [key for key, parts in PARTS.items() if all(has[part] for part in parts)]
    if has_patches and isinstance(module, TimmBackbone) and hasattr(network, "forward_intermediates"):
        available.append(LAST_BLOCKS)
    if features not in available:
        raise InputError(f"{name} has no FEATURES {features}: choose own, {', '.join(available)}")
    if isinstance(module, TimmBackbone) and features == LAST_BLOCKS:
        module.blocks = module.find_last_blocks(size, has_class_token)
        features = "class_and_mean" if has_class_token else "mean"  # of the last one
    pooling = Pooling(features, num_prefix_tokens)
    if isinstance(module, TimmBackbone | VisionTransformerBackbone):
        module.pooling = pooling
    elif isinstance(module, nn.Sequential):
        module.add_module("pooling", pooling)  # without tensors: the names of those before stay as they are
    else:
        module = nn.Sequential(OrderedDict(network=module, pooling=pooling))
    pooled_shape = _measure_features(module, size)
    assert pooled_shape is not None
    return module, pooled_shape


class Pixels(NamedTuple):
    """The pixels that a network's published weights expect."""

    mean: tuple[float, ...]  # one number for each colour channel, for pixels in 0-1
    std: tuple[float, ...]
    image_size: Size  # that the weights were trained on


def read_pixels(name: str) -> Pixels:
    """The pixels that the published weights of the network `name` expect; without weights ImageNet's usual ones."""
    if name in OWN_BACKBONES:
        own = OWN_BACKBONES[name]
        return Pixels(getattr(own, "mean", IMAGENET_MEAN), getattr(own, "std", IMAGENET_STD), as_size(224))
    if match := re.fullmatch(r"efficientnet_lite([0-4])", name):
        return Pixels((127 / 255,) * 3, (128 / 255,) * 3, as_size((224, 240, 260, 280, 300)[int(match[1])]))
    if is_torchvision(name):
        transform = read_torchvision_weights(name).transforms()
        size = as_size(transform.crop_size[0])
        if name in ("googlenet", "inception_v3"):  # TensorFlow's weights; torchvision converts by `transform_input`
            return Pixels((0.5,) * 3, (0.5,) * 3, size)
        return Pixels(tuple(transform.mean), tuple(transform.std), size)
    config = read_timm_config(name)
    if config is None:
        return Pixels(IMAGENET_MEAN, IMAGENET_STD, as_size(224))
    return Pixels(tuple(config.mean), tuple(config.std), as_size(config.input_size[1:]))


def get_timm_name(name: str) -> str:
    """The name of the network `name` in timm."""
    return TIMM_NAMES.get(name, name.removeprefix(TIMM))


def name_network(checkpoint: Mapping[str, Any]) -> str:
    """The network of a checkpoint, as `make_backbone` takes it: what its model's name meant when it was saved."""
    name: str = checkpoint["model_name"]
    network: str = checkpoint.get("network", MEANT_BEFORE.get(name, name))
    return network


def _measure_features(backbone: nn.Module, image_size: Size) -> tuple[int, ...] | None:
    """Run the network once and return the shape of one image's features, (D, h, w) or (T, D).

    Returns None if the network does not give one tensor of such a shape.
    """
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, *image_size))
    backbone.train(was_training)
    if isinstance(features, Tensor) and features.dim() in (3, 4):
        return tuple(features.shape[1:])
    return None


# ---- timm ----


@functools.cache
def _list_timm() -> list[str]:
    import timm

    return timm.list_models()


def read_timm_config(name: str) -> Any:
    """What timm knows of the published weights of its network `name`, its `pretrained_cfg`; None if nothing."""
    timm_name = get_timm_name(name)
    return network_files.import_registry(timm_name.partition(".")[0]).get_pretrained_cfg(timm_name)


def _make_timm(name: str, image_size: Size, gives_map: bool) -> nn.Module:
    options: dict[str, Any] = {}
    if has_fixed_size(name):
        options["img_size"] = image_size.height if image_size.is_square else tuple(image_size)
    from timm.models._factory import create_model  # after the network's file, which `has_fixed_size` has imported

    return TimmBackbone(create_model(get_timm_name(name), num_classes=0, **options), gives_map, image_size)


def has_fixed_size(name: str) -> bool:
    """Whether `name` is a network of timm that is made for one image size, such as a vision transformer."""
    if is_torchvision(name) or name in OWN_BACKBONES:
        return False
    config = read_timm_config(name)
    return bool(config and config.fixed_input_size)


class TimmBackbone(nn.Module):
    """A timm network that gives its feature map, or, without `gives_map`, the input of its classifier.

    The feature map also passes the layers between the network's body and its classifier, if these layers treat every
    position by itself. With a `pooling` it gives what that makes of the map; with `blocks`, those before come first.
    """

    def __init__(self, network: Any, gives_map: bool, image_size: Size) -> None:
        super().__init__()
        self.network, self.gives_map = network, gives_map
        self.pooling: Pooling | None = None
        self.blocks: dict[str, Any] | None = None  # options of forward_intermediates that give the blocks to join
        self.uses_head = not gives_map or _unpool(network, image_size)
        self.channels_last = False
        shape = _drop_unused(network, lambda: _measure_features(self, image_size))
        sizes = {network.num_features, getattr(network, "head_hidden_size", None)}
        # some networks give maps (B, h, w, D): then the first number is no known number of features
        self.channels_last = gives_map and shape is not None and len(shape) == 3 and shape[0] not in sizes
        self.shape = (shape[2], *shape[:2]) if shape and self.channels_last else shape  # of the features of one image

    def forward(self, pixels: Tensor) -> Tensor:
        earlier: list[Any] = []
        if self.blocks:
            features, blocks = self.network.forward_intermediates(pixels, **self.blocks)
            earlier = blocks[:-1]  # the last one is what `features` are made of
        else:
            features = self.network.forward_features(pixels)
        if self.uses_head:
            features = self.network.forward_head(features, pre_logits=True)
        if not self.gives_map:
            return features[:, :, None, None]
        features = features.permute(0, 3, 1, 2) if self.channels_last else features
        if self.pooling is None:
            return features
        return torch.cat([*map(_pool_block, earlier), self.pooling(features)], dim=1)

    def find_last_blocks(self, image_size: Size, has_class_token: bool) -> dict[str, Any]:
        """The options with which timm gives the last NUM_BLOCKS blocks, or as many as there are.

        Those of a network with a class token come as (patches, prefix tokens), with the last norm, as in DINOv2's
        linear evaluation; of others as maps.
        """
        run = self.network.forward_intermediates
        options: dict[str, Any] = {}
        if "return_prefix_tokens" in inspect.signature(run).parameters:
            options = {"norm": True, "output_fmt": "NLC", "return_prefix_tokens": has_class_token}
        was_training = self.training
        self.eval()
        with torch.no_grad():
            num_blocks = len(run(torch.zeros(1, 3, *image_size), intermediates_only=True, **options))
        self.train(was_training)
        return options | {"indices": [*range(num_blocks)][-NUM_BLOCKS:]}


def _pool_block(block: Any) -> Tensor:
    """The class token of a block, where it is given as (patches, prefix tokens), else the mean; (B, D, 1, 1)."""
    if isinstance(block, tuple):
        return block[1][:, 0, :, None, None]
    return block.mean(dim=(2, 3), keepdim=True) if block.dim() == 4 else block.mean(dim=1)[:, :, None, None]


def _unpool(network: Any, image_size: Size) -> bool:
    """Remove pooling from the network's head. Returns whether the rest of the head keeps all positions.

    If not, the head cannot be used for feature maps.
    """
    try:
        network.reset_classifier(0, global_pool="")
        with torch.no_grad():
            features = network.eval().forward_features(torch.zeros(1, 3, *image_size))
            after_head = network.forward_head(features, pre_logits=True)
    except (TypeError, AssertionError, RuntimeError, AttributeError):  # a head that does not work without pooling
        return False
    finally:
        network.train()
    if not isinstance(features, Tensor) or after_head.dim() != features.dim():
        return False
    changed = [new != old for new, old in zip(after_head.shape, features.shape, strict=True)]
    return sum(changed) <= 1  # only the number of features may change


def _drop_unused(network: nn.Module, run: Callable[[], Any]) -> Any:
    """Call `run`, and replace those children of `network` that it did not use: they would never get a gradient.

    Returns the result of `run`.
    """
    used: set[nn.Module] = set()

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        used.add(module)

    children = {name: child for name, child in network.named_children() if _has_parameters(child)}
    hooks = [module.register_forward_hook(note) for child in children.values() for module in child.modules()]
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


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


# ---- torchvision ----


def is_torchvision(name: str) -> bool:
    """Whether `name` is the name of a torchvision network."""
    return network_files.find_file("torchvision.models", name) is not None


def read_torchvision_weights(name: str) -> Any:
    """The published weights of the torchvision network `name` that torchvision takes if none are named."""
    from torchvision.models._api import get_model_weights

    _import_torchvision(name)
    return get_model_weights(name)["DEFAULT"]


def _import_torchvision(name: str) -> str:
    """Import the file of torchvision.models that defines the network `name`. Returns its name, such as "resnet"."""
    file = network_files.find_file("torchvision.models", name)
    assert file is not None
    importlib.import_module(file)
    return file.rpartition(".")[2]


def _make_torchvision(name: str, image_size: Size, gives_map: bool) -> nn.Module:
    from torchvision.models._api import get_model

    family = _import_torchvision(name)
    options = TORCHVISION_OPTIONS[family](image_size) if family in TORCHVISION_OPTIONS else {}
    return TORCHVISION_CUTS[family](get_model(name, weights=None, **options), gives_map)


def _keep_children(*dropped: str) -> Callable[[Any, bool], nn.Module]:
    """Returns a cut for networks that run their children one after the other: it keeps all but those `dropped`."""

    def cut(network: Any, gives_map: bool) -> nn.Module:
        return nn.Sequential(
            OrderedDict((name, child) for name, child in network.named_children() if name not in dropped)
        )

    return cut


def _keep_layers(network: Any, gives_map: bool) -> nn.Module:
    """Keep the child `layers` under its name, so that pretrained weights fit."""
    return nn.Sequential(OrderedDict(layers=network.layers))


def _keep_features(network: Any, gives_map: bool) -> nn.Module:
    """Keep the child `features` under its name, so that pretrained weights fit."""
    return nn.Sequential(OrderedDict(features=network.features))


def _keep_hidden_layers(network: Any, gives_map: bool) -> nn.Module:
    """Keep the features; for a head that pools also the pretrained layers after them, all but the last one."""
    if gives_map:
        return _keep_features(network, gives_map)
    return nn.Sequential(
        OrderedDict(
            features=network.features,
            avgpool=network.avgpool,
            flatten=nn.Flatten(),
            classifier=network.classifier[:-1],
            unflatten=nn.Unflatten(1, (-1, 1, 1)),
        )
    )


def _cut_convnext(network: Any, gives_map: bool) -> nn.Module:
    """Keep ConvNeXt's features and the norm before its classifier; for a head that pools, pooling lies between them."""
    pool = nn.Identity() if gives_map else network.avgpool
    return nn.Sequential(OrderedDict(features=network.features, avgpool=pool, classifier=network.classifier[:1]))


def _cut_maxvit(network: Any, gives_map: bool) -> nn.Module:
    """Keep MaxViT's stem and blocks; for a head that pools also pooling and the hidden layer after it."""
    layers = OrderedDict(stem=network.stem, blocks=nn.Sequential(*network.blocks))
    if not gives_map:
        layers["classifier"] = network.classifier[:-1]
        layers["unflatten"] = nn.Unflatten(1, (-1, 1, 1))
    return nn.Sequential(layers)


def _cut_densenet(network: Any, gives_map: bool) -> nn.Module:
    """Keep DenseNet's features, and add the ReLU that DenseNet's forward pass applies to them."""
    return nn.Sequential(OrderedDict(features=network.features, relu=nn.ReLU()))


def _cut_swin(network: Any, gives_map: bool) -> nn.Module:
    """Keep Swin's features and norm, and the permutation of their output from (B, h, w, D) to (B, D, h, w)."""
    return nn.Sequential(OrderedDict(features=network.features, norm=network.norm, permute=network.permute))


class VisionTransformerBackbone(nn.Module):
    """torchvision's ViT. Gives all tokens (B, T, D), or what a `pooling` makes of them.

    Without `gives_map` it gives the class token (B, D, 1, 1).
    """

    def __init__(self, network: Any, gives_map: bool) -> None:
        super().__init__()
        network.heads = nn.Identity()
        self.network, self.gives_map = network, gives_map
        self.pooling: Pooling | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        if not self.gives_map:
            return self.network(pixels)[:, :, None, None]
        patches = self.network._process_input(pixels)
        # not len(pixels): it is a constant to exporters, and would fix the number of images
        class_tokens = self.network.class_token.expand(pixels.shape[0], -1, -1)
        tokens = self.network.encoder(torch.cat([class_tokens, patches], dim=1))
        return tokens if self.pooling is None else self.pooling(tokens)


def _leave_out_auxiliary_classifiers(image_size: Size) -> dict[str, Any]:
    return {"aux_logits": False, "init_weights": False}


def _give_input_size(image_size: Size) -> dict[str, Any]:
    return {"input_size": tuple(image_size)}


def _give_image_size(image_size: Size) -> dict[str, Any]:
    if not image_size.is_square:
        raise ValueError("torchvision's vision transformers take squares only, timm's vit_base_patch16_224 others, too")
    return {"image_size": image_size.height}


# keys: the file in torchvision.models that makes the network; values: (network, gives_map) -> the network without its
# classifier
TORCHVISION_CUTS: dict[str, Callable[[Any, bool], nn.Module]] = {
    "alexnet": _keep_hidden_layers,
    "convnext": _cut_convnext,
    "densenet": _cut_densenet,
    "efficientnet": _keep_features,
    "googlenet": _keep_children("aux1", "aux2", "avgpool", "dropout", "fc"),
    "inception": _keep_children("AuxLogits", "avgpool", "dropout", "fc"),
    "maxvit": _cut_maxvit,
    "mnasnet": _keep_layers,
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
# keys: as above; values: image size -> options with which torchvision makes the network
TORCHVISION_OPTIONS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "googlenet": _leave_out_auxiliary_classifiers,
    "inception": _leave_out_auxiliary_classifiers,
    "maxvit": _give_input_size,
    "vision_transformer": _give_image_size,
}
