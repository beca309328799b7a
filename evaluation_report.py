"""How good the predictions of a labelled split are, in files: each class's numbers as CSV, and three pictures.

`save_report(folder, ending, ...)` writes evaluate_classes.csv, evaluate_confusion.png, evaluate_precision_recall.png
and evaluate_reliability.png, with `ending` before the dot.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import calibration
import metrics
import utils

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, PALE = "#2563c9", "#c2570c", "#6b7480", "#d5dae1"
MAX_PANELS = 200  # of classes in a picture: those with the most positives; the CSV has them all
MAX_COLUMNS = 10
DPI = 110
PANEL, GAP = 1.1, 0.2  # inches: the side of a class's panel, and what lies between two
NAME, TOP, SIDE = 0.22, 0.55, 0.62  # inches: the line above a panel, the title, the margin left and below
MAX_POINTS = 500  # of a curve in a panel of about a hundred pixels


def save_report(
    folder: Path,
    ending: str,
    classes: Sequence[str],
    probabilities: ArrayLike,
    targets: ArrayLike,
    columns: Mapping[str, ArrayLike],
    confusion: NDArray[np.int64],
    ece: float,
) -> list[Path]:
    """Write the files and return their paths.

    `columns` are `metrics.measure_classes` of the (N, C) probabilities and targets, `confusion` (C, 2, 2) their
    `metrics.confusion`.
    """
    table = folder / f"evaluate_classes{ending}.csv"
    utils.write_atomically(table, lambda file: write_classes(file, classes, columns, confusion))
    curves = metrics.precision_recall_curve(probabilities, targets)
    figures = {
        "confusion": draw_confusion(classes, confusion),
        "precision_recall": draw_precision_recall(classes, curves, columns),
        "reliability": draw_reliability(calibration.measure_reliability(probabilities, targets), ece),
    }
    paths = [table]
    for name, figure in figures.items():
        path = folder / f"evaluate_{name}{ending}.png"
        utils.write_atomically(path, lambda file, figure=figure: figure.savefig(file, format="png"))
        paths.append(path)
    return paths


def write_classes(
    path: Path, classes: Sequence[str], columns: Mapping[str, ArrayLike], confusion: NDArray[np.int64]
) -> None:
    """CSV: a line a class with its `columns` and the four counts of its confusion matrix; undefined is empty."""
    (tn, fp), (fn, tp) = confusion.transpose(1, 2, 0)
    counts = {"true_positives": tp, "false_positives": fp, "false_negatives": fn, "true_negatives": tn}
    table = {name: np.asarray(values) for name, values in {**columns, **counts}.items()}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *table])
        for name, *row in zip(classes, *(values.tolist() for values in table.values()), strict=True):
            values = [value if isinstance(value, int) else "" if math.isnan(value) else f"{value:.6g}" for value in row]
            writer.writerow([name, *values])


class Panels(NamedTuple):
    """A figure whose one pair of axes is measured in inches, and in it a place for each class that is drawn."""

    figure: Figure
    axes: Axes
    chosen: list[int]  # classes, in their order
    corners: list[tuple[float, float]]  # lower left ones
    columns: int


def draw_confusion(classes: Sequence[str], confusion: NDArray[np.int64]) -> Figure:
    """The (C, 2, 2) matrices of `metrics.confusion`: each cell with its count, coloured by its share of the row."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    positives = confusion[:, 1].sum(axis=1)
    title = "Confusion matrices: images, and in colour their share of the row"
    panels = _make_panels(title, classes, positives, [_cut(name, 18) for name in classes])
    boxes, shares = [], []
    half = PANEL / 2
    for number, (c, (x, y)) in enumerate(zip(panels.chosen, panels.corners, strict=True)):
        for present, row in enumerate(confusion[c].tolist()):
            bottom = y + (1 - present) * half
            for predicted, count in enumerate(row):
                share = count / max(sum(row), 1)
                left = x + predicted * half
                boxes.append(Rectangle((left, bottom), half, half))
                shares.append(share)
                ink = "white" if share > 0.55 else "black"
                center = left + half / 2, bottom + half / 2
                panels.axes.text(*center, _count(count), color=ink, fontsize=8.5, ha="center", va="center")
        _label(panels, number, "predicted", "present", {0.25: "no", 0.75: "yes"}, {0.75: "no", 0.25: "yes"})
    cells = PatchCollection(boxes, cmap="Blues", edgecolor="white", linewidth=0.8, zorder=0)
    cells.set_array(shares)
    cells.set_clim(0, 1)
    panels.axes.add_collection(cells)
    return panels.figure


def draw_precision_recall(
    classes: Sequence[str], curves: Iterable[metrics.Curve], columns: Mapping[str, ArrayLike]
) -> Figure:
    """Precision over recall of each class, with its AP, and a point where its threshold lies."""
    from matplotlib.collections import LineCollection, PolyCollection

    numbers = {name: np.asarray(values) for name, values in columns.items()}
    titles = [
        f"{_cut(name, 13)} {'–' if math.isnan(ap) else f'{ap:.2f}'}"
        for name, ap in zip(classes, numbers["AP"].tolist(), strict=True)
    ]
    title = "Precision over recall, AP beside the name; the point is the threshold's"
    panels = _make_panels(title, classes, numbers["positives"], titles)
    place = dict(zip(panels.chosen, panels.corners, strict=True))
    lines, areas = [], []
    for c, (_, precision, recall) in enumerate(curves):
        if c in place and len(recall):
            kept = np.unique(np.linspace(0, len(recall) - 1, MAX_POINTS).astype(int))
            precision, recall = precision[kept], recall[kept]
            # steps, as AP adds them up: each score's precision holds back to the recall before it
            steps = np.stack([np.repeat(np.append(0, recall), 2)[1:-1], np.repeat(precision, 2)], axis=1)
            lines.append(steps * PANEL + place[c])
            areas.append(np.concatenate([[[0, 0]], steps, [[1, 0]]]) * PANEL + place[c])
    axes = panels.axes
    grid = []
    for x, y in panels.corners:
        for at in (0, PANEL / 2, PANEL):
            grid += [[(x, y + at), (x + PANEL, y + at)], [(x + at, y), (x + at, y + PANEL)]]
    axes.add_collection(PolyCollection(areas, facecolor=BLUE, alpha=0.13, zorder=0))
    axes.add_collection(LineCollection(grid, colors=PALE, linewidth=0.7, zorder=1))
    axes.add_collection(LineCollection(lines, colors=BLUE, linewidth=1.3, zorder=2))
    points = [
        (x + PANEL * numbers["R"][c], y + PANEL * numbers["P"][c])
        for c, (x, y) in place.items()
        if numbers["positives"][c] > 0
    ]
    axes.scatter(*np.array(points).reshape(-1, 2).T, s=16, color=ORANGE, zorder=3)
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    for number, (c, (x, y)) in enumerate(zip(panels.chosen, panels.corners, strict=True)):
        _label(panels, number, "recall", "precision", ticks, ticks)
        if numbers["positives"][c] == 0:
            _write(axes, x + PANEL / 2, y + 0.6 * PANEL, "no positives", ha="center")
    return panels.figure


def draw_reliability(bins: calibration.Reliability, ece: float) -> Figure:
    """How often a label is there over the probability that was given, and how often that was; all classes pooled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / len(bins.counts)
    lefts = np.arange(len(bins.counts)) * width
    filled = bins.counts > 0
    given, found = bins.probability[filled], bins.present[filled]
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    upper.bar(lefts[filled], found, width, align="edge", color=BLUE, alpha=0.25, edgecolor="white")
    upper.vlines(given, given, found, color=ORANGE, linewidth=2, label="gap, which ECE averages")
    upper.plot(given, found, "o", color=BLUE, markersize=5, clip_on=False, label="found")
    upper.set_title(f"Reliability of all classes' probabilities: ECE {ece:.4f}", loc="left", fontsize=10.5)
    upper.set_ylabel("share of labels that are there")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.legend(frameon=False, loc="upper left")
    lower.bar(lefts, bins.counts, width, align="edge", color=BLUE, alpha=0.6, edgecolor="white")
    lower.set_yscale("log", nonpositive="clip")
    lower.set_ylim(bottom=0.7)
    lower.set_ylabel("entries")
    lower.set_xlabel("probability")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def _make_panels(title: str, classes: Sequence[str], positives: NDArray, names: Sequence[str]) -> Panels:
    """An empty figure with `title` and the `names` above the places of the classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen: list[int] = sorted(np.argsort(-positives, kind="stable")[:MAX_PANELS].tolist())
    columns = min(max(3, math.ceil(math.sqrt(2 * len(chosen)))), MAX_COLUMNS)
    rows = math.ceil(len(chosen) / columns)
    step, height_step = PANEL + GAP, PANEL + GAP + NAME
    width = max(SIDE + columns * step, 5.5)
    height = TOP + rows * height_step + SIDE - GAP
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    _write(axes, 0.15, height - 0.16, title, fontsize=10.5, color="black", va="top")
    if len(chosen) < len(classes):
        text = f"the {len(chosen)} classes with the most positives of {len(classes)}; evaluate_classes has all"
        _write(axes, 0.15, height - 0.36, text, va="top")
    corners = [
        (SIDE + n % columns * step, height - TOP - (n // columns + 1) * height_step + GAP) for n in range(len(chosen))
    ]
    for c, (x, y) in zip(chosen, corners, strict=True):
        _write(axes, x, y + PANEL + 0.05, names[c], color="black", fontsize=8.5)
    return Panels(figure, axes, chosen, corners, columns)


def _label(
    panels: Panels, number: int, across: str, upward: str, below: Mapping[float, str], beside: Mapping[float, str]
) -> None:
    """Name the axes of a panel, and ticks by their place from 0 to 1, where none is left of it or below it."""
    x, y = panels.corners[number]
    if number % panels.columns == 0:
        for place, text in beside.items():
            _write(panels.axes, x - 0.05, y + place * PANEL, text, ha="right", va="center")
        _write(panels.axes, x - 0.3, y + PANEL / 2, upward, rotation=90, ha="right", va="center")
    if number + panels.columns >= len(panels.chosen):
        for place, text in below.items():
            _write(panels.axes, x + place * PANEL, y - 0.05, text, ha="center", va="top")
        _write(panels.axes, x + PANEL / 2, y - 0.2, across, ha="center", va="top")


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    # without parse_math=False, dollar signs in a class name would be read as a formula
    axes.text(x, y, text, parse_math=False, **{"fontsize": 7.5, "color": GREY} | style)


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _count(count: int) -> str:
    """A count in the width of a cell."""
    if count < 100_000:
        return f"{count:,}"
    return f"{count / 1e3:,.0f}k" if count < 10_000_000 else f"{count / 1e6:,.0f}M"
