"""Pages: a template of templates/, filled in with everything escaped; and how text is cut and counted on them.

A page needs nothing from elsewhere: it works from a disk, light or dark, and without scripts. Templates that end in .md
are Markdown.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import quote

from evaluation import palette
from evaluation.tables import escape_markdown
from utils import make_visible

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: object) -> str:
    """The page that `template`, a file of templates/, makes of `values`; control characters in them become escapes.

    In Markdown only what is `Markup` already goes in as it is.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    is_markdown = template.endswith(".md")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=not is_markdown,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not is_markdown else escape_markdown(str(value).replace("\n", " "))
        ),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "address": address,
        "cut": cut,
        "count": count,
        "embed": embed,
        "number": "{:,}".format,
        "percent": "{:.1%}".format,
    }
    page = environment.get_template(template).render(palette=palette, **values)
    return "\n".join(map(make_visible, page.split("\n")))


def printable(text: str) -> str:
    """`text`, with an escape for what is no UTF-8 in a file name."""
    return text.encode(errors="backslashreplace").decode()


def address(path: str) -> str:
    """The URL of a file by its `path` from the page's folder, also where the name is no UTF-8."""
    return quote(os.fsencode(path))


def embed(picture: bytes) -> str:
    """A JPEG as a `data:` address."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def cut(text: str, length: int) -> str:
    """At most `length` characters of `text`, control characters as escapes: `cut("dining table", 7)` is `dining…`."""
    text = make_visible(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def count(number: int, noun: str) -> str:
    """`count(1, "error")` is `1 error`, `count(2000, "error")` `2,000 errors`, `count(2, "class")` `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
