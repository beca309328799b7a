"""Divides a table into two, or more, with the same share of each label; whole sources stay together.

    train, val = split_table(table, 0.1, seed=0)
    part_of = divide_rows(table.targets, 5, seed=0)      # (N,) 0 to 4
    make_console().print(describe_split({"train": train, "val": val}))

Images are shared out as in iterative stratification (Sechidis et al. 2011), those with the rarest label first. But all
labels of an image decide, not the rarest alone: it is chosen where that makes the chi-square distance smaller, which
lies between the labels of the images chosen so far and the share of all labels seen so far. Swaps of single images then
reduce the distance further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table as Grid

from dataset.table import Table
from utils import InputError

EPSILON = 1e-9  # smaller differences come from rounding, which is not the same on all processors
MAX_SWAPS = 100  # a handful is usual
MAX_CLASSES = 100  # that are printed, those with the most positives


def split_table(table: Table, share: float, seed: int, groups: Sequence[str] | None = None) -> tuple[Table, Table]:
    """(rest, chosen): `chosen` has `share` of the images and of each label's positives; the same for the same seed.

    Images of one group stay together; `groups` are those of the table unless they are given, "" is no group. Without
    groups the number of images is exact; with groups the labels matter more. Raises InputError where a side would have
    fewer than 2 images.
    """
    none = np.zeros(0, dtype=bool)
    is_chosen = choose_rows(table.targets, share, seed, groups or table.groups) if len(table) else none
    rest, chosen = np.flatnonzero(~is_chosen), np.flatnonzero(is_chosen)
    if min(len(rest), len(chosen)) < 2:
        raise InputError(
            f"a share of {share:g} of {len(table)} images (VAL_SPLIT, or a percentage of split) leaves {len(chosen)} "
            f"on one side and {len(rest)} on the other: each needs at least 2"
        )
    return table.select(rest), table.select(chosen)


def divide_rows(
    targets: NDArray[np.int8], parts: int, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.intp]:
    """(N,) which of so many equal parts, 0, 1, ..., each row of `targets` (N, C) falls in; the same for the same seed.

    Each part has its share of each label's positives. Rows of one group stay together, "" is no group.
    """
    part_of = np.full(len(targets), parts - 1)
    rest = np.arange(len(targets))
    for part in range(parts - 1):
        groups_of_rest = [groups[row] for row in rest] if groups else None
        is_chosen = choose_rows(targets[rest], 1 / (parts - part), seed, groups_of_rest)
        part_of[rest[is_chosen]] = part
        rest = rest[~is_chosen]
        if not len(rest):  # a group holds what was left
            break
    return part_of


def choose_rows(
    targets: NDArray[np.int8], share: float, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """(N,) bool: which rows of `targets` (N, C) are chosen. A unit is a group, or an image without one."""
    strata = make_strata(targets)
    totals = strata.sum(axis=0)
    unit_of, counts = np.arange(len(strata)), strata.astype(np.float32)
    if groups:
        unit_of = number_groups(groups)
        rows = np.argsort(unit_of, kind="stable")
        counts = np.add.reduceat(counts[rows], np.flatnonzero(np.diff(unit_of[rows], prepend=-1)), axis=0)
    sizes = counts[:, -1]
    rarest = np.where(counts > 0, totals, len(strata) + 1).min(axis=1)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.lexsort((-sizes[order], rarest[order]))]  # within a label, large groups before small ones
    counts, sizes = counts[order], sizes[order]

    weights = 1 / np.maximum(totals, 1)
    owed = np.zeros(len(totals))  # images of each stratum that are still to be chosen; below 0: too many are
    chosen = np.zeros(len(counts), dtype=bool)
    for unit, row in enumerate(counts):
        owed += np.float64(share) * row
        if (row * weights) @ (2 * owed - row) > EPSILON:  # the distance, sum of owed ** 2 / total, falls
            owed -= row
            chosen[unit] = True

    def move(unit: np.intp) -> None:
        owed[:] += counts[unit] if chosen[unit] else -counts[unit]
        chosen[unit] = not chosen[unit]

    def find_move(into: bool, allowed: NDArray[np.bool_]) -> tuple[np.intp, float]:
        """The unit whose move adds least to the distance, and what it adds; `into` the chosen ones, or out of them."""
        added = (squares + (-2 if into else 2) * np.einsum("uk,k->u", counts, owed * weights)).round(9)
        added[(chosen == into) | ~allowed] = np.inf
        unit = added.argmin()
        return unit, added[unit]

    squares = np.einsum("uk,uk,k->u", counts, counts, weights)
    surplus = int(sizes[chosen].sum()) - round(share * len(strata))
    while surplus:
        unit, added = find_move(surplus < 0, sizes <= abs(surplus))
        if np.isinf(added):  # only groups that are too large remain
            break
        surplus += int(sizes[unit] if surplus < 0 else -sizes[unit])
        move(unit)
    for _ in range(MAX_SWAPS):
        leaving, saved = find_move(False, sizes > 0)
        move(leaving)
        entering, added = find_move(True, sizes == sizes[leaving])
        if saved + added > -EPSILON:
            move(leaving)
            break
        move(entering)
    return chosen[np.argsort(order)[unit_of]]


def make_strata(targets: NDArray[np.int8]) -> NDArray[np.bool_]:
    """(N, K) bool: which images are in each of the K sets that are to be shared out evenly.

    These are the images with each class, those without any class, and last all images. A class with unknown labels
    also has the set of images that certainly lack it, since unknown is neither present nor absent.
    """
    present, unknown = targets == 1, targets < 0
    absent = (targets == 0)[:, unknown.any(axis=0)]
    return np.column_stack([present, absent, ~(present | unknown).any(axis=1), np.ones(len(targets), dtype=bool)])


def number_groups(groups: Sequence[str]) -> NDArray[np.intp]:
    """(N,) the number of each row's group: 0, 1, ...; a row without a group ("") gets a number that no other has."""
    names = np.array(groups)
    alone = names == ""
    _, numbers = np.unique(names, return_inverse=True)
    numbers[alone] = len(names) + np.arange(alone.sum())
    return np.unique(numbers, return_inverse=True)[1]


class Deviation(NamedTuple):
    """How many positives of a class a split has, and how many are expected of its share of the images."""

    split: str
    name: str
    found: int
    expected: float

    def __str__(self) -> str:
        percent = 100 * (self.found / self.expected - 1) if self.expected else 0.0
        return f"{self.name} in {self.split}: {self.found} instead of {self.expected:.1f} ({percent:+.1f} %)"


def measure_deviations(splits: Mapping[str, Table]) -> list[Deviation]:
    """The deviation of each class in each split, the most surprising (difference / sqrt(expected)) first."""
    positives = {split: (table.targets == 1).sum(axis=0) for split, table in splits.items()}
    totals, num_images = np.sum(list(positives.values()), axis=0), sum(map(len, splits.values()))
    deviations = [
        Deviation(split, name, int(found), float(total * len(table) / num_images))
        for split, table in splits.items()
        for name, found, total in zip(table.classes, positives[split], totals, strict=True)
    ]
    return sorted(deviations, key=lambda d: -abs(d.found - d.expected) / max(d.expected, EPSILON) ** 0.5)


def describe_split(splits: Mapping[str, Table]) -> Group:
    """What to print of {split: table}: the positives of each class in each split, and the largest deviation.

    Of more than MAX_CLASSES classes, those with the most positives.
    """
    grid = Grid("images that show", *splits)
    tables = list(splits.values())
    classes = tables[0].classes
    counts = [(table.targets == 1).sum(axis=0) for table in tables]
    for index in np.sort(np.argsort(-np.sum(counts, axis=0), kind="stable")[:MAX_CLASSES]).tolist():
        grid.add_row(classes[index], *(str(positives[index]) for positives in counts))
    if len(classes) > MAX_CLASSES:
        grid.add_row(f"({len(classes) - MAX_CLASSES:,} rarer classes)", *("" for _ in tables))
    grid.add_row("none of these", *(str((~(table.targets == 1).any(axis=1)).sum()) for table in tables))
    grid.add_section()
    grid.add_row("images", *(str(len(table)) for table in tables))
    for column in grid.columns[1:]:
        column.justify = "right"
    return Group(grid, f"largest deviation: {measure_deviations(splits)[0]}")
