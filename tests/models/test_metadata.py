"""models/metadata.py: what a model file says about its model has the types that its readers expect, or is one line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from dataset.resize_rules import RESIZE_RULES
from models.inference import ACTIVATIONS
from models.metadata import DEEPEST, LARGEST_SIDE, MOST_VALUES, RULES, check_metadata
from utils import InputError


def make_metadata() -> dict[str, Any]:
    """What a tuned checkpoint and an exported file hold."""
    return {
        "model_name": "timm/resnet18",
        "network": "timm/resnet18",
        "head": "per_label_mlp",
        "head_options": {"hidden": 8, "dropout": 0.5},
        "features": "mean_and_max",
        "activation": "sigmoid",
        "classes": ["a", "b"],
        "image_size": 32,
        "resize_rule": "squash",
        "best_threshold": 0.5,
        "thresholds": [0.5, math.nextafter(1, 2)],
        "min_labels": 0,
        "max_labels": 2,
        "calibration": {"temperature": {"scale": [2.0], "bias": [0]}, "platt": {"scale": [1, 2.0], "bias": [0.1, -3]}},
        "promise": {"metric": "recall", "level": 0.9, "confidence": None, "num_images": 20, "words": "on new images"},
        "abstention": {"share": 0.1, "cut": 0.7},
        "threshold_report": {"ECE": {"none": {"in_sample": 0.1}}, "shrinkage": None},
        "best_f1": 0.5,
        "chosen_by": "f1_weighted",
        "run": "timm-resnet18/linear_bn_224px_lr1e-05_seed0_1a2b3c4d",
        "fold": 2,
        "fold_of": "linear_bn_5folds",
        "pretrained_licence": "apache-2.0",
        "epoch": 3,
        "saved": "2026-01-31T12:00:00",
        "seconds": 1.5,
        "metrics": {"mAP": 0.5, "CF1": math.nan, "loss": math.inf, "OF1": None},
        "config": {"SEED": 0, "CLASSES": ["a", "b"], "TRAIN_BATCH_SIZE": 32, "LEARNING_RATE": 1e-3, "MODEL_PATH": None},
        "dataset": {"fingerprint": "0123", "num_train": 3},
        "environment": {"torch": "2.14", "device": "cpu"},
        "input": "images",
        "output": "logits",
        "gives_labels": False,
        "applied_calibration": "none",
        "dynamic": ["batch", "size"],
        "precision": "fp32",
        "what later versions add": [{"is": ["plain"]}],
    }


VALUES: dict[str, Any] = {
    "None": None,
    "text": "text",
    "no text": "",
    "two lines": "a\nb",
    "nul": "a\0b",
    "long": "a" * 1000,
    "half a character": "\ud800",
    "empty list": [],
    "names": ["a", "b"],
    "one name twice": ["a", "a"],
    "numbers": [0.5, 0.5],
    "three numbers": [0.5, 0.5, 0.5],
    "nan in a list": [0.5, math.nan],
    "lists": [["a"], ["b"]],
    "empty object": {},
    "object of texts": {"a": "b"},
    "object of numbers": {"a": 1},
    "object of objects": {"a": {"scale": ["b"]}},
    "object, a promise": {"metric": "precision", "level": 0.9, "confidence": 0.9, "num_images": 1, "words": "a"},
    "object, a promise of more than all": {
        "metric": "recall",
        "level": 1.1,
        "confidence": 0.9,
        "num_images": 1,
        "words": "a",
    },
    "object, a promise by no image": {
        "metric": "recall",
        "level": 0.9,
        "confidence": 0.9,
        "num_images": 0,
        "words": "a",
    },
    "object, a promise of F1": {"metric": "F1", "level": 0.9, "confidence": 0.9, "num_images": 1, "words": "a"},
    "object, an abstention": {"share": 0, "cut": 2.5},
    "object, an abstention from more than all": {"share": 2, "cut": 2.5},
    "object, an abstention without end": {"share": 0.5, "cut": math.inf},
    "scale of 0": {"a": {"scale": [0], "bias": [0]}},
    "scale without end": {"a": {"scale": [1e300], "bias": [0.0]}},
    "scale and a bias without end": {"a": {"scale": [1.0], "bias": [-1e300]}},
    "three scales": {"a": {"scale": [1, 1, 1], "bias": [0, 0, 0]}},
    "text as a rate": {"LEARNING_RATE": "high"},
    "key of another type": {1: 2},
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "0": 0,
    "1": 1,
    "1.5": 1.5,
    "True": True,
    "huge": 10**300,
    "5,000 digits": 10**5000,
    "bytes": b"x",
    "deep": [[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]],
}
ABSTENTIONS = ("object, an abstention", "object, an abstention from more than all")  # objects of numbers
# the entries of VALUES that a key may have, by hand
ALLOWED: dict[str, set[str]] = {
    "model_name": {"text"},
    "network": {"text"},
    "head": {"text"},
    "head_options": {"None", "empty object", "object of numbers", *ABSTENTIONS},
    "features": {"text"},
    "activation": set(),
    "classes": {"names"},
    "image_size": {"1"},
    "resize_rule": set(),
    "best_threshold": {"None", "0", "1"},
    "thresholds": {"None", "empty list", "numbers"},
    "min_labels": {"None", "0", "1"},
    "max_labels": {"None", "0", "1"},
    "promise": {"None", "object, a promise"},
    "abstention": {"None", "object, an abstention"},
    "calibration": {"None", "empty object"},
    "threshold_report": {name for name in VALUES if "object" in name or "scale" in name} | {"text as a rate"},
    "best_f1": {"None", "nan", "-1", "0", "1", "1.5"},
    "chosen_by": {"text"},
    "run": set(),
    "fold": {"None", "0", "1"},
    "fold_of": {"text"},
    "pretrained_licence": {"text"},
    "epoch": {"None", "0", "1"},
    "saved": {"None", "text", "no text", "two lines", "nul", "long"},
    "seconds": {"None", "nan", "inf", "-1", "0", "1", "1.5"},
    "metrics": {"empty object", "object of numbers", *ABSTENTIONS, "object, an abstention without end"},
    "config": {name for name in VALUES if "object" in name or "scale" in name},
    "dataset": {name for name in VALUES if "object" in name or "scale" in name} | {"text as a rate"},
    "environment": {"empty object", "object of texts", "text as a rate"},
    "input": set(),
    "output": set(),
    "gives_labels": {"True"},
    "applied_calibration": {"text"},
    "dynamic": {"empty list"},
    "precision": set(),
}


def test_what_runs_write_passes() -> None:
    metadata = make_metadata()
    assert check_metadata(metadata, "model.pt") is metadata
    assert RULES.keys() <= metadata.keys()
    check_metadata({"model_name": "a"}, "a key that is missing is for the reader to ask for")


@pytest.mark.parametrize("key", RULES)
def test_a_wrong_type_is_one_line(key: str) -> None:
    for name, value in VALUES.items():
        metadata = make_metadata() | {key: value}
        if name in ALLOWED[key]:
            check_metadata(metadata, "model.pt")
            json.dumps(metadata)
        else:
            with pytest.raises(InputError, match=r"^model\.pt: [^\n]{,290}$"):
                pytest.fail(f"{key} may be {name}: {check_metadata(metadata, 'model.pt')[key]!r:.100}")


@pytest.mark.parametrize(
    "run",
    ["../a", "a/..", "/a", "a/", "a/b/c", "a", ".a/b", "a/.b", "a\\b/c", "a/b\n", "~/a", "C:/a", "a" * 201 + "/b"],
)
def test_a_run_is_a_folder_in_a_folder_and_no_other_place(run: str) -> None:
    with pytest.raises(InputError, match=r"run is .* expected a model and a configuration"):
        check_metadata({"run": run}, "model.pt")


@pytest.mark.parametrize("metadata", [None, "text", [1], 5, {1: 2}, {"config": {("a",): 1}}])
def test_what_is_no_object_with_names_is_one_line(metadata: Any) -> None:
    with pytest.raises(InputError, match=r"^model\.pt: its metadata [^\n]+$"):
        check_metadata(metadata, "model.pt")


def test_what_holds_itself_or_is_endless_is_one_line() -> None:
    loop: list[Any] = []
    loop.append(loop)
    repeated: Any = "laugh"
    for _ in range(DEEPEST - 3):
        repeated = [repeated] * 10  # a few bytes of pickle, 10^17 values
    for value, reason in ((loop, "nested too deeply"), (repeated, f"more than {MOST_VALUES:,} values")):
        with pytest.raises(InputError, match=reason):
            check_metadata({"anything": value}, "model.pt")


def test_choices_are_those_of_the_parts() -> None:
    for key, names in (("resize_rule", RESIZE_RULES), ("activation", ACTIVATIONS)):
        for name in names:
            check_metadata({key: name}, "model.pt")
        assert RULES[key].text == f"one of {', '.join(names)}"
        with pytest.raises(InputError, match=rf"{key} is 'other', expected one of"):
            check_metadata({key: "other"}, "model.pt")


def test_an_image_is_a_square_or_oblong() -> None:
    for size in (224, [256, 448], [448, LARGEST_SIDE]):
        check_metadata({"image_size": size}, "model.pt")
    for size in ([256], [256, 448, 3], [256, 0], [256, LARGEST_SIDE + 1], [256, 448.0], [256, "448"], [[256, 448], 3]):
        with pytest.raises(InputError, match=r"image_size is .* expected 1 to 8192 pixels, or a height and a width"):
            check_metadata({"image_size": size}, "model.pt")


def test_the_largest_image() -> None:
    check_metadata({"image_size": LARGEST_SIDE}, "model.pt")
    with pytest.raises(InputError, match=f"image_size is {LARGEST_SIDE + 1}, expected 1 to {LARGEST_SIDE} pixels"):
        check_metadata({"image_size": LARGEST_SIDE + 1}, "model.pt")
