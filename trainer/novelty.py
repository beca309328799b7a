"""Keeps what images are compared with: features of training images beside the checkpoint (models/novelty.py).

    keep_reference(run)             # at the end of a run
    add_reference(predictor)        # by testing.py, where the run left none

Reads config, as a part of training.py and testing.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import config
import distributed
import predictor
import utils
from dataset.table import Table
from evaluation.prediction_files import find_base
from export.engines import TorchRun
from heads import pool
from models import checkpoints, hub_folders
from models.novelty import (
    LEAST_IMAGES,
    MOST_IMAGES,
    REFERENCE_FILE,
    Reference,
    choose_rows,
    find_reference,
    identify,
    list_folders,
    make_reference,
    save_reference,
)
from predictor import Predictor
from trainer import from_config
from trainer.build import is_frozen, searches_head
from trainer.run import Run
from trainer.training_data import (
    Data,
    changes_batches,
    measure_gigabytes,
    read_data,
    read_whole_features,
)
from utils import InputError

LARGEST_SHARE = 0.05  # of what a run's backbone has computed: a reference of more than LEAST_IMAGES costs no more
LATER = "testing.py makes it at the first test of labelled images"


def keep_reference(run: Run) -> None:
    """Write the reference of the run's checkpoint, or say when it will be made. All processes have to call it.

    Raises InputError if one of several processes cannot read or compute its share of the features.
    """
    if run.data.fold:  # the model that people use is the average of all folds
        return
    rows = choose_rows(len(run.data.train), choose_size(run))
    others_wait = distributed.count() > 1  # in `read_kept_features`, for this process
    try:
        features = read_kept_features(run, rows)
        others_wait = False
        if distributed.is_first():
            _keep(run, rows, features)
    except InputError as error:  # the run itself is well: its result counts more
        if others_wait:  # if it went on without them, they would wait for days
            raise
        utils.warn(f"no reference for the novelty of images: {error}; {LATER}")


def _keep(run: Run, rows: list[int], features: NDArray[np.float32] | None) -> None:
    """`keep_reference` for rank 0; `features` are those of the training images `rows`, if they are at hand."""
    path, checkpoint = run.files.checkpoint, checkpoints.load(run.files.checkpoint)
    if find_reference(path, checkpoint):  # of an earlier run of this configuration
        return
    if features is None:
        features = compute_features(
            predictor.load(path, str(run.trainer.device), pictures_on=config.PICTURES_ON), run.data.train.select(rows)
        )
    reference = join(run.data, rows, features, checkpoint)
    if reference:
        save_reference(run.files.folder / REFERENCE_FILE, reference)


def choose_size(run: Run) -> int:
    """The most images that the reference of a run has: as many as add LARGEST_SHARE to its work, if that is not few."""
    if keeps_features(run) and keeps_whole_pictures():
        return MOST_IMAGES
    return max(LEAST_IMAGES, int(LARGEST_SHARE * count_passes(run)))


def keeps_features(run: Run) -> bool:
    """Whether the backbone never trains, and what it makes of the training images is kept in CACHE_FOLDER."""
    stays_frozen = all(is_frozen(epoch) for epoch in range(1, config.NUM_EPOCHS + 1))
    return stays_frozen and (searches_head(1) or (config.FROZEN_FEATURE_VIEWS > 0 and not changes_batches()))


def keeps_whole_pictures() -> bool:
    """Whether kept features are those of whole pictures, as they are predicted, not of augmented ones."""
    return searches_head(1) or not from_config.make_augmentation().is_random


def read_kept_features(run: Run, rows: list[int]) -> NDArray[np.float32] | None:
    """The features (n, D) of the training images `rows`, where a run keeps such in CACHE_FOLDER; None elsewhere.

    Of a head trained on augmented views they are computed now, once for all runs with this backbone. All processes have
    to call it.
    """
    trainer, table = run.trainer, run.data.train
    if not keeps_features(run):
        return None
    if not keeps_whole_pictures():
        if not trainer.model.head_pools:  # all positions would be kept
            return None
        table, rows = table.select(rows), [*range(len(rows))]
    if measure_gigabytes(trainer, len(table)) > config.FEATURE_CACHE_GB:
        return None
    file = read_whole_features(trainer, table, run.caches, "training images to compare others with")
    blocks = np.array_split(rows, math.ceil(len(rows) / config.TEST_BATCH_SIZE))  # a head may see all positions
    return np.concatenate([pool(torch.from_numpy(file[block])).numpy() for block in blocks])


def count_passes(run: Run) -> int:
    """How many images the run's backbone has computed, as forward passes; a training step is about three.

    Features that a run keeps count once for each view, as if none had been in CACHE_FOLDER before.
    """
    num_train, num_val, total = len(run.data.train), len(run.data.val), 0
    views_left = config.FROZEN_FEATURE_VIEWS if from_config.make_augmentation().is_random else 1
    for epoch in range(1, run.state.epoch + 1):
        if not is_frozen(epoch):
            total += 3 * num_train + num_val
        elif not config.FROZEN_FEATURE_VIEWS or changes_batches():
            total += num_train + num_val
        elif views_left:
            total += num_train
            views_left -= 1
    return total


def compute_features(model: Predictor, table: Table) -> NDArray[np.float32]:
    """The features (n, D) of the images of `table`, computed as those of images to be predicted are."""
    num_workers = from_config.choose_test_settings(model.device).num_workers
    title = "training images to compare others with"
    return model.measure_features(table.paths, config.TEST_BATCH_SIZE, num_workers, title)


def join(data: Data, rows: list[int], features: NDArray[np.float32], checkpoint: dict[str, Any]) -> Reference | None:
    """The reference of the training images `rows` with their `features`; None, said, where there are too few."""
    train = data.train
    base = find_base(data.table.paths if data.val_is_drawn else train.paths)  # of the train split
    names = [Path(train.paths[row]).relative_to(base).as_posix() for row in rows]
    sources = None if train.groups is None else [train.groups[row] for row in rows]
    reference = make_reference(features, names, identify(checkpoint), sources)
    if reference is None:
        utils.say("no reference for the novelty of images: the training images are of one source, or one picture")
    return reference


def add_reference(model: Predictor) -> None:
    """Give `model` the reference that its run did not make, if its training images are at hand, and keep the file.

    All processes have to call it, and get what the first one has or makes. Says what it does, and why it does not.
    """
    if isinstance(model.run, TorchRun):
        model.reference = distributed.from_first(lambda: model.reference or _make_missing(model))


def _make_missing(model: Predictor) -> Reference | None:
    """The reference that the run did not make; None, with the reason, where its training images are not at hand."""
    missing = f"novelty is not known: there is no {REFERENCE_FILE} of this model"
    if hub_folders.is_ours(model.path):
        utils.say(f"{missing}, and none is made in a folder for the hub, since it would name training images there")
        return None
    expected = model.metadata.get("dataset", {}).get("fingerprint")
    if expected is None:
        utils.say(f"{missing}, and it does not say which images it was trained on")
        return None
    try:
        data = read_data()
    except InputError as error:
        utils.say(f"{missing}, and {error}")
        return None
    if data.table.fingerprint() != expected:
        utils.say(f"{missing}, and the training images of {config.DATASET_FOLDER} are not those of its run")
        return None
    rows = choose_rows(len(data.train), LEAST_IMAGES)
    reference = join(data, rows, compute_features(model, data.train.select(rows)), model.metadata)
    path = list_folders(model.path, model.metadata)[0] / REFERENCE_FILE
    if reference:
        try:
            save_reference(path, reference)
            utils.say(f"saved: {path}, {len(reference.names):,} training images that others are compared with")
        except InputError as error:
            utils.warn(f"{error}; the next test compares anew")
    return reference
