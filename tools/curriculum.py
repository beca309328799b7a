"""A curriculum: how much each training image counts, by how well a model knows it already (Bengio et al. 2009).

    make_curriculum(table, ["probabilities.csv"], thresholds=(0.8,), weights=(1.0, 0.5), output=Path("curriculum.txt"))
    weights = read_curriculum(table, Path("curriculum.txt"))    # (N,), for make_loader

The file has a line `path,weight` for each image; `python dataset_tools.py curriculum` makes it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dataset.probability_files import HEAVIEST, read_probabilities
from dataset.table import Table
from dataset.text_files import CsvFile
from dataset.whole_files import write_text
from utils import InputError, say


def make_curriculum(
    table: Table,
    files: Sequence[str | Path],
    thresholds: Sequence[float],
    weights: Sequence[float],
    output: Path,
) -> None:
    """Weigh the images of `table` by the probabilities in `files`, write `output`, print how many fall into each step.

    An image that has no score is not listed. Raises InputError for what is wrong in a file or among the numbers.
    """
    scores = score_images(table.targets, read_probabilities(table, files))
    rows = np.flatnonzero(~np.isnan(scores))
    weights_of, steps = weigh_images(scores[rows], thresholds, weights)
    write_curriculum(output, [table.paths[row] for row in rows], weights_of)
    for step, weight in enumerate(weights):
        count = (steps == step).sum()
        where = f"from {thresholds[step]:g} on" if step < len(thresholds) else "below"
        say(f"score {where}: {count} images ({count / len(table):.1%}), weight {weight:g}")
    if len(rows) < len(table):
        say(f"without a score: {len(table) - len(rows)} images, not listed, which is weight 1")
    say(f"saved: {output}")


def score_images(targets: ArrayLike, probabilities: ArrayLike) -> NDArray[np.float64]:
    """(N,) how well each image is known: the mean of p over its labels, and of 1 - p over the others, averaged.

    Both halves count alike, however few labels an image has: in a mean over all entries a model that finds nothing
    would score 1 - labels / classes. An image with labels only, or without any, has the one half. Unknown entries
    (targets -1 or NaN, probabilities NaN) are left out; NaN where nothing is known.
    """
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, np.float64)
    has_score = ~np.isnan(probabilities)
    halves = []
    for rows, given in (((targets == 1) & has_score, probabilities), ((targets == 0) & has_score, 1 - probabilities)):
        count = rows.sum(axis=1)
        total = np.where(rows, given, 0.0).sum(axis=1)
        halves.append(np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0))
    own, others = halves
    return np.where(np.isnan(own), others, np.where(np.isnan(others), own, (own + others) / 2))


def weigh_images(
    scores: ArrayLike, thresholds: Sequence[float], weights: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """(weights, steps), (N,) each: step k has the scores from `thresholds[k]` on, below `thresholds[k - 1]`.

    Raises InputError unless thresholds fall and weights, one more of them, are 0 to HEAVIEST.
    """
    if list(thresholds) != sorted(set(thresholds), reverse=True) or len(weights) != len(thresholds) + 1:
        raise InputError(
            f"the curriculum has thresholds {tuple(thresholds)} and weights {tuple(weights)}: thresholds have to fall, "
            "and there is one weight more than thresholds"
        )
    if not all(0 <= weight <= HEAVIEST for weight in weights) or not any(weights):
        raise InputError(f"the curriculum has weights {tuple(weights)}: each is 0 to {HEAVIEST:g}, one above 0")
    steps = (np.asarray(scores)[:, None] < np.asarray(thresholds, np.float64)).sum(axis=1)
    return np.asarray(weights, np.float32)[steps], steps


def write_curriculum(file: Path, paths: Sequence[str], weights: ArrayLike) -> None:
    """A line `path,weight` for each image."""
    text = io.StringIO()
    csv.writer(CsvFile(text)).writerows(
        (path, f"{weight:g}") for path, weight in zip(paths, np.asarray(weights).tolist(), strict=True)
    )
    write_text(file, text.getvalue())
