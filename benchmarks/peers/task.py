"""What every peer is given: the images of the splits, the network, the epochs and the rates, as one JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading a task takes no torch
    from torch import nn

Channels = tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """Train on `train`, choose by `val`, predict `test` (image files); write into `folder`."""

    folder: str
    train: list[str]
    val: list[str]
    test: list[str]
    num_classes: int
    frozen_epochs: int
    unfrozen_epochs: int
    seed: int
    weights_folder: str | None
    weights: str | None = "default"  # ImageNet's; None: random
    model_name: str = "efficientnet_lite0"
    image_size: int = 224
    crop_scale_min: float = 0.5
    batch_size: int = 32
    backbone_lr: float = 1e-4
    head_lr: float = 1e-3

    @property
    def checkpoint(self) -> Path:
        return Path(self.folder) / "best.pt"

    @property
    def log(self) -> Path:
        """CSV, a line an epoch: epoch, frozen, seconds of its pass over `train`."""
        return Path(self.folder) / "log.csv"

    @property
    def probabilities(self) -> Path:
        """What was predicted for `test`, (N, C)."""
        return Path(self.folder) / "probabilities.npy"

    def save(self) -> Path:
        path = Path(self.folder) / "task.json"
        path.write_text(json.dumps(asdict(self)))
        return path


def load_task(path: str) -> Task:
    return Task(**json.loads(Path(path).read_text()))


def read_targets(image: str | Path, num_classes: int) -> list[float]:
    """The C targets of `<data>/images/train-resized/<stem>.jpg`, from `<data>/labels/train/<stem>.cls`."""
    path = Path(image)
    with open(path.parents[2] / "labels" / "train" / f"{path.stem}.cls") as file:
        labels = {int(line) for line in file}
    return [float(label in labels) for label in range(num_classes)]


def make_network(task: Task) -> tuple[nn.Sequential, Channels, Channels]:
    """(backbone and head, for images normalised beforehand; the mean and the standard deviation to do it with)."""
    from torch import nn

    import models_factory

    model = models_factory.make_model(
        task.model_name,
        task.num_classes,
        weights=task.weights,
        image_size=task.image_size,
        weights_folder=task.weights_folder,
    )
    mean, std = (tuple((buffer / 255).flatten().tolist()) for buffer in (model.mean, model.std))
    return nn.Sequential(model.backbone, model.head), mean, std
