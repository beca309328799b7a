"""What a run leaves on disk: checkpoints (.pt), their sidecars (.json), and the state an interrupted run resumes.

A checkpoint holds tensors and plain Python types only. Beside it lies a sidecar with everything but the
tensors, so that a table of many runs needs no torch. Files are written aside and renamed: complete or absent.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import InputError, write_atomically, write_text

FORMAT, VERSION = "multilabel-checkpoint", 1
TENSORS = ("model_state", "training_state")  # what a sidecar leaves out
REQUIRED = ("model_state", "model_name", "head", "classes", "image_size", "resize_rule")


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write `checkpoint` and its sidecar. Raises InputError when there is no space; the old file then stays."""
    import torch

    checkpoint = {"format": FORMAT, "version": VERSION, **checkpoint}
    write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
    sidecar = {key: value for key, value in checkpoint.items() if key not in TENSORS}
    write_text(path.with_suffix(".json"), json.dumps(sidecar, indent=1))


def load(path: Path) -> dict[str, Any]:
    """The checkpoint in `path`. Raises InputError unless it is a whole one of this project; runs no code from it."""
    import torch

    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: run training.py first, or set the path to one that exists")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways, all of them the file's
        reason = (
            "it holds Python objects that could run code" if "GLOBAL" in str(error) else "it is damaged or cut short"
        )
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
    """The metadata of the checkpoint `path`, from its sidecar; None where there is no readable one."""
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) and sidecar.get("format") == FORMAT else None


def read_best_f1(path: Path) -> float:
    """The best F1 that the checkpoint at `path` says it reached; -1 where there is none."""
    if not path.is_file():
        return -1.0
    metadata = read_sidecar(path) or load(path)
    return float(metadata["best_f1"])


def name_model(model_name: str) -> str:
    """The backbone's name as part of a path: `timm/resnet18` is no folder in a folder."""
    return model_name.replace("/", "-")


@functools.cache
def describe_environment(device: str) -> dict[str, str]:
    """Where a run took place: git commit, versions, processor or GPU."""
    import platform
    import subprocess
    from importlib.metadata import version

    here = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    commit = git.stdout.strip() or "unknown"
    return {"git_commit": commit, "python": platform.python_version(), **versions, "device": device}
