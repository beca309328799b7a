"""The time model_performance_table.py takes, against reading the same metadata from the checkpoints by torch.load.

    python benchmarks/table.py

The table should take at most 2 s; how much of that Python and `import pandas` take is timed too. All are whole
processes (interpreter and imports included), in turn, NUM_REPEATS times; medians. The checkpoints are written to a
temporary folder first (about 1 MB each).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os
import statistics
import subprocess
import tempfile
import time

import torch

import config
import overrides
from models import checkpoints

NUM_CHECKPOINTS = 200
NUM_REPEATS = 5
NUM_WEIGHTS = 250_000  # float32, 1 MB

REPOSITORY = Path(__file__).resolve().parents[1]

# what a table without sidecars would have to do; prints the seconds after `import torch`
READ_BY_TORCH = """
import sys, time
from pathlib import Path
import torch
start = time.perf_counter()
paths = sorted(Path(sys.argv[1]).glob("*/*.pt"))
for path in paths:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    (checkpoint["model_name"], checkpoint["best_f1"], checkpoint["metrics"], checkpoint["config"])
print(time.perf_counter() - start)
"""


def write_checkpoints(root: Path) -> None:
    constants = overrides.resolved(config)
    for number in range(NUM_CHECKPOINTS):
        f1 = 0.4 + 0.3 * number / NUM_CHECKPOINTS
        checkpoint = {
            "model_state": {"weight": torch.rand(NUM_WEIGHTS)},
            "model_name": config.MODEL_NAME,
            "head": config.HEAD,
            "classes": list(config.CLASSES),
            "image_size": config.IMAGE_SIZE,
            "resize_rule": config.RESIZE_RULE,
            "best_threshold": 0.4,
            "best_f1": f1,
            "epoch": 5,
            "metrics": dict.fromkeys(("mAP", "f1_weighted", "f1_micro", "f1_macro", "CF1", "OF1"), f1),
            "config": {**constants, "HEAD_BASE_LR": 1e-4 * (number + 1)},  # of another SEED it were the same row
            "dataset": {"fingerprint": "0123abcd", "num_train": 3600, "num_val": 400},
            "environment": {"torch": str(torch.__version__), "device": "cpu"},
            "seconds": 812.0,
            "saved": "2026-11-22T11:02:03",
        }
        checkpoints.save(root / config.MODEL_NAME / f"run_{number:03}.pt", checkpoint)


def time_process(*arguments: str) -> tuple[float, str]:
    """(seconds that `python arguments` took, what it printed)."""
    environment = {**os.environ, "COLUMNS": "120"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - start, done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder))
        table_seconds, pandas_seconds, torch_seconds, reading_seconds = [], [], [], []
        for _ in range(NUM_REPEATS):
            seconds, text = time_process("model_performance_table.py", "--CHECKPOINTS_ROOT", folder)
            assert f"{NUM_CHECKPOINTS} runs" in text, text
            table_seconds.append(seconds)
            pandas_seconds.append(time_process("-c", "import pandas")[0])
            seconds, text = time_process("-c", READ_BY_TORCH, folder)
            torch_seconds.append(seconds)
            reading_seconds.append(float(text))
    seconds = (table_seconds, pandas_seconds, torch_seconds, reading_seconds)
    table, by_pandas, by_torch, reading = map(statistics.median, seconds)
    print(f"{NUM_CHECKPOINTS} checkpoints, medians of {NUM_REPEATS}")
    print(f"model_performance_table.py     {table:6.2f} s, of which {by_pandas:.2f} s are Python and `import pandas`")
    print(f"torch.load of every checkpoint {by_torch:6.2f} s, of which {reading:.2f} s after `import torch`")
    print(f"ratio                          {by_torch / table:6.1f} x (whole processes)")


if __name__ == "__main__":
    main()
