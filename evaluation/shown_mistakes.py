"""A mistake as people see it: its photograph, where the model sees the class, and what it is most like in training.

maps = MapMaker(model)
shown = show_mistake(mistake, True, predictions, targets, model, maps, training_images={})
shown.photograph, shown.map      # JPEGs
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset.decoding import decode_image
from evaluation import activation_maps
from evaluation.mistakes import Mistake
from evaluation.neighbours import is_unlike
from evaluation.predictions import Predictions
from export import engines
from models import checkpoints
from models_factory import restore_model
from predictor import Predictor
from utils import InputError

MOST_NEAREST = 3  # training photographs beside a mistake
SIDE = 220  # pixels, longer side of a photograph and of its map on the page
SMALL_SIDE = 90  # of a training photograph beside it
QUALITY = 75  # of their JPEGs


class Shown(NamedTuple):
    """A mistake with its photograph."""

    is_wrong: bool  # said and not there; else missed
    image: str  # its name in the files of predictions
    name: str  # of the class
    probability: float
    threshold: float
    labels: list[str]
    said: list[tuple[str, float]]  # labels that are said, and their probabilities, the most probable first
    photograph: bytes  # a JPEG
    map: bytes | None  # a JPEG; None: there are no maps, or no place speaks for the class
    novelty: float | None  # see models/novelty.py; None: the image was not compared with the training images
    is_unlike: bool  # whether it is said to be unlike them
    nearest: list[tuple[str, bytes | None]]  # training photographs most like it: name, and a JPEG where it was found


class MapMaker:
    """Makes maps of where a checkpoint sees a class. `problem` says why there are none; "": there are."""

    def __init__(self, model: Predictor) -> None:
        self.model, self.problem = model, ""
        if engines.recognise(model.path) != "checkpoint":
            self.problem = "Maps of where the model sees a class need a checkpoint, and this is an exported file."
        else:
            self.network = restore_model(checkpoints.load(model.path), model.path).to(model.device)

    def draw(self, pixels: NDArray[np.uint8], photograph: Image.Image, label: int) -> bytes | None:
        """A JPEG of the `photograph` under the colours of the class `label`; None where no place speaks for it.

        `pixels` are those of the image in its full size.
        """
        if self.problem:
            return None
        try:
            trace = activation_maps.follow(self.network, self.model.prepare(pixels).to(self.model.device))
            values = activation_maps.METHODS["grad-cam"](trace, [label])[0].cpu()
        except InputError as error:
            self.problem = f"There are no maps: {error}."
            return None
        if not values.max() > 0:
            return None
        size, rule = self.model.image_size, self.model.metadata["resize_rule"]
        return encode(activation_maps.draw_map(photograph, values, rule, size))


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
    pixels = decode_image(path)
    photograph = shrink(pixels, SIDE)
    novelty = float(predictions.compared.novelty[row]) if predictions.compared else None
    nearest = predictions.name_nearest(row)[:MOST_NEAREST]
    return Shown(
        is_wrong=is_wrong,
        image=predictions.names[row],
        name=model.classes[mistake.label],
        probability=mistake.probability,
        threshold=float(model.thresholds[mistake.label]),
        labels=[model.classes[c] for c in np.flatnonzero(targets[row] == 1)],
        said=[(model.classes[c], float(probabilities[c])) for c in sorted(said, key=lambda c: -probabilities[c])],
        photograph=encode(photograph),
        map=maps.draw(pixels, photograph, mistake.label),
        novelty=novelty,
        is_unlike=is_unlike(novelty),
        nearest=[(name, show_small(training_images.get(name))) for name in nearest],
    )


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
