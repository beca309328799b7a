"""Print a pandas.DataFrame: as text that fits the terminal, as CSV, Markdown or LaTeX.

Names of columns and texts in cells come from anywhere, so each way to print escapes what would be more than text there.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from utils import InputError, make_console, make_visible

Frame = Any  # a pandas.DataFrame; pandas itself types its columns and cells as a dozen things
MISSING = "–"
MAX_CELL = 40  # characters: longer lists and texts are cut in the terminal
FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")  # what a spreadsheet takes a cell that begins with this for
MARKDOWN = re.compile(r"[\\|`*<\[&$~]|(?<![^\W_])_|_(?![^\W_])")  # within a word, _ is no emphasis
ABSOLUTE_FILE = re.compile(r"(?:/|~/|[A-Za-z]:[/\\]).*?([^/\\]+)(\.\w{1,9})")  # its name, and its ending
DIGEST = re.compile(r"_([0-9a-f]{8})$")  # of the configuration, at the end of the names that training.py gives
GAP = 2  # spaces between columns in the terminal


def take_mode(arguments: list[str]) -> tuple[str, list[str]]:
    """(the one of PRINTERS among `arguments`, or "" for text; the other arguments). Raises InputError for two."""
    modes = [mode for mode in PRINTERS if mode in arguments]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other")
    return "".join(modes), [argument for argument in arguments if argument not in modes]


def print_csv(frame: Frame) -> None:
    """Print every column exactly, as `make_csv` has it."""
    sys.stdout.write(make_csv(frame))


def make_csv(frame: Frame) -> str:
    """Every column exactly: lists as JSON, missing values empty; of texts only what `guard_cell` says."""
    floats = [name for name in frame if frame[name].dtype.kind == "f" and frame[name].isna().any()]
    whole = [
        name for name in floats if all(number.is_integer() and abs(number) < 2**53 for number in frame[name].dropna())
    ]
    exact = frame.astype(dict.fromkeys(whole, "Int64"))  # beside missing values, 32 had become 32.0
    plain = exact.map(lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)
    guarded = plain.map(lambda value: guard_cell(value) if isinstance(value, str) else value).rename(columns=guard_cell)
    return guarded.to_csv(index=False, lineterminator="\n")


def guard_cell(text: str) -> str:
    """`text` for a CSV file that people open: a spreadsheet shows it, and never takes it for a formula.

    An apostrophe goes before what would begin one, unless it is a number; control characters become escapes. Files that
    this program reads again are written without: there a name has to stay what it is. (OWASP: CSV injection)
    """
    try:
        float(text)
    except ValueError:
        return make_visible(f"'{text}" if FORMULA.match(text) else text)
    return text


def print_markdown(frame: Frame) -> None:
    """Print a GitHub table."""
    cells = format_cells(frame)
    sides = ["right" if is_numeric(frame[name]) else "left" for name in cells]
    escaped = cells.map(escape_markdown).rename(columns=lambda name: escape_markdown(make_visible(name)))
    print(escaped.to_markdown(index=False, disable_numparse=True, colalign=sides))


def escape_markdown(text: str) -> str:
    r"""`text` without what Markdown reads as the end of a cell, emphasis, code, a link, HTML or a formula: `a\|b`."""
    return MARKDOWN.sub(r"\\\g<0>", text)


def print_latex(frame: Frame) -> None:
    r"""Print a LaTeX table, which needs \usepackage{booktabs}."""
    cells = format_cells(frame)
    sides = "".join("r" if is_numeric(frame[name]) else "l" for name in cells)
    text = cells.rename(columns=make_visible).to_latex(index=False, escape=True, column_format=sides)
    text = re.sub(r"^(?=[\[*])", "{}", text, flags=re.MULTILINE)  # after the line's end before, they are its options
    print(text.replace("±", r"$\pm$").replace(MISSING, "--"), end="")


def print_text(frame: Frame, notes: Sequence[str] = (), num_bold: int = 0, kept: str | None = None) -> None:
    """Print the columns that fit the terminal (the width is that of `utils.make_console`), then `notes`.

    Where the width is not enough, columns are left out from the right; the first one and a last one called `kept` stay.
    The first `num_bold` rows are bold.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    cells = format_cells(frame).map(lambda cell: cell if len(cell) <= MAX_CELL else cell[: MAX_CELL - 1] + "…")
    widths = {name: max(map(cell_len, cells[name])) for name in cells.columns}
    headers = {name: make_visible(name) for name in widths}

    def is_too_wide(names: list[str]) -> bool:
        columns = [max(widths[name], *map(cell_len, headers[name].split("\n"))) + GAP for name in names]
        return sum(columns) - GAP > console.width

    if is_too_wide(list(headers)):
        headers = {name: wrap_name(make_visible(name), width) for name, width in widths.items()}
    shown, left_out = list(headers), []
    while len(shown) > 1 and is_too_wide(shown):
        left_out.insert(0, shown.pop(-2 if len(shown) > 2 and shown[-1] == kept else -1))

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="")
    for name in shown:
        side = "right" if is_numeric(frame[name]) else "left"
        table.add_column(Text(headers[name]), justify=side, no_wrap=True, vertical="bottom")
    for index, row in enumerate(cells[shown].itertuples(index=False)):
        table.add_row(*row, style="bold" if index < num_bold else None)
    console.print(table)
    if left_out:
        more = f" and {len(left_out) - 8} more" if len(left_out) > 8 else ""
        notes = [*notes, f"left out for want of width: {', '.join(left_out[:8])}{more}; --csv shows all"]
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
    """The text of every cell. A column of numbers `x` takes in that of their deviations `x_std`: `.314 ± .010`."""
    import pandas as pd  # it takes most of a second: a mistake on the command line must not wait for it

    numeric = [name for name in frame if is_numeric(frame[name])]
    stds = {name: f"{name}_std" for name in numeric if f"{name}_std" in numeric}
    cells = {
        name: format_means(frame[name], frame[stds[name]]) if name in stds else format_column(frame[name])
        for name in frame
        if name not in stds.values()
    }
    return pd.DataFrame(cells, dtype=object)


def format_means(means: Any, stds: Any) -> list[str]:
    """`.314 ± .010`: three decimals for shares of 1, one for larger numbers."""
    decimals = 3 if means.abs().max() <= 1 else 1

    def format_number(number: float) -> str:
        if number != number:
            return MISSING
        text = f"{number:.{decimals}f}"
        return text.replace("0.", ".", 1) if decimals == 3 else text

    numbers = [format_number(std) for std in stds]
    width = max(map(len, numbers))
    return [f"{format_number(mean)} ± {std:>{width}}" for mean, std in zip(means, numbers, strict=True)]


def format_column(column: Any) -> list[str]:
    """The text of every value: numbers with the decimals that the column needs, at most four (above 100: one).

    Of an absolute path only the file's name, or the run's, unless two paths would then look the same.
    """
    if not is_numeric(column):
        full = [format_value(value) for value in column]
        short = [format_value(shorten_paths(value)) for value in column]
        return short if len(set(short)) == len(set(full)) else full
    numbers = column[column.abs() >= 0.001]  # smaller ones have an exponent
    most = 1 if numbers.abs().max() >= 100 else 4
    decimals = next((count for count in range(most) if ((numbers.round(count) - numbers).abs() < 1e-9).all()), most)
    return [
        format_value(number) if number != number or 0 < abs(number) < 0.001 else f"{number:.{decimals}f}"
        for number in column
    ]


def shorten_paths(value: Any) -> Any:
    """`value`, a text or list, with the name of a file or run for an absolute path: `/a/b/x_0a1b2c3d.pt`: 0a1b2c3d."""
    if isinstance(value, list):
        return [shorten_paths(item) for item in value]
    found = ABSOLUTE_FILE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return value
    name, ending = found.groups()
    return name_run(name) if ending == ".pt" else f"{name}{ending}"


def name_run(stem: str) -> str:
    """A short name of a checkpoint whose file name, without its ending, is `stem`: the digest at its end, if any."""
    digest = DIGEST.search(stem)
    return digest[1] if digest else stem


def format_value(value: Any) -> str:
    """One value as text, in at most six digits."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return f"{value:.6g}" if isinstance(value, float) else make_visible(str(value).replace("\n", " "))


def is_numeric(column: Any) -> bool:
    """Whether a column holds numbers, which are aligned to the right: not truth values."""
    return column.dtype.kind in "iuf"


PRINTERS = {"--csv": print_csv, "--markdown": print_markdown, "--latex": print_latex}  # without any of them: text
