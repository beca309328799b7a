"""Makes files of torch.export (.pt2): a network as a graph of PyTorch's operators, without its Python code.

    save_pt2(Export(...), path)

They take the place of TorchScript, which PyTorch calls deprecated. `torch.export.load` opens them in Python. A file is
for the PyTorch that made it and later ones: PyTorch does not promise more.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dataset.whole_files import write_atomically
from export.engines import METADATA, silence
from export.model_files import Export, require_plain, require_sizes
from export.onnx_models import ADVICE, explain, use_plain_layers
from models_factory import make_example
from utils import InputError

SOURCES = ("stack_trace", "nn_module_stack", "from_node", "torch_fn")  # in a node's metadata: lines of code, with paths


def save_pt2(export: Export, path: Path) -> None:
    """Write a file of torch.export in float32."""
    require_plain(export, "pt2")
    program = make_program(
        export.network, make_example(export.metadata["image_size"]), dynamic=export.metadata["dynamic"]
    )
    extra = {f"{METADATA}.json": json.dumps(export.metadata | {"precision": "fp32"})}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            torch.export.save(program, file, extra_files=extra)
        require_sizes(export, "torch", temporary, "fp32")

    write_atomically(path, write)


def make_program(model: nn.Module, example: Tensor, dynamic: Collection[str] = ("batch",)) -> ExportedProgram:
    """Trace `model`, on the example images uint8 (2, 3, H, W), into a program of PyTorch's operators.

    `dynamic` names what may vary later: "batch", and "size", which is height and width. Raises InputError if the
    network does not allow that, or if what it computes depends on the values in the images.
    """
    advice = ADVICE if "size" in dynamic else "EXPORT_FORMATS torchscript may still work"
    try:
        with use_plain_layers(model), silence():
            program = torch.export.export(
                model,
                (example if "batch" in dynamic else example[:1],),
                dynamic_shapes=choose_axes(dynamic),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch has a class of errors for each of its steps
        raise InputError(f"torch.export cannot express this network: {explain(error)}; {advice}") from error
    for node in program.graph.nodes:
        for source in SOURCES:
            node.meta.pop(source, None)
    return program


def choose_axes(dynamic: Collection[str]) -> tuple[dict[int, Any]] | None:
    """What torch.export takes for the axes of `images` that vary; None if none does."""
    axes = [*([0] if "batch" in dynamic else []), *([2, 3] if "size" in dynamic else [])]
    return (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),) if axes else None
