"""What a run can be watched by: TensorBoard scalars, PR curves and pictures.

`TensorBoardLogger(folder)` writes event files (`tensorboard --logdir runs`); `TensorBoardLogger(None)` is
switched off. Values come as arguments. TensorBoard takes seconds to import, so a run without it does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import utils
from evaluation.pages import cut
from evaluation.palette import DARK
from evaluation.pictures import BAND, draw_labels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Record = dict[str, float | int | bool]  # the numbers of one epoch; "epoch" counts from 1

# TensorBoard draws the tags of one group side by side; a key that is not here is its own tag
TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_f1": "f1/train",
    "val_f1": "f1/val",
    "val_f1_cross_fitted": "f1/val_cross_fitted",
    "train_mAP": "mAP/train",
    "val_mAP": "mAP/val",
    "lr_backbone": "learning_rate/backbone",
    "lr_head": "learning_rate/head",
    "images_per_second": "speed/images_per_second",
    "seconds": "speed/seconds",
}

PR_CURVE_THRESHOLDS = 127  # the most that TensorBoard's plugin takes
PICTURE_SIDE, GAP = 320, 12  # pixels, of the grid of validation pictures
GRID_COLUMNS = 4
LABEL_LINES = 6  # under each picture, always, so that the grids of all epochs have one size
SIGNS = {"✓ found": DARK["green"], "○ missed": DARK["blue"], "✗ false": DARK["orange"]}


class TensorBoardLogger:
    """Writes a run's numbers, PR curves and pictures to `folder`; with None every method does nothing.

    Of an earlier run that stopped, what it wrote of `first_epoch` and later is no longer shown.
    Raises utils.InputError when the folder cannot be written.
    """

    def __init__(self, folder: Path | None, first_epoch: int = 1) -> None:
        self.writer = None
        if folder is None:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        try:
            self.writer = SummaryWriter(str(folder), purge_step=first_epoch)
        except OSError as error:
            raise utils.InputError(f"cannot write TensorBoard files to {folder}: {error}") from error

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def add_epoch(self, record: Record) -> None:
        """One scalar for each number of an epoch's record."""
        if self.writer is None:
            return
        for key, value in record.items():
            if key != "epoch":
                self.writer.add_scalar(TAGS.get(key, key), float(value), int(record["epoch"]))
        self.writer.flush()  # a run that is killed in the next epoch keeps this one

    def add_pr_curves(self, probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], epoch: int) -> None:
        """Precision over recall of all classes together (micro) and of each class that has a positive.

        `probabilities` and `targets` are (N, C); targets are 1, 0 or, left out as unknown, -1 or NaN.
        """
        if self.writer is None:
            return
        probabilities, targets = np.asarray(probabilities), np.asarray(targets)
        known = targets >= 0  # False for NaN too
        curves = {"micro": (targets[known], probabilities[known])}
        for c, name in enumerate(classes):
            curves[f"class/{name}"] = (targets[known[:, c], c], probabilities[known[:, c], c])
        for name, (labels, scores) in curves.items():
            if labels.any():
                self.writer.add_pr_curve(f"pr_curve/{name}", labels, scores, epoch, PR_CURVE_THRESHOLDS)

    def add_pictures(
        self,
        images: ArrayLike,
        targets: ArrayLike,
        probabilities: ArrayLike,
        thresholds: float | ArrayLike,
        classes: Sequence[str],
        epoch: int,
    ) -> None:
        """The pictures as `draw_pictures` draws them."""
        if self.writer is None or len(np.asarray(images)) == 0:
            return
        picture = draw_pictures(images, targets, probabilities, thresholds, classes)
        self.writer.add_image("pictures/val", picture, epoch, dataformats="HWC")

    def add_hparams(self, constants: dict[str, object], metrics: dict[str, float]) -> None:
        """The run's constants and final metrics, for TensorBoard's table that compares runs."""
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in constants.items()}
        tagged = {f"hparam/{name}": float(value) for name, value in metrics.items()}
        # SummaryWriter.add_hparams would open a second event file, and TensorBoard (without its fast loader) leaves
        # a file for good once a newer one is there: whatever this writer added later would not be shown
        for summary in hparams(plain, tagged):
            self.writer._get_file_writer().add_summary(summary)
        for tag, value in tagged.items():
            self.writer.add_scalar(tag, value)


def draw_pictures(
    images: ArrayLike,
    targets: ArrayLike,
    probabilities: ArrayLike,
    thresholds: float | ArrayLike,
    classes: Sequence[str],
) -> np.ndarray:
    """A uint8 (height, width, 3) grid of uint8 (B, 3, H, W) images, each above its labels and predictions.

    `targets` (unknown: -1 or NaN) and `probabilities` are (B, C), `thresholds` a float or (C,).
    """
    cells = []
    for image, row_targets, row in zip(np.asarray(images), np.asarray(targets), np.asarray(probabilities), strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0)).resize((PICTURE_SIDE, PICTURE_SIDE))
        texts, colours = zip(*_describe(row_targets, row, thresholds, classes), strict=True)
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
    """The (text, colour) lines under one picture: mistakes first, the highest probability first among equals."""
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
    if len(lines) > LABEL_LINES:
        return [*lines[: LABEL_LINES - 1], (f"and {len(lines) - LABEL_LINES + 1} more", DARK["soft"])]
    return lines or [("no labels, none predicted", DARK["soft"])]
