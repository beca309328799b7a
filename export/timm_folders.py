"""Opens a model that others put on Hugging Face's hub with timm: config.json and model.safetensors.

    run, metadata = open_timm(folder / "model.safetensors", device)

With selected_tags.csv, as taggers have it, or "problem_type": "multi_label_classification" in config.json, an image has
any number of labels (sigmoid); else it has one (softmax), which is what timm's own training makes. timm's code makes
the network, loads its tensors and resizes the images; nothing in the folder is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset import csv_files, timm_rules
from dataset.class_names import show_names
from dataset.image_sizes import Size
from export.engines import Opened, make_torch
from export.hub_folder import MULTI_LABEL
from models import hub_folders
from models.hub_folders import CONFIG, TAGS
from models.metadata import LARGEST_SIDE, is_count, is_name
from models_factory import MultiLabelModel
from utils import InputError, first_line, say

# what of timm's settings is needed to load tensors; the others say where to load from, which here is the folder alone
SETTINGS = ("num_classes", "input_size", "fixed_input_size", "first_conv", "classifier", "label_offset", "mean", "std")


def open_timm(path: Path, device: torch.device) -> Opened:
    """Open the model whose model.safetensors is `path`, in PyTorch on `device`. Says in a line what it was taken for.

    Raises InputError if a file is damaged or missing, and if this version of timm does not have the network.
    """
    folder = path.parent
    config = hub_folders.read_config(folder)
    settings = config["pretrained_cfg"]
    num_classes = config.get("num_classes", settings.get("num_classes"))
    if not is_count(num_classes) or not num_classes:
        raise InputError(f"{folder / CONFIG}: num_classes is {num_classes!r}: it gives features, and no labels")
    size, pixels = read_size(config, folder), hub_folders.read_pixels(settings, folder / CONFIG)
    try:
        rule = timm_rules.write_rule(settings, pixels.mean)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    tags = folder / TAGS
    classes = read_tags(tags) if tags.is_file() else read_names(config, num_classes)
    if len(classes) != num_classes or len(set(classes)) != num_classes:
        raise InputError(f"{folder} names {len(set(classes))} classes, and its network has {num_classes}")
    is_multi = tags.is_file() or config.get("problem_type") == MULTI_LABEL
    model = MultiLabelModel(
        backbone=make_network(config, num_classes, path),
        head=nn.Identity(),
        mean=tuple(pixels.mean),
        std=tuple(pixels.std),
    )
    kind = "any number of labels an image" if is_multi else f"one label an image, since there is no {TAGS}"
    say(
        f"{folder}: {config['architecture']}, {kind}, of {show_names(classes, most=3)}; images in RGB, resized as "
        f"{CONFIG} says: {rule.removeprefix(timm_rules.START)}"
    )
    licence = settings.get("license")
    return Opened(
        make_torch(model.eval(), size, device),
        {
            "model_name": config["architecture"],
            "head": "timm's",
            "classes": classes,
            "image_size": size.as_plain(),
            "resize_rule": rule,
            "activation": "sigmoid" if is_multi else "softmax",
            "min_labels": 0 if is_multi else 1,
            "max_labels": 0 if is_multi else 1,
            "output": "logits",
            "dynamic": ["batch"],
            **({"pretrained_licence": licence.lower()} if is_name(licence) else {}),
        },
    )


def read_size(config: Mapping[str, Any], folder: Path) -> Size:
    """The size of the images. Raises InputError for one that is none, and for others than three colour channels."""
    shape = config["pretrained_cfg"].get("input_size", [3, 224, 224])
    if not (isinstance(shape, list) and len(shape) == 3 and all(map(is_count, shape)) and shape[0] == 3):
        raise InputError(f"{folder / CONFIG}: input_size is {shape!r}, expected 3 channels, height and width")
    options = config.get("model_args") or {}
    if not isinstance(options, dict):
        raise InputError(f"{folder / CONFIG}: model_args is {options!r}, expected names and values")
    size = options.get("img_size", shape[1:])  # of the network, which says more
    sides = [size, size] if isinstance(size, int) else size
    if not (isinstance(sides, list) and len(sides) == 2 and all(is_count(side) and side for side in sides)):
        raise InputError(f"{folder / CONFIG}: img_size is {size!r}, expected height and width")
    if max(sides) > LARGEST_SIDE:
        raise InputError(f"{folder / CONFIG}: images of {sides[0]} x {sides[1]} px: at most {LARGEST_SIDE}")
    return Size(*sides)


def read_tags(path: Path) -> list[str]:
    """The names in selected_tags.csv (tag_id, name, category, count), one a class, in the order of the logits."""
    return [name for _, (name,) in csv_files.read_cells(path, ["name"])]


def read_names(config: Mapping[str, Any], num_classes: int) -> list[str]:
    """The classes that config.json names, a list or an object {index: name}; without names their numbers."""
    names: Any = config.get("label_names", config["pretrained_cfg"].get("label_names"))
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(num_classes)]
    if names is None:
        return [str(index) for index in range(num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{CONFIG}: label_names must name each class")
    return names


def make_network(config: Mapping[str, Any], num_classes: int, path: Path) -> nn.Module:
    """timm's network with the tensors of `path`. Raises InputError if they do not fit it."""
    import timm

    name, options = config["architecture"], config.get("model_args") or {}
    if not timm.is_model(name):
        raise InputError(f"{path.parent}: timm {timm.__version__} has no network {name!r}: it is newer, or no network")
    # what create_model itself takes says where to load from, and is no property of a network
    own = {*inspect.signature(timm.create_model).parameters, "features_only", "pretrained_strict"}
    if not isinstance(options, dict) or own & options.keys():
        raise InputError(f"{path.parent / CONFIG}: model_args is {options!r}, expected options of {name} alone")
    options = {key: value for key, value in options.items() if key not in ("num_classes", "in_chans")}
    tensors = hub_folders.read_tensors(path)
    settings = {key: value for key, value in config["pretrained_cfg"].items() if key in SETTINGS}
    settings |= {"architecture": name, "num_classes": num_classes, "state_dict": tensors}
    try:
        require_room(name, num_classes, options, sum(value.numel() for value in tensors.values()), path)
        return timm.create_model(name, pretrained=True, pretrained_cfg=settings, num_classes=num_classes, **options)
    except InputError:
        raise
    except Exception as error:  # timm's networks refuse options and tensors in many ways
        raise InputError(f"{path} does not fit {name} with {options}: {first_line(error)}") from error


def require_room(name: str, num_classes: int, options: dict[str, Any], num_values: int, path: Path) -> None:
    """Raise InputError if the network has more than twice as many numbers as the file: it may ask for terabytes."""
    import timm

    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=num_classes, **options)
    except (RuntimeError, NotImplementedError):  # a network that looks at numbers while it is made
        return
    count = sum(value.numel() for value in network.state_dict().values())
    if count > 2 * num_values:
        raise InputError(f"{path} holds {num_values:,} numbers, and {name} with {options} has {count:,}: not its own")
