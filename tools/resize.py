"""Smaller copies of a folder of images, for quicker training: `python dataset_tools.py resize`.

    resize(Path("images/train"), Path("images/train-resized"), short_side=256, quality=90)

Copies keep their names and sub-folders. What is there already is left alone, so an interrupted run goes on where it
stopped. Threads suffice: decoding, resampling and encoding all leave Python's lock to the others.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

import utils
from dataset import whole_files
from dataset.decoding import decode_image
from dataset.files import IMAGE_EXTENSIONS, list_files, list_image_files
from dataset.json_files import read_json
from dataset.text_files import CsvFile
from utils import InputError

MARKER = ".resize.json"  # in the target: how its copies were made
RECORD = ".resize.csv"  # beside it: `name,size,time` a line, those of the image that a copy was made of


class Copied(NamedTuple):
    """What became of one image."""

    name: str
    stamp: tuple[str, str]  # size in bytes and time of change in nanoseconds, of the image
    problem: str  # why it cannot be read


class Resized(NamedTuple):
    """How many copies were written, and how many were there already."""

    written: int
    kept: int


def resize_images(source: Path, target: Path, short_side: int, quality: int) -> Resized:
    """Write upright copies of all images under `source` to `target`, `short_side` pixels or smaller if they are.

    Those that are resized become RGB. Nothing is enlarged: an image that is small and upright already is copied as it
    is. `quality` (1 to 100) is that of JPEG and WebP files. A copy is kept while its image has the same size and date.
    Images that cannot be read are left out and named, and once all others are done, InputError says how many. It is
    also raised where `target` holds anything else.
    """
    if short_side < 1 or not 1 <= quality <= 100:
        raise InputError(f"resize to a short side of {short_side} and quality {quality}: 1 or more, and 1 to 100")
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{target} lies in {source}, whose images are to be resized: choose a folder beside it")
    names = list_image_files(source).names
    _mark(target, {"made_by": "dataset_tools.py resize", "short_side": short_side, "quality": quality})
    made_of = _read_record(target)
    waiting = [
        name
        for name in names
        if name not in made_of or made_of[name] != _stamp(source / name) or not _is_whole(target / name)
    ]
    for folder in {(target / name).parent for name in waiting}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {folder}: {utils.explain(error)}") from error
        whole_files.remove_leftovers(folder)
    num_unreadable = 0
    copy = partial(_copy, source, target, short_side, quality)
    with (
        open(target / RECORD, "a", encoding="utf-8", errors="surrogateescape", newline="") as record,
        utils.Progress("resizing", len(waiting)) as progress,
        ThreadPool() as pool,
    ):
        record.write("\n" if waiting else "")  # ends a line that an interrupted run left unfinished
        writer = csv.writer(CsvFile(record))
        for copied in pool.imap_unordered(copy, waiting):
            if copied.problem:
                num_unreadable += 1
                utils.warn(copied.problem)
            else:
                writer.writerow((copied.name, *copied.stamp))
                record.flush()
            progress.step(1)
    if num_unreadable:
        raise InputError(f"{num_unreadable} of {len(names)} images cannot be read (see above); the others are resized")
    return Resized(len(waiting), len(names) - len(waiting))


def _mark(target: Path, marker: dict[str, str | int]) -> None:
    """Say in `target` how its copies are made; InputError where they were made otherwise, or by someone else."""
    path = target / MARKER
    if not path.is_file():
        if target.is_dir() and list_files(target, IMAGE_EXTENSIONS)[0]:
            raise InputError(
                f"{target} holds images, and no {MARKER} says that resize wrote them: choose another folder"
            )
        whole_files.write_text(path, json.dumps(marker) + "\n")
        return
    found = read_json(path)
    if not isinstance(found, dict) or found.keys() != marker.keys():
        raise InputError(f"{path} is not what resize wrote: delete {target}, or choose another folder")
    if found != marker:
        raise InputError(
            f"{target} holds copies with a short side of {found['short_side']} and quality {found['quality']}: "
            "delete it, choose another folder, or ask for the same"
        )


def _read_record(target: Path) -> dict[str, tuple[str, str]]:
    """{name: stamp of the image that its copy was made of}; the last line of a name counts, and half a line does not"""
    path = target / RECORD
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        try:
            return {row[0]: (row[1], row[2]) for row in csv.reader(lines) if len(row) == 3}
        except csv.Error as error:
            raise InputError(f"{path}: {error}: delete it, and all copies are written again") from error


def _stamp(image: Path) -> tuple[str, str]:
    try:
        found = image.stat()
    except OSError:  # decoding says why
        return "", ""
    return str(found.st_size), str(found.st_mtime_ns)


def _is_whole(copy: Path) -> bool:
    return copy.is_file() and copy.stat().st_size > 0


def _copy(source: Path, target: Path, short_side: int, quality: int, name: str) -> Copied:
    """Write one copy."""
    stamp = _stamp(source / name)
    try:
        pixels = decode_image(source / name)
    except InputError as error:
        return Copied(name, stamp, str(error))
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    # complete or absent; not flushed to disk one by one as write_atomically does, which takes longer than all the rest
    temporary = whole_files.name_temporary(target / name)
    try:
        if scale >= 1 and _is_upright(source / name):
            shutil.copyfile(source / name, temporary)
        else:
            image = Image.fromarray(pixels)
            if scale < 1:
                size = (round(width * scale), round(height * scale))
                image = image.resize(size, Image.Resampling.LANCZOS)
            kind = Image.registered_extensions()[Path(name).suffix.lower()]
            if kind not in Image.SAVE:  # HEIC is read only
                return Copied(name, stamp, f"cannot resize {source / name}: {kind} is not written; save it as JPEG")
            image.save(temporary, kind, quality=quality)
        os.replace(temporary, target / name)
    except OSError as error:
        raise InputError(f"cannot write {target / name}: {utils.explain(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Copied(name, stamp, "")


def _is_upright(path: Path) -> bool:
    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
