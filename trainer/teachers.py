"""Distillation: mixes the probabilities of better models into the targets (Hinton, Vinyals and Dean 2015).

From files of probabilities, once for all training images:

    targets = make_soft_targets(table, ["teacher.csv"], weight=0.5, temperature=2.0)    # for loading.make_loader

From models, for each batch of augmented images:

    teach = make_teacher(["teacher.pt"], table.classes, device, weight=0.5, temperature=2.0)
    batch = teach(batch, epoch, step)

A label y becomes (1 - weight) y + weight pT. Here p is the mean probability of the teachers, and
pT = sigmoid(logit(p) / temperature). Where no teacher has the class, the target stays y. Where the label is unknown,
the target is pT. The student's logits are not divided by the temperature: the student learns pT itself.

A teacher is too sure of the images that it was trained on. Files of several runs teach better, if each file holds the
images that its run kept for validation. They can be used alone, or together with the file of a better model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

import models_factory
from dataset.batches import Batch, as_float_targets
from dataset.image_sizes import Size, as_size
from dataset.probability_files import read_probabilities
from dataset.table import Table
from models import checkpoints, inference
from utils import InputError, warn


def mix_targets(labels: Tensor, probabilities: Tensor, weight: float, temperature: float) -> Tensor:
    """Mix the teachers' mean `probabilities` into `labels`, by the formula at the top of this file.

    Both and the result are (N, C). NaN in `labels`: unknown. NaN in `probabilities`: no teacher has this class.
    """
    softened = torch.sigmoid(torch.logit(probabilities) / temperature)  # 0 and 1 stay, since their logits are infinite
    mixed = torch.where(labels.isnan(), softened, torch.lerp(labels, softened, weight))
    return torch.where(probabilities.isnan(), labels, mixed)


# ---- from files ----


def make_soft_targets(
    table: Table, files: Sequence[str | Path], weight: float, temperature: float = 1.0
) -> NDArray[np.float32]:
    """Targets (N, C) of the images of `table`, mixed with the probabilities in `files`; NaN where nothing is known.

    Images that no file has keep their labels, with a warning. Raises InputError as `read_probabilities` does.
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
    """A function `teach(batch, epoch, step) -> batch` that mixes probabilities of the checkpoints `paths` into targets.

    Call it before images are mixed (mixup, CutMix). Each model is on `device`; it gets the batch's images, resized to
    its image size, at most `images_at_once` at a time. Its classes are matched with `classes` by name; the others are
    ignored. Raises InputError for a file that is no checkpoint, and for a model that has none of `classes`.
    """
    teachers = [_load_teacher(Path(path), classes, device) for path in paths]
    num_teachers = torch.zeros(len(classes), device=device)  # (C,) how many teachers have each class
    for teacher in teachers:
        num_teachers[teacher.student_columns] += 1

    def teach(batch: Batch, epoch: int, step: int) -> Batch:
        total = torch.zeros_like(batch.targets)
        image_blocks, total_blocks = batch.images.split(images_at_once), total.split(images_at_once)
        with torch.no_grad(), autocast():  # not inference_mode: autograd refuses its tensors as targets
            for teacher in teachers:
                for images, sums in zip(image_blocks, total_blocks, strict=True):
                    sums[:, teacher.student_columns] += teacher.predict(images)
        return batch._replace(targets=mix_targets(batch.targets, total / num_teachers, weight, temperature))

    return teach


@dataclass(frozen=True)
class _Teacher:
    """A model, and which of its classes the student has, too."""

    model: nn.Module
    activate: Callable[[Tensor], Tensor]  # turns its logits into probabilities
    size: Size  # of the images that it takes
    teacher_columns: Tensor  # (K,) indices of the shared classes among the teacher's
    student_columns: Tensor  # (K,) indices of the same classes among the student's

    def predict(self, images: Tensor) -> Tensor:
        """Probabilities (B, K) of the shared classes, for `images` (B, 3, H, W)."""
        logits = self.model(F.resize(images, list(self.size), antialias=True))
        return self.activate(logits.float())[:, self.teacher_columns]


def _load_teacher(path: Path, classes: Sequence[str], device: torch.device) -> _Teacher:
    checkpoint = checkpoints.load(path)
    student_index = {name: index for index, name in enumerate(classes)}
    shared = [(index, student_index[name]) for index, name in enumerate(checkpoint["classes"]) if name in student_index]
    if not shared:
        raise InputError(f"the teacher {path} has none of the data set's {len(classes)} classes")
    teacher_columns, student_columns = torch.tensor(shared, device=device).T
    return _Teacher(
        model=models_factory.restore_model(checkpoint, path).eval().requires_grad_(False).to(device),
        activate=inference.ACTIVATIONS[checkpoint.get("activation", "sigmoid")],
        size=as_size(checkpoint["image_size"]),
        teacher_columns=teacher_columns,
        student_columns=student_columns,
    )
