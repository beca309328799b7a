"""What every annotation format is read into: a table. Tables are joined, and mapped to other orders of classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dataset.class_names import show_names
from dataset.text_files import measure_memory
from utils import InputError

SPLITS = ("train", "val", "test")


def require_room(num_images: int, num_classes: int) -> None:
    """Raise InputError where the labels of so many images, a byte each, would take half of the machine's memory."""
    if 2 * num_images * num_classes > measure_memory():
        raise InputError(
            f"{num_images:,} images of {num_classes:,} classes: their labels do not fit into the memory of this machine"
        )


@dataclass(frozen=True)
class Table:
    """A data set: file paths, an (N, C) int8 matrix (1 present, 0 absent, -1 unknown), C class names.

    `groups` name each image's source, "" where it is not known; None where no image has one. Images of one source
    belong into one split.
    """

    paths: list[str]
    targets: NDArray[np.int8]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Sequence[int] | NDArray[np.intp]) -> Table:
        """The rows `indices`, in that order."""
        groups = None if self.groups is None else tuple(self.groups[i] for i in indices)
        return Table([self.paths[i] for i in indices], self.targets[np.asarray(indices, int)], self.classes, groups)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any class, file name, label or group, but not with the folder."""
        text = "\n".join([*self.classes, "", *map(os.path.basename, self.paths), *(self.groups or ())])
        digest = hashlib.sha256(text.encode(errors="surrogateescape"))
        digest.update(np.ascontiguousarray(self.targets).tobytes())
        return digest.hexdigest()[:16]


def join_tables(tables: Sequence[Table]) -> Table:
    """The rows of all tables, with the first one's order of classes. Raises InputError when the names differ."""
    first = tables[0]
    if len(tables) == 1:
        return first
    mapped = [first]
    for table in tables[1:]:
        mapped.append(map_classes(table, first.classes, f"beside {table.paths[0]}", f"beside {first.paths[0]}"))
    groups = None
    if any(table.groups is not None for table in tables):
        groups = tuple(name for table in tables for name in (table.groups or [""] * len(table)))
    paths = [path for table in tables for path in table.paths]
    return Table(paths, np.concatenate([table.targets for table in mapped]), first.classes, groups)


def drop_no_label(table: Table, names: Collection[str]) -> Table:
    """`table` without the classes of these `names`, which say that an image has no label: "none", "No Finding".

    Of an image with such a label, all classes are absent. Raises InputError for one with another label, too.
    """
    columns = [column for column, name in enumerate(table.classes) if name in names]
    if not columns:
        return table
    says_none = (table.targets[:, columns] == 1).any(axis=1)
    targets = np.delete(table.targets, columns, axis=1)
    both = np.flatnonzero(says_none & (targets == 1).any(axis=1))
    classes = tuple(np.delete(np.array(table.classes, dtype=object), columns))
    if len(both):
        present = [table.classes[column] for column in np.flatnonzero(table.targets[both[0]] == 1)]
        raise InputError(
            f"{table.paths[both[0]]} is {show_names(present)}, of which NO_LABEL_NAMES says that one means no label: "
            f"correct its labels, or take the name out ({len(both):,} such images)"
        )
    if not classes:
        raise InputError(f"NO_LABEL_NAMES names all {len(columns)} classes: none is left")
    targets[says_none] = 0
    return replace(table, targets=targets, classes=classes)


def drop_repeats(table: Table) -> Table:
    """Each image once. Raises InputError for one that stands twice with different labels."""
    row_of: dict[str, int] = {}
    for row, path in enumerate(table.paths):
        first = row_of.setdefault(path, row)
        if (table.targets[first] != table.targets[row]).any():
            raise InputError(f"{path} stands twice, in two splits or folders, with different labels: remove one")
    return table.select(list(row_of.values()))


def map_classes(
    table: Table, classes: Sequence[str], whose: str = "of the data set", expected: str = "of the model"
) -> Table:
    """`table` with its columns in the order of `classes`, which name the same classes.

    Raises InputError with the names that only one side has; `whose` are those of the table, `expected` is whose
    `classes` are.
    """
    if table.classes == tuple(classes):
        return table
    only_table = [name for name in table.classes if name not in set(classes)]
    only_expected = [name for name in classes if name not in set(table.classes)]
    differences = [
        f"only {side}: {show_names(names)}" for side, names in ((whose, only_table), (expected, only_expected)) if names
    ]
    if differences:
        raise InputError(
            f"the {len(table.classes)} classes {whose} and the {len(classes)} {expected} differ; "
            f"{'; '.join(differences)}"
        )
    column_of = {name: column for column, name in enumerate(table.classes)}
    order = [column_of[name] for name in classes]
    return replace(table, targets=np.ascontiguousarray(table.targets[:, order]), classes=tuple(classes))
