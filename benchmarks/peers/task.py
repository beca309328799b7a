"""What every peer is given: the images of the splits, the network, the epochs and the rates, as one JSON file.

With `minutes`, each trains for so long as its documentation recommends: then only `transformers_lr` counts of the
epochs and rates.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # reading a task takes no torch
    from torch import Tensor, nn

    from models_factory import MultiLabelModel

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
    minutes: float = 0.0  # of training; 0: the epochs above
    transformers_lr: float = 5e-5  # that of its guide, and its default

    @property
    def checkpoint(self) -> Path:
        return Path(self.folder) / "best.pt"

    @property
    def log(self) -> Path:
        """CSV, a line an epoch: epoch, frozen, seconds of its pass over `train`, with `minutes` images of it."""
        return Path(self.folder) / "log.csv"

    @property
    def probabilities(self) -> Path:
        """What was predicted for `test`, (N, C)."""
        return Path(self.folder) / "probabilities.npy"

    @property
    def val_probabilities(self) -> Path:
        """With `minutes`, what was predicted for `val`, to fit the threshold on."""
        return Path(self.folder) / "val_probabilities.npy"

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


class TimmNetwork(NamedTuple):
    """What a library needs that makes networks by timm itself."""

    name: str
    state: dict[str, Tensor]  # its weights without the classifier
    mean: Channels
    std: Channels
    is_pretrained: bool


def make_timm_network(task: Task) -> TimmNetwork:
    """The network of the task, which has to be one of timm, with the weights that all peers start from."""
    from models.backbones import get_timm_name

    model = _make_model(task)
    network: Any = model.backbone
    return TimmNetwork(
        get_timm_name(task.model_name), network.network.state_dict(), *_read_channels(model), task.weights is not None
    )


def make_network(task: Task) -> tuple[nn.Sequential, Channels, Channels]:
    """(backbone and head, for images normalised beforehand; the mean and the standard deviation to do it with)."""
    from torch import nn

    model = _make_model(task)
    return nn.Sequential(model.backbone, model.head), *_read_channels(model)


def _make_model(task: Task) -> MultiLabelModel:
    import models_factory

    return models_factory.make_model(
        task.model_name,
        task.num_classes,
        weights=task.weights,
        image_size=task.image_size,
        weights_folder=task.weights_folder,
    )


def _read_channels(model: MultiLabelModel) -> tuple[Channels, Channels]:
    mean, std = (tuple((buffer / 255).flatten().tolist()) for buffer in (model.mean, model.std))
    return mean, std
