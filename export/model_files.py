"""Makes model files: ONNX, OpenVINO IR and TorchScript, in float or 8-bit integers.

    save_torchscript(Export(...), path)

The input of a file is `images`, uint8 RGB (B, 3, H, W), or of a file that resizes `image`, uint8 RGB (H, W, 3); scaling
and normalisation are inside. export/engines.py opens these files. export/export_formats.py lists all formats, also
those whose files are made elsewhere.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset.class_names import show_names
from dataset.files import hash_file
from dataset.image_sizes import as_size
from dataset.json_files import read_json
from dataset.whole_files import write_atomically
from export import engines
from export.engines import METADATA, get_openvino
from export.onnx_ends import put_labels_behind, put_resizing_before
from export.onnx_models import (
    ADVICE,
    copy_proto,
    list_float_nodes,
    make_onnx,
    quantize,
    require_small,
    shorten,
    write_onnx,
    write_whole,
)
from models.batchnorm_folding import TOLERANCE, measure_change
from models.licences import explain_licence, find_licence
from models_factory import make_example
from utils import InputError, say

FOLDER_DEPTH = 3  # of a model file in an exported folder: REPOSITORY/MODEL/1/model.onnx is the deepest
NOT_COMPARED = "not compared with the checkpoint\n"  # in the mark of an export, until that is compared

# ---- exported files ----


@dataclass(frozen=True)
class Export:
    """What exported files are made from."""

    network: nn.Module  # on the CPU, with BatchNorm folded: images -> the output of the file
    metadata: dict[str, Any]  # all that the file says about itself, except its precision
    read_image: Callable[[str], Tensor]  # an image file -> uint8 (3, H, W)
    int8_images: Sequence[str] = ()  # image files from which the ranges of int8 are measured
    fp16: bool = False  # OpenVINO IR keeps its weights in 16 bits
    checkpoint: Path | None = None  # the file that they are made from; None: the network is from elsewhere
    make_card: Callable[[str], str] | None = None  # hub: why timm does not open it ("": it does) -> README.md
    render: Callable[..., str] | None = None  # evaluation.pages.render, for formats that have a page
    cache_folder: Path | None = None  # where packages may lie that a format takes files from

    @cached_property
    def onnx(self) -> Any:
        """The ONNX ModelProto of the network alone, without metadata: from images (B, 3, H, W) to its output."""
        metadata = self.metadata
        return make_onnx(
            self.network,
            make_example(metadata["image_size"]),
            dynamic=metadata["dynamic"],
            output=metadata["output"],
        )


class Activated(nn.Module):
    """A network, followed by the function `activate` from its logits to probabilities."""

    def __init__(self, network: nn.Module, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.activate = network, activate

    def forward(self, images: Tensor) -> Tensor:
        return self.activate(self.network(images))


def save_onnx(export: Export, path: Path) -> None:
    """Write ONNX in float32."""
    save_proto(export.onnx, export, path, "fp32")


def save_onnx_int8(export: Export, path: Path) -> None:
    """Write ONNX in int8, quantised by ONNX Runtime's tools (static ranges, format QDQ)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.paths = iter(export.int8_images)

        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            path = next(self.paths, None)
            return None if path is None else {"images": export.read_image(path)[None].numpy()}

    import onnx

    require_small(export.onnx)
    with tempfile.TemporaryDirectory() as folder:
        prepared, file = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        onnx.save(export.onnx, prepared)
        quant_pre_process(prepared, prepared, skip_symbolic_shape=True)  # it fails for a model in memory
        quantize_static(
            prepared,
            file,
            Reader(),
            per_channel=True,
            reduce_range=True,  # with all 8 bits, sums in 16 bits overflow on processors without VNNI
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list_float_nodes(onnx.load(prepared)),
        )
        save_proto(onnx.load(file), export, path, "int8")


def save_openvino(export: Export, path: Path) -> None:
    """Write OpenVINO IR (.xml, and its weights beside it in .bin) in float32, or with weights of 16 bits."""
    _save_ir(export.onnx, export, path, "fp16" if export.fp16 else "fp32")


def save_openvino_int8(export: Export, path: Path) -> None:
    """Write OpenVINO IR in int8, quantised by NNCF."""
    quantized = quantize(copy_proto(export.onnx), export.int8_images, export.read_image)
    _save_ir(quantized, export, path, "int8")


def save_torchscript(export: Export, path: Path) -> None:
    """Write TorchScript, traced and frozen. It runs without this project's code, also in C++."""
    require_plain(export, "TorchScript")
    example = make_example(export.metadata["image_size"])
    if "batch" not in export.metadata["dynamic"]:
        example = example[:1]
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # torch calls TorchScript deprecated
        try:
            traced = torch.jit.freeze(torch.jit.trace(export.network, (example,), check_trace=False))
        except RuntimeError as error:
            raise InputError(f"TorchScript cannot express this network: {shorten(error)}") from error
    metadata = json.dumps(export.metadata | {"precision": "fp32"})

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "model.pt"
            with warnings.catch_warnings(action="ignore", category=FutureWarning), open(saved, "wb") as file:
                torch.jit.save(traced, file, _extra_files={f"{METADATA}.json": metadata})
            copy_without_sources(saved, temporary)
        require_sizes(export, "torch", temporary, "fp32")

    write_atomically(path, write)


def copy_without_sources(program: Path, path: Path) -> None:
    """Copy a file of TorchScript without the lines of code it was traced from, which come with this machine's paths.

    Without them it runs as before; where it fails, its error does not name them.
    """
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as copy:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                copy.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), entry.compress_type)


def save_proto(model: Any, export: Export, path: Path, precision: str) -> None:
    """Write an ONNX ModelProto with the metadata of `export`, checked by onnx.checker."""
    import onnx

    model, metadata = add_ends(model, export.metadata), export.metadata | {"precision": precision}
    model.doc_string = describe(metadata)
    model.producer_name = metadata["exported_by"]
    onnx.helper.set_model_props(model, {METADATA: json.dumps(metadata)})

    def write(file: Path) -> None:
        write_onnx(model, file)
        onnx.checker.check_model(str(file), full_check=True)
        require_sizes(export, "onnxruntime", file, precision)

    write_whole(path, write)


def _save_ir(model: Any, export: Export, path: Path, precision: str) -> None:
    """Convert an ONNX ModelProto to OpenVINO IR, and write it with the metadata of `export`."""
    import openvino

    metadata = export.metadata | {"precision": precision}

    def write(file: Path) -> None:
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            source = Path(folder) / "model.onnx"
            write_onnx(add_ends(model, metadata), source)
            converted = get_openvino().read_model(source)
            engines.follow_onnx(converted)
            converted.set_rt_info(json.dumps(metadata), [METADATA])
            converted.set_rt_info(describe(metadata), ["description"])
            openvino.save_model(converted, file, compress_to_fp16=precision == "fp16")
        require_sizes(export, "openvino", file, precision)

    write_whole(path, write)


def add_ends(model: Any, metadata: dict[str, Any]) -> Any:
    """A copy of the ONNX ModelProto `model` of a network, with what its metadata promise before it and behind it."""
    model = copy_proto(model)
    if metadata.get("input") == engines.IMAGE:
        model = put_resizing_before(model, metadata["resize_rule"], metadata["image_size"])
    if metadata.get("gives_labels"):
        limits = [metadata.get(name) or 0 for name in ("min_labels", "max_labels")]
        model = put_labels_behind(model, metadata["thresholds"], *limits)
    return model


def require_plain(export: Export, format: str) -> None:
    """Raise InputError if the resize rule or the labels shall be inside, and files of `format` cannot hold them."""
    if export.metadata.get("input") == engines.IMAGE:
        raise InputError(f"{format} cannot hold the resize rule, ONNX and OpenVINO can: set EXPORT_RESIZE = False")
    if export.metadata.get("gives_labels"):
        raise InputError(f"{format} cannot give labels, ONNX and OpenVINO can: set EXPORT_OUTPUT = 'probabilities'")


def require_sizes(export: Export, engine: str, path: Path, precision: str) -> None:
    """Raise InputError if "size" is dynamic but the file `path` does not give the network's output at another size."""
    metadata = export.metadata
    if "size" not in metadata["dynamic"]:
        return
    size = as_size(metadata["image_size"])
    other_size = (size.height + 64, size.width + 32)
    images = torch.nn.functional.interpolate(make_example(size)[:1].float(), other_size).to(torch.uint8)
    try:
        with torch.no_grad():
            expected = export.network(images)
        change = measure_change(engines.ENGINES[engine](path, torch.device("cpu")).run(images), expected)
    except Exception as error:  # networks and engines refuse a size in many ways
        raise InputError(f"{metadata['model_name']} takes one size only ({shorten(error)}): {ADVICE}") from error
    if precision == "fp32" and not change <= TOLERANCE:
        raise InputError(f"in this format {metadata['model_name']} takes one size only: {ADVICE}")


def describe(metadata: dict[str, Any]) -> str:
    """A text that tells a person who finds an exported file what it is and how it is used."""
    height, width = ("H", "W") if "size" in metadata["dynamic"] else as_size(metadata["image_size"])
    batch = "B" if "batch" in metadata["dynamic"] else "1"
    classes = metadata["classes"]
    if metadata.get("input") == engines.IMAGE:
        taken = "Input image: uint8 RGB (H, W, 3) of any size; resizing, scaling and normalisation are inside."
    else:
        taken = (
            f"Input images: uint8 RGB ({batch}, 3, {height}, {width}), resized by {metadata['resize_rule']!r}; "
            "scaling and normalisation are inside."
        )
    labels = f" Output {engines.LABELS}: bool ({batch}, {len(classes)})." if metadata.get("gives_labels") else ""
    return (
        f"Multi-label image classification: {metadata['model_name']} + {metadata['head']}. {taken} "
        f"Output {metadata['output']}: float32 ({batch}, {len(classes)}), of {show_names(classes, most=5)}.{labels} "
        f"{explain_licence(find_licence(metadata))} "
        f"metadata {METADATA!r}: JSON with classes, thresholds and the rest."
    )


def mark_path(path: Path) -> Path:
    """The path of the mark of the export `path`, a file or a folder. While it exists, that has not been found equal.

    The mark of a folder lies beside the folder, as that of a file does.
    """
    return path.with_name(f"{path.name}.FAILED")


def find_mark(path: Path) -> Path | None:
    """The mark of the model `path`, or of the exported folder that it lies in; None if there is none."""
    marks = [mark_path(place) for place in list_places(path)]
    return next((mark for mark in marks if mark.exists()), None)


def explain_mark(path: Path, mark: Path) -> str:
    """Why the model `path`, of whose export this is the mark, is not opened, and what to do."""
    if mark.read_text(encoding="utf-8") == NOT_COMPARED:
        reason = "was not compared with the checkpoint, since its export was interrupted, or is running"
    else:
        reason = "did not pass its comparison with the checkpoint"
    return f"{path} {reason}: export it again, or delete {mark.name} to use it all the same"


def list_places(path: Path) -> list[Path]:
    """The model `path`, and the folders that may be the export that it lies in."""
    places = [path, *list(path.absolute().parents)[:FOLDER_DEPTH]]
    return [place for place in places if place.name]  # the root, which /models/a.onnx lies near, has none


def report_path(path: Path) -> Path:
    """The path of the report on the export `path`, beside it: how it compares with its checkpoint, and its hashes."""
    return path.with_name(f"{path.name}.json")


def list_files(path: Path) -> list[Path]:
    """The files that the export `path` consists of: those of a folder, or a file and that of its weights."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return engines.list_files(path)


def hash_files(path: Path) -> dict[str, str]:
    """The SHA-256 of the export `path`, by names: of a file, and that of its weights beside it; of a folder's files.

    A folder's texts for people (.md) are left out: they may be edited.
    """
    if path.is_dir():
        files = [file for file in list_files(path) if file.suffix != ".md"]
        return {file.relative_to(path).as_posix(): hash_file(file) for file in files}
    return {file.name: hash_file(file) for file in list_files(path)}


def hash_texts(path: Path) -> dict[str, str]:
    """The SHA-256 of the texts for people (.md) in the exported folder `path`, by names; of a file, none."""
    texts = [file for file in list_files(path) if file.suffix == ".md"] if path.is_dir() else []
    return {file.relative_to(path).as_posix(): hash_file(file) for file in texts}


def find_edited(path: Path) -> list[str]:
    """The texts in the exported folder `path` that are not as its export wrote them, by its report."""
    written = read_report(path).get("texts", {})
    return [name for name, digest in hash_texts(path).items() if name in written and written[name] != digest]


def put_text(path: Path, folder: Path, name: str, text: str) -> None:
    """Write a text for people into `folder`, which will replace the exported folder `path`; an edited one is kept."""
    if name in find_edited(path):
        say(f"{path / name} was edited and stays: delete it to get the new one")
        (folder / name).write_bytes((path / name).read_bytes())
    else:
        (folder / name).write_text(text, encoding="utf-8")


def make_record(path: Path, before: Mapping[str, Any], edited: Sequence[str]) -> dict[str, Any]:
    """What the report of the export `path` says of its files, by which a later export knows what it may replace.

    Of the texts `edited`, which the export kept, it says what the report `before` it said.
    """
    texts = hash_texts(path) | {name: before["texts"][name] for name in edited}
    return {"sha256": hash_files(path)} | ({"texts": texts} if texts else {})


def require_replaceable(path: Path, is_folder: bool) -> None:
    """Raise InputError if an export would replace at `path` what no export wrote there.

    `is_folder` says that the export is a folder: then a file or a link in its place is refused, and a folder that holds
    anything but what an export wrote, and texts. In the place of a file any folder is refused.
    """
    advice = "move it away, or set EXPORT_FOLDER to another"
    if is_folder and (path.is_symlink() or (path.exists() and not path.is_dir())):
        kind = "link" if path.is_symlink() else "file"
        raise InputError(f"{path} is a {kind}, where a folder would be written: {advice}")
    if not path.is_dir():
        return
    if not is_folder:
        raise InputError(f"{path} is a folder, where a file would be written: {advice}")
    report = read_report(path)
    written, texts = report.get("sha256", {}), report.get("texts", {})
    if not written:
        raise InputError(f"{path} is a folder that no export has made: {advice}")
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink() or (not file.is_dir() and name not in written and name not in texts):
            what = f"{name} is not of its export"
        elif name in written and hash_file(file) != written[name]:
            what = f"{name} has changed since its export"
        else:
            continue
        raise InputError(f"{path} would be replaced, but {what}: move the folder away, or what is yours out of it")


def read_report(path: Path) -> dict[str, Any]:
    """The report on the export `path`, without "sha256" and "texts" that are no mappings; empty if there is none."""
    report = report_path(path)
    content = read_json(report, allow_nan=True) if report.is_file() else {}
    values = content if isinstance(content, dict) else {}
    return {key: value for key, value in values.items() if key not in ("sha256", "texts") or isinstance(value, dict)}


def require_unchanged(path: Path) -> None:
    """Raise InputError if the export that the model `path` belongs to is not as its report describes it.

    That is the file or folder `path`, or the exported folder that it lies in. Without a report it may be anything, and
    so may files in a folder that its report does not name.
    """
    for place in list_places(path):
        expected = _read_hashes(place, path)
        if expected is None:
            continue
        found = hash_files(place)
        if not expected or any(found.get(name) != digest for name, digest in expected.items()):
            report = report_path(place)
            raise InputError(
                f"{place} has changed since {report.name} was written: it is damaged, or another file; "
                f"{'move it away and ' if place.is_dir() else ''}export it again, or delete {report.name} to use it "
                "all the same"
            )


def _read_hashes(place: Path, path: Path) -> dict[str, str] | None:
    """The hashes in the report on `place`; None if there is none, or if it is not about the model `path`."""
    report = report_path(place)
    if not report.is_file():
        return None
    try:
        content = read_json(report, allow_nan=True)
    except InputError:
        if place == path:
            raise
        return None  # a folder's neighbour of that name, which is no report
    hashes = content.get("sha256") if isinstance(content, dict) else None
    if place == path:
        return hashes if hashes is None or isinstance(hashes, dict) else {}  # reports had no hash before
    name = path.absolute().relative_to(place).as_posix()
    return hashes if isinstance(hashes, dict) and name in hashes else None
