"""How many photographs have to be labelled, where `dataset_tools.py queue` chooses them, and where chance does.

    python benchmarks/label_queue.py DATASET_FOLDER [--seeds 0,1,2,3,4] [--LOCAL_ROOT FOLDER ...]

From 250 labelled photographs of the training split, drawn by the seed, in rounds of 250. All others of that split stand
for those without labels. After each round a head is found as recipes/frozen_features.py does, and its mAP is measured
on the test split. Printed are the mean mAP of the seeds and its spread, highest - lowest; then how many photographs the
queue adds until its mean has the mAP that chance has, on average, at 1,500, as a share of the 1,250 that chance added.
Between two rounds a straight line is taken.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import config
import metrics
import overrides
import utils
from benchmarks.runs import describe, parse_numbers, print_table
from dataset.stratified_split import divide_rows
from tools import queue
from trainer import from_config, head_search, search_features
from trainer.head_fit import NUM_FOLDS
from trainer.unlabelled import compute_probabilities

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "frozen_features.py"
ROUND, LAST = 250, 1500  # photographs

Rows = NDArray[np.intp]


class Data(NamedTuple):
    """Features (N, D) and labels (N, C) of both splits."""

    rows: NDArray[np.float32]
    targets: NDArray[np.float32]
    test_rows: NDArray[np.float32]
    test_targets: NDArray[np.int8]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/label_queue.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset_folder", type=Path)
    parser.add_argument("--seeds", type=parse_numbers, default=[0, 1, 2, 3, 4])
    options, constants = parser.parse_known_args(arguments)
    overrides.apply([str(RECIPE), f"--DATASET_FOLDER={options.dataset_folder.absolute()}", *constants], config)
    data = read_data()
    curves: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for seed in options.seeds:
        for name, choose in WAYS.items():
            curves[name].append(measure(data, choose, seed))
            utils.say(f"seed {seed}, {name}: {' '.join(f'{value:.4f}' for value in curves[name][-1])}")
    counts = list(range(ROUND, LAST + 1, ROUND))
    cells = {name: [describe(column) for column in zip(*rows, strict=True)] for name, rows in curves.items()}
    print_table(zip(map(str, counts), *cells.values(), strict=True), ["labelled", *cells])
    goal = statistics.mean(curve[-1] for curve in curves["chance"])
    means = [statistics.mean(column) for column in zip(*curves["queue"], strict=True)]
    share = (find_count(means, counts, goal) - ROUND) / (LAST - ROUND)
    utils.say(f"the queue's mean has {goal:.4f} with {share:.2f} of the photographs that chance adds until {LAST:,}")


def read_data() -> Data:
    labelled, test = search_features.read_features(), from_config.read_split("test")
    return Data(labelled.rows, labelled.targets, search_features.read_rows(test), test.targets)


def measure(
    data: Data, choose: Callable[[Data, Rows, Rows, head_search.FoundHead, int], Rows], seed: int
) -> list[float]:
    """The mAP after each round."""
    order = np.random.default_rng(seed).permutation(len(data.rows))
    labelled, curve = order[:ROUND], []
    while True:
        found = find_head(data, labelled)
        scores = compute_probabilities(found, data.test_rows)
        curve.append(float(np.nanmean(metrics.average_precision(scores, data.test_targets))))
        if len(labelled) >= LAST:
            return curve
        others = np.setdiff1d(order, labelled)
        labelled = np.concatenate([labelled, others[choose(data, labelled, others, found, seed)]])


def find_head(data: Data, labelled: Rows) -> head_search.FoundHead:
    targets = data.targets[labelled]
    return head_search.find_head(data.rows[labelled], targets, divide_rows(targets.astype(np.int8), NUM_FOLDS, 0))


def choose_by_chance(data: Data, labelled: Rows, others: Rows, found: head_search.FoundHead, seed: int) -> Rows:
    return np.random.default_rng([seed, len(labelled)]).permutation(len(others))[:ROUND]


def choose_by_queue(data: Data, labelled: Rows, others: Rows, found: head_search.FoundHead, seed: int) -> Rows:
    chosen, _ = queue.choose(
        ROUND,
        compute_probabilities(found, data.rows[others]),
        data.rows[others],
        data.rows[labelled],
        data.targets[labelled].astype(np.int8),
    )
    return chosen


WAYS = {"chance": choose_by_chance, "queue": choose_by_queue}


def find_count(curve: list[float], counts: list[int], goal: float) -> float:
    """With how many photographs `curve` first has `goal`; infinite where it never does."""
    for row in range(1, len(curve)):
        if curve[row] >= goal:
            share = (goal - curve[row - 1]) / (curve[row] - curve[row - 1])
            return counts[row - 1] + share * (counts[row] - counts[row - 1])
    return float("inf")


if __name__ == "__main__":
    utils.run_script(main)
