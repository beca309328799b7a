"""Makes ONNX models of networks, and writes them: large ones with their weights in a second file.

    model = make_onnx(network, make_example(224))
    write_whole(path, lambda file: write_onnx(model, file))    # path, and path.data beside it above 2 GB

ONNX cannot express everything that PyTorch can, and its exporter does not end for some shapes. `use_plain_layers` lets
the networks of timm compute the same in a form that it takes.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset.whole_files import make_temporary_folder, write_atomically
from export import engines
from utils import InputError, first_line

ADVICE = "leave size out of EXPORT_DYNAMIC"
MAX_BYTES = 2_000_000_000  # of weights inside an ONNX file; protobuf takes 2 GiB, with all that is beside them


def make_onnx(
    model: nn.Module,
    example: Tensor,
    dynamic: Collection[str] = ("batch",),
    output: str = "logits",
    advice: str = "EXPORT_FORMATS torchscript may still work",
) -> Any:
    """Convert `model` to an ONNX ModelProto.

    Its input is called `images`, uint8 (B, 3, H, W), and its output `output` (B, C). `example` is an input of the
    model. `dynamic` names what may vary later: "batch", and "size", which is height and width. Raises InputError,
    which ends with `advice`, if the network does not allow that, or if it has an operator that ONNX lacks.
    """
    axes = {}
    if "batch" in dynamic:
        axes[0] = "batch"
    if "size" in dynamic:
        axes |= {2: "height", 3: "width"}
        advice = ADVICE
    dimensions = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    try:
        with use_plain_layers(model), engines.silence():
            program = torch.onnx.export(
                model,
                (example if "batch" in dynamic else example[:1],),
                dynamo=True,
                input_names=["images"],
                output_names=[output],
                dynamic_shapes=(dimensions,) if dimensions else None,
                verbose=False,
            )
    except Exception as error:  # torch's exporter has a class of errors for each of its steps
        raise InputError(f"ONNX cannot express this network: {explain(error)}; {advice}") from error
    assert program is not None
    shape = program.model_proto.graph.input[0].type.tensor_type.shape.dim
    fixed = [name for axis, name in axes.items() if not shape[axis].dim_param]
    if fixed:
        raise InputError(
            f"ONNX cannot express this network for any {' and '.join(fixed)}: its code takes that of the example, "
            f"{'x'.join(str(dimension.dim_value or '?') for dimension in shape)}, for a constant; {advice}"
        )
    proto: Any = program.model_proto  # made anew each time that it is asked for
    clear_sources(proto)
    return proto


def clear_sources(model: Any) -> None:
    """Clear what torch notes in all parts of an ONNX ModelProto: the lines of code, with paths of this machine."""

    def clear(part: Any) -> None:
        for field, value in part.ListFields():
            if field.name in ("metadata_props", "doc_string"):
                part.ClearField(field.name)
            elif field.type == field.TYPE_MESSAGE and field.message_type.name != "TensorProto":
                values = [value] if hasattr(value, "ListFields") else value  # a message, or many
                for inner in values:
                    clear(inner)

    clear(model)


@contextlib.contextmanager
def use_plain_layers(model: nn.Module) -> Iterator[None]:
    """Let the layers of `model` compute the same with operators and shapes that exporters take, as long as this lasts.

    timm's fused attention has inputs of five dimensions in some networks, and ONNX knows four only. TensorFlow's
    "same" padding, as timm computes it, is an expression that sympy does not simplify in any reasonable time, once the
    image's size is a symbol and many layers follow each other.
    """
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", None) is True]
    padding: Any = sys.modules.get("timm.layers.padding")  # not imported: then no layer uses it
    get_same_padding = getattr(padding, "get_same_padding", None)
    for module in fused:
        module.fused_attn = False
    if padding:
        padding.get_same_padding = _get_same_padding
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True
        if padding:
            padding.get_same_padding = get_same_padding


def _get_same_padding(size: Any, kernel_size: int, stride: int, dilation: int = 1) -> Any:
    """The number of pixels by which `size` pixels are padded so that ceil(size / stride) come out of a convolution.

    That is max((ceil(size / stride) - 1) * stride + (kernel_size - 1) * dilation + 1 - size, 0), as timm has it, with
    the ceil written so that in the padded size + padding the size itself falls away: what the next layer gets is then a
    short expression, also after many layers.
    """
    reach = (kernel_size - 1) * dilation
    if stride == 1:
        return reach
    padding = (size - 1) // stride * stride + reach + 1 - size
    return padding if reach >= stride - 1 else max(padding, 0)  # without max where it is not needed


def explain(error: Exception) -> str:
    """Why torch's exporter failed, in one line."""
    reason = shorten(error)
    if "data-dependent" in reason:
        return "what it computes depends on the values in the images (an if or a loop over them)"
    return reason


def shorten(error: Exception) -> str:
    """The first line of the error that was the first cause of `error`."""
    while error.__cause__ is not None:
        error = error.__cause__  # pyright: ignore[reportAssignmentType]
    return first_line(error)


def quantize(model: Any, paths: Sequence[str], read_image: Callable[[str], Tensor]) -> Any:
    """Quantise an ONNX ModelProto to int8 for OpenVINO, by NNCF, with ranges measured on the image files `paths`."""
    import nncf

    require_small(model)
    images = nncf.Dataset(paths, lambda path: {"images": read_image(path)[None].numpy()})
    in_float = nncf.IgnoredScope(names=list_float_nodes(model))
    return nncf.quantize(model, images, subset_size=len(paths), ignored_scope=in_float)


def list_float_nodes(model: Any) -> list[str]:
    """The names of the nodes of an ONNX ModelProto that stay in float in int8: all of a head `kernel`, else the last
    matrix product, which is the head's, and all that is computed from it, to the output.

    exp() of a distance that is rounded to one of 256 levels is another similarity. In the last product, logits are
    small differences of large sums where the head was fitted closely. Of 256 levels of a probability the first is 0,
    which a rare class would then always have. All of this takes next to no time.
    """
    # only heads.Kernel has tensors of these names, whatever module the head is in; what it computes begins with them
    reached = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name.endswith(tuple(f"head.{name}" for name in ("mean", "scale", "axes", "landmarks")))
    }
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")]
    names = []
    if products and not reached:
        reached.update(products[-1].output)
        names.append(products[-1].name)
    for node in model.graph.node:  # in the order in which they compute
        if reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


# ---- files ----


def measure_weights(model: Any) -> int:
    """The size in bytes of the weights of an ONNX ModelProto."""
    import onnx

    total = 0
    for tensor in model.graph.initializer:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for length in tensor.dims:
            size *= length
        total += size
    return total


def require_small(model: Any) -> None:
    """Raise InputError if the weights of an ONNX ModelProto are more than the tools that make int8 take."""
    size = measure_weights(model)
    if size > MAX_BYTES:
        raise InputError(
            f"this network has {size / 1e9:.1f} GB of weights, more than the tools that make int8 take "
            f"({MAX_BYTES / 1e9:g} GB): export it in float"
        )


def write_onnx(model: Any, path: Path) -> None:
    """Write an ONNX ModelProto. Above MAX_BYTES its weights go into a second file, `path` with ".data" after it.

    They are then moved out of `model`: copy it first (`copy_proto`) to use it again.
    """
    import onnx

    if measure_weights(model) > MAX_BYTES:
        onnx.save(model, path, save_as_external_data=True, location=engines.name_weights(path).name)
    else:
        onnx.save(model, path)


def copy_proto(model: Any) -> Any:
    """Copy an ONNX ModelProto."""
    copied = type(model)()
    copied.CopyFrom(model)
    return copied


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a model file, and the file of its weights where there is one, so that both are complete or absent.

    `write(file)` writes them into an empty folder, where `file` has the name of `path`. An earlier file at `path` is
    removed before its weights are replaced: it is never left beside those of another model.
    """

    weights = engines.name_weights(path)

    def move(temporary: Path) -> None:
        with make_temporary_folder(path.with_suffix("")) as folder:
            file = folder / path.name
            write(file)
            made = engines.name_weights(file)
            if weights.exists():
                path.unlink(missing_ok=True)
            if made.exists():
                write_atomically(weights, lambda copy: shutil.move(made, copy))
            else:
                weights.unlink(missing_ok=True)
            shutil.move(file, temporary)

    write_atomically(path, move)
