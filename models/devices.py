"""What a run computes on, and what each "auto" of the constants becomes there.

    device = choose_device("auto")
    settings = choose_settings(device, precision="auto")
    utils.say(settings.describe())      # on cuda (NVIDIA H100): bf16, channels_last, pictures on the GPU, ...

This file imports no module of the project but utils, since several processes (distributed.py) choose devices, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from utils import InputError

if TYPE_CHECKING:
    from torch.optim import Optimizer

MAX_WORKERS = 16  # that a run begins with: each holds a process's memory and some batches


class DeviceSettings(NamedTuple):
    """How a run uses its device."""

    device: torch.device
    precision: str  # of forward passes: "off" (float32), "bf16" or "fp16"
    fuses_optimizer: bool  # the optimizer takes its step in one kernel, where it has one
    makes_pictures_on_gpu: bool  # images are cropped, resized and augmented there
    decodes_on_gpu: bool  # JPEGs are decoded there, too
    num_workers: int  # processes that load data
    pins_memory: bool  # batches lie in memory that a GPU copies from while the processor goes on
    compiles: bool  # torch.compile

    def describe(self, optimizer: Optimizer | None = None) -> str:
        """One line for people. `optimizer`: that of a training run."""
        device, words = self.device, [self.precision]
        is_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if is_gpu else f"{torch.get_num_threads()} threads"
        if self.precision == "off":
            # As torch has it: nothing here sets this, so that a test on a GPU gives what it always gave.
            cudnn: Any = torch.backends.cudnn  # torch's annotations lack a part of it
            kinds = {"convolutions": cudnn.conv, "matrices": torch.backends.cuda.matmul}
            rounded = [kind for kind, backend in kinds.items() if is_gpu and backend.fp32_precision == "tf32"]
            words = [f"float32 ({' and '.join(rounded)} in TF32)" if rounded else "float32"]
        if optimizer is not None:
            fused = "fused " if all(group.get("fused") for group in optimizer.param_groups) else ""
            words.append(f"{fused}{type(optimizer).__name__}")
        words.append("channels_last")
        place = "GPU" if self.makes_pictures_on_gpu else "CPU"
        words.append(f"pictures {'decoded and made ' if self.decodes_on_gpu else ''}on the {place}")
        words.append(f"{self.num_workers or 'no'} loading process{'es' * (self.num_workers != 1)}")
        if optimizer is not None:
            words.append("compiled (the first steps take minutes)" if self.compiles else "not compiled")
        return f"on {device} ({name}): {', '.join(words)}"


def choose_settings(
    device: torch.device,
    *,
    precision: str = "off",
    num_workers: int | None = None,
    pictures_on: str = "auto",
    compiles: bool = False,
    changes_pixels: bool = False,
) -> DeviceSettings:
    """What the constants MIXED_PRECISION, NUM_WORKERS, PICTURES_ON and COMPILE mean on `device`.

    `changes_pixels` says that pictures are changed beyond crops, mirroring and size, see dataset/augmentations.py.
    Raises InputError where pictures are to be made on a GPU, and `device` is none.
    """
    is_gpu = device.type == "cuda"
    if precision == "auto":
        # A CPU gets float32: whether bf16 is quicker there depends on the model and the processor
        # (benchmarks/training_step.py measures it), and a choice by measured time could differ in the next run.
        precision = "off"
        if is_gpu:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if pictures_on == "gpu" and not is_gpu:
        raise InputError(f"PICTURES_ON is gpu, and the device is {device}: set it to auto, or DEVICE to a GPU")
    # "auto": to crop and to resize an image takes the processor no longer than to send it to the GPU
    on_gpu = pictures_on == "gpu" or (pictures_on == "auto" and changes_pixels)
    return DeviceSettings(
        device=device,
        precision=precision,
        fuses_optimizer=device.type in ("cpu", "cuda"),
        makes_pictures_on_gpu=is_gpu and on_gpu,
        decodes_on_gpu=pictures_on == "gpu",
        num_workers=count_loading_processes(device) if num_workers is None else num_workers,
        pins_memory=is_gpu,
        compiles=compiles,
    )


def count_loading_processes(device: torch.device) -> int:
    """How many processes load data for `device` unless NUM_WORKERS says so.

    Beside a GPU it is one for each free core, at most MAX_WORKERS. On a CPU it is 0: the model itself needs the cores.
    """
    return 0 if device.type == "cpu" else min(count_free_cores(), MAX_WORKERS)


def count_free_cores() -> int:
    """The cores that loading processes may use, at least one: several training processes share the machine's.

    Each of them needs one for itself.
    """
    # the cores that this process may use, where the system says so
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(num_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1, 1)


def choose_device(name: str) -> torch.device:
    """The device called `name`, such as "cpu" or "cuda:1". "auto" is the first GPU, or the CPU if there is none.

    Raises InputError if the device is not available.
    """
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # else pinned memory and what torch says of memory are those of the first
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"DEVICE {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


def make_autocast(precision: str, device: torch.device) -> tuple[Callable[[], Any], bool]:
    """Returns (a function that makes autocast contexts on `device`, whether gradients need scaling).

    `precision` is "off", "bf16" or "fp16". Use: `with autocast(): logits = model(images)`.
    """
    if precision == "off":
        return nullcontext, False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return partial(torch.autocast, device.type, dtype=dtype), precision == "fp16"
