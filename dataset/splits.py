"""Which split a file or a folder of another tool is for: `valid`, `validation` and `dev` are "val"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset.table import SPLITS
from utils import InputError

WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def find_split(name: str) -> str | None:
    """The split that the words in `name` are for; None where there is no such word, or words of two splits.

    Example: `instance_train2017.json` is for "train"; `train_val.json` and `default.json` are for none.
    """
    found = {WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


def find_folders(root: Path) -> dict[str, list[Path]]:
    """{split: the folders in `root` that are called like it}."""
    folders = {split: [root / word for word in WORDS if WORDS[word] == split] for split in SPLITS}
    return {split: [folder for folder in found if folder.is_dir()] for split, found in folders.items()}


def sort_files(files: Iterable[Path]) -> dict[str, list[Path]]:
    """{split: the files whose names say it}. Where no name says a split, all files are those of "train"."""
    files = sorted(files)
    named = {split: [file for file in files if find_split(file.stem) == split] for split in SPLITS}
    found = {split: named[split] for split in SPLITS if named[split]}
    return found or ({"train": files} if files else {})


def require_one(paths: Sequence[Path], split: str) -> Path:
    """The only one of `paths`. Raises InputError where two are meant for the same `split`."""
    if len(paths) > 1:
        raise InputError(f"{paths[0]} and {paths[1]} are both for {split}: remove one, or rename it")
    return paths[0]
