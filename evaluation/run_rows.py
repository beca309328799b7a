"""The rows of the table of runs: which runs are one row, and which rows may be ranked together.

    for line, block in find_blocks(runs, "test_mAP", has_means=True):
        rows = make_rows(block, ("configuration",), averages=True)

A frame of runs is that of `model_performance_table.read_runs`: one row a checkpoint; in `.attrs` the names of what was
measured (`metrics`), and by what in tests (`rulers`, by their fingerprints). The numbers of two blocks are of different
images, labels or definitions: a line says what differs, and they are never ranked together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from evaluation import tables
from evaluation.tables import Frame
from overrides import AS_BEFORE
from utils import InputError, suggest

TEST = "test_"  # how the columns begin that are of a run's test
SAME_TEST = ("test_ruler", "test_views", "test_calibration")  # what tests have to agree in to be averaged
LOWER_IS_BETTER = ("hamming_loss", "ECE")
NO_BETTER = ("best_threshold", "epoch", "seconds")  # of what was measured, that of which no side is better
NOT_RANKED = "not ranked with the rows above: "


def identify_configuration(sidecar: Mapping[str, Any], constants: Sequence[str]) -> str:
    """Eight digits that runs have in common which differ in SEED or in the fold of FOLDS alone.

    `constants` are those that decide what is learned. What decides on labels counts, too, and the data set.
    A constant that a run lacks, since it is newer, has the value of AS_BEFORE.
    """
    # FEATURES may be auto in one run, and what auto means in another
    run_constants = AS_BEFORE | sidecar["config"]
    values = {name: run_constants.get(name) for name in constants if name not in ("SEED", "FEATURES")}
    keys = ("model_name", "head", "features", "chosen_by", "threshold_policy", "min_labels", "max_labels")
    top = {"features": AS_BEFORE["FEATURES"]} | dict(sidecar)
    return _digest([values, [top.get(key) for key in keys], sidecar["dataset"].get("fingerprint"), "fold" in sidecar])


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def separate_files(runs: Frame) -> Frame:
    """`runs` with another configuration for each fingerprint of image files that have the same names."""
    if "files_fingerprint" not in runs:
        return runs
    configurations = runs["configuration"].tolist()
    files = complete_fingerprints(configurations, runs["files_fingerprint"].tolist())
    pairs = zip(configurations, files, strict=True)
    return _assign(runs, configuration=[_digest([name, of_files]) if of_files else name for name, of_files in pairs])


def complete_fingerprints(groups: Sequence[str], fingerprints: Sequence[Any]) -> list[str]:
    """The fingerprint of each run's image files: of an older run, which lacks it, that of its group, or else "".

    `groups` say which runs may have the same files. Where a group has several fingerprints, its older runs stay apart.

    >>> complete_fingerprints(["x", "x", "y", "y", "y"], ["1", "", "1", "2", None])
    ['1', '1', '1', '2', '']
    """
    pairs = [(group, _as_text(fingerprint)) for group, fingerprint in zip(groups, fingerprints, strict=True)]
    known: dict[str, set[str]] = {}
    for group, text in pairs:
        known.setdefault(group, set()).update({text} - {""})
    of_group = {group: "".join(texts) if len(texts) == 1 else "" for group, texts in known.items()}
    return [text or of_group[group] for group, text in pairs]


def _as_text(value: Any) -> str:
    return str(value) if tables.is_given(value) else ""


def find_copies(runs: Mapping[str, Any]) -> dict[str, str]:
    """{a checkpoint that is a copy: the one that it is of}.

    `runs` are {path of a checkpoint: the run "<model>/<configuration>" that it says it is of, or None}. A run is the
    checkpoint of that name or, where it is gone or has another name now, the first of those that say so.

    >>> find_copies({"m/backup.pt": "m/x", "m/x.pt": "m/x"})
    {'m/backup.pt': 'm/x.pt'}
    """
    copies = {}
    for run in {run for run in runs.values() if run}:
        checkpoints = [checkpoint for checkpoint, of_run in runs.items() if of_run == run]
        originals = [name for name in checkpoints if f"/{name}".endswith(f"/{run}.pt")] or checkpoints[:1]
        copies |= {name: originals[0] for name in checkpoints if name not in originals}
    return {name: copies[name] for name in runs if name in copies}


def separate_copies(runs: Frame) -> Frame:
    """`runs` with another configuration for each copy: the same SEED and fold twice are no two runs to average."""
    names = [name for name in ("configuration", "SEED", "fold") if name in runs]
    is_copy = runs[names].map(repr).duplicated()
    configuration = runs["configuration"].where(~is_copy, runs["checkpoint"])
    return _assign(runs, configuration=configuration)


# ---- blocks ----


def find_blocks(runs: Frame, sort_by: str, has_means: bool) -> list[tuple[str, Frame]]:
    """[(what differs from the block above, its runs)]: runs that may be ranked by the column `sort_by`.

    By a column of tests these are the runs tested by one ruler; by any other the runs with the same validation images
    and, for best_f1, the same kind of F1. With `has_means` a row may be the mean over FOLDS, see `find_validations`.
    The block with the most runs comes first, runs without a test come last.
    """
    from evaluation.test_results import describe_difference

    rulers = runs.attrs["rulers"]
    keys: list[tuple[str, ...]]
    if sort_by.startswith(TEST):
        keys = [(ruler if isinstance(ruler, str) else "",) for ruler in runs["test_ruler"]]
    else:
        keys = find_validations(runs, has_means)
    if sort_by.startswith("best_f1"):
        keys = [(*key, kind) for key, kind in zip(keys, runs["chosen_by"], strict=True)]
    order = sorted(dict.fromkeys(keys), key=lambda key: (key == ("",), -keys.count(key)))
    blocks, above = [], None
    for key in order:
        block = select_runs(runs, [other == key for other in keys])
        line = ""
        if above is not None and sort_by.startswith(TEST):
            line = describe_difference(rulers[above[0]], rulers[key[0]]) if key[0] else "without a test"
        elif above is not None:
            line = _describe_validation(blocks[-1][1].iloc[0], block.iloc[0], above, key)
        blocks.append((f"{NOT_RANKED}{line}" if line else "", block))
        above = key
    return blocks


def find_validations(runs: Frame, has_means: bool) -> list[tuple[str, ...]]:
    """What each run was validated by: (images, their labels and classes; the files, see `complete_fingerprints`).

    With `has_means` the folds of FOLDS were validated on all images, which they are together.
    """
    rows = runs.to_dict("records")
    of_folds = {str(row.get("fold_of")): row.get("files_fingerprint") for row in rows if row.get("fold") != 0}
    images, files = [], []
    for row in rows:
        if has_means and tables.is_given(row.get("fold_of")):
            images.append(" ".join(["folds", *_list_split(row)]))
            # the averaged model has no fingerprint of its files: they are those of its folds
            files.append(of_folds.get(str(row["fold_of"])) if row.get("fold") == 0 else row.get("files_fingerprint"))
        else:
            split = " ".join([*_list_split(row), str(row.get("num_val"))])
            images.append(_as_text(row.get("val_fingerprint")) or split)  # the scores of an older run may be gone
            files.append(row.get("val_files_fingerprint"))
    return [*zip(images, complete_fingerprints(images, files), strict=True)]


def _list_split(row: Mapping[str, Any]) -> list[str]:
    return [str(row.get(name)) for name in ("fingerprint", "SPLIT_SEED", "FOLDS")]


def _describe_validation(above: Any, below: Any, key_above: tuple[str, ...], key_below: tuple[str, ...]) -> str:
    """How what two blocks were validated by differs, from a run of each."""
    words = []
    if str(above.get("fingerprint")) != str(below.get("fingerprint")):
        words.append("another data set (column fingerprint)")
    elif key_above[0] != key_below[0]:
        counts = [_count_validation(row) for row in (above, below)]
        words.append(f"other validation images{f' ({counts[0]} and {counts[1]})' if counts[0] != counts[1] else ''}")
    elif key_above[1] != key_below[1]:
        is_known = key_above[1] and key_below[1]
        content = "with other content" if is_known else "maybe with other content: an older run does not say"
        words.append(f"validation images of the same names, {content}")
    if key_above[2:] != key_below[2:]:
        words.append(f"best_f1 is {key_above[2]} above and {key_below[2]} below")
    return "; ".join(words)


def _count_validation(row: Any) -> str:
    if tables.is_given(row.get("fold_of")):
        return f"{row.get('FOLDS')} folds"
    count = row.get("num_val")
    return f"{count:,.0f}" if isinstance(count, Real) and count == count else "unknown"


# ---- rows ----


def make_rows(runs: Frame, columns: Sequence[str], averages: bool) -> Frame:
    """The rows that `runs` make: with `averages` one for all runs that agree in `columns`, else one each.

    New columns: `runs`, their number; `checkpoints`, a list of theirs; `test_checkpoints`, of those whose tests the row
    has; `val_ruler`, which is the same where validations were by the same images. A row of several runs has of each
    metric the mean and, in `<metric>_std`, the sample standard deviation, both over the runs that have a value; of the
    rest the value that all of them share, else NaN (a mean of SEED would say nothing), and columns that are empty then
    are left out. Tests are averaged where they agree in SAME_TEST, metrics of validation in `name_rulers`; else the row
    has none. The test of a model of averaged weights (FOLDS) is that of the row of its folds. The columns that runs of
    a row do not share are in `.attrs["varied"]`.
    """
    from dataset.frames import pd

    runs = _assign(
        runs,
        test_checkpoint=runs["checkpoint"].where(runs.get("test_ruler", _empty(runs)).notna()),
        val_ruler=[" ".join(validation).strip() for validation in find_validations(runs, averages)],
    )
    runs.attrs["varied"] = []
    if not averages:
        return _list_checkpoints(runs).drop(columns="test_checkpoint")
    runs = join_averaged(runs)
    number = group_by(runs, columns).ngroup()
    is_single = number.map(number.value_counts()) == 1
    single, several = _list_checkpoints(runs[is_single]), runs[~is_single]
    parts = [single.set_axis(number[is_single])] if len(single) else []
    if len(several):
        parts.append(average_groups(several, number[~is_single]))
    varied = [name for part in parts for name in part.attrs["varied"]]
    rows = (pd.concat(parts) if len(parts) > 1 else parts[0]).sort_index()
    ordered = dict.fromkeys(name for mean in [*runs, *rows] for name in (mean, f"{mean}_std") if name in rows)
    was_empty = set(runs.columns[runs.isna().all()])
    kept = ("run", "checkpoint")
    lost = [name for name in rows if all(rows[name].isna()) and name not in was_empty and name not in kept]
    rows = rows[[*ordered]].drop(columns=[*lost, "test_checkpoint", "averaged"], errors="ignore")
    rows = rows.reset_index(drop=True)
    rows.attrs.update(runs.attrs | {"varied": varied})
    return rows


def average_groups(runs: Frame, number: Any) -> Frame:
    """One row for each group of several `runs`; `number` says which group a run is in. See `make_rows`."""
    from dataset.frames import pd

    # a sidecar may call a metric as a column of ours, such as val_ruler
    metrics = [name for name in runs.attrs["metrics"] if tables.is_numeric(runs[name])]
    runs = clear_unlike_validations(clear_unlike_tests(runs, number), number)
    groups = runs.groupby(number)
    means = groups[metrics].agg(["mean", "std"])
    means.columns = [metric if statistic == "mean" else f"{metric}_std" for metric, statistic in means.columns]
    rest = [name for name in runs if name not in metrics and name not in ("run", "checkpoint", "test_checkpoint")]
    of_tests = [name for name in rest if name.startswith(TEST)]  # a run without a test has none to disagree in
    others = [name for name in rest if name not in of_tests]
    is_shared = runs[others].map(repr).groupby(number).nunique() == 1
    shared = groups[others].head(1).set_axis(is_shared.index).where(is_shared)
    tests = groups[of_tests].first().where(groups[of_tests].nunique() == 1) if of_tests else means[[]]
    lists = {
        "runs": groups.size(),
        "checkpoints": groups["checkpoint"].agg(list),
        "test_checkpoints": groups["test_checkpoint"].agg(lambda names: [*names.dropna().unique()]),
    }
    rows = pd.concat([means, shared, tests], axis="columns")
    rows = rows.loc[:, ~rows.columns.duplicated()].copy().assign(**lists)  # whole: pandas warns of many blocks
    rows["checkpoint"] = rows.get("averaged", _empty(rows))  # the file that one uses
    rows["run"] = [
        tables.name_run(Path(averaged).stem) if tables.is_given(averaged) else configuration
        for averaged, configuration in zip(rows["checkpoint"], rows["configuration"], strict=True)
    ]
    rows.attrs["varied"] = [name for name in others if not is_shared[name].all()]
    return rows


def join_averaged(runs: Frame) -> Frame:
    """`runs` without the models of averaged weights (FOLDS) whose folds are there, which were not measured themselves.

    In a column `averaged` the folds have its checkpoint. If it was tested, then the first fold has its test, and the
    others none: it is the model that one uses.
    """
    if not {"fold", "fold_of"} <= set(runs):
        return runs
    is_average = runs["fold"] == 0
    of_tests = [name for name in runs if name.startswith(TEST)]
    joined = []
    for label, average in runs[is_average].iterrows():
        folds = runs.index[~is_average & (runs["fold_of"] == average["fold_of"])]
        if len(folds):
            runs.loc[folds, "averaged"] = average["checkpoint"]
            if tables.is_given(average["test_checkpoint"]):
                for name in of_tests:
                    runs.loc[folds, name] = None
                    runs.loc[folds[0], name] = average[name]
            joined.append(label)
    return runs.drop(index=joined)


def clear_unlike_tests(runs: Frame, number: Any) -> Frame:
    """`runs` without the tests of those groups whose tests do not agree in SAME_TEST."""
    same = [name for name in SAME_TEST if name in runs]
    if not same:
        return runs
    is_unlike = (runs.groupby(number)[same].nunique() > 1).any(axis="columns")
    cleared = runs.copy()
    cleared.loc[number.map(is_unlike), [name for name in runs if name.startswith(TEST)]] = None
    return cleared


def clear_unlike_validations(runs: Frame, number: Any) -> Frame:
    """`runs` without those metrics of validation for which the runs of a group do not agree in `name_rulers`."""
    cleared = runs.copy()
    for name in runs.attrs["metrics"]:
        if not name.startswith(TEST) and name not in NO_BETTER:
            is_alike = (runs[name_rulers(name)].groupby(number).nunique() == 1).all(axis="columns")
            cleared[name] = runs[name].where(number.map(is_alike))
    return cleared


def name_rulers(metric: str) -> list[str]:
    """The columns that say what a `metric` was measured by: where they agree, it may be compared and averaged."""
    if metric.startswith(TEST):
        return ["test_ruler"]
    return ["val_ruler", "chosen_by"] if metric == "best_f1" else ["val_ruler"]


def _list_checkpoints(runs: Frame) -> Frame:
    """`runs` as rows of one run each."""
    tests = [[checkpoint] if tables.is_given(checkpoint) else [] for checkpoint in runs["test_checkpoint"]]
    return _assign(
        runs, runs=1, checkpoints=[[checkpoint] for checkpoint in runs["checkpoint"]], test_checkpoints=tests
    )


def sort_rows(rows: Frame, column: str, ascending: bool) -> Frame:
    """Sort stably: rows that agree keep their order, those without a value come last either way."""
    values = rows[column]
    if not tables.is_numeric(values):
        values = values.map(str, na_action="ignore")
    return rows.loc[values.sort_values(ascending=ascending, kind="stable", na_position="last").index]


def is_lower_better(column: str) -> bool:
    """Whether the lowest value of the column is the best one, whatever SORT_ASCENDING says."""
    return column.removeprefix(TEST) in LOWER_IS_BETTER


def find_best(rows: Frame, lines: Mapping[int, str], sort_by: str) -> set[tuple[int, str]]:
    """The cells (number of the row, column) that hold the best value in a block of several rows.

    `lines` are {number of a block's first row: the line above it}. In the column `sort_by` the first row is the best;
    in the others that a side is better of, the largest or smallest, if all agree in `name_rulers`.
    """
    names = [name for name in rows.attrs["metrics"] if name in rows and name not in NO_BETTER]
    names = [name for name in names if "num_" not in name and not name.endswith("_standard_error")]
    best = set()
    for _, part in tables.split_rows(len(rows), lines):
        block = rows.iloc[part]
        for name in dict.fromkeys([sort_by, *names]):
            values = block[name]
            if not tables.is_numeric(values) or values.notna().sum() < 2:
                continue
            if name == sort_by:
                value = values.iloc[0]
            elif not _agree(block[values.notna()], name_rulers(name)):
                continue
            else:
                value = values.min() if is_lower_better(name) else values.max()
            best |= {(int(number), name) for number in block.index[values == value]}
    return best


def _agree(rows: Frame, columns: Sequence[str]) -> bool:
    """Whether in each of the columns all rows have the same value. A missing one says that the runs of a row differ."""
    return all(name in rows and rows[name].notna().all() and rows[name].nunique() == 1 for name in columns)


def count_untested(rows: Frame) -> int:
    """The number of runs without a test in rows that have the tests of others; of FOLDS the averaged model has it."""
    is_mean = rows["checkpoint"].isna() & (rows["test_checkpoints"].map(len) > 0)
    return int((rows["runs"] - rows["test_checkpoints"].map(len))[is_mean].sum())


def count_unlike_tests(runs: Frame, rows: Frame) -> int:
    """The number of rows that have no test since those of their runs do not agree in SAME_TEST."""
    if "test_ruler" not in runs:
        return 0
    tested = set(runs["checkpoint"][runs["test_ruler"].notna()])
    has_tests = [bool(tested & {*names}) for names in rows["checkpoints"]]
    return sum(has and not left for has, left in zip(has_tests, rows["test_checkpoints"], strict=True))


def count_unlike_validations(rows: Frame) -> int:
    """The number of rows that lack metrics of validation since their runs do not agree in `name_rulers`."""
    is_alike = [rows.get(ruler, _empty(rows)).notna() for ruler in name_rulers("best_f1")]
    return int((~(is_alike[0] & is_alike[1])).sum())


def choose_telling(rows: Frame, columns: Sequence[str]) -> list[str]:
    """A few of `columns` that tell as many rows apart as all of them do, the most telling one first."""
    texts = rows[[*columns]].map(repr)
    chosen: list[str] = []
    told = 1
    while len(chosen) < len(columns):
        counts = {name: len(texts[[*chosen, name]].drop_duplicates()) for name in columns if name not in chosen}
        best = max(counts, key=counts.__getitem__)
        if counts[best] <= told:
            break
        chosen, told = [*chosen, best], counts[best]
    return chosen


def group_by(rows: Frame, columns: Sequence[str]) -> Any:
    """The rows in groups that agree in `columns`, in the order of each group's first row."""
    # as text, lists can be compared, and a missing value is a value
    return rows.groupby([rows[name].map(repr) for name in columns], sort=False)


def select_runs(runs: Frame, is_kept: Sequence[bool]) -> Frame:
    """Those of `runs` that are kept, with the names of what was measured."""
    kept = runs[list(is_kept)].reset_index(drop=True)
    kept.attrs.update(runs.attrs)
    return kept


def find_row(rows: Frame, name: str, where: str) -> int:
    """The number of the row of that `name`: what stands in its column `run`, or a checkpoint or run of its runs.

    Raises InputError, which begins with `where` the name stands, if there is none.
    """
    for number, (run, checkpoints) in enumerate(zip(rows["run"], rows["checkpoints"], strict=True)):
        paths = [Path(checkpoint) for checkpoint in checkpoints]
        names = {str(run), *(form for path in paths for form in _list_names(path))}
        if name in names:
            return number
    known = [str(run) for run in rows["run"] if tables.is_given(run)]
    raise InputError(f"{where}: there is no run {name!r}{suggest(name, known)}; the column `run` names them")


def _list_names(path: Path) -> tuple[str, ...]:
    return str(path), str(path.with_suffix("")), path.stem, tables.name_run(path.stem)


def _assign(frame: Frame, **columns: Any) -> Frame:
    """`frame` with further columns, and with what is known of it."""
    assigned = frame.assign(**columns)
    assigned.attrs.update(frame.attrs)
    return assigned


def _empty(frame: Frame) -> Any:
    from dataset.frames import pd

    return pd.Series(None, frame.index, dtype=float)
