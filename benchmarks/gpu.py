"""Checks and measures everything that runs on a GPU, in some minutes: one command wherever there is one.

    python benchmarks/gpu.py [--small] [--device cuda] [--folder FOLDER] [--only STAGE,STAGE] [--without STAGE,STAGE]

It draws its own pictures, and runs stage after stage (STAGES, below). Each prints a line for each thing that it checked
or measured; FOLDER/gpu.json has them all after each stage, so that a run that is cut short keeps what it has. A stage
that fails is a line, too, and the next one goes on. The exit status is 1 if anything did not hold. With --small
everything is small enough for a CPU: the numbers then say nothing, but that all of it works.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import csv
import itertools
import json
import os
import signal
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from torch import Tensor, nn

import config
import models_factory
import overrides
import predictor
import training
import utils
from benchmarks.runs import REPOSITORY
from dataset.batches import Batch, as_float_targets
from dataset.files import list_images
from dataset.table import Table
from export import engines
from models import checkpoints, devices
from trainer import build
from trainer.build import Trainer
from utils import InputError

NUM_CLASSES = 8
COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "orange", "white")  # of the shape of each class


class Size(NamedTuple):
    """How much of everything."""

    images: int  # training images; a tenth as many test images
    picture: tuple[int, int]  # their width and height, pixels
    image_size: int  # of the networks, pixels
    networks: tuple[str, ...]
    batch_size: int  # of a training step
    test_batch_size: int
    steps: int  # that a rate is measured over
    epochs: int  # of a run of training.py


FULL = Size(20_000, (480, 360), 224, ("resnet50", "timm/vit_base_patch16_224", "efficientnet_lite0"), 128, 256, 30, 2)
SMALL = Size(32, (64, 48), 32, ("mobilenet_v2",), 8, 8, 1, 2)


class Line(NamedTuple):
    """One thing that was checked or measured."""

    what: str
    value: str
    holds: bool | None = None  # None: a measurement, which no limit is set for


class Place:
    """What a stage needs: where it runs, and how much it does."""

    def __init__(self, device: torch.device, folder: Path, size: Size) -> None:
        self.device, self.folder, self.size = device, folder, size
        self.data = folder / "data"

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def name_constants(self, name: str) -> list[str]:
        """The constants of a run on the drawn pictures that writes into the folder `name`."""
        values = {
            "DATASET_FOLDER": self.data,
            "LOCAL_ROOT": self.folder / name,
            "CACHE_FOLDER": self.folder / name / "cache",
            "DEVICE": self.device.type,
            "PRETRAINED_WEIGHTS": None,
            "IMAGE_SIZE": self.size.image_size,
            "TRAIN_BATCH_SIZE": self.size.batch_size,
            "TEST_BATCH_SIZE": self.size.test_batch_size,
            "NUM_EPOCHS": self.size.epochs,
            "MODEL_NAME": self.size.networks[0],
            "HEAD": "linear",
            "FREEZE_BACKBONE": False,
            "SCHEDULE": "cosine",
            "BACKBONE_BASE_LR": 1e-3,
        }
        return [f"--{key}={value}" for key, value in values.items()]

    def run(self, script: str, constants: Sequence[str]) -> str:
        """Run a script of this project, and return what it printed. Raises InputError if it fails."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, *constants], cwd=REPOSITORY, capture_output=True, text=True
        )
        if done.returncode:
            raise InputError(f"{script} ended with status {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
        return done.stdout

    def make_trainer(self, line: str = "") -> Trainer:
        """A trainer on the device, as training.py makes it, of the constants of `name_constants` and `line`."""
        overrides.apply([*self.name_constants("unused"), *line.split()], config)
        torch.manual_seed(0)
        targets = np.random.default_rng(0).integers(0, 2, (self.size.batch_size, NUM_CLASSES)).astype(np.int8)
        names = tuple(f"class {label}" for label in range(NUM_CLASSES))
        trainer = build.make_trainer(Table([f"{row}.jpg" for row in range(len(targets))], targets, names), self.device)
        trainer.model.train()
        return trainer

    def make_batch(self) -> Batch:
        """A batch of random pictures on the device."""
        rng, side = np.random.default_rng(1), self.size.image_size
        images = torch.from_numpy(rng.integers(0, 256, (self.size.batch_size, 3, side, side), dtype=np.uint8))
        targets = as_float_targets(rng.integers(0, 2, (self.size.batch_size, NUM_CLASSES)).astype(np.int8))
        return Batch(images, targets, torch.ones(len(images))).to(self.device)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Checks and measures what runs on a GPU.")
    parser.add_argument("--small", action="store_true", help="small enough for a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path("gpu_benchmark"))
    parser.add_argument("--only", default=",".join(STAGES))
    parser.add_argument("--without", default="")
    options = parser.parse_args(argv)
    names = [name for name in options.only.split(",") if name not in options.without.split(",")]
    if unknown := {*names, *filter(None, options.without.split(","))} - STAGES.keys():
        raise InputError(f"there is no stage {', '.join(sorted(unknown))}; known: {', '.join(STAGES)}")
    place = Place(devices.choose_device(options.device), options.folder.absolute(), SMALL if options.small else FULL)
    place.folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"place": describe_place(place.device), "small": options.small, "stages": {}}
    utils.say(report["place"])
    for name in names:
        start = time.perf_counter()
        lines: list[Line] = []
        try:
            for line in STAGES[name](place):
                lines.append(line)
                verdict = "" if line.holds is None else "holds  " if line.holds else "FAILS  "
                utils.say(f"  {name}: {verdict}{line.what}: {line.value}")
        except Exception as error:  # whatever it is: the other stages are worth their time all the same
            lines.append(Line("the stage ended", traceback.format_exc(), holds=False))
            utils.say(f"  {name}: FAILS  the stage ended: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - start
        utils.say(f"{name}: {seconds:.0f} s")
        report["stages"][name] = {"seconds": round(seconds, 1), "lines": [line._asdict() for line in lines]}
        (place.folder / "gpu.json").write_text(json.dumps(report, indent=1))
    failed = [
        f"{name}, {line['what']}"
        for name, stage in report["stages"].items()
        for line in stage["lines"]
        if line["holds"] is False
    ]
    utils.say(f"saved: {place.folder / 'gpu.json'}")
    if failed:
        raise InputError(f"{len(failed)} did not hold: {'; '.join(failed)}")


def describe_place(device: torch.device) -> str:
    """The card or the processor, the number of cores and the versions, in a line."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    return f"{card}, {cores} cores, {versions}, {time.strftime('%Y-%m-%d')}"


# ---- the pictures ----


def draw(place: Place) -> Iterator[Line]:
    """Draw the data set: each class is a shape of its colour on soft colours under fine noise."""
    start = time.perf_counter()
    num_test = max(place.size.images // 10, 16)
    for split, first, count in (("train", 0, place.size.images), ("test", place.size.images, num_test)):
        folders = place.data / "images" / f"{split}-resized", place.data / "labels" / split
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        draw_one = partial(draw_picture, size=place.size.picture, images=folders[0], labels=folders[1])
        with ProcessPoolExecutor() as pool:
            for _ in pool.map(draw_one, range(first, first + count), chunksize=64):
                pass
    names = [f"{colour} shape" for colour in COLOURS]
    (place.data / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    sizes = [path.stat().st_size for path in map(Path, list_images(place.data / "images" / "test-resized"))]
    yield Line(
        f"{place.size.images + num_test:,} JPEGs of {place.size.picture[0]} x {place.size.picture[1]} pixels, "
        f"median {statistics.median(sizes) / 1024:.0f} KiB",
        f"{time.perf_counter() - start:.0f} s",
    )


def draw_picture(number: int, size: tuple[int, int], images: Path, labels: Path) -> None:
    """Draw picture `number`, and write its labels: a class index a line."""
    rng = np.random.default_rng([7, number])
    coarse = Image.fromarray(rng.integers(60, 180, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 13, (size[1], size[0], 3), dtype=np.int16)
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    pen, present = ImageDraw.Draw(picture), np.flatnonzero(rng.random(NUM_CLASSES) < 0.25)
    for label in present.tolist():
        side = rng.uniform(0.15, 0.4) * size[1]
        left, top = rng.uniform(0, size[0] - side), rng.uniform(0, size[1] - side)
        shape = pen.ellipse if label % 2 else pen.rectangle
        shape((left, top, left + side, top + side), fill=COLOURS[label])
    picture.save(images / f"{number:06}.jpg", quality=90)
    (labels / f"{number:06}.cls").write_text("".join(f"{label}\n" for label in present))


def read_log(folder: Path) -> list[dict[str, float]]:
    """The numbers of each epoch of the run in `folder`."""
    (path,) = folder.glob("trained_models/*/*/log.csv")
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items() if is_number(value)} for row in csv.DictReader(file)]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- correctness ----


def check_precision(place: Place) -> Iterator[Line]:
    """bf16 and fp16 train as float32 does: the loss of each epoch is within a tenth."""
    logs = {}
    for precision in ("off", "bf16", "fp16"):
        place.run("training.py", [*place.name_constants(f"precision_{precision}"), f"--MIXED_PRECISION={precision}"])
        logs[precision] = read_log(place.folder / f"precision_{precision}")
    for precision, log in logs.items():
        losses = ", ".join(f"{row.get('train_loss', np.nan):.4f}" for row in log)  # none: all steps overflowed, in fp16
        pairs = zip(log, logs["off"], strict=True)
        drift = max(
            (abs(row["train_loss"] / same["train_loss"] - 1) for row, same in pairs if "train_loss" in row), default=0
        )
        text = f"loss {losses}; mAP {log[-1]['val_mAP']:.4f}; {log[-1]['images_per_second']:.0f} images/s"
        yield Line(f"training in {precision}", text, None if precision == "off" else drift < 0.1)


def check_steps(place: Place) -> Iterator[Line]:
    """A step never waits for the device, and one without a finite gradient leaves everything as it was."""
    for precision in ("off", "bf16", "fp16"):
        trainer = place.make_trainer(f"--MIXED_PRECISION={precision} --EMA_DECAY=0.99 --CLIP_GRADIENT_NORM=1.0")
        batch = place.make_batch()
        for step in range(3):
            training.take_step(trainer, trainer.model, batch, 1, step)
        with errors_at_waits(place.device):
            for step in range(3, 6):
                taken = training.take_step(trainer, trainer.model, batch, 1, step)
        yield Line(f"steps in {precision} that read nothing back", "3 steps", holds=True)
        before = copy_state(trainer)
        bad = batch._replace(
            images=batch.images.float().index_fill(0, torch.zeros(1, dtype=torch.long).to(place.device), torch.inf)
        )
        taken = training.take_step(trainer, trainer.model, bad, 1, 6)
        changed = [name for name, value in copy_state(trainer).items() if not torch.equal(value, before[name])]
        holds = not taken.is_finite and not changed
        yield Line(f"a step in {precision} that is not finite", f"{len(changed)} tensors changed", bool(holds))


@contextmanager
def errors_at_waits(device: torch.device) -> Iterator[None]:
    """Inside `with`, whatever lets the processor wait for a GPU is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def copy_state(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all that a step may change, but for the scaler."""
    parts: dict[str, nn.Module | None] = {"model": trainer.model, "average": trainer.average}
    state = {
        f"{n}.{key}": value.clone() for n, part in parts.items() if part for key, value in part.state_dict().items()
    }
    for index, values in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{key}": value.clone() for key, value in values.items()}
    return state


def check_memory(place: Place) -> Iterator[Line]:
    """Where the memory does not suffice, the step is computed in parts, and gives what it would have given."""
    if place.device.type != "cuda":
        yield Line("out of memory", "only on a GPU")
        return
    losses, sizes = [], []
    for share in (1.0, None):
        trainer, batch = place.make_trainer("--KEEP_BACKBONE_STATISTICS=True"), place.make_batch()
        torch.cuda.empty_cache()
        if share is None:  # a third of what the whole batch took at most
            share = torch.cuda.max_memory_allocated() / 3 / torch.cuda.get_device_properties(place.device).total_memory
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(share)
        losses.append(float(training.take_step(trainer, trainer.model, batch, 1, 0).loss))
        sizes.append(trainer.micro_batch_size)
        del trainer
    torch.cuda.set_per_process_memory_fraction(1.0)
    holds = sizes[0] == 0 < sizes[1] and abs(losses[0] - losses[1]) < 1e-2 * abs(losses[0])
    yield Line(
        "a step in a third of its memory",
        f"parts of {sizes[1]} images, loss {losses[1]:.5f} for {losses[0]:.5f}",
        holds,
    )


def check_resume(place: Place) -> Iterator[Line]:
    """A run that is killed and resumed ends as one that is not, but for the order in which a GPU adds up."""
    options = ["--MIXED_PRECISION=off", "--SAVE_EVERY_MINUTES=0.0001"]
    names = ("resume_whole", "resume_killed")
    place.run("training.py", [*place.name_constants(names[0]), *options])
    command = [sys.executable, "-W", "ignore", "training.py", *place.name_constants(names[1]), *options]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((place.folder / names[1]).glob("trained_models/*/*/last.pt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    printed = place.run("training.py", [*place.name_constants(names[1]), *options])
    logs = [read_log(place.folder / name) for name in names]
    drift = max(abs(a["train_loss"] - b["train_loss"]) for a, b in zip(*logs, strict=True))
    resumed = "going on" in printed or "resum" in printed
    limit = 0.02 if place.device.type == "cuda" else 1e-6
    yield Line(
        "killed and resumed",
        f"loss differs by {drift:.2g}, {'resumed' if resumed else 'began anew'}",
        resumed and drift <= limit,
    )


def find_checkpoint(place: Place) -> Path:
    """The checkpoint of the run in float32, which is trained first if that stage was left out."""
    path = place.folder / "precision_off" / "trained_models" / "best_model.pt"
    if not path.is_file():
        place.run("training.py", [*place.name_constants("precision_off"), "--MIXED_PRECISION=off"])
    return path


def check_devices(place: Place) -> Iterator[Line]:
    """A checkpoint that was trained here predicts on the CPU what it predicts here; exported files and maps, too."""
    path = find_checkpoint(place)
    images = list_images(place.data / "images" / "test-resized")[:64]
    results = {}
    for name in (str(place.device), "cpu"):
        model = predictor.load(path, name)
        results[name] = np.stack([record.probabilities for record in model.predict(images)])
    drift = np.abs(results[str(place.device)] - results["cpu"]).max()
    yield Line("a checkpoint here and on the CPU", f"probabilities differ by {drift:.1e}", bool(drift < 2e-2))
    constants = [*place.name_constants("precision_off"), f"--MODEL_PATH={path}"]
    place.run("export_onnx.py", [*constants, "--EXPORT_CHECK_IMAGES=16", "--EXPORT_FORMATS=torchscript"])
    ending = engines.PROGRAM_ENDINGS["torchscript"]
    (file,) = (place.folder / "precision_off" / "exported_models").glob(f"*{ending}")
    exported = np.stack([record.probabilities for record in predictor.load(file, str(place.device)).predict(images)])
    drift = np.abs(exported - results["cpu"]).max()
    yield Line("TorchScript here", f"probabilities differ by {drift:.1e}", bool(drift < 2e-2))
    place.run("class_activation_maps.py", [*constants, "--MAP_MAX_IMAGES=4"])
    yield Line("class activation maps", "4 images", holds=True)


def check_processes(place: Place) -> Iterator[Line]:
    """One process in a group of its own: the exchanges of several processes run, by NCCL on a GPU."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
    trainer, alone = place.make_trainer(), place.make_trainer()
    batch = place.make_batch()
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        ids = [place.device] if place.device.type == "cuda" else None
        network = DistributedDataParallel(trainer.model, device_ids=ids, gradient_as_bucket_view=True)
        losses = [float(training.take_step(trainer, network, batch, 1, step).loss) for step in range(3)]
    finally:
        dist.destroy_process_group()
    expected = [float(training.take_step(alone, alone.model, batch, 1, step).loss) for step in range(3)]
    drift = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    yield Line(f"three steps with {backend}", f"loss differs by {drift:.1e}", drift < 1e-2)


# ---- rates ----


def measure_rate(place: Place, work: Callable[[], object], num_images: int) -> float:
    """Images a second of `work`, which does `num_images`, over the steps of `place.size`, after three that warm up."""
    for _ in range(3):
        work()
    place.wait()
    start = time.perf_counter()
    for _ in range(place.size.steps):
        work()
    place.wait()
    return num_images * place.size.steps / (time.perf_counter() - start)


def measure_steps(place: Place, trainer: Trainer, batch: Batch) -> float:
    """Images a second of training steps on `batch`, which lies on the device."""
    steps = itertools.count()

    def take_step() -> None:
        training.take_step(trainer, trainer.model, batch, 1, next(steps))

    return measure_rate(place, take_step, len(batch.images))


def measure_networks(place: Place) -> Iterator[Line]:
    """Images a second of each network, with images on the device: predicting, and a training step."""
    size, is_on_gpu = place.size, place.device.type == "cuda"
    for name in size.networks:
        model = models_factory.make_model(name, NUM_CLASSES, head="linear", image_size=size.image_size)
        run = engines.make_torch(model, size.image_size, place.device)
        images = torch.randint(0, 256, (size.test_batch_size, 3, size.image_size, size.image_size), dtype=torch.uint8)
        predict = partial(run, images.to(place.device))
        for precision in ("off", "bf16"):
            autocast, _ = devices.make_autocast(precision, place.device)
            with autocast():
                rate = measure_rate(place, predict, len(images))
            yield Line(f"{name}, predicting, {precision}", f"{rate:,.0f} images/s")
        for compiled in (False, True) if is_on_gpu else (False,):  # it takes minutes on a CPU
            if is_on_gpu:
                torch.cuda.reset_peak_memory_stats()
            rate = measure_steps(
                place, place.make_trainer(f"--MODEL_NAME={name} --COMPILE={compiled}"), place.make_batch()
            )
            memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if is_on_gpu else ""
            yield Line(f"{name}, training step{', compiled' if compiled else ''}", f"{rate:,.0f} images/s{memory}")


def measure_runs(place: Place) -> Iterator[Line]:
    """Images a second of whole runs, from files: training, frozen features, testing; and how long the model waits."""
    for name in place.size.networks:
        folder = f"run_{checkpoints.name_model(name)}"
        constants = [*place.name_constants(folder), f"--MODEL_NAME={name}"]
        place.run("training.py", constants)
        row = read_log(place.folder / folder)[-1]
        text = f"{row['images_per_second']:,.0f} images/s, waiting {row['waiting_share']:.0%}"
        yield Line(f"{name}, training from files", text)
        printed = place.run("testing.py", [*constants, "--BOOTSTRAP_SAMPLES=0"])
        (rate,) = [line for line in printed.splitlines() if "images/s, from the first file" in line]
        yield Line(f"{name}, testing from files", rate.split(" images/s")[0] + " images/s")
    for views in (1, 0):
        folder = f"frozen_{views}"
        frozen = [
            "--FREEZE_BACKBONE=True",
            "--UNFREEZE_BACKBONE_EPOCH=0",
            f"--PRETRAINED_WEIGHTS={find_checkpoint(place)}",
        ]
        constants = [*place.name_constants(folder), *frozen]
        start = time.perf_counter()
        place.run("training.py", [*constants, f"--FROZEN_FEATURE_VIEWS={views}"])
        words = "features computed once" if views else "without a cache"
        yield Line(f"frozen run, {words}", f"{time.perf_counter() - start:.1f} s")


def profile_step(place: Place) -> Iterator[Line]:
    """Where a training step's time goes: the ten operations that take most."""
    from torch.profiler import ProfilerActivity, profile

    name = place.size.networks[0]
    trainer, batch = place.make_trainer(f"--MODEL_NAME={name}"), place.make_batch()
    for step in range(3):
        training.take_step(trainer, trainer.model, batch, 1, step)
    on_gpu = place.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        training.take_step(trainer, trainer.model, batch, 1, 3)
        place.wait()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows)
    for row in rows[:10]:
        yield Line(f"{name}: {row.key:.60}", f"{getattr(row, key) / total:.0%}, {row.count} times")


def compare_plain(place: Place) -> Iterator[Line]:
    """A training step here beside the usual one: float32 images, contiguous, a loss that is read in each step."""
    for name in place.size.networks:
        batch = place.make_batch()
        take_plain_step = make_plain_step(place, name, batch)
        trainer = place.make_trainer(f"--MODEL_NAME={name}")
        pairs = [
            (measure_rate(place, take_plain_step, len(batch.images)), measure_steps(place, trainer, batch))
            for _ in range(3)
        ]
        plain, ours = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        ratio = statistics.median(ours / plain for plain, ours in pairs)
        yield Line(f"{name}, a step here and the plain one", f"{ours:,.0f}, {plain:,.0f} images/s: {ratio:.2f} x")


def make_plain_step(place: Place, name: str, batch: Batch) -> Callable[[], None]:
    """The step of most published scripts, for the network `name`."""
    model = models_factory.make_model(name, NUM_CLASSES, head="linear", image_size=place.size.image_size)
    model.to(place.device)
    plain = nn.Sequential(model.backbone, model.head).train()
    optimizer, criterion = torch.optim.Adam(plain.parameters(), lr=1e-4), nn.BCEWithLogitsLoss()
    images = (batch.images.float() - model.mean) / model.std

    def take_step() -> None:
        optimizer.zero_grad()
        loss = criterion(plain(images), batch.targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return take_step


STAGES: dict[str, Callable[[Place], Iterator[Line]]] = {
    "draw": draw,
    "steps": check_steps,
    "memory": check_memory,
    "processes": check_processes,
    "precision": check_precision,
    "resume": check_resume,
    "devices": check_devices,
    "networks": measure_networks,
    "plain": compare_plain,
    "profile": profile_step,
    "runs": measure_runs,
}

if __name__ == "__main__":
    utils.run_script(main)
