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
from typing import TYPE_CHECKING

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
PANEL_WIDTH, PANEL_HEIGHT = 1.4, 1.55  # inches of the picture for a class, its name and its margins
GAPS = (0.3, 0.45)  # inches of it between two panels, across and upward: square panels of 1.1 inches remain
MARGINS = (0.6, 0.5, 0.65)  # inches on the left, below, and above, where the title and the first row's names stand
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
    names, ticks = [cut(name, 18) for name in fonts.make_drawable(classes)], {0.0: "no", 1.0: "yes"}
    figure, panels = _make_panels(title, "predicted", "present", ticks, names, confusion[:, 1].sum(axis=1))
    shares = confusion / np.maximum(confusion.sum(axis=2, keepdims=True), 1)
    for c, axes in panels.items():
        axes.imshow(shares[c], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (present, predicted), share in np.ndenumerate(shares[c]):
            ink = "white" if share > 0.55 else "black"
            text = _count(confusion[c, present, predicted])
            axes.text(predicted, present, text, color=ink, fontsize=8, ha="center", va="center")
    return figure


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
    names = [cut(classes[int(c)], 18) for c in chosen]
    axes.set_xticks(range(len(chosen)), names, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(chosen)), names, parse_math=False)
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
    """Precision over recall of each class, with its AP, and a point where its threshold lies."""
    numbers = {name: np.asarray(values) for name, values in columns.items()}
    title = "Precision over recall, AP beside the name; the point is the threshold's"
    names = [
        f"{cut(name, 13)} {'–' if math.isnan(ap) else f'{ap:.2f}'}"
        for name, ap in zip(fonts.make_drawable(classes), numbers["AP"].tolist(), strict=True)
    ]
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    figure, panels = _make_panels(title, "recall", "precision", ticks, names, numbers["positives"])
    for c, (_, precision, recall) in enumerate(curves):
        if c not in panels:
            continue
        axes = panels[c]
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), axisbelow=True)
        axes.grid(color=LIGHT["line"], linewidth=0.7)
        if not len(recall):
            axes.text(0.5, 0.6, "no positives", color=GREY, fontsize=7.5, ha="center")
            continue
        kept = np.unique(np.linspace(0, len(recall) - 1, MAX_POINTS).astype(int))
        # steps, as AP adds them up: each score's precision holds back to the recall before it
        edges, heights = np.append(0, recall[kept]), precision[kept]
        axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.13)
        axes.stairs(heights, edges, baseline=None, color=BLUE, linewidth=1.3)
        axes.plot(numbers["R"][c], numbers["P"][c], "o", color=ORANGE, markersize=4)
    return figure


def draw_reliability(bins: calibration.Reliability, ece: float) -> Figure:
    """How often a label is there over the probability that was given, and how often that was; all classes pooled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.2), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / len(bins.counts)
    lefts = np.arange(len(bins.counts)) * width
    filled = bins.counts > 0
    given, found = bins.probability[filled], bins.present[filled]
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    upper.bar(lefts[filled], found, width, align="edge", color=BLUE, alpha=0.25, edgecolor="white")
    upper.vlines(given, given, found, color=ORANGE, linewidth=2, label="gap, which ECE averages")
    upper.plot(given, found, "o", color=BLUE, markersize=5, label="found")
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
    style_axes(upper)
    style_axes(lower)
    return figure


def _make_panels(
    title: str, across: str, upward: str, ticks: Mapping[float, str], names: Sequence[str], positives: NDArray
) -> tuple[Figure, dict[int, Axes]]:
    """A figure with a square panel for each class that is drawn, and {class: its axes}.

    `across` and `upward` name the axes of all panels; their `ticks` {value: text} stand at the left and below.
    """
    from matplotlib.figure import Figure

    chosen = sorted(np.argsort(-positives, kind="stable")[:MAX_PANELS].tolist())
    columns = min(max(3, math.ceil(math.sqrt(2 * len(chosen)))), MAX_COLUMNS)
    rows = math.ceil(len(chosen) / columns)
    # All panels have the same size, so their places are known: to measure every text takes most of the drawing's time.
    grid_width, grid_height = columns * PANEL_WIDTH - GAPS[0], rows * PANEL_HEIGHT - GAPS[1]
    width, height = max(MARGINS[0] + grid_width + 0.2, 5.5), MARGINS[1] + grid_height + MARGINS[2]
    if len(chosen) < len(names):
        height += 0.2  # for the title's second line
    figure = Figure(figsize=(width, height), dpi=DPI)
    if len(chosen) < len(names):
        title += f"\nthe {len(chosen)} classes with the most positives of {len(names)}; evaluate_classes has all"
    figure.suptitle(title, x=0.1 / width, y=1 - 0.1 / height, ha="left", fontsize=10.5)
    figure.supxlabel(across, x=(MARGINS[0] + grid_width / 2) / width, y=0.08 / height, fontsize=9, color=GREY)
    figure.supylabel(upward, x=0.1 / width, y=(MARGINS[1] + grid_height / 2) / height, fontsize=9, color=GREY)
    grid = {
        "left": MARGINS[0] / width,
        "right": (MARGINS[0] + grid_width) / width,
        "bottom": MARGINS[1] / height,
        "top": (MARGINS[1] + grid_height) / height,
        "wspace": GAPS[0] / (PANEL_WIDTH - GAPS[0]),
        "hspace": GAPS[1] / (PANEL_HEIGHT - GAPS[1]),
    }
    places = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid).ravel()
    for axes in places[len(chosen) :]:
        axes.set_axis_off()
    panels = dict(zip(chosen, places, strict=False))
    families = fonts.list_families(name for c, name in enumerate(names) if c in panels)
    for number, (c, axes) in enumerate(panels.items()):
        # without parse_math=False, dollar signs in a class name would be read as a formula
        axes.set_title(names[c], fontsize=8.5, fontfamily=families, loc="left", pad=3, parse_math=False)
        axes.set_xticks([*ticks], ticks.values())
        axes.set_yticks([*ticks], ticks.values())
        axes.tick_params(length=0, labelsize=7.5, labelcolor=GREY)
        axes.tick_params(labelleft=number % columns == 0, labelbottom=number + columns >= len(chosen))
        axes.spines[:].set_visible(False)
    return figure, panels


def _count(count: int) -> str:
    """A count in the width of a cell."""
    if count < 100_000:
        return f"{count:,}"
    return f"{count / 1e3:,.0f}k" if count < 10_000_000 else f"{count / 1e6:,.0f}M"
