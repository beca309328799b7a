"""Milliseconds an image of exported files, each in its own engine, against their checkpoint in PyTorch.

    python benchmarks/exported_files.py CHECKPOINT FILE [FILE ...]

From the pixels of resized images to probabilities, in batches of 1 and of 64 images. All take turns, and each round
begins with another; a figure is the median over rounds, a ratio the median of each round's ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import time

import torch

import predictor
import utils
from evaluation.export_parity import measure_size

BATCH_SIZES = (1, 64)
ROUNDS = 5  # and one more before, which is not counted
IMAGES_A_TURN = 64  # also in batches of 1


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise utils.InputError("name files: python benchmarks/exported_files.py CHECKPOINT FILE [FILE ...]")
    utils.keep_freed_memory()
    models = {path: predictor.load(path, "cpu") for path in argv}
    size = next(iter(models.values())).image_size
    images = torch.randint(0, 256, (IMAGES_A_TURN, 3, *size), dtype=torch.uint8, generator=torch.Generator())
    print(f"{size} px, {torch.get_num_threads()} threads, {ROUNDS} rounds; ms an image, and times as quick as PyTorch")
    print(f"{'':48}{'MB':>8}" + "".join(f"{f'batch {number}':>12}{'ratio':>8}" for number in BATCH_SIZES))
    columns = [measure_in_turns(models, images, number) for number in BATCH_SIZES]
    for path in argv:
        cells = [f"{Path(path).name[-46:]:48}{measure_size(Path(path)) / 1e6:8.1f}"]
        for seconds in columns:
            ratios = [plain / ours for plain, ours in zip(seconds[argv[0]], seconds[path], strict=True)]
            milliseconds = 1000 * statistics.median(seconds[path]) / IMAGES_A_TURN
            cells.append(f"{milliseconds:12.2f}{statistics.median(ratios):8.2f}")
        print("".join(cells))


def measure_in_turns(
    models: dict[str, predictor.Predictor], images: torch.Tensor, batch_size: int
) -> dict[str, list[float]]:
    """Seconds that each model takes for all `images`, in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for i in range(ROUNDS + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            for batch in images.split(batch_size):
                models[name].compute(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    utils.run_script(main)
