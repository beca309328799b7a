"""What records a run while it trains: TensorBoard, trackio, Weights & Biases, MLflow, any of them at a time.

    loggers.require_packages(("wandb",))
    with loggers.open_loggers(("wandb",), tracked) as logger:
        logger.add_epoch({"epoch": 1, "train_loss": 0.3})

Each logger has the methods of `tensorboard_logging.TensorBoardLogger`. The trackers read their usual environment
variables: where they write to, who is logged in, WANDB_MODE=offline, MLFLOW_TRACKING_URI and the like. What goes wrong
in one of them ends no run: `Loggers` warns once, and tries again at the end of the run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

import metrics
import utils
from tensorboard_logging import TAGS, Record, TensorBoardLogger, choose_curves, draw_pictures
from utils import InputError

REQUIREMENTS = "requirements-trackers.txt"
# what trackers raise before the run for a setting that is wrong, not for a network that is away
WRONG_SETTINGS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError)
CURVES = 10  # PR curves in a chart: of all classes together, and of those with the most positives
CURVE_POINTS = 100  # of each, for its tracker draws the whole table again in each epoch
PARAMS_AT_ONCE = 100  # that MLflow takes in one call


class TrackedRun(NamedTuple):
    """What a logger is told of the run that it records."""

    name: str  # "<model>/<configuration>"
    project: str  # runs of the same data set are side by side
    group: str | None  # what the runs of all FOLDS have in common
    constants: dict[str, object]  # plain, as overrides.resolved gives them
    folder: Path  # for TensorBoard's files
    history: Sequence[Record]  # the epochs that were done before an interruption
    ids: dict[str, str]  # {logger: what it knows this run by}; a logger that records a new run enters its own


class Logger(Protocol):
    """What records a run."""

    goes_on: bool  # whether the epochs before an interruption are there already

    def add_epoch(self, record: Record) -> None: ...
    def add_pr_curves(
        self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], epoch: int
    ) -> None: ...
    def add_picture(self, picture: np.ndarray, epoch: int) -> None: ...
    def add_hparams(self, constants: dict[str, object], metrics: dict[str, float]) -> None: ...
    def close(self) -> None: ...


def require_packages(names: Sequence[str]) -> None:
    """Raise InputError where a logger's package is not installed."""
    specs = {name: importlib.util.find_spec(name) for name in names}
    # without an origin it is a folder that only has the name: ./wandb, into which wandb writes
    if missing := [name for name, spec in specs.items() if spec is None or spec.origin is None]:
        raise InputError(
            f"LOGGERS names {', '.join(missing)}, which is not installed: pip install -r {REQUIREMENTS}, or leave it "
            "out of LOGGERS"
        )


def open_loggers(names: Sequence[str], tracked: TrackedRun) -> Loggers:
    """Open the loggers with these names of LOGGERS.

    Raises InputError for a setting that is wrong. Where it is the network that fails, say, the run goes on without.
    """
    opened: dict[str, Logger] = {}
    for name in names:
        try:
            opened[name] = LOGGERS[name](tracked)
        except InputError:
            raise
        except Exception as error:  # whatever the package raises
            if isinstance(error, WRONG_SETTINGS) or getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                raise InputError(
                    f"LOGGERS {name}: {_describe(error)}; correct it, or leave {name} out of LOGGERS"
                ) from error
            utils.warn(f"{name} does not record this run, which goes on without it: {_describe(error)}")
    return Loggers(opened, tracked.history)


def _describe(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


# ---- all loggers of a run ----


class Loggers:
    """Tells all loggers of a run what happens in it. An error of one of them is a warning, and the run goes on."""

    def __init__(self, loggers: dict[str, Logger], history: Sequence[Record] = ()) -> None:
        self.loggers = loggers
        self.missed: dict[str, list[Record]] = {}  # of loggers that have failed: the epochs that they lack
        self.best_f1 = -1.0
        for record in history:
            self._add_epoch(record, {name: logger for name, logger in loggers.items() if not logger.goes_on})

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *error: object) -> None:
        for name, logger in self.loggers.items():
            self._try(name, logger.close)

    @property
    def takes_pictures(self) -> bool:
        """Whether a logger is there for PR curves and pictures."""
        return self.loggers.keys() > self.missed.keys()

    def add_epoch(self, record: Record) -> None:
        """Record the numbers of an epoch, and the best validation F1 until then."""
        self._add_epoch(record, self.loggers)

    def _add_epoch(self, record: Record, loggers: Mapping[str, Logger]) -> None:
        if record.get("val_f1") is not None:
            self.best_f1 = max(self.best_f1, record["val_f1"])
            record = record | {"best_f1": self.best_f1}
        for name, logger in loggers.items():
            if name in self.missed or not self._try(name, lambda logger=logger: logger.add_epoch(record)):
                self.missed[name].append(record)

    def add_pr_curves(self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], epoch: int) -> None:
        """Record PR curves of a validation, where the logger has a chart for them."""
        for name, logger in self._list_working():
            self._try(name, lambda logger=logger: logger.add_pr_curves(probabilities, targets, classes, epoch))

    def add_pictures(
        self,
        images: ArrayLike,
        targets: ArrayLike,
        probabilities: ArrayLike,
        thresholds: float | ArrayLike,
        classes: Sequence[str],
        epoch: int,
    ) -> None:
        """Record the grid of pictures that `tensorboard_logging.draw_pictures` draws, where there are any."""
        if len(np.asarray(images)) == 0:
            return
        picture = draw_pictures(images, targets, probabilities, thresholds, classes)
        for name, logger in self._list_working():
            self._try(name, lambda logger=logger: logger.add_picture(picture, epoch))

    def add_hparams(self, constants: dict[str, object], metrics: dict[str, float]) -> None:
        """Record that the run has come to its end, with its final metrics."""
        for name, logger in self.loggers.items():
            if name in self.missed:
                missed = len(self.missed[name])
                if not self._try(name, lambda name=name, logger=logger: self._catch_up(name, logger)):
                    utils.warn(f"{name} lacks {len(self.missed[name])} epochs of this run, and that it has ended")
                    continue
                del self.missed[name]
                utils.say(f"{name}: {missed} epochs that it lacked are recorded now")
            self._try(name, lambda logger=logger: logger.add_hparams(constants, metrics))

    def _catch_up(self, name: str, logger: Logger) -> None:
        """Record the epochs that a logger has missed."""
        missed = self.missed[name]
        while missed:
            logger.add_epoch(missed[0])
            del missed[0]

    def _list_working(self) -> Iterator[tuple[str, Logger]]:
        return ((name, logger) for name, logger in self.loggers.items() if name not in self.missed)

    def _try(self, name: str, tell: Callable[[], None]) -> bool:
        """Tell a logger something. Returns whether it went well; else warns, the first time."""
        try:
            tell()
        except Exception as error:  # whatever the package raises: a run is worth more than its record
            if name not in self.missed:
                self.missed[name] = []
                utils.warn(f"{name} does not record: {_describe(error)}; the run goes on, and log.csv has its numbers")
            return False
        return True


# ---- TensorBoard ----


class _TensorBoard(TensorBoardLogger):
    """TensorBoard's files of a run; what was written to the same folder of an earlier one is no longer shown."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.goes_on = tracked.ids.get("tensorboard") == str(tracked.folder)
        history = tracked.history if self.goes_on else []
        super().__init__(tracked.folder, first_epoch=history[-1]["epoch"] + 1 if history else 1, history=history)
        tracked.ids["tensorboard"] = str(tracked.folder)

    def add_hparams(self, constants: dict[str, object], metrics: dict[str, float]) -> None:
        # the others would each get a chart of one value
        super().add_hparams(constants, {name: value for name, value in metrics.items() if name == "best_f1"})


# ---- trackers ----


def tag_record(record: Record) -> dict[str, float]:
    """{tag: number} of an epoch; `record` itself counts epochs, which are the steps of a tracker."""
    return {TAGS.get(key, key): value for key, value in record.items() if value is not None and key != "epoch"}


def tag_final(metrics: Mapping[str, float]) -> dict[str, float]:
    """{tag: number} of the final metrics, without the best F1: each epoch has recorded it."""
    return {TAGS.get(name, name): value for name, value in metrics.items() if name != "best_f1"}


class _Tracker:
    """What the loggers of all trackers share: which numbers they get, when, and under which tags."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.has_ended = False
        self.epoch = tracked.history[-1]["epoch"] if tracked.history else 0

    def add_epoch(self, record: Record) -> None:
        """Record all numbers of an epoch, which is the step."""
        self.epoch = record["epoch"]
        self.add_numbers(tag_record(record))

    def add_numbers(self, numbers: dict[str, float]) -> None:
        """Record the numbers of the present epoch, by their tags."""
        raise NotImplementedError

    def add_pr_curves(self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], epoch: int) -> None:
        """There is no chart for them."""

    def add_picture(self, picture: np.ndarray, epoch: int) -> None:
        """Record the grid of validation pictures, uint8 (height, width, 3)."""
        raise NotImplementedError

    def add_hparams(self, constants: dict[str, object], metrics: dict[str, float]) -> None:
        """Record the final metrics; the constants are there since the run began."""
        self.has_ended = True
        self.add_final(tag_final(metrics))

    def add_final(self, metrics: dict[str, float]) -> None:
        """Record the final metrics, by their tags."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


# ---- Weights & Biases, and trackio, which has the same calls ----


class _WandbLikeLogger(_Tracker):
    """A run in a tracker whose calls are those of wandb."""

    MODULE = ""

    def __init__(self, tracked: TrackedRun) -> None:
        super().__init__(tracked)
        self.module: Any = importlib.import_module(self.MODULE)
        self.resumes = self.MODULE in tracked.ids
        self.run = self.module.init(
            project=os.environ.get(f"{self.MODULE.upper()}_PROJECT") or tracked.project,
            name=tracked.name,
            group=tracked.group,
            config=tracked.constants,
            **self.choose_options(tracked),
        )
        # wandb cannot resume offline: a second run of the same id is whole in itself, and takes the other's place
        self.goes_on = self.resumes and not getattr(self.run, "offline", False)
        tracked.ids[self.MODULE] = str(self.run.id)

    def choose_options(self, tracked: TrackedRun) -> dict[str, Any]:
        """The options of `init` that the two do not share."""
        raise NotImplementedError

    def log(self, values: dict[str, Any], epoch: int, is_whole: bool) -> None:
        """Record values of an epoch; whether it `is_whole` with them."""
        raise NotImplementedError

    def add_numbers(self, numbers: dict[str, float]) -> None:
        self.log(numbers, self.epoch, is_whole=True)

    def add_picture(self, picture: np.ndarray, epoch: int) -> None:
        self.log({"pictures/val": self.module.Image(picture)}, epoch, is_whole=False)


class _WandbLogger(_WandbLikeLogger):
    MODULE = "wandb"

    def choose_options(self, tracked: TrackedRun) -> dict[str, Any]:
        return {"id": tracked.ids["wandb"], "resume": "allow"} if self.resumes else {}

    def log(self, values: dict[str, Any], epoch: int, is_whole: bool) -> None:
        # What is committed is written down; else wandb would keep an epoch back until the next one is logged.
        self.run.log(values, step=epoch, commit=is_whole)

    def add_pr_curves(self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], epoch: int) -> None:
        rows = [
            [name, recall, precision]
            for name, points in draw_curves(probabilities, targets, classes).items()
            for recall, precision in points
        ]
        if not rows:
            return
        chart = self.module.plot_table(
            data_table=self.module.Table(columns=["class", "recall", "precision"], data=rows),
            vega_spec_name="wandb/area-under-curve/v0",  # wandb.plot.pr_curve draws with it, too
            fields={"x": "recall", "y": "precision", "class": "class"},
            string_fields={
                "title": "Precision and recall, validation",
                "x-axis-title": "Recall",
                "y-axis-title": "Precision",
            },
        )
        self.log({"pr_curve/val": chart}, epoch, is_whole=False)

    def add_final(self, metrics: dict[str, float]) -> None:
        self.run.summary.update(metrics)

    def close(self) -> None:
        self.run.finish(exit_code=0 if self.has_ended else 1)


class _TrackioLogger(_WandbLikeLogger):
    MODULE = "trackio"

    def choose_options(self, tracked: TrackedRun) -> dict[str, Any]:
        # a run is resumed by its name; no dashboard opens in a notebook
        return {"resume": "allow" if self.resumes else "never", "embed": False}

    def log(self, values: dict[str, Any], epoch: int, is_whole: bool) -> None:
        self.run.log(values, step=epoch)

    def add_final(self, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=self.epoch)

    def close(self) -> None:
        self.module.finish()


def draw_curves(
    probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """{class: its points (recall, precision)}, of all classes together (micro) and of the most frequent ones.

    `probabilities` and `targets` (1, 0; unknown -1 or NaN) are (N, C).
    """
    drawn = {}
    for c, (labels, scores) in choose_curves(probabilities, targets, CURVES - 1).items():
        (curve,) = metrics.precision_recall_curve(scores[:, None], labels[:, None])
        _, precision, recall = curve.thin_out(CURVE_POINTS)
        name = "micro" if c is None else utils.make_visible(classes[c])
        drawn[name] = [*zip(recall.tolist(), precision.tolist(), strict=True)]
    return drawn


# ---- MLflow ----


class _MlflowLogger(_Tracker):
    """A run in MLflow. By its client, so that it gets in the way of no run that is active in a notebook."""

    def __init__(self, tracked: TrackedRun) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        super().__init__(tracked)
        self.client: Any = MlflowClient()
        self.picture: tuple[np.ndarray, int] | None = None  # the latest, and its epoch
        self.goes_on = "mlflow" in tracked.ids
        if self.goes_on:
            self.run_id = tracked.ids["mlflow"]
            self.client.update_run(self.run_id, status="RUNNING")
            return
        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or tracked.project
        experiment = self.client.get_experiment_by_name(experiment_name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(experiment_name)
        tags = {"group": tracked.group} if tracked.group else {}
        self.run_id = self.client.create_run(experiment_id, run_name=tracked.name, tags=tags).info.run_id
        self._log_constants(tracked.constants)
        tracked.ids["mlflow"] = self.run_id

    def _log_constants(self, constants: dict[str, object]) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        params = [Param(name, utils.make_visible(str(value))) for name, value in constants.items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(self.run_id, params=params[first : first + PARAMS_AT_ONCE], synchronous=True)

    def add_numbers(self, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        logged = [Metric(name, float(value), now, self.epoch) for name, value in numbers.items()]
        self.client.log_batch(self.run_id, metrics=logged, synchronous=True)

    def add_picture(self, picture: np.ndarray, epoch: int) -> None:
        self.picture = picture, epoch

    def add_final(self, metrics: dict[str, float]) -> None:
        self.add_numbers(metrics)

    def close(self) -> None:
        try:
            if self.picture:  # the last one only: MLflow keeps every picture, a megabyte and a half each
                picture, epoch = self.picture
                self.client.log_image(self.run_id, picture, key="pictures/val", step=epoch, synchronous=True)
        finally:
            self.client.set_terminated(self.run_id, "FINISHED" if self.has_ended else "KILLED")


# the names of LOGGERS in config.py
LOGGERS: dict[str, Callable[[TrackedRun], Logger]] = {
    "tensorboard": _TensorBoard,
    "trackio": _TrackioLogger,
    "wandb": _WandbLogger,
    "mlflow": _MlflowLogger,
}
