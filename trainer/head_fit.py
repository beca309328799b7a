"""The epoch in which a search finds the head of a frozen backbone, in place of steps (HEAD_FIT "search").

    record, out_of_fold = find_head(run, epoch)

The searches themselves are in trainer/head_search.py and trainer/kernel_search.py. Reads config, as a part of
training.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

import config
import distributed
import losses
import utils
from dataset import stratified_split
from dataset.batches import as_float_targets
from dataset.table import Table
from heads import Kernel, Linear
from trainer import head_search, kernel_search, missing_labels
from trainer.build import weighs_positives
from trainer.feature_cache import FeatureDataset
from trainer.run import Run
from trainer.validation import Scores
from utils import InputError

NUM_FOLDS = 5  # each head of a fold learns from 80 % of the images; more folds take longer and change little


def find_head(run: Run, epoch: int) -> tuple[dict[str, Any], Scores | None]:
    """Give the model the head that cross-validation over the training images chooses.

    Returns the epoch's record, as of an epoch of steps, and the scores of all images by heads that did not see them,
    where these take the place of a validation split.
    """
    trainer, stage, data = run.trainer, run.stage, run.data
    assert stage is not None
    assert isinstance(trainer.model.head, Linear | Kernel)
    dataset = stage.train_loader.dataset
    assert isinstance(dataset, FeatureDataset)
    start = time.perf_counter()
    targets = as_float_targets(dataset.targets).numpy()
    # counts labels as they are written, as steps do: what ABSENT_MEANS unknown leaves out is written as absent
    written = np.maximum(data.train.targets, 0) if config.ABSENT_MEANS == "unknown" else data.train.targets
    pos_weight = losses.count_pos_weight(written, config.POS_WEIGHT_CAP) if weighs_positives() else None

    def find() -> head_search.FoundHead:
        features = dataset.views[0][np.arange(len(dataset))].reshape(len(dataset), -1)
        search = kernel_search.find_kernel_head if config.HEAD == "kernel" else head_search.find_head
        fold_of, fold_targets = assign_folds(data.train), None
        if config.ABSENT_MEANS == "unknown":
            fold_targets = missing_labels.reject_for_folds(features, written, fold_of)
        return search(
            features,
            targets,
            fold_of,
            fold_targets=fold_targets,
            weights=data.weights,
            pos_weight=pos_weight,
            label_smoothing=config.LABEL_SMOOTHING,
            device=trainer.device,
        )

    found = distributed.from_first(find)
    trainer.model.head.load_state_dict(found.state)
    if trainer.average:
        trainer.average.update_parameters(trainer.model)
    seconds = time.perf_counter() - start
    penalties = found.penalties
    utils.say(
        f"head: {found.regression} regression, {found.num_heads} compared in {found.num_folds} folds, penalties "
        f"{penalties.min():.3g} to {penalties.max():.3g}: {utils.format_duration(seconds)}"
    )
    record = {
        "epoch": epoch,
        "frozen": True,
        "train_loss": found.train_loss,
        **trainer.read_rates(),
        "images_per_second": len(dataset) / seconds,
        "waiting_share": 0.0,
        "steps": found.num_steps,
        "steps_left_out": 0,
        "steps_overflowed": 0,
        "preparation_seconds": stage.seconds,
        "seconds": stage.seconds + seconds,
    }
    if not data.cross_validates:
        return record, None
    # as they are written: labels that ABSENT_MEANS leaves out of training count in validation
    return record, Scores(found.out_of_fold, as_float_targets(data.val.targets).numpy(), found.out_of_fold_loss)


def assign_folds(table: Table) -> NDArray[np.intp]:
    """(N,) which of NUM_FOLDS folds each image is in, with as many of each label, sources whole; by SPLIT_SEED.

    Raises InputError where all images are of one source.
    """
    fold_of = stratified_split.divide_rows(table.targets, min(NUM_FOLDS, len(table)), config.SPLIT_SEED, table.groups)
    if (fold_of == fold_of[0]).all():
        raise InputError(
            f"all {len(table)} training images are of one source ({table.groups[0] if table.groups else ''!r}), and "
            "cross-validation needs two: set a GROUP_PATTERN that tells sources apart, or none"
        )
    return fold_of
