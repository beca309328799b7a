"""Fonts for any name: DejaVu Sans, which comes with matplotlib, and fonts of the system for letters that it lacks.

names = make_drawable(classes)                                      # "class 3" where no font has its letters
axes.set_title(names[0], fontfamily=list_families(names))           # in plots
Lettering(20).draw(ImageDraw.Draw(picture), (5, 5), "日本語", "white")    # in pictures
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from utils import make_visible

UNSUITED = ("emoji", "lastresort")  # in a file's name: pictures in colour, and boxes that stand for a whole alphabet
STYLES = ("bold", "black", "light", "thin", "medium", "italic", "oblique", "mono", "condensed", "serif")

_found: dict[str, str | None] = {}  # by letter: the file of a font that has it; None: there is no such font


def make_drawable(classes: Sequence[str]) -> list[str]:
    """The names of the classes as they can be drawn, with control characters as escapes.

    A name with letters that no font has begins with the number of its class: `class 3`, or `class 3: dog` where only
    some letters cannot be drawn.
    """
    names = list(map(make_visible, classes))
    _find_fonts(names)
    for number, name in enumerate(names):
        if any(_found[letter] is None for letter in name):
            rest = "".join(letter for letter in name if _found[letter] is not None)
            has_words = any(letter.isalnum() for letter in rest)
            names[number] = f"class {number}: {' '.join(rest.split())}" if has_words else f"class {number}"
    return names


def list_families(texts: Iterable[str]) -> list[str]:
    """The families of fonts that draw `texts`, for matplotlib's `fontfamily`: for each letter the first that has it."""
    from matplotlib import font_manager, ft2font

    families = ["DejaVu Sans"]
    for file in _find_fonts(texts):
        if file != _find_default():
            if all(entry.fname != file for entry in font_manager.fontManager.ttflist):  # its list may be older
                font_manager.fontManager.addfont(file)
            families.append(ft2font.FT2Font(file).family_name)
    return families


class Lettering:
    """Draws text of one size, in pixels, into pictures of PIL: each stretch of it with a font that has its letters."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fonts: dict[str, ImageFont.FreeTypeFont] = {}

    def measure(self, text: str) -> float:
        """The width of `text` in pixels."""
        return sum(font.getlength(part) for font, part in self._split(text))

    def draw(self, pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: str) -> None:
        """Draw `text`; `place` is the left upper corner, as in ImageDraw.text with DejaVu Sans."""
        left, top = place
        baseline = top + self._open(_find_default()).getmetrics()[0]
        for font, part in self._split(text):
            pen.text((left, baseline), part, colour, font, anchor="ls")
            left += font.getlength(part)

    def _split(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        """The stretches of `text`, each with its font."""
        _find_fonts([text])
        files: list[str] = []
        for letter in text:
            stays = files and letter.isspace()  # so that words of one alphabet stay in their order
            files.append(files[-1] if stays else _found[letter] or _find_default())
        for file, pairs in groupby(zip(files, text, strict=True), key=lambda pair: pair[0]):
            yield self._open(file), "".join(letter for _, letter in pairs)

    def _open(self, file: str) -> ImageFont.FreeTypeFont:
        if file not in self.fonts:
            self.fonts[file] = ImageFont.truetype(file, self.size)
        return self.fonts[file]


def _find_fonts(texts: Iterable[str]) -> list[str]:
    """The files of the fonts that draw `texts`, each once. Notes in `_found` which of them has which letter."""
    from matplotlib import ft2font

    letters = set().union(*texts)
    missing = letters - _found.keys()
    signs = [letter for letter in missing if unicodedata.category(letter) == "Cf"]  # joiners need no glyph
    _found.update(dict.fromkeys(signs, _find_default()))
    missing -= _found.keys()
    if missing:
        used = dict.fromkeys([_find_default(), *filter(None, _found.values())])
        for file in chain(used, _list_system_fonts()):
            try:
                font = ft2font.FT2Font(file)
            except (OSError, RuntimeError):  # a font of a kind that FreeType cannot open
                continue
            if font.scalable:
                present = [letter for letter in missing if font.get_char_index(ord(letter))]
                _found.update(dict.fromkeys(present, file))
                missing.difference_update(present)
            if not missing:
                break
    _found.update(dict.fromkeys(missing))
    return list(dict.fromkeys(file for letter in sorted(letters) if (file := _found[letter])))


@cache
def _find_default() -> str:
    """The file of DejaVu Sans."""
    import matplotlib as mpl

    return str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _list_system_fonts() -> Iterator[str]:
    """The files of the system's fonts, plain ones without serifs first."""
    yield from _sort_system_fonts()


@cache
def _sort_system_fonts() -> list[str]:
    from matplotlib import font_manager

    def rate(file: str) -> tuple[int, bool, str]:
        name = Path(file).stem.lower()
        return sum(style in name for style in STYLES), "sans" not in name, name

    files = [file for file in font_manager.findSystemFonts() if not any(word in file.lower() for word in UNSUITED)]
    return sorted(files, key=rate)
