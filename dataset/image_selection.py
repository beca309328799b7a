"""Which images somebody means: a file, a folder, a pattern or a list.

select_images("a.jpg"), select_images("photos"), select_images("photos/**/*.jpg"), select_images("list.txt")
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from dataset.files import (
    IMAGE_EXTENSIONS,
    describe_unread,
    find_missing,
    find_path,
    has_image_ending,
    list_images,
    make_absolute,
    say_unread,
)
from dataset.tar_shards.reading import split_member
from dataset.text_files import read_lines
from utils import InputError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # Path makes one slash of two; a drive has one letter
LIST_ENDING = ".txt"


def select_images(where: str | Path) -> list[str]:
    """The paths of the image files that `where` names.

    A file is itself, whatever its name. A folder gives all images in it and its sub-folders, sorted by path. A list is
    a file that ends in .txt, with a path a line, which starts at the list's folder. All else with *, ? or [ is a
    pattern, where ** stands for any number of folders; it gives the images that match, sorted. ~ is the home folder.
    What is none of these is returned as it is, such as an image in a shard: who reads it says if it is missing.

    Raises InputError for a folder or list without images, a pattern that no image matches, a list that names a missing
    file, and an address on the web.
    """
    if ADDRESS.match(str(where)):
        raise InputError(f"{where} is an address, and images are not fetched: download it first")
    path = Path(where).expanduser()
    if path.is_dir():
        return list_images(path)
    if path.suffix.lower() == LIST_ENDING and path.is_file():
        return read_list(path)
    text = str(path)
    if glob.has_magic(text) and not os.path.lexists(path) and split_member(text) is None:
        return match_images(text)
    return [text]


def match_images(pattern: str) -> list[str]:
    """The image files that match `pattern`, sorted. Says which pictures that match it are not read.

    Raises InputError if there is no image.
    """
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if not matches:
        raise InputError(f"nothing matches {pattern}{_hint_at_case(pattern)}")
    files = [path for path in matches if not Path(path).is_dir()]
    images = [path for path in files if has_image_ending(path)]
    folder, unread = Path(), ""
    if others := [make_absolute(path) for path in files if path not in set(images)]:
        folder = Path(os.path.commonpath([path.parent for path in others]))
        unread = describe_unread(folder, [str(path.relative_to(folder)) for path in others])
    if not images:
        more = f" and {len(matches) - 1} more" if len(matches) > 1 else ""
        raise InputError(
            f"no image matches {pattern}, only {matches[0]}{more} "
            f"(** stands for any number of folders; images end in {', '.join(sorted(IMAGE_EXTENSIONS))})"
            + (f"; {unread}" if unread else "")
        )
    say_unread(folder, unread)
    return images


def _hint_at_case(pattern: str) -> str:
    """What would match if capitals did not count in the last part of `pattern`; "" if nothing would."""
    folder, name = os.path.split(pattern)
    if "[" in name:
        return ""
    any_case = "".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter for letter in name)
    found = sorted(glob.glob(os.path.join(folder, any_case), recursive=True))  # noqa: PTH207
    if not found:
        return ""
    more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
    return f": capitals count, and there is {found[0]}{more}"


def read_list(path: Path) -> list[str]:
    """The paths in a list, one a line. Raises InputError where there is none, or where a file is missing."""
    root = str(make_absolute(path).parent)
    line_of = {find_path(root, line.strip()): number for number, line in read_lines(path)}
    if not line_of:
        raise InputError(f"{path} names no image: it has a path a line")
    for missing in find_missing(line_of):
        raise InputError(f"{path}:{line_of[missing]}: there is no file {missing}")
    return list(line_of)
