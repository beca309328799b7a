"""The card of a model on Hugging Face's hub, README.md: what its test found, if it was tested, and how it is opened.

    text = make_card(checkpoint, path, trained_models, why_not_timm="")

The lines that the hub reads stand at its top. The rest is MODEL_CARD.md of the run where that is of this very
checkpoint; else it says what is known without a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from dataset.image_sizes import as_size
from evaluation import pages
from evaluation.report import CARD
from evaluation.test_results import find_place, read_test
from export.hub_folder import MULTI_LABEL, describe_task
from models.backbones import is_torchvision, read_timm_config
from models.licences import explain_licence, find_licence, write_for_hub
from models.own_backbones import OWN_BACKBONES

RESULTS = "\n## Results\n"  # before which the card of a test gets how the model is opened
FENCE = "---\n"
VALIDATED = ("mAP", "OF1", "CF1", "f1_weighted", "exact_match")  # numbers of the validation, without a test
MOST_CLASSES = 100


def make_card(checkpoint: Mapping[str, Any], path: Path, trained_models: Path, why_not_timm: str) -> str:
    """The card of the model `checkpoint`, which was read from `path`; its run may lie in `trained_models`.

    `why_not_timm` says why timm alone does not open the folder; "": it does. Raises InputError for a test of the run
    that is damaged.
    """
    opening = pages.render(
        "hub_opening.md",
        why_not=why_not_timm,
        rule=checkpoint["resize_rule"],
        size=as_size(checkpoint["image_size"]),
        activation=Markup("softmax(1)" if checkpoint.get("activation") == "softmax" else "sigmoid()"),
    ).strip()
    tested = find_tested_card(checkpoint, path, trained_models)
    if tested:
        _, head, text = tested.split(FENCE, 2)
        before, results, after = text.partition(RESULTS)
        text = f"{before.rstrip()}\n\n{opening}\n{results}{after}"
    else:
        head = ""
        measured = {name: checkpoint.get("metrics", {}).get(name) for name in VALIDATED}
        thresholds = checkpoint.get("thresholds") or [checkpoint.get("best_threshold")] * len(checkpoint["classes"])
        text = pages.render(
            "hub_card.md",
            title=f"{checkpoint['model_name']} + {checkpoint['head']}",
            is_multi=describe_task(checkpoint) == MULTI_LABEL,
            licence=explain_licence(find_licence(checkpoint)),
            metrics={name: value for name, value in measured.items() if value is not None and math.isfinite(value)},
            classes=list(zip(checkpoint["classes"], thresholds, strict=True))[:MOST_CLASSES],
            num_classes=len(checkpoint["classes"]),
            opening=Markup(opening),
        )
    return f"{FENCE}{make_head(checkpoint, head, not why_not_timm)}{FENCE}\n{text.strip()}\n"


def find_tested_card(checkpoint: Mapping[str, Any], path: Path, trained_models: Path) -> str:
    """The card that testing.py wrote of this checkpoint into the folder of its run; "" if there is none."""
    folder = find_place(path, checkpoint, trained_models).folder
    test = read_test(folder) if folder else None
    card = folder / f"{CARD}.md" if folder else path
    if test is None or test.stale or not card.is_file():
        return ""
    return card.read_text(encoding="utf-8")


def make_head(checkpoint: Mapping[str, Any], tested: str, opens_in_timm: bool) -> str:
    """The YAML that the hub reads: licence, library, task, tags, the backbone's weights, and the numbers of a test.

    `tested` is that of the card of a test; "" without one.
    """
    found = yaml.safe_load(tested) or {}
    task = "multi-label" if describe_task(checkpoint) == MULTI_LABEL else "single-label"
    base = find_base_model(checkpoint)
    head = {
        **write_for_hub(find_licence(checkpoint)),
        "library_name": "timm" if opens_in_timm else "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", task, *(["timm"] if opens_in_timm else []), checkpoint["model_name"]],
        **({"base_model": base} if base else {}),
        **{key: found[key] for key in ("metrics", "model-index") if key in found},
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def find_base_model(checkpoint: Mapping[str, Any]) -> str | None:
    """The address on the hub of the weights that training began with, where they are published there."""
    name = checkpoint["model_name"]
    if checkpoint.get("config", {}).get("PRETRAINED_WEIGHTS") != "default":
        return None
    if is_torchvision(name) or name in OWN_BACKBONES:
        return None
    config = read_timm_config(name)
    return config.hf_hub_id if config else None
