"""The baseline: the loop that most published multi-label scripts have, nothing in it to make it quick.

    python -m benchmarks.peers.plain train|test TASK.json

Images: PIL, torchvision.transforms v1, float batches. Frozen: requires_grad = False alone, so the backbone stays in
train() and its BatchNorm statistics move. Threshold: scikit-learn's weighted F1 at each of 0.01 ... 0.99.

With minutes: one frozen epoch, then unfrozen ones until they are over, which may be in the middle of one; the rates
stay, so nothing has to be known beforehand.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.peers.task import Channels, Task, load_task, make_network, read_targets
from trainer import run_files

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv: list[str]) -> None:
    verb, path = argv
    {"train": train, "test": test}[verb](load_task(path))


def train(task: Task) -> None:
    """Frozen epochs, then unfrozen ones, or so many minutes; keep the weights with the best validation F1."""
    torch.manual_seed(task.seed)
    model, mean, std = make_network(task)
    model.to(DEVICE)
    train_set = LabelledImages(task.train, task.num_classes, make_train_transform(task, mean, std))
    val_set = LabelledImages(task.val, task.num_classes, make_eval_transform(task, mean, std))
    single = len(train_set) % task.batch_size == 1  # BatchNorm1d cannot train on one image
    train_loader = DataLoader(train_set, task.batch_size, shuffle=True, drop_last=single)
    val_loader = DataLoader(val_set, task.batch_size)

    criterion = nn.BCEWithLogitsLoss(pos_weight=count_pos_weight(train_set.targets).to(DEVICE))
    backbone, head = model
    optimizer = torch.optim.Adam(
        [
            {"params": backbone.parameters(), "lr": task.backbone_lr},
            {"params": head.parameters(), "lr": task.head_lr},
        ]
    )
    best_f1, history = -1.0, []
    print(f"plain: {len(train_set)} training images, {DEVICE}", flush=True)
    end = time.perf_counter() + 60 * task.minutes if task.minutes else math.inf
    last_epoch = math.inf if task.minutes else task.frozen_epochs + task.unfrozen_epochs
    validation_seconds = 0.0
    for epoch in itertools.count(1):
        seconds_left = end - time.perf_counter() - validation_seconds
        if epoch > last_epoch or seconds_left <= 0:
            break
        frozen = epoch <= (1 if task.minutes else task.frozen_epochs)
        for parameter in backbone.parameters():
            parameter.requires_grad = not frozen
        start = time.perf_counter()
        loss, num_batches = train_epoch(model, train_loader, criterion, optimizer, seconds_left)
        record = {"epoch": epoch, "frozen": frozen, "seconds": time.perf_counter() - start}
        if task.minutes:
            record["images"] = min(len(train_set), num_batches * task.batch_size)
        history.append(record)
        start = time.perf_counter()
        threshold, f1 = find_threshold(score(model, val_loader), val_set.targets.numpy())
        validation_seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss {loss:.4f}, F1 {f1:.4f} at {threshold:.2f}", flush=True)
        if f1 > best_f1:
            best_f1 = f1
            torch.save({"model": model.state_dict(), "threshold": threshold}, task.checkpoint)
    run_files.write_log(task.log, history)


def test(task: Task) -> None:
    """Predict the test images by the checkpoint; the labels of each as JSON."""
    checkpoint = torch.load(task.checkpoint, map_location=DEVICE)
    model, mean, std = make_network(task)
    model.load_state_dict(checkpoint["model"])
    model.to(DEVICE)
    loader = DataLoader(Images(task.test, make_eval_transform(task, mean, std)), task.batch_size)
    print(f"plain: {len(task.test)} test images, {DEVICE}", flush=True)
    probabilities = score(model, loader)
    labels = {
        Path(path).stem: np.flatnonzero(row >= checkpoint["threshold"]).tolist()
        for path, row in zip(task.test, probabilities, strict=True)
    }
    (Path(task.folder) / "predictions.json").write_text(json.dumps(labels, indent=4))
    np.save(task.probabilities, probabilities)
    if task.minutes:
        loader = DataLoader(Images(task.val, make_eval_transform(task, mean, std)), task.batch_size)
        np.save(task.val_probabilities, score(model, loader))


class Images(Dataset[Any]):
    """Image files as normalised float (3, S, S)."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


class LabelledImages(Images):
    """The same with their targets, (C,) each."""

    def __init__(self, paths: list[str], num_classes: int, transform: Callable[[Image.Image], Tensor]) -> None:
        super().__init__(paths, transform)
        self.targets = torch.tensor([read_targets(path, num_classes) for path in paths])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(index), self.targets[index]


def make_train_transform(task: Task, mean: Channels, std: Channels) -> Callable[[Image.Image], Tensor]:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(task.image_size, scale=(task.crop_scale_min, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def make_eval_transform(task: Task, mean: Channels, std: Channels) -> Callable[[Image.Image], Tensor]:
    size = (task.image_size, task.image_size)
    return transforms.Compose([transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(mean, std)])


def count_pos_weight(targets: Tensor) -> Tensor:
    """Negatives / positives of each class, (C,), from (N, C) targets; 1 for a class without positives."""
    positives = targets.sum(dim=0)
    return torch.where(positives > 0, (len(targets) - positives) / positives.clamp_min(1), 1.0)


def train_epoch(
    model: nn.Module,
    loader: DataLoader[Any],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    seconds: float = math.inf,
) -> tuple[float, int]:
    """One pass over `loader`, which ends early after so many `seconds`: (mean loss of the batches, their number)."""
    model.train()
    losses, start = [], time.perf_counter()
    for images, targets in loader:
        optimizer.zero_grad()
        loss = criterion(model(images.to(DEVICE)), targets.to(DEVICE))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if time.perf_counter() - start > seconds:
            break
    return sum(losses) / len(losses), len(losses)


def score(model: nn.Module, loader: DataLoader[Any]) -> np.ndarray:
    """(N, C) probabilities of the images in `loader`, labelled or not."""
    model.eval()
    rows = []
    with torch.no_grad():
        for batch in loader:
            images = batch[0] if isinstance(batch, list) else batch
            rows.append(torch.sigmoid(model(images.to(DEVICE))).cpu())
    return torch.cat(rows).numpy()


def find_threshold(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """(the threshold of 0.01 ... 0.99 with the best weighted F1, that F1)."""
    best_threshold, best_f1 = 0.5, -1.0
    for threshold in np.arange(1, 100) / 100:
        predicted = probabilities >= threshold
        f1 = float(f1_score(targets, predicted, average="weighted", zero_division=0))  # pyright: ignore[reportArgumentType]
        if f1 > best_f1:
            best_threshold, best_f1 = float(threshold), f1
    return best_threshold, best_f1


if __name__ == "__main__":
    main(sys.argv[1:])
