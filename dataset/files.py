"""Image files: which files in a folder are images, what they may be called, and where the paths in a list point."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dataset import file_kinds
from dataset.file_kinds import AVIF_ENDINGS, GET_AVIF, GET_HEIF, HEIF_ENDINGS, OTHER_PICTURES, READS_AVIF, READS_HEIF
from utils import InputError, warn

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
    | set(HEIF_ENDINGS if READS_HEIF else ())
    | set(AVIF_ENDINGS if READS_AVIF else ())
)
_ENDINGS = tuple(IMAGE_EXTENSIONS)
LATE_ENDINGS = (*HEIF_ENDINGS, *AVIF_ENDINGS)
UNREAD_PICTURES = (OTHER_PICTURES | set(HEIF_ENDINGS) | set(AVIF_ENDINGS)) - IMAGE_EXTENSIONS
# of files that are looked into only when their names say that they are pictures
NO_PICTURES = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".cls", ".md", ".html", ".htm",
    ".py", ".log", ".db", ".ini", ".lnk", ".npy", ".npz", ".pkl", ".pt", ".pth", ".onnx", ".parquet", ".arrow",
    ".mat", ".zip", ".tar", ".gz", ".tgz", ".bak", ".lst", ".names", ".thm", ".xmp", ".aae", ".xlsx", ".xls", ".docx",
})  # fmt: skip
MOST_LOOKED_INTO = 1000  # of a folder's other files: their first bytes tell whether they are pictures
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})  # never a data set's
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


BINARY = getattr(os, "O_BINARY", 0)  # for os.open: Windows would translate the ends of lines
_position = threading.Lock()  # of open files, where the system cannot read from a place without going there


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` with an open file's bytes from `offset` on; returns how many there were. Raises OSError.

    Threads may share the file and, where the system can (not on Windows), processes.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, buffer.nbytes)
    buffer.cast("B")[: len(data)] = data
    return len(data)


def write_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Write `buffer` into an open file from `offset` on, as `read_at` reads; returns how many bytes fitted."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, buffer, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, buffer)


# ---- folders ----


class Listing(NamedTuple):
    """What lies in a folder and its sub-folders, as paths from there on, sorted."""

    names: list[str]  # the files with the endings that were asked for
    folders: list[str]  # each with a slash at its end; the folder itself is ""
    others: list[str]  # all other files


def list_images(folder: Path) -> list[str]:
    """The image files in `folder` and its sub-folders, sorted by path. Says which pictures there are not read.

    Raises InputError when there is none. Two images may not differ in their extension only, since labels and
    predictions are named without it.
    """
    names = list_image_files(folder).names
    require_stems(names, f"{folder}{os.sep}")
    return [f"{folder}{os.sep}{name}" for name in names]


def list_image_files(folder: Path) -> Listing:
    """The image files in `folder` and its sub-folders. Says which pictures there are not read.

    Phones and converters leave a picture as HEIC or AVIF beside the same as JPEG: then that counts among the others.
    Raises InputError when there is no image.
    """
    listing = scan(folder, IMAGE_EXTENSIONS)
    if late := [name for name in listing.names if name.lower().endswith(LATE_ENDINGS)]:
        stems = {os.path.splitext(name)[0] for name in set(listing.names) - set(late)}
        copies = {name for name in late if os.path.splitext(name)[0] in stems}
        names = [name for name in listing.names if name not in copies]
        listing = Listing(names, listing.folders, [*listing.others, *sorted(copies)])
    unread = describe_unread(folder, listing.others)
    if not listing.names:
        raise InputError(f"no images in {folder} ({', '.join(sorted(IMAGE_EXTENSIONS))}){'; ' * bool(unread)}{unread}")
    say_unread(folder, unread)
    return listing


def list_files(folder: Path, extensions: frozenset[str]) -> tuple[list[str], list[str]]:
    """(files with one of `extensions`, all folders): the first two of what `scan` gives."""
    return scan(folder, extensions)[:2]


def scan(folder: Path, extensions: frozenset[str]) -> Listing:
    """The files in `folder` and its sub-folders, and these folders.

    Extensions are lower case with the dot. Hidden files and folders are left out, and what systems put beside others'
    files. Links are followed, but each folder is read once; warns of links that would lead to one again.
    """
    names: list[str] = []
    folders: list[str] = []
    others: list[str] = []
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
            with os.scandir(f"{folder}{os.sep}{prefix}") as entries:  # a system call for many names, no stat of each
                visible = [entry for entry in entries if entry.name[0] != "."]
        except OSError as error:
            raise InputError(f"cannot read folder {error.filename or folder}: {error.strerror}") from error
        inner = {entry.name: entry for entry in visible if is_folder(entry)}
        for name, entry in inner.items():
            if name not in SYSTEM_FOLDERS:
                (links if entry.is_symlink() else waiting).append(f"{prefix}{name}/")
        files = [entry.name for entry in visible if entry.name not in inner]
        found = [name for name in files if name.lower().endswith(endings)]
        if len(found) < len(files):
            others += [prefix + name for name in files if not name.lower().endswith(endings)]
        names += [prefix + name for name in found] if prefix else found
        folders.append(prefix)
    if repeated:
        warn(
            f"{folder}: {len(repeated)} link(s) to folders that are read anyway, or that hold this one, are not "
            f"followed, the first: {repeated[0]}"
        )
    return Listing(sorted(names), sorted(folders), sorted(others))


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


# ---- pictures that are not read ----


def looks_like_picture(ending: str) -> bool:
    """Whether a file with this ending is a picture, whether it is read or not."""
    return ending.lower() in IMAGE_EXTENSIONS or ending.lower() in UNREAD_PICTURES


def describe_unread(folder: Path, names: Sequence[str]) -> str:
    """Which of `names`, files in `folder` that have no image's ending, are pictures; "" for none.

    Example: "3 files are not read: 1 .heic (pip install pi-heif), 1 .jp2, 1 without an ending (noext is a JPEG)".
    """
    endings = [(os.path.splitext(name)[1].lower(), name) for name in names]
    counts = Counter(ending for ending, _ in endings if looks_like_picture(ending))
    notes = dict.fromkeys(HEIF_ENDINGS, f" ({GET_HEIF})") | dict.fromkeys(AVIF_ENDINGS, f" ({GET_AVIF})")
    notes |= dict.fromkeys(IMAGE_EXTENSIONS, " (another image has the same name)")
    unclear = [(ending, name) for ending, name in endings if ending not in counts and ending not in NO_PICTURES]
    for ending, name in unclear[:MOST_LOOKED_INTO]:
        kind = _look_into(f"{folder}{os.sep}{name}")
        if kind:
            label = ending or "without an ending"
            counts[label] += 1
            notes.setdefault(label, f" ({name} is a {kind})")
    if not counts:
        return ""
    what = ", ".join(f"{count} {label}{notes.get(label, '')}" for label, count in counts.most_common())
    return f"{counts.total()} {'file is' if counts.total() == 1 else 'files are'} not read: {what}"


def _look_into(path: str) -> str:
    """The type of the picture that the file's first bytes begin; "" where they do not, or cannot be read."""
    try:
        with open_file(path) as file:
            return file_kinds.name_picture(file.read(16))
    except OSError:
        return ""


_said: set[str] = set()  # so that a folder that is listed for several purposes is spoken of once


def say_unread(folder: Path, unread: str) -> None:
    """Warn, once, of what `describe_unread` found."""
    line = f"{folder}: {unread}"
    if unread and line not in _said:
        _said.add(line)
        warn(line)


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


def has_image_ending(name: str) -> bool:
    """Whether a file with this name, or this path, is an image that can be read."""
    return name.lower().endswith(_ENDINGS)


def require_endings(names: Sequence[str]) -> None:
    """Raise InputError for a file name without the extension of an image."""
    for name in names:
        if not has_image_ending(name):
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
