"""A trained model made quick to run: `ENGINES[name](source)` gives images uint8 (B, 3, S, S) -> logits float32 (B, C).

All of them fold BatchNorm into the layer before it. Those besides torch run an ONNX file, which is made once and
kept; they are for CPUs. `source.calibration` images turn it into 8-bit integers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from utils import InputError, warn, write_atomically

Engine = Callable[[Tensor], Tensor]

VERSION = 1  # of the kept files: raise it when they would come out otherwise
TOLERANCE = 1e-3  # of the largest logit: what folding or conversion may change


@dataclass(frozen=True)
class Source:
    """What an engine is made from."""

    make_model: Callable[[], nn.Module]  # on the CPU; called only when no kept file serves
    image_size: int
    device: torch.device
    checkpoint: Path  # its content and the calibration images name the ONNX file
    folder: Path  # where that is kept
    read_image: Callable[[str], Tensor]  # an image file -> uint8 (3, S, S)
    calibration: Sequence[str] = ()  # image files: int8, with ranges read off them; none: float


def fold_batchnorm(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `module` in eval mode with every BatchNorm that follows a convolution or Linear folded into it.

    What follows what is seen on `example`, an input of `module`. Where the output on it changes, the copy is left as it
    was, with a warning: a convolution whose output goes elsewhere as well, or a network that magnifies rounding.
    """
    original, module = module, deepcopy(module).eval().requires_grad_(False)
    expected, pairs = _find_pairs(module, example)
    for before, norm in pairs:
        layer, batchnorm = module.get_submodule(before), module.get_submodule(norm)
        assert isinstance(batchnorm, _BatchNorm)
        if isinstance(layer, nn.Linear):
            module.set_submodule(before, fuse_linear_bn_eval(layer, batchnorm))
        else:
            module.set_submodule(before, fuse_conv_bn_eval(layer, batchnorm))  # pyright: ignore[reportArgumentType]
        # timm's BatchNormAct2d has its activation inside
        rest = [part for name, part in batchnorm.named_children() if name in ("drop", "act")]
        module.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())
    module.requires_grad_(False)
    with torch.no_grad():
        change = _measure_change(module(example), expected)
    if not change <= TOLERANCE:  # also where it is not a number
        warn(f"BatchNorm is not folded: it would change the output of {type(module).__name__} by {change:.1e} of it")
        return deepcopy(original).eval().requires_grad_(False)
    return module


def _find_pairs(module: nn.Module, example: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """The output of `module`, and the names of each (convolution or Linear, BatchNorm that alone takes its output)."""
    calls: Counter[str] = Counter()
    producers: dict[int, str] = {}  # by the identity of their output
    consumers: dict[int, list[str]] = {}
    alive: list[Any] = []  # an identity lasts as long as its object

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] += 1
            alive.extend((*inputs, output))
            for tensor in inputs:
                consumers.setdefault(id(tensor), []).append(name)
            is_flat_linear = isinstance(layer, nn.Linear) and output.dim() == 2  # else BatchNorm takes another axis
            if is_flat_linear or isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                producers[id(output)] = name

        return note

    layers = dict(module.named_modules())
    hooks = [
        layer.register_forward_hook(watch(name))
        for name, layer in layers.items()
        if isinstance(layer, _BatchNorm) or not any(layer.children())
    ]
    try:
        with torch.no_grad():
            output = module(example)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(before, consumers.get(tensor, [])) for tensor, before in producers.items()]
    return output, [
        (before, after[0])
        for before, after in pairs
        if len(after) == 1 and calls[before] == calls[after[0]] == 1 and _is_foldable(layers[after[0]])
    ]


def _is_foldable(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _measure_change(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def make_example(image_size: int) -> Tensor:
    """Two images of noise uint8 (2, 3, S, S), always the same; an example of one would fix the batch size at one."""
    return torch.randint(0, 256, (2, 3, image_size, image_size), generator=torch.Generator(), dtype=torch.uint8)


def make_torch(source: Source) -> Engine:
    """PyTorch on any device, BatchNorm folded, in channels_last; float only."""
    if source.calibration:
        raise InputError("engine torch runs float models only: choose openvino for int8")
    model = fold_batchnorm(source.make_model(), make_example(source.image_size)).to(source.device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in torch's annotations

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images.to(source.device, non_blocking=True)).float()

    return run


def make_onnxruntime(source: Source) -> Engine:
    """ONNX Runtime on the CPU."""
    _require("onnxruntime", source)

    def load(file: Path) -> Engine:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # idle threads that spin take the cores from those that decode
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return _load_or_make(source, load)


def make_openvino(source: Source) -> Engine:
    """OpenVINO on the CPU, in float32 (or int8) even where the processor offers bfloat16."""
    _require("openvino", source)

    def load(file: Path) -> Engine:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time over all cores: as quick as many small requests
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16, the default where there is one, moves logits by .1 to .3
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
        return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())

    return _load_or_make(source, load)


def _require(package: str, source: Source) -> None:
    """Raise InputError unless the packages are there, the device is a CPU and the precision is to be had."""
    missing = [name for name in (package, *_list_makers(source)) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"engine {package} needs {', '.join(missing)}: pip install -r requirements-export.txt")
    if source.device.type != "cpu":
        raise InputError(f"engine {package} runs on a CPU, not on {source.device}: choose engine torch or device cpu")
    if source.calibration and package != "openvino":
        raise InputError(f"engine {package} runs float models only: choose openvino for int8")


def _list_makers(source: Source) -> list[str]:
    """The packages that make the ONNX file."""
    return ["torch", "onnx", "onnxscript", *(["nncf"] if source.calibration else [])]


def _load_or_make(source: Source, load: Callable[[Path], Engine]) -> Engine:
    """The engine of the kept ONNX file, which is made first where there is none."""
    file = name_file(source)
    if file.is_file():
        return load(file)
    print(f"making {file} (once)", flush=True)
    example = make_example(source.image_size)
    model = fold_batchnorm(source.make_model(), example)
    exported = export_onnx(model, example)
    exported = quantize(exported, source) if source.calibration else exported

    def write(temporary: Path) -> None:
        import onnx

        onnx.save(exported, temporary)
        if not source.calibration:
            with torch.no_grad():
                change = _measure_change(load(temporary)(example), model(example))
            if not change <= TOLERANCE:
                raise InputError(
                    f"converting {source.checkpoint} changes its output by {change:.1e} of the largest value; at most "
                    f"{TOLERANCE} may be"
                )

    write_atomically(file, write)
    return load(file)


def name_file(source: Source) -> Path:
    """Where the ONNX file is kept, under a name that changes with all it depends on.

    That is the checkpoint's content, the calibration images (path, size, time) and the packages that made it.
    """
    with open(source.checkpoint, "rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        stats = [Path(path).stat() for path in source.calibration]
    except OSError as error:
        raise InputError(f"cannot read image {error.filename}: {error.strerror}") from error
    images = [(path, s.st_size, s.st_mtime_ns) for path, s in zip(source.calibration, stats, strict=True)]
    packages = [(name, importlib.metadata.version(name)) for name in _list_makers(source)]
    identity = json.dumps([VERSION, checkpoint, images, packages])
    precision = "int8" if source.calibration else "float"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return source.folder / f"{source.checkpoint.stem}_{precision}_{digest}.onnx"


def export_onnx(model: nn.Module, example: Tensor) -> Any:
    """The ONNX ModelProto of `model`: `images` uint8 (B, 3, S, S), any B -> `logits` (B, C)."""
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def quantize(model: Any, source: Source) -> Any:
    """The ONNX ModelProto in int8, its ranges those of the calibration images."""
    import nncf

    def read(path: str) -> dict[str, Any]:
        return {"images": source.read_image(path)[None].numpy()}

    images = nncf.Dataset(source.calibration, read)
    return nncf.quantize(model, images, subset_size=len(source.calibration))


# keys: what TEST_ENGINE takes
ENGINES: dict[str, Callable[[Source], Engine]] = {
    "torch": make_torch,
    "onnxruntime": make_onnxruntime,
    "openvino": make_openvino,
}
