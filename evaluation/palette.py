"""The colours of plots, pictures and pages.

Each text colour has a contrast of 4.5 : 1 or more (WCAG 2, level AA) with `page` and `card` of its scheme. Blue, orange
and green differ with any colour vision (Okabe & Ito 2008); a sign or a word always says the same without colour.
"""

from __future__ import annotations

from dataset.drawing import BAND, INK

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#1c2430",
    "soft": "#5b6675",
    "line": "#d5dae1",
    "blue": "#2563c9",
    "orange": "#b05800",
    "green": "#00795a",
    "red": "#b3261e",
}
DARK = {
    "page": "#14171c",
    "card": BAND,
    "ink": INK,
    "soft": "#9aa5b3",
    "line": "#333a44",
    "blue": "#6fa5ff",
    "orange": "#f0ad4e",
    "green": "#3fc6a8",
    "red": "#ff8a80",
}
SPLITS = {"train": "blue", "val": "orange", "test": "green"}  # which colour shows which split
