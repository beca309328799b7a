"""What to label next: of a folder of images without labels, those whose labels would help a model most.

    images = find_unlabelled(Path("photographs"), labelled_paths, cache_folder)
    queue = make_queue(images, classes, 200, probabilities=..., ...)    # of a model that learned from what is labelled
    queue.images.paths, queue.probabilities

Neither torch nor config is needed here.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.bad_images import leave_out_bad_images
from dataset.class_names import quote_names, show_names
from dataset.decoding import stamp_files
from dataset.files import list_image_files, make_absolute
from dataset.table import Table
from dataset.tar_shards.reading import read_bytes
from evaluation import pages
from utils import InputError, Progress, say, warn

MOST_REPRESENTED = 4096  # images; more make the choice slower, and hardly better
ROWS_AT_ONCE = 1024  # of which the cosines with all of those are in memory
COMPARED_ANEW = 32  # images, after one is chosen
NUM_RARE = 5  # classes that are named on the screen


class Unlabelled(NamedTuple):
    """Images without labels, in one folder."""

    folder: Path
    names: list[str]  # paths from the folder on

    @property
    def paths(self) -> list[str]:
        """The image files."""
        return [f"{self.folder}{os.sep}{name}" for name in self.names]

    def make_table(self, classes: tuple[str, ...]) -> Table:
        """A table of which no label is known."""
        unknown = np.broadcast_to(np.int8(-1), (len(self.names), len(classes)))  # takes the memory of one entry
        return Table(self.paths, unknown, classes)


@dataclass(frozen=True)
class Queue:
    """The Q images to label next, in order, and what is known of them, for C classes."""

    images: Unlabelled  # the chosen ones
    classes: tuple[str, ...]
    probabilities: NDArray[np.floating]  # (Q, C)
    predicted: NDArray[np.bool_]  # (Q, C) the labels that the model would give
    gains: NDArray[np.floating]  # (Q, C) what each class had to say for choosing the image
    positives: NDArray[np.int64]  # (C,) labelled images that show each class so far
    num_unlabelled: int  # images that were to choose from
    max_labels: int  # of an image; 0: any number
    model: str  # in words


# ---- the images ----


def find_unlabelled(folder: Path, labelled: Sequence[str], cache_folder: Path | None = None) -> Unlabelled:
    """The images in `folder` and its sub-folders that may be labelled next, sorted by path.

    Left out, and counted on the screen, are those that are among the `labelled` image files or have the same bytes as
    one, further copies of the same bytes, links that point nowhere, and those that cannot be read whole (with a
    `cache_folder` files that did not change are not tried again). Raises InputError where none is left.
    """
    folder = make_absolute(folder.expanduser())
    if not folder.is_dir():
        raise InputError(f"UNLABELLED_FOLDER is {folder}: there is no such folder")
    names = list_image_files(folder).names
    real_paths = {os.path.realpath(path) for path in labelled}
    lost = {name for name in names if not os.access(folder / name, os.F_OK)}
    others = [name for name in names if name not in lost and os.path.realpath(folder / name) not in real_paths]
    known, copies = find_copies([str(folder / name) for name in others], labelled)
    left = [name for row, name in enumerate(others) if row not in known and row not in copies]
    num_labelled = len(names) - len(lost) - len(others) + len(known)
    if lost:
        warn(f"{folder}: {pages.count(len(lost), 'link')} to a file that is not there: {quote_names(sorted(lost), 3)}")
    if not left:
        more = f", and {len(lost):,} links point nowhere" if lost else ""
        raise InputError(
            f"{folder}: all {len(names) - len(lost):,} images are labelled already, or copies of those{more}: none is "
            "left"
        )
    candidates = Unlabelled(folder, left)
    _, bad = leave_out_bad_images(candidates.make_table(()), cache_folder)
    say(
        f"{folder}: {len(names):,} images; left out because they are labelled already: {num_labelled:,}, copies of "
        f"others: {len(copies):,}, damaged: {len(bad) + len(lost):,}"
    )
    return Unlabelled(folder, [name for name, path in zip(left, candidates.paths, strict=True) if path not in bad])


def find_copies(paths: Sequence[str], labelled: Sequence[str]) -> tuple[set[int], set[int]]:
    """(rows of `paths` with the same bytes as one of the `labelled` files, rows with those of an earlier row).

    Only files of which another one has the same size are read. One of `paths` that cannot be read is in neither.
    """
    sizes, labelled_sizes = stamp_files(paths)[:, 0].tolist(), stamp_files(labelled)[:, 0].tolist()
    counts, seen = Counter(sizes), set(labelled_sizes)
    in_doubt = [row for row, size in enumerate(sizes) if counts[size] > 1 or size in seen]
    doubted = {sizes[row] for row in in_doubt}
    compared = [path for path, size in zip(labelled, labelled_sizes, strict=True) if size in doubted]
    known, copies, rows_of = set(), set(), {}
    with Progress("comparing files", len(compared) + len(in_doubt)) as progress:
        digests = set()
        for path in compared:
            digests.add(_digest(path))
            progress.step(1)
        for row in in_doubt:
            progress.step(1)
            try:
                digest = _digest(paths[row])
            except InputError:  # no copy that can be told; who tries all images says why, and counts it
                continue
            if digest in digests:
                known.add(row)
            elif rows_of.setdefault(digest, row) != row:
                copies.add(row)
    return known, copies


def _digest(path: str) -> bytes:
    try:
        return hashlib.sha256(read_bytes(path)).digest()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from error


# ---- the choice ----


def make_queue(
    images: Unlabelled,
    classes: tuple[str, ...],
    size: int,
    *,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.bool_],
    rows: NDArray[np.float32],
    labelled_rows: NDArray[np.float32],
    labelled_targets: NDArray[np.int8],
    model: str,
    max_labels: int = 0,
) -> Queue:
    """The `size` images to label next, or all where there are fewer.

    `probabilities` (N, C), `labels` (N, C) and features `rows` (N, D) are those of the N `images` by a model, in words
    `model`, that learned from images with features `labelled_rows` (L, D) and `labelled_targets` (L, C).
    """
    chosen, gains = choose(size, probabilities, rows, labelled_rows, labelled_targets)
    return Queue(
        images=Unlabelled(images.folder, [images.names[row] for row in chosen]),
        classes=classes,
        probabilities=probabilities[chosen],
        predicted=labels[chosen],
        gains=gains,
        positives=(labelled_targets == 1).sum(axis=0),
        num_unlabelled=len(images.names),
        max_labels=max_labels,
        model=model,
    )


def choose(
    size: int,
    probabilities: NDArray[np.floating],
    rows: NDArray[np.float32],
    labelled_rows: NDArray[np.float32],
    labelled_targets: NDArray[np.integer],
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """(rows (Q,) of the images to label next, in order; what each class has to say for each of them (Q, C)).

    An image stands for those that look like it: to the degree of the cosine of their standardised features. Chosen is,
    one after the other, the image that adds most to how well the unlabelled images are represented by what is labelled
    or chosen (facility location, Wei et al. 2015), where an image counts as `measure_doubts` says. That favours what is
    typical, and unlike what is labelled. With more than MOST_REPRESENTED images, so many drawn ones are represented.
    """
    doubts = measure_doubts(probabilities, labelled_targets)
    weights = doubts.max(axis=1)
    if not weights.any():  # no class can be told yet: typical images are all that can be wished for
        weights = np.ones(len(rows))
    represented = np.arange(len(rows))
    if len(rows) > MOST_REPRESENTED:
        represented = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_REPRESENTED])
    look = _Directions(rows[represented])
    targets, weights = look.at(rows[represented]), weights[represented].astype(np.float32)
    reached = np.zeros(len(targets), np.float32)  # how well each one is represented so far
    for block in _split(labelled_rows):
        np.maximum(reached, (targets @ look.at(block).T).max(axis=1), out=reached)

    def add(others: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(what each of some images would add to how well all are represented, the cosines with all)."""
        cosines = targets @ look.at(others).T
        return weights @ np.maximum(cosines - reached[:, None], 0), cosines

    gains = np.concatenate([add(block)[0] for block in _split(rows)])
    chosen: list[int] = []
    while len(chosen) < min(size, len(rows)):
        # A gain can only become less: one that is the highest after it was computed anew is it (Minoux 1978).
        highest = np.argpartition(-gains, min(COMPARED_ANEW, len(gains)) - 1)[:COMPARED_ANEW]
        highest = highest[gains[highest] >= 0]
        gains[highest], cosines = add(rows[highest])
        best = int(gains.argmax())
        if best in highest:
            chosen.append(best)
            np.maximum(reached, cosines[:, (highest == best).argmax()], out=reached)
            gains[best] = -1
    return np.array(chosen), doubts[chosen]


def measure_doubts(probabilities: NDArray[np.floating], labelled_targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, C) how much a label of each image could teach of each class: its entropy / (positives so far + 1).

    0 for a class of which the labelled images show nothing, or nothing else: the model cannot tell it.
    """
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    entropies = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    positives = (labelled_targets == 1).sum(axis=0)
    return np.where((positives > 0) & (labelled_targets == 0).any(axis=0), entropies / (positives + 1), 0.0)


class _Directions:
    """Turns features into directions: standardised as `rows` (R, D) are, and of length 1."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.mean, std = rows.mean(axis=0), rows.std(axis=0)
        self.std = np.where(std > 0, std, 1)

    def at(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D)"""
        standard = (rows - self.mean) / self.std
        return standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)


def _split(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))


# ---- what is printed ----


def describe(queue: Queue) -> list[str]:
    """Lines about how many images are queued, and what of the rarest classes is expected among them."""
    num_queued, expected = len(queue.images.names), queue.probabilities.sum(axis=0)
    lines = [f"{num_queued:,} of {queue.num_unlabelled:,} images are queued, by {queue.model}"]
    if num_queued == queue.num_unlabelled:
        lines[0] += "; there are no more"
    order = np.argsort(queue.positives, kind="stable")
    rare = [c for c in order if queue.positives[c]][:NUM_RARE]
    if rare:
        told = ", ".join(f"{queue.classes[c]} {queue.positives[c]:,} + {expected[c]:.0f}" for c in rare)
        lines.append(f"rarest classes, labelled images + those expected in the queue: {told}")
    if missing := [queue.classes[c] for c in order if not queue.positives[c]]:
        lines.append(
            f"no labelled image shows {show_names(missing)}: the queue cannot look for that; label some by hand"
        )
    return lines
