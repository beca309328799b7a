"""A run that is killed, stopped or out of disk space goes on to the same weights, thresholds and predictions."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_run
from launching import finish, launch
from PIL import Image

import config
import overrides
import predictor
import training
import utils
from dataset.table import Table
from models import checkpoints
from trainer import records, validation
from trainer.interruption import Interruption
from trainer.training_data import Data

OPTIONS = [
    "--NUM_EPOCHS=4",
    "--EMA_DECAY=0.9",
    "--ENTRY_WEIGHTS=ghm",
    "--MIXUP_ALPHA=0.4",
    "--COLOR_JITTER=0.3",
    "--SCHEDULE=cosine",
    "--SAVE_EVERY_MINUTES=0.00001",  # after each step
    "--HEAD=per_label_mlp",  # with dropout
    "--MLP_HIDDEN=8",
]


class Run:
    """A run's folder, its files found by what they are."""

    def __init__(self, dataset: Path, folder: Path, *options: str) -> None:
        self.folder, self.output = folder, folder / "output.txt"
        folder.mkdir(exist_ok=True)
        self.arguments = [*make_small_run(dataset, folder), *OPTIONS, *options]

    def launch(self, **environment: str) -> BaseProcess:
        return launch("training", self.arguments, self.output, environment)

    @property
    def last(self) -> Path:
        (path,) = self.folder.glob("trained_models/*/*/last.pt")
        return path

    def has_saved(self) -> bool:
        return bool(list(self.folder.glob("trained_models/*/*/last.pt")))

    def read(self) -> dict[str, Any]:
        """All that must not depend on interruptions."""
        (best,) = self.folder.glob("trained_models/*/*.pt")
        last, best = checkpoints.load(self.last), checkpoints.load(best)
        state = last["training_state"]["state"]
        for record in state["history"]:
            for name in ("seconds", "images_per_second", "waiting_share", "preparation_seconds"):
                record.pop(name)
        for name in ("seconds", "epoch_seconds", "closed"):
            state.pop(name)
        kept = ("model_state", "best_threshold", "best_f1", "epoch", "metrics", "weights")
        return {"last": last["model_state"], **last["training_state"], "best": {name: best[name] for name in kept}}

    def predict(self, dataset: Path) -> list[tuple[str, list[float]]]:
        model = predictor.load(self.folder / "trained_models" / "best_model.pt", "cpu")
        images = dataset / "images" / "test-resized"
        return [(record.path, record.probabilities.tolist()) for record in model.predict(images)]


def assert_same(one: Any, other: Any, place: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}/{index}")
    else:
        assert one == other, place


@pytest.fixture(scope="module")
def whole(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    run = Run(shared_dataset, tmp_path_factory.mktemp("whole"))
    assert finish(run.launch()) == [0], run.output.read_text()
    return run


def wait_for_save(run: Run, process: BaseProcess) -> None:
    while process.is_alive() and not run.has_saved():
        time.sleep(0.005)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    num_workers: int, seed: int, whole: Run, shared_dataset: Path, tmp_path: Path
) -> None:
    """Killed twice: at a random moment, and again at a random moment of what was left."""
    run = Run(shared_dataset, tmp_path, f"--NUM_WORKERS={num_workers}")
    draw = random.Random(f"{num_workers} {seed}")
    for most in (8, 4):  # of 20 savings at least; as many again are left
        moment = f"{draw.randint(2, most)} {draw.uniform(0, 0.1)}"
        assert finish(run.launch(KILL_AT_SAVE=moment)) == [-signal.SIGKILL], run.output.read_text()
    assert finish(run.launch()) == [0], run.output.read_text()
    assert_same(run.read(), whole.read())
    assert run.predict(shared_dataset) == whole.predict(shared_dataset)
    assert not list(run.last.parent.glob(".*.tmp")), "what a killed process had begun to write is gone"


@pytest.mark.parametrize(("number", "num_workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 0)])
def test_a_signal_is_met_by_saving(
    number: int, num_workers: int, whole: Run, shared_dataset: Path, tmp_path: Path
) -> None:
    """With loading processes it comes to them, too, as from torchrun."""
    run = Run(shared_dataset, tmp_path, "--SAVE_EVERY_MINUTES=0", f"--NUM_WORKERS={num_workers}")
    process = run.launch()
    while process.is_alive() and "first step" not in (run.output.read_text() if run.output.exists() else ""):
        time.sleep(0.005)
    assert process.pid
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == num_workers
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, number)
    assert finish(process) == [utils.Stopped.STATUS], run.output.read_text()
    text = run.output.read_text()
    assert f"{signal.Signals(number).name}: saving after this step" in text
    assert "the same command goes on from there" in text
    assert "Traceback" not in text
    saved = checkpoints.load(run.last)["training_state"]
    assert (saved["state"]["epoch"], saved["state"]["step"]) >= (0, 1)
    assert finish(run.launch()) == [0]
    assert "resumes  after epoch" in run.output.read_text()
    assert_same(run.read(), whole.read())


def test_a_full_disk_costs_nothing_that_was_saved(whole: Run, shared_dataset: Path, tmp_path: Path) -> None:
    """Files may not grow beyond half a checkpoint: a line, status 1, the last one as it was; then it goes on."""
    run = Run(shared_dataset, tmp_path)
    process = run.launch()
    wait_for_save(run, process)
    process.kill()
    finish(process)
    before = run.last.read_bytes()
    assert finish(run.launch(FILE_SIZE_LIMIT=str(len(before) // 2))) == [1]
    text = run.output.read_text()
    assert f"error: cannot write {run.last}: File too large: a limit (`ulimit -f`)" in text
    assert run.last.read_bytes() == before
    assert not list(run.last.parent.glob(".*.tmp"))
    assert finish(run.launch()) == [0]
    assert_same(run.read(), whole.read())


def test_the_same_command_started_twice_is_refused_and_does_no_harm(
    whole: Run, shared_dataset: Path, tmp_path: Path, fails: Any
) -> None:
    run = Run(shared_dataset, tmp_path)
    process = run.launch()
    wait_for_save(run, process)
    assert f"{run.last.parent} is in use by process {process.pid} on " in fails(training.main, run.arguments)
    assert finish(process) == [0], run.output.read_text()
    assert_same(run.read(), whole.read())
    assert not [*run.folder.rglob(".lock"), *run.folder.rglob("*.tmp")]


class Killed(BaseException):
    """What ends a run at once; unlike SIGKILL, it leaves the process of the tests alive."""


@pytest.mark.parametrize("num_renames", [3, 12, 13])
def test_killed_among_its_last_files_it_is_not_trained_again_and_has_one_line_in_the_diary(
    num_renames: int, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the 12th file, the diary, and after the 13th, beside the one that says that the run has finished."""
    run = Run(shared_dataset, tmp_path, "--NUM_EPOCHS=1", "--SAVE_EVERY_MINUTES=0")
    finish_run, replace, renamed = training.finish, os.replace, []

    def replace_and_die(source: Path, target: Path) -> None:
        replace(source, target)
        renamed.append(target.name)
        if len(renamed) == num_renames:
            raise Killed

    def finish_until_killed(run: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace_and_die)
            finish_run(run)

    with monkeypatch.context() as patched:
        patched.setattr(training, "finish", finish_until_killed)
        with pytest.raises(Killed):
            training.main(run.arguments)
    assert renamed[11:] == ["runs.csv", "last.json"][: num_renames - 11]
    with monkeypatch.context() as patched:
        patched.setattr(training, "train_epoch", None)
        training.main(run.arguments)
    assert checkpoints.load(run.last)["training_state"]["state"]["finished"]
    assert len((tmp_path / "trained_models" / "runs.csv").read_text().splitlines()) == 2


# ---- what is refused ----


@pytest.fixture
def interrupted(shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that ended after its first epoch."""
    run = Run(shared_dataset, tmp_path, "--SAVE_EVERY_MINUTES=0")

    def stop(*arguments: object) -> None:
        raise utils.Stopped("here")

    monkeypatch.setattr(training, "stop_if_asked", stop)
    with pytest.raises(utils.Stopped):
        training.main(run.arguments)
    monkeypatch.undo()
    return run


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classes": ["a", "b", "c"]}, "is of another classes, ['a', 'b', 'c']: delete it, or set RESUME = 'never'"),
        ({"head": "linear"}, "is of another head, linear"),
        ({"model_name": "resnet18"}, "is of another model_name, resnet18"),
        ({"model_state": {"weight": torch.zeros(1)}}, "does not fit this model"),
    ],
)
def test_another_models_state_is_refused(change: dict[str, Any], expected: str, interrupted: Run, fails: Any) -> None:
    checkpoints.save(interrupted.last, checkpoints.load(interrupted.last) | change)
    assert expected in fails(training.main, interrupted.arguments)


def test_a_run_whose_checkpoint_is_gone_says_so_before_it_trains(interrupted: Run, fails: Any) -> None:
    (checkpoint,) = interrupted.last.parent.parent.glob("*.pt")
    checkpoint.unlink()
    line = fails(training.main, interrupted.arguments)
    assert f"goes on from epoch 1, and {checkpoint} is gone: delete it, or set RESUME = 'never'" in line


def test_the_state_of_another_run_is_refused(interrupted: Run, fails: Any) -> None:
    last = checkpoints.load(interrupted.last)
    saved, constants = last["training_state"], last["config"]
    for change, expected in (
        ({"config": constants | {"SEED": 9}}, f"is of another run: its SEED is 9, here {constants['SEED']}: delete it"),
        ({"config": constants | {"SPLIT_SEED": 9}}, f"its SPLIT_SEED is 9, here {constants['SPLIT_SEED']}: delete it"),
        ({"dataset": {"fingerprint": "0123456789abcdef"}}, "is of a run with other images or labels"),
        ({"training_state": saved | {"state": saved["state"] | {"epoch": 99}}}, "says that 99 epochs are done, and"),
    ):
        checkpoints.save(interrupted.last, last | change)
        assert expected in fails(training.main, interrupted.arguments)
    checkpoints.save(interrupted.last, last)
    training.main(interrupted.arguments)


def test_a_search_of_the_head_draws_its_folds_by_split_seed(tmp_path: Path) -> None:
    """So that seed names its run, also where the data set has a val split of its own."""
    table = Table([f"{number}.jpg" for number in range(6)], np.eye(6, 2, dtype=np.int8), ("red", "green"))
    data = Data(table, table.select(range(4)), table.select([4, 5]), "csv", val_is_drawn=False)
    for fit, names_apart in (("steps", False), ("search", True)):
        names = []
        for seed in (1, 2):
            line = f"--HEAD linear --HEAD_FIT {fit} --NUM_EPOCHS 1 --UNFREEZE_BACKBONE_EPOCH 0 --SPLIT_SEED {seed}"
            overrides.apply(line.split(), config)
            names.append(records.name_files(data).checkpoint.name)
        assert (names[0] != names[1]) == names_apart


def test_other_embeddings_in_the_same_file_are_another_run(tmp_path: Path) -> None:
    table = Table([f"{number}.jpg" for number in range(6)], np.eye(6, 2, dtype=np.int8), ("red", "green"))
    data = Data(table, table.select(range(4)), table.select([4, 5]), "csv")
    path = tmp_path / "words.txt"
    names = []
    for text in ("red 1 2\ngreen 3 4\n", "red 1 2\ngreen 3 5\n"):
        path.write_text(text)
        overrides.apply(["--HEAD=gcn", f"--GCN_EMBEDDINGS={path}"], config)
        names.append(records.name_files(data).checkpoint.name)
    assert names[0] != names[1]


def test_seed_drew_the_split_before_there_was_split_seed() -> None:
    drawn: Any = SimpleNamespace(val_is_drawn=True)
    given: Any = SimpleNamespace(val_is_drawn=False)
    constants = {"SEED": 7, "SPLIT_SEED": 3}
    assert [records._find_split_seed(constants, data) for data in (drawn, given)] == [3, None]
    assert [records._find_split_seed({"SEED": 7}, data) for data in (drawn, given)] == [7, None]


def test_images_that_moved_to_the_val_split_are_another_run() -> None:
    """Else a run would go on, or keep a checkpoint, that has learned from what it is validated on."""
    paths = [f"{number}.jpg" for number in range(6)]
    table = Table(paths, np.eye(6, 2, dtype=np.int8), ("red", "green"))

    def divide(*val: int) -> Data:
        train = [row for row in range(6) if row not in val]
        return Data(table, table.select(train), table.select(list(val)), "csv", val_is_drawn=False)

    def drawn(*val: int) -> Data:
        return divide(*val)._replace(val_is_drawn=True)

    names = [records.name_files(data).checkpoint for data in (divide(0, 1), divide(0, 2), divide(0, 1))]
    assert names[0] == names[2] != names[1]
    assert records.name_files(drawn(0, 1)).checkpoint == records.name_files(drawn(0, 2)).checkpoint, "by SPLIT_SEED"
    first = divide(0, 1)
    dataset = {"fingerprint": table.fingerprint(), "val_fingerprint": first.val.fingerprint()}
    assert records._is_same_data(dataset, first)
    assert not records._is_same_data(dataset, divide(0, 2))
    assert records._is_same_data(dataset, drawn(0, 2))
    assert records._is_same_data(dataset, first._replace(files_fingerprint="b")), "an older run does not say"
    assert not records._is_same_data(dataset | {"files_fingerprint": "a"}, first._replace(files_fingerprint="b"))


def test_other_pictures_under_the_same_names_are_not_taken_for_the_same(
    dataset: Path, tmp_path: Path, fails: Any
) -> None:
    small_run = [*make_small_run(dataset, tmp_path), "--NUM_EPOCHS=1"]
    training.main(small_run)
    (checkpoint,) = config.TRAINED_MODELS_FOLDER.glob("mobilenet_v2/*.pt")
    path = next(iter(sorted(dataset.glob("images/train-resized/*"))))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    training.main(small_run)  # a file that was touched is the same
    before = checkpoint.read_bytes()
    with Image.open(path) as image:
        larger = image.resize((90, 70))
    larger.save(path)
    line = fails(training.main, small_run)
    assert line.startswith(f"error: {checkpoint} is of images with these names and labels, but other sizes in bytes")
    assert checkpoint.read_bytes() == before


def test_a_damaged_state_is_refused_and_a_malicious_one_does_nothing(
    interrupted: Run, fails: Any, tmp_path: Path
) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "attacked"),)

    whole = interrupted.last.read_bytes()
    interrupted.last.write_bytes(whole[: len(whole) // 2])
    assert "it is damaged or cut short: delete it, or set RESUME = 'never'" in fails(
        training.main, interrupted.arguments
    )
    torch.save({"format": checkpoints.FORMAT, "version": 1, "model_state": Malicious()}, interrupted.last)
    assert "it holds Python objects that could run code" in fails(training.main, interrupted.arguments)
    assert not (tmp_path / "attacked").exists()


def test_a_signal_while_the_state_is_read_does_not_call_it_damaged(
    interrupted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.load

    def load_late(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", load_late)
    with pytest.raises(utils.Stopped, match="the same command goes on"):
        training.main(interrupted.arguments)


# ---- what a run leaves ----


def test_an_epoch_interrupted_in_validation_keeps_its_loss_steps_and_seconds(
    whole: Run, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, validate, calls = Run(shared_dataset, tmp_path, "--SAVE_EVERY_MINUTES=10"), validation.validate, []

    def break_off(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return validate(*arguments)

    monkeypatch.setattr(training, "LONG_EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(validation, "validate", break_off)
    with pytest.raises(MemoryError):
        training.main(run.arguments)
    saved = checkpoints.load(run.last)["training_state"]["state"]
    assert (saved["epoch"], saved["step"]) == (1, 4)
    assert saved["seconds"] == saved["history"][0]["seconds"]
    training.main(run.arguments)
    found, expected = (each.read() for each in (run, whole))
    for one, other in zip(found["state"]["history"], expected["state"]["history"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert one["steps"] == other["steps"] > 0
    assert found["processes"][0]["doctor"]["num_steps"] == expected["processes"][0]["doctor"]["num_steps"]
    history = checkpoints.load(run.last)["training_state"]["state"]["history"]
    assert history[1]["seconds"] >= saved["epoch_seconds"] > 0


def test_a_run_goes_on_where_gradients_are_scaled(interrupted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one from a CPU does on a GPU without bf16."""
    make_scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: make_scaler(device, enabled=True))
    assert checkpoints.load(interrupted.last)["training_state"]["engine"]["scaler"] == {}
    training.main(interrupted.arguments)
    saved = checkpoints.load(interrupted.last)["training_state"]
    assert saved["state"]["finished"]
    assert saved["engine"]["scaler"]["scale"] == 2.0**16


def test_another_number_of_processes_goes_on_with_what_the_doctor_found(interrupted: Run) -> None:
    last = checkpoints.load(interrupted.last)
    last["training_state"]["processes"][0]["doctor"]["findings"] = {"copies": "there are copies"}
    last["training_state"]["processes"] *= 2
    checkpoints.save(interrupted.last, last)
    training.main(interrupted.arguments)
    result = json.loads((interrupted.last.parent / "train_result.json").read_text())
    assert result["findings"][0] == "there are copies"


def test_a_signal_in_the_final_saving_waits_for_its_end(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_run = training.finish

    def finish_late(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        finish_run(*arguments)

    monkeypatch.setattr(training, "finish", finish_late)
    run = Run(shared_dataset, tmp_path, "--NUM_EPOCHS=1")
    training.main(run.arguments)
    assert checkpoints.load(run.last)["training_state"]["state"]["finished"]
    assert len((tmp_path / "trained_models" / "runs.csv").read_text().splitlines()) == 2


def test_a_signal_after_the_last_file_says_nothing_of_going_on() -> None:
    with Interruption("the same command goes on") as interruption:
        interruption.end()
        os.kill(os.getpid(), signal.SIGTERM)
    assert not interruption.came


@pytest.mark.parametrize(("resume", "ending"), [("auto", ""), ("never", " with --RESUME auto")])
def test_how_to_go_on_is_said(
    resume: str, ending: str, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "start_run", stop)
    with pytest.raises(utils.Stopped, match=f"^SIGTERM; what was saved last stays: the same command{ending} goes on"):
        training.main([*Run(shared_dataset, tmp_path).arguments, f"--RESUME={resume}"])


def test_result_diary_log_and_kept_epochs(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is made to favour the averaged weights: those are what is kept and noted."""
    score = validation._score

    def favour(run: Any, network: Any, loader: Any, title: str) -> Any:
        scores = score(run, network, loader, title)
        return scores._replace(probabilities=scores.targets if "averaged" in title else 1 - scores.targets)

    monkeypatch.setattr(validation, "_score", favour)
    run = Run(shared_dataset, tmp_path, "--SAVE_EVERY_N_EPOCHS=2", "--SAVE_EVERY_MINUTES=0")
    training.main(run.arguments)
    folder = run.last.parent
    result = json.loads((folder / "train_result.json").read_text())
    best = checkpoints.load(config.BEST_MODEL_PATH)
    assert result["done_flag"] is True
    assert result["label_dict"] == {"0": "red", "1": "green", "2": "blue"}
    assert result["models"]["best"]["score"] == best["best_f1"] == result["models"]["best"]["metrics"]["f1_weighted"]
    assert Path(result["models"]["best"]["file"]).is_file()
    assert result["config"]["EMA_DECAY"] == 0.9
    assert sorted(path.name for path in folder.glob("*.pth")) == ["model_epoch_002.pth", "model_epoch_004.pth"]
    kept, last = checkpoints.load(folder / "model_epoch_004.pth"), checkpoints.load(run.last)["training_state"]
    record = last["state"]["history"][3]
    assert record["val_f1_averaged"] == 1 > record["val_f1_raw"]
    averaged = {name.removeprefix("module."): value for name, value in last["engine"]["average"].items()}
    averaged.pop("n_averaged")
    assert_same(kept["model_state"], averaged)
    assert (kept["epoch"], kept["weights"]) == (4, "averaged")
    assert (kept["best_f1"], kept["best_threshold"]) == (record["val_f1"], record["threshold"])
    log = (folder / "train.log").read_text()
    assert "first step:" in log
    assert "epoch   4" in log
    names, line = (tmp_path / "trained_models" / "runs.csv").read_text().splitlines()
    entry = dict(zip(names.split(","), line.split(","), strict=True))
    assert (entry["model_name"], entry["epochs"], entry["configuration"]) == ("mobilenet_v2", "4", folder.name)
    assert float(entry["best_f1"]) == pytest.approx(best["best_f1"], abs=1e-4)
    training.main([*run.arguments, "--SEED=1000"])
    assert len((tmp_path / "trained_models" / "runs.csv").read_text().splitlines()) == 3
