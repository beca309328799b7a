"""XML files of other tools, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from dataset.text_files import read_text
from utils import InputError

MOST_BYTES = 1 << 24  # of the annotations of one image


def read_xml(file: Path, most_bytes: int = MOST_BYTES) -> ET.Element:
    """The root of the XML in `file`. Raises InputError, also for a document type.

    A document type can define entities, a few lines of which unfold to gigabytes; no annotation tool writes one.
    """
    text = read_text(file, most_bytes)
    for word in ("<!DOCTYPE", "<!ENTITY"):
        if word in text:
            line = text.count("\n", 0, text.index(word)) + 1
            raise InputError(f"{file}:{line}: {word} is not read, since it can unfold to any size: remove it")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{file}:{error.position[0]}: this is not XML: {error}") from error
