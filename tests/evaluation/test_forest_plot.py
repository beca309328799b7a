"""evaluation/forest_plot.py: what stands where in the picture."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from made_runs import draw_probabilities, draw_targets, make_ruler, make_sidecar, write_run, write_test
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

import model_performance_table
from evaluation import forest_plot, run_comparison, run_rows
from evaluation.forest_plot import Block, Entry
from metrics import Difference
from utils import InputError

ENTRIES = [
    Entry("best, $x$", [0.70], 0.68, 0.73, None, is_reference=True),
    Entry("three seeds", [0.65, 0.66, 0.70], 0.60, 0.74, Difference(-0.03, -0.08, 0.02, 0.4)),
    Entry("worse", [0.5], 0.45, 0.55, Difference(-0.2, -0.25, -0.15, 0.001)),
]
OTHERS = Block("other test images (300 and 20)", [Entry("elsewhere", [0.9], math.nan, math.nan)])


def find_points(axes: Axes) -> list[tuple[float, float]]:
    """(value, row) of all single points."""
    lines = [line for line in axes.lines if len(line.get_xydata()) == 1]
    return [tuple(np.asarray(line.get_xydata())[0].round(6).tolist()) for line in lines]


def find_spans(axes: Axes) -> list[tuple[float, float, float]]:
    """(low, high, row) of all intervals."""
    found = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_linestyle() == "-"]
    return [(ends[0, 0], ends[1, 0], ends[0, 1]) for ends in found if len(ends) == 2 and ends[0, 1] == ends[1, 1]]


def list_texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def list_labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_a_line_for_each_run_with_its_interval_and_its_difference() -> None:
    figure = forest_plot.draw_forest([Block("", ENTRIES), OTHERS], "test_mAP", "best")
    left, right = figure.axes
    assert list_labels(left) == ["best, $x$", "three seeds", "worse", "elsewhere"]
    assert find_points(left) == [(0.70, 0), (0.67, 1), (0.5, 2), (0.9, 4.25)]
    assert [span for span in find_spans(left) if span[1] < 1] == [(0.68, 0.73, 0), (0.60, 0.74, 1), (0.45, 0.55, 2)]
    seeds = next(line for line in left.lines if len(line.get_xydata()) == 3)
    assert np.asarray(seeds.get_xydata()).tolist() == [[0.65, 1], [0.66, 1], [0.70, 1]]
    assert find_points(right) == [(0, 0), (-0.03, 1), (-0.2, 2)]
    hollow = [line.get_markerfacecolor() == "white" for line in right.lines if len(line.get_xydata()) == 1]
    assert hollow == [False, True, False]
    assert list_texts(figure) == ["other test images (300 and 20)"]
    numbers = [list_labels(axes) for axes in (left.child_axes[0], right.child_axes[0])]
    assert numbers[0] == [".700 [.680, .730]", ".670 [.600, .740]", ".500 [.450, .550]", ".900"]
    assert numbers[1] == ["reference", "−.030 [−.080, +.020] ≈", "−.200 [−.250, −.150]", ""]


def test_without_a_reference_there_is_one_panel() -> None:
    figure = forest_plot.draw_forest([Block("", ENTRIES)], "test_mAP")
    assert len(figure.axes) == 1


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (ENTRIES[:1], ""),
        (ENTRIES[1:2], " and seeds"),
        (ENTRIES, " and seeds\na row with one test stands for that model alone"),
    ],
)
def test_the_axis_says_what_the_intervals_are_over(entries: list[Entry], words: str) -> None:
    figure = forest_plot.draw_forest([Block("", entries)], "test_mAP")
    assert figure.axes[0].get_xlabel() == f"test_mAP, 95 % interval over images{words}"


def test_rows_of_the_table_become_a_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    for name, seed, loss in (("a1", 1, "a"), ("a2", 2, "a"), ("b", 1, "b"), ("c", 1, "c"), ("d", 1, "d")):
        write_run(tmp_path, name, make_sidecar("resnet18", 0.5, 0.5, 3, SEED=seed, LOSS=loss))
        if name != "d":
            ruler = make_ruler("others") if name == "c" else None
            write_test(tmp_path, f"resnet18/{name}", draw_probabilities(rng, targets, 1), targets, ruler=ruler)
    runs = model_performance_table.read_runs(tmp_path)
    rows = run_rows.make_rows(runs, ("configuration",), averages=True)
    rows, _ = run_comparison.compare_rows(rows, {}, "b", "best_f1", tmp_path)
    names = rows["LOSS"].tolist()
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        draw = forest_plot.draw_forest
        patch.setattr(forest_plot, "draw_forest", lambda *arguments: drawn.append(arguments) or draw(*arguments))
        forest_plot.save_forest(tmp_path / "x.png", runs, rows, names, "mAP", tmp_path)
    ((blocks, metric, reference),) = drawn
    assert (metric, reference) == ("test_mAP", "b")
    assert [(block.line, [entry.name for entry in block.entries]) for block in blocks] == [
        ("", ["a", "b"]),
        ("not ranked with the rows above: other test images (300 each)", ["c"]),
    ]
    seeds, single = blocks[0].entries
    assert seeds.values == runs["test_mAP"][:2].tolist()
    assert seeds.low < min(seeds.values) < max(seeds.values) < seeds.high
    assert seeds.difference[0] == rows["delta_test_mAP"][0]
    assert (single.low, single.high) == (runs["test_mAP_low"][2], runs["test_mAP_high"][2])
    assert (single.is_reference, single.difference) == (True, None)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 800
    for path, message in ((tmp_path / "x.pdf", r"x\.pdf: it writes a PNG: call it .*x\.png"),):
        with pytest.raises(InputError, match=message):
            forest_plot.save_forest(path, runs, rows, names, "mAP", tmp_path)
    with pytest.raises(InputError, match="no run here has a test"):
        forest_plot.save_forest(tmp_path / "y.png", runs, rows.tail(1), names[-1:], "mAP", tmp_path)


def test_the_interval_of_a_mean_over_seeds_by_hand() -> None:
    values, lows, highs = np.array([0.60, 0.62, 0.67]), np.array([0.58, 0.59, 0.64]), np.array([0.63, 0.66, 0.69])
    of_seeds = stats.t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)
    below, above = (
        math.sqrt(((0.02 + 0.03 + 0.03) / 3) ** 2 + of_seeds**2),
        math.hypot((0.03 + 0.04 + 0.02) / 3, of_seeds),
    )
    found = forest_plot.find_mean_interval(values, lows, highs)
    assert found == pytest.approx((0.63 - below, 0.63 + above), abs=1e-4)
    assert forest_plot.find_mean_interval(values[:1], lows[:1], highs[:1]) == pytest.approx((0.58, 0.63))
    assert forest_plot.find_mean_interval(np.array([0.0, 1.0]), np.zeros(2), np.ones(2)) == (0, 1), "a share"


def test_a_picture_of_many_rows_ends() -> None:
    many = [Entry(str(number), [0.5], 0.4, 0.6) for number in range(forest_plot.MAX_ROWS + 100)]
    figure = forest_plot.draw_forest([Block("", many)], "test_mAP")
    assert len(list_labels(figure.axes[0])) == forest_plot.MAX_ROWS
