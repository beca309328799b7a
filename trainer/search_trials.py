"""One trial of search.py: a run of training.py in a process of its own, watched, and stopped where it is of no use.

    outcome = run(recipe, log, "best_f1", watch)        # watch(epoch, figure) -> why to stop, or None
    outcome.state, outcome.figure, outcome.reason

A run that fails, also for want of memory, does not end the search: the last line that it printed is the reason.
"""

from __future__ import annotations

import csv
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import config
from dataset import json_files, whole_files
from trainer.run_files import RunFiles
from utils import InputError, Stopped

TRAINING = Path(__file__).parents[1] / "training.py"
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_SAVE = 120.0  # that a run has to end in once it was asked to; then it is killed
COLUMNS = {"best_f1": "val_f1", "mAP": "val_mAP"}  # of log.csv, by the name of the figure


class Why(Enum):
    """Why a run is stopped before its end."""

    PRUNED = "it cannot be better"
    INTERRUPTED = "the search ends"  # the run can go on from what it saved


class Outcome(NamedTuple):
    """What came of a trial."""

    state: str  # complete, pruned, failed, interrupted
    figure: float | None = None  # on the validation images; None unless it is complete
    reason: str = ""  # why it failed or was stopped, in one line
    run: Path | None = None  # the checkpoint
    dataset: str = ""  # fingerprint of the images and labels
    val_dataset: str = ""  # and of those that the figure is over
    num_images: int | None = None  # of these


def run(recipe: Path, log: Path, metric: str, watch: Callable[[int | None, float | None], Why | None]) -> Outcome:
    """Run `python training.py RECIPE`; what it prints goes to the file `log`.

    `watch` is called with each epoch and its figure, and with None, None from time to time: what it returns ends the
    run. A run that was pruned leaves nothing to go on with, and its folder says so.
    """
    seen, why = 0, None
    log.parent.mkdir(parents=True, exist_ok=True)
    process = start(recipe, log)
    try:
        while process.poll() is None and why is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            records = read_epochs(find_files(log), metric)
            for epoch, figure in records[seen:]:
                why = why or watch(epoch, figure)
            seen = len(records)
            why = why or watch(None, None)
    finally:
        _end(process)
    return _judge(process.returncode, why, log, metric)


def start(recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    """Begin the run of a recipe."""
    with open(log, "wb") as output:
        # in a session of its own: Ctrl-C reaches this process alone, which then asks the run to save and end
        return subprocess.Popen(
            [sys.executable, str(TRAINING), str(recipe)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to save and end, and wait until it has."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _judge(status: int, why: Why | None, log: Path, metric: str) -> Outcome:
    files = find_files(log)
    if status == 0 and files:
        return read_result(files, metric)
    if why and status in (Stopped.STATUS, -signal.SIGTERM, -signal.SIGKILL):
        if why is Why.PRUNED and files:
            give_up(files)
        state = "pruned" if why is Why.PRUNED else "interrupted"
        return Outcome(state, reason=why.value, run=files and files.checkpoint)
    return Outcome("failed", reason=explain_failure(status, log), run=files and files.checkpoint)


def read_result(files: RunFiles, metric: str) -> Outcome:
    """What a finished run reached."""
    try:
        best = json_files.read_json(files.result)["models"]["best"]
        figure = float(best["score"] if metric == "best_f1" else best["metrics"]["mAP"])
        dataset = json_files.read_json(files.checkpoint.with_suffix(".json"))["dataset"]
        fingerprint, val_fingerprint = str(dataset["fingerprint"]), str(dataset.get("val_fingerprint", ""))
        files_fingerprint = str(dataset.get("files_fingerprint", ""))
        num_images = int(dataset["num_val"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        return Outcome("failed", reason=f"{files.result} cannot be read: {error}", run=files.checkpoint)
    if figure != figure:
        return Outcome("failed", reason=f"its {metric} is no number", run=files.checkpoint)
    return Outcome(
        "complete",
        figure,
        run=files.checkpoint,
        dataset=f"{fingerprint} {files_fingerprint}".strip(),
        val_dataset=val_fingerprint,
        num_images=num_images,
    )


def give_up(files: RunFiles) -> None:
    """Leave nothing of a stopped run that a later one would go on from, and say so in its folder."""
    for path in (files.last, files.last.with_suffix(".json")):
        path.unlink(missing_ok=True)
    text = "search.py stopped this run early: other trials were better at the same epoch. It cannot be resumed.\n"
    whole_files.write_text(files.stopped_early, text)


def find_files(log: Path) -> RunFiles | None:
    """The files of the run that prints to `log`, by the line `run` that it begins with; None before that line."""
    match = re.search(r"^ +run  (\S+)$", _read_log(log), re.MULTILINE)
    if match is None:
        return None
    folder = next(config.TRAINED_MODELS_FOLDER.glob(f"*/{match[1]}"), None)
    return RunFiles(folder) if folder else None


def read_epochs(files: RunFiles | None, metric: str) -> list[tuple[int, float]]:
    """(epoch, figure) of the epochs of a run that were validated so far, from its log.csv."""
    if files is None:
        return []
    with suppress(OSError, ValueError):  # it is not there yet
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(files.log.read_text(encoding="utf-8"))))
        return [(int(row["epoch"]), float(row[COLUMNS[metric]])) for row in rows if row.get(COLUMNS[metric])]
    return []


def explain_failure(status: int, log: Path) -> str:
    """Why a run failed, in one line: its error, or how it was killed."""
    if status < 0:
        name = signal.Signals(-status).name if -status in [*signal.Signals] else str(-status)
        advice = ": the memory may have been full" if -status == signal.SIGKILL else ""
        return f"it was ended by {name}{advice}"
    lines = [line.strip() for line in _read_log(log).splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"it ended with status {status}"])[-1]


def _read_log(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace")
    return ""
