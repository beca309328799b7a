"""Each annotation format -> one and the same table; and the datasets and loaders over that table.

    table = read_dataset("~/ms-coco/ms-coco-dataset", split="train")    # .paths, .targets (N, C), .classes
    loader = make_loader(table, make_eval_transform("squash", 224), batch_size=32)

A batch is `images` uint8 (B, 3, H, W) RGB, `targets` float32 (B, C) with unknown as NaN, `weights` float32 (B,).
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from augmentations import Transform, apply_seeded
from image_cache import CachedImages
from utils import InputError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held


@dataclass(frozen=True)
class Table:
    """A data set: file paths, an (N, C) int8 matrix (1 present, 0 absent, -1 unknown), C class names."""

    paths: list[str]
    targets: NDArray[np.int8]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Sequence[int] | NDArray[np.intp]) -> Table:
        """The rows `indices`, in that order."""
        return Table([self.paths[i] for i in indices], self.targets[indices], self.classes)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any class, file name or label; not with the folder."""
        digest = hashlib.sha256("\n".join([*self.classes, "", *(Path(path).name for path in self.paths)]).encode())
        digest.update(np.ascontiguousarray(self.targets).tobytes())
        return digest.hexdigest()[:16]


def read_dataset(
    root: str | Path,
    format: str = "auto",
    split: str | None = None,
    *,
    images_dir: str | Path | None = None,
    labels_dir: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Table:
    """Read one split ("train", "test"), or all there are, of the data set in `root`.

    `images_dir` and `labels_dir` replace the folders that the format would look in; `classes` are the names
    where the data set does not bring its own. Raises InputError for whatever is missing or wrong.
    """
    root = Path(root).expanduser()
    if format == "auto":
        format = recognise_format(root) if labels_dir is None else "coco_cls"
    if format not in READERS:
        raise InputError(f"unknown data set format {format!r}: it is one of {', '.join(READERS)}")
    if split is None:
        splits = [name for name in ("train", "test") if (root / "labels" / name).is_dir()]
        tables = [READERS[format](root, name, None, None, classes) for name in splits]
        if not tables:
            raise InputError(f"{root}: no labels/train or labels/test in this data set")
        paths = [path for table in tables for path in table.paths]
        return Table(paths, np.concatenate([table.targets for table in tables]), tables[0].classes)
    return READERS[format](root, split, images_dir, labels_dir, classes)


def recognise_format(root: Path) -> str:
    """The name of the format that `root` is in, by what lies there."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: set DATASET_FOLDER to where the data set is")
    if (root / "images").is_dir() and (root / "labels").is_dir():
        return "coco_cls"
    raise InputError(f"{root} is in no known format: expected images/ and labels/ (coco_cls)")


def read_coco_cls(
    root: Path, split: str, images_dir: str | Path | None, labels_dir: str | Path | None, classes: Sequence[str] | None
) -> Table:
    """`images/<split>-resized/<stem>.jpg` and `labels/<split>/<stem>.cls`: one class index a line, maybe none."""
    images_dir = Path(images_dir or root / "images" / f"{split}-resized").expanduser()
    labels_dir = Path(labels_dir or root / "labels" / split).expanduser()
    names = read_classes(root, classes)
    images = {Path(path).stem: path for path in reversed(list_images(images_dir))}
    labels = {Path(path).stem: path for path in list_files(labels_dir, frozenset({".cls"}))}
    _require_pairs(images, labels, images_dir, labels_dir)
    stems = sorted(images)
    targets = np.zeros((len(stems), len(names)), dtype=np.int8)
    for row, stem in zip(targets, stems, strict=True):
        row[_read_cls(labels[stem], len(names))] = 1
    return Table([images[stem] for stem in stems], targets, names)


def read_classes(root: Path, default: Sequence[str] | None) -> tuple[str, ...]:
    """The names in `root/classes.txt`, one a line in index order; `default` where there is no such file."""
    path = root / "classes.txt"
    if not path.is_file():
        if default is None:
            raise InputError(f"{path} is missing: write the class names into it, one a line, in index order")
        return tuple(default)
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}:{number}: an empty line; each line names a class")
        if name in names[: number - 1]:
            raise InputError(f"{path}:{number}: class {name!r} stands here a second time")
    if not names:
        raise InputError(f"{path} is empty: write the class names into it, one a line, in index order")
    return tuple(names)


def list_images(folder: Path) -> list[str]:
    """The image files directly in `folder`, sorted by name. Raises InputError when there is none."""
    paths = list_files(folder, IMAGE_EXTENSIONS)
    if not paths:
        raise InputError(f"no images in {folder} ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    stems: dict[str, str] = {}
    for path in paths:
        other = stems.setdefault(Path(path).stem, path)
        if other != path:
            raise InputError(f"{other} and {Path(path).name} differ in their extension only: rename one")
    return paths


def list_files(folder: Path, extensions: frozenset[str]) -> list[str]:
    """The files directly in `folder` with one of `extensions` (lower case, with the dot), sorted by name."""
    try:
        with os.scandir(folder) as entries:  # one system call for many names, no stat of each
            return sorted(e.path for e in entries if os.path.splitext(e.name)[1].lower() in extensions)
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror}") from error


def split_table(table: Table, val_share: float, seed: int) -> tuple[Table, Table]:
    """(train, validation), stratified over all labels at once (Sechidis et al. 2011), the same for the same seed."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    num_val = round(len(table) * val_share)
    if 2 <= num_val <= len(table) - 2:
        splitter = MultilabelStratifiedShuffleSplit(
            n_splits=1,
            test_size=val_share,  # pyright: ignore[reportArgumentType]
            random_state=seed,
        )
        present = (table.targets == 1).astype(int)
        # images without a label make a class of their own, so that they too are shared out evenly
        strata = np.column_stack([present, present.sum(axis=1) == 0])
        train, val = next(splitter.split(np.zeros(len(table)), strata))
        if min(len(train), len(val)) >= 2:  # labels come before the exact number
            return table.select(np.sort(train)), table.select(np.sort(val))
    raise InputError(
        f"VAL_SPLIT {val_share} of {len(table)} images leaves {num_val} for validation and "
        f"{len(table) - num_val} for training: each needs at least 2"
    )


def decode_image(path: str | Path) -> NDArray[np.uint8]:
    """The image file as upright RGB uint8 (H, W, 3). Raises InputError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        if data[:2] == b"\xff\xd8" and b"Exif\0\0" not in data[:4096]:  # PIL turns the pictures that need it
            try:
                return simplejpeg.decode_jpeg(data)  # the same pixels as PIL's in half the time
            except ValueError:
                pass  # a kind it does not take (CMYK) or a damaged file: PIL decides
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace("\n", " ")
        raise InputError(f"cannot read image {path}: {reason}") from error


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


class ImageDataset:
    """Batches of images and targets by keys, which say which image in which epoch: key = epoch * N + index.

    A random transform is seeded by `seed` and the key, so an epoch's pictures are the same whatever the
    number of workers, and whatever ran before. Nothing here is a Python object per image: each worker would copy it.
    """

    def __init__(self, table: Table, transform: Transform, seed: int = 0, cached: CachedImages | None = None) -> None:
        self.paths, self.targets = PackedPaths(table.paths), table.targets
        self.transform, self.seed, self.cached = transform, seed, cached

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: list[int]) -> Batch:
        indices = np.array(keys) % len(self)
        images = [self._make_picture(key, index) for key, index in zip(keys, indices.tolist(), strict=True)]
        return Batch(torch.stack(images), as_float_targets(self.targets[indices]), torch.ones(len(keys)))

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


def as_float_targets(targets: NDArray[np.int8]) -> Tensor:
    """(B, C) float32 of 1, 0 and, for unknown, NaN."""
    return torch.from_numpy(np.where(targets < 0, np.float32("nan"), targets.astype(np.float32)))


class EpochBatches(Sampler[list[int]]):
    """Batches of keys for one epoch after another: set `epoch` before each. Order and make-up follow the seed.

    A last batch of one image would break BatchNorm in training, so with `shuffle` it joins the batch before.
    """

    def __init__(self, num_images: int, batch_size: int, shuffle: bool, seed: int) -> None:
        self.num_images, self.batch_size, self.shuffle, self.seed = num_images, batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + (rest > 1 or (rest == 1 and not (self.shuffle and whole)))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.num_images)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        keys = order + self.epoch * self.num_images
        ends = [self.batch_size * (i + 1) for i in range(len(self) - 1)] + [self.num_images]
        start = 0
        for end in ends:
            yield keys[start:end].tolist()
            start = end


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
) -> DataLoader[Batch]:
    """A loader of `Batch`es over `table`: in order, or shuffled anew in each epoch (`set_epoch`)."""
    dataset = ImageDataset(table, transform, seed, cached)
    return load_batches(dataset, batch_size, shuffle=shuffle, seed=seed, num_workers=num_workers, pin_memory=pin_memory)


def load_batches(
    dataset: BatchDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A loader over anything that gives batches for the keys of `EpochBatches`."""
    return DataLoader(
        dataset,  # pyright: ignore[reportArgumentType]  # torch's fetcher asks for whole batches where it can
        batch_sampler=EpochBatches(len(dataset), batch_size, shuffle, seed),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else each epoch would draw a number from the run's own
    )


def set_epoch(loader: DataLoader[Batch], epoch: int) -> None:
    """Choose the epoch whose order and random pictures the loader yields next."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    loader.batch_sampler.epoch = epoch


def count_images(loader: DataLoader[Batch]) -> int:
    """The number of images that the loader yields in an epoch."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    return loader.batch_sampler.num_images


def _as_it_is(batch: Any) -> Any:
    return batch  # the data set made a batch already


def _require_pairs(images: dict[str, str], labels: dict[str, str], images_dir: Path, labels_dir: Path) -> None:
    """Raise InputError unless each image has a label file and each label file an image."""
    for missing, what, folder, other in (
        (sorted(images.keys() - labels.keys()), "image(s) without a label file", labels_dir, ".cls"),
        (sorted(labels.keys() - images.keys()), "label file(s) without an image", images_dir, ".jpg"),
    ):
        if missing:
            raise InputError(f"{len(missing)} {what}, the first: {folder / missing[0]}{other} does not exist")


def _read_cls(path: str, num_classes: int) -> list[int]:
    """The class indices in a .cls file. Raises InputError with the line that holds anything else."""
    with open(path, "rb") as file:
        lines = file.read().removeprefix(codecs.BOM_UTF8).splitlines()
    indices = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if not text.isdigit():
            found = text.decode(errors="replace")
            raise InputError(
                f"{path}:{number}: {found!r} is not a class index (one index 0...{num_classes - 1} a line)"
            )
        if int(text) >= num_classes:
            raise InputError(f"{path}:{number}: class index {int(text)} is outside 0...{num_classes - 1}")
        indices.append(int(text))
    return indices


Reader = Callable[[Path, str, str | Path | None, str | Path | None, Sequence[str] | None], Table]
READERS: dict[str, Reader] = {"coco_cls": read_coco_cls}
