"""Shows where in the test images a saved model sees the classes it predicts: pictures, and a page with all of them.

    python class_activation_maps.py [recipe.py ...] [--MAP_METHOD grad-cam++] [--NAME value ...]

Writes MAP_FOLDER/index.html and, beside it in index_files/, a folder of PNGs for each image. MODEL_PATH is a
checkpoint: an exported file has no gradients. Classes, image size and thresholds come from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import config
import overrides
from limits import AllOrCount, Count

# ---- Class activation maps ----
MAP_METHOD: Literal["cam", "grad-cam", "grad-cam++", "grad-camm++", "attention"] = "grad-cam"  # attention: ml_decoder
MAP_FOLDER: Path = Path(config.LOCAL_ROOT) / "class_activation_maps"  # pictures, and index.html with all of them
MAP_MAX_IMAGES: AllOrCount = 24  # of the test images, evenly spaced over their sorted names; 0: all
MAP_LABELS_PER_IMAGE: Count = 4  # predicted classes to map, most probable first; the top one where none is predicted

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import utils
from dataset.decoding import decode_image
from evaluation import activation_maps, pages
from evaluation.pictures import draw_labels
from evaluation.prediction_files import name_images
from export import engines
from models import checkpoints
from models_factory import MultiLabelModel, restore_model
from predictor import Predictor
from trainer.from_config import TestImages, read_test_images

COLOURS = "inferno"  # matplotlib's name of a map that is as even to the eye as to the numbers
STRENGTH = 0.6  # of the colours over the photograph
MAX_SIDE = 640  # pixels: larger photographs are shrunk
PICTURES = "index_files"  # as browsers call the folder of a saved page


class Verdict(NamedTuple):
    """Of one class on one image."""

    label: int
    name: str  # of the class
    probability: float
    threshold: float
    is_predicted: bool
    target: int  # 1 present, 0 absent, -1 unknown


class Card(NamedTuple):
    """An image on the page; its pictures by their paths in the folder of all."""

    name: str
    photograph: Path
    maps: list[tuple[Path, Verdict]]  # the pictures, and the classes they are of
    others: list[Verdict]  # predicted or present, but without a picture

    @property
    def present(self) -> list[str]:
        """The names of the labels."""
        verdicts = [*(verdict for _, verdict in self.maps), *self.others]
        return [verdict.name for verdict in verdicts if verdict.target == 1]


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    utils.keep_freed_memory()
    model, network = load_model(config.MODEL_PATH)
    images = read_test_images(model)
    names = name_images(images.paths)
    cards = []
    rows = spread_rows(len(images.paths), MAP_MAX_IMAGES)
    with utils.replace_folder(MAP_FOLDER / PICTURES) as folder, utils.Progress("mapping", len(rows)) as progress:
        for row in rows:
            cards.append(map_image(model, network, images.paths[row], images.table.targets[row], folder, names[row]))
            progress.step(1)
    page = MAP_FOLDER / "index.html"
    utils.write_text(page, make_page(cards, model, images))
    print(f"{MAP_METHOD} of {sum(len(card.maps) for card in cards)} labels on {len(cards)} images: {page}")


def load_model(path: Path) -> tuple[Predictor, MultiLabelModel]:
    """What decides labels, and the network with gradients. Raises InputError for anything but a checkpoint."""
    engines.require_checkpoint(path, "which has no gradients")
    checkpoint = checkpoints.load(path)
    device = utils.choose_device(config.DEVICE)
    network = restore_model(checkpoint, path).to(device)
    model = Predictor(
        engines.run_torch(network, device),
        checkpoint,
        path,
        device,
        default_threshold=config.TH_MULTI_LABEL,
        calibration=config.CALIBRATION,
    )
    return model, network


def spread_rows(num_images: int, limit: int) -> list[int]:
    """`limit` rows evenly spaced over `num_images`; all, where there are fewer or `limit` is 0."""
    count = min(limit or num_images, num_images)
    return [i * num_images // count for i in range(count)]


def map_image(
    model: Predictor, network: MultiLabelModel, path: str, targets: NDArray[np.int8], folder: Path, name: str
) -> Card:
    """Save the photograph and a picture for each class to map into `folder`/`name`."""
    pixels = decode_image(path)
    trace = activation_maps.follow(network, model.prepare(pixels).to(model.device))
    shown, others = judge(model, model.activate(trace.logits.detach()[None]).cpu().numpy(), targets)
    maps = activation_maps.METHODS[MAP_METHOD](trace, [verdict.label for verdict in shown]).cpu()

    photograph = Image.fromarray(pixels)
    photograph.thumbnail((MAX_SIDE, MAX_SIDE))
    place = Path(name) / "photograph.png"
    (folder / name).mkdir(parents=True, exist_ok=True)
    draw_labels(np.asarray(photograph), ["photograph"]).save(folder / place)  # as wide as the others
    pictures = []
    for rank, (verdict, values) in enumerate(zip(shown, maps, strict=True), start=1):
        picture = draw_map(photograph, values, model.metadata["resize_rule"], model.image_size)
        file = place.with_name(f"{rank}_{make_file_name(verdict.name)}.png")
        texts = describe(verdict, has_evidence=bool(values.max() > 0))
        draw_labels(np.asarray(picture), texts).save(folder / file)
        pictures.append((file, verdict))
    return Card(name, place, pictures, others)


def judge(
    model: Predictor, probabilities: NDArray[np.float32], targets: NDArray[np.int8]
) -> tuple[list[Verdict], list[Verdict]]:
    """(classes to map, other classes that are predicted or present), each the most probable first, of (1, C)."""
    predicted = set(model.decide(probabilities)[0])
    verdicts = [
        Verdict(label, model.classes[label], float(probability), float(threshold), label in predicted, int(target))
        for label, (probability, threshold, target) in enumerate(
            zip(probabilities[0], model.thresholds, targets, strict=True)
        )
    ]
    verdicts.sort(key=lambda verdict: -verdict.probability)
    shown = [verdict for verdict in verdicts if verdict.is_predicted][:MAP_LABELS_PER_IMAGE] or verdicts[:1]
    return shown, [v for v in verdicts if (v.is_predicted or v.target == 1) and v not in shown]


# ---- pictures ----


def draw_map(photograph: Image.Image, values: torch.Tensor, resize_rule: str, image_size: int) -> Image.Image:
    """The photograph under the colours of a map (h, w), scaled to its largest value, where the model saw it."""
    import matplotlib as mpl

    width, height = photograph.size
    frame = activation_maps.UNDO_RESIZE_RULES[resize_rule](height, width, image_size)
    largest = float(values.max())
    spread = activation_maps.spread(values / largest if largest > 0 else values, frame, height, width).numpy()
    colours = mpl.colormaps[COLOURS](np.nan_to_num(spread).clip(0, 1))[..., :3] * 255
    strength = np.where(np.isnan(spread), 0, STRENGTH)[..., None]
    mixed = (1 - strength) * np.asarray(photograph) + strength * colours
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    if np.isnan(spread).any():
        left, top, right, bottom = (round(value) for value in frame)
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline="white")
    return picture


def describe(verdict: Verdict, has_evidence: bool) -> list[str]:
    """What stands under a picture."""
    texts = [f"{verdict.name} {verdict.probability:.2f}", f"threshold {verdict.threshold:.2f}"]
    if not verdict.is_predicted:
        texts += ["nothing predicted, the top class"]
    return texts if has_evidence else [*texts, "no place speaks for it"]


def make_file_name(text: str) -> str:
    """`text` as part of a file name: letters, digits and - only, not too long."""
    return re.sub(r"[^\w-]+", "-", text)[:40]


# ---- the page ----


def make_page(cards: Sequence[Card], model: Predictor, images: TestImages) -> str:
    """The whole of index.html."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return pages.render(
        "class_activation_maps.html",
        method=MAP_METHOD,
        model=model,
        images=images,
        cards=cards,
        folder=PICTURES,
        colours=[to_hex(colour) for colour in mpl.colormaps[COLOURS](np.linspace(0, 1, 9))],
        verdicts=VERDICTS,
    )


# (predicted, target) -> its colour and what to call it
VERDICTS = {
    (True, 1): ("good", "✓ right"),
    (True, 0): ("error", "✕ wrong"),
    (True, -1): ("soft", "? not labelled"),
    (False, 1): ("error", "✕ missed"),
    (False, 0): ("good", "rightly not predicted"),
    (False, -1): ("soft", "not predicted, not labelled"),
}


if __name__ == "__main__":
    utils.run_script(main)
