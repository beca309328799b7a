"""Writes and reads checkpoints (.pt) and their sidecars (.json).

    checkpoints.save(path, checkpoint)
    checkpoint = checkpoints.load(path)          # runs no code from the file
    metadata = checkpoints.read_sidecar(path)    # all but the tensors, without importing torch

A checkpoint holds tensors and plain Python types only. The sidecar beside it holds everything but the tensors, so that
a table of many runs needs no torch. A file is first written under a temporary name: it is complete or absent.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import utils
from utils import InputError, write_atomically, write_text

FORMAT, VERSION = "multilabel-checkpoint", 1  # of the file; the project's version is utils.VERSION
TENSORS = ("model_state", "training_state")  # keys that a sidecar leaves out
REQUIRED = ("model_state", "model_name", "head", "classes", "image_size", "resize_rule")  # keys of every checkpoint


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write `checkpoint` and its sidecar. Raises InputError if they cannot be written; the old file then stays."""
    save_alone(path, checkpoint)
    save_sidecar(path, checkpoint)


def save_alone(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write `checkpoint` without a sidecar."""
    checkpoint = {"format": FORMAT, "version": VERSION, **checkpoint}
    write_atomically(path, lambda temporary: save_tensors(temporary, checkpoint))


def save_sidecar(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the sidecar of the checkpoint that is or will be at `path`."""
    checkpoint = {"format": FORMAT, "version": VERSION, **checkpoint}
    sidecar = {key: value for key, value in checkpoint.items() if key not in TENSORS}
    write_text(path.with_suffix(".json"), json.dumps(sidecar, indent=1))


def save_tensors(path: Path, content: Any) -> None:
    """Write `content` as torch.save does; an error of the disk says which it is, as it does not when torch opens it."""
    import torch

    with open(path, "wb") as file:
        torch.save(content, file)


def load(path: Path) -> dict[str, Any]:
    """Read the checkpoint in `path`, without running code from it, and with all tensors on the CPU.

    Raises InputError if there is no such file, if it is damaged, and if it is no checkpoint of this project.
    """
    import torch

    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: run training.py first, or set the path to one that exists")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a damaged file by many kinds of error
        reason = "it is damaged or cut short"
        if "GLOBAL" in str(error):
            reason = "it holds Python objects that could run code"
        raise InputError(f"cannot load checkpoint {path}: {reason}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this project (no format {FORMAT!r} in it)")
    missing = [key for key in REQUIRED if key not in checkpoint]
    if checkpoint.get("version") != VERSION or missing:
        raise InputError(
            f"{path} is a checkpoint of version {checkpoint.get('version')} without {missing}: train again"
        )
    return checkpoint


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Read the metadata of the checkpoint `path` from its sidecar. None if there is no sidecar that can be read."""
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) and sidecar.get("format") == FORMAT else None


def read_best_f1(path: Path) -> float:
    """The best F1 that is noted in the checkpoint at `path`; -1 if there is no checkpoint."""
    if not path.is_file():
        return -1.0
    metadata = read_sidecar(path) or load(path)
    return float(metadata["best_f1"])


def name_model(model_name: str) -> str:
    """The backbone's name as the name of a folder or file: `timm/resnet18` -> `timm-resnet18`."""
    return model_name.replace("/", "-")


@functools.cache
def describe_environment(device: str) -> dict[str, str]:
    """What a run was made with: the project's version and git commit, the versions of packages, and `device`."""
    import platform
    import subprocess
    from importlib.metadata import version

    folder = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return {
        "version": utils.VERSION,
        "git_commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "device": device,
    }
