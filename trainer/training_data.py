"""What training.py trains on: the labelled images, read and split, their caches, and the loaders of each stage.

Reads config, as a part of training.py.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

import config
import distributed
import utils
from dataset import augmentations, bad_images, loading, probability_files, stratified_split
from dataset.augmentations import Augmentation
from dataset.batches import Batch
from dataset.image_cache import ImageCache
from dataset.loading import EpochBatches
from dataset.table import Table, join_tables
from trainer import feature_cache, from_config, teachers
from trainer.build import Trainer, choose_batch_size, is_frozen
from utils import InputError

LONGEST_CACHED = 16 / 9  # length to width of the longest image with a place in the image cache


class Data(NamedTuple):
    """The labelled images: all of them, and their two splits."""

    table: Table
    train: Table
    val: Table
    format: str
    soft_targets: NDArray[np.float32] | None = None  # (N, C) of the training images, in place of their labels
    weights: NDArray[np.float32] | None = None  # (N,) of them


def read_data() -> Data:
    """Read the training images, and those to validate on: the data set's own, or VAL_SPLIT of the training images."""
    train, format = from_config.read_split("train"), from_config.choose_format("train")
    if config.NUM_CLASSES not in (len(config.CLASSES), len(train.classes)):
        raise InputError(
            f"NUM_CLASSES is {config.NUM_CLASSES} but the data set has {len(train.classes)} classes: "
            "leave NUM_CLASSES as it is, and name the classes in classes.txt or CLASSES"
        )
    from_config.choose_policy(len(train.classes))  # what cannot be done is said before the training
    given_val = from_config.read_split("val") if from_config.has_split("val") else None
    if given_val and (shared := set(train.paths) & set(given_val.paths)):
        raise InputError(
            f"{len(shared)} images are in train and in val, the first: {min(shared)}; remove them from one"
        )
    table = join_tables([train, given_val]) if given_val else train
    if config.BAD_IMAGES == "skip":
        table, bad = bad_images.leave_out_bad_images(table, config.CACHE_FOLDER)
        train = train.select([row for row, path in enumerate(train.paths) if path not in bad])
    if given_val:
        data = Data(table, train, table.select(range(len(train), len(table))), format)
    else:
        data = Data(table, *stratified_split.split_table(train, config.VAL_SPLIT, config.SEED), format)
    for name, split in (("training", data.train), ("validation", data.val)):
        if len(split) < 2 * distributed.count():
            raise InputError(
                f"there are {len(split)} {name} images that can be read: each split needs at least 2 in each process"
            )
        missing = [c for c, seen in zip(table.classes, (split.targets == 1).any(axis=0), strict=True) if not seen]
        if missing:
            utils.warn(f"{len(missing)} class(es) without a positive in the {name} split: {', '.join(missing)}")
    if config.LOSS == "softmax":
        require_one_label(table)
    if config.TEACHER_PROBABILITIES:
        soft = teachers.make_soft_targets(
            data.train, config.TEACHER_PROBABILITIES, config.TEACHER_WEIGHT, config.TEACHER_TEMPERATURE
        )
        data = data._replace(soft_targets=soft)
    if config.CURRICULUM:
        data = data._replace(weights=probability_files.read_curriculum(data.train, config.CURRICULUM))
    return data


def require_one_label(table: Table) -> None:
    """Raise InputError unless each image has exactly one label."""
    counts = (table.targets == 1).sum(axis=1)
    odd = np.flatnonzero(counts != 1)
    if len(odd):
        raise InputError(
            f"LOSS softmax is for one label an image, but {len(odd)} of {len(table)} have none or more; the first: "
            f"{table.paths[odd[0]]} has {counts[odd[0]]}"
        )


class ImageCaches(NamedTuple):
    """Decoded images: for random crops, and as validation takes them; None where IMAGE_CACHE is "none"."""

    train: ImageCache | None
    val: ImageCache | None

    def save(self) -> None:
        for cache in {cache for cache in self if cache}:
            cache.save()


def open_image_caches(data: Data) -> ImageCaches:
    """What earlier runs kept of these images, or empty caches."""
    if config.IMAGE_CACHE == "none":
        return ImageCaches(None, None)
    process, num_processes = distributed.place()  # processes do not share memory: each keeps what it sees
    folder = config.CACHE_FOLDER
    if num_processes > 1:
        folder = folder / f"process_{process}_of_{num_processes}"
    if config.IMAGE_CACHE == "memory":
        folder = None
    limit = config.IMAGE_CACHE_GB / num_processes
    size, paths = config.IMAGE_SIZE, data.table.paths
    prepare = augmentations.make_eval_transform(config.RESIZE_RULE, size)
    val = ImageCache(paths, prepare, f"{config.RESIZE_RULE} {size}", size**2, limit, folder)
    augmentation, sizes = make_augmentation(), config.GROWING_IMAGE_SIZES + config.MULTI_SCALE_SIZES
    if not augmentation.is_random and not sizes:
        return ImageCaches(val, val)
    # a centre crop, too, shows less than the whole
    smallest_share = config.CROP_SCALE_MIN if augmentation.name == "crop_flip" else 0.75
    side = augmentations.find_short_side(max(size, *sizes, 0), smallest_share)
    prepare, max_pixels = augmentations.shrink(side), side * round(side * LONGEST_CACHED)
    return ImageCaches(ImageCache(paths, prepare, f"short side {side}", max_pixels, limit, folder), val)


def make_augmentation() -> Augmentation:
    """What is drawn for each training image."""
    return Augmentation(
        name=config.AUGMENTATION,
        crop_scale_min=config.CROP_SCALE_MIN,
        policy=config.AUGMENTATION_POLICY,
        color_jitter=config.COLOR_JITTER,
        rotation_degrees=config.ROTATION_DEGREES,
        erasing_probability=config.ERASING_PROBABILITY,
        erasing_max_share=config.ERASING_MAX_SHARE,
    )


def make_train_loader(
    data: Data, caches: ImageCaches, image_size: int, device: torch.device, batch_size: int, shuffle: bool = True
) -> DataLoader[Batch]:
    """Augmented training images, another order and other pictures in each epoch."""
    transform = augmentations.make_train_transform(make_augmentation(), image_size, config.RESIZE_RULE)
    if caches.train and caches.train is caches.val:
        transform = augmentations.identity
    return loading.make_loader(
        data.train,
        transform,
        batch_size,
        shuffle=shuffle,
        seed=config.SEED,
        num_workers=utils.choose_num_workers(config.NUM_WORKERS, device),
        pin_memory=device.type == "cuda",
        cached=caches.train.select(data.train.paths) if caches.train else None,
        targets=data.soft_targets,
        weights=data.weights,
    )


def make_eval_loader(table: Table, device: torch.device, cache: ImageCache | None = None) -> DataLoader[Batch]:
    """Images in order, as the model is used on them."""
    transform = augmentations.make_eval_transform(config.RESIZE_RULE, config.IMAGE_SIZE)
    return loading.make_loader(
        table,
        augmentations.identity if cache else transform,
        config.TEST_BATCH_SIZE,
        num_workers=utils.choose_num_workers(config.NUM_WORKERS, device),
        pin_memory=device.type == "cuda",
        cached=cache.select(table.paths) if cache else None,
    )


# ---- stages ----


def changes_batches() -> bool:
    """Whether a batch's images are changed or looked at: a frozen backbone's features cannot be kept then."""
    return bool(config.MIXUP_ALPHA or config.CUTMIX_ALPHA or config.MULTI_SCALE_SIZES or config.TEACHER_CHECKPOINTS)


def choose_image_size(epoch: int) -> int:
    """The side of the training images in `epoch`, in pixels."""
    num_trained = sum(not is_frozen(earlier) for earlier in range(1, epoch))
    grows = not is_frozen(epoch) and num_trained < len(config.GROWING_IMAGE_SIZES)
    if grows:
        return config.GROWING_IMAGE_SIZES[num_trained]
    return max(config.MULTI_SCALE_SIZES, default=config.IMAGE_SIZE)


class Stage(NamedTuple):
    """What epochs run on: images through the model or, while the backbone is frozen, kept features through the head."""

    key: tuple[bool, bool, int]  # whether the backbone is frozen, whether its features are kept, the image size
    network: nn.Module  # the model, or its head
    trained_network: nn.Module  # the same, with gradients averaged over all processes
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    seconds: float  # how long preparing it took

    def count_images(self, step: int) -> int:
        """The images of a training step, of all processes together."""
        assert isinstance(self.train_loader.batch_sampler, EpochBatches)
        return self.train_loader.batch_sampler.count_images(step)


def prepare_stage(trainer: Trainer, data: Data, caches: ImageCaches, epoch: int, present: Stage | None) -> Stage:
    """The stage of `epoch`: the present one if it still serves, else a new one."""
    image_size = choose_image_size(epoch)
    keeps_features = is_frozen(epoch) and config.FROZEN_FEATURE_VIEWS > 0 and not changes_batches()
    key = (is_frozen(epoch), keeps_features, image_size)
    if present and present.key == key:
        return present._replace(seconds=0.0)
    start = time.perf_counter()
    loaders = make_feature_loaders(trainer, data, caches) if keeps_features else None
    network = trainer.model.head if loaders else trainer.model
    train_loader, val_loader = loaders or (
        make_train_loader(data, caches, image_size, trainer.device, choose_batch_size(epoch)),
        make_eval_loader(data.val, trainer.device, caches.val),
    )
    seconds = time.perf_counter() - start
    if loaders:
        utils.say(f"frozen features, kept in {config.CACHE_FOLDER}: {utils.format_duration(seconds)}")
    return Stage(
        key=key,
        network=network,
        trained_network=trainer.wrap(network),
        train_loader=train_loader,
        val_loader=val_loader,
        seconds=seconds,
    )


def make_feature_loaders(
    trainer: Trainer, data: Data, caches: ImageCaches
) -> tuple[DataLoader[Batch], DataLoader[Batch]] | None:
    """(training, validation) loaders of the frozen backbone's features; None, said why, where they are too large."""
    frozen_epochs = [epoch for epoch in range(1, config.NUM_EPOCHS + 1) if is_frozen(epoch)]
    augmentation = make_augmentation()
    num_views = min(config.FROZEN_FEATURE_VIEWS, len(frozen_epochs)) if augmentation.is_random else 1
    shape = feature_cache.measure_features(trainer.model, config.IMAGE_SIZE)
    gigabytes = 4 * math.prod(shape) * (num_views * len(data.train) + len(data.val)) / 1e9
    if gigabytes > config.FEATURE_CACHE_GB:
        utils.say(
            f"frozen features are not kept: {gigabytes:.3g} GB, more than FEATURE_CACHE_GB = {config.FEATURE_CACHE_GB}"
        )
        return None

    def read(loader: DataLoader[Batch], table: Table, picture: str, title: str) -> NDArray[np.float32]:
        pixels = f"{picture}, {config.IMAGE_SIZE} px, {trainer.precision} on {trainer.device.type}"
        folder = config.CACHE_FOLDER
        return feature_cache.read_features(trainer.model, loader, table, shape, pixels, folder, trainer.autocast, title)

    views = []
    train_loader = make_train_loader(
        data, caches, config.IMAGE_SIZE, trainer.device, config.TRAIN_BATCH_SIZE, shuffle=False
    )
    for view in range(1, num_views + 1):
        loading.set_epoch(train_loader, view)  # what this epoch's pictures would have been
        drawn = f"{augmentation.describe()}, {config.RESIZE_RULE}, seed {config.SEED}, epoch {view}"
        picture = drawn if augmentation.is_random else config.RESIZE_RULE
        if caches.train and caches.train is not caches.val:  # made from smaller images
            picture += f", {caches.train.name}"
        views.append(read(train_loader, data.train, picture, f"frozen features {view}/{num_views}"))
    val_loader = make_eval_loader(data.val, trainer.device, caches.val)
    val_features = read(val_loader, data.val, config.RESIZE_RULE, "frozen features of the validation split")
    pin_memory = trainer.device.type == "cuda"
    return (
        feature_cache.make_feature_loader(
            views,
            data.train,
            choose_batch_size(1),
            shuffle=True,
            seed=config.SEED,
            pin_memory=pin_memory,
            targets=data.soft_targets,
            weights=data.weights,
        ),
        feature_cache.make_feature_loader([val_features], data.val, config.TEST_BATCH_SIZE, pin_memory=pin_memory),
    )
