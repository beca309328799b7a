"""Makes folders that inference servers open: a model repository for Triton, and one for OpenVINO Model Server.

    RUN_triton/                        tritonserver --model-repository=RUN_triton
        classifier.json                what a client needs: classes, thresholds, how images are resized
        classifier/config.pbtxt        names, types and shapes of input and output; how requests are batched
        classifier/labels.txt          the classes, one a line
        classifier/1/model.onnx        version 1 of the model
    RUN_openvino_server/               ovms --config_path RUN_openvino_server/config.json
        classifier.json
        config.json                    which models there are
        classifier/1/model.xml, model.bin

The models give probabilities (`output` in export/export_formats.py). The servers know no thresholds: a client compares
with those of classifier.json; docs/deploying.md has one. A later model may go beside the first, as the folder `2`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_sizes import as_size
from dataset.json_files import to_json
from dataset.whole_files import replace_folder, write_text
from export import model_files
from export.model_files import Export
from utils import make_visible

MODEL = "classifier"  # the folder's name, by which clients call the model
ONNX_FILE, IR_FILE = f"{MODEL}/1/model.onnx", f"{MODEL}/1/model.xml"  # in an exported folder
MAX_BATCH_SIZE = 32  # images of several requests that are computed together, as SERVING_BATCH_SIZE
MAX_DELAY_MICROSECONDS = 2000  # how long a request waits for others, as SERVING_BATCH_WAIT_MS

# what of the metadata goes into classifier.json
FACTS = ("classes", "thresholds", "min_labels", "max_labels", "resize_rule", "output", "applied_calibration")
TRITON_TYPES = {"UINT8": "TYPE_UINT8", "FLOAT": "TYPE_FP32", "INT64": "TYPE_INT64", "BOOL": "TYPE_BOOL"}


class TensorFacts(NamedTuple):
    """An input or output of an ONNX model."""

    name: str
    type: str  # in ONNX, such as "UINT8"
    shape: tuple[int | str, ...]  # a text, such as "batch", where any length will do


def save_triton(export: Export, path: Path) -> None:
    """Write the folder `path`: a model repository for Triton, with the model in ONNX."""
    with replace_folder(path) as folder:
        model_files.save_onnx(export, folder / ONNX_FILE)
        write_text(folder / MODEL / "config.pbtxt", make_triton_config(folder / ONNX_FILE, export.metadata))
        labels = map(make_visible, export.metadata["classes"])  # a line end in a name would move those after it
        write_text(folder / MODEL / "labels.txt", "".join(f"{label}\n" for label in labels))
        write_facts(export, folder)


def save_openvino_server(export: Export, path: Path) -> None:
    """Write the folder `path` for OpenVINO Model Server, with the model in OpenVINO IR."""
    # As in export/engines.py: a CPU that has bfloat16 would compute in it, which changes logits by .1 to .3.
    settings = {"name": MODEL, "base_path": MODEL, "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    with replace_folder(path) as folder:
        model_files.save_openvino(export, folder / IR_FILE)
        write_text(folder / "config.json", to_json({"model_config_list": [{"config": settings}]}, indent=1) + "\n")
        write_facts(export, folder)


def write_facts(export: Export, folder: Path) -> None:
    """Write classifier.json: what a client has to know of the model."""
    metadata = export.metadata
    size = as_size(metadata["image_size"])
    facts = {"model": metadata["model_name"], "checkpoint_sha256": metadata["checkpoint_sha256"]}
    facts |= {"input": metadata.get("input", "images"), "height": size.height, "width": size.width}
    facts |= {name: metadata[name] for name in FACTS if name in metadata}
    write_text(folder / f"{MODEL}.json", to_json(facts, indent=1) + "\n")


def make_triton_config(path: Path, metadata: dict[str, Any]) -> str:
    """The text of config.pbtxt for the ONNX file `path`, from the inputs and outputs that it has.

    It says no name, so that the folder may have any. KIND_AUTO is a GPU, or the CPU where there is none. The model
    computes one image of zeros before it takes requests, since an engine's first run takes longer than the others.
    """
    inputs, outputs = read_tensors(path)
    is_batched = inputs[0].shape[0] == "batch"
    lines = [
        'backend: "onnxruntime"',
        f'default_model_filename: "{path.name}"',
        f"max_batch_size: {MAX_BATCH_SIZE if is_batched else 0}",
        *(f"input [ {{ {describe_tensor(tensor, is_batched)} }} ]" for tensor in inputs),
    ]
    for tensor in outputs:
        labels = ' label_filename: "labels.txt"' if tensor.name == metadata["output"] else ""
        lines.append(f"output [ {{ {describe_tensor(tensor, is_batched)}{labels} }} ]")
    lines.append("instance_group [ { kind: KIND_AUTO } ]")
    if is_batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_DELAY_MICROSECONDS} }}")
    lines += ['model_warmup [ { name: "an image of zeros" batch_size: 1', *describe_zeros(inputs, metadata), "} ]"]
    return "\n".join([*lines, ""])


def describe_tensor(tensor: TensorFacts, is_batched: bool) -> str:
    """Name, type and shape as in config.pbtxt, where -1 is any length, and where the length of a batch is left out."""
    lengths = [length if isinstance(length, int) else -1 for length in tensor.shape[is_batched:]]
    return f'name: "{tensor.name}" data_type: {TRITON_TYPES[tensor.type]} dims: {lengths}'


def describe_zeros(inputs: list[TensorFacts], metadata: dict[str, Any]) -> list[str]:
    """The inputs of a request for config.pbtxt, all zeros: one image of the model's size."""
    lengths = as_size(metadata["image_size"])._asdict()
    lines = []
    for tensor in inputs:
        shape = [lengths[length] if isinstance(length, str) else length for length in tensor.shape if length != "batch"]
        value = f"data_type: {TRITON_TYPES[tensor.type]} dims: {shape} zero_data: true"
        lines.append(f'  inputs {{ key: "{tensor.name}" value {{ {value} }} }}')
    return lines


def read_tensors(path: Path) -> tuple[list[TensorFacts], list[TensorFacts]]:
    """The inputs and outputs of the ONNX file `path`."""
    import onnx

    def read(values: Any) -> list[TensorFacts]:
        return [
            TensorFacts(
                name=value.name,
                type=onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                shape=tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]

    graph = onnx.load(str(path), load_external_data=False).graph
    return read(graph.input), read(graph.output)
