"""Prediction in parts: images a second of one process on one core, and of several on a core each.

    python benchmarks/prediction_parts.py [MODEL_PATH] [--processes 2] [--images 8000] [--rounds 5]

Without MODEL_PATH it is a resnet18 of random weights at 64 px. The images are drawn, and a list names them again and
again. The ways take turns, each in a new folder; seconds are from the start to the end of the last process, which is
idle for up to a part; all have loaded the model before. Figures are medians over rounds. Where two processes take half
the time of one, their efficiency is 100 %. The last way is for comparison: one process that may use as many cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch
from PIL import Image

import predictor
import utils
from dataset import image_parts
from evaluation.prediction_parts import PartsJob
from models import checkpoints
from models.shared_cores import share_cores
from models_factory import make_model

NUM_PARTS = 40
NUM_FILES, SIDES = 200, (256, 192)
BATCH_SIZE = 64


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--child"]:
        predict(Path(arguments[1]), Path(arguments[2]), Path(arguments[3]), int(arguments[4]), arguments[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if chosen.processes > len(cores):
        parser.error(f"{chosen.processes} processes need as many cores, and there are {len(cores)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = chosen.model or make_random_model(folder)
        listed = list_pictures(folder, chosen.images)
        ways = {
            "1 process on 1 core": [[cores[0]]],
            f"{chosen.processes} processes on 1 core each": [[core] for core in cores[: chosen.processes]],
            f"1 process on {chosen.processes} cores": [cores[: chosen.processes]],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(chosen.rounds + 1):  # the first one is not counted
            names = list(ways)
            for way in names[number % 3 :] + names[: number % 3]:
                seconds[way].append(measure(model, listed, folder / "out", ways[way], chosen.images // NUM_PARTS))
        print(f"{model.name}, {chosen.images:,} images in {NUM_PARTS} parts, {chosen.rounds} rounds")
        one, several, _ = (values[1:] for values in seconds.values())
        for way, values in seconds.items():
            print(f"{way:32}{chosen.images / statistics.median(values[1:]):8.1f} images/s")
        shares = [a / b / chosen.processes for a, b in zip(one, several, strict=True)]
        print(
            f"efficiency {statistics.median(shares):.1%} (of rounds: {', '.join(f'{share:.1%}' for share in shares)})"
        )


def make_random_model(folder: Path) -> Path:
    torch.manual_seed(0)
    model = make_model("resnet18", 18, weights=None, image_size=64)
    content = {"model_state": model.state_dict(), "model_name": "resnet18", "head": "linear_bn", "image_size": 64}
    content |= {"classes": [f"class {number}" for number in range(18)], "resize_rule": "squash", "best_threshold": 0.5}
    checkpoints.save(folder / "resnet18.pt", {**content, "config": {}})
    return folder / "resnet18.pt"


def list_pictures(folder: Path, num_images: int) -> Path:
    """A list of `num_images` lines that names NUM_FILES drawn files in turn."""
    rng = np.random.default_rng(0)
    for number in range(NUM_FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize(SIDES, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    path = folder / "list.txt"
    path.write_text("".join(f"{number % NUM_FILES}.jpg\n" for number in range(num_images)))
    return path


def measure(model: Path, listed: Path, folder: Path, cores: list[list[int]], part_lines: int) -> float:
    """Seconds until as many processes as there are lists of `cores` have predicted all images into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    arguments = [sys.executable, __file__, "--child", str(model), str(listed), str(folder), str(part_lines)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([*arguments, *map(str, own)], **pipes) for own in cores]
    for child in children:
        assert child.stdout
        child.stdout.readline()
    start = time.time()
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    return max(float(child.communicate()[0].split()[-1]) for child in children) - start


def predict(path: Path, listed: Path, folder: Path, part_lines: int, cores: list[str]) -> None:
    """One process: get ready on its cores, wait for a line on stdin, predict, print the time."""
    os.sched_setaffinity(0, [int(core) for core in cores])
    torch.set_num_threads(len(cores))
    image_parts.PART_LINES = part_lines
    model = predictor.load(path, "cpu")
    next(model.predict([listed.parent / "0.jpg"]))
    job = PartsJob(folder, model, image_parts.find_images(listed), {}, BATCH_SIZE)
    print("ready", flush=True)
    sys.stdin.readline()
    with share_cores():
        job.run()
    print(time.time(), flush=True)


if __name__ == "__main__":
    utils.run_script(main)
