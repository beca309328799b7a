"""Keeps BEST_MODEL_PATH, which the other scripts load: a copy of the best of the runs that can be compared.

    lines = best_model.update(files, checkpoint, scores)     # at the end of a run; they say which run it is of

Runs can be compared if they were validated on the same images, with the same labels and classes, and chosen by the same
kind of F1. Of those, the one with the highest F1 is copied. A run that cannot be compared with the model that is there
takes its place, so that nobody goes on with a model of other data; that run's own file stays, and a line names it.

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
from trainer.run_files import RunFiles
from utils import InputError


class Validated(NamedTuple):
    """How a checkpoint was validated. Two can be compared if all except `f1` is the same, and known."""

    f1: float  # -1: it has none
    fingerprint: str  # of the validation images, their labels and classes; "": not known
    chosen_by: str  # which kind of F1 it is
    run: str  # "<model>/<configuration>"

    def is_like(self, other: Validated) -> bool:
        """Whether the F1 of both can be compared."""
        return bool(self.fingerprint) and self[1:3] == other[1:3] and min(self.f1, other.f1) >= 0


def update(
    files: RunFiles, checkpoint: Mapping[str, Any], scores: SavedScores | None, is_chosen: bool = False
) -> list[str]:
    """Copy the best run to BEST_MODEL_PATH: that of `files`, which has ended, or another one that is better.

    `checkpoint` is what the run selected, with thresholds, and `scores` are those that they were tuned on. If it
    `is_chosen`, or BEST_MODEL is "last", it is copied without a comparison. Returns lines that say what was done.
    """
    path, ended = config.BEST_MODEL_PATH, validate(files.checkpoint, checkpoint)._replace(run=files.run)
    with locks.hold(saved_scores.find_folder(path) / locks.LOCK):  # of runs that end together
        present = checkpoints.read_sidecar(path) if path.is_file() else None
        before = validate(path, present) if present else None
        is_compared = config.BEST_MODEL == "best" and not is_chosen
        rivals = find_rivals(files, ended) if is_compared else {}
        for file, rival in sorted(rivals.items(), key=lambda item: item[1].f1, reverse=True):
            if rival.f1 > ended.f1 and copy_rival(file, present):
                return [
                    f"{path} is a copy of {rival.run}: on the same validation images its F1 is {rival.f1:.4f}, this "
                    f"run's {ended.f1:.4f}",
                    f"       this run is --MODEL_PATH {files.checkpoint}",
                ]
        saved_scores.save_with_scores(path, checkpoint, scores)
    reason = ""
    if rivals:
        reason = f", the highest F1 of {len(rivals) + 1} runs on the same validation images"
    elif is_compared and ended.fingerprint:
        reason = ", the only run so far on these validation images"
    lines = [f"{path} is a copy of it{reason}"]
    if is_compared and before and before.run != ended.run and not before.is_like(ended):
        lines.append(f"       before, it was that of {before.run or 'an older run'}, {explain_unlike(before, ended)}")
    return lines


def validate(file: Path, metadata: Mapping[str, Any]) -> Validated:
    """How the checkpoint in `file`, with this `metadata`, was validated."""
    f1 = metadata.get("best_f1")
    return Validated(
        f1=-1.0 if f1 is None or math.isnan(f1) else float(f1),
        fingerprint=saved_scores.find_val_fingerprint(file, metadata),
        chosen_by=metadata.get("chosen_by", ""),
        run=metadata.get("run", ""),
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
        rival = validate(file, metadata)._replace(run=f"{file.parent.name}/{file.stem}")
        if rival.is_like(ended):
            rivals[file] = rival
    return rivals


def copy_rival(file: Path, present: Mapping[str, Any] | None) -> bool:
    """Make BEST_MODEL_PATH, now the model `present`, a copy of another run's checkpoint. False where that has changed.

    A copy that is there stays as it is: its thresholds may have been tuned since.
    """
    sidecar = checkpoints.read_sidecar(file) or {}
    expected = identify_checkpoint(sidecar)["weights"]
    if present and identify_checkpoint(present)["weights"] == expected:
        return True
    try:
        checkpoint = checkpoints.load(file)
        scores = saved_scores.read_scores(saved_scores.find_folder(file) / saved_scores.SCORES_FILE)
    except InputError as error:
        utils.warn(f"{error}; that run is left out where the best one is looked for")
        return False
    if identify_checkpoint(checkpoint)["weights"] != expected or not checkpoint.get("thresholds"):
        return False  # it trains again, and looks for the best one at its end
    is_its_own = scores.identity in ("", saved_scores.identify(checkpoint))
    saved_scores.save_with_scores(config.BEST_MODEL_PATH, checkpoint, scores if is_its_own else None)
    return True


def explain_unlike(before: Validated, ended: Validated) -> str:
    """Why the F1 of two runs cannot be compared, in words."""
    if min(before.f1, ended.f1) < 0:
        return "and one of the two has no F1 of its own"
    if before.fingerprint != ended.fingerprint:
        return "which was validated on other images or labels"
    return f"which was chosen by another kind of F1 ({before.chosen_by or 'not known'})"
