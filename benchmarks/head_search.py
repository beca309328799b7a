"""A search over 200 heads on kept features, beside scikit-learn's LogisticRegression one class after the other.

    python benchmarks/head_search.py

The features are 4,000 x 1,280 random numbers, and 18 classes depend on some of them. trainer/head_search.py compares
11 penalties of logistic regressions, and 40 ways to train a head by steps of Adam for 5 epochs, both in 5 folds.
scikit-learn fits the heads of one fold with every penalty, each a regression for each class, in a single thread as it
does; times 5 is what the search by it would take. A head is one of all 18 classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools
import time
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import utils
from dataset.stratified_split import divide_rows
from trainer.head_search import PENALTIES, Way, find_head, search_heads

NUM_IMAGES, NUM_FEATURES, NUM_CLASSES, NUM_FOLDS = 4000, 1280, 18, 5
RATES = np.geomspace(1e-4, 1e-1, 10).tolist()
DECAYS = (0.0, 1e-5, 1e-4, 1e-3)


def main(_: list[str]) -> None:
    features, targets = make_data()
    fold_of = divide_rows(targets.astype(np.int8), NUM_FOLDS, seed=0)
    ways = [Way(rate=rate, weight_decay=decay) for rate, decay in itertools.product(RATES, DECAYS)]
    utils.say(f"{NUM_IMAGES} x {NUM_FEATURES}, {NUM_CLASSES} classes, {torch.get_num_threads()} threads")

    start = time.perf_counter()
    search_heads((features - features.mean(axis=0)) / features.std(axis=0), targets, ways, fold_of)
    by_steps = time.perf_counter() - start
    utils.say(f"{len(ways) * NUM_FOLDS} heads by steps of Adam: {by_steps:.1f} s")

    start = time.perf_counter()
    found = find_head(features, targets, fold_of)
    by_lbfgs = time.perf_counter() - start
    utils.say(f"{found.num_heads} logistic regressions, and the one of all images: {by_lbfgs:.1f} s")

    start = time.perf_counter()
    fit_by_sklearn(features[fold_of != 0], targets[fold_of != 0])
    by_sklearn = (time.perf_counter() - start) * NUM_FOLDS
    utils.say(f"{found.num_heads} by scikit-learn: {by_sklearn:.1f} s, {by_sklearn / by_lbfgs:.1f} times as long")


def make_data() -> tuple[Any, Any]:
    """Features (N, D) float32; targets (N, C) of 0 and 1, with which a fifth of the features has to do."""
    random = np.random.default_rng(0)
    features = random.standard_normal((NUM_IMAGES, NUM_FEATURES), dtype=np.float32)
    weights = random.standard_normal((NUM_FEATURES, NUM_CLASSES)) * (random.random((NUM_FEATURES, 1)) < 0.2)
    logits = features @ weights / np.sqrt(NUM_FEATURES / 5) * 2 - 2.5
    return features, (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def fit_by_sklearn(features: Any, targets: Any) -> None:
    """A regression for each penalty and class, on standardised features."""
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    for penalty in PENALTIES:
        # head_search: mean loss + penalty * |w|^2; here: C * sum of losses + |w|^2 / 2
        inverse = 1 / (2 * len(targets) * penalty)
        for labels in targets.T:
            LogisticRegression(C=inverse, max_iter=1000).fit(standard, labels)


if __name__ == "__main__":
    utils.run_script(main)
