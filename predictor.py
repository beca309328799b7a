"""The one way every script runs a saved model.

model = predictor.load("trained_models/best_model.pt")
for record in model.predict("folder/of/images"):
    print(record.path, record.names)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import checkpoints
from augmentations import make_eval_transform
from dataset_readers import Batch, Table, list_images, make_loader
from metrics import predict
from models_factory import MultiLabelModel, make_model
from utils import InputError, choose_device, track


class Record(NamedTuple):
    """What a model says of one image."""

    path: str
    probabilities: NDArray[np.float32]  # (C,)
    labels: list[int]  # indices of the classes at or above their threshold, rising
    names: list[str]  # of those classes


class Predictor:
    """A saved model with all that running it takes: class names, thresholds, image size, resize rule."""

    def __init__(
        self, model: MultiLabelModel, checkpoint: dict[str, Any], device: torch.device, default_threshold: float
    ) -> None:
        self.model, self.device, self.metadata = model, device, checkpoint
        self.classes: tuple[str, ...] = tuple(checkpoint["classes"])
        threshold = checkpoint.get("best_threshold")
        self.threshold = default_threshold if threshold is None else float(threshold)
        self.thresholds = np.full(len(self.classes), self.threshold, dtype=np.float32)
        self.transform = make_eval_transform(checkpoint["resize_rule"], checkpoint["image_size"])

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        batch_size: int = 64,
        num_workers: int = 0,
        title: str | None = None,
    ) -> Iterator[Record]:
        """Records of the image files in a folder, or of a list of files, in their order, as they are computed.

        With a `title`, progress is shown under it.
        """
        paths = list_images(Path(images)) if isinstance(images, str | Path) else [str(path) for path in images]
        unknown = Table(paths, np.full((len(paths), len(self.classes)), -1, dtype=np.int8), self.classes)
        loader = make_loader(unknown, self.transform, batch_size, num_workers=num_workers)
        batches = track(loader, title, len(paths)) if title else loader
        done = iter(paths)
        for probabilities in compute_probabilities(self.model, batches, self.device):
            for row, chosen, path in zip(probabilities, predict(probabilities, self.thresholds), done, strict=False):
                labels = np.flatnonzero(chosen).tolist()
                yield Record(path, row, labels, [self.classes[label] for label in labels])


def load(path: str | Path, device: str = "auto", default_threshold: float = 0.5) -> Predictor:
    """The model in the checkpoint `path`; classes, image size and the rest come from it, not from config.py.

    `default_threshold` serves a checkpoint that has none. Raises InputError for whatever is not a checkpoint.
    """
    path = Path(path)
    checkpoint = checkpoints.load(path)
    model = make_model(
        checkpoint["model_name"], len(checkpoint["classes"]), checkpoint["head"], None, checkpoint["image_size"]
    )
    try:
        model.load_state_dict(checkpoint["model_state"])
    except RuntimeError as error:
        raise InputError(
            f"the tensors in {path} do not fit {checkpoint['model_name']}: {str(error).split(':')[-1].strip()}"
        ) from error
    target = choose_device(device)
    model.to(target).to(memory_format=torch.channels_last)
    return Predictor(model, checkpoint, target, default_threshold)


def compute_probabilities(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], Any] = nullcontext,
    on_batch: Callable[[Batch, torch.Tensor], None] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """(B, C) probabilities of each batch, with `model` in eval mode; `on_batch(batch, logits)` may look on."""
    model.eval()
    for batch in batches:
        batch = batch.to(device)
        with torch.inference_mode(), autocast():
            logits = model(batch.images).float()
        if on_batch:
            on_batch(batch, logits)
        yield logits.sigmoid().cpu().numpy()
