"""export/web_folder.py: ONNX Runtime Web from its package, weights of 16 bits. In a browser: tests/test_web_page.py."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export import web_folder
from export.web_folder import SCRIPT, WASM, locate_runtime, read_runtime
from utils import InputError

SIDE = 128  # of a tensor that is just large enough
CONTENTS = {SCRIPT: b"export {}", WASM: bytes(1000)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package that holds CONTENTS, whose digests are the known ones."""
    digests = {name: (len(content), web_folder.make_integrity(content)) for name, content in CONTENTS.items()}
    monkeypatch.setattr(web_folder, "RUNTIME_FILES", digests)
    write_package(tmp_path, CONTENTS)
    return tmp_path


def write_package(folder: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(folder / web_folder.RUNTIME_PACKAGE, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_the_digest_is_that_of_subresource_integrity() -> None:
    """The example of the standard (https://www.w3.org/TR/SRI/)."""
    expected = "sha384-H8BRh8j48O9oYatfu5AZzq6A9RINhZO5H16dQZngK7T62em8MUt1FLm52t+eX6xO"
    assert web_folder.make_integrity(b"alert('Hello, world.');") == expected


def test_the_docs_name_this_version() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")
    assert f"npm pack onnxruntime-web@{web_folder.RUNTIME_VERSION} " in text


def test_files_of_the_package_are_copied_and_the_large_one_is_packed(cache: Path) -> None:
    runtime = read_runtime(cache)
    assert runtime == read_runtime(cache), "no time stamp"
    assert runtime.keys() == {SCRIPT, f"{WASM}.gz"}
    assert runtime[SCRIPT] == CONTENTS[SCRIPT]
    assert gzip.decompress(runtime[f"{WASM}.gz"]) == CONTENTS[WASM]
    assert locate_runtime(runtime, WASM) == {"address": f"{WASM}.gz", "bytes": len(runtime[f"{WASM}.gz"])}


def test_without_the_package_the_address_has_a_digest_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_runtime(tmp_path) == {}
    out = " ".join(capsys.readouterr().out.split())
    assert f"npm pack onnxruntime-web@{web_folder.RUNTIME_VERSION} --pack-destination" in out
    place = locate_runtime({}, WASM)
    assert place["address"] == f"{web_folder.RUNTIME_ADDRESS}{WASM}"
    assert (place["bytes"], place["integrity"]) == web_folder.RUNTIME_FILES[WASM]


def test_a_package_that_is_another_or_damaged_is_refused(cache: Path) -> None:
    package = cache / web_folder.RUNTIME_PACKAGE
    write_package(cache, CONTENTS | {WASM: bytes(999) + b"1"})
    with pytest.raises(InputError, match=rf"{WASM} in .*\.tgz is not that of version"):
        read_runtime(cache)
    write_package(cache, {SCRIPT: CONTENTS[SCRIPT]})
    with pytest.raises(InputError, match=rf"cannot read .*\.tgz: .*{WASM}.* not found"):
        read_runtime(cache)
    package.write_bytes(package.read_bytes()[:60])
    with pytest.raises(InputError, match=r"cannot read .*\.tgz: "):
        read_runtime(cache)


def test_weights_get_16_bits_where_they_fit() -> None:
    """The file is half as large; what is computed differs by the rounding of the weights alone."""
    rng = np.random.default_rng(0)
    small = rng.normal(0, 0.05, (SIDE, SIDE)).astype(np.float32)
    large = np.full((SIDE, SIDE), 1e5, dtype=np.float32)  # more than 16 bits hold
    bias = rng.normal(0, 1, SIDE).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "small"], ["y"]), helper.make_node("Gemm", ["y", "large", "bias"], ["z"])]
    shapes = {name: [1, size] for name, size in (("x", SIDE), ("z", SIDE))}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    tensors = {"small": small, "large": large, "bias": bias}
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "graph", [values["x"]], [values["z"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    halved = web_folder.halve_weights(model)
    onnx.checker.check_model(halved, full_check=True)
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT, "the model itself stays"
    kinds = [tensor.data_type for tensor in halved.graph.initializer]
    assert sorted(kinds) == sorted([TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT])
    assert halved.ByteSize() < model.ByteSize() - SIDE * SIDE * 2 + 300
    x = rng.normal(0, 1, (1, SIDE)).astype(np.float32)
    found = ReferenceEvaluator(halved).run(None, {"x": x})[0]
    rounded = small.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(found, x @ rounded @ large + bias, rtol=1e-3, atol=1e-3 * np.abs(found).max())


def test_the_doubt_is_measured_as_it_was_tuned() -> None:
    """With Platt's calibration, whichever one the file has applied; without any, as the file gives it."""
    metadata = {"classes": ["a", "b"], "abstention": {"share": 0.1, "cut": 0.3}, "applied_calibration": "temperature"}
    assert web_folder.make_abstention(metadata) == {"cut": 0.3, "scale": [1.0, 1.0], "bias": [0.0, 0.0]}
    metadata["calibration"] = {
        "temperature": {"scale": [2.0], "bias": [0.0]},
        "platt": {"scale": [3.0, 1.0], "bias": [0.5, -1.0]},
    }
    assert web_folder.make_abstention(metadata) == {"cut": 0.3, "scale": [1.5, 0.5], "bias": [0.5, -1.0]}
    metadata["applied_calibration"] = "platt"
    assert web_folder.make_abstention(metadata) == {"cut": 0.3, "scale": [1.0, 1.0], "bias": [0.0, 0.0]}
    assert web_folder.make_abstention({**metadata, "abstention": None}) is None
