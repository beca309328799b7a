"""XML files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from dataset.text_files import read_text
from utils import InputError


def read_xml(path: Path) -> ET.Element:
    """The root of an XML file in UTF-8. Raises InputError, with the line, for anything else.

    A file with a document type is refused: a few lines of its entities can expand to gigabytes, or name other files.
    """
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: it declares a document type or entities, which no data set needs: remove them")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{path}:{error.position[0]}: {error.msg.partition(':')[0]}: this is not XML") from error
    except ValueError as error:
        raise InputError(f"{path}: this is not XML: {str(error)[:200]}") from error
