"""Data sets and loaders of batches: the order of an epoch, the share of each process, the random pictures.

loader = make_loader(table, make_eval_transform("squash", 224), batch_size=32)
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

import distributed
from dataset.augmentations import apply_seeded
from dataset.batches import Batch, Transform, as_float_targets
from dataset.decoding import decode_image
from dataset.image_cache import CachedImages
from dataset.table import Table
from dataset.tar_shards import SHARDS_AT_ONCE, find_blocks

SECONDS_AFTER_SIGTERM = 20  # that a loading process goes on; torchrun gives 30


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
