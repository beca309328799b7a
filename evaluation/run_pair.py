"""Two runs beside each other: the constants in which they differ, their metrics, what each class gained and lost.

    print_pair(pair, constants=["HEAD"], root=Path("trained_models"), mode="--csv")

`pair` is two rows of the table of runs (evaluation/run_rows.py), A and B. A row of several seeds stands for their mean.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import metrics
from dataset.frames import pd
from evaluation import tables, test_results
from evaluation.pages import count
from evaluation.run_comparison import describe_seeds, explain_no_test, list_folders, resample_test
from evaluation.tables import DIFFERENCE, MARK, SIGNIFICANCE, Frame, Layout
from metrics import Resampled
from utils import InputError, say

SHOWN = ("mAP", "f1_weighted", "f1_macro", "CF1", "OF1", "exact_match", "hamming_loss")  # metrics; f1_micro is OF1
MAX_CLASSES = 40  # where people read; --csv has all classes
MAX_NAMES = 12  # of classes in a sentence
ENDINGS = ("", "_low", "_high", "_p")  # of the columns of a difference


def print_pair(pair: Frame, constants: Sequence[str], root: Path, mode: str = "") -> None:
    """Print the `constants` of the rows A and B, then their metrics and classes, B - A.

    `mode` is a key of tables.PRINTERS, or "" for text; --csv prints the classes alone. Raises InputError where one has
    no test, or they were tested by different rulers; the constants are printed before.
    """
    show = tables.PRINTERS.get(mode, tables.print_text)
    people = mode != "--csv"
    stream = sys.stderr if mode else None
    named = zip("AB", pair.to_dict("records"), strict=True)
    say(*(f"{letter}: {describe_row(row)}" for letter, row in named), stream=stream)
    if not constants:
        say("no constant differs", stream=stream)
    elif people:
        texts = {
            letter: [tables.format_value(pair[name].iloc[n]) for name in constants] for n, letter in enumerate("AB")
        }
        say("")
        show(pd.DataFrame({"constant": constants, **texts}))
    folders = list_folders(pair, root)
    for letter, of_letter, names in zip("AB", folders, pair["checkpoints"], strict=True):
        if not of_letter:
            raise InputError(f"--diff: no metrics can be compared: {letter} {explain_no_test(names, root)}")
    names = require_one_ruler([*folders[0], *folders[1]])
    a, b = ([resample_test(folder) for folder in of_letter] for of_letter in folders)
    overall, classes = compare_metrics(a, b), compare_classes(a, b, names)
    legend = describe_classes(classes, [len(a), len(b)])
    if people:
        say("")
        show(overall)
        say("")
        show(shorten(classes), layout=Layout(legend=legend))
    else:
        show(classes)
        say(*legend, stream=sys.stderr)


def describe_row(row: Mapping[str, Any]) -> str:
    """Which run a row is of, or which runs."""
    names = row["checkpoints"]
    if len(names) == 1:
        return names[0]
    return (
        f"{row['run']}, the mean of {len(names)} runs: {', '.join(tables.name_run(Path(name).stem) for name in names)}"
    )


# ---- numbers ----


def require_one_ruler(folders: Sequence[Path]) -> tuple[str, ...]:
    """The classes of the tests in the `folders` of runs. Raises InputError where they have different rulers."""
    tests = [test_results.read_test(folder) for folder in folders]
    rulers = [test.ruler for test in tests if test]
    for ruler in rulers[1:]:
        if ruler.fingerprint != rulers[0].fingerprint:
            words = test_results.describe_difference(rulers[0], ruler)
            raise InputError(f"--diff: the two cannot be compared: {words}; test both on the same images")
    return test_results.read_test_scores(folders[0]).classes


def compare_metrics(a: Sequence[Resampled], b: Sequence[Resampled]) -> Frame:
    """A row for each metric of SHOWN: metric, A and B (means over seeds), and delta_value, B - A, with its interval."""
    rows = []
    for name, difference in metrics.subtract_groups(a, b).items():
        if name in SHOWN:
            means = [np.mean([found.value.overall[name][0] for found in tests]) for tests in (a, b)]
            columns = dict(zip((f"{DIFFERENCE}value{ending}" for ending in ENDINGS), difference, strict=True))
            rows.append({"metric": name, "A": means[0], "B": means[1], **columns})
    return pd.DataFrame(rows).sort_values("metric", key=lambda names: names.map(SHOWN.index), ignore_index=True)


def compare_classes(a: Sequence[Resampled], b: Sequence[Resampled], classes: Sequence[str]) -> Frame:
    """A row for each class, the largest gain of AP first, the largest loss last, those without a positive at the end.

    Columns: class, positives (of the test images), AP and F1 of A and of B (means over seeds), delta_AP and delta_F1
    with their intervals and p, adjusted for the number of classes (Holm 1979).
    """
    columns: dict[str, Any] = {"class": classes, "positives": a[0].tallies.positives[0].astype(int)}
    differences = metrics.subtract_classes(a, b)
    for name in ("AP", "F1"):
        for letter, tests in zip("AB", (a, b), strict=True):
            columns[f"{name}_{letter}"] = np.mean([found.value.by_class[name][0] for found in tests], axis=0)
        difference = differences[name]._replace(p=metrics.adjust_holm(differences[name].p))
        columns |= dict(zip((f"{DIFFERENCE}{name}{ending}" for ending in ENDINGS), difference, strict=True))
    return pd.DataFrame(columns).sort_values(f"{DIFFERENCE}AP", ascending=False, kind="stable", ignore_index=True)


def shorten(classes: Frame, length: int = MAX_CLASSES) -> Frame:
    """At most `length` rows of `compare_classes`, in its order: the distinguishable ones, then the largest changes."""
    if len(classes) <= length:
        return classes
    weight = classes[f"{DIFFERENCE}AP"].abs().fillna(-1) + 2 * (classes[f"{DIFFERENCE}AP_p"] < SIGNIFICANCE)
    return classes.loc[sorted(weight.nlargest(length).index)].reset_index(drop=True)


def join_names(names: Iterable[str]) -> str:
    """At most MAX_NAMES of them, in a line."""
    listed = [*names]
    more = f" and {len(listed) - MAX_NAMES} more" if len(listed) > MAX_NAMES else ""
    return f"{', '.join(listed[:MAX_NAMES])}{more}" or "none"


def describe_classes(classes: Frame, num_tests: Sequence[int]) -> list[str]:
    """Which classes gained and lost AP, or that none is known to have; and what the differences are.

    `num_tests` are the tests of A and of B.
    """
    p, change = classes[f"{DIFFERENCE}AP_p"], classes[f"{DIFFERENCE}AP"]
    is_found = p < SIGNIFICANCE
    gained, lost = classes["class"][is_found & (change > 0)], classes["class"][is_found & (change < 0)][::-1]
    line = f"AP gained: {join_names(gained)}; lost: {join_names(lost)}"
    if not is_found.any():
        smallest = f"smallest corrected p {p.min():.2f}" if p.notna().any() else "too few positives for a p"
        line = f"of no class is AP distinguishable from unchanged ({smallest})"
    left_out = (
        f"; {MAX_CLASSES} of {len(classes)} classes are shown, --csv has all" if len(classes) > MAX_CLASSES else ""
    )
    times = count(int(p.notna().sum()), "comparison")
    return [
        f"{line}{left_out}",
        f"Δ: B - A on the same test images; [95 % interval], paired over images{describe_seeds(num_tests)}",
        f"{MARK}: p is .05 or more; of the classes after Holm's correction for {times}",
    ]
