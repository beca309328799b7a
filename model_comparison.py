"""Backbones and heads side by side.

    python model_comparison.py [NAME ...] [--HEADS linear_bn,ml_decoder] [--csv | --markdown | --latex]
    python model_comparison.py --search PATTERN        # the names that contain PATTERN, or match it (*, ?)

Parameters, multiply-adds and size come from networks with random weights; times are this machine's. The licence is that
of the published weights, as the library that brings them says it.
"""

from __future__ import annotations

import fnmatch
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import overrides
import utils
from dataset.image_sizes import as_size
from evaluation import tables
from limits import ImageSize
from utils import InputError

if TYPE_CHECKING:  # torch and timm take seconds to import: a mistake on the command line must not wait for them
    import torch

# ---- Comparison ----
HEADS: tuple[str, ...] = ("linear_bn",)  # each backbone with each of these
NUM_CLASSES: int = 80  # logits
IMAGE_SIZE: ImageSize = 224  # pixels: a side, or (height, width); networks of one size only are compared at that
BATCH_SIZES: tuple[int, ...] = (1, 32)  # images, of the forward passes that are timed
DEVICE: str = "auto"  # auto: the GPU where there is one; else cpu, cuda, cuda:1, mps

# those that the Chinese classification library compares
DEFAULT_NAMES = (
    "resnet18", "resnet50", "shufflenet_v2_x1_0", "shufflenet_v2_x2_0", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "efficientnet_b0", "efficientnet_b4",
)  # fmt: skip
SECONDS = 1.0  # spent on timing one batch size, but at least RUNS passes
RUNS = 3


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--search"]:
        if len(arguments) != 2:
            raise InputError("--search takes one pattern: --search resnet, or --search 'conv*tiny*'")
        print_names(arguments[1])
        return
    mode, arguments = tables.take_mode(arguments)
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    overrides.apply(arguments[first:], sys.modules[__name__])
    if NUM_CLASSES < 1 or min(BATCH_SIZES, default=0) < 1:
        raise InputError(f"NUM_CLASSES is {NUM_CLASSES} and BATCH_SIZES {BATCH_SIZES}: 1 or more each")
    rows = compare(arguments[:first] or list(DEFAULT_NAMES))
    if mode:
        tables.PRINTERS[mode](rows)
    else:
        import torch

        from models import devices

        device, threads = devices.choose_device(DEVICE), torch.get_num_threads()
        tables.print_text(rows, [f"{NUM_CLASSES} classes; forward passes on {device}, {threads} threads"])


def compare(names: list[str]) -> tables.Frame:
    """A row for each of the backbones `names` with each of HEADS. Raises InputError for an unknown name first."""
    from dataset.frames import pd
    from models import backbones, devices

    for name in names:
        backbones.require_name(name)
    device = devices.choose_device(DEVICE)
    pairs = [(name, head) for name in names for head in HEADS]
    return pd.DataFrame([measure_model(name, head, device) for name, head in pairs])


def measure_model(name: str, head: str, device: torch.device) -> dict[str, Any]:
    """Size, multiply-adds and forward times of one backbone with one head."""
    import torch

    import models_factory
    from models import backbones, licences

    size = as_size(IMAGE_SIZE)
    try:
        model = models_factory.make_model(name, NUM_CLASSES, head, image_size=size)
    except InputError:
        size = backbones.read_pixels(name).image_size
        model = models_factory.make_model(name, NUM_CLASSES, head, image_size=size)
    model.eval().to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's
    image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)
    row = {
        "backbone": name,
        "head": head,
        "image_size": size.height if size.is_square else str(size),
        "parameters_M": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2),
        "multiply_adds_M": round(count_multiply_adds(model, image) / 1e6, 1),
        "file_MB": round(sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6, 1),
    }
    for batch_size in BATCH_SIZES:
        seconds = time_forward(model, image.expand(batch_size, -1, -1, -1).contiguous())
        row[f"forward_ms_batch_{batch_size}"] = round(1000 * seconds, 1)
    return row | {"licence": licences.read_licence(name)}


def count_multiply_adds(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of the convolutions and matrix products in one pass, by torch's counter."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation of many, which the counter does not know
    plain_attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    try:
        with torch.inference_mode(), plain_attention, FlopCounterMode(display=False) as counter:
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return counter.get_total_flops() // 2  # it counts the addition apart


def time_forward(model: torch.nn.Module, images: torch.Tensor) -> float:
    """The median time of a forward pass over `images`, in seconds."""
    import torch

    times: list[float] = []
    with torch.inference_mode():
        model(images)[0, 0].item()  # the first pass chooses kernels and gets memory
        while len(times) < RUNS or sum(times) < SECONDS:
            start = time.perf_counter()
            model(images)[0, 0].item()  # a GPU works on after the call returns; to read a number is to wait for it
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def print_names(pattern: str) -> None:
    """Print the names of backbones that contain `pattern`, or match it, with the licences of their weights."""
    from models import backbones, licences

    pattern = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    names = fnmatch.filter(backbones.list_names(), pattern)
    if not names:
        raise InputError(f"no backbone matches {pattern!r}, of {len(backbones.list_names())}")
    width = max(map(len, names))
    utils.say(*(f"{name:{width}}  {licences.read_licence(name)}" for name in names))


if __name__ == "__main__":
    utils.run_script(main)
