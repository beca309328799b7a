"""A table in parts whose label distributions agree: VAL_SPLIT of training.py, and `dataset_tools.py split`.

    train, val = split_table(table, 0.1, seed=0)        # stratified over all labels at once, whole groups
    Console().print(describe_split({"train": train, "val": val}))

Images are shared out from those with the rarest label to those with the commonest, as in iterative stratification
(Sechidis et al. 2011), but all labels of an image have a say: it goes where it leaves the smaller chi-square distance
between the labels of the part and its share of those seen so far. Swaps then take what distance they can.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset_files import make_absolute, name_backup
from dataset_formats import FORMATS, ReadOptions, list_coco_json_files, list_csv_files
from dataset_shards import list_shards, name_index, split_member
from dataset_table import Table, drop_repeats, join_tables
from utils import InputError

if TYPE_CHECKING:
    from rich.console import Group

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


# ---- the verb ----


def split(
    root: str | Path,
    format: str,
    percents: Mapping[str, int],
    seed: int,
    *,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
) -> None:
    """Divide the images of the data set in `root` anew, and print the labels of each part.

    `percents` are those of "train", "val" and "test"; with 0 for test, a test split that is there stays as it is.
    Replaced lists are kept as `.bak`. Where a format has each split's images in a folder of its own, the new folders
    hold links to the same files, and the old ones are kept, too. Raises InputError.
    """
    from rich.console import Console

    from dataset_readers import read_dataset, recognise_format  # torch, which the rest of this file does not need

    if min(percents.values()) < 0 or sum(percents.values()) != 100 or not percents["train"]:
        shown = ", ".join(f"{name.upper()}_PERCENT {percent}" for name, percent in percents.items())
        raise InputError(f"{shown}: make them 0 or more, that of train above 0, and 100 together")
    root = make_absolute(root)
    format = recognise_format(root) if format == "auto" else format
    old = {
        name: read_dataset(root, format, name, classes=classes, group_pattern=group_pattern, options=options)
        for name in FORMATS[format].list_splits(root)
    }
    kept = {"test": old.pop("test")} if "test" in old and not percents["test"] else {}
    if not old:
        raise InputError(f"{root} has a test split only, which TEST_PERCENT 0 leaves as it is: nothing to split")
    rest, parts, remaining = drop_repeats(join_tables(list(old.values()))), {}, 100
    for name in ("test", "val"):
        if percents[name]:
            rest, parts[name] = split_table(rest, percents[name] / remaining, seed)
            remaining -= percents[name]
    parts = {"train": rest, **{name: parts[name] for name in ("val", "test") if name in parts}}
    if format != "csv":
        kept = {}  # stays where it is; only a csv may have all splits in one file
    backups = replace_splits(root, format, old | kept, parts | kept)
    Console().print(describe_split(parts))
    print(f"replaced, and kept: {', '.join(backups)}")


def replace_splits(root: Path, format: str, old: Mapping[str, Table], new: Mapping[str, Table]) -> list[str]:
    """Put the splits `new` in the place of `old`, after everything is written; the names of what is kept of these."""
    staging = root / ".split.tmp"
    writer, images_folder = FORMATS[format], FORMATS[format].images_folder
    old_split = {path: name for name, table in old.items() for path in table.paths}
    if writer.in_shards and (elsewhere := [name for name, url in list_shards(root).items() if url]):
        raise InputError(f"{root}: {elsewhere[0]} lies elsewhere, as shards.txt says: split needs it here")

    def folder_of(path: str) -> Path:
        member = split_member(path)
        return Path(member[0].path) if member else root / images_folder(old_split[path])

    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name, table in new.items():
            if format not in OWN_FOLDERS:
                names = [os.path.relpath(path, root / images_folder(name)) for path in table.paths]
            else:
                names = name_images(table.paths, old_split, folder_of)
                if writer.in_shards:
                    names = writer.name_images(table, writer.shorten_names(table, names))
                else:
                    for path, image_name in zip(table.paths, names, strict=True):
                        link(path, staging / images_folder(name) / image_name)
            writer.write(table, staging, name, names)
        backups = []
        for name in old:
            for path in filter(Path.exists, LISTS[format](root, name)):
                backups.append(path.rename(name_backup(path)).relative_to(root).as_posix())
        for name in new:
            for path in LISTS[format](staging, name):
                target = root / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        for path in staging.glob("*"):  # class names, and folders that a format wants to see
            if not (root / path.name).exists():
                path.rename(root / path.name)
    except OSError as error:
        raise InputError(f"cannot write the split of {root}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return backups


def name_images(paths: Sequence[str], split_of: Mapping[str, str], folder_of: Callable[[str], Path]) -> list[str]:
    """Paths within a split's folder; images of two old splits that would have the same get the splits' names."""
    names = [Path(path).relative_to(folder_of(path)) for path in paths]
    counts = Counter(name.with_suffix("") for name in names)
    return [
        (name.with_name(f"{split_of[path]}_{name.name}") if counts[name.with_suffix("")] > 1 else name).as_posix()
        for path, name in zip(paths, names, strict=True)
    ]


def link(path: str, target: Path) -> None:
    """The same file under another name; a copy where the disk has no such links (a symbolic one would lose its aim)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


OWN_FOLDERS = (
    "coco_cls",
    "image_folder",
    "webdataset",
)  # formats in which the folder of an image says which split it is in
LISTS: dict[str, Callable[[Path, str], list[Path]]] = {  # what makes a split, in each format
    "coco_cls": lambda root, split: [root / "images" / f"{split}-resized", root / "labels" / split],
    "train_list": lambda root, split: [root / f"{split}_list.txt"],
    "mlcls": lambda root, split: [root / f"{split}.txt"],
    "image_folder": lambda root, split: [root / split],
    "classes_json": lambda root, split: [root / f"{split}.json"],
    "coco_json": lambda root, split: list_coco_json_files(root / "annotations", split),
    "csv": lambda root, split: list_csv_files(root).get(split, []),
    "webdataset": lambda root, split: [
        *(root / name for name in list_shards(root) if name.startswith(f"{split}-")),
        name_index(root, split),
    ],
}
