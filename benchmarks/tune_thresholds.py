"""Tuning thresholds on 40,000 x 80 scores: scikit-learn's F1 at 99 thresholds against the exact optimum here.

    python benchmarks/tune_thresholds.py [--memory]

Plain is the loop of most tutorials; for all classes at once it is timed on every tenth of its 99 thresholds and
multiplied, which takes a minute as it is. What both find is compared too. They take turns; medians of the rounds.
Then the other goals and calibration, ours alone: a global threshold, one a class, and deciding on both, cross-fitted.
--memory prints the peak memory of a process that does the same on a million rows, one process each.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import f1_score

import calibration
import metrics
import thresholds
from benchmarks.score_metrics import NUM_CLASSES, NUM_IMAGES, Way, make_scores, measure_plain, print_memory
from benchmarks.turns import HEADER, measure_in_turns, print_row
from thresholds import Policy

GRID = np.linspace(0.01, 0.99, 99)
EVERY = 10  # of the grid, that the plain way is timed on
ROUNDS = 3
MEMORY_WAYS: dict[str, Way] = {
    "one threshold, weighted F1": thresholds.tune_global,
    "one threshold, micro F1": lambda *scores: thresholds.tune_global(*scores, metric="f1_micro"),
    "a threshold for each class": thresholds.tune_per_class,
    "cross-fitting one threshold": thresholds.cross_fit,
    "deciding, cross-fitted": lambda *scores: thresholds.decide(*scores, policy=Policy("per_class")),
    "cross-fitting one a class": lambda *scores: thresholds.cross_fit(*scores, tune=thresholds.tune_per_class),
}


def main(argv: list[str]) -> None:
    if argv[:1] == ["--memory"]:
        print_memory(MEMORY_WAYS, argv)
        return
    probabilities, targets = make_scores(NUM_IMAGES, NUM_CLASSES)
    sample = GRID[::EVERY]

    def measure_f1(threshold: float) -> float:
        return float(f1_score(targets, probabilities >= threshold, average="weighted"))

    print(f"{NUM_IMAGES} x {NUM_CLASSES} scores, seconds, {ROUNDS} rounds\n{'':32}{HEADER}")
    tuning = measure_in_turns(
        lambda: [measure_f1(threshold) for threshold in sample],
        lambda: thresholds.tune_global(probabilities, targets),
        ROUNDS,
    )
    tuning = [(plain * len(GRID) / len(sample), ours) for plain, ours in tuning]
    print_row("one threshold for all classes", tuning)
    measuring = measure_in_turns(
        lambda: measure_plain(probabilities, targets, 0.5),
        lambda: metrics.measure(probabilities, targets, 0.5),
        ROUNDS,
    )
    both = [(a + c, b + d) for (a, b), (c, d) in zip(tuning, measuring, strict=True)]
    print_row("the same and all metrics at it", both)
    one, one_targets = probabilities[:, :1], targets[:, :1]
    seconds = measure_in_turns(
        lambda: [f1_score(one_targets[:, 0], one[:, 0] >= threshold) for threshold in GRID],
        lambda: thresholds.tune_per_class(one, one_targets),
        ROUNDS,
    )
    print_row("a threshold for one class", seconds)

    exact = thresholds.tune_global(probabilities, targets)
    reached = metrics.measure(probabilities, targets, exact)["f1_weighted"]
    print(f"\nweighted F1: {max(map(measure_f1, sample)):.5f} on the grid as timed, {reached:.5f} at {exact:.4f}")

    scores = probabilities, targets
    print(f"\n{'ours alone, seconds':20}{'global':>10}{'per class':>12}{'decide':>10}")
    for goal in thresholds.GOALS:
        policy = Policy("per_class", goal, beta=2.0, precision=0.6, false_negative_cost=3.0)
        ways = [
            lambda policy=policy: thresholds.tune_global(*scores, policy=policy),
            lambda policy=policy: thresholds.tune_per_class(*scores, policy=policy),
            lambda policy=policy: thresholds.decide(*scores, policy),
        ]
        print(f"{goal:20}{''.join(f'{time_median(way):11.3f}' for way in ways)}", flush=True)
    print(f"\n{'calibration':20}{'fit':>10}{'cross-fit':>12}")
    for name, fit in calibration.METHODS.items():
        ways = [lambda fit=fit: fit(*scores), lambda fit=fit: calibration.cross_fit(*scores, fit)]
        print(f"{name:20}{''.join(f'{time_median(way):11.3f}' for way in ways)}", flush=True)


def time_median(way: Callable[[], object]) -> float:
    """Median seconds of ROUNDS rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
