"""Tuning thresholds on 40,000 x 80 scores: scikit-learn's F1 at 99 thresholds against the exact optimum here.

    python benchmarks/tune_thresholds.py

Plain is the loop of most tutorials; for all classes at once it is timed on every tenth of its 99 thresholds and
multiplied, which takes a minute as it is. What both find is compared too. They take turns; medians of the rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import metrics
import thresholds
from benchmarks.turns import HEADER, measure_in_turns, print_row

NUM_IMAGES, NUM_CLASSES = 40_000, 80
GRID = np.linspace(0.01, 0.99, 99)
EVERY = 10  # of the grid, that the plain way is timed on
ROUNDS = 3


def main() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((NUM_IMAGES, NUM_CLASSES)) < 0.04).astype(np.int8)
    logits = rng.normal(-3, 1.2, targets.shape) + 2.5 * targets
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)

    def measure_plain(threshold: float) -> float:
        return float(f1_score(targets, probabilities >= threshold, average="weighted"))

    plain_sample = GRID[::EVERY]
    seconds = measure_in_turns(
        lambda: [measure_plain(threshold) for threshold in plain_sample],
        lambda: thresholds.tune_global(probabilities, targets),
        ROUNDS,
    )
    seconds = [(plain * len(GRID) / len(plain_sample), ours) for plain, ours in seconds]
    print(f"{NUM_IMAGES} x {NUM_CLASSES} scores, seconds, {ROUNDS} rounds\n{'':32}{HEADER}")
    print_row("one threshold for all classes", seconds)
    seconds = measure_in_turns(
        lambda: [f1_score(targets[:, 0], probabilities[:, 0] >= threshold) for threshold in GRID],
        lambda: thresholds.tune_per_class(probabilities[:, :1], targets[:, :1]),
        ROUNDS,
    )
    print_row("a threshold for one class", seconds)

    exact = thresholds.tune_global(probabilities, targets)
    reached = metrics.measure(probabilities, targets, exact)["f1_weighted"]
    print(
        f"\nweighted F1: {max(map(measure_plain, plain_sample)):.5f} on the grid as timed, {reached:.5f} at {exact:.4f}"
    )


if __name__ == "__main__":
    main()
