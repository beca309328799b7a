"""CPU seconds of testing.py on one picture, imports included, against another checkout of this repository.

    git worktree add /tmp/before COMMIT
    python benchmarks/start_up.py /tmp/before

User and system seconds of whole processes, medians of ROUNDS in which both checkouts and `import torch`, less than
which none can take, have their turns. One round more before fills the caches of files and of compiled Python. The
networks have random weights and the picture is noise: neither changes what is imported and made.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os
import statistics
import tempfile

import numpy as np
from PIL import Image

import models_factory
import utils
from benchmarks.runs import REPOSITORY, Process, run_process
from models import checkpoints
from utils import InputError

NETWORKS = ("efficientnet_lite0", "timm/vit_tiny_patch16_224", "resnet18")
ROUNDS = 7


def main(argv: list[str]) -> None:
    if not argv or not (Path(argv[0]) / "testing.py").is_file():
        raise InputError("name another checkout of this repository: python benchmarks/start_up.py /tmp/before")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else whatever has no compiled file is compiled in every process
    checkouts = {"before": Path(argv[0]).resolve(), "here": REPOSITORY}
    print(
        f"medians of {ROUNDS} rounds, seconds: CPU (wall)\n{'':28}{'import torch':>14}{'before':>14}{'here':>14}  ratio"
    )
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as temporary:
            arguments = write_inputs(Path(temporary), network)
            commands = {"import torch": ["-c", "import torch; print()"]}
            commands |= {name: [str(checkout / "testing.py"), *arguments] for name, checkout in checkouts.items()}
            print_row(network, measure_in_turns(commands))


def write_inputs(folder: Path, network: str) -> list[str]:
    """Write a checkpoint of `network` and a picture. Returns the arguments with which testing.py predicts it."""
    model = models_factory.make_model(network, 18)
    values = {"model_name": network, "head": "linear_bn", "image_size": 224, "resize_rule": "squash"}
    classes = [str(i) for i in range(18)]
    checkpoints.save(folder / "random.pt", {"model_state": model.state_dict(), "classes": classes} | values)
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.jpg")
    return [f"--MODEL_PATH={folder}/random.pt", f"--TEST_IMAGES_DIR={folder}/noise.jpg", f"--LOCAL_ROOT={folder}"]


def measure_in_turns(commands: dict[str, list[str]]) -> dict[str, list[Process]]:
    """What each command took in each round; each round begins with another."""
    taken: dict[str, list[Process]] = {name: [] for name in commands}
    names = list(commands)
    for i in range(ROUNDS + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            taken[name].append(run_process(*commands[name]))
    return {name: processes[1:] for name, processes in taken.items()}


def print_row(network: str, taken: dict[str, list[Process]]) -> None:
    cpu = {name: statistics.median(process.cpu_seconds for process in rows) for name, rows in taken.items()}
    wall = {name: statistics.median(process.seconds for process in rows) for name, rows in taken.items()}
    cells = [f"{f'{cpu[name]:.2f} ({wall[name]:.2f})':>14}" for name in taken]
    ratio, share = cpu["here"] / cpu["before"], cpu["import torch"] / cpu["here"]
    print(f"{network:28}{''.join(cells)}{ratio:7.2f}  of which `import torch` {share:.0%}", flush=True)


if __name__ == "__main__":
    utils.run_script(main)
