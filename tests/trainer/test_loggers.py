"""trainer/loggers.py: what the trackers are told, and what they keep; that none of them ends a run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import sqlite3
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

import config
import distributed
import overrides
import training
from models import checkpoints
from tensorboard_logging import TAGS, draw_pictures
from trainer import loggers, watching
from trainer.loggers import LOGGERS, Loggers, TrackedRun
from trainer.run_files import RunFiles
from trainer.run_state import RunState, read_state
from utils import InputError

Record = dict[str, Any]

# a rate that has no short decimal, a number that was not measured, and one that has no tag of its own
HISTORY: list[Record] = [
    {"epoch": 1, "frozen": True, "train_loss": 0.1 + 0.2, "lr_head": 1e-3, "threshold": 1 / 3, "val_f1": 0.5},
    {"epoch": 2, "frozen": False, "train_loss": None, "lr_head": 1e-300, "threshold": 0.25, "val_f1": 2 / 3},
    {"epoch": 3, "frozen": False, "train_loss": 0.1, "lr_head": 1e-4, "gpu_memory_gib": 7, "val_f1": 0.6},
]
FINAL = {"best_f1": 2 / 3, "best_mAP": 0.7, "best_epoch": 2.0}
CLASSES = ("dog", "cat\x1b", "a, b")


def tag(record: Record, best_f1: float) -> dict[str, float]:
    """What a tracker gets of an epoch."""
    numbers = {key: value for key, value in (record | {"best_f1": best_f1}).items() if key != "epoch"}
    return {TAGS.get(key, key): value for key, value in numbers.items() if value is not None}


EXPECTED = {record["epoch"]: tag(record, best) for record, best in zip(HISTORY, (0.5, 2 / 3, 2 / 3), strict=True)}


def make_tracked(folder: Path, history: list[Record] = [], ids: dict[str, str] | None = None) -> TrackedRun:  # noqa: B006
    constants = {f"NAME_{number}": [number, "a"] for number in range(160)} | {"DATASET": "x/y", "NOTHING": None}
    return TrackedRun(
        name="resnet18/linear_1a2b",
        project="my-data",
        group="linear_5folds",
        constants=constants,
        folder=folder / "runs",
        history=history,
        ids={} if ids is None else ids,
    )


def record_all(logger: Loggers, history: list[Record]) -> None:
    """What a run tells its loggers: of each epoch a validation, and its record; then its end."""
    rng = np.random.default_rng(0)
    for record in history:
        targets = rng.integers(0, 2, (6, 3)).astype(np.int8)
        probabilities = rng.random((6, 3)).astype(np.float32)
        logger.add_pr_curves(probabilities, targets, CLASSES, record["epoch"])
        images = rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
        logger.add_pictures(images, targets[:2], probabilities[:2], 0.5, CLASSES, record["epoch"])
        logger.add_epoch(record)


# ---- packages that only write down how they are called ----


class FakeRun:
    def __init__(self, options: dict[str, Any], offline: bool) -> None:
        self.options, self.rows, self.summary, self.ended = options, [], {}, []
        self.id, self.offline = options.get("id", "new-id"), offline

    def log(self, values: dict[str, Any], step: int, commit: bool | None = None) -> None:
        self.rows.append((step, commit, values))

    def finish(self, exit_code: int | None = None) -> None:
        self.ended.append(exit_code)

    def list_epochs(self) -> dict[int, dict[str, Any]]:
        """{step: the numbers that it has}."""
        found: dict[int, dict[str, Any]] = {}
        for step, _, values in self.rows:
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            found[step] = found.get(step, {}) | numbers
        return found


class FakeWandb(ModuleType):
    """wandb, or trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.spec_from_loader(name, loader=None, origin="a package")
        self.runs: list[FakeRun] = []
        self.offline = False

    def init(self, **options: Any) -> FakeRun:
        self.runs.append(FakeRun(options, self.offline))
        return self.runs[-1]

    def finish(self) -> None:
        self.runs[-1].finish()

    def Image(self, picture: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(picture=picture)

    def Table(self, columns: list[str], data: list[list[Any]]) -> SimpleNamespace:
        return SimpleNamespace(columns=columns, data=data)

    def plot_table(self, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(**options)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FakeWandb]:
    """Put a package of this name in place that writes its calls down."""

    def put(name: str) -> FakeWandb:
        module = FakeWandb(name)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
        return module

    return put


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_are_told_each_epoch(name: str, fake: Callable[[str], FakeWandb], tmp_path: Path) -> None:
    module, tracked = fake(name), make_tracked(tmp_path)
    with loggers.open_loggers((name,), tracked) as logger:
        record_all(logger, HISTORY)
        logger.add_hparams({}, FINAL)
    (run,) = module.runs
    only = {} if name == "wandb" else {"resume": "never", "embed": False}
    assert run.options == {
        "project": "my-data", "name": "resnet18/linear_1a2b", "group": "linear_5folds", "config": tracked.constants
    } | only  # fmt: skip
    assert tracked.ids == {name: "new-id"}
    final = {"best/mAP": 0.7, "best/epoch": 2.0}
    if name == "wandb":
        assert run.summary == final
        assert run.list_epochs() == EXPECTED
        assert [step for step, commit, _ in run.rows if commit] == [1, 2, 3], "an epoch is written as it is done"
        assert run.ended == [0]
    else:
        assert run.list_epochs() == EXPECTED | {3: EXPECTED[3] | final}
        assert run.ended == [None]


def test_wandb_gets_pictures_and_curves(fake: Callable[[str], FakeWandb], tmp_path: Path) -> None:
    module = fake("wandb")
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (500, 3)).astype(np.float32)
    targets[:, 2] = 0  # a class without a positive has no curve
    targets[rng.random(targets.shape) < 0.1] = np.nan
    probabilities = rng.random((500, 3)).astype(np.float32)
    images = rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    with loggers.open_loggers(("wandb",), make_tracked(tmp_path)) as logger:
        logger.add_pictures(images, targets[:2], probabilities[:2], 0.5, CLASSES, 4)
        logger.add_pr_curves(probabilities, targets, CLASSES, 4)
    (run,) = module.runs
    assert [(step, commit) for step, commit, _ in run.rows] == [(4, False), (4, False)]
    (_, _, pictures), (_, _, curves) = run.rows
    expected = draw_pictures(images, targets[:2], probabilities[:2], 0.5, CLASSES)
    np.testing.assert_array_equal(pictures["pictures/val"].picture, expected)
    rows = curves["pr_curve/val"].data_table.data
    assert {row[0] for row in rows} == {"micro", "dog", r"cat\x1b"}
    known = targets >= 0
    for name, labels, scores in (
        ("micro", targets[known], probabilities[known]),
        ("dog", targets[known[:, 0], 0], probabilities[known[:, 0], 0]),
    ):
        precision, recall, _ = precision_recall_curve(labels, scores)
        points = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
        drawn = [(round(row[1], 9), round(row[2], 9)) for row in rows if row[0] == name]
        assert len(drawn) == 100
        assert {*drawn} <= points
    assert run.ended == [1], "it did not come to its end"


@pytest.mark.parametrize(("offline", "expected"), [(False, [3]), (True, [1, 2, 3])])
def test_wandb_goes_on_with_its_run(
    offline: bool,
    expected: list[int],
    fake: Callable[[str], FakeWandb],
    tmp_path: Path,
) -> None:
    """It cannot go on offline: then the second part is whole in itself."""
    module = fake("wandb")
    module.offline = offline
    with loggers.open_loggers(("wandb",), make_tracked(tmp_path, HISTORY[:2], {"wandb": "an-id"})) as logger:
        logger.add_epoch(HISTORY[2])
    (run,) = module.runs
    assert (run.options["id"], run.options["resume"]) == ("an-id", "allow")
    assert run.list_epochs() == {epoch: EXPECTED[epoch] for epoch in expected}


def test_trackio_goes_on_by_name(fake: Callable[[str], FakeWandb], tmp_path: Path) -> None:
    module = fake("trackio")
    with loggers.open_loggers(("trackio",), make_tracked(tmp_path, HISTORY[:2], {"trackio": "an-id"})) as logger:
        logger.add_epoch(HISTORY[2])
    (run,) = module.runs
    assert run.options["resume"] == "allow"
    assert run.list_epochs() == {3: EXPECTED[3]}


def test_a_logger_that_comes_later_gets_all_epochs(fake: Callable[[str], FakeWandb], tmp_path: Path) -> None:
    module, tracked = fake("trackio"), make_tracked(tmp_path, HISTORY[:2], {"wandb": "an-id"})
    with loggers.open_loggers(("trackio",), tracked) as logger:
        logger.add_epoch(HISTORY[2])
    assert module.runs[0].list_epochs() == EXPECTED
    assert tracked.ids == {"wandb": "an-id", "trackio": "new-id"}


# ---- errors ----


class Failing:
    """A logger that fails in the calls with these numbers, counted from 1."""

    goes_on = True

    def __init__(self, *fails: int) -> None:
        self.fails, self.calls, self.told = fails, 0, []

    def tell(self, what: Any) -> None:
        self.calls += 1
        if self.calls in self.fails:
            raise ConnectionError("the network\nis away")
        self.told.append(what)

    def add_epoch(self, record: Record) -> None:
        self.tell(record["epoch"])

    def add_pr_curves(self, *arguments: Any) -> None:
        self.tell("curves")

    def add_picture(self, *arguments: Any) -> None:
        self.tell("pictures")

    def add_hparams(self, *arguments: Any) -> None:
        self.tell("end")

    def close(self) -> None:
        self.tell("close")


WHOLE = ["curves", "pictures", 1, "curves", "pictures", 2, "curves", "pictures", 3, "end", "close"]


@pytest.mark.parametrize(
    ("fails", "told", "last_line"),
    [
        ((), WHOLE, ""),
        ((3,), ["curves", "pictures", 1, 2, 3, "end", "close"], "the other: 3 epochs that it lacked are recorded now"),
        ((4,), ["curves", "pictures", 1, 2, 3, "end", "close"], "the other: 2 epochs that it lacked are recorded now"),
        ((3, 4), ["curves", "pictures", "close"], "warning: the other lacks 3 epochs of this run"),
        ((3, 5), ["curves", "pictures", 1, "close"], "warning: the other lacks 2 epochs of this run"),
        ((10,), [*WHOLE[:-2], "close"], ""),
        ((11,), WHOLE[:-1], ""),
    ],
)
def test_an_error_is_a_warning_and_the_run_goes_on(
    fails: tuple[int, ...], told: list[Any], last_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, failing = Failing(), Failing(*fails)
    with Loggers({"one": sound, "the other": failing}) as logger:
        record_all(logger, HISTORY)
        logger.add_hparams({}, FINAL)
    out, err = capsys.readouterr()
    assert sound.told == WHOLE
    assert failing.told == told
    warning = "warning: the other does not record: ConnectionError: the network is away; the run goes on"
    assert err.count(warning) == bool(fails), "once"
    assert last_line in out + err
    assert "the one" not in out + err


def test_no_pictures_are_drawn_for_nobody() -> None:
    assert not Loggers({}).takes_pictures
    failing = Failing(1)
    logger = Loggers({"it": failing})
    assert logger.takes_pictures
    logger.add_epoch(HISTORY[0])
    assert not logger.takes_pictures


class RemoteError(Exception):
    def __init__(self, error_code: str) -> None:
        super().__init__(f"it says {error_code}")
        self.error_code = error_code


@pytest.mark.parametrize(
    ("error", "is_wrong"),
    [
        (ValueError("a bad address"), True),
        (PermissionError(13, "not yours"), True),
        (NotADirectoryError(20, "it is a file"), True),
        (RemoteError("INVALID_PARAMETER_VALUE"), True),
        (RemoteError("INTERNAL_ERROR"), False),
        (ConnectionError("no network"), False),
        (TimeoutError("too slow"), False),
        (OSError(28, "the disk is full"), False),
        (RuntimeError("log in"), False),
    ],
)
def test_a_wrong_setting_ends_the_run_before_it_begins_and_a_network_does_not(
    error: Exception,
    is_wrong: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(tracked: TrackedRun) -> Any:
        raise error

    monkeypatch.setitem(LOGGERS, "wandb", fail)
    if is_wrong:
        with pytest.raises(InputError, match=r"^LOGGERS wandb: .*; correct it, or leave wandb out of LOGGERS$"):
            loggers.open_loggers(("wandb",), make_tracked(tmp_path))
        return
    with loggers.open_loggers(("wandb",), make_tracked(tmp_path)) as logger:
        logger.add_epoch(HISTORY[0])
    assert capsys.readouterr().err.startswith("warning: wandb does not record this run, which goes on without it: ")


def test_a_folder_that_cannot_be_written_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="cannot write TensorBoard files"):
        loggers.open_loggers(("tensorboard",), make_tracked(tmp_path))


def test_a_missing_package_is_one_line(
    small_run: list[str], fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("trackio", "mlflow") else find(name))
    message = fails(training.main, [*small_run, f"--DATASET_FOLDER={tmp_path / 'none'}", "--LOGGERS=trackio,mlflow"])
    assert message.startswith(
        "error: LOGGERS names trackio, mlflow, which is not installed: pip install -r requirements-tr"
    )


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb writes into ./wandb, which Python takes for a package where wandb is not installed."""
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="only_a_folder"):
        loggers.require_packages(("only_a_folder",))
    loggers.require_packages(("tensorboard",))
    loggers.require_packages(())


@pytest.mark.parametrize("spelling", ["command line", "recipe"])
def test_the_name_of_before_is_answered(spelling: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text("NUM_EPOCHS = 3\nUSE_TENSORBOARD = True\n")
    arguments = [str(recipe)] if spelling == "recipe" else ["--USE_TENSORBOARD", "True"]
    with pytest.raises(InputError) as error:
        overrides.apply(arguments, config)
    assert "USE_TENSORBOARD is LOGGERS tensorboard or LOGGERS () here (--help LOGGERS)" in str(error.value)


# ---- a run of training.py ----


def test_a_run_is_recorded_and_goes_on_after_an_interruption(
    small_run: list[str], fake: Callable[[str], FakeWandb], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("wandb")
    arguments = [*small_run, "--LOGGERS=wandb,tensorboard", "--NUM_EPOCHS=3"]
    with monkeypatch.context() as patch:

        def die(self: Any, step: int, *rest: Any, **options: Any) -> None:
            if step == 2:
                raise KeyboardInterrupt  # before the epoch is saved
            self.rows.append((step, options["commit"], rest[0]))

        patch.setattr(FakeRun, "log", lambda self, values, step, commit: die(self, step, values, commit=commit))
        with pytest.raises(KeyboardInterrupt):
            training.main(arguments)
    training.main(arguments)
    first, second = module.runs
    assert (first.ended, second.ended) == ([1], [0])
    assert second.options["id"] == first.id
    assert second.options["project"] == "set"
    assert second.options["config"] == overrides.resolved(config)
    (checkpoint,) = tmp_path.glob("trained_models/mobilenet_v2/*.pt")
    assert second.options["name"] == f"mobilenet_v2/{checkpoint.stem}"
    state = read_state(checkpoints.load(checkpoint.with_suffix("") / "last.pt")["training_state"]["state"])
    best, expected = -1.0, {}
    for record in state.history:
        best = max(best, record["val_f1"])
        expected[record["epoch"]] = tag(record, best)
    assert first.list_epochs() | second.list_epochs() == expected
    assert second.list_epochs().keys() == {2, 3}
    best_record = state.history[state.best_epoch - 1]
    assert second.summary == {
        "best/mAP": best_record["val_mAP"], "best/epoch": state.best_epoch, "best/threshold": best_record["threshold"]
    }  # fmt: skip
    shown = [values["pictures/val"].picture.shape for _, _, values in second.rows if "pictures/val" in values]
    assert len(shown) == 2
    assert state.logger_ids["wandb"] == first.id
    assert state.logger_ids["tensorboard"] == str(tmp_path / "runs" / "mobilenet_v2" / checkpoint.stem)


def test_only_the_first_process_records(
    fake: Callable[[str], FakeWandb], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("wandb")
    arguments = ["--LOGGERS=wandb,tensorboard", f"--TENSORBOARD_FOLDER={tmp_path}", "--DATASET_FOLDER=/x/a b/."]
    overrides.apply(arguments, config)
    files, state = RunFiles(tmp_path / "resnet18" / "a_fold2of5", fold_of="a_5folds"), RunState()
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    with watching.make_logger(files, state) as logger:
        logger.add_epoch(HISTORY[0])
    assert (module.runs, list(tmp_path.iterdir()), state.logger_ids) == ([], [], {})
    monkeypatch.setattr(distributed, "is_first", lambda: True)
    with watching.make_logger(files, state) as logger:
        logger.add_epoch(HISTORY[0])
    (run,) = module.runs
    assert [run.options[name] for name in ("name", "group", "project")] == ["resnet18/a_fold2of5", "a_5folds", "a-b"]
    folder = tmp_path / "resnet18" / "a_fold2of5"
    assert state.logger_ids == {"wandb": "new-id", "tensorboard": str(folder)}
    assert list(folder.glob("val/events*"))


# ---- the packages themselves, where they are installed ----


def need(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip(name, reason=f"{name} is not installed: pip install -r requirements-trackers.txt")
    for variable in (
        "WANDB_PROJECT",
        "TRACKIO_PROJECT",
        "MLFLOW_EXPERIMENT_NAME",
        "TRACKIO_SERVER_URL",
        "TRACKIO_SPACE_ID",
    ):
        monkeypatch.delenv(variable, raising=False)
    return module


def read_wandb_file(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, after a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord  # pyright: ignore[reportMissingImports]

    data, position, records, parts = path.read_bytes(), 7, [], b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # too short for another header
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            records.append(WandbRecord.FromString(parts))
            parts = b""
    return records


def same(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]]) -> bool:
    """Whether the numbers of all epochs are the same bits."""
    return found == expected and all(
        math.copysign(1, float(value)) == math.copysign(1, float(expected[epoch][name]))
        for epoch, values in found.items()
        for name, value in values.items()
    )


def test_wandb_offline_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("wandb", monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracked = make_tracked(tmp_path)
    with loggers.open_loggers(("wandb",), tracked) as logger:
        record_all(logger, HISTORY[:2])
    resumed = make_tracked(tmp_path, HISTORY[:2], tracked.ids)
    with loggers.open_loggers(("wandb",), resumed) as logger:
        record_all(logger, HISTORY[2:])
        logger.add_hparams({}, FINAL)
    (file, *others) = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)[::-1]
    assert [other.name for other in others] == [f"run-{tracked.ids['wandb']}.wandb"] == [file.name]
    records = read_wandb_file(file)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_group) == ("my-data", "resnet18/linear_1a2b", "linear_5folds")
    constants = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert tracked.constants.items() <= constants.items()
    found: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            own = ("_", "pictures/", "pr_curve/")  # of wandb, and what describes its files
            numbers = {name: value for name, value in values.items() if not name.startswith(own)}
            found.setdefault(values["_step"], {}).update(numbers)
    assert same(found, EXPECTED), "the second part is the whole run"
    pictures = list(file.parent.glob("files/media/images/pictures/val_3_*.png"))
    assert len(pictures) == 1
    assert list(file.parent.glob("files/media/table/pr_curve/*.json"))
    summaries = [item for record in records for item in record.summary.update]
    assert {item.key: json.loads(item.value_json) for item in summaries}["best/mAP"] == FINAL["best_mAP"]
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]


def test_trackio_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when trackio is imported: here, and in no other test
    need("trackio", monkeypatch)
    tracked = make_tracked(tmp_path)
    with loggers.open_loggers(("trackio",), tracked) as logger:
        record_all(logger, HISTORY[:2])
    with loggers.open_loggers(("trackio",), make_tracked(tmp_path, HISTORY[:2], tracked.ids)) as logger:
        record_all(logger, HISTORY[2:])
        logger.add_hparams({}, FINAL)
    with contextlib.closing(sqlite3.connect(tmp_path / "my-data.db")) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        (constants,) = connection.execute("SELECT config FROM configs").fetchall()
    assert tracked.constants.items() <= json.loads(constants[0]).items()
    found: dict[int, dict[str, Any]] = {}
    for name, step, text in rows:
        assert name == tracked.name
        values = json.loads(text)
        found.setdefault(step, {}).update({k: v for k, v in values.items() if isinstance(v, int | float)})
    final = {"best/mAP": FINAL["best_mAP"], "best/epoch": FINAL["best_epoch"]}
    assert same(found, EXPECTED | {3: EXPECTED[3] | final})
    assert len(list((tmp_path / "media" / "my-data").rglob("*.png"))) == 3


def test_mlflow_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("mlflow", monkeypatch)
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.chdir(tmp_path)  # pictures go to ./mlruns
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    tracked = make_tracked(tmp_path)
    with loggers.open_loggers(("mlflow",), tracked) as logger:
        record_all(logger, HISTORY[:2])
    client = MlflowClient()
    assert client.get_run(tracked.ids["mlflow"]).info.status == "KILLED"
    with loggers.open_loggers(("mlflow",), make_tracked(tmp_path, HISTORY[:2], tracked.ids)) as logger:
        record_all(logger, HISTORY[2:])
        logger.add_hparams({}, FINAL)
    run = client.get_run(tracked.ids["mlflow"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", tracked.name)
    assert client.get_experiment(run.info.experiment_id).name == "my-data"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert run.data.tags["group"] == "linear_5folds"
    assert run.data.params == {name: str(value) for name, value in tracked.constants.items()}
    found: dict[int, dict[str, Any]] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in found.setdefault(metric.step, {}), "once"
            found[metric.step][name] = metric.value
    final = {"best/mAP": FINAL["best_mAP"], "best/epoch": FINAL["best_epoch"]}
    assert same(found, EXPECTED | {3: EXPECTED[3] | final})
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert len(pictures) == 2, "the last one of each part"
