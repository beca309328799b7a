"""Loads batches: the order of the images in an epoch, the share of each process, the random pictures.

loader = make_loader(table, make_eval_transform("squash", 224), batch_size=32)
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

import distributed
from dataset import device_decoding, device_pictures
from dataset.augmentations import apply_seeded
from dataset.batches import Batch, Transform, as_float_targets
from dataset.decoding import decode_image, read_content, stamp_files
from dataset.device_decoding import File, take_file
from dataset.image_cache import CachedImages
from dataset.image_sizes import Size
from dataset.loading_processes import ALONE, LoadingProcesses
from dataset.plans import MOST_SENT, Part, Plan, Planner, make_planner, take_part
from dataset.table import Table
from dataset.tar_shards.reading import SHARDS_AT_ONCE, find_blocks
from models.devices import DeviceSettings

FILES_LOOKED_AT = 500  # of a data set, whose sizes say how much room batches of files take
SECONDS_AFTER_SIGTERM = 20  # that a loading process goes on; torchrun kills after 30


class LoadingOptions(NamedTuple):
    """How batches are loaded. None of it changes their order, nor what is drawn at random."""

    processes: LoadingProcesses = ALONE
    pins_memory: bool = False  # for a GPU, which then copies while the processor goes on
    makes_on_device: bool = False  # `Batch.to` makes the pictures, on the device
    decodes_on_device: bool = False  # it decodes JPEGs there, too; only with `makes_on_device`


class BatchDataset(Protocol):
    """What a loader reads from: it gives whole batches for their keys."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[int]) -> Batch: ...


class Labels:
    """The targets and weights of the images of a table: its own targets and weights of 1, unless others are given.

    `targets` are float32 (N, C), NaN where unknown; `weights` float32 (N,). A batch is asked for by keys, which say
    which image in which epoch: key = epoch * N + index. All of it lies in arrays, because each loading process would
    copy Python objects.
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

    def join(self, images: Any, indices: NDArray[np.intp]) -> Batch:
        """The batch of `images` uint8 (B, 3, H, W), or what becomes them; `indices` (B,): their rows in the table."""
        return Batch(images, as_float_targets(self.targets[indices]), torch.from_numpy(self.weights[indices]))


class ImageDataset(Labels):
    """Batches of images, read and transformed.

    A random transform is seeded by `seed` and the key, so the pictures of an epoch are the same with any number of
    workers, whatever ran before.

    Where `options` say that pictures are made on the device, only what the transform will do is drawn here, and
    `Batch.to` makes the pictures. JPEGs are decoded there, too, if `options` say so and there is no image cache.
    """

    def __init__(
        self,
        table: Table,
        transform: Transform,
        seed: int = 0,
        cached: CachedImages | None = None,
        targets: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
        options: LoadingOptions | None = None,
    ) -> None:
        super().__init__(table, targets, weights)
        self.paths, self.transform, self.seed, self.cached = PackedPaths(table.paths), transform, seed, cached
        options = options or LoadingOptions()
        self.makes_on_device = options.makes_on_device
        self.decodes_on_device = options.decodes_on_device and cached is None
        # of each file, whether it was found without damage: looked for once, by any of the processes
        self.is_whole = np.frombuffer(mmap.mmap(-1, max(len(self), 1)), np.bool_) if self.decodes_on_device else None

    def __getitems__(self, keys: list[int]) -> Batch:
        indices = np.array(keys) % len(self)
        rows = list(zip(keys, indices.tolist(), strict=True))
        if self.decodes_on_device:
            images = device_decoding.send([self._take_file(key, index) for key, index in rows])
        elif self.makes_on_device:
            images = device_pictures.send([self._take_part(key, index) for key, index in rows])
        else:
            images = torch.stack([self._make_picture(key, index) for key, index in rows])
        return self.join(images, indices)

    def _make_picture(self, key: int, index: int) -> Tensor:
        image = torch.from_numpy(self._read(index)).permute(2, 0, 1)
        return apply_seeded(self.transform, image, self._choose_seed(key))

    def _take_part(self, key: int, index: int) -> Part:
        image = self._read(index)
        return take_part(image, self._draw(key, *image.shape[:2]))

    def _take_file(self, key: int, index: int) -> File | Part:
        assert self.is_whole is not None
        path = self.paths[index]
        sent = take_file(read_content(path), path, partial(self._draw, key), bool(self.is_whole[index]))
        self.is_whole[index] = isinstance(sent, File)
        return sent

    def _read(self, index: int) -> NDArray[np.uint8]:
        """The image (H, W, 3), from the cache if it is there."""
        image = self.cached.read(index) if self.cached else None
        if image is None:
            image = decode_image(self.paths[index])
            image = self.cached.keep(index, image) if self.cached else image
        return image

    @cached_property
    def _planner(self) -> Planner:
        """Made where images are read: a process that is not forked could not be given it."""
        return make_planner(self.transform)

    def _draw(self, key: int, height: int, width: int) -> Plan:
        return self._planner(height, width, self._choose_seed(key))

    def _choose_seed(self, key: int) -> int:
        return (self.seed * 0x9E3779B1 + key) % 2**32  # the golden ratio keeps two seeds apart


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
    """A random order (N,) of images in which only about `at_once` blocks, such as shards, are read from at a time.

    `blocks` (N,) is the number of each image's block, -1 for an image in no block. The blocks come in random order.
    `at_once` of them are open at a time: when the one opened first closes, the next one opens.

    Example: 10 blocks with `at_once` 3. An epoch's time runs from 0 to 8. The first 3 blocks are open from time 0 on;
    they close at 1, 2 and 3. The next one is open from 1 to 4, the one after it from 2 to 5, the last one from 7 to 8.
    Each image gets a random time while its block is open, and the images are read in the order of these times.
    """
    num_blocks = blocks.max(initial=-1) + 1
    places = np.append(rng.permutation(num_blocks), 0)[blocks]  # of each image's block among the blocks
    last = max(num_blocks - at_once, 0)
    starts = np.where(blocks < 0, 0, np.clip(places - at_once + 1, 0, last))
    ends = np.where(blocks < 0, last, np.minimum(places, last)) + 1
    return np.argsort(starts + rng.random(len(blocks)) * (ends - starts), kind="stable")


class EpochBatches(Sampler[list[int]]):
    """Batches of keys for one epoch after another: set `epoch` before each. Their order depends on `seed` and `epoch`.

    With `blocks` (N,), such as the number of each image's shard, `shuffle` reads from a few blocks at a time.
    Batches before `first_step` are skipped.

    `share` (k, K) says that this is process k of K. At first it is the process that torchrun started. With `shuffle`
    it gets every K-th key of each batch, from the k-th on. Without, all keys are cut into K ranges, and it gets batches
    of the k-th range. BatchNorm in training needs two images in each process: with `shuffle`, a last batch of fewer
    joins the one before.

    Example: 10 keys, batches of 4, 2 processes. In order, process 0 gets keys 0-3 and 4, process 1 gets 5-8 and 9.
    Shuffled, the batches have 4 and 6 keys, since 2 are too few for a third batch; each process gets 2 and 3 of them.
    """

    def __init__(
        self, num_images: int, batch_size: int, shuffle: bool, seed: int, blocks: NDArray[np.int64] | None = None
    ) -> None:
        self.num_images, self.batch_size, self.shuffle, self.seed = num_images, batch_size, shuffle, seed
        self.blocks = blocks
        self.share = (distributed.rank(), distributed.count())
        self.epoch = self.first_step = 0

    @property
    def positions(self) -> range:
        """The positions in the epoch's order from which the process takes its batches; with `shuffle` all of them."""
        process, num_processes = (0, 1) if self.shuffle else self.share
        start, end = self.num_images * process, self.num_images * (process + 1)
        return range(start // num_processes, end // num_processes)

    def count_images(self, step: int) -> int:
        """The images of a step: with `shuffle` those of all processes together."""
        start = self.batch_size * step
        is_last = step == len(self) - 1
        return len(self.positions) - start if is_last else self.batch_size

    def __len__(self) -> int:
        whole, rest = divmod(len(self.positions), self.batch_size)
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
        keys = order[self.positions.start : self.positions.stop] + self.epoch * self.num_images
        first, every = self.share if self.shuffle else (0, 1)
        for step in range(self.first_step, len(self)):
            start = self.batch_size * step
            yield keys[start : start + self.count_images(step)][first::every].tolist()


def make_loader(
    table: Table,
    transform: Transform,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    options: LoadingOptions | None = None,
    cached: CachedImages | None = None,
    targets: NDArray[np.float32] | None = None,
    weights: NDArray[np.float32] | None = None,
) -> DataLoader[Batch]:
    """A loader of `Batch`es over `table`: in order, or shuffled anew in each epoch (`set_epoch`).

    `targets` (N, C), such as soft ones, replace those of the table; `weights` (N,) replace ones. See Labels. `options`
    say how they are loaded; None: as finished pictures, by `num_workers` processes.
    """
    options = options or LoadingOptions(LoadingProcesses(num_workers))
    return load_batches(
        ImageDataset(table, transform, seed, cached, targets, weights, options),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        options=options,
        blocks=find_blocks(table.paths) if shuffle else None,
    )


def load_batches(
    dataset: BatchDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    options: LoadingOptions | None = None,
    blocks: NDArray[np.int64] | None = None,
) -> DataLoader[Batch]:
    """A loader over anything that gives batches for the keys of `EpochBatches`; see there for `blocks`."""
    options = options or LoadingOptions()
    number, ahead = options.processes
    return DataLoader(
        dataset,  # pyright: ignore[reportArgumentType]  # torch's fetcher asks for whole batches where it can
        batch_sampler=EpochBatches(len(dataset), batch_size, shuffle, seed, blocks),
        collate_fn=_as_it_is,
        worker_init_fn=_outlive_termination,
        num_workers=number,
        prefetch_factor=ahead if number else None,
        persistent_workers=number > 0,
        pin_memory=options.pins_memory,
        generator=torch.Generator(),  # else each epoch would draw a number from the run's own
    )


def choose_options(
    settings: DeviceSettings,
    processes: LoadingProcesses,
    paths: Sequence[str],
    size: Size,
    batch_size: int,
    is_cached: bool = False,
) -> LoadingOptions:
    """How batches of pictures of `size` are loaded from `paths`, by as many of `processes` as there is room for."""
    sends_files = settings.decodes_on_gpu and not is_cached
    sent_bytes = measure_sent_bytes(paths, size, settings.makes_pictures_on_gpu, sends_files)
    return LoadingOptions(
        processes=processes.fit(batch_size * sent_bytes, settings.pins_memory),
        pins_memory=settings.pins_memory,
        makes_on_device=settings.makes_pictures_on_gpu,
        decodes_on_device=settings.decodes_on_gpu,
    )


def measure_sent_bytes(paths: Sequence[str], size: Size, makes_on_device: bool, sends_files: bool) -> float:
    """The bytes that a loading process sends of an image in `paths` at most, if its picture has `size`.

    `sends_files`: a GPU decodes the files. The largest of FILES_LOOKED_AT files counts.
    """
    picture_bytes = 3 * size.height * size.width
    if not makes_on_device:
        return picture_bytes
    largest = MOST_SENT**2 * picture_bytes
    if sends_files:
        looked_at = paths[:: max(1, len(paths) // FILES_LOOKED_AT)]
        largest = max(largest, stamp_files(looked_at)[:, 0].max(initial=0))
    return largest


def set_epoch(loader: DataLoader[Batch], epoch: int, first_step: int = 0) -> None:
    """Choose the epoch whose order and random pictures the loader yields next, and the step at which it begins."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    loader.batch_sampler.epoch, loader.batch_sampler.first_step = epoch, first_step


def share_batches(loader: DataLoader[Batch], process: int, num_processes: int) -> None:
    """Let the loader yield the share of process number `process` (from 0) of `num_processes`; see EpochBatches."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    loader.batch_sampler.share = (process, num_processes)


def count_images(loader: DataLoader[Batch]) -> int:
    """The number of images that the loader yields in an epoch; with `shuffle` those of all processes together."""
    assert isinstance(loader.batch_sampler, EpochBatches)
    return len(loader.batch_sampler.positions)


def _outlive_termination(worker: int) -> None:
    """Keep a worker alive after SIGTERM, so that the training process can finish its step and save.

    torch's handler would end the worker at once.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_termination, args=(os.getppid(),), daemon=True).start()


def _await_termination(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:  # the training process sends one, too, at its end
        signal.alarm(SECONDS_AFTER_SIGTERM)
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch  # the data set made a batch already
