"""evaluation/plots.py: what is drawn and tabulated is what scikit-learn computes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection, LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image, ImageColor
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
)

import calibration
import metrics
from evaluation import plots
from evaluation.drawing import save_figure
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


def find_corners(figure: Figure) -> dict[str, tuple[float, float]]:
    """{name of a class: lower left corner of its panel}, in the order of the classes. Names stand above the panels."""
    (axes,) = figure.axes
    names = [text for text in axes.texts if text.get_fontsize() == 8.5]
    return {text.get_text(): (text.get_position()[0], text.get_position()[1] - 3 / 72 - plots.SIDE) for text in names}


def find_shapes(figure: Figure, kind: type[Collection], corner: tuple[float, float]) -> list[np.ndarray]:
    """The points of all that a figure draws as collections of `kind` in a panel, as shares of its side."""
    (axes,) = figure.axes
    found = [path.vertices for shapes in axes.collections if type(shapes) is kind for path in shapes.get_paths()]
    shares = [(np.asarray(points) - corner) / plots.SIDE for points in found]
    return [points for points in shares if (points > -0.01).all() and (points < 1.01).all()]


def find_texts(figure: Figure, corner: tuple[float, float]) -> dict[tuple[float, ...], str]:
    """{(share across, share upward): text} of the texts inside a panel."""
    (axes,) = figure.axes
    places = [((np.array(text.get_position()) - corner) / plots.SIDE, text.get_text()) for text in axes.texts]
    return {tuple(place.round(6).tolist()): text for place, text in places if (place > 0).all() and (place < 1).all()}


def undo_inset(shares: np.ndarray) -> np.ndarray:
    """The numbers from 0 to 1 that shares of a panel's side stand for."""
    return shares * (1 + 2 * plots.EDGE) - plots.EDGE


def measure_area(points: np.ndarray) -> float:
    """The area below a curve of steps, from recall and precision at each of their corners, (n, 2)."""
    return float(np.sum(np.diff(points[:, 0]) * points[1:, 1]))


def measure_distance(points: np.ndarray, point: np.ndarray) -> float:
    """How far a point lies from the lines between points (n, 2), which are level or upright."""
    low, high = np.minimum(points[:-1], points[1:]), np.maximum(points[:-1], points[1:])
    return float(np.linalg.norm(point - np.clip(point, low, high), axis=1).min())


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
    corners = find_corners(figure)
    assert [*corners] == ["plain", "with $dollars$ in…", "x", "without positives", "blé", "last"]
    (cells,) = figure.axes[0].collections
    assert cells.get_clim() == (0, 1)
    shares = expected / np.maximum(expected.sum(axis=2, keepdims=True), 1)
    assert np.asarray(cells.get_array()) == pytest.approx(shares.ravel())
    # not predicted left of predicted, absent above present
    middles = {(0.25, 0.75): (0, 0), (0.75, 0.75): (0, 1), (0.25, 0.25): (1, 0), (0.75, 0.25): (1, 1)}
    for corner, matrix in zip(corners.values(), expected, strict=True):
        assert find_texts(figure, corner) == {place: str(matrix[cell]) for place, cell in middles.items()}
        drawn = [points[:4].mean(axis=0) for points in find_shapes(figure, PolyCollection, corner)]
        assert np.array(drawn) == pytest.approx(np.array([*middles]))


def test_the_area_under_a_drawn_curve_is_the_ap(scores: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, targets = scores
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    curves = metrics.precision_recall_curve(probabilities, targets)
    figure = plots.draw_precision_recall(NAMES, curves, columns)
    predicted = probabilities >= 0.5
    precision = np.asarray(precision_score(targets, predicted, average=None, zero_division=0))
    recall = np.asarray(recall_score(targets, predicted, average=None, zero_division=0))
    (points,) = figure.axes[0].lines
    drawn = iter(np.asarray(points.get_xydata()))
    for c, (name, corner) in enumerate(find_corners(figure).items()):
        lines, areas = (find_shapes(figure, kind, corner) for kind in (LineCollection, PolyCollection))
        grid, curve = lines[:6], lines[6:]
        assert np.unique(undo_inset(np.array(grid)).round(6)).tolist() == [-0.02, 0, 0.5, 1, 1.02]
        if c == 3:
            assert curve == areas == []
            assert [*find_texts(figure, corner).values()] == ["no positives"]
            continue
        ap = average_precision_score(targets[:, c], probabilities[:, c])
        steps, area = undo_inset(curve[0]), undo_inset(areas[0])
        assert measure_area(steps) == pytest.approx(ap, abs=1e-9)
        assert area[: len(steps)] == pytest.approx(steps)
        assert area[len(steps) : len(steps) + 2] == pytest.approx(np.array([[1, 0], [0, 0]])), "down to 0"
        assert name.endswith(f" {ap:.2f}")
        point = undo_inset((next(drawn) - corner) / plots.SIDE)
        assert point == pytest.approx(np.array([recall[c], precision[c]]), abs=1e-6)
        assert measure_distance(steps, point) < 1e-6
    assert next(drawn, None) is None, "a point without a class"


def test_where_no_image_has_a_label_each_panel_says_so(tmp_path: Path) -> None:
    probabilities, targets = np.full((9, 2), 0.25, np.float32), np.zeros((9, 2), np.int8)
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    figure = plots.draw_precision_recall(["a", "b"], metrics.precision_recall_curve(probabilities, targets), columns)
    found = [[*find_texts(figure, corner).values()] for corner in find_corners(figure).values()]
    assert found == [["no positives"]] * 2
    save_figure(figure, tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_names_without_a_font_are_numbers_where_classes_are_confused(tmp_path: Path) -> None:
    names = ["a $b$", "\N{OLD PERSIAN SIGN A}", "\x07bell"]
    figure = plots.draw_class_confusion(names, np.eye(3, dtype=np.int64))
    save_figure(figure, tmp_path / "confused.png")
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["a $b$", "class 1", r"\x07bell"]


def test_a_curve_of_many_points_is_thinned_but_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((20000, 1)) < 0.5).astype(np.int8)
    probabilities = np.clip(rng.normal(0.4, 0.15, (20000, 1)) + 0.2 * targets, 0, 1).astype(np.float32)
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    curves = metrics.precision_recall_curve(probabilities, targets)
    figure = plots.draw_precision_recall(["one"], curves, columns)
    (corner,) = find_corners(figure).values()
    curve = undo_inset(find_shapes(figure, LineCollection, corner)[-1])
    assert len(curve) <= 2 * (plots.MAX_POINTS + 2), "a step has two corners, and two more are at the threshold"
    assert measure_area(curve) == pytest.approx(average_precision_score(targets, probabilities), abs=2e-3)
    assert curve[[0, -1], 0] == pytest.approx(np.array([0, 1]), abs=1e-9)
    assert curve[-1, 1] == pytest.approx(targets.mean(), abs=1e-9)


@pytest.mark.parametrize("number", [40, 20000])  # of entries: all points of the curve are drawn, or MAX_POINTS
def test_the_point_of_every_threshold_lies_on_the_drawn_curve(number: int) -> None:
    rng = np.random.default_rng(number)
    targets = (rng.random((number, 1)) < 0.2).astype(np.int8)
    probabilities = np.clip(rng.normal(0.4, 0.15, targets.shape) + 0.2 * targets, 0.01, 0.99).astype(np.float32)
    precision, recall, thresholds = precision_recall_curve(targets, probabilities)
    for at in rng.choice(len(thresholds), 30):
        columns = metrics.measure_classes(probabilities, targets, thresholds[at])
        curves = metrics.precision_recall_curve(probabilities, targets)
        figure = plots.draw_precision_recall(["one"], curves, columns)
        (corner,) = find_corners(figure).values()
        curve = undo_inset(find_shapes(figure, LineCollection, corner)[-1])
        ((x, y),) = np.asarray(figure.axes[0].lines[0].get_xydata())
        point = undo_inset((np.array([x, y]) - corner) / plots.SIDE)
        assert point == pytest.approx(np.array([recall[at], precision[at]]), abs=1e-9)
        assert measure_distance(curve, point) < 1e-9


def test_a_class_that_is_never_predicted_has_a_curve_but_no_point() -> None:
    probabilities, targets = np.array([[0.4, 0.6], [0.2, 0.1]], np.float32), np.array([[0, 1], [1, 0]], np.int8)
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    figure = plots.draw_precision_recall(["a", "b"], metrics.precision_recall_curve(probabilities, targets), columns)
    first, second = find_corners(figure).values()
    assert undo_inset(find_shapes(figure, LineCollection, first)[-1]) == pytest.approx(
        np.array([[0, 0], [0, 0], [0, 0.5], [1, 0.5]]), abs=1e-9
    )
    (point,) = np.asarray(figure.axes[0].lines[0].get_xydata())
    assert undo_inset((point - second) / plots.SIDE) == pytest.approx(np.array([1, 1]))


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


def test_reliability_hides_no_marker_and_no_bar() -> None:
    probabilities, targets = np.array([[0.0], [0.05], [0.7], [1.0]], np.float32), np.array([[0], [1], [1], [1]])
    figure = plots.draw_reliability(calibration.measure_reliability(probabilities, targets), 0.125)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    upper = figure.axes[0]
    legend = upper.get_legend()
    assert legend is not None
    box = legend.get_window_extent(canvas.get_renderer())
    title = upper._left_title.get_window_extent(canvas.get_renderer())  # pyright: ignore[reportAttributeAccessIssue]
    assert not box.overlaps(upper.bbox), "bars can be anywhere in the axes"
    assert not box.overlaps(title)
    assert title.y1 < figure.bbox.y1
    assert box.x1 < figure.bbox.x1
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
    blue = ImageColor.getrgb(LIGHT["blue"])
    for place in ((0.7, 1.0), (1.0, 1.0)):
        x, y = upper.transData.transform(place)
        column, row = round(x), round(len(pixels) - y)
        for across, down in ((0, -2), (0, 2), (-2, 0), (2, 0)):
            assert tuple(pixels[row + down, column + across]) == blue


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
    shown = [*find_corners(figure)]
    number = min(num_classes, plots.MAX_PANELS)
    rarest_first = np.argsort(confusion[:, 1].sum(axis=1), kind="stable")
    kept = [f"class {c} " for c in range(num_classes) if num_classes == number or c in rarest_first[-number:]]
    assert len(shown) == number
    assert all(text.startswith(name[:7]) for text, name in zip(shown, kept, strict=True))
    assert (f"of {num_classes};" in figure.get_suptitle()) is (num_classes > number)
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and text.get_visible()]
    assert len(texts) > 5 * number
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= width * figure.dpi
    assert boxes[:, 3].max() <= height * figure.dpi
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlaps = (high - low > 0.5).all(axis=2) & ~np.eye(len(boxes), dtype=bool)
    assert not overlaps.any(), [texts[i].get_text() for i in np.flatnonzero(overlaps.any(axis=1))]


def test_a_picture_of_many_classes_is_one_axes_and_drawn_once(
    scores: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further axes costs as much as all that is drawn in it, and a layout engine measures every text."""
    drawn: list[Figure] = []
    draw = Figure.draw

    def count(figure: Figure, renderer: object) -> None:
        drawn.append(figure)
        draw(figure, renderer)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Figure, "draw", count)
    probabilities, targets = (np.tile(values, (1, 3)) for values in scores)
    columns, confusion = (
        metrics.measure_classes(probabilities, targets, 0.5),
        metrics.confusion(probabilities, targets, 0.5),
    )
    names = [f"class {c}" for c in range(18)]
    plots.save_report(tmp_path, "", names, probabilities, targets, columns, confusion, 0.125)
    assert [len(figure.axes) for figure in drawn] == [1, 1, 2]
    assert all(figure.get_layout_engine() is None for figure in drawn)


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
