"""dataset/image_sizes.py: a side or (height, width) becomes one kind of value."""

from __future__ import annotations

from typing import Any

import pytest

from dataset.image_sizes import Size, as_size
from utils import InputError


@pytest.mark.parametrize("value", [224, (224, 224), [224, 224], Size(224, 224)])
def test_a_square_is_one_number_in_files_and_texts(value: Any) -> None:
    size = as_size(value)
    assert size == Size(height=224, width=224)
    assert (str(size), f"{size} px", size.as_plain()) == ("224", "224 px", 224)


@pytest.mark.parametrize("value", [(256, 448), [256, 448]])
def test_the_height_comes_first(value: Any) -> None:
    size = as_size(value)
    assert (size.height, size.width) == (256, 448)
    assert (str(size), size.as_plain()) == ("256x448", [256, 448])
    assert as_size(size.as_plain()) == as_size(size) == size


@pytest.mark.parametrize("value", [0, -1, True, 224.0, "224", "256x448", (256,), (256, 448, 3), (256, 0), None])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="side of a square in pixels, or \\(height, width\\)"):
        as_size(value)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((224, 224), 100, (100, 100)),
        ((192, 336), 192, (192, 336)),
        ((192, 336), 128, (128, 224)),
        ((336, 192), 128, (224, 128)),
        ((224, 384), 160, (160, 288)),  # 274 by proportion; patches of 16 pixels need a multiple
        ((224, 392), 168, (168, 280)),  # 294; of 28 pixels, also where patches have 14
        ((101, 203), 50, (50, 100)),  # 100.5, with no common divisor
    ],
)
def test_the_longer_side_follows_the_shorter_one(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert as_size(size).with_short_side(side) == expected


def test_both_sides_are_scaled() -> None:
    assert as_size((100, 203)).scaled(1.5) == (150, 304)
