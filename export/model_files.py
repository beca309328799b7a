"""Makes model files: ONNX, OpenVINO IR and TorchScript, in float or 8-bit integers; export/engines.py opens them.

    run = open_kept(Source(...), "openvino", device)    # what TEST_ENGINE runs a checkpoint by
    FORMATS["torchscript"].save(Export(...), path)      # what EXPORT_FORMATS makes

Their input is `images`, uint8 RGB (B, 3, H, W); scaling and normalisation are inside.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from export import engines
from export.engines import METADATA, get_openvino
from models.batchnorm_folding import TOLERANCE, measure_change
from models_factory import make_example
from utils import InputError, write_atomically

# ---- models ----


def make_onnx(model: nn.Module, example: Tensor, dynamic: Collection[str] = ("batch",), output: str = "logits") -> Any:
    """The ONNX ModelProto of `model`, whose input `example` is: `images` uint8 (B, 3, S, S) -> `output` (B, C).

    What `dynamic` names varies: "batch", and "size", which is height and width. Raises InputError where the network
    cannot do without one of them, or has an operator that ONNX lacks.
    """
    axes = {0: "batch"} if "batch" in dynamic else {}
    axes |= {2: "height", 3: "width"} if "size" in dynamic else {}
    dimensions = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    try:
        program = torch.onnx.export(
            model,
            (example if "batch" in dynamic else example[:1],),
            dynamo=True,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=(dimensions,) if dimensions else None,
            verbose=False,
        )
    except Exception as error:  # of the exporter, which has a class for each step
        advice = f"; {ADVICE}" if "size" in dynamic else ""
        raise InputError(f"ONNX cannot express this network: {shorten(error)}{advice}") from error
    assert program is not None
    return program.model_proto


def shorten(error: Exception) -> str:
    """The first line of the error that an exporter's error came from."""
    while error.__cause__ is not None:
        error = error.__cause__  # pyright: ignore[reportAssignmentType]
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quantize(model: Any, paths: Sequence[str], read_image: Callable[[str], Tensor]) -> Any:
    """The ONNX ModelProto in int8, by NNCF for OpenVINO; its ranges are those of the image files."""
    import nncf

    images = nncf.Dataset(paths, lambda path: {"images": read_image(path)[None].numpy()})
    return nncf.quantize(model, images, subset_size=len(paths))


# ---- exported files ----


@dataclass(frozen=True)
class Export:
    """What exported files are made from."""

    network: nn.Module  # on the CPU, BatchNorm folded: images -> what the file gives
    metadata: dict[str, Any]  # all but precision, with output and dynamic: what varies of "batch" and "size"
    read_image: Callable[[str], Tensor]  # an image file -> uint8 (3, S, S)
    int8_images: Sequence[str] = ()  # image files, for the ranges of int8
    fp16: bool = False  # openvino: weights of 16 bits

    @cached_property
    def onnx(self) -> Any:
        """The ONNX ModelProto, without metadata, that all but TorchScript are made from."""
        values = self.metadata
        return make_onnx(self.network, make_example(values["image_size"]), values["dynamic"], values["output"])


class Activated(nn.Module):
    """A network and what makes probabilities of its logits."""

    def __init__(self, network: nn.Module, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.activate = network, activate

    def forward(self, images: Tensor) -> Tensor:
        return self.activate(self.network(images))


def save_onnx(export: Export, path: Path) -> None:
    """ONNX in float32, checked by onnx.checker."""
    _save_proto(export.onnx, export, path, "fp32")


def save_onnx_int8(export: Export, path: Path) -> None:
    """ONNX in int8: QDQ, static ranges, by ONNX Runtime's own tools."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.paths = iter(export.int8_images)

        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            path = next(self.paths, None)
            return None if path is None else {"images": export.read_image(path)[None].numpy()}

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        prepared, file = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        onnx.save(export.onnx, prepared)
        quant_pre_process(prepared, prepared, skip_symbolic_shape=True)  # a path: from memory it fails
        quantize_static(
            prepared,
            file,
            Reader(),
            per_channel=True,
            reduce_range=True,  # else processors without VNNI overflow in 16 bits
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _save_proto(onnx.load(file), export, path, "int8")


def save_openvino(export: Export, path: Path) -> None:
    """OpenVINO IR (.xml, with its weights beside it in .bin) in float32, or weights of 16 bits."""
    _save_ir(export.onnx, export, path, "fp16" if export.fp16 else "fp32")


def save_openvino_int8(export: Export, path: Path) -> None:
    """OpenVINO IR in int8, quantised by NNCF."""
    quantized = quantize(copy_proto(export.onnx), export.int8_images, export.read_image)
    _save_ir(quantized, export, path, "int8")


def save_torchscript(export: Export, path: Path) -> None:
    """TorchScript, traced and frozen: it runs without this project's code, also in C++."""
    dynamic = export.metadata["dynamic"]
    example = make_example(export.metadata["image_size"])[: 2 if "batch" in dynamic else 1]
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # torch calls TorchScript deprecated
        try:
            traced = torch.jit.freeze(torch.jit.trace(export.network, (example,), check_trace=False))
        except RuntimeError as error:
            raise InputError(f"TorchScript cannot express this network: {shorten(error)}") from error

    metadata = json.dumps(export.metadata | {"precision": "fp32"})

    def write(temporary: Path) -> None:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            torch.jit.save(traced, str(temporary), _extra_files={f"{METADATA}.json": metadata})
        _require_sizes(export, "torch", temporary, "fp32")

    write_atomically(path, write)


def _save_proto(model: Any, export: Export, path: Path, precision: str) -> None:
    import onnx

    model, values = copy_proto(model), export.metadata | {"precision": precision}
    model.doc_string = describe(values)
    model.producer_name = values["exported_by"]
    onnx.helper.set_model_props(model, {METADATA: json.dumps(values)})

    def write(temporary: Path) -> None:
        onnx.save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        _require_sizes(export, "onnxruntime", temporary, precision)

    write_atomically(path, write)


def _save_ir(model: Any, export: Export, path: Path, precision: str) -> None:
    import openvino

    values = export.metadata | {"precision": precision}
    converted = get_openvino().read_model(model.SerializeToString())
    converted.set_rt_info(json.dumps(values), [METADATA])
    converted.set_rt_info(describe(values), ["description"])

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            openvino.save_model(converted, file, compress_to_fp16=precision == "fp16")
            _require_sizes(export, "openvino", file, precision)
            write_atomically(path.with_suffix(".bin"), lambda copy: shutil.move(file.with_suffix(".bin"), copy))
            shutil.move(file, temporary)

    write_atomically(path, write)


def _require_sizes(export: Export, engine: str, path: Path, precision: str) -> None:
    """Raise InputError where the file's size is to vary, but what it gives at another size is not the network's."""
    values = export.metadata
    if "size" not in values["dynamic"]:
        return
    size = values["image_size"]
    images = torch.nn.functional.interpolate(make_example(size)[:1].float(), (size + 64, size + 32)).to(torch.uint8)
    try:
        with torch.no_grad():
            expected = export.network(images)
        change = measure_change(engines.ENGINES[engine](path, torch.device("cpu")).run(images), expected)
    except Exception as error:  # each network and engine says it in its own way
        raise InputError(f"{values['model_name']} takes one size only ({shorten(error)}): {ADVICE}") from error
    if precision == "fp32" and not change <= TOLERANCE:
        raise InputError(f"in this format {values['model_name']} takes one size only: {ADVICE}")


def copy_proto(model: Any) -> Any:
    """A copy of the ONNX ModelProto."""
    copied = type(model)()
    copied.CopyFrom(model)
    return copied


def describe(metadata: dict[str, Any]) -> str:
    """What an exported file is, for a person who finds it."""
    size = "H, W" if "size" in metadata["dynamic"] else f"{metadata['image_size']}, {metadata['image_size']}"
    batch = "B" if "batch" in metadata["dynamic"] else "1"
    classes = metadata["classes"]
    named = f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
    return (
        f"Multi-label image classification: {metadata['model_name']} + {metadata['head']}. Input images: uint8 RGB "
        f"({batch}, 3, {size}), resized by {metadata['resize_rule']!r}; scaling and normalisation are inside. Output "
        f"{metadata['output']}: float32 ({batch}, {len(classes)}), of {named}. metadata {METADATA!r}: JSON with "
        f"classes, thresholds and the rest."
    )


def mark_path(path: Path) -> Path:
    """The file whose being there says that the exported file `path` has not passed its comparison."""
    return path.with_name(f"{path.name}.FAILED")


ADVICE = "leave size out of EXPORT_DYNAMIC"


class ExportFormat(NamedTuple):
    """How a kind of file is made."""

    save: Callable[[Export, Path], None]
    ending: str  # of its name
    packages: tuple[str, ...] = ()  # that making and opening it takes


# keys: what EXPORT_FORMATS takes
EXPORT_FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(save_onnx, ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ExportFormat(save_openvino, ".xml", ("onnx", "onnxscript", "openvino")),
    "torchscript": ExportFormat(save_torchscript, "_torchscript.pt"),
    "onnx_int8": ExportFormat(save_onnx_int8, "_int8.onnx", ("onnx", "onnxscript", "onnxruntime")),
    "openvino_int8": ExportFormat(save_openvino_int8, "_int8.xml", ("onnx", "onnxscript", "openvino", "nncf")),
}
