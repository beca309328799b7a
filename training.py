"""Trains one run on the constants of config.py: freeze, unfreeze, validate, tune the threshold, keep the best.

    python training.py [recipe.py ...] [--NAME value ...]
    torchrun --nproc-per-node=2 training.py [recipe.py ...] [--NAME value ...]      # a process each GPU

Writes trained_models/<model>/<configuration>.pt (and .json beside it), BEST_MODEL_PATH, a line in runs.csv, and in the
folder <configuration>/ what an interrupted run resumes from (last.pt), train_result.json, logs and curves. SIGTERM and
Ctrl-C save first; the status is 75 then, and the same command goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import config
import overrides

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dataset_readers
import distributed
import metrics
import models_factory
import training_records
import utils
import validation
from checkpoints import RunFiles, RunState
from dataset_readers import Batch, EpochBatches, count_images
from doctor import Doctor
from interruption import Interruption
from tensorboard_logging import TensorBoardLogger
from training_curves import CurvesFile
from training_data import (
    Data,
    Stage,
    changes_batches,
    make_augmentation,
    make_eval_loader,
    open_image_caches,
    prepare_stage,
    read_data,
)
from training_engine import Engine, choose_activation, is_frozen, make_engine
from training_step import explains_overflow, save_batch, take_step
from utils import InputError, Stopped
from validation import Scores, Validation

LONG_EPOCH = 60.0  # seconds of training, from which on they are saved before validation
PICTURES = 16  # validation pictures shown in TensorBoard
PARTS = ("backbone", "head")  # parameter groups; those without decay have the same rates


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    models_factory.require_name(config.MODEL_NAME)
    utils.keep_freed_memory()
    advice = f"the same command{' with --RESUME auto' if config.RESUME == 'never' else ''} goes on from there"
    with distributed.start(config.DEVICE) as device, Interruption(advice) as interruption, utils.keep_log():
        train(device, interruption)


def train(device: torch.device, interruption: Interruption) -> None:
    """The run, from reading the labels to the selected checkpoint."""
    utils.seed_everything(config.SEED)
    data = read_data()
    engine = make_engine(data.train, device)
    caches = open_image_caches(data)
    files = training_records.name_files(data)
    state, moment = training_records.resume(files, engine, data)
    if distributed.is_first():
        utils.log_to(files.text_log)
    print_configuration(files, data, engine, state)
    doctor = Doctor()
    if moment:
        doctor.load_state_dict(moment["doctor"])
    elif distributed.is_first():
        doctor.look_at_data(data.train, data.val)

    def save() -> None:
        training_records.save_last(files, engine, data, state, doctor)

    stage = None
    with make_logger(files, state) as logger, CurvesFile(files.curves if distributed.is_first() else None) as curves:
        for epoch in range(state.epoch + 1, config.NUM_EPOCHS + 1):
            if has_stalled(state):
                break
            engine.model.freeze_backbone(is_frozen(epoch))
            stage = prepare_stage(engine, data, caches, epoch, stage)
            training_records.start_epoch(engine, state, moment, epoch)
            with interruption.delayed():
                record = train_epoch(engine, stage, epoch, state, files, doctor, save, interruption)
                engine.share_statistics()
                model, validated = engine.model, None
                if epoch % config.VAL_EVERY_N_EPOCHS == 0 or epoch == config.NUM_EPOCHS:
                    model, validated = validate(engine, stage, epoch, record)
                    if state.note_validation(epoch, validated.f1, validated.threshold, config.EARLY_STOPPING_MIN_DELTA):
                        best = training_records.make_checkpoint(model, engine, data, state, validated.measured)
                        training_records.save_if_best(files, best, data, validated)
                    see_validation(doctor, validated, data, epoch == config.NUM_EPOCHS or has_stalled(state))
                    log_validation(logger, engine, data, validated, epoch)

                if config.TRAIN_METRICS_EVERY_N_EPOCHS and epoch % config.TRAIN_METRICS_EVERY_N_EPOCHS == 0:
                    record |= measure_training(engine, data, state)

                is_last = epoch == config.NUM_EPOCHS or has_stalled(state)
                record["seconds"] += curves.update([*state.history, record], is_last)
                state.close_epoch(record)
                print_epoch(record)
                logger.add_epoch(record)
                training_records.save_epoch(files, model, engine, data, state, validated)
                save()
                caches.save()
            stop_if_asked(interruption)
        with interruption.delayed():  # all is done, but for a few files
            finish(files, data, logger, state, doctor)
            state.finished = True
            save()


def train_epoch(
    engine: Engine,
    stage: Stage,
    epoch: int,
    state: RunState,
    files: RunFiles,
    doctor: Doctor,
    save: Callable[[], None],
    interruption: Interruption,
) -> dict[str, Any]:
    """The rest of a pass over the training split; the epoch's record: mean loss, rates, speed.

    Calls `save` every SAVE_EVERY_MINUTES, at the end of a long epoch, and before it stops for a signal.
    """
    engine.model.train()
    engine.objective.train()
    loader, sampler = stage.train_loader, stage.train_loader.batch_sampler
    assert isinstance(sampler, EpochBatches)
    dataset_readers.set_epoch(loader, epoch, state.step)
    if not state.step:
        groups = engine.optimizer.param_groups
        state.rates = {f"lr_{name}": group["lr"] for group in groups if (name := group["name"]) in PARTS}
    total = torch.tensor(state.loss_total, device=engine.device)
    before, last_save = state.epoch_seconds, time.perf_counter()
    taken_before = state.num_taken
    doctor.watch(engine.model, engine.optimizer, engine.average)
    batches = utils.Waiting(loader)
    with utils.Progress(f"epoch {epoch}/{config.NUM_EPOCHS}", count_images(loader)) as progress:
        for step, batch in enumerate(batches, state.step):
            look = see_first_step(engine, stage, doctor) if epoch == 1 and step == 0 else None
            loss = take_step(engine, stage.trained, batch, epoch, step, look)
            num_images = sampler.count_images(step)
            if loss is not None:
                total += loss * num_images
                state.num_images += num_images
                state.num_taken += 1
            elif not explains_overflow(engine):
                note_left_out(state, files, batch, epoch, step)
            state.step = step + 1
            # reading a number back waits for the GPU: not at every step
            shown = {"loss": total.item() / max(state.num_images, 1) * distributed.count()} if step % 10 == 0 else {}
            progress.step(num_images, **shown)
            is_due = 0 < config.SAVE_EVERY_MINUTES * 60 < time.perf_counter() - last_save
            must_stop, must_save = distributed.agree(interruption.came, is_due)
            if must_stop or must_save:
                state.loss_total, state.epoch_seconds = total.item(), before + progress.seconds
                save()
                last_save = time.perf_counter()
            if must_stop:
                raise Stopped(f"saved after step {state.step} of epoch {epoch}: {interruption.advice}")
    state.loss_total, state.epoch_seconds = total.item(), stage.seconds + before + progress.seconds
    (is_long,) = distributed.agree(config.SAVE_EVERY_MINUTES > 0 and state.epoch_seconds > LONG_EPOCH)
    if is_long:
        save()  # validation, too, may take long
    record = {
        "epoch": epoch,
        "frozen": engine.model.backbone_is_frozen,
        "train_loss": distributed.add_up(total).item() / max(state.num_images, 1),
        **state.rates,
        "images_per_second": progress.done / progress.seconds,
        "waiting_share": batches.seconds / progress.seconds,
        "steps": state.num_taken,
        "steps_left_out": state.num_left_out,
        "preparation_seconds": stage.seconds,
        "seconds": state.epoch_seconds,
    }
    see_epoch(doctor, engine, stage, record, state.num_taken - taken_before)
    return record


def see_first_step(engine: Engine, stage: Stage, doctor: Doctor) -> Callable[[Tensor, Batch], None]:
    """What prints, of the logits of the run's first step, what its loss is made of, and has the doctor look."""

    def look(logits: Tensor, batch: Batch) -> None:
        lines = engine.objective.describe(logits, batch.targets, batch.weights)
        utils.say("\n  ".join(["first step:", *lines]))
        sampler = stage.train_loader.batch_sampler
        assert isinstance(sampler, EpochBatches)
        num_images = sampler.count_images(0)
        doctor.look_at_first_step(stage.network, batch, logits, engine.objective, engine.optimizer, num_images)

    return look


def see_epoch(doctor: Doctor, engine: Engine, stage: Stage, record: dict[str, Any], num_seen: int) -> None:
    """Have the doctor look at an epoch, of which a resumed run has seen the last steps only; one process does."""
    if not distributed.is_first():
        return
    loss, steps, left_out = record["train_loss"], record["steps"], record["steps_left_out"]
    doctor.look_at_epoch(engine.model, engine.optimizer, engine.average, loss, steps, left_out, num_seen)
    if stage.network is engine.model:  # else features, which are at hand
        doctor.look_at_loading(
            record["waiting_share"],
            record["seconds"] - record["preparation_seconds"],
            config.NUM_EPOCHS - record["epoch"],
            utils.choose_num_workers(config.NUM_WORKERS, engine.device),
            utils.choose_num_workers(None, engine.device),
            config.IMAGE_CACHE,
        )


def see_validation(doctor: Doctor, validated: Validation, data: Data, is_last: bool) -> None:
    """Have the doctor look at a validation; one process does."""
    if distributed.is_first():
        probabilities, targets, loss = validated.scores
        doctor.look_at_validation(probabilities, targets, validated.threshold, data.table.classes, loss, is_last)


def note_left_out(state: RunState, files: RunFiles, batch: Batch, epoch: int, step: int) -> None:
    """Count a step whose gradient is not finite. Raises InputError at the NON_FINITE_LIMIT-th, its batch kept."""
    state.num_skipped += 1
    state.num_left_out += 1
    utils.warn(f"epoch {epoch}, step {step + 1}: the gradient is not finite, the step is left out")
    if state.num_skipped >= config.NON_FINITE_LIMIT:
        own = files.bad_batch.with_stem(f"{files.bad_batch.stem}_{distributed.rank()}")
        save_batch(own, batch, epoch, step)
        raise InputError(
            f"{state.num_skipped} steps had a loss or gradient that is not finite; the last batch is in {own}: look at "
            "it, lower the rates, set CLIP_GRADIENT_NORM = 1.0, or MIXED_PRECISION = 'off'"
        )


def stop_if_asked(interruption: Interruption) -> None:
    """End the run here, between two epochs, when a signal came."""
    if distributed.agree(interruption.came)[0]:
        raise Stopped(f"saved at the epoch's end: {interruption.advice}")


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
    writes = config.USE_TENSORBOARD and distributed.is_first()
    return TensorBoardLogger(folder if writes else None, first_epoch=state.epoch + 1)


def log_validation(logger: TensorBoardLogger, engine: Engine, data: Data, validation: Validation, epoch: int) -> None:
    """PR curves and pictures for TensorBoard."""
    if not config.USE_TENSORBOARD or not distributed.is_first():
        return
    scores, classes = validation.scores, data.table.classes
    logger.add_pr_curves(scores.probabilities, scores.targets, classes, epoch)
    shown = data.val.select(range(min(PICTURES, len(data.val))))
    loader = make_eval_loader(shown, engine.device)
    dataset_readers.share_batches(loader, 0, 1)
    images = np.stack([image for batch in loader for image in batch.images.numpy()])
    probabilities = scores.probabilities[: len(shown)]
    logger.add_pictures(images, shown.targets, probabilities, validation.threshold, classes, epoch)


def has_stalled(state: RunState) -> bool:
    """Whether early stopping ends the run."""
    return config.EARLY_STOPPING_ENABLED and state.validations_without_gain >= config.EARLY_STOPPING_PATIENCE


def finish(files: RunFiles, data: Data, logger: TensorBoardLogger, state: RunState, doctor: Doctor) -> None:
    """Copy the selected checkpoint to BEST_MODEL_PATH and say what came out."""
    if not distributed.is_first():
        return
    selected = training_records.finish(files, data, state, [*doctor.findings.values()])
    logger.add_hparams(overrides.resolved(config), {"best_f1": state.best_f1})
    measured = selected["metrics"]
    lines = [
        f"\nbest validation F1 {state.best_f1:.4f} (weighted) in epoch {state.best_epoch} of {state.epoch}, "
        f"threshold {state.best_threshold:.4f}, training {utils.format_duration(state.seconds)}",
        f"checkpoint: F1 {measured['f1_weighted']:.4f} (cross-fitted {measured['f1_weighted_cross_fitted']:.4f}), "
        f"mAP {measured['mAP']:.4f} over {measured['num_classes_in_mAP']:.0f} classes, epoch {selected['epoch']}",
        f"saved: {files.checkpoint}\n       {config.BEST_MODEL_PATH}\n       {files.curves}",
    ]
    if selected["best_f1"] > state.best_f1:
        lines.insert(1, f"an earlier run of this configuration reached {selected['best_f1']:.4f}: its checkpoint stays")
    utils.say("\n".join(lines))


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
        f"batches of {config.TRAIN_BATCH_SIZE}"
        + f", {config.UNFROZEN_BATCH_SIZE} once unfrozen"
        * bool(config.UNFROZEN_BATCH_SIZE),
        "epochs": f"{config.NUM_EPOCHS}, backbone frozen in {f'1 to {frozen[-1]}' if frozen else 'none'}"
        f"{f' (features of {config.FROZEN_FEATURE_VIEWS} views kept)' if keeps else ''}{stopping}",
        "rates": f"{rates}; {config.OPTIMIZER}, {steps}{config.SCHEDULE} "
        f"{drops if config.SCHEDULE == 'multistep' else ''}",
        "device": f"{engine.device}, {torch.get_num_threads()} threads, mixed precision {engine.precision}",
    }
    if distributed.count() > 1:
        rows["device"] += f", {distributed.count()} processes"
    if state.epoch or state.step:
        place = f"after epoch {state.epoch}" + f" and {state.step} steps" * bool(state.step)
        rows["resumes"] = place + f", best F1 so far {state.best_f1:.4f}" * bool(state.best_epoch)
    utils.say("\n".join(f"{name:>8}  {text.strip()}" for name, text in rows.items()) + "\n")


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
    utils.say(f"{text}  {speed}  {utils.format_duration(record['seconds'])}")


if __name__ == "__main__":
    utils.run_script(main)
