"""Image files: which files in a folder are images, what they may be called, and where the paths in a list point."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from utils import InputError, warn

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
MOST_IMAGE_BYTES = 1_500_000_000  # of an image file: the largest picture that PIL opens, with 16 bits and transparency
NOT_ORDINARY = "it is a pipe, a socket or a device, not an ordinary file"

# ---- opening ----


def open_file(path: str | Path) -> BinaryIO:
    """Open an ordinary file to read its bytes. Raises OSError, also for pipes and devices, which may never end."""
    return open(path, "rb", opener=_open_ordinary)


def _open_ordinary(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else a pipe waits for someone to write to it
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number, reason = (errno.EISDIR, "it is a folder") if stat.S_ISDIR(mode) else (errno.EINVAL, NOT_ORDINARY)
        raise OSError(number, reason, path)
    return descriptor


# ---- folders ----


def list_images(folder: Path) -> list[str]:
    """The image files in `folder` and its sub-folders, sorted by path.

    Raises InputError when there is none. Two images may not differ in their extension only, since labels and
    predictions are named without it.
    """
    names, _ = list_files(folder, IMAGE_EXTENSIONS)
    if not names:
        raise InputError(f"no images in {folder} ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    require_stems(names, f"{folder}{os.sep}")
    return [f"{folder}{os.sep}{name}" for name in names]


def list_files(folder: Path, extensions: frozenset[str]) -> tuple[list[str], list[str]]:
    """(files with one of `extensions`, all folders) in `folder` and its sub-folders: paths from `folder` on, sorted.

    Extensions are lower case with the dot. `folder` itself is "". Hidden files and folders are left out. Links are
    followed, but each folder is read once; warns of links that would lead to one again.
    """
    names: list[str] = []
    folders: list[str] = []
    waiting, links, repeated = [""], [], []
    endings = tuple(extensions)
    seen = {identity for parent in Path(os.path.realpath(folder)).parents if (identity := _identify(parent))}
    while waiting or links:
        if not waiting:  # links last, so that a file has the name that leads to it without one
            waiting.append(links.pop(links.index(min(links))))
        prefix = waiting.pop()
        identity = _identify(f"{folder}{os.sep}{prefix}")
        if identity in seen:
            repeated.append(prefix)
            continue
        if identity is not None:
            seen.add(identity)
        try:
            with os.scandir(f"{folder}{os.sep}{prefix}") as scan:  # a system call for many names, no stat of each
                entries = [entry for entry in scan if entry.name[0] != "."]
        except OSError as error:
            raise InputError(f"cannot read folder {error.filename or folder}: {error.strerror}") from error
        waiting += [f"{prefix}{entry.name}/" for entry in entries if is_folder(entry) and not entry.is_symlink()]
        links += [f"{prefix}{entry.name}/" for entry in entries if is_folder(entry) and entry.is_symlink()]
        found = [entry.name for entry in entries if entry.name.lower().endswith(endings) and not is_folder(entry)]
        names += [prefix + name for name in found] if prefix else found
        folders.append(prefix)
    if repeated:
        warn(
            f"{folder}: {len(repeated)} link(s) to folders that are read anyway, or that hold this one, are not "
            f"followed, the first: {repeated[0]}"
        )
    return sorted(names), sorted(folders)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder, or a link to one; not for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identify(folder: str | Path) -> tuple[int, int] | None:
    """Two numbers that no other folder has; None for one that cannot be reached."""
    try:
        found = Path(folder).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


# ---- names ----


def require_stems(names: Sequence[str], where: str = "") -> dict[str, str]:
    """{name without its extension: name}; InputError when two names differ in their extension only."""
    stems = {name[: name.rfind(".")]: name for name in names}
    if len(stems) < len(names):
        name = next(name for name in names if stems[name[: name.rfind(".")]] != name)
        second = stems[name[: name.rfind(".")]]
        raise InputError(f"{where}{name} and {second} differ in their extension only: rename one")
    return stems


def require_listable(names: Sequence[str]) -> None:
    """Raise InputError for a file name that `list_images` would leave out."""
    require_endings(names)
    for name in names:
        if "/." in f"/{name}":
            raise InputError(f"{name} is hidden, or lies in a hidden folder: rename it")


def require_endings(names: Sequence[str]) -> None:
    """Raise InputError for a file name without the extension of an image."""
    for name in names:
        if not name.lower().endswith(tuple(IMAGE_EXTENSIONS)):
            raise InputError(f"{name} has none of the endings {', '.join(sorted(IMAGE_EXTENSIONS))}: rename it")


# ---- paths ----


def make_absolute(path: str | Path) -> Path:
    """`path` as an absolute path without ~ and ..; links are not followed."""
    return Path(os.path.normpath(Path(path).expanduser().absolute()))


def find_path(root: str, text: str) -> str:
    r"""Where `text`, a path in a list of the data set in `root`, points: `root/a/b.jpg` also for `a\b.jpg`."""
    if "\\" in text and not os.path.lexists(os.path.join(root, text)):  # a list from Windows
        text = text.replace("\\", "/")
    return os.path.normpath(os.path.join(root, text))


def find_missing(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are no files, in order. Lists each folder once: quicker than asking for each file."""
    present: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition(os.sep)
        if folder not in present:
            try:
                with os.scandir(folder or os.sep) as entries:
                    present[folder] = {entry.name for entry in entries}
            except OSError:
                present[folder] = set()
        if name not in present[folder]:
            missing.append(path)
    return missing


def hash_file(path: Path) -> str:
    """The SHA-256 of the file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
