"""The same task with fastai (https://docs.fast.ai), as its tutorials write it.

    python -m benchmarks.peers.with_fastai train|test TASK.json

Left as fastai has it: a frozen backbone's BatchNorm trains on (so gradients go all the way), weight decay, the middle
of the validation and test images only, a fixed threshold of 0.5 (there is no tuning).
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import fastai.vision.all as fastai  # pyright: ignore[reportMissingImports]  # requirements-benchmarks.txt
import numpy as np
import torch
from torch import nn

from benchmarks.peers.plain import count_pos_weight
from benchmarks.peers.task import Task, load_task, make_network, read_targets
from trainer import run_files


def main(argv: list[str]) -> None:
    verb, path = argv
    {"train": train, "test": test}[verb](load_task(path))


def train(task: Task) -> None:
    """`freeze` and `fit`, then `unfreeze` and `fit`; export the best by validation F1."""
    fastai.set_seed(task.seed)
    timer = Timer()
    learner = make_learner(task, timer)
    rates = slice(task.backbone_lr, task.head_lr)
    print(f"fastai: {len(task.train)} training images, {learner.dls.device}", flush=True)
    with learner.no_bar():
        if task.frozen_epochs:
            learner.freeze()
            learner.fit(task.frozen_epochs, rates)
        if task.unfrozen_epochs:
            learner.unfreeze()
            learner.fit(task.unfrozen_epochs, rates)
    learner.remove_cb(timer)
    learner.export(task.checkpoint)
    run_files.write_log(task.log, timer.history)


def test(task: Task) -> None:
    """Predict the test images by the exported learner."""
    learner = fastai.load_learner(task.checkpoint, cpu=not torch.cuda.is_available())
    print(f"fastai: {len(task.test)} test images, {learner.dls.device}", flush=True)
    with learner.no_bar():
        probabilities, _ = learner.get_preds(dl=learner.dls.test_dl([Path(path) for path in task.test]))
    np.save(task.probabilities, probabilities.numpy())


def make_learner(task: Task, timer: Timer) -> Any:
    model, mean, std = make_network(task)
    images = [Path(path) for path in task.train + task.val]
    read = partial(read_targets, num_classes=task.num_classes)
    block = fastai.DataBlock(
        blocks=[fastai.ImageBlock, fastai.MultiCategoryBlock(encoded=True, vocab=list(range(task.num_classes)))],
        splitter=fastai.IndexSplitter(range(len(task.train), len(images))),
        get_y=read,
        item_tfms=[fastai.RandomResizedCrop(task.image_size, min_scale=task.crop_scale_min)],
        batch_tfms=[fastai.Flip(), fastai.Normalize.from_stats(mean, std)],
    )
    pos_weight = count_pos_weight(torch.tensor([read(path) for path in task.train]))
    dls = block.dataloaders(images, bs=task.batch_size, num_workers=0)
    best = fastai.SaveModelCallback(monitor="f1_score", fname="best", reset_on_fit=False)
    return fastai.Learner(
        dls,
        model,
        fastai.BCEWithLogitsLossFlat(pos_weight=pos_weight.to(dls.device), flatten=False),
        splitter=split_parameters,
        metrics=fastai.F1ScoreMulti(average="weighted"),
        cbs=[best, timer],
        path=task.folder,
    )


def split_parameters(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """The groups that `freeze` and the rates tell apart: the backbone, the head."""
    return [fastai.params(part) for part in model]


class Timer(fastai.Callback):
    """Seconds of each epoch's training pass."""

    learn: Any

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def before_train(self) -> None:
        self.start = time.perf_counter()

    def after_train(self) -> None:
        frozen = self.learn.opt.frozen_idx > 0
        seconds = time.perf_counter() - self.start
        self.history.append({"epoch": len(self.history) + 1, "frozen": frozen, "seconds": seconds})


if __name__ == "__main__":
    main(sys.argv[1:])
