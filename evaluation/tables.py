"""Print a pandas.DataFrame: as text that fits the terminal, as CSV, Markdown or LaTeX.

    print_text(frame)
    PRINTERS["--latex"](frame, Layout(bold={(0, "mAP")}, lines={3: "other test images"}))

A column `x` of numbers takes in what belongs to it: its deviation `x_std` and the ends `x_low`, `x_high` of its
interval (`.314 ± .010`, `.314 [.301, .322]`), and for a difference `delta_x` the p `delta_x_p`, of which a mark
remains. Names of columns and texts in cells come from anywhere, so each way to print escapes what would be more than
text there.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from utils import InputError, make_console, make_visible

Frame = Any  # a pandas.DataFrame; pandas itself types its columns and cells as a dozen things
MISSING = "–"
MAX_CELL = 40  # characters: longer lists and texts are cut in the terminal
FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")  # what a spreadsheet takes a cell that begins with this for
MARKDOWN = re.compile(r"[\\|`*<\[&$~]|(?<![^\W_])_|_(?![^\W_])")  # within a word, _ is no emphasis
ABSOLUTE_FILE = re.compile(r"(?:/|~/|[A-Za-z]:[/\\]).*?([^/\\]+)(\.\w{1,9})")  # its name, and its ending
DIGEST = re.compile(r"_([0-9a-f]{8})$")  # of the configuration, at the end of the names that training.py gives
GAP = 2  # spaces between columns in the terminal
ATTENDANTS = ("_std", "_low", "_high", "_p")  # endings of columns that are shown in the cells of another one
DIFFERENCE = "delta_"  # how a column of differences begins; Δ stands for it where people read
SIGNIFICANCE = 0.05  # a difference whose p is not below it has the mark
MARK = "≈"
IN_LATEX = {"±": r"$\pm$", "−": "$-$", MISSING: "--", MARK: r"$\approx$", "Δ": r"$\Delta$", "…": r"\dots{}"}


class Layout(NamedTuple):
    """What a table shows beside its cells."""

    lines: Mapping[int, str] = {}  # {number of a row: the line above it}; what stands above is another block
    bold: Collection[tuple[int, str]] = ()  # (number of a row, column)
    legend: Sequence[str] = ()  # lines below the table


PLAIN = Layout()


def take_option(arguments: list[str], name: str, *values: str) -> tuple[list[str], list[str]]:
    """(what stands behind `name` in `arguments`, one for each of `values`; the other arguments): [] if it is not there.

    Raises InputError, which shows the `values` by their names, where there are fewer.

    >>> take_option(["--csv", "--diff", "x", "y"], "--diff", "A", "B")
    (['x', 'y'], ['--csv'])
    """
    if name not in arguments:
        return [], arguments
    first = arguments.index(name) + 1
    taken = arguments[first : first + len(values)]
    if len(taken) < len(values) or any(value.startswith("--") for value in taken):
        raise InputError(f"{name} needs {' and '.join(values)}: {' '.join([name, *values])}")
    return taken, arguments[: first - 1] + arguments[first + len(values) :]


def take_mode(arguments: list[str]) -> tuple[str, list[str]]:
    """(the one of PRINTERS among `arguments`, or "" for text; the other arguments). Raises InputError for two."""
    modes = [mode for mode in PRINTERS if mode in arguments]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other")
    return "".join(modes), [argument for argument in arguments if argument not in modes]


def print_csv(frame: Frame, layout: Layout = PLAIN) -> None:
    """Print every column exactly, as `make_csv` has it, and nothing of the `layout`."""
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


def print_markdown(frame: Frame, layout: Layout = PLAIN) -> None:
    """Print a GitHub table; several blocks make several tables."""
    cells = format_cells(frame)
    sides = ["right" if is_right(frame, name) else "left" for name in cells]
    escaped = cells.map(escape_markdown)
    for row, name in layout.bold:
        if name in escaped:
            escaped.loc[row, name] = f"**{escaped.loc[row, name].strip()}**"
    escaped = escaped.rename(columns=lambda name: escape_markdown(name_column(name)))
    parts = []
    for line, rows in split_rows(len(frame), layout.lines):
        if line:
            parts.append(f"*{escape_markdown(line)}*")
        parts.append(escaped.iloc[rows].to_markdown(index=False, disable_numparse=True, colalign=sides))
    print("\n\n".join([*parts, *map(escape_markdown, layout.legend)]))


def split_rows(num_rows: int, lines: Mapping[int, str]) -> list[tuple[str, slice]]:
    """The blocks that `lines` divide the rows into: the line above each, "" for none, and its rows.

    >>> split_rows(5, {3: "others"})
    [('', slice(0, 3, None)), ('others', slice(3, 5, None))]
    """
    starts = sorted({0, *lines})
    return [
        (lines.get(start, ""), slice(start, stop)) for start, stop in zip(starts, [*starts[1:], num_rows], strict=True)
    ]


def escape_markdown(text: str) -> str:
    r"""`text` without what Markdown reads as the end of a cell, emphasis, code, a link, HTML or a formula: `a\|b`."""
    return MARKDOWN.sub(r"\\\g<0>", text)


def print_latex(frame: Frame, layout: Layout = PLAIN) -> None:
    r"""Print a LaTeX table, which needs \usepackage{booktabs}; the legend stands in comments below it."""
    cells = format_cells(frame)
    sides = "".join("r" if is_right(frame, name) else "l" for name in cells)
    text = cells.map(str.strip).rename(columns=name_column).to_latex(index=False, escape=True, column_format=sides)
    lines = text.splitlines()
    top = lines.index(r"\midrule") + 1
    for row, name in layout.bold:
        if name in cells:
            texts = lines[top + row].removesuffix(r" \\").split(" & ")  # an & of a name is \& here
            texts[[*cells].index(name)] = rf"\textbf{{{texts[[*cells].index(name)]}}}"
            lines[top + row] = " & ".join(texts) + r" \\"
    for row in sorted(layout.lines, reverse=True):  # from the last one on, so that the places of the others stay
        kind = r"p{0.9\linewidth}"  # a long sentence has to wrap
        above = rf"\multicolumn{{{len(sides)}}}{{{kind}}}{{\emph{{{escape_latex(layout.lines[row])}}}}} \\"
        lines[top + row : top + row] = [*([r"\midrule"] if row else []), above, r"\addlinespace"]
    text = "\n".join(lines)
    text = re.sub(r"^(?=[\[*])", "{}", text, flags=re.MULTILINE)  # after the line's end before, they are its options
    for character, command in IN_LATEX.items():
        text = text.replace(character, command)
    print(text, *(f"% {make_visible(line)}" for line in layout.legend), sep="\n")


def escape_latex(text: str) -> str:
    """`text` for LaTeX, on one line."""
    from dataset.frames import pd

    lines = pd.DataFrame([[make_visible(text)]]).to_latex(index=False, header=False, escape=True).splitlines()
    return next(line for line in lines if line.endswith(r" \\")).removesuffix(r" \\")


def print_text(
    frame: Frame,
    notes: Sequence[str] | Callable[[Frame], Sequence[str]] = (),
    layout: Layout = PLAIN,
    kept: str | None = None,
    first_left_out: Sequence[str] = (),
) -> None:
    """Print the columns that fit the terminal (the width is that of `utils.make_console`), then legend and `notes`.

    `notes` may be a function of what is printed: the frame with the columns that fit, and with those in their cells.
    Where the width is not enough, columns are left out: those of `first_left_out` in this order (`x_low` there is the
    interval in the cells of x), then from the right; the first column and a last one called `kept` stay.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    cells = cut_cells(frame)
    widths = {name: max(map(cell_len, cells[name]), default=0) for name in cells.columns}
    headers = {name: name_column(name) for name in widths}

    def measure_column(name: str) -> int:
        return max(widths[name], *map(cell_len, headers[name].split("\n")))

    def is_too_wide() -> bool:
        return sum(measure_column(name) + GAP for name in headers) - GAP > console.width

    if is_too_wide():
        headers = {name: wrap_name(name_column(name), width) for name, width in widths.items()}
    left_out: list[str] = []
    waiting = [*first_left_out, *reversed(list(headers)[1:])]
    while waiting and is_too_wide():
        name = waiting.pop(0)
        owner = name.removesuffix("_low")
        if name in headers and name not in (kept if [*headers][-1] == kept else None, next(iter(headers))):
            del headers[name]
            left_out.insert(0, name_column(name))
        elif owner in headers and name in list_attendants(frame, owner):
            frame = frame.drop(columns=[name, f"{owner}_high"])
            cells[owner] = cut_cells(frame[[owner, *list_attendants(frame, owner)]])[owner]
            widths[owner] = max(map(cell_len, cells[owner]), default=0)
            headers[owner] = wrap_name(name_column(owner), widths[owner])
            left_out.insert(0, f"intervals of {name_column(owner)}")
    shown = list(headers)

    for line, rows in split_rows(len(frame), layout.lines):
        table = Table(
            box=SIMPLE_HEAD if rows.start == 0 else None,
            show_header=rows.start == 0,
            show_edge=False,
            pad_edge=False,
            padding=(0, GAP - 1, 0, 0) if rows.start == 0 else (0, GAP, 0, 0),
            header_style="",
        )
        for name in shown:
            side = "right" if is_right(frame, name) else "left"
            width = min(measure_column(name), console.width)
            table.add_column(Text(headers[name]), justify=side, no_wrap=True, vertical="bottom", width=width)
        for number in range(rows.start, rows.stop):
            texts = [Text(cells.iloc[number][name]) for name in shown]
            for name, text in zip(shown, texts, strict=True):
                if (number, name) in layout.bold:
                    text.stylize("bold")
            table.add_row(*texts)
        if line:
            console.print(*([""] if rows.start else []), line, sep="\n")
        console.print(table)
    if callable(notes):
        notes = notes(frame[[column for name in shown for column in (name, *list_attendants(frame, name))]])
    if left_out:
        more = f" and {len(left_out) - 8} more" if len(left_out) > 8 else ""
        notes = [
            *notes,
            f"left out for want of width: {', '.join(left_out[:8])}{more}; --csv shows all",
        ]
    if notes or layout.legend:
        console.print("", *layout.legend, *notes, sep="\n")


def cut_cells(frame: Frame) -> Frame:
    """`format_cells(frame)` with at most MAX_CELL characters in a cell."""
    return format_cells(frame).map(lambda cell: cell if len(cell) <= MAX_CELL else cell[: MAX_CELL - 1] + "…")


def name_column(name: str) -> str:
    """How the column `name` is called where people read: `delta_test_mAP` is `Δ test_mAP`."""
    return make_visible(f"Δ {name.removeprefix(DIFFERENCE)}" if name.startswith(DIFFERENCE) else name)


def wrap_name(name: str, width: int) -> str:
    """`name` on several lines, broken after underscores, where it is wider than `width`.

    >>> wrap_name("TRAIN_BATCH_SIZE", 3)
    'TRAIN_\\nBATCH_\\nSIZE'
    """
    words = re.sub(r"(?<=\w_)(?=\w)", " ", name)
    lines = textwrap.wrap(words, max(width, *map(len, words.split())), break_long_words=False)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def list_attendants(frame: Frame, name: str) -> list[str]:
    """The columns whose numbers are shown in the cells of the column `name` of numbers: its deviation, its interval."""
    if not is_numeric(frame[name]):
        return []
    endings = ATTENDANTS if name.startswith(DIFFERENCE) else ATTENDANTS[:-1]
    return [f"{name}{end}" for end in endings if f"{name}{end}" in frame and is_numeric(frame[f"{name}{end}"])]


def has_intervals(frame: Frame, name: str) -> bool:
    """Whether a cell of the column `name` shows an interval: one with a deviation shows that instead."""
    attendants = list_attendants(frame, name)
    if f"{name}_low" not in attendants:
        return False
    is_shown = frame[f"{name}_low"].notna()
    return bool((is_shown & frame[f"{name}_std"].isna() if f"{name}_std" in attendants else is_shown).any())


def is_right(frame: Frame, name: str) -> bool:
    """Whether the column is aligned to the right: numbers are, but for those with others beside them in their cells."""
    return is_numeric(frame[name]) and not list_attendants(frame, name)


def format_cells(frame: Frame) -> Frame:
    """The text of every cell, with rows numbered from 0. A column takes in what `list_attendants` finds."""
    from dataset.frames import pd  # it takes most of a second: a mistake on the command line must not wait for it

    attendants = {name: list_attendants(frame, name) for name in frame}
    hidden = {name for names in attendants.values() for name in names}
    cells = {
        name: format_measured(frame, name) if attendants[name] else format_column(frame[name])
        for name in frame
        if name not in hidden
    }
    return pd.DataFrame(cells, dtype=object)


def format_measured(frame: Frame, name: str) -> list[str]:
    """`.314 ± .010` or `.314 [.301, .322]`: three decimals for shares of 1, one for larger numbers; all of one length.

    A difference has a sign, and MARK behind it where its p is not below SIGNIFICANCE.
    """
    values, is_difference = frame[name], name.startswith(DIFFERENCE)
    stds, lows, highs, ps = (frame.get(f"{name}{ending}", [float("nan")] * len(values)) for ending in ATTENDANTS)
    decimals = 3 if values.abs().max() <= 1 else 1
    numbers, rests = [], []
    for value, std, low, high, p in zip(values, stds, lows, highs, ps, strict=True):
        numbers.append(format_number(value, decimals, is_difference))
        rest = ""
        if std == std:
            rest = f"± {format_number(std, decimals)}"
        elif low == low:
            rest = f"[{format_number(low, decimals, is_difference)}, {format_number(high, decimals, is_difference)}]"
        rests.append(f"{rest} {MARK}" if is_difference and p >= SIGNIFICANCE else rest)
    widths = max(map(len, numbers), default=0), max(map(len, rests), default=0)
    return [f"{number:>{widths[0]}} {rest:<{widths[1]}}" for number, rest in zip(numbers, rests, strict=True)]


def format_number(number: float, decimals: int = 3, has_sign: bool = False) -> str:
    """`.314`, or with a sign `−.314`: without the 0 that shares of 1 begin with. MISSING for NaN.

    >>> format_number(-0.0125, has_sign=True), format_number(31.42, 1)
    ('−.013', '31.4')
    """
    if number != number:
        return MISSING
    text = f"{number:+.{decimals}f}".replace("-", "−") if has_sign else f"{number:.{decimals}f}"
    return text.replace("0.", ".", 1) if decimals == 3 and abs(number) < 1 else text


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


def is_given(value: Any) -> bool:
    """Whether a cell holds a value: not None, not NaN."""
    return value is not None and value == value


def is_numeric(column: Any) -> bool:
    """Whether a column holds numbers, which are aligned to the right: not truth values."""
    return column.dtype.kind in "iuf"


PRINTERS = {"--csv": print_csv, "--markdown": print_markdown, "--latex": print_latex}  # without any of them: text
