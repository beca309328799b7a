"""Divides a table into two with the same share of each label; whole sources stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group

from dataset.table import Table
from utils import InputError

EPSILON = 1e-9  # differences below are rounding, which other processors do otherwise
MAX_SWAPS = 100  # a handful is the rule


def split_table(table: Table, share: float, seed: int, groups: Sequence[str] | None = None) -> tuple[Table, Table]:
    """(rest, part): `part` has `share` of the images and of each label's positives; the same for the same seed.

    Images of one of `groups` (those of the table where it has any; "" is none) stay together. Without groups the
    number of images is exact; with them it comes after the labels. Raises InputError for a side of fewer than 2.
    """
    none = np.zeros(0, dtype=bool)
    chosen = choose_rows(table.targets, share, seed, groups or table.groups) if len(table) else none
    rest, part = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    if min(len(rest), len(part)) < 2:
        raise InputError(
            f"a share of {share:g} of {len(table)} images (VAL_SPLIT, or a percentage of split) leaves {len(part)} on "
            f"one side and {len(rest)} on the other: each needs at least 2"
        )
    return table.select(rest), table.select(part)


def choose_rows(
    targets: NDArray[np.int8], share: float, seed: int, groups: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """Which rows of `targets` (N, C) are in the part, (N,)."""
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
    owed = np.zeros(len(totals))  # images of each stratum that the part lacks; below 0: has too many
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
        """The unit whose move into the part, or out of it, adds least to the distance, and what it adds."""
        added = (squares + (-2 if into else 2) * np.einsum("uk,k->u", counts, owed * weights)).round(9)
        added[(chosen == into) | ~allowed] = np.inf
        unit = added.argmin()
        return unit, added[unit]

    squares = np.einsum("uk,uk,k->u", counts, counts, weights)
    surplus = int(sizes[chosen].sum()) - round(share * len(strata))
    while surplus:
        unit, added = find_move(surplus < 0, sizes <= abs(surplus))
        if np.isinf(added):  # what remains is a group, and too large
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
    """(N, K): what is to be shared out evenly. The last column is every image.

    An unknown label is neither present nor absent, so a class that has any is balanced in both.
    """
    present, unknown = targets == 1, targets < 0
    absent = (targets == 0)[:, unknown.any(axis=0)]
    return np.column_stack([present, absent, ~(present | unknown).any(axis=1), np.ones(len(targets), dtype=bool)])


def number_groups(groups: Sequence[str]) -> NDArray[np.intp]:
    """0, 1, ... for each row's group, (N,); a row without one ("") is a group of its own."""
    names = np.array(groups)
    alone = names == ""
    _, numbers = np.unique(names, return_inverse=True)
    numbers[alone] = len(names) + np.arange(alone.sum())
    return np.unique(numbers, return_inverse=True)[1]


class Deviation(NamedTuple):
    """How many positives of a class a part has, and how many its share of the images would make."""

    part: str
    name: str
    found: int
    expected: float

    def __str__(self) -> str:
        percent = 100 * (self.found / self.expected - 1) if self.expected else 0.0
        return f"{self.name} in {self.part}: {self.found} instead of {self.expected:.1f} ({percent:+.1f} %)"


def measure_deviations(parts: Mapping[str, Table]) -> list[Deviation]:
    """The deviation of each class in each part, the most surprising (difference / sqrt(expected)) first."""
    positives = {part: (table.targets == 1).sum(axis=0) for part, table in parts.items()}
    totals, num_images = np.sum(list(positives.values()), axis=0), sum(map(len, parts.values()))
    deviations = [
        Deviation(part, name, int(found), float(total * len(table) / num_images))
        for part, table in parts.items()
        for name, found, total in zip(table.classes, positives[part], totals, strict=True)
    ]
    return sorted(deviations, key=lambda d: -abs(d.found - d.expected) / max(d.expected, EPSILON) ** 0.5)


def describe_split(parts: Mapping[str, Table]) -> Group:
    """What to print: positives of each class in each part, and the largest deviation."""
    from rich.console import Group
    from rich.table import Table as Grid

    grid = Grid("images that show", *parts)
    tables = list(parts.values())
    for index, name in enumerate(tables[0].classes):
        grid.add_row(name, *(str((table.targets[:, index] == 1).sum()) for table in tables))
    grid.add_row("none of these", *(str((~(table.targets == 1).any(axis=1)).sum()) for table in tables))
    grid.add_section()
    grid.add_row("images", *(str(len(table)) for table in tables))
    for column in grid.columns[1:]:
        column.justify = "right"
    return Group(grid, f"largest deviation: {measure_deviations(parts)[0]}")
