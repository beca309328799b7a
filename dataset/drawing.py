"""Draws the labels of a picture below it.

canvas = draw_labels(pixels, ["cat 0.98", "sofa 0.71"])
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dataset.fonts import Lettering
from utils import make_visible

BAND, INK = "#1d2127", "#e6e9ee"  # below a picture, and of the labels there: the palette's dark card and its ink
MIN_PICTURE_WIDTH = 320  # pixels: beside a narrower image is margin, so that the labels under it can be read
MAX_TEXT = 300  # characters of a label, before it is cut to the width that there is
KEPT_END = 5  # characters at the end of a label that is cut: its probability


def draw_labels(
    pixels: NDArray[np.uint8], texts: Sequence[str], colours: Sequence[str] | None = None, min_lines: int = 1
) -> Image.Image:
    """The uint8 (H, W, 3) picture above its labels, which go on in the next line where one is full.

    `colours` has one colour for each of the `texts`, in which control characters become escapes. The band below the
    picture has room for `min_lines` or more.
    """
    picture = Image.fromarray(pixels)
    width = max(picture.width, MIN_PICTURE_WIDTH)
    size = max(15, width // 30)
    lettering = Lettering(size)
    margin, step = size // 2, round(1.35 * size)
    gap = lettering.measure(" · ")
    placed: list[tuple[float, int, str, str]] = []  # where each text starts, its line, the text, its colour
    end, line = 0.0, 0  # where the text before ends, and its line
    for name, colour in zip(texts, colours or [INK] * len(texts), strict=True):
        text = make_visible(name)
        if len(text) > MAX_TEXT:  # shortened letter by letter, it would take minutes
            text = f"{text[: MAX_TEXT - KEPT_END]}…{text[-KEPT_END:]}"
        while len(text) > KEPT_END + 1 and lettering.measure(text) > width - 2 * margin:
            text = f"{text[:-KEPT_END].removesuffix('…')[:-1]}…{text[-KEPT_END:]}"
        if end and end + gap + lettering.measure(text) > width - margin:
            end, line = 0.0, line + 1
        start = end + gap if end else margin
        end = start + lettering.measure(text)
        placed.append((start, line, text, colour))
    canvas = Image.new("RGB", (width, picture.height + max(line + 1, min_lines) * step + margin), BAND)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for start, line, text, colour in placed:
        y = picture.height + margin // 2 + line * step
        lettering.draw(draw, (start, y), text, colour)
        if start > margin:
            lettering.draw(draw, (start - gap, y), " · ", INK)
    return canvas
