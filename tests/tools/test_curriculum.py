"""tools/curriculum.py: scores against loops, steps, and the file written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataset import probability_files
from dataset.table import Table
from tools import curriculum
from utils import InputError


def make_table(paths: list[str]) -> Table:
    return Table(paths, np.zeros((len(paths), 2), dtype=np.int8), ("red", "green"))


def test_scores_are_the_mean_of_two_means() -> None:
    rng = np.random.default_rng(0)
    targets, probabilities = rng.integers(-1, 2, (60, 5)), rng.random((60, 5)).astype(np.float32)
    probabilities[rng.random((60, 5)) < 0.2] = np.nan
    targets[:3] = [[1] * 5, [0] * 5, [-1] * 5]
    expected = []
    for image, given in zip(targets, probabilities.tolist(), strict=True):
        own = [p for y, p in zip(image, given, strict=True) if y == 1 and p == p]
        others = [1 - p for y, p in zip(image, given, strict=True) if y == 0 and p == p]
        means = [sum(part) / len(part) for part in (own, others) if part]
        expected.append(sum(means) / len(means) if means else np.nan)
    scores = curriculum.score_images(targets, probabilities)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert np.isnan(scores[2])


def test_a_model_that_finds_nothing_does_not_know_an_image() -> None:
    targets = np.zeros((1, 80))
    targets[0, :2] = 1
    assert curriculum.score_images(targets, np.zeros((1, 80))) == 0.5
    assert curriculum.score_images(targets, targets) == 1


def test_steps_begin_at_their_threshold() -> None:
    weights, steps = curriculum.weigh_images([1.0, 0.8, 0.79, 0.5, 0.49, 0.0], (0.8, 0.5), (1.0, 0.5, 0.0))
    assert steps.tolist() == [0, 0, 1, 1, 2, 2]
    assert weights.tolist() == [1, 1, 0.5, 0.5, 0, 0]
    assert curriculum.weigh_images([0.3], (), (2.0,))[0].tolist() == [2]


@pytest.mark.parametrize(
    ("thresholds", "weights", "message"),
    [
        ((0.5, 0.8), (1, 1, 1), "thresholds have to fall"),
        ((0.5, 0.5), (1, 1, 1), "thresholds have to fall"),
        ((0.5,), (1,), "one weight more than thresholds"),
        ((0.5,), (1, -1), "each is 0 to 1000"),
        ((0.5,), (1, np.nan), "each is 0 to 1000"),
        ((0.5,), (0, 0), "one above 0"),
    ],
)
def test_impossible_steps_are_refused(thresholds: tuple[float], weights: tuple[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        curriculum.weigh_images([0.5], thresholds, weights)


def test_weights_are_read_as_they_were_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"{tmp_path}/{name}.jpg" for name in ("one", "two, three", 'a "b"', "four")]
    file = tmp_path / "new" / "curriculum.txt"
    curriculum.write_curriculum(file, paths, np.float32([0.5, 0, 2.25, 1]))
    assert file.read_text().splitlines()[:2] == [f"{tmp_path}/one.jpg,0.5", f'"{tmp_path}/two, three.jpg",0']
    table = make_table([paths[2], paths[0], paths[1]])
    weights = probability_files.read_curriculum(table, file)
    assert weights.dtype == np.float32
    assert weights.tolist() == [2.25, 0.5, 0]
    assert capsys.readouterr().err == ""


def test_images_that_are_not_listed_count_as_usual(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "curriculum.txt"
    file.write_text("image_path,weight\nb.jpg,0.25\n")
    table = make_table([f"{tmp_path}/{name}.jpg" for name in "abc"])
    assert probability_files.read_curriculum(table, file).tolist() == [1, 0.25, 1]
    warned = capsys.readouterr().err
    assert f"2 of 3 training images are not listed and keep weight 1, the first: {tmp_path}/a.jpg" in warned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,0\nb.jpg,0.0\n", "all 2 training images have weight 0"),
        ("a.jpg,1,1\n", "has 2 numbers a line: expected path,weight"),
        ("a.jpg,1\nb.jpg,-1\n", r"curriculum.txt:2: '-1' is no number between 0 and 1000"),
        ("a.jpg,inf\n", "curriculum.txt:1: 'inf' is no number"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "curriculum.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        probability_files.read_curriculum(make_table([f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]), file)
