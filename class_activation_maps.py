"""Shows where in the test images a saved model sees the classes it predicts: pictures, and a page with all of them.

    python class_activation_maps.py [recipe.py ...] [--MAP_METHOD grad-cam++] [--NAME value ...]

Writes the page MAP_FOLDER/index.html and, in MAP_FOLDER/index_files/, a folder of PNGs for each image. MODEL_PATH has
to be a checkpoint, since exported files have no gradients. Classes, image size and thresholds come from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from limits import AllOrCount, Count
from models import network_files

# ---- Class activation maps ----
MAP_METHOD: Literal["cam", "grad-cam", "grad-cam++", "grad-camm++", "attention"] = "grad-cam"  # attention: ml_decoder
MAP_FOLDER: Path = Path(config.LOCAL_ROOT) / "class_activation_maps"  # pictures, and index.html with all of them
MAP_MAX_IMAGES: AllOrCount = 24  # how many test images, evenly spaced over their sorted names; 0: all
MAP_LABELS_PER_IMAGE: Count = 4  # predicted classes to map, most probable first; if none is, the top class

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds
    network_files.import_in_parts()

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import utils
from dataset import locks, whole_files
from dataset.class_names import show_names
from dataset.decoding import decode_image
from dataset.drawing import draw_labels
from dataset.fonts import make_drawable
from evaluation import activation_maps, pages
from evaluation.prediction_files import name_images
from export import engines
from models import checkpoints, devices
from models.shared_cores import share_cores
from models_factory import MultiLabelModel, restore_model
from predictor import Predictor
from trainer.from_config import ImagesToPredict, read_test_images

MAX_OTHERS = 10  # classes without a map that the page names for an image
MAX_SIDE = 640  # pixels; larger photographs are shrunk
PICTURES_FOLDER = "index_files"  # in MAP_FOLDER; browsers name the folder of a saved page like this


class Verdict(NamedTuple):
    """What the model says of one class on one image, and what is true."""

    label: int  # index of the class
    name: str  # of the class
    probability: float
    threshold: float | None  # None: the limits of an image's labels decided
    is_predicted: bool
    target: int  # 1 present, 0 absent, -1 unknown


class Card(NamedTuple):
    """An image on the page. Paths of pictures are relative to PICTURES_FOLDER."""

    name: str
    photograph: Path
    maps: list[tuple[Path, Verdict]]  # (picture of the map, its class)
    others: list[Verdict]  # the most probable classes that are predicted or present, but have no map
    num_more: int  # such classes besides
    present: str  # the names of the image's labels, the most probable first


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    utils.keep_freed_memory()
    model, network = load_model(config.MODEL_PATH)
    images = read_test_images(model)
    names = name_images(images.paths)
    cards = []
    rows = spread_rows(len(images.paths), MAP_MAX_IMAGES)
    page = MAP_FOLDER / "index.html"
    with locks.own(MAP_FOLDER), share_cores():
        with (
            whole_files.replace_folder(MAP_FOLDER / PICTURES_FOLDER) as folder,
            utils.Progress("mapping", len(rows)) as progress,
        ):
            for row in rows:
                card = map_image(
                    model=model,
                    network=network,
                    path=images.paths[row],
                    targets=images.table.targets[row],
                    folder=folder,
                    name=names[row],
                )
                cards.append(card)
                progress.step(1)
        whole_files.write_text(page, make_page(cards, model, images))
    utils.say(f"{MAP_METHOD} of {sum(len(card.maps) for card in cards)} labels on {len(cards)} images: {page}")


def load_model(path: Path) -> tuple[Predictor, MultiLabelModel]:
    """The predictor, which decides labels, and its network. Raises InputError for any file but a checkpoint."""
    engines.require_checkpoint(path, "which has no gradients")
    checkpoint = checkpoints.load(path)
    device = devices.choose_device(config.DEVICE)
    network = restore_model(checkpoint, path).to(device)
    predictor = Predictor(
        engines.run_torch(network, device),
        checkpoint,
        path,
        device,
        default_threshold=config.TH_MULTI_LABEL,
        calibration=config.CALIBRATION,
    )
    return predictor, network


def spread_rows(num_images: int, limit: int) -> list[int]:
    """`limit` row numbers, evenly spaced over `num_images`; all of them where `limit` is 0 or more than there are."""
    count = num_images
    if limit:
        count = min(limit, num_images)
    return [number * num_images // count for number in range(count)]


def map_image(
    *, model: Predictor, network: MultiLabelModel, path: str, targets: NDArray[np.int8], folder: Path, name: str
) -> Card:
    """Save the photograph, and a map of each class that is shown, to `folder`/`name`. `targets` are (C,)."""
    pixels = decode_image(path)
    trace = activation_maps.follow(network, model.prepare(pixels).to(model.device))
    probabilities = model.activate(trace.logits.detach()[None]).cpu().numpy()
    model.require_probabilities(probabilities, 1, [path])
    shown, others = judge(model, probabilities, targets)
    maps = activation_maps.METHODS[MAP_METHOD](trace, [verdict.label for verdict in shown]).cpu()

    photograph = Image.fromarray(pixels)
    photograph.thumbnail((MAX_SIDE, MAX_SIDE))
    photograph_file = Path(name) / "photograph.png"
    (folder / name).mkdir(parents=True, exist_ok=True)
    # with a label like that of the maps, so that all pictures are equally wide
    with (folder / photograph_file).open("xb") as file:  # of no other image, also on a disk that ignores case
        draw_labels(np.asarray(photograph), ["photograph"]).save(file, "PNG")
    pictures, drawable = [], make_drawable(model.classes)
    for rank, (verdict, values) in enumerate(zip(shown, maps, strict=True), start=1):
        picture = activation_maps.draw_map(photograph, values, model.metadata["resize_rule"], model.image_size)
        file = Path(name) / f"{rank}_{make_file_name(verdict.name)}.png"
        drawn_verdict = verdict._replace(name=drawable[verdict.label])
        texts = describe(drawn_verdict, has_evidence=bool(values.max() > 0))
        draw_labels(np.asarray(picture), texts).save(folder / file)
        pictures.append((file, verdict))
    return Card(
        name=name,
        photograph=photograph_file,
        maps=pictures,
        others=others[:MAX_OTHERS],
        num_more=len(others[MAX_OTHERS:]),
        present=show_names([verdict.name for verdict in (*shown, *others) if verdict.target == 1]),
    )


def judge(
    model: Predictor, probabilities: NDArray[np.float32], targets: NDArray[np.int8]
) -> tuple[list[Verdict], list[Verdict]]:
    """The classes to map, and the other classes that are predicted or present; both with the most probable first.

    `probabilities` are (1, C), `targets` (C,). Where no class is predicted, the most probable one is mapped.
    """
    predicted = set(model.decide(probabilities)[0])
    verdicts = [
        Verdict(
            label=label,
            name=model.classes[label],
            probability=float(probabilities[0, label]),
            threshold=model.find_threshold(label, float(probabilities[0, label]), is_said=label in predicted),
            is_predicted=label in predicted,
            target=int(targets[label]),
        )
        for label in range(len(model.classes))
    ]
    verdicts.sort(key=lambda verdict: -verdict.probability)
    shown = [verdict for verdict in verdicts if verdict.is_predicted][:MAP_LABELS_PER_IMAGE]
    if not shown:
        shown = verdicts[:1]
    mapped = {verdict.label for verdict in shown}
    others = [v for v in verdicts if (v.is_predicted or v.target == 1) and v.label not in mapped]
    return shown, others


# ---- pictures ----


def describe(verdict: Verdict, has_evidence: bool) -> list[str]:
    """The lines under the picture of a map. Without evidence the map is 0 everywhere."""
    texts = [f"{verdict.name} {verdict.probability:.2f}"]
    if verdict.threshold is not None:
        texts.append(f"threshold {verdict.threshold:.2f}")
    if not verdict.is_predicted:
        texts.append("nothing predicted, the top class")
    if not has_evidence:
        texts.append("no place speaks for it")
    return texts


def make_file_name(text: str) -> str:
    """`text` as a part of a file name: only letters, digits, _ and -, at most 40 characters."""
    return re.sub(r"[^\w-]+", "-", text)[:40]


# ---- the page ----


def make_page(cards: Sequence[Card], model: Predictor, images: ImagesToPredict) -> str:
    """The HTML of the page."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return pages.render(
        "class_activation_maps.html",
        method=MAP_METHOD,
        model=model,
        images=images,
        cards=cards,
        folder=PICTURES_FOLDER,
        colours=[to_hex(colour) for colour in mpl.colormaps[activation_maps.COLOURS](np.linspace(0, 1, 9))],
        verdicts=VERDICTS,
    )


# (whether the class is predicted, target) -> (colour, words)
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
