"""Seconds of one training step: the plain way against this repository's, with the backbone frozen and not.

    python benchmarks/training_step.py [MODEL_NAME ...]    # names of models_factory.py

Both ways: the same network with random weights, forward, BCE with logits, backward, Adam step. Plain gets float32
NCHW images that were normalised before, and freezes by requires_grad_(False) alone: the backbone stays in train().
Ours gets uint8 images, normalises them itself, works in channels_last and has its frozen backbone in eval(); with
MIXED_PRECISION = "bf16" in the rows that say so. The process keeps the memory it frees, for both ways, since glibc
cannot be told to go back; benchmarks/peers measures what that gains.
The two ways take turns; a figure is the median over rounds, a ratio the median of each round's ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import copy

import torch
from torch import nn

import models_factory
import utils
from benchmarks.turns import HEADER, Way, measure_in_turns, print_row
from models import devices

MODEL_NAMES = ["resnet18", "efficientnet_lite0"]
BATCH_SIZE = 8
IMAGE_SIZE = 224
NUM_CLASSES = 80
ROUNDS = 5  # and one more before, in which memory is allocated
DEVICE = "auto"


def main(argv: list[str]) -> None:
    utils.keep_freed_memory()
    device = devices.choose_device(DEVICE)
    print(f"{device}, {torch.get_num_threads()} threads, batches of {BATCH_SIZE}, {ROUNDS} rounds")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None  # a GPU works on after the call returns
    print(f"\n{'seconds/step':32}{HEADER}")
    for name in argv or MODEL_NAMES:
        for frozen, precision in ((True, "off"), (False, "off"), (False, "bf16")):
            plain, ours = make_steps(name, frozen, device, precision)
            title = f"{name}, {'frozen' if frozen else 'unfrozen'}{', bf16' if precision == 'bf16' else ''}"
            print_row(title, measure_in_turns(plain, ours, ROUNDS, wait))


def make_steps(name: str, frozen: bool, device: torch.device, precision: str) -> tuple[Way, Way]:
    """(a plain step, our step) of two copies of one network on the same images."""
    torch.manual_seed(0)
    model = models_factory.make_model(name, NUM_CLASSES, head="linear_bn", weights=None, image_size=IMAGE_SIZE)
    model.to(device).train()
    images = torch.randint(0, 256, (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device=device)
    targets = (torch.rand(BATCH_SIZE, NUM_CLASSES, device=device) < 0.05).float()

    backbone, head = copy.deepcopy(model.backbone), copy.deepcopy(model.head)
    backbone.requires_grad_(not frozen)
    plain = make_step(nn.Sequential(backbone, head), (images.float() - model.mean) / model.std, targets)

    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's annotations
    model.freeze_backbone(frozen)
    return plain, make_step(model, images, targets, precision)


def make_step(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, precision: str = "off") -> Way:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    autocast, _ = devices.make_autocast(precision, images.device)
    criterion = nn.BCEWithLogitsLoss()

    def step() -> None:
        with autocast():
            logits = model(images)
        loss = criterion(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    utils.run_script(main)
