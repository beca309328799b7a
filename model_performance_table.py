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

import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from dataset.image_sizes import as_size
from dataset.json_files import read_json
from evaluation import tables
from evaluation.run_rows import (
    TEST,
    find_blocks,
    find_row,
    group_by,
    identify_configuration,
    make_rows,
    separate_copies,
    sort_rows,
)  # fmt: skip
from evaluation.tables import DIFFERENCE, Frame, Layout
from models import checkpoints
from models.metadata import check_metadata, is_measured
from utils import InputError, run_script, say, suggest

if TYPE_CHECKING:
    import pandas as pd

# ---- Table ----
SORT_BY: str = "best_f1"  # any column: best_f1 is what the run chose by on the validation split; test_...: of its test
SORT_ASCENDING: bool = False  # True: the smallest value is the best one and stands first
AGAINST: str = ""  # Δ of each row's test from that of this run, such as 0a1b2c3d; best: from the first row; "": off
GROUP_BY_COLUMNS: tuple[str, ...] = ()  # one row for runs that agree in these; (): that differ in SEED or fold alone
GROUP_MODE: Literal["best", "mean"] = "best"  # of such a group: best, its best run by SORT_BY; mean, mean ± std
CHECKPOINTS_ROOT: Path = config.TRAINED_MODELS_FOLDER
CHECKPOINT_GLOB: str = "*/*.pt"  # within CHECKPOINTS_ROOT
COLUMNS: tuple[str, ...] = (
    "best_f1", "mAP", "test_mAP", "differing", "test_f1_weighted", "CF1", "OF1", "epoch", "run"
)  # fmt: skip  # shown, in order; differing: all constants in which the runs differ; also any column of --csv; () all

SECTIONS = ("metrics", "config", "dataset", "environment")  # the objects within a sidecar
MEASURED = ("best_f1", "best_threshold", "epoch", "seconds")  # beside the sidecar's metrics
LOWER_IS_BETTER = ("hamming_loss", "ECE")  # of the metrics; of MEASURED only best_f1 has a better side
MOST_COLUMNS = 1000  # that a sidecar, or a section of it, may add to the table; a run has some 200 constants
MAX_SHARED = 230  # characters of the line that says what all runs share: two or three lines in a terminal
MAX_CLASSES = 40  # that --diff shows in the terminal and in tables for people; --csv has them all


def main(arguments: list[str]) -> None:
    compared, arguments = tables.take_option(arguments, "--diff", "A", "B")
    picture, arguments = tables.take_option(arguments, "--plot", "FILE.png")
    mode, arguments = tables.take_mode(arguments)
    overrides.apply(arguments, config, sys.modules[__name__])

    runs: Frame = read_runs(CHECKPOINTS_ROOT, CHECKPOINT_GLOB)
    check_names(runs)
    rows, lines = rank(runs)
    if compared:
        print_difference(runs, rows, *compared, mode)
        return
    legend = []
    if AGAINST:
        rows, legend = compare_with_reference(rows, lines)
    if picture:
        draw(rows, Path(picture[0]))
    shown = rows if mode == "--csv" else rows[choose_columns(rows)]
    layout = Layout(lines, find_best(rows, lines), legend)
    if mode == "--csv":
        say(*(f"block {rows['block'].iloc[row]}: {line}" for row, line in lines.items()), *legend, stream=sys.stderr)
    notes = [] if mode == "--csv" else describe(runs, rows)
    if mode:
        tables.PRINTERS[mode](shown, layout)
        say(*notes, stream=sys.stderr)
    else:
        tables.print_text(shown, notes, layout, kept="run")


def rank(runs: Frame) -> tuple[Frame, dict[int, str]]:
    """The rows of the table, sorted within blocks, and {number of a block's first row: how it differs from the above}.

    A column `block` numbers the blocks from 1 on.
    """
    import pandas as pd

    from evaluation.test_results import describe_difference

    columns = GROUP_BY_COLUMNS or ("configuration",)
    has_means = not GROUP_BY_COLUMNS or GROUP_MODE == "mean"
    blocks, lines, num_rows = [], {}, 0
    rulers = runs.attrs["rulers"]
    for line, block in find_blocks(runs, SORT_BY, rulers, has_means, describe_difference):
        rows = make_rows(block, columns, averages=has_means)
        if SORT_BY not in rows and SORT_BY in runs and not blocks:
            raise InputError(f"SORT_BY is {SORT_BY!r}, which differs within each row's runs: sort by a metric")
        rows = sort_rows(rows, SORT_BY, SORT_ASCENDING) if SORT_BY in rows else rows
        if not has_means:
            rows = group_by(rows, columns).head(1)
        if line:
            lines[num_rows] = line
        num_rows += len(rows)
        blocks.append(rows.assign(block=len(blocks) + 1))
    rows = pd.concat(blocks, ignore_index=True) if len(blocks) > 1 else blocks[0].reset_index(drop=True)
    rows.attrs["metrics"] = runs.attrs["metrics"]
    return rows, lines


def read_runs(root: str | Path, glob: str = "*/*.pt") -> pd.DataFrame:
    """One row for each checkpoint that matches `glob` in `root`, in the order of their paths.

    Columns: what was measured on validation images (their names are in `.attrs["metrics"]`), then the rest of the
    sidecar: constants, data set, environment; `run`, a short name, `checkpoint`, the path within `root`, and
    `configuration`, which runs have in common that differ in SEED or fold alone. Last what testing.py measured on test
    images: `test_<metric>` (in `.attrs["metrics"]`, too), the ends of its 95 % interval `..._low` and `..._high`, and
    by what it was measured: `test_ruler` is the same where the test images, their labels and classes are. Null is NaN.

    A checkpoint whose sidecar is missing, damaged or foreign is left out, as is a test of an earlier checkpoint of the
    run, and stderr says why. Raises InputError when there is no such folder, when nothing in it matches, and when no
    sidecar is usable.

    >>> runs = read_runs("trained_models")
    >>> runs.groupby("HEAD").test_mAP.mean()
    """
    import pandas as pd

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
    rows, skipped, metrics = [], [], dict.fromkeys(MEASURED)
    rulers, stale = {}, []
    for path in paths:
        checkpoint = path.relative_to(root).as_posix()
        try:
            sidecar = read_sidecar(path.with_suffix(".json"))
        except InputError as error:
            skipped.append(f"{checkpoint}: {error}")
            continue
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
    return separate_copies(runs)


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
    top = {name: value for name, value in sidecar.items() if name not in (*SECTIONS, "format", "version", "classes", "run")}
    row = {name: top[name] for name in ("model_name", "best_f1", "best_threshold", "epoch") if name in top}
    for section in (sidecar["metrics"], top, *(sidecar[name] for name in SECTIONS[1:])):
        for name, value in section.items():
            row.setdefault(name, value)
    if "SEED" in sidecar["config"]:  # it drew the split before there was SPLIT_SEED
        row.setdefault("SPLIT_SEED", row["SEED"])
    for name in ("image_size", "IMAGE_SIZE"):  # a list where it is not square, which neither sorts nor reads well
        if isinstance(row.get(name), list):
            row[name] = str(as_size(row[name]))
    configuration = identify_configuration(sidecar, list_deciding())
    return {**row, "run": tables.name_run(Path(checkpoint).stem), "checkpoint": checkpoint, "configuration": configuration}


@functools.cache
def list_deciding() -> list[str]:
    """The constants that decide what is learned: those of the sections marked *, and MICRO_BATCH_SIZE (BatchNorm)."""
    constants = overrides.list_constants(config)
    return [constant.name for constant in constants if constant.section.endswith("*")] + ["MICRO_BATCH_SIZE"]


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

    A constant of config.py that is newer than all of the runs can exist: it is added, without values. So can what a
    test measures before there is one, but for SORT_BY.
    """
    metrics = runs.attrs["metrics"]
    new = [name for name in vars(config) if name.isupper() and name not in runs]
    of_rows = ["runs", "block", "checkpoints", "test_checkpoints", *(f"{name}_std" for name in metrics)]
    of_tests = [f"{start}{TEST}{name}" for name in metrics for start in ("", DIFFERENCE) if not name.startswith(TEST)]
    known = [*runs.columns, *new, *of_rows, *of_tests, *(f"{DIFFERENCE}{name}" for name in metrics)]
    columns = [name for name in COLUMNS if name != "differing"]
    for constant, names in (("SORT_BY", [SORT_BY]), ("GROUP_BY_COLUMNS", GROUP_BY_COLUMNS), ("COLUMNS", columns)):
        for name in names:
            if name not in known and f"{constant} {name}" not in DEFAULT_TESTS:
                raise InputError(f"{constant}: there is no column {name!r}{suggest(name, known)}; --csv shows all")
    if SORT_BY.startswith(TEST) and "test_ruler" not in runs:
        raise InputError(f"SORT_BY: there is no {SORT_BY}, since no run has a test: {HOW_TO_TEST}")
    for name in {SORT_BY, *GROUP_BY_COLUMNS} & set(new):
        runs[name] = float("nan")


def list_constants(rows: Frame, differing: bool) -> list[str]:
    """The constants in which the rows differ, or those in which they agree; folders and files are left out."""
    constants = vars(config).items()
    names = [name for name, value in constants if name.isupper() and name in rows and not isinstance(value, Path)]
    differs = rows[names].map(repr).nunique() > 1
    return [name for name in names if differs[name] == differing]


def choose_columns(rows: Frame) -> list[str]:
    """The columns to show: COLUMNS, what rows are grouped and sorted by, and what stands in the cells of each.

    Differences stand beside the metric that they are of, which then has no interval in its cells.
    """
    columns = COLUMNS or list(rows.columns)
    differences = [name for name in rows if name.startswith(DIFFERENCE) and f"{name}_p" in rows]
    values = [name.removeprefix(DIFFERENCE) for name in differences]
    is_several = (rows["runs"] > 1).any()
    names = [*GROUP_BY_COLUMNS, *(["runs"] if GROUP_BY_COLUMNS and is_several else [])]
    names += [SORT_BY] if SORT_BY not in columns else []
    names += [name for name in differences if name.removeprefix(DIFFERENCE) not in (*names, *columns)]
    for name in columns:
        if name == "differing":
            grouped_by = {column.lower() for column in GROUP_BY_COLUMNS}  # model_name says what MODEL_NAME does
            names += [name for name in list_constants(rows, differing=True) if name.lower() not in grouped_by]
            names += [name for name in ("test_views", "test_calibration") if name in rows and rows[name].nunique() > 1]
        elif name != "runs" or is_several or not COLUMNS:
            names.append(name)
    shown = {}
    for name in [form.removesuffix("_std") if COLUMNS else form for form in names]:
        for column in (name, f"{DIFFERENCE}{name}"):
            endings = ("_std",) if column in values and COLUMNS else tables.ATTENDANTS
            shown |= dict.fromkeys([column, *(f"{column}{ending}" for ending in endings)])
    return [name for name in shown if name in rows]


def find_best(rows: Frame, lines: Mapping[int, str]) -> set[tuple[int, str]]:
    """The cells (number of the row, column) that hold the best value of a block with several rows.

    Of columns other than SORT_BY, only where all of the block's values were measured by the same images.
    """
    names = [name for name in rows.attrs["metrics"] if name in rows and name not in MEASURED[1:]]
    best = set()
    for _, part in tables.split_rows(len(rows), lines):
        block = rows.iloc[part]
        for name in dict.fromkeys([SORT_BY, *(name for name in names if "num_" not in name)]):
            values = block[name]
            if not tables.is_numeric(values) or values.notna().sum() < 2:
                continue
            measured_by = ["test_ruler"] if name.startswith(TEST) else ["val_fingerprint", "chosen_by"]
            if name == SORT_BY:
                value = values.iloc[0]
            elif (block[[by for by in measured_by if by in block]].nunique() > 1).any():
                continue
            else:
                value = values.min() if name.removeprefix(TEST) in LOWER_IS_BETTER else values.max()
            best |= {(number, name) for number in block.index[values == value]}
    return best


def compare_with_reference(rows: Frame, lines: Mapping[int, str]) -> tuple[Frame, list[str]]:
    """`rows` with the differences from the row that AGAINST names, or from the best of each block, and what they are.

    Raises InputError where the reference has no test.
    """
    import pandas as pd

    from evaluation import run_comparison

    names = run_comparison.choose_metrics(SORT_BY, one_label(rows))
    folders = list_folders(rows)
    if not any(folders):
        raise InputError(f"AGAINST: no run here has a test: {HOW_TO_TEST}")
    blocks = [range(len(rows))[part] for _, part in tables.split_rows(len(rows), lines)]
    if AGAINST == "best":
        references = [next((number for number in block if folders[number]), None) for block in blocks]
    else:
        blocks, references = [range(len(rows))], [find_row(rows, AGAINST, "AGAINST")]
        if not folders[references[0]]:
            raise InputError(f"AGAINST: {AGAINST} has no test: {HOW_TO_TEST}")
    parts, counts = [], []
    for block, reference in zip(blocks, references, strict=True):
        part = rows.iloc[block.start : block.stop]
        if reference is not None:
            part, problems = run_comparison.add_differences(
                part, folders[block.start : block.stop], reference - block.start, names
            )
            say(*(f"no Δ: {problem}" for problem in problems), stream=sys.stderr)
            counts.append(int(part[f"{DIFFERENCE}{TEST}mAP"].notna().sum()))
        parts.append(part)
    compared = pd.concat(parts)
    compared.attrs.update(rows.attrs)
    first = next(number for number in references if number is not None)
    return compared, describe_reference(rows, first, counts, any(len(folder) > 1 for folder in folders))


def describe_reference(rows: Frame, reference: int, counts: Sequence[int], has_seeds: bool) -> list[str]:
    """What the differences from the row number `reference` are: `counts` rows of each block were compared."""
    run, num_images = rows["run"].iloc[reference], int(rows["test_num_images"].iloc[reference])
    name = f"{run}, the first by {SORT_BY}" if AGAINST == "best" else str(run)
    if len(counts) > 1:
        name = f"the first by {SORT_BY} of its block"
    seeds = " and over seeds" if has_seeds else ""
    times = " and ".join(dict.fromkeys(map(str, counts)))
    lines = [
        f"Δ: from {name}, on the same {num_images:,} test images; [95 % interval], paired over images{seeds}",
        f"{tables.MARK}: not distinguishable from it (p .05 or more after Holm's correction for {times} comparisons)",
    ]
    if AGAINST == "best" and SORT_BY.startswith(TEST):
        lines.append("chosen as the best on the test images themselves: a part of its lead is luck")
    elif AGAINST == "best":
        lines.append(f"chosen as the best by {SORT_BY}, without a look at the test images")
    return lines


def draw(runs: Frame, rows: Frame, path: Path) -> None:
    """Save a forest plot of the rows that have a test; blocks are those of the test images."""
    from evaluation import forest_plot, run_comparison
    from evaluation.drawing import save_figure
    from evaluation.test_results import describe_difference

    metric = run_comparison.choose_metrics(SORT_BY, one_label(rows))[0]
    column, folders, rulers = f"{TEST}{metric}", list_folders(rows), runs.attrs["rulers"]
    if path.suffix != ".png":
        raise InputError(f"--plot {path}: it writes a PNG: name it {path.with_suffix('.png')}")
    if not any(folders):
        raise InputError(f"--plot: no run here has a test: {HOW_TO_TEST}")
    each = runs.set_index("checkpoint")[column]
    differing = list_constants(rows, differing=True)
    entries: dict[str, list[forest_plot.Entry]] = {}  # by ruler
    for number, row in enumerate(rows.to_dict("records")):
        if not folders[number]:
            continue
        low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
        if len(folders[number]) > 1:
            tests = [run_comparison.resample_test(folder) for folder in folders[number]]
            _, low, high, _ = run_comparison.find_mean_interval(tests, metric)
        difference = [row.get(f"{DIFFERENCE}{column}{ending}", float("nan")) for ending in ("", "_low", "_high", "_p")]
        ...
    values = {name: rows[name].iloc[0] for name in list_constants(rows, differing=False)}
    # 0, False, empty and missing mean that something is off: it need not be listed
    used = [f"{name} {tables.format_value(value)}" for name, value in values.items() if value and value == value]
    line = "all share " + ", ".join(used)
    if len(line) > MAX_SHARED:
        line = line[: line.rfind(", ", 0, MAX_SHARED)] + ", …"
    lines.append(line)
    return lines


if __name__ == "__main__":
    run_script(main)
