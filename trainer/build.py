"""Builds what training.py trains from the constants: model, objective, optimizer and the rest of a step.

    trainer = make_trainer(train_table, device)

Reads config, as a part of training.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import config
import distributed
import heads
import limits
import losses
import models_factory
from dataset import augmentations
from dataset.batches import Batch
from dataset.image_sizes import as_size
from dataset.loading import EpochBatches
from dataset.table import Table
from models import backbones, batchnorm_sync, compilation, low_rank, recomputation
from models.devices import DeviceSettings, make_autocast
from models_factory import make_example
from trainer import from_config, kernel_search, optimizers, schedules, teachers
from trainer.optimizers import MovingAverage
from utils import InputError


@dataclass
class Trainer:
    """What a training step needs."""

    model: models_factory.MultiLabelModel
    head_options: dict[str, Any]  # that the head was made with; a checkpoint keeps them
    objective: losses.Objective
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: MovingAverage | None  # moving average of the model's weights; None where EMA_DECAY is 0
    change_batch: Callable[[Batch, int, int], Batch]  # (batch, epoch, step) -> batch: teachers, mixing, resizing
    scaler: torch.amp.GradScaler
    autocast: Callable[[], Any]  # makes the context in which a forward pass runs
    settings: DeviceSettings  # how it uses its device
    micro_batch_size: int  # images that a process computes at once; 0: its share of the batch
    clip_norm: float  # longest gradient; 0: any length
    sam_rho: float  # radius of sharpness-aware steps; 0: plain steps
    statistics: dict[bool, Any] = field(default_factory=dict)  # trainer/step.py keeps them here between steps

    STATEFUL = ("objective", "optimizer", "schedule", "average", "scaler")  # the model's weights are saved apart

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.settings.device

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run goes on from, besides the model's weights."""
        members = {name: getattr(self, name) for name in self.STATEFUL}
        return {name: member.state_dict() for name, member in members.items() if member is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, values in state.items():
            if values:  # a scaler that is not enabled has an empty state
                getattr(self, name).load_state_dict(values)

    def require_shapes(self) -> None:
        """Raise ValueError if a tensor of the optimizer's state is neither one number nor as large as its weight."""
        for weight, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.numel() != 1 and value.shape != weight.shape:
                    raise ValueError(f"the optimizer's {name} is {tuple(value.shape)}, not {tuple(weight.shape)}")

    def read_rates(self) -> dict[str, float]:
        """The present learning rates, {"lr_backbone": rate, "lr_head": rate}: with LAYER_DECAY, of the top layer."""
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            name = f"lr_{optimizers.get_part(group)}"
            rates[name] = max(rates.get(name, 0.0), group["lr"])
        return rates

    def wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        """Wrap `network`, the model or its head, so that several processes train it together.

        Wrap again whenever the backbone is frozen or unfrozen: DistributedDataParallel notes which parameters train
        when it is made. With an old wrapper the processes would drift apart, without any error.
        """
        has_unused = distributed.count() > 1 and network is self.model and _has_unused(self.model, self.device)
        return distributed.wrap(network, self.device, has_unused)

    def share_statistics(self) -> None:
        """Give all processes the BatchNorm statistics of rank 0: each process computed them on different images."""
        buffers = [*self.model.buffers()]
        if self.average:
            buffers += self.average.buffers()
        distributed.copy_first(buffers)


def make_trainer(train: Table, device: torch.device) -> Trainer:
    """Build model, objective, optimizer and schedule for the training split, on `device`.

    Raises InputError where constants do not fit the data, the model or the device.
    """
    head_options, embeddings = choose_head_options(train)
    model = models_factory.make_model(
        config.MODEL_NAME,
        len(train.classes),
        head=config.HEAD,
        weights=config.PRETRAINED_WEIGHTS,
        image_size=config.IMAGE_SIZE,
        weights_folder=config.PRETRAINED_MODELS_FOLDER,
        head_options=head_options,
        classes=train.classes if config.TAKE_OVER_HEAD and not searches_head(1) else None,
        features=choose_features(config.FEATURES),
    )
    if isinstance(model.head, heads.GCN):
        model.head.set_graph(heads.count_adjacency(train.targets, config.GCN_LINK_PROBABILITY), embeddings)
    taken = set(model.loaded.taken) if model.loaded else set()
    has_prior = torch.tensor([name not in taken for name in train.classes])
    is_unknown = torch.from_numpy((train.targets == -1).all(axis=0)) & limits.takes_prior_bias(config)
    if not config.USE_PRIOR_BIAS:
        has_prior &= is_unknown
    if has_prior.any():
        heads.set_prior(model.head, heads.count_frequencies(train.targets), has_prior)
    image_size = as_size(config.IMAGE_SIZE)
    for side in {*config.GROWING_IMAGE_SIZES, *config.MULTI_SCALE_SIZES} - {min(image_size)}:
        advice = "GROWING_IMAGE_SIZES and MULTI_SCALE_SIZES to ()"
        models_factory.require_size(model.eval(), image_size.with_short_side(side), config.MODEL_NAME, advice)
    # the backbone's own weights stand still with LORA_RANK, and so do its statistics
    model.keeps_statistics = config.KEEP_BACKBONE_STATISTICS or config.LORA_RANK > 0
    if config.ACTIVATION_CHECKPOINTING:
        recomputation.checkpoint_activations(model.backbone)
    if config.SYNC_BATCHNORM and distributed.count() > 1:
        model = batchnorm_sync.convert(model, device)
    if config.LORA_RANK:
        low_rank.adapt(model.backbone, config.LORA_RANK)
    settings = from_config.choose_settings(device)
    model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's annotations
    average = MovingAverage(model, config.EMA_DECAY) if config.EMA_DECAY else None
    if settings.compiles:
        compilation.compile_blocks(model.backbone)
    if config.USE_DIFFERENTIAL_LR:
        backbone_lr, head_lr = config.BACKBONE_BASE_LR, config.HEAD_BASE_LR
    else:
        backbone_lr = head_lr = config.LEARNING_RATE
    head_bias: Any = model.head.bias
    optimizer = optimizers.make_optimizer(
        config.OPTIMIZER,
        model,
        backbone_lr=backbone_lr,
        head_lr=head_lr,
        weight_decay=config.WEIGHT_DECAY,
        decays_norms_and_biases=config.DECAY_NORMS_AND_BIASES,
        layer_decay=config.LAYER_DECAY,
        # Adam divides a gradient by its size: decay alone would soon move the bias of a class without labels to 0
        undecayed=[head_bias] if config.WEIGHT_DECAY and is_unknown.any() and head_bias is not None else [],
        is_fused=settings.fuses_optimizer,
    )
    epoch_steps = [count_steps(len(train), epoch) for epoch in range(1, config.NUM_EPOCHS + 1)]
    plan = schedules.Plan(
        epoch_steps=epoch_steps if any(epoch_steps) else [1],  # a schedule needs some length, also if none is taken
        milestones=config.LR_MILESTONES,
        decay_factor=config.LR_DECAY_FACTOR,
        step_epochs=config.LR_STEP_EPOCHS,
        warmup_epochs=config.WARMUP_EPOCHS,
        onecycle_peak=config.ONECYCLE_PEAK,
    )
    schedule = schedules.make_schedule(config.SCHEDULE, optimizer, plan)
    if config.SAM_RHO and settings.precision == "fp16":
        raise InputError("SAM_RHO needs bf16 or float32, and this GPU has no bf16: set MIXED_PRECISION = 'off'")
    autocast, scales_gradients = make_autocast(settings.precision, device)
    return Trainer(
        model=model,
        head_options=head_options,
        objective=make_objective(train.targets).to(device),
        optimizer=optimizer,
        schedule=schedule,
        average=average,
        change_batch=make_batch_change(train.classes, device, autocast),
        scaler=torch.amp.GradScaler(device.type, enabled=scales_gradients),
        autocast=autocast,
        settings=settings,
        micro_batch_size=config.MICRO_BATCH_SIZE,
        clip_norm=config.CLIP_GRADIENT_NORM,
        sam_rho=config.SAM_RHO,
    )


def make_batch_change(
    classes: Sequence[str], device: torch.device, autocast: Callable[[], Any]
) -> Callable[[Batch, int, int], Batch]:
    """A function `change(batch, epoch, step) -> batch`, called on `device` before each step.

    First teachers predict the batch's images, then mixup or CutMix blends them, then MULTI_SCALE_SIZES resizes them.
    """
    size = as_size(config.IMAGE_SIZE)
    mix = augmentations.make_batch_transform(
        config.SEED,
        mixup_alpha=config.MIXUP_ALPHA,
        cutmix_alpha=config.CUTMIX_ALPHA,
        multi_scale_sizes=[size.with_short_side(side) for side in config.MULTI_SCALE_SIZES],
        steps_per_size=config.MULTI_SCALE_EVERY_N_STEPS,
    )
    if not config.TEACHER_CHECKPOINTS:
        return mix
    teach = teachers.make_teacher(
        paths=config.TEACHER_CHECKPOINTS,
        classes=classes,
        device=device,
        weight=config.TEACHER_WEIGHT,
        temperature=config.TEACHER_TEMPERATURE,
        autocast=autocast,
    )

    def change(batch: Batch, epoch: int, step: int) -> Batch:
        return mix(teach(batch, epoch, step), epoch, step)

    return change


def is_frozen(epoch: int) -> bool:
    """Whether the backbone is frozen in `epoch` (the first is 1)."""
    stays_frozen = config.UNFREEZE_BACKBONE_EPOCH == 0
    return config.FREEZE_BACKBONE_AT_START and (stays_frozen or epoch < config.UNFREEZE_BACKBONE_EPOCH)


def searches_head(epoch: int) -> bool:
    """Whether the head is found by a search in `epoch`, not trained by steps (HEAD_FIT)."""
    return config.HEAD_FIT == "search" and is_frozen(epoch)


def choose_batch_size(epoch: int) -> int:
    """The number of images of a step in `epoch`. Raises InputError where a process would get fewer than two."""
    size = config.TRAIN_BATCH_SIZE
    if config.UNFROZEN_BATCH_SIZE and not is_frozen(epoch):
        size = config.UNFROZEN_BATCH_SIZE
    if size < 2 * distributed.count():
        raise InputError(f"{size} images a step for {distributed.count()} processes: each needs at least two")
    return size


def count_steps(num_images: int, epoch: int) -> int:
    """The number of optimizer steps in `epoch`; 0 where the head is found by a search."""
    if searches_head(epoch):
        return 0
    return len(EpochBatches(num_images, choose_batch_size(epoch), shuffle=True, seed=config.SEED))


def _has_unused(model: models_factory.MultiLabelModel, device: torch.device) -> bool:
    """Whether some parameter that trains gets no gradient, because the network does not use it."""
    was_training = model.training
    model.eval()(make_example(config.IMAGE_SIZE).to(device)).sum().backward()
    missing = any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return missing


def choose_angular_scale(num_classes: int) -> float:
    """ANGULAR_SCALE, or for 0 a scale that fits the number of classes C.

    It is sqrt(5) ln(C - 1), but at least 7 and at most 30 (Prokofiev and Sovrasov 2022).
    """
    if config.ANGULAR_SCALE:
        return config.ANGULAR_SCALE
    scale = math.sqrt(5) * math.log(max(num_classes - 1, 1))
    return min(max(scale, 7.0), 30.0)


def choose_head_options(train: Table) -> tuple[dict[str, Any], Tensor | None]:
    """The options that HEAD is made with, and for gcn the class embeddings of GCN_EMBEDDINGS, else None."""
    scale = choose_angular_scale(len(train.classes))
    cosine_scale = scale if config.LOSS == "asymmetric_angular" else None
    options: dict[str, dict[str, Any]] = {
        "per_label_mlp": {"hidden": config.MLP_HIDDEN, "dropout": config.MLP_DROPOUT},
        "cosine": {"scale": scale},
        "kernel": {"num_landmarks": kernel_search.count_landmarks(len(train)), "num_axes": kernel_search.NUM_AXES},
        "ml_decoder": {"num_groups": config.ML_DECODER_GROUPS, "cosine_scale": cosine_scale},
        "gcn": {"reweights_channels": config.GCN_REWEIGHTS_CHANNELS, "cosine_scale": cosine_scale},
    }
    embeddings = None
    if config.HEAD == "gcn" and config.GCN_EMBEDDINGS:
        embeddings = heads.read_embeddings(config.GCN_EMBEDDINGS, train.classes)
        options["gcn"]["embedding_size"] = embeddings.shape[1]
    return options.get(config.HEAD, {}), embeddings


def choose_features(features: str) -> str:
    """What `features`, a value of FEATURES, means for MODEL_NAME and HEAD: "auto" becomes one of the others."""
    if features != "auto":
        return features
    options = {"reweights_channels": config.HEAD == "gcn" and config.GCN_REWEIGHTS_CHANNELS}
    return backbones.choose_features(features, config.MODEL_NAME, heads.needs_map(config.HEAD, **options))


def choose_loss_options(num_classes: int) -> dict[str, Any]:
    """The options that LOSS is made with, but for pos_weight."""
    options: dict[str, dict[str, Any]] = {
        "focal": {"gamma": config.FOCAL_GAMMA, "alpha": config.FOCAL_ALPHA},
        "asymmetric": {
            "gamma_negative": config.ASL_GAMMA_NEGATIVE,
            "gamma_positive": config.ASL_GAMMA_POSITIVE,
            "clip": config.ASL_CLIP,
            "focusing_gradient": config.ASL_FOCUSING_GRADIENT,
        },
        "asymmetric_angular": {
            "scale": choose_angular_scale(num_classes),
            "margin": config.ANGULAR_MARGIN,
            "balance": config.ANGULAR_BALANCE,
            "gamma_negative": config.ANGULAR_GAMMA_NEGATIVE,
            "gamma_positive": config.ANGULAR_GAMMA_POSITIVE,
            "clip": config.ANGULAR_CLIP,
        },
    }
    return options.get(config.LOSS, {})


def weighs_positives() -> bool:
    """Whether positives have the weight of `losses.count_pos_weight`."""
    return config.USE_POS_WEIGHT and config.LOSS == "bce_with_logits"


def make_objective(targets: NDArray[np.int8]) -> losses.Objective:
    """What training minimises, for the training split's `targets` (N, C): 1 present, 0 absent, -1 unknown.

    Raises InputError where the number of class weights does not fit the number of classes.
    """
    options = choose_loss_options(targets.shape[1])
    if weighs_positives():
        options["pos_weight"] = losses.count_pos_weight(targets, config.POS_WEIGHT_CAP)
    weight_options: dict[str, dict[str, Any]] = {
        "ghm": {"bins": config.GHM_BINS, "momentum": config.GHM_MOMENTUM},
        "ohem": {"keep": config.OHEM_KEEP},
        "threshold": {"margin": config.THRESHOLD_MARGIN},
        "class_weights": {
            "positive": _unwrap_single(config.POSITIVE_CLASS_WEIGHTS),
            "negative": _unwrap_single(config.NEGATIVE_CLASS_WEIGHTS),
        },
    }
    for name in ("POSITIVE_CLASS_WEIGHTS", "NEGATIVE_CLASS_WEIGHTS"):
        num_weights = len(vars(config)[name])
        if num_weights not in (0, 1, targets.shape[1]):
            raise InputError(f"{name} has {num_weights} weights for {targets.shape[1]} classes: one, or each")
    loss = losses.LOSSES[config.LOSS](**options)
    entry_weights = {name: losses.ENTRY_WEIGHTS[name](**weight_options.get(name, {})) for name in config.ENTRY_WEIGHTS}
    return losses.Objective(
        loss=loss,
        entry_weights=entry_weights,
        label_smoothing=config.LABEL_SMOOTHING,
        reduction=config.LOSS_REDUCTION,
    )


def _unwrap_single(weights: tuple[float, ...]) -> float | tuple[float, ...] | None:
    """None for no weight, a number for a weight that all classes share, else a weight for each class."""
    if not weights:
        return None
    if len(weights) == 1:
        return weights[0]
    return weights


def choose_metric() -> str:
    """The metric of the validation split by which checkpoints are chosen; its name in `metrics.measure`."""
    return "f1_macro" if config.LABELS_PER_IMAGE == "one" else "f1_weighted"


def choose_activation() -> str:
    """The activation that turns logits into probabilities for models trained with LOSS."""
    return "softmax" if config.LOSS == "softmax" else "sigmoid"
