"""How good a model is on parts of the test images, and which differences between two parts are more than chance.

    rows = find_rows("camera", ["north", "south", "north", ...])    # a text an image
    (slicing,) = measure_slicings({"camera": rows}, probabilities, targets, thresholds)
    slicing.slices[0].measured["mAP"], slicing.gaps["mAP"]

A slice is the images with the same text: of a column of the data set's csv, or found in their paths by a pattern.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import metrics
import utils
from dataset import whole_files
from dataset.class_names import quote_names, show_names
from dataset.text_files import CsvFile
from evaluation.tables import guard_cell
from metrics import Difference, Measured, Resampled
from utils import InputError

MOST_SLICES = 50  # of one column or pattern: each is measured with resamples, and compared with each other
FEW_IMAGES = 30  # fewer say little, and that is said
NO_SLICE = "(none)"  # what is printed for images without a text
# Means over classes, in which a class that a slice lacks counts as 0: two slices differ by which classes they have
CLASS_MEANS = {f"{name}{ending}" for name in ("CP", "CR", "CF1") for ending in ("", f"_top{metrics.TOP}")} | {
    "f1_macro",
    "label_accuracy",
}


class Slice(NamedTuple):
    """The metrics on the images of one slice."""

    name: str  # the text that its images share; "" where they have none
    num_images: int
    num_positives: int  # labels that are present, of all classes
    measured: dict[str, float]  # as `metrics.measure`
    intervals: dict[str, tuple[float, float]]  # as `metrics.bootstrap`; none without resamples


class Gap(NamedTuple):
    """The largest difference between two slices that is more than chance."""

    lower: str  # the slice where the metric is lower
    higher: str
    difference: Difference  # of higher - lower
    num_classes: int  # that both have: mAP is over these


class Slicing(NamedTuple):
    """The slices of one column or pattern, by name."""

    name: str
    slices: list[Slice]
    gaps: dict[str, Gap | None]  # by metric; None where no difference is more than chance
    num_pairs: int  # of slices that were compared for each metric, by all columns and patterns


def find_fault(text: str) -> str:
    """What a text lacks to be a regular expression with one group, in words; "" where it is one."""
    try:
        groups = re.compile(text).groups
    except re.error as error:
        return str(error)
    if groups == 1:
        return ""
    return f"it has {groups} groups: those that only hold together are written (?:...)" if groups else "it has no group"


def find_in_paths(pattern: str, paths: Sequence[str]) -> list[str]:
    """What the group of `pattern` finds in each path, "" where it is not there. Raises InputError if it is nowhere.

    find_in_paths(r"/camera(\\d+)/", ["/data/camera12/1.jpg", "/data/other/2.jpg"])    # ["12", ""]
    """
    matches = [re.search(pattern, path) for path in paths]
    found = [(match[1] or "") if match else "" for match in matches]
    if not any(found):
        raise InputError(f"SLICES {pattern!r} finds nothing in any path, such as {paths[0]}")
    return found


def find_rows(name: str, slice_of: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """The rows of each slice of the slicing `name`, from the slice of each of N images: {slice: rows}.

    Numbers are in the order of people, 2 before 10; "", of images in no slice, is last. Raises InputError for more than
    MOST_SLICES slices.
    """
    counts = Counter(slice_of)
    if len(counts) > MOST_SLICES:
        raise InputError(
            f"SLICES {name!r} has {len(counts):,} values, such as {quote_names(sorted(counts), 3)}: {MOST_SLICES} are "
            "the most; choose another column, or a pattern that finds fewer"
        )
    texts = np.array(slice_of, dtype=object)
    return {text: np.flatnonzero(texts == text) for text in sorted(counts, key=_order)}


def measure_slicings(
    slicings: Mapping[str, Mapping[str, NDArray[np.intp]]],
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    num_samples: int = 1000,
    min_labels: int = 0,
    max_labels: int = 0,
) -> list[Slicing]:
    """Every metric on every slice, and the largest gap of each metric between two slices of a slicing.

    `slicings` are {name: {slice: its rows}}; probabilities and targets are (N, C). A slice's intervals are those of
    `metrics.bootstrap` over its images. Two slices have other images, so each is drawn by itself. The interval of their
    difference has the level 1 - .05 / (number of all pairs): with 95 % none of all these intervals, of one metric,
    leaves out its true difference (Bonferroni). `num_samples` 0: no intervals, and no gaps.

    mAP is compared over the classes that both slices have, and its interval reaches as far as the two differ in what AP
    counts too much (`Resampled.overcount`); means over classes (CLASS_MEANS) are not compared.
    """
    probabilities, targets = metrics.as_scores(probabilities, targets, at_least=1)
    num_pairs = sum(len(rows_of) * (len(rows_of) - 1) // 2 for rows_of in slicings.values())
    found = []
    for name, rows_of in slicings.items():
        slices, resampled = [], {}
        for number, (slice_name, rows) in enumerate(rows_of.items()):
            scores = probabilities[rows], targets[rows], thresholds
            if num_samples:  # with a seed of its own: chance is not to be the same in two slices
                resampled[slice_name] = metrics.resample(*scores, num_samples, number, min_labels, max_labels)
            slices.append(
                Slice(
                    name=slice_name,
                    num_images=len(rows),
                    num_positives=int(metrics.as_known(targets[rows])[0].sum()),
                    measured=metrics.measure(*scores, min_labels, max_labels),
                    intervals=metrics.find_intervals(resampled[slice_name])[0] if num_samples else {},
                )
            )
        found.append(Slicing(name, slices, _find_gaps(resampled, num_pairs), num_pairs))
    return found


def _order(text: str) -> tuple[bool, list[tuple[bool, int | str]]]:
    """By which slices are sorted: numbers by their size, "" last."""
    parts = [part for part in re.split(r"(\d+)", text) if part]
    return not text, [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts]


def _find_gaps(resampled: Mapping[str, Resampled], num_pairs: int) -> dict[str, Gap | None]:
    """The largest gap of each metric that is more than chance between two slices."""
    gaps: dict[str, Gap | None] = {}
    for first, second in combinations(resampled, 2):
        a, b, num_classes = _share_classes(resampled[first], resampled[second])
        for metric, difference in metrics.subtract(a, b, 1 - (1 - metrics.LEVEL) / num_pairs).items():
            if metric in CLASS_MEANS:
                continue
            if metric == "mAP" and num_classes:  # a slice with fewer positives counts them more often in their own AP
                shift = float(np.nanmean(b.overcount) - np.nanmean(a.overcount))
                difference = difference._replace(
                    low=difference.low - max(shift, 0), high=difference.high - min(shift, 0)
                )
            gap = Gap(first, second, difference, num_classes)
            if difference.value < 0:
                value, low, high, p = difference
                gap = Gap(second, first, Difference(-value, -high, -low, p), num_classes)
            largest = gaps.setdefault(metric, None)
            if gap.difference.low > 0 and (largest is None or gap.difference.value > largest.difference.value):
                gaps[metric] = gap
    return gaps


def _share_classes(a: Resampled, b: Resampled) -> tuple[Resampled, Resampled, int]:
    """Both with AP, and mAP, of the classes alone that both have, and the number of these."""
    in_both = ~np.isnan(a.value.by_class["AP"][0] + b.value.by_class["AP"][0])

    def choose(measured: Measured) -> Measured:
        ap = measured.by_class["AP"]
        mean = ap[:, in_both].mean(axis=1) if in_both.any() else np.full(len(ap), np.nan)
        by_class = {**measured.by_class, "AP": np.where(in_both, ap, np.nan)}
        return Measured({**measured.overall, "mAP": mean}, by_class)

    def choose_all(found: Resampled) -> Resampled:
        overcount = np.where(in_both, found.overcount, np.nan)
        return found._replace(value=choose(found.value), drawn=choose(found.drawn), overcount=overcount)

    a, b = choose_all(a), choose_all(b)
    return a, b, int(in_both.sum())


# ---- what is printed and written ----


def show_name(name: str) -> str:
    """The name of a slice as people read it."""
    return name or NO_SLICE


def describe(slicing: Slicing) -> list[str]:
    """What the numbers of a slicing say, in a sentence or a few."""
    few = [f"{show_name(part.name)} ({part.num_images})" for part in slicing.slices if part.num_images < FEW_IMAGES]
    without = [show_name(part.name) for part in slicing.slices if not part.num_positives]
    lines = []
    if len(slicing.slices) == 1:
        lines.append(f"all images are in one slice, {show_name(slicing.slices[0].name)}: there is nothing to compare")
    elif slicing.gaps:
        lines.append(_describe_gap(slicing))
    if few:
        lines.append(f"fewer than {FEW_IMAGES} images, which say little: {show_names(few)}")
    if without:
        lines.append(f"no label is present, so that mAP is undefined: {show_names(without)}")
    return lines


def _describe_gap(slicing: Slicing) -> str:
    """The largest honest gap of mAP, in a sentence."""
    pairs = "the one pair" if slicing.num_pairs == 1 else f"{slicing.num_pairs} pairs"
    gap = slicing.gaps.get("mAP")
    if gap is None:
        return f"no two slices surely differ in mAP, of {pairs} compared"
    value, low, high, _ = gap.difference
    classes = "the class" if gap.num_classes == 1 else f"the {gap.num_classes} classes"
    return (
        f"the largest gap: mAP is {value:.3f} lower on {show_name(gap.lower)} than on {show_name(gap.higher)}, over "
        f"{classes} that both have ({low:.3f} to {high:.3f}, 95 % for all of {pairs})"
    )


def print_slicings(slicings: Sequence[Slicing]) -> None:
    """Print a table of each slicing, and what it says."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text

    console = utils.make_console()
    for slicing in slicings:
        grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
        grid.add_column(Text(utils.make_visible(slicing.name)), overflow="fold")
        for name in ("images", "labels", "mAP", "f1_weighted"):
            grid.add_column(name, justify="right", no_wrap=True)
        for part in slicing.slices:
            cells = [_format(part, name) for name in ("mAP", "f1_weighted")]
            name = Text(utils.make_visible(show_name(part.name)))
            grid.add_row(name, f"{part.num_images:,}", f"{part.num_positives:,}", *cells)
        console.print()
        console.print(grid)
        utils.say(*describe(slicing))


def _format(part: Slice, metric: str) -> str:
    """A metric and its interval: "0.612 (0.553 to 0.668)"."""
    if np.isnan(part.measured[metric]):
        return "undefined"
    if not part.intervals:
        return f"{part.measured[metric]:.3f}"
    low, high = part.intervals[metric]
    return f"{part.measured[metric]:.3f} ({low:.3f} to {high:.3f})"


def to_dict(slicings: Sequence[Slicing]) -> dict[str, Any]:
    """What evaluate_result.json has of the slicings, by name. Undefined numbers are None, as in JSON."""
    return {
        slicing.name: {
            "slices": {
                part.name: {
                    "num_images": part.num_images,
                    "num_positives": part.num_positives,
                    "metrics": {name: _null_if_nan(value) for name, value in part.measured.items()},
                    "intervals": {name: [*map(_null_if_nan, ends)] for name, ends in part.intervals.items()},
                }
                for part in slicing.slices
            },
            "num_pairs": slicing.num_pairs,
            "largest_gaps": {
                metric: gap
                and {
                    "lower": gap.lower,
                    "higher": gap.higher,
                    "difference": gap.difference.value,
                    "interval": [gap.difference.low, gap.difference.high],
                    "num_classes": gap.num_classes,
                }
                for metric, gap in slicing.gaps.items()
            },
            "says": describe(slicing),
        }
        for slicing in slicings
    }


def save_csv(path: Path, slicings: Sequence[Slicing]) -> None:
    """Write a line a slice with every metric and its interval; undefined is empty. It is for people (`guard_cell`)."""
    names = list(slicings[0].slices[0].measured)
    with_interval = slicings[0].slices[0].intervals
    header = [
        column
        for name in names
        for column in (name, f"{name}_low", f"{name}_high")[: 3 if name in with_interval else 1]
    ]

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(CsvFile(file))
            writer.writerow(["slicing", "slice", "images", "labels", *header])
            for slicing in slicings:
                for part in slicing.slices:
                    numbers = [
                        number for name in names for number in (part.measured[name], *part.intervals.get(name, ()))
                    ]
                    cells = ["" if np.isnan(number) else f"{number:.6g}" for number in numbers]
                    texts = guard_cell(slicing.name), guard_cell(show_name(part.name))
                    writer.writerow([*texts, part.num_images, part.num_positives, *cells])

    whole_files.write_atomically(path, write)


def _null_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value
