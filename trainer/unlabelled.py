"""What heads on frozen features say of images without labels, for `python dataset_tools.py queue`.

    predicted = predict(table)      # heads learn from all training images, and predict those of `table`

Reads config.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import config
import metrics
import thresholds
from dataset.table import Table
from trainer import from_config, out_of_fold, search_features
from trainer.head_search import FoundHead


class Predicted(NamedTuple):
    """N images without labels beside L training images, which the heads learned from."""

    probabilities: NDArray[np.float32]  # (N, C)
    labels: NDArray[np.bool_]  # (N, C) by thresholds that THRESHOLD_SCOPE and its neighbours ask for
    rows: NDArray[np.float32]  # (N, D) features
    labelled_rows: NDArray[np.float32]  # (L, D)
    labelled_targets: NDArray[np.int8]  # (L, C)
    model: str  # in words


def predict(table: Table) -> Predicted:
    """Predict the images of `table`, with the thresholds that are best for out-of-fold probabilities of the labelled.

    Raises InputError for a head that looks at positions, and where nothing can be learned.
    """
    policy = from_config.choose_policy(len(table.classes))
    learned = out_of_fold.learn("queue")
    seen = out_of_fold.normalise(learned.head.out_of_fold)
    tuned = thresholds.decide(seen, learned.labels, policy).thresholds
    rows = search_features.read_rows(table)
    probabilities = out_of_fold.normalise(compute_probabilities(learned.head, rows))
    return Predicted(
        probabilities,
        metrics.predict(probabilities, tuned, policy.min_labels, policy.max_labels),
        rows,
        learned.features.rows,
        learned.labels,
        f"{config.MODEL_NAME}, {len(seen):,} labelled images",
    )


def compute_probabilities(head: FoundHead, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C) of images with features (N, D)."""
    return functional.linear(torch.from_numpy(rows), head.weight, head.bias).sigmoid().numpy()
