"""What training.py trains on: the labelled images, read and split, their caches, and the loaders of each stage.

    data = read_data()
    caches = open_image_caches(data)
    stage = prepare_stage(trainer, data, caches, epoch=1, present=None)
    for batch in stage.train_loader: ...

Reads config, as a part of training.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

import config
import distributed
import limits
import utils
from dataset import augmentations, bad_images, loading, probability_files, stratified_split
from dataset.batches import Batch
from dataset.class_checks import judge_names
from dataset.decoding import fingerprint_sizes, stamp_files
from dataset.image_cache import ImageCache
from dataset.image_sizes import Size, as_size
from dataset.loading import EpochBatches, LoadingOptions
from dataset.loading_processes import LoadingProcesses
from dataset.table import Table, join_tables
from heads import pool
from models.devices import count_free_cores
from thresholds import require_promise
from trainer import feature_cache, from_config, missing_labels, teachers
from trainer.build import Trainer, choose_batch_size, is_frozen, searches_head
from utils import InputError

LONGEST_CACHED = 16 / 9  # length to width of the longest image with a place in the image cache


class Data(NamedTuple):
    """The labelled images: all of them, and their two splits."""

    table: Table  # all images
    train: Table
    val: Table
    format: str  # a key of dataset.formats.FORMATS
    val_is_drawn: bool = True  # by VAL_SPLIT or FOLDS, and SPLIT_SEED; False: the data set's own val split
    soft_targets: NDArray[np.float32] | None = None  # (N, C) of the training images; they replace the labels
    weights: NDArray[np.float32] | None = None  # (N,) of the training images
    cross_validates: bool = False  # `train` and `val` are both all images: each is predicted by a head without it
    fold: int = 0  # which of FOLDS the validation images are, from 1 on; 0: none
    files_fingerprint: str = ""  # of the sizes in bytes of the image files of `table`; "": `note_files` adds it
    val_files_fingerprint: str = ""


def read_data(fold: int = 0) -> Data:
    """Read the labelled images, and split them.

    The validation images are those of `fold`, 1 to FOLDS; for 0 they are the data set's val split or, where it has
    none, the share VAL_SPLIT of the training images. Raises InputError for what cannot be trained on.
    """
    data = _read_splits(fold)
    for problem in judge_names(data.table.classes):
        if problem.severity == "error":
            raise InputError(problem.text)
    for name, split in (("training", data.train), ("validation", data.val)):
        if len(split) < 2 * distributed.count():
            raise InputError(
                f"there are {len(split)} {name} images that can be read: each split needs at least 2 in each process"
            )
    learns_labels = not (config.TEACHER_PROBABILITIES or config.TEACHER_CHECKPOINTS)
    if learns_labels:
        require_labels(data.train, "training", _advise_on_labels(data, "train"))
    require_labels(data.val, "validation", _advise_on_labels(data, "val"))
    require_promise(from_config.choose_policy(len(data.table.classes)), len(data.val))  # now, not after the training
    if config.LOSS == "softmax" or config.LABELS_PER_IMAGE == "one":
        reason = "LOSS softmax" if config.LOSS == "softmax" else "LABELS_PER_IMAGE one"
        require_one_label(data.table, reason)
    if config.ABSENT_MEANS == "unknown" and (num_unknown := int((data.table.targets == -1).sum())):
        raise InputError(
            f"ABSENT_MEANS is unknown, which is for labels that name only what is present, but of {num_unknown:,} of "
            "the labels here the data set says itself that it is unknown: set ABSENT_MEANS = 'absent'"
        )
    if config.TEACHER_PROBABILITIES:
        soft_targets = teachers.make_soft_targets(
            data.train, config.TEACHER_PROBABILITIES, config.TEACHER_WEIGHT, config.TEACHER_TEMPERATURE
        )
        data = data._replace(soft_targets=soft_targets)
    if config.CURRICULUM:
        data = data._replace(weights=probability_files.read_curriculum(data.train, config.CURRICULUM))
    return data


def note_files(data: Data) -> Data:
    """`data` with what tells its image files from others of the same names. Raises InputError where one is missing."""

    def look() -> tuple[str, str]:
        stamps = stamp_files(data.table.paths)
        rows = {path: row for row, path in enumerate(data.table.paths)}
        val_stamps = stamps[[rows[path] for path in data.val.paths]]
        return fingerprint_sizes(stamps), fingerprint_sizes(val_stamps)

    fingerprint, val_fingerprint = distributed.from_first(look)
    return data._replace(files_fingerprint=fingerprint, val_files_fingerprint=val_fingerprint)


def _read_splits(fold: int) -> Data:
    """Read and split the labelled images, without those that cannot be read if BAD_IMAGES is "skip"."""
    train, format = from_config.read_split("train"), from_config.choose_format("train")
    if config.NUM_CLASSES not in (len(config.CLASSES), len(train.classes)):
        raise InputError(
            f"NUM_CLASSES is {config.NUM_CLASSES} but the data set has {len(train.classes)} classes: "
            "leave NUM_CLASSES as it is, and name the classes in classes.txt or CLASSES"
        )
    from_config.choose_policy(len(train.classes))  # raises InputError now, not after the training
    given_val = from_config.read_split("val") if from_config.has_split("val") else None
    if given_val and fold:
        raise InputError(
            f"FOLDS {config.FOLDS} validates on parts of the training images, but {config.DATASET_FOLDER} has a val "
            "split of its own: set FOLDS = 0, or take that split away"
        )
    if given_val and (shared := set(train.paths) & set(given_val.paths)):
        raise InputError(
            f"{len(shared)} images are in train and in val, the first: {min(shared)}; remove them from one"
        )
    table = join_tables([train, given_val]) if given_val else train
    if config.BAD_IMAGES == "skip":
        table, bad = bad_images.leave_out_bad_images(table, config.CACHE_FOLDER)
        train = train.select([row for row, path in enumerate(train.paths) if path not in bad])
    if given_val:
        val = table.select(range(len(train), len(table)))
    elif fold:
        train, val = _select_fold(train, fold)
    elif limits.validates_on_all(config):
        return Data(table=table, train=table, val=table, format=format, cross_validates=True)
    else:
        train, val = stratified_split.split_table(train, config.VAL_SPLIT, config.SPLIT_SEED)
    return Data(table=table, train=train, val=val, format=format, val_is_drawn=given_val is None, fold=fold)


def _select_fold(table: Table, fold: int) -> tuple[Table, Table]:
    """(the other folds, this one), 1 to FOLDS, of the images of `table`."""
    fold_of = stratified_split.divide_rows(table.targets, config.FOLDS, config.SPLIT_SEED, table.groups) + 1
    sizes = np.bincount(fold_of, minlength=config.FOLDS + 1)[1:]
    if sizes.min() < 2:
        raise InputError(
            f"FOLDS {config.FOLDS} divides {len(table)} images into folds of {sizes.min()} to {sizes.max()}: each "
            "needs at least 2, and sources (GROUP_PATTERN) stay whole; set FOLDS lower"
        )
    return table.select(np.flatnonzero(fold_of != fold)), table.select(np.flatnonzero(fold_of == fold))


def require_labels(split: Table, name: str, advice: str) -> None:
    """Raise InputError unless an image of the `name` split has a label: nothing could be learned from it, or chosen."""
    if not (split.targets == 1).any():
        if (split.targets == 0).any():
            raise InputError(f"no {name} image has a label: {advice}")
        raise InputError(f"no label of any {name} image is known, present or absent: {advice}")


def _advise_on_labels(data: Data, split: str) -> str:
    """What to look at where `split`, train or val, has no label."""
    if split == "val" and data.fold:
        return (
            f"fold {data.fold} of {config.FOLDS} has {len(data.val)} of {len(data.table)} images: set FOLDS lower, or "
            f"draw others (SPLIT_SEED {config.SPLIT_SEED})"
        )
    if split == "val" and data.val_is_drawn:
        return (
            f"VAL_SPLIT {config.VAL_SPLIT:g} takes {len(data.val)} of {len(data.table)} images: raise it, or draw "
            f"others (SPLIT_SEED {config.SPLIT_SEED})"
        )
    return from_config.advise_on_labels(split)


def require_one_label(table: Table, reason: str) -> None:
    """Raise InputError unless each image has exactly one label; `reason` is the constant that asks for it."""
    counts = (table.targets == 1).sum(axis=1)
    rows = np.flatnonzero(counts != 1)
    if len(rows):
        raise InputError(
            f"{reason} is for one label an image, but {len(rows)} of {len(table)} have none or more; the first: "
            f"{table.paths[rows[0]]} has {counts[rows[0]]}"
        )


class ImageCaches(NamedTuple):
    """Decoded images of all splits; both caches are None where IMAGE_CACHE is "none"."""

    train: ImageCache | None  # large enough for random crops; where nothing is drawn, the same cache as `val`
    val: ImageCache | None  # as the model is validated on them

    def save(self) -> None:
        """Write the index of what was added to disk, where the caches lie there."""
        for cache in {cache for cache in self if cache}:
            cache.save()


def open_image_caches(data: Data) -> ImageCaches:
    """Open the image caches that earlier runs left of these images, or make empty ones."""
    if config.IMAGE_CACHE == "none":
        return ImageCaches(None, None)
    process, num_processes = distributed.place()  # processes share no memory: each one caches the images it reads
    folder = config.CACHE_FOLDER
    if num_processes > 1:
        folder = folder / f"process_{process}_of_{num_processes}"
    if config.IMAGE_CACHE == "memory":
        folder = None
    limit_gb = config.IMAGE_CACHE_GB / num_processes
    size, paths = as_size(config.IMAGE_SIZE), data.table.paths
    val = ImageCache(
        paths=paths,
        prepare=augmentations.make_eval_transform(config.RESIZE_RULE, size),
        name=f"{config.RESIZE_RULE} {size}",
        max_pixels=math.prod(size),
        limit_gb=limit_gb,
        folder=folder,
    )
    augmentation, larger_sizes = from_config.make_augmentation(), config.GROWING_IMAGE_SIZES + config.MULTI_SCALE_SIZES
    if not augmentation.is_random and not larger_sizes:
        return ImageCaches(val, val)
    # a training picture shows a part of the image, at least this share of its area; center_crop, too, cuts edges off
    smallest_share = config.CROP_SCALE_MIN if augmentation.name == "crop_flip" else 0.75
    largest = size.with_short_side(max(min(size), *larger_sizes, 0))
    covered = augmentations.find_size_to_crop(largest, smallest_share)
    train = ImageCache(
        paths=paths,
        prepare=augmentations.shrink(covered),
        name=f"short side {covered}" if covered.is_square else f"covers {covered}",
        max_pixels=max(covered) * round(max(covered) * LONGEST_CACHED),
        limit_gb=limit_gb,
        folder=folder,
    )
    return ImageCaches(train, val)


def make_train_loader(
    data: Data,
    caches: ImageCaches,
    size: Size,
    device: torch.device,
    batch_size: int,
    shuffle: bool = True,
    processes: LoadingProcesses | None = None,
) -> DataLoader[Batch]:
    """A loader of augmented training images. Each epoch has its own order and its own random augmentation.

    `processes` load them; None: as many as NUM_WORKERS says.
    """
    transform = augmentations.make_train_transform(from_config.make_augmentation(), size, config.RESIZE_RULE)
    if caches.train and caches.train is caches.val:
        transform = augmentations.identity  # nothing is drawn, and cached images are resized already
    share = batch_size if not shuffle else -(-batch_size // distributed.count())
    options = choose_loading(device, data.train.paths, share, size, caches.train, processes)
    return loading.make_loader(
        data.train,
        transform,
        batch_size,
        options=options,
        shuffle=shuffle,
        seed=config.SEED,
        cached=caches.train.select(data.train.paths) if caches.train else None,
        targets=data.soft_targets,
        weights=data.weights,
    )


def make_eval_loader(
    table: Table, device: torch.device, cache: ImageCache | None = None, processes: LoadingProcesses | None = None
) -> DataLoader[Batch]:
    """A loader of the images of `table`, in order, without augmentation. See make_train_loader for `processes`."""
    transform = augmentations.make_eval_transform(config.RESIZE_RULE, config.IMAGE_SIZE)
    return loading.make_loader(
        table,
        augmentations.identity if cache else transform,
        config.TEST_BATCH_SIZE,
        options=choose_loading(
            device, table.paths, config.TEST_BATCH_SIZE, as_size(config.IMAGE_SIZE), cache, processes
        ),
        cached=cache.select(table.paths) if cache else None,
    )


def choose_loading(
    device: torch.device,
    paths: Sequence[str],
    batch_size: int,
    size: Size,
    cache: ImageCache | None,
    processes: LoadingProcesses | None,
) -> LoadingOptions:
    """How batches of `batch_size` pictures of `size` are loaded for `device`, in the room that there is."""
    settings = from_config.choose_settings(device)
    processes = processes or LoadingProcesses(settings.num_workers)
    return loading.choose_options(settings, processes, paths, size, batch_size, is_cached=cache is not None)


# ---- stages ----


def changes_batches() -> bool:
    """Whether batches of images are mixed, resized or shown to teachers. Then frozen features cannot be kept."""
    return bool(config.MIXUP_ALPHA or config.CUTMIX_ALPHA or config.MULTI_SCALE_SIZES or config.TEACHER_CHECKPOINTS)


def choose_image_size(epoch: int) -> Size:
    """The size of the training images in `epoch`."""
    # GROWING_IMAGE_SIZES are for the first epochs in which the backbone trains
    num_trained = sum(not is_frozen(earlier) for earlier in range(1, epoch))
    grows = not is_frozen(epoch) and num_trained < len(config.GROWING_IMAGE_SIZES)
    size = as_size(config.IMAGE_SIZE)
    if grows:
        return size.with_short_side(config.GROWING_IMAGE_SIZES[num_trained])
    if config.MULTI_SCALE_SIZES:
        return size.with_short_side(max(config.MULTI_SCALE_SIZES))
    return size


class Stage(NamedTuple):
    """What an epoch trains, and on what: the model on images or, while the backbone is frozen, the head on features."""

    key: tuple[bool, bool, Size]  # whether the backbone is frozen, whether its features are kept, the image size
    network: nn.Module  # the model, or its head
    trained_network: nn.Module  # the same network, wrapped so that all processes train it together
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    seconds: float  # that it took to prepare this stage, within this epoch
    processes: LoadingProcesses  # that load its images
    waiting_share: float = 0.0  # of its last epoch, in which the network waited for batches; the first one not counted

    def count_images(self, step: int) -> int:
        """The number of images of a training step, of all processes together."""
        assert isinstance(self.train_loader.batch_sampler, EpochBatches)
        return self.train_loader.batch_sampler.count_images(step)


def prepare_stage(trainer: Trainer, data: Data, caches: ImageCaches, epoch: int, present: Stage | None) -> Stage:
    """The stage of `epoch`: the `present` one if nothing changes, else a new one.

    Where the model waited for images in the present one, more processes load them from now on: see choose_processes.
    """
    size = choose_image_size(epoch)
    keeps_features = is_frozen(epoch) and config.FROZEN_FEATURE_VIEWS > 0 and not changes_batches()
    keeps_features |= searches_head(epoch)
    key = (is_frozen(epoch), keeps_features, size)
    processes = choose_processes(trainer, present)
    same = present if present and present.key == key else None
    if same and same.processes == processes:
        return same._replace(seconds=0.0)
    if present and present.processes != processes:
        share = f"{present.waiting_share:.0%}"
        utils.say(f"the model waited {share} of the epoch for images: from now on {processes.describe()}")
    start = time.perf_counter()
    feature_loaders = make_feature_loaders(trainer, data, caches) if keeps_features and not same else None
    if feature_loaders:
        network = trainer.model.head
        train_loader, val_loader = feature_loaders
    else:
        network = trainer.model
        train_loader = make_train_loader(
            data, caches, size, trainer.device, choose_batch_size(epoch), processes=processes
        )
        val_loader = make_eval_loader(data.val, trainer.device, caches.val, processes)
    seconds = time.perf_counter() - start
    if feature_loaders:
        utils.say(f"frozen features, kept in {config.CACHE_FOLDER}: {utils.format_duration(seconds)}")
    return Stage(
        key=key,
        network=network,
        trained_network=same.trained_network if same else trainer.wrap(network),
        train_loader=train_loader,
        val_loader=val_loader,
        seconds=seconds,
        processes=processes,
    )


def choose_processes(trainer: Trainer, present: Stage | None) -> LoadingProcesses:
    """What loads the images of the next epoch: as NUM_WORKERS says or, for None, by how long the model has waited."""
    if present is None:
        return LoadingProcesses(trainer.settings.num_workers)
    if config.NUM_WORKERS is not None or present.network is not trainer.model:  # it read features, which are at hand
        return present.processes
    return present.processes.grow(present.waiting_share, count_free_cores())


def make_feature_loaders(
    trainer: Trainer, data: Data, caches: ImageCaches
) -> tuple[DataLoader[Batch], DataLoader[Batch]] | None:
    """The training and the validation loader of the frozen backbone's features.

    Returns None, and says so, where the features would take more than FEATURE_CACHE_GB.
    """
    frozen_epochs = [epoch for epoch in range(1, config.NUM_EPOCHS + 1) if is_frozen(epoch)]
    # A search looks at whole images, as they will be predicted: in its one epoch a crop would be all it sees of one.
    searches = config.HEAD_FIT == "search"
    augmentation = from_config.make_augmentation()
    draws = augmentation.is_random and not searches
    num_views = min(config.FROZEN_FEATURE_VIEWS, len(frozen_epochs)) if draws else 1
    size = as_size(config.IMAGE_SIZE)
    gigabytes = measure_gigabytes(trainer, num_views * len(data.train) + len(data.val))
    if gigabytes > config.FEATURE_CACHE_GB and not searches:
        utils.say(
            f"frozen features are not kept: {gigabytes:.3g} GB, more than FEATURE_CACHE_GB = {config.FEATURE_CACHE_GB}"
        )
        return None
    views = []
    if searches:
        views.append(read_whole_features(trainer, data.train, caches, "frozen features"))
    else:
        train_loader = make_train_loader(data, caches, size, trainer.device, config.TRAIN_BATCH_SIZE, shuffle=False)
        for view in range(1, num_views + 1):
            loading.set_epoch(train_loader, view)  # view n has the pictures that epoch n would have
            transform = config.RESIZE_RULE
            if augmentation.is_random:
                transform = f"{augmentation.describe()}, {config.RESIZE_RULE}, seed {config.SEED}, epoch {view}"
            if caches.train and caches.train is not caches.val:  # pictures are made from images that the cache shrank
                transform += f", {caches.train.name}"
            title = f"frozen features {view}/{num_views}"
            views.append(read_features(trainer, train_loader, data.train, transform, title))
    if data.cross_validates:
        val_features = views[0]  # of the same images
    else:
        val_features = read_whole_features(trainer, data.val, caches, "frozen features of the validation split")
    pins_memory = trainer.settings.pins_memory
    train_features_loader = feature_cache.make_feature_loader(
        views,
        data.train,
        choose_batch_size(1),
        shuffle=True,
        seed=config.SEED,
        pins_memory=pins_memory,
        targets=data.soft_targets,
        weights=data.weights,
    )
    val_features_loader = feature_cache.make_feature_loader(
        [val_features], data.val, config.TEST_BATCH_SIZE, pins_memory=pins_memory
    )
    return train_features_loader, val_features_loader


def measure_gigabytes(trainer: Trainer, num_images: int) -> float:
    """What the features of so many images take."""
    shape = feature_cache.measure_features(trainer.model, as_size(config.IMAGE_SIZE))
    return 4 * math.prod(shape) * num_images / 1e9


def read_features(
    trainer: Trainer, loader: DataLoader[Batch], table: Table, transform: str, title: str
) -> feature_cache.FeatureFile:
    """The backbone's features of the pictures of `table` that `loader` gives, computed or kept from before.

    `transform` says how the pictures are made. Raises InputError where the file cannot be written, or is damaged.
    """
    size = as_size(config.IMAGE_SIZE)
    return feature_cache.read_features(
        model=trainer.model,
        loader=loader,
        table=table,
        shape=feature_cache.measure_features(trainer.model, size),
        # two networks can have the same tensors, and differ in what they compute with them
        pixels=f"{config.MODEL_NAME}, {transform}, {size} px, {trainer.settings.precision} on {trainer.device.type}"
        f"{name_maker(trainer)}",
        folder=config.CACHE_FOLDER,
        autocast=trainer.autocast,
        title=title,
    )


def name_maker(trainer: Trainer) -> str:
    """What made pictures, for the names of features, where it was a GPU: its pixels differ from the CPU's."""
    if not trainer.settings.makes_pictures_on_gpu:
        return ""
    decodes = trainer.settings.decodes_on_gpu and config.IMAGE_CACHE == "none"
    return f", pictures {'decoded and ' * decodes}made on the GPU"


def read_whole_features(trainer: Trainer, table: Table, caches: ImageCaches, title: str) -> feature_cache.FeatureFile:
    """The backbone's features of the whole pictures of `table`, as they are validated on, computed or kept from before.

    Raises InputError where they take more than FEATURE_CACHE_GB.
    """
    trainer.model.eval()  # an epoch begins with train(); until then BatchNorm statistics have to stand still
    gigabytes = measure_gigabytes(trainer, len(table))
    if gigabytes > config.FEATURE_CACHE_GB:
        raise InputError(
            f"the features of {len(table)} images are {gigabytes:.3g} GB, and FEATURE_CACHE_GB is "
            f"{config.FEATURE_CACHE_GB:g}: raise it, or take a smaller IMAGE_SIZE or a head that pools"
        )
    return read_features(trainer, make_eval_loader(table, trainer.device, caches.val), table, config.RESIZE_RULE, title)


# ---- labels that are missing ----


def leave_out_missing(trainer: Trainer, data: Data, caches: ImageCaches) -> Data:
    """`data` with unknown in place of those negatives of the training split whose label is probably missing.

    They are found (trainer/missing_labels.py) on the features of the backbone as it is now, of whole pictures, if
    ABSENT_MEANS is "unknown". Raises InputError where the features would take more than FEATURE_CACHE_GB.
    """
    if config.ABSENT_MEANS == "absent":
        return data
    features = read_whole_features(trainer, data.train, caches, "features to find missing labels")

    def find() -> NDArray[np.int8]:
        rows = np.array_split(np.arange(len(features)), math.ceil(len(features) / config.TEST_BATCH_SIZE))
        # a head that does not pool keeps all positions
        pooled = torch.cat([pool(torch.from_numpy(features[chosen])) for chosen in rows])
        predicted = missing_labels.predict_left_out(pooled.to(trainer.device), data.train.targets)
        return missing_labels.reject_probable_negatives(data.train.targets, predicted)

    train = replace(data.train, targets=distributed.from_first(find))
    num_rare = int(((data.train.targets == 1).sum(axis=0) < missing_labels.LEAST_POSITIVES).sum())
    num_rejected, num_absent = int((train.targets == -1).sum()), int((data.train.targets == 0).sum())
    utils.say(
        f"labels that are missing: {num_rejected:,} of the {num_absent:,} absent labels of the training split are too "
        f"probable to count ({num_rare} classes with fewer than {missing_labels.LEAST_POSITIVES} positives keep "
        "theirs). Validation takes labels as they are written: its F1 comes out too low, its thresholds too "
        "high; mAP still says which model is better"
    )
    return data._replace(train=train)
