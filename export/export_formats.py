"""The formats that a checkpoint is exported in: what makes each, what it is called, and which model in it is compared.

    EXPORT_FORMATS["torchscript"].save(Export(...), path)

A format writes a file or a folder. A folder is written whole, by `dataset.whole_files.replace_folder`; its report and
its mark lie beside it (FOLDER.json, FOLDER.FAILED).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from export import hub_folder, litert_models, model_files, pt2_models, server_folders
from export.engines import PROGRAM_ENDINGS
from export.model_files import Export
from export.web_folder import MODEL, save_web


class ExportFormat(NamedTuple):
    """How exports of one format are made."""

    save: Callable[[Export, Path], None]  # writes the file or folder at that path
    ending: str  # of its name
    packages: tuple[str, ...] = ()  # needed to make and to open it
    model: str | None = None  # None: it writes a file; else a folder, and this in it is opened for the comparison
    output: str | None = None  # what it gives, "logits" or "probabilities"; None: EXPORT_OUTPUT

    def find_model(self, path: Path) -> Path:
        """What `predictor.load` opens of the export `path`: the file, or the model in the folder; "." is the folder."""
        return path if self.model is None else path / self.model


# keys: the values of the constant EXPORT_FORMATS of export_onnx.py
EXPORT_FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(model_files.save_onnx, ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": ExportFormat(model_files.save_openvino, ".xml", ("onnx", "onnxscript", "openvino")),
    "torchscript": ExportFormat(model_files.save_torchscript, PROGRAM_ENDINGS["torchscript"]),
    "pt2": ExportFormat(pt2_models.save_pt2, PROGRAM_ENDINGS["pt2"]),
    "litert": ExportFormat(litert_models.save_litert, ".tflite", ("litert_torch", "ai_edge_litert")),
    "onnx_int8": ExportFormat(model_files.save_onnx_int8, "_int8.onnx", ("onnx", "onnxscript", "onnxruntime")),
    "openvino_int8": ExportFormat(
        model_files.save_openvino_int8, "_int8.xml", ("onnx", "onnxscript", "openvino", "nncf")
    ),
    "web": ExportFormat(save_web, "_web", ("onnx", "onnxscript", "onnxruntime"), MODEL, output="probabilities"),
    "hub": ExportFormat(hub_folder.save_hub, "_hub", (), model="."),
    "triton": ExportFormat(
        server_folders.save_triton,
        "_triton",
        ("onnx", "onnxscript", "onnxruntime"),
        server_folders.ONNX_FILE,
        output="probabilities",
    ),
    "openvino_server": ExportFormat(
        server_folders.save_openvino_server,
        "_openvino_server",
        ("onnx", "onnxscript", "openvino"),
        server_folders.IR_FILE,
        output="probabilities",
    ),
}
