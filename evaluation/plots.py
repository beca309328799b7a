"""How good the predictions of a labelled split are, in files: each class's numbers as CSV, and pictures.

`save_report(folder, ending, ...)` writes evaluate_classes.csv, evaluate_confusion.png, evaluate_precision_recall.png
and evaluate_reliability.png, with `ending` before the dot; where each image has and gets one label also
evaluate_class_confusion.csv and .png.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import calibration
import metrics
from dataset import fonts, whole_files
from dataset.text_files import CsvFile
from evaluation.drawing import save_figure, style_axes
from evaluation.pages import cut
from evaluation.palette import LIGHT
from evaluation.tables import guard_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = (LIGHT[name] for name in ("blue", "orange", "soft"))
MAX_PANELS = 100  # of classes in a picture: those with the most positives; the CSV has them all
MAX_COLUMNS = 10
MAX_CLASSES = 60  # in a picture of which class is taken for which
DPI = 110
SIDE = 1.1  # inches of the square panel of a class
GAPS = (0.3, 0.45)  # inches between two panels, across and upward, where the name stands
MARGINS = (0.6, 0.5, 0.65)  # inches on the left, below, and above, where the title and the first row's names stand
MAX_POINTS = 500  # of a curve in a panel of about a hundred pixels
EDGE = 0.02  # between a curve's 0 or 1 and the edge of its panel
PAD = 3.5 / 72  # inches between a panel and what is written beside it


def save_report(
    folder: Path,
    ending: str,
    classes: Sequence[str],
    probabilities: ArrayLike,
    targets: ArrayLike,
    columns: Mapping[str, ArrayLike],
    confusion: NDArray[np.int64],
    ece: float,
    class_confusion: NDArray[np.int64] | None = None,
) -> list[Path]:
    """Write the files and return their paths.

    `columns` are `metrics.measure_classes` of the (N, C) probabilities and targets, `confusion` (C, 2, 2) their
    `metrics.confusion`, and `class_confusion` (C, C) `metrics.confuse_classes` where each image has one label.
    """
    table = folder / f"evaluate_classes{ending}.csv"
    whole_files.write_atomically(table, lambda file: write_classes(file, classes, columns, confusion))
    curves = metrics.precision_recall_curve(probabilities, targets)
    figures = {
        "confusion": draw_confusion(classes, confusion),
        "precision_recall": draw_precision_recall(classes, curves, columns),
        "reliability": draw_reliability(calibration.measure_reliability(probabilities, targets), ece),
    }
    paths = [table]
    if class_confusion is not None:
        figures["class_confusion"] = draw_class_confusion(classes, class_confusion)
        paths.append(folder / f"evaluate_class_confusion{ending}.csv")
        write = partial(write_class_confusion, classes=classes, counts=class_confusion)
        whole_files.write_atomically(paths[-1], write)
    for name, figure in figures.items():
        path = folder / f"evaluate_{name}{ending}.png"
        save_figure(figure, path)
        paths.append(path)
    return paths


def write_classes(
    path: Path, classes: Sequence[str], columns: Mapping[str, ArrayLike], confusion: NDArray[np.int64]
) -> None:
    """CSV: a line a class with its `columns` and the four counts of its confusion matrix; undefined is empty.

    It is for people: names are as `tables.guard_cell` writes them, and exact in evaluate_result.json.
    """
    (tn, fp), (fn, tp) = confusion.transpose(1, 2, 0)
    counts = {"true_positives": tp, "false_positives": fp, "false_negatives": fn, "true_negatives": tn}
    table = {name: np.asarray(values) for name, values in {**columns, **counts}.items()}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(CsvFile(file))
        writer.writerow(["class", *table])
        for name, *row in zip(classes, *(values.tolist() for values in table.values()), strict=True):
            values = [value if isinstance(value, int) else "" if math.isnan(value) else f"{value:.6g}" for value in row]
            writer.writerow([guard_cell(name), *values])


def draw_confusion(classes: Sequence[str], confusion: NDArray[np.int64]) -> Figure:
    """The (C, 2, 2) matrices of `metrics.confusion`: each cell with its count, coloured by its share of the row."""
    title = "Confusion matrices: images, and in colour their share of the row"
    names = [cut(name, 18) for name in fonts.make_drawable(classes)]
    panels = make_panels(title, names, confusion[:, 1].sum(axis=1))
    panels.name_sides("predicted", {0.25: "no", 0.75: "yes"}, "present", {0.75: "no", 0.25: "yes"})
    shares = (confusion / np.maximum(confusion.sum(axis=2, keepdims=True), 1))[[*panels.corners]]
    cells = [
        np.column_stack(panels.place(c, [left, left + 0.5, left + 0.5, left], [top, top, top - 0.5, top - 0.5]))
        for c in panels.corners
        for top in (1.0, 0.5)
        for left in (0.0, 0.5)
    ]
    panels.add("PolyCollection", cells, array=shares.ravel(), cmap="Blues", clim=(0, 1), antialiased=False)
    for c, share in zip(panels.corners, shares, strict=True):
        for (present, predicted), value in np.ndenumerate(share):
            ink, text = "white" if value > 0.55 else "black", _count(confusion[c, present, predicted])
            place = panels.place(c, 0.25 + 0.5 * predicted, 0.75 - 0.5 * present)
            panels.axes.text(*place, text, color=ink, fontsize=8, ha="center", va="center")
    return panels.figure


def write_class_confusion(path: Path, classes: Sequence[str], counts: NDArray[np.int64]) -> None:
    """CSV: the (C, C) counts of `metrics.confuse_classes`, a line for each class that is there. It is for people."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(CsvFile(file))
        writer.writerow(["is / taken for", *map(guard_cell, classes)])
        writer.writerows([guard_cell(name), *row] for name, row in zip(classes, counts.tolist(), strict=True))


def draw_class_confusion(classes: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """The (C, C) counts of `metrics.confuse_classes`, coloured by their share of the row.

    Of more than MAX_CLASSES classes those with the most images are drawn.
    """
    from matplotlib.figure import Figure

    chosen = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:MAX_CLASSES])
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(chosen, chosen)]
    side = max(5.0, 0.32 * len(chosen) + 2.2)  # inches
    figure = Figure(figsize=(side, side), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        count = int(counts[chosen[row], chosen[column]])
        if count:
            ink = "white" if share > 0.55 else "black"
            axes.text(column, row, _count(count), color=ink, fontsize=7.5, ha="center", va="center")
    drawable = fonts.make_drawable(classes)
    names = [cut(drawable[int(c)], 18) for c in chosen]
    lettering: dict[str, Any] = {"parse_math": False, "fontfamily": fonts.list_families(names)}
    axes.set_xticks(range(len(chosen)), names, rotation=60, ha="right", rotation_mode="anchor", **lettering)
    axes.set_yticks(range(len(chosen)), names, **lettering)
    axes.tick_params(length=0, labelsize=8, labelcolor=GREY)
    axes.set_xlabel("taken for", color=GREY)
    axes.set_ylabel("is", color=GREY)
    title = "Which class images are taken for, and in colour their share of the row"
    if len(chosen) < len(classes):
        title += f"\nthe {len(chosen)} classes with the most images of {len(classes)}"
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.spines[:].set_visible(False)
    return figure


def draw_precision_recall(
    classes: Sequence[str], curves: Iterable[metrics.Curve], columns: Mapping[str, ArrayLike]
) -> Figure:
    """Precision over recall of each class, with its AP, and a point where its predictions lie, if it has any.

    The point of a threshold lies on the curve. MIN_LABELS and MAX_LABELS can move it away.
    """
    numbers = {name: np.asarray(values) for name, values in columns.items()}
    title = "Precision over recall, AP beside the name; the point is the threshold's"
    names = [
        f"{cut(name, 13)} {'–' if math.isnan(ap) else f'{ap:.2f}'}"
        for name, ap in zip(fonts.make_drawable(classes), numbers["AP"].tolist(), strict=True)
    ]
    panels = make_panels(title, names, numbers["positives"])
    ticks = {_inset(value): text for value, text in ((0, "0"), (0.5, "0.5"), (1, "1"))}
    panels.name_sides("recall", ticks, "precision", ticks)
    grid, areas, lines, points = [], [], [], []
    for c, curve in enumerate(curves):
        if c not in panels.corners:
            continue
        for tick in ticks:
            grid += [np.column_stack(panels.place(c, *ends)) for ends in (([tick] * 2, [0, 1]), ([0, 1], [tick] * 2))]
        _, precision, recall = curve.thin_out(MAX_POINTS, numbers["predicted"][c])
        if not len(recall):
            panels.axes.text(*panels.place(c, 0.5, 0.6), "no positives", color=GREY, fontsize=7.5, ha="center")
            continue
        # steps, as AP adds them up: each score's precision holds back to the recall before it
        edges, heights = np.append(0, recall).repeat(2)[1:-1], precision.repeat(2)
        lines.append(np.column_stack(panels.place(c, _inset(edges), _inset(heights))))
        ends = np.column_stack(panels.place(c, _inset(edges[[-1, 0]]), _inset(np.zeros(2))))
        areas.append(np.concatenate([lines[-1], ends]))
        if numbers["predicted"][c]:
            points.append(panels.place(c, _inset(numbers["R"][c]), _inset(numbers["P"][c])))
    panels.add("LineCollection", grid, color=LIGHT["line"], linewidth=0.7, zorder=0.5)
    panels.add("PolyCollection", areas, color=BLUE, alpha=0.13, linewidth=0)
    panels.add("LineCollection", lines, color=BLUE, linewidth=1.3, joinstyle="miter")
    panels.axes.plot(*np.reshape(points, (-1, 2)).T, "o", color=ORANGE, markersize=4)
    return panels.figure


def draw_reliability(bins: calibration.Reliability, ece: float) -> Figure:
    """How often a label is there over the probability that was given, and how often that was; all classes pooled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.4), dpi=DPI)
    grid = {"left": 0.105, "right": 0.972, "bottom": 0.074, "top": 0.922, "hspace": 0.0636}
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1), gridspec_kw=grid)
    width = 1 / len(bins.counts)
    lefts = np.arange(len(bins.counts)) * width
    filled = bins.counts > 0
    given, found = bins.probability[filled], bins.present[filled]
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    upper.bar(lefts[filled], found, width, align="edge", color=BLUE, alpha=0.25, edgecolor="white")
    upper.vlines(given, given, found, color=ORANGE, linewidth=2, label="gap, which ECE averages")
    # whole markers at 0 and 1, in front of the axes' edge
    upper.plot(given, found, "o", color=BLUE, markersize=5, label="found", clip_on=False, zorder=3)
    upper.set_title(f"Reliability of all classes' probabilities: ECE {ece:.4f}", loc="left", fontsize=10.5, pad=24)
    upper.set_ylabel("share of labels that are there")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    # above the axes, for bars can be anywhere in them
    upper.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, ncols=3, fontsize=9)
    lower.bar(lefts, bins.counts, width, align="edge", color=BLUE, alpha=0.6, edgecolor="white")
    lower.set_yscale("log", nonpositive="clip")
    lower.set_ylim(bottom=0.7)
    lower.set_ylabel("entries")
    lower.set_xlabel("probability")
    style_axes(upper)
    style_axes(lower)
    return figure


class Panels(NamedTuple):
    """A figure with a square panel for each class that is drawn. All lie on one axes, whose unit is an inch.

    To make, lay out and draw an axes for each class would take most of the time.
    """

    figure: Figure
    axes: Axes
    corners: dict[int, tuple[float, float]]  # {class: left and lower edge of its panel}

    def place(self, c: int, across: ArrayLike, upward: ArrayLike) -> tuple[Any, Any]:
        """Where points lie on the axes that are given as shares of the panel of class `c`, from its lower left."""
        left, bottom = self.corners[c]
        return left + SIDE * np.asarray(across), bottom + SIDE * np.asarray(upward)

    def add(self, kind: str, shapes: Sequence[NDArray[Any]], **style: Any) -> None:
        """Draw all `shapes`, each points (n, 2) on the axes, as one collection of matplotlib, of the class `kind`."""
        from matplotlib import collections

        self.axes.add_collection(getattr(collections, kind)(shapes, **style), autolim=False)

    def name_sides(self, across: str, columns: Mapping[float, str], upward: str, rows: Mapping[float, str]) -> None:
        """Write below and at the left what the sides of all panels are, and {share of the side: text} of their ticks.

        The ticks' texts stand below the last panel of each column, and at the left of the first one of each row.
        """
        lefts, bottoms = zip(*self.corners.values(), strict=True)
        middle, height = (min(lefts) + max(lefts) + SIDE) / 2, (min(bottoms) + max(bottoms) + SIDE) / 2
        self.axes.text(middle, 0.08, across, fontsize=9, color=GREY, ha="center", va="bottom")
        self.axes.text(0.1, height, upward, fontsize=9, color=GREY, rotation=90, ha="left", va="center")
        style: dict[str, Any] = {"fontsize": 7.5, "color": GREY}
        lowest = dict(self.corners.values())  # the last one of a column
        for left, bottom in lowest.items():
            for share, text in columns.items():
                self.axes.text(left + SIDE * share, bottom - PAD, text, ha="center", va="top", **style)
        for bottom in set(bottoms):
            for share, text in rows.items():
                place = min(lefts) - PAD, bottom + SIDE * share
                self.axes.text(*place, text, ha="right", va="center_baseline", **style)


def make_panels(title: str, names: Sequence[str], positives: NDArray[Any]) -> Panels:
    """Panels of the classes with the most `positives` (C,), MAX_PANELS at most, under their `names` and a title."""
    from matplotlib.figure import Figure

    chosen: list[int] = sorted(np.argsort(-positives, kind="stable")[:MAX_PANELS].tolist())
    columns = min(max(3, math.ceil(math.sqrt(2 * len(chosen)))), MAX_COLUMNS)
    rows = math.ceil(len(chosen) / columns)
    right, top = MARGINS[0] + columns * (SIDE + GAPS[0]) - GAPS[0], MARGINS[1] + rows * (SIDE + GAPS[1]) - GAPS[1]
    width, height = max(right + 0.2, 5.5), top + MARGINS[2]
    if len(chosen) < len(names):
        height += 0.2  # for the title's second line
        title += f"\nthe {len(chosen)} classes with the most positives of {len(names)}; evaluate_classes has all"
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.suptitle(title, x=0.1 / width, y=1 - 0.1 / height, ha="left", fontsize=10.5)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), xticks=[], yticks=[])
    axes.set_axis_off()
    panels = Panels(figure, axes, {})
    families = fonts.list_families(names[c] for c in chosen)
    for number, c in enumerate(chosen):
        row, column = divmod(number, columns)
        panels.corners[c] = MARGINS[0] + column * (SIDE + GAPS[0]), top - row * (SIDE + GAPS[1]) - SIDE
        left, upper = panels.place(c, 0, 1)
        # without parse_math=False, dollar signs in a class name would be read as a formula
        axes.text(left, upper + 3 / 72, names[c], fontsize=8.5, fontfamily=families, parse_math=False)
    return panels


def _inset(values: ArrayLike) -> Any:
    """Numbers from 0 to 1 as shares of a panel's side, with EDGE left free at both ends."""
    return (np.asarray(values) + EDGE) / (1 + 2 * EDGE)


def _count(count: int) -> str:
    """A count in the width of a cell."""
    if count < 100_000:
        return f"{count:,}"
    return f"{count / 1e3:,.0f}k" if count < 10_000_000 else f"{count / 1e6:,.0f}M"
