"""Novelty: is a model worse on images that are unlike its training images, and does it recognise what is foreign?

    python benchmarks/novelty.py CHECKPOINT DATASET_FOLDER [FOLDER_OF_OTHER_IMAGES ...]

The model is compared with 250, 500, ... of the training images of DATASET_FOLDER. Printed for each: the share of the
test images that are "unlike the training images", and the mean F1 of an image on the most novel tenth and on the rest
(the difference ± its standard error); beside it the same for the tenth whose highest probability is lowest, which needs
no training images. Then, of 200 drawings of `dataset_tools.py demo` and of each other folder: the
share of them that is called unlike, and how well the distance separates them from the test images (AUROC: 1 is always,
.5 is chance). At last, what comparing adds to a prediction.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import dataset_readers
import metrics
import models_factory
import predictor
from dataset.image_selection import select_images
from models import novelty
from predictor import Predictor
from tools import demo_images

NUM_DRAWINGS = 200
SIZES = (250, 500, 1000, 2000)
REPEATS = 20  # timed passes over a batch, each way in turn


def draw(folder: Path) -> list[str]:
    """The paths of NUM_DRAWINGS drawings."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(NUM_DRAWINGS)]
    for path in paths:
        demo_images.draw_image(rng, demo_images.sample_kinds(rng), 224)[0].save(path)
    return [*map(str, paths)]


def measure_f1(
    model: Predictor, paths: Sequence[str], targets: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The F1 of each image, (N,), 0 without a label in common, also where there is none on either side; and its
    highest probability, (N,).
    """
    probabilities = np.stack([record.probabilities for record in model.predict(paths, title="test images")])
    predicted = metrics.predict(probabilities, model.thresholds, model.min_labels, model.max_labels)
    present = targets == 1
    f1 = metrics.f_beta_of((predicted & present).sum(axis=1), predicted.sum(axis=1), present.sum(axis=1))
    return f1, probabilities.max(axis=1)


def compare_tenth(f1: NDArray[np.float64], order: NDArray[np.intp], name: str) -> str:
    """The mean F1 of the first tenth of the images in `order` (N,), and of the others."""
    tenth, rest = np.split(f1[order], [len(f1) // 10])
    gap, error = tenth.mean() - rest.mean(), (tenth.var() / len(tenth) + rest.var() / len(rest)) ** 0.5
    return f"F1 {tenth.mean():.3f} on the {name} tenth, {rest.mean():.3f} on the rest ({gap:+.3f} ± {error:.3f})"


def time_comparing(model: Predictor, reference: novelty.Reference) -> str:
    """What a batch of 64 and one image take, without and with comparing."""
    texts = []
    for count in (64, 1):
        images = models_factory.make_example(model.image_size)[:1].repeat(count, 1, 1, 1)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(REPEATS):
            for compares, taken in seconds.items():
                model.reference = reference if compares else None
                start = time.perf_counter()
                model.look(images)
                taken.append(time.perf_counter() - start)
        plain, compared = (1000 * float(np.median(taken)) / count for taken in seconds.values())
        texts.append(f"batches of {count}: {plain:.2f} ms an image, {compared:.2f} ms with comparing")
    return "; ".join(texts)


def main(checkpoint: Path, dataset: Path, folders: Sequence[Path]) -> None:
    model = predictor.load(checkpoint)
    model.reference = None
    train, test = (dataset_readers.read_dataset(dataset, split=split) for split in ("train", "test"))
    f1, highest = measure_f1(model, test.paths, test.targets)
    print(compare_tenth(f1, np.argsort(highest), "least confident"), flush=True)
    train = train.select(novelty.choose_rows(len(train), novelty.MOST_IMAGES))
    seen = model.measure_features(train.paths, title="training images")
    features = model.measure_features(test.paths, title="test images")
    with tempfile.TemporaryDirectory() as folder:
        others = {"drawings": model.measure_features(draw(Path(folder)), title="drawings")}
    others |= {path.name: model.measure_features(select_images(path), title=path.name) for path in folders}
    reference = None
    for size in sorted({min(size, len(train)) for size in SIZES}):
        rows = [number * len(train) // size for number in range(size)]
        reference = novelty.make_reference(
            seen[rows], [train.paths[row] for row in rows], novelty.identify(model.metadata)
        )
        assert reference
        cosines = reference.find_nearest(features).cosines[:, 0]
        words = [
            f"{size:>5} images",
            f"{(reference.measure_novelty(cosines) >= novelty.NOVEL).mean():.1%} of the test images unlike",
            compare_tenth(f1, np.argsort(cosines), "most novel"),
        ]
        for name, values in others.items():
            theirs = reference.find_nearest(values).cosines[:, 0]
            is_other = np.repeat([False, True], [len(cosines), len(theirs)])
            area = roc_auc_score(is_other, -np.concatenate([cosines, theirs]))
            words.append(
                f"{name} {(reference.measure_novelty(theirs) >= novelty.NOVEL).mean():.1%} unlike, AUROC {area:.3f}"
            )
        print("; ".join(words), flush=True)
    assert reference
    print(time_comparing(model, reference))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [*map(Path, sys.argv[3:])])
