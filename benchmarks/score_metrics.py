"""Measuring 40,000 x 80 scores: scikit-learn's functions against metrics.py, which gives the same numbers.

    python benchmarks/score_metrics.py

Half of the scores are rounded, so that there are ties. Both ways take turns; medians of the rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn import metrics as reference

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import metrics
from benchmarks.turns import HEADER, measure_in_turns, print_row

NUM_IMAGES, NUM_CLASSES = 40_000, 80
ROUNDS = 5
AVERAGES = ("micro", "macro", "weighted", "samples")


def main() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((NUM_IMAGES, NUM_CLASSES)) < 0.04).astype(np.int8)
    probabilities = np.clip(rng.random(targets.shape) * 0.8 + 0.2 * targets, 0, 1).astype(np.float32)
    probabilities[: NUM_IMAGES // 2] = probabilities[: NUM_IMAGES // 2].round(2)
    predicted = probabilities >= 0.5

    def measure_ap() -> object:
        return [reference.average_precision_score(targets[:, c], probabilities[:, c]) for c in range(NUM_CLASSES)]

    def measure_plain() -> dict[str, float]:
        numbers = {f"f1_{average}": reference.f1_score(targets, predicted, average=average) for average in AVERAGES}
        for name, average in (("C", "macro"), ("O", "micro")):
            numbers[f"{name}P"] = reference.precision_score(targets, predicted, average=average)
            numbers[f"{name}R"] = reference.recall_score(targets, predicted, average=average)
        numbers["mAP"] = reference.average_precision_score(targets, probabilities)
        numbers["exact_match"] = reference.accuracy_score(targets, predicted)
        numbers["hamming_loss"] = reference.hamming_loss(targets, predicted)
        return {name: float(number) for name, number in numbers.items()}

    print(f"{NUM_IMAGES} x {NUM_CLASSES} scores, seconds, {ROUNDS} rounds\n{'':32}{HEADER}")
    print_row(
        "average precision",
        measure_in_turns(measure_ap, lambda: metrics.average_precision(probabilities, targets), ROUNDS),
    )
    print_row(
        "all metrics", measure_in_turns(measure_plain, lambda: metrics.measure(probabilities, targets, 0.5), ROUNDS)
    )
    ours = metrics.measure(probabilities, targets, 0.5)
    difference = max(abs(ours[name] - number) for name, number in measure_plain().items())
    print(f"\nlargest difference between the two: {difference:.1e}")


if __name__ == "__main__":
    main()
