"""A table of every trained model.

    python model_performance_table.py [--csv | --markdown] [recipe.py ...] [--NAME value ...]

Sorts, groups and compares the checkpoints of TRAINED_MODELS_FOLDER by the constants below. In the terminal it shows
what fits; `--markdown` prints COLUMNS as a GitHub table, `--csv` everything there is, for a spreadsheet or pandas.
Only the JSON sidecar beside each checkpoint is read. Neither torch nor pandas is imported: they take longer to load
than a few hundred sidecars take to tabulate.
"""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import checkpoints
import config
import overrides
import utils

# ---- Table ----
SORT_BY: str = "best_f1"  # any column: best_f1 is the best weighted F1 on the validation split
SORT_ASCENDING: bool = False  # True: the smallest value is the best one and stands first
GROUP_BY_COLUMNS: tuple[str, ...] = ()  # one row for all runs that agree in these, such as model_name,HEAD; () all runs
GROUP_MODE: Literal["best", "mean"] = "best"  # of a group: best, its best run by SORT_BY; mean, the mean of its metrics
CHECKPOINTS_ROOT: Path = config.TRAINED_MODELS_FOLDER
CHECKPOINT_GLOB: str = "*/*.pt"  # within CHECKPOINTS_ROOT
COLUMNS: tuple[str, ...] = (
    "model_name", "best_f1", "mAP", "best_threshold", "epoch", "IMAGE_SIZE", "HEAD", "LOSS", "OPTIMIZER", "CF1", "OF1",
    "TRAIN_BATCH_SIZE", "AUGMENTATION", "SCHEDULE", "UNFREEZE_BACKBONE_EPOCH", "SEED", "num_train", "seconds",
    "checkpoint",
)  # fmt: skip  # shown, in order; also any constant of config.py; () all. What is sorted or grouped by is always shown

Row = dict[str, Any]

SECTIONS = ("metrics", "config", "dataset", "environment")  # the objects within a sidecar
MAX_CELL = 40  # characters: longer lists and texts are cut in the terminal, paths of checkpoints are not
GAP = 2  # spaces between columns


class Runs(NamedTuple):
    """What was read: a row for each run, the names of the columns that were measured, and what was skipped."""

    rows: list[Row]
    measured: set[str]
    skipped: list[str]


def main(arguments: list[str]) -> None:
    modes = [argument for argument in arguments if argument in ("--csv", "--markdown")]
    if len(set(modes)) > 1:
        raise utils.InputError("--csv and --markdown exclude each other")
    overrides.apply([argument for argument in arguments if argument not in modes], config, sys.modules[__name__])

    runs = read_runs(CHECKPOINTS_ROOT, CHECKPOINT_GLOB)
    report_skipped(runs, CHECKPOINTS_ROOT)
    check_names(runs.rows, bool(GROUP_BY_COLUMNS) and GROUP_MODE == "mean")
    rows = group_rows(runs, GROUP_BY_COLUMNS, GROUP_MODE, SORT_BY, SORT_ASCENDING)
    # a mean hides the fingerprints it runs over, the best of each group does not
    notes = note_datasets(runs.rows if GROUP_MODE == "mean" else rows)
    if not modes:
        print_table(rows, choose_columns(rows), SORT_BY, notes)
        return
    if modes[0] == "--csv":
        print_csv(rows)
    else:
        print_markdown(rows, choose_columns(rows))
    for note in notes:
        print(note, file=sys.stderr)


def read_runs(root: Path, glob: str) -> Runs:
    """Read the sidecar of every checkpoint that matches `glob` in `root`, in the order of their paths.

    A checkpoint whose sidecar is missing, broken or foreign is skipped, with its path and the reason in `skipped`.
    Raises InputError when there is no such folder or nothing in it matches.
    """
    if not root.is_dir():
        raise utils.InputError(f"CHECKPOINTS_ROOT {root} is no folder; training.py makes it with the first checkpoint")
    try:
        paths = sorted(path for path in root.glob(glob) if path.is_file())
    except (NotImplementedError, ValueError) as error:  # an absolute or an empty pattern
        raise utils.InputError(f"CHECKPOINT_GLOB {glob!r}: {error}") from error
    if not paths:
        raise utils.InputError(f"no checkpoint matches {glob} in {root}; training.py makes them")
    runs = Runs([], {"best_f1", "best_threshold", "epoch", "seconds"}, [])
    for path in paths:
        checkpoint = path.relative_to(root).as_posix()
        try:
            sidecar = read_sidecar(path.with_suffix(".json"))
        except utils.InputError as error:
            runs.skipped.append(f"{checkpoint}: {error}")
            continue
        runs.rows.append(make_row(sidecar, checkpoint))
        runs.measured.update(sidecar["metrics"])
    return runs


def read_sidecar(path: Path) -> dict[str, Any]:
    """The content of one sidecar; raises InputError when it is not one that a checkpoint of ours has."""
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise utils.InputError(f"there is no {path.name} beside it") from None
    except (OSError, ValueError) as error:
        raise utils.InputError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(sidecar, dict) or sidecar.get("format") != checkpoints.FORMAT:
        raise utils.InputError(f"{path.name} does not describe a checkpoint of training.py")
    if sidecar.get("version") != checkpoints.VERSION:
        raise utils.InputError(f"{path.name} is of version {sidecar.get('version')}, not {checkpoints.VERSION}")
    if not isinstance(sidecar.get("model_name"), str) or not isinstance(sidecar.get("best_f1"), int | float | None):
        raise utils.InputError(f"{path.name} lacks a model_name, or its best_f1 is no number")
    for section in SECTIONS:
        if not isinstance(sidecar.setdefault(section, {}), dict):
            raise utils.InputError(f"{path.name}: {section} is not an object of names and values")
    return sidecar


def make_row(sidecar: dict[str, Any], checkpoint: str) -> Row:
    """One flat row: what stands at the sidecar's top, then its metrics, constants, data set and environment."""
    top = {name: value for name, value in sidecar.items() if name not in (*SECTIONS, "format", "version", "classes")}
    row = {name: top[name] for name in ("model_name", "best_f1", "best_threshold", "epoch") if name in top}
    for section in (sidecar["metrics"], top, *(sidecar[name] for name in SECTIONS[1:])):
        for name, value in section.items():
            row.setdefault(name, value)
    return {**row, "checkpoint": checkpoint}


def list_columns(rows: list[Row]) -> list[str]:
    """The columns that any row has, in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row))


def check_names(rows: list[Row], is_mean: bool) -> None:
    """Raise InputError when SORT_BY, GROUP_BY_COLUMNS or COLUMNS names a column that cannot exist."""
    known = dict.fromkeys((*list_columns(rows), *filter(str.isupper, vars(config))))  # old runs may lack a new constant
    if is_mean:
        known |= dict.fromkeys(("runs", "best_f1_std", "mAP_std"))
    for constant, names in (("SORT_BY", (SORT_BY,)), ("GROUP_BY_COLUMNS", GROUP_BY_COLUMNS), ("COLUMNS", COLUMNS)):
        for name in names:
            if name not in known:
                raise utils.InputError(
                    f"{constant}: there is no column {name!r}{utils.suggest(name, known)}; --csv shows all"
                )


def is_number(value: Any) -> bool:
    """Whether `value` is a number that can be compared: neither a truth value nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def sort_rows(rows: list[Row], column: str, ascending: bool) -> list[Row]:
    """Sort stably: rows that agree keep their order, those without a value (or with NaN) come last either way."""

    def has_value(row: Row) -> bool:
        value = row.get(column)
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    def rank(row: Row) -> tuple[bool, Any]:
        value = row[column]
        return (True, value) if is_number(value) else (False, str(value))

    present = sorted(filter(has_value, rows), key=rank, reverse=not ascending)
    return present + [row for row in rows if not has_value(row)]


def group_rows(runs: Runs, columns: tuple[str, ...], mode: str, sort_by: str, ascending: bool) -> list[Row]:
    """The rows, sorted; with `columns`, one row for each of the combinations of their values."""
    rows = sort_rows(runs.rows, sort_by, ascending)
    if not columns:
        return rows
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.get(column) for column in columns]), []).append(row)
    if mode == "best":
        return [group[0] for group in groups.values()]
    means = [average_rows(group, runs.measured) for group in groups.values()]
    if all(row.get(sort_by) is None for row in means):
        raise utils.InputError(f"SORT_BY is {sort_by!r}, which differs within each group: it has no mean")
    return sort_rows(means, sort_by, ascending)


def average_rows(group: list[Row], measured: set[str]) -> Row:
    """One row for a group: what its runs agree in, the mean of each measured column, and the spread of two of them."""
    mean: Row = {}
    for column in list_columns(group):
        values = [row.get(column) for row in group]
        numbers: list[Any] = [value for value in values if is_number(value)]
        if all(value == values[0] for value in values):
            mean[column] = values[0]
        elif column in measured and numbers:  # the mean of a constant, such as SEED, would say nothing
            mean[column] = statistics.fmean(numbers)
    mean["runs"] = len(group)
    for column in ("best_f1", "mAP"):
        numbers = [row[column] for row in group if is_number(row.get(column))]
        if len(numbers) > 1:
            mean[f"{column}_std"] = statistics.stdev(numbers)
    return mean


def choose_columns(rows: list[Row]) -> list[str]:
    """The columns to show: COLUMNS, what the rows are grouped and sorted by, and each spread beside its mean."""
    names = list(COLUMNS or list_columns(rows))
    existing = set(list_columns(rows))
    names = [*GROUP_BY_COLUMNS, "runs", *([] if SORT_BY in names else [SORT_BY]), *names]
    names = [new for name in names for new in (name, f"{name}_std")]
    return [name for name in dict.fromkeys(names) if name in existing]


def note_datasets(rows: list[Row]) -> list[str]:
    fingerprints = {row["fingerprint"] for row in rows if row.get("fingerprint")}
    if len(fingerprints) < 2:
        return []
    return [f"note: these runs used {len(fingerprints)} different data sets (column fingerprint): not comparable"]


def report_skipped(runs: Runs, root: Path) -> None:
    """List the checkpoints without a usable sidecar on stderr; raises InputError when that is all there are."""
    if runs.skipped:
        total = len(runs.rows) + len(runs.skipped)
        print(f"skipped {len(runs.skipped)} of {total} checkpoints in {root}:", file=sys.stderr)
        print(*(f"  {line}" for line in runs.skipped), sep="\n", file=sys.stderr)
    if not runs.rows:
        raise utils.InputError(f"none of the checkpoints in {root} has a usable sidecar; training.py writes both")


def format_value(value: Any) -> str:
    """A value as people read it: four decimals, unless a number is so large or small that they would mislead."""
    if isinstance(value, float) and math.isfinite(value):
        size = abs(value)
        return f"{value:.4g}" if 0 < size < 0.001 else f"{value:.4f}" if size < 100 else f"{value:.1f}"
    if isinstance(value, list):
        return ", ".join(format_value(item) for item in value)
    return str(value).replace("\n", " ")


def format_columns(rows: list[Row], columns: list[str]) -> list[list[str]]:
    """The text of every cell, column by column; what a run lacks is left empty."""
    return [[format_value(row[column]) if column in row else "" for row in rows] for column in columns]


def is_numeric(rows: list[Row], column: str) -> bool:
    """Whether a column should be aligned as numbers are."""
    values = [row[column] for row in rows if row.get(column) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def print_csv(rows: list[Row]) -> None:
    """Print all rows and columns exactly; lists as JSON, None and what a run lacks empty."""
    columns = list_columns(rows)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(column) for column in columns)
        writer.writerow(json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for v in values)


def print_markdown(rows: list[Row], columns: list[str]) -> None:
    """Print a GitHub table."""
    cells = format_columns(rows, columns)
    rule = ["---:" if is_numeric(rows, column) else "---" for column in columns]
    for line in (columns, rule, *zip(*cells, strict=True)):
        print("|", " | ".join(cell.replace("|", "\\|") for cell in line), "|")


def print_table(rows: list[Row], columns: list[str], sort_by: str, notes: list[str]) -> None:
    """Print as many columns as fit the terminal, and below them what did not."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 120)
    cells = [
        [cell if name == "checkpoint" or len(cell) <= MAX_CELL else cell[: MAX_CELL - 1] + "…" for cell in column]
        for name, column in zip(columns, format_columns(rows, columns), strict=True)
    ]
    widths = [max(map(len, (name, *column))) for name, column in zip(columns, cells, strict=True)]
    num_shown = count_fitting(widths, console.width)
    right = [is_numeric(rows, column) for column in columns]

    def make_line(line: Iterable[str], bold: str | None = None) -> Text:
        text = Text()
        for i, cell in enumerate(list(line)[:num_shown]):
            text.append(" " * GAP if i else "")
            cell = cell.rjust(widths[i]) if right[i] else cell.ljust(widths[i])
            text.append(cell, "bold" if columns[i] == bold else "")
        text.rstrip()
        return text

    lines = [make_line(columns), make_line("─" * width for width in widths)]  # rich.table is slow with 200 rows
    best = rows[0].get(sort_by)
    for row, *line in zip(rows, *cells, strict=True):
        lines.append(make_line(line, bold=sort_by if is_number(best) and row.get(sort_by) == best else None))
    console.print(Text("\n").join(lines), no_wrap=True, overflow="ellipsis", end="\n\n")

    first = f"; first: {rows[0]['checkpoint']}" if "checkpoint" in rows[0] else ""
    notes = [f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}, sorted by {sort_by}{first}", *notes]
    left_out = columns[num_shown:]
    if left_out:
        names = ", ".join(left_out[:8]) + (f" and {len(left_out) - 8} more" if len(left_out) > 8 else "")
        notes.append(f"left out for want of width: {names}; --csv shows all")
    for note in notes:
        console.print(Text(note))


def count_fitting(widths: list[int], available: int) -> int:
    """How many columns, from the left, fit side by side; the first one always counts."""
    totals = (sum(widths[:count]) + GAP * (count - 1) for count in range(1, len(widths) + 1))
    return max(1, sum(total <= available for total in totals))


if __name__ == "__main__":
    utils.run_script(main)
