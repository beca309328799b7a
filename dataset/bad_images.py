"""Finds the images that cannot be decoded, or of which a part is lost, and leaves them out: BAD_IMAGES = "skip"."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dataset.decoding import judge_image, stamp_files
from dataset.json_files import read_json, to_json
from dataset.table import Table
from dataset.whole_files import write_text
from utils import InputError, Progress, warn

VERSION = b"2"  # of what is kept: it changes with what counts as a bad image


def leave_out_bad_images(table: Table, cache_folder: Path | None = None) -> tuple[Table, dict[str, str]]:
    """(`table` without the images that cannot be read, {path: why} of those). Warns of them.

    Raises InputError when no image can be read.
    """
    bad = find_bad_images(table.paths, cache_folder)
    if len(bad) == len(table):
        raise InputError(f"none of the {len(table)} images can be read; {next(iter(bad.values()))}")
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        warn(f"{len(bad)} of {len(table)} images are left out: {'; '.join([*bad.values()][:3])}{more}")
    return table.select([row for row, path in enumerate(table.paths) if path not in bad]), bad


def find_bad_images(paths: Sequence[str], cache_folder: Path | None = None) -> dict[str, str]:
    """{path: why} of the images that cannot be decoded whole. Every image is tried, in threads, with progress.

    With a `cache_folder` the result is kept there, and used again while all names, sizes and times are the same.
    """
    digest = hashlib.sha256(VERSION)
    digest.update("\n".join(paths).encode(errors="surrogateescape"))
    digest.update(stamp_files(paths).tobytes())
    found = None if cache_folder is None else cache_folder / f"bad_images_{digest.hexdigest()[:16]}.json"
    if found is not None and found.is_file():
        return _require_reasons(read_json(found), found)
    bad = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("trying the images", len(paths)) as progress:
        for path, reason in zip(paths, pool.map(_try_image, paths), strict=True):
            if reason:
                bad[path] = reason
            progress.step(1)
    if found is not None:
        write_text(found, to_json(bad, indent=1))
    return bad


def _require_reasons(reasons: object, file: Path) -> dict[str, str]:
    if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
        raise InputError(f"{file} is damaged: delete it, and the images are tried again")
    return reasons


def _try_image(path: str) -> str | None:
    try:
        lost = judge_image(path).lost
    except InputError as error:
        return str(error)
    return f"{path}: {lost}" if lost else None
