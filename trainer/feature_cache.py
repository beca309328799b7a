"""The frozen stage from features: while the backbone stands still, its output for a picture is computed once.

    features = read_features(model, image_loader, table, measure_features(model, 224), "squash", folder)
    loader = make_feature_loader([features], table, batch_size=32, shuffle=True)    # batches for model.head

Features are kept as .npy files, named after all that decides them: weights, preprocessing, and each image file's
name, size and time. Later runs find them; the folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import distributed
from dataset.batches import Batch
from dataset.decoding import stamp_files
from dataset.loading import Labels, count_images, load_batches, share_batches
from dataset.table import Table
from heads import pool
from models.batchnorm_folding import fold_batchnorm
from models_factory import MultiLabelModel
from utils import track, write_atomically


def measure_features(model: MultiLabelModel, image_size: int) -> tuple[int, ...]:
    """The shape of one picture's features, as they are kept: (D, 1, 1) if the head pools first, else (D, h, w)."""
    image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=model.mean.device)
    return tuple(_extract(model, model.backbone, image).shape[1:])


def read_features(
    model: MultiLabelModel,
    loader: DataLoader[Batch],
    table: Table,
    shape: Sequence[int],
    pixels: str,
    folder: Path,
    autocast: Callable[[], Any] = nullcontext,
    title: str = "features",
) -> NDArray[np.float32]:
    """(N, *shape) features of `loader`'s pictures of `table`, in order: from `folder`, or computed and kept there.

    `pixels` says what decides the pictures besides the files: the transform, its seed, the epoch. The file is
    memory-mapped, so it may be larger than memory. The processes of a machine compute a part of the rows each.
    """
    path = folder / f"features_{_identify(model, table, pixels)}.npy"
    (is_missing,) = distributed.agree(not path.is_file())
    if is_missing:
        part, parts = distributed.place()
        own = path.with_name(f"{path.stem}_part{part}of{parts}.npy") if parts > 1 else path
        share_batches(loader, part, parts)
        write_atomically(own, lambda temporary: _compute(model, loader, tuple(shape), temporary, autocast, title))
        distributed.wait()
        if parts > 1:
            names = [path.with_name(f"{path.stem}_part{number}of{parts}.npy") for number in range(parts)]
            if part == 0:
                write_atomically(path, lambda temporary: _join(names, (len(table), *shape), temporary))
            distributed.wait()
            own.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


class FeatureDataset(Labels):
    """An ImageDataset of features: the same keys; epoch e gets view e - 1, and after the last the first again."""

    def __init__(
        self,
        views: Sequence[NDArray[np.float32]],
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
    views: Sequence[NDArray[np.float32]],
    table: Table,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    pin_memory: bool = False,
    targets: NDArray[np.float32] | None = None,
    weights: NDArray[np.float32] | None = None,
) -> DataLoader[Batch]:
    """A loader of the batches that `make_loader` would give, features (B, *shape) in place of images."""
    dataset = FeatureDataset(views, table, targets, weights)
    return load_batches(dataset, batch_size, shuffle=shuffle, seed=seed, pin_memory=pin_memory)


def _extract(model: MultiLabelModel, backbone: nn.Module, images: Tensor) -> Tensor:
    """`backbone`'s features of uint8 images: the mean over positions if that is what the head begins with."""
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
    backbone, num_rows = None, count_images(loader)
    with path.open("wb") as file:
        _write_header(file, (num_rows, *shape))
        for batch in track(loader, title, num_rows):
            images = batch.images.to(model.mean.device, non_blocking=True)
            backbone = backbone or fold_batchnorm(model.backbone, model.normalize(images[:2]))
            with autocast():
                features = _extract(model, backbone, images)
            file.write(features.contiguous().cpu().numpy().tobytes())


def _join(parts: Sequence[Path], shape: tuple[int, ...], path: Path) -> None:
    with path.open("wb") as file:
        _write_header(file, shape)
        for part in parts:
            np.load(part, mmap_mode="r").tofile(file)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


def _identify(model: MultiLabelModel, table: Table, pixels: str) -> str:
    """16 hexadecimal digits that change with the weights, the preprocessing, and any file's name, size or time."""
    digest = hashlib.sha256("\n".join([pixels, str(model.head_pools), *table.paths]).encode(errors="surrogateescape"))
    digest.update(stamp_files(table.paths).tobytes())
    for tensor in (*model.backbone.state_dict().values(), model.mean, model.std):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
