"""Writes what a run can be watched by in TensorBoard: scalars, PR curves and pictures.

    with TensorBoardLogger(folder) as logger:     # then: tensorboard --logdir runs
        logger.add_epoch({"epoch": 1, "train_loss": 0.3, "val_loss": 0.4})

TensorBoard draws a chart for each tag, and a line in it for each folder. What is measured on both splits therefore has
one tag, and is written to the folders `train` and `val` in `folder`: their losses are two lines of one chart.

`TensorBoardLogger(None)` is switched off. TensorBoard takes seconds to import, so a run without it does not import it.
trainer/loggers.py has the other loggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

import utils
from dataset.drawing import BAND, draw_labels
from dataset.fonts import make_drawable
from evaluation.pages import cut
from evaluation.palette import DARK

Record = dict[str, Any]  # the numbers of one epoch, None where there is none; "epoch" counts from 1

# keys: numbers of a record; values: their tags. The word before the first slash is the group, in which charts stand
# side by side; what ends in /train or /val is of that split. A number that is not listed has its key as tag.
TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_f1": "f1/train",
    "val_f1": "f1/val",
    "best_f1": "f1/best",
    "best_mAP": "best/mAP",
    "best_epoch": "best/epoch",
    "best_threshold": "best/threshold",
    "val_f1_cross_fitted": "f1/cross_fitted/val",
    "val_f1_raw": "f1/raw/val",
    "val_f1_averaged": "f1/averaged/val",
    "train_mAP": "mAP/train",
    "val_mAP": "mAP/val",
    "val_accuracy": "accuracy/val",
    "lr_backbone": "learning_rate/backbone",
    "lr_head": "learning_rate/head",
    "images_per_second": "speed/images_per_second",
    "waiting_share": "speed/waiting_share",
    "preparation_seconds": "speed/preparation_seconds",
    "seconds": "speed/seconds",
}
SPLITS = ("train", "val")

# Numbers of a record that are the same in all epochs of most runs. A chart of a constant says nothing: they are written
# from the first epoch on as soon as they change.
OFTEN_CONSTANT = (
    "frozen", "steps", "steps_left_out", "steps_overflowed", "preparation_seconds", "waiting_share", "lr_backbone",
    "lr_head",
)  # fmt: skip

MAX_PR_CURVES = 100  # of classes, those with the most positives
PR_CURVE_THRESHOLDS = 127  # the most that TensorBoard's plugin takes
PICTURE_SIDE, GAP = (
    320,
    12,
)  # in pixels: width of a picture in the grid of validation pictures, and the space between two
GRID_COLUMNS = 4
LABEL_LINES = 6  # under every picture, so that the grids of all epochs have the same size
SIGNS = {"✓ found": DARK["green"], "○ missed": DARK["blue"], "✗ false": DARK["orange"]}


class TensorBoardLogger:
    """Writes a run's numbers, PR curves and pictures to `folder`. If `folder` is None, the methods do nothing.

    A run that is resumed goes on at `first_epoch`: TensorBoard no longer shows what was written for this epoch and
    later ones before. `history` is the records of the epochs before it. Raises utils.InputError if the folder cannot be
    written.
    """

    def __init__(self, folder: Path | None, first_epoch: int = 1, history: Sequence[Record] = ()) -> None:
        self.writer = None
        self.splits: dict[str, Any] = {}  # the writers of SPLITS
        self.history = list(history)
        if folder is None:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        try:
            self.writer = SummaryWriter(str(folder), purge_step=first_epoch)
            self.splits = {name: SummaryWriter(str(folder / name), purge_step=first_epoch) for name in SPLITS}
        except OSError as error:
            raise utils.InputError(f"cannot write TensorBoard files to {folder}: {error}") from error

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.writer is not None:
            for writer in (self.writer, *self.splits.values()):
                writer.close()

    def add_epoch(self, record: Record) -> None:
        """Write one scalar for each number of an epoch's record; of OFTEN_CONSTANT, those that have changed."""
        if self.writer is None:
            return
        for key, value in record.items():
            if key != "epoch" and value is not None:
                for due in self._list_due(key, record):
                    self._add_scalar(TAGS.get(key, key), due[key], due["epoch"])
        self.history.append(record)
        self._flush()  # so that this epoch is not lost if the run is killed in the next one

    def _list_due(self, key: str, record: Record) -> list[Record]:
        """The records whose number `key` is to be written now that there is `record`."""
        earlier = [past for past in self.history if past.get(key) is not None]
        values = {past[key] for past in earlier}
        if key not in OFTEN_CONSTANT or len(values) > 1:
            return [record]
        return [*earlier, record] if values - {record[key]} else []

    def _add_scalar(self, tag: str, value: float, epoch: int) -> None:
        """Write a number where its tag says: to the folder of its split, or to the run's own."""
        assert self.writer is not None
        chart, _, split = tag.rpartition("/")
        writer, tag = (self.splits[split], chart) if split in SPLITS else (self.writer, tag)
        writer.add_scalar(tag, float(value), int(epoch))

    def _flush(self) -> None:
        assert self.writer is not None
        for writer in (self.writer, *self.splits.values()):
            writer.flush()

    def add_pr_curves(self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], epoch: int) -> None:
        """Write PR curves: one of all classes together (micro), and one of each class that has a positive.

        Of more than MAX_PR_CURVES classes, those with the most positives are written.

        `probabilities` and `targets` are (N, C). Targets are 1, 0, or unknown (-1 or NaN), which are left out.
        """
        if self.writer is None:
            return
        for c, (labels, scores) in choose_curves(probabilities, targets, MAX_PR_CURVES).items():
            tag = "pr_curve/micro" if c is None else f"pr_curve/class/{utils.make_visible(classes[c])}"
            self.writer.add_pr_curve(tag, labels, scores, epoch, num_thresholds=PR_CURVE_THRESHOLDS)

    def add_picture(self, picture: np.ndarray, epoch: int) -> None:
        """Write the grid of validation pictures, uint8 (height, width, 3), as `draw_pictures` draws it."""
        if self.writer is not None:
            self.writer.add_image("pictures/val", picture, epoch, dataformats="HWC")

    def add_hparams(self, constants: dict[str, object], metrics: dict[str, float]) -> None:
        """Write the run's constants and final metrics, for TensorBoard's table that compares runs.

        `best_f1` has a chart, whose last value the table shows; another metric gets a chart of this one value.
        """
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        plain_constants = {
            name: value if isinstance(value, bool | int | float) else utils.make_visible(str(value))
            for name, value in constants.items()
        }
        tags = {name: TAGS[name] if name == "best_f1" else f"hparam/{name}" for name in metrics}
        # Not by SummaryWriter.add_hparams, which opens a second event file: TensorBoard (without its fast loader) stops
        # reading a file when there is a newer one, so it would not show what this writer adds later.
        for summary in hparams(plain_constants, dict.fromkeys(tags.values(), 0.0)):
            self.writer._get_file_writer().add_summary(summary)
        last = self.history[-1] if self.history else {"epoch": 0}
        for name, value in metrics.items():
            if last.get(name) != value:
                self._add_scalar(tags[name], value, last["epoch"])
        self._flush()


def choose_curves(
    probabilities: ArrayLike, targets: ArrayLike, count: int
) -> dict[int | None, tuple[np.ndarray, np.ndarray]]:
    """{class: its known labels and their probabilities} of the `count` classes with the most positives; None: of all.

    `probabilities` and `targets` (1, 0; unknown -1 or NaN) are (N, C). What has no positive is left out.
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    known = targets >= 0  # False also for NaN
    chosen: dict[int | None, tuple[np.ndarray, np.ndarray]] = {None: (targets[known], probabilities[known])}
    for c in np.argsort(-(targets == 1).sum(axis=0), kind="stable")[:count].tolist():
        chosen[c] = targets[known[:, c], c], probabilities[known[:, c], c]
    return {c: (labels, scores) for c, (labels, scores) in chosen.items() if labels.any()}


def draw_pictures(
    images: ArrayLike,
    targets: ArrayLike,
    probabilities: ArrayLike,
    thresholds: float | ArrayLike,
    classes: Sequence[str],
) -> np.ndarray:
    """Draw images uint8 (B, 3, H, W) as a grid, uint8 (height, width, 3), with labels and predictions under each.

    `targets` (unknown: -1 or NaN) and `probabilities` are (B, C), `thresholds` is a float or (C,).
    """
    images, cells, names = np.asarray(images), [], make_drawable(classes)
    picture_height = max(1, round(PICTURE_SIDE * images.shape[2] / images.shape[3]))
    rows = zip(images, np.asarray(targets), np.asarray(probabilities), strict=True)
    for image, image_targets, image_probabilities in rows:
        picture = Image.fromarray(image.transpose(1, 2, 0)).resize((PICTURE_SIDE, picture_height))
        lines = _describe(image_targets, image_probabilities, thresholds, names)
        texts, colours = [text for text, _ in lines], [colour for _, colour in lines]
        cells.append(draw_labels(np.asarray(picture), texts, colours, LABEL_LINES))
    heading = draw_labels(np.asarray(Image.new("RGB", (PICTURE_SIDE, 1), BAND)), [*SIGNS], [*SIGNS.values()])
    width, height = cells[0].width + GAP, cells[0].height + GAP
    columns = min(GRID_COLUMNS, len(cells))
    num_rows = -(-len(cells) // columns)
    grid = Image.new("RGB", (columns * width - GAP, heading.height + num_rows * height - GAP), BAND)
    grid.paste(heading)
    for number, cell in enumerate(cells):
        grid.paste(cell, (number % columns * width, heading.height + number // columns * height))
    return np.array(grid)


def _describe(
    targets: np.ndarray, probabilities: np.ndarray, thresholds: float | ArrayLike, classes: Sequence[str]
) -> list[tuple[str, str]]:
    """The lines (text, colour) under one picture: mistakes first; within a kind, high probabilities first.

    `targets` and `probabilities` are (C,).
    """
    predicted, present, known = probabilities >= np.asarray(thresholds), targets == 1, targets >= 0
    kinds = (
        ("✗ {}", DARK["orange"], predicted & known & ~present),
        ("○ {} missed", DARK["blue"], ~predicted & present),
        ("✓ {}", DARK["green"], predicted & present),
        ("? {} not annotated", DARK["soft"], predicted & ~known),
    )
    lines = []
    for form, colour, chosen in kinds:
        for c in sorted(np.flatnonzero(chosen).tolist(), key=lambda c: -probabilities[c]):
            lines.append((f"{form.format(cut(classes[c], 20))} {probabilities[c]:.2f}", colour))
    if not lines:
        return [("no labels, none predicted", DARK["soft"])]
    if len(lines) > LABEL_LINES:
        num_shown = LABEL_LINES - 1
        return [*lines[:num_shown], (f"and {len(lines) - num_shown} more", DARK["soft"])]
    return lines
