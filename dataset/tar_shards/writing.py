"""Packs images into new shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.tar_shards.addresses import HERE, import_webdataset
from dataset.tar_shards.index import name_index, write_index
from dataset.tar_shards.reading import read_bytes
from dataset.tar_shards.scanning import scan_shards
from utils import InputError, Progress, explain

SHARD_IMAGES = 10_000  # in a shard, at most
SHARD_BYTES = 500_000_000  # of images in a shard, at most; a shard is fetched, kept and dropped as a whole


def write_shards(
    root: Path, split: str, paths: Sequence[str], names: Sequence[str], labels: Sequence[tuple[list[str], list[str]]]
) -> None:
    """Pack the images at `paths` into shards in `root`, and write their index.

    `names` are those of the members; `labels` are the names of the classes (present, unknown) of each image. All of it
    is written, or nothing. Raises InputError.
    """
    writer_class = import_webdataset("writing shards").ShardWriter
    staging = root / f".{split}.shards.tmp"
    pattern = f"{staging}{os.sep}".replace("%", "%%") + f"{split}-%06d.tar"
    options: dict[str, Any] = {"maxcount": SHARD_IMAGES, "maxsize": SHARD_BYTES, "verbose": 0, "post": _flush}
    options |= {"encoder": False, "mtime": 0, "format": "PAX_FORMAT"}  # any name; the same bytes each time
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with writer_class(pattern, **options) as writer, Progress(f"packing {split}", len(names)) as progress:
            for row in sorted(range(len(names)), key=names.__getitem__):
                key, _, ending = names[row].rpartition(".")
                present, unknown = labels[row]
                content = {"labels": present} | ({"unknown": unknown} if unknown else {})
                try:
                    data = read_bytes(paths[row])
                except OSError as error:
                    raise InputError(f"cannot read image {paths[row]}: {error.strerror}") from error
                writer.write({"__key__": key, ending: data, "json": json.dumps(content, ensure_ascii=False).encode()})
                progress.step(1)
        shards = sorted(path.name for path in staging.iterdir())
        found = list(scan_shards(staging, dict.fromkeys(shards, HERE)))
        for name in shards:
            os.replace(staging / name, root / name)
        write_index(name_index(root, split), found)
    except OSError as error:
        raise InputError(f"cannot write {root}: {explain(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _flush(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
