"""What the constants of `config.py` may be: each by itself (LIMITS), and together (CONTRADICTIONS).

`overrides.apply` refuses, before any data is read, whatever breaks one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from utils import InputError


class Limit(NamedTuple):
    """Which values of a constant are allowed, and how to say so."""

    allows: Callable[[Any], bool]
    text: str


Rule = Callable[..., bool]  # its parameters are the names of the constants it looks at


def refuse(values: dict[str, Any]) -> None:
    """Raise InputError, in one line, for the first limit or rule that the constants `values` break."""
    for name, limit in LIMITS.items():
        if name in values and not limit.allows(values[name]):
            raise InputError(f"{name} is {values[name]}: {limit.text}")
    for rule, message in CONTRADICTIONS:
        needed = rule.__code__.co_varnames[: rule.__code__.co_argcount]
        if all(name in values for name in needed) and rule(*(values[name] for name in needed)):
            raise InputError(message.format(**{name: values[name] for name in needed}))


def _at_least(least: int, text: str = "") -> Limit:
    return Limit(lambda value: value >= least, text or f"{least} or more")


ABOVE_0 = Limit(lambda value: value > 0, "above 0")
SHARE = Limit(lambda value: 0 <= value <= 1, "between 0 and 1")
SHARE_BELOW_1 = Limit(lambda value: 0 <= value < 1, "0 or more and below 1")
SHARE_ABOVE_0 = Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")
SIDES = Limit(lambda sizes: min(sizes, default=32) >= 32, "the backbones need 32 pixels or more")
WEIGHTS = Limit(lambda weights: min(weights, default=0) >= 0, "0 or more each")

LIMITS: dict[str, Limit] = {
    "IMAGE_SIZE": _at_least(32, "the backbones need 32 pixels or more"),
    "VAL_SPLIT": Limit(lambda value: 0 < value < 1, "it must lie between 0 and 1"),
    "CROP_SCALE_MIN": SHARE_ABOVE_0,
    "COLOR_JITTER": SHARE,
    "ROTATION_DEGREES": Limit(lambda value: 0 <= value <= 180, "between 0 and 180"),
    "ERASING_PROBABILITY": SHARE,
    "ERASING_MAX_SHARE": SHARE_ABOVE_0,
    "MIXUP_ALPHA": _at_least(0, "0 (off) or more"),
    "CUTMIX_ALPHA": _at_least(0, "0 (off) or more"),
    "MULTI_SCALE_SIZES": SIDES,
    "MULTI_SCALE_EVERY_N_STEPS": _at_least(1),
    "MLP_HIDDEN": _at_least(1),
    "MLP_DROPOUT": SHARE_BELOW_1,
    "ML_DECODER_GROUPS": _at_least(1),
    "GCN_LINK_PROBABILITY": SHARE_ABOVE_0,
    "ANGULAR_SCALE": _at_least(0, "0 (from the number of classes) or more"),
    "UNFREEZE_BACKBONE_EPOCH": _at_least(0, "0 (never) or more"),
    "FROZEN_FEATURE_VIEWS": _at_least(0, "0 (features are not kept) or more"),
    "GROWING_IMAGE_SIZES": SIDES,
    "NUM_EPOCHS": _at_least(1),
    "SEED": Limit(lambda value: 0 <= value < 2**32, "0 to 4294967295"),
    "TRAIN_BATCH_SIZE": _at_least(2, "BatchNorm in training needs 2 or more"),
    "UNFROZEN_BATCH_SIZE": Limit(lambda value: value == 0 or value >= 2, "0 (TRAIN_BATCH_SIZE), or 2 or more"),
    "CLIP_GRADIENT_NORM": _at_least(0, "0 (any) or more"),
    "TEACHER_WEIGHT": SHARE_ABOVE_0,
    "TEACHER_TEMPERATURE": ABOVE_0,
    "MICRO_BATCH_SIZE": Limit(lambda value: value == 0 or value >= 2, "0 (the whole share), or 2 or more"),
    "SHARD_CACHE_GB": ABOVE_0,
    "SAVE_EVERY_MINUTES": _at_least(0, "0 (at an epoch's end only) or more"),
    "SAVE_EVERY_N_EPOCHS": _at_least(0, "0 (none) or more"),
    "NON_FINITE_LIMIT": _at_least(1),
    "SAM_RHO": _at_least(0, "0 (off) or more"),
    "WEIGHT_DECAY": _at_least(0, "0 (none) or more"),
    "EMA_DECAY": SHARE_BELOW_1,
    "LR_MILESTONES": Limit(
        lambda epochs: list(epochs) == sorted({epoch for epoch in epochs if epoch > 0}),
        "epochs from 1 on, in rising order",
    ),
    "LR_STEP_EPOCHS": _at_least(1),
    "LR_DECAY_FACTOR": SHARE_ABOVE_0,
    "ONECYCLE_PEAK": Limit(lambda value: 0 < value < 1, "between 0 and 1"),
    "POS_WEIGHT_CAP": _at_least(0, "0 (no cap) or more"),
    "FOCAL_GAMMA": _at_least(0),
    "FOCAL_ALPHA": Limit(lambda value: value is None or 0 <= value <= 1, "None, or between 0 and 1"),
    "ASL_GAMMA_NEGATIVE": _at_least(0),
    "ASL_GAMMA_POSITIVE": _at_least(0),
    "ASL_CLIP": SHARE,
    "ANGULAR_MARGIN": _at_least(0),
    "ANGULAR_BALANCE": SHARE,
    "ANGULAR_GAMMA_NEGATIVE": _at_least(0),
    "ANGULAR_GAMMA_POSITIVE": _at_least(0),
    "ANGULAR_CLIP": SHARE,
    "LABEL_SMOOTHING": SHARE_BELOW_1,
    "GHM_BINS": _at_least(1),
    "GHM_MOMENTUM": SHARE_BELOW_1,
    "OHEM_KEEP": SHARE_ABOVE_0,
    "THRESHOLD_MARGIN": SHARE_BELOW_1,
    "POSITIVE_CLASS_WEIGHTS": WEIGHTS,
    "NEGATIVE_CLASS_WEIGHTS": WEIGHTS,
    "VAL_EVERY_N_EPOCHS": _at_least(1),
    "EARLY_STOPPING_MIN_DELTA": _at_least(0),
    "TEST_BATCH_SIZE": _at_least(1),
    "TH_MULTI_LABEL": Limit(lambda value: 0 <= value <= 1, "a probability, 0 to 1"),
    "BOOTSTRAP_SAMPLES": _at_least(0, "0 (no intervals) or more"),
    "TEST_SCALES": Limit(lambda scales: min(scales, default=0) > 0, "one or more numbers above 0"),
    "INT8_CALIBRATION_IMAGES": _at_least(1),
    "THRESHOLD_BETA": ABOVE_0,
    "THRESHOLD_PRECISION": SHARE_ABOVE_0,
    "THRESHOLD_RECALL": SHARE_ABOVE_0,
    "FALSE_POSITIVE_COST": ABOVE_0,
    "FALSE_NEGATIVE_COST": ABOVE_0,
    "MIN_LABELS": _at_least(0, "0 (an image may have none) or more"),
    "MAX_LABELS": _at_least(0, "0 (any number) or more"),
    "EXPORT_CHECK_IMAGES": _at_least(1),
    "MAP_MAX_IMAGES": _at_least(0, "0 (all) or more"),
    "MAP_LABELS_PER_IMAGE": _at_least(1),
    "SERVING_PORT": Limit(lambda value: 0 <= value <= 65535, "a port, 0 (any free one) to 65535"),
    "SERVING_BATCH_SIZE": _at_least(1),
    "SERVING_BATCH_WAIT_MS": _at_least(0),
    "SERVING_QUEUE_SIZE": _at_least(1),
    "SERVING_MAX_UPLOAD_MB": ABOVE_0,
    "SERVING_MAX_MEGAPIXELS": ABOVE_0,
    "NUM_WORKERS": Limit(lambda value: value is None or value >= 0, "None (chosen), 0 (no extra process) or more"),
    "IMAGE_CACHE_GB": ABOVE_0,
    "FEATURE_CACHE_GB": ABOVE_0,
    "TRAIN_METRICS_EVERY_N_EPOCHS": _at_least(0, "0 (never) or more"),
}

# (rule, message): the rule is broken where it is true
CONTRADICTIONS: list[tuple[Rule, str]] = [
    (
        lambda MULTI_SCALE_SIZES, GROWING_IMAGE_SIZES: bool(MULTI_SCALE_SIZES and GROWING_IMAGE_SIZES),
        "MULTI_SCALE_SIZES and GROWING_IMAGE_SIZES both choose the training images' size: set one of them to ()",
    ),
    (
        lambda LEARNING_RATE, BACKBONE_BASE_LR, HEAD_BASE_LR: min(LEARNING_RATE, BACKBONE_BASE_LR, HEAD_BASE_LR) <= 0,
        "LEARNING_RATE, BACKBONE_BASE_LR and HEAD_BASE_LR must be above 0; to keep the backbone as it is, set "
        "FREEZE_BACKBONE_AT_START = True and UNFREEZE_BACKBONE_EPOCH = 0",
    ),
    (
        lambda WARMUP_EPOCHS, NUM_EPOCHS: not 0 <= WARMUP_EPOCHS < NUM_EPOCHS,
        "WARMUP_EPOCHS is {WARMUP_EPOCHS} and NUM_EPOCHS {NUM_EPOCHS}: warm-up must end before the run does",
    ),
    (
        lambda EARLY_STOPPING_ENABLED, EARLY_STOPPING_PATIENCE: EARLY_STOPPING_ENABLED and EARLY_STOPPING_PATIENCE < 1,
        "EARLY_STOPPING_ENABLED is True but EARLY_STOPPING_PATIENCE is {EARLY_STOPPING_PATIENCE}: at least 1",
    ),
    (
        lambda FREEZE_BACKBONE_AT_START, PRETRAINED_WEIGHTS: FREEZE_BACKBONE_AT_START and PRETRAINED_WEIGHTS is None,
        "FREEZE_BACKBONE_AT_START is True but PRETRAINED_WEIGHTS is None: a frozen random backbone learns nothing; "
        "set FREEZE_BACKBONE_AT_START = False",
    ),
    (
        lambda LOSS, HEAD: LOSS == "asymmetric_angular" and HEAD not in ("cosine", "ml_decoder", "gcn"),
        "LOSS asymmetric_angular works on cosines, which HEAD {HEAD} does not give: set HEAD to cosine, ml_decoder or "
        "gcn",
    ),
    (
        lambda LOSS, ENTRY_WEIGHTS: LOSS == "softmax" and bool({"ghm", "ohem", "threshold"} & {*ENTRY_WEIGHTS}),
        "ENTRY_WEIGHTS {ENTRY_WEIGHTS} go by the probability of each class by itself, which LOSS softmax does not "
        "train: leave ghm, ohem and threshold out",
    ),
    (
        lambda ENTRY_WEIGHTS, POSITIVE_CLASS_WEIGHTS, NEGATIVE_CLASS_WEIGHTS: (
            ("class_weights" in ENTRY_WEIGHTS) != bool(POSITIVE_CLASS_WEIGHTS or NEGATIVE_CLASS_WEIGHTS)
        ),
        "class_weights in ENTRY_WEIGHTS goes with POSITIVE_CLASS_WEIGHTS or NEGATIVE_CLASS_WEIGHTS: both, or neither",
    ),
    (
        lambda USE_PRIOR_BIAS, HEAD, LOSS: (
            USE_PRIOR_BIAS and (HEAD == "cosine" or LOSS in ("softmax", "asymmetric_angular"))
        ),
        "USE_PRIOR_BIAS needs a last bias and a sigmoid, which HEAD {HEAD} with LOSS {LOSS} does not have: False",
    ),
    (lambda ENTRY_WEIGHTS: len({*ENTRY_WEIGHTS}) < len(ENTRY_WEIGHTS), "ENTRY_WEIGHTS {ENTRY_WEIGHTS} names one twice"),
    (
        lambda SAM_RHO, MIXED_PRECISION: SAM_RHO > 0 and MIXED_PRECISION == "fp16",
        "SAM_RHO is {SAM_RHO} but MIXED_PRECISION fp16, whose scaled gradients may overflow on the way up: bf16 or off",
    ),
    (
        lambda TEST_INT8, TEST_ENGINE: TEST_INT8 and TEST_ENGINE != "openvino",
        "TEST_INT8 is True but TEST_ENGINE is {TEST_ENGINE}: set TEST_ENGINE = 'openvino' (for a checkpoint)",
    ),
    (
        lambda MIN_LABELS, MAX_LABELS: 0 < MAX_LABELS < MIN_LABELS,
        "MIN_LABELS is {MIN_LABELS} but MAX_LABELS {MAX_LABELS}: no image could have both",
    ),
    (
        lambda EXPORT_FORMATS: not EXPORT_FORMATS or len({*EXPORT_FORMATS}) < len(EXPORT_FORMATS),
        "EXPORT_FORMATS is {EXPORT_FORMATS}: name one or more, each once",
    ),
    (
        lambda EXPORT_FP16, EXPORT_FORMATS: EXPORT_FP16 and "openvino" not in EXPORT_FORMATS,
        "EXPORT_FP16 is True but EXPORT_FORMATS {EXPORT_FORMATS} has no openvino: add it, or set EXPORT_FP16 = False",
    ),
    (
        lambda COMPILE, ACTIVATION_CHECKPOINTING: COMPILE and ACTIVATION_CHECKPOINTING,
        "COMPILE and ACTIVATION_CHECKPOINTING do not go together: set one of them to False",
    ),
    (
        lambda CALIBRATION, LOSS: CALIBRATION != "none" and LOSS == "softmax",
        "CALIBRATION {CALIBRATION} is for probabilities of a sigmoid, not of LOSS softmax: set it to 'none'",
    ),
    (
        lambda TEACHER_PROBABILITIES, TEACHER_CHECKPOINTS: bool(TEACHER_PROBABILITIES and TEACHER_CHECKPOINTS),
        "TEACHER_PROBABILITIES and TEACHER_CHECKPOINTS both say what to learn from: set one of them to ()",
    ),
    (
        lambda TEACHER_CHECKPOINTS, BEST_MODEL_PATH: (
            BEST_MODEL_PATH.resolve() in [Path(file).resolve() for file in TEACHER_CHECKPOINTS]
        ),
        "TEACHER_CHECKPOINTS names BEST_MODEL_PATH {BEST_MODEL_PATH}, which the student would replace: name the "
        "teacher's own checkpoint, or a copy",
    ),
    (
        lambda TEACHER_PROBABILITIES, TEACHER_CHECKPOINTS, LOSS: (
            bool(TEACHER_PROBABILITIES or TEACHER_CHECKPOINTS) and LOSS == "softmax"
        ),
        "teachers give a probability for each class by itself, which LOSS softmax does not train: choose another LOSS",
    ),
    (lambda CLASSES: not CLASSES, "CLASSES is empty: name the classes, in index order"),
    (lambda CLASSES: len(set(CLASSES)) != len(CLASSES), "CLASSES names a class twice"),
]
