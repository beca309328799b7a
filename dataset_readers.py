"""Data sets in any annotation format -> one and the same table; and the datasets and loaders over that table.

    table = read_dataset("~/ms-coco/ms-coco-dataset", split="train")    # .paths, .targets (N, C), .classes
    loader = make_loader(table, make_eval_transform("squash", 224), batch_size=32)

A batch is `images` uint8 (B, 3, H, W) RGB, `targets` float32 (B, C) with unknown as NaN, `weights` float32 (B,).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

import distributed
from augmentations import Transform, apply_seeded
from dataset_files import IMAGE_EXTENSIONS, find_path, list_images, make_absolute, read_lines
from dataset_formats import FORMATS, Format, ReadOptions
from dataset_shards import SHARDS_AT_ONCE, find_blocks, read_image
from dataset_table import Table, drop_repeats, join_tables, map_classes
from image_cache import CachedImages, stamp_files
from utils import InputError, Progress, suggest, warn, write_text

__all__ = ["IMAGE_EXTENSIONS", "ReadOptions", "Table", "join_tables", "list_images", "map_classes"]  # for others, too

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # what PIL may take a file for: none runs a program
MAX_PIXELS = 2 * 89_478_485  # from there on PIL speaks of a decompression bomb
DECODER_ERRORS = (  # what PIL raises over damaged files
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, ZeroDivisionError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
SECONDS_AFTER_SIGTERM = 20  # that a loading process goes on; torchrun gives 30
BACKGROUND = (255, 255, 255)  # behind transparent pixels: white, as on a page


def read_dataset(
    root: str | Path | Sequence[str | Path],
    format: str = "auto",
    split: str | None = None,
    *,
    images_dir: str | Path | None = None,
    labels_dir: str | Path | None = None,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
) -> Table:
    """Read one split ("train", "val", "test"), or all there are, of the data set in `root`, each sorted by path.

    Several roots are joined: their classes agree by name, their formats may differ when `format` is "auto".
    `images_dir` and `labels_dir` are where coco_cls or coco_json has the split of the first root, when not where it
    usually has them; `classes` are the names where the data set does not bring its own; `group_pattern` is a regular
    expression whose first group finds an image's source in its path. Raises InputError for what is missing or wrong.
    """
    roots = [root] if isinstance(root, str | Path) else list(root)
    folders = [(images_dir, labels_dir), *[(None, None)] * (len(roots) - 1)]
    tables = []
    for one, (images, labels) in zip(roots, folders, strict=True):
        one = make_absolute(one)
        name = recognise_format(one, labels) if format == "auto" else format
        format_read = find_format(name)
        if (images or labels) and (split is None or name not in ("coco_cls", "coco_json")):
            raise InputError(f"images_dir and labels_dir are for one split of coco_cls or coco_json, not for {name}")
        splits = [split] if split else format_read.list_splits(one)
        if not splits:
            raise InputError(f"{one} has no split of format {name}")
        tables += [format_read.read(one, part, images, labels, classes, options or ReadOptions()) for part in splits]
    table = tables[0] if len(tables) == 1 else drop_repeats(join_tables(tables))
    return table if group_pattern is None else find_groups(table, group_pattern)


def recognise_format(root: str | Path, labels_dir: str | Path | None = None) -> str:
    """The name of the format that `root` is in, by what lies there; coco_cls, too, where there is a `labels_dir`.

    Raises InputError where that is none, or more than one.
    """
    root = make_absolute(root)
    if labels_dir is not None and make_absolute(labels_dir).is_dir():
        return "coco_cls"
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: set DATASET_FOLDER to where the data set is")
    found = find_formats(root)
    if len(found) > 1:
        raise InputError(f"{root} is in more than one format: set DATASET_FORMAT to {' or '.join(found)}")
    if not found:
        raise InputError(
            f"{root} is in no known format: expected images/ and labels/train/ (coco_cls), train_list.txt, label.txt "
            "and train.txt (mlcls), train/<class>/ (image_folder), train.json (classes_json), "
            "annotations/instances_train*.json (coco_json) or train.csv (commas, a column image_path), "
            "train-000000.tar or shards.txt (webdataset), or the same for val or test"
        )
    return found[0]


def find_formats(root: Path) -> list[str]:
    """The formats that `root` may be in."""
    found = [name for name, format in FORMATS.items() if format.recognise(root)]
    if "coco_cls" in found:
        return ["coco_cls"]  # this project's own layout, beside what it was made from
    if len(found) > 1:
        return [name for name in found if name != "image_folder"]  # other formats have their images in folders, too
    return found


def find_format(name: str) -> Format:
    """The format called `name`. Raises InputError."""
    if name not in FORMATS:
        raise InputError(f"unknown data set format {name!r}{suggest(name, FORMATS)}: it is one of {', '.join(FORMATS)}")
    return FORMATS[name]


def list_splits(root: str | Path, format: str = "auto") -> list[str]:
    """Those of "train", "val", "test" that the data set in `root` has."""
    root = make_absolute(root)
    return find_format(recognise_format(root) if format == "auto" else format).list_splits(root)


def has_split(root: str | Path, format: str, split: str, labels_dir: str | Path | None = None) -> bool:
    """Whether there are labels of `split`: in `labels_dir`, or in what else the data set in `root` is made of."""
    root = make_absolute(root)
    if labels_dir is not None and format in ("auto", "coco_cls") and make_absolute(labels_dir).is_dir():
        return True
    if format == "auto":
        if not find_formats(root):
            return False
        format = recognise_format(root)
    return not (format == "coco_cls" and labels_dir is not None) and split in find_format(format).list_splits(root)


def find_groups(table: Table, pattern: str) -> Table:
    """`table` with each image's source: what the first group of `pattern` finds in its path, "" where it does not."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"GROUP_PATTERN {pattern!r} is no regular expression: {error}") from error
    if not expression.groups:
        raise InputError(f"GROUP_PATTERN {pattern!r} has no group (...) that finds an image's source")
    found = map(expression.search, table.paths)
    groups = tuple((match[1] or "") if match else "" for match in found)
    if not any(groups):
        raise InputError(f"GROUP_PATTERN {pattern!r} finds no source in any path, such as {table.paths[0]}")
    return replace(table, groups=groups)


def exclude(table: Table, file: Path, root: str | Path) -> Table:
    """`table` without the images that `file` lists: a path a line, from the folder `root` on; # begins a comment.

    Warns of lines that name no file; images of other splits may well be listed.
    """
    base = str(make_absolute(root))
    listed = {find_path(base, line): number for number, line in read_lines(file) if not line.startswith("#")}
    paths = [str(make_absolute(path)) for path in table.paths]
    unknown = [path for path in listed.keys() - set(paths) if not Path(path).exists()]
    if unknown:
        number = min(listed[path] for path in unknown)
        warn(f"{file}: {len(unknown)} line(s) name no file in {base}, the first is line {number}")
    kept = [row for row, path in enumerate(paths) if path not in listed]
    if not kept:
        raise InputError(f"{file} excludes all {len(table)} images")
    return table.select(kept)


def leave_out_bad_images(table: Table, cache_folder: Path | None = None) -> tuple[Table, dict[str, str]]:
    """(`table` without the images that cannot be read, {path: why} of those); BAD_IMAGES = "skip". Warns of them."""
    bad = find_bad_images(table.paths, cache_folder)
    if len(bad) == len(table):
        raise InputError(f"none of the {len(table)} images can be read; {next(iter(bad.values()))}")
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        warn(f"{len(bad)} of {len(table)} images are left out: {'; '.join([*bad.values()][:3])}{more}")
    return table.select([row for row, path in enumerate(table.paths) if path not in bad]), bad


def find_bad_images(paths: Sequence[str], cache_folder: Path | None = None) -> dict[str, str]:
    """{path: why} of the images that cannot be decoded; each is tried, side by side in threads, with progress.

    With a `cache_folder` that happens once for the same files: names, sizes and times.
    """
    digest = hashlib.sha256("\n".join(paths).encode(errors="surrogateescape"))
    digest.update(stamp_files(paths).tobytes())
    found = None if cache_folder is None else cache_folder / f"bad_images_{digest.hexdigest()[:16]}.json"
    if found is not None and found.is_file():
        return json.loads(found.read_text(encoding="utf-8"))
    bad = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("trying the images", len(paths)) as progress:
        for path, reason in zip(paths, pool.map(_try_image, paths), strict=True):
            if reason:
                bad[path] = reason
            progress.step(1)
    if found is not None:
        write_text(found, json.dumps(bad, indent=1))
    return bad


def _try_image(path: str) -> str | None:
    try:
        decode_image(path)
    except InputError as error:
        return str(error)
    return None


def decode_image(path: str | Path) -> NDArray[np.uint8]:
    """The image file, or member of a shard, as upright RGB uint8 (H, W, 3). Raises InputError when it cannot be read.

    Of several pictures in it the first; 16 bits are scaled to 8; what lies behind transparent pixels is white.
    """
    try:
        data = read_image(path)
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from error
    return decode_bytes(data, str(path))


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """The same of an image file's content; `name` is for the InputError."""
    try:
        if data[:2] == b"\xff\xd8":
            try:
                if _is_plain_jpeg(data):
                    return simplejpeg.decode_jpeg(data)  # the same pixels as PIL's in half the time
            except ValueError:
                pass  # damaged: PIL decides
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return _make_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        reason = f"it is no {', '.join(IMAGE_FORMATS)} file" if data else "the file is empty"
        raise InputError(f"cannot read image {name}: {reason}") from error
    except DECODER_ERRORS as error:
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise InputError(f"cannot read image {name}: {reason}") from error


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a JPEG needs decoding only: it is no bomb, not CMYK, and has no Exif part, which may say to turn it."""
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    if int(height) * int(width) > MAX_PIXELS or colorspace in ("CMYK", "YCCK"):
        return False
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1] != 0xDA:  # up to where the pixels begin
        if data[start + 1] == 0xFF:  # padding
            start += 1
        elif data[start + 1] == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return False
        else:
            start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return True


def _make_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels as a person sees them, in RGB."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # convert() would clip
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of which none says what is white; save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return np.array(image.convert("RGB"))


class Batch(NamedTuple):
    """What a model is trained on: see the head of this file."""

    images: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; the copy overlaps computing when the tensors are pinned."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class BatchDataset(Protocol):
    """What a loader reads from: whole batches by their keys."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[int]) -> Batch: ...


class Labels:
    """What a batch holds besides pictures: the table's targets and weights of 1, unless others are given.

    `targets` are float32 (N, C), NaN unknown; `weights` float32 (N,). Batches are asked for by keys, which say which
    image in which epoch: key = epoch * N + index. Nothing here is a Python object per image: each loading process
    would copy it.
    """

    def __init__(
        self, table: Table, targets: NDArray[np.float32] | None = None, weights: NDArray[np.float32] | None = None
    ) -> None:
        self.targets = table.targets if targets is None else targets
        self.weights = np.ones(len(table), np.float32) if weights is None else weights
        if self.targets.shape != table.targets.shape or self.weights.shape != (len(table),):
            raise ValueError(f"{self.targets.shape} targets, {self.weights.shape} weights for {table.targets.shape}")

    def __len__(self) -> int:
        return len(self.targets)

    def join(self, images: Tensor, indices: NDArray[np.intp]) -> Batch:
        """The batch of these images."""
        return Batch(images, as_float_targets(self.targets[indices]), torch.from_numpy(self.weights[indices]))


class ImageDataset(Labels):
    """Batches of images.

    A random transform is seeded by `seed` and the key, so an epoch's pictures are the same whatever the
    number of workers, and whatever ran before.
    """

    def __init__(
        self,
        table: Table,
        transform: Transform,
        seed: int = 0,
        cached: CachedImages | None = None,
        targets: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(table, targets, weights)
        self.paths, self.transform, self.seed, self.cached = PackedPaths(table.paths), transform, seed, cached

    def __getitems__(self, keys: list[int]) -> Batch:
        indices = np.array(keys) % len(self)
        images = [self._make_picture(key, index) for key, index in zip(keys, indices.tolist(), strict=True)]
        return self.join(torch.stack(images), indices)

    def _make_picture(self, key: int, index: int) -> Tensor:
        image = self.cached.read(index) if self.cached else None
        if image is None:
            image = decode_image(self.paths[index])
            image = self.cached.keep(index, image) if self.cached else image
        seed = (self.seed * 0x9E3779B1 + key) % 2**32  # the golden ratio keeps the runs of two seeds apart
        return apply_seeded(self.transform, torch.from_numpy(image).permute(2, 0, 1), seed)


class PackedPaths:
    """File paths in two arrays instead of a Python object each."""

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


def as_float_targets(targets: NDArray[np.int8] | NDArray[np.float32]) -> Tensor:
    """(B, C) float32 of 1, 0, fractions and, for unknown (-1 or NaN), NaN."""
    return torch.from_numpy(np.where(targets < 0, np.float32("nan"), targets.astype(np.float32)))


def shuffle_blocks(
    blocks: NDArray[np.int64], rng: np.random.Generator, at_once: int = SHARDS_AT_ONCE
) -> NDArray[np.intp]:
    """A random order of (N,) images that needs `at_once` blocks at a time; `blocks` says which each is in, -1 none.

    Time runs from 0 to P - at_once + 1 for P blocks in random order. Block p comes in at p - at_once + 1 and goes out
    at p + 1, or when time begins and ends; each of its images has a random moment between.
    """
    num_blocks = blocks.max(initial=-1) + 1
    places = np.append(rng.permutation(num_blocks), 0)[blocks]
    last = max(num_blocks - at_once, 0)
    starts = np.where(blocks < 0, 0, np.clip(places - at_once + 1, 0, last))
    ends = np.where(blocks < 0, last, np.minimum(places, last)) + 1
    return np.argsort(starts + rng.random(len(blocks)) * (ends - starts), kind="stable")


class EpochBatches(Sampler[list[int]]):
    """Batches of keys for one epoch after another: set `epoch` before each. Order and make-up follow the seed.

    With `blocks` (N,), such as each image's shard, `shuffle` keeps to a few of them at a time.

    `first_step` skips the batches before it. `share` (k, K) is what process k of K gets, which are those that torchrun
    started: with `shuffle` every K-th key of each batch, from its k-th on; else the k-th of K stretches of all keys, in
    batches of its own. BatchNorm in training needs two images in each process, so with `shuffle` a last batch of fewer
    joins the batch before.
    """

    def __init__(
        self, num_images: int, batch_size: int, shuffle: bool, seed: int, blocks: NDArray[np.int64] | None = None
    ) -> None:
        self.num_images, self.batch_size, self.shuffle, self.seed = num_images, batch_size, shuffle, seed
        self.blocks = blocks
        self.share = (distributed.rank(), distributed.count())
        self.epoch = self.first_step = 0

    @property
    def own(self) -> range:
        """The places, in the epoch's order, that the process has a part in."""
        part, parts = (0, 1) if self.shuffle else self.share
        return range(self.num_images * part // parts, self.num_images * (part + 1) // parts)

    def count_images(self, step: int) -> int:
        """The images of a step, of all processes together."""
        return (len(self.own) if step == len(self) - 1 else self.batch_size * (step + 1)) - self.batch_size * step

    def __len__(self) -> int:
        whole, rest = divmod(len(self.own), self.batch_size)
        least = 2 * self.share[1] if self.shuffle and whole else 1
        return whole + (rest >= least)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.num_images)
        if self.shuffle:
            rng = np.random.default_rng([self.seed, self.epoch])
            if self.blocks is None:
                rng.shuffle(order)
            else:
                order = shuffle_blocks(self.blocks, rng)
        keys = order[self.own.start : self.own.stop] + self.epoch * self.num_images
        first, every = self.share if self.shuffle else (0, 1)
        starts = [self.batch_size * i for i in range(len(self))]
        for start, end in list(zip(starts, [*starts[1:], len(keys)], strict=True))[self.first_step :]:
            yield keys[start:end][first::every].tolist()


def make_loader(
    table: Table,
    transform: Transform,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    cached: CachedImages | None = None,
    targets: NDArray[np.float32] | None = None,
    weights: NDArray[np.float32] | None = None,
) -> DataLoader[Batch]:
    """A loader of `Batch`es over `table`: in order, or shuffled anew in each epoch (`set_epoch`).

    `targets` (N, C), soft ones say, and `weights` (N,) take the place of the table's and of ones; see Labels.
    """
    dataset = ImageDataset(table, transform, seed, cached, targets, weights)
    return load_batches(
        dataset,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        num_workers=num_workers,
        pin_memory=pin_memory,
        blocks=find_blocks(table.paths) if shuffle else None,
    )


def load_batches(
    dataset: BatchDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    blocks: NDArray[np.int64] | None = None,
) -> DataLoader[Batch]:
    """A loader over anything that gives batches for the keys of `EpochBatches`; see there for `blocks`."""
    return DataLoader(
        dataset,  # pyright: ignore[reportArgumentType]  # torch's fetcher asks for whole batches where it can
        batch_sampler=EpochBatches(len(dataset), batch_size, shuffle, seed, blocks),
        collate_fn=_as_it_is,
        worker_init_fn=_outlive_termination,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else each epoch would draw a number from the run's own
    )


def set_epoch(loader: DataLoader[Batch], epoch: int, first_step: int = 0) -> None:
    """Choose the epoch whose order and random pictures the loader yields next, and the step it begins at."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    loader.batch_sampler.epoch, loader.batch_sampler.first_step = epoch, first_step


def share_batches(loader: DataLoader[Batch], part: int, parts: int) -> None:
    """Let the loader yield the share of `part` (from 0) of `parts`; see EpochBatches."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    loader.batch_sampler.share = (part, parts)


def count_images(loader: DataLoader[Batch]) -> int:
    """The number of images of an epoch of the loader; of a share that is read in order, its own."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    return len(loader.batch_sampler.own)


def _outlive_termination(worker: int) -> None:
    """The process that trains finishes its step and saves first; torch's own handler would end the worker at once."""
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_termination, args=(os.getppid(),), daemon=True).start()


def _await_termination(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:  # it sends one, too: when it has ended
        signal.alarm(SECONDS_AFTER_SIGTERM)
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch  # the data set made a batch already
