"""Who looks on while a run trains: the doctor, the loggers, and the person who reads the printed lines.

Reads config, as a part of training.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

import config
import distributed
import overrides
import utils
from dataset import loading
from dataset.batches import Batch
from dataset.class_names import describe_classes
from dataset.image_sizes import as_size
from dataset.table import Table
from evaluation import tuning
from evaluation.pages import count
from models.devices import count_loading_processes
from models.features import OWN
from trainer import from_config, loggers, records
from trainer.build import choose_batch_size, choose_metric, count_steps, is_frozen, searches_head
from trainer.doctor import describe_noise
from trainer.loggers import Loggers
from trainer.optimizers import get_part
from trainer.run import Run
from trainer.run_files import RunFiles
from trainer.run_state import RunState
from trainer.step import LookAtLogits
from trainer.training_data import Data, changes_batches, choose_processes, make_eval_loader
from trainer.validation import Validation

PICTURES = 16  # validation pictures that the loggers show


# ---- the doctor ----


def see_data(run: Run) -> None:
    """Let the doctor look at the data of a run that begins."""
    if not distributed.is_first():
        return
    data = run.data
    if not data.cross_validates:  # else no head is measured on an image that it has seen
        run.doctor.look_at_data(data.train, data.val)
    has_teachers = bool(config.TEACHER_PROBABILITIES or config.TEACHER_CHECKPOINTS)
    run.doctor.look_at_labels(data.train, data.val, has_teachers)
    run.doctor.look_at_freezing(
        is_frozen=is_frozen(1), unfreeze_epoch=config.UNFREEZE_BACKBONE_EPOCH, num_epochs=config.NUM_EPOCHS
    )
    sizes = [choose_batch_size(epoch) for epoch in range(1, config.NUM_EPOCHS + 1) if not searches_head(epoch)]
    run.doctor.look_at_sizes(
        num_train=len(data.train),
        num_val=len(data.table) if data.fold else len(data.val),  # all folds together choose the threshold
        batch_size=max(sizes, default=0),  # a search takes no steps
        val_is_drawn=data.val_is_drawn and not data.fold and not data.cross_validates,
    )
    if config.LABELS_PER_IMAGE == "any" and not has_teachers and has_one_label_each(data.table):
        utils.say(
            f"note: each of the {len(data.table):,} images has exactly one label; if those to come have, too, "
            "--LABELS_PER_IMAGE one predicts the most probable class, and no threshold is needed"
        )


def has_one_label_each(table: Table) -> bool:
    """Whether each image has exactly one of several classes, and all its labels are known."""
    return len(table.classes) > 1 and bool(((table.targets == 1).sum(axis=1) == 1).all() and (table.targets >= 0).all())


def see_first_step(run: Run) -> LookAtLogits:
    """A function that, shown the logits of the run's first step, prints what its loss is made of; the doctor looks."""
    trainer, stage = run.trainer, run.stage
    assert stage is not None
    was_shown = False

    def look(logits: Tensor, batch: Batch) -> None:
        nonlocal was_shown
        if was_shown:  # the step is tried again, with less memory
            return
        was_shown = True
        lines = trainer.objective.describe(logits, batch.targets, batch.weights)
        num_images, num_shown = stage.count_images(0), len(batch.targets)
        part = f", of which this is a part of {num_shown} of {num_images} images" if num_shown < num_images else ""
        utils.say(f"first step{part}:", *(f"  {line}" for line in lines))
        run.doctor.look_at_first_step(
            network=stage.network,
            batch=batch,
            logits=logits,
            objective=trainer.objective,
            optimizer=trainer.optimizer,
            batch_size=stage.count_images(0),
        )

    return look


def see_epoch(run: Run, record: dict[str, Any], num_seen: int) -> None:
    """Let the doctor look at an epoch, of which a resumed run has seen the last `num_seen` steps only."""
    if not distributed.is_first():
        return
    trainer, stage = run.trainer, run.stage
    assert stage is not None
    run.doctor.look_at_epoch(
        model=trainer.model,
        optimizer=trainer.optimizer,
        average=trainer.average,
        loss=record["train_loss"],
        num_taken=record["steps"],
        num_left_out=record["steps_left_out"] - record["steps_overflowed"],
        num_overflowed=record["steps_overflowed"],
        num_seen=num_seen,
    )
    gets_more = choose_processes(trainer, stage) != stage.processes  # in the next epoch: then it will be seen
    if stage.network is trainer.model and not gets_more:  # another network reads features, which are at hand
        run.doctor.look_at_loading(
            waiting_share=record["waiting_share"],
            seconds=record["seconds"] - record["preparation_seconds"],
            epochs_left=config.NUM_EPOCHS - record["epoch"],
            num_workers=stage.processes.number,
            default_num_workers=count_loading_processes(trainer.device),
            image_cache=config.IMAGE_CACHE,
            pictures_on=config.PICTURES_ON if trainer.device.type == "cuda" else "",
        )


def see_end(run: Run) -> None:
    """Let the doctor look at a run whose epochs are done."""
    run.doctor.look_at_end(num_taken=sum(record["steps"] for record in run.state.history))


def see_validation(run: Run, validated: Validation, epoch: int) -> None:
    """Let the doctor look at a validation; PR curves and pictures for the loggers."""
    if not distributed.is_first():
        return
    scores, classes = validated.scores, run.data.table.classes
    is_last = epoch == config.NUM_EPOCHS or run.has_stalled
    run.doctor.look_at_validation(
        probabilities=scores.probabilities,
        targets=scores.targets,
        threshold=validated.threshold,
        classes=classes,
        loss=scores.loss,
        is_last=is_last,
    )
    if run.logger.takes_pictures:
        run.logger.add_pr_curves(scores.probabilities, scores.targets, classes, epoch)
        shown = run.data.val.select(range(min(PICTURES, len(run.data.val))))
        loader = make_eval_loader(shown, run.trainer.device)
        loading.share_batches(loader, 0, 1)  # all of them, though other processes have a share of the split
        images = np.stack([image for batch in loader for image in batch.to(run.trainer.device).images.cpu().numpy()])
        probabilities = scores.probabilities[: len(shown)]
        run.logger.add_pictures(images, shown.targets, probabilities, validated.threshold, classes, epoch)


def make_logger(files: RunFiles, state: RunState) -> Loggers:
    """The LOGGERS of this run; `state` remembers what they know it by. Only rank 0 has any."""
    if not distributed.is_first():
        return Loggers({})
    tracked = loggers.TrackedRun(
        name=files.run,
        project=re.sub(r"[^\w-]+", "-", config.DATASET_FOLDER.resolve().name) or "training",
        group=files.fold_of or None,
        constants=overrides.resolved(config),
        folder=config.TENSORBOARD_FOLDER / files.folder.parent.name / files.folder.name,
        history=tuple(state.history),
        ids=state.logger_ids,
    )
    return loggers.open_loggers(config.LOGGERS, tracked)


def log_end(run: Run) -> None:
    """Give the loggers the final metrics: those of the epoch with the best F1."""
    state = run.state
    best = next((record for record in state.history if record["epoch"] == state.best_epoch), {})
    final = {
        "best_f1": state.best_f1,
        "best_mAP": best.get("val_mAP"),
        "best_epoch": state.best_epoch,
        "best_threshold": state.best_threshold,
    }
    known = {name: float(value) for name, value in final.items() if value is not None}
    run.logger.add_hparams(overrides.resolved(config), known)


# ---- printing ----


def print_configuration(run: Run) -> None:
    """What is about to happen, in a few lines."""
    num_steps = sum(count_steps(len(run.data.train), epoch) for epoch in range(1, config.NUM_EPOCHS + 1))
    rows = {
        "run": run.files.checkpoint.stem,
        "data": f"{config.DATASET_FOLDER}, {run.data.format}: {_describe_splits(run.data)}",
        "classes": describe_classes(run.data.table.classes),
        "model": _describe_model(run),
        "loss": ", ".join([config.LOSS, *config.ENTRY_WEIGHTS, config.LOSS_REDUCTION]),
        "images": _describe_images(),
        # few images make few steps an epoch, and steps are what a model learns by
        "epochs": _describe_epochs() + (f"; {count(num_steps, 'step')}" if num_steps else ""),
        "rates": _describe_rates(run),
        "device": run.trainer.settings.describe(None if _only_searches() else run.trainer.optimizer),
    }
    if distributed.count() > 1:
        rows["device"] += f", {distributed.count()} processes"
    state = run.state
    if state.epoch or state.step:
        rows["resumes"] = f"after epoch {state.epoch}"
        if state.step:
            rows["resumes"] += f" and {state.step} steps"
        if state.best_epoch:
            rows["resumes"] += f", best F1 so far {state.best_f1:.4f}"
    elif run.files.result.is_file():
        rows["begins"] = "anew; a run of these constants is finished, only a better F1 replaces its checkpoint"
    elif finished := records.find_finished(run.files, run.data):
        epochs, path = finished
        rows["begins"] = (
            f"anew; the same run of {epochs} epochs is finished: to begin with its weights, end this run and add "
            f"--PRETRAINED_WEIGHTS {path}"
        )
    utils.say(*(f"{name:>8}  {text}" for name, text in rows.items()), "")
    if run.trainer.settings.precision == "fp16" and run.trainer.device.type == "cpu":
        utils.warn("MIXED_PRECISION is fp16, in which a CPU takes many times as long as in float32: set it to auto")


def _describe_splits(data: Data) -> str:
    weights = ""
    if data.weights is not None:
        lowest, highest, num_zero = data.weights.min(), data.weights.max(), int((data.weights == 0).sum())
        weights = f", weights {lowest:g} to {highest:g}" + (f" ({num_zero} of weight 0)" if num_zero else "")
    if data.cross_validates:
        return f"{len(data.table)} images, trained on and cross-validated{weights}"
    fold = f", fold {data.fold} of {config.FOLDS}" if data.fold else ""
    return f"{len(data.train)} training, {len(data.val)} validation images{fold}{weights}"


def _describe_model(run: Run) -> str:
    model = run.trainer.model
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    weights = "random weights"
    if model.loaded:
        weights = f"weights {config.PRETRAINED_WEIGHTS}: {model.loaded}; {model.loaded.head}"
    features = "" if model.features == OWN else f", features {model.features}"
    return f"{config.MODEL_NAME} + {config.HEAD}{features}, {parameters:.1f} M parameters, {weights}"


def _describe_images() -> str:
    size = as_size(config.IMAGE_SIZE)
    if _only_searches():
        return f"{size} px, whole"
    texts = [f"{size} px", from_config.make_augmentation().describe()]
    sides = [*(config.GROWING_IMAGE_SIZES if _trains_backbone() else ()), *config.MULTI_SCALE_SIZES]
    if sides:
        texts.append(f"trained at {', '.join(str(size.with_short_side(side)) for side in sides)}")
    if config.MIXUP_ALPHA:
        texts.append(f"mixup {config.MIXUP_ALPHA:g}")
    if config.CUTMIX_ALPHA:
        texts.append(f"CutMix {config.CUTMIX_ALPHA:g}")
    if config.IMAGE_CACHE != "none":
        texts.append(f"{config.IMAGE_CACHE} cache")
    texts.append(f"batches of {config.TRAIN_BATCH_SIZE}")
    if config.UNFROZEN_BATCH_SIZE:
        texts.append(f"{config.UNFROZEN_BATCH_SIZE} once unfrozen")
    if config.MICRO_BATCH_SIZE:
        texts.append(f"computed in parts of {config.MICRO_BATCH_SIZE}")
    return ", ".join(texts)


def _describe_epochs() -> str:
    frozen = [epoch for epoch in range(1, config.NUM_EPOCHS + 1) if is_frozen(epoch)]
    text = f"{config.NUM_EPOCHS}, "
    if not frozen:
        text += "the backbone trains from epoch 1 on"
    elif len(frozen) == config.NUM_EPOCHS:
        text += "the backbone stays frozen"
    else:
        text += f"the backbone is frozen in 1 to {frozen[-1]}, trains from {frozen[-1] + 1} on"
    if frozen and config.HEAD_FIT == "search":
        text += " and a search finds its head"
    elif frozen and config.FROZEN_FEATURE_VIEWS:
        kept = f"features of {config.FROZEN_FEATURE_VIEWS} views kept"
        text += f" ({'no features kept, since batches change' if changes_batches() else kept})"
    if config.EARLY_STOPPING_ENABLED:
        text += f", stops after {config.EARLY_STOPPING_PATIENCE} without gain"
    return text


def _only_searches() -> bool:
    """Whether the head is found by a search, and nothing else trains."""
    return all(searches_head(epoch) for epoch in range(1, config.NUM_EPOCHS + 1))


def _trains_backbone() -> bool:
    return not all(is_frozen(epoch) for epoch in range(1, config.NUM_EPOCHS + 1))


def _describe_rates(run: Run) -> str:
    if _only_searches():
        return "none: the search needs no steps"
    rates: dict[str, list[float]] = {}  # of the layers of backbone and head
    for group in run.trainer.optimizer.param_groups:
        if get_part(group) == "head" or _trains_backbone():
            rates.setdefault(get_part(group), []).append(group["initial_lr"])
    rates_text = ", ".join(
        f"{part} {max(values):g}" + (f" down to {min(values):g}" if min(values) < max(values) else "")
        for part, values in rates.items()
    )
    texts = [config.OPTIMIZER]
    if config.LORA_RANK and _trains_backbone():
        texts.append(f"low-rank parts of {config.LORA_RANK} in the backbone")
    if config.SAM_RHO:
        texts.append(f"SAM {config.SAM_RHO:g}")
    if config.EMA_DECAY:
        texts.append(f"EMA {config.EMA_DECAY:g}")
    texts.append(config.SCHEDULE)
    if config.SCHEDULE == "multistep":
        drops = [str(epoch) for epoch in config.LR_MILESTONES if epoch < config.NUM_EPOCHS]
        texts[-1] += f" x{config.LR_DECAY_FACTOR:g} after epochs "
        texts[-1] += ", ".join(drops) or f"(none within {count(config.NUM_EPOCHS, 'epoch')})"
    return f"{rates_text}; {', '.join(texts)}"


def print_epoch(record: dict[str, Any], is_cross_fitted: bool = False) -> None:
    """One line for each epoch; whether its F1 is the cross-fitted one."""
    text = f"epoch {record['epoch']:>3} {'frozen' if record['frozen'] else 'all   '}  {describe_steps(record)}"
    if "val_f1" in record:
        kind = "cross-fitted F1" if is_cross_fitted else "F1"
        text += f"  val loss {record['val_loss']:.4f}  {kind} {record['val_f1']:.4f}  mAP {record['val_mAP']:.4f}"
        if "val_accuracy" in record:
            text += f"  accuracy {record['val_accuracy']:.4f}"
        else:
            text += f"  threshold {record['threshold']:.3f}"
    if record.get("val_f1_averaged", -1.0) > record.get("val_f1_raw", -1.0):
        text += "  averaged weights"
    if "train_f1" in record:
        text += f"  train F1 {record['train_f1']:.4f}  mAP {record['train_mAP']:.4f}"
    speed = f"{record['images_per_second']:.1f} images/s, {record['waiting_share']:.0%} waiting"
    utils.say(f"{text}  {speed}  {utils.format_duration(record['seconds'])}")


def describe_steps(record: dict[str, Any]) -> str:
    """The epoch's mean loss, and how many of its steps were left out, if some were."""
    num_left_out, num_overflowed = record["steps_left_out"], record["steps_overflowed"]
    words = []
    if num_overflowed:
        words.append(f"{num_overflowed} overflowed in half precision")
    if num_left_out > num_overflowed:
        words.append(f"{num_left_out - num_overflowed} had no finite gradient")
    reasons = ", ".join(words)
    if record["train_loss"] is None:
        return f"no step: all {reasons}"
    loss = f"loss {record['train_loss']:.4f}"
    return f"{loss} ({reasons} of {record['steps'] + num_left_out} steps)" if words else loss


def describe_thresholds(selected: dict[str, Any]) -> str:
    """Those that the selected checkpoint is used with, which may be other ones than the best F1 of an epoch is of."""
    thresholds = selected.get("thresholds") or [selected["best_threshold"]]  # an older run has one
    lowest, highest = min(thresholds), max(thresholds)
    return f", threshold {lowest:.4f}" if lowest == highest else f", thresholds {lowest:.4f} to {highest:.4f}"


def print_result(run: Run, selected: dict[str, Any], about_best: list[str]) -> None:
    """What came out of the run, which checkpoint was selected, and the lines `about_best`, the file BEST_MODEL_PATH."""
    state, files, measured = run.state, run.files, selected["metrics"]
    metric = choose_metric()
    threshold, accuracy = describe_thresholds(selected), ""
    if config.LABELS_PER_IMAGE == "one":
        threshold, accuracy = "", f"accuracy {measured['exact_match']:.4f}, "
    kind = metric.removeprefix("f1_") + (", cross-fitted" if state.cross_fits else "")
    lines = [
        "",
        f"best validation F1 {state.best_f1:.4f} ({kind}) in epoch {state.best_epoch} of "
        f"{state.epoch}, training {utils.format_duration(state.seconds)}",
    ]
    validated = {record["epoch"]: record["val_f1"] for record in state.history if "val_f1" in record}
    error = measured.get(f"{metric}_standard_error")
    if selected["best_f1"] == state.best_f1 and error is not None:
        can_draw_more = run.data.val_is_drawn and not run.data.fold
        noise = describe_noise(validated, error, len(run.data.val), can_draw_more)
        lines += [noise] if noise else []
    if selected["best_f1"] > state.best_f1:
        lines.append(f"an earlier run of this configuration reached {selected['best_f1']:.4f}: its checkpoint stays")
    lines.append(
        f"checkpoint: F1 {measured[metric]:.4f} (cross-fitted {measured[f'{metric}_cross_fitted']:.4f}), "
        f"{accuracy}mAP {measured['mAP']:.4f} over {measured['num_classes_in_mAP']:.0f} classes, epoch "
        f"{selected['epoch']}{threshold}"
    )
    lines += [f"saved: {files.checkpoint}", f"       {files.curves}", *about_best]
    utils.say(*lines, *tuning.describe_promise(selected))
    for line in tuning.describe_fallback(selected):
        utils.warn(line)
