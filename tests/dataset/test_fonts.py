"""dataset/fonts.py: any name is drawn, with a font that has its letters or by the number of its class; no warning.

pytest tests/dataset/test_fonts.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

import metrics
from dataset import fonts
from dataset.drawing import draw_labels
from dataset.table import Table
from evaluation import plots
from tools import check_report

MATPLOTLIBS = Path(mpl.get_data_path(), "fonts", "ttf")
DEJAVU, STIX = str(MATPLOTLIBS / "DejaVuSans.ttf"), str(MATPLOTLIBS / "STIXGeneral.ttf")
RARE = next(  # a letter that only the second of two fonts has, as Chinese letters are in a font of the system
    chr(code)
    for code in sorted(FT2Font(STIX).get_charmap())
    if chr(code).isalpha() and code not in FT2Font(DEJAVU).get_charmap()
)
NOWHERE = "\U00010f00"  # a letter that neither font has
NAMES = ("cat", f"{RARE}{RARE}", f"dog {NOWHERE}", NOWHERE, f"{NOWHERE}!", "שלום", "a\x1bb")


@pytest.fixture
def use_fonts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Let the system have these fonts and no others."""

    def use(files: Sequence[str]) -> None:
        monkeypatch.setattr(fonts, "_found", {})
        monkeypatch.setattr(fonts, "_list_system_fonts", lambda: iter(files))

    return use


def test_a_name_is_drawn_as_it_is_where_the_system_has_its_letters(use_fonts: Callable[..., None]) -> None:
    use_fonts([STIX])
    assert fonts.make_drawable(NAMES) == ["cat", NAMES[1], "class 2: dog", "class 3", "class 4", "שלום", r"a\x1bb"]
    assert fonts.list_families(NAMES[:2]) == ["DejaVu Sans", "STIXGeneral"]
    assert fonts.list_families(["cat"]) == ["DejaVu Sans"]


def test_without_such_a_font_the_number_of_the_class_stands_for_the_name(use_fonts: Callable[..., None]) -> None:
    use_fonts([])
    assert fonts.make_drawable(NAMES)[:4] == ["cat", "class 1", "class 2: dog", "class 3"]
    assert fonts.list_families(fonts.make_drawable(NAMES)) == ["DejaVu Sans"]


def test_what_is_no_font_of_outlines_is_passed_over(use_fonts: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    use_fonts([str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"), STIX])
    assert fonts.make_drawable([RARE]) == [RARE]


def test_plain_fonts_without_serifs_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "NotoSerifCJK-Regular.ttc",
        "NotoSansCJK-Bold.ttc",
        "NotoColorEmoji.ttf",
        "NotoSansCJK-Regular.ttc",
        "A.ttf",
    ]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [f"/fonts/{name}" for name in names])
    fonts._sort_system_fonts.cache_clear()
    order = [Path(file).name for file in fonts._list_system_fonts()]
    fonts._sort_system_fonts.cache_clear()
    assert order == ["NotoSansCJK-Regular.ttc", "A.ttf", "NotoSansCJK-Bold.ttc", "NotoSerifCJK-Regular.ttc"]


@pytest.mark.parametrize("files", [[STIX], []], ids=["a font", "no font"])
def test_no_picture_makes_matplotlib_warn(use_fonts: Callable[..., None], files: Sequence[str]) -> None:
    use_fonts(files)
    rng = np.random.default_rng(0)
    targets = (rng.random((40, len(NAMES))) < 0.5).astype(np.int8)
    probabilities = rng.random(targets.shape).astype(np.float32)
    columns = metrics.measure_classes(probabilities, targets, 0.5)
    figures = [
        check_report.draw_histogram({"train": Table([f"{row}.jpg" for row in range(40)], targets, NAMES)}),
        plots.draw_confusion(NAMES, metrics.confusion(probabilities, targets, 0.5)),
        plots.draw_precision_recall(NAMES, list(metrics.precision_recall_curve(probabilities, targets)), columns),
    ]
    for figure in figures:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FigureCanvasAgg(figure).draw()
        shown = [text.get_text() for text in figure.findobj(Text)]
        second = NAMES[1] if files else "class 1"
        assert any(text.startswith(second) for text in shown)
        assert any(text.startswith("class 2: dog") for text in shown)


def draw_alone(text: str, file: str) -> np.ndarray:
    """The ink of `text` in one font, cropped."""
    picture = Image.new("L", (300, 60))
    ImageDraw.Draw(picture).text((10, 10), text, 255, ImageFont.truetype(file, 20))
    return np.asarray(picture.crop(picture.getbbox()))


def test_in_a_picture_each_stretch_has_a_font_with_its_letters(use_fonts: Callable[..., None]) -> None:
    use_fonts([STIX])
    lettering = fonts.Lettering(20)
    picture = Image.new("L", (300, 60))
    lettering.draw(ImageDraw.Draw(picture), (10, 10), f"{RARE}{RARE}", "white")
    assert np.array_equal(np.asarray(picture.crop(picture.getbbox())), draw_alone(RARE * 2, STIX))
    whole = lettering.measure(f"ab {RARE} 0.98")
    parts = ImageFont.truetype(DEJAVU, 20), ImageFont.truetype(STIX, 20)
    # a blank belongs to what stands before it
    assert whole == parts[0].getlength("ab ") + parts[1].getlength(f"{RARE} ") + parts[0].getlength("0.98")


def test_text_of_usual_letters_looks_as_one_font_draws_it(use_fonts: Callable[..., None]) -> None:
    use_fonts([STIX])
    picture, expected = Image.new("RGB", (300, 40)), Image.new("RGB", (300, 40))
    fonts.Lettering(18).draw(ImageDraw.Draw(picture), (5, 5), "gÀ cat 0.98", "#ff8800")
    ImageDraw.Draw(expected).text((5, 5), "gÀ cat 0.98", "#ff8800", ImageFont.truetype(DEJAVU, 18))
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_labels_under_a_picture_use_them(use_fonts: Callable[..., None]) -> None:
    use_fonts([STIX])
    pixels = np.zeros((20, 400, 3), dtype=np.uint8)
    with_font = np.asarray(draw_labels(pixels, [f"{RARE} 0.98"]))
    use_fonts([])
    assert not np.array_equal(np.asarray(draw_labels(pixels, [f"{RARE} 0.98"])), with_font)
