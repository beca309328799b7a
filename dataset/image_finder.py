"""Where the images of a list lie whose paths are from another folder, another machine, or addresses."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from unicodedata import normalize
from urllib.parse import parse_qs, unquote, urlsplit

from dataset.files import IMAGE_EXTENSIONS, find_missing, find_path, list_files
from dataset.json_files import JsonLine
from utils import InputError, warn

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of a file that is uploaded


def place_images(file: Path, root: Path, folders: Iterable[Path], names: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """(folder, the images' paths from there on): the first of `folders` that holds all images, or else the most.

    Where none holds any, the images are found below `root` by their names, and that is said. Raises InputError, with
    the `file` that lists them, where they are not there, or where two have the same name.
    """
    places = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    missing = []
    for place in places:
        missing.append(len(find_missing([find_path(str(place), name) for name in names])))
        if not missing[-1]:
            return place, names
    if places and (min(missing) < len(names) or any(find_path(".", name).startswith("..") for name in names)):
        return places[missing.index(min(missing))], names
    finder = ImageFinder(root)
    if all(len(finder.list_matches(name)) == 1 for name in names):
        found = [finder.find(name, str(file)) for name in names]
        warn(f"{file}: its images lie elsewhere; they are taken by their names from {root}")
        return root, found
    raise InputError(
        f"{file}: its images are not there: none of {len(names)} lies in {', '.join(map(str, places))}; the first is "
        f"{names[0][:300]!r}"
    )


class ImageFinder:
    """Finds the images below `root` by the ends of their paths.

        finder = ImageFinder(root)
        finder.find("/data/upload/1/0a1b2c3d-cat.jpg", "project.json: task 7")    # images/cat.jpg

    Where several images have the name, the one is meant whose folders agree furthest, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for path in list_files(root, IMAGE_EXTENSIONS)[0]:
            self.by_name[normalize("NFC", path.rpartition("/")[2])].append(path)
        self.text_of: dict[str, str] = {}  # by path: what was found there, so that no image is taken for two

    def find(self, text: str, where: str | JsonLine) -> str:
        """The path from `root` on. Raises InputError where there is no such image, or more than one."""
        matches = self.list_matches(text)
        if len(matches) > 1:
            raise InputError(f"{where}: {text[:300]!r} may be {matches[0]} or {matches[1]} in {self.root}: remove one")
        if not matches:
            name = find_path_in(text).rpartition("/")[2]
            advice = " (images on the web are not fetched)" if "://" in text else ""
            raise InputError(f"{where}: there is no image {name!r} in {self.root}, for {text[:300]!r}{advice}")
        if self.text_of.setdefault(matches[0], text) != text:
            raise InputError(
                f"{where}: {text[:300]!r} and {self.text_of[matches[0]][:300]!r} would both be {matches[0]}: is an "
                f"image missing in {self.root}?"
            )
        return matches[0]

    def list_matches(self, text: str) -> list[str]:
        """The images that `text` may mean, paths from `root` on."""
        path = normalize("NFC", find_path_in(text))
        for likely in (path, unquote(path)):
            folders, _, name = likely.rpartition("/")
            found = self.by_name.get(name) or self.by_name.get(UPLOAD_PREFIX.sub("", name, count=1), [])
            if len(found) > 1:
                agreeing = [_count_agreeing(folders.split("/"), path.split("/")[:-1]) for path in found]
                found = [path for path, count in zip(found, agreeing, strict=True) if count == max(agreeing)]
            if found:
                return found
        return []


def find_path_in(text: str) -> str:
    """The path in an address, or in Label Studio's `/data/local-files/?d=path`; with slashes instead of backslashes."""
    if "?d=" in text:
        text = parse_qs(urlsplit(text).query).get("d", [""])[0]
    elif "://" in text:
        text = urlsplit(text).path
    return text.replace("\\", "/")


def _count_agreeing(first: list[str], second: list[str]) -> int:
    """How many folders at the ends of two paths are the same."""
    same = 0
    while same < min(len(first), len(second)) and first[-1 - same] == normalize("NFC", second[-1 - same]):
        same += 1
    return same


# ---- names that public data sets write without their folder ----


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
