"""Where the images lie that a public data set's files name without their folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset.files import list_files
from utils import InputError


def find_folder(root: Path, folders: Sequence[str], name: str) -> Path:
    """The one of `folders`, paths from `root` on, in which `name` lies; where it lies in none, the first that exists.

    Raises InputError where it lies in two, since nothing says which is meant.
    """
    places = [root / folder for folder in folders if (root / folder).is_dir()]
    found = [place for place in places if (place / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{name} lies in {found[0]} and in {found[1]}: keep the images in one of these folders")
    return (found or places or [root / folders[0]])[0]


def map_names(folders: Iterable[Path], extensions: frozenset[str]) -> dict[str, str]:
    """{name of an image: its path} of all images in `folders` and in what lies below these.

    Raises InputError where two of them have the same name.
    """
    paths: dict[str, str] = {}
    for folder in folders:
        names, _ = list_files(folder, extensions)
        for name in names:
            path = f"{folder}{os.sep}{name}"
            other = paths.setdefault(name.rpartition("/")[2], path)
            if other != path:
                raise InputError(f"{other} and {path} have the same name, and nothing says which is meant: remove one")
    return paths
