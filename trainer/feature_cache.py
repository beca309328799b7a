"""Keeps the features of a frozen backbone: they are computed once for each picture, and the head trains on them.

    shape = measure_features(model, 224)
    features = read_features(model=model, loader=image_loader, table=table, shape=shape, pixels="squash", folder=folder)
    loader = make_feature_loader([features], table, batch_size=32, shuffle=True)    # batches for model.head

Features are kept as .npy files. A file's name changes with everything that decides its content: the weights, the
preprocessing, and each image file's name, size and time. Later runs find the file and use it. The folder can be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import distributed
from dataset.array_files import HEADER_ERRORS
from dataset.batches import Batch
from dataset.decoding import stamp_files
from dataset.files import read_at
from dataset.image_sizes import as_size
from dataset.loading import Labels, LoadingOptions, count_images, load_batches, share_batches
from dataset.table import Table
from dataset.whole_files import name_temporary, remove_leftovers, write_atomically
from heads import pool
from limits import ImageSize
from models.batchnorm_folding import fold_batchnorm
from models.features import OWN
from models.low_rank import merge
from models_factory import MultiLabelModel
from utils import InputError, explain, first_line, track


def measure_features(model: MultiLabelModel, image_size: ImageSize) -> tuple[int, ...]:
    """The shape in which one picture's features are kept: (D, 1, 1) if the head begins with pooling, else (D, h, w)."""
    image = torch.zeros(1, 3, *as_size(image_size), dtype=torch.uint8, device=model.mean.device)
    return tuple(_extract(model, model.backbone, image).shape[1:])


def read_features(
    *,
    model: MultiLabelModel,
    loader: DataLoader[Batch],
    table: Table,
    shape: Sequence[int],
    pixels: str,
    folder: Path,
    autocast: Callable[[], Any] = nullcontext,
    title: str = "features",
) -> FeatureFile:
    """Features (N, *shape) of the N pictures of `table`, in order: read from `folder`, or computed and kept there.

    `loader` gives the pictures, in order. `pixels` says what decides them besides the image files: the transform, its
    seed, the epoch. The result may be larger than memory. With several processes on a machine each one computes a share
    of the rows. Raises InputError where the file cannot be written, or is damaged.
    """
    path = folder / f"features_{_identify(model, table, pixels)}.npy"
    remove_leftovers(folder)
    (is_missing,) = distributed.agree(_open_whole(path, (len(table), *shape)) is None)
    if is_missing:
        process, num_processes = distributed.place()
        share_path = path
        if num_processes > 1:  # of this process: another run may be computing the same features
            share_path = name_temporary(path.with_stem(f"{path.stem}_part{process}"))
        first = distributed.rank() - process
        share_paths = distributed.collect(share_path)[first : first + num_processes]
        share_batches(loader, process, num_processes)
        write_atomically(
            share_path, lambda temporary: _compute(model, loader, tuple(shape), temporary, autocast, title)
        )
        distributed.wait()
        if num_processes > 1:
            if process == 0:
                write_atomically(path, lambda temporary: _join(share_paths, (len(table), *shape), temporary))
            distributed.wait()
            share_path.unlink(missing_ok=True)
    return FeatureFile(path)


class FeatureFile:
    """Features (N, *shape) in the .npy file `path`. `file[indices]` reads those of some pictures.

    It is not mapped: where a mapped file is shortened, the process dies without a word. Raises InputError where the
    file is no such file or not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed with the object
            np.lib.format.read_magic(self.file)
            self.shape, is_by_column, dtype = np.lib.format.read_array_header_1_0(self.file)
        except OSError as error:
            raise InputError(f"cannot read {path}: {explain(error)}") from error
        except (ValueError, *HEADER_ERRORS) as error:
            raise InputError(f"{path} holds no features ({first_line(error)}): delete it") from error
        if is_by_column or dtype != np.float32 or min(self.shape, default=0) < 1:
            raise InputError(f"{path} holds {dtype} {self.shape} and no features: delete it")
        self.path, self.start = path, self.file.tell()
        self.row_size = 4 * math.prod(self.shape[1:])
        if os.fstat(self.file.fileno()).st_size != self.start + len(self) * self.row_size:
            raise self._is_short()

    def __del__(self) -> None:
        if hasattr(self, "file"):  # it could be opened
            self.file.close()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        features = np.empty((len(indices), *self.shape[1:]), np.float32)
        rows = features.reshape(len(indices), -1)
        for row, index in zip(rows, indices.tolist(), strict=True):
            try:
                num_read = read_at(self.file.fileno(), row.data, self.start + index * self.row_size)
            except OSError as error:
                raise InputError(f"cannot read {self.path}: {explain(error)}") from error
            if num_read < self.row_size:
                raise self._is_short()
        return features

    def append_to(self, file: BinaryIO) -> None:
        """Write all rows to `file`."""
        self.file.seek(self.start)
        shutil.copyfileobj(self.file, file, 1 << 20)

    def _is_short(self) -> InputError:
        return InputError(f"{self.path} was shortened by another program: the same command computes its features anew")


class FeatureDataset(Labels):
    """A data set of features, with the keys of an ImageDataset.

    Epoch 1 gets the first of `views`, epoch 2 the second; after the last view comes the first again.
    """

    def __init__(
        self,
        views: Sequence[FeatureFile | NDArray[np.float32]],
        table: Table,
        targets: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(table, targets, weights)
        self.views = views

    def __getitems__(self, keys: list[int]) -> Batch:
        epochs, indices = np.divmod(keys, len(self))
        features = self.views[(epochs[0] - 1) % len(self.views)][indices]
        return self.join(torch.from_numpy(features), indices)


def make_feature_loader(
    views: Sequence[FeatureFile | NDArray[np.float32]],
    table: Table,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    pins_memory: bool = False,
    targets: NDArray[np.float32] | None = None,
    weights: NDArray[np.float32] | None = None,
) -> DataLoader[Batch]:
    """A loader of the batches that `loading.make_loader` would give, with features (B, *shape) instead of images.

    `views` are features (N, *shape), one for each epoch; `targets` (N, C) and `weights` (N,) replace those of `table`.
    """
    dataset = FeatureDataset(views, table, targets, weights)
    return load_batches(
        dataset, batch_size, shuffle=shuffle, seed=seed, options=LoadingOptions(pins_memory=pins_memory)
    )


def _extract(model: MultiLabelModel, backbone: nn.Module, images: Tensor) -> Tensor:
    """The features that `backbone` gives for uint8 images; their mean over positions, if the head begins with it."""
    with torch.inference_mode():
        features = backbone(model.normalize(images)).float()
    return pool(features)[:, :, None, None] if model.head_pools else features


def _compute(
    model: MultiLabelModel,
    loader: DataLoader[Batch],
    shape: tuple[int, ...],
    path: Path,
    autocast: Callable[[], Any],
    title: str,
) -> None:
    """Write the features of all pictures of `loader`, in order, into a .npy file at `path`."""
    backbone, num_rows = None, count_images(loader)
    with path.open("wb") as file:
        _write_header(file, (num_rows, *shape))
        for batch in track(loader, title, num_rows):
            images = batch.to(model.mean.device).images
            if backbone is None:  # a copy that is faster, made from an example batch
                backbone = fold_batchnorm(merge(model.backbone), model.normalize(images[:2]))
            with autocast():
                features = _extract(model, backbone, images)
            if not features.isfinite().all():
                raise InputError(
                    "the backbone's features are not all finite: with MIXED_PRECISION off they may be, else its "
                    "weights are damaged"
                )
            file.write(features.contiguous().cpu().numpy().tobytes())


def _join(share_paths: Sequence[Path], shape: tuple[int, ...], path: Path) -> None:
    """Write the rows of all .npy files `share_paths`, in order, into one .npy file at `path`."""
    with path.open("wb") as file:
        _write_header(file, shape)
        for share_path in share_paths:
            FeatureFile(share_path).append_to(file)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a .npy file of float32; its rows are then written one after the other."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _open_whole(path: Path, shape: tuple[int, ...]) -> FeatureFile | None:
    """The features of an earlier run; None where there are none, or where their file is damaged."""
    with suppress(InputError):
        file = FeatureFile(path)
        if file.shape == shape:
            return file
    return None


def _identify(model: MultiLabelModel, table: Table, pixels: str) -> str:
    """16 hexadecimal digits that change with the weights, the preprocessing, and each file's name, size and time."""
    kind = str(model.head_pools) if model.features == OWN else model.features
    digest = hashlib.sha256("\n".join([pixels, kind, *table.paths]).encode(errors="surrogateescape"))
    digest.update(stamp_files(table.paths).tobytes())
    for tensor in (*merge(model.backbone).state_dict().values(), model.mean, model.std):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
