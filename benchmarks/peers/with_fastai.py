"""The same task with fastai (https://docs.fast.ai), as its tutorials write it.

    python -m benchmarks.peers.with_fastai train|test TASK.json

Left as fastai has it: a frozen backbone's BatchNorm trains on (so gradients go all the way), weight decay, the middle
of the validation and test images only, a fixed threshold of 0.5 (there is no tuning).

With minutes, as chapter 6 of its book (https://github.com/fastai/fastbook) trains on several labels an image: crops of
at least 35 % of the area, vision_learner with a network of timm and fastai's own head, fine_tune at 3e-3, whose one
cycles have to know their length (pace.py). A part of an epoch is fastai's PartialDL, an epoch on some of the images.
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

from benchmarks.peers import pace
from benchmarks.peers.pace import Pace
from benchmarks.peers.plain import count_pos_weight
from benchmarks.peers.task import Task, load_task, make_network, make_timm_network, read_targets
from trainer import run_files


def main(argv: list[str]) -> None:
    verb, path = argv
    {"train": train, "test": test}[verb](load_task(path))


def train(task: Task) -> None:
    """Train by the epochs of the task or for its minutes, and export."""
    if task.minutes:
        train_for_minutes(task)
    else:
        train_epochs(task)


def train_epochs(task: Task) -> None:
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


def train_for_minutes(task: Task) -> None:
    """`fine_tune` with one frozen epoch, its default; export."""
    found = measure_pace(task)
    length = pace.plan_fine_tuning(60 * task.minutes, found, len(task.train), len(task.val), task.batch_size)
    fastai.set_seed(task.seed)
    learner = make_vision_learner(task, length.images)
    print(f"fastai: 1 + {length.epochs} epochs of {length.images} training images", flush=True)
    timer = Timer()
    with learner.no_bar():
        learner.fine_tune(length.epochs, base_lr=3e-3, cbs=timer)
    learner.export(task.checkpoint)
    images = len(learner.dls.train) * task.batch_size  # whole batches only
    run_files.write_log(task.log, [row | {"images": images} for row in timer.history])


def measure_pace(task: Task) -> Pace:
    """Seconds an image, by a few steps of another learner and a few predictions."""
    learner = make_vision_learner(task, len(task.train))
    seconds = []
    with learner.no_bar(), learner.no_logging():
        for change in (learner.freeze, learner.unfreeze):
            change()
            timer = StepTimer()
            learner.fit(pace.NUM_STEPS + 1, cbs=timer)
            seconds.append((timer.ends[-1] - timer.ends[0]) / (len(timer.ends) - 1) / task.batch_size)
        paths = [Path(path) for path in task.val[: pace.NUM_PREDICTED]]
        start = time.perf_counter()
        learner.get_preds(dl=learner.dls.test_dl(paths))
    frozen, unfrozen = seconds
    return Pace(unfrozen=unfrozen, validation=(time.perf_counter() - start) / len(paths), frozen=frozen)


def test(task: Task) -> None:
    """Predict the test images by the exported learner; with minutes also the validation images."""
    learner = fastai.load_learner(task.checkpoint, cpu=not torch.cuda.is_available())
    print(f"fastai: {len(task.test)} test images, {learner.dls.device}", flush=True)
    wanted = [(task.test, task.probabilities)]
    if task.minutes:
        wanted.append((task.val, task.val_probabilities))
    for images, file in wanted:
        with learner.no_bar():
            probabilities, _ = learner.get_preds(dl=learner.dls.test_dl([Path(path) for path in images]))
        np.save(file, probabilities.numpy())


def make_learner(task: Task, timer: Timer) -> Any:
    model, mean, std = make_network(task)
    crop = fastai.RandomResizedCrop(task.image_size, min_scale=task.crop_scale_min)
    block = make_block(task, crop, [fastai.Flip(), fastai.Normalize.from_stats(mean, std)])
    targets = torch.tensor([read_targets(path, task.num_classes) for path in task.train])
    pos_weight = count_pos_weight(targets)
    dls = block.dataloaders(list_images(task), bs=task.batch_size, num_workers=0)
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


def make_vision_learner(task: Task, num_images: int) -> Any:
    """With the network as timm makes it and fastai's head; an epoch is on `num_images` random training images."""
    network = make_timm_network(task)
    weights = Path(task.folder) / "network.pth"
    torch.save(network.state, weights)
    crop = fastai.RandomResizedCrop(task.image_size, min_scale=0.35)
    block = make_block(task, crop, [fastai.Normalize.from_stats(network.mean, network.std)])
    dls = block.datasets(list_images(task)).partial_dataloaders(
        num_images, bs=task.batch_size, num_workers=0, after_item=block.item_tfms, after_batch=block.batch_tfms
    )
    return fastai.vision_learner(
        dls,
        network.name,
        n_out=task.num_classes,
        pretrained=network.is_pretrained,
        metrics=fastai.F1ScoreMulti(average="weighted"),
        path=task.folder,
        pretrained_cfg_overlay={"file": str(weights)},  # in place of a download
    )


def make_block(task: Task, crop: Any, batch_transforms: list[Any]) -> Any:
    """What reads the images of list_images() and their targets."""
    num_train, num_val = len(task.train), len(task.val)
    return fastai.DataBlock(
        blocks=[fastai.ImageBlock, fastai.MultiCategoryBlock(encoded=True, vocab=list(range(task.num_classes)))],
        splitter=fastai.IndexSplitter(range(num_train, num_train + num_val)),
        get_y=partial(read_targets, num_classes=task.num_classes),
        item_tfms=[crop],
        batch_tfms=batch_transforms,
    )


def list_images(task: Task) -> list[Path]:
    return [Path(path) for path in task.train + task.val]


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


class StepTimer(fastai.Callback):
    """When each training step ended; ends the training after a few."""

    learn: Any

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_batch(self) -> None:
        if self.learn.training:
            self.ends.append(time.perf_counter())
            if len(self.ends) > pace.NUM_STEPS:
                raise fastai.CancelFitException


if __name__ == "__main__":
    main(sys.argv[1:])
