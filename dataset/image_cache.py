"""Prepared images, kept so that each file is decoded once: IMAGE_CACHE = "memory" or "disk".

    cache = ImageCache(table.paths, prepare, "short side 256", max_pixels=256 * 456, limit_gb=8.0)
    loader = make_loader(table, transform, batch_size=32, cached=cache.select(table.paths))

Each image has a slot in one memory-mapped block that all loading processes share; all slots have the same size. The
process that decodes an image first fills its slot. Slots that are not filled take no room. An image that is larger than
a slot, or whose slot would lie beyond the limit, is decoded every time.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from dataset.array_files import read_arrays
from dataset.batches import Transform
from dataset.decoding import stamp_files
from utils import InputError, warn, write_atomically

Pixels = NDArray[np.uint8]  # (H, W, 3)


class ImageCache:
    """Slots for the images of `paths`: in memory, or in a file in `folder`, where later runs find them.

    `prepare` turns a decoded image into the one that is kept. `name` describes it, so that each way of preparing has a
    file of its own. An image file whose size or time changed is decoded anew.
    """

    def __init__(
        self,
        paths: Sequence[str],
        prepare: Transform,
        name: str,
        max_pixels: int,
        limit_gb: float,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.row_of = {path: row for row, path in enumerate(paths)}
        self.stamps = stamp_files(paths)
        num_slots = min(len(paths), int(limit_gb * 1e9) // (3 * max_pixels))
        if not num_slots:
            raise InputError(f"IMAGE_CACHE_GB is {limit_gb}: less than one image of {3 * max_pixels:,} bytes")
        shapes = np.frombuffer(mmap.mmap(-1, 8 * num_slots), dtype=np.int32).reshape(num_slots, 2)
        if folder is None:
            self.index, file, block = None, None, mmap.mmap(-1, num_slots * 3 * max_pixels)
        else:
            key = hashlib.sha256("\n".join([name, str(max_pixels), *paths]).encode(errors="surrogateescape"))
            pixels = folder / f"images_{key.hexdigest()[:16]}.uint8"
            self.index = pixels.with_suffix(".npz")
            file, block = _open(pixels, num_slots * 3 * max_pixels)
            self._read_index(shapes)
        self.slots = Slots(prepare, np.frombuffer(block, dtype=np.uint8).reshape(num_slots, -1), shapes, file)
        self.num_saved = int((shapes[:, 0] > 0).sum())

    def select(self, paths: Sequence[str]) -> CachedImages:
        """The slots of `paths`, in that order."""
        return CachedImages(self.slots, np.array([self.row_of[path] for path in paths]))

    def save(self) -> None:
        """Write down which slots are filled, for later runs; call it when an epoch is done."""
        shapes = self.slots.shapes
        num_filled = int((shapes[:, 0] > 0).sum())
        if self.index is None or self.slots.file is None or num_filled == self.num_saved:
            return
        os.fsync(self.slots.file)  # the pixels come first, since the index says that they are complete

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, shapes=shapes, stamps=self.stamps)

        write_atomically(self.index, write)
        self.num_saved = num_filled

    def _read_index(self, shapes: NDArray[np.int32]) -> None:
        """Use the slots of an earlier run whose image files did not change."""
        assert self.index is not None
        if self.index.is_file():
            try:
                saved = read_arrays(self.index)
                count = min(len(shapes), len(saved["shapes"]))
                same = (saved["stamps"][:count] == self.stamps[:count]).all(axis=1)
                shapes[:count] = np.where(same[:, None], saved["shapes"][:count], 0)
            except (OSError, ValueError, LookupError) as error:
                warn(f"{self.index} is damaged ({error}): the images are decoded again")


class Slots:
    """The shared block: `pixels` (N, bytes), and `shapes` (N, 2): height and width, 0 for a slot that is empty."""

    def __init__(self, prepare: Transform, pixels: Pixels, shapes: NDArray[np.int32], file: int | None) -> None:
        self.prepare, self.pixels, self.shapes, self.file = prepare, pixels, shapes, file

    def __reduce__(self) -> NoReturn:
        raise InputError("IMAGE_CACHE needs loading processes that are forked, as on Linux: set NUM_WORKERS = 0")


class CachedImages:
    """The slots of some images: `read(index)` gives what is kept, `keep(index, image)` fills an empty slot."""

    def __init__(self, slots: Slots, rows: NDArray[np.int64]) -> None:
        self.slots, self.rows = slots, rows

    def read(self, index: int) -> Pixels | None:
        """The prepared image (H, W, 3), which must not be changed; None where it is not kept."""
        row = self.rows[index]
        if row >= len(self.slots.shapes) or not self.slots.shapes[row, 0]:
            return None
        height, width = self.slots.shapes[row]
        return self.slots.pixels[row, : height * width * 3].reshape(height, width, 3)

    def keep(self, index: int, image: Pixels) -> Pixels:
        """Prepare the decoded `image`, and keep it where there is room. Returns the prepared image."""
        slots, row = self.slots, self.rows[index]
        prepared = slots.prepare(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).contiguous().numpy()
        if row < len(slots.shapes) and prepared.size <= slots.pixels.shape[1]:
            if slots.file is None:
                slots.pixels[row, : prepared.size] = prepared.ravel()
            else:
                try:  # writing to the file, a full disk is an error; writing to the mapping, it ends the process
                    if os.pwrite(slots.file, prepared.data, row * slots.pixels.shape[1]) < prepared.size:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the rest did not fit
                except OSError as error:
                    raise InputError(
                        f"no room for the image cache: {error.strerror}; free some, or lower IMAGE_CACHE_GB"
                    ) from error
            slots.shapes[row] = prepared.shape[:2]  # last: from now on other processes read the slot
        return prepared


def _open(path: Path, num_bytes: int) -> tuple[int, mmap.mmap]:
    """(descriptor, mapping) of a file of `num_bytes`, which takes room only where something was written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.truncate(file, max(num_bytes, os.fstat(file).st_size))
        return file, mmap.mmap(file, num_bytes)
    except OSError as error:
        raise InputError(f"cannot open the image cache {path}: {error.strerror}") from error
