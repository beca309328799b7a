"""Trains one run on the constants of config.py: freeze, unfreeze, validate, tune the threshold, keep the best.

    python training.py [recipe.py ...] [--NAME value ...]
    python training.py trained_models/resnet18/x.json [--NAME value ...]                # that run again
    torchrun --nproc-per-node=2 training.py [recipe.py ...] [--NAME value ...]      # one process for each GPU

Writes trained_models/<model>/<configuration>.pt (and .json beside it), BEST_MODEL_PATH and a line in runs.csv. The
folder <configuration>/ gets what an interrupted run resumes from (last.pt), its constants (recipe.py),
train_result.json, logs and curves, and what images are compared with for their novelty (neighbours.npz). FOLDS trains
several such runs one after the other, and averages their weights.
SIGTERM and Ctrl-C save first; the exit status is then 75, and the same command goes on from there.

The run reads from top to bottom: `train` (all epochs), `train_epoch` (all steps), `take_step`, `compute_gradients`.
What they call lies in trainer/.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from models import network_files

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds
    network_files.import_in_parts()

import torch
from torch import Tensor, nn

import distributed
import models_factory
import utils
from dataset import loading
from dataset.batches import Batch
from dataset.whole_files import write_text
from models.shared_cores import share_cores
from trainer import (
    folds,
    from_config,
    head_fit,
    loggers,
    novelty,
    optimizers,
    random_state,
    records,
    validation,
    watching,
)
from trainer.build import Trainer, is_frozen, make_trainer, searches_head
from trainer.doctor import Doctor
from trainer.interruption import Interruption
from trainer.run import Run
from trainer.run_files import RunFiles
from trainer.step import (
    LookAtLogits,
    TakenStep,
    clip_gradients,
    exchange_gradients,
    explain_overflow,
    find_statistics,
    move_weights,
    run_within_memory,
    split_batch,
)
from trainer.training_curves import CurvesFile
from trainer.training_data import Data, leave_out_missing, note_files, open_image_caches, prepare_stage, read_data
from utils import Stopped

STEPS_BETWEEN_LOOKS = 10  # at the loss and at signals: reading a number back waits for the GPU
LONG_EPOCH_SECONDS = 60.0  # an epoch that took longer is saved before its validation, which may take long too


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    models_factory.require_name(config.MODEL_NAME)
    loggers.require_packages(config.LOGGERS)
    utils.keep_freed_memory()
    with distributed.start(config.DEVICE) as device, share_cores():
        from_config.choose_settings(device)  # raises InputError now, not after data and weights are read
        if not config.FOLDS:
            run_once(device)
            return
        for fold in range(1, config.FOLDS + 1):
            run_once(device, fold)
        with utils.keep_log():
            folds.finish(device)


def run_once(device: torch.device, fold: int = 0) -> None:
    """Train one run: with FOLDS that of `fold`, from 1 on, unless it is finished."""
    advice = f"the same command{' with --RESUME auto' if config.RESUME == 'never' else ''} goes on from there"
    with Interruption(advice) as interruption, utils.keep_log():
        data = note_files(read_data(fold))
        files = records.name_files(data)
        with records.own(files):
            records.require_same_files(files, data)
            if fold and config.RESUME != "never" and records.is_finished(files):
                utils.say(f"fold {fold} of {config.FOLDS} is finished: {files.checkpoint}")
                return
            train(start_run(device, interruption, data, files))


def start_run(device: torch.device, interruption: Interruption, data: Data, files: RunFiles) -> Run:
    """Build what is trained, and go on where an interrupted run of these constants stopped."""
    random_state.seed_everything(config.SEED)
    trainer = make_trainer(data.train, device)
    caches = open_image_caches(data)
    data = leave_out_missing(trainer, data, caches)  # before the backbone trains: it would learn that they are absent
    state, resumed = records.resume(files, trainer, data)
    run = Run(
        data=data,
        trainer=trainer,
        caches=caches,
        files=files,
        state=state,
        resumed=resumed,
        doctor=Doctor(),
        logger=watching.make_logger(files, state),
        curves=CurvesFile(files.curves if distributed.is_first() else None),
        interruption=interruption,
    )
    if distributed.is_first():
        utils.log_to(files.text_log)
        write_text(files.recipe, overrides.write_recipe(config))
    watching.print_configuration(run)
    if resumed:
        run.doctor.load_state_dict(resumed["doctor"])
    else:
        watching.see_data(run)
    return run


def train(run: Run) -> None:
    """Train and validate every epoch that is left, then select the checkpoint."""
    state = run.state
    with run.logger, run.curves:
        for epoch in range(state.epoch + 1, config.NUM_EPOCHS + 1):
            if run.has_stalled:
                break
            # A frozen backbone is in eval mode as a whole: its BatchNorm statistics stay as they were pretrained.
            run.trainer.model.freeze_backbone(is_frozen(epoch))
            run.stage = prepare_stage(run.trainer, run.data, run.caches, epoch, run.stage)
            records.start_epoch(run, epoch)
            with run.interruption.delayed():  # a signal waits for the next place where the run can be saved
                if searches_head(epoch):
                    record, out_of_fold = head_fit.find_head(run, epoch)
                else:
                    record, out_of_fold = train_epoch(run, epoch), None
                run.trainer.share_statistics()  # each process saw other images: all go on with those of rank 0
                model, validated = run.trainer.model, None
                if epoch % config.VAL_EVERY_N_EPOCHS == 0 or epoch == config.NUM_EPOCHS:
                    model, validated = validation.validate(run, epoch, record, out_of_fold)
                    if state.note_validation(epoch, validated.f1, validated.threshold, config.EARLY_STOPPING_MIN_DELTA):
                        records.save_if_best(run, model, validated)
                    watching.see_validation(run, validated, epoch)
                if config.TRAIN_METRICS_EVERY_N_EPOCHS and epoch % config.TRAIN_METRICS_EVERY_N_EPOCHS == 0:
                    record |= validation.measure_training_split(run)
                is_last = epoch == config.NUM_EPOCHS or run.has_stalled
                record["seconds"] += run.curves.update([*state.history, record], is_last)
                state.close_epoch(record)
                watching.print_epoch(record, state.cross_fits)
                run.logger.add_epoch(record)
                records.save_epoch(run, model, validated)
                records.save_last(run)
                run.caches.save()
            stop_if_asked(run.interruption)
        novelty.keep_reference(run)
        with run.interruption.delayed():  # everything is computed, only a few files are left to write
            finish(run)


def train_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """Train for one epoch, from `run.state.step` on. Returns the epoch's record: mean loss, rates, images per second.

    Saves every SAVE_EVERY_MINUTES, at the end of a long epoch, and before it stops for a signal.
    """
    trainer, stage, state = run.trainer, run.stage, run.state
    assert stage is not None
    trainer.model.train()
    trainer.objective.train()
    trainer.objective.start_epoch(epoch)
    loading.set_epoch(stage.train_loader, epoch, state.step)
    if state.step == 0:
        state.rates = trainer.read_rates()
    run.doctor.watch(trainer.model, trainer.optimizer, trainer.average)
    seconds_before, steps_before = state.epoch_seconds, state.num_taken
    last_save = time.perf_counter()
    unread: list[records.UnreadStep] = []
    batches = utils.Waiting(stage.train_loader)
    with utils.Progress(f"epoch {epoch}/{config.NUM_EPOCHS}", loading.count_images(stage.train_loader)) as progress:
        for step, batch in enumerate(batches, state.step):
            look = watching.see_first_step(run) if epoch == 1 and step == 0 else None
            num_images = stage.count_images(step)
            taken = take_step(trainer, stage.trained_network, batch, epoch, step, num_images, look)
            unread.append(records.UnreadStep(taken, step, num_images, batch))
            state.step = step + 1
            is_look = step % STEPS_BETWEEN_LOOKS == 0
            if is_look:
                records.note_steps(run, unread, epoch)
            if is_look and state.num_images:
                progress.step(num_images, loss=state.loss_total / state.num_images * distributed.count())
            else:
                progress.step(num_images)
            if not is_look and distributed.count() > 1 and trainer.device.type != "cpu":
                continue  # to agree with the other processes takes longer than a GPU's step may
            save_is_due = 0 < config.SAVE_EVERY_MINUTES * 60 < time.perf_counter() - last_save
            # All processes have to stop and save at the same step, whichever of them the signal reached.
            must_stop, must_save = distributed.agree(run.interruption.came, save_is_due)
            if must_stop or must_save:
                records.note_steps(run, unread, epoch)
                state.epoch_seconds = seconds_before + progress.seconds
                records.save_last(run)
                last_save = time.perf_counter()
            if must_stop:
                raise Stopped(f"saved after step {state.step} of epoch {epoch}: {run.interruption.advice}")
    records.note_steps(run, unread, epoch)
    run.stage = stage._replace(waiting_share=batches.later_seconds / progress.seconds)
    state.epoch_seconds = stage.seconds + seconds_before + progress.seconds
    if distributed.agree(config.SAVE_EVERY_MINUTES > 0 and state.epoch_seconds > LONG_EPOCH_SECONDS)[0]:
        records.save_last(run)
    loss_of_all = sum(distributed.collect(state.loss_total))
    record = {
        "epoch": epoch,
        "frozen": trainer.model.backbone_is_frozen,
        "train_loss": loss_of_all / state.num_images if state.num_images else None,  # None: no step was taken
        **state.rates,
        "images_per_second": progress.done / progress.seconds,
        "waiting_share": batches.seconds / progress.seconds,
        "steps": state.num_taken,
        "steps_left_out": state.num_left_out + state.num_overflowed,
        "steps_overflowed": state.num_overflowed,
        "preparation_seconds": stage.seconds,
        "seconds": state.epoch_seconds,
    }
    watching.see_epoch(run, record, num_seen=state.num_taken - steps_before)
    return record


def take_step(
    trainer: Trainer,
    network: nn.Module,
    batch: Batch,
    epoch: int,
    step: int,
    num_images: int,
    look: LookAtLogits | None = None,
) -> TakenStep:
    """Train `network`, the model or its head, on one batch.

    `batch` is this process's share of the step's `num_images`; the losses of all processes add up to the mean loss.
    Where the gradient is not finite, weights, averages and statistics stay as they were. `look` is shown the first
    logits.
    """
    # Teachers look at the pictures first; then mixup or CutMix blends them, and MULTI_SCALE_SIZES resizes them.
    batch = trainer.change_batch(batch.to(trainer.device), epoch, step)
    statistics = find_statistics(trainer)
    statistics.keep()  # to be put back if the step is left out
    compute = partial(compute_gradients, trainer, network, batch, num_images)
    loss = run_within_memory(trainer, batch, statistics, compute, look)
    if trainer.sam_rho:
        # Sharpness-aware (Foret et al. 2021): move the weights to where the loss is highest nearby, and take the
        # gradient there. GHM counts the first pass only.
        with optimizers.climb(trainer.model, trainer.sam_rho):
            trainer.objective.entry_weights.eval()
            run_within_memory(trainer, batch, None, compute)
            trainer.objective.entry_weights.train()
    is_finite = clip_gradients(trainer)
    move_weights(trainer, is_finite)
    statistics.put_back(~is_finite)
    if trainer.average:
        trainer.average.update_parameters(trainer.model, is_finite)
    return TakenStep(loss, is_finite, explain_overflow(trainer, is_finite))


def compute_gradients(
    trainer: Trainer, network: nn.Module, batch: Batch, num_images: int, look: LookAtLogits | None = None
) -> Tensor:
    """Forward and backward pass, one micro-batch after the other. Returns this process's part of the mean loss.

    The gradients add up to that of the loss over the whole batch of all processes, so neither MICRO_BATCH_SIZE nor the
    number of processes changes a step.
    """
    num_entries = distributed.add_up(trainer.objective.count(batch.targets, batch.weights))  # of all processes
    total = torch.zeros((), device=trainer.device)
    for micro_batch, is_last in split_batch(batch, trainer.micro_batch_size, num_images):
        with exchange_gradients(network, is_last):
            with trainer.autocast():
                logits = network(micro_batch.images)
            if look:
                look(logits.detach(), micro_batch)
                look = None
            loss = trainer.objective(logits, micro_batch.targets, micro_batch.weights, num_entries)
            # DistributedDataParallel averages gradients over the processes; the loss needs their sum.
            trainer.scaler.scale(loss * distributed.count()).backward()
        total += loss.detach()
    return trainer.objective.as_mean(total, num_entries)


def stop_if_asked(interruption: Interruption) -> None:
    """End the run between two epochs, when a signal came to any of the processes."""
    if distributed.agree(interruption.came)[0]:
        raise Stopped(f"saved at the epoch's end: {interruption.advice}")


def finish(run: Run) -> None:
    """Tune the selected checkpoint, copy it to BEST_MODEL_PATH if it is the best, and say what came out."""
    if distributed.is_first():
        watching.see_end(run)
        selected, about_best = records.finish(run)
        watching.log_end(run)
        watching.print_result(run, selected, about_best)
    run.state.finished = True
    records.save_last(run)
    run.interruption.end()


if __name__ == "__main__":
    utils.run_script(main)
