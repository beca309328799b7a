"""What the losses for missing labels are worth: heads on the frozen features of a backbone, by loss.

    python benchmarks/missing_labels.py DATASET_FOLDER [NUM_SEEDS]

The data set has all its labels, and a train and a test split. Of the training labels 60 % of the positives are taken
away, or all but one an image; the test labels stay. A head `linear_bn` on EfficientNet-Lite0 is trained by
steps: 5 epochs, batches of 32, Adam at 1e-2, cosine; on one view of each image. A seed draws what is taken away, the
head and the order. Prints the mean test mAP over the seeds (3 unless given), and their spread.

HEAD_FIT search: the heads linear and kernel as a search finds them, on the same features.

ABSENT_MEANS unknown: negatives that are probably missing labels are unknown (trainer/missing_labels.py). The ceiling:
exactly the labels that were taken away are unknown, which nobody can know.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import heads
import metrics
import models_factory
from dataset.batches import as_float_targets
from dataset.image_sizes import as_size
from dataset.loading import count_images, make_loader
from dataset.resize_rules import make_eval_transform
from dataset.stratified_split import divide_rows
from dataset.table import Table
from dataset_readers import read_dataset
from losses import ENTRY_WEIGHTS, LOSSES, Objective
from trainer import head_search, kernel_search, missing_labels
from utils import run_script, say, track

EPOCHS, BATCH_SIZE, RATE = 5, 32, 1e-2
TAKEN_AWAY = ("nothing", "60 % of the positives", "all positives but one an image")
CEILING, ABSENT_MEANS_UNKNOWN = "the ceiling", "ABSENT_MEANS unknown"
SEARCH = "HEAD_FIT search"
WAYS = (
    "bce_with_logits",
    f"bce_with_logits, {ABSENT_MEANS_UNKNOWN}",
    f"bce_with_logits, {CEILING}",
    "bce_with_logits, reject_large",
    "asymmetric",
    "hill",
    "splc",
    "zlpr",
    "two_way",
    f"{SEARCH} linear",
    f"{SEARCH} linear, {ABSENT_MEANS_UNKNOWN}",
    f"{SEARCH} kernel",
    f"{SEARCH} kernel, {ABSENT_MEANS_UNKNOWN}",
)
WIDTH = max(map(len, WAYS)) + 2


def main(arguments: list[str]) -> None:
    num_seeds = int(arguments[1]) if len(arguments) > 1 else 3
    model = models_factory.make_model("efficientnet_lite0", 1, head="linear", weights="default").eval()
    train, test = (read_dataset(arguments[0], split=split) for split in ("train", "test"))
    train_features, test_features = (compute_features(model, table) for table in (train, test))
    say(f"{'taken away':32}" + "".join(f"{way:>{WIDTH}}" for way in WAYS))
    for what in TAKEN_AWAY:
        cells = []
        for way in WAYS:
            values = []
            for seed in range(num_seeds):
                written = left = take_away(train.targets, what, seed)
                loss, *labels_or_weights = way.split(", ")
                if labels_or_weights == [ABSENT_MEANS_UNKNOWN]:
                    predicted = missing_labels.predict_left_out(train_features.flatten(1), left)
                    left = missing_labels.reject_probable_negatives(left, predicted)
                elif labels_or_weights == [CEILING]:
                    left = np.where(left == train.targets, left, np.int8(-1))
                if loss.startswith(SEARCH):
                    head = find_head(loss.removeprefix(SEARCH).strip(), train_features, left, written)
                else:
                    weights = [name for name in labels_or_weights if name in ENTRY_WEIGHTS]
                    head = train_head(loss, weights, train_features, left, seed)
                with torch.no_grad():
                    probabilities = head(test_features).sigmoid().numpy()
                values.append(float(np.nanmean(metrics.average_precision(probabilities, test.targets))))
            spread = max(values) - min(values)
            cells.append(f"{statistics.mean(values):.3f} (spread {spread:.3f})")
        say(f"{what:32}" + "".join(f"{cell:>{WIDTH}}" for cell in cells))


@torch.inference_mode()
def compute_features(model: models_factory.MultiLabelModel, table: Table) -> Tensor:
    """(N, D, 1, 1): the mean over all positions of each image's feature map."""
    loader = make_loader(table, make_eval_transform("squash", as_size(224)), 64)
    batches = track(loader, "features", count_images(loader))
    return torch.cat([model.extract_features(batch.images).mean((2, 3), keepdim=True) for batch in batches]).clone()


def take_away(targets: NDArray[np.int8], what: str, seed: int) -> NDArray[np.int8]:
    """`targets` (N, C) with fewer positives: those taken away are said to be absent."""
    random, left = np.random.default_rng(seed), targets.copy()
    if what == TAKEN_AWAY[1]:
        positives = np.argwhere(left == 1)
        rows, columns = positives[random.permutation(len(positives))[: round(0.6 * len(positives))]].T
        left[rows, columns] = 0
    elif what == TAKEN_AWAY[2]:
        for row in left:
            positives = np.flatnonzero(row == 1)
            if len(positives):
                row[positives] = 0
                row[random.choice(positives)] = 1
    return left


def train_head(loss: str, weights: Sequence[str], features: Tensor, targets: NDArray[np.int8], seed: int) -> nn.Module:
    """A head for the features (N, D, 1, 1) and labels (N, C), with a `loss` and entry `weights`."""
    torch.manual_seed(seed)
    objective = Objective(LOSSES[loss](), {name: ENTRY_WEIGHTS[name]() for name in weights}).train()
    head = heads.HEADS["linear_bn"](features.shape[1], targets.shape[1])
    optimizer = torch.optim.Adam(head.parameters(), RATE)
    num_steps = len(features) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * num_steps)
    labels, ones = torch.from_numpy(targets).float(), torch.ones(BATCH_SIZE)
    for epoch in range(1, EPOCHS + 1):
        objective.start_epoch(epoch)
        for rows in torch.randperm(len(features))[: num_steps * BATCH_SIZE].split(BATCH_SIZE):
            objective(head(features[rows]), labels[rows], ones).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return head.eval()


def find_head(name: str, features: Tensor, targets: NDArray[np.int8], written: NDArray[np.int8]) -> nn.Module:
    """The head `name`, linear or kernel, for the features (N, D, 1, 1) and labels (N, C), with folds as in a run.

    In `targets` labels that are `written` as absent may be unknown.
    """
    rows, labels = features.flatten(1).numpy(), as_float_targets(targets).numpy()
    fold_of = divide_rows(written, 5, seed=0)
    is_rejecting = not np.array_equal(targets, written)
    fold_targets = missing_labels.reject_for_folds(rows, written, fold_of) if is_rejecting else None
    if name == "kernel":
        found = kernel_search.find_kernel_head(rows, labels, fold_of, fold_targets=fold_targets)
        options = {"num_landmarks": kernel_search.count_landmarks(len(rows))}
    else:
        found, options = head_search.find_head(rows, labels, fold_of, fold_targets=fold_targets), {}
    head = heads.HEADS[name](features.shape[1], targets.shape[1], **options)
    head.load_state_dict(found.state)
    return head.eval()


if __name__ == "__main__":
    run_script(main)
