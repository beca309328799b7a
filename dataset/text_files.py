"""Text files of a data set: read with the line of any error; the old text stays as `.bak` when a file is replaced."""

from __future__ import annotations

import csv
import functools
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

from dataset.files import open_file
from dataset.whole_files import write_atomically
from utils import InputError

CSV_END = csv.excel.lineterminator  # \r\n
HEAD_BYTES = 1 << 20  # of a file that may be anything, in which its first lines are looked for
MEMORY_SHARE = 8  # what a list of images is read into takes some eight times the size of the file

# Set for the reading that is under way, so that no reader has to hand it on: (file, line from 1) of each
_left_out: ContextVar[Collection[tuple[str, int]]] = ContextVar("left_out", default=())

# ---- reading ----


@contextmanager
def leave_out_lines(lines: Collection[tuple[str, int]]) -> Iterator[None]:
    """Until the end of `with`, read these lines of text files, (file, number from 1), as if they were blank.

    So `check` finds what else is wrong, and images that are in order. What is read then is for no training.
    """
    token = _left_out.set(lines)
    try:
        yield
    finally:
        _left_out.reset(token)


def leaves_lines_out() -> bool:
    """Whether any line is left out."""
    return bool(_left_out.get())


def list_lines_left_out(path: Path) -> set[int]:
    """The numbers of the lines of `path` that are left out."""
    return {number for file, number in _left_out.get() if file == str(path)}


def read_text(path: Path, most_bytes: int | None = None) -> str:
    """A text file in UTF-8, with or without byte order mark; InputError, with the line, for anything else.

    It has at most `most_bytes`; None: MEMORY_SHARE of the memory of the machine.
    """
    most_bytes = measure_memory() // MEMORY_SHARE if most_bytes is None else most_bytes
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise InputError(f"{path} has {size:,} bytes: more than {most_bytes:,} is not read as such a file")
            data = file.read(size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise InputError(f"cannot read {path}: it does not fit into memory") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: this is not UTF-8 text; save the file in that encoding") from error
    if numbers := list_lines_left_out(path):
        lines = split_lines(text)
        text = "\n".join("" if number in numbers else line for number, line in enumerate(lines, start=1))
    return text


@functools.cache  # asked for at every image of a list
def measure_memory() -> int:
    """Bytes of memory that the machine has."""
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank, without their line ends."""
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def split_lines(text: str) -> list[str]:
    """The lines of a text. CR alone ends a line only where nothing else does, as old Macs and some Excels write it."""
    return text.split("\n" if "\n" in text else "\r")  # not splitlines: names may hold U+2028


def read_first_lines(path: Path, most: int = 20, guess_encoding: Callable[[bytes], str] | None = None) -> list[str]:
    """The first lines that are not blank of a file that may be anything, without their line ends; at most `most`.

    `guess_encoding` tells it by the beginning; without, it is UTF-8. Of a file without lines, the beginning. Raises
    InputError where it cannot be read.
    """
    try:
        with open_file(path) as file:
            data = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    encoding = guess_encoding(data) if guess_encoding else "utf-8"
    lines = split_lines(data.decode(encoding, errors="replace").removeprefix("\ufeff"))
    if len(data) == HEAD_BYTES and len(lines) > 1:
        lines.pop()  # it is cut off
    return [line.removesuffix("\r") for line in lines if line.strip()][:most]


# ---- writing ----


class CsvFile:
    r"""A file for `csv.writer`, without its option `lineterminator`: rows end in \n.

    With lineterminator="\n", Python before 3.13 puts no quotes around a cell with \r, which ends a row for readers.

        csv.writer(CsvFile(file)).writerow(["a\rb.jpg", 1])    # "a\rb.jpg",1
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        """Write a row as csv.writer makes it, one at a time."""
        return self.file.write(f"{row.removesuffix(CSV_END)}\n")


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


def name_backup(path: Path) -> Path:
    """`path` with .bak at its end, or .bak2 and so on: the first name that is free."""
    number = 1
    while os.path.lexists(backup := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")):
        number += 1
    return backup
