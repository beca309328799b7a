"""Splitting 100,000 images of 80 classes: time, and how far the labels of the part are from their share.

    python benchmarks/split.py [SHARE ...]

The table is made: the classes are as frequent as MS-COCO's (from over half of the images to 0.2 % of them) and come
together in scenes. Beside ours stand a random split and, where it is installed, iterative-stratification. A deviation
is the number of a class's positives in the part, minus SHARE of all there are; "beyond one" is what is left of it
after one image, in per cent of that share. The last lines are the same with 5 to 6 images of one source each, which
stay together.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from dataset import stratified_split

NUM_IMAGES = 100_000
NUM_CLASSES = 80
NUM_SCENES = 12
NUM_SOURCES = 18_000
SHARES = (0.1, 0.2)

Targets = NDArray[np.int8]


def main(arguments: list[str]) -> None:
    rng = np.random.default_rng(0)
    targets = make_targets(rng)
    sources = rng.integers(0, NUM_SOURCES, NUM_IMAGES)
    groups = [f"source {number}" for number in sources]
    positives = targets.sum(axis=0)
    print(f"{NUM_IMAGES} x {NUM_CLASSES}, {targets.sum(axis=1).mean():.1f} labels an image, ", end="")
    print(f"{positives.min()} to {positives.max()} positives a class")
    print(f"{'':36}{'seconds':>9}{'images':>9}{'largest':>9}{'beyond one':>12}")
    ways: dict[str, Callable[[float], NDArray[np.bool_]]] = {
        "random": lambda share: choose_randomly(np.arange(NUM_IMAGES), share),
        "ours": lambda share: stratified_split.choose_rows(targets, share, seed=0),
        "random sources": lambda share: choose_randomly(sources, share),
        "ours, whole sources": lambda share: stratified_split.choose_rows(targets, share, 0, groups),
    }
    if find_spec("iterstrat"):
        ways["iterative-stratification"] = lambda share: choose_by_iterstrat(targets, share)
    for share in [float(argument) for argument in arguments] or SHARES:
        for name, choose in ways.items():
            start = time.perf_counter()
            chosen = choose(share)
            seconds = time.perf_counter() - start
            expected = positives * share
            deviations = np.abs(targets[chosen].sum(axis=0) - expected)
            beyond = (np.maximum(deviations - 1, 0) / expected).max()
            row = f"{seconds:9.2f}{chosen.sum():9}{deviations.max():9.1f}{beyond:11.2%}"
            print(f"{f'{share:g}  {name}':36}{row}", flush=True)


def make_targets(rng: np.random.Generator) -> Targets:
    """(N, C): each scene has its own classes, so that labels come together; the first class is in all of them."""
    shares = np.geomspace(0.108, 0.0016, NUM_CLASSES)
    shares[0] = 0.54
    affinity = rng.gamma(0.15, 1, (NUM_SCENES, NUM_CLASSES))
    affinity *= NUM_SCENES / affinity.sum(axis=0)
    affinity[:, 0] = 1
    probabilities = np.minimum(shares * affinity, 0.95)[rng.integers(0, NUM_SCENES, NUM_IMAGES)]
    return (rng.random(probabilities.shape) < probabilities).astype(np.int8)


def choose_randomly(sources: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Whole sources, in random order, until `share` of the images is reached."""
    order = np.random.default_rng(0).permutation(sources.max() + 1)
    reached = np.cumsum(np.bincount(sources, minlength=len(order))[order])
    return np.isin(sources, order[reached <= round(share * len(sources))])


def choose_by_iterstrat(targets: Targets, share: float) -> NDArray[np.bool_]:
    from iterstrat.ml_stratifiers import (  # pyright: ignore[reportMissingImports]  # requirements-benchmarks.txt
        MultilabelStratifiedShuffleSplit,
    )

    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=0)  # pyright: ignore
    none = targets.sum(axis=1) == 0  # a stratum, as it is with ours
    _, part = next(splitter.split(np.zeros(len(targets)), np.column_stack([targets, none]).astype(int)))
    return np.isin(np.arange(len(targets)), part)


if __name__ == "__main__":
    main(sys.argv[1:])
