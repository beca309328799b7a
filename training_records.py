"""What a run of training.py leaves: its checkpoints, what it resumes from, its logs and its line in the diary.

A part of training.py, so it reads the constants; nothing else imports it. Of several processes the first writes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoints
import config
import conversion
import distributed
import models_factory
import overrides
import threshold_tuning
import utils
from checkpoints import RunFiles, RunState
from doctor import Doctor
from training_data import Data
from training_engine import Engine, choose_activation
from utils import InputError
from validation import Validation

DIARY = "runs.csv"  # in TRAINED_MODELS_FOLDER: a line a run


def name_files(data: Data) -> RunFiles:
    """The files of this configuration: same constants (of the sections marked *) and data, same names."""
    constants = overrides.resolved(config)
    decides = [c.name for c in overrides.list_constants(config) if c.section.endswith("*")]
    identity = {name: constants[name] for name in decides} | {"data": data.table.fingerprint()}
    files = [
        *config.TEACHER_PROBABILITIES,
        *config.TEACHER_CHECKPOINTS,
        *([config.CURRICULUM] if config.CURRICULUM else []),
    ]
    if files:
        identity["files"] = [conversion.hash_file(Path(file)) for file in files]
    name = checkpoints.name_configuration(constants, identity)
    return RunFiles(config.TRAINED_MODELS_FOLDER / checkpoints.name_model(config.MODEL_NAME) / name)


# ---- resuming ----


def resume(files: RunFiles, engine: Engine, data: Data) -> tuple[RunState, dict[str, Any] | None]:
    """The state of an interrupted run of this configuration, put back into `engine`; else a fresh one.

    With it this process's own part, of which "random" is None where another number of them was interrupted. Raises
    InputError for a file of another model.
    """
    last = distributed.from_first(lambda: _load_last(files))
    if last is None:
        return RunState(), None
    expected = {"model_name": config.MODEL_NAME, "head": config.HEAD, "classes": list(data.table.classes)}
    for name, value in expected.items():
        if last[name] != value:
            raise InputError(f"{files.last} is of another {name}, {last[name]}: delete it, or set RESUME = 'never'")
    saved = last["training_state"]
    try:
        engine.model.load_state_dict(last["model_state"])
        engine.load_state_dict(saved["engine"])
        state = RunState(**saved["state"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{files.last} does not fit this model ({str(error).splitlines()[0]}): delete it, or set RESUME = 'never'"
        ) from error
    moments = saved["processes"]
    if len(moments) == distributed.count():
        return state, moments[distributed.rank()]
    if state.step:
        utils.warn(
            f"{len(moments)} process(es) were interrupted in the middle of an epoch and {distributed.count()} go on: "
            "the order stays; what dropout draws does not, and a small last step may join the one before"
        )
    loss_total = sum(moment["loss_total"] for moment in moments) if distributed.is_first() else 0.0
    return state, {"random": None, "loss_total": loss_total, "doctor": moments[0]["doctor"]}


def _load_last(files: RunFiles) -> dict[str, Any] | None:
    """What an unfinished run left; None where there is none."""
    for leftover in files.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    if config.RESUME == "never" or not files.last.is_file():
        return None
    last = checkpoints.load(files.last)
    if "training_state" not in last:
        raise InputError(f"{files.last} holds no state to resume: delete it, or set RESUME = 'never'")
    return None if last["training_state"]["state"]["finished"] else last


def start_epoch(engine: Engine, state: RunState, moment: dict[str, Any] | None, epoch: int) -> None:
    """Let random numbers start where the epoch's do, or where it was interrupted."""
    utils.seed_everything(config.SEED + epoch + 1_000_003 * distributed.rank())  # dropout differs between processes
    if moment and state.step:
        state.loss_total = moment["loss_total"]
        if moment["random"]:
            utils.set_random_state(moment["random"], engine.device)


def save_last(files: RunFiles, engine: Engine, data: Data, state: RunState, doctor: Doctor) -> None:
    """Write what an interrupted run resumes from. All processes have to call it."""
    random = utils.get_random_state(engine.device)
    moment = {"random": random, "loss_total": state.loss_total, "doctor": doctor.state_dict()}
    moments = distributed.collect(moment)
    if distributed.is_first():
        training_state = {"state": asdict(state), "engine": engine.state_dict(), "processes": moments}
        checkpoint = make_checkpoint(engine.model, engine, data, state, {})
        checkpoints.save(files.last, checkpoint | {"training_state": training_state})


# ---- results ----


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
        "processes": distributed.count(),
        "seconds": state.seconds + state.epoch_seconds,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def save_if_best(files: RunFiles, checkpoint: dict[str, Any], data: Data, validated: Validation) -> None:
    """Keep `checkpoint` for its configuration unless an earlier run of the same one reached as high an F1.

    With it go the scores that thresholds and calibration are tuned on.
    """
    if distributed.is_first() and checkpoint["best_f1"] > checkpoints.read_best_f1(files.checkpoint):
        probabilities, targets, _ = validated.scores
        identity = threshold_tuning.identify(checkpoint)
        scores = (probabilities, targets, data.val.paths, data.table.classes, identity)
        threshold_tuning.save_scores(files.folder / threshold_tuning.SCORES_FILE, *scores)
        checkpoints.save(files.checkpoint, checkpoint)


def tune_selected(files: RunFiles) -> dict[str, Any]:
    """The run's checkpoint with thresholds and calibration by today's THRESHOLD_* constants, saved in both places.

    Beside each lie the scores they were tuned on, and thresholds.npy.
    """
    selected, file = checkpoints.load(files.checkpoint), files.folder / threshold_tuning.SCORES_FILE
    scores = threshold_tuning.read_scores(file) if file.is_file() else None
    if scores is None or scores.identity not in ("", threshold_tuning.identify(selected)):
        # an earlier run's checkpoint stays, and its folder was deleted; or one was killed between the two files
        utils.warn(f"{file} is missing or of another checkpoint: the thresholds of {files.checkpoint} stay as they are")
        checkpoints.save(config.BEST_MODEL_PATH, selected)
        return selected
    policy = threshold_tuning.choose_policy(len(selected["classes"]))
    selected |= threshold_tuning.tune_checkpoint(selected, scores, policy)
    for path in (files.checkpoint, config.BEST_MODEL_PATH):
        folder = threshold_tuning.find_folder(path)
        checkpoints.save(path, selected)
        threshold_tuning.save_scores(folder / threshold_tuning.SCORES_FILE, *scores)
        threshold_tuning.save_thresholds(folder / threshold_tuning.THRESHOLDS_FILE, selected["thresholds"])
    return selected


def save_epoch(
    files: RunFiles,
    model: models_factory.MultiLabelModel,
    engine: Engine,
    data: Data,
    state: RunState,
    validated: Validation | None,
) -> None:
    """Write the epoch's record into the logs, and every SAVE_EVERY_N_EPOCHS `model`, which was `validated` or not."""
    if not distributed.is_first():
        return
    checkpoints.write_log(files.log, state.history)
    if config.SAVE_EVERY_N_EPOCHS and state.epoch % config.SAVE_EVERY_N_EPOCHS == 0:
        own = {"epoch": state.epoch, "best_f1": None, "best_threshold": None}
        if validated:
            own |= {"best_f1": validated.f1, "best_threshold": validated.threshold}
        checkpoints.save(files.name_epoch(state.epoch), make_checkpoint(model, engine, data, state, {}) | own)


def finish(files: RunFiles, data: Data, state: RunState, findings: list[str]) -> dict[str, Any]:
    """Tune the selected checkpoint, copy it to BEST_MODEL_PATH, write the run's result and diary; the checkpoint."""
    selected = tune_selected(files)
    measured = selected["metrics"]
    best = {"score": selected["best_f1"], "epoch": selected["epoch"], "threshold": selected["best_threshold"]}
    result = {
        "done_flag": True,
        "model_name": config.MODEL_NAME,
        "metric": "f1_weighted",
        "label_dict": dict(enumerate(data.table.classes)),
        "config": overrides.resolved(config),
        "train_log": str(files.text_log),
        "models": {
            "best": best | {"metrics": measured, "file": str(files.checkpoint)},
            "last": {"score": state.history[-1].get("val_f1"), "epoch": state.epoch, "file": str(files.last)},
        },
        "steps_left_out": state.num_skipped,
        "findings": findings,
    }
    utils.write_text(files.result, json.dumps(result, indent=1))
    is_whole = state.epoch == config.NUM_EPOCHS
    checkpoints.add_to_diary(
        config.TRAINED_MODELS_FOLDER / DIARY,
        {
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "model_name": config.MODEL_NAME,
            "configuration": files.checkpoint.stem,
            "best_f1": f"{state.best_f1:.4f}",
            "best_epoch": state.best_epoch,
            "epochs": f"{state.epoch}" if is_whole else f"{state.epoch} (stopped early)",
            "seconds": f"{state.seconds:.0f}",
            "processes": distributed.count(),
            "findings": len(findings),
            **checkpoints.describe_environment(selected["environment"]["device"]),
            "dataset": str(config.DATASET_FOLDER),
        },
    )
    return selected
