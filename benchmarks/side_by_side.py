"""Training steps a second of one process alone and of two side by side, with and without models/shared_cores.py.

    python benchmarks/side_by_side.py [MODEL_NAME]    # a name of models_factory.py

Two processes on the same cores have half of them each. They should take as many steps together as one takes alone. The
two ways take turns; figures are medians over rounds, ratios medians of each round's ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import subprocess
import time
from contextlib import nullcontext

import torch

import utils
from benchmarks.training_step import make_step
from models.shared_cores import SECONDS_BETWEEN_LOOKS, share_cores
from models_factory import make_model

MODEL_NAME = "efficientnet_lite0"
BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = 16, 96, 18
SECONDS = 6.0  # of one measurement
ROUNDS = 5
WAYS = ("spinning", "sharing")  # torch as it comes; within share_cores()


def main(argv: list[str]) -> None:
    if argv[:1] == ["--child"]:
        take_steps(argv[1], argv[2] == "sharing")
        return
    name = argv[0] if argv else MODEL_NAME
    print(f"{name}, {torch.get_num_threads()} threads a process, {ROUNDS} rounds of {SECONDS:g} s")
    print(f"{'steps a second':16}{'one alone':>12}{'two together':>14}{'two / one':>11}")
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for way in WAYS:
            for num_processes in (1, 2):
                rates.setdefault((way, num_processes), []).append(measure(name, way, num_processes))
    for way in WAYS:
        one, two = rates[way, 1], rates[way, 2]
        print(f"{way:16}{statistics.median(one):12.2f}{statistics.median(two):14.2f}{divide(two, one):11.2f}")
    for title, num_processes in (("one alone", 1), ("two together", 2)):
        ratio = divide(rates["sharing", num_processes], rates["spinning", num_processes])
        print(f"{title}: sharing / spinning {ratio:.2f}")


def divide(dividends: list[float], divisors: list[float]) -> float:
    """The median of each round's ratio."""
    return statistics.median(a / b for a, b in zip(dividends, divisors, strict=True))


def measure(name: str, way: str, num_processes: int) -> float:
    """Steps a second of `num_processes` processes together."""
    command = [sys.executable, __file__, "--child", name, way]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(num_processes)]
    for child in children:  # all are ready before the first one starts
        assert child.stdout
        child.stdout.readline()
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    return sum(float(child.communicate()[0]) for child in children)


def take_steps(name: str, shares: bool) -> None:
    """One process: get ready, wait for a line on stdin, take steps for SECONDS, print how many there were a second."""
    torch.manual_seed(0)
    model = make_model(name, NUM_CLASSES, head="linear_bn", weights=None, image_size=IMAGE_SIZE).train()
    images = torch.randint(0, 256, (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    step = make_step(model, images, (torch.rand(BATCH_SIZE, NUM_CLASSES) < 0.1).float())
    with share_cores() if shares else nullcontext():
        step()
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        while time.perf_counter() - start < 2 * SECONDS_BETWEEN_LOOKS:  # until the other process is noticed
            step()
        num_steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            step()
            num_steps += 1
        print(num_steps / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    utils.run_script(main)
