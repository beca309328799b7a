"""Keeps BEST_MODEL_PATH, which the other scripts load: a copy of the best of the runs that can be compared.

    lines = best_model.update(files, checkpoint, scores)     # at the end of a run; they say which run it is of

Runs can be compared if they were validated on the same images, with the same labels and classes, and chosen by the same
kind of F1. Of those, the one with the highest F1 is copied. A run that cannot be compared with the model that is there
takes its place, so that nobody goes on with a model of other data. Whenever the copy becomes one of another run, a line
says of which run it was, and why that changed; that run's own file stays.

Reads config, as a part of training.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import config
import utils
from dataset import locks
from evaluation import saved_scores
from evaluation.saved_scores import SavedScores
from evaluation.test_results import identify_checkpoint
from models import checkpoints
from trainer.run_files import RunFiles, are_other_files
from utils import InputError


class Validated(NamedTuple):
    """How a checkpoint was validated. Two can be compared if they agree in the images and the kind of F1."""

    f1: float  # -1: undefined
    fingerprint: str  # of the validation images, their labels and classes; "": not known, or F1 was not measured
    files_fingerprint: str  # of these image files; "": not known
    chosen_by: str  # which kind of F1 it is
    run: str  # "<model>/<configuration>"
    weights: str  # see `identify_checkpoint`

    def is_like(self, other: Validated) -> bool:
        """Whether the F1 of both can be compared."""
        if not self.fingerprint or (self.fingerprint, self.chosen_by) != (other.fingerprint, other.chosen_by):
            return False
        return not self.has_other_files(other)

    def has_other_files(self, other: Validated) -> bool:
        """Whether files under the same names were other pictures. Of older runs that is not known."""
        return are_other_files(self.files_fingerprint, other.files_fingerprint)


def update(
    files: RunFiles, checkpoint: Mapping[str, Any], scores: SavedScores | None, is_chosen: bool = False
) -> list[str]:
    """Copy the best run to BEST_MODEL_PATH: that of `files`, which has ended, or another one that is better.

    `checkpoint` is what the run selected, with thresholds, and `scores` are those that they were tuned on. If it
    `is_chosen`, or BEST_MODEL is "last", it is copied without a comparison. Returns lines that say what was done.
    """
    path, ended = config.BEST_MODEL_PATH, describe(files.checkpoint, checkpoint)._replace(run=files.run)
    is_compared = config.BEST_MODEL == "best" and not is_chosen
    with locks.hold(saved_scores.find_folder(path) / locks.LOCK):  # of runs that end together
        before = describe(path, checkpoints.read_sidecar(path) or {}) if path.is_file() else None
        rivals = find_rivals(files, ended) if is_compared else {}
        for file, rival in sorted(rivals.items(), key=lambda item: item[1].f1, reverse=True):
            if rival.f1 > ended.f1 and copy_rival(file, rival, before):
                return [
                    f"{path} is a copy of {rival.run}: on the same validation images its F1 is {rival.f1:.4f}, this "
                    f"run's {ended.f1:.4f}",
                    f"       this run is --MODEL_PATH {files.checkpoint}",
                    *explain_change(before, rival),
                ]
        saved_scores.save_with_scores(path, checkpoint, scores)
    reason = ""
    if rivals:
        reason = f", the highest F1 of {len(rivals) + 1} runs on the same validation images"
    elif is_compared and ended.fingerprint:
        reason = ", the only run so far on these validation images"
    why = "" if is_compared else "and this run was chosen among others" if is_chosen else "and BEST_MODEL is 'last'"
    return [f"{path} is a copy of it{reason}", *explain_change(before, ended, why)]


def describe(file: Path, metadata: Mapping[str, Any]) -> Validated:
    """How the checkpoint in `file`, with this `metadata`, was validated."""
    f1 = metadata.get("best_f1")
    return Validated(
        f1=-1.0 if f1 is None or math.isnan(f1) else f1,
        fingerprint="" if f1 is None else saved_scores.find_val_fingerprint(file, metadata),
        files_fingerprint=metadata.get("dataset", {}).get("val_files_fingerprint", ""),
        chosen_by=metadata.get("chosen_by", ""),
        run=metadata.get("run", ""),
        weights=identify_checkpoint(metadata)["weights"],
    )


def find_rivals(files: RunFiles, ended: Validated) -> dict[Path, Validated]:
    """The other runs of TRAINED_MODELS_FOLDER that have come to their end and can be compared with the `ended` one."""
    rivals = {}
    for sidecar in sorted(config.TRAINED_MODELS_FOLDER.glob("*/*.json")):
        file = sidecar.with_suffix(".pt")
        is_other = file not in (files.checkpoint, config.BEST_MODEL_PATH)
        metadata = checkpoints.read_sidecar(file) if is_other and file.is_file() else None
        # A run gets its thresholds at its end. The kind of F1 is asked first: for an older run, scores have to be read.
        if metadata is None or not metadata.get("thresholds") or metadata.get("chosen_by") != ended.chosen_by:
            continue
        rival = describe(file, metadata)._replace(run=f"{file.parent.name}/{file.stem}")
        if rival.is_like(ended):
            rivals[file] = rival
    return rivals


def copy_rival(file: Path, rival: Validated, before: Validated | None) -> bool:
    """Make BEST_MODEL_PATH a copy of another run's checkpoint. False where that has changed, or is damaged.

    A copy that is there stays as it is: its thresholds may have been tuned since.
    """
    if before and before.weights == rival.weights:
        return True
    try:
        checkpoint = checkpoints.load(file)
        scores = saved_scores.find_scores(file, checkpoint)
    except InputError as error:
        utils.warn(f"{error}; {config.BEST_MODEL_PATH} is no copy of it, though it would be the best")
        return False
    if identify_checkpoint(checkpoint)["weights"] != rival.weights or not checkpoint.get("thresholds"):
        return False  # it trains again, and looks for the best one at its end
    checkpoint["run"] = rival.run  # an older run did not say it
    saved_scores.save_with_scores(config.BEST_MODEL_PATH, checkpoint, scores)
    return True


def explain_change(before: Validated | None, now: Validated, why: str = "") -> list[str]:
    """A line that says which other run the copy was of `before`, and why it is of `now`; no line if it was of that.

    Without `why` the two were compared, or could not be.
    """
    if before is None or before.weights == now.weights or (before.run and before.run == now.run):
        return []
    if not why and not before.is_like(now):
        why = explain_unlike(before, now)
    elif not why:
        why = f"whose F1 on the same validation images is {before.f1:.4f}"
        if before.f1 > now.f1:
            why += ", but whose own checkpoint is gone, cannot be read, or trains again"
    return [f"       before, it was a copy of {before.run or 'a run that it did not name'}, {why}"]


def explain_unlike(before: Validated, ended: Validated) -> str:
    """Why the F1 of two runs cannot be compared, in words."""
    if not before.fingerprint or not ended.fingerprint:
        return "and one of the two has no F1 on validation images that are known"
    if before.fingerprint != ended.fingerprint or before.has_other_files(ended):
        return "which was validated on other images or labels"
    return f"which was chosen by another kind of F1 ({before.chosen_by or 'not known'})"
