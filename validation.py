"""How good a model is on the validation split: its scores, the threshold tuned on them, every metric at it.

scores = score(network, loader, objective, device)
validation = measure_scores(scores)     # .threshold, .f1, .measured
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import distributed
import metrics
import predictor
import thresholds
from dataset_readers import Batch, count_images
from losses import Objective
from utils import InputError, track


class Scores(NamedTuple):
    """Probabilities (N, C), targets (N, C) with NaN unknown, and the mean loss over them."""

    probabilities: np.ndarray
    targets: np.ndarray
    loss: float


class Validation(NamedTuple):
    """Scores of the validation split, the threshold tuned on them, and every metric at that threshold."""

    scores: Scores
    threshold: float
    measured: dict[str, float]

    @property
    def f1(self) -> float:
        """What checkpoints are chosen by."""
        return self.measured["f1_weighted"]

    def make_record(self) -> dict[str, float]:
        """The part of an epoch's record that validation adds."""
        return {
            "val_loss": self.scores.loss,
            "val_f1": self.f1,
            "val_f1_cross_fitted": self.measured["f1_weighted_cross_fitted"],
            "val_mAP": self.measured["mAP"],
            "threshold": self.threshold,
        }


def score(
    network: nn.Module,
    loader: DataLoader[Batch],
    objective: Objective,
    device: torch.device,
    autocast: Callable[[], Any] = nullcontext,
    activation: str = "sigmoid",
    title: str = "validation",
) -> Scores:
    """Run `network`, a model or its head as it is, over `loader`; the loss is the objective's in evaluation mode.

    Of several processes each runs its share, and all get the scores of every image, in order.
    """
    objective.eval()
    targets: list[Tensor] = []
    total = torch.zeros((), device=device)

    def note(batch: Batch, logits: Tensor) -> None:
        targets.append(batch.targets)
        total.add_(objective(logits, batch.targets, batch.weights) * len(logits))

    batches: Iterator[Batch] = track(loader, title, count_images(loader))
    rows = list(predictor.compute_probabilities(network, batches, device, autocast, note, activation))
    all_targets = distributed.join(torch.cat(targets).cpu().numpy())
    loss = sum(distributed.collect(total.item())) / len(all_targets)
    return Scores(distributed.join(np.concatenate(rows)), all_targets, loss)


def measure_scores(scores: Scores) -> Validation:
    """Tune the threshold on the scores, and measure them at it. Raises InputError where the model gives NaN."""
    if np.isnan(scores.probabilities).any():
        raise InputError(
            "validation gave probabilities that are no numbers: lower the rates, or set MIXED_PRECISION off"
        )
    threshold = thresholds.tune_global(scores.probabilities, scores.targets)
    measured = metrics.measure(scores.probabilities, scores.targets, threshold)
    measured["f1_weighted_cross_fitted"] = thresholds.cross_fit(scores.probabilities, scores.targets)
    return Validation(scores, threshold, measured)
