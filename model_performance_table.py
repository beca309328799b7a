"""A table of every trained model.

    python model_performance_table.py [--csv | --markdown | --latex] [recipe.py ...] [--NAME value ...]

Sorts, groups and compares the checkpoints of TRAINED_MODELS_FOLDER by the constants below. The terminal shows what
fits; `--markdown` and `--latex` print COLUMNS, `--csv` prints every column. Only the JSON file beside each checkpoint
is read. In Python: `runs = model_performance_table.read_runs(root)` is a pandas.DataFrame with one row a checkpoint.
"""

from __future__ import annotations

import reprlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from dataset.image_sizes import as_size
from dataset.json_files import read_json
from evaluation import tables
from evaluation.tables import Frame
from models import checkpoints
from models.metadata import check_metadata, is_measured
from utils import InputError, run_script, say, suggest

if TYPE_CHECKING:
    import pandas as pd

# ---- Table ----
SORT_BY: str = "best_f1"  # any column: best_f1 is what the run chose by on the validation split, weighted F1
SORT_ASCENDING: bool = False  # True: the smallest value is the best one and stands first
GROUP_BY_COLUMNS: tuple[str, ...] = ()  # one row for all runs that agree in these, such as MODEL_NAME,HEAD; () all runs
GROUP_MODE: Literal["best", "mean"] = "best"  # of a group: best, its best run by SORT_BY; mean, mean ± std of metrics
CHECKPOINTS_ROOT: Path = config.TRAINED_MODELS_FOLDER
CHECKPOINT_GLOB: str = "*/*.pt"  # within CHECKPOINTS_ROOT
COLUMNS: tuple[str, ...] = (
    "best_f1", "mAP", "CF1", "OF1", "epoch", "differing", "run"
)  # fmt: skip  # shown, in order; differing: all constants in which the runs differ; also any column of --csv; () all

SECTIONS = ("metrics", "config", "dataset", "environment")  # the objects within a sidecar
MEASURED = ("best_f1", "best_threshold", "epoch", "seconds")  # beside the sidecar's metrics
MOST_COLUMNS = 1000  # that a sidecar, or a section of it, may add to the table; a run has some 200 constants
MAX_SHARED = 230  # characters of the line that says what all runs share: two or three lines in a terminal


def main(arguments: list[str]) -> None:
    mode, arguments = tables.take_mode(arguments)
    overrides.apply(arguments, config, sys.modules[__name__])

    runs: Frame = read_runs(CHECKPOINTS_ROOT, CHECKPOINT_GLOB)
    is_mean = bool(GROUP_BY_COLUMNS) and GROUP_MODE == "mean"
    check_names(runs, is_mean)
    has_folds = {"fold", "fold_of"} <= set(runs)
    if is_mean and has_folds:
        runs = select_runs(runs, runs["fold"] != 0)  # a model of averaged weights is no run, and measured nothing
    rows = average_groups(runs, GROUP_BY_COLUMNS) if is_mean else runs
    if has_folds and not GROUP_BY_COLUMNS:
        rows = average_folds(runs)
        if len(rows) < len(runs):
            runs = select_runs(runs, runs["fold"] != 0)
    if SORT_BY not in rows:
        raise InputError(f"SORT_BY is {SORT_BY!r}, which differs within each group, or is missing: sort by a metric")
    rows = sort_rows(rows, SORT_BY, SORT_ASCENDING)
    if GROUP_BY_COLUMNS and not is_mean:
        rows = group_by(rows, GROUP_BY_COLUMNS).head(1)

    shown = rows if mode == "--csv" else rows[choose_columns(rows)]
    notes = [] if mode == "--csv" else describe(runs, rows, is_mean)
    fingerprints = (runs if is_mean else rows).get("fingerprint", [])  # a mean hides what it runs over
    num_datasets = len({str(fingerprint) for fingerprint in fingerprints if fingerprint == fingerprint})
    if num_datasets > 1:
        notes.append(f"note: these runs used {num_datasets} different data sets (column fingerprint): not comparable")
    kinds = {value == "one" for value in (runs if is_mean else rows).get("LABELS_PER_IMAGE", [])}
    if len(kinds) > 1:
        notes.append("note: best_f1 is macro F1 where LABELS_PER_IMAGE is one, else weighted F1: not comparable")
    if len({str(name).endswith("_cross_fitted") for name in (runs if is_mean else rows).get("chosen_by", [])}) > 1:
        notes.append("note: best_f1 is cross-fitted where validation images are few (column chosen_by): not comparable")
    if mode:
        tables.PRINTERS[mode](shown)
        say(*notes, stream=sys.stderr)
    else:
        num_best = (rows[SORT_BY] == rows[SORT_BY].iloc[0]).sum() if tables.is_numeric(rows[SORT_BY]) else 0
        tables.print_text(shown, notes, num_bold=num_best, kept="run")


def read_runs(root: str | Path, glob: str = "*/*.pt") -> pd.DataFrame:
    """One row for each checkpoint that matches `glob` in `root`, in the order of their paths.

    Columns: what was measured (their names are in `.attrs["metrics"]`), then the rest of the sidecar: constants, data
    set, environment; last `run`, a short name, and `checkpoint`, the path within `root`. Null is NaN. A checkpoint
    whose sidecar is missing, damaged or foreign is left out, and stderr says why. Raises InputError when there is no
    such folder, when nothing in it matches, and when no sidecar is usable.

    >>> runs = read_runs("trained_models")
    >>> runs.groupby("HEAD").best_f1.mean()
    """
    import pandas as pd

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
    for path in paths:
        checkpoint = path.relative_to(root).as_posix()
        try:
            sidecar = read_sidecar(path.with_suffix(".json"))
        except InputError as error:
            skipped.append(f"{checkpoint}: {error}")
            continue
        metrics.update(dict.fromkeys(sidecar["metrics"]))
        rows.append(make_row(sidecar, checkpoint))
    if skipped:
        heading = f"skipped {len(skipped)} of {len(paths)} checkpoints in {root}:"
        say(heading, *(f"  {line}" for line in skipped), stream=sys.stderr)
    if not rows:
        raise InputError(f"none of the checkpoints in {root} has a usable sidecar; training.py writes both")
    runs = pd.DataFrame(rows)
    empty = runs.columns[runs.isna().all()]
    runs = runs.astype(dict.fromkeys(empty, float)).copy()  # nothing but null, which is NaN as in other columns
    runs.attrs["metrics"] = [name for name in metrics if name in runs and tables.is_numeric(runs[name])]
    return runs


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
    top = {name: value for name, value in sidecar.items() if name not in (*SECTIONS, "format", "version", "classes")}
    row = {name: top[name] for name in ("model_name", "best_f1", "best_threshold", "epoch") if name in top}
    for section in (sidecar["metrics"], top, *(sidecar[name] for name in SECTIONS[1:])):
        for name, value in section.items():
            row.setdefault(name, value)
    if "SEED" in sidecar["config"]:  # it drew the split before there was SPLIT_SEED
        row.setdefault("SPLIT_SEED", row["SEED"])
    for name in ("image_size", "IMAGE_SIZE"):  # a list where it is not square, which neither sorts nor reads well
        if isinstance(row.get(name), list):
            row[name] = str(as_size(row[name]))
    return {**row, "run": tables.name_run(Path(checkpoint).stem), "checkpoint": checkpoint}


def check_names(runs: Frame, is_mean: bool) -> None:
    """Raise InputError when SORT_BY, GROUP_BY_COLUMNS or COLUMNS names a column that cannot exist.

    A constant of config.py that is newer than all of the runs can exist: it is added, without values.
    """
    new = [name for name in vars(config) if name.isupper() and name not in runs]
    known = [*runs.columns, *new]
    if is_mean:
        known += ["runs", *(f"{name}_std" for name in runs.attrs["metrics"])]
    columns = [name for name in COLUMNS if name != "differing"]
    for constant, names in (("SORT_BY", [SORT_BY]), ("GROUP_BY_COLUMNS", GROUP_BY_COLUMNS), ("COLUMNS", columns)):
        for name in names:
            if name not in known:
                raise InputError(f"{constant}: there is no column {name!r}{suggest(name, known)}; --csv shows all")
    for name in {SORT_BY, *GROUP_BY_COLUMNS} & set(new):
        runs[name] = float("nan")


def sort_rows(rows: Frame, column: str, ascending: bool) -> Frame:
    """Sort stably: rows that agree keep their order, those without a value come last either way."""
    values = rows[column]
    if not tables.is_numeric(values):
        values = values.map(str, na_action="ignore")
    return rows.loc[values.sort_values(ascending=ascending, kind="stable", na_position="last").index]


def group_by(rows: Frame, columns: tuple[str, ...]) -> Any:
    """The rows in groups that agree in `columns`, in the order of each group's first row."""
    # as text, lists can be compared, and a missing value is a value
    return rows.groupby([rows[name].map(repr) for name in columns], sort=False)


def average_groups(runs: Frame, columns: tuple[str, ...]) -> Frame:
    """One row for each group of runs that agree in `columns`.

    `runs` is their number. Of each metric: its mean, and in `<metric>_std` the sample standard deviation, both over
    the runs that have a value. Of the rest: the value that all runs of the group share, else NaN (a mean of SEED would
    say nothing). Columns without any value are left out.
    """
    import pandas as pd

    metrics = runs.attrs["metrics"]
    number = group_by(runs, columns).ngroup()
    groups = runs.groupby(number)
    means = groups[metrics].agg(["mean", "std"])
    means.columns = [metric if statistic == "mean" else f"{metric}_std" for metric, statistic in means.columns]
    is_shared = runs.drop(columns=[*metrics, "run"]).map(repr).groupby(number).nunique() == 1
    shared = groups[list(is_shared)].head(1).set_axis(is_shared.index).where(is_shared)
    rows = pd.concat([groups.size().rename("runs"), means, shared], axis="columns")
    return rows.loc[:, ~rows.columns.duplicated()].dropna(axis="columns", how="all")


def select_runs(runs: Frame, is_kept: Any) -> Frame:
    """Those of `runs` that are kept, with the names of what was measured."""
    kept = runs[is_kept].reset_index(drop=True)
    kept.attrs["metrics"] = runs.attrs["metrics"]
    return kept


def average_folds(runs: Frame) -> Frame:
    """`runs` with one row for all folds of a configuration (FOLDS): means, and `<metric>_std`, as `average_groups` has.

    The row's `run` and `checkpoint` are those of the model that their weights were averaged to, if it is there.
    """
    import pandas as pd

    is_fold = (runs["fold"] > 0) & runs["fold_of"].notna()
    if not is_fold.any():
        return runs
    rows = average_groups(select_runs(runs, is_fold), ("model_name", "fold_of")).drop(columns="runs")
    is_average = (runs["fold"] == 0) & runs["fold_of"].isin(rows["fold_of"])
    averages = dict(runs.loc[is_average, ["fold_of", "checkpoint"]].itertuples(index=False))
    for row, name in rows["fold_of"].items():
        rows.loc[row, ["checkpoint", "run"]] = averages.get(name, name), tables.name_run(name)
    others = runs[~is_fold & ~is_average]
    return pd.concat([others, rows], ignore_index=True) if len(others) else rows


def list_constants(rows: Frame, differing: bool) -> list[str]:
    """The constants in which the rows differ, or those in which they agree; folders and files are left out."""
    constants = vars(config).items()
    names = [name for name, value in constants if name.isupper() and name in rows and not isinstance(value, Path)]
    differs = rows[names].map(repr).nunique() > 1
    return [name for name in names if differs[name] == differing]


def choose_columns(rows: Frame) -> list[str]:
    """The columns to show: COLUMNS, what the rows are grouped and sorted by, and each deviation beside its mean."""
    columns = COLUMNS or list(rows.columns)
    names = [*GROUP_BY_COLUMNS, "runs", *([] if SORT_BY in columns else [SORT_BY])]
    for name in columns:
        if name == "differing":
            grouped_by = {column.lower() for column in GROUP_BY_COLUMNS}  # model_name says what MODEL_NAME does
            names += [name for name in list_constants(rows, differing=True) if name.lower() not in grouped_by]
        else:
            names.append(name)
    means = [name.removesuffix("_std") for name in names]
    return [name for mean in dict.fromkeys(means) for name in (mean, f"{mean}_std") if name in rows]


def describe(runs: Frame, rows: Frame, is_mean: bool) -> list[str]:
    """Lines below the table: how many runs, in which order, and the constants that all of them share."""
    counted = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    if is_mean:
        varied = [name for name in list_constants(runs, differing=True) if name not in rows]
        over = f" over {', '.join(varied)}" if varied else ""
        lines = [f"{counted} in {len(rows)} groups: mean ± sample standard deviation{over}; sorted by {SORT_BY}"]
        missing = runs[SORT_BY].isna().sum() if SORT_BY in runs else 0
        if missing:
            lines.append(f"note: {missing} of the runs have no {SORT_BY}: its means are without them")
    else:
        grouped = f", the best of each of {len(rows)} groups" if GROUP_BY_COLUMNS else ""
        lines = [f"{counted}{grouped}; sorted by {SORT_BY}", f"first: {rows['checkpoint'].iloc[0]}"]
        if len(rows) < len(runs) and not grouped:
            lines.append("mean ± sample standard deviation over FOLDS; --GROUP_BY_COLUMNS checkpoint shows each run")
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
