"""Teachers: a better model's probabilities become a share of the targets (Hinton, Vinyals and Dean 2015).

    targets = make_soft_targets(table, ["teacher.csv"], weight=0.5, temperature=2.0)    # from files, for make_loader
    teach = make_teacher(["teacher.pt"], table.classes, device, weight=0.5, temperature=2.0)
    batch = teach(batch, epoch, step)    # or from models, for each picture as augmentation left it

A target becomes (1 - weight) y + weight pT, with pT = sigmoid(logit(p) / temperature) of the teachers' mean
probability p. Where teachers say nothing it stays y, and where the label is unknown it is pT. The student's own logits
are not divided by the temperature: what it learns are the softened probabilities.

A teacher is too sure of images that it was trained on. Files of several runs, each with the images that its run held
out for validation, teach better, alone or averaged with a better model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

import models_factory
from dataset.batches import Batch, as_float_targets
from dataset.probability_files import read_probabilities
from dataset.table import Table
from models import checkpoints, inference
from utils import InputError, warn


def mix_targets(labels: Tensor, probabilities: Tensor, weight: float, temperature: float) -> Tensor:
    """The targets of the head of this file: all (N, C), NaN where a label is unknown, where no teacher has a class."""
    taught = torch.sigmoid(torch.logit(probabilities) / temperature)  # 0 and 1 stay: their logits are infinite
    mixed = torch.where(labels.isnan(), taught, torch.lerp(labels, taught, weight))
    return torch.where(probabilities.isnan(), labels, mixed)


# ---- from files ----


def make_soft_targets(
    table: Table, files: Sequence[str | Path], weight: float, temperature: float = 1.0
) -> NDArray[np.float32]:
    """(N, C) targets of the images of `table` with the probabilities in `files`; NaN where nothing is known.

    Warns of images that no file has: they keep their labels. Raises InputError as `read_probabilities` does.
    """
    probabilities = read_probabilities(table, files)
    untaught = np.flatnonzero(np.isnan(probabilities).all(axis=1))
    if len(untaught):
        warn(
            f"{len(untaught)} of {len(table)} training images have no teacher's probabilities and keep their labels, "
            f"the first: {table.paths[untaught[0]]}"
        )
    labels = as_float_targets(table.targets)
    return mix_targets(labels, torch.from_numpy(probabilities), weight, temperature).numpy()


# ---- from models ----


def make_teacher(
    paths: Sequence[str | Path],
    classes: Sequence[str],
    device: torch.device,
    weight: float,
    temperature: float = 1.0,
    autocast: Callable[[], Any] = nullcontext,
    images_at_once: int = 64,
) -> Callable[[Batch, int, int], Batch]:
    """`change(batch, epoch, step) -> batch` on `device`, with targets by the models in the checkpoints `paths`.

    Comes before what mixes images. Each model sees the batch's pictures resized to its own size, at most
    `images_at_once` of them. Classes agree by name; those that `classes` have not are left out. Raises InputError for
    what is no checkpoint, and for one that has none of `classes`.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    teachers = []
    count = torch.zeros(len(classes))  # of the teachers that have each class
    for path in map(Path, paths):
        checkpoint = checkpoints.load(path)
        shared = [(own, index_of[name]) for own, name in enumerate(checkpoint["classes"]) if name in index_of]
        if not shared:
            raise InputError(f"the teacher {path} has none of the data set's {len(classes)} classes")
        own, ours = torch.tensor(shared).T
        count[ours] += 1
        model = models_factory.restore_model(checkpoint, path).eval().requires_grad_(False).to(device)
        activate = inference.ACTIVATIONS[checkpoint.get("activation", "sigmoid")]
        teachers.append((model, activate, checkpoint["image_size"], own.to(device), ours.to(device)))
    count = count.to(device)

    def change(batch: Batch, epoch: int, step: int) -> Batch:
        total = torch.zeros_like(batch.targets)
        with torch.no_grad(), autocast():  # what inference_mode makes could not be a target
            for model, activate, size, own, ours in teachers:
                for images, sums in zip(batch.images.split(images_at_once), total.split(images_at_once), strict=True):
                    logits = model(F.resize(images, [size, size], antialias=True))
                    sums[:, ours] += activate(logits.float())[:, own]
        return batch._replace(targets=mix_targets(batch.targets, total / count, weight, temperature))

    return change
