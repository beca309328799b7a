"""Do 95 % intervals contain the truth in 95 % of all test sets? Test sets are drawn whose true metrics are known.

    python benchmarks/interval_coverage.py intervals 18 300 100      # classes, images, test sets: metrics.bootstrap
    python benchmarks/interval_coverage.py differences 18 300 100    # metrics.compare of two equally good models
    python benchmarks/interval_coverage.py seeds 18 300 40           # metrics.compare_groups, three seeds a group

Classes are rare: their frequencies run from .002 to .3. The score of an image is normal, with another mean where the
class is present, and labels and scores of an image's classes are correlated. Beside ours stand percentile intervals:
the middle 95 % over resamples, in which a class without a positive is left out of mAP and counts as 0 elsewhere.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

import metrics

NUM_RESAMPLES = 200
NUM_SEEDS = 3
METRICS = ("mAP", "CF1", "OF1", "f1_macro", "exact_match", "ECE")
BANDS = ((1, 1), (2, 2), (3, 5), (6, 20), (21, 10**9))  # of a class's positives


class World:
    """Where test sets come from, and how good the model is on all that could be drawn."""

    def __init__(self, num_classes: int, num_images: int, num_sets: int) -> None:
        rng = np.random.default_rng(5)
        self.num_images, self.num_sets = num_images, num_sets
        self.frequencies = rng.permutation(np.geomspace(0.002, 0.3, num_classes))
        self.shifts = rng.uniform(0.8, 2.4, num_classes)  # of a score where the class is present
        self.thresholds = norm.isf(1.3 * self.frequencies)  # of the scores, where the probability is 0.5
        scores = np.linspace(-6, 9, 4001)[:, None]
        recall, false_alarms = norm.sf(scores - self.shifts), norm.sf(scores)
        hits = self.frequencies * recall
        precision = hits / (hits + (1 - self.frequencies) * false_alarms)
        self.ap: NDArray[np.float64] = np.asarray(-np.trapezoid(precision, recall, axis=0))
        self.recall = norm.sf(self.thresholds - self.shifts)
        hits = self.frequencies * self.recall
        self.precision = hits / (hits + (1 - self.frequencies) * norm.sf(self.thresholds))
        self.f1 = 2 * self.precision * self.recall / (self.precision + self.recall)
        self.of1 = 2 * hits.sum() / (self.frequencies + hits / self.precision).sum()
        self.many = metrics.measure(*self.draw(np.random.default_rng(99), 50_000), 0.5)

    def draw(self, rng: np.random.Generator, num_images: int) -> tuple[NDArray, NDArray]:
        """Probabilities and targets (N, C)."""
        targets = self.draw_labels(rng, num_images)
        return self.score(mix(rng, targets.shape, 0.2), targets), targets

    def draw_labels(self, rng: np.random.Generator, num_images: int) -> NDArray[np.int8]:
        traits = mix(rng, (num_images, len(self.frequencies)), 0.15)
        return (traits > norm.isf(self.frequencies)).astype(np.int8)

    def score(self, noise: NDArray, targets: NDArray, gain: float = 0.0) -> NDArray[np.float32]:
        """Probabilities of a model whose noise is normal; `gain`: how much better it is than the world's."""
        scores = noise + (self.shifts + gain) * targets
        return (1 / (1 + np.exp(1.7 * (self.thresholds - scores)))).astype(np.float32)

    def tell(self, targets: NDArray, predicted: NDArray) -> dict[str, float]:
        """The true metrics, of the classes that a test set has."""
        is_there, is_predicted = targets.any(axis=0), predicted.any(axis=0)
        precision, recall = (self.precision * is_predicted).mean(), (self.recall * is_there).mean()
        return {
            "mAP": self.ap[is_there].mean(),
            "CF1": 2 * precision * recall / (precision + recall),
            "OF1": self.of1,
            "f1_macro": (self.f1 * is_there).mean(),
            "exact_match": self.many["exact_match"],
            "ECE": self.many["ECE"],
        }


def mix(rng: np.random.Generator, shape: tuple[int, int], shared: float) -> NDArray:
    """Standard normal numbers; `shared` of their variance is the same for all classes of an image."""
    of_image, of_entry = rng.standard_normal((shape[0], 1)), rng.standard_normal(shape)
    return shared**0.5 * of_image + (1 - shared) ** 0.5 * of_entry


def find_percentiles(values: list[float]) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


class Tally:
    """Counts of how often intervals contain the truth, and the value that they are of."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[tuple[bool, bool, float]]] = defaultdict(list)

    def add(self, name: str, way: str, interval: tuple[float, float], truth: float, value: float) -> None:
        low, high = interval
        self.rows[name, way].append((low <= truth <= high, low <= value <= high, high - low))

    def print(self) -> None:
        print(f"{'':30}{'way':16}{'contains truth':>16}{'contains value':>16}{'mean width':>12}{'sets':>7}")
        for (name, way), rows in self.rows.items():
            has_truth, has_value, width = np.mean(rows, axis=0)
            print(f"{name:30}{way:16}{has_truth:16.3f}{has_value:16.3f}{width:12.4f}{len(rows):7}", flush=True)


def check_intervals(world: World) -> None:
    tally = Tally()
    for number in range(world.num_sets):
        rng = np.random.default_rng([1, number])
        probabilities, targets = world.draw(rng, world.num_images)
        measured = metrics.measure(probabilities, targets, 0.5)
        by_class = metrics.measure_classes(probabilities, targets, 0.5)
        truth = world.tell(targets, probabilities >= 0.5)
        ours, ours_by_class = metrics.bootstrap(probabilities, targets, 0.5, NUM_RESAMPLES, seed=number)
        draws = [rng.integers(len(targets), size=len(targets)) for _ in range(NUM_RESAMPLES)]
        plain = [metrics.measure(probabilities[rows], targets[rows], 0.5) for rows in draws]
        for name in METRICS:
            percentiles = find_percentiles([each[name] for each in plain])
            tally.add(name, "percentile", percentiles, truth[name], measured[name])
            tally.add(name, "ours", ours[name], truth[name], measured[name])
        for fewest, most in BANDS:
            of = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most < 10**9 else f"{fewest} or more"
            for c in np.flatnonzero((by_class["positives"] >= fewest) & (by_class["positives"] <= most)):
                for name, true in (("AP", world.ap[c]), ("R", world.recall[c]), ("F1", world.f1[c])):
                    low, high = ours_by_class[name][:, c]
                    tally.add(f"{name}, {of} positives", "ours", (low, high), true, by_class[name][c])
    tally.print()


def check_differences(world: World) -> None:
    """Of two equally good models, whose noise is alike: the truth is 0."""
    tally = Tally()
    for number in range(world.num_sets):
        rng = np.random.default_rng([2, number])
        targets = world.draw_labels(rng, world.num_images)
        noise = mix(rng, targets.shape, 0.2)
        models = [world.score(0.8 * noise + 0.6 * mix(rng, targets.shape, 0.2), targets) for _ in range(2)]
        found = metrics.compare(models[0], models[1], targets, 0.5, 0.5, NUM_RESAMPLES, seed=number)
        draws = [rng.integers(len(targets), size=len(targets)) for _ in range(NUM_RESAMPLES)]
        plain = [[metrics.measure(scores[rows], targets[rows], 0.5) for scores in models] for rows in draws]
        for name in METRICS:
            percentiles = find_percentiles([b[name] - a[name] for a, b in plain])
            tally.add(name, "percentile", percentiles, 0, found[name].value)
            tally.add(name, "ours", found[name][1:3], 0, found[name].value)
    tally.print()


def check_seeds(world: World) -> None:
    """Of two groups whose seeds are equally good on average: each seed's gain is drawn. The truth is 0."""
    tally = Tally()
    for spread in (0.0, 0.1, 0.3):
        for number in range(world.num_sets):
            rng = np.random.default_rng([3, number])
            targets = world.draw_labels(rng, world.num_images)
            noise = mix(rng, targets.shape, 0.2)
            groups = [
                np.stack(
                    [
                        world.score(0.8 * noise + 0.6 * mix(rng, targets.shape, 0.2), targets, gain)
                        for gain in spread * rng.standard_normal(NUM_SEEDS)
                    ]
                )
                for _ in range(2)
            ]
            ours = metrics.compare_groups(groups[0], groups[1], targets, 0.5, 0.5, NUM_RESAMPLES, seed=number)
            resampled = [
                [metrics.resample(scores, targets, 0.5, NUM_RESAMPLES, number) for scores in g] for g in groups
            ]
            # A hierarchical bootstrap: in each resample of the images also seeds of each group, with replacement
            chosen = rng.integers(NUM_SEEDS, size=(2, NUM_SEEDS, NUM_RESAMPLES))
            for name in ("mAP", "OF1"):
                drawn = [np.array([each.drawn.overall[name] for each in group]) for group in resampled]
                means = [np.take_along_axis(*pair, axis=0).mean(axis=0) for pair in zip(drawn, chosen, strict=True)]
                title, value = f"{name}, seeds' spread {spread}", ours[name].value
                tally.add(title, "hierarchical", find_percentiles(list(means[1] - means[0])), 0, value)
                tally.add(title, "ours", ours[name][1:3], 0, value)
                single = metrics.subtract(resampled[0][0], resampled[1][0])[name]
                tally.add(title, "one seed each", single[1:3], 0, single.value)
    tally.print()


CHECKS = {"intervals": check_intervals, "differences": check_differences, "seeds": check_seeds}


if __name__ == "__main__":
    what, *counts = sys.argv[1:]
    CHECKS[what](World(*map(int, counts)))
