"""trainer/training_curves.py: the lines are the history's, and the file is drawn as often as it has to be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tensorboard_logging import Record
from trainer import training_curves
from trainer.training_curves import CurvesFile, draw_training_curves, save_training_curves
from utils import Stopped

ROOT = Path(training_curves.__file__).parents[1]


def make_history(num_epochs: int) -> list[Record]:
    scores = {"train_loss": 0.5, "val_loss": 0.5, "val_mAP": 0.7, "lr_head": 1e-3, "threshold": 0.4}
    return [{"epoch": e, "frozen": e < 3} | scores | {"val_f1": e / 100} for e in range(1, num_epochs + 1)]


def read_pixels(path: Path) -> np.ndarray:
    image = Image.open(path)
    assert image.format == "PNG"
    assert image.size == (1100, 700)
    return np.asarray(image.convert("RGB"))


def read_lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Legend label -> (epochs, values) of every line in the figure."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}  # pyright: ignore


def test_curves_show_their_history(tmp_path: Path) -> None:
    history = make_history(5)
    history[2] |= {"train_f1": 0.7, "train_mAP": 0.8, "lr_backbone": 1e-4}
    del history[1]["val_loss"]
    lines = read_lines(draw_training_curves(history))
    assert lines["train"] == ([1, 2, 3, 4, 5], [0.5] * 5)
    assert lines["validation"] == ([1, 3, 4, 5], [0.5] * 4)
    assert lines["F1 validation"] == ([1, 2, 3, 4, 5], [0.01, 0.02, 0.03, 0.04, 0.05])
    assert lines["mAP validation"] == ([1, 2, 3, 4, 5], [0.7] * 5)
    assert lines["F1 train"] == ([3], [0.7])
    assert lines["mAP train"] == ([3], [0.8])
    assert lines["head"] == ([1, 2, 3, 4, 5], [1e-3] * 5)
    assert lines["backbone"] == ([3], [1e-4])
    assert lines["threshold"] == ([1, 2, 3, 4, 5], [0.4] * 5)
    assert lines["backbone unfrozen"][0] == [2.5, 2.5]  # epoch 3 is the first that trains the backbone
    assert "backbone unfrozen" not in read_lines(draw_training_curves(history[2:]))
    save_training_curves(history, tmp_path / "run" / "curves.png")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["curves.png"]
    save_training_curves(history[:4], tmp_path / "shorter.png")
    assert (read_pixels(tmp_path / "run" / "curves.png") != read_pixels(tmp_path / "shorter.png")).any()


def test_the_best_epoch_is_the_first_of_equals() -> None:
    scores = (float("nan"), 0.3, 0.6, 0.6, 0.5)
    history: list[Record] = [{"epoch": e, "val_f1": f1} for e, f1 in enumerate(scores, start=1)]
    assert read_lines(draw_training_curves(history))["best: 0.600, epoch 3"] == ([3], [0.6])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1, "train_loss": 0.5}],
        [{"epoch": 1, "val_f1": float("nan"), "lr_head": 0.0}],
        make_history(1),
        make_history(100),
    ],
)
def test_curves_of_any_history(tmp_path: Path, history: list[Record]) -> None:
    save_training_curves(history, tmp_path / "curves.png")
    read_pixels(tmp_path / "curves.png")


def test_curves_choose_no_backend(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from trainer import training_curves
training_curves.save_training_curves([{"epoch": 1, "val_f1": 0.5}], Path("curves.png"))
assert "matplotlib.pyplot" not in sys.modules  # which would choose a backend for the whole process
"""
    subprocess.run([sys.executable, "-c", code, str(ROOT)], cwd=tmp_path, check=True)


# ---- how often ----


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the histories that are drawn."""
    lengths: list[int] = []
    monkeypatch.setattr(training_curves, "save_training_curves", lambda history, path: lengths.append(len(history)))
    return lengths


def test_curves_are_drawn_at_most_once_a_minute_and_at_the_end(
    drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(training_curves.time, "perf_counter", lambda: seconds)
    history = make_history(10)
    with CurvesFile(Path("curves.png")) as curves:
        for epoch in range(1, 11):
            seconds = 25.0 * epoch
            curves.update(history[:epoch], is_last=epoch == 10)
    assert drawn == [3, 6, 9, 10], "at 75, 150 and 225 seconds, and at the end; not twice there"


def test_a_run_that_ends_by_a_signal_draws_what_is_not_drawn_yet(drawn: list[int]) -> None:
    def run(num_epochs: int) -> None:
        with CurvesFile(Path("curves.png")) as curves:
            if num_epochs:
                curves.update(make_history(num_epochs), is_last=False)
            raise Stopped("a signal")

    for num_epochs in (2, 0):  # nothing is there to draw before the first epoch is over
        with pytest.raises(Stopped):
            run(num_epochs)
    assert drawn == [2]
    with CurvesFile(None) as curves:
        curves.update(make_history(2), is_last=True)
    assert drawn == [2], "another process draws"


def test_the_time_of_drawing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0

    def draw(history: list[Record], path: Path) -> None:
        nonlocal seconds
        seconds += 1.5

    monkeypatch.setattr(training_curves.time, "perf_counter", lambda: seconds)
    monkeypatch.setattr(training_curves, "save_training_curves", draw)
    curves = CurvesFile(Path("curves.png"))
    assert curves.update(make_history(1), is_last=False) == 0
    assert curves.update(make_history(2), is_last=True) == 1.5
