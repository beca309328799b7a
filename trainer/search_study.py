"""The trials of one search, in a file that several processes and machines share: what to try next, what came of it.

    trials = Trials(folder, varied, "best_f1", fixed)
    with trials.ask() as trial:         # the constants to try, chosen by what earlier trials reached
        trial.values                    # {"HEAD": "linear", "HEAD_BASE_LR": 0.0123}
        trial.tell(outcome)

Optuna chooses (its TPE sampler, Bergstra et al. 2011) and keeps the trials, in its journal file.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from constants.spaces import Varied, plain
from dataset import locks
from trainer.search_trials import Outcome
from utils import InputError

optuna.logging.set_verbosity(optuna.logging.ERROR)

DIGITS = 3  # of a number that is tried: more make no difference, and would be copied into papers
PRUNING_FROM = 4  # complete trials, before which none is stopped for being worse than their median
FIRST_EPOCHS = 2  # of a trial, in which it is not stopped
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}  # others have failed, for Optuna
IMPORTANCE_FROM = 10  # complete trials, before which nothing is said about which constant matters


class Tried(NamedTuple):
    """A trial that has ended, or is under way in another process."""

    number: int
    state: str  # complete, pruned, failed, interrupted, repeated, running, waiting, killed
    figure: float | None
    seconds: float | None
    values: dict[str, Any]  # of the constants that vary
    reason: str
    run: str  # the checkpoint's path
    dataset: str
    val_dataset: str  # "" for trials of earlier versions
    num_images: int | None  # that the figure is over; None for trials of earlier versions


class Trial:
    """A trial that this process has begun."""

    def __init__(self, trials: Trials, asked: optuna.Trial) -> None:
        self.number, self._trials, self._asked, self._is_told = asked.number, trials, asked, False
        self.values = trials.take_values(asked.params)

    def is_hopeless(self, epoch: int, figure: float) -> bool:
        """Note the `figure` of an `epoch`: whether it is below the median of the complete trials there."""
        self._asked.report(figure, epoch)
        return self._asked.should_prune()

    def tell(self, outcome: Outcome, seconds: float) -> None:
        """Note what came of it. One that was interrupted is tried again, before others."""
        notes = {"state": outcome.state, "seconds": seconds, "reason": outcome.reason, "dataset": outcome.dataset}
        notes |= {"run": str(outcome.run or ""), "val_dataset": outcome.val_dataset, "num_images": outcome.num_images}
        for name, note in notes.items():
            self._asked.set_user_attr(name, note)
        study, self._is_told = self._trials.study, True
        study.tell(self._asked, outcome.figure, state=STATES.get(outcome.state, TrialState.FAIL))
        if outcome.state == "interrupted":
            study.enqueue_trial(self._asked.params)

    def repeat(self, earlier: Tried) -> None:
        """Note that the same constants were tried before, with what came of them."""
        self._asked.set_user_attr("state", "repeated")
        state, self._is_told = STATES.get(earlier.state, TrialState.FAIL), True
        self._trials.study.tell(self._asked, earlier.figure if state is TrialState.COMPLETE else None, state=state)

    def abandon(self) -> None:
        """Leave a trial that nothing was told of for another time."""
        if not self._is_told:
            self.tell(Outcome("interrupted"), 0.0)


class Trials:
    """The trials of one search. Raises InputError where `folder` holds those of another space."""

    def __init__(
        self, folder: Path, varied: Mapping[str, Varied], metric: str, fixed: Mapping[str, Any], seed: int = 0
    ) -> None:
        """`fixed` are the constants that no trial changes, and that its figure depends on."""
        self.folder, self.varied, self.metric = folder.absolute(), varied, metric
        self.distributions = {name: make_distribution(choice) for name, choice in varied.items()}
        folder.mkdir(parents=True, exist_ok=True)
        file = str(self.folder / "trials.journal")
        with self._hold():
            try:
                # made with O_EXCL, as every disk has it that NFSv3 or Windows shares; a killed process's is taken over
                storage = JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))
                self.study = optuna.create_study(
                    storage=storage,
                    study_name=folder.name,
                    load_if_exists=True,
                    direction="maximize",
                    pruner=optuna.pruners.MedianPruner(PRUNING_FROM, FIRST_EPOCHS + 1),
                )
            except (ValueError, KeyError) as error:
                raise InputError(f"{file} is damaged ({error}): move its folder away, and the search begins") from error
            # processes that begin together draw differently
            others = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = optuna.samplers.TPESampler(seed=seed + others, constant_liar=True)
            self._require_same_space(fixed)
            self._end_killed()

    def _require_same_space(self, fixed: Mapping[str, Any]) -> None:
        space = {name: str(choice) for name, choice in self.varied.items()} | {"SEARCH_METRIC": self.metric}
        space |= {name: repr(value) for name, value in fixed.items()}
        known = self.study.user_attrs.get("space")
        if known is None:
            self.study.set_user_attr("space", space)
            return
        differing = [name for name in {**known, **space} if space.get(name) != known.get(name)]
        if differing:
            name = differing[0]
            was, now = (str(there.get(name, "not there"))[:80] for there in (known, space))
            raise InputError(
                f"{self.folder} is of another search: {name} was {was} and is {now}; give the space another file name, "
                "or move the folder away"
            )

    def _end_killed(self) -> None:
        """Note as failed what a killed process had begun: nobody holds its lock."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with locks.hold(self._name_lock(trial.number), wait=False) as is_free:
                if is_free:
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def _hold(self) -> Any:
        """The lock of the search: what one process asks for and another ends do not meet."""
        return locks.hold(self.folder / locks.LOCK)

    def _name_lock(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}.lock"

    def name_recipe(self, number: int) -> Path:
        """The file with the constants of a trial."""
        return self.folder / "trials" / f"{number:04}.py"

    @contextmanager
    def ask(self) -> Iterator[Trial]:
        """A trial to run within `with`. One of which nothing was told until its end is tried again."""
        with self._hold():
            asked = self.study.ask(self.distributions)
            lock = locks.hold(self._name_lock(asked.number), wait=False)
            lock.__enter__()
        trial = Trial(self, asked)
        try:
            yield trial
        finally:
            with suppress(ValueError, RuntimeError):
                trial.abandon()
            lock.__exit__(None, None, None)

    def take_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The constants' values by Optuna's parameters: numbers with DIGITS digits, within their range."""
        return {name: take_value(choice, params[name]) for name, choice in self.varied.items() if name in params}

    def list_tried(self) -> list[Tried]:
        """All trials of this search, those of other processes included, in the order they began."""
        return [self._describe(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _describe(self, trial: FrozenTrial) -> Tried:
        notes = trial.user_attrs
        state = notes.get("state") or {TrialState.FAIL: "killed"}.get(trial.state, trial.state.name.lower())
        return Tried(
            number=trial.number,
            state=state,
            figure=trial.value if state == "complete" and trial.state is TrialState.COMPLETE else None,
            seconds=notes.get("seconds"),
            values=self.take_values(trial.params),
            reason=notes.get("reason") or ("its search was killed" if state == "killed" else ""),
            run=notes.get("run", ""),
            dataset=notes.get("dataset", ""),
            val_dataset=notes.get("val_dataset", ""),
            num_images=notes.get("num_images"),
        )

    def find_same(self, trial: Trial) -> Tried | None:
        """Another trial of the same constants that came to its end, or began before and is under way.

        Of two that are under way, only the later one is a repetition, else neither would be tried.
        """
        key = make_key(trial.values)
        for tried in self.list_tried():
            has_ended = tried.state in ("complete", "pruned", "failed")
            began_before = tried.state == "running" and tried.number < trial.number
            if (has_ended or began_before) and make_key(tried.values) == key:
                return tried
        return None

    def estimate_seconds(self) -> float | None:
        """The median of the complete trials; None where there is none."""
        seconds = [tried.seconds for tried in self.list_tried() if tried.state == "complete" and tried.seconds]
        return statistics.median(seconds) if seconds else None

    def measure_importance(self) -> dict[str, float]:
        """{constant: its share in what the figures depend on}, by PED-ANOVA (Watanabe et al. 2023); {} for few trials.

        It asks what sets the better tenth of the trials apart.
        """
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < IMPORTANCE_FROM or len({trial.value for trial in complete}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)


def make_distribution(choice: Varied) -> BaseDistribution:
    """What Optuna draws from."""
    if choice.kind == "choices":
        return CategoricalDistribution([repr(plain(value)) for value in choice.values])
    low, high = choice.values
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=choice.kind == "log_range")


def take_value(choice: Varied, drawn: Any) -> Any:
    """The constant's value for what Optuna has drawn."""
    if choice.kind == "choices":
        return next(value for value in choice.values if repr(plain(value)) == drawn)
    low, high = choice.values
    return drawn if isinstance(low, int) else min(max(float(f"{drawn:.{DIGITS}g}"), low), high)


def make_key(values: Mapping[str, Any]) -> str:
    """A text that is the same for the same values."""
    return json.dumps({name: plain(value) for name, value in values.items()}, sort_keys=True)
