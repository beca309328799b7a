"""CSV files of public data sets: chosen columns, row by row, so that a file of gigabytes needs little memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from dataset.files import open_file
from dataset.label_values import VALUES
from dataset.text_files import list_lines_left_out
from utils import InputError

MOST_ROWS = 1000  # that are looked at to tell names from values


def read_cells(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, the cells of `columns`, without white space around them) of each row below the header.

    Example: `for line, (path, label) in read_cells(file, ("ImageID", "LabelName"))`. Raises InputError for a column
    that is missing or stands twice, for a row with more or fewer cells than the header, and for what is no CSV.
    """
    line, left_out = 0, list_lines_left_out(file)
    try:
        with open_file(file) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [name.strip() for name in next(reader, [])]
            places = [find_column(header, name, file) for name in columns]
            for row in reader:
                line = reader.line_num
                if line in left_out:
                    continue
                if len(row) != len(header) and row:
                    raise InputError(f"{file}:{line}: {len(row)} cells, but {len(header)} columns")
                if row:
                    yield line, [row[place].strip() for place in places]
    except csv.Error as error:
        raise InputError(f"{file}:{line + 1}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: below line {line}, this is not UTF-8 text; save the file in that encoding"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def find_column(header: Sequence[str], name: str, file: Path) -> int:
    """The place of the column `name`. Raises InputError where it is missing or stands twice."""
    if header.count(name) != 1:
        raise InputError(f"{file}:1: the column {name!r} stands {header.count(name)} times: it must stand once")
    return header.index(name)


def names_labels(file: Path, header: Sequence[str]) -> bool:
    """Whether its columns are an image and `label`, and `label` holds names: not 1, 0, -1 or blank, as for a class."""
    if len(header) != 2 or "label" not in header:
        return False
    return any(cell.lower() not in VALUES for _, (cell,) in islice(read_cells(file, ("label",)), MOST_ROWS))
