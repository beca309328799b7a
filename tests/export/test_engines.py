"""export/engines.py: what a file is, opening it in its runtime, PyTorch with BatchNorm folded."""

from __future__ import annotations

import gc
import importlib.util
import json
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import CONTEXT, finish
from random_models import compute_plain, draw_images, make_random_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

import models_factory
from export import engines
from export.engines import ENGINES
from models import batchnorm_folding
from utils import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")

# BatchNorm after a concatenation or before an activation has nothing to be folded into:
# 58 dense layers' norm1, 3 transitions, norm5
LEFT = {"densenet121": 62}


def count_batchnorm(module: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in module.modules())


# ---- folding ----


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v2", "efficientnet_b0", "efficientnet_lite0", "pp_lcnet_x1_0"]
)
def test_folding_keeps_the_logits_and_leaves_no_batchnorm_behind_a_layer(name: str) -> None:
    model, images = make_random_model(name), draw_images(3)
    folded = batchnorm_folding.fold_batchnorm(model, models_factory.make_example(64))
    expected = compute_plain(model, images)
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(compute_plain(folded, images), expected, rtol=0, atol=tolerance)
    assert count_batchnorm(folded) == LEFT.get(name, 0)
    assert count_batchnorm(model) > LEFT.get(name, 0), "the model itself stays as it was"


def test_a_backbone_folds_alone() -> None:
    backbone = make_random_model("efficientnet_lite0").backbone
    pixels = torch.rand(2, 3, 64, 64)
    folded = batchnorm_folding.fold_batchnorm(backbone, pixels)
    torch.testing.assert_close(compute_plain(folded, pixels), compute_plain(backbone, pixels), rtol=1e-4, atol=1e-4)
    assert count_batchnorm(folded) == 0
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


class Twice(nn.Module):
    """A convolution that runs twice, or whose output goes past BatchNorm as well: through a module or an addition."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm, self.other, self.way = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid(), way
        nn.init.constant_(self.norm.running_mean, 0.5)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == "runs":
            return self.norm(self.conv(y))
        return self.norm(y) + (self.other(y) if self.way == "module" else y)


@pytest.mark.parametrize("way", ["runs", "module"])
def test_a_layer_that_serves_twice_is_not_folded(way: str) -> None:
    module, example = Twice(way).eval(), torch.rand(2, 3, 4, 4)
    folded = batchnorm_folding.fold_batchnorm(module, example)
    assert count_batchnorm(folded) == 1
    torch.testing.assert_close(compute_plain(folded, example), compute_plain(module, example))


def test_a_fold_that_would_change_the_output_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    module, example = Twice("addition").eval(), torch.rand(2, 3, 4, 4)
    folded = batchnorm_folding.fold_batchnorm(module, example)
    assert "warning: BatchNorm is not folded: it would change the output of Twice by" in capsys.readouterr().err
    assert torch.equal(compute_plain(folded, example), compute_plain(module, example))


def test_batchnorm_over_another_axis_than_linears_is_not_folded() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()  # (B, 6 tokens, 6)
    assert count_batchnorm(batchnorm_folding.fold_batchnorm(module, torch.rand(2, 6, 4))) == 1
    assert count_batchnorm(batchnorm_folding.fold_batchnorm(module, torch.rand(2, 4))) == 0


# ---- files ----


def test_torch_gives_the_models_logits_for_any_batch_size() -> None:
    model = make_random_model("resnet18")
    run = engines.make_torch(model, 64, CPU)
    for count in (4, 1, 7):
        logits = run(draw_images(count))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, compute_plain(model, draw_images(count)), rtol=0, atol=1e-4)


class Copies(TorchFunctionMode):
    """Notes (device, non_blocking) of each copy to a device, which is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.to:
            return func(*args, **(kwargs or {}))
        self.noted.append((args[1].type, kwargs["non_blocking"]))
        return args[0]


def test_the_processor_waits_for_copies_to_apples_gpus() -> None:
    """They would read the images when their memory is another's already."""
    with Copies() as copies:
        for name in ("cuda:1", "mps", "cpu"):
            engines.run_torch(lambda images: images, torch.device(name))(draw_images(2))
    assert copies.noted == [("cuda", True), ("mps", False), ("cpu", False)]


def test_a_run_of_one_image_serves_many() -> None:
    sizes = []

    def run(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.float().mean(dim=(2, 3))

    images = draw_images(5)
    assert torch.equal(engines.run_one_by_one(run)(images), images.float().mean(dim=(2, 3)))
    assert sizes == [1] * 5


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def test_a_file_is_what_it_holds(tmp_path: Path) -> None:
    torch.save({"code": [1]}, tmp_path / "code.pt")
    cases = {
        "checkpoint": [
            tmp_path / "code.pt",
            write_zip(tmp_path / "unusual.name", "model/data.pkl", "model/data/0"),
            write(tmp_path / "damaged.pt", b"PK\x03\x04 cut short"),
            write(tmp_path / "another.pth", b"\x80\x02 a pickle of old"),
        ],
        "torchscript": [write_zip(tmp_path / "script.pt", "a/data.pkl", "a/code/__torch__/b.py", "a/constants.pkl")],
        "pt2": [write_zip(tmp_path / "program.pt", "a/archive_format", "a/models/model.json", "a/code/b.py")],
        "litert": [write(tmp_path / "model.tflite", b" \0\0\0TFL3" + (tmp_path / "code.pt").read_bytes())],
        "onnx": [write(tmp_path / "model.onnx", b"\x08\x0a")],
        "openvino": [write(tmp_path / "model.xml", b'\n<?xml version="1.0"?>\n<net name="Model">')],
    }
    for format, paths in cases.items():
        for path in paths:
            assert engines.recognise(path) == format, path.name
    assert set(cases) == set(engines.ENGINES_OF) - {"timm"}  # a folder: tests/export/test_hub_folder.py


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    picture = write(tmp_path / "picture.jpg", b"\xff\xd8\xff\xe0")
    with pytest.raises(
        InputError, match=r"picture.jpg is no model: a checkpoint or TorchScript \(.pt\), torch.export \(.pt2\), "
    ):
        engines.recognise(picture)
    for absent in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(InputError, match=r"there is no model .*: run training.py first"):
            engines.recognise(absent)


def test_the_engine_is_the_files_own_or_one_that_opens_it() -> None:
    path = Path("model")
    own = {"checkpoint": "torch", "onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch", "pt2": "torch"}
    own["litert"] = "litert"
    for format, name in own.items():
        assert engines.choose_engine("auto", format, path) == name
    assert engines.choose_engine("openvino", "onnx", path) == "openvino"
    able = engines.ENGINES_OF["checkpoint"]
    assert tuple(engines.choose_engine(name, "checkpoint", path) for name in able) == able
    assert {name for names in engines.ENGINES_OF.values() for name in names} == set(ENGINES)
    for format, name in (
        ("onnx", "torch"),
        ("openvino", "onnxruntime"),
        ("torchscript", "openvino"),
        ("pt2", "onnxruntime"),
    ):
        able = "one of auto, " + ", ".join(engines.ENGINES_OF[format])
        with pytest.raises(InputError, match=rf"^engine {name} does not open model \({format}\): choose {able}$"):
            engines.choose_engine(name, format, path)
    with pytest.raises(InputError, match=r"there is no engine 'openvin' \(did you mean openvino\?\); known: auto, "):
        engines.choose_engine("openvin", "onnx", path)


def test_metadata_comes_with_the_file_and_none_where_there_is_none(tmp_path: Path) -> None:
    """ONNX files written by hand, an identity of pixels: with metadata, without, and with another's under our name."""
    import onnx

    value = onnx.helper.make_tensor_value_info
    for name, props in (
        ("ours", {"multilabel": json.dumps({"classes": ["é", '"<&>']})}),
        ("bare", {}),
        ("other", {"multilabel": "not JSON"}),
    ):
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Cast", ["images"], ["logits"], to=onnx.TensorProto.FLOAT)],
            name,
            [value("images", onnx.TensorProto.UINT8, ["batch", 3])],
            [value("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.helper.set_model_props(model, props)
        onnx.save(model, tmp_path / f"{name}.onnx")
    pixels = torch.tensor([[1, 2, 3], [4, 5, 255]], dtype=torch.uint8)
    for engine in ("onnxruntime", "openvino"):
        for name in ("ours", "bare", "other"):
            run, metadata, _ = ENGINES[engine](tmp_path / f"{name}.onnx", CPU)
            assert torch.equal(run(pixels), pixels.float())
            assert metadata == ({"classes": ["é", '"<&>']} if name == "ours" else None)


def open_two_and_take_a_signal(path: Path) -> None:
    first, second = ENGINES["openvino"](path, CPU), ENGINES["openvino"](path, CPU)
    del first
    gc.collect()
    del second
    gc.collect()
    signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(7))
    signal.raise_signal(signal.SIGUSR1)


def test_signals_after_openvino_models_are_gone(tmp_path: Path) -> None:
    """OpenVINO's plugin leaves a dead stack for signals where each model has one of its own: status -11."""
    openvino = pytest.importorskip("openvino")
    image = openvino.opset13.parameter([1, 3], np.uint8)
    openvino.save_model(openvino.Model([openvino.opset13.convert(image, "f32")], [image]), tmp_path / "model.xml")
    process = CONTEXT.Process(target=open_two_and_take_a_signal, args=(tmp_path / "model.xml",))
    process.start()
    assert finish(process) == [7]


@pytest.mark.parametrize(
    ("engine", "name", "content"),
    [
        ("onnxruntime", "model.onnx", b"no protobuf"),
        ("openvino", "model.onnx", b"no protobuf"),
        ("openvino", "model.xml", b'<?xml version="1.0"?><net name="Model" version="11"><layers></net>'),
    ],
)
def test_a_damaged_file_is_one_line(engine: str, name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=rf"^cannot open {path} as [^\n]*: it is damaged, or of another ver[^\n]*$"):
        ENGINES[engine](path, CPU)


def test_damaged_torchscript_is_one_line(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "model.pt", "model/data.pkl", "model/code/x.py", "model/constants.pkl")
    with pytest.raises(InputError, match=rf"^cannot open {path} as TorchScript: it is damaged[^\n]*$"):
        ENGINES["torch"](path, CPU)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_of_files_are_for_cpus(name: str) -> None:
    with pytest.raises(InputError, match=f"engine {name} runs on a CPU, not on cuda:0: choose engine torch"):
        ENGINES[name](Path("model.onnx"), torch.device("cuda:0"))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hide: Callable[[str], Any] = lambda name: None if name in ("openvino", "onnxscript") else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    message = "engine openvino needs openvino, onnxscript: pip install -r requirements-export.txt"
    with pytest.raises(InputError, match=f"^{message}$"):
        engines.require_engine("openvino", CPU, ["onnx", "onnxscript"])
    assert (Path(engines.__file__).parents[1] / "requirements-export.txt").is_file()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("place", ["weights", "constant"])
@pytest.mark.parametrize("location", ["../secret.bin", "ABSOLUTE", "link", "inside.bin"])
def test_onnx_reads_no_file_outside_its_folder(engine: str, place: str, location: str, tmp_path: Path) -> None:
    """ONNX may keep weights in other files. What this test refuses is refused by the engines themselves."""
    import onnx

    folder = tmp_path / "model"
    folder.mkdir()
    secret = np.array([1, 2, 3], dtype=np.float32).tobytes()
    for path in (tmp_path / "secret.bin", folder / "inside.bin"):
        path.write_bytes(secret)
    (folder / "link").symlink_to(tmp_path / "secret.bin")
    location = location.replace("ABSOLUTE", str(tmp_path / "secret.bin"))
    tensor = onnx.TensorProto(name="bias", data_type=onnx.TensorProto.FLOAT, dims=[3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", location), ("length", "12")):
        tensor.external_data.add(key=key, value=text)
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Add", ["pixels", "bias"], ["logits"]),
    ]
    if place == "constant":
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["bias"], value=tensor))
    save_graph(folder / "model.onnx", nodes, [tensor] if place == "weights" else [])
    if location == "inside.bin":
        pixels = torch.zeros(1, 3, dtype=torch.uint8)
        assert ENGINES[engine](folder / "model.onnx", CPU).run(pixels).tolist() == [[1, 2, 3]]
    else:
        with pytest.raises(InputError, match=r"^cannot open [^\n]+ as (ONNX|OpenVINO IR or ONNX): [^\n]+$"):
            ENGINES[engine](folder / "model.onnx", CPU)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_operators_of_a_library_are_not_looked_for(engine: str, tmp_path: Path) -> None:
    import onnx

    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Run", ["pixels"], ["logits"], domain="evil"),
    ]
    save_graph(tmp_path / "model.onnx", nodes, [], "evil")
    with pytest.raises(InputError, match=r"^cannot open [^\n]+ as (ONNX|OpenVINO IR or ONNX): [^\n]+$"):
        ENGINES[engine](tmp_path / "model.onnx", CPU)


def save_graph(path: Path, nodes: list[Any], weights: list[Any], *domains: str) -> None:
    """Write an ONNX file by hand: images (batch, 3) uint8 -> logits (batch, 3)."""
    import onnx

    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("images", onnx.TensorProto.UINT8, ["batch", 3])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    sets = [onnx.helper.make_opsetid("", 20), *(onnx.helper.make_opsetid(domain, 1) for domain in domains)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=sets, ir_version=10).SerializeToString())


def test_an_openvino_extension_is_not_looked_for(tmp_path: Path) -> None:
    xml = (
        '<?xml version="1.0"?><net name="m" version="11"><layers>'
        '<layer id="0" name="images" type="Parameter" version="opset1"><data shape="1,3" element_type="f32"/>'
        '<output><port id="0" precision="FP32"><dim>1</dim><dim>3</dim></port></output></layer>'
        '<layer id="1" name="run" type="Run" version="evil.so">'
        '<input><port id="0"><dim>1</dim><dim>3</dim></port></input>'
        '<output><port id="1" precision="FP32"><dim>1</dim><dim>3</dim></port></output></layer>'
        '<layer id="2" name="end" type="Result" version="opset1"><input><port id="0"/></input></layer></layers><edges>'
        '<edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>'
        '<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>'
    )
    (tmp_path / "model.xml").write_text(xml)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"^cannot open [^\n]+ as OpenVINO IR or ONNX: [^\n]+$"):
        ENGINES["openvino"](tmp_path / "model.xml", CPU)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_input_that_a_file_does_not_take_is_one_line(engine: str, tmp_path: Path) -> None:
    import onnx

    nodes = [onnx.helper.make_node("Cast", ["images"], ["logits"], to=onnx.TensorProto.FLOAT)]
    save_graph(tmp_path / "model.onnx", nodes, [])
    run = ENGINES[engine](tmp_path / "model.onnx", CPU).run
    with pytest.raises(InputError, match=r"^cannot run [^\n]+ on uint8 images [^\n]+$"):
        run(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
