"""The names of a run's files, the log of its epochs, and its line in the diary of all runs.

    files = RunFiles(folder / name_configuration(constants, identity))
    write_log(files.log, history)
    add_to_diary(folder / "runs.csv", {"model_name": "resnet50", "best_f1": "0.9123"})

Values come as arguments: nothing here reads config.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_sizes import as_size
from dataset.locks import LOCK, hold
from dataset.text_files import CsvFile
from dataset.whole_files import write_text
from utils import InputError

WHICH_RUN = ("finished", "model_name", "configuration")  # columns of the diary that no two runs have the same


class RunFiles(NamedTuple):
    """Where the files of a run lie: all in `folder`, except the checkpoint, which lies beside it."""

    folder: Path
    fold_of: str = ""  # the name of the configuration that this is a fold of; "": it is none

    @property
    def run(self) -> str:
        """The run's name, "<model>/<configuration>"."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def checkpoint(self) -> Path:
        """The best model of this configuration."""
        return self.folder.with_name(f"{self.folder.name}.pt")

    @property
    def last(self) -> Path:
        """What an interrupted run resumes from."""
        return self.folder / "last.pt"

    @property
    def log(self) -> Path:
        """The record of every epoch, as CSV."""
        return self.folder / "log.csv"

    @property
    def text_log(self) -> Path:
        """All that was printed."""
        return self.folder / "train.log"

    @property
    def recipe(self) -> Path:
        """All constants of the run."""
        return self.folder / "recipe.py"

    @property
    def result(self) -> Path:
        """What came out of the run."""
        return self.folder / "train_result.json"

    @property
    def stopped_early(self) -> Path:
        """That a search stopped the run before its end."""
        return self.folder / "stopped_early.txt"

    @property
    def bad_batch(self) -> Path:
        """The batch at which a run stopped because its gradient was not finite."""
        return self.folder / "non_finite_batch.pt"

    @property
    def curves(self) -> Path:
        """The picture of the training curves."""
        return self.folder / "training_curves.png"

    def name_epoch(self, epoch: int) -> Path:
        """The file of the model as it was after `epoch`."""
        return self.folder / f"model_epoch_{epoch:03}.pth"


def are_other_files(fingerprint: str, other: str) -> bool:
    """Whether image files of the same names were other pictures, by the fingerprints of their sizes; "": not known."""
    return len({fingerprint, other} - {""}) == 2


def name_configuration(constants: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A file name, without ending, for a configuration: a few constants, and a hash of everything in `identity`.

    Example: "linear_bn_224px_bs32_ep40_lr0.001_unfreeze5_seed0_1a2b3c4d". An image size that is not square stands in
    it as height x width: "linear_bn_256x448px_...". With FOLDS the name says which fold of how many it is, or that it
    is of all: "..._seed0_fold2of5_...", "..._seed0_5folds_...".
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    lr = constants["HEAD_BASE_LR"] if constants["USE_DIFFERENTIAL_LR"] else constants["LEARNING_RATE"]
    frozen = constants["UNFREEZE_BACKBONE_EPOCH"] if constants["FREEZE_BACKBONE_AT_START"] else 1
    folds = constants["FOLDS"]
    if folds:
        folds = f"_fold{identity['fold']}of{folds}" if "fold" in identity else f"_{folds}folds"
    return (
        f"{constants['HEAD']}_{as_size(constants['IMAGE_SIZE'])}px_bs{constants['TRAIN_BATCH_SIZE']}_ep{constants['NUM_EPOCHS']}"
        f"_lr{lr:g}_unfreeze{frozen}_seed{constants['SEED']}{folds or ''}_{digest}"
    )


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the records of all epochs as CSV. A record without one of the columns gets an empty cell."""
    text = io.StringIO()
    columns = dict.fromkeys(name for record in history for name in record)  # in the order they first appear
    writer = csv.DictWriter(CsvFile(text), columns, restval="")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def add_to_diary(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to the CSV file `path`, and before it a line of column names if the file is new.

    Several runs may write to the file. A run that was killed while it ended comes twice: a line with the values of
    WHICH_RUN of the `entry` is not added again. An existing file keeps its columns: a value for which it has none is
    left out. Raises InputError where the file cannot be read or written.
    """
    with hold(path.parent / LOCK):
        try:
            with open(path, encoding="utf-8", newline="") as file:
                before = file.read()
        except FileNotFoundError:
            before = ""
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}; move it away") from error
        rows = csv.DictReader(io.StringIO(before))
        if any(all(name in entry and row.get(name) == entry[name] for name in WHICH_RUN) for row in rows):
            return
        text = io.StringIO()
        names = rows.fieldnames or [*entry]
        writer = csv.DictWriter(CsvFile(text), names, restval="", extrasaction="ignore")
        if not rows.fieldnames:
            writer.writeheader()
        writer.writerow(entry)
        separator = "\n" if before and not before.endswith("\n") else ""
        write_text(path, f"{before}{separator}{text.getvalue()}")
