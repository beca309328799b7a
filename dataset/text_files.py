"""Text files of a data set: read with the line of any error; the old text stays as `.bak` when a file is replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from utils import InputError, write_atomically

# ---- reading ----


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark; InputError, with the line, for anything else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: this is not UTF-8 text; save the file in that encoding") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank, without their line ends."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # not splitlines: names may hold U+2028
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def read_json(path: Path) -> tuple[Any, str]:
    """(what a JSON file holds, its text). Raises InputError with the line where it is no JSON."""
    text = read_text(path)
    try:
        return json.loads(text), text
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}: this is not JSON") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be an annotation file") from error


class JsonLine(NamedTuple):
    """Where a string stands in a JSON file, for an error. The line is searched for only when it is printed.

    str(JsonLine(file, text, "a.jpg", 2)) is `file:7` where "a.jpg" stands for the second time on line 7.
    """

    file: Path
    text: str
    value: str
    occurrence: int

    def __str__(self) -> str:
        line = 1  # where the string is not found, since it is written with other escapes than these two ways
        for quoted in (json.dumps(self.value), json.dumps(self.value, ensure_ascii=False)):
            position = -1
            for _ in range(self.occurrence):
                position = self.text.find(quoted, position + 1)
                if position < 0:
                    break
            else:
                line = self.text.count("\n", 0, position) + 1
                break
        return f"{self.file}:{line}"


# ---- writing ----


def require_lines(names: Iterable[str]) -> None:
    """Raise InputError for a class name or path that does not fit on a line."""
    for name in names:
        if not name.strip() or "\n" in name or "\r" in name or name[0] == "\ufeff":
            raise InputError(f"{name!r} cannot stand on a line of a list: rename it, or choose csv or coco_json")


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; another text that was there stays beside it as `.bak`. Raises InputError."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        odd = text[: error.start].rpartition("\n")[2] + text[error.start :].partition("\n")[0]
        raise InputError(f"{path}: a name is not valid UTF-8, rename it first: {odd[:120]!a}") from error
    if path.is_file():
        if path.read_bytes() == data:
            return
        shutil.copy2(path, name_backup(path))
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_json(file: Path, **lists: list[Any]) -> None:
    """Write {"name": [items]} with each item on a line of its own, so that an error can name the line."""
    texts = []
    for name, items in lists.items():
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        texts.append(f'"{name}": [\n{lines}\n]')
    replace_text(file, "{\n" + ",\n".join(texts) + "\n}\n")


def name_backup(path: Path) -> Path:
    """`path` with .bak at its end, or .bak2 and so on: the first name that is free."""
    number = 1
    while os.path.lexists(backup := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")):
        number += 1
    return backup
