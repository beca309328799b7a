"""Images a second before the model: the plain way against this repository's, in one process on one thread.

    python benchmarks/input_pipeline.py [FOLDER]    # a folder of image files; without it, drawn JPEGs

Plain is PIL -> torchvision.transforms (v1) -> ToTensor -> Normalize -> default collate: float batches. Ours is
dataset_readers.py and dataset/augmentations.py: uint8 batches; the model
normalises them, and benchmarks/training_step.py counts that.
The two ways take turns; a figure is the median over rounds, a ratio the median of each round's ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import utils
from benchmarks.turns import HEADER, Way, measure_in_turns, print_row
from dataset import augmentations, decoding, files, loading
from dataset.table import Table

NUM_IMAGES = 96  # at most, of FOLDER
ROUNDS = 7  # and one more before, which fills the file cache
BATCH_SIZE = 32
IMAGE_SIZE = 224
CROP_SCALE_MIN = 0.5
DRAWN_WIDTH, DRAWN_HEIGHT = 640, 480  # pixels, as most of MS-COCO


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)  # what a data loader worker has
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(argv[0]) if argv else draw_images(Path(temporary), NUM_IMAGES)
        paths = files.list_images(folder)[:NUM_IMAGES]
        width, height = np.median([Image.open(path).size for path in paths], axis=0)
        size = statistics.median(Path(path).stat().st_size for path in paths)
        print(
            f"{len(paths)} images, median {width:.0f} x {height:.0f} pixels and {size / 1024:.0f} KiB; {ROUNDS} rounds"
        )
        print(f"\n{'images/s':32}{HEADER}")
        for stage, (plain, ours) in make_stages(paths).items():
            print_row(stage, measure_in_turns(plain, ours, ROUNDS), len(paths))


def draw_images(folder: Path, num_images: int) -> Path:
    """Fill `folder` with JPEGs of soft colours under fine noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    for i in range(num_images):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        soft = np.asarray(shapes.resize((DRAWN_WIDTH, DRAWN_HEIGHT), Image.Resampling.BICUBIC))
        noisy = np.clip(soft + rng.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04}.jpg", quality=90)
    return folder


class PlainDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What most tutorials write."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), torch.zeros(80)


def make_stages(paths: list[str]) -> dict[str, tuple[Way, Way]]:
    """What is measured: name -> (the plain way, ours)."""
    to_normal = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = transforms.RandomResizedCrop(IMAGE_SIZE, scale=(CROP_SCALE_MIN, 1.0))
    plain_train = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *to_normal])
    plain_eval = transforms.Compose([transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)), *to_normal])
    train = augmentations.make_train_transform(augmentations.Augmentation("crop_flip", CROP_SCALE_MIN), IMAGE_SIZE)
    squash = augmentations.make_eval_transform("squash", IMAGE_SIZE)
    classes = tuple(map(str, range(80)))
    table = Table(paths, np.zeros((len(paths), len(classes)), np.int8), classes)

    def decode_plain(path: str) -> Image.Image:
        return Image.open(path).convert("RGB")

    def decode(path: str) -> torch.Tensor:
        return torch.from_numpy(decoding.decode_image(path)).permute(2, 0, 1)

    def over(items: Iterable[Any], function: Callable[[Any], object]) -> Way:
        return lambda: deque(map(function, items), maxlen=0)  # keeps no result: memory is reused, as in training

    return {
        "decode": (over(paths, decode_plain), over(paths, decode)),
        "decode, train transform": (
            over(paths, lambda path: plain_train(decode_plain(path))),
            over(paths, lambda path: train(decode(path))),
        ),
        "decode, eval transform": (
            over(paths, lambda path: plain_eval(decode_plain(path))),
            over(paths, lambda path: squash(decode(path))),
        ),
        "training loader": (
            over(DataLoader(PlainDataset(paths, plain_train), BATCH_SIZE, shuffle=True), len),
            over(loading.make_loader(table, train, BATCH_SIZE, shuffle=True), len),
        ),
        "validation loader": (
            over(DataLoader(PlainDataset(paths, plain_eval), BATCH_SIZE), len),
            over(loading.make_loader(table, squash, BATCH_SIZE), len),
        ),
    }


if __name__ == "__main__":
    utils.run_script(main)
