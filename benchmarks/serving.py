"""Requests a second and their latency, of one JPEG each, against the model alone; and batching on against off.

    apt-get install wrk
    python benchmarks/serving.py FOLDER CHECKPOINT [SECONDS]

FOLDER holds JPEG files, of which wrk posts NUM_IMAGES over and over from 1, 8 and 64 connections, SECONDS each (5).
The model alone is predictor.predict over the same files, in the same engine. All take turns; figures are medians over
rounds, ratios medians of each round's. Server, model and load generator share the machine's cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from typing import Any

import predictor
import utils
from dataset import files

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 256
ROUNDS = 3
CLIENTS = (1, 8, 64)
ENGINE = "onnxruntime"
BOUNDARY = "boundary-of-the-parts"

SCRIPT = """
local bodies, next_body = {}, 0
for _, path in ipairs({PATHS}) do
  local file = io.open(path, "rb")
  bodies[#bodies + 1] = '--BOUNDARY\\r\\nContent-Disposition: form-data; name="files"; filename="a.jpg"\\r\\n\\r\\n'
    .. file:read("*a") .. '\\r\\n--BOUNDARY--\\r\\n'
  file:close()
end
local headers = {["Content-Type"] = "multipart/form-data; boundary=BOUNDARY"}
function request()
  next_body = next_body % #bodies + 1
  return wrk.format("POST", "/predict", headers, bodies[next_body])
end
function done(summary, latency)
  local errors = summary.errors
  print(string.format('{"rate": %f, "p50": %f, "p99": %f, "failed": %d}',
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise utils.InputError("name a folder and a checkpoint: python benchmarks/serving.py FOLDER CHECKPOINT")
    if not shutil.which("wrk"):
        raise utils.InputError("wrk, which makes the load, is not installed: apt-get install wrk")
    seconds = int(argv[2]) if len(argv) > 2 else 5
    utils.keep_freed_memory()
    paths = [path for path in files.list_images(Path(argv[0])) if path.endswith(".jpg")][:NUM_IMAGES]
    with tempfile.TemporaryDirectory() as temporary:
        model = predictor.load(argv[1], "cpu", engine=ENGINE, cache_folder=temporary)
        script = Path(temporary) / "post.lua"
        quoted = ", ".join(json.dumps(path) for path in paths)
        script.write_text(SCRIPT.replace("PATHS", quoted).replace("BOUNDARY", BOUNDARY))
        servers = {name: Server(argv[1], temporary, size) for name, size in (("on", 32), ("off", 1))}
        try:
            alone, load = measure(model, paths, servers, script, seconds)
        finally:
            for server in servers.values():
                server.end()
    print(f"{os.cpu_count()} cores, {ENGINE}, {len(paths)} JPEG files, {ROUNDS} rounds of {seconds} s")
    print(f"model alone, files to labels: {statistics.median(alone):.1f} images/s")
    print(f"{'clients':>7}{'batching':>10}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'of alone':>10}{'on / off':>10}")
    for (clients, batching), results in load.items():
        rate, p50, p99 = (statistics.median(one[name] for one in results) for name in ("rate", "p50", "p99"))
        share = statistics.median(one["rate"] / rest for one, rest in zip(results, alone, strict=True))
        gains = [on["rate"] / off["rate"] for on, off in zip(load[clients, "on"], load[clients, "off"], strict=True)]
        gain = f"{statistics.median(gains):10.2f}" if batching == "on" else ""
        print(f"{clients:7}{batching:>10}{rate:12.1f}{p50:9.1f}{p99:9.1f}{share:10.2f}{gain}")


class Server:
    """serving.py in a process of its own, with batches up to `batch_size`."""

    def __init__(self, checkpoint: str, cache_folder: str, batch_size: int) -> None:
        values = {
            "MODEL_PATH": checkpoint,
            "CACHE_FOLDER": cache_folder,
            "DEVICE": "cpu",
            "SERVING_PORT": 0,
            "SERVING_ENGINE": ENGINE,
            "SERVING_BATCH_SIZE": batch_size,
        }
        command = [sys.executable, "serving.py", *(f"--{name}={value}" for name, value in values.items())]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        found = re.search(r"http://\S+:\d+", self.process.stdout.readline())
        if not found:
            raise utils.InputError("serving.py did not start")
        self.url = found[0]

    def load(self, script: Path, clients: int, seconds: int) -> dict[str, Any]:
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), self.url]
        result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        if result["failed"]:
            raise utils.InputError(f"{result['failed']} requests failed")
        return result

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def measure(
    model: predictor.Predictor, paths: list[str], servers: dict[str, Server], script: Path, seconds: int
) -> tuple[list[float], dict[tuple[int, str], list[dict[str, Any]]]]:
    """(images/s of the model alone in each round, {(clients, batching): each round's load}), after one uncounted."""
    alone: list[float] = []
    load: dict[tuple[int, str], list[dict[str, Any]]] = {(count, name): [] for count in CLIENTS for name in servers}
    for server in servers.values():
        server.load(script, max(CLIENTS), 1)
    sum(1 for _ in model.predict(paths))
    for _ in range(ROUNDS):
        start = time.perf_counter()
        sum(1 for _ in model.predict(paths))
        alone.append(len(paths) / (time.perf_counter() - start))
        for (clients, name), results in load.items():
            results.append(servers[name].load(script, clients, seconds))
    return alone, load


if __name__ == "__main__":
    utils.run_script(main)
