"""Writes and reads checkpoints (.pt) and their sidecars (.json).

    checkpoints.save(path, checkpoint)
    checkpoint = checkpoints.load(path)          # runs no code from the file
    metadata = checkpoints.read_sidecar(path)    # all but the tensors, without importing torch

A checkpoint holds tensors and plain Python types only. The sidecar beside it holds everything but the tensors, so that
a table of many runs needs no torch. A file is first written under a temporary name: it is complete or absent.
"""

from __future__ import annotations

import functools
import re
import reprlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import utils
from dataset.json_files import read_json, to_json
from dataset.whole_files import write_atomically, write_text
from models import hub_folders
from models.metadata import check_metadata
from utils import InputError

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
    write_text(path.with_suffix(".json"), to_json(sidecar, indent=1))


def save_tensors(path: Path, content: Any) -> None:
    """Write `content` as torch.save does; an error of the disk says which it is, as it does not when torch opens it."""
    import torch

    with open(path, "wb") as file:
        torch.save(content, file)


def load(path: Path) -> dict[str, Any]:
    """Read the checkpoint in `path`, without running code from it, and with all tensors on the CPU.

    `path` may also be a folder that export_onnx.py wrote for the hub, or its address: see models/hub_folders.py. Raises
    InputError if there is no such file, if a byte of it has changed since it was written, and if it is no
    checkpoint of this project or holds values that none of this project holds.
    """
    path = hub_folders.locate(path)
    checkpoint = hub_folders.read_checkpoint(path) if hub_folders.is_ours(path) else _read(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this project (no format {FORMAT!r} in it)")
    missing = [key for key in REQUIRED if key not in checkpoint]
    version = checkpoint.get("version")
    if type(version) is not int or version != VERSION or missing:  # a tensor would be compared value by value
        raise InputError(f"{path} is a checkpoint of version {reprlib.repr(version)} without {missing}: train again")
    checkpoint |= check_metadata({key: value for key, value in checkpoint.items() if key not in TENSORS}, path)
    _require_tensors(checkpoint["model_state"], path)
    return checkpoint


def _read(path: Path) -> Any:
    """What the file of torch.save `path` holds. Raises InputError if it is damaged, or none."""
    import torch

    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: run training.py first, or set the path to one that exists")
    if damage := find_damage(path):
        raise InputError(f"cannot load checkpoint {path}: {damage}")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that torch.save does not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a file that it did not write by many kinds of error
        reason = "it is no file of torch.save"
        if "GLOBAL" in str(error):
            reason = "it holds Python objects that could run code"
        raise InputError(f"cannot load checkpoint {path}: {reason}") from error


def find_damage(path: Path, *, is_packed: bool = False) -> str | None:
    """What is wrong with the zip file `path`, in words; None if every byte is as it was when the file was written.

    torch writes checksums into its files, but does not compare them when it reads. Unless `is_packed`, nothing in the
    file may be packed, as in all files of torch but TorchScript: what it unpacks to is then no larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [(entry.file_size, entry.compress_size) for entry in archive.infolist()]
            total = sum(size for size, _ in sizes)
            if not is_packed and (any(size != packed for size, packed in sizes) or total > path.stat().st_size):
                return "it is packed, which no file of torch is"
            damaged = archive.testzip()
    except Exception:  # zipfile reports damage by many kinds of error
        return "it is damaged or cut short"
    return (
        None if damaged is None else f"it is damaged, {damaged!a} in it has changed since it was written: copy it again"
    )


def _require_tensors(state: Any, path: Path) -> None:
    """Raise InputError if `state` is no state dict: names, and tensors of plain numbers with all their values."""
    import torch

    def is_plain(value: Any) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and value.layout is torch.strided
            and value.device.type == "cpu"  # and not meta, which has no values
            and not (value.is_quantized or value.is_nested or value.is_complex())
        )

    if not isinstance(state, dict):
        raise InputError(f"{path}: model_state is a {type(state).__name__}, expected names and tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not is_plain(value):
            raise InputError(
                f"{path}: model_state holds {reprlib.repr(name)}, a {type(value).__name__}, expected names and plain "
                "tensors"
            )


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Read the metadata of the checkpoint `path` from its sidecar. None if there is no sidecar that can be read."""
    sidecar_path = path.with_suffix(".json")
    try:
        sidecar = check_metadata(read_json(sidecar_path, allow_nan=True), sidecar_path)
    except InputError:
        return None
    return sidecar if sidecar.get("format") == FORMAT else None


def read_best_f1(path: Path, chosen_by: str = "") -> float:
    """The best F1 that is noted in the checkpoint at `path`; -1 if there is no checkpoint.

    If it was chosen by another F1 than the one of its metrics that is called `chosen_by`, it is that one: only F1 of
    one kind can be compared. The sidecar is not asked: it may be edited, or another checkpoint's.
    """
    if not path.is_file():
        return -1.0
    checkpoint = load(path)
    best_f1 = checkpoint.get("best_f1")
    if best_f1 is not None and chosen_by and checkpoint.get("chosen_by") != chosen_by:
        best_f1 = checkpoint.get("metrics", {}).get(chosen_by, best_f1)
    return -1.0 if best_f1 is None else float(best_f1)


def name_model(model_name: str) -> str:
    """The backbone's name as the name of a folder or file: `timm/resnet18` -> `timm-resnet18`.

    A file from elsewhere may hold any name: what cannot stand in the name of a file becomes a dash, too.
    """
    return re.sub(r"^\.+|[^\w.+-]", "-", model_name)


@functools.cache
def describe_environment(device: str) -> dict[str, str]:
    """What a run was made with: the project's version and git commit, the versions of packages, and `device`.

    Where there is no git, or no repository, as in a container, the commit is "unknown".
    """
    import platform
    import shutil
    import subprocess
    from importlib.metadata import version

    commit = ""
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    return {
        "version": utils.VERSION,
        "git_commit": commit or "unknown",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "device": device,
    }
