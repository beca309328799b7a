"""Checks what a model file says about its model: every key that is read later has the type that it should have.

    check_metadata(metadata, "trained_models/best_model.pt")    # InputError names the first key that is wrong

The metadata of checkpoints, exported files and sidecars comes from files of unknown origin. It is checked once, when it
is read; whoever uses it afterwards may rely on RULES. Imports no torch: the table of runs reads sidecars only.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from dataset import timm_rules
from dataset.class_names import normalise_saved
from limits import Limit
from utils import InputError

LARGEST_SIDE = 8192  # pixels: an image of this height and width takes 800 MB in the first layer of a ResNet
LONGEST_NAME = 200  # characters of a name that becomes a part of file names
MOST_VALUES = 1_000_000  # a run with 10,000 classes has some 50,000
LARGEST_FIT = 1e6  # of a calibration's scale and bias: beyond, every probability is 0, 1 or one half
DEEPEST = 20  # lists and objects within one another
MOST_BITS = 4096  # of a whole number; Python refuses to print many more

# ---- kinds of values ----


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, not True or False."""
    return (type(value) is int and abs(value) < 2**53) or (type(value) is float and math.isfinite(value))


def is_measured(value: Any) -> bool:
    """Whether `value` is what measuring gives: a number, also NaN and infinity, or None where nothing was measured."""
    return value is None or type(value) is float or is_number(value)


def is_f1(value: Any) -> bool:
    """Whether `value` can be compared with another F1: a number, NaN, or None where there was no validation."""
    return is_measured(value) and value not in (math.inf, -math.inf)


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number, 0 or more."""
    return type(value) is int and 0 <= value < 2**53


def is_name(value: Any) -> bool:
    """Whether `value` is a text that can stand in a line and in a file's name."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def is_run(value: Any) -> bool:
    """Whether `value` names a run by its folder, "<model>/<configuration>": no other place can be reached by it."""
    return isinstance(value, str) and re.fullmatch(r"(?!\.)[\w.+-]{1,200}/(?!\.)[\w.+-]{1,200}", value) is not None


def is_threshold(value: Any) -> bool:
    """Whether `value` is a probability; a threshold that no score reaches is the next float above 1."""
    return is_number(value) and 0 <= value <= 1 + 1e-6


def is_share(value: Any) -> bool:
    """Whether `value` is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_list(value: Any, allows: Any = is_number) -> bool:
    """Whether `value` is a list of values that `allows`."""
    return isinstance(value, list | tuple) and all(map(allows, value))


def is_object(value: Any, allows: Any = lambda value: True) -> bool:
    """Whether `value` is a dict of values that `allows`; that its keys are text is checked for all dicts."""
    return isinstance(value, dict) and all(map(allows, value.values()))


def is_option(value: Any) -> bool:
    """Whether `value` may be an option of a head."""
    return value is None or isinstance(value, bool) or is_number(value)


def is_image_size(value: Any) -> bool:
    """Whether `value` is the side of a square, or a list of height and width, in pixels."""
    sides = value if is_list(value, is_count) and len(value) == 2 else [value]
    return all(is_count(side) and 1 <= side <= LARGEST_SIDE for side in sides)


def is_resize_rule(value: Any) -> bool:
    """Whether `value` is a RESIZE_RULE, or a rule of timm's."""
    return isinstance(value, str) and (value in ("squash", "center_crop", "letterbox") or timm_rules.is_rule(value))


def are_classes(value: Any) -> bool:
    return is_list(value, lambda name: isinstance(name, str)) and 0 < len(value) == len(set(value))


def is_promise(value: Any) -> bool:
    """Whether `value` is what `evaluation.promises.make_promise` gives, except None."""
    return (
        is_object(value)
        and {"metric", "level", "confidence", "num_images", "words"} <= value.keys()
        and value["metric"] in ("recall", "precision")
        and is_share(value["level"])
        and (value["confidence"] is None or is_share(value["confidence"]))
        and is_count(value["num_images"])
        and value["num_images"] > 0
        and isinstance(value["words"], str)
    )


def is_abstention(value: Any) -> bool:
    """Whether `value` is what `evaluation.tuning.tune_abstention` gives, except None."""
    return is_object(value, is_number) and {"share", "cut"} <= value.keys() and is_share(value["share"])


def is_config(value: Any) -> bool:
    """Whether `value` holds constants. Those that stand in the names of files of predictions are numbers."""
    numbers = ("TRAIN_BATCH_SIZE", "LEARNING_RATE", "HEAD_BASE_LR")
    return is_object(value) and all(is_number(value[name]) for name in numbers if name in value)


def is_method(value: Any) -> bool:
    """Whether `value` is a fitted calibration: scales above 0 and biases, one for all classes or one for each."""
    return (
        is_object(value, is_list)
        and {"scale", "bias"} <= value.keys()
        and all(1 / LARGEST_FIT <= scale <= LARGEST_FIT for scale in value["scale"])
        and all(abs(bias) <= LARGEST_FIT for bias in value["bias"])
    )


# ---- rules ----


def one_of(*names: str) -> Limit:
    return Limit(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}")


NAME = Limit(is_name, f"a name of at most {LONGEST_NAME} characters")
COUNT_OR_NONE = Limit(lambda value: value is None or is_count(value), "a whole number from 0 on, or null")
OBJECT = Limit(is_object, "an object of names and values")

# keys: what metadata may hold; a key that is missing is for the reader to ask for; others may hold any plain values
RULES: dict[str, Limit] = {
    # the model
    "model_name": NAME,
    "network": NAME,  # what the name means to timm or torchvision; without it: models/backbones.py, MEANT_BEFORE
    "head": NAME,
    "head_options": Limit(lambda value: value is None or is_object(value, is_option), "an object of names and numbers"),
    "features": NAME,  # of models/features.py; without it: own
    "activation": one_of("sigmoid", "softmax"),
    "classes": Limit(are_classes, "a list of one or more names, each once"),
    "image_size": Limit(is_image_size, f"1 to {LARGEST_SIDE} pixels, or a height and a width"),
    "resize_rule": Limit(is_resize_rule, "one of squash, center_crop, letterbox"),
    # decisions
    "best_threshold": Limit(lambda value: value is None or is_threshold(value), "a number from 0 to 1, or null"),
    "thresholds": Limit(lambda value: value is None or is_list(value, is_threshold), "a list of numbers from 0 to 1"),
    "min_labels": COUNT_OR_NONE,
    "max_labels": COUNT_OR_NONE,
    "calibration": Limit(
        lambda value: value is None or is_object(value, is_method), "an object of methods with scale and bias"
    ),
    "threshold_report": OBJECT,
    "promise": Limit(
        lambda value: value is None or is_promise(value),
        "an object with metric, level, confidence, num_images and words, or null",
    ),
    "abstention": Limit(
        lambda value: value is None or is_abstention(value), "an object with the numbers share and cut, or null"
    ),
    # where it comes from
    "pretrained_licence": NAME,
    "best_f1": Limit(is_f1, "a finite number, or null"),
    "chosen_by": NAME,
    "run": Limit(is_run, "a model and a configuration, with / between them"),
    "fold": COUNT_OR_NONE,
    "fold_of": NAME,
    "epoch": COUNT_OR_NONE,
    "saved": Limit(lambda value: value is None or isinstance(value, str), "a text, or null"),
    "seconds": Limit(is_measured, "a number"),
    "metrics": Limit(lambda value: is_object(value, is_measured), "an object of names and numbers"),
    "config": Limit(is_config, "an object of constants, with numbers for rates and batch sizes"),
    "dataset": OBJECT,
    "environment": Limit(
        lambda value: is_object(value, lambda text: isinstance(text, str)), "an object of names and texts"
    ),
    # exported files
    "input": one_of("images", "image"),
    "output": one_of("logits", "probabilities"),
    "gives_labels": Limit(lambda value: isinstance(value, bool), "true or false"),
    "applied_calibration": NAME,
    "dynamic": Limit(lambda value: is_list(value, lambda name: name in ("batch", "size")), "a list of batch, size"),
    "precision": one_of("fp32", "fp16", "int8"),
}


def check_metadata(metadata: Any, where: object) -> dict[str, Any]:
    """Returns `metadata`, all of plain types and each key of RULES as its rule asks, its class names in NFC.

    Raises InputError, which begins with `where` it stands, for the first that is wrong.
    """
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: its metadata is {reprlib.repr(metadata)}, expected an object of names and values")
    if problem := find_oddity(metadata):
        raise InputError(f"{where}: its metadata {problem}: no run of this project wrote it")
    for key, rule in RULES.items():
        if key in metadata and not rule.allows(metadata[key]):
            raise InputError(f"{where}: {key} is {reprlib.repr(metadata[key])}, expected {rule.text}")
    if "classes" in metadata:
        _check_lengths(metadata, where)
        metadata["classes"] = list(normalise_saved(metadata["classes"]))
    return metadata


def _check_lengths(metadata: Mapping[str, Any], where: object) -> None:
    """Raise InputError if there are more or fewer thresholds, scales or biases than classes."""
    count = len(metadata["classes"])
    lengths = {"thresholds": len(metadata.get("thresholds") or metadata["classes"])}
    for name, method in (metadata.get("calibration") or {}).items():
        lengths |= {f"calibration {name!r} {key}": len(method[key]) for key in ("scale", "bias")}
    for name, length in lengths.items():
        if length != count and not (length == 1 and name != "thresholds"):
            raise InputError(f"{where}: {name} has {length} numbers for {count} classes")


def find_oddity(metadata: Any) -> str | None:
    """What keeps `metadata` from being written as JSON and printed, in words; None if nothing does."""
    waiting: list[tuple[Any, int]] = [([metadata], 0)]  # dicts and lists, and how deep each of them lies
    num_values = 0
    while waiting:
        values, depth = waiting.pop()
        num_values += len(values)
        if num_values > MOST_VALUES:  # a small pickle can hold a list many times
            return f"holds more than {MOST_VALUES:,} values"
        if depth > DEEPEST:
            return "is nested too deeply"
        texts = []
        if isinstance(values, dict):
            if not all(isinstance(name, str) for name in values):
                return "has a name that is no text"
            texts += values
            values = values.values()
        for value in values:
            if isinstance(value, str):
                texts.append(value)
            elif isinstance(value, dict | list | tuple):
                waiting.append((value, depth + 1))
            elif isinstance(value, int):
                if value.bit_length() > MOST_BITS:
                    return "holds a number with thousands of digits"
            elif not (value is None or isinstance(value, float)):
                return f"holds a {type(value).__name__}, which is no plain value"
        try:
            "".join(texts).encode(errors="surrogateescape")  # which stand for bytes of a file's name
        except UnicodeEncodeError as error:
            return f"holds the text {error.object[error.start : error.start + 40]!a}, which is not Unicode"
    return None
