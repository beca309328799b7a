"""Trains one run on the constants of config.py: freeze, unfreeze, validate, tune the threshold, keep the best.

    python training.py [recipe.py ...] [--NAME value ...]

Writes trained_models/<model>/<configuration>.pt (and .json beside it), BEST_MODEL_PATH, and in the folder
<configuration>/ what an interrupted run resumes from (last.pt), log.csv and training_curves.png.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import checkpoints
import config
import dataset_readers
import metrics
import models_factory
import optimization
import overrides
import utils
import validation
from checkpoints import RunFiles, RunState
from dataset_readers import Batch, count_images
from tensorboard_logging import TensorBoardLogger, save_training_curves
from training_data import (
    Data,
    Stage,
    changes_batches,
    is_frozen,
    make_augmentation,
    make_eval_loader,
    open_image_caches,
    prepare_stage,
    read_data,
)
from training_engine import Engine, choose_activation, make_engine
from utils import InputError
from validation import Scores, Validation

PICTURES = 16  # validation pictures shown in TensorBoard
PARTS = ("backbone", "head")  # parameter groups; those without decay have the same rates


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config)
    models_factory.require_name(config.MODEL_NAME)
    utils.keep_freed_memory()
    device = utils.choose_device(config.DEVICE)
    utils.seed_everything(config.SEED)

    data = read_data()
    engine = make_engine(data.train, device)
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
                model, validated = validate(engine, stage, epoch, record)
                if state.note_validation(epoch, validated.f1, validated.threshold, config.EARLY_STOPPING_MIN_DELTA):
                    save_if_best(files, make_checkpoint(model, engine, data, state, validated.measured))
                log_validation(logger, engine, data, validated, epoch)

            if config.TRAIN_METRICS_EVERY_N_EPOCHS and epoch % config.TRAIN_METRICS_EVERY_N_EPOCHS == 0:
                record |= measure_training(engine, data, state)

            state.close_epoch(record)
            state.finished = epoch == config.NUM_EPOCHS or has_stalled(state)
            print_epoch(record)
            logger.add_epoch(record)
            checkpoints.write_log(files.log, state.history)
            save_training_curves(state.history, files.curves)
            save_last(files, engine, make_checkpoint(engine.model, engine, data, state, {}), state)
            caches.save()
            if state.finished:
                break
        finish(files, logger, state)


def train_epoch(engine: Engine, stage: Stage, epoch: int) -> dict[str, Any]:
    """One pass over the training split; the epoch's record: mean loss, rates, speed."""
    model, optimizer, loader, objective = engine.model, engine.optimizer, stage.train_loader, engine.objective
    model.train()
    objective.train()
    dataset_readers.set_epoch(loader, epoch)
    rates = {f"lr_{name}": group["lr"] for group in optimizer.param_groups if (name := group["name"]) in PARTS}
    total, num_images = torch.zeros((), device=engine.device), 0
    batches = utils.Waiting(loader)
    with utils.Progress(f"epoch {epoch}/{config.NUM_EPOCHS}", count_images(loader)) as progress:
        for step, batch in enumerate(batches):
            batch = engine.change_batch(batch.to(engine.device), epoch, step)
            with engine.autocast():
                logits = stage.network(batch.images)
            if epoch == 1 and step == 0:
                print("first step:", *objective.describe(logits, batch.targets, batch.weights), sep="\n  ", flush=True)
            loss = objective(logits, batch.targets, batch.weights)
            engine.scaler.scale(loss).backward()
            if config.SAM_RHO:
                with optimization.climb(model, config.SAM_RHO):
                    objective.entry_weights.eval()  # counts are kept of the first pass alone
                    with engine.autocast():
                        logits = stage.network(batch.images)
                    objective(logits, batch.targets, batch.weights).backward()
                    objective.entry_weights.train()
            engine.scaler.step(optimizer)
            engine.scaler.update()
            optimizer.zero_grad(set_to_none=True)
            engine.schedule.step()
            if engine.average:
                engine.average.update_parameters(model)
            total += objective.as_mean(loss.detach(), batch.targets, batch.weights) * len(batch.images)
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


def validate(
    engine: Engine, stage: Stage, epoch: int, record: dict[str, Any]
) -> tuple[models_factory.MultiLabelModel, Validation]:
    """The better of the model and, if it is kept, its average, and that one's validation; both go into `record`."""
    title = f"epoch {epoch} validation"
    model, validated = engine.model, validation.measure_scores(score(engine, stage.network, stage.val_loader, title))
    if engine.average:
        averaged = engine.average.module
        assert isinstance(averaged, models_factory.MultiLabelModel)
        network = averaged if stage.network is engine.model else averaged.head
        scores = score(engine, network, stage.val_loader, f"{title}, averaged weights")
        other = validation.measure_scores(scores)
        record |= {"val_f1_raw": validated.f1, "val_f1_averaged": other.f1}
        if other.f1 > validated.f1:
            model, validated = averaged, other
    record |= validated.make_record()
    return model, validated


def score(engine: Engine, network: nn.Module, loader: DataLoader[Batch], title: str) -> Scores:
    """Run `network`, the model or its head as it is, over `loader`."""
    # a head alone computes in float32, as it does within the model
    autocast = engine.autocast if isinstance(network, models_factory.MultiLabelModel) else nullcontext
    activation = choose_activation()
    return validation.score(network, loader, engine.objective, engine.device, autocast, activation, title)


def measure_training(engine: Engine, data: Data, state: RunState) -> dict[str, float]:
    """F1 and mAP on the training split, without augmentation, at the last validation's threshold."""
    scores = score(engine, engine.model, make_eval_loader(data.train, engine.device), "training split")
    threshold = config.TH_MULTI_LABEL if state.threshold is None else state.threshold
    measured = metrics.measure(scores.probabilities, scores.targets, threshold)
    return {"train_f1": measured["f1_weighted"], "train_mAP": measured["mAP"]}


def make_logger(files: RunFiles, state: RunState) -> TensorBoardLogger:
    """TensorBoard's files of this run, or a logger that does nothing."""
    folder = config.TENSORBOARD_FOLDER / files.folder.parent.name / files.folder.name
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
    return RunFiles(config.TRAINED_MODELS_FOLDER / checkpoints.name_model(config.MODEL_NAME) / name)


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


def make_checkpoint(
    model: models_factory.MultiLabelModel, engine: Engine, data: Data, state: RunState, measured: dict[str, float]
) -> dict[str, Any]:
    """`model` as it is, with all that using it later takes, and where it comes from."""
    return {
        "model_state": model.state_dict(),
        "weights": "raw" if model is engine.model else "averaged",
        "model_name": config.MODEL_NAME,
        "head": config.HEAD,
        "head_options": engine.head_options,
        "activation": choose_activation(),
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
    model, augmentation = engine.model, make_augmentation().describe()
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    weights = f"weights {config.PRETRAINED_WEIGHTS}: {model.loaded}" if model.loaded else "random weights"
    frozen = [epoch for epoch in range(1, config.NUM_EPOCHS + 1) if is_frozen(epoch)]
    rates = ", ".join(f"{g['name']} {g['initial_lr']:g}" for g in engine.optimizer.param_groups if g["name"] in PARTS)
    drops = f"x{config.LR_DECAY_FACTOR:g} after epochs {config.LR_MILESTONES or '(none)'}"
    images = f"{len(data.train)} training, {len(data.val)} validation images, {len(data.table.classes)} classes"
    keeps = frozen and config.FROZEN_FEATURE_VIEWS and not changes_batches()
    sizes = [*config.GROWING_IMAGE_SIZES, *config.MULTI_SCALE_SIZES]
    extras = {
        f", trained at {', '.join(map(str, sizes))}": sizes,
        f", mixup {config.MIXUP_ALPHA:g}": config.MIXUP_ALPHA,
        f", CutMix {config.CUTMIX_ALPHA:g}": config.CUTMIX_ALPHA,
        f", {config.IMAGE_CACHE} cache": config.IMAGE_CACHE != "none",
    }
    stopping = f", stops after {config.EARLY_STOPPING_PATIENCE} without gain" if config.EARLY_STOPPING_ENABLED else ""
    steps = f"SAM {config.SAM_RHO:g}, " * bool(config.SAM_RHO) + f"EMA {config.EMA_DECAY:g}, " * bool(config.EMA_DECAY)
    rows = {
        "run": files.checkpoint.stem,
        "data": f"{config.DATASET_FOLDER}, {data.format}: {images}",
        "model": f"{config.MODEL_NAME} + {config.HEAD}, {parameters:.1f} M parameters, {weights}",
        "loss": ", ".join([config.LOSS, *config.ENTRY_WEIGHTS, config.LOSS_REDUCTION]),
        "images": f"{config.IMAGE_SIZE} px, {augmentation}{''.join(text for text, is_on in extras.items() if is_on)}, "
        f"batches of {config.TRAIN_BATCH_SIZE}",
        "epochs": f"{config.NUM_EPOCHS}, backbone frozen in {f'1 to {frozen[-1]}' if frozen else 'none'}"
        f"{f' (features of {config.FROZEN_FEATURE_VIEWS} views kept)' if keeps else ''}{stopping}",
        "rates": f"{rates}; {config.OPTIMIZER}, {steps}{config.SCHEDULE} "
        f"{drops if config.SCHEDULE == 'multistep' else ''}",
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
    if record.get("val_f1_averaged", -1.0) > record.get("val_f1_raw", -1.0):
        text += "  averaged weights"
    if "train_f1" in record:
        text += f"  train F1 {record['train_f1']:.4f}  mAP {record['train_mAP']:.4f}"
    speed = f"{record['images_per_second']:.1f} images/s, {record['waiting_share']:.0%} waiting"
    print(f"{text}  {speed}  {utils.format_duration(record['seconds'])}", flush=True)


if __name__ == "__main__":
    utils.run_script(main)
