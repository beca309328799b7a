"""export/model_files.py: a checkpoint's kept file is made once; exported files give what the network does, and
say what.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import compute_plain, draw_images
from torch import Tensor, nn

import calibration
import limits
import models_factory
from dataset.files import hash_file
from dataset_readers import read_dataset
from export import engine_cache, engines, model_files, onnx_models
from export.engine_cache import KeptSource
from export.engines import ENGINES
from export.export_formats import EXPORT_FORMATS
from export.model_files import Export
from heads import HEADS
from models import batchnorm_folding
from models_factory import MultiLabelModel
from utils import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
# without litert and folders, which have tests of their own
FILES = [name for name, format in EXPORT_FORMATS.items() if name != "litert" and format.model is None]
# of the one who exports, and words of torch's that go with lines of code
PATHS = (str(Path(model_files.__file__).parents[1]), str(Path.home()), "site-packages", "stack_trace", "in forward")
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch", "pt2": "torch"}  # of floats


def make_small_model(seed: int = 0) -> MultiLabelModel:
    """Quick to convert, with a megabyte of weights."""
    torch.manual_seed(seed)
    layers = []
    for before, after in ((3, 32), (32, 128), (128, 256)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = MultiLabelModel(nn.Sequential(*layers), HEADS["linear_bn"](256, 5), (0.5,) * 3, (0.2,) * 3)
    model(draw_images(24))  # statistics
    return model.eval()


@pytest.fixture(scope="module")
def model() -> MultiLabelModel:
    return make_small_model()


@pytest.fixture(scope="module")
def source(model: MultiLabelModel, tmp_path_factory: pytest.TempPathFactory) -> KeptSource:
    """One for all tests of this file, so that its ONNX file is made once."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "model.pt").write_bytes(b"the content of a checkpoint")
    images = draw_images(24)
    for i in range(24):
        (folder / f"{i}.jpg").write_bytes(b"stands for an image")
    return KeptSource(
        make_model=lambda: model,
        image_size=64,
        checkpoint=folder / "model.pt",
        folder=folder / "kept",
        read_image=lambda path: images[int(Path(path).stem)],
    )


@pytest.fixture(scope="module")
def int8_source(source: KeptSource) -> KeptSource:
    return replace(source, int8_images=[str(source.checkpoint.parent / f"{i}.jpg") for i in range(24)])


def refuse() -> nn.Module:
    raise AssertionError("the model was made again")


# ---- the kept file ----


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_kept_file_gives_the_models_logits_for_any_batch_size(
    engine: str, source: KeptSource, model: MultiLabelModel
) -> None:
    run = engine_cache.open_kept(source, engine, CPU)
    for count in (4, 1, 7):
        images = draw_images(count)
        logits = run(images)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, compute_plain(model, images), rtol=0, atol=1e-4)
    first = run(draw_images(2))
    run(255 - draw_images(2))
    assert torch.equal(first, run(draw_images(2))), "a later batch does not overwrite logits, nor change them"


def test_int8_ranks_images_as_float_does(int8_source: KeptSource, model: MultiLabelModel) -> None:
    images = draw_images(64)
    found = engine_cache.open_kept(int8_source, "openvino", CPU)(images).numpy()
    expected = compute_plain(model, images).numpy()
    for column in range(5):
        assert np.corrcoef(found[:, column], expected[:, column])[0, 1] > 0.9
    assert np.abs(found - expected).max() > 1e-4, "it does run in int8"


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_kept_file_serves_without_making_the_model(
    precision: str, source: KeptSource, int8_source: KeptSource
) -> None:
    chosen = int8_source if precision == "int8" else source
    images = draw_images(3)
    logits = engine_cache.open_kept(chosen, "openvino", CPU)(images)
    (file,) = chosen.folder.glob(f"model_{precision}_*.onnx")
    assert torch.equal(engine_cache.open_kept(replace(chosen, make_model=refuse), "openvino", CPU)(images), logits)
    assert [path.name for path in chosen.folder.glob(f"*{precision}*")] == [file.name], "nor is anything left beside it"


def test_a_kept_files_name_follows_what_it_depends_on(
    source: KeptSource, int8_source: KeptSource, tmp_path: Path
) -> None:
    def name(chosen: KeptSource) -> Path:
        return engine_cache.name_file(chosen, ["onnx"])

    changed, same = tmp_path / "changed" / "model.pt", tmp_path / "same" / "model.pt"
    for path, content in ((changed, b"another"), (same, source.checkpoint.read_bytes())):
        path.parent.mkdir()
        path.write_bytes(content)
    assert name(replace(source, checkpoint=same)) == name(source)
    image = Path(shutil.copy(int8_source.int8_images[0], tmp_path / "0.jpg"))
    own = replace(int8_source, int8_images=[str(image)])
    others = [replace(source, checkpoint=changed), int8_source, replace(int8_source, int8_images=["0.jpg"] * 0), own]
    names = [name(source), name(others[0]), name(int8_source), name(own)]
    image.write_bytes(b"another image")
    names += [name(own), engine_cache.name_file(source, ["onnx", "nncf"])]
    assert len(set(names)) == 6


def test_int8_images_name_a_kept_file_by_path_size_and_time(int8_source: KeptSource, tmp_path: Path) -> None:
    """As in earlier versions, whose files are found again. An image in a shard has the time of its shard."""
    image, content = Path(shutil.copy(int8_source.int8_images[0], tmp_path)), b"stands for an image"
    shard = tmp_path / "shards" / "train-0.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for name, data in (("1.jpg", content), ("1.json", b'{"labels": ["dog"]}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    (member,) = read_dataset(shard.parent, split="train").paths
    for path, file in ((str(image), image), (member, shard)):
        for changed in (file.stat().st_mtime_ns, 0):
            os.utime(file, ns=(changed, changed))
            versions = [(name, importlib.metadata.version(name)) for name in ("torch", "onnx")]
            images = [(path, len(content), changed)]
            text = json.dumps([engine_cache.VERSION, hash_file(int8_source.checkpoint), images, versions])
            expected = f"model_int8_{hashlib.sha256(text.encode()).hexdigest()[:16]}.onnx"
            assert engine_cache.name_file(replace(int8_source, int8_images=[path]), ["onnx"]).name == expected


def test_a_conversion_that_changes_the_logits_keeps_no_file(
    source: KeptSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make, other = model_files.make_onnx, make_small_model(seed=1)
    monkeypatch.setattr(engine_cache, "make_onnx", lambda model, example, **options: make(other, example))
    with pytest.raises(InputError, match=r"converting .*model\.pt changes its output by"):
        engine_cache.open_kept(replace(source, folder=tmp_path), "onnxruntime", CPU)
    assert list(tmp_path.iterdir()) == []


def test_int8_is_openvinos(int8_source: KeptSource) -> None:
    with pytest.raises(InputError, match="engine onnxruntime runs float models only: choose openvino for int8"):
        engine_cache.open_kept(int8_source, "onnxruntime", CPU)


def test_an_int8_image_that_is_gone_is_one_line(int8_source: KeptSource) -> None:
    with pytest.raises(InputError, match=r"^cannot read image .*gone\.jpg: No such file or directory$"):
        engine_cache.open_kept(replace(int8_source, int8_images=["gone.jpg"]), "openvino", CPU)


# ---- exported files ----


def make_export(network: nn.Module, dynamic: list[str], **values: Any) -> Export:
    metadata = {"classes": ["é", '"<&>', "c", "d", "e"], "image_size": 64, "resize_rule": "squash", "head": "linear_bn"}
    metadata |= {"model_name": "network", "output": "logits", "dynamic": dynamic, "exported_by": "a test"}
    images = draw_images(24)
    return Export(network, metadata | values, lambda path: images[int(path)], [str(i) for i in range(24)])


@pytest.fixture(scope="module")
def export(model: MultiLabelModel) -> Export:
    """Any number of images of any size; one for all tests of this file, so that its ONNX model is made once."""
    return make_export(batchnorm_folding.fold_batchnorm(model, models_factory.make_example(64)), ["batch", "size"])


@pytest.fixture(scope="module")
def files(export: Export, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format's file of `export`, alone in a folder."""
    paths = {name: tmp_path_factory.mktemp(name) / f"model{EXPORT_FORMATS[name].ending}" for name in FILES}
    for name, path in paths.items():
        EXPORT_FORMATS[name].save(export, path)
    return paths


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_gives_the_networks_logits_for_any_batch_and_size(
    name: str, files: dict[str, Path], model: MultiLabelModel
) -> None:
    run = ENGINES[RUNTIMES[name]](files[name], CPU).run
    wide = torch.nn.functional.interpolate(draw_images(2).float(), (96, 160)).to(torch.uint8)
    for images in (draw_images(3), draw_images(1), wide):
        torch.testing.assert_close(run(images), compute_plain(model, images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["onnx_int8", "openvino_int8"])
def test_int8_files_rank_images_as_the_network_does(name: str, files: dict[str, Path], model: MultiLabelModel) -> None:
    images, engine = draw_images(64), RUNTIMES[name.removesuffix("_int8")]
    found, expected = ENGINES[engine](files[name], CPU).run(images).numpy(), compute_plain(model, images).numpy()
    for column in range(5):
        assert np.corrcoef(found[:, column], expected[:, column])[0, 1] > 0.9
    assert measure_weights(files[name]) < 0.3 * measure_weights(files[name.removesuffix("_int8")])


@pytest.mark.parametrize("name", ["onnx_int8", "openvino_int8"])
def test_probabilities_of_int8_have_more_than_256_values(name: str, export: Export, tmp_path: Path) -> None:
    """Of 256 levels the first is 0, and a class that is rare, here the first, would have no other."""
    rare = {"scale": [1.0] * 5, "bias": [-8.0, 0.0, 0.0, 0.0, 0.0]}

    def activate(logits: Tensor) -> Tensor:
        return calibration.apply(logits, rare).sigmoid()

    network = model_files.Activated(export.network, activate).eval()
    path, engine = tmp_path / f"model{EXPORT_FORMATS[name].ending}", RUNTIMES[name.removesuffix("_int8")]
    EXPORT_FORMATS[name].save(make_export(network, ["batch"], output="probabilities"), path)
    images = draw_images(500)
    found, expected = ENGINES[engine](path, CPU).run(images).numpy(), compute_plain(network, images).numpy()
    assert expected[:, 0].max() < 0.001
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=0.5)
    assert len(np.unique(found)) > 1000
    assert np.abs(found - expected).max() > 1e-5, "it does run in int8"


def measure_weights(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is_and_leaves_nothing_beside_it(name: str, files: dict[str, Path], export: Export) -> None:
    path = files[name]
    engine = engines.choose_engine("auto", engines.recognise(path), path)
    precision = "int8" if name.endswith("int8") else "fp32"
    assert ENGINES[engine](path, CPU).metadata == export.metadata | {"precision": precision}
    beside = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
    assert {*path.parent.iterdir()} == beside


def test_an_onnx_file_is_one_for_any_reader(files: dict[str, Path]) -> None:
    import onnx

    for name in ("onnx", "onnx_int8"):
        model = onnx.load(files[name])
        onnx.checker.check_model(model, full_check=True)
        (images,), (logits,) = model.graph.input, model.graph.output
        assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
        assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == [
            "batch",
            3,
            "height",
            "width",
        ]
        assert (logits.name, logits.type.tensor_type.shape.dim[1].dim_value) == ("logits", 5)
        assert "Input images: uint8 RGB (B, 3, H, W), resized by 'squash'" in model.doc_string
        assert json.loads({p.key: p.value for p in model.metadata_props}["multilabel"])["image_size"] == 64


def read_contents(path: Path) -> bytes:
    """All bytes of a file or folder; of archives those of the unpacked files."""
    if path.is_dir():
        return b"".join(read_contents(file) for file in path.rglob("*") if file.is_file())
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_no_path_of_this_machine(name: str, files: dict[str, Path]) -> None:
    content = read_contents(files[name].parent)
    for path in PATHS:
        assert path.encode() not in content


def make_nested(note: str) -> Any:
    """An ONNX model with a function and a branch, all parts of which say `note`."""
    from onnx import TensorProto, helper

    def add_note(part: Any) -> Any:
        if note:
            part.doc_string = note
            helper.set_model_props(part, {"pkg.torch.onnx.stack_trace": note})
        return part

    value = add_note(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    identity = add_note(helper.make_node("Identity", ["x"], ["y"]))
    branch = add_note(helper.make_graph([identity], "branch", [], [value]))
    node = add_note(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    graph = add_note(helper.make_graph([node], "graph", [value], [value], [weights]))
    opsets = [helper.make_opsetid("", 20)]
    function = add_note(helper.make_function("own", "F", ["x"], ["y"], [identity], opsets))
    return add_note(helper.make_model(graph, functions=[function], opset_imports=opsets))


def test_no_part_of_an_onnx_model_keeps_its_sources() -> None:
    model = make_nested("/home/me/model.py")
    assert model.SerializeToString().count(b"/home/me") > 20
    onnx_models.clear_sources(model)
    assert model == make_nested("")


def test_torchscript_loads_where_this_project_is_not(files: dict[str, Path], model: MultiLabelModel) -> None:
    torch.save(draw_images(2), files["torchscript"].with_name("images"))
    code = "import torch; print(torch.jit.load('model_torchscript.pt')(torch.load('images')).tolist())"
    folder = files["torchscript"].parent
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    (folder / "images").unlink()
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), compute_plain(model, draw_images(2)).numpy(), atol=1e-4)


def test_half_precision_halves_the_file(export: Export, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    EXPORT_FORMATS["openvino"].save(replace_fp16(export), path)
    assert 0.45 < measure_weights(path) / measure_weights(files["openvino"]) < 0.6
    run, metadata, _ = ENGINES["openvino"](path, CPU)
    assert metadata is not None
    assert metadata["precision"] == "fp16"
    expected = compute_plain(export.network, draw_images(4))
    difference = (run(draw_images(4)) - expected).abs().max() / expected.abs().max()
    assert 1e-7 < difference < 0.02


def replace_fp16(export: Export) -> Export:
    copied = replace(export, fp16=True)
    copied.__dict__["onnx"] = export.onnx  # made already
    return copied


class Mean(nn.Module):
    """What is quick to convert: the mean of each channel, above or below 100."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)) - 100


def test_probabilities_have_the_activation_inside(tmp_path: Path) -> None:
    network = model_files.Activated(Mean(), torch.sigmoid).eval()
    export = make_export(network, ["batch"], output="probabilities")
    images = torch.full((3, 3, 64, 64), 99, dtype=torch.uint8)
    for name, engine in RUNTIMES.items():
        path = tmp_path / f"model{EXPORT_FORMATS[name].ending}"
        EXPORT_FORMATS[name].save(export, path)
        torch.testing.assert_close(ENGINES[engine](path, CPU).run(images), torch.full((3, 3), -1.0).sigmoid())
    import onnx

    assert onnx.load(tmp_path / "model.onnx").graph.output[0].name == "probabilities"


def test_without_dynamic_axes_a_file_takes_one_image(tmp_path: Path) -> None:
    import onnx

    EXPORT_FORMATS["onnx"].save(make_export(Mean().eval(), []), tmp_path / "model.onnx")
    shape = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [1, 3, 64, 64]


class OneSize(nn.Module):
    """A network whose trace holds the size it was traced at, as TensorFlow's padding does."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().sum(dim=(2, 3)) / int(images.shape[2])


class Patches(nn.Module):
    """A network of one size, as transformers are: a weight for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(64, 64))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() * self.positions).mean(dim=(2, 3))


def test_a_trace_of_one_size_is_refused_where_the_size_is_to_vary(tmp_path: Path) -> None:
    advice = "leave size out of EXPORT_DYNAMIC"
    with pytest.raises(InputError, match=f"^in this format network takes one size only: {advice}$"):
        EXPORT_FORMATS["torchscript"].save(make_export(OneSize().eval(), ["size"]), tmp_path / "model.pt")
    for name in ("onnx", "torchscript"):
        with pytest.raises(InputError, match=f"^[^\n]*{advice}$"):
            EXPORT_FORMATS[name].save(make_export(Patches().eval(), ["size"]), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []
    EXPORT_FORMATS["torchscript"].save(make_export(OneSize().eval(), []), tmp_path / "model.pt")


def test_a_network_that_onnx_cannot_express_is_one_line(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean(dim=(2, 3)) * (1 if images.sum() > 0 else 2)

    with pytest.raises(InputError, match=r"^ONNX cannot express this network: [^\n]+$"):
        EXPORT_FORMATS["onnx"].save(make_export(Branch().eval(), ["batch"]), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_since_its_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_bytes(b"layers")
    path.with_suffix(".bin").write_bytes(b"weights")
    model_files.require_unchanged(path)  # without a report
    report = model_files.report_path(path)
    report.write_text(json.dumps({"parity": "passed"}))
    model_files.require_unchanged(path)  # whose report has no hash, as before
    report.write_text(json.dumps({"sha256": model_files.hash_files(path)}))
    model_files.require_unchanged(path)
    for file in (path, path.with_suffix(".bin")):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"x")
        with pytest.raises(
            InputError, match=r"model\.xml has changed since model\.xml\.json was written: it is damaged"
        ):
            model_files.require_unchanged(path)
        file.write_bytes(content)
    path.with_suffix(".onnx").write_bytes(b"of the same name")
    assert model_files.hash_files(path.with_suffix(".onnx")).keys() == {"model.onnx"}, "without OpenVINO's weights"
    report.write_text("{broken")
    with pytest.raises(InputError, match=r"model\.xml\.json:1: [^\n]+: this is not JSON"):
        model_files.require_unchanged(path)


def test_weights_beside_an_onnx_file_that_changed_since_its_report_are_refused(tmp_path: Path) -> None:
    """Reports of earlier versions name the small file alone: they are accepted as they were."""
    import onnx

    path, weights = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    EXPORT_FORMATS["onnx"].save(make_export(Patches().eval(), ["batch"]), path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=weights.name)
    content = weights.read_bytes()
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, weights)}
    assert model_files.hash_files(path) == hashes
    assert len(content) >= 64 * 64 * 4

    report = model_files.report_path(path)
    report.write_text(json.dumps({"sha256": hashes}))
    model_files.require_unchanged(path)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.onnx has changed since model\.onnx\.json was written: it is damaged"):
        model_files.require_unchanged(path)
    report.write_text(json.dumps({"sha256": {path.name: hashes[path.name]}}))
    model_files.require_unchanged(path)
    report.write_text(json.dumps({"sha256": hashes}))
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.onnx has changed since"):
        model_files.require_unchanged(path)


@pytest.mark.parametrize("name", ["model.onnx", "classifier/1/model.onnx"])
def test_a_file_in_a_folder_that_changed_since_its_report_is_refused(name: str, tmp_path: Path) -> None:
    """What the report does not name may come and go; a neighbour that is no report is none."""
    folder = tmp_path / "other" / "run_web"
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"layers")
    (folder / "facts.json").write_text("{}")
    model_files.report_path(tmp_path / "other").write_text("// no JSON")
    model_files.report_path(folder).write_text(json.dumps({"sha256": model_files.hash_files(folder)}))
    (folder / "own.txt").write_text("mine")
    model_files.require_unchanged(path)
    (folder / "facts.json").write_text("{ }")
    with pytest.raises(InputError, match=r"run_web has changed since run_web\.json was written: it is damaged"):
        model_files.require_unchanged(path)
    (folder / "facts.json").write_text("{}")
    path.write_bytes(b"changed")
    with pytest.raises(InputError, match=r"run_web has changed since"):
        model_files.require_unchanged(path)
    other = path.with_name("other.onnx")
    other.write_bytes(b"mine")
    model_files.require_unchanged(other)


def test_files_links_and_folders_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name, is_folder, expected in (
        ("file", True, "is a file, where a folder would be written: move it away"),
        ("link", True, "is a link, where a folder would be written"),
        ("nowhere", True, "is a link, where a folder would be written"),
        ("folder", False, "is a folder, where a file would be written"),
        ("folder", True, "is a folder that no export has made"),
    ):
        with pytest.raises(InputError, match=expected):
            model_files.require_replaceable(tmp_path / name, is_folder)
    model_files.require_replaceable(tmp_path / "file", is_folder=False)
    model_files.require_replaceable(tmp_path / "new", is_folder=True)


@pytest.mark.parametrize("name", limits.PLAIN_FORMATS)
def test_formats_that_hold_the_network_alone_refuse_more(name: str, tmp_path: Path) -> None:
    """They are those that limits.py refuses before any work."""
    export = make_export(nn.Identity(), ["batch"])
    for more, expected in (({"input": "image"}, "the resize rule"), ({"gives_labels": True}, "labels")):
        changed = replace(export, metadata=export.metadata | more)
        with pytest.raises(InputError, match=f"cannot (hold|give) {expected}, ONNX and OpenVINO can"):
            EXPORT_FORMATS[name].save(changed, tmp_path / "model")
