"""What FOLDS runs give together, once each has trained: their mean, the scores of all images, and an averaged model.

    folds.finish(device)

Every image was predicted by the one run that did not train on it: these scores (out of fold) give F1, thresholds and
calibration that are honest for the whole data set. The weights of the runs are averaged into one model (Wortsman et al.
2022, "Model soups"): they begin at the same weights, pretrained and of the same SEED, and fine-tuning keeps such models
close enough that their mean is as good as they are. For a linear head on a frozen backbone it gives the mean of their
logits.

Reads config, as a part of training.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import config
import distributed
import metrics
import models_factory
import utils
from dataset.batches import as_float_targets
from dataset.table import Table
from evaluation import saved_scores, tuning
from evaluation.saved_scores import SavedScores
from models import checkpoints
from models.devices import make_autocast
from trainer import best_model, from_config, records, validation
from trainer.build import choose_activation, choose_metric, make_objective
from trainer.run_files import RunFiles
from trainer.training_data import Data, make_eval_loader, read_data
from utils import InputError

Checkpoint = dict[str, Any]


class Together(NamedTuple):
    """What the runs of all folds give."""

    checkpoint: Checkpoint  # of the averaged weights
    scores: SavedScores  # of all images, out of fold
    measured: dict[str, float]  # every metric of these scores, and F1 cross-fitted
    f1: NDArray[np.float64]  # (FOLDS,) of each fold, as its epoch was chosen by it
    mAP: NDArray[np.float64]  # (FOLDS,)


def finish(device: torch.device) -> None:
    """Put the finished runs of all folds together, save the averaged model, and say what came out.

    Raises InputError where a fold's checkpoint or scores are missing or do not belong together.
    """
    data = read_data(fold=1)
    files = records.name_files(data._replace(fold=0))
    with records.own(files):
        together = distributed.from_first(lambda: combine(data, files))
        seen = measure_seen(together.checkpoint, data.table, files.checkpoint, device)
        if not distributed.is_first():
            return
        utils.log_to(files.text_log)
        is_sound = not seen < together.measured["mAP"]
        lines = save(files, together) if is_sound else take_last_fold(data)
        print_result(files, together, seen, is_sound, lines)


def combine(data: Data, files: RunFiles) -> Together:
    """Read what the runs of all folds left, and make one model of them, with thresholds tuned out of fold."""
    runs = [records.name_files(data._replace(fold=fold)) for fold in range(1, config.FOLDS + 1)]
    found: list[Checkpoint] = []  # without their weights: only one model is kept in memory

    def read_states() -> Iterable[Mapping[str, Tensor]]:
        for run in runs:
            checkpoint = checkpoints.load(run.checkpoint)
            state = checkpoint.pop("model_state")
            found.append(checkpoint)
            yield state

    state = average_weights(read_states())
    scores = join_scores(data.table, runs, found)
    policy = from_config.choose_policy(len(data.table.classes))
    checkpoint = found[0] | {
        "model_state": state,
        "weights": "averaged over folds",
        "best_f1": None,  # no image is left that none of the runs has seen
        "epoch": None,
        "fold": 0,
        "fold_of": files.folder.name,
        "run": files.run,
        "metrics": {},
        "dataset": {"fingerprint": data.table.fingerprint(), "num_train": len(data.table), "num_val": 0},
        "seconds": sum(run["seconds"] for run in found),
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    scores = scores._replace(identity=saved_scores.identify(checkpoint))
    checkpoint |= tuning.tune_checkpoint(checkpoint, scores, policy)
    measured = validation.measure_scores(
        validation.Scores(scores.probabilities, as_float_targets(scores.targets).numpy(), 0.0)
    ).measured
    f1, mean_ap = (np.array(values) for values in zip(*map(read_measured, found), strict=True))
    checkpoint["folds"] = {"f1": f1.tolist(), "mAP": mean_ap.tolist(), "out_of_fold": measured}
    return Together(checkpoint, scores, measured, f1, mean_ap)


def read_measured(checkpoint: Mapping[str, Any]) -> tuple[float, float]:
    """The F1 of a fold's run and its mAP."""
    return checkpoint["best_f1"], checkpoint["metrics"]["mAP"]


def average_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every tensor over state dicts of one model, BatchNorm's statistics too; whole numbers of the first.

    Raises InputError if a state has other tensors than the first.
    """
    first: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    count = 0
    for state in states:
        first = first or dict(state)
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in first.items()}:
            raise InputError("the folds' models have different tensors: train them with the same constants")
        for name, value in state.items():
            if value.is_floating_point():
                totals[name] = value.double() + totals.get(name, 0.0)
        count += 1
    return {name: (totals[name] / count).to(value.dtype) if name in totals else value for name, value in first.items()}


def join_scores(table: Table, runs: list[RunFiles], found: list[Checkpoint]) -> SavedScores:
    """The scores of all images of `table`, in its order, each by the run that validated on it.

    `found` are the checkpoints of the `runs`. Raises InputError where scores are missing, or are not of their
    checkpoint, or where the folds are not the whole table.
    """
    probabilities = np.full(table.targets.shape, np.nan, dtype=np.float32)
    row_of = {path: row for row, path in enumerate(table.paths)}
    for run, checkpoint in zip(runs, found, strict=True):
        file = run.folder / saved_scores.SCORES_FILE
        scores = saved_scores.read_scores(file)
        rows = [row_of.get(path, -1) for path in scores.paths]
        if scores.identity != saved_scores.identify(checkpoint) or -1 in rows or scores.classes != table.classes:
            raise InputError(f"{file} is not of {run.checkpoint}: delete both, and the same command trains that fold")
        probabilities[rows] = scores.probabilities
    if np.isnan(probabilities).any():
        raise InputError(
            f"the {len(runs)} folds hold no scores of {table.paths[int(np.isnan(probabilities).argmax())]}"
        )
    return SavedScores(probabilities, table.targets, table.paths, table.classes)


def measure_seen(checkpoint: Checkpoint, table: Table, path: Path, device: torch.device) -> float:
    """The mAP of the averaged model on all images of `table`, which most of its runs have trained on.

    It says nothing of how good the model is. But where it is below the mAP out of fold, the runs went too far apart,
    and their mean is no model.
    """
    model = models_factory.restore_model(checkpoint, path).to(device)
    autocast, _ = make_autocast(from_config.choose_settings(device).precision, device)
    scores = validation.compute_scores(
        model,
        make_eval_loader(table, device),
        make_objective(table.targets).to(device),
        device,
        autocast,
        choose_activation(),
        "averaged model",
    )
    return float(np.nanmean(metrics.average_precision(scores.probabilities, scores.targets)))


def save(files: RunFiles, together: Together) -> list[str]:
    """Save the averaged model with thresholds, beside the folds' own. Returns what to say of BEST_MODEL_PATH."""
    files.folder.mkdir(parents=True, exist_ok=True)
    saved_scores.save_with_scores(files.checkpoint, together.checkpoint, together.scores)
    return best_model.update(files, together.checkpoint, together.scores)


def take_last_fold(data: Data) -> list[str]:
    """Copy the last fold's model to BEST_MODEL_PATH. Returns what to say of it."""
    files = records.name_files(data._replace(fold=config.FOLDS))
    scores = saved_scores.read_scores(files.folder / saved_scores.SCORES_FILE)
    return best_model.update(files, checkpoints.load(files.checkpoint), scores, is_chosen=True)


def print_result(files: RunFiles, together: Together, seen: float, is_sound: bool, lines: list[str]) -> None:
    """What the folds reached, what the averaged model is, and the `lines` about BEST_MODEL_PATH."""
    checkpoint, measured, metric = together.checkpoint, together.measured, choose_metric()
    kind = metric.removeprefix("f1_")
    if checkpoint["chosen_by"] != metric:
        kind += ", cross-fitted"
    utils.say(
        "",
        f"{config.FOLDS} folds, mean ± standard deviation: F1 {describe(together.f1)} ({kind}), mAP "
        f"{describe(together.mAP)}",
        f"all {len(together.scores.paths)} images, each predicted by the run that did not train on it: F1 "
        f"{measured[metric]:.4f} (cross-fitted {measured[f'{metric}_cross_fitted']:.4f}), mAP {measured['mAP']:.4f}, "
        f"ECE {measured['ECE']:.4f}, threshold {checkpoint['best_threshold']:.4f}",
    )
    if not is_sound:
        utils.warn(
            f"the average of the folds' weights is no model, and not saved: its mAP is {seen:.4f} on images of its "
            f"training, theirs {measured['mAP']:.4f} on images they did not see; begin with pretrained weights, or "
            f"train shorter. {config.BEST_MODEL_PATH} is the last fold's"
        )
        return
    utils.say(
        f"saved: {files.checkpoint}, the folds' weights averaged",
        *lines,
        "its own F1 was not measured on held-out images, for none are left; the folds' mean is what to quote",
        *tuning.describe_promise(checkpoint),
    )


def describe(values: NDArray[np.float64]) -> str:
    """Mean and sample standard deviation, as in the table of runs."""
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
