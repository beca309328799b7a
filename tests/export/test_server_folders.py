"""export/server_folders.py: what Triton and OpenVINO Model Server read, and the documented client against a server of
the same protocol, which checks what it is sent against config.pbtxt.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from random_models import choose_thresholds, compute_plain, draw_images, make_random_model

import predictor
from export.engines import get_openvino
from export.export_formats import EXPORT_FORMATS
from export.model_files import Activated, Export
from export.server_folders import make_triton_config

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "a:b", "two\nlines", "Löwe", "no \u202e tricks"]  # as names from outside may be


@pytest.fixture(scope="module")
def network() -> Activated:
    return Activated(make_random_model("test_resnet"), torch.sigmoid).eval()


@pytest.fixture(scope="module")
def folders(network: Activated, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{format: the exported folder}, of one random network."""
    metadata: dict[str, Any] = {
        "model_name": "test_resnet", "head": "linear_bn", "image_size": 64, "resize_rule": "squash",
        "classes": CLASSES, "best_threshold": 0.5, "min_labels": 0, "max_labels": 0,
        "thresholds": choose_thresholds(compute_plain(network, draw_images(40))),
        "output": "probabilities", "applied_calibration": "none", "dynamic": ["batch"], "exported_by": "a test",
        "checkpoint_sha256": "0" * 64,
    }  # fmt: skip
    export = Export(network, metadata, lambda path: draw_images(1)[0])
    root = tmp_path_factory.mktemp("exported")
    for name in ("triton", "openvino_server"):
        EXPORT_FORMATS[name].save(export, root / f"run_{name}")
    return {name: root / f"run_{name}" for name in ("triton", "openvino_server")}


def list_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Triton 2.51 (the program in nvidia-pytriton 0.7.0) has read such a text, with automatic completion off
CONFIG = """\
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 32
input [ { name: "images" data_type: TYPE_UINT8 dims: [3, 64, 64] } ]
output [ { name: "probabilities" data_type: TYPE_FP32 dims: [5] label_filename: "labels.txt" } ]
instance_group [ { kind: KIND_AUTO } ]
dynamic_batching { max_queue_delay_microseconds: 2000 }
model_warmup [ { name: "an image of zeros" batch_size: 1
  inputs { key: "images" value { data_type: TYPE_UINT8 dims: [3, 64, 64] zero_data: true } }
} ]
"""


def test_triton_finds_a_model_repository(folders: dict[str, Path]) -> None:
    folder = folders["triton"]
    assert list_names(folder) == {
        "classifier.json",
        "classifier/config.pbtxt",
        "classifier/labels.txt",
        "classifier/1/model.onnx",
    }
    assert (folder / "classifier" / "config.pbtxt").read_text() == CONFIG
    labels = (folder / "classifier" / "labels.txt").read_text().split("\n")
    assert labels == ["cat", "a:b", "two\\nlines", "Löwe", "no \\u202e tricks", ""], "a line for each class"


def make_onnx(path: Path, shape: list[int | str], output: list[int | str]) -> Path:
    """An ONNX file whose input and output have these shapes; a text is a length that may vary."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, shape)
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, output)
    decided = helper.make_tensor_value_info("labels", TensorProto.BOOL, output)
    onnx.save(helper.make_model(helper.make_graph([], "graph", [images], [probabilities, decided])), path)
    return path


@pytest.mark.parametrize(
    ("shape", "output", "dims", "output_dims", "zeros", "batch"),
    [
        (["batch", 3, "height", "width"], ["batch", 5], "[3, -1, -1]", "[5]", "[3, 48, 64]", 32),
        ([1, 3, 48, 64], [1, 5], "[1, 3, 48, 64]", "[1, 5]", "[1, 3, 48, 64]", 0),
        (["height", "width", 3], [1, 5], "[-1, -1, 3]", "[1, 5]", "[48, 64, 3]", 0),
    ],
    ids=["any size", "one image", "one picture of any size"],
)
def test_triton_is_told_what_may_vary(
    shape: list[int | str], output: list[int | str], dims: str, output_dims: str, zeros: str, batch: int, tmp_path: Path
) -> None:
    path = make_onnx(tmp_path / "model.onnx", shape, output)
    text = make_triton_config(path, {"image_size": [48, 64], "output": "probabilities"})
    assert f"max_batch_size: {batch}\n" in text
    assert ("dynamic_batching" in text) == (batch > 0), "requests of one image each are not put together"
    assert f'input [ {{ name: "images" data_type: TYPE_UINT8 dims: {dims} }} ]\n' in text
    assert f'name: "probabilities" data_type: TYPE_FP32 dims: {output_dims} label_filename: "labels.txt" ' in text
    assert f'output [ {{ name: "labels" data_type: TYPE_BOOL dims: {output_dims} }} ]\n' in text
    assert f"value {{ data_type: TYPE_UINT8 dims: {zeros} zero_data: true }}" in text


def test_openvinos_server_finds_its_model(folders: dict[str, Path], network: Activated) -> None:
    folder = folders["openvino_server"]
    assert list_names(folder) == {
        "classifier.json",
        "config.json",
        "classifier/1/model.xml",
        "classifier/1/model.bin",
    }
    ((model,),) = json.loads((folder / "config.json").read_text()).values()
    settings = model["config"]
    assert settings["name"] == "classifier"
    assert (folder / settings["base_path"]).is_dir(), "relative to config.json"
    compiled = get_openvino().compile_model(folder / "classifier" / "1" / "model.xml", "CPU", settings["plugin_config"])
    assert [tensor.any_name for tensor in compiled.inputs] == ["images"], "the name that clients send"
    images = draw_images(3)
    found = compiled(images.numpy())["probabilities"]
    np.testing.assert_allclose(found, compute_plain(network, images), atol=1e-4)


def test_predictor_opens_the_model_in_each_folder(folders: dict[str, Path], network: Activated) -> None:
    """So the comparison with the checkpoint sees the file that the server will run."""
    images = draw_images(6)
    expected = compute_plain(network, images).numpy()
    for name, folder in folders.items():
        model = predictor.load(EXPORT_FORMATS[name].find_model(folder), "cpu")
        found = model.predict([image.permute(1, 2, 0).numpy() for image in images])
        np.testing.assert_allclose(np.stack([record.probabilities for record in found]), expected, atol=1e-4)


# ---- a client ----


class Stub(BaseHTTPRequestHandler):
    """Answers one model's requests as both servers do: JSON, followed by the pixels (the binary tensor extension)."""

    model: onnxruntime.InferenceSession
    requests: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        (tensor,) = json.loads(body[:length])["inputs"]
        name, kind, dims = re.findall(r'input \[ \{ name: "(.*?)" data_type: TYPE_(\w+) dims: (\[.*?\])', CONFIG)[0]
        assert (tensor["name"], tensor["datatype"]) == (name, kind)
        assert tensor["shape"][1:] == json.loads(dims)
        assert tensor["parameters"]["binary_data_size"] == len(body) - length == np.prod(tensor["shape"])
        images = np.frombuffer(body[length:], np.uint8).reshape(tensor["shape"])
        rows = np.asarray(self.model.run(None, {name: images})[0])
        data = {"name": "probabilities", "datatype": "FP32", "shape": rows.shape, "data": rows.ravel().tolist()}
        answer = json.dumps({"model_name": "classifier", "model_version": "1", "outputs": [data]}).encode()
        self.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a Stub with the ONNX file `path`, and the paths that it is asked for."""
    requests: list[str] = []
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Stub,), {"model": session, "requests": requests}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_the_documented_client_prints_the_predictors_labels(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploying.md").read_text(), flags=re.S)
    folder = folders["triton"]
    (tmp_path / "classifier.json").write_bytes((folder / "classifier.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    model = predictor.load(folder / "classifier" / "1" / "model.onnx", "cpu")
    counts = []
    with serve(folder / "classifier" / "1" / "model.onnx") as (address, requests):
        for index, pixels in enumerate(draw_images(12).permute(0, 2, 3, 1).numpy()):
            # turned by EXIF, as telephones do; pictures of the model's size are the same in every library
            Image.fromarray(np.rot90(pixels, 1)).save(tmp_path / "a.png", exif=make_exif(6))
            printed: list[str] = []
            exec(code.replace("127.0.0.1:8000", address).replace("a.jpg", "a.png"), {"print": printed.append})
            record = next(model.predict("a.png"))
            expected = [f"{record.probabilities[label]:.2f} {CLASSES[label]}" for label in sorted(record.labels)]
            assert printed == expected, index
            counts.append(len(printed))
    assert set(requests) == {"/v2/models/classifier/infer"}
    assert 0 < sum(counts) < 60, "labels are neither none nor all"


def make_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_facts_are_what_a_client_needs(folders: dict[str, Path]) -> None:
    texts = {(folder / "classifier.json").read_text() for folder in folders.values()}
    assert len(texts) == 1
    (text,) = texts
    facts = json.loads(text)
    assert facts["classes"] == CLASSES
    assert (facts["height"], facts["width"], facts["resize_rule"]) == (64, 64, "squash")
    assert facts["output"] == "probabilities"
    assert len(facts["thresholds"]) == 5
    assert "\u202e" not in text, "what would turn the text around is escaped"
    assert "config" not in facts, "nothing of the run's folders"
