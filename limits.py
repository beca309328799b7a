"""What a constant may be: types that carry a limit and stand on the constant's line, then rules between constants.

    COLOR_JITTER: Share = 0.0  # in config.py: a number from 0 to 1, which type checkers take for a float

`overrides.apply` checks all of them before any data is read. This file imports nothing that takes time to load.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple


class Limit(NamedTuple):
    """Which values of a constant are allowed, and how an error says so."""

    allows: Callable[[Any], bool]
    text: str
    simplify: Callable[[Any], Any] = lambda value: value  # two spellings of the same thing become one


# ---- numbers ----
Above0 = Annotated[float, Limit(lambda value: value > 0, "above 0")]
ZeroOrMore = Annotated[float, Limit(lambda value: value >= 0, "0 or more")]
OffOrMore = Annotated[float, Limit(lambda value: value >= 0, "0 (off) or more")]
Count = Annotated[int, Limit(lambda value: value >= 1, "1 or more")]
OffOrCount = Annotated[int, Limit(lambda value: value >= 0, "0 (off) or more")]
OffOrMany = Annotated[int, Limit(lambda value: value == 0 or value >= 2, "0 (off), or 2 or more")]
AllOrCount = Annotated[int, Limit(lambda value: value >= 0, "0 (all) or more")]
Share = Annotated[float, Limit(lambda value: 0 <= value <= 1, "between 0 and 1")]
ShareAbove0 = Annotated[float, Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")]
ShareBelow1 = Annotated[float, Limit(lambda value: 0 <= value < 1, "0 or more and below 1")]
ShareBetween = Annotated[float, Limit(lambda value: 0 < value < 1, "above 0 and below 1")]
ShareOrNone = Annotated[float | None, Limit(lambda value: value is None or 0 <= value <= 1, "None, or between 0 and 1")]

# ---- numbers of one meaning ----
BatchSize = Annotated[int, Limit(lambda size: size >= 2, "BatchNorm in training needs 2 or more")]
BatchSizeOr0 = Annotated[int, Limit(lambda size: size == 0 or size >= 2, "0 (not set), or 2 or more")]
Degrees = Annotated[float, Limit(lambda angle: 0 <= angle <= 180, "between 0 and 180")]
Folds = Annotated[
    int, Limit(lambda folds: folds >= 0, "0 (off), or 2 or more", simplify=lambda folds: 0 if folds == 1 else folds)
]
Milestones = Annotated[
    tuple[int, ...],
    Limit(
        lambda epochs: list(epochs) == sorted({epoch for epoch in epochs if epoch > 0}),
        "epochs from 1 on, in rising order",
    ),
]
Port = Annotated[int, Limit(lambda port: 0 <= port <= 65535, "a port, 0 (any free one) to 65535")]
Rate = Annotated[
    float,
    Limit(
        lambda rate: rate > 0,
        "above 0; to keep the backbone as it is, set FREEZE_BACKBONE_AT_START = True and UNFREEZE_BACKBONE_EPOCH = 0",
    ),
]
ImageSize = Annotated[
    int | tuple[int, int],
    Limit(
        lambda size: min(size if isinstance(size, tuple) else (size,)) >= 32,
        "a side, or height,width: the backbones need 32 pixels or more",
        simplify=lambda size: size[0] if isinstance(size, tuple) and size[0] == size[1] else size,
    ),
]
Seed = Annotated[int, Limit(lambda seed: 0 <= seed < 2**32, "0 to 4294967295")]
Sides = Annotated[
    tuple[int, ...], Limit(lambda sides: min(sides, default=32) >= 32, "the backbones need 32 pixels or more")
]
Scales = Annotated[tuple[float, ...], Limit(lambda scales: min(scales, default=0) > 0, "one or more numbers above 0")]
ClassWeights = Annotated[tuple[float, ...], Limit(lambda weights: min(weights, default=0) >= 0, "0 or more each")]
Token = Annotated[
    str | None,
    Limit(
        lambda token: token is None or bool(re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token)),  # the letters of RFC 6750
        "None, or letters of A-Z a-z 0-9 . _ ~ + / = - without spaces",
    ),
]
Workers = Annotated[
    int | None,
    Limit(lambda count: count is None or count >= 0, "None (chosen), 0 (no extra process) or more"),
]

# ---- lists of names: Annotated[tuple[Literal["a", "b"], ...], ONCE] ----
ONCE = Limit(lambda names: len(set(names)) == len(names), "it names one twice")
ONE_OR_MORE = Limit(lambda names: bool(names) and len(set(names)) == len(names), "name one or more, each once")


# ---- rules between constants ----
# Each takes the module whose constants it looks at, `c`, and returns what is wrong and what to do, or None.


def sizes_have_one_source(c: Any) -> str | None:
    if c.MULTI_SCALE_SIZES and c.GROWING_IMAGE_SIZES:
        return "MULTI_SCALE_SIZES and GROWING_IMAGE_SIZES both choose the training images' size: set one of them to ()"


def warmup_ends(c: Any) -> str | None:
    if not 0 <= c.WARMUP_EPOCHS < c.NUM_EPOCHS:
        return f"WARMUP_EPOCHS is {c.WARMUP_EPOCHS} and NUM_EPOCHS {c.NUM_EPOCHS}: warm-up must end before the run does"


def patience_is_positive(c: Any) -> str | None:
    if c.EARLY_STOPPING_ENABLED and c.EARLY_STOPPING_PATIENCE < 1:
        return f"EARLY_STOPPING_ENABLED is True but EARLY_STOPPING_PATIENCE is {c.EARLY_STOPPING_PATIENCE}: at least 1"


def frozen_backbone_is_pretrained(c: Any) -> str | None:
    if c.FREEZE_BACKBONE_AT_START and c.PRETRAINED_WEIGHTS is None:
        return (
            "FREEZE_BACKBONE_AT_START is True but PRETRAINED_WEIGHTS is None: a frozen random backbone learns nothing; "
            "set FREEZE_BACKBONE_AT_START = False"
        )


# What only a backbone that trains makes use of, and what only a head that is trained by steps does: the values that
# leave it out. KEEP_BACKBONE_STATISTICS is not among them: a backbone that never trains does what it says.
UNUSED_WHILE_FROZEN = {"LORA_RANK": 0, "LAYER_DECAY": 1.0, "GROWING_IMAGE_SIZES": (), "UNFROZEN_BATCH_SIZE": 0}
UNUSED_BY_SEARCH = {
    "LOSS": "bce_with_logits",
    "ENTRY_WEIGHTS": (),
    "TEACHER_CHECKPOINTS": (),
    "AUGMENTATION_POLICY": "none",
    "COLOR_JITTER": 0.0,
    "ROTATION_DEGREES": 0.0,
    "ERASING_PROBABILITY": 0.0,
    "MIXUP_ALPHA": 0.0,
    "CUTMIX_ALPHA": 0.0,
    "MULTI_SCALE_SIZES": (),
    "USE_PRIOR_BIAS": False,
    "CLIP_GRADIENT_NORM": 0.0,
    "SAM_RHO": 0.0,
    "WEIGHT_DECAY": 0.0,
    "EMA_DECAY": 0.0,
    "EARLY_STOPPING_ENABLED": False,
}


def stays_frozen(c: Any) -> bool:
    """Whether the backbone is to stay frozen throughout. Fewer epochs than UNFREEZE_BACKBONE_EPOCH may be a trial."""
    return c.FREEZE_BACKBONE_AT_START and c.UNFREEZE_BACKBONE_EPOCH == 0


def validates_on_all(c: Any) -> bool:
    """Whether a run without FOLDS cross-validates all training images, unless the data set has a val split."""
    return c.HEAD_FIT == "search" and c.UNFREEZE_BACKBONE_EPOCH == 0


def explain_unused(c: Any, unused: dict[str, Any], reason: str = "") -> str | None:
    """That those of the `unused` constants that are set all the same play no part, if the backbone stays frozen."""
    names = [name for name, value in unused.items() if getattr(c, name) != value]
    if not names or not stays_frozen(c):
        return None
    return (
        f"the backbone stays frozen (UNFREEZE_BACKBONE_EPOCH 0){reason}, so {', '.join(names)} would play no part: set "
        f"{', '.join(f'{name} = {unused[name]!r}' for name in names)}, or let it train"
    )


def searched_head_fits(c: Any) -> str | None:
    if c.HEAD == "kernel" and not (c.HEAD_FIT == "search" and stays_frozen(c) and c.NUM_EPOCHS == 1):
        return (
            "HEAD kernel is found by a search, and compares with features of training images, which must not change: "
            "set HEAD_FIT = 'search', NUM_EPOCHS = 1, FREEZE_BACKBONE_AT_START = True and UNFREEZE_BACKBONE_EPOCH = 0, "
            "or another HEAD"
        )
    if c.HEAD_FIT != "search":
        return None
    if not c.FREEZE_BACKBONE_AT_START:
        return "HEAD_FIT search is for a frozen backbone: set FREEZE_BACKBONE_AT_START = True, or HEAD_FIT = 'steps'"
    if c.UNFREEZE_BACKBONE_EPOCH != 2 and (c.UNFREEZE_BACKBONE_EPOCH != 0 or c.NUM_EPOCHS != 1):
        return (
            "HEAD_FIT search finds the head in one epoch: set UNFREEZE_BACKBONE_EPOCH = 2, or NUM_EPOCHS = 1 with "
            f"UNFREEZE_BACKBONE_EPOCH = 0; they are {c.NUM_EPOCHS} and {c.UNFREEZE_BACKBONE_EPOCH}"
        )
    if c.HEAD not in ("linear", "kernel"):
        return (
            f"HEAD_FIT search finds a head 'linear' or 'kernel': set HEAD to one of them in place of {c.HEAD}, or "
            "HEAD_FIT = 'steps' and more NUM_EPOCHS"
        )
    if c.HEAD == "kernel" and c.FOLDS > 1:
        return (
            "HEAD kernel of each fold compares with other images, so that an average of them is none; its search "
            "cross-validates all images already: set FOLDS = 0, or HEAD = 'linear'"
        )
    if c.LOSS == "softmax" or c.LABELS_PER_IMAGE == "one":
        return (
            "HEAD_FIT search is for several labels an image: with one (LOSS softmax, LABELS_PER_IMAGE) set "
            "HEAD_FIT = 'steps', and a HEAD other than 'kernel'"
        )
    return explain_unused(c, UNUSED_BY_SEARCH, " and HEAD_FIT search takes whole images and no steps")


def frozen_backbone_has_no_options(c: Any) -> str | None:
    return explain_unused(c, UNUSED_WHILE_FROZEN)


def adapted_backbone_is_pretrained(c: Any) -> str | None:
    if c.LORA_RANK and c.PRETRAINED_WEIGHTS is None:
        return f"LORA_RANK is {c.LORA_RANK} but PRETRAINED_WEIGHTS is None: it adapts pretrained weights; set it to 0"


def missing_labels_can_be_found(c: Any) -> str | None:
    if c.ABSENT_MEANS == "absent":
        return None
    if c.LOSS == "softmax" or c.LABELS_PER_IMAGE == "one":
        return "ABSENT_MEANS is unknown, but LOSS or LABELS_PER_IMAGE say that an image has one label: set 'absent'"
    if c.TEACHER_PROBABILITIES or c.TEACHER_CHECKPOINTS:
        return "ABSENT_MEANS is unknown, but teachers say what images have beside their labels: set it to 'absent'"
    if c.PRETRAINED_WEIGHTS is None:
        return (
            "ABSENT_MEANS unknown finds missing labels on the features of a pretrained backbone, and "
            "PRETRAINED_WEIGHTS is None: name weights, or set it to 'absent'"
        )


def angular_loss_has_cosines(c: Any) -> str | None:
    if c.LOSS == "asymmetric_angular" and c.HEAD not in ("cosine", "ml_decoder", "gcn"):
        return (
            f"LOSS asymmetric_angular works on cosines, which HEAD {c.HEAD} does not give: set HEAD to cosine, "
            "ml_decoder or gcn"
        )


def pooled_features_have_a_pooling_head(c: Any) -> str | None:
    looks_at_all = c.HEAD == "ml_decoder" or (c.HEAD == "gcn" and not c.GCN_REWEIGHTS_CHANNELS)
    if c.FEATURES not in ("auto", "own") and looks_at_all:
        return f"FEATURES {c.FEATURES} is pooled, but HEAD {c.HEAD} looks at all positions itself: set FEATURES to auto"


def entry_weights_suit_softmax(c: Any) -> str | None:
    if c.LOSS == "softmax" and {"ghm", "ohem", "threshold", "reject_large"} & {*c.ENTRY_WEIGHTS}:
        return (
            f"ENTRY_WEIGHTS {c.ENTRY_WEIGHTS} go by the probability of each class by itself, which LOSS softmax does "
            "not train: leave all but class_weights out"
        )


def set_losses_have_no_entries(c: Any) -> str | None:
    if c.LOSS in ("zlpr", "two_way") and (c.ENTRY_WEIGHTS or c.LABEL_SMOOTHING):
        return (
            f"LOSS {c.LOSS} compares the labels of an image with each other and has no loss of an entry: set "
            "ENTRY_WEIGHTS to () and LABEL_SMOOTHING to 0"
        )


def class_weights_are_given(c: Any) -> str | None:
    if ("class_weights" in c.ENTRY_WEIGHTS) != bool(c.POSITIVE_CLASS_WEIGHTS or c.NEGATIVE_CLASS_WEIGHTS):
        return (
            "class_weights in ENTRY_WEIGHTS goes with POSITIVE_CLASS_WEIGHTS or NEGATIVE_CLASS_WEIGHTS: both, or "
            "neither"
        )


def takes_prior_bias(c: Any) -> bool:
    """Whether the head ends with a bias that a sigmoid makes a probability of."""
    has_bias = c.HEAD != "cosine" and (c.HEAD != "gcn" or c.GCN_REWEIGHTS_CHANNELS)
    return has_bias and c.LOSS not in ("softmax", "asymmetric_angular")


def prior_bias_has_a_sigmoid(c: Any) -> str | None:
    if c.USE_PRIOR_BIAS and not takes_prior_bias(c):
        return (
            f"USE_PRIOR_BIAS needs a last bias and a sigmoid, which HEAD {c.HEAD} with LOSS {c.LOSS} does not have: "
            "False"
        )


def sam_does_not_overflow(c: Any) -> str | None:
    if c.SAM_RHO > 0 and c.MIXED_PRECISION == "fp16":
        return (
            f"SAM_RHO is {c.SAM_RHO} but MIXED_PRECISION fp16, whose scaled gradients may overflow on the way up: "
            "bf16 or off"
        )


def labels_fit(c: Any) -> str | None:
    if c.LABELS_PER_IMAGE == "one" and not c.MIN_LABELS == c.MAX_LABELS == 1:
        return f"LABELS_PER_IMAGE is one, but MIN_LABELS {c.MIN_LABELS} and MAX_LABELS {c.MAX_LABELS}: leave both out"
    if 0 < c.MAX_LABELS < c.MIN_LABELS:
        return f"MIN_LABELS is {c.MIN_LABELS} but MAX_LABELS {c.MAX_LABELS}: no image could have both"


def promise_can_be_kept(c: Any) -> str | None:
    goal = c.THRESHOLD_GOAL
    if goal not in ("guaranteed_recall", "guaranteed_precision"):
        return None
    if c.LABELS_PER_IMAGE == "one":
        return (
            f"THRESHOLD_GOAL {goal} is for thresholds, which LABELS_PER_IMAGE one does not use: leave one of them out"
        )
    if c.THRESHOLD_SCOPE == "per_class":
        return (
            f"THRESHOLD_GOAL {goal} is a promise over all classes, which one threshold keeps: set THRESHOLD_SCOPE = "
            "'global'"
        )
    if goal == "guaranteed_recall" and c.MAX_LABELS:
        return (
            f"MAX_LABELS is {c.MAX_LABELS} but THRESHOLD_GOAL guaranteed_recall: no threshold finds more labels of an "
            "image; set MAX_LABELS = 0"
        )
    if goal == "guaranteed_precision" and (c.MIN_LABELS or c.MAX_LABELS):
        return (
            "THRESHOLD_GOAL guaranteed_precision is about the labels at or above the threshold, and MIN_LABELS "
            f"{c.MIN_LABELS} or MAX_LABELS {c.MAX_LABELS} adds or takes others: set both to 0"
        )
    name = "THRESHOLD_RECALL" if goal == "guaranteed_recall" else "THRESHOLD_PRECISION"
    if getattr(c, name) == 1:
        return f"{name} is 1 but THRESHOLD_GOAL {goal}: no number of images shows that there is no exception; set 0.99"
    return None


def compiled_model_keeps_activations(c: Any) -> str | None:
    if c.COMPILE and c.ACTIVATION_CHECKPOINTING:
        return "COMPILE and ACTIVATION_CHECKPOINTING do not go together: set one of them to False"


def calibration_has_a_sigmoid(c: Any) -> str | None:
    if c.CALIBRATION != "none" and c.LOSS == "softmax":
        return f"CALIBRATION {c.CALIBRATION} is for probabilities of a sigmoid, not of LOSS softmax: set it to 'none'"


def teachers_are_of_one_kind(c: Any) -> str | None:
    if c.TEACHER_PROBABILITIES and c.TEACHER_CHECKPOINTS:
        return "TEACHER_PROBABILITIES and TEACHER_CHECKPOINTS both say what to learn from: set one of them to ()"


def teacher_is_not_replaced(c: Any) -> str | None:
    if c.BEST_MODEL_PATH.resolve() in [Path(file).resolve() for file in c.TEACHER_CHECKPOINTS]:
        return (
            f"TEACHER_CHECKPOINTS names BEST_MODEL_PATH {c.BEST_MODEL_PATH}, which the student would replace: name the "
            "teacher's own checkpoint, or a copy"
        )


def teachers_have_a_sigmoid(c: Any) -> str | None:
    if (c.TEACHER_PROBABILITIES or c.TEACHER_CHECKPOINTS) and c.LOSS == "softmax":
        return (
            "teachers give a probability for each class by itself, which LOSS softmax does not train: choose another "
            "LOSS"
        )


def classes_differ(c: Any) -> str | None:
    if not c.CLASSES:
        return "CLASSES is empty: name the classes, in index order"
    if len({unicodedata.normalize("NFC", name.strip()) for name in c.CLASSES}) != len(c.CLASSES):
        return "CLASSES names a class twice, perhaps in two Unicode forms"


def fp16_is_of_openvino(c: Any) -> str | None:
    if c.EXPORT_FP16 and "openvino" not in c.EXPORT_FORMATS:
        return (
            f"EXPORT_FP16 is True but EXPORT_FORMATS {c.EXPORT_FORMATS} has no openvino: add it, or set "
            "EXPORT_FP16 = False"
        )


def resizing_files_have_one_size(c: Any) -> str | None:
    if c.EXPORT_RESIZE and "size" in c.EXPORT_DYNAMIC:
        return (
            f"EXPORT_RESIZE gives the network images of one size, but EXPORT_DYNAMIC is {c.EXPORT_DYNAMIC}: leave size "
            "out, or set EXPORT_RESIZE = False"
        )


PLAIN_FORMATS = ("torchscript", "pt2", "litert", "hub")  # of EXPORT_FORMATS, those that hold the network alone


def plain_files_hold_the_network_alone(c: Any) -> str | None:
    plain = ", ".join(name for name in c.EXPORT_FORMATS if name in PLAIN_FORMATS)
    if plain and c.EXPORT_RESIZE:
        return (
            f"EXPORT_RESIZE is for ONNX and OpenVINO, but EXPORT_FORMATS has {plain}: leave them out, or set "
            "EXPORT_RESIZE = False"
        )
    if plain and c.EXPORT_OUTPUT == "labels":
        return (
            f"EXPORT_OUTPUT labels is for ONNX and OpenVINO, but EXPORT_FORMATS has {plain}: leave them out, or set "
            "EXPORT_OUTPUT = 'probabilities'"
        )


def int8_is_of_openvino(c: Any) -> str | None:
    if c.TEST_INT8 and c.TEST_ENGINE != "openvino":
        return f"TEST_INT8 is True but TEST_ENGINE is {c.TEST_ENGINE}: set TEST_ENGINE = 'openvino' (for a checkpoint)"


def parts_stand_alone(c: Any) -> str | None:
    if "parts" in c.PREDICTION_FILES and len(c.PREDICTION_FILES) > 1:
        return (
            f"PREDICTION_FILES {c.PREDICTION_FILES}: parts are for more images than fit into memory, and the other "
            "files hold all at once: name parts alone"
        )


# the file whose constants they look at: its rules
RULES: dict[str, list[Callable[[Any], str | None]]] = {
    "config.py": [
        sizes_have_one_source,
        warmup_ends,
        patience_is_positive,
        frozen_backbone_is_pretrained,
        searched_head_fits,
        frozen_backbone_has_no_options,
        adapted_backbone_is_pretrained,
        missing_labels_can_be_found,
        angular_loss_has_cosines,
        pooled_features_have_a_pooling_head,
        entry_weights_suit_softmax,
        set_losses_have_no_entries,
        class_weights_are_given,
        prior_bias_has_a_sigmoid,
        sam_does_not_overflow,
        labels_fit,
        promise_can_be_kept,
        compiled_model_keeps_activations,
        calibration_has_a_sigmoid,
        teachers_are_of_one_kind,
        teacher_is_not_replaced,
        teachers_have_a_sigmoid,
        classes_differ,
    ],
    "export_onnx.py": [fp16_is_of_openvino, resizing_files_have_one_size, plain_files_hold_the_network_alone],
    "testing.py": [int8_is_of_openvino, parts_stand_alone],
}
