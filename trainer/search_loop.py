"""The search of search.py: tries the constants of a space until the time is over, then writes the best as a recipe.

    search(Space(arguments, script, varied), Budget(minutes=10, trials=0), "best_f1")

Reads config, as a part of search.py. Where the backbone stays frozen and only heads differ, trainer/search_features.py
runs the trials, many at once; else each is a run of training.py (trainer/search_trials.py).
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import config
import dataset_readers
import limits
import overrides
import utils
from constants.recipes import write_line
from constants.spaces import Varied
from dataset.whole_files import write_text
from trainer import search_report, search_trials
from trainer.interruption import Interruption
from trainer.search_study import Trial, Trials
from trainer.search_trials import Outcome, Why
from utils import InputError, Stopped

MOST_FAILURES = 10  # one after the other: the next would fail, too
MOST_REPEATS = 30  # draws, one after the other, of what was tried before: hardly anything is left
MOST_AT_ONCE = 64  # trials on kept features that are drawn before any of them is told
FIRST_AT_ONCE = 16
SHARE_OF_TIME = 1 / 4  # of what is left, that trials drawn together may take: those after them know what they reached
HEADS_VARY = {  # trials that differ in these alone can be heads on kept features
    "HEAD", "LOSS", "HEAD_BASE_LR", "WEIGHT_DECAY", "USE_POS_WEIGHT", "POS_WEIGHT_CAP", "LABEL_SMOOTHING", "NUM_EPOCHS",
    "TRAIN_BATCH_SIZE", "FOCAL_GAMMA", "FOCAL_ALPHA", "ASL_GAMMA_NEGATIVE", "ASL_GAMMA_POSITIVE", "ASL_CLIP",
    "ASL_FOCUSING_GRADIENT",
}  # fmt: skip
HEADS_NEED: dict[str, tuple[Any, ...]] = {  # and what such heads are trained with
    "HEAD_FIT": ("steps",),
    "HEAD": ("linear", "linear_bn"),
    "LOSS": ("bce_with_logits", "focal", "asymmetric", "hill", "splc", "zlpr"),
    "SCHEDULE": ("cosine", "multistep"),
    "OPTIMIZER": ("adam",),
    "USE_DIFFERENTIAL_LR": (True,),
    "DECAY_NORMS_AND_BIASES": (True,),
    "LOSS_REDUCTION": ("mean",),
    "LABELS_PER_IMAGE": ("any",),
    "ENTRY_WEIGHTS": ((),),
    "USE_PRIOR_BIAS": (False,),
    "EMA_DECAY": (0.0,),
    "SAM_RHO": (0.0,),
    "CLIP_GRADIENT_NORM": (0.0,),
    "MICRO_BATCH_SIZE": (0,),
    "MIXUP_ALPHA": (0.0,),
    "CUTMIX_ALPHA": (0.0,),
    "MULTI_SCALE_SIZES": ((),),
    "TEACHER_PROBABILITIES": ((),),
    "TEACHER_CHECKPOINTS": ((),),
    "CURRICULUM": (None,),
    "EARLY_STOPPING_ENABLED": (False,),
    "ABSENT_MEANS": ("absent",),
}
UNEQUAL_EPOCHS = {"NUM_EPOCHS", "UNFREEZE_BACKBONE_EPOCH"}  # while they vary, the same epoch means different things


class Budget(NamedTuple):
    """How long a search goes on."""

    minutes: float  # of this process
    trials: int = 0  # of the search, with those of earlier processes; 0: any number


class Space(NamedTuple):
    """What a search tries."""

    arguments: list[str]  # of search.py: the space among them
    script: ModuleType  # search.py, whose constants may stand among the arguments
    varied: Mapping[str, Varied]

    @property
    def name(self) -> str:
        """That of the file in which the first constant varies, without its ending."""
        first = next(iter(self.varied.values()))
        return Path(first.where.rpartition(":")[0]).stem

    @contextmanager
    def choose(self, values: Mapping[str, Any], recipe: Path) -> Iterator[None]:
        """Within `with`, config is that of a trial with these `values`; `recipe` gets what training.py needs for it.

        Raises InputError where the constants contradict each other.
        """
        before = dict(vars(config))
        try:
            write_text(recipe, "".join(write_line(name, value) for name, value in values.items()))
            overrides.apply([*self.arguments, str(recipe)], config, self.script)
            write_text(recipe, overrides.write_changes(config, always=values))
            yield
        finally:
            config.__dict__.clear()
            config.__dict__.update(before)

    def list_fixed(self) -> dict[str, Any]:
        """The constants that decide what is learned and do not vary."""
        fixed = {name: vars(config)[name] for name in overrides.list_deciding(config) if name not in self.varied}
        if not fixed.get("MICRO_BATCH_SIZE"):  # a search that began before this was among them goes on
            fixed.pop("MICRO_BATCH_SIZE", None)
        return fixed


class Clock:
    """How much of the time is left."""

    def __init__(self, minutes: float) -> None:
        self._start, self.seconds = time.monotonic(), 60 * minutes

    @property
    def left(self) -> float:
        """Seconds; 0 or less when the time is over."""
        return self.seconds - (time.monotonic() - self._start)


def search(space: Space, budget: Budget, metric: str) -> None:
    """Try constants until the budget is spent, nothing new is left or a signal came; then write and print the result.

    Raises InputError where no trial came to its end, and Stopped after a signal.
    """
    clock = Clock(budget.minutes)
    folder = config.LOCAL_ROOT / "searches" / space.name
    trials = Trials(folder, space.varied, metric, space.list_fixed(), config.SEED)
    reason = explain_runs(space.varied)
    if tried := [tried for tried in trials.list_tried() if tried.state != "waiting"]:
        utils.say(f"{folder}: goes on after {len(tried)} trials")
    if reason:
        utils.say(f"each trial is a run of training.py: {reason}")
    else:
        utils.say("the backbone stays frozen: heads train on features that are kept, many at once")
    with Interruption("the same command goes on with the search") as interruption, interruption.delayed():
        loop = Loop(space, trials, clock, budget, interruption)
        ended = loop.run_trainings() if reason else loop.run_heads()
    is_over = search_report.report(trials, ended, is_trained=bool(reason), write_recipe=make_recipe_writer(space))
    if interruption.came:
        raise Stopped("the same command goes on with the search")
    if not is_over:
        raise InputError(f"no trial came to its end: {loop.last_reason or ended}")


def make_recipe_writer(space: Space) -> Callable[[Mapping[str, Any], Path, str], None]:
    """A function `write(values, path, words)`: a trial's constants as a recipe, with `words` on top."""

    def write(values: Mapping[str, Any], path: Path, words: str) -> None:
        draft = path.with_name(f".{path.name}")
        try:
            with space.choose(values, draft):
                text = draft.read_text(encoding="utf-8")
        finally:
            draft.unlink(missing_ok=True)
        docstring = words.replace("\\", "\\\\").replace('"""', "'''")
        whole = f'"""{docstring}\n"""\n\n{text}'
        ast.parse(whole)
        write_text(path, whole)

    return write


def list_values(varied: Mapping[str, Varied], name: str) -> tuple[Any, ...]:
    """The values that the constant `name` can have in a trial."""
    return varied[name].values if name in varied else (vars(config)[name],)


def explain_runs(varied: Mapping[str, Varied]) -> str:
    """Why each trial has to be a run of training.py; "" where heads can be trained at once on kept features."""

    others = [name for name in varied if name not in HEADS_VARY]
    if others:
        return f"{', '.join(others)} {'varies' if len(others) == 1 else 'vary'}"
    last_frozen = (
        config.UNFREEZE_BACKBONE_EPOCH - 1 if config.UNFREEZE_BACKBONE_EPOCH else max(list_values(varied, "NUM_EPOCHS"))
    )
    if not config.FREEZE_BACKBONE_AT_START or last_frozen < max(list_values(varied, "NUM_EPOCHS")):
        return "the backbone trains (UNFREEZE_BACKBONE_EPOCH 0 keeps it frozen)"
    if not config.FROZEN_FEATURE_VIEWS:
        return "FROZEN_FEATURE_VIEWS is 0"
    for name, allowed in HEADS_NEED.items():
        for value in list_values(varied, name):
            if value not in allowed:
                return f"{name} is {value}"
    if config.SCHEDULE == "cosine" and config.WARMUP_EPOCHS:
        return f"WARMUP_EPOCHS is {config.WARMUP_EPOCHS}"
    if config.SCHEDULE == "multistep" and config.LR_MILESTONES:
        return "SCHEDULE is multistep, with LR_MILESTONES (with SCHEDULE cosine many heads train at once)"
    return ""


class Loop:
    """Asks for trials and tells what came of them, until there is a reason to end."""

    def __init__(self, space: Space, trials: Trials, clock: Clock, budget: Budget, interruption: Interruption) -> None:
        self.space, self.trials, self.clock, self.budget = space, trials, clock, budget
        self.interruption = interruption
        self.failures = self.repeats = 0  # one after the other
        self.last_reason = ""

    def find_end(self) -> str | None:
        """Why no further trial begins; None: one does."""
        if self.interruption.came:
            return "a signal came"
        if self.clock.left <= 0:
            return f"{self.budget.minutes:g} minutes are over"
        if self.failures >= MOST_FAILURES:
            return f"{self.failures} trials failed one after the other: {self.last_reason}"
        if self.repeats >= MOST_REPEATS:
            return "what is drawn was tried before"
        if not self.may_begin_another():
            return f"there are {self.budget.trials} trials"
        return None

    def may_begin_another(self) -> bool:
        """Whether there are fewer trials than there may be."""
        return not self.budget.trials or self.count_tried() < self.budget.trials

    def count_tried(self) -> int:
        """The trials that have ended or are under way, each set of constants once."""
        return sum(
            tried.state in ("complete", "pruned", "failed", "running", "killed") for tried in self.trials.list_tried()
        )

    def begin(self, trial: Trial) -> str | None:
        """Prepare the trial's recipe. Why it need not run, where it was tried before or cannot be; None: it runs."""
        if earlier := self.trials.find_same(trial):
            trial.repeat(earlier)
            self.repeats += 1
            return "repeated"
        self.repeats = 0
        try:
            with self.space.choose(trial.values, self.trials.name_recipe(trial.number)):
                reason = self.explain_other_images()
        except InputError as error:
            reason = str(error)
        if not reason:
            return None
        self.end(trial, Outcome("failed", reason=reason), 0.0)
        return "failed"

    def end(self, trial: Trial, outcome: Outcome, seconds: float) -> None:
        """Tell what came of a trial, and print it."""
        if outcome.state == "complete" and (reason := self.explain_other_dataset(outcome)):
            outcome = Outcome("failed", reason=reason, run=outcome.run)
        best = max((tried.figure for tried in self.trials.list_tried() if tried.figure is not None), default=None)
        trial.tell(outcome, seconds)
        if outcome.state == "failed":
            self.failures, self.last_reason = self.failures + 1, outcome.reason
        elif outcome.state in ("complete", "pruned"):
            self.failures = 0
        utils.say(describe_trial(trial, outcome, seconds, self.trials.metric, best))

    def explain_other_images(self) -> str:
        """Why a trial with the constants of config would be measured on other images than an earlier one; "" if not.

        Raises InputError where nothing says which format the data set is in.
        """
        if not {"HEAD_FIT", "UNFREEZE_BACKBONE_EPOCH"} & self.space.varied.keys():
            return ""
        measured = [tried for tried in self.trials.list_tried() if tried.state == "complete" and tried.val_dataset]
        if not measured or dataset_readers.has_split(config.DATASET_FOLDER, config.DATASET_FORMAT, "val"):
            return ""
        first = SimpleNamespace(**(vars(config) | measured[0].values))
        if limits.validates_on_all(first) == limits.validates_on_all(config):
            return ""
        return describe_other_images(measured[0].number)

    def explain_other_dataset(self, outcome: Outcome) -> str:
        """Why the figure cannot be compared with that of an earlier trial; "" where it can.

        Most such trials do not begin: `explain_other_images`. One may end while this trial runs, in another process.
        """
        for tried in self.trials.list_tried():
            if tried.state != "complete":
                continue
            if differ(tried.dataset, outcome.dataset):
                return f"it saw other images or labels than trial {tried.number}: move the folder of the search away"
            if tried.val_dataset and outcome.val_dataset and tried.val_dataset != outcome.val_dataset:
                return describe_other_images(tried.number)
        return ""

    # ---- runs of training.py ----

    def run_trainings(self) -> str:
        """One run after the other. Returns why it ended."""
        prunes = not UNEQUAL_EPOCHS & self.space.varied.keys()
        while (ended := self.find_end()) is None:
            usual = self.trials.estimate_seconds()
            if usual is not None and usual > self.clock.left:
                return f"a trial takes {utils.format_duration(usual)}, and {self._describe_left()} are left"
            with self.trials.ask() as trial:
                if self.begin(trial):
                    continue

                def watch(epoch: int | None, figure: float | None, trial: Trial = trial) -> Why | None:
                    if epoch is not None and figure is not None and prunes and trial.is_hopeless(epoch, figure):
                        return Why.PRUNED
                    return Why.INTERRUPTED if self.interruption.came or self.clock.left <= 0 else None

                start = time.monotonic()
                recipe = self.trials.name_recipe(trial.number)
                outcome = search_trials.run(recipe, recipe.with_suffix(".log"), self.trials.metric, watch)
                self.end(trial, outcome, time.monotonic() - start)
        return ended

    # ---- heads on kept features ----

    def run_heads(self) -> str:
        """Many heads at once, on features that are computed once. Returns why it ended."""
        from trainer import search_features  # torch takes seconds to import, and half a gigabyte; runs have their own

        features = search_features.read_features(list_values(self.space.varied, "HEAD"))
        seconds_each: float | None = None
        while (ended := self.find_end()) is None:
            num_trials = FIRST_AT_ONCE
            if seconds_each is not None:
                if seconds_each > self.clock.left:
                    return f"a trial takes {seconds_each:.1f} s, and {self._describe_left()} are left"
                num_trials = min(max(int(self.clock.left * SHARE_OF_TIME / seconds_each), 1), MOST_AT_ONCE)
            with ExitStack() as stack:
                ways: list[tuple[Trial, Any]] = []
                while len(ways) < num_trials and self.failures < MOST_FAILURES and self.repeats < MOST_REPEATS:
                    if not self.may_begin_another():  # one that failed at its beginning counts, too
                        break
                    trial = stack.enter_context(self.trials.ask())
                    if self.begin(trial):
                        continue
                    with self.space.choose(trial.values, self.trials.name_recipe(trial.number)):
                        ways.append((trial, search_features.make_way()))
                start = time.monotonic()
                outcomes = search_features.try_ways(features, [way for _, way in ways], self.trials.metric)
                if ways:
                    seconds_each = (time.monotonic() - start) / len(ways)
                for (trial, _), outcome in zip(ways, outcomes, strict=True):
                    self.end(trial, outcome, seconds_each or 0.0)
        return ended

    def _describe_left(self) -> str:
        return utils.format_duration(max(self.clock.left, 0))


def differ(dataset: str, other: str) -> bool:
    """Whether two trials saw other data: fingerprints of the images and labels, and of the files where both say it."""
    return any(one != another for one, another in zip(dataset.split(), other.split(), strict=False))


def describe_other_images(number: int) -> str:
    """Why a figure cannot be compared with that of trial `number`."""
    return (
        f"its figure is over other images than that of trial {number}: HEAD_FIT search with UNFREEZE_BACKBONE_EPOCH 0 "
        "takes all training images, others those of VAL_SPLIT; give each of these constants one value"
    )


def describe_trial(trial: Trial, outcome: Outcome, seconds: float, metric: str, best: float | None) -> str:
    """One line about a trial that has ended."""
    values = ", ".join(f"{name} {search_report.show(value)}" for name, value in trial.values.items())
    if outcome.figure is None:
        came = f"{outcome.state}: {outcome.reason}"
    else:
        came = f"{metric} {outcome.figure:.4f}" + ("  best so far" if best is None or outcome.figure > best else "")
    return f"trial {trial.number:>3}  {came}  {utils.format_duration(seconds)}  {values}"
