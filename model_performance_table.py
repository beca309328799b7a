"""A table of every trained model, and which of them is better.

    python model_performance_table.py [--csv | --markdown | --latex] [recipe.py ...] [--NAME value ...]
    python model_performance_table.py --AGAINST best      # differences with intervals, and what is not distinguishable
    python model_performance_table.py --diff A B          # two runs: their constants, their metrics, class by class
    python model_performance_table.py --plot FILE.png     # also a forest plot

Sorts, groups and compares the checkpoints of TRAINED_MODELS_FOLDER by the constants below. The terminal shows what
fits; `--markdown` and `--latex` print COLUMNS, `--csv` prints every column. Runs that differ in SEED alone are one row,
and what was measured on other images stands in a block of its own. Read are the JSON file beside each checkpoint and
the test that testing.py left in the run's folder; to compare, also the test's scores. In Python:
`runs = model_performance_table.read_runs(root)` is a pandas.DataFrame with one row a checkpoint.
"""

from __future__ import annotations

import functools
import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from dataset.image_sizes import as_size
from dataset.json_files import read_json
from evaluation import run_rows, tables
from evaluation.run_rows import TEST, identify_configuration, separate_copies, separate_files
from evaluation.tables import DIFFERENCE, Frame, Layout
from models import checkpoints
from models.metadata import check_metadata, is_measured
from utils import InputError, run_script, say, suggest

if TYPE_CHECKING:
    from dataset.frames import pd
    from evaluation.test_results import TestResult

# ---- Table ----
SORT_BY: str = "best_f1"  # any column: best_f1 is what the run chose by on the validation split; test_...: of its test
SORT_ASCENDING: bool = False  # True: the smallest value is the best one and stands first; always of hamming_loss, ECE
AGAINST: str = ""  # Δ of each row's test from that of this run, such as 0a1b2c3d; best: from the first row; "": off
GROUP_BY_COLUMNS: tuple[str, ...] = ()  # one row for runs that agree in these; (): that differ in SEED or fold alone
GROUP_MODE: Literal["best", "mean"] = "best"  # of such a group: best, its best run by SORT_BY; mean, mean ± std
CHECKPOINTS_ROOT: Path = config.TRAINED_MODELS_FOLDER
CHECKPOINT_GLOB: str = "*/*.pt"  # within CHECKPOINTS_ROOT
COLUMNS: tuple[str, ...] = (
    "best_f1", "mAP", "test_mAP", "differing", "test_f1_weighted", "CF1", "OF1", "epoch", "runs", "run"
)  # fmt: skip  # shown, in order; differing: all constants in which the runs differ; also any column of --csv; () all

SECTIONS = ("metrics", "config", "dataset", "environment")  # the objects within a sidecar
MEASURED = ("best_f1", "best_threshold", "epoch", "seconds")  # beside the sidecar's metrics
MOST_COLUMNS = 1000  # that a sidecar, or a section of it, may add to the table; a run has some 200 constants
MAX_WORDS = 70  # characters of the constants that name a row in the plot
MAX_SHARED = 230  # characters of the line that says what all runs share: two or three lines in a terminal
FOR_A_FROZEN_BACKBONE = ("UNFREEZE_BACKBONE_EPOCH", "FROZEN_FEATURE_VIEWS")  # constants that play no part without one


def main(arguments: list[str]) -> None:
    names, arguments = tables.take_option(arguments, "--diff", "A", "B")
    picture, arguments = tables.take_option(arguments, "--plot", "FILE.png")
    mode, arguments = tables.take_mode(arguments)
    overrides.apply(arguments, config, sys.modules[__name__])

    runs: Frame = read_runs(CHECKPOINTS_ROOT, CHECKPOINT_GLOB)
    check_names(runs)
    rows, lines = rank(runs)
    if names:
        compare_two(runs, rows, names, mode)
        return
    legend: list[str] = []
    if AGAINST:
        from evaluation.run_comparison import compare_rows

        rows, legend = compare_rows(rows, lines, AGAINST, SORT_BY, CHECKPOINTS_ROOT)

    shown = rows if mode == "--csv" else rows[choose_columns(rows)]
    layout = Layout(lines, run_rows.find_best(rows, lines, SORT_BY), legend)
    if mode:
        tables.PRINTERS[mode](shown, layout)
        notes = describe(runs, rows, shown)
        if mode == "--csv":
            notes = [*(f"block {rows['block'].iloc[row]}: {line}" for row, line in lines.items()), *legend]
        say(*notes, stream=sys.stderr)
    else:
        notes = functools.partial(describe, runs, rows)
        tables.print_text(shown, notes, layout, kept="run", first_left_out=rank_columns(rows, [*shown]))
    if picture:
        plot(runs, rows, Path(picture[0]))


def rank(runs: Frame) -> tuple[Frame, dict[int, str]]:
    """The rows of the table, sorted within blocks, and {number of a block's first row: how it differs from the above}.

    A column `block` numbers the blocks from 1 on.
    """
    from dataset.frames import pd

    columns, blocks, lines, varied, num_rows = choose_groups(), [], {}, [], 0
    for line, block in run_rows.find_blocks(runs, SORT_BY, averages()):
        rows = run_rows.make_rows(block, columns, averages())
        varied += rows.attrs["varied"]
        if SORT_BY in rows:
            rows = run_rows.sort_rows(rows, SORT_BY, SORT_ASCENDING or run_rows.is_lower_better(SORT_BY))
        if not averages():
            rows = run_rows.group_by(rows, columns).head(1)
        if line:
            lines[num_rows] = line
        num_rows += len(rows)
        blocks.append(rows)
    rows = pd.concat(blocks, ignore_index=True)
    numbers = [number for number, block in enumerate(blocks, start=1) for _ in range(len(block))]
    rows = pd.concat([rows, pd.DataFrame({"block": numbers})], axis="columns")
    rows.attrs.update(runs.attrs | {"varied": varied})
    if SORT_BY not in rows:
        raise InputError(f"SORT_BY is {SORT_BY!r}, which differs within each group, or is missing: sort by a metric")
    return rows, lines


def choose_groups() -> tuple[str, ...]:
    """The columns in which the runs of a row agree."""
    return GROUP_BY_COLUMNS or ("configuration",)


def averages() -> bool:
    """Whether a row is the mean of its runs, and not the best of them."""
    return not GROUP_BY_COLUMNS or GROUP_MODE == "mean"


def compare_two(runs: Frame, rows: Frame, names: Sequence[str], mode: str) -> None:
    """Print how two rows of the table, or two of its runs, differ; `best` is the first row with a test."""
    from dataset.frames import pd
    from evaluation.run_pair import print_pair

    each = run_rows.make_rows(runs, (), averages=False)
    chosen = []
    for name in names:
        is_named = rows["run"].astype(str) == name
        if name == "best":
            tested = [number for number, checkpoints in enumerate(rows["test_checkpoints"]) if checkpoints]
            chosen.append(rows.iloc[[tested[0] if tested else 0]])
        elif is_named.any():
            chosen.append(rows[is_named].head(1))
        else:
            chosen.append(each.iloc[[run_rows.find_row(each, name, "--diff")]])
    pair = pd.concat(chosen, ignore_index=True)
    pair.attrs["varied"] = rows.attrs["varied"] if max(pair["runs"]) > 1 else []
    print_pair(pair, list_differing(pair), CHECKPOINTS_ROOT, mode)


def plot(runs: Frame, rows: Frame, path: Path) -> None:
    """Draw the rows into a forest plot; they are named by what differs, and by their runs."""
    from evaluation.forest_plot import save_forest
    from evaluation.pages import cut
    from evaluation.run_comparison import choose_metrics

    constants = list_differing(rows)
    if COLUMNS and "differing" not in COLUMNS:  # as the table shows them
        constants = [name for name in COLUMNS if name in rows and name.isupper()]
    telling = run_rows.choose_telling(rows, constants)
    named = [name for name in constants if name in telling]
    words = [
        cut(
            ", ".join(
                f"{name} {text}"
                for name in named
                if (text := tables.format_value(tables.shorten_paths(row[name]))) != tables.MISSING
            ),
            MAX_WORDS,
        )
        for row in rows.to_dict("records")
    ]
    names = [f"{word}  {run}" if word else str(run) for word, run in zip(words, rows["run"], strict=True)]
    known = choose_metrics(SORT_BY, rows)
    first = next((name for name in COLUMNS if name.removeprefix(TEST) in known and name.startswith(TEST)), known[0])
    metric = known[0] if SORT_BY.startswith(TEST) else first.removeprefix(TEST)
    save_forest(path, runs, rows, names, metric, CHECKPOINTS_ROOT)
    say(f"saved: {path}", stream=sys.stderr)


def read_runs(root: str | Path, glob: str = "*/*.pt") -> pd.DataFrame:
    """One row for each checkpoint that matches `glob` in `root`, in the order of their paths.

    Columns: what was measured on validation images (their names are in `.attrs["metrics"]`), then the rest of the
    sidecar: constants, data set, environment; `run`, a short name, `checkpoint`, the path within `root`, and
    `configuration`, which runs of the same image files have in common that differ in SEED or fold alone. Last what
    testing.py measured on test images: `test_<metric>` (in `.attrs["metrics"]`, too), the ends of its 95 % interval
    `..._low` and `..._high`, and by what it was measured: `test_ruler` is the same where the test images, their labels
    and classes are. Null is NaN.

    A checkpoint whose sidecar is missing, damaged or foreign is left out, as is a copy of another one, and a test of an
    earlier checkpoint of the run; stderr says why. Raises InputError when there is no such folder, when nothing in it
    matches, and when no sidecar is usable.

    >>> runs = read_runs("trained_models")
    >>> runs.groupby("HEAD").test_mAP.mean()
    """
    from dataset.frames import pd
    from evaluation.pages import count
    from evaluation.saved_scores import find_val_fingerprint
    from evaluation.test_results import read_test

    root = Path(root)
    if not root.is_dir():
        raise InputError(f"CHECKPOINTS_ROOT {root} is no folder; training.py makes it with the first checkpoint")
    try:
        paths = sorted(path for path in root.glob(glob) if path.is_file())
    except (NotImplementedError, ValueError) as error:  # an absolute or an empty pattern
        raise InputError(f"CHECKPOINT_GLOB {glob!r}: {error}") from error
    if not paths:
        raise InputError(f"no checkpoint matches {glob} in {root}; training.py makes them")
    rows, skipped, rulers, stale, sidecars = [], [], {}, [], {}
    metrics: dict[str, None] = dict.fromkeys(MEASURED)
    for path in paths:
        checkpoint = path.relative_to(root).as_posix()
        try:
            sidecars[checkpoint] = read_sidecar(path.with_suffix(".json"))
        except InputError as error:
            skipped.append(f"{checkpoint}: {error}")
    copies = run_rows.find_copies({checkpoint: sidecar.get("run") for checkpoint, sidecar in sidecars.items()})
    for checkpoint, sidecar in sidecars.items():
        if checkpoint in copies:
            continue
        path = root / checkpoint
        metrics.update(dict.fromkeys(sidecar["metrics"]))
        row = make_row(sidecar, checkpoint)
        row["val_fingerprint"] = row.get("val_fingerprint") or find_val_fingerprint(path, sidecar)
        try:
            test = read_test(path.with_suffix(""))
            reason = test.stale if test else ""
        except InputError as error:
            test, reason = None, str(error)
        if reason:
            stale.append(f"{checkpoint}: {reason}")
        elif test:
            rulers[test.ruler.fingerprint] = test.ruler
            metrics.update(dict.fromkeys(f"{TEST}{name}" for name in test.metrics))
            row |= make_test_columns(test)
        rows.append(row)
    if stale:
        heading = f"left out {count(len(stale), 'test')} that testing.py has to make anew:"
        say(heading, *(f"  {line}" for line in stale), stream=sys.stderr)
    if copies:
        heading = f"left out {len(copies)} of {len(paths)} checkpoints, copies of others:"
        say(heading, *(f"  {copy}, of {original}" for copy, original in copies.items()), stream=sys.stderr)
    if skipped:
        heading = f"skipped {len(skipped)} of {len(paths)} checkpoints in {root}:"
        say(heading, *(f"  {line}" for line in skipped), stream=sys.stderr)
    if not rows:
        raise InputError(f"none of the checkpoints in {root} has a usable sidecar; training.py writes both")
    runs = pd.DataFrame(rows)
    empty = runs.columns[runs.isna().all()]
    runs = runs.astype(dict.fromkeys(empty, float)).copy()  # nothing but null, which is NaN as in other columns
    runs.attrs["metrics"] = [name for name in metrics if name in runs and tables.is_numeric(runs[name])]
    runs.attrs["rulers"] = rulers
    return separate_copies(separate_files(runs))


def read_sidecar(path: Path) -> dict[str, Any]:
    """The content of one sidecar; raises InputError when it is not one that a checkpoint of ours has."""
    if not path.exists():
        raise InputError(f"there is no {path.name} beside it")
    sidecar = read_json(path, allow_nan=True)
    if not isinstance(sidecar, dict) or sidecar.get("format") != checkpoints.FORMAT:
        raise InputError(f"{path.name} does not describe a checkpoint of training.py")
    if sidecar.get("version") != checkpoints.VERSION:
        raise InputError(f"{path.name} is of version {reprlib.repr(sidecar.get('version'))}, not {checkpoints.VERSION}")
    if "model_name" not in sidecar:
        raise InputError(f"{path.name} lacks a model_name")
    if len(sidecar) > MOST_COLUMNS:
        raise InputError(f"{path.name} has more than {MOST_COLUMNS} names")
    for section in SECTIONS:
        if not isinstance(sidecar.setdefault(section, {}), dict) or len(sidecar[section]) > MOST_COLUMNS:
            raise InputError(f"{path.name}: {section} is not an object of at most {MOST_COLUMNS} names and values")
    for name, value in {**{name: sidecar.get(name) for name in MEASURED}, **sidecar["metrics"]}.items():
        if not is_measured(value):
            raise InputError(f"{path.name}: {name} is {reprlib.repr(value)}, which is no number")
    return check_metadata(sidecar, path.name)


def make_row(sidecar: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """One flat row: what was measured, what else stands at the sidecar's top, constants, data set, environment."""
    top = {
        name: value for name, value in sidecar.items() if name not in (*SECTIONS, "format", "version", "classes", "run")
    }
    row = {name: top[name] for name in ("model_name", "best_f1", "best_threshold", "epoch") if name in top}
    for section in (sidecar["metrics"], top, *(sidecar[name] for name in SECTIONS[1:])):
        for name, value in section.items():
            row.setdefault(name, value)
    if "SEED" in sidecar["config"]:  # it drew the split before there was SPLIT_SEED
        row.setdefault("SPLIT_SEED", row["SEED"])
    for name, value in overrides.AS_BEFORE.items():  # constants newer than the run
        row.setdefault(name, value)
    f1 = "f1_macro" if row["LABELS_PER_IMAGE"] == "one" else "f1_weighted"
    row["chosen_by"] = sidecar.get("chosen_by") or f1  # an older run does not say it
    for name in ("image_size", "IMAGE_SIZE"):  # a list where it is not square, which neither sorts nor reads well
        if isinstance(row.get(name), list):
            row[name] = str(as_size(row[name]))
    configuration = identify_configuration(sidecar, overrides.list_deciding(config))
    return {
        **row,
        "run": tables.name_run(Path(checkpoint).stem),
        "checkpoint": checkpoint,
        "configuration": configuration,
    }


def make_test_columns(test: TestResult) -> dict[str, Any]:
    """What a row says of the run's test: metrics and their intervals, and by what and how they were measured."""
    columns: dict[str, Any] = {}
    for name, value in test.metrics.items():
        columns[name] = value
        columns[f"{name}_low"], columns[f"{name}_high"] = test.intervals.get(name, (float("nan"), float("nan")))
    columns |= {"num_images": test.num_images, "views": test.views, "calibration": test.calibration}
    columns |= {"engine": test.engine, "date": test.tested, "ruler": test.ruler.fingerprint}
    return {f"{TEST}{name}": value for name, value in columns.items()}


def check_names(runs: Frame) -> None:
    """Raise InputError when SORT_BY, GROUP_BY_COLUMNS or COLUMNS names a column that cannot exist.

    A constant of config.py that is newer than all of the runs can exist: it is added, without values. COLUMNS may also
    name what a test measures before there is one.
    """
    metrics = runs.attrs["metrics"]
    new = [name for name in vars(config) if name.isupper() and name not in runs]
    of_rows = ["runs", "block", "checkpoints", "test_checkpoints", "val_ruler", *(f"{name}_std" for name in metrics)]
    known = [*runs.columns, *new, *of_rows, *(f"{DIFFERENCE}{name}" for name in metrics if name.startswith(TEST))]
    columns = [name for name in COLUMNS if name != "differing"]
    if SORT_BY.startswith(TEST) and "test_ruler" not in runs:
        raise InputError(
            f"SORT_BY: there is no {SORT_BY}, since no run has a test: python testing.py --MODEL_PATH FILE.pt"
        )
    for constant, names in (("SORT_BY", [SORT_BY]), ("GROUP_BY_COLUMNS", GROUP_BY_COLUMNS), ("COLUMNS", columns)):
        for name in names:
            is_awaited = constant == "COLUMNS" and name.startswith(TEST) and "test_ruler" not in runs
            if name not in known and not is_awaited:
                raise InputError(f"{constant}: there is no column {name!r}{suggest(name, known)}; --csv shows all")
    for name in {SORT_BY, *GROUP_BY_COLUMNS} & set(new):
        runs[name] = float("nan")


def list_constants(rows: Frame, differing: bool) -> list[str]:
    """The constants in which the rows differ, or those in which they agree; folders and files are left out."""
    constants = vars(config).items()
    names = [name for name, value in constants if name.isupper() and name in rows and not isinstance(value, Path)]
    differs = rows[names].map(repr).nunique() > 1
    return [name for name in names if differs[name] == differing]


def list_differing(rows: Frame) -> list[str]:
    """The constants in which the rows differ, and not the runs of a row; and how they were tested if that differs."""
    of_tests = [name for name in run_rows.SAME_TEST[1:] if name in rows and rows[name].nunique() > 1]
    constants = [name for name in list_constants(rows, differing=True) if name not in rows.attrs["varied"]]
    return constants + of_tests


def choose_columns(rows: Frame) -> list[str]:
    """The columns to show: COLUMNS, what rows are grouped and sorted by, and what stands in the cells of each.

    Differences stand beside the metric that they are of, which then has no interval in its cells.
    """
    columns = COLUMNS or list(rows.columns)
    differences = [name for name in rows if name.startswith(DIFFERENCE) and f"{name}_p" in rows]
    compared = [name.removeprefix(DIFFERENCE) for name in differences]
    is_several = (rows["runs"] > 1).any()
    names = [*GROUP_BY_COLUMNS, *(["runs"] if GROUP_BY_COLUMNS and is_several else [])]
    names += [SORT_BY] if SORT_BY not in columns else []
    if not set(compared) & set(columns):
        names += differences
    for name in columns:
        if name == "differing":
            grouped_by = {column.lower() for column in GROUP_BY_COLUMNS}  # model_name says what MODEL_NAME does
            names += [name for name in list_differing(rows) if name.lower() not in grouped_by]
        elif name != "runs" or is_several or not COLUMNS:
            names.append(name)
    shown: list[str] = []
    for name in names:
        for value in (name.removesuffix("_std"), f"{DIFFERENCE}{name}"):
            endings = ("_std",) if value in compared else tables.ATTENDANTS
            shown += [value, *(f"{value}{ending}" for ending in endings)]
    return [name for name in dict.fromkeys(shown if COLUMNS else rows.columns) if name in rows]


def rank_columns(rows: Frame, shown: Sequence[str]) -> list[str]:
    """What a narrow terminal leaves out of the columns `shown`, in this order.

    First go metrics other than SORT_BY and test_mAP, intervals of metrics, and constants by which no more rows are told
    apart than by the others. Differences, and the constants that tell the rows apart, stay longest.
    """
    difference = f"{DIFFERENCE}test_mAP"
    main = {SORT_BY, "test_mAP", difference, *GROUP_BY_COLUMNS}
    metrics = [*rows.attrs["metrics"], *(f"{DIFFERENCE}{name}" for name in rows.attrs["metrics"]), "runs"]
    lesser = [name for name in reversed(shown) if name in metrics and name not in main]
    intervals = [name for name in shown if name.endswith("_low") and name != f"{difference}_low"]
    constants = [name for name in list_differing(rows) if name in shown and name not in main]
    telling = run_rows.choose_telling(rows, constants)
    spare = [name for name in reversed(constants) if name not in telling]
    return [*lesser, *intervals, *spare, "test_mAP", f"{difference}_low", *reversed(telling)]


def describe(runs: Frame, rows: Frame, shown: Frame) -> list[str]:
    """Lines below the table: how many runs, in which order, and the constants that all of them share.

    `shown` are the columns of `rows` that are printed, with those in their cells.
    """
    from evaluation.pages import count

    counted, first = count(int(rows["runs"].sum()), "run"), rows["checkpoints"].iloc[0]
    ending = f"; sorted by {SORT_BY}"
    if averages() and (rows["runs"] > 1).any():
        varied = [name for name in list_constants(runs, differing=True) if name in rows.attrs["varied"]]
        varied += ["FOLDS"] if "fold" in rows.attrs["varied"] else []
        over = f" over {', '.join(varied)}" if varied else ""
        lines = [f"{counted} in {count(len(rows), 'group')}: mean ± sample standard deviation{over}{ending}"]
        if not GROUP_BY_COLUMNS:
            lines.append("--GROUP_BY_COLUMNS checkpoint shows each run")
        elif missing := runs[SORT_BY].isna().sum() if SORT_BY in runs else 0:
            lines.append(f"note: {missing} of the runs have no {SORT_BY}: its means are without them")
    elif GROUP_BY_COLUMNS and not averages():
        lines = [f"{count(len(runs), 'run')}, the best of each of {len(rows)} groups{ending}"]
    else:
        lines = [f"{counted}{ending}"]
    lines.append(f"first: {first[0]}{f' and {len(first) - 1} more' if len(first) > 1 else ''}")
    if "test_ruler" in runs:
        has_intervals = any(name.startswith(TEST) and tables.has_intervals(shown, name) for name in shown)
        interval = ", [95 % interval] over them" if has_intervals else ""
        lines.append(f"test_…: of test images{interval}; all other metrics are of validation images")
        if not SORT_BY.startswith(TEST) and rows["test_ruler"].nunique() > 1:
            lines.append("note: test_… are by several rulers (column test_ruler): --SORT_BY test_mAP puts them apart")
    if untested := run_rows.count_untested(rows):
        lines.append(f"note: {untested} of the runs have no test: the means of test_… are without them")
    if unlike := run_rows.count_unlike_tests(runs, rows):
        lines.append(
            f"note: {count(unlike, 'group')} without test_…: their runs were tested on different images, or in "
            f"different ways (columns {', '.join(run_rows.SAME_TEST)})"
        )
    if unlike := run_rows.count_unlike_validations(rows):
        lines.append(
            f"note: {count(unlike, 'group')} without metrics of validation, or without best_f1: their runs were "
            "validated on different images, or chosen by different kinds of F1 (columns val_ruler, chosen_by)"
        )
    deciding = set(overrides.list_deciding(config))
    shared = [name for name in list_constants(rows, differing=False) if name in deciding]
    values = {name: rows[name].iloc[0] for name in shared}
    if not values.get("FREEZE_BACKBONE_AT_START", True):
        values = {name: value for name, value in values.items() if name not in FOR_A_FROZEN_BACKBONE}
    # 0, False, empty and missing mean that something is off: it need not be listed
    used = [f"{name} {tables.format_value(value)}" for name, value in values.items() if value and value == value]
    line = "all share " + ", ".join(used)
    if len(line) > MAX_SHARED:
        line = line[: line.rfind(", ", 0, MAX_SHARED)] + ", …"
    lines.append(line)
    return lines


if __name__ == "__main__":
    run_script(main)
