"""The ONNX file by which another engine than PyTorch runs a checkpoint; it is made once and kept.

run = open_kept(KeptSource(...), "openvino", device)    # TEST_ENGINE, SERVING_ENGINE
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

from dataset.files import hash_file
from export import engines
from export.engines import Run
from export.model_files import make_onnx, quantize
from models.batchnorm_folding import TOLERANCE, fold_batchnorm, measure_change
from models_factory import make_example
from utils import InputError, write_atomically

VERSION = 2  # of the kept files: raise it when they would come out otherwise


@dataclass(frozen=True)
class KeptSource:
    """What the kept ONNX file is made from."""

    make_model: Callable[[], nn.Module]  # on the CPU; called only when no kept file serves
    image_size: int
    checkpoint: Path  # its content and the int8 images name the file
    folder: Path  # where it is kept
    read_image: Callable[[str], Tensor]  # an image file -> uint8 (3, S, S)
    int8_images: Sequence[str] = ()  # image files: int8, with ranges read off them; none: float


def open_kept(source: KeptSource, engine: str, device: torch.device) -> Run:
    """The kept ONNX file, which is made first where there is none, in `engine`: one of ENGINES besides torch."""
    if source.int8_images and engine != "openvino":
        raise InputError(f"engine {engine} runs float models only: choose openvino for int8")
    packages = ["onnx", "onnxscript", *(["nncf"] if source.int8_images else [])]
    engines.require_engine(engine, device, packages)
    file = name_file(source, packages)
    if not file.is_file():
        print(f"making {file} (once)", flush=True)
        write_atomically(file, lambda temporary: _make_kept(source, engine, device, temporary))
    return engines.ENGINES[engine](file, device).run


def _make_kept(source: KeptSource, engine: str, device: torch.device, file: Path) -> None:
    """Write the ONNX file; one of floats is compared with the network in `engine`."""
    import onnx

    example = make_example(source.image_size)
    model = fold_batchnorm(source.make_model(), example)
    exported = make_onnx(model, example)
    if source.int8_images:
        exported = quantize(exported, source.int8_images, source.read_image)
    onnx.save(exported, file)
    if not source.int8_images:
        with torch.no_grad():
            change = measure_change(engines.ENGINES[engine](file, device).run(example), model(example))
        if not change <= TOLERANCE:
            raise InputError(
                f"converting {source.checkpoint} changes its output by {change:.1e} of the largest value; at most "
                f"{TOLERANCE} may be"
            )


def name_file(source: KeptSource, packages: Sequence[str]) -> Path:
    """Where the ONNX file is kept, under a name that changes with all it depends on.

    That is the checkpoint's content, the int8 images (path, size, time) and the packages that made it.
    """
    try:
        stats = [Path(path).stat() for path in source.int8_images]
    except OSError as error:
        raise InputError(f"cannot read image {error.filename}: {error.strerror}") from error
    images = [(path, s.st_size, s.st_mtime_ns) for path, s in zip(source.int8_images, stats, strict=True)]
    versions = [(name, importlib.metadata.version(name)) for name in ("torch", *packages)]
    identity = json.dumps([VERSION, hash_file(source.checkpoint), images, versions])
    precision = "int8" if source.int8_images else "float"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return source.folder / f"{source.checkpoint.stem}_{precision}_{digest}.onnx"
