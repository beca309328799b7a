"""The files of a folder that another tool has exported, by split."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dataset.class_names import show_names
from dataset.splits import find_folders, find_split, sort_files
from dataset.table import SPLITS
from utils import warn

ENDINGS = (".json", ".csv", ".xml")
SETTLED_NS = 2_000_000_000  # since the last change of a folder: a newer one may change again within the same tick
MOST_NAMED = 3
MOST_FILES = 20  # of one kind in a folder: with more, they are one an image, which is another format


def find_exports(root: Path, endings: tuple[str, ...], is_export: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """{split: files}: those in folders that are called like a split, else those in `root` whose names say a split.

    A file counts that has one of the `endings` and is an export. Where nothing says a split, all is training data.
    Example: `train/labels.json`, or `via_train.json`.
    """
    in_folders = {
        split: [file for folder in folders for file in _list_files(folder, endings, is_export)]
        for split, folders in find_folders(root).items()
    }
    if any(in_folders.values()):
        return {split: in_folders[split] for split in SPLITS if in_folders[split]}
    return sort_files(_list_files(root, endings, is_export))


def _list_files(folder: Path, endings: tuple[str, ...], is_export: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        return []
    changed = folder.stat().st_mtime_ns
    is_settled = time.time_ns() - changed > SETTLED_NS
    names = (_list_names if is_settled else _list_names.__wrapped__)(folder, changed)
    found = [[name for name in names if name.endswith(ending)] for ending in endings]
    few = [folder / name for some in found if len(some) <= MOST_FILES for name in some]
    return [file for file in few if file.is_file() and is_export(file)]


@functools.lru_cache
def _list_names(folder: Path, changed: int) -> tuple[str, ...]:
    """The names in a folder that was last `changed` at that time which an export may have: it may hold many images."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.name.endswith(ENDINGS)))


def say_left_out(found: dict[str, list[Path]], folder: Path, ending: str, is_export: Callable[[Path], bool]) -> None:
    """Warn of the exports in `folder` that are not read, since the names of others say a split and theirs do not."""
    if text := describe_left_out(found, [folder], (ending,), is_export):
        warn(text)


def describe_left_out(
    found: Mapping[str, Iterable[Path]],
    folders: Iterable[Path],
    endings: tuple[str, ...],
    is_export: Callable[[Path], bool],
) -> str:
    """Which exports in `folders` are not among those `found`, {split: files}, for a warning; "" where there is none."""
    read = {file for files in found.values() for file in files}
    others = [file for folder in folders for file in _list_files(folder, endings, is_export) if file not in read]
    if not read or not others:
        return ""
    first, are = min(read), "is" if len(others) == 1 else "are"
    names = f"{show_names([*map(str, others)], MOST_NAMED)} {are} not read"
    if find_split(first.stem) is None or any(find_split(file.stem) for file in others):  # a folder says the split
        return f"{names}, since {first} is"
    return f"{names}: {'its name says' if are == 'is' else 'their names say'} no split, as that of {first.name} does"


def choose_split(tags: Iterable[str]) -> str | None:
    """The split that the tags of an image say; None where none does, or two do."""
    found = {split for tag in tags if (split := find_split(tag))}
    return found.pop() if len(found) == 1 else None
