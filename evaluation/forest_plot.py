"""A forest plot of runs: a line each, with a metric of its test, its interval, and what it has more than another run.

figure = draw_forest([Block("", entries), Block("other test images", others)], "test_mAP", reference="0a1b2c3d")
save_figure(figure, path)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset import fonts
from evaluation import test_results
from evaluation.drawing import save_figure, style_axes
from evaluation.pages import cut
from evaluation.palette import LIGHT, SPLITS
from evaluation.run_comparison import IS_REFERENCE, OF_ONE_TEST, require_tests
from evaluation.run_rows import NOT_RANKED, TEST
from evaluation.tables import DIFFERENCE, MARK, SIGNIFICANCE, Frame, format_number
from metrics import LEVEL, Difference, find_t
from utils import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEST_COLOUR, BLUE, GREY, INK = LIGHT[SPLITS["test"]], LIGHT["blue"], LIGHT["soft"], LIGHT["ink"]
DPI = 110
ROW_HEIGHT, PANEL_WIDTH, LABEL_WIDTH = 0.34, 3.4, 0.075  # inches: of a run's line, a panel, a letter of a name
LONGEST_NAME = 82  # characters
MAX_ROWS = 400  # of all blocks together; a picture of more could not be opened


class Entry(NamedTuple):
    """One row of the plot."""

    name: str
    values: Sequence[float]  # of the metric, one a seed
    low: float  # ends of the 95 % interval of their mean; NaN: none
    high: float
    difference: Difference | None = None  # from the reference, its p corrected; None: none was made
    is_reference: bool = False


class Block(NamedTuple):
    """Rows that may be compared with each other, and how they differ from those above."""

    line: str
    entries: Sequence[Entry]


def save_forest(path: Path, runs: Frame, rows: Frame, names: Sequence[str], metric: str, root: Path) -> None:
    """Draw the `rows` of the table of runs that have a test, by their test's `metric`, into a PNG.

    `names` are those of all rows. Runs tested by one ruler make a block. Raises InputError where no row has a test,
    and for a file that is no .png.
    """
    if path.suffix != ".png":
        raise InputError(f"--plot {path}: it writes a PNG: call it {path.with_suffix('.png')}")
    column, folders = f"{TEST}{metric}", require_tests(rows, root, "--plot")
    entries: dict[str, list[Entry]] = {}  # by ruler
    for name, row, row_folders in zip(names, rows.to_dict("records"), folders, strict=True):
        if row_folders:
            of_row = runs.loc[runs["checkpoint"].isin(row["test_checkpoints"])]
            values, lows, highs = (of_row[f"{column}{ending}"].to_numpy() for ending in ("", "_low", "_high"))
            low, high = find_mean_interval(values, lows, highs)
            found = [row.get(f"{DIFFERENCE}{column}{ending}", math.nan) for ending in ("", "_low", "_high", "_p")]
            difference = None if math.isnan(found[0]) else Difference(*found)
            entry = Entry(name, values.tolist(), low, high, difference, row.get(IS_REFERENCE) is True)
            entries.setdefault(row["test_ruler"], []).append(entry)
    rulers, blocks = runs.attrs["rulers"], [Block("", block) for block in entries.values()]
    for number, (above, below) in enumerate(itertools.pairwise(entries), start=1):
        line = f"{NOT_RANKED}{test_results.describe_difference(rulers[above], rulers[below])}"
        blocks[number] = blocks[number]._replace(line=line)
    references = [entry.name for block in blocks for entry in block.entries if entry.is_reference]
    reference = references[0] if len(references) == 1 else "the first of each block" if references else ""
    save_figure(draw_forest(blocks, column, reference), path)


def find_mean_interval(
    values: NDArray[np.float64], lows: NDArray[np.float64], highs: NDArray[np.float64]
) -> tuple[float, float]:
    """The 95 % interval of the mean of S seeds' values (S,) of a metric, over images and seeds.

    `lows` and `highs` are the ends of each seed's interval over images. The mean of their arms and the arm of a mean
    over seeds, t s / sqrt(S) with Student's t, are added as what is independent of each other is: by their squares.
    """
    num_seeds, of_seeds = len(values), 0.0
    if num_seeds > 1:
        of_seeds = find_t(LEVEL, np.array([num_seeds - 1]))[0] * values.std(ddof=1) / math.sqrt(num_seeds)
    below, above = (math.hypot(np.mean(np.abs(values - ends)), of_seeds) for ends in (lows, highs))
    return max(values.mean() - below, 0.0), min(values.mean() + above, 1.0)


def draw_forest(blocks: Sequence[Block], metric: str, reference: str = "") -> Figure:
    """A figure with a line for each entry: the mean of its values and the interval, each seed's value as a small ring.

    With the name of a `reference` a second panel shows the differences from it: filled where they are distinguishable
    from 0. Between two blocks a line says what differs.
    """
    from matplotlib.figure import Figure

    places: list[tuple[float, Entry]] = []
    lines: list[tuple[float, str]] = []
    row = 0.0
    for block in blocks:
        if block.line:
            lines.append((row + 0.25, block.line))
            row += 1.25
        for entry in block.entries[: max(0, MAX_ROWS - len(places))]:
            places.append((row, entry))
            row += 1
    rows = [place for place, _ in places]
    names = [cut(name, LONGEST_NAME) for name in fonts.make_drawable([entry.name for _, entry in places])]
    width = 1.8 + LABEL_WIDTH * max(map(len, names)) + (2 * PANEL_WIDTH + 1.6 if reference else PANEL_WIDTH)
    figure = Figure(figsize=(width, 1 + ROW_HEIGHT * row), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2 if reference else 1, sharey=True, squeeze=False)[0]
    for axes in panels:
        style_axes(axes)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, labelcolor=GREY, labelsize=8)
        for place, _ in lines:
            axes.axhline(place - 0.55, color=LIGHT["line"], linewidth=0.8)
    panels[0].set_ylim(row - 0.4, -0.6)
    panels[0].set_yticks(rows, names, parse_math=False, fontfamily=fonts.list_families(names))
    panels[0].tick_params(axis="y", labelsize=9, labelcolor=INK)
    for place, line in lines:  # over the panel, from the left of the names
        panels[0].annotate(
            cut(line, int(width / LABEL_WIDTH)),
            (0, place),
            xycoords=("figure fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=GREY,
            style="italic",
            parse_math=False,
            annotation_clip=False,
        )

    for place, entry in places:
        _draw_values(panels[0], place, entry)
    num_tests = {len(entry.values) for _, entry in places}
    text = f"{metric}, 95 % interval over images{' and seeds' if max(num_tests) > 1 else ''}"
    if max(num_tests) > min(num_tests) == 1:
        text += f"\n{OF_ONE_TEST}"
    panels[0].set_xlabel(text, color=GREY, fontsize=9, parse_math=False)
    _write_numbers(panels[0], rows, [_write_value(entry) for _, entry in places])
    if reference:
        panels[1].axvline(0, color=GREY, linewidth=1)
        for place, entry in places:
            _draw_difference(panels[1], place, entry)
        text = f"Δ {metric} from {cut(reference, LONGEST_NAME)}, 95 % interval\nhollow and {MARK}: not distinguishable"
        panels[1].set_xlabel(text, color=GREY, fontsize=9, parse_math=False)
        _write_numbers(panels[1], rows, [_write_difference(entry) for _, entry in places])
    return figure


def _draw_values(axes: Axes, place: float, entry: Entry) -> None:
    mean = sum(entry.values) / len(entry.values)
    if not math.isnan(entry.low):
        axes.plot([entry.low, entry.high], [place, place], color=TEST_COLOUR, linewidth=1.6, solid_capstyle="butt")
    if len(entry.values) > 1:
        axes.plot(entry.values, [place] * len(entry.values), "o", mfc="white", mec=TEST_COLOUR, ms=3.5, mew=0.8)
    axes.plot(mean, place, "D" if entry.is_reference else "o", color=TEST_COLOUR, ms=6)


def _draw_difference(axes: Axes, place: float, entry: Entry) -> None:
    if entry.is_reference:
        axes.plot(0, place, "D", color=GREY, ms=6)
    elif entry.difference is not None:
        value, low, high, p = entry.difference
        is_found = p < SIGNIFICANCE
        colour = BLUE if is_found else GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(value, place, "o", color=colour, mfc=colour if is_found else "white", ms=6, mew=1.4)


def _write_numbers(axes: Axes, rows: Sequence[float], texts: Sequence[str]) -> None:
    """The numbers of each row at the right of the panel."""
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(rows, texts)
    beside.tick_params(length=0, labelsize=8, labelcolor=INK)
    beside.spines["right"].set_visible(False)


def _write_value(entry: Entry) -> str:
    mean = format_number(sum(entry.values) / len(entry.values))
    if math.isnan(entry.low):
        return mean
    return f"{mean} [{format_number(entry.low)}, {format_number(entry.high)}]"


def _write_difference(entry: Entry) -> str:
    if entry.is_reference:
        return "reference"
    if entry.difference is None:
        return ""
    value, low, high, p = entry.difference
    numbers = [format_number(number, has_sign=True) for number in (value, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]{f' {MARK}' if p >= SIGNIFICANCE else ''}"
