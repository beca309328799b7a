"""Smaller copies of a folder of images, for quicker training: `python dataset_tools.py resize`.

    resize(Path("images/train"), Path("images/train-resized"), short_side=256, quality=90)

Copies keep their names and sub-folders. What is there already is left alone, so an interrupted run goes on where it
stopped. Threads suffice: decoding, resampling and encoding all leave Python's lock to the others.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

import utils
from dataset.decoding import decode_image
from dataset.files import IMAGE_EXTENSIONS, list_files
from utils import InputError

MARKER = ".resize.json"  # in the target: how its copies were made


class Resized(NamedTuple):
    """How many copies were written, and how many were there already."""

    written: int
    kept: int


def resize_images(source: Path, target: Path, short_side: int, quality: int) -> Resized:
    """Write upright copies of all images under `source` to `target`, `short_side` pixels or smaller if they are.

    Those that are resized become RGB. Nothing is enlarged: an image that is small and upright already is copied as it
    is. `quality` (1 to 100) is that of JPEG and WebP files. A copy as new as its image is kept. Images that cannot be
    read are left out and named, and once all others are done, InputError says how many. It is also raised where
    `target` holds anything else.
    """
    if short_side < 1 or not 1 <= quality <= 100:
        raise InputError(f"resize to a short side of {short_side} and quality {quality}: 1 or more, and 1 to 100")
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{target} lies in {source}, whose images are to be resized: choose a folder beside it")
    names, _ = list_files(source, IMAGE_EXTENSIONS)
    if not names:
        raise InputError(f"no images in {source} ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    _mark(target, {"made_by": "dataset_tools.py resize", "short_side": short_side, "quality": quality})
    waiting = [name for name in names if not _is_newer(target / name, source / name)]
    for folder in {(target / name).parent for name in waiting}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {folder}: {utils.explain(error)}") from error
        utils.remove_leftovers(folder)
    num_unreadable = 0
    copy = partial(_copy, source, target, short_side, quality)
    with utils.Progress("resizing", len(waiting)) as progress, ThreadPool() as pool:
        for problem in pool.imap_unordered(copy, waiting):
            progress.step(1)
            if problem:
                num_unreadable += 1
                utils.warn(problem)
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
        utils.write_text(path, json.dumps(marker) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != marker:
        raise InputError(
            f"{target} holds copies with a short side of {found['short_side']} and quality {found['quality']}: "
            "delete it, choose another folder, or ask for the same"
        )


def _is_newer(copy: Path, image: Path) -> bool:
    """Whether `copy` is whole, and not older than `image`."""
    try:
        found = copy.stat()
    except FileNotFoundError:
        return False
    return found.st_size > 0 and found.st_mtime_ns >= image.stat().st_mtime_ns


def _copy(source: Path, target: Path, short_side: int, quality: int, name: str) -> str | None:
    """Write one copy; what is wrong with the image, where it cannot be read."""
    try:
        pixels = decode_image(source / name)
    except InputError as error:
        return str(error)
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    # complete or absent; not flushed to disk one by one as write_atomically does, which takes longer than all the rest
    temporary = utils.name_temporary(target / name)
    try:
        if scale >= 1 and _is_upright(source / name):
            shutil.copyfile(source / name, temporary)
        else:
            image = Image.fromarray(pixels)
            if scale < 1:
                size = (round(width * scale), round(height * scale))
                image = image.resize(size, Image.Resampling.LANCZOS)
            image.save(temporary, Image.registered_extensions()[Path(name).suffix.lower()], quality=quality)
        os.replace(temporary, target / name)
    except OSError as error:
        raise InputError(f"cannot write {target / name}: {utils.explain(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return None


def _is_upright(path: Path) -> bool:
    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
