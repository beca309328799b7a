"""Opens model files, and runs them in their engines: PyTorch, ONNX Runtime, OpenVINO.

    run, metadata = ENGINES["onnxruntime"](path, device)    # an exported file
    run = make_torch(model, image_size, device)             # a network in PyTorch
    logits = run(images)                                    # uint8 (B, 3, H, W) -> float32 (B, C)
    logits, features = run.look(images)                     # in PyTorch only: what the head sees, too, (B, D)

An exported file may give probabilities instead of logits. One that resizes by itself takes one image of any size,
(1, 3, H, W). `recognise` tells the kind of a file by its content. This file makes no model files:
export/model_files.py does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.files import open_file
from dataset.json_files import parse_json
from heads import pool
from limits import ImageSize
from models import hub_folders
from models.batchnorm_folding import fold_batchnorm
from models.checkpoints import find_damage
from models_factory import MultiLabelModel, make_example
from utils import InputError, suggest

if TYPE_CHECKING:
    import openvino

Run = Callable[[Tensor], Tensor]

METADATA = "multilabel"  # the key under which an exported file holds its metadata, as JSON
IMAGE = "image"  # the input of an exported file that resizes, uint8 (H, W, 3); of others it is (B, 3, H, W)
LABELS = "labels"  # the second output of an exported file that decides, bool (B, C)
DECIDING = "decide"  # the names of the operators that decide begin with it
# of the kinds of model files that are programs: a file of another name is not run
PROGRAM_ENDINGS: dict[str, str] = {"torchscript": "_torchscript.pt", "pt2": "_torchexport.pt2"}
PACKAGES = {"litert": "ai_edge_litert"}  # of engines whose package has another name
KIND_NAMES: dict[str, str] = {"torchscript": "TorchScript", "pt2": "a file of torch.export"}


class Opened(NamedTuple):
    """An exported file that is ready to run."""

    run: Run
    metadata: Any  # what the file says about itself, not checked; None: the file was not made by this project
    decide: Run | None = None  # images -> the labels bool (B, C) that the file gives; None: it gives none


class TorchRun:
    """Runs `model`, which lies on `device`, without gradients: images uint8 (B, 3, H, W) -> logits (B, C)."""

    def __init__(self, model: MultiLabelModel, device: torch.device) -> None:
        self.model, self.run = model, run_torch(model, device)
        self.run_backbone = run_torch(model.extract_features, device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.run(images)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """From one pass: the logits (B, C), and the features that the head sees, their mean over positions (B, D)."""
        features = self.run_backbone(images)
        with torch.inference_mode():
            return self.model.head(features).float(), pool(features)


def make_torch(model: MultiLabelModel, image_size: ImageSize, device: torch.device) -> TorchRun:
    """Run `model` in PyTorch on `device`, with BatchNorm folded and in the memory format channels_last."""
    folded = fold_batchnorm(model, make_example(image_size))
    assert isinstance(folded, MultiLabelModel)
    folded = folded.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return TorchRun(folded, device)


def run_torch(model: Callable[[Tensor], Tensor], device: torch.device) -> Run:
    """Run `model`, whose tensors lie on `device`, without gradients."""

    overlaps = device.type == "cuda"  # Apple's GPUs would read memory that was freed meanwhile (pytorch #189690)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images.to(device, non_blocking=overlaps)).float()

    return run


def run_one_by_one(run: Run) -> Run:
    """Let `run`, which takes batches of one image only, take batches of any size."""
    return lambda images: torch.cat([run(image[None]) for image in images])


def recognise(path: Path) -> str:
    """The kind of the model file `path`, a key of ENGINES_OF, told by its content. No code from the file is run.

    Of a folder in the layout of the hub, or its address, that is "checkpoint" or "timm": see models/hub_folders.py.
    Raises InputError if there is no such file, or if it is of none of these kinds.
    """
    path = hub_folders.locate(path)
    if hub_folders.is_ours(path):
        return "checkpoint"
    if hub_folders.is_timms(path):
        return "timm"
    if not path.is_file():
        raise InputError(f"there is no model {path}: run training.py first, or set the path to one that exists")
    try:
        with open_file(path) as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read the model {path}: {error.strerror}") from error
    if start[4:8] == b"TFL3":  # before ZIP: its metadata are in an archive behind it
        return "litert"
    if zipfile.is_zipfile(path):
        return _recognise_zip(path)
    if path.suffix == ".onnx":
        return "onnx"
    if start.lstrip().startswith((b"<?xml", b"<net")):
        return "openvino"
    if path.suffix in (".pt", ".pth") or start.lstrip().startswith(b"PK"):
        return "checkpoint"  # a damaged one, or another project's: the error comes when it is read
    raise InputError(
        f"{path} is no model: a checkpoint or TorchScript (.pt), torch.export (.pt2), .onnx, OpenVINO .xml, or .tflite"
    )


def _recognise_zip(path: Path) -> str:
    """The kind of the zip file `path`: all that torch writes are zip files, and differ in the files inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "checkpoint"  # damaged: torch.load, which opens no program, will say so
    if "archive_format" in inside:  # torch.export writes it, and opens no file without it
        return "pt2"
    return "torchscript" if any(name.startswith("code/") for name in inside) else "checkpoint"


def require_program_name(path: Path, format: str) -> None:
    """Raise InputError if the file `path`, of the kind `format`, is a program but its name does not say so."""
    ending = PROGRAM_ENDINGS.get(format)
    if ending and not path.name.endswith(ending):
        raise InputError(
            f"{path} is {KIND_NAMES[format]}, a program that may do whatever you may: if you trust who made it, give "
            f"it a name that ends in {ending}"
        )


def name_weights(path: Path) -> Path:
    """The file beside the exported file `path` that holds its weights: of OpenVINO always, of ONNX above 2 GB."""
    return path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(f"{path.name}.data")


def list_files(path: Path) -> list[Path]:
    """The files that the model `path` consists of: itself, and that of its weights if there is one."""
    return [file for file in (path, name_weights(path)) if file.is_file()]


def require_checkpoint(path: Path, reason: str) -> None:
    """Raise InputError, whose message contains `reason`, if the model file `path` is no checkpoint."""
    format = recognise(path)
    if format != "checkpoint":
        raise InputError(f"{path} is {format}, {reason}: set MODEL_PATH to the checkpoint (.pt)")


def choose_engine(name: str, format: str, path: Path) -> str:
    """The engine that opens `path`, a file of the kind `format`: `name`, or for "auto" the first that can.

    Raises InputError if there is no engine `name`, or if it does not open files of this kind.
    """
    if name not in ("auto", *ENGINES):
        raise InputError(f"there is no engine {name!r}{suggest(name, ENGINES)}; known: auto, {', '.join(ENGINES)}")
    suitable = ENGINES_OF[format]
    if name not in ("auto", *suitable):
        raise InputError(f"engine {name} does not open {path} ({format}): choose one of auto, {', '.join(suitable)}")
    return suitable[0] if name == "auto" else name


def require_engine(name: str, device: torch.device, packages: Sequence[str] = ()) -> None:
    """Raise InputError if engine `name` does not run on `device`, or if its package or one of `packages` is missing."""
    if name != "torch" and device.type != "cpu":
        raise InputError(f"engine {name} runs on a CPU, not on {device}: choose engine torch or device cpu")
    require_packages([PACKAGES.get(name, name), *packages], f"engine {name}")


def require_packages(packages: Sequence[str], what: str) -> None:
    """Raise InputError, which says that `what` needs them, if some of `packages` are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        file = "requirements-litert.txt" if "litert" in missing[0] else "requirements-export.txt"
        raise InputError(f"{what} needs {', '.join(missing)}: pip install -r {file}")


def open_program(path: Path, device: torch.device) -> Opened:
    """Open a TorchScript or torch.export file in PyTorch, on any device. Raises InputError if it is damaged.

    Both are programs, which may do whatever the user may.
    """
    return (open_pt2 if recognise(path) == "pt2" else open_torchscript)(path, device)


def open_torchscript(path: Path, device: torch.device) -> Opened:
    """Open a TorchScript file in PyTorch, on any device. Raises InputError if it is damaged.

    TorchScript is a program: it can read and write files as soon as it runs.
    """
    if damage := find_damage(path, is_packed=True):
        raise InputError(f"cannot open {path} as TorchScript: {damage}")
    name = f"{METADATA}.json"
    extra = {name: ""}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch calls TorchScript deprecated
        try:
            model = torch.jit.load(path, map_location=device, _extra_files=extra)
        except RuntimeError as error:
            raise _make_error(path, "TorchScript", error) from error

    return Opened(_run_program(model, path, device), _read_metadata(extra[name]))


def open_pt2(path: Path, device: torch.device) -> Opened:
    """Open a file of torch.export in PyTorch, on any device. Raises InputError if it is damaged.

    It is a program: torch may run code from it already when it reads it, since it evaluates the sizes in it and takes
    any pickle and any compiled library that it holds.
    """
    from torch.export.passes import move_to_device_pass

    if damage := find_damage(path):
        raise InputError(f"cannot open {path} as torch.export: {damage}")
    name = f"{METADATA}.json"
    extra = {name: ""}
    with silence(), open_file(path) as file:  # torch logs what it then raises
        try:
            program = torch.export.load(file, extra_files=extra)
            model = move_to_device_pass(program, device).module()
        except Exception as error:  # torch has a class of errors for each of its steps
            raise _make_error(path, "torch.export", error) from error
    return Opened(_run_program(model, path, device), _read_metadata(extra[name]))


def _run_program(model: Callable[[Tensor], Tensor], path: Path, device: torch.device) -> Run:
    def run(images: Tensor) -> Tensor:
        try:
            return run_torch(model, device)(images)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # the second for a size that torch.export was not told of
            raise _make_run_error(path, error) from error

    return run


def open_onnxruntime(path: Path, device: torch.device) -> Opened:
    """Open an ONNX file in ONNX Runtime, on the CPU. Raises InputError if it is damaged."""
    require_engine("onnxruntime", device)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Idle threads would otherwise spin, and take the cores from the threads that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many classes of errors, without a common one
        raise _make_error(path, "ONNX", error) from error
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA)

    def run(images: Tensor, output: str = outputs[0]) -> Tensor:
        try:
            return torch.from_numpy(session.run([output], {name: _lay_out(images, name)})[0])
        except Exception as error:
            raise _make_run_error(path, error) from error

    decide = functools.partial(run, output=LABELS) if LABELS in outputs[1:] else None
    return Opened(run, _read_metadata(metadata), decide)


def open_openvino(path: Path, device: torch.device) -> Opened:
    """Open an OpenVINO IR or ONNX file in OpenVINO, on the CPU, in float32 or int8. Raises InputError if it is damaged.

    bfloat16 is never used, also on a CPU that has it.
    """
    require_engine("openvino", device)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on all cores: as quick as many small requests
        "INFERENCE_PRECISION_HINT": "f32",  # the default on a CPU with bfloat16 is that; it changes logits by .1 to .3
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = get_openvino()
    try:
        model = core.read_model(path)
        follow_onnx(model)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _make_error(path, "OpenVINO IR or ONNX", error) from error
    metadata = None
    for place in ([METADATA], ["framework", METADATA]):  # of IR; of ONNX, whose metadata_props are read as "framework"
        if metadata is None and model.has_rt_info(place):
            metadata = model.get_rt_info(place).astype(str)

    name = compiled.inputs[0].any_name
    second = compiled.outputs[1:2]

    def run(images: Tensor, output: int = 0) -> Tensor:
        try:
            # copied, since OpenVINO uses the array again at its next run
            return torch.from_numpy(compiled(_lay_out(images, name))[output].copy())
        except (RuntimeError, ValueError, TypeError) as error:
            raise _make_run_error(path, error) from error

    gives_labels = any(LABELS in output.names for output in second)
    return Opened(run, _read_metadata(metadata), functools.partial(run, output=1) if gives_labels else None)


def open_litert(path: Path, device: torch.device) -> Opened:
    """Open a LiteRT file, on the CPU. Raises InputError if it is damaged."""
    require_engine("litert", device)
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
        interpreter.allocate_tensors()
        (image,), (output, *_) = interpreter.get_input_details(), interpreter.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise _make_error(path, "LiteRT", error) from error

    def run(images: Tensor) -> Tensor:
        try:
            interpreter.set_tensor(image["index"], images.numpy())
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise _make_run_error(path, error) from error
        return torch.from_numpy(interpreter.get_tensor(output["index"]))

    return Opened(run, _read_metadata(_read_archive_behind(path)))


def _read_archive_behind(path: Path) -> bytes | None:
    """The metadata in the ZIP archive behind the model `path`; None if there are none, or if a byte has changed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{METADATA}.json")
            is_packed = entry.file_size != entry.compress_size  # it might unpack to more than there is memory
            return None if is_packed else archive.read(entry)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError):
        return None


def _lay_out(images: Tensor, name: str) -> NDArray[np.uint8]:
    """Images (B, 3, H, W) as the input called `name` takes them."""
    return images[0].permute(1, 2, 0).numpy() if name == IMAGE else images.numpy()


def follow_onnx(model: openvino.Model) -> None:
    """Let an OpenVINO model that was read from ONNX decide as ONNX says: of equals the first comes first.

    OpenVINO (2026.4) reads the operator TopK without that order, and does not say so.
    """
    from openvino import opset11

    for operator in model.get_ops():
        if operator.get_type_name() != "TopK" or not operator.get_friendly_name().startswith(DECIDING):
            continue
        scores, count = (source.get_source_output() for source in operator.inputs())
        axis = operator.get_attributes()["axis"]
        exact = opset11.topk(scores, count, axis, "max", "value", "i64", stable=True)
        for output, replacement in zip(operator.outputs(), exact.outputs(), strict=True):
            output.replace(replacement)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Print nothing: torch's exporter prints whole graphs when it fails, and its reader whole stacks."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


@functools.cache
def get_openvino() -> openvino.Core:
    """The only OpenVINO core of this process. It is never freed.

    The CPU plugin of a core sets an alternate stack for signals in its thread, and unmaps that stack when it is freed.
    If two cores are freed in the order in which they were made, a stack stays in use after it was unmapped: the next
    signal that Python handles (SIGCHLD, Ctrl-C) then crashes the process.
    """
    import openvino

    return openvino.Core()


def _read_metadata(text: str | bytes | None) -> Any:
    """What an exported file says about itself; None if it says nothing in JSON."""
    try:
        return parse_json(text, METADATA, allow_nan=True) if text else None
    except InputError:
        return None


def _make_error(path: Path, kind: str, error: Exception) -> InputError:
    return InputError(f"cannot open {path} as {kind}: it is damaged, or of another version ({_last_line(error)})")


def _make_run_error(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot run {path} on uint8 images (B, 3, H, W) of its size: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


# keys: the values of TEST_ENGINE; values: (path, device) -> the exported file, opened in that engine
ENGINES: dict[str, Callable[[Path, torch.device], Opened]] = {
    "torch": open_program,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "litert": open_litert,
}
# keys: the kinds of model files; values: the engines that run them, the default engine first
ENGINES_OF: dict[str, tuple[str, ...]] = {
    "checkpoint": ("torch", "onnxruntime", "openvino"),  # in the last two by an ONNX file that is made from it
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "torchscript": ("torch",),
    "timm": ("torch",),  # a folder of the hub's layout that others made: export/timm_folders.py opens it
    "pt2": ("torch",),
    "litert": ("litert",),
}
