"""Measuring 40,000 x 80 scores: scikit-learn's functions against metrics.py, which gives the same numbers.

    python benchmarks/score_metrics.py [--memory]

Half of the scores are rounded, so that there are ties. Both ways take turns; medians of the rounds. The bootstrap's
plain way measures every resample anew and is timed on a few, and multiplied. --memory prints the peak memory of a
process that does the same on a million rows, one process each.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import resource
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from sklearn import metrics as reference
from sklearn.exceptions import UndefinedMetricWarning

import metrics
from benchmarks.turns import HEADER, measure_in_turns, print_row

NUM_IMAGES, NUM_CLASSES = 40_000, 80
NUM_MEMORY_IMAGES = 1_000_000
ROUNDS = 5
AVERAGES = ("micro", "macro", "weighted", "samples")
NUM_RESAMPLES, NUM_PLAIN_RESAMPLES = 1000, 5

Way = Callable[[np.ndarray, np.ndarray], object]
MEMORY_WAYS: dict[str, Way] = {
    "only the scores": lambda probabilities, targets: None,
    "all metrics": lambda probabilities, targets: metrics.measure(probabilities, targets, 0.5),
    "bootstrap, 2 resamples": lambda probabilities, targets: metrics.bootstrap(probabilities, targets, 0.5, 2),
}


def make_scores(num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) float32 probabilities and int8 targets, 4 % of them present."""
    rng = np.random.default_rng(0)
    probabilities = np.empty((num_images, num_classes), dtype=np.float32)
    targets = np.empty((num_images, num_classes), dtype=np.int8)
    for start in range(0, num_images, 10_000):  # in parts: the peak memory is to be that of the measuring
        rows = slice(start, start + 10_000)
        targets[rows] = rng.random(targets[rows].shape) < 0.04
        logits = rng.normal(-3, 1.2, targets[rows].shape) + 2.5 * targets[rows]
        probabilities[rows] = 1 / (1 + np.exp(-logits))
    return probabilities, targets


def measure_plain(probabilities: np.ndarray, targets: np.ndarray, threshold: float) -> dict[str, float]:
    """What scikit-learn has of `metrics.measure`."""
    warnings.filterwarnings("ignore", category=UndefinedMetricWarning)  # 0 / 0 is 0 on both sides
    predicted = probabilities >= threshold
    numbers = {f"f1_{average}": reference.f1_score(targets, predicted, average=average) for average in AVERAGES}
    for name, average in (("C", "macro"), ("O", "micro")):
        numbers[f"{name}P"] = reference.precision_score(targets, predicted, average=average)
        numbers[f"{name}R"] = reference.recall_score(targets, predicted, average=average)
    numbers["mAP"] = reference.average_precision_score(targets, probabilities)
    numbers["exact_match"] = reference.accuracy_score(targets, predicted)
    numbers["hamming_loss"] = reference.hamming_loss(targets, predicted)
    numbers["sample_accuracy"] = reference.jaccard_score(targets, predicted, average="samples")
    return {name: float(number) for name, number in numbers.items()}


def measure_ap_plain(probabilities: np.ndarray, targets: np.ndarray) -> list[object]:
    columns = zip(targets.T, probabilities.T, strict=True)
    return [reference.average_precision_score(*column) for column in columns]


def measure_classes_plain(probabilities: np.ndarray, targets: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """What scikit-learn has of `metrics.measure_classes`."""
    warnings.filterwarnings("ignore", category=UndefinedMetricWarning)
    columns = reference.precision_recall_fscore_support(targets, probabilities >= threshold)
    numbers = dict(zip(("P", "R", "F1", "positives"), map(np.asarray, columns), strict=True))
    return {**numbers, "AP": np.array(measure_ap_plain(probabilities, targets), dtype=float)}


def measure_fully(probabilities: np.ndarray, targets: np.ndarray) -> None:
    metrics.measure(probabilities, targets, 0.5)
    metrics.measure_classes(probabilities, targets, 0.5)


def bootstrap_plain(probabilities: np.ndarray, targets: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(NUM_PLAIN_RESAMPLES):
        images = rng.integers(len(targets), size=len(targets))
        measure_plain(probabilities[images], targets[images], 0.5)


def print_memory(ways: Mapping[str, Way], argv: list[str]) -> None:
    """For `--memory`: a process for each of the ways. For `--memory WAY`: that way and its peak, in this process."""
    if len(argv) > 1:
        ways[argv[1]](*make_scores(NUM_MEMORY_IMAGES, NUM_CLASSES))
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(f"{argv[1]:32}{peak / 1e6:8.0f} MB", flush=True)
        return
    print(f"{NUM_MEMORY_IMAGES} x {NUM_CLASSES} scores, peak memory of a process", flush=True)
    for name in ways:
        subprocess.run([sys.executable, sys.argv[0], "--memory", name], check=True)


def main(argv: list[str]) -> None:
    if argv[:1] == ["--memory"]:
        print_memory(MEMORY_WAYS, argv)
        return
    probabilities, targets = make_scores(NUM_IMAGES, NUM_CLASSES)
    probabilities[::2] = probabilities[::2].round(2)
    print(f"{NUM_IMAGES} x {NUM_CLASSES} scores, seconds, {ROUNDS} rounds\n{'':32}{HEADER}")
    seconds = measure_in_turns(
        lambda: measure_ap_plain(probabilities, targets),
        lambda: metrics.average_precision(probabilities, targets),
        ROUNDS,
    )
    print_row("average precision", seconds)
    seconds = measure_in_turns(
        lambda: measure_plain(probabilities, targets, 0.5),
        lambda: metrics.measure(probabilities, targets, 0.5),
        ROUNDS,
    )
    print_row("all metrics", seconds)
    seconds = measure_in_turns(
        lambda: [
            measure_plain(probabilities, targets, 0.5),
            measure_classes_plain(probabilities, targets, 0.5),
        ],
        lambda: measure_fully(probabilities, targets),
        ROUNDS,
    )
    print_row("all metrics, and of each class", seconds)
    some, some_targets = probabilities[:1000, :18], targets[:1000, :18]
    seconds = measure_in_turns(
        lambda: bootstrap_plain(some, some_targets),
        lambda: metrics.bootstrap(some, some_targets, 0.5, NUM_RESAMPLES),
        ROUNDS,
    )
    times = NUM_RESAMPLES / NUM_PLAIN_RESAMPLES
    print_row(f"bootstrap, {NUM_RESAMPLES} of 1000 x 18", [(plain * times, ours) for plain, ours in seconds])
    start = time.perf_counter()
    metrics.compare(probabilities, probabilities[:, ::-1], targets, 0.5, 0.5, NUM_RESAMPLES)
    print(f"compare two models, {NUM_RESAMPLES} resamples{time.perf_counter() - start:22.1f}")

    ours = metrics.measure(probabilities, targets, 0.5)
    of_classes = metrics.measure_classes(probabilities, targets, 0.5)
    differences = [abs(ours[name] - number) for name, number in measure_plain(probabilities, targets, 0.5).items()]
    for name, numbers in measure_classes_plain(probabilities, targets, 0.5).items():
        differences.append(float(np.abs(of_classes[name] - numbers).max()))
    print(f"\nlargest difference between the two: {max(differences):.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
