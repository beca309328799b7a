"""limits.py: each limit and each rule refuses what it is for, in one line, and the defaults break none."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

import pytest

import class_activation_maps
import config
import dataset_tools
import export_onnx
import heads
import limits
import overrides
import serving
import testing
from constants.values import parse
from utils import InputError

MODULES = (config, testing, export_onnx, class_activation_maps, serving, dataset_tools)
CONTRADICTORY = [  # at least one for each limit and each rule, and a piece of the message
    ("--NUM_EPOCHS 0", "NUM_EPOCHS is 0"),
    ("--TRAIN_BATCH_SIZE 1", "TRAIN_BATCH_SIZE is 1: BatchNorm"),
    ("--TEST_BATCH_SIZE 0", "TEST_BATCH_SIZE is 0"),
    ("--IMAGE_SIZE 31", "IMAGE_SIZE is 31"),
    ("--IMAGE_SIZE 256,31", "IMAGE_SIZE is (256, 31): a side, or height,width"),
    ("--VAL_SPLIT 0", "VAL_SPLIT is 0.0"),
    ("--VAL_SPLIT 1", "VAL_SPLIT is 1.0"),
    ("--FOLDS=-1", "FOLDS is -1: 0 (off), or 2 or more"),
    ("--VAL_EVERY_N_EPOCHS 0", "VAL_EVERY_N_EPOCHS is 0"),
    ("--TRAIN_METRICS_EVERY_N_EPOCHS -1", "TRAIN_METRICS_EVERY_N_EPOCHS is -1"),
    ("--NUM_WORKERS -1", "NUM_WORKERS is -1"),
    ("--IMAGE_CACHE_GB 0", "IMAGE_CACHE_GB is 0.0"),
    ("--FEATURE_CACHE_GB 0", "FEATURE_CACHE_GB is 0.0"),
    ("--FROZEN_FEATURE_VIEWS -1", "FROZEN_FEATURE_VIEWS is -1"),
    ("--GROWING_IMAGE_SIZES 16,64", "GROWING_IMAGE_SIZES is (16, 64)"),
    ("--TH_MULTI_LABEL 1.01", "TH_MULTI_LABEL is 1.01"),
    ("--CROP_SCALE_MIN 0", "CROP_SCALE_MIN is 0.0"),
    ("--WEIGHT_DECAY=-0.1", "WEIGHT_DECAY is -0.1"),
    ("--UNFREEZE_BACKBONE_EPOCH -1", "UNFREEZE_BACKBONE_EPOCH is -1"),
    ("--EARLY_STOPPING_MIN_DELTA=-0.1", "EARLY_STOPPING_MIN_DELTA is -0.1"),
    ("--UNFROZEN_BATCH_SIZE 1", "UNFROZEN_BATCH_SIZE is 1"),
    ("--CLIP_GRADIENT_NORM=-1", "CLIP_GRADIENT_NORM is -1.0"),
    ("--TEACHER_WEIGHT 0", "TEACHER_WEIGHT is 0.0"),
    ("--TEACHER_TEMPERATURE 0", "TEACHER_TEMPERATURE is 0.0"),
    ("--ABSENT_MEANS unknown --LABELS_PER_IMAGE one", "LOSS or LABELS_PER_IMAGE say that an image has one label"),
    ("--ABSENT_MEANS unknown --TEACHER_CHECKPOINTS b.pt", "but teachers say what images have beside their labels"),
    ("--ABSENT_MEANS unknown --PRETRAINED_WEIGHTS None --FREEZE_BACKBONE False", "on the features of a pretrained"),
    ("--TEACHER_PROBABILITIES a.csv --TEACHER_CHECKPOINTS b.pt", "both say what to learn from"),
    ("--TEACHER_CHECKPOINTS a/../b.pt --BEST_MODEL_PATH b.pt", "which the student would replace"),
    ("--SEED=-1", "SEED is -1: 0 to 4294967295"),
    ("--SPLIT_SEED=4294967296", "SPLIT_SEED is 4294967296: 0 to 4294967295"),
    ("--TEACHER_CHECKPOINTS b.pt --LOSS softmax", "teachers give a probability for each class by itself"),
    ("--MICRO_BATCH_SIZE 1", "MICRO_BATCH_SIZE is 1"),
    ("--SHARD_CACHE_GB 0", "SHARD_CACHE_GB is 0.0"),
    ("--SAVE_EVERY_MINUTES=-1", "SAVE_EVERY_MINUTES is -1.0"),
    ("--SAVE_EVERY_N_EPOCHS=-1", "SAVE_EVERY_N_EPOCHS is -1"),
    ("--LOGGERS wandb,wandb", "LOGGERS is ('wandb', 'wandb'): it names one twice"),
    ("--LOGGERS mlflo", "LOGGERS is 'mlflo' (did you mean mlflow?)"),
    ("--NON_FINITE_LIMIT 0", "NON_FINITE_LIMIT is 0"),
    ("--TEST_INT8 true", "TEST_INT8 is True but TEST_ENGINE is auto"),
    ("--PREDICTION_FILES parts,names", "parts are for more images than fit into memory"),
    ("--THRESHOLD_BETA 0", "THRESHOLD_BETA is 0.0"),
    ("--THRESHOLD_PRECISION 0", "THRESHOLD_PRECISION is 0.0"),
    ("--THRESHOLD_RECALL 1.1", "THRESHOLD_RECALL is 1.1"),
    ("--FALSE_POSITIVE_COST 0", "FALSE_POSITIVE_COST is 0.0"),
    ("--FALSE_NEGATIVE_COST=-1", "FALSE_NEGATIVE_COST is -1.0"),
    ("--MIN_LABELS=-1", "MIN_LABELS is -1"),
    ("--MAX_LABELS=-1", "MAX_LABELS is -1"),
    ("--MIN_LABELS 3 --MAX_LABELS 2", "MIN_LABELS is 3 but MAX_LABELS 2"),
    ("--LABELS_PER_IMAGE one --MAX_LABELS 2", "LABELS_PER_IMAGE is one, but MIN_LABELS 1 and MAX_LABELS 2"),
    ("--LABELS_PER_IMAGE two", "LABELS_PER_IMAGE is 'two'"),
    ("--THRESHOLD_GOAL guaranteed_recall --LABELS_PER_IMAGE one", "which LABELS_PER_IMAGE one does not use"),
    ("--THRESHOLD_GOAL guaranteed_recall --THRESHOLD_SCOPE per_class", "set THRESHOLD_SCOPE = 'global'"),
    ("--THRESHOLD_GOAL guaranteed_recall --MAX_LABELS 3", "MAX_LABELS is 3 but THRESHOLD_GOAL guaranteed_recall"),
    ("--THRESHOLD_GOAL guaranteed_precision --MIN_LABELS 1", "MIN_LABELS 1 or MAX_LABELS 0 adds or takes others"),
    ("--THRESHOLD_GOAL guaranteed_recall --THRESHOLD_RECALL 1", "THRESHOLD_RECALL is 1 but THRESHOLD_GOAL guaranteed_"),
    ("--ABSTAIN 1", "ABSTAIN is 1.0: 0 or more and below 1"),
    ("--EXPORT_CHECK_IMAGES 0", "EXPORT_CHECK_IMAGES is 0"),
    ("--EXPORT_FORMATS ,", "EXPORT_FORMATS is ()"),
    ("--EXPORT_FORMATS onnx,onnx", "name one or more, each once"),
    ("--EXPORT_FP16 true", "EXPORT_FP16 is True but EXPORT_FORMATS ('onnx',)"),
    ("--EXPORT_RESIZE true --EXPORT_DYNAMIC size", "EXPORT_RESIZE gives the network images of one size"),
    ("--EXPORT_FORMATS onnx,hub,pt2 --EXPORT_RESIZE 1", "EXPORT_RESIZE is for ONNX and OpenVINO, but EXPORT_FORMATS"),
    ("--EXPORT_FORMATS litert --EXPORT_OUTPUT labels", "EXPORT_OUTPUT labels is for ONNX and OpenVINO, but EXPORT_"),
    ("--COMPILE true --ACTIVATION_CHECKPOINTING true", "COMPILE and ACTIVATION_CHECKPOINTING do not go together"),
    ("--CALIBRATION platt --LOSS softmax", "CALIBRATION platt is for probabilities of a sigmoid"),
    ("--MAP_MAX_IMAGES=-1", "MAP_MAX_IMAGES is -1"),
    ("--MAP_LABELS_PER_IMAGE 0", "MAP_LABELS_PER_IMAGE is 0"),
    ("--SERVING_PORT 65536", "SERVING_PORT is 65536"),
    ("--SERVING_TOKEN=not/a/token!", "SERVING_TOKEN is (set, not shown): None, or letters of"),
    ("--SERVING_BATCH_SIZE 0", "SERVING_BATCH_SIZE is 0"),
    ("--SERVING_BATCH_WAIT_MS=-1", "SERVING_BATCH_WAIT_MS is -1.0"),
    ("--SERVING_QUEUE_SIZE 0", "SERVING_QUEUE_SIZE is 0"),
    ("--SERVING_MAX_UPLOAD_MB 0", "SERVING_MAX_UPLOAD_MB is 0.0"),
    ("--SERVING_MAX_MEGAPIXELS 0", "SERVING_MAX_MEGAPIXELS is 0.0"),
    ("--BOOTSTRAP_SAMPLES 1", "BOOTSTRAP_SAMPLES is 1: 0 (off), or 2 or more"),
    ("--INT8_CALIBRATION_IMAGES 0", "INT8_CALIBRATION_IMAGES is 0"),
    ("--CLASSES ,", "CLASSES is empty"),
    ("--POS_WEIGHT_CAP -1", "POS_WEIGHT_CAP is -1.0"),
    ("--BACKBONE_BASE_LR 0", "BACKBONE_BASE_LR is 0.0: above 0; to keep the backbone as it is, set FREEZE_"),
    ("--HEAD_BASE_LR 0", "HEAD_BASE_LR is 0.0: above 0"),
    ("--LEARNING_RATE=-0.1", "LEARNING_RATE is -0.1"),
    ("--LR_MILESTONES 5,3", "LR_MILESTONES is (5, 3)"),
    ("--LR_MILESTONES 3,3", "LR_MILESTONES is (3, 3)"),
    ("--LR_MILESTONES 0,3", "LR_MILESTONES is (0, 3)"),
    ("--LR_DECAY_FACTOR 0", "LR_DECAY_FACTOR is 0.0"),
    ("--LAYER_DECAY 0", "LAYER_DECAY is 0.0"),
    ("--LORA_RANK=-1", "LORA_RANK is -1"),
    ("--LORA_RANK 8 --PRETRAINED_WEIGHTS None --FREEZE_BACKBONE 0", "LORA_RANK is 8 but PRETRAINED_WEIGHTS is None"),
    ("--LR_DECAY_FACTOR 1.5", "LR_DECAY_FACTOR is 1.5"),
    ("--WARMUP_EPOCHS 3 --NUM_EPOCHS 3", "WARMUP_EPOCHS is 3.0 and NUM_EPOCHS 3"),
    ("--EARLY_STOPPING_ENABLED true --EARLY_STOPPING_PATIENCE 0", "but EARLY_STOPPING_PATIENCE is 0"),
    ("--PRETRAINED_WEIGHTS None", "PRETRAINED_WEIGHTS is None: a frozen random backbone"),
    ("--CLASSES cat,dog,cat", "CLASSES names a class twice"),
    ("--CLASSES \u00f6,o\u0308", "CLASSES names a class twice, perhaps in two Unicode forms"),
    ("--COLOR_JITTER 1.5", "COLOR_JITTER is 1.5"),
    ("--ROTATION_DEGREES 181", "ROTATION_DEGREES is 181.0"),
    ("--ERASING_PROBABILITY=-0.1", "ERASING_PROBABILITY is -0.1"),
    ("--ERASING_MAX_SHARE 0", "ERASING_MAX_SHARE is 0.0"),
    ("--MIXUP_ALPHA=-1", "MIXUP_ALPHA is -1.0: 0 (off) or more"),
    ("--CUTMIX_ALPHA=-1", "CUTMIX_ALPHA is -1.0"),
    ("--MULTI_SCALE_SIZES 224,16", "MULTI_SCALE_SIZES is (224, 16)"),
    ("--MULTI_SCALE_EVERY_N_STEPS 0", "MULTI_SCALE_EVERY_N_STEPS is 0"),
    ("--MLP_HIDDEN 0", "MLP_HIDDEN is 0"),
    ("--MLP_DROPOUT 1", "MLP_DROPOUT is 1.0"),
    ("--ML_DECODER_GROUPS 0", "ML_DECODER_GROUPS is 0"),
    ("--GCN_LINK_PROBABILITY 0", "GCN_LINK_PROBABILITY is 0.0"),
    ("--HEAD_FIT search --FREEZE_BACKBONE False", "HEAD_FIT search is for a frozen backbone"),
    ("--HEAD_FIT search", "HEAD_FIT search finds the head in one epoch"),
    ("--HEAD_FIT search --UNFREEZE_BACKBONE_EPOCH 2", "HEAD_FIT search finds a head 'linear' or 'kernel'"),
    (
        "--HEAD_FIT search --UNFREEZE_BACKBONE_EPOCH 0 --NUM_EPOCHS 1 --HEAD kernel --FOLDS 3 --LR_MILESTONES ,",
        "HEAD kernel of each fold compares with other images",
    ),
    ("--HEAD kernel", "HEAD kernel is found by a search, and compares with features of training images"),
    ("--HEAD_FIT search --HEAD kernel", "set HEAD_FIT = 'search', NUM_EPOCHS = 1, FREEZE_BACKBONE_AT_START = True"),
    ("--HEAD_FIT search --UNFREEZE_BACKBONE_EPOCH 2 --HEAD kernel", "HEAD kernel is found by a search, and compares"),
    (
        "--HEAD_FIT search --UNFREEZE_BACKBONE_EPOCH 2 --HEAD linear --LABELS_PER_IMAGE one",
        "HEAD_FIT search is for several labels an image",
    ),
    (
        "--HEAD_FIT search --UNFREEZE_BACKBONE_EPOCH 0 --NUM_EPOCHS 1 --HEAD linear --LOSS focal --LR_MILESTONES ,",
        "HEAD_FIT search takes whole images and no steps, so LOSS would play no part: set LOSS = 'bce_with_logits', or",
    ),
    (
        "--UNFREEZE_BACKBONE_EPOCH 0 --LORA_RANK 8 --GROWING_IMAGE_SIZES 128,160",
        "so LORA_RANK, GROWING_IMAGE_SIZES would play no part: set LORA_RANK = 0, GROWING_IMAGE_SIZES = (), or let it",
    ),
    ("--FEATURES mean --HEAD ml_decoder", "FEATURES mean is pooled, but HEAD ml_decoder looks at all positions"),
    ("--FEATURES mean --HEAD gcn", "FEATURES mean is pooled, but HEAD gcn looks at all positions"),
    ("--ANGULAR_SCALE=-1", "ANGULAR_SCALE is -1.0"),
    ("--SAM_RHO=-1", "SAM_RHO is -1.0"),
    ("--EMA_DECAY 1", "EMA_DECAY is 1.0"),
    ("--LR_STEP_EPOCHS 0", "LR_STEP_EPOCHS is 0"),
    ("--ONECYCLE_PEAK 1", "ONECYCLE_PEAK is 1.0"),
    ("--FOCAL_GAMMA=-1", "FOCAL_GAMMA is -1.0"),
    ("--FOCAL_ALPHA 2", "FOCAL_ALPHA is 2.0: None, or between 0 and 1"),
    ("--ASL_GAMMA_NEGATIVE=-1", "ASL_GAMMA_NEGATIVE is -1.0"),
    ("--ASL_GAMMA_POSITIVE=-1", "ASL_GAMMA_POSITIVE is -1.0"),
    ("--ASL_CLIP 2", "ASL_CLIP is 2.0"),
    ("--ANGULAR_MARGIN=-1", "ANGULAR_MARGIN is -1.0"),
    ("--ANGULAR_BALANCE 2", "ANGULAR_BALANCE is 2.0"),
    ("--ANGULAR_GAMMA_NEGATIVE=-1", "ANGULAR_GAMMA_NEGATIVE is -1.0"),
    ("--ANGULAR_GAMMA_POSITIVE=-1", "ANGULAR_GAMMA_POSITIVE is -1.0"),
    ("--ANGULAR_CLIP 2", "ANGULAR_CLIP is 2.0"),
    ("--LABEL_SMOOTHING 1", "LABEL_SMOOTHING is 1.0"),
    ("--GHM_BINS 0", "GHM_BINS is 0"),
    ("--GHM_MOMENTUM 1", "GHM_MOMENTUM is 1.0"),
    ("--OHEM_KEEP 0", "OHEM_KEEP is 0.0"),
    ("--THRESHOLD_MARGIN 1", "THRESHOLD_MARGIN is 1.0"),
    ("--POSITIVE_CLASS_WEIGHTS 1,-1", "POSITIVE_CLASS_WEIGHTS is (1.0, -1.0)"),
    ("--NEGATIVE_CLASS_WEIGHTS=-1", "NEGATIVE_CLASS_WEIGHTS is (-1.0,)"),
    ("--TEST_SCALES ,", "TEST_SCALES is ()"),
    ("--TEST_SCALES 1,0", "TEST_SCALES is (1.0, 0.0)"),
    ("--MULTI_SCALE_SIZES 224 --GROWING_IMAGE_SIZES 192", "MULTI_SCALE_SIZES and GROWING_IMAGE_SIZES both"),
    ("--LOSS asymmetric_angular", "which HEAD linear_bn does not give"),
    ("--LOSS softmax --ENTRY_WEIGHTS class_weights,ghm", "which LOSS softmax does not train"),
    ("--LOSS zlpr --ENTRY_WEIGHTS ghm", "LOSS zlpr compares the labels of an image"),
    ("--LOSS two_way --LABEL_SMOOTHING 0.1", "LOSS two_way compares the labels of an image"),
    ("--ENTRY_WEIGHTS ghm,ghm", "names one twice"),
    ("--ENTRY_WEIGHTS class_weights", "goes with POSITIVE_CLASS_WEIGHTS or NEGATIVE_CLASS_WEIGHTS"),
    ("--POSITIVE_CLASS_WEIGHTS 2", "goes with POSITIVE_CLASS_WEIGHTS or NEGATIVE_CLASS_WEIGHTS"),
    ("--USE_PRIOR_BIAS 1 --HEAD cosine", "USE_PRIOR_BIAS needs a last bias and a sigmoid"),
    ("--USE_PRIOR_BIAS 1 --LOSS softmax", "which HEAD linear_bn with LOSS softmax does not have"),
    ("--SUSPECTS_SHOWN 0", "SUSPECTS_SHOWN is 0"),
    ("--QUEUE_SIZE 0", "QUEUE_SIZE is 0"),
    ("--SAM_RHO 0.05 --MIXED_PRECISION fp16", "SAM_RHO is 0.05 but MIXED_PRECISION fp16"),
]


def find_broken(module: ModuleType) -> set[str]:
    """The constants whose limit, and the rules, that the present values break."""
    broken = {name for name, limits_of_it in list_limits(module).items() if not allows(module, name, limits_of_it)}
    return broken | {rule.__name__ for rule in limits.RULES.get(name_file(module), []) if rule(module)}


def list_limits(module: ModuleType) -> dict[str, list[limits.Limit]]:
    """The constants of `module` whose type carries a limit."""
    return {
        constant.name: [limit for limit in get_args(constant.annotation) if isinstance(limit, limits.Limit)]
        for constant in overrides.list_constants(module)
        if get_origin(constant.annotation) is Annotated
    }


def allows(module: ModuleType, name: str, limits_of_it: list[limits.Limit]) -> bool:
    return all(limit.allows(vars(module)[name]) for limit in limits_of_it)


def name_file(module: ModuleType) -> str:
    return Path(str(module.__file__)).name


@pytest.mark.parametrize(("line", "message"), CONTRADICTORY)
def test_contradictions_are_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides.apply(line.split(), *MODULES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_limit_and_rule_is_provoked_by_a_case_above() -> None:
    provoked = set()
    for line, _ in CONTRADICTORY:
        overrides.apply([], *MODULES)
        with pytest.raises(InputError):
            overrides.apply(line.split(), *MODULES)
        provoked |= find_provoked(line)
    expected = {name for module in MODULES for name in list_limits(module)}
    assert expected | {rule.__name__ for rules in limits.RULES.values() for rule in rules} == provoked


def find_provoked(line: str) -> set[str]:
    """The limits and rules that the constants of `line` break, once they stand in the modules unchecked."""
    edits = dict(re.findall(r"--(\w+)[= ](\S+)", line))
    for module in MODULES:
        for constant in overrides.list_constants(module):
            if constant.name in edits:
                vars(module)[constant.name] = parse_unchecked(edits[constant.name], constant.annotation)
    return {broken for module in MODULES for broken in find_broken(module)}


def parse_unchecked(text: str, annotation: Any) -> Any:
    value = parse(text, annotation)
    return Path(value) if annotation is Path else value


def test_the_angular_loss_goes_with_every_head_that_can_give_cosines() -> None:
    config.LOSS, allowed = "asymmetric_angular", []
    for config.HEAD in heads.HEADS:
        if not limits.angular_loss_has_cosines(config):
            allowed.append(config.HEAD)
    assert allowed == list(heads.SCALE_OPTIONS)


def test_the_defaults_break_no_limit_and_no_rule() -> None:
    for module in MODULES:
        overrides.apply([], module)
        assert find_broken(module) == set()
    assert set(limits.RULES) <= {name_file(module) for module in MODULES}


FROZEN = ["--UNFREEZE_BACKBONE_EPOCH=0"]
SEARCHED = [*FROZEN, "--HEAD_FIT=search", "--HEAD=linear", "--NUM_EPOCHS=1"]
SET = {
    "LORA_RANK": "8", "LAYER_DECAY": "0.7", "GROWING_IMAGE_SIZES": "128,160", "UNFROZEN_BATCH_SIZE": "8",
    "LOSS": "hill", "ENTRY_WEIGHTS": "ghm", "TEACHER_CHECKPOINTS": "b.pt", "AUGMENTATION_POLICY": "rand_augment",
    "COLOR_JITTER": "0.2", "ROTATION_DEGREES": "10", "ERASING_PROBABILITY": "0.5", "MIXUP_ALPHA": "0.2",
    "CUTMIX_ALPHA": "1", "MULTI_SCALE_SIZES": "192,224", "USE_PRIOR_BIAS": "True", "CLIP_GRADIENT_NORM": "1",
    "SAM_RHO": "0.05", "WEIGHT_DECAY": "1e-4", "EMA_DECAY": "0.99", "EARLY_STOPPING_ENABLED": "True",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, FROZEN) for name in limits.UNUSED_WHILE_FROZEN] + [(name, SEARCHED) for name in limits.UNUSED_BY_SEARCH],
)
def test_what_would_play_no_part_is_refused(name: str, arguments: list[str]) -> None:
    """A run with it would have another name, and the same weights."""
    unused = limits.UNUSED_WHILE_FROZEN | limits.UNUSED_BY_SEARCH
    option = f"--{name}={SET[name]}"
    with pytest.raises(InputError, match=rf"so {name} would play no part: set {name} = "):
        overrides.apply([*arguments, option], config)
    overrides.apply(arguments, config)
    assert vars(config)[name] == unused[name], "as config.py has it"
    for trains in (["--UNFREEZE_BACKBONE_EPOCH=2", "--NUM_EPOCHS=2"], ["--FREEZE_BACKBONE=False", "--HEAD_FIT=steps"]):
        overrides.apply([*arguments, *trains, option], config)


def test_a_limit_is_checked_where_the_line_stands(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("SEED = 1\nCOLOR_JITTER = 1.5\n")
    with pytest.raises(InputError, match=r"recipe\.py:2: COLOR_JITTER is 1\.5: between 0 and 1$"):
        overrides.apply([str(recipe)], config)
