"""What a model gets wrong: which classes it takes for which, and its most confident mistakes.

    pairs = find_confusions(read_errors(probabilities, targets, thresholds), num_classes=80)
    pairs.instead[0]     # "says truck where it is a bus": Pair(said=7, there=5, num_images=14, expected=1.2, ...)
    false_alarms, misses = find_most_confident(read_errors(probabilities, targets, thresholds), most=12)

An image may show several classes, so no matrix says which class was taken for which. Two things can be counted: on how
many images class c is said wrongly and class d is missed (`instead`), and on how many c is said wrongly and d is there,
found or not (`beside`). Frequent classes meet by chance: if of N images the n_c with c said wrongly and the n_d with d
missed were drawn independently, they would share `expected` = n_c n_d / N images. The N images of a pair are those with
a known label of both classes. A pair counts where it is more frequent than expected by more than chance, by the
log-likelihood ratio G^2 of the 2 x 2 table of the two events (Dunning 1993), which has about a chi-squared distribution
with one degree of freedom. Among many pairs some are surprising by chance, so the limit rises with their number; see
`find_limit`. Entries whose label is unknown are no mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import metrics

Bools = NDArray[np.bool_]
Bits = NDArray[np.uint8]  # (C, W): a bit for each class and image, eight of them in a number

LEAST_COUNT = 3  # images of a pair: two may be an accident, whatever is expected
CHANCE_OF_ANY = 0.05  # that one pair or more is named where all pairs come together by chance
KEPT_AT_ONCE = 2**18  # mistakes that are held before those which are not among the most confident are dropped
MOST_OF_CLASS = 2  # mistakes of one class among the most confident ones: else they are all of one


class Errors(NamedTuple):
    """Some of the images, from row `start` on: B images and C classes, all (B, C)."""

    start: int
    scores: NDArray[np.floating]
    known: Bools
    present: Bools
    wrong: Bools  # said, and known to be absent
    missed: Bools  # present, and not said


class Pair(NamedTuple):
    """Class `said` is said wrongly on `num_images` images on which class `there` is missed, or is there."""

    said: int
    there: int
    num_images: int
    expected: float  # by chance, of the images with a known label of both
    surprise: float  # G^2


class Confusions(NamedTuple):
    """Pairs that are more frequent than by chance, the most surprising first."""

    instead: list[Pair]  # `there` is missed
    beside: list[Pair]  # `there` is there, found or not


class Mistake(NamedTuple):
    """A label that is said wrongly, or missed."""

    row: int  # of the image
    label: int
    probability: float


def read_errors(
    probabilities: ArrayLike,
    targets: ArrayLike,
    thresholds: float | ArrayLike,
    min_labels: int = 0,
    max_labels: int = 0,
) -> Iterator[Errors]:
    """The `Errors` of (N, C) probabilities and targets, as `metrics.predict` decides; one block of images at a time.

    Raises InputError for probabilities outside 0...1 or shapes that differ.
    """
    probabilities, targets = metrics.as_scores(probabilities, targets)
    for rows in metrics.read_rows(probabilities):
        scores = np.asarray(probabilities[rows])
        present, known = metrics.as_known(targets[rows])
        said = metrics.predict(scores, thresholds, min_labels, max_labels)
        yield Errors(rows.start, scores, known, present, wrong=said & known & ~present, missed=present & ~said)


# ---- which class is said for which ----


def find_confusions(errors: Iterable[Errors], num_classes: int) -> Confusions:
    """The pairs of classes that come together in mistakes more often than by chance; see the top of this file."""
    num_images = 0
    instead, beside = PairCounts(num_classes), PairCounts(num_classes)
    packed: list[NDArray[np.uint8]] = [np.zeros((4, 0, num_classes), dtype=np.uint8)]
    for block in errors:
        num_images += len(block.scores)
        instead.add(block.wrong, block.missed)
        beside.add(block.wrong, block.present)
        packed.append(np.packbits(np.stack([block.wrong, block.missed, block.present, block.known]), axis=1))
    wrong, missed, present, known = np.ascontiguousarray(np.concatenate(packed, axis=1).transpose(0, 2, 1))
    return Confusions(instead.rank(wrong, missed, known, num_images), beside.rank(wrong, present, known, num_images))


class PairCounts:
    """On how many images two classes c and d come together, of all pairs that do: most of C x C never do."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.codes, self.counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)  # c * num_classes + d
        self.waiting: list[NDArray[np.int64]] = []  # codes that are not counted yet

    def add(self, first: Bools, second: Bools) -> None:
        """Count images: `first` and `second` (B, C) say of each whether it has a class as c, and as d."""
        rows, said = np.nonzero(first)
        there = np.nonzero(second)[1]
        lengths = second.sum(axis=1)
        starts = lengths.cumsum() - lengths  # where in `there` the classes of each image begin
        repeats = lengths[rows]  # each c of an image is paired with all its d
        positions = np.arange(repeats.sum()) - np.repeat(repeats.cumsum() - repeats, repeats)
        partners = there[np.repeat(starts[rows], repeats) + positions]
        self.waiting.append(np.repeat(said, repeats) * self.num_classes + partners)
        if sum(map(len, self.waiting)) > KEPT_AT_ONCE:
            self._count()

    def _count(self) -> None:
        codes, counts = np.unique(np.concatenate([self.codes[:0], *self.waiting]), return_counts=True)
        self.codes, places = np.unique(np.concatenate([self.codes, codes]), return_inverse=True)
        totals = np.bincount(places, np.concatenate([self.counts, counts]), minlength=len(self.codes))
        self.counts = totals.astype(np.int64)
        self.waiting.clear()

    def rank(self, first: Bits, second: Bits, known: Bits, num_images: int) -> list[Pair]:
        """The pairs that are surprisingly frequent.

        `first`, `second` and `known` (C, W) say which images have a class as c, have it as d, and have a known label of
        it.
        """
        self._count()
        is_frequent = self.counts >= LEAST_COUNT
        codes, counts = self.codes[is_frequent], self.counts[is_frequent]
        said, there = np.divmod(codes, self.num_classes)
        num_first, num_second, num_known = (
            np.bitwise_count(bits).sum(axis=1, dtype=np.int64) for bits in (first, second, known)
        )
        # images with c, images with d, and all images: of each pair those on which the labels of both are known
        margins = [num_first[said], num_second[there], np.full(len(codes), num_images)]
        has_unknown = num_known < num_images
        partly = np.flatnonzero(has_unknown[said] | has_unknown[there])
        for numbers, of_said, of_there in zip(margins, (first, known, known), (known, second, known), strict=True):
            numbers[partly] = count_shared(of_said, of_there, said[partly], there[partly])
        expected = margins[0] * margins[1] / margins[2]
        surprise = measure_surprise(counts, *margins)
        as_c, as_d = num_first > 0, num_second > 0
        num_pairs = int(as_c.sum() * as_d.sum() - (as_c & as_d).sum())  # an image never has a class both as c and as d
        chosen = np.flatnonzero((counts > expected) & (surprise >= find_limit(num_pairs)))
        chosen = chosen[np.argsort(-surprise[chosen], kind="stable")]
        columns = (said, there, counts, expected, surprise)
        return [Pair(*values) for values in zip(*(column[chosen].tolist() for column in columns), strict=True)]


def count_shared(first: Bits, second: Bits, said: NDArray[np.int64], there: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of K pairs, on how many images class `said` (K,) has a bit in `first` and class `there` (K,) one in `second`."""
    pairs = zip(said.tolist(), there.tolist(), strict=True)
    return np.fromiter((int(np.bitwise_count(first[c] & second[d]).sum()) for c, d in pairs), np.int64, len(said))


def find_limit(num_pairs: int) -> float:
    """The G^2 that any of `num_pairs` pairs drawn by chance reaches with a probability of CHANCE_OF_ANY at most.

    It is the quantile of chi-squared, one degree of freedom, at 1 - CHANCE_OF_ANY / num_pairs (Bonferroni): the square
    of the normal distribution's at half of that from an end.
    """
    return NormalDist().inv_cdf(CHANCE_OF_ANY / max(num_pairs, 1) / 2) ** 2


def measure_surprise(both: ArrayLike, first: ArrayLike, second: ArrayLike, total: ArrayLike) -> NDArray[np.float64]:
    """G^2 (Dunning 1993) of two events that happen `both`, `first` and `second` times in `total`, elementwise.

    It is 2 x the sum over the four cells of the 2 x 2 table of observed x ln(observed / expected).
    """
    both, first, second, total = (np.asarray(values, dtype=np.float64) for values in (both, first, second, total))
    surprise = np.zeros(both.shape)
    for observed, row, column in (
        (both, first, second),
        (first - both, first, total - second),
        (second - both, total - first, second),
        (total - first - second + both, total - first, total - second),
    ):
        ratio = metrics.divide(observed * total, row * column, undefined=1.0)
        surprise += 2 * observed * np.log(np.where(observed > 0, ratio, 1.0))
    return surprise


# ---- the most confident mistakes ----


def find_most_confident(errors: Iterable[Errors], most: int) -> tuple[list[Mistake], list[Mistake]]:
    """(labels that are said wrongly, the most probable first; labels that are missed, the least probable first).

    At most `most` of each, each of another image, and at most MOST_OF_CLASS of a class.
    """
    wrong, missed = MostConfident(most), MostConfident(most)
    for block in errors:
        wrong.add(block, block.wrong, block.scores)
        missed.add(block, block.missed, 1 - block.scores)
    return wrong.choose(), missed.choose()


class Candidates(NamedTuple):
    """Mistakes, all (K,)."""

    confidences: NDArray[np.floating]
    scores: NDArray[np.floating]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def select(self, places: NDArray[np.intp]) -> Candidates:
        return Candidates(self.confidences[places], self.scores[places], self.rows[places], self.labels[places])

    def sort(self) -> Candidates:
        """The most confident first; of equal ones the image, then the class, that comes first."""
        return self.select(np.lexsort((self.labels, self.rows, -self.confidences)))


class MostConfident:
    """Finds the `most` most confident mistakes among those that are added."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.candidates: list[Candidates] = []
        self.num_waiting = 0

    def add(self, block: Errors, is_mistake: Bools, confidences: NDArray[np.floating]) -> None:
        rows, labels = np.nonzero(is_mistake)
        found = Candidates(confidences[rows, labels], block.scores[rows, labels], rows + block.start, labels)
        self.candidates.append(found)
        self.num_waiting += len(rows)
        if self.num_waiting > KEPT_AT_ONCE:
            self._drop()

    def _drop(self) -> Candidates:
        """Keep the mistakes that can be chosen. Others take at most `most` images away from those of a class."""
        columns: list[Any] = [np.concatenate(parts) for parts in zip(*self.candidates, strict=True)]
        found = Candidates(*columns).sort()
        by_class = np.argsort(found.labels, kind="stable")
        starts = np.searchsorted(found.labels[by_class], found.labels[by_class])
        rank_in_class = np.arange(len(by_class)) - starts
        kept = np.sort(by_class[rank_in_class < self.most + MOST_OF_CLASS])
        self.candidates, self.num_waiting = [found.select(kept)], 0
        return self.candidates[0]

    def choose(self) -> list[Mistake]:
        """At most `most` mistakes, each of another image."""
        chosen: list[Mistake] = []
        images, counts = set[int](), Counter[int]()
        candidates = self._drop() if self.candidates else None
        for _, score, row, label in zip(*(column.tolist() for column in candidates or ()), strict=True):
            if len(chosen) < self.most and row not in images and counts[label] < MOST_OF_CLASS:
                images.add(row)
                counts[label] += 1
                chosen.append(Mistake(row, label, score))
        return chosen
