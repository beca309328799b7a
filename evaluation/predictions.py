"""What a model predicts for images, as the files of predictions and the pages take it.

    for prediction in Predictions(paths, names, probabilities, classes, model.decide):
        prediction.name, prediction.names, prediction.probabilities

Probabilities may be mapped from a file: they are read in blocks, so that memory does not grow with the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metrics import read_rows
from predictor import Record


@dataclass(frozen=True, eq=False)
class Prediction(Record):
    """What is predicted for one image file, and its name in the files of predictions."""

    name: str = ""  # see `prediction_files.name_images`


class MadeBy(NamedTuple):
    """The model that predicted, for files that say which it was."""

    name: str = ""
    sha256: str = ""  # of its file
    thresholds: Sequence[float] | None = None  # (C,); None: not known
    max_labels: int = 0  # of an image; 0: any number


UNKNOWN = MadeBy()


class Compared(NamedTuple):
    """How N images compare with a model's training images, see models/novelty.py."""

    novelty: NDArray[np.float32]  # (N,)
    nearest: NDArray[np.integer]  # (N, k) of `names`, the nearest first
    names: Sequence[str]  # of the training images, relative to the folder that holds them all


@dataclass(frozen=True)
class Predictions:
    """What is predicted for N images. Iterating gives a `Prediction` for each, and reads probabilities in blocks."""

    paths: Sequence[str]
    names: Sequence[str]  # of the images in the files, see `prediction_files.name_images`
    probabilities: NDArray[np.float32]  # (N, C)
    classes: Sequence[str]
    decide: Callable[[NDArray[np.float32]], Sequence[list[int]]]  # probabilities (B, C) -> labels of each image
    compared: Compared | None = None  # with the training images; None: the model has nothing to compare with
    abstain: Callable[[NDArray[np.float32]], Sequence[bool]] | None = None  # -> is an image left to a person? None: no
    made_by: MadeBy = UNKNOWN

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Prediction]:
        classes = tuple(self.classes)
        for rows in read_rows(self.probabilities):
            block = np.ascontiguousarray(self.probabilities[rows])
            abstains = self.abstain(block) if self.abstain else [False] * len(block)
            values = zip(self.paths[rows], self.names[rows], block, self.decide(block), abstains, strict=True)
            for number, (path, name, probabilities, labels, is_left) in enumerate(values, rows.start):
                yield Prediction(
                    path=path,
                    probabilities=probabilities,
                    labels=labels,
                    names=[classes[label] for label in labels],
                    classes=classes,
                    novelty=float(self.compared.novelty[number]) if self.compared else None,
                    nearest=self.name_nearest(number),
                    abstains=is_left,
                    name=name,
                )

    def name_nearest(self, number: int) -> tuple[str, ...]:
        """The names of the training images that image `number` is nearest to; none, where it was not compared."""
        if self.compared is None:
            return ()
        rows: list[int] = self.compared.nearest[number].tolist()
        return tuple(self.compared.names[row] for row in rows)
