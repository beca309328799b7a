"""Which rows of the table of runs are better than another one, over the same test images, and over seeds.

    rows, legend = compare_rows(rows, lines, against="best", sort_by="best_f1", root=Path("trained_models"))

gives the columns delta_test_mAP, delta_test_mAP_low, ..._high and ..._p. What is compared are the scores that
testing.py left with each run (evaluation/test_results.py): nothing is predicted.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import metrics
from dataset.frames import pd
from evaluation import test_results
from evaluation.pages import count
from evaluation.run_rows import TEST, find_row
from evaluation.tables import DIFFERENCE, MARK, Frame, is_given
from metrics import Difference, Resampled
from utils import InputError, say

SAMPLES = 1000  # resamples of the test images
TOLERANCE = 1e-3  # of mAP: scores that another processor measures may tie in other places
HOW_TO_TEST = "python testing.py --MODEL_PATH FILE.pt"
NO_TEST = f"has no test: {HOW_TO_TEST}"
IS_REFERENCE = "is_reference"  # column: True for a row that others are compared with
OF_ONE_TEST = "a row with one test stands for that model alone"  # one seed says nothing of other seeds
SAME_AS = {"accuracy": "exact_match"}  # with one label an image testing.py gives it this name, too


def compare_rows(
    rows: Frame, lines: Mapping[int, str], against: str, sort_by: str, root: Path
) -> tuple[Frame, list[str]]:
    """`rows` with their differences from the row that is called `against`, and lines that say what these are.

    For "best" each is compared with the first row that was tested by the same ruler, also where that stands in another
    block; `lines` are {number of a block's first row: the line above it}. stderr says which rows could not be compared.
    Raises InputError where there is no such row, or it has no test.
    """
    folders = require_tests(rows, root, "AGAINST")
    if against == "best":
        groups = list_comparable(rows)
    else:
        reference = find_row(rows, against, "AGAINST")
        if not folders[reference]:
            reason = explain_no_test(rows["checkpoints"].iloc[reference], root)
            raise InputError(f"AGAINST: {against} {reason}")
        ruler = rows["test_ruler"].iloc[reference]
        others = [n for n, of_row in enumerate(rows["test_ruler"]) if of_row == ruler and n != reference]
        groups = [[reference, *others]]
    names, compared, counts, num_tests = choose_metrics(sort_by, rows), [], {}, []
    for group in groups:
        part, problems = add_differences(rows.iloc[group], [folders[number] for number in group], names)
        say(*(f"no Δ: {problem}" for problem in problems), stream=sys.stderr)
        compared.append(part)
        is_compared = part[f"{DIFFERENCE}{TEST}mAP"].notna()
        if is_compared.any():
            counts[group[0]] = int(is_compared.sum())
            num_tests += [len(folders[number]) for number in (group[0], *itertools.compress(group, is_compared))]
    left = [number for number in range(len(rows)) if number not in {number for group in groups for number in group}]
    joined = pd.concat([*compared, rows.iloc[left]]).sort_index()
    joined.attrs.update(rows.attrs)
    legend = describe_reference(rows, counts, against, sort_by)
    legend[0] += describe_seeds(num_tests)
    alone = [group[0] for group in groups if len(group) == 1 and counts]
    if num_left := sum(bool(folders[number]) for number in left) + len(alone):
        by = "" if sort_by.startswith(TEST) else " (--SORT_BY test_mAP says how it differs)"
        legend.append(f"tested by another ruler, and so without Δ: {count(num_left, 'row')}{by}")
    if (
        counts
        and against == "best"
        and not sort_by.startswith(TEST)
        and max(map(max, groups)) >= min(lines, default=len(rows))
    ):
        legend.append(
            f"{sort_by} does not rank blocks: that this is the best one holds for its own; --AGAINST RUN names another"
        )
    return joined, legend


def list_comparable(rows: Frame) -> list[list[int]]:
    """The numbers of the rows with a test that were tested by one ruler, in their order."""
    groups: dict[str, list[int]] = {}
    for number, (ruler, tests) in enumerate(zip(rows["test_ruler"], rows["test_checkpoints"], strict=True)):
        if tests:
            groups.setdefault(ruler, []).append(number)
    return [*groups.values()]


def describe_reference(rows: Frame, counts: Mapping[int, int], against: str, sort_by: str) -> list[str]:
    """What the differences are: `counts` are {number of a row that is compared with: how many rows are compared}."""
    if not counts:
        return ["Δ: no other row was tested by the same ruler"]
    references = [rows.iloc[number] for number in counts]
    names = [str(row["run"]) if is_given(row["run"]) else "the first row" for row in references]
    images = [f"the same {int(row['test_num_images']):,} test images" for row in references]
    first = f", of these the first by {sort_by}" if against == "best" else ""
    words = "; ".join(f"from {name}{first}, on {of_name}" for name, of_name in zip(names, images, strict=True))
    times = " and ".join(map(str, counts.values()))
    lines = [
        f"Δ: {words}; [95 % interval], paired over images",
        f"{MARK}: not distinguishable from it: p is .05 or more after Holm's correction for {times} comparison"
        f"{'' if times == '1' else 's'}; an interval is of its own comparison, without it",
    ]
    if against == "best" and sort_by.startswith(TEST):
        lines.append(
            "it was chosen on these test images: a part of its lead is luck (--SORT_BY best_f1 chooses without)"
        )
    elif against == "best":
        lines.append(f"it was chosen by {sort_by}, without a look at the test images")
    return lines


def describe_seeds(num_tests: Sequence[int]) -> str:
    """What else than images the intervals of differences are over; `num_tests` are the tests of each row."""
    if max(num_tests, default=1) == 1:
        return ""
    return " and over seeds" + (f"; {OF_ONE_TEST}" if min(num_tests) == 1 else "")


def choose_metrics(sort_by: str, rows: Frame) -> list[str]:
    """The names in `metrics.measure` of what is compared: what the table is sorted by, mAP, and F1 as best_f1 is.

    For a table that is sorted by "test_CF1": ["CF1", "mAP", "f1_weighted"].
    """
    labels = set(rows["LABELS_PER_IMAGE"].map(str)) if "LABELS_PER_IMAGE" in rows else set()
    f1 = "f1_macro" if labels == {"one"} else "f1_weighted"
    name = sort_by.removeprefix(TEST).removesuffix("_std")
    name = f1 if name == "best_f1" else SAME_AS.get(name, name)
    known = {*metrics.measure([[0.5]], [[1]], 0.5)} - {"num_classes_in_mAP"}
    return [*dict.fromkeys([*([name] if name in known else []), "mAP", f1])]


def add_differences(rows: Frame, folders: Sequence[Sequence[Path]], names: Sequence[str]) -> tuple[Frame, list[str]]:
    """`rows`, tested by one ruler, with what each has more than the first, and why some have no such numbers.

    `folders` are those of the runs whose tests a row has. For each metric of `names` there are the columns
    delta_test_<name>, its 95 % interval `..._low` and `..._high`, and `..._p`, adjusted for the number of rows that are
    compared (Holm 1979). Raises InputError where the first row has no whole test.
    """
    base, found, problems = [resample_test(folder) for folder in folders[0]], {}, []
    for number, row_folders in enumerate(folders[1:], start=1):
        try:
            found[number] = metrics.subtract_groups(base, [resample_test(folder) for folder in row_folders])
        except InputError as error:
            problems.append(str(error))
    added = {IS_REFERENCE: [number == 0 and bool(found) for number in range(len(rows))]}
    unknown = Difference(*[np.nan] * 4)
    for name in names:
        differences = [found[number][name] if number in found else unknown for number in range(len(rows))]
        columns = dict(zip(("", "_low", "_high", "_p"), np.array(differences).T, strict=True))
        columns["_p"] = metrics.adjust_holm(columns["_p"])
        added |= {f"{DIFFERENCE}{TEST}{name}{ending}": values for ending, values in columns.items()}
    compared = pd.concat([rows, pd.DataFrame(added, index=rows.index)], axis="columns")
    compared.attrs.update(rows.attrs)
    return compared, problems


def resample_test(folder: Path) -> Resampled:
    """The metrics of a run's test, and in resamples of its images, the same for all runs.

    Raises InputError where the run has no whole test of its checkpoint as it is, or its scores give other numbers.
    """
    test = test_results.read_test(folder)
    if test is None or test.stale:
        raise InputError(f"{folder} has no test{f' of its checkpoint: {test.stale}' if test else ''}")
    scores = test_results.read_test_scores(folder)
    resampled = metrics.resample(
        scores.probabilities,
        scores.targets,
        test.thresholds,
        num_samples=SAMPLES,
        min_labels=test.min_labels,
        max_labels=test.max_labels,
    )
    found, noted = resampled.value.overall["mAP"][0], test.metrics.get("mAP", np.nan)
    if abs(found - noted) > TOLERANCE:
        raise InputError(
            f"the scores in {folder} give mAP {found:.3f}, its numbers say {noted:.3f}: test the run again"
        )
    return resampled


def list_folders(rows: Frame, root: Path) -> list[list[Path]]:
    """For each row the folders of the runs whose tests it has."""
    return [[(root / name).with_suffix("") for name in names] for names in rows["test_checkpoints"]]


def require_tests(rows: Frame, root: Path, where: str) -> list[list[Path]]:
    """`list_folders(rows, root)`. Raises InputError, which begins with `where`, if no row has a test."""
    folders = list_folders(rows, root)
    if not any(folders):
        reasons = [explain_no_test(names, root) for names in rows["checkpoints"]]
        unlike = [f"row {row} {reason}" for row, reason in zip(rows["run"], reasons, strict=True) if reason != NO_TEST]
        raise InputError(f"{where}: {unlike[0] if unlike else f'no run here has a test: {HOW_TO_TEST}'}")
    return folders


def explain_no_test(checkpoints: Sequence[str], root: Path) -> str:
    """Why a row of the runs with these `checkpoints` has no test: none of them has, or they were not tested alike."""
    tests = [test_results.read_test((root / name).with_suffix("")) for name in checkpoints]
    tests = [test for test in tests if test and not test.stale]
    if len(tests) < 2:
        return NO_TEST
    words = [test_results.describe_difference(tests[0].ruler, test.ruler) for test in tests[1:]]
    how = next(filter(None, words), "other views, or another calibration")
    return f"is of several runs that were not tested alike ({how}): name one of them, or test all in one way"
