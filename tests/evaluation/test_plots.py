"""evaluation/plots.py: what is drawn and tabulated is what scikit-learn computes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from PIL import Image, ImageColor
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
)

import calibration
import metrics
from evaluation import plots
from evaluation.palette import LIGHT

NAMES = ["plain", "with $dollars$ in it, and far too long", "x", "without positives", "blé", "last"]


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray]:
    """(500, 6) probabilities, some tied, and targets; class 3 has no positives."""
    rng = np.random.default_rng(0)
    targets = (rng.random((500, 6)) < [0.5, 0.05, 0.3, 0, 0.2, 0.01]).astype(np.int8)
    targets[7, 5] = 1
    logits = rng.normal(0, 1.5, (500, 6)) + 3 * targets - 2
    return np.round(1 / (1 + np.exp(-logits)), 2).astype(np.float32), targets


@pytest.fixture(scope="module")
def saved(scores: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a report."""
    columns, confusion = metrics.measure_classes(*scores, 0.5), metrics.confusion(*scores, 0.5)
    folder = tmp_path_factory.mktemp("report")
    return plots.save_report(folder, "_val", NAMES, *scores, columns, confusion, 0.125)


def find_panels(figure: Figure) -> list[Axes]:
    """The panels that show a class, in the order of the classes."""
    return [axes for axes in figure.axes if axes.axison]


def find_stairs(axes: Axes) -> list[StepPatch]:
    """The area under a curve, then the curve itself; none where a class has no positives."""
    return [patch for patch in axes.patches if isinstance(patch, StepPatch)]


def measure_area(stairs: StepPatch) -> float:
    values, edges, _ = stairs.get_data()
    return float(np.sum(values * np.diff(edges)))


def test_the_table_of_classes_is_scikit_learns(scores: tuple[np.ndarray, np.ndarray], saved: list[Path]) -> None:
    with open(saved[0], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    probabilities, targets = scores
    predicted = probabilities >= 0.5
    assert [row["class"] for row in rows] == NAMES
    expected = precision_recall_fscore_support(targets, predicted, zero_division=0)
    for name, values in zip(("P", "R", "F1", "positives"), expected, strict=True):
        assert [float(row[name]) for row in rows] == pytest.approx(list(values), abs=1e-5)
    for c, row in enumerate(rows):
        counts = [row[f"{kind}s"] for kind in ("true_negative", "false_positive", "false_negative", "true_positive")]
        assert counts == [str(n) for n in multilabel_confusion_matrix(targets, predicted)[c].ravel()]
        ap = "" if c == 3 else average_precision_score(targets[:, c], probabilities[:, c])
        assert (float(row["AP"]) if row["AP"] else "") == pytest.approx(ap, abs=1e-5)


def test_large_counts_are_written_whole(tmp_path: Path) -> None:
    confusion = np.array([[[123_456_789, 1], [2, 7_654_321]]])
    plots.write_classes(tmp_path / "c.csv", ["one"], {"P": np.array([1 / 3])}, confusion)
    assert (tmp_path / "c.csv").read_text().splitlines()[1] == "one,0.333333,7654321,1,2,123456789"


def test_confusion_matrices_show_scikit_learns_counts(scores: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, targets = scores
    figure = plots.draw_confusion(NAMES, metrics.confusion(probabilities, targets, 0.5))
    expected = multilabel_confusion_matrix(targets, probabilities >= 0.5)
    panels = find_panels(figure)
    assert [axes.get_title(loc="left") for axes in panels] == [
        "plain", "with $dollars$ in…", "x", "without positives", "blé", "last",
    ]  # fmt: skip
    for axes, matrix in zip(panels, expected, strict=True):
        # (column, row) of the cell: not predicted left of predicted, absent above present
        found = {tuple(text.get_position()): int(text.get_text()) for text in axes.texts}
        assert found == {(predicted, present): matrix[present, predicted] for present in (0, 1) for predicted in (0, 1)}
        assert axes.yaxis_inverted()
        (image,) = axes.images
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        assert np.asarray(image.get_array()) == pytest.approx(shares)
        assert image.get_clim() == (0, 1)


def test_the_area_under_a_drawn_curve_is_the_ap(scores: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, targets = scores
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    curves = metrics.precision_recall_curve(probabilities, targets)
    panels = find_panels(plots.draw_precision_recall(NAMES, curves, columns))
    predicted = probabilities >= 0.5
    precision = np.asarray(precision_score(targets, predicted, average=None, zero_division=0))
    recall = np.asarray(recall_score(targets, predicted, average=None, zero_division=0))
    for c, axes in enumerate(panels):
        if c == 3:
            assert find_stairs(axes) == []
            assert [text.get_text() for text in axes.texts] == ["no positives"]
            continue
        area, curve = find_stairs(axes)
        ap = average_precision_score(targets[:, c], probabilities[:, c])
        assert measure_area(area) == pytest.approx(ap, abs=1e-9)
        assert measure_area(curve) == pytest.approx(ap, abs=1e-9)
        assert axes.get_title(loc="left").endswith(f" {ap:.2f}")
        (point,) = axes.lines
        assert point.get_xydata() == pytest.approx(np.array([[recall[c], precision[c]]]), abs=1e-6)


def test_a_curve_of_many_points_is_thinned_but_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((20000, 1)) < 0.5).astype(np.int8)
    probabilities = np.clip(rng.normal(0.4, 0.15, (20000, 1)) + 0.2 * targets, 0, 1).astype(np.float32)
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    curves = metrics.precision_recall_curve(probabilities, targets)
    (axes,) = find_panels(plots.draw_precision_recall(["one"], curves, columns))
    area = find_stairs(axes)[0]
    heights, edges, _ = area.get_data()
    assert len(heights) <= plots.MAX_POINTS
    assert measure_area(area) == pytest.approx(average_precision_score(targets, probabilities), abs=2e-3)
    lowest = probabilities[targets == 1].min()
    assert (edges[0], edges[-1]) == (0, 1)
    assert heights[-1] == pytest.approx(targets.sum() / (probabilities >= lowest).sum(), abs=1e-9)


def test_reliability_is_scikit_learns_curve(scores: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, targets = scores
    figure = plots.draw_reliability(calibration.measure_reliability(probabilities, targets), 0.125)
    upper, lower = figure.axes
    share, mean = calibration_curve(targets.ravel(), probabilities.ravel(), n_bins=15)
    (found,) = (line for line in upper.lines if line.get_label() == "found")
    assert np.asarray(found.get_xdata()) == pytest.approx(mean, abs=1e-6)
    assert np.asarray(found.get_ydata()) == pytest.approx(share, abs=1e-9)
    assert upper.get_title(loc="left").endswith("ECE 0.1250")
    heights = [bar.get_height() for bar in lower.patches if isinstance(bar, Rectangle)]
    assert len(heights) == 15
    assert sum(heights) == probabilities.size


@pytest.mark.parametrize("num_classes", [1, 18, 250])
def test_many_classes_stay_apart_and_inside(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 900, (num_classes, 2, 2))
    names = [f"class {c} with a long name" for c in range(num_classes)]
    figure = plots.draw_confusion(names, confusion)
    width, height = figure.get_size_inches()
    assert max(width, height) < 40
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = [axes.get_title(loc="left") for axes in find_panels(figure)]
    number = min(num_classes, plots.MAX_PANELS)
    rarest_first = np.argsort(confusion[:, 1].sum(axis=1), kind="stable")
    kept = [f"class {c} " for c in range(num_classes) if num_classes == number or c in rarest_first[-number:]]
    assert len(shown) == number
    assert all(text.startswith(name[:7]) for text, name in zip(shown, kept, strict=True))
    assert (f"of {num_classes};" in figure.get_suptitle()) is (num_classes > number)
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and is_drawn(text)]
    assert len(texts) > 5 * number
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= width * figure.dpi
    assert boxes[:, 3].max() <= height * figure.dpi
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlaps = (high - low > 0.5).all(axis=2) & ~np.eye(len(boxes), dtype=bool)
    assert not overlaps.any(), [texts[i].get_text() for i in np.flatnonzero(overlaps.any(axis=1))]


def is_drawn(text: Text) -> bool:
    """Whether a text of a drawn figure is visible: tick labels of inner panels and of empty places are not."""
    return text.get_visible() and (text.axes is None or text.axes.axison)


def test_pictures_are_written(saved: list[Path]) -> None:
    assert [path.name for path in saved] == [
        "evaluate_classes_val.csv",
        "evaluate_confusion_val.png",
        "evaluate_precision_recall_val.png",
        "evaluate_reliability_val.png",
    ]
    assert sorted(saved[0].parent.iterdir()) == sorted(saved), "no temporary file is left"
    colours = {}
    for path in saved[1:]:
        with Image.open(path) as picture:
            colours[path.name] = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    orange = ImageColor.getrgb(LIGHT["orange"])
    assert [orange in each for each in colours.values()] == [False, True, True], "of points and gaps"
