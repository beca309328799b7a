"""Writes a model as a folder that Hugging Face's hub and timm know: EXPORT_FORMATS hub.

    save_hub(Export(...), folder)

    model.safetensors     the tensors, under timm's names where timm alone can compute the model
    config.json           timm's: architecture, classes, normalisation, image size
    multilabel.json       what timm has no place for: thresholds, calibration, resize rule, the run
    selected_tags.csv     tag_id, name, category, count, as programs for taggers read it
    README.md             the card

`timm.create_model("local-dir:FOLDER", pretrained=True)` opens the folder if the backbone is timm's, with its own
pooling or one that timm has (FEATURES own, mean or mean_and_max), and the head linear; BatchNorm behind a linear head
is folded into it. timm then gives the same logits, which is checked before the folder is there. Of every other model
config.json names a network that timm does not have: timm says so, and never gives other logits. models/hub_folders.py
reads the folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from dataset.files import hash_file
from dataset.image_sizes import as_size
from dataset.json_files import to_json
from dataset.text_files import CsvFile
from dataset.whole_files import replace_folder
from export.model_files import Export, put_text, require_plain
from heads import Linear, LinearBN
from models import checkpoints, hub_folders
from models.backbones import get_timm_name, has_fixed_size, is_torchvision, name_network
from models.checkpoints import TENSORS
from models.features import OWN
from models.hub_folders import CARD, CONFIG, METADATA, TAGS, WEIGHTS, Pixels
from models.licences import find_licence
from models.own_backbones import OWN_BACKBONES
from models_factory import MultiLabelModel, make_example, restore_model
from utils import InputError, first_line

MULTI_LABEL, ONE_LABEL = "multi_label_classification", "single_label_classification"
TOLERANCE = 1e-5  # of the largest logit, by which timm's may differ
# FEATURES -> the pooling that timm calls so; None: the network's own
TIMM_POOLINGS = {OWN: None, "mean": "avg", "mean_and_max": "catavgmax"}
# RESIZE_RULE -> timm's crop_mode and crop_pct. timm resizes PIL images and fills borders with the mean, not with 0
TIMM_CROPS = {"squash": ("squash", 1.0), "center_crop": ("center", 0.875), "letterbox": ("border", 1.0)}


class NotTimms(Exception):
    """timm alone does not compute the model; the text says why, and goes on after "timm does not open it: "."""


class TimmForm(NamedTuple):
    """A model as timm has it."""

    architecture: str
    tensors: dict[str, Tensor]
    options: dict[str, Any]  # with which timm makes the network
    settings: dict[str, Any]  # that timm knows about the network: names of its first and last layer


def save_hub(export: Export, path: Path) -> None:
    """Write the folder. Raises InputError if it cannot be written."""
    require_plain(export, "hub")
    assert export.checkpoint is not None
    assert export.make_card is not None
    checkpoint = checkpoints.load(export.checkpoint)
    model = restore_model(checkpoint, export.checkpoint).eval()
    with replace_folder(path) as folder:
        try:
            write_timm(checkpoint, model, folder)
            layout, problem = hub_folders.TIMM, ""
        except NotTimms as reason:
            write_own(checkpoint, model, folder)
            layout, problem = hub_folders.OWN, str(reason)
        metadata = make_metadata(export, checkpoint, layout)
        metadata["weights_sha256"] = hash_file(folder / WEIGHTS)
        (folder / METADATA).write_text(to_json(metadata, indent=1), encoding="utf-8")
        with open(folder / TAGS, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(CsvFile(file))
            writer.writerow(["tag_id", "name", "category", "count"])
            writer.writerows([number, name, 0, 0] for number, name in enumerate(checkpoint["classes"]))
        put_text(path, folder, CARD, export.make_card(problem))


def make_metadata(export: Export, checkpoint: dict[str, Any], layout: str) -> dict[str, Any]:
    """What multilabel.json says: the checkpoint's metadata, and what exports have of it without this machine's paths.

    The model gives logits whatever EXPORT_OUTPUT says, and opens as a checkpoint does: with CALIBRATION, in any engine.
    """
    values = {key: value for key, value in checkpoint.items() if key not in TENSORS}
    values |= {key: export.metadata[key] for key in ("config", "checkpoint_sha256", "exported_by")}
    if layout == hub_folders.TIMM:
        values |= {"head": "linear", "head_options": {}}
    return values | {"precision": "fp32", "pretrained_licence": find_licence(checkpoint), "layout": layout}


# ---- under timm's names ----


def write_timm(checkpoint: dict[str, Any], model: MultiLabelModel, folder: Path) -> None:
    """Write config.json and model.safetensors as timm has them, and compare what timm makes of them with `model`.

    Raises NotTimms if timm does not compute the same.
    """
    import timm

    form = make_timm_form(checkpoint, model)
    write_tensors(form.tensors, folder / WEIGHTS)
    write_config(checkpoint, model, form, folder / CONFIG)
    images = make_example(checkpoint["image_size"])
    try:
        network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            found, expected = network(model.normalize(images)), model(images)
    except Exception as error:  # timm's networks have many classes of errors
        raise NotTimms(f"it fails with {first_line(error)}") from error
    change = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not change <= TOLERANCE:
        raise NotTimms(f"its {form.architecture} gives logits that differ by {change:.1g} of the largest")


def make_timm_form(checkpoint: dict[str, Any], model: MultiLabelModel) -> TimmForm:
    """The model's tensors as those of a network of timm. Raises NotTimms where that has no such network."""
    import timm

    name, features = checkpoint["model_name"], checkpoint.get("features", OWN)
    if is_torchvision(name):
        raise NotTimms(f"{name} is a network of torchvision")
    if name in OWN_BACKBONES:
        raise NotTimms(f"{name} is a network of one's own")
    if features not in TIMM_POOLINGS:
        raise NotTimms(f"FEATURES {features} are no pooling that timm has")
    linear = fold_head(model.head, checkpoint["head"])
    size = as_size(checkpoint["image_size"])
    options: dict[str, Any] = {"img_size": list(size)} if has_fixed_size(name) else {}
    if features != OWN:
        options["global_pool"] = TIMM_POOLINGS[features]
    architecture = get_timm_name(name_network(checkpoint)).partition(".")[0]
    try:
        network: Any = timm.create_model(architecture, num_classes=len(checkpoint["classes"]), **options)
    except Exception as error:  # timm's networks refuse options in many ways
        raise NotTimms(f"its {architecture} has no FEATURES {features} ({first_line(error)})") from error
    settings = network.pretrained_cfg
    classifier = settings.get("classifier")
    is_one = isinstance(classifier, str) and isinstance(network.get_submodule(classifier), nn.Linear)
    if not is_one:
        raise NotTimms(f"the classifier of its {architecture} is more than one linear layer")
    tensors = {key.removeprefix("network."): value for key, value in model.backbone.state_dict().items()}
    tensors |= {f"{classifier}.{key}": value for key, value in linear.state_dict().items()}
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    if shapes != {key: value.shape for key, value in tensors.items()}:
        odd = min(shapes.items() ^ {key: value.shape for key, value in tensors.items()}.items())[0]
        raise NotTimms(f"its {architecture} has other tensors, as {odd}")
    known = {key: settings.get(key) for key in ("first_conv", "classifier", "fixed_input_size")}
    return TimmForm(architecture, tensors, options, known)


def fold_head(head: nn.Module, name: str) -> nn.Linear:
    """The head as one linear layer; that of `linear_bn` takes its BatchNorm in. Raises NotTimms for others."""
    if isinstance(head, LinearBN):
        return fuse_linear_bn_eval(head.linear, head.norm)
    if isinstance(head, Linear):
        return head
    raise NotTimms(f"the head {name} is none of timm's, which are linear")


def write_config(checkpoint: dict[str, Any], model: MultiLabelModel, form: TimmForm, path: Path) -> None:
    """Write config.json as timm's `push_to_hf_hub` does."""
    config = {
        "architecture": form.architecture,
        **describe(checkpoint),
        **({"model_args": form.options} if form.options else {}),
        "pretrained_cfg": {
            **form.settings,
            **describe_input(checkpoint, model),
            "num_classes": len(checkpoint["classes"]),
            "custom_load": False,
        },
    }
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def describe(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the classes. timm does not read `problem_type`, which is transformers' word."""
    return {
        "num_classes": len(checkpoint["classes"]),
        "label_names": list(checkpoint["classes"]),
        "problem_type": describe_task(checkpoint),
    }


def describe_task(checkpoint: Mapping[str, Any]) -> str:
    """MULTI_LABEL, or ONE_LABEL for a model that gives each image one label."""
    is_one = checkpoint.get("activation") == "softmax" or checkpoint.get("max_labels") == 1
    return ONE_LABEL if is_one else MULTI_LABEL


def describe_input(checkpoint: dict[str, Any], model: MultiLabelModel) -> dict[str, Any]:
    """What `pretrained_cfg` says of the images: timm's network takes them as (RGB / 255 - mean) / std."""
    crop_mode, crop_pct = TIMM_CROPS[checkpoint["resize_rule"]]
    pixels = Pixels(*((values.double() / 255).flatten().tolist() for values in (model.mean, model.std)))
    return {
        "input_size": [3, *as_size(checkpoint["image_size"])],
        "interpolation": "bilinear",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        **pixels._asdict(),
        "license": find_licence(checkpoint),
    }


# ---- under this project's names ----


def write_own(checkpoint: dict[str, Any], model: MultiLabelModel, folder: Path) -> None:
    """Write model.safetensors under this project's names, and a config.json whose network timm refuses to make."""
    write_tensors(model.state_dict(), folder / WEIGHTS)
    config = {
        "architecture": f"multilabel_{checkpoint['model_name']}_{checkpoint['head']}",
        **describe(checkpoint),
        "pretrained_cfg": describe_input(checkpoint, model),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors, a copy of what shares its memory with others. Raises InputError for a disk that is full."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # that of other files: safetensors' are for their owner alone
    try:
        save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path, {"format": "pt"})
        path.chmod(mode)
    except Exception as error:  # safetensors has its own class, for the disk's errors, too
        raise InputError(f"cannot write {path}: {first_line(error)}") from error
