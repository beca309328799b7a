"""Whether a run is better than another: their tests, compared over the same images, and over seeds.

    rows, problems = add_differences(rows, folders, reference=0, names=["mAP"])     # columns delta_test_mAP, ..._low
    overall, classes = compare_tests(folders_a, folders_b)                          # of two runs, and class by class

What is compared are the scores that testing.py left with each run (evaluation/test_results.py): nothing is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import metrics
from evaluation import test_results
from evaluation.run_rows import TEST
from evaluation.tables import DIFFERENCE, SIGNIFICANCE, Frame
from metrics import Difference, Measured, Resampled
from utils import InputError

SAMPLES = 1000  # resamples of the test images
F1 = {"any": "f1_weighted", "one": "f1_macro"}  # by LABELS_PER_IMAGE: what best_f1 is
SAME_AS = {"accuracy": "exact_match"}  # with one label an image testing.py gives it this name, too


def choose_metrics(sort_by: str, labels_per_image: str) -> list[str]:
    """The names in `metrics.measure` of what is compared: what the table is sorted by, mAP and F1.

    >>> choose_metrics("test_CF1", "any")
    ['CF1', 'mAP', 'f1_weighted']
    """
    f1 = F1.get(labels_per_image, F1["any"])
    sorted_by = sort_by.removeprefix(TEST).removesuffix("_std")
    sorted_by = f1 if sorted_by == "best_f1" else SAME_AS.get(sorted_by, sorted_by)
    is_metric = sorted_by in _name_metrics()
    return [*dict.fromkeys([*([sorted_by] if is_metric else []), "mAP", f1])]


def _name_metrics() -> set[str]:
    return {*metrics.measure([[0.5]], [[1]], 0.5)} - {"num_classes_in_mAP"}


def add_differences(
    rows: Frame, folders: Sequence[Sequence[Path]], reference: int, names: Sequence[str]
) -> tuple[Frame, list[str]]:
    """`rows` with what each has more than the row number `reference`, and why some of them have no such numbers.

    `folders` are those of the runs whose tests a row has. For each metric of `names` there are the columns
    delta_test_<name>, its 95 % interval `..._low` and `..._high`, and `..._p`, adjusted for the number of rows that are
    compared (Holm 1979). Rows that were tested by another ruler than the reference have NaN. Raises InputError where
    the reference has no whole test.
    """
    rulers = rows["test_ruler"].tolist()
    base, found, problems = [resample_test(folder) for folder in folders[reference]], {}, []
    for number, row_folders in enumerate(folders):
        if number == reference or not row_folders or rulers[number] != rulers[reference]:
            continue
        try:
            found[number] = metrics.subtract_groups(base, [resample_test(folder) for folder in row_folders])
        except InputError as error:
            problems.append(str(error))
    added = {}
    for name in names:
        differences = [
            found[number][name] if number in found else Difference(*[np.nan] * 4) for number in range(len(rows))
        ]
        columns = dict(zip(("", "_low", "_high", "_p"), np.array(differences).T, strict=True))
        columns["_p"] = metrics.adjust_holm(columns["_p"])
        added |= {f"{DIFFERENCE}{TEST}{name}{ending}": values for ending, values in columns.items()}
    attrs = rows.attrs
    rows = pd.concat([rows, pd.DataFrame(added, index=rows.index)], axis="columns")
    rows.attrs.update(attrs)
    return rows, problems


def resample_test(folder: Path, keeps_classes: bool = False) -> Resampled:
    """The metrics of a run's test, and in resamples of its images, the same for all runs.

    Those of each class in resamples are dropped unless `keeps_classes`. Raises InputError where the run has no whole
    test of the checkpoint as it is.
    """
    test = test_results.read_test(folder)
    if test is None or test.stale:
        raise InputError(f"{folder} has no test" + (f" of its checkpoint: {test.stale}" if test else ""))
    scores = test_results.read_test_scores(folder)
    found = metrics.resample(
        scores.probabilities,
        scores.targets,
        test.thresholds,
        num_samples=SAMPLES,
        min_labels=test.min_labels,
        max_labels=test.max_labels,
    )
    return found if keeps_classes else found._replace(drawn=found.drawn._replace(by_class={}))


def find_mean_interval(tests: Sequence[Resampled], name: str) -> Difference:
    """The mean of a metric over seeds, and its 95 % interval over images and seeds: what it has more than nothing."""

    def clear(measured: Measured) -> Measured:
        return Measured({key: np.zeros_like(values) for key, values in measured.overall.items()}, {})

    nothing = Resampled(clear(tests[0].value), clear(tests[0].drawn), tests[0].tallies)
    return metrics.subtract_groups([nothing], tests)[name]


def compare_tests(folders_a: Sequence[Path], folders_b: Sequence[Path]) -> tuple[dict[str, Difference], Frame]:
    """What b has more than a: {metric: Difference}, and a frame with a row a class, the largest gain of AP first.

    Its columns: class, positives (of the test images), AP and F1 of a and b (means over seeds), delta_AP and delta_F1
    with their intervals and p, adjusted for the number of classes (Holm 1979). Raises InputError where a test is
    missing or the two are of different rulers.
    """
    rulers = []
    for folder in (*folders_a, *folders_b):
        test = test_results.read_test(folder)
        if test is None or test.stale:
            raise InputError(f"{folder} has no test" + (f" of its checkpoint: {test.stale}" if test else ""))
        rulers.append(test.ruler)
    for ruler in rulers[1:]:
        if ruler.fingerprint != rulers[0].fingerprint:
            words = test_results.describe_difference(rulers[0], ruler)
            raise InputError(f"the two were not tested by the same ruler: {words}")
    a, b = ([resample_test(folder, keeps_classes=True) for folder in folders] for folders in (folders_a, folders_b))
    classes = test_results.read_test_scores(folders_a[0]).classes
    columns = {"class": classes, "positives": a[0].tallies.positives[0].astype(int)}
    by_class = metrics.subtract_classes(a, b)
    for name in ("AP", "F1"):
        for letter, group in (("A", a), ("B", b)):
            columns[f"{name}_{letter}"] = np.mean([found.value.by_class[name][0] for found in group], axis=0)
        value, low, high, p = by_class[name]
        columns |= {f"{DIFFERENCE}{name}": value, f"{DIFFERENCE}{name}_low": low, f"{DIFFERENCE}{name}_high": high}
        columns[f"{DIFFERENCE}{name}_p"] = metrics.adjust_holm(p)
    frame = pd.DataFrame(columns).sort_values(f"{DIFFERENCE}AP", ascending=False, kind="stable", ignore_index=True)
    return metrics.subtract_groups(a, b), frame


def describe_classes(classes: Frame) -> str:
    """Which classes of `compare_tests` gained and lost AP, in a sentence, or that none is known to have."""
    is_found = classes[f"{DIFFERENCE}AP_p"] < SIGNIFICANCE
    gained = classes["class"][is_found & (classes[f"{DIFFERENCE}AP"] > 0)].tolist()
    lost = classes["class"][is_found & (classes[f"{DIFFERENCE}AP"] < 0)].tolist()[::-1]
    if not gained and not lost:
        smallest = classes[f"{DIFFERENCE}AP_p"].min()
        return f"no class's AP is distinguishable from unchanged (smallest corrected p {smallest:.2f})"
    return f"AP gained: {', '.join(gained) or 'none'}; lost: {', '.join(lost) or 'none'}"
