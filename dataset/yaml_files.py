"""YAML files, whoever wrote them: small ones, which hold names and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dataset.json_files import SMALL_BYTES
from dataset.text_files import read_text
from utils import InputError


def read_yaml(path: Path) -> Any:
    """What a YAML file of at most SMALL_BYTES holds: dicts, lists, and text. Raises InputError for anything else.

    Every value is text, as it is written: in YAML 1.1 a class called `no` would be False, and one called `1e3` 1000.0.
    """
    text = read_text(path, SMALL_BYTES)
    try:
        return yaml.load(text, yaml.BaseLoader)  # which makes no objects
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: this is not YAML: {getattr(error, 'problem', None) or 'see there'}") from error
    except RecursionError as error:
        raise InputError(f"{path}: its lists or names are nested too deeply") from error
