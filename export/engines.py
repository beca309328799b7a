"""A model file opened: `ENGINES[name](path, device)` runs an exported one, `make_torch` a network.

Each gives images uint8 (B, 3, S, S) -> logits, or probabilities, float32 (B, C). What a file is, is told by what it
holds (`recognise`). Nothing here makes a file: export/model_files.py does.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from models.batchnorm_folding import fold_batchnorm
from models_factory import make_example
from utils import InputError, suggest

if TYPE_CHECKING:
    import openvino

Run = Callable[[Tensor], Tensor]

METADATA = "multilabel"  # the name under which an exported file holds its metadata, as JSON


class Opened(NamedTuple):
    """A model file, ready to run, and its metadata; None for an ONNX file or the like that is not this project's."""

    run: Run
    metadata: dict[str, Any] | None


def make_torch(model: nn.Module, image_size: int, device: torch.device) -> Run:
    """PyTorch on any device, BatchNorm folded, in channels_last."""
    model = fold_batchnorm(model, make_example(image_size))
    return run_torch(model.to(device).to(memory_format=torch.channels_last), device)  # pyright: ignore[reportCallIssue]


def run_torch(model: Callable[[Tensor], Tensor], device: torch.device) -> Run:
    """`model`, which lies on `device`, without gradients."""

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images.to(device, non_blocking=True)).float()

    return run


def run_one_by_one(run: Run) -> Run:
    """`run`, which takes one image at a time, for any number."""
    return lambda images: torch.cat([run(image[None]) for image in images])


def recognise(path: Path) -> str:
    """What `path` is: a key of ENGINES_OF. It is told by what it holds, of which nothing is run.

    Raises InputError for a file that is none of these, and where there is no file.
    """
    if not path.is_file():
        raise InputError(f"there is no model {path}: run training.py first, or set the path to one that exists")
    with open(path, "rb") as file:
        start = file.read(512).lstrip()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # TorchScript holds code, each file of it in one common folder
            parts = [name.split("/") for name in archive.namelist()]
        return "torchscript" if any("code" in part[1:2] for part in parts) else "checkpoint"
    if path.suffix == ".onnx":
        return "onnx"
    if start.startswith((b"<?xml", b"<net")):
        return "openvino"
    if path.suffix in (".pt", ".pth") or start.startswith(b"PK"):
        return "checkpoint"  # damaged, or of another project: reading it says so
    raise InputError(f"{path} is no model: a checkpoint or TorchScript (.pt), .onnx, or OpenVINO .xml")


def require_checkpoint(path: Path, reason: str) -> None:
    """Raise InputError, with the `reason`, for any other model."""
    format = recognise(path)
    if format != "checkpoint":
        raise InputError(f"{path} is {format}, {reason}: set MODEL_PATH to the checkpoint (.pt)")


def choose_engine(name: str, format: str, path: Path) -> str:
    """The engine called `name` for `path`, a file in `format`; "auto": the file's own. Raises InputError."""
    if name not in ("auto", *ENGINES):
        raise InputError(f"there is no engine {name!r}{suggest(name, ENGINES)}; known: auto, {', '.join(ENGINES)}")
    able = ENGINES_OF[format]
    if name not in ("auto", *able):
        raise InputError(f"engine {name} does not open {path} ({format}): choose one of auto, {', '.join(able)}")
    return able[0] if name == "auto" else name


def require_engine(name: str, device: torch.device, packages: Sequence[str] = ()) -> None:
    """Raise InputError unless the engine runs on `device`, and its package and `packages` are there."""
    if name != "torch" and device.type != "cpu":
        raise InputError(f"engine {name} runs on a CPU, not on {device}: choose engine torch or device cpu")
    require_packages([name, *packages], f"engine {name}")


def require_packages(packages: Sequence[str], what: str) -> None:
    """Raise InputError, which says that `what` needs them, unless all `packages` are there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install -r requirements-export.txt")


def open_torchscript(path: Path, device: torch.device) -> Opened:
    """TorchScript, in PyTorch on any device."""
    name = f"{METADATA}.json"
    extra = {name: ""}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch calls TorchScript deprecated
        try:
            model = torch.jit.load(path, map_location=device, _extra_files=extra)
        except RuntimeError as error:
            raise _make_error(path, "TorchScript", error) from error
    return Opened(run_torch(model, device), _read_metadata(extra[name]))


def open_onnxruntime(path: Path, device: torch.device) -> Opened:
    """An ONNX file in ONNX Runtime on the CPU."""
    require_engine("onnxruntime", device)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # idle threads that spin take the cores from those that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each of its errors is a class of its own
        raise _make_error(path, "ONNX", error) from error
    name = session.get_inputs()[0].name
    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return Opened(
        lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]), _read_metadata(metadata)
    )


def open_openvino(path: Path, device: torch.device) -> Opened:
    """OpenVINO IR or an ONNX file in OpenVINO on the CPU: in float32 (or int8) even where there is bfloat16."""
    require_engine("openvino", device)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time over all cores: as quick as many small requests
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16, the default where there is one, moves logits by .1 to .3
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = get_openvino()
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _make_error(path, "OpenVINO IR or ONNX", error) from error
    # an ONNX file's metadata_props come under "framework"
    places = ([METADATA], ["framework", METADATA])
    found = [model.get_rt_info(place).astype(str) for place in places if model.has_rt_info(place)]
    metadata = _read_metadata(found[0] if found else None)
    return Opened(lambda images: torch.from_numpy(compiled(images.numpy())[0].copy()), metadata)


@functools.cache
def get_openvino() -> openvino.Core:
    """The process's one OpenVINO, never given back.

    Its CPU plugin gives the thread an alternate stack for signals, and unmaps it when it goes. Two that go in the order
    they came leave the first one's stack in use: the next signal that Python handles (SIGCHLD, Ctrl-C) is a crash.
    """
    import openvino

    return openvino.Core()


def _read_metadata(text: str | bytes | None) -> dict[str, Any] | None:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _make_error(path: Path, kind: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    return InputError(f"cannot open {path} as {kind}: it is damaged, or of another version ({reason})")


# keys: what TEST_ENGINE takes; each opens an exported file
ENGINES: dict[str, Callable[[Path, torch.device], Opened]] = {
    "torch": open_torchscript,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}
# what a file may be, and the engines that run it, its own first
ENGINES_OF: dict[str, tuple[str, ...]] = {
    "checkpoint": tuple(ENGINES),  # by an ONNX file made of it, for those besides torch
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "torchscript": ("torch",),
}
