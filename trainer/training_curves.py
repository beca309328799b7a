"""Draws a run's training curves as one PNG: loss, F1 and mAP, learning rates and threshold over the epochs.

    with CurvesFile(path) as curves:
        curves.update(history, is_last=False)       # after each epoch

`history` is the list of the epochs' records, as training.py makes them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.drawing import save_figure, style_axes
from evaluation.palette import LIGHT
from tensorboard_logging import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = (LIGHT[name] for name in ("blue", "orange", "green", "soft"))


class CurvesFile:
    """Draws a run's curves into `path`, at most once a minute and at the end. With None as path it draws nothing.

    To draw takes a second of CPU time, which can be more than an epoch takes. At the end of the `with` block it draws
    what is not drawn yet, also when a signal or an error ends the run.
    """

    SECONDS_BETWEEN = 60.0

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.last_drawn = time.perf_counter()
        self.waiting: Sequence[Record] = ()  # the latest history, if it is not drawn yet

    def __enter__(self) -> CurvesFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self.waiting:
            self.update(self.waiting, is_last=True)

    def update(self, history: Sequence[Record], is_last: bool) -> float:
        """Draw `history` if a minute has passed or if it `is_last`. Returns the seconds that this took."""
        start = time.perf_counter()
        self.waiting = history
        if self.path and (is_last or start - self.last_drawn >= self.SECONDS_BETWEEN):
            save_training_curves(history, self.path)
            self.waiting, self.last_drawn = (), time.perf_counter()
        return time.perf_counter() - start


def save_training_curves(history: Sequence[Record], path: Path) -> None:
    """Write what `draw_training_curves` draws as a PNG."""
    save_figure(draw_training_curves(history), path)


def draw_training_curves(history: Sequence[Record]) -> Figure:
    """A figure of loss, F1 and mAP, learning rates and threshold over the epochs of `history`.

    A record that lacks a number (an epoch without validation, or without a step) has no point in that curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), dpi=100, layout="constrained")
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
        rates.set_yscale("log", nonpositive="mask")  # a rate of 0, at the end of a schedule, is left out
    _plot(thresholds, history, "threshold", {"threshold": ("threshold", GREEN, "-")})
    for axes in (rates, thresholds):
        axes.set_xlabel("epoch")
    losses.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if history:  # a fixed range, since one epoch alone has none
        losses.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    _mark_epochs(figure, history)
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def _plot(axes: Axes, history: Sequence[Record], title: str, lines: dict[str, tuple[str, str, str]]) -> None:
    """Draw `lines`, {key of the records: (label, colour, line style)}."""
    axes.set_title(title, loc="left", fontsize=11)
    style_axes(axes)
    for key, (label, colour, style) in lines.items():
        points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
        if points:
            # markers show which epochs were measured, and make a single epoch visible; many of them hide the line
            marker = None
            if len(points) <= 30:
                marker = "o" if style == "-" else "s"
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, markersize=4, label=label)


def _mark_epochs(figure: Figure, history: Sequence[Record]) -> None:
    """Mark the best validation F1 with a star, and the unfreezing of the backbone with a vertical line."""
    validated = [record for record in history if math.isfinite(record.get("val_f1", math.nan))]
    if validated:
        best = max(validated, key=lambda record: record["val_f1"])  # of equals the first, which is the checkpoint
        label = f"best: {best['val_f1']:.3f}, epoch {best['epoch']}"
        figure.axes[1].plot(best["epoch"], best["val_f1"], "*", color="black", markersize=13, zorder=3, label=label)
    for before, after in itertools.pairwise(history):
        if before.get("frozen") and not after.get("frozen", True):
            for axes in figure.axes:  # the line stands between two epochs: a point shows an epoch's end
                label = "backbone unfrozen" if axes is figure.axes[0] else None
                axes.axvline(after["epoch"] - 0.5, color=GREY, linestyle=":", linewidth=1.2, label=label)
