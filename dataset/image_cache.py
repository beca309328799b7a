"""Prepared images, kept so that each file is decoded once: IMAGE_CACHE = "memory" or "disk".

    cache = ImageCache(table.paths, prepare, "short side 256", max_pixels=256 * 456, limit_gb=8.0)
    loader = make_loader(table, transform, batch_size=32, cached=cache.select(table.paths))

Each image has a slot in one block of memory, or in one file, that all loading processes share; all slots have the same
size. The process that decodes an image first fills its slot. Slots that are not filled take no room. An image that is
larger than a slot, or whose slot would lie beyond the limit, is decoded every time.
"""

from __future__ import annotations

import errno
import hashlib
import io
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
from dataset.files import BINARY, read_at, write_at
from dataset.whole_files import write_atomically
from utils import InputError, explain, warn

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
        slot_size = 3 * max_pixels
        num_slots = min(len(paths), int(limit_gb * 1e9) // slot_size)
        if not num_slots:
            raise InputError(f"IMAGE_CACHE_GB is {limit_gb}: less than one image of {slot_size:,} bytes")
        shapes = np.frombuffer(mmap.mmap(-1, 8 * num_slots), dtype=np.int32).reshape(num_slots, 2)
        if folder is None:
            self.index = None
            block = np.frombuffer(mmap.mmap(-1, num_slots * slot_size), dtype=np.uint8).reshape(num_slots, -1)
            self.slots: Slots = SlotsInMemory(prepare, shapes, slot_size, block)
        else:
            key = hashlib.sha256("\n".join([name, str(max_pixels), *paths]).encode(errors="surrogateescape"))
            pixels = folder / f"images_{key.hexdigest()[:16]}.uint8"
            self.index = pixels.with_suffix(".npz")
            file, old_size = _open(pixels, num_slots * slot_size)
            self._read_index(shapes)
            shapes[old_size // slot_size :] = 0  # the file was deleted or shortened: it has room there, but no pixels
            self.slots = SlotsOnDisk(prepare, shapes, slot_size, pixels, file)
        self.num_saved = int((shapes[:, 0] > 0).sum())

    def select(self, paths: Sequence[str]) -> CachedImages:
        """The slots of `paths`, in that order."""
        return CachedImages(self.slots, np.array([self.row_of[path] for path in paths]))

    def save(self) -> None:
        """Write down which slots are filled, for later runs; call it when an epoch is done."""
        shapes = self.slots.shapes
        num_filled = int((shapes[:, 0] > 0).sum())
        if self.index is None or num_filled == self.num_saved:
            return
        assert isinstance(self.slots, SlotsOnDisk)
        if not self.slots.sync():  # the pixels come first, since the index says that they are complete
            warn(f"{self.slots.path} was deleted: what this run decodes is kept for itself only")
            self.num_saved = num_filled
            return

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
    """The places of prepared images. `shapes` (N, 2) are their height and width, 0 where a slot is empty."""

    def __init__(self, prepare: Transform, shapes: NDArray[np.int32], slot_size: int) -> None:
        self.prepare, self.shapes, self.slot_size = prepare, shapes, slot_size

    def __reduce__(self) -> NoReturn:
        raise InputError("IMAGE_CACHE needs loading processes that are forked, as on Linux: set NUM_WORKERS = 0")

    def read(self, row: int, num_bytes: int) -> Pixels:
        """The first `num_bytes` of a slot, which must not be changed."""
        raise NotImplementedError

    def write(self, row: int, pixels: Pixels) -> None:
        """Fill a slot from its beginning on."""
        raise NotImplementedError


class SlotsInMemory(Slots):
    """Slots in a `block` uint8 (N, slot size) of shared memory."""

    def __init__(self, prepare: Transform, shapes: NDArray[np.int32], slot_size: int, block: Pixels) -> None:
        super().__init__(prepare, shapes, slot_size)
        self.block = block

    def read(self, row: int, num_bytes: int) -> Pixels:
        return self.block[row, :num_bytes]

    def write(self, row: int, pixels: Pixels) -> None:
        self.block[row, : pixels.size] = pixels


class SlotsOnDisk(Slots):
    """Slots in a file. It is not mapped: where a mapped file is shortened, or its disk is full, the process dies."""

    def __init__(
        self, prepare: Transform, shapes: NDArray[np.int32], slot_size: int, path: Path, file: io.FileIO
    ) -> None:
        super().__init__(prepare, shapes, slot_size)
        self.path, self.file = path, file

    def __del__(self) -> None:
        self.file.close()

    def read(self, row: int, num_bytes: int) -> Pixels:
        pixels = np.empty(num_bytes, np.uint8)
        try:
            num_read = read_at(self.file.fileno(), pixels.data, row * self.slot_size)
        except OSError as error:
            raise InputError(f"cannot read the image cache {self.path}: {explain(error)}") from error
        if num_read < num_bytes:
            raise InputError(f"{self.path} was shortened by another program: the same command decodes its images anew")
        return pixels

    def write(self, row: int, pixels: Pixels) -> None:
        try:
            if write_at(self.file.fileno(), pixels.data, row * self.slot_size) < pixels.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the rest did not fit
        except OSError as error:
            raise InputError(
                f"cannot write the image cache {self.path}: {explain(error)}; or lower IMAGE_CACHE_GB"
            ) from error

    def sync(self) -> bool:
        """Bring what was written to the disk. Returns whether later runs find it: the file may have been deleted."""
        try:
            os.fsync(self.file.fileno())
            return os.path.samestat(self.path.stat(), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise InputError(f"cannot write the image cache {self.path}: {explain(error)}") from error


class CachedImages:
    """The slots of some images: `read(index)` gives what is kept, `keep(index, image)` fills an empty slot."""

    def __init__(self, slots: Slots, rows: NDArray[np.int64]) -> None:
        self.slots, self.rows = slots, rows

    def read(self, index: int) -> Pixels | None:
        """The prepared image (H, W, 3), which must not be changed; None where it is not kept."""
        row = int(self.rows[index])
        if row >= len(self.slots.shapes) or not self.slots.shapes[row, 0]:
            return None
        height, width = self.slots.shapes[row].tolist()
        return self.slots.read(row, height * width * 3).reshape(height, width, 3)

    def keep(self, index: int, image: Pixels) -> Pixels:
        """Prepare the decoded `image`, and keep it where there is room. Returns the prepared image."""
        slots, row = self.slots, int(self.rows[index])
        prepared = slots.prepare(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).contiguous().numpy()
        if row < len(slots.shapes) and prepared.size <= slots.slot_size:
            slots.write(row, prepared.ravel())
            slots.shapes[row] = prepared.shape[:2]  # last: from now on other processes read the slot
        return prepared


def _open(path: Path, num_bytes: int) -> tuple[io.FileIO, int]:
    """(the file, its size before) of a file of `num_bytes`, which takes room only where something was written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o644), "r+")
        old_size = os.fstat(file.fileno()).st_size
        os.truncate(file.fileno(), max(num_bytes, old_size))
    except OSError as error:
        raise InputError(f"cannot open the image cache {path}: {explain(error)}") from error
    return file, old_size
