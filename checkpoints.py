"""What a run leaves on disk: checkpoints (.pt), their sidecars (.json), and the state an interrupted run resumes.

A checkpoint holds tensors and plain Python types only. Beside it lies a sidecar with everything but the
tensors, so that a table of many runs needs no torch. Files are written aside and renamed: complete or absent.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from utils import InputError, write_atomically, write_text

FORMAT, VERSION = "multilabel-checkpoint", 1
TENSORS = ("model_state", "training_state")  # what a sidecar leaves out
REQUIRED = ("model_state", "model_name", "head", "classes", "image_size", "resize_rule")


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write `checkpoint` and its sidecar. Raises InputError when there is no space; the old file then stays."""
    import torch

    checkpoint = {"format": FORMAT, "version": VERSION, **checkpoint}
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
    sidecar = {key: value for key, value in checkpoint.items() if key not in TENSORS}
    write_text(path.with_suffix(".json"), json.dumps(sidecar, indent=1))


def load(path: Path) -> dict[str, Any]:
    """The checkpoint in `path`. Raises InputError unless it is a whole one of this project; runs no code from it."""
    import torch

    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: run training.py first, or set the path to one that exists")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways, all of them the file's
        reason = (
            "it holds Python objects that could run code" if "GLOBAL" in str(error) else "it is damaged or cut short"
        )
        raise InputError(f"cannot load checkpoint {path}: {reason}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this project (no format {FORMAT!r} in it)")
    missing = [key for key in REQUIRED if key not in checkpoint]
    if checkpoint.get("version") != VERSION or missing:
        raise InputError(
            f"{path} is a checkpoint of version {checkpoint.get('version')} without {missing}: train again"
        )
    return checkpoint


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """The metadata of the checkpoint `path`, from its sidecar; None where there is no readable one."""
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) and sidecar.get("format") == FORMAT else None


def read_best_f1(path: Path) -> float:
    """The best F1 that the checkpoint at `path` says it reached; -1 where there is none."""
    if not path.is_file():
        return -1.0
    metadata = read_sidecar(path) or load(path)
    return float(metadata["best_f1"])


class RunFiles(NamedTuple):
    """Where a run's files lie: its checkpoint beside, the rest in `folder`."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.pt")

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def log(self) -> Path:
        return self.folder / "log.csv"

    @property
    def text_log(self) -> Path:
        return self.folder / "train.log"

    @property
    def result(self) -> Path:
        return self.folder / "train_result.json"

    @property
    def bad_batch(self) -> Path:
        return self.folder / "non_finite_batch.pt"

    def name_epoch(self, epoch: int) -> Path:
        """The model as it was after `epoch`."""
        return self.folder / f"model_epoch_{epoch:03}.pth"

    @property
    def curves(self) -> Path:
        return self.folder / "training_curves.png"


@dataclass
class RunState:
    """How far a run is: what it resumes from, besides model, optimizer and schedule. Plain types only."""

    epoch: int = 0  # the last one that is done
    step: int = 0  # steps done of the next one
    loss_total: float = 0.0  # of those steps: mean loss x images
    num_images: int = 0  # of those steps
    epoch_seconds: float = 0.0  # that those steps took; with what came before them, once all are taken
    num_taken: int = 0  # of those steps, with finite gradients
    num_left_out: int = 0  # of those steps, without
    rates: dict[str, float] = field(default_factory=dict)  # learning rates at that epoch's start
    num_skipped: int = 0  # steps left out in the whole run
    best_f1: float = -1.0
    best_epoch: int = 0
    best_threshold: float | None = None
    threshold: float | None = None  # the last validation's
    stopping_f1: float = -1.0  # the F1 that early stopping counts from
    validations_without_gain: int = 0
    seconds: float = 0.0  # spent in the epochs that are done
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # a record an epoch

    def note_validation(self, epoch: int, f1: float, threshold: float, min_delta: float) -> bool:
        """Take note of a validation; whether it is the run's best."""
        self.threshold = threshold
        if f1 > self.stopping_f1 + min_delta:
            self.stopping_f1, self.validations_without_gain = f1, 0
        else:
            self.validations_without_gain += 1
        if f1 <= self.best_f1:
            return False
        self.best_f1, self.best_epoch, self.best_threshold = f1, epoch, threshold
        return True

    def close_epoch(self, record: dict[str, Any]) -> None:
        """Take the epoch's record into the history."""
        self.seconds += record["seconds"]
        self.epoch, self.step, self.loss_total, self.num_images, self.epoch_seconds = record["epoch"], 0, 0.0, 0, 0.0
        self.num_taken = self.num_left_out = 0
        self.history.append(record)


def name_model(model_name: str) -> str:
    """The backbone's name as part of a path: `timm/resnet18` is no folder in a folder."""
    return model_name.replace("/", "-")


def name_configuration(constants: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A file name (without ending) for a configuration: a few constants to read, and a hash of all in `identity`."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    lr = constants["HEAD_BASE_LR"] if constants["USE_DIFFERENTIAL_LR"] else constants["LEARNING_RATE"]
    frozen = constants["UNFREEZE_BACKBONE_EPOCH"] if constants["FREEZE_BACKBONE_AT_START"] else 1
    return (
        f"{constants['HEAD']}_{constants['IMAGE_SIZE']}px_bs{constants['TRAIN_BATCH_SIZE']}_ep{constants['NUM_EPOCHS']}"
        f"_lr{lr:g}_unfreeze{frozen}_seed{constants['SEED']}_{digest}"
    )


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """The records of all epochs as CSV."""
    text = io.StringIO()
    names = dict.fromkeys(name for record in history for name in record)
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def add_to_diary(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to the CSV file `path`, with a first line of names where it is new; several runs may write it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, entry, lineterminator="\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", newline="") as file:
            if not file.tell():
                writer.writeheader()
            writer.writerow(entry)
            file.write(text.getvalue())  # in one piece: another run's line does not get in between
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


@functools.cache
def describe_environment(device: str) -> dict[str, str]:
    """Where a run took place: git commit, versions, processor or GPU."""
    import platform
    import subprocess
    from importlib.metadata import version

    here = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    commit = git.stdout.strip() or "unknown"
    return {"git_commit": commit, "python": platform.python_version(), **versions, "device": device}
