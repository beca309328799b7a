"""What a run can be watched by: TensorBoard scalars, PR curves and pictures, and training curves as one PNG.

`TensorBoardLogger(folder)` writes event files (`tensorboard --logdir runs`); `TensorBoardLogger(None)` is
switched off. Values come as arguments. TensorBoard and matplotlib take seconds to import, so a run that uses
neither imports neither.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import utils

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
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
DPI = 100
PICTURE_INCHES, LINE_INCHES, GAP_INCHES = 2.4, 0.17, 0.15  # of the grid of validation pictures
GRID_COLUMNS = 4
LABEL_LINES = 6  # under each picture, always, so that the grids of all epochs have one size
# Okabe & Ito (2008): told apart with any colour vision; the sign says the same without colour
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#00795A", "#666666"


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images, targets, probabilities = np.asarray(images), np.asarray(targets), np.asarray(probabilities)
    columns = min(GRID_COLUMNS, len(images))
    cell_width = PICTURE_INCHES + GAP_INCHES
    cell_height = PICTURE_INCHES + LABEL_LINES * LINE_INCHES + GAP_INCHES
    width, height = GAP_INCHES + columns * cell_width, 2 * LINE_INCHES + math.ceil(len(images) / columns) * cell_height
    figure = Figure(figsize=(width, height), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    for i, image in enumerate(images):
        left = GAP_INCHES + i % columns * cell_width
        bottom = height - 2 * LINE_INCHES - i // columns * cell_height - PICTURE_INCHES
        axes = figure.add_axes((left / width, bottom / height, PICTURE_INCHES / width, PICTURE_INCHES / height))
        axes.imshow(image.transpose(1, 2, 0))
        axes.set_axis_off()
        for line, (text, colour) in enumerate(_describe(targets[i], probabilities[i], thresholds, classes)):
            y = bottom - (line + 0.75) * LINE_INCHES
            # without parse_math=False, dollar signs in a class name would be read as a formula
            figure.text(left / width, y / height, text, color=colour, fontsize=9, parse_math=False)
    x = GAP_INCHES
    for text, colour in ("✓ found", GREEN), ("○ missed", BLUE), ("✗ false", ORANGE):
        figure.text(x / width, 1 - 1.2 * LINE_INCHES / height, text, color=colour, fontsize=9, weight="bold")
        x += 0.9
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _describe(
    targets: np.ndarray, probabilities: np.ndarray, thresholds: float | ArrayLike, classes: Sequence[str]
) -> list[tuple[str, str]]:
    """The (text, colour) lines under one picture: mistakes first, the highest probability first among equals."""
    predicted, present, known = probabilities >= np.asarray(thresholds), targets == 1, targets >= 0
    kinds = (
        ("✗ {}", ORANGE, predicted & known & ~present),
        ("○ {} missed", BLUE, ~predicted & present),
        ("✓ {}", GREEN, predicted & present),
        ("? {} not annotated", GREY, predicted & ~known),
    )
    lines = []
    for form, colour, chosen in kinds:
        for c in sorted(np.flatnonzero(chosen).tolist(), key=lambda c: -probabilities[c]):
            name = classes[c] if len(classes[c]) <= 20 else classes[c][:19] + "…"
            lines.append((f"{form.format(name)} {probabilities[c]:.2f}", colour))
    if len(lines) > LABEL_LINES:
        return [*lines[: LABEL_LINES - 1], (f"and {len(lines) - LABEL_LINES + 1} more", GREY)]
    return lines or [("no labels, none predicted", GREY)]


def save_training_curves(history: Sequence[Record], path: Path) -> None:
    """A PNG of what `draw_training_curves` draws."""
    figure = draw_training_curves(history)
    utils.write_atomically(path, lambda file: figure.savefig(file, format="png"))


def draw_training_curves(history: Sequence[Record]) -> Figure:
    """Loss, F1 and mAP, learning rates and threshold over the epochs of `history`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores, rates, thresholds = figure.subplots(2, 2, sharex=True).flat
    _plot(losses, history, "loss", {"train_loss": ("train", ORANGE, "-"), "val_loss": ("validation", BLUE, "-")})
    lines = {
        "val_f1": ("F1 validation", BLUE, "-"),
        "train_f1": ("F1 train", ORANGE, "-"),
        "val_mAP": ("mAP validation", BLUE, "--"),
        "train_mAP": ("mAP train", ORANGE, "--"),
    }
    _plot(scores, history, "F1 and mAP", lines)
    lines = {"lr_head": ("head", ORANGE, "-"), "lr_backbone": ("backbone", BLUE, "--")}
    _plot(rates, history, "learning rate", lines)
    if any(record.get(key, 0) > 0 for record in history for key in lines):
        rates.set_yscale("log", nonpositive="mask")  # a schedule may end at 0
    _plot(thresholds, history, "threshold", {"threshold": ("threshold", GREEN, "-")})
    for axes in (rates, thresholds):
        axes.set_xlabel("epoch")
    losses.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if history:  # room for one epoch that stands alone
        losses.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    _mark_epochs(figure, history)
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def _plot(axes: Axes, history: Sequence[Record], title: str, lines: dict[str, tuple[str, str, str]]) -> None:
    """Draw `lines` (record key -> label, colour, line style); an epoch without the key has no point."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for key, (label, colour, style) in lines.items():
        points = [(record["epoch"], record[key]) for record in history if key in record]
        if points:  # points show where measured, and alone make one epoch visible; in long runs they blur
            marker = None if len(points) > 30 else "o" if style == "-" else "s"
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, markersize=4, label=label)


def _mark_epochs(figure: Figure, history: Sequence[Record]) -> None:
    """Mark the best validation F1, and where the backbone was unfrozen."""
    validated = [record for record in history if math.isfinite(record.get("val_f1", math.nan))]
    if validated:
        best = max(validated, key=lambda record: record["val_f1"])  # the first of equals, like the checkpoint
        label = f"best: {best['val_f1']:.3f}, epoch {best['epoch']}"
        figure.axes[1].plot(best["epoch"], best["val_f1"], "*", color="black", markersize=13, zorder=3, label=label)
    for before, after in itertools.pairwise(history):
        if before.get("frozen") and not after.get("frozen", True):
            for axes in figure.axes:  # between the epochs: an epoch's numbers are those at its end
                label = "backbone unfrozen" if axes is figure.axes[0] else None
                axes.axvline(after["epoch"] - 0.5, color=GREY, linestyle=":", linewidth=1.2, label=label)
