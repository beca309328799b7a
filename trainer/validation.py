"""How good a model is on the validation split: its scores, the threshold tuned on them, every metric at it.

    model, validated = validate(run, epoch, record)     # the better of the model and its average
    validated.f1, validated.threshold, validated.measured

Reads config, as a part of training.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import config
import distributed
import metrics
import thresholds
from dataset.batches import Batch
from dataset.loading import count_images
from losses import Objective
from models import inference
from models_factory import MultiLabelModel
from trainer.build import choose_activation, choose_metric
from trainer.run import Run
from trainer.training_data import make_eval_loader
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
    chosen_by: str  # the name in `measured` of what checkpoints are chosen by

    @property
    def f1(self) -> float:
        """What checkpoints are chosen by."""
        return self.measured[self.chosen_by]

    def make_record(self) -> dict[str, float]:
        """The part of an epoch's record that validation adds."""
        record = {
            "val_loss": self.scores.loss,
            "val_f1": self.f1,
            "val_f1_cross_fitted": self.measured[f"{choose_metric()}_cross_fitted"],
            "val_mAP": self.measured["mAP"],
            "threshold": self.threshold,
        }
        return record | ({"val_accuracy": self.measured["exact_match"]} if config.LABELS_PER_IMAGE == "one" else {})


def validate(
    run: Run, epoch: int, record: dict[str, Any], out_of_fold: Scores | None = None
) -> tuple[MultiLabelModel, Validation]:
    """The better of the model and, where EMA_DECAY keeps one, its average; with its validation.

    Adds the numbers of both to the epoch's `record`. Where a search over heads gave scores `out_of_fold` of all images,
    they are the validation, and nothing is predicted again.
    """
    trainer, stage = run.trainer, run.stage
    assert stage is not None
    if out_of_fold:
        validated = measure_scores(out_of_fold, run.state.cross_fits)
        record |= validated.make_record()
        return trainer.model, validated
    title = f"epoch {epoch} validation"
    scores, is_cross_fitted = _score(run, stage.network, stage.val_loader, title), run.state.cross_fits
    model, validated = trainer.model, measure_scores(scores, is_cross_fitted)
    if trainer.average:
        averaged = trainer.average.module
        assert isinstance(averaged, MultiLabelModel)
        # while features of the frozen backbone are kept, the stage runs the head alone
        network = averaged if stage.network is trainer.model else averaged.head
        scores = _score(run, network, stage.val_loader, f"{title}, averaged weights")
        validated_average = measure_scores(scores, is_cross_fitted)
        record |= {"val_f1_raw": validated.f1, "val_f1_averaged": validated_average.f1}
        if validated_average.f1 > validated.f1:
            model, validated = averaged, validated_average
    record |= validated.make_record()
    return model, validated


def measure_training_split(run: Run) -> dict[str, float]:
    """F1 and mAP on the training split, without augmentation, at the last validation's threshold."""
    trainer = run.trainer
    scores = _score(run, trainer.model, make_eval_loader(run.data.train, trainer.device), "training split")
    threshold = config.TH_MULTI_LABEL if run.state.threshold is None else run.state.threshold
    measured = metrics.measure(scores.probabilities, scores.targets, threshold, *_limits())
    return {"train_f1": measured[choose_metric()], "train_mAP": measured["mAP"]}


def _score(run: Run, network: nn.Module, loader: DataLoader[Batch], title: str) -> Scores:
    """Run `network`, the model or its head, over `loader`."""
    trainer = run.trainer
    # a head alone computes in float32, as it does within the model
    autocast = trainer.autocast if isinstance(network, MultiLabelModel) else nullcontext
    return compute_scores(network, loader, trainer.objective, trainer.device, autocast, choose_activation(), title)


def compute_scores(
    network: nn.Module,
    loader: DataLoader[Batch],
    objective: Objective,
    device: torch.device,
    autocast: Callable[[], Any] = nullcontext,
    activation: str = "sigmoid",
    title: str = "validation",
) -> Scores:
    """Run `network`, a model or its head, over `loader`. The loss is that of the objective in evaluation mode.

    With several processes each one runs its share, and all get the scores of every image, in order.
    """
    objective.eval()
    targets: list[np.ndarray] = []
    total = torch.zeros((), device=device)

    def note(batch: Batch, logits: Tensor) -> None:
        targets.append(batch.targets.cpu().numpy().copy())  # a copy: a tensor of a loading process is an open file
        total.add_(objective(logits, batch.targets, batch.weights) * len(logits))

    batches: Iterator[Batch] = track(loader, title, count_images(loader))
    rows = list(inference.compute_probabilities(network, batches, device, autocast, note, activation))
    all_targets = distributed.join(np.concatenate(targets))
    loss = sum(distributed.collect(total.item())) / len(all_targets)
    return Scores(distributed.join(np.concatenate(rows)), all_targets, loss)


def cross_fits(num_images: int) -> bool:
    """Whether a run with so many validation images chooses its checkpoint by the cross-fitted F1.

    The F1 at the threshold tuned on the same images is too good, and with few images by how much depends on luck.
    """
    return num_images < thresholds.FEW_IMAGES


def name_f1(is_cross_fitted: bool) -> str:
    """The name in `Validation.measured` of the F1 that checkpoints are chosen by."""
    return f"{choose_metric()}_cross_fitted" if is_cross_fitted else choose_metric()


def measure_scores(scores: Scores, is_cross_fitted: bool = False) -> Validation:
    """Tune the threshold on the scores, and measure them at it. Raises InputError where the model gives NaN.

    `is_cross_fitted` says which F1 checkpoints are chosen by.
    """
    if np.isnan(scores.probabilities).any():
        raise InputError(
            "validation gave probabilities that are no numbers: lower the rates, or set MIXED_PRECISION off"
        )
    probabilities, targets = scores.probabilities, scores.targets
    tune = thresholds.choose_tuner(len(probabilities))
    threshold = tune(probabilities, targets)
    metric, (lowest, highest) = choose_metric(), _limits()
    measured = metrics.measure(probabilities, targets, threshold, lowest, highest)
    measured[f"{metric}_cross_fitted"] = thresholds.cross_fit(
        probabilities, targets, tune, metric=metric, min_labels=lowest, max_labels=highest
    )
    predicted = metrics.predict(probabilities, threshold, lowest, highest)
    measured[f"{metric}_standard_error"] = thresholds.standard_error(predicted, targets, metric)
    return Validation(scores, threshold, measured, name_f1(is_cross_fitted))


def _limits() -> tuple[int, int]:
    """The least and the most labels an image gets. But for one label, MIN_LABELS and MAX_LABELS do not choose."""
    return (1, 1) if config.LABELS_PER_IMAGE == "one" else (0, 0)
