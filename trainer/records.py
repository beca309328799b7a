"""What a run of training.py leaves: its checkpoints, what it resumes from, its logs and its line in the diary.

Reads config, as a part of training.py. With several processes only rank 0 writes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

import config
import distributed
import overrides
import utils
from dataset import locks, whole_files
from dataset.batches import Batch
from dataset.files import hash_file
from dataset.image_sizes import as_size
from dataset.json_files import to_json
from evaluation import saved_scores, tuning
from models import checkpoints, licences, low_rank, published_weights
from models.backbones import MEANT_BEFORE, TIMM_NAMES
from models_factory import MultiLabelModel
from trainer import best_model, from_config, optimizers, random_state, run_files
from trainer.build import Trainer, choose_activation, choose_features, choose_metric, searches_head
from trainer.doctor import Doctor
from trainer.run import Run
from trainer.run_files import RunFiles
from trainer.run_state import RunState, read_state, require_alike
from trainer.step import TakenStep, save_batch
from trainer.training_data import Data
from trainer.validation import Validation, cross_fits, name_f1
from utils import InputError

START_ANEW = "delete it, or set RESUME = 'never'"
DIARY = "runs.csv"  # in TRAINED_MODELS_FOLDER: one line for each run


def name_files(data: Data) -> RunFiles:
    """The files of this configuration. The same constants (of the sections marked *) and data give the same names.

    MICRO_BATCH_SIZE names them, too, where it is set, and so does the fold of FOLDS.
    """
    constants = overrides.resolved(config)
    identity = {name: constants[name] for name in overrides.list_deciding(config)} | {"data": data.table.fingerprint()}
    identity["FEATURES"] = choose_features(config.FEATURES)
    # Before there was SPLIT_SEED, SEED drew the split, too: what means the same as then keeps its name. A search of the
    # head draws its folds by it.
    if config.SPLIT_SEED == config.SEED or not (data.val_is_drawn or searches_head(1)):
        del identity["SPLIT_SEED"]
    if not data.val_is_drawn:  # the same images may be divided in another way
        identity["val"] = _fingerprint_val(data)
    for name, value in overrides.AS_BEFORE.items():
        if identity[name] == value:
            del identity[name]
    if config.MODEL_NAME in MEANT_BEFORE:  # runs of the network that the name meant keep theirs
        identity["network"] = TIMM_NAMES[config.MODEL_NAME]
    weights = config.PRETRAINED_WEIGHTS
    if weights is not None:
        published_weights.require_known(weights)
    is_file = weights not in (None, "default") and not published_weights.is_published(weights)
    files = [
        *([weights] if is_file else []),  # best_model.pt may be another one after each run
        *config.TEACHER_PROBABILITIES,
        *config.TEACHER_CHECKPOINTS,
        *([config.CURRICULUM] if config.CURRICULUM else []),
        *([config.GCN_EMBEDDINGS] if config.HEAD == "gcn" and config.GCN_EMBEDDINGS else []),
    ]
    if files:
        identity["files"] = [_hash_input(Path(file)) for file in files]
    folder = config.TRAINED_MODELS_FOLDER / checkpoints.name_model(config.MODEL_NAME)
    name = run_files.name_configuration(constants, identity)
    if not data.fold:
        return RunFiles(folder / name)
    return RunFiles(folder / run_files.name_configuration(constants, identity | {"fold": data.fold}), fold_of=name)


def _fingerprint_val(data: Data) -> str:
    """The fingerprint of the validation images, as it can be computed of saved scores, too."""
    return replace(data.val, groups=None).fingerprint()


def _is_same_data(dataset: Mapping[str, Any], data: Data) -> bool:
    """Whether a run whose sidecar has this `dataset` saw the images and labels of `data`, divided in the same way.

    Where VAL_SPLIT draws the validation images, constants say which.
    """
    if dataset.get("fingerprint") != data.table.fingerprint() or _has_other_files(dataset, data):
        return False
    return data.val_is_drawn or dataset.get("val_fingerprint") == _fingerprint_val(data)


def _has_other_files(dataset: Mapping[str, Any], data: Data) -> bool:
    """Whether a run with this `dataset` saw image files of other sizes. Of older runs they are not known."""
    return run_files.are_other_files(dataset.get("files_fingerprint", ""), data.files_fingerprint)


def require_same_files(files: RunFiles, data: Data) -> None:
    """Raise InputError where the checkpoint of this configuration is of other image files under the same names.

    The new run would keep the old checkpoint, if that has a better F1.
    """
    sidecar = checkpoints.read_sidecar(files.checkpoint) if distributed.is_first() else None
    if sidecar and _has_other_files(sidecar.get("dataset", {}), data):
        raise InputError(
            f"{files.checkpoint} is of images with these names and labels, but other sizes in bytes: move it and its "
            "folder away, or set another TRAINED_MODELS_FOLDER"
        )


def _hash_input(path: Path) -> str:
    """The SHA-256 of a file that decides what is learned. Raises InputError if it cannot be read."""
    try:
        return hash_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {utils.explain(error)}") from error


def own(files: RunFiles) -> AbstractContextManager[None]:
    """Until the end of `with`, no other command may write these files. Raises InputError where one does."""
    return locks.own(files.folder) if distributed.is_first() else nullcontext()


def find_finished(files: RunFiles, data: Data) -> tuple[int, Path] | None:
    """The longest finished run that differs from this one in NUM_EPOCHS alone: its epochs, and its checkpoint."""
    pattern = re.sub(r"_ep\d+_(.*)_[0-9a-f]{8}$", r"_ep*_\1_*.json", files.folder.name)
    constants, found = overrides.resolved(config), []
    expected = {name: constants[name] for name in overrides.list_deciding(config) if name != "NUM_EPOCHS"}
    expected["FEATURES"] = choose_features(config.FEATURES)
    for path in sorted(files.folder.parent.glob(pattern)):
        run, sidecar = RunFiles(path.parent / path.name.removesuffix(".json")), checkpoints.read_sidecar(path)
        if sidecar is None or run.folder == files.folder or not run.result.is_file():
            continue
        theirs = overrides.AS_BEFORE | sidecar.get("config", {})
        theirs["FEATURES"] = choose_features(theirs["FEATURES"])
        is_same_data = _is_same_data(sidecar.get("dataset", {}), data)
        if is_same_data and all(theirs.get(name) == value for name, value in expected.items()):
            found.append((theirs["NUM_EPOCHS"], run.checkpoint))
    return max(found, default=None)


# ---- resuming ----


def resume(files: RunFiles, trainer: Trainer, data: Data) -> tuple[RunState, dict[str, Any] | None]:
    """Put the state of an interrupted run of this configuration back into `trainer`.

    Returns how far that run was and what this process goes on from: its random numbers (None where another number of
    processes was interrupted), its part of the epoch's loss, and what the doctor knows. A fresh state and None where
    there is nothing to resume. Raises InputError for a file of another model.
    """
    last = distributed.from_first(lambda: _load_last(files))
    if last is None:
        return RunState(cross_fits=cross_fits(len(data.val))), None
    expected = {"model_name": config.MODEL_NAME, "head": config.HEAD, "classes": list(data.table.classes)}
    for name, value in expected.items():
        if last[name] != value:
            raise InputError(f"{files.last} is of another {name}, {last[name]}: {START_ANEW}")
    _require_same_run(last, files, data)
    saved = last["training_state"]
    try:
        state = read_state(saved["state"])
        processes = saved["processes"]
        _check_processes(processes, trainer)
        trainer.model.load_state_dict(saved.get("unmerged", last["model_state"]))
        expected_state = trainer.state_dict()
        if not saved["engine"]["scaler"]:  # it ran where nothing was scaled, such as on a CPU
            expected_state["scaler"] = {}
        require_alike(saved["engine"], expected_state, "the optimizer's state")
        trainer.load_state_dict(saved["engine"])
        trainer.require_shapes()
        optimizers.lay_out_state(trainer.optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{files.last} does not fit this model ({str(error).splitlines()[0]}): {START_ANEW}"
        ) from error
    if state.best_epoch and not files.checkpoint.is_file():
        raise InputError(f"{files.last} goes on from epoch {state.epoch}, and {files.checkpoint} is gone: {START_ANEW}")
    if state.epoch > config.NUM_EPOCHS:
        raise InputError(
            f"{files.last} says that {state.epoch} epochs are done, and NUM_EPOCHS is {config.NUM_EPOCHS}: {START_ANEW}"
        )
    if len(processes) == distributed.count():
        return state, processes[distributed.rank()]
    if state.step:
        utils.warn(
            f"{len(processes)} process(es) were interrupted in the middle of an epoch and {distributed.count()} go on: "
            "the order stays; what dropout draws does not, and a small last step may join the one before"
        )
    loss_total = sum(process["loss_total"] for process in processes) if distributed.is_first() else 0.0
    return state, {"random": None, "loss_total": loss_total, "doctor": processes[0]["doctor"]}


def _require_same_run(last: dict[str, Any], files: RunFiles, data: Data) -> None:
    """Raise InputError if `last`, what an interrupted run left, is of other constants or data than this run."""
    constants, theirs = overrides.resolved(config), last.get("config", {})
    for name in overrides.list_deciding(config):
        if name == "SPLIT_SEED":
            expected, found = _find_split_seed(constants, data), _find_split_seed(theirs, data)
        elif name == "FEATURES":
            expected, found = (choose_features(values.get(name, "own")) for values in (constants, theirs))
        else:
            expected = constants[name]
            found = theirs.get(name, expected)  # the constant may be newer than the run
        if found != expected:
            raise InputError(f"{files.last} is of another run: its {name} is {found}, here {expected}: {START_ANEW}")
    if not _is_same_data(last.get("dataset", {}), data):
        raise InputError(
            f"{files.last} is of a run with other images or labels, or other ones in the val split: {START_ANEW}"
        )


def _find_split_seed(constants: dict[str, Any], data: Data) -> int | None:
    """What splits or folds were drawn with; None where none were. SEED drew them before there was SPLIT_SEED."""
    return constants.get("SPLIT_SEED", constants.get("SEED")) if data.val_is_drawn or searches_head(1) else None


def _check_processes(processes: Any, trainer: Trainer) -> None:
    """Raise an error unless `processes`, from a file, is what `save_last` collects of one or more processes."""
    before = random_state.get_random_state(trainer.device)
    expected = {"random": before | {"cuda": None}, "loss_total": 0.0, "doctor": Doctor().state_dict()}
    require_alike(processes, [expected] * max(1, len(processes)), "what its processes saved")
    for process in processes:
        try:
            random_state.set_random_state(process["random"], trainer.device)
        finally:
            random_state.set_random_state(before, trainer.device)


def _load_last(files: RunFiles) -> dict[str, Any] | None:
    """What an unfinished run left; None where there is none."""
    # Nobody else writes these files, so what was begun is of a run that was killed, maybe on another machine.
    for leftover in chain(files.folder.glob(".*.tmp"), files.folder.parent.glob(f".{files.folder.name}.*.tmp")):
        leftover.unlink(missing_ok=True)
    last = None if config.RESUME == "never" else _read_last(files)
    return None if last is None or last["training_state"]["state"]["finished"] else last


def is_finished(files: RunFiles) -> bool:
    """Whether a run of this configuration has come to its end, and left its checkpoint and scores."""

    def look() -> bool:
        made = [files.checkpoint, files.folder / saved_scores.SCORES_FILE]
        last = _read_last(files) if all(path.is_file() for path in made) else None
        return last is not None and last["training_state"]["state"]["finished"] is True

    return distributed.from_first(look)


def _read_last(files: RunFiles) -> dict[str, Any] | None:
    """What a run left to resume from, finished or not; None where there is none. Raises InputError if it is damaged."""
    if not files.last.is_file():
        return None
    try:
        last = checkpoints.load(files.last)
    except InputError as error:
        raise InputError(f"{error}: {START_ANEW}") from error
    saved = last.get("training_state")
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict) or "finished" not in saved["state"]:
        raise InputError(f"{files.last} holds no state to resume: {START_ANEW}")
    return last


def start_epoch(run: Run, epoch: int) -> None:
    """Let random numbers start where those of the epoch do, or where it was interrupted."""
    # every rank has a seed of its own: dropout differs between processes
    random_state.seed_everything(config.SEED + epoch + 1_000_003 * distributed.rank())
    if run.resumed and run.state.step:
        run.state.loss_total = run.resumed["loss_total"]
        if run.resumed["random"]:
            random_state.set_random_state(run.resumed["random"], run.trainer.device)


def save_last(run: Run) -> None:
    """Write what an interrupted run resumes from. All processes have to call it."""
    process = {
        "random": random_state.get_random_state(run.trainer.device),
        "loss_total": run.state.loss_total,
        "doctor": run.doctor.state_dict(),
    }
    processes = distributed.collect(process)
    if distributed.is_first():
        training_state = {"state": asdict(run.state), "engine": run.trainer.state_dict(), "processes": processes}
        if config.LORA_RANK:  # what the sum of weight and low-rank part was made of
            training_state["unmerged"] = run.trainer.model.state_dict()
        checkpoint = make_checkpoint(run, run.trainer.model, {}) | {"training_state": training_state}
        # The checkpoint comes last, since it says whether the run has finished: whoever kills a run in between kills
        # one that goes on.
        checkpoints.save_sidecar(run.files.last, checkpoint)
        checkpoints.save_alone(run.files.last, checkpoint)


class UnreadStep(NamedTuple):
    """A step of which nothing is known yet but that it was taken or left out."""

    taken: TakenStep
    step: int  # its number in the epoch, from 0
    num_images: int  # of all processes
    batch: Batch


def note_steps(run: Run, steps: list[UnreadStep], epoch: int) -> None:
    """Read what `steps` came to from the device, all at once, and add it to the run's state. Empties the list.

    Raises InputError as `note_left_out` does.
    """
    if not steps:
        return
    state = run.state
    losses, *flags = (torch.stack(values).tolist() for values in zip(*(step.taken for step in steps), strict=True))
    for step, loss, is_finite, overflowed in zip(steps, losses, *flags, strict=True):
        if is_finite:
            state.loss_total += loss * step.num_images
            state.num_images += step.num_images
            state.num_taken += 1
        elif overflowed:
            state.num_overflowed += 1
        else:
            note_left_out(run, step.batch, epoch, step.step)
    steps.clear()


def note_left_out(run: Run, batch: Batch, epoch: int, step: int) -> None:
    """Count a step whose gradient is not finite. Raises InputError at the NON_FINITE_LIMIT-th, and keeps its batch."""
    state = run.state
    state.num_skipped += 1
    state.num_left_out += 1
    utils.warn(f"epoch {epoch}, step {step + 1}: the gradient is not finite, the step is left out")
    if state.num_skipped >= config.NON_FINITE_LIMIT:
        path = run.files.bad_batch
        path = path.with_stem(f"{path.stem}_{distributed.rank()}")
        save_batch(path, batch.to(run.trainer.device), epoch, step)  # there the images may still have to be made
        raise InputError(
            f"{state.num_skipped} steps had a loss or gradient that is not finite; the last batch is in {path}: look "
            "at it, lower the rates, set CLIP_GRADIENT_NORM = 1.0, or MIXED_PRECISION = 'off'"
        )


# ---- results ----


def make_checkpoint(run: Run, model: MultiLabelModel, measured: dict[str, float]) -> dict[str, Any]:
    """`model` as it is, with everything that using it later takes, and where it comes from.

    Low-rank parts are merged: what is saved is a plain model.
    """
    data, state = run.data, run.state
    return {
        "model_state": low_rank.merge(model).state_dict(),
        "weights": "raw" if model is run.trainer.model else "averaged",
        "model_name": config.MODEL_NAME,
        "network": TIMM_NAMES.get(config.MODEL_NAME, config.MODEL_NAME),
        "head": config.HEAD,
        "head_options": run.trainer.head_options,
        "features": model.features,
        "activation": choose_activation(),
        "classes": list(data.table.classes),
        "image_size": as_size(config.IMAGE_SIZE).as_plain(),
        "resize_rule": config.RESIZE_RULE,
        "pretrained_licence": run.trainer.model.loaded.licence if run.trainer.model.loaded else licences.NO_WEIGHTS,
        "normalization": {name: (getattr(model, name) / 255).flatten().tolist() for name in ("mean", "std")},
        "best_threshold": state.best_threshold,
        "best_f1": state.best_f1,
        "chosen_by": name_f1(state.cross_fits),
        "epoch": state.best_epoch,
        "run": run.files.run,
        **({"fold": data.fold, "fold_of": run.files.fold_of} if data.fold else {}),
        "metrics": measured,
        "config": overrides.resolved(config),
        "dataset": {
            "fingerprint": data.table.fingerprint(),
            "num_train": len(data.train),
            "num_val": len(data.val),
            "val_fingerprint": _fingerprint_val(data),
            "files_fingerprint": data.files_fingerprint,
            "val_files_fingerprint": data.val_files_fingerprint,
        },
        "environment": checkpoints.describe_environment(str(run.trainer.device)),
        "processes": distributed.count(),
        "seconds": state.seconds + state.epoch_seconds,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def save_if_best(run: Run, model: MultiLabelModel, validated: Validation) -> None:
    """Keep `model` for its configuration unless an earlier run of the same one reached as high an F1.

    The scores that thresholds and calibration are tuned on are saved with it.
    """
    if not distributed.is_first():
        return
    checkpoint = make_checkpoint(run, model, validated.measured)
    if checkpoint["best_f1"] <= checkpoints.read_best_f1(run.files.checkpoint, checkpoint["chosen_by"]):
        return
    scores = saved_scores.SavedScores(
        probabilities=validated.scores.probabilities,
        targets=validated.scores.targets,
        paths=run.data.val.paths,
        classes=run.data.table.classes,
        identity=saved_scores.identify(checkpoint),
    )
    saved_scores.save_scores(run.files.folder / saved_scores.SCORES_FILE, *scores)
    checkpoints.save(run.files.checkpoint, checkpoint)


class Selected(NamedTuple):
    """The checkpoint of a run, with thresholds, and the scores that these were tuned on."""

    checkpoint: dict[str, Any]
    scores: saved_scores.SavedScores | None  # None: they are missing, and the thresholds stay as they were


def tune_selected(files: RunFiles) -> Selected:
    """The run's checkpoint with thresholds and calibration by today's THRESHOLD_* constants, as it is saved then.

    Beside it lie the scores they were tuned on, thresholds.npy and thresholds.csv.
    """
    selected = checkpoints.load(files.checkpoint)
    scores = saved_scores.find_scores(files.checkpoint, selected)
    if scores is None:
        # an earlier run's checkpoint stays, and its folder was deleted; or one was killed between the two files
        file = files.folder / saved_scores.SCORES_FILE
        utils.warn(f"{file} is missing or of another checkpoint: the thresholds of {files.checkpoint} stay as they are")
        return Selected(selected, None)
    policy = from_config.choose_policy(len(selected["classes"]))
    selected |= tuning.tune_checkpoint(selected, scores, policy) | {"run": files.run}  # an older run did not say it
    saved_scores.save_with_scores(files.checkpoint, selected, scores)
    return Selected(selected, scores)


def save_epoch(run: Run, model: MultiLabelModel, validated: Validation | None) -> None:
    """Add the epoch's record to the logs and, every SAVE_EVERY_N_EPOCHS, keep `model`, which was `validated` or not."""
    if not distributed.is_first():
        return
    state = run.state
    run_files.write_log(run.files.log, state.history)
    if config.SAVE_EVERY_N_EPOCHS and state.epoch % config.SAVE_EVERY_N_EPOCHS == 0:
        measured = {"epoch": state.epoch, "best_f1": None, "best_threshold": None}
        if validated:
            measured |= {"best_f1": validated.f1, "best_threshold": validated.threshold}
        checkpoints.save(run.files.name_epoch(state.epoch), make_checkpoint(run, model, {}) | measured)


def finish(run: Run) -> tuple[dict[str, Any], list[str]]:
    """Tune the selected checkpoint, bring BEST_MODEL_PATH up to date, write the run's result and its line in the diary.

    Returns the selected checkpoint, and lines that say which run BEST_MODEL_PATH is of. A fold leaves that file alone:
    the model of all folds is copied.
    """
    files, state, findings = run.files, run.state, [*run.doctor.findings.values()]
    selected, scores = tune_selected(files)
    lines = [] if run.data.fold else best_model.update(files, selected, scores)
    measured = selected["metrics"]
    best = {"score": selected["best_f1"], "epoch": selected["epoch"], "threshold": selected["best_threshold"]}
    result = {
        "done_flag": True,
        "model_name": config.MODEL_NAME,
        "metric": choose_metric(),
        "label_dict": dict(enumerate(run.data.table.classes)),
        "config": overrides.resolved(config),
        "train_log": str(files.text_log),
        "models": {
            "best": best | {"metrics": measured, "file": str(files.checkpoint)},
            "last": {"score": state.history[-1].get("val_f1"), "epoch": state.epoch, "file": str(files.last)},
        },
        "steps_left_out": sum(record["steps_left_out"] for record in state.history),
        "findings": findings,
    }
    whole_files.write_text(files.result, to_json(result, indent=1))
    files.stopped_early.unlink(missing_ok=True)  # of an earlier run of these constants
    is_whole = state.epoch == config.NUM_EPOCHS
    run_files.add_to_diary(
        config.TRAINED_MODELS_FOLDER / DIARY,
        {
            "finished": state.closed,
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
    return selected, lines
