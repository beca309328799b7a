"""Checks and measures everything that runs on a GPU, in nine minutes: one command wherever there is one.

    python benchmarks/gpu.py [--small] [--device cuda] [--folder FOLDER] [--minutes 9]
                             [--only STAGE,STAGE] [--without STAGE,STAGE]

It draws its own pictures, and runs stage after stage (STAGES, below). Each prints a line for each thing that it checked
or measured; FOLDER/gpu.json has them all after each stage, so that a run that is cut short keeps what it has. A stage
that fails is a line, too, and the next one goes on. After `--minutes` nothing more is begun, which is said: the last
stage, `compile`, takes some five by itself (`--only compile`). The exit status is 1 if anything did not hold.
With --small everything is small enough for a CPU: the numbers then say nothing, but that all of it works.
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
from torch._dynamo.utils import counters

import config
import models_factory
import overrides
import predictor
import training
import utils
from benchmarks.runs import REPOSITORY
from dataset import loading
from dataset.augmentations import Augmentation, apply_seeded, make_train_transform
from dataset.batches import Batch, Transform, as_float_targets
from dataset.decoding import decode_image
from dataset.files import list_images
from dataset.image_sizes import as_size
from dataset.table import Table
from export import engines
from models import backbones, checkpoints, compilation, devices
from models_factory import MultiLabelModel
from trainer import build, from_config, training_data
from trainer.build import Trainer
from trainer.step import TakenStep
from utils import InputError

NUM_CLASSES = 8
COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "orange", "white")  # of the shape of each class

# Images a second that timm's authors measured on an NVIDIA RTX 4090: automatic mixed precision, channels_last, batches
# of 512, torch 2.4 (infer_samples_per_sec in results/benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv of
# github.com/huggingface/pytorch-image-models). Another card is taken to be as many times as quick as its memory or its
# arithmetic is, whichever is less; the RTX 4090's are those of its data sheet.
PUBLISHED = {"resnet50": 5088, "timm/vit_base_patch16_224": 2843, "efficientnet_lite0": 9765}
RTX_4090_BYTES, RTX_4090_FLOPS = 1008e9, 165.2e12  # a second; bf16 with sums in float32

AUGMENTED = {
    "crop and mirror": Augmentation(),
    "all augmentations": Augmentation(
        policy="rand_augment", color_jitter=0.4, rotation_degrees=15, erasing_probability=0.25
    ),
}


class Size(NamedTuple):
    """How much of everything."""

    images: int  # training images; a tenth as many test images
    few: int  # of them, for runs that show that something holds
    picture: tuple[int, int]  # their width and height, pixels
    image_size: int  # of the networks, pixels
    networks: tuple[str, ...]
    batch_size: int  # of a training step
    test_batch_size: int
    steps: int  # that a rate is measured over
    epochs: int  # of a run of training.py


LEAST_STEPS = 50  # of a run, from which on losses in two precisions can be compared
# (AUGMENTATION_POLICY, PICTURES_ON) that loading is measured with
LOADING = (("none", "auto"), ("none", "gpu"), ("rand_augment", "cpu"), ("rand_augment", "auto"))

FULL = Size(20_000, 4_096, (480, 360), 224, tuple(PUBLISHED), 128, 256, 30, 2)
SMALL = Size(32, 32, (64, 48), 32, ("mobilenet_v2",), 8, 8, 1, 2)


class Line(NamedTuple):
    """One thing that was checked or measured."""

    what: str
    value: str
    holds: bool | None = None  # None: a measurement, which no limit is set for


class Place:
    """What a stage needs: where it runs, and how much it does."""

    def __init__(self, device: torch.device, folder: Path, size: Size) -> None:
        self.device, self.folder, self.size = device, folder, size
        self.data, self.few = folder / "data", folder / "few"

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def name_constants(self, name: str, data: Path | None = None) -> list[str]:
        """The constants of a run on the drawn pictures, or on the folder `data`, that writes into the folder `name`."""
        values = {
            "DATASET_FOLDER": data or self.data,
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


def take_step(trainer: Trainer, batch: Batch, step: int = 0, network: nn.Module | None = None) -> TakenStep:
    """A training step of one process, of the model unless a `network` around it is given."""
    return training.take_step(trainer, network or trainer.model, batch, 1, step, len(batch.images))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Checks and measures what runs on a GPU.")
    parser.add_argument("--small", action="store_true", help="small enough for a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path("gpu_benchmark"))
    parser.add_argument("--minutes", type=float, default=9.0)
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
    end = time.perf_counter() + options.minutes * 60
    for name in names:
        start = time.perf_counter()
        lines: list[Line] = []
        try:
            for line in STAGES[name](place) if start < end else ():
                lines.append(line)
                verdict = "" if line.holds is None else "holds  " if line.holds else "FAILS  "
                utils.say(f"  {name}: {verdict}{line.what}: {line.value}")
                if time.perf_counter() > end:
                    break
            if time.perf_counter() > end:
                lines.append(Line(f"{options.minutes:g} minutes are over", f"--only {name} measures the rest"))
                utils.say(f"  {name}: {': '.join(lines[-1][:2])}")
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
    names = "".join(f"{colour} shape\n" for colour in COLOURS)
    (place.data / "classes.txt").write_text(names)
    for path in ("images/train-resized", "labels/train", "images/test-resized", "labels/test"):
        (place.few / path).mkdir(parents=True, exist_ok=True)
        for file in sorted((place.data / path).iterdir())[: place.size.few]:
            (place.few / path / file.name).unlink(missing_ok=True)
            (place.few / path / file.name).hardlink_to(file)
    (place.few / "classes.txt").write_text(names)
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
    """bf16 and fp16 train as float32 does: the loss of each epoch is within a tenth. Of few steps it says nothing."""
    logs = {}
    for precision in ("off", "bf16", "fp16"):
        folder = f"precision_{precision}"
        place.run("training.py", [*place.name_constants(folder, place.few), f"--MIXED_PRECISION={precision}"])
        logs[precision] = read_log(place.folder / f"precision_{precision}")
    for precision, log in logs.items():
        losses = ", ".join(f"{row.get('train_loss', np.nan):.4f}" for row in log)  # none: all steps overflowed, in fp16
        pairs = zip(log, logs["off"], strict=True)
        drift = max(
            (abs(row["train_loss"] / same["train_loss"] - 1) for row, same in pairs if "train_loss" in row), default=0
        )
        num_steps, num_overflowed = (sum(row[key] for row in log) for key in ("steps", "steps_overflowed"))
        text = f"loss {losses}; mAP {log[-1]['val_mAP']:.4f}; {log[-1]['images_per_second']:.0f} images/s"
        text += f"; {num_overflowed:.0f} steps overflowed, {num_steps:.0f} were taken"
        comparable = precision != "off" and num_steps >= LEAST_STEPS and num_overflowed < 0.25 * num_steps
        yield Line(f"training in {precision}", text, drift < 0.1 if comparable else None)


def check_steps(place: Place) -> Iterator[Line]:
    """A step never waits for the device, and one without a finite gradient leaves everything as it was."""
    for precision in ("off", "bf16", "fp16"):
        trainer = place.make_trainer(f"--MIXED_PRECISION={precision} --EMA_DECAY=0.99 --CLIP_GRADIENT_NORM=1.0")
        batch = place.make_batch()
        for step in range(3):
            take_step(trainer, batch, step)
        with errors_at_waits(place.device):
            for step in range(3, 6):
                taken = take_step(trainer, batch, step)
        yield Line(f"steps in {precision} that read nothing back", "3 steps", holds=True)
        before = copy_state(trainer)
        bad = batch._replace(
            images=batch.images.float().index_fill(0, torch.zeros(1, dtype=torch.long).to(place.device), torch.inf)
        )
        taken = take_step(trainer, bad, 6)
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
        losses.append(float(take_step(trainer, batch).loss))
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
    options = ["--MIXED_PRECISION=off", "--SAVE_EVERY_MINUTES=0.02"]
    names = ("resume_whole", "resume_killed")
    place.run("training.py", [*place.name_constants(names[0], place.few), *options])
    constants = [*place.name_constants(names[1], place.few), *options]
    command = [sys.executable, "-W", "ignore", "training.py", *constants]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((place.folder / names[1]).glob("trained_models/*/*/last.pt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    printed = place.run("training.py", constants)
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
        place.run("training.py", [*place.name_constants("precision_off", place.few), "--MIXED_PRECISION=off"])
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
    constants = [*place.name_constants("precision_off", place.few), f"--MODEL_PATH={path}"]
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
        losses = [float(take_step(trainer, batch, step, network).loss) for step in range(3)]
    finally:
        dist.destroy_process_group()
    expected = [float(take_step(alone, batch, step).loss) for step in range(3)]
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
    return measure_rate(place, lambda: take_step(trainer, batch, next(steps)), len(batch.images))


def measure_card(place: Place) -> tuple[float, float]:
    """Returns (bytes a second that copying reads and writes, bf16 operations a second of a matrix product)."""
    numel, side = (2**28, 8192) if place.device.type == "cuda" else (2**16, 64)
    source, target = torch.zeros(2, numel, dtype=torch.float32, device=place.device)
    matrix = torch.zeros(side, side, dtype=torch.bfloat16, device=place.device)
    copied = measure_rate(place, lambda: target.copy_(source), 8 * numel)
    return copied, measure_rate(place, lambda: matrix @ matrix, 2 * side**3)


def measure_networks(place: Place) -> Iterator[Line]:
    """Images a second of each network, with images on the device: predicting, and a training step."""
    size, is_on_gpu = place.size, place.device.type == "cuda"
    moved, computed = measure_card(place)
    scale = min(moved / RTX_4090_BYTES, computed / RTX_4090_FLOPS)
    text = f"{moved / 1e9:,.0f} GB/s, {computed / 1e12:,.1f} TFLOP/s in bf16: {scale:.2f} x an RTX 4090"
    yield Line("the device copies and multiplies", text)
    for name in size.networks:
        model = models_factory.make_model(name, NUM_CLASSES, head="linear", image_size=size.image_size)
        run = engines.make_torch(model, size.image_size, place.device)
        images = torch.randint(0, 256, (size.test_batch_size, 3, size.image_size, size.image_size), dtype=torch.uint8)
        predict = partial(run, images.to(place.device))
        for precision in ("off", "bf16"):
            autocast, _ = devices.make_autocast(precision, place.device)
            with autocast():
                rate = measure_rate(place, predict, len(images))
            text = f"{rate:,.0f} images/s"
            if precision == "bf16" and name in PUBLISHED:
                text += f", {rate / (scale * PUBLISHED[name]):.0%} of timm's {PUBLISHED[name]:,}, scaled (aim: 80 %)"
            yield Line(f"{name}, predicting, {precision}", text)
        if is_on_gpu:
            torch.cuda.reset_peak_memory_stats()
        rate = measure_steps(place, place.make_trainer(f"--MODEL_NAME={name}"), place.make_batch())
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if is_on_gpu else ""
        yield Line(f"{name}, training step", f"{rate:,.0f} images/s{memory}")


# ---- torch.compile ----


def compile_whole(model: MultiLabelModel, **options: Any) -> None:
    model.compile(dynamic=True, **options)


def compile_blocks(model: MultiLabelModel, **options: Any) -> None:
    compilation.compile_blocks(model.backbone, **options)


WAYS_TO_COMPILE: dict[str, Callable[[MultiLabelModel], None] | None] = {
    "not compiled": None,
    "blocks compiled (COMPILE)": compile_blocks,
    "blocks compiled, with CUDA graphs": partial(compile_blocks, mode="reduce-overhead"),
    "compiled as a whole": compile_whole,
}


def measure_compilation(place: Place) -> Iterator[Line]:
    """What torch.compile takes at first and gains later; no other size, and no validation, compiles anything again."""
    ways = WAYS_TO_COMPILE
    if place.device.type != "cuda":  # a CPU's compiler takes minutes, and there are no CUDA graphs
        ways = {"blocks compiled (COMPILE)": partial(compile_blocks, backend="eager")}
    for way, compile_model in ways.items():
        for name in place.size.networks:
            title = f"{name}, {way}"
            try:
                yield measure_compiled(place, title, name, compile_model)
            except Exception as error:  # of one way: the others are worth their time all the same
                yield Line(title, f"{type(error).__name__}: {utils.first_line(error)}", holds=False)


def measure_compiled(
    place: Place, title: str, name: str, compile_model: Callable[[MultiLabelModel], None] | None
) -> Line:
    """The first step's seconds, the rate, and how often a smaller batch, other sizes and validation compile anew."""
    from torch._inductor.utils import fresh_cache

    trainer, batch = place.make_trainer(f"--MODEL_NAME={name}"), place.make_batch()
    torch._dynamo.reset()
    counters.clear()
    if compile_model:
        compile_model(trainer.model)

    def step(batch: Batch) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        take_step(trainer, batch)

    def evaluate(batch: Batch) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        trainer.model.eval()
        with torch.inference_mode():
            trainer.model(batch.images)
        trainer.model.train()

    with fresh_cache():  # of what earlier runs compiled
        start = time.perf_counter()
        step(batch)
        place.wait()
        seconds = time.perf_counter() - start
        evaluate(batch)
        before = counters["stats"]["unique_graphs"]
        smaller = Batch(*(tensor[: len(batch.images) // 2] for tensor in batch))
        others = [smaller, batch]
        # a map of one pixel, which small images give, is a case of its own for torch
        if not backbones.has_fixed_size(name) and place.size.image_size >= 64:
            others.append(batch._replace(images=nn.functional.pad(batch.images, (0, 32, 0, 32))))
        for other in others:
            evaluate(other)
            step(other)
        place.wait()
        again = counters["stats"]["unique_graphs"] - before
        rate = measure_rate(place, partial(step, batch), len(batch.images))
    text = f"first step {seconds:.1f} s, {before} graphs, {again} of them again, then {rate:,.0f} images/s"
    return Line(title, text, again == 0 if compile_model else None)


# ---- pictures ----


def check_pictures(place: Place) -> Iterator[Line]:
    """A batch that is made on the device is what the CPU makes of each image, but for rounding; the rates of both."""
    from dataset import device_pictures, plans

    paths = list_images(place.data / "images" / "test-resized")[: place.size.batch_size // 2]
    images = [decode_image(path) for path in paths]
    for title, augmentation in AUGMENTED.items():
        transform = make_train_transform(augmentation, place.size.image_size)
        draw_plan = plans.make_planner(transform)

        def make_here(transform: Transform = transform) -> Tensor:
            tensors = (torch.from_numpy(image).permute(2, 0, 1) for image in images)
            return torch.stack([apply_seeded(transform, tensor, seed) for seed, tensor in enumerate(tensors)])

        def send(draw_plan: plans.Planner = draw_plan) -> device_pictures.SentImages:
            drawn = [(image, draw_plan(len(image), image.shape[1], seed)) for seed, image in enumerate(images)]
            return device_pictures.send([plans.take_part(image, plan) for image, plan in drawn])

        sent, expected = send(), make_here().int()
        levels = (sent.to(place.device).cpu().int() - expected).abs()
        mean, limit = levels.float().mean().item(), 1 if title == "crop and mirror" else 255
        yield Line(
            f"pictures, {title}: levels of 255 between device and CPU",
            f"{mean:.3f} on average, {levels.max()} at most",
            mean < 0.5 and int(levels.max()) <= limit,
        )
        ways: tuple[Callable[[], object], ...] = (make_here, send, partial(sent.to, place.device))
        rates = [measure_rate(place, way, len(images)) for way in ways]
        yield Line(
            f"pictures, {title}: images/s",
            f"{rates[0]:,.0f} made on a core; {rates[1]:,.0f} prepared on a core, {rates[2]:,.0f} then sent and made",
        )


def measure_loading(place: Place) -> Iterator[Line]:
    """Training steps on images from files: the rate, the share of that on images on the device, the waiting share."""
    for name in place.size.networks:
        rate = measure_steps(place, place.make_trainer(f"--MODEL_NAME={name}"), place.make_batch())
        yield Line(f"{name}, images on the device", f"{rate:,.0f} images/s")
        for policy, pictures_on in LOADING if place.device.type == "cuda" else (("none", "cpu"),):
            constants = f"--MODEL_NAME={name} --AUGMENTATION_POLICY={policy} --PICTURES_ON={pictures_on}"
            from_files, waiting = measure_steps_from_files(place, place.make_trainer(constants))
            text = f"{from_files:,.0f} images/s, {from_files / rate:.0%} (aim: 90 %), waiting {waiting:.0%} (aim: 5 %)"
            yield Line(f"{name}, images from files, policy {policy}, PICTURES_ON {pictures_on}", text)


def measure_steps_from_files(place: Place, trainer: Trainer) -> tuple[float, float]:
    """(images a second, the share of the time in which a step waits for images).

    What is loaded ahead by the start is used up before: `steps` of the size warm up, then twice as many count.
    """
    warm_up = place.size.steps
    data = training_data.read_data()
    size, batch_size = as_size(config.IMAGE_SIZE), config.TRAIN_BATCH_SIZE
    caches = training_data.open_image_caches(data)
    loader = training_data.make_train_loader(data, caches, size, place.device, batch_size)
    loading.set_epoch(loader, 1)
    batches = utils.Waiting(itertools.islice(loader, 3 * warm_up))
    start, num_images = 0.0, 0
    for number, batch in enumerate(batches):
        if number == warm_up:
            place.wait()
            start, batches.seconds = time.perf_counter(), 0.0
        take_step(trainer, batch, number)
        num_images += len(batch.images) if number >= warm_up else 0
    place.wait()
    seconds = time.perf_counter() - start
    return num_images / seconds, batches.seconds / seconds


def measure_prediction(place: Place) -> Iterator[Line]:
    """Images a second from files to probabilities, as testing.py predicts them, for networks that nobody trained."""
    paths = list_images(place.data / "images" / "train-resized")[: 40 * place.size.test_batch_size]
    workers = from_config.choose_test_settings(place.device).num_workers
    for name in place.size.networks:
        model = models_factory.make_model(name, NUM_CLASSES, head="linear", image_size=place.size.image_size)
        path = place.folder / f"{checkpoints.name_model(name)}.pt"
        values = {"model_name": name, "head": "linear", "image_size": place.size.image_size, "resize_rule": "squash"}
        classes = [f"{colour} shape" for colour in COLOURS]
        checkpoints.save(path, {"model_state": model.state_dict(), "classes": classes, **values})
        start = time.perf_counter()
        records = predictor.load(path, str(place.device)).predict(paths, place.size.test_batch_size, workers)
        count = sum(1 for _ in records)
        rate = count / (time.perf_counter() - start)
        yield Line(f"{name}, predicting {count:,} files, start included", f"{rate:,.0f} images/s")


def measure_runs(place: Place) -> Iterator[Line]:
    """Whole runs of the scripts, from files: testing, and training with a frozen backbone, its features kept or not."""
    path = find_checkpoint(place)
    constants = [*place.name_constants("precision_off"), f"--MODEL_PATH={path}"]
    printed = place.run("testing.py", [*constants, "--BOOTSTRAP_SAMPLES=0"])
    (line,) = [line for line in printed.splitlines() if "images/s, from the first file" in line]
    yield Line("testing", line.split(" images/s")[0] + " images/s")
    frozen = [
        "--FREEZE_BACKBONE=True",
        "--UNFREEZE_BACKBONE_EPOCH=0",
        f"--PRETRAINED_WEIGHTS={path}",
    ]
    for views, words in ((1, "features computed once"), (0, "without a cache")):
        start, folder = time.perf_counter(), f"frozen_{views}"
        constants = [*place.name_constants(folder, place.few), *frozen, f"--FROZEN_FEATURE_VIEWS={views}"]
        place.run("training.py", constants)
        seconds, last = time.perf_counter() - start, read_log(place.folder / folder)[-1]
        yield Line(f"frozen run, {words}", f"{seconds:.1f} s, last epoch {last['images_per_second']:,.0f} images/s")


def profile_step(place: Place) -> Iterator[Line]:
    """Where a training step's time goes: the ten operations that take most."""
    from torch.profiler import ProfilerActivity, profile

    name = place.size.networks[0]
    trainer, batch = place.make_trainer(f"--MODEL_NAME={name}"), place.make_batch()
    for step in range(3):
        take_step(trainer, batch, step)
    on_gpu = place.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        take_step(trainer, batch, 3)
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
        plain, ours = measure_rate(place, take_plain_step, len(batch.images)), measure_steps(place, trainer, batch)
        yield Line(
            f"{name}, a step here and the plain one", f"{ours:,.0f}, {plain:,.0f} images/s: {ours / plain:.2f} x"
        )


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


# and the seconds that each is expected to take on an H100 with 16 cores
STAGES: dict[str, Callable[[Place], Iterator[Line]]] = {
    "draw": draw,  # 15
    "steps": check_steps,  # 10
    "memory": check_memory,  # 5
    "processes": check_processes,  # 5
    "precision": check_precision,  # 70: three runs of training.py
    "resume": check_resume,  # 60: three more
    "devices": check_devices,  # 35
    "pictures": check_pictures,  # 15
    "networks": measure_networks,  # 35
    "loading": measure_loading,  # 110: nine times a hundred steps
    "prediction": measure_prediction,  # 30
    "plain": compare_plain,  # 20
    "profile": profile_step,  # 5
    "runs": measure_runs,  # 55: two runs of training.py, one of testing.py
    "compile": measure_compilation,  # 300, of which the 80 for COMPILE come first
}

if __name__ == "__main__":
    utils.run_script(main)
