"""evaluation/pages.py, palette.py: what is on a page is escaped, there is one style sheet, its colours are readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluation import pages, palette

TEMPLATES = sorted(path.name for path in pages.TEMPLATES.glob("*.html") if path.name != "base.html")


def read_luminance(colour: str) -> float:
    """The relative luminance that WCAG 2 defines."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "blue", "orange", "green", "red"])
@pytest.mark.parametrize("background", ["page", "card"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: dict[str, str], name: str, background: str) -> None:
    darker, lighter = sorted(read_luminance(scheme[which]) for which in (name, background))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_both_schemes_have_the_same_colours() -> None:
    assert palette.LIGHT.keys() == palette.DARK.keys()
    assert {*palette.SPLITS.values()} <= {*palette.LIGHT}


def test_values_are_escaped_and_names_that_are_no_utf8_are_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.html").write_text('<p title="{{ name }}">{{ name }} {{ name|cut(4) }} {{ file|address }}</p>')
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    text = pages.render("one.html", name="<b>\"&' [x]", file="a b/caf\udce9 <i>.png")
    escaped = "&lt;b&gt;&#34;&amp;&#39; [x]"
    assert text == f'<p title="{escaped}">{escaped} &lt;b&gt;… a%20b/caf%E9%20%3Ci%3E.png</p>'
    assert pages.render("one.html", name="caf\udce9", file="x").startswith('<p title="caf\\udce9">caf\\udce9 ')


def test_text_is_cut_and_counted() -> None:
    assert [pages.cut("dining table", length) for length in (12, 11, 7)] == ["dining table", "dining tab…", "dining…"]
    assert [pages.count(number, "error") for number in (0, 1, 2000)] == ["0 errors", "1 error", "2,000 errors"]


def test_no_colour_is_written_outside_the_palette() -> None:
    for path in pages.TEMPLATES.iterdir():
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?![-\w])[;, ]", path.read_text(encoding="utf-8")), path


def test_every_page_has_the_one_style_sheet() -> None:
    assert len(TEMPLATES) >= 5
    for name in TEMPLATES:
        assert re.match(
            r'{% extends "(base|model_page)\.html" %}', (pages.TEMPLATES / name).read_text(encoding="utf-8")
        )
    page = pages.render("serving_page.html", novel=0.99)
    for scheme in (palette.LIGHT, palette.DARK):
        assert all(f"--{name}: {colour};" in page for name, colour in scheme.items())
    assert "{{" not in page
    assert "{%" not in page
    assert not re.search(r"https?:|<script src|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", page)
