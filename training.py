"""Trains one run on the constants of config.py: freeze, unfreeze, validate, tune the threshold, keep the best.

    python training.py [recipe.py ...] [--NAME value ...]

Writes trained_models/<model>/<configuration>.pt (and .json beside it), BEST_MODEL_PATH, and in the folder
<configuration>/ what an interrupted run resumes from (last.pt), log.csv and training_curves.png.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import augmentations
import checkpoints
import config
import dataset_readers
import feature_cache
import losses
import metrics
import models_factory
import optimization
import overrides
import predictor
import thresholds
import utils
from checkpoints import RunFiles, RunState
from dataset_readers import Batch, Table
from image_cache import ImageCache
from tensorboard_logging import TensorBoardLogger, save_training_curves
from utils import InputError

PICTURES = 16  # validation pictures shown in TensorBoard
LONGEST_CACHED = 16 / 9  # length to width of the longest image with a place in the image cache


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config)
    utils.keep_freed_memory()
    device = utils.choose_device(config.DEVICE)
    utils.seed_everything(config.SEED)

    data = read_data()
    engine = make_engine(data, device)
    caches = open_image_caches(data)
    files = name_files(data)
    state = resume(files, engine)
    print_configuration(files, data, engine, state)

    stage = None
    with make_logger(files, state) as logger:
        for epoch in range(state.epoch + 1, config.NUM_EPOCHS + 1):
            engine.model.freeze_backbone(is_frozen(epoch))
            stage = prepare_stage(engine, data, caches, epoch, stage)
            utils.seed_everything(config.SEED + epoch)  # a resumed epoch draws what it would have drawn
            record = train_epoch(engine, stage, epoch)
            state.seconds += record["seconds"]

            if epoch % config.VAL_EVERY_N_EPOCHS == 0 or epoch == config.NUM_EPOCHS:
                validation = validate(engine, stage, epoch)
                record |= validation.make_record()
                if state.note_validation(epoch, validation.f1, validation.threshold, config.EARLY_STOPPING_MIN_DELTA):
                    save_if_best(files, make_checkpoint(engine, data, state, validation.measured))
                log_validation(logger, engine, data, validation, epoch)

            if config.TRAIN_METRICS_EVERY_N_EPOCHS and epoch % config.TRAIN_METRICS_EVERY_N_EPOCHS == 0:
                record |= measure_training(engine, data, state)

            state.close_epoch(record)
            state.finished = epoch == config.NUM_EPOCHS or has_stalled(state)
            print_epoch(record)
            logger.add_epoch(record)
            checkpoints.write_log(files.log, state.history)
            save_training_curves(state.history, files.curves)
            save_last(files, engine, make_checkpoint(engine, data, state, {}), state)
            caches.save()
            if state.finished:
                break
        finish(files, logger, state)


# ---- data ----


class Data(NamedTuple):
    """The labelled images: all of them, and their two splits."""

    table: Table
    train: Table
    val: Table


def read_data() -> Data:
    """Read and split the training images, in the classes of the data set or of config.py."""
    table = dataset_readers.read_dataset(
        config.DATASET_FOLDER,
        config.DATASET_FORMAT,
        "train",
        images_dir=config.TRAIN_IMAGES_DIR,
        labels_dir=config.TRAIN_LABELS_DIR,
        classes=config.CLASSES,
    )
    if config.NUM_CLASSES not in (len(config.CLASSES), len(table.classes)):
        raise InputError(
            f"NUM_CLASSES is {config.NUM_CLASSES} but the data set has {len(table.classes)} classes: "
            "leave NUM_CLASSES as it is, and name the classes in classes.txt or CLASSES"
        )
    data = Data(table, *dataset_readers.split_table(table, config.VAL_SPLIT, config.SEED))
    for name, split in (("training", data.train), ("validation", data.val)):
        missing = [c for c, seen in zip(table.classes, (split.targets == 1).any(axis=0), strict=True) if not seen]
        if missing:
            utils.warn(f"{len(missing)} class(es) without a positive in the {name} split: {', '.join(missing)}")
    return data


class ImageCaches(NamedTuple):
    """Decoded images: for random crops, and as validation takes them; None where IMAGE_CACHE is "none"."""

    train: ImageCache | None
    val: ImageCache | None

    def save(self) -> None:
        for cache in {cache for cache in self if cache}:
            cache.save()


def open_image_caches(data: Data) -> ImageCaches:
    """What earlier runs kept of these images, or empty caches."""
    if config.IMAGE_CACHE == "none":
        return ImageCaches(None, None)
    folder = config.CACHE_FOLDER if config.IMAGE_CACHE == "disk" else None
    size, paths = config.IMAGE_SIZE, data.table.paths
    prepare = augmentations.make_eval_transform(config.RESIZE_RULE, size)
    val = ImageCache(paths, prepare, f"{config.RESIZE_RULE} {size}", size**2, config.IMAGE_CACHE_GB, folder)
    if config.AUGMENTATION == "none" and not config.GROWING_IMAGE_SIZES:
        return ImageCaches(val, val)
    side = augmentations.find_short_side(max(size, *config.GROWING_IMAGE_SIZES, 0), config.CROP_SCALE_MIN)
    prepare, max_pixels = augmentations.shrink(side), side * round(side * LONGEST_CACHED)
    return ImageCaches(ImageCache(paths, prepare, f"short side {side}", max_pixels, config.IMAGE_CACHE_GB, folder), val)


def make_train_loader(
    data: Data, caches: ImageCaches, image_size: int, device: torch.device, shuffle: bool = True
) -> DataLoader[Batch]:
    """Augmented training images, another order and other pictures in each epoch."""
    transform = augmentations.make_train_transform(
        config.AUGMENTATION, image_size, config.CROP_SCALE_MIN, config.RESIZE_RULE
    )
    if caches.train and caches.train is caches.val:
        transform = augmentations.identity
    return dataset_readers.make_loader(
        data.train,
        transform,
        config.TRAIN_BATCH_SIZE,
        shuffle=shuffle,
        seed=config.SEED,
        num_workers=utils.choose_num_workers(config.NUM_WORKERS, device),
        pin_memory=device.type == "cuda",
        cached=caches.train.select(data.train.paths) if caches.train else None,
    )


def make_eval_loader(table: Table, device: torch.device, cache: ImageCache | None = None) -> DataLoader[Batch]:
    """Images in order, as the model is used on them."""
    transform = augmentations.make_eval_transform(config.RESIZE_RULE, config.IMAGE_SIZE)
    return dataset_readers.make_loader(
        table,
        augmentations.identity if cache else transform,
        config.TEST_BATCH_SIZE,
        num_workers=utils.choose_num_workers(config.NUM_WORKERS, device),
        pin_memory=device.type == "cuda",
        cached=cache.select(table.paths) if cache else None,
    )


# ---- what trains ----


@dataclass
class Engine:
    """The parts that a step needs, and whose state an interrupted run resumes."""

    model: models_factory.MultiLabelModel
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    precision: str  # off, bf16 or fp16
    autocast: Callable[[], Any]
    device: torch.device

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("optimizer", "schedule", "scaler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])


def make_engine(data: Data, device: torch.device) -> Engine:
    """Model, loss, optimizer and schedule of the constants, on `device`."""
    model = models_factory.make_model(
        config.MODEL_NAME,
        len(data.table.classes),
        config.HEAD,
        config.PRETRAINED_WEIGHTS,
        config.IMAGE_SIZE,
        config.PRETRAINED_MODELS_FOLDER,
    )
    model.keeps_statistics = config.KEEP_BACKBONE_STATISTICS
    model.to(device).to(memory_format=torch.channels_last if config.CHANNELS_LAST else torch.contiguous_format)
    cap = config.POS_WEIGHT_CAP
    pos_weight = losses.count_pos_weight(data.train.targets, cap) if config.USE_POS_WEIGHT else None
    backbone_lr, head_lr = (
        (config.BACKBONE_BASE_LR, config.HEAD_BASE_LR)
        if config.USE_DIFFERENTIAL_LR
        else (config.LEARNING_RATE, config.LEARNING_RATE)
    )
    if config.COMPILE:
        model.compile()
    optimizer = optimization.make_optimizer(config.OPTIMIZER, model, backbone_lr, head_lr, config.WEIGHT_DECAY)
    schedule = optimization.make_schedule(
        config.SCHEDULE,
        optimizer,
        len(dataset_readers.EpochBatches(len(data.train), config.TRAIN_BATCH_SIZE, shuffle=True, seed=config.SEED)),
        config.NUM_EPOCHS,
        config.LR_MILESTONES,
        config.LR_DECAY_FACTOR,
        config.WARMUP_EPOCHS,
    )
    precision = utils.choose_precision(config.MIXED_PRECISION, device)
    autocast, scales = utils.make_autocast(precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=scales)
    loss = losses.LOSSES[config.LOSS](pos_weight=pos_weight).to(device)
    return Engine(model, loss, optimizer, schedule, scaler, precision, autocast, device)


def is_frozen(epoch: int) -> bool:
    """Whether the backbone stands still in `epoch` (from 1)."""
    never = config.UNFREEZE_BACKBONE_EPOCH == 0
    return config.FREEZE_BACKBONE_AT_START and (never or epoch < config.UNFREEZE_BACKBONE_EPOCH)


def choose_image_size(epoch: int) -> int:
    """The side of the training images in `epoch`, in pixels."""
    num_trained = sum(not is_frozen(earlier) for earlier in range(1, epoch))
    grows = not is_frozen(epoch) and num_trained < len(config.GROWING_IMAGE_SIZES)
    return config.GROWING_IMAGE_SIZES[num_trained] if grows else config.IMAGE_SIZE


class Stage(NamedTuple):
    """What epochs run on: images through the model or, while the backbone stands still, features through the head."""

    key: tuple[bool, int]  # whether they are features; the training images' size
    network: nn.Module
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    seconds: float  # that preparing it took


def prepare_stage(engine: Engine, data: Data, caches: ImageCaches, epoch: int, stage: Stage | None) -> Stage:
    """The stage of `epoch`: the present one if it still serves."""
    image_size = choose_image_size(epoch)
    keeps_features = is_frozen(epoch) and config.FROZEN_FEATURE_VIEWS > 0
    if stage and stage.key == (keeps_features, image_size):
        return stage._replace(seconds=0.0)
    start = time.perf_counter()
    loaders = make_feature_loaders(engine, data, caches) if keeps_features else None
    network = engine.model.head if loaders else engine.model
    train_loader, val_loader = loaders or (
        make_train_loader(data, caches, image_size, engine.device),
        make_eval_loader(data.val, engine.device, caches.val),
    )
    seconds = time.perf_counter() - start
    if loaders:
        print(f"frozen features, kept in {config.CACHE_FOLDER}: {utils.format_duration(seconds)}")
    return Stage((keeps_features, image_size), network, train_loader, val_loader, seconds)


def make_feature_loaders(
    engine: Engine, data: Data, caches: ImageCaches
) -> tuple[DataLoader[Batch], DataLoader[Batch]] | None:
    """(training, validation) loaders of the frozen backbone's features; None, said why, where they are too large."""
    frozen_epochs = [epoch for epoch in range(1, config.NUM_EPOCHS + 1) if is_frozen(epoch)]
    num_views = 1 if config.AUGMENTATION == "none" else min(config.FROZEN_FEATURE_VIEWS, len(frozen_epochs))
    shape = feature_cache.measure_features(engine.model, config.IMAGE_SIZE)
    gigabytes = 4 * math.prod(shape) * (num_views * len(data.train) + len(data.val)) / 1e9
    if gigabytes > config.FEATURE_CACHE_GB:
        print(
            f"frozen features are not kept: {gigabytes:.3g} GB, more than FEATURE_CACHE_GB = {config.FEATURE_CACHE_GB}"
        )
        return None

    def read(loader: DataLoader[Batch], table: Table, picture: str, title: str) -> NDArray[np.float32]:
        pixels = f"{picture}, {config.IMAGE_SIZE} px, {engine.precision} on {engine.device.type}"
        folder = config.CACHE_FOLDER
        return feature_cache.read_features(engine.model, loader, table, shape, pixels, folder, engine.autocast, title)

    views = []
    train_loader = make_train_loader(data, caches, config.IMAGE_SIZE, engine.device, shuffle=False)
    for view in range(1, num_views + 1):
        dataset_readers.set_epoch(train_loader, view)  # what this epoch's pictures would have been
        drawn = f"{config.AUGMENTATION} {config.CROP_SCALE_MIN}, seed {config.SEED}, epoch {view}"
        picture = config.RESIZE_RULE if config.AUGMENTATION == "none" else f"{drawn}, cached {bool(caches.train)}"
        views.append(read(train_loader, data.train, picture, f"frozen features {view}/{num_views}"))
    val_loader = make_eval_loader(data.val, engine.device, caches.val)
    val_features = read(val_loader, data.val, config.RESIZE_RULE, "frozen features of the validation split")
    pin_memory = engine.device.type == "cuda"
    return (
        feature_cache.make_feature_loader(
            views, data.train, config.TRAIN_BATCH_SIZE, shuffle=True, seed=config.SEED, pin_memory=pin_memory
        ),
        feature_cache.make_feature_loader([val_features], data.val, config.TEST_BATCH_SIZE, pin_memory=pin_memory),
    )


def train_epoch(engine: Engine, stage: Stage, epoch: int) -> dict[str, Any]:
    """One pass over the training split; the epoch's record: mean loss, rates, speed."""
    model, optimizer, loader = engine.model, engine.optimizer, stage.train_loader
    model.train()
    dataset_readers.set_epoch(loader, epoch)
    rates = {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
    total, num_images = torch.zeros((), device=engine.device), 0
    batches = utils.Waiting(loader)
    with utils.Progress(f"epoch {epoch}/{config.NUM_EPOCHS}", count_images(loader)) as progress:
        for step, batch in enumerate(batches):
            batch = batch.to(engine.device)
            with engine.autocast():
                logits = stage.network(batch.images)
            loss = losses.reduce_loss(engine.loss(logits, batch.targets), batch.targets, batch.weights)
            engine.scaler.scale(loss).backward()
            engine.scaler.step(optimizer)
            engine.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            engine.schedule.step()
            total += loss.detach() * len(batch.images)
            num_images += len(batch.images)
            # reading a number back waits for the GPU: not at every step
            progress.step(len(batch.images), **({"loss": total.item() / num_images} if step % 10 == 0 else {}))
    mean_loss = total.item() / num_images
    if not np.isfinite(mean_loss):
        raise InputError(f"epoch {epoch} ended with loss {mean_loss}: lower the rates, or set MIXED_PRECISION = 'off'")
    return {
        "epoch": epoch,
        "frozen": model.backbone_is_frozen,
        "train_loss": mean_loss,
        **rates,
        "images_per_second": num_images / progress.seconds,
        "waiting_share": batches.seconds / progress.seconds,
        "preparation_seconds": stage.seconds,
        "seconds": stage.seconds + progress.seconds,
    }


# ---- validation ----


class Scores(NamedTuple):
    """Probabilities (N, C), targets (N, C) with NaN unknown, and the mean loss over them."""

    probabilities: np.ndarray
    targets: np.ndarray
    loss: float


def score(engine: Engine, network: nn.Module, loader: DataLoader[Batch], title: str) -> Scores:
    """Run `network`, the model or its head as it is, over `loader`."""
    targets: list[Tensor] = []
    total = torch.zeros((), device=engine.device)

    def note(batch: Batch, logits: Tensor) -> None:
        targets.append(batch.targets)
        total.add_(losses.reduce_loss(engine.loss(logits, batch.targets), batch.targets, batch.weights) * len(logits))

    batches: Iterator[Batch] = utils.track(loader, title, count_images(loader))
    rows = list(predictor.compute_probabilities(network, batches, engine.device, engine.autocast, note))
    all_targets = torch.cat(targets).cpu().numpy()
    return Scores(np.concatenate(rows), all_targets, total.item() / len(all_targets))


def count_images(loader: DataLoader[Batch]) -> int:
    assert isinstance(loader.batch_sampler, dataset_readers.EpochBatches)
    return loader.batch_sampler.num_images


class Validation(NamedTuple):
    """Scores of the validation split, the threshold tuned on them, and every metric at that threshold."""

    scores: Scores
    threshold: float
    measured: dict[str, float]

    @property
    def f1(self) -> float:
        """What checkpoints are chosen by."""
        return self.measured["f1_weighted"]

    def make_record(self) -> dict[str, float]:
        """The part of an epoch's record that validation adds."""
        return {
            "val_loss": self.scores.loss,
            "val_f1": self.f1,
            "val_f1_cross_fitted": self.measured["f1_weighted_cross_fitted"],
            "val_mAP": self.measured["mAP"],
            "threshold": self.threshold,
        }


def validate(engine: Engine, stage: Stage, epoch: int) -> Validation:
    """Score the validation split, tune the threshold on it, measure."""
    scores = score(engine, stage.network, stage.val_loader, f"epoch {epoch} validation")
    threshold = thresholds.tune_global(scores.probabilities, scores.targets)
    measured = metrics.measure(scores.probabilities, scores.targets, threshold)
    measured["f1_weighted_cross_fitted"] = thresholds.cross_fit(scores.probabilities, scores.targets)
    return Validation(scores, threshold, measured)


def measure_training(engine: Engine, data: Data, state: RunState) -> dict[str, float]:
    """F1 and mAP on the training split, without augmentation, at the last validation's threshold."""
    scores = score(engine, engine.model, make_eval_loader(data.train, engine.device), "training split")
    threshold = config.TH_MULTI_LABEL if state.threshold is None else state.threshold
    measured = metrics.measure(scores.probabilities, scores.targets, threshold)
    return {"train_f1": measured["f1_weighted"], "train_mAP": measured["mAP"]}


def make_logger(files: RunFiles, state: RunState) -> TensorBoardLogger:
    """TensorBoard's files of this run, or a logger that does nothing."""
    folder = config.TENSORBOARD_FOLDER / config.MODEL_NAME / files.folder.name
    return TensorBoardLogger(folder if config.USE_TENSORBOARD else None, first_epoch=state.epoch + 1)


def log_validation(logger: TensorBoardLogger, engine: Engine, data: Data, validation: Validation, epoch: int) -> None:
    """PR curves and pictures for TensorBoard."""
    if not config.USE_TENSORBOARD:
        return
    scores, classes = validation.scores, data.table.classes
    logger.add_pr_curves(scores.probabilities, scores.targets, classes, epoch)
    shown = data.val.select(range(min(PICTURES, len(data.val))))
    images = np.stack([image for batch in make_eval_loader(shown, engine.device) for image in batch.images.numpy()])
    probabilities = scores.probabilities[: len(shown)]
    logger.add_pictures(images, shown.targets, probabilities, validation.threshold, classes, epoch)


# ---- what a run leaves ----


def name_files(data: Data) -> RunFiles:
    """The files of this configuration: same constants (of the sections marked *) and data, same names."""
    constants = overrides.resolved(config)
    decides = [c.name for c in overrides.list_constants(config) if c.section.endswith("*")]
    identity = {name: constants[name] for name in decides} | {"data": data.table.fingerprint()}
    name = checkpoints.name_configuration(constants, identity)
    return RunFiles(config.TRAINED_MODELS_FOLDER / config.MODEL_NAME / name)


def resume(files: RunFiles, engine: Engine) -> RunState:
    """The state of an interrupted run of this configuration, put back into `engine`; else a fresh one."""
    if config.RESUME == "never" or not files.last.is_file():
        return RunState()
    last = checkpoints.load(files.last)
    state = RunState(**last["training_state"]["state"])
    if state.finished:
        return RunState()
    engine.model.load_state_dict(last["model_state"])
    engine.load_state_dict(last["training_state"]["engine"])
    return state


def make_checkpoint(engine: Engine, data: Data, state: RunState, measured: dict[str, float]) -> dict[str, Any]:
    """The model as it is, with all that using it later takes, and where it comes from."""
    model = engine.model
    return {
        "model_state": model.state_dict(),
        "model_name": config.MODEL_NAME,
        "head": config.HEAD,
        "classes": list(data.table.classes),
        "image_size": config.IMAGE_SIZE,
        "resize_rule": config.RESIZE_RULE,
        "normalization": {name: (getattr(model, name) / 255).flatten().tolist() for name in ("mean", "std")},
        "best_threshold": state.best_threshold,
        "best_f1": state.best_f1,
        "epoch": state.best_epoch,
        "metrics": measured,
        "config": overrides.resolved(config),
        "dataset": {
            "fingerprint": data.table.fingerprint(),
            "num_train": len(data.train),
            "num_val": len(data.val),
        },
        "environment": checkpoints.describe_environment(str(engine.device)),
        "seconds": state.seconds,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def save_if_best(files: RunFiles, checkpoint: dict[str, Any]) -> None:
    """Keep `checkpoint` for its configuration unless an earlier run of the same one reached as high an F1."""
    if checkpoint["best_f1"] > checkpoints.read_best_f1(files.checkpoint):
        checkpoints.save(files.checkpoint, checkpoint)


def save_last(files: RunFiles, engine: Engine, checkpoint: dict[str, Any], state: RunState) -> None:
    """Write what an interrupted run resumes from."""
    training_state = {"state": asdict(state), "engine": engine.state_dict()}
    checkpoints.save(files.last, checkpoint | {"training_state": training_state})


def has_stalled(state: RunState) -> bool:
    """Whether early stopping ends the run."""
    return config.EARLY_STOPPING_ENABLED and state.validations_without_gain >= config.EARLY_STOPPING_PATIENCE


def finish(files: RunFiles, logger: TensorBoardLogger, state: RunState) -> None:
    """Copy the selected checkpoint to BEST_MODEL_PATH and say what came out."""
    selected = checkpoints.load(files.checkpoint)
    checkpoints.save(config.BEST_MODEL_PATH, selected)
    logger.add_hparams(overrides.resolved(config), {"best_f1": state.best_f1})
    print(f"\nbest validation F1 {state.best_f1:.4f} (weighted) in epoch {state.best_epoch} of {state.epoch}", end="")
    print(f", threshold {state.best_threshold:.4f}, training {utils.format_duration(state.seconds)}")
    if selected["best_f1"] > state.best_f1:
        print(f"an earlier run of this configuration reached {selected['best_f1']:.4f}: its checkpoint stays")
    measured = selected["metrics"]
    print(
        f"checkpoint: F1 {measured['f1_weighted']:.4f} (cross-fitted {measured['f1_weighted_cross_fitted']:.4f}), "
        f"mAP {measured['mAP']:.4f} over {measured['num_classes_in_mAP']:.0f} classes, epoch {selected['epoch']}"
    )
    print(f"saved: {files.checkpoint}\n       {config.BEST_MODEL_PATH}\n       {files.curves}")


# ---- printing ----


def print_configuration(files: RunFiles, data: Data, engine: Engine, state: RunState) -> None:
    """What is about to happen, in a few lines."""
    parameters = sum(parameter.numel() for parameter in engine.model.parameters()) / 1e6
    weights = {"default": "ImageNet weights", None: "random weights"}.get(config.PRETRAINED_WEIGHTS, "own weights")
    frozen = [epoch for epoch in range(1, config.NUM_EPOCHS + 1) if is_frozen(epoch)]
    rates = ", ".join(f"{g['name']} {g['initial_lr']:g}" for g in engine.optimizer.param_groups)
    drops = f"x{config.LR_DECAY_FACTOR:g} after epochs {config.LR_MILESTONES or '(none)'}"
    images = f"{len(data.train)} training, {len(data.val)} validation images, {len(data.table.classes)} classes"
    views = f" (features of {config.FROZEN_FEATURE_VIEWS} views kept)" if frozen and config.FROZEN_FEATURE_VIEWS else ""
    growing = f" after {', '.join(map(str, config.GROWING_IMAGE_SIZES))}" if config.GROWING_IMAGE_SIZES else ""
    frozen_in = f"1 to {frozen[-1]}" if frozen else "none"
    pictures = (
        config.AUGMENTATION if config.IMAGE_CACHE == "none" else f"{config.AUGMENTATION}, {config.IMAGE_CACHE} cache"
    )
    stopping = f", stops after {config.EARLY_STOPPING_PATIENCE} without gain" if config.EARLY_STOPPING_ENABLED else ""
    rows = {
        "run": files.checkpoint.stem,
        "data": f"{config.DATASET_FOLDER}: {images}",
        "model": f"{config.MODEL_NAME} + {config.HEAD}, {parameters:.1f} M parameters, {weights}",
        "images": f"{config.IMAGE_SIZE} px{growing}, {pictures}, batches of {config.TRAIN_BATCH_SIZE}",
        "epochs": f"{config.NUM_EPOCHS}, backbone frozen in {frozen_in}{views}{stopping}",
        "rates": f"{rates}; {config.OPTIMIZER}, {config.SCHEDULE} {drops if config.SCHEDULE == 'multistep' else ''}",
        "device": f"{engine.device}, {torch.get_num_threads()} threads, mixed precision {engine.precision}",
    }
    if state.epoch:
        rows["resumes"] = f"after epoch {state.epoch}, best F1 so far {state.best_f1:.4f}"
    for name, text in rows.items():
        print(f"{name:>8}  {text.strip()}")
    print(flush=True)


def print_epoch(record: dict[str, Any]) -> None:
    """One line an epoch."""
    text = f"epoch {record['epoch']:>3} {'frozen' if record['frozen'] else 'all   '}  loss {record['train_loss']:.4f}"
    if "val_f1" in record:
        text += f"  val loss {record['val_loss']:.4f}  F1 {record['val_f1']:.4f}  mAP {record['val_mAP']:.4f}"
        text += f"  threshold {record['threshold']:.3f}"
    if "train_f1" in record:
        text += f"  train F1 {record['train_f1']:.4f}  mAP {record['train_mAP']:.4f}"
    speed = f"{record['images_per_second']:.1f} images/s, {record['waiting_share']:.0%} waiting"
    print(f"{text}  {speed}  {utils.format_duration(record['seconds'])}", flush=True)


if __name__ == "__main__":
    utils.run_script(main)
