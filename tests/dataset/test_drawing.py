"""dataset/drawing.py: labels stand under a picture, whole or cut, in their colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from dataset.drawing import BAND, draw_labels


def find_ink(canvas: Image.Image, height: int) -> np.ndarray:
    """Where the band under the picture has something in it."""
    return (np.asarray(canvas)[height:].astype(int).sum(axis=2)) > sum(ImageColor.getrgb(BAND)) + 60


@pytest.mark.parametrize("size", [(30, 20), (640, 400), (90, 700), (1600, 300)])
def test_labels_stand_under_the_picture_in_as_many_lines_as_they_need(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    heights = []
    for count in (1, 10, 80):
        canvas = draw_labels(pixels, [f"class number {i} 0.98" for i in range(count)])
        left = (canvas.width - width) // 2
        assert np.array_equal(np.asarray(canvas)[:height, left : left + width], pixels), "nothing is drawn over it"
        ink = find_ink(canvas, height)
        assert ink.any()
        assert not ink[:, :3].any(), "no text is cut off"
        assert not ink[:, -3:].any()
        assert not ink[-1].any()
        heights.append(canvas.height)
    assert heights[0] < heights[1] < heights[2]


def test_a_long_name_is_cut_but_keeps_its_probability() -> None:
    pixels = np.zeros((50, 50, 3), dtype=np.uint8)
    one = draw_labels(pixels, [f"{'x' * 200} 0.98"])
    assert one.height == draw_labels(pixels, ["x 0.98"]).height
    others = [draw_labels(pixels, [f"{'x' * 200} 0.9{digit}"]) for digit in (8, 1)]
    assert np.array_equal(np.asarray(one), np.asarray(others[0]))
    assert not np.array_equal(np.asarray(one), np.asarray(others[1])), "its end is what is shown"


@pytest.mark.parametrize("text", ["x" * 200, "W" * 30, "ab", ""])
def test_a_name_without_a_space_is_cut_as_well(text: str) -> None:
    pixels = np.zeros((50, 50, 3), dtype=np.uint8)
    assert draw_labels(pixels, [text]).size == draw_labels(pixels, ["x 0.98"]).size


def test_each_label_has_its_colour_and_the_band_its_least_height() -> None:
    pixels = np.zeros((50, 50, 3), dtype=np.uint8)
    canvas = draw_labels(pixels, ["one", "two"], ["#ff0000", "#00ff00"], min_lines=4)
    assert canvas.height - 50 > 3 * (draw_labels(pixels, ["one"]).height - 50) - 30
    band = np.asarray(canvas)[50:]
    red, green = ((band == colour).all(axis=2) for colour in ((255, 0, 0), (0, 255, 0)))
    assert red.any()
    assert green.any()
    assert np.flatnonzero(red.any(axis=0)).max() < np.flatnonzero(green.any(axis=0)).min(), "side by side"
    assert draw_labels(pixels, [f"label {i}" for i in range(80)], min_lines=4).height > canvas.height
