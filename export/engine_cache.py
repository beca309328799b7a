"""Runs a checkpoint in ONNX Runtime or OpenVINO: by an ONNX file that is made from it once, and kept.

run = open_kept(KeptSource(...), "openvino", device)    # for TEST_ENGINE and SERVING_ENGINE
logits = run(images)                                    # uint8 (B, 3, H, W) -> float32 (B, C)
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset.decoding import stamp_files
from dataset.files import hash_file
from dataset.image_sizes import Size
from export import engines
from export.engines import Run
from export.onnx_models import make_onnx, quantize, write_onnx, write_whole
from models.batchnorm_folding import TOLERANCE, fold_batchnorm, measure_change
from models_factory import make_example
from utils import InputError, say

VERSION = 6  # of the kept files: raise it when a change of the code changes what is in them

ADVICE = "set SERVING_ENGINE (of serving.py) or TEST_ENGINE (of testing.py) to torch"


@dataclass(frozen=True)
class KeptSource:
    """What the kept ONNX file is made from."""

    make_model: Callable[[], nn.Module]  # makes the model on the CPU; called only if the file has to be made
    image_size: Size
    checkpoint: Path  # its content is a part of the kept file's name
    folder: Path  # where the ONNX file is kept
    read_image: Callable[[str], Tensor]  # an image file -> uint8 (3, H, W)
    int8_images: Sequence[str] = ()  # image files from which the ranges of int8 are measured; (): a file in float


def open_kept(source: KeptSource, engine: str, device: torch.device) -> Run:
    """Open the kept ONNX file in `engine`, a key of ENGINES other than torch. Makes the file first if there is none.

    Raises InputError if the engine cannot run it, or if converting the model changes its output.
    """
    if source.int8_images and engine != "openvino":
        raise InputError(f"engine {engine} runs float models only: choose openvino for int8")
    packages = ["onnx", "onnxscript"]
    if source.int8_images:
        packages.append("nncf")
    engines.require_engine(engine, device, packages)
    file = name_file(source, packages)
    if not file.is_file():
        say(f"making {file} (once)")
        write_whole(file, lambda new: _make_kept(source, engine, device, new))
    return engines.ENGINES[engine](file, device).run


def _make_kept(source: KeptSource, engine: str, device: torch.device, file: Path) -> None:
    """Write the ONNX file to `file`. A file in float is then run in `engine` and compared with the network."""
    example = make_example(source.image_size)
    model = fold_batchnorm(source.make_model(), example)
    exported = make_onnx(model, example, advice=ADVICE)
    if source.int8_images:
        exported = quantize(exported, source.int8_images, source.read_image)
    write_onnx(exported, file)
    if not source.int8_images:
        with torch.no_grad():
            change = measure_change(engines.ENGINES[engine](file, device).run(example), model(example))
        if not change <= TOLERANCE:
            raise InputError(
                f"converting {source.checkpoint} changes its output by {change:.1e} of the largest value; at most "
                f"{TOLERANCE} may be"
            )


def name_file(source: KeptSource, packages: Sequence[str]) -> Path:
    """The path of the kept ONNX file. Its name contains a hash of everything that the file depends on.

    That is the checkpoint's content, the int8 images (path, size, time of change) and the versions of torch and of
    `packages`. An image in a shard has the time of its shard.
    """
    stamps = stamp_files(source.int8_images).tolist()
    images = [(path, size, changed) for path, (size, changed) in zip(source.int8_images, stamps, strict=True)]
    versions = [(name, importlib.metadata.version(name)) for name in ("torch", *packages)]
    identity = json.dumps([VERSION, hash_file(source.checkpoint), images, versions])
    precision = "int8" if source.int8_images else "float"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return source.folder / f"{source.checkpoint.stem}_{precision}_{digest}.onnx"
