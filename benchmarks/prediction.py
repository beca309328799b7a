"""Images a second from files to probabilities: the plain way against each engine of export/engines.py.

    python benchmarks/prediction.py FOLDER [CHECKPOINT [DATASET_FOLDER]]

FOLDER holds image files. Without CHECKPOINT, an EfficientNet-Lite0 of random weights; with the DATASET_FOLDER that it
was trained on, also the test mAP of each way, and int8's ranges are those of its training images instead of FOLDER's.
Plain is PIL -> torchvision.transforms (v1) -> DataLoader(num_workers=0) -> network in eval() under no_grad -> sigmoid.
The process keeps the memory it frees, for all ways; benchmarks/peers measures what that gains.
All ways take turns; a figure is the median over rounds, a ratio the median of each round's ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import dataset_readers
import metrics
import models_factory
import predictor
import utils
from benchmarks.turns import HEADER, print_row
from dataset import files
from dataset.image_sizes import Size, as_size
from export import engines
from models import checkpoints

NUM_IMAGES = 256  # at most, of FOLDER
NUM_INT8_IMAGES = 300
ROUNDS = 5  # and one more before, which fills the file cache
BATCH_SIZE = 64

Way = Callable[[list[str]], NDArray[np.float32]]  # image files -> probabilities (N, C)


def main(argv: list[str]) -> None:
    if not argv:
        raise utils.InputError("name a folder of image files: python benchmarks/prediction.py FOLDER")
    utils.keep_freed_memory()
    paths = files.list_images(Path(argv[0]))[:NUM_IMAGES]
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(argv[1]) if len(argv) > 1 else save_random_checkpoint(Path(temporary))
        training = dataset_readers.read_dataset(argv[2], split="train").paths if len(argv) > 2 else paths
        int8_images = training[:: max(1, len(training) // NUM_INT8_IMAGES)][:NUM_INT8_IMAGES]
        metadata = checkpoints.load(checkpoint)
        network = models_factory.restore_model(metadata, checkpoint)
        models = load_engines(checkpoint, int8_images, Path(temporary))
    ways = {"plain": make_plain(network, as_size(metadata["image_size"]))} | {
        name: make_way(model) for name, model in models.items()
    }

    print(f"\n{len(paths)} images, {torch.get_num_threads()} threads, batches of {BATCH_SIZE}, {ROUNDS} rounds")
    seconds = measure_in_turns(ways, paths)
    print(f"\n{'images/s':32}{HEADER}")
    for name in models:
        print_row(name, list(zip(seconds["plain"], seconds[name], strict=True)), len(paths))

    print("\nlargest difference of a logit from the network's, on the same pixels")
    for name, difference in compare_logits(network, models, paths).items():
        print(f"{name:32}{difference:10.1e}")
    if len(argv) > 2:
        test = dataset_readers.read_dataset(argv[2], split="test")
        print(f"\n{'mAP':32}{len(test):7} test images")
        for name, way in ways.items():
            print(f"{name:32}{np.nanmean(metrics.average_precision(way(test.paths), test.targets)):10.4f}", flush=True)


def save_random_checkpoint(folder: Path) -> Path:
    """A checkpoint of a network nobody trained: as quick as a trained one."""
    model = models_factory.make_model("efficientnet_lite0", 80)
    values = {"model_name": "efficientnet_lite0", "head": "linear_bn", "image_size": 224, "resize_rule": "squash"}
    classes = [str(i) for i in range(80)]
    checkpoints.save(folder / "random.pt", {"model_state": model.state_dict(), "classes": classes} | values)
    return folder / "random.pt"


def load_engines(checkpoint: Path, int8_images: list[str], folder: Path) -> dict[str, predictor.Predictor]:
    """Each engine of export/engines.py that runs checkpoints, and OpenVINO in int8."""
    names = engines.ENGINES_OF["checkpoint"]
    models = {name: predictor.load(checkpoint, "cpu", engine=name, cache_folder=folder) for name in names}
    models["openvino int8"] = predictor.load(
        checkpoint, "cpu", engine="openvino", int8_images=int8_images, cache_folder=folder
    )
    return models


class PlainDataset(Dataset[torch.Tensor]):
    """What most tutorials write."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def make_plain(network: models_factory.MultiLabelModel, size: Size) -> Way:
    """The plain way; the network gets float NCHW images that were normalised before."""
    mean, std = ((buffer.flatten() / 255).tolist() for buffer in (network.mean, network.std))
    normalise = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    transform = transforms.Compose([transforms.Resize(size), *normalise])
    model = nn.Sequential(network.backbone, network.head).eval()

    def predict(paths: list[str]) -> NDArray[np.float32]:
        with torch.no_grad():
            loader = DataLoader(PlainDataset(paths, transform), BATCH_SIZE, num_workers=0)
            return torch.cat([model(images).sigmoid() for images in loader]).numpy()

    return predict


def make_way(model: predictor.Predictor) -> Way:
    return lambda paths: np.stack([record.probabilities for record in model.predict(paths, BATCH_SIZE)])


def measure_in_turns(ways: dict[str, Way], paths: list[str]) -> dict[str, list[float]]:
    """Seconds of each way in each round; each round begins with another."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(ROUNDS + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            ways[name](paths)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def compare_logits(network: nn.Module, models: dict[str, predictor.Predictor], paths: list[str]) -> dict[str, float]:
    """The largest |difference| between the logits of `network` and of each engine."""
    largest = dict.fromkeys(models, 0.0)
    for batch in predictor.read_ahead(paths, next(iter(models.values())).prepare, BATCH_SIZE):
        images = torch.stack(batch)
        with torch.no_grad():
            expected = network.eval()(images)
        for name, model in models.items():
            largest[name] = max(largest[name], (model.run(images) - expected).abs().max().item())
    return largest


if __name__ == "__main__":
    utils.run_script(main)
