"""The files of a run: names, the log of its epochs, its line in the diary of all runs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils import InputError, write_text


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
    """Add a line to the CSV file `path`, after a first line of names if it is new; several runs may write it.

    An existing file keeps its columns: a value for which it has none is left out.
    """
    text = io.StringIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+", encoding="utf-8", newline="") as file:
            file.seek(0)
            names = next(csv.reader(file), None)
            writer = csv.DictWriter(text, names or [*entry], restval="", extrasaction="ignore", lineterminator="\n")
            if not names:
                writer.writeheader()
            writer.writerow(entry)
            file.write(text.getvalue())  # in one piece: another run's line does not get in between
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
