"""How many wrong labels `dataset_tools.py suspects` finds, and what it is worth to put them right.

    python benchmarks/suspects.py DATASET_FOLDER [NUM_SEEDS] [--CACHE_FOLDER FOLDER]

Of the training labels of recipes/frozen_features.py, 5 % of those that are present become absent, and as many that are
absent become present; a seed draws them (3 seeds unless given). Heads on frozen features are trained on these labels,
and predict the images that they have not seen. All labels are ranked: first those that are suspect, then the others,
each by their score. Prints where the wrong ones stand, for the score in use and for others, and the test mAP of the
head that is trained on the labels as they are, after the first of the list were put right, and on the clean ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import config
import metrics
import overrides
from dataset.batches import as_float_targets
from dataset.table import Table
from tools import confident_learning
from trainer import from_config, head_fit, head_search, search_features
from trainer.head_search import FoundHead
from utils import run_script, say

ROOT = Path(__file__).resolve().parents[1]
WRONG_SHARE = 0.05  # of the labels that are present; as many that are absent
FIRST_SHARE = 0.1  # of the list, that is looked at
Array = NDArray[np.floating]


class Data(NamedTuple):
    """Features and labels of the training and of the test images."""

    train: Table
    train_rows: NDArray[np.float32]  # (N, D)
    test: Table
    test_rows: NDArray[np.float32]


def main(arguments: list[str]) -> None:
    folder, *rest = arguments
    num_seeds = int(rest.pop(0)) if rest and rest[0].isdigit() else 3
    overrides.apply([str(ROOT / "recipes" / "frozen_features.py"), f"--DATASET_FOLDER={folder}", *rest], config)
    data = read_data()
    clean = measure_map(data, train(data, data.train.targets))
    say(f"{len(data.train):,} images, {data.train.targets.size:,} labels, {(data.train.targets == 1).sum():,} present")
    for seed in range(num_seeds):
        noisy, is_wrong = flip_labels(data.train.targets, seed)
        head = train(data, noisy)
        compare_scores(head.out_of_fold, noisy, is_wrong, f"seed {seed}, {is_wrong.sum()} wrong")
        order, num_suspect = rank_labels(head.out_of_fold, noisy)
        share_found = is_wrong.flat[order[:num_suspect]].sum() / is_wrong.sum()
        say(f"  suspects: {num_suspect:,} labels, with {share_found:.1%} of the wrong ones")
        figures = {"as they are": measure_map(data, head)}
        for count, what in ((num_suspect, "suspects"), (round(FIRST_SHARE * order.size), f"first {FIRST_SHARE:.0%}")):
            mended = noisy.copy()
            mended.flat[order[:count]] = data.train.targets.flat[order[:count]]
            figures[f"{what} put right"] = measure_map(data, train(data, mended))
        figures["clean"] = clean
        say("  test mAP: " + ", ".join(f"{what} {figure:.4f}" for what, figure in figures.items()))


def read_data() -> Data:
    """Features of whole images by the frozen backbone, kept in CACHE_FOLDER."""
    features, test = search_features.read_features(), from_config.read_split("test")
    return Data(features.table, features.rows, test, search_features.read_rows(test))


def flip_labels(targets: NDArray[np.int8], seed: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """`targets` (N, C) with wrong labels, and which are wrong."""
    random, is_wrong = np.random.default_rng(seed), np.zeros(targets.shape, dtype=bool)
    count = round(WRONG_SHARE * (targets == 1).sum())
    for label in (1, 0):
        places = np.flatnonzero(targets == label)
        is_wrong.flat[random.choice(places, count, replace=False)] = True
    return np.where(is_wrong, 1 - targets, targets).astype(np.int8), is_wrong


def train(data: Data, targets: NDArray[np.int8]) -> FoundHead:
    """The head of recipes/frozen_features.py, and what its folds predict of the images that they have not seen."""
    folds = head_fit.assign_folds(replace(data.train, targets=targets))
    return head_search.find_head(data.train_rows, as_float_targets(targets).numpy(), folds)


def measure_map(data: Data, head: FoundHead) -> float:
    """The test mAP."""
    logits = data.test_rows @ head.weight.numpy().T + head.bias.numpy()
    return float(np.nanmean(metrics.average_precision(1 / (1 + np.exp(-logits)), data.test.targets)))


def rank_labels(probabilities: Array, targets: NDArray[np.int8]) -> tuple[NDArray[np.intp], int]:
    """(the places of all labels, the most suspect first; how many of them are suspect)."""
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    is_suspect = confident_learning.find_suspects(probabilities, targets, thresholds)
    scores = confident_learning.score_labels(probabilities, targets, thresholds)
    return np.lexsort((scores.ravel(), ~is_suspect.ravel())), int(is_suspect.sum())


# ---- other scores ----


def list_scores(probabilities: Array, targets: NDArray[np.int8]) -> dict[str, Array]:
    """{name: (N, C)}; the lowest are the most suspect."""
    thresholds = confident_learning.measure_thresholds(probabilities, targets)
    confidence = np.where(targets == 1, probabilities, 1 - probabilities)
    return {
        "in use": confident_learning.score_labels(probabilities, targets, thresholds),
        "self-confidence": confidence,
        "less its threshold": confidence - np.where(targets == 1, thresholds.present, thresholds.absent),
        "rank in its class": rank_in_class(confidence, targets),
    }


def rank_in_class(confidence: Array, targets: NDArray[np.int8]) -> Array:
    """Each label's place among those of its class that are the same, as a share."""
    ranks = np.empty_like(confidence)
    for column in range(targets.shape[1]):
        for label in (0, 1):
            rows = np.flatnonzero(targets[:, column] == label)
            ranks[rows[confidence[rows, column].argsort()], column] = (np.arange(len(rows)) + 1) / len(rows)
    return ranks


def average_sorted(scores: Array, alpha: float = 0.8) -> Array:
    """(N,) an exponential moving average from the highest score to the lowest (Thyagarajan et al. 2022)."""
    ordered = -np.sort(-scores, axis=1)
    average = ordered[:, 0]
    for column in ordered.T[1:]:
        average = alpha * column + (1 - alpha) * average
    return average


def soften_minimum(scores: Array, temperature: float = 0.1) -> Array:
    """(N,) the mean of the scores, each weighted by exp((1 - score) / temperature) (the same paper's softmin)."""
    weights = np.exp((1 - scores) / temperature)
    return (weights * scores).sum(axis=1) / weights.sum(axis=1)


POOLS: dict[str, Callable[[Array], Array]] = {
    "lowest": lambda scores: scores.min(axis=1),
    "moving average": average_sorted,
    "softmin": soften_minimum,
}


def compare_scores(probabilities: Array, targets: NDArray[np.int8], is_wrong: NDArray[np.bool_], title: str) -> None:
    """Print which share of the wrong labels each score has in the first part of its list, of labels and of images."""
    num_wrong, num_images = int(is_wrong.sum()), round(FIRST_SHARE * len(targets))
    say(f"{title:30}{f'first {num_wrong}':>12}{'first 3 %':>12}{'first 10 %':>12}; first 10 % of the images")
    scores = list_scores(probabilities, targets)
    for name, score in scores.items():
        found = is_wrong.ravel()[score.argsort(axis=None, kind="stable")]
        counts = (num_wrong, round(0.03 * found.size), round(FIRST_SHARE * found.size))
        cells = [f"{found[:count].sum() / num_wrong:>12.1%}" for count in counts]
        of_image = is_wrong.sum(axis=1)
        pooled = [
            f"{pool_name} {of_image[pool(score).argsort(kind='stable')[:num_images]].sum() / num_wrong:.1%}"
            for pool_name, pool in POOLS.items()
        ]
        say(f"  {name:28}{''.join(cells)}; {', '.join(pooled)}")
    most = -np.sort(-is_wrong.sum(axis=1))[:num_images].sum() / num_wrong
    say(f"  {'the truth':28}{'':36}; {most:.1%}")


if __name__ == "__main__":
    run_script(main)
