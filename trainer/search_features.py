"""Trials of search.py that are heads on kept features of the frozen backbone: many at once, by cross-validation.

    features = read_features()                                  # of all training images, computed once
    outcomes = try_ways(features, [make_way(), ...], "mAP")     # each figure over images that the heads did not see
    rows = read_rows(table)                                     # of any other images, by the same backbone

Reads config, as a part of search.py and of `python dataset_tools.py queue`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import config
import distributed
import metrics
import thresholds
import utils
from dataset.batches import as_float_targets
from dataset.table import Table, join_tables
from models.shared_cores import share_cores
from trainer import from_config, head_search, random_state
from trainer.build import choose_loss_options, make_trainer, weighs_positives
from trainer.head_fit import assign_folds
from trainer.head_search import Way
from trainer.search_trials import Outcome
from trainer.training_data import ImageCaches, note_files, read_data, read_whole_features
from trainer.validation import cross_fits
from utils import InputError


class Features(NamedTuple):
    """The training images as a head sees them."""

    rows: NDArray[np.float32]  # (N, D)
    targets: NDArray[np.float32]  # (N, C), NaN: unknown
    fold_of: NDArray[np.intp]  # (N,) which fold holds the image out
    dataset: str  # fingerprint of the images and labels, and that of the files, see `search_loop.differ`
    device: torch.device
    table: Table  # these images, and their labels


def read_features(trained_heads: Sequence[str] = ()) -> Features:
    """Features of all training images, also those that VAL_SPLIT takes, without augmentation, kept in CACHE_FOLDER.

    Where the data set has a validation split of its own, that is left out. Raises InputError where runs of one of the
    `trained_heads` would begin with the head of PRETRAINED_WEIGHTS: heads on kept features begin at random.
    """
    with distributed.start(config.DEVICE) as device, share_cores():
        from_config.choose_settings(device)  # raises InputError now, not after data and weights are read
        random_state.seed_everything(config.SEED)
        data = note_files(read_data())
        trainer = make_trainer(data.train, device)
        loaded = trainer.model.loaded
        if config.TAKE_OVER_HEAD and loaded and loaded.head_name in trained_heads:
            raise InputError(
                f"runs begin with the head of {config.PRETRAINED_WEIGHTS}, and heads on kept features cannot: set "
                "TAKE_OVER_HEAD to False"
            )
        trainer.model.freeze_backbone(True)
        tables = [data.train, data.val] if data.val_is_drawn and not data.cross_validates else [data.train]
        files = [read_whole_features(trainer, table, ImageCaches(None, None), "frozen features") for table in tables]
        rows = [file[np.arange(len(file))].reshape(len(file), -1) for file in files]
    table = join_tables(tables)
    targets = as_float_targets(table.targets).numpy()
    return Features(
        rows=np.concatenate(rows),
        targets=targets,
        fold_of=assign_folds(table),
        dataset=f"{data.table.fingerprint()} {data.files_fingerprint}",
        device=device,
        table=table,
    )


def read_rows(table: Table) -> NDArray[np.float32]:
    """Features (N, D) of the N images of `table`, labelled or not, by the same backbone; kept in CACHE_FOLDER, too."""
    with distributed.start(config.DEVICE) as device, share_cores():
        random_state.seed_everything(config.SEED)
        trainer = make_trainer(table, device)
        trainer.model.freeze_backbone(True)
        file = read_whole_features(trainer, table, ImageCaches(None, None), "features of other images")
        return file[np.arange(len(file))].reshape(len(file), -1)


def make_way() -> Way:
    """How a head is trained by the constants."""
    heads: dict[str, Literal["linear", "linear_bn"]] = {"linear": "linear", "linear_bn": "linear_bn"}
    return Way(
        head=heads[config.HEAD],
        loss=config.LOSS,
        loss_options=tuple(sorted(choose_loss_options(0).items())),
        rate=config.HEAD_BASE_LR,
        weight_decay=config.WEIGHT_DECAY,
        label_smoothing=config.LABEL_SMOOTHING,
        pos_weight_cap=config.POS_WEIGHT_CAP if weighs_positives() else None,
        epochs=config.NUM_EPOCHS,
        batch_size=config.TRAIN_BATCH_SIZE,
        schedule="cosine" if config.SCHEDULE == "cosine" else "constant",
    )


def try_ways(features: Features, ways: Sequence[Way], metric: str) -> list[Outcome]:
    """What each of the `ways` reaches. Where the memory is full, fewer are trained at once; one that fails says why."""
    if not ways:
        return []
    results, reason = [], ""
    try:
        results = head_search.search_heads(
            features.rows,
            features.targets,
            ways,
            features.fold_of,
            seed=config.SEED,
            device=features.device,
        )
    except (RuntimeError, MemoryError) as error:  # torch says RuntimeError where its memory is full
        reason = utils.first_line(error)
    if not reason:
        return [_judge(features, result, metric) for result in results]
    # not within `except`: there the error keeps alive the tensors that filled the memory
    if len(ways) == 1:
        return [Outcome("failed", reason=reason)]
    middle = len(ways) // 2
    return [*try_ways(features, ways[:middle], metric), *try_ways(features, ways[middle:], metric)]


def _judge(features: Features, result: Any, metric: str) -> Outcome:
    probabilities = result.probabilities
    if math.isnan(result.mAP):
        return Outcome("failed", reason="its probabilities are no numbers: HEAD_BASE_LR is too high for this loss")
    if metric == "mAP":
        figure = result.mAP
    elif cross_fits(len(probabilities)):  # as a run with so few validation images chooses its checkpoint
        figure = thresholds.cross_fit(probabilities, features.targets, thresholds.choose_tuner(len(probabilities)))
    else:
        threshold = thresholds.tune_global(probabilities, features.targets)
        figure = metrics.measure(probabilities, features.targets, threshold)["f1_weighted"]
    return Outcome("complete", float(figure), dataset=features.dataset, num_images=len(features.targets))
