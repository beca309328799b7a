"""Frozen, adapters or all? Climbs from the cheapest way of training to the dearest, inside the time that there is.

    climb(Space(arguments, script, {}), minutes=30)     # what `python search.py` does without a space

Each rung is a run of training.py, with constants over those of config.py and the command line. A rung is kept if the
95 % interval of its gain in mAP over the rung kept so far lies above 0, by a paired bootstrap on the validation images.
A run that would not end in the time left is stopped once its backbone has trained for an epoch: that is its trial.
The same command with more minutes goes on from there.

Writes LOCAL_ROOT/searches/ladder/: best.py (the winner as a recipe, with what was tried), and a log of each rung.
Reads config, as a part of search.py.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import config
import metrics
import thresholds
import utils
from evaluation import saved_scores
from limits import UNUSED_BY_SEARCH, UNUSED_WHILE_FROZEN
from metrics import Difference
from models import checkpoints
from trainer import best_model, ladder_report, records, search_trials
from trainer.build import choose_metric, count_steps, is_frozen
from trainer.interruption import Interruption
from trainer.ladder_report import Tried
from trainer.run_files import RunFiles
from trainer.run_state import RunState, read_state
from trainer.search_loop import Clock, Space, make_recipe_writer
from trainer.search_trials import Outcome, Why
from trainer.training_data import Data, note_files, read_data
from utils import InputError, Stopped

MINUTES_BETWEEN_SAVES = 1.0  # of a rung's run: what it has saved tells how long it will take


@dataclass(frozen=True)
class Rung:
    """A way of training."""

    name: str  # as sentences say it
    constants: Mapping[str, Any]  # over those of config.py and the command line
    builds_on: tuple[str, ...] = ()  # rungs: it takes over the constants of that which was kept last
    file: str = field(default="", kw_only=True)  # its recipe and log, without ending


FROZEN = {"FREEZE_BACKBONE_AT_START": True, "UNFREEZE_BACKBONE_EPOCH": 0, "LORA_RANK": 0}
STEPS = {"HEAD_FIT": "steps", "NUM_EPOCHS": 5, "FROZEN_FEATURE_VIEWS": 1, "SCHEDULE": "cosine", "USE_POS_WEIGHT": False}
# As recipes/frozen_features.py. Where its search does not apply, five epochs of steps, as measured before there was one
SEARCHED_PROBE = FROZEN | {"HEAD": "linear", "HEAD_FIT": "search", "NUM_EPOCHS": 1, "USE_POS_WEIGHT": False}
SEARCHED_PROBE |= {"WARMUP_EPOCHS": 0}
STEPPED_PROBE = FROZEN | STEPS | {"HEAD": "linear_bn", "USE_DIFFERENTIAL_LR": True, "HEAD_BASE_LR": 1e-2}
# docs/measured.md, ml_decoder: with the loss of its authors (Ridnik et al. 2023)
ML_DECODER = FROZEN | STEPS | {"HEAD": "ml_decoder", "FEATURES": "auto", "USE_DIFFERENTIAL_LR": True}
ML_DECODER |= {"HEAD_BASE_LR": 3e-4}
# As recipes/coco18_efficientnet_lite0.py: the head first, for one epoch, so that its random start does not spoil the
# backbone (Kumar et al. 2022)
UNFROZEN = {
    "FREEZE_BACKBONE_AT_START": True, "UNFREEZE_BACKBONE_EPOCH": 2, "KEEP_BACKBONE_STATISTICS": True,
    "USE_DIFFERENTIAL_LR": True, "SCHEDULE": "cosine", "IMAGE_CACHE": "memory",
}  # fmt: skip
HEADS = ("the probe", "ML-Decoder")
# A rung that can make no use of these leaves them out, though you set them; what builds on its head has them again.
LEFT_OUT = (UNUSED_WHILE_FROZEN | UNUSED_BY_SEARCH).keys() - {"LORA_RANK", "LOSS"} | {"WARMUP_EPOCHS"}


def list_rungs() -> list[Rung]:
    """The rungs, from the cheapest to the dearest."""
    is_searched = (
        config.LOSS == "bce_with_logits"
        and config.LABELS_PER_IMAGE == "any"
        and not (config.ENTRY_WEIGHTS or config.TEACHER_CHECKPOINTS)
    )
    probe = SEARCHED_PROBE if is_searched else STEPPED_PROBE
    if config.HEAD == "kernel":  # only a search finds it; beside the weaker linear head, fine-tuning would seem to gain
        probe = probe | {"HEAD": "kernel"}
    loss = {"LOSS": "asymmetric"} if config.LOSS == "bce_with_logits" and config.LABELS_PER_IMAGE == "any" else {}
    frozen, searched = (
        {name: value for name, value in unused.items() if getattr(config, name) != value}
        for unused in (UNUSED_WHILE_FROZEN, UNUSED_WHILE_FROZEN | UNUSED_BY_SEARCH)
    )
    return [
        Rung("the probe", probe | (searched if is_searched else frozen), file="probe"),
        Rung("ML-Decoder", ML_DECODER | frozen | loss, file="ml_decoder"),
        Rung(
            "adapters", UNFROZEN | {"LORA_RANK": 8, "NUM_EPOCHS": 5, "BACKBONE_BASE_LR": 2e-3}, HEADS, file="adapters"
        ),
        Rung("all weights", UNFROZEN | {"NUM_EPOCHS": 8, "BACKBONE_BASE_LR": 2e-4}, HEADS, file="all_weights"),
    ]


def make_constants(rung: Rung, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The constants of a rung, over those of the one that it builds on: of `kept`, the best one last."""
    base = next((kept[name] for name in reversed(kept) if name in rung.builds_on), {})
    constants = {**{name: value for name, value in base.items() if name not in LEFT_OUT}, **rung.constants}
    if constants.get("HEAD") == "kernel" and constants["UNFREEZE_BACKBONE_EPOCH"]:
        constants["HEAD"] = "linear"  # a kernel head compares with features that change as the backbone trains
    return constants


# ---- how long a rung takes ----


class Estimate(NamedTuple):
    """Seconds of a run, by the steps that it has taken."""

    whole: float  # from its first epoch to its last
    left: float
    left_of_trial: float  # until the first epoch that trains the backbone has ended; 0: it has


def estimate(state: RunState, steps: Sequence[int], frozen: Sequence[bool]) -> Estimate | None:
    """How long a run takes that is as far as `state`, with so many `steps` in each epoch, and the backbone `frozen`.

    A step takes as long as those before it that were of its kind, frozen or not. None while none of a kind that is
    still to come has been taken.
    """
    seconds: dict[bool, float] = defaultdict(float)
    taken: dict[bool, int] = defaultdict(int)
    for record in state.history:
        seconds[record["frozen"]] += record["seconds"] - record["preparation_seconds"]
        taken[record["frozen"]] += record["steps"]
    if 0 < state.step < steps[state.epoch]:  # a whole epoch that is not closed yet has seconds of its preparation
        seconds[frozen[state.epoch]] += state.epoch_seconds
        taken[frozen[state.epoch]] += state.step
    trial = frozen.index(False) if False in frozen else len(frozen) - 1
    left = left_of_trial = 0.0
    for epoch in range(state.epoch, len(steps)):
        num_steps = steps[epoch] - (state.step if epoch == state.epoch else 0)
        if num_steps <= 0:
            continue
        if not taken[frozen[epoch]]:
            return None
        left += num_steps * seconds[frozen[epoch]] / taken[frozen[epoch]]
        if epoch <= trial:
            left_of_trial = left
    return Estimate(state.seconds + state.epoch_seconds + left, left, left_of_trial)


def must_stop(estimated: Estimate | None, seconds_left: float) -> bool:
    """Whether a run is stopped: it would not end in time, and its trial has ended or would not end in time either."""
    if seconds_left <= 0:
        return True
    if estimated is None or estimated.left <= seconds_left:
        return False
    return not 0 < estimated.left_of_trial <= seconds_left


class Watched:
    """The run of a rung, as what it saved tells."""

    def __init__(self, files: RunFiles, num_train: int) -> None:
        """To be called while config is that of the rung."""
        epochs = range(1, config.NUM_EPOCHS + 1)
        self.files = files
        self.steps, self.frozen = [count_steps(num_train, epoch) for epoch in epochs], [is_frozen(e) for e in epochs]
        self.state: RunState | None = None
        self._seen = 0.0 if config.RESUME == "auto" else self._find_time()  # what an earlier run left is not its own

    def _find_time(self) -> float:
        with suppress(OSError):
            return self.files.last.stat().st_mtime
        return 0.0

    def look(self) -> Estimate | None:
        """How long the run takes; None while that cannot be told."""
        changed = self._find_time()
        if changed != self._seen:
            with suppress(InputError, ValueError, KeyError, TypeError):  # the next look is as good
                self.state = read_state(checkpoints.load(self.files.last)["training_state"]["state"])
                self._seen = changed
        return estimate(self.state, self.steps, self.frozen) if self.state else None

    @property
    def seconds(self) -> float:
        """That the run took so far, in all commands."""
        return self.state.seconds + self.state.epoch_seconds if self.state else 0.0


# ---- whether a rung is better ----


class Comparison(NamedTuple):
    """Run b beside run a, on the validation images that both have scores of."""

    num_images: int
    measured: dict[str, float]  # of b
    differences: dict[str, Difference]  # of b - a


def compare_runs(a: RunFiles, b: RunFiles) -> Comparison:
    """Compare two runs image by image, each at the threshold with its best weighted F1 on these images.

    Raises InputError where they have other classes, or no image in common.
    """
    scores_a, scores_b = (saved_scores.read_scores(files.folder / saved_scores.SCORES_FILE) for files in (a, b))
    if scores_a.classes != scores_b.classes:
        raise InputError(f"{a.folder} and {b.folder} are runs with other classes: they cannot be compared")
    row_of = {path: row for row, path in enumerate(scores_a.paths)}
    rows_b = [row for row, path in enumerate(scores_b.paths) if path in row_of]
    if not rows_b:
        raise InputError(f"{a.folder} and {b.folder} were not validated on the same images: they cannot be compared")
    rows_a = [row_of[scores_b.paths[row]] for row in rows_b]
    targets = scores_b.targets[rows_b]
    probabilities = scores_a.probabilities[rows_a], scores_b.probabilities[rows_b]
    at_a, at_b = (thresholds.tune_global(each, targets) for each in probabilities)
    limits = (1, 1) if config.LABELS_PER_IMAGE == "one" else (0, 0)
    differences = metrics.compare(*probabilities, targets, at_a, at_b, min_labels=limits[0], max_labels=limits[1])
    measured = metrics.measure(probabilities[1], targets, at_b, *limits)
    return Comparison(len(rows_b), measured, differences)


# ---- the ladder ----


@dataclass
class Ladder:
    """What was tried so far, and what was kept."""

    space: Space
    folder: Path
    data: Data
    clock: Clock
    interruption: Interruption
    tried: list[Tried] = field(default_factory=list)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)  # the constants of the rungs kept, the best one last
    best: RunFiles | None = None

    def take(self, rung: Rung) -> None:
        """Run a rung as far as the time allows, and keep it if it is better."""
        constants = make_constants(rung, self.kept)
        if self.clock.left <= 0 and self.tried:
            self.tried.append(Tried(rung.name, 0.0, reason="no time was left"))
            return
        utils.say(f"{rung.name}: python training.py {self.folder / f'{rung.file}.py'}")
        recipe, start = self.folder / f"{rung.file}.py", time.monotonic()
        try:
            with self.space.choose(constants | {"SAVE_EVERY_MINUTES": MINUTES_BETWEEN_SAVES}, recipe):
                # this rung may hold images back
                data = note_files(read_data()) if self.data.cross_validates else self.data
                files = records.name_files(data)
                records.require_same_files(files, data)
                watched = Watched(files, len(data.train))
                is_finished = config.RESUME == "auto" and files.result.is_file()
        except InputError as error:
            self.tried.append(Tried(rung.name, 0.0, reason=f"it cannot run: {error}"))
            return
        estimated = watched.look()
        if is_finished:
            outcome = Outcome("complete")
        elif must_stop(estimated, self.clock.left) and self.clock.left > 0:  # what an earlier command saved says so
            outcome = Outcome("interrupted")
        else:
            outcome = search_trials.run(recipe, recipe.with_suffix(".log"), "mAP", self._make_watch(watched))
            estimated = watched.look()
        minutes = max(time.monotonic() - start, watched.seconds) / 60
        tried = Tried(rung.name, minutes, reason=outcome.reason if outcome.state == "failed" else "")
        if outcome.state == "interrupted":
            tried = tried._replace(is_whole=False, whole_minutes=estimated.whole / 60 if estimated else None)
        if outcome.state != "failed" and (files.folder / saved_scores.SCORES_FILE).is_file():
            tried = self._judge(tried, files, constants)
        self.tried.append(tried)
        utils.say(ladder_report.describe_rung(tried))

    def _make_watch(self, watched: Watched) -> Any:
        def watch(epoch: int | None, figure: float | None) -> Why | None:
            if self.interruption.came or must_stop(watched.look(), self.clock.left):
                return Why.INTERRUPTED
            return None

        return watch

    def _judge(self, tried: Tried, files: RunFiles, constants: dict[str, Any]) -> Tried:
        """Keep the run if it is the first, or better than the one kept so far."""
        found = compare_runs(self.best or files, files)
        tried = tried._replace(
            num_images=found.num_images, mAP=found.measured["mAP"], f1=found.measured[choose_metric()], is_kept=True
        )
        if self.best:
            gain = found.differences["mAP"]
            against = next(reversed(self.kept))
            is_kept = bool(gain.low > 0)
            tried = tried._replace(
                against=against, gain=gain, f1_gain=found.differences[choose_metric()], is_kept=is_kept
            )
        if tried.is_kept:
            self.kept[tried.name], self.best = constants, files
        return tried


def climb(space: Space, minutes: float) -> None:
    """Try the rungs one after the other until the time is over; then copy the best model to BEST_MODEL_PATH.

    Raises InputError where not even the first rung left a model, and Stopped after a signal.
    """
    folder = config.LOCAL_ROOT / "searches" / "ladder"
    with Interruption("the same command goes on with the search") as interruption, interruption.delayed():
        ladder = Ladder(space, folder, note_files(read_data()), Clock(minutes), interruption)
        for rung in list_rungs():
            if interruption.came:
                raise Stopped("the same command goes on with the search")
            ladder.take(rung)
            if ladder.best is None:
                raise InputError(explain_nothing(ladder.tried[-1], minutes, folder / f"{rung.file}.log"))
        if interruption.came:
            raise Stopped("the same command goes on with the search")
        finish(ladder)


def explain_nothing(tried: Tried, minutes: float, log: Path) -> str:
    """Why there is no model, in one line."""
    if tried.reason:
        return f"{tried.name}: {tried.reason} ({log})"
    takes = f", which takes about {tried.whole_minutes:.0f} minutes" if tried.whole_minutes else ""
    return (
        f"SEARCH_MINUTES {minutes:g} are too few for {tried.name}{takes}: the same command with more of them goes on "
        "from there"
    )


def finish(ladder: Ladder) -> None:
    """Copy the winner to BEST_MODEL_PATH, write it as a recipe, and say what came of each rung."""
    assert ladder.best is not None
    winner = next(reversed(ladder.kept))
    lines = ladder_report.describe(ladder.tried)
    draft = ladder.folder / "winner.py"
    try:
        with ladder.space.choose(ladder.kept[winner], draft):
            selected, scores = records.tune_selected(ladder.best)
            copied = best_model.update(ladder.best, selected, scores, is_chosen=True)
    finally:
        draft.unlink(missing_ok=True)
    recipe = ladder.folder / "best.py"
    title = f"{winner[0].upper()}{winner[1:]}: the rung that python search.py kept."
    make_recipe_writer(ladder.space)(ladder.kept[winner], recipe, "\n".join([title, "", *ladder_report.wrap(lines)]))
    utils.say("", *lines, f"saved: {ladder.best.checkpoint}", f"       {recipe}", *copied)
