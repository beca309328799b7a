"""Names of classes as other programs write them into one cell: JSON and Python lists, Label Studio's choices."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from dataset.class_names import split_names
from dataset.json_files import JsonLine
from utils import InputError

NO_COMMA = re.compile(r"""['"]\s+['"]""")


def split_cell(cell: str, separator: str, where: str | JsonLine) -> list[str]:
    """The names in a cell: of a list, where it holds one, else what stands between the separators.

    Examples: `cat;dog`, `["cat", "dog"]`, `['cat', 'dog']` and `{"choices": ["cat", "dog"]}` hold two names, `[]` none.
    """
    names = parse_cell(cell, where)
    return split_names(cell, separator) if names is None else names


def parse_cell(cell: str, where: str | JsonLine) -> list[str] | None:
    """The names in a cell that holds a list or Label Studio's results; None for any other cell.

    Raises InputError for a list without commas, as NumPy writes it: Python would join its names to one.
    """
    text = cell.strip()
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return None
    try:
        return list_names(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if NO_COMMA.search(text):
        raise InputError(f"{where}: there is no comma between the names in {text[:80]!r}: write ['cat', 'dog']")
    return list_names(value)


def list_names(value: Any) -> list[str] | None:
    """The names in a list, in Label Studio's {"choices": [...]} or in a list of its regions; None where there are none.

    The names of a region stand under a key such as `rectanglelabels`. Whole numbers in a list are names, too.
    """
    if isinstance(value, dict):
        found = [value[key] for key in value if key == "choices" or str(key).endswith("labels")]
        return list_names(found[0]) if len(found) == 1 else None
    if not isinstance(value, list):
        return None
    names: list[str] = []
    for item in value:
        if isinstance(item, str | int) and not isinstance(item, bool):
            names.append(str(item).strip())
        elif isinstance(item, dict) and (inner := list_names(item)) is not None:
            names += inner
        else:
            return None
    return [name for name in dict.fromkeys(names) if name]
