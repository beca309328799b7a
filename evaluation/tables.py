"""Print a pandas.DataFrame: as text that fits the terminal, as CSV, Markdown or LaTeX."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from utils import InputError

Frame = Any  # a pandas.DataFrame; pandas itself types its columns and cells as a dozen things
MODES = ("--csv", "--markdown", "--latex")  # without any of them: text
MISSING = "–"
MAX_CELL = 40  # characters: longer lists and texts are cut in the terminal
GAP = 2  # spaces between columns in the terminal


def take_mode(arguments: list[str]) -> tuple[str, list[str]]:
    """Return (the mode of MODES among `arguments`, or "" for text; the other arguments).

    Raises InputError for two modes.
    """
    modes = sorted(set(arguments) & set(MODES))
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other")
    return "".join(modes), [argument for argument in arguments if argument not in MODES]


def print_csv(frame: Frame) -> None:
    """Print every column exactly: lists as JSON, missing values empty."""
    # whole numbers beside missing ones have become floats: 32.0 is 32 again
    exact = frame.convert_dtypes(convert_string=False, convert_boolean=False, convert_floating=False)
    plain = exact.map(lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)
    plain.to_csv(sys.stdout, index=False, lineterminator="\n")


def print_markdown(frame: Frame) -> None:
    """Print a GitHub table."""
    cells = format_cells(frame).map(lambda cell: cell.replace("|", "\\|"))
    sides = ["right" if is_numeric(frame[name]) else "left" for name in cells.columns]
    print(cells.to_markdown(index=False, disable_numparse=True, colalign=sides))


def print_latex(frame: Frame) -> None:
    r"""Print a LaTeX table, which needs \usepackage{booktabs}."""
    cells = format_cells(frame)
    sides = "".join("r" if is_numeric(frame[name]) else "l" for name in cells.columns)
    text = cells.to_latex(index=False, escape=True, column_format=sides)
    print(r"% \usepackage{booktabs}", text.replace("±", r"$\pm$").replace(MISSING, "--"), sep="\n", end="")


def print_text(frame: Frame, notes: Sequence[str] = (), bold: Sequence[bool] = (), kept: str | None = None) -> None:
    """Print the columns that fit the terminal (120 characters in a pipe, or the variable COLUMNS), then `notes`.

    Where the width is not enough, columns are left out from the right; the first one and the one called `kept` stay.
    `bold` says for each row whether to print it in bold.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    has_width = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    console = Console(width=None if has_width else 120, markup=False, highlight=False, emoji=False)
    cells = format_cells(frame).map(lambda cell: cell if len(cell) <= MAX_CELL else cell[: MAX_CELL - 1] + "…")
    contents = {name: max(map(cell_len, cells[name]), default=0) for name in cells.columns}

    def measure(name: str) -> int:
        return max(contents[name], *map(cell_len, headers[name].split("\n"))) + GAP

    headers = {name: name for name in cells.columns}
    if sum(map(measure, headers)) - GAP > console.width:
        headers = {name: wrap_name(name, contents[name]) for name in headers}
    shown, left_out = list(headers), []
    while len(shown) > 1 and sum(map(measure, shown)) - GAP > console.width:
        left_out.insert(0, shown.pop(-2 if len(shown) > 2 and shown[-1] == kept else -1))

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="")
    for name in shown:
        table.add_column(
            headers[name], justify="right" if is_numeric(frame[name]) else "left", no_wrap=True, vertical="bottom"
        )
    for index, row in enumerate(cells[shown].itertuples(index=False)):
        table.add_row(*row, style="bold" if index < len(bold) and bold[index] else None)
    console.print(table)
    if left_out:
        names = ", ".join(left_out[:8]) + (f" and {len(left_out) - 8} more" if len(left_out) > 8 else "")
        notes = [*notes, f"left out for want of width: {names}; --csv shows all"]
    if notes:
        console.print("", *notes, sep="\n")


def wrap_name(name: str, width: int) -> str:
    """`name` on several lines, broken after underscores, where it is wider than `width`.

    >>> wrap_name("TRAIN_BATCH_SIZE", 3)
    'TRAIN_\\nBATCH_\\nSIZE'
    """
    words = re.sub(r"(?<=\w_)(?=\w)", " ", name)
    lines = textwrap.wrap(words, max(width, *map(len, words.split())), break_long_words=False)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def format_cells(frame: Frame) -> Frame:
    """The text of every cell. A column `x` beside a column `x_std` takes it in: `.314 ± .010`."""
    import pandas as pd  # it takes most of a second: a mistake on the command line must not wait for it

    cells = {}
    for name in frame.columns:
        if f"{name}_std" in frame.columns:
            cells[name] = format_means(frame[name], frame[f"{name}_std"])
        elif not (name.endswith("_std") and name.removesuffix("_std") in frame.columns):
            cells[name] = format_column(frame[name])
    return pd.DataFrame(cells, dtype=object)


def format_means(means: Any, stds: Any) -> list[str]:
    """`.314 ± .010`: three decimals for shares of 1, one for larger numbers."""
    decimals = 3 if means.abs().max() <= 1 else 1
    texts = []
    for mean, std in zip(means, stds, strict=True):
        spread = MISSING.rjust(decimals + 1) if std != std else f"{std:.{decimals}f}"
        text = MISSING if mean != mean else f"{mean:.{decimals}f} ± {spread}"
        texts.append(re.sub(r"\b0\.", ".", text) if decimals == 3 else text)
    return texts


def format_column(column: Any) -> list[str]:
    """The text of every value: numbers with the decimals that the column needs, at most four (above 100: one)."""
    if not is_numeric(column):
        return [format_value(value) for value in column]
    numbers = column.dropna()
    most = 1 if numbers.abs().max() >= 100 else 4
    decimals = next((count for count in range(most) if (numbers.round(count) == numbers).all()), most)

    def format_number(number: Any) -> str:
        if number != number:
            return MISSING
        return f"{number:.4g}" if 0 < abs(number) < 0.001 else f"{number:.{decimals}f}"

    return [format_number(number) for number in column]


def format_value(value: Any) -> str:
    """A value of a column that does not hold numbers only."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("\n", " ")


def is_numeric(column: Any) -> bool:
    """Whether a column holds numbers, which are aligned to the right: not truth values."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)
