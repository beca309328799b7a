"""A run's training curves as one PNG: loss, F1 and mAP, learning rates and threshold over the epochs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.palette import LIGHT
from evaluation.pictures import save_figure, style_axes
from tensorboard_logging import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = (LIGHT[name] for name in ("blue", "orange", "green", "soft"))


class CurvesFile:
    """Draws a run's curves into `path`, at most once a minute and at the end; for None it draws nothing.

    A drawing costs a second of CPU time, which can be more than an epoch takes. Leaving the `with` block draws what is
    not drawn yet, also when a signal or an error ends the run.
    """

    SECONDS_BETWEEN = 60.0

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.last_drawn = time.perf_counter()
        self.waiting: Sequence[Record] = ()  # the history that is not drawn yet

    def __enter__(self) -> CurvesFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self.waiting:
            self.update(self.waiting, is_last=True)

    def update(self, history: Sequence[Record], is_last: bool) -> float:
        """Draw `history` if a minute has passed or it `is_last`. Returns the seconds that this took."""
        start = time.perf_counter()
        self.waiting = history
        if self.path and (is_last or start - self.last_drawn >= self.SECONDS_BETWEEN):
            save_training_curves(history, self.path)
            self.waiting, self.last_drawn = (), time.perf_counter()
        return time.perf_counter() - start


def save_training_curves(history: Sequence[Record], path: Path) -> None:
    """A PNG of what `draw_training_curves` draws."""
    save_figure(draw_training_curves(history), path)


def draw_training_curves(history: Sequence[Record]) -> Figure:
    """Loss, F1 and mAP, learning rates and threshold over the epochs of `history`."""
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
    style_axes(axes)
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
