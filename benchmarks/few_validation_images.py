"""Few validation images: the F1 that thresholds tuned on some of them reach on the others.

    python benchmarks/few_validation_images.py trained_models/MODEL/CONFIGURATION.pt

Needs a run with some 2,000 validation images, such as that of `recipes/small_data.py`, which validates on all. Of its
scores, 30, 60, 100, 200 or 400 images are drawn DRAWS times. Three thresholds are tuned on them: the exact optimum; the
mean of the optima of five folds, each without a fifth of them; the middle of the plateau within one standard error of
the optimum. Printed is the mean weighted F1 of each on all other images; for the last two, how far it lies above the
first (± standard error over the draws).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

import metrics
import thresholds
from evaluation import saved_scores

DRAWS = 200


def tune_mean_of_folds(probabilities: NDArray, targets: NDArray) -> float:
    """The mean, in logits, of the optima of five folds."""
    fold_of = thresholds.assign_folds(len(probabilities))
    optima = [thresholds.tune_global(probabilities[fold_of != k], targets[fold_of != k]) for k in range(5)]
    logits = np.log(optima) - np.log1p(np.negative(optima))
    return float(1 / (1 + np.exp(-logits.mean())))


WAYS = {
    "optimum": thresholds.tune_global,
    "mean of folds": tune_mean_of_folds,
    "plateau": thresholds.tune_plateau,
}


def main(path: Path) -> None:
    scores = saved_scores.read_scores(saved_scores.find_folder(path) / saved_scores.SCORES_FILE)
    probabilities, targets = scores.probabilities, scores.targets
    print(f"{len(targets)} images, {targets.shape[1]} classes, {DRAWS} draws", f"{'images':>6}  optimum", sep="\n")
    for num_images in (30, 60, 100, 200, 400):
        reached = np.array([measure(probabilities, targets, num_images, seed) for seed in range(DRAWS)])
        gains = reached[:, 1:] - reached[:, :1]
        words = [
            f"{name} {gain:+.4f} ± {error:.4f}"
            for name, gain, error in zip([*WAYS][1:], gains.mean(axis=0), gains.std(axis=0) / DRAWS**0.5, strict=True)
        ]
        print(f"{num_images:>6}  {reached[:, 0].mean():.4f}  {', '.join(words)}", flush=True)


def measure(probabilities: NDArray, targets: NDArray, num_images: int, seed: int) -> list[float]:
    """Weighted F1 of each of WAYS on the images that it was not tuned on."""
    rows = np.random.default_rng(seed).permutation(len(probabilities))
    few, others = rows[:num_images], rows[num_images:]
    return [
        metrics.measure(probabilities[others], targets[others], tune(probabilities[few], targets[few]))["f1_weighted"]
        for tune in WAYS.values()
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
