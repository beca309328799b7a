"""Promises kept, and images left to a person: measured on the scores of a test.

    python benchmarks/promises.py trained_models/MODEL/CONFIGURATION/test_scores.npz

1. HALVES times the images are halved at random. Thresholds that promise a recall or a precision are tuned on one half
   and measured on the other, then the other way round. The mean recall must be what was promised, or little more: half
   the halves may have less. The promise of a precision may be broken in 1 - thresholds.CONFIDENCE of the halves, and
   what two halves differ by chance adds to that.
2. Measures of doubt order the images. Printed are the mean, over all shares that may be left to a person, of the F1 of
   an image's labels and of the share of images with all labels right (the area under the curve of risk and coverage,
   turned round), and F1 when a tenth, a fifth or half of the images are left. Probabilities are as the model gives
   them, and calibrated by Platt scaling that was fitted on the other folds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

import calibration
import metrics
import thresholds
from evaluation import saved_scores
from evaluation.promises import average_f1
from thresholds import Goal, Policy

HALVES = 100
LEVELS = (0.95, 0.9, 0.8)
LEFT = (0.1, 0.2, 0.5)

Measure = Callable[[NDArray, NDArray, float], NDArray]  # probabilities (N, C), predicted (N, C), threshold -> (N,)


def main(path: Path) -> None:
    scores = saved_scores.read_scores(path)
    probabilities, targets = scores.probabilities, scores.targets
    print(f"{len(targets)} images, {targets.shape[1]} classes, {HALVES} halves", "", sep="\n")
    for goal in ("guaranteed_recall", "guaranteed_precision"):
        print_halves(probabilities, targets, goal)
    print_doubts(probabilities, targets)


# ---- promises ----


def print_halves(probabilities: NDArray, targets: NDArray, goal: Goal) -> None:
    print(f"{goal:<20}  found (± over halves)  broken  nothing promised  OP     OR")
    for level in LEVELS:
        policy = Policy(goal=goal, recall=level, precision=level)
        found, pooled, num_without = [], [], 0
        for tuned_on, others in list_halves(len(probabilities)):
            scores = probabilities[tuned_on], targets[tuned_on]
            if goal == "guaranteed_precision" and thresholds.PROMISES[goal](*scores, policy) is None:
                num_without += 1
                continue
            threshold = thresholds.tune_global(*scores, policy=policy)
            predicted = metrics.predict(probabilities[others], threshold)
            found.append(thresholds.rate_images(predicted, targets[others], goal).mean())
            measured = thresholds.measure_goal(
                metrics.confusion(probabilities[others], targets[others], threshold), policy
            )
            pooled.append((measured["OP"], measured["OR"]))
        if not found:
            print(f"{level:>20}  nothing is promised in any half")
            continue
        broken, (precision, recall) = np.mean(np.array(found) < level), np.mean(pooled, axis=0)
        print(
            f"{level:>20}  {np.mean(found):.4f} ± {np.std(found):.4f}        {broken:>4.0%}    "
            f"{num_without / (2 * HALVES):>4.0%}              {precision:.4f} {recall:.4f}"
        )
    print()


def list_halves(num_images: int) -> Iterator[tuple[NDArray, NDArray]]:
    """(the rows to tune on, the others), each half in both parts: what one half has by chance, the other lacks."""
    for seed in range(HALVES):
        first, second = np.array_split(np.random.default_rng(seed).permutation(num_images), 2)
        yield first, second
        yield second, first


# ---- doubt ----


def list_errors(probabilities: NDArray, predicted: NDArray) -> NDArray:
    """How probably each entry is wrong, (N, C)."""
    return np.where(predicted, 1 - probabilities, probabilities)


def doubt_f1(probabilities: NDArray, predicted: NDArray, threshold: float) -> NDArray:
    """1 - the F1 that is expected, about: expected hits for hits, the sum of probabilities for labels."""
    hits = (predicted * probabilities).sum(axis=1)
    return 1 - metrics.f_beta_of(hits, predicted.sum(axis=1), probabilities.sum(axis=1))


def doubt_margin(probabilities: NDArray, predicted: NDArray, threshold: float) -> NDArray:
    """How near, in logits, the nearest probability is to the threshold."""
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    logits = np.log(clipped) - np.log1p(-clipped)
    return -np.abs(logits - np.log(threshold / (1 - threshold))).min(axis=1)


def doubt_entropy(probabilities: NDArray, predicted: NDArray, threshold: float) -> NDArray:
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log1p(-p)).sum(axis=1)


DOUBTS: dict[str, Measure] = {
    "wrong entries / (labels + 1), taken": lambda p, predicted, _: thresholds.measure_doubt(p, predicted),
    "wrong entries expected": lambda p, predicted, _: list_errors(p, predicted).sum(axis=1),
    "wrong entries / labels": lambda p, d, _: list_errors(p, d).sum(axis=1) / np.maximum(d.sum(axis=1), 1),
    "not all entries right": lambda p, d, _: -np.log1p(-np.minimum(list_errors(p, d), 1 - 1e-12)).sum(axis=1),
    "1 - expected F1": doubt_f1,
    "nearest threshold": doubt_margin,
    "entropy": doubt_entropy,
    "1 - highest probability": lambda p, predicted, _: 1 - p.max(axis=1),
    "chance": lambda p, predicted, _: np.random.default_rng(0).random(len(p)),
}


def print_doubts(probabilities: NDArray, targets: NDArray) -> None:
    threshold = thresholds.tune_global(probabilities, targets)
    present, known = metrics.as_known(targets)
    predicted = metrics.predict(probabilities, threshold) & known
    hits, guesses, positives = (rows.sum(axis=1) for rows in (predicted & present, predicted, present))
    f1 = metrics.f_beta_of(hits, guesses, positives)
    exact = (hits == guesses) & (hits == positives)
    platt = calibration.cross_fit(probabilities, targets, calibration.fit_platt)
    counts = np.arange(1, len(f1) + 1)
    shares = "".join(f"{share:>8.0%}" for share in LEFT)
    print(f"all images: F1 of an image {f1.mean():.4f}, all right {exact.mean():.4f}, weighted F1 ", end="")
    print(f"{average_f1(predicted, present):.4f}", "", sep="\n")
    print(f"{'doubt':<36} probabilities  mean F1  mean all right  weighted F1 with so many left: {shares}")
    for name, measure in DOUBTS.items():
        for kind, used in (("as they are", probabilities.astype(np.float64)), ("Platt", platt)):
            if measure is doubt_margin and kind == "Platt":  # each class would have another threshold in each fold
                continue
            order = np.argsort(measure(used, predicted, threshold), kind="stable")
            means = [(np.cumsum(values[order]) / counts).mean() for values in (f1, exact)]
            kept = [order[: len(order) - round(share * len(order))] for share in LEFT]
            f1_of_kept = "".join(f"{average_f1(predicted[rows], present[rows]):>8.4f}" for rows in kept)
            words = f"{means[0]:.4f}   {means[1]:.4f}"
            print(f"{name:<36} {kind:<13}  {words}          {'':<30} {f1_of_kept}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
