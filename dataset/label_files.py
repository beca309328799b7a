"""The .cls files of a data set: one for each image, a class index a line; `?3` says that class 3 is unknown.

Reading a hundred thousand small files takes long. Threads read them once, and an index keeps their labels. The index is
used while no folder and no label file has changed.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dataset.array_files import read_next
from dataset.files import (
    BINARY,
    NOT_ORDINARY,
    describe_unread,
    list_files,
    list_image_files,
    make_absolute,
    require_stems,
    say_unread,
)
from dataset.image_finder import ImageFinder
from dataset.rows import keeps_missing_images, note_missing
from dataset.table import require_room
from dataset.text_files import leaves_lines_out, list_lines_left_out, name_backup
from dataset.whole_files import replace_folder, write_atomically
from utils import InputError

EXTENSION = ".cls"
UNKNOWN = b"?"  # before the index of a class of which nobody knows whether the image shows it
NUM_THREADS = 8  # twice as fast as one from a disk; from memory it makes no difference
MIN_INDEXED = 1000  # label files; fewer are read quickly without an index
SETTLED_SECONDS = 2.0  # files that changed later are not indexed: a second change could have the same time
MAX_BYTES = 1 << 16  # of a label file
VERSION = 2  # of the index
# When a file last changed: the ctime, which no tool sets back. On Windows that is when the file was made.
get_change = attrgetter("st_mtime_ns" if os.name == "nt" else "st_ctime_ns")


def read_label_files(
    images_dir: Path, labels_dir: Path, num_classes: int, cache_folder: Path | None = None, check_files: bool = True
) -> tuple[list[str], NDArray[np.int8]]:
    """(names of the images in `images_dir`, sorted; targets (N, C) int8 from the .cls files in `labels_dir`).

    With a `cache_folder`, an index of the labels is kept there. It is used while no file was added, removed or renamed,
    and no label file was edited. With `check_files=False` only the folders are looked at, which is quicker but misses
    label files that were edited in place. Raises InputError, with the line, for what is wrong.
    """
    index = None
    if cache_folder is not None and not leaves_lines_out():
        key = f"{VERSION}\n{make_absolute(images_dir)}\n{make_absolute(labels_dir)}\n{num_classes}"
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:16]
        index = cache_folder / f"labels_{digest}.npy"
        found = _read_index(index, images_dir, labels_dir, check_files)
        if found:
            images, targets, unread = found
            say_unread(images_dir, unread)
            return images, targets
    start = time.time_ns()
    images, image_folders, others = list_image_files(images_dir)
    labels, label_folders = list_files(labels_dir, frozenset({EXTENSION}))
    num_found = len(images)
    labels = _pair(images, labels, images_dir, labels_dir)
    if len(images) > num_found:  # no training is to find the missing ones in an index
        index = None
    contents, changed = _read_all(labels_dir, labels, with_times=index is not None)
    targets = _parse_all(contents, labels, labels_dir, num_classes)
    if index is not None:
        folders = _read_times(images_dir, image_folders) + _read_times(labels_dir, label_folders)
        if len(labels) >= MIN_INDEXED and max(*changed, *folders) < start - SETTLED_SECONDS * 1e9:
            unread = describe_unread(images_dir, others)
            _save_index(index, (images, labels, image_folders, label_folders, [unread]), (changed, folders, targets))
    return images, targets


def write_label_files(folder: Path, names: Sequence[str], targets: NDArray[np.int8]) -> None:
    """Write a .cls file in `folder` for each image name; a folder with other labels stays beside it as `.bak`."""
    stems = {name: name[: name.rfind(".")] for name in names}
    contents = {f"{stems[name]}{EXTENSION}": _format(row) for name, row in zip(names, targets, strict=True)}
    if folder.is_dir():
        present, _ = list_files(folder, frozenset({EXTENSION}))
        if sorted(contents) == present and _read_all(folder, present)[0] == [contents[name] for name in present]:
            return
    with replace_folder(folder) as new:
        for sub_folder in {name.rpartition("/")[0] for name in contents}:
            (new / sub_folder).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with open(f"{new}{os.sep}{name}", "wb") as file:
                file.write(content)
        if folder.exists():
            folder.rename(name_backup(folder))


def _format(row: NDArray[np.int8]) -> bytes:
    lines = [b"%d\n" % label for label in np.flatnonzero(row == 1).tolist()]
    lines += [b"%b%d\n" % (UNKNOWN, label) for label in np.flatnonzero(row == -1).tolist()]
    return b"".join(lines)


def _pair(images: list[str], labels: Sequence[str], images_dir: Path, labels_dir: Path) -> list[str]:
    """The label file of each image; InputError unless each image has one and each label file an image.

    Where missing images are kept, `images` gets a name for each label file without one.
    """
    image_of = require_stems(images, f"{images_dir}{os.sep}")
    label_of = require_stems(labels, f"{labels_dir}{os.sep}")
    if without := image_of.keys() - label_of.keys():
        first = f"{labels_dir / min(without)}{EXTENSION}"
        raise InputError(f"{len(without)} image(s) without a label file, the first: {first} does not exist")
    if without := label_of.keys() - image_of.keys():
        if not keeps_missing_images():
            first, hint = f"{min(without)}.jpg", ImageFinder(images_dir).suggest(f"{min(without)}.jpg")
            raise InputError(
                f"{len(without)} label file(s) without an image, the first: {images_dir / first} does not exist"
                f"{'; ' * bool(hint)}{hint}"
            )
        finder = ImageFinder(images_dir)
        for stem in sorted(without):
            hint = finder.suggest(f"{stem}.jpg")
            note_missing(
                f"{images_dir}{os.sep}{stem}.jpg",
                f"{labels_dir}{os.sep}{stem}{EXTENSION} has no image{'; ' * bool(hint)}{hint}",
            )
        image_of |= {stem: f"{stem}.jpg" for stem in without}
        images[:] = sorted(image_of.values())
        image_of = require_stems(images)
    return [label_of[stem] for stem in image_of]


@contextmanager
def _enter(folder: Path) -> Iterator[tuple[str, int | None]]:
    """(what to put before a name in `folder`, `dir_fd`): names relative to an open folder are found quicker.

    Windows cannot open a folder, and takes whole paths.
    """
    if not {os.open, os.stat} <= os.supports_dir_fd:
        yield f"{folder}{os.sep}", None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield "", descriptor
    finally:
        os.close(descriptor)


def _read_all(folder: Path, names: list[str], with_times: bool = False) -> tuple[list[bytes], list[int]]:
    """(contents, times of last change in nanoseconds) of the files `names` in `folder`; times only on request."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY  # see dataset.files.open_file

    def read(thread_names: list[str], before: str, descriptor: int | None) -> tuple[list[bytes], list[int]]:
        contents, changed = [], []
        for name in thread_names:
            file = os.open(before + name, flags, dir_fd=descriptor)
            try:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, NOT_ORDINARY, name)
                contents.append(os.read(file, MAX_BYTES))
                if with_times:
                    changed.append(get_change(found))
            finally:
                os.close(file)
        return contents, changed

    share = -(-len(names) // NUM_THREADS)
    shares = [names[i * share : (i + 1) * share] for i in range(NUM_THREADS)]
    try:
        with _enter(folder) as (before, descriptor), ThreadPoolExecutor(NUM_THREADS) as pool:
            results = list(pool.map(partial(read, before=before, descriptor=descriptor), shares))
    except OSError as error:
        raise InputError(f"cannot read {folder / str(error.filename or '')}: {error.strerror}") from error
    contents = [content for thread_contents, _ in results for content in thread_contents]
    changed = [time for _, thread_times in results for time in thread_times]
    for content, name in zip(contents, names, strict=True):
        if len(content) == MAX_BYTES:
            raise InputError(f"{folder / name} is far too large to hold class indices")
    return contents, changed


def _parse_all(contents: list[bytes], names: list[str], folder: Path, num_classes: int) -> NDArray[np.int8]:
    """(N, C) targets. The usual lines are looked up in a dict; `_parse` reads files with any other line."""
    codes = {b"%d" % label: label for label in range(num_classes)}
    codes |= {UNKNOWN + index: label + num_classes for index, label in codes.items()}
    found: list[list[int]] = []
    for content, name in zip(contents, names, strict=True):
        try:
            found.append([codes[line] for line in content.removesuffix(b"\n").split(b"\n")] if content else [])
        except KeyError:
            found.append(_parse(content, folder / name, num_classes))
    rows = np.repeat(np.arange(len(found)), [len(labels) for labels in found])
    values, columns = np.divmod(np.array(list(chain.from_iterable(found)), dtype=np.int64), num_classes)
    present, unknown = values == 0, values == 1
    require_room(len(found), num_classes)
    targets = np.zeros((len(found), num_classes), dtype=np.int8)
    targets[rows[present], columns[present]] = 1
    for row in rows[unknown][targets[rows[unknown], columns[unknown]] == 1].tolist():  # present, too: find the line
        _parse(contents[row], folder / names[row], num_classes)
    targets[rows[unknown], columns[unknown]] = -1
    return targets


def _parse(content: bytes, path: Path, num_classes: int) -> list[int]:
    """The class indices in a .cls file, unknown ones with C added. Raises InputError with the line of anything else."""
    found: dict[int, None] = {}
    left_out = list_lines_left_out(path)
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        text = line.strip()
        if not text or number in left_out:
            continue
        index = text.removeprefix(UNKNOWN)
        if not index.isdigit():
            raise InputError(
                f"{path}:{number}: {text.decode(errors='replace')!r} is not a class index "
                f"(one index 0...{num_classes - 1} a line; ?3 where class 3 is unknown)"
            )
        if len(index) > 9 or int(index) >= num_classes:
            raise InputError(f"{path}:{number}: class index {index.decode()[:20]} is outside 0...{num_classes - 1}")
        code = int(index) + num_classes * text.startswith(UNKNOWN)
        if (code + num_classes) % (2 * num_classes) in found:
            raise InputError(f"{path}:{number}: class {int(index)} is both present and unknown")
        found[code] = None
    return list(found)


def _save_index(path: Path, names: Sequence[Sequence[str]], numbers: Sequence[ArrayLike]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for name_list in names:
                np.save(file, np.frombuffer(os.fsencode("\0".join(name_list)), dtype=np.uint8))
            for array in numbers:
                np.save(file, np.asarray(array))

    write_atomically(path, write)


def _read_index(
    path: Path, images_dir: Path, labels_dir: Path, check_files: bool
) -> tuple[list[str], NDArray[np.int8], str] | None:
    """(image names, targets, which pictures are not read) from the index at `path`; None where it does not hold."""
    try:
        with path.open("rb") as file:
            names = [os.fsdecode(read_next(file).tobytes()).split("\0") for _ in range(5)]
            labels_changed, folders_changed, targets = (read_next(file) for _ in range(3))
    except (OSError, ValueError):  # there is none, or it is damaged
        return None
    images, labels, image_folders, label_folders, (unread,) = names
    try:
        folders = _read_times(images_dir, image_folders) + _read_times(labels_dir, label_folders)
        same = np.array_equal(folders, folders_changed)
        if same and check_files:
            same = np.array_equal(_read_times(labels_dir, labels), labels_changed)
    except OSError:  # a file or folder is gone
        return None
    return (images, targets, unread) if same else None


def _read_times(folder: Path, names: Sequence[str]) -> list[int]:
    """When each of `names` in `folder` last changed, in nanoseconds."""
    with _enter(folder) as (before, descriptor):
        return [get_change(os.stat(before + (name or "."), dir_fd=descriptor)) for name in names]
