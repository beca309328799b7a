"""Which split a file or a folder is for: `valid`, `validation` and `dev` are "val", in capitals, too.

What this program writes is always called train, val and test.
"""

from __future__ import annotations

import os
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
    found = {WORDS[word] for word in list_words(name)}
    return found.pop() if len(found) == 1 else None


def list_words(name: str) -> list[str]:
    """The words in `name` that mean a split: ["valid"] in `Valid_list.txt`."""
    return [word for word in re.findall("[a-z]+", name.lower()) if word in WORDS]


def find_named(root: Path, pattern: str, split: str) -> list[Path]:
    """What lies in `root` under a name of `split`.

    Example: the pattern `{}_list.txt` finds, for "val", `val_list.txt`, `valid_list.txt`, `Validation_list.txt` and so
    on. The folder is not listed: a million images may lie in it.
    """
    found: list[Path] = []
    for word in [word for word in WORDS if WORDS[word] == split]:
        for spelling in (word, word.title(), word.upper()):
            path = root / pattern.format(spelling)
            # a disk that takes capitals and small letters for the same has the file under each spelling
            if path.exists() and not any(path.samefile(other) for other in found):
                found.append(path)
    return found


def find_folders(root: Path) -> dict[str, list[Path]]:
    """{split: the folders in `root` that are called like it}."""
    return {split: [path for path in find_named(root, "{}", split) if path.is_dir()] for split in SPLITS}


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


def require_own_name(paths: Iterable[Path], root: Path, split: str) -> None:
    """Raise InputError where one of `paths` in `root` is for `split` under another name than this program writes.

    A new file would lie beside `valid_list.txt`, which would then say the same, or something else.
    """
    for path in paths:
        words = re.findall("[A-Za-z]+", os.path.relpath(path, root))
        if split not in words and any(WORDS.get(word.lower()) == split for word in words) and path.exists():
            raise InputError(f"{path} is for {split}, too: remove it, or call it {split} before {split} is written")
