"""The files of a data set: folders listed, text read with the line of any error, old lists kept when replaced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils import InputError, write_atomically


def hash_file(path: Path) -> str:
    """The SHA-256 of the file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


def list_images(folder: Path) -> list[str]:
    """The image files in `folder` and its sub-folders, sorted by path.

    Raises InputError when there is none, or when two differ in their extension only: labels and predictions go by
    the name before it.
    """
    names, _ = list_files(folder, IMAGE_EXTENSIONS)
    if not names:
        raise InputError(f"no images in {folder} ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    require_stems(names, f"{folder}{os.sep}")
    return [f"{folder}{os.sep}{name}" for name in names]


def list_files(folder: Path, extensions: frozenset[str]) -> tuple[list[str], list[str]]:
    """(files with one of `extensions`, lower case, with the dot; all folders, "" for itself): names in it, sorted."""
    names: list[str] = []
    folders: list[str] = []
    waiting = [""]
    endings = tuple(extensions)
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(f"{folder}{os.sep}{prefix}") as scan:  # a system call for many names, no stat of each
                entries = [entry for entry in scan if entry.name[0] != "."]  # hidden: not the person's own
        except OSError as error:
            raise InputError(f"cannot read folder {error.filename or folder}: {error.strerror}") from error
        waiting += [f"{prefix}{entry.name}/" for entry in entries if entry.is_dir()]
        found = [entry.name for entry in entries if entry.name.lower().endswith(endings) and not entry.is_dir()]
        names += [prefix + name for name in found] if prefix else found
        folders.append(prefix)
    return sorted(names), sorted(folders)


def require_stems(names: Sequence[str], where: str = "") -> dict[str, str]:
    """{name without its extension: name}; InputError when two names differ in their extension only."""
    stems = {name[: name.rfind(".")]: name for name in names}
    if len(stems) < len(names):
        name = next(name for name in names if stems[name[: name.rfind(".")]] != name)
        other = stems[name[: name.rfind(".")]]
        raise InputError(f"{where}{name} and {other} differ in their extension only: rename one")
    return stems


def make_absolute(path: str | Path) -> Path:
    """`path` from the root on, ~ and .. replaced; links stay."""
    return Path(os.path.normpath(Path(path).expanduser().absolute()))


def find_path(root: str, text: str) -> str:
    r"""Where `text`, a path in a list of the data set in `root`, points: `root/a/b.jpg` also for `a\b.jpg`."""
    if "\\" in text and not os.path.lexists(os.path.join(root, text)):  # a list from Windows
        text = text.replace("\\", "/")
    return os.path.normpath(os.path.join(root, text))


def find_missing(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are no files, in order; each folder is listed once, which is quicker than asking."""
    present: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition(os.sep)
        if folder not in present:
            try:
                with os.scandir(folder or os.sep) as entries:
                    present[folder] = {entry.name for entry in entries}
            except OSError:
                present[folder] = set()
        if name not in present[folder]:
            missing.append(path)
    return missing


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
    """(number from 1, text) of the lines that are not blank; Windows line ends are none of the text."""
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


def find_line(text: str, value: str, occurrence: int = 1) -> int:
    """The number of the line on which the JSON string `value` stands for the n-th time; 1 where it does not."""
    for quoted in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        position = -1
        for _ in range(occurrence):
            position = text.find(quoted, position + 1)
            if position < 0:
                break
        else:
            return text.count("\n", 0, position) + 1
    return 1


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


def name_backup(path: Path) -> Path:
    """`path` with .bak at its end, or .bak2 and so on: the first that is free."""
    number = 1
    while os.path.lexists(backup := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")):
        number += 1
    return backup
