"""A mistake as people see it: its photograph, where the model sees the class, and what it is most like in training.

maps = MapMaker(model)
shown = show_mistake(mistake, True, predictions, targets, model, maps, training_images={})
shown.photograph, shown.map      # JPEGs
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dataset.decoding import decode_image
from evaluation.map_maker import MapMaker
from evaluation.mistakes import Mistake
from evaluation.neighbours import is_unlike
from evaluation.predictions import Predictions
from predictor import Predictor

MOST_NEAREST = 3  # training photographs beside a mistake
MOST_OTHERS = 4  # maps of other classes, which the page shows on request
SIDE = 220  # pixels, longer side of a photograph and of its map on the page
SMALL_SIDE = 90  # of a training photograph beside it
QUALITY = 75  # of their JPEGs


class OtherMap(NamedTuple):
    """Where the model sees another class than that of the mistake: one that it says, or that is there."""

    name: str
    probability: float
    is_said: bool
    target: int  # 1 present, 0 absent, -1 unknown
    map: bytes | None  # a JPEG; None: no place speaks for it


class Shown(NamedTuple):
    """A mistake with its photograph."""

    is_wrong: bool  # said and not there; else missed
    image: str  # its name in the files of predictions
    name: str  # of the class
    probability: float
    threshold: float | None  # which the probability reaches or not; None: the limits of an image's labels decided
    labels: list[str]
    said: list[tuple[str, float]]  # labels that are said, and their probabilities, the most probable first
    photograph: bytes  # a JPEG
    map: bytes | None  # a JPEG; None: there are no maps, or no place speaks for the class
    others: list[OtherMap]  # the most probable first; none where there are no maps
    novelty: float | None  # see models/novelty.py; None: the image was not compared with the training images
    is_unlike: bool  # whether it is said to be unlike them
    nearest: list[tuple[str, bytes | None]]  # training photographs most like it: name, and a JPEG where it was found


def show_mistake(
    mistake: Mistake,
    is_wrong: bool,
    predictions: Predictions,
    targets: NDArray[np.int8],
    model: Predictor,
    maps: MapMaker,
    training_images: Mapping[str, str],
) -> Shown:
    """The mistake with its photograph, the map of its class, and the training photographs that are most like it."""
    path, row = predictions.paths[mistake.row], mistake.row
    probabilities = np.asarray(predictions.probabilities[row])
    (said,) = predictions.decide(probabilities[None])
    there = np.flatnonzero(targets[row] == 1).tolist()
    others = sorted({*said, *there} - {mistake.label}, key=lambda c: -probabilities[c])[:MOST_OTHERS]
    pixels = decode_image(path)
    photograph = shrink(pixels, SIDE)
    drawn = draw_maps(maps, model.prepare(pixels), photograph, [mistake.label, *others])
    novelty = float(predictions.compared.novelty[row]) if predictions.compared else None
    nearest = predictions.name_nearest(row)[:MOST_NEAREST]
    return Shown(
        is_wrong=is_wrong,
        image=predictions.names[row],
        name=model.classes[mistake.label],
        probability=mistake.probability,
        threshold=model.find_threshold(mistake.label, mistake.probability, is_said=is_wrong),
        labels=[model.classes[c] for c in there],
        said=[(model.classes[c], float(probabilities[c])) for c in sorted(said, key=lambda c: -probabilities[c])],
        photograph=encode(photograph),
        map=drawn[0] if drawn else None,
        others=[
            OtherMap(model.classes[c], float(probabilities[c]), c in said, int(targets[row, c]), picture)
            for c, picture in zip(others, drawn[1:], strict=False)  # without maps there are none of others
        ],
        novelty=novelty,
        is_unlike=is_unlike(novelty),
        nearest=[(name, show_small(training_images.get(name))) for name in nearest],
    )


def draw_maps(maps: MapMaker, image: Tensor, photograph: Image.Image, labels: Sequence[int]) -> list[bytes | None]:
    """A JPEG of the photograph under the colours of each of `labels`, None where no place speaks for one.

    `image` is what the model sees, uint8 (3, H, W). An empty list where there are no maps.
    """
    values = maps.compute(image, labels)
    if values is None:
        return []
    return [encode(maps.draw(photograph, one)) if one.max() > 0 else None for one in values]


def shrink(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """The picture, with a longer side of at most `side` pixels."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return picture


def show_small(path: str | None) -> bytes | None:
    """A small JPEG of a training photograph; None where it is not known where it lies."""
    return None if path is None else encode(shrink(decode_image(path), SMALL_SIDE))


def encode(picture: Image.Image) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
