"""export/predict_onnx.py: without this project it gives the labels that predictor gives, of whatever picture."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import SEED_SHIFT
from numpy.typing import NDArray
from PIL import Image

import predictor
import utils
from dataset.image_sizes import as_size
from dataset.resize_rules import RESIZE_RULES
from export import model_files, predict_onnx
from export.engines import METADATA

# without AVX2 torch rounds resized pixels in another way, and so does what predictor gives
TOLERANCE = 0.02 if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else 1e-5
CLASSES = ["cat", "dog", "fäx", "a\x1b[31m"]
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of every kind that predictor reads, each of another shape."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "inner").mkdir()
    rng = np.random.default_rng(SEED_SHIFT)

    def draw(height: int, width: int, channels: int = 3) -> Any:
        patches = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
        return patches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]

    Image.fromarray(draw(90, 61)).save(folder / "photo.jpg", quality=90)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        Image.fromarray(draw(30 + turn, 50)).save(folder / "inner" / f"turned{turn}.jpg", exif=exif)
    Image.fromarray(draw(40, 50)[..., 0]).save(folder / "grey.png")
    Image.fromarray(draw(33, 47, 4)).save(folder / "alpha.png")
    Image.fromarray(draw(33, 47)).quantize(8).save(folder / "palette.gif")
    Image.fromarray(draw(20, 70)[..., 0].astype(np.uint16) * 256).save(folder / "sixteen.png")
    Image.fromarray(draw(50, 50)).convert("CMYK").save(folder / "cmyk.jpg")
    for name, shape in (("line", (1, 37)), ("column", (50, 1)), ("dot", (1, 1)), ("small", (9, 7)), ("same", (32, 32))):
        Image.fromarray(draw(*shape)).save(folder / f"{name}.png")
    Image.fromarray(draw(200, 333)).save(folder / "large.bmp")
    return folder


def save_model(path: Path, rule: str, resizes: bool, **values: Any) -> None:
    """An ONNX file as export_onnx.py writes it, of a linear network: each of its weights is of one pixel."""
    metadata = {"model_name": "network", "head": "linear", "classes": CLASSES, "thresholds": [0.5, 0.4, 0.6, 0.5]}
    metadata |= {"image_size": 32, "resize_rule": rule, "output": "logits", "dynamic": [], "precision": "fp32"}
    metadata |= values | {"input": "image" if resizes else "images"}
    height, width = as_size(metadata["image_size"])
    rng = np.random.default_rng(SEED_SHIFT)
    weights = rng.normal(0, 0.03 / 64, (3 * height * width, len(CLASSES))).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Flatten", ["pixels"], ["row"]),
        onnx.helper.make_node("MatMul", ["row", "weights"], ["logits"]),
    ]
    if metadata["output"] == "probabilities":
        nodes.append(onnx.helper.make_node("Sigmoid", ["logits"], ["probabilities"]))
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [1, 3, height, width])
    output = onnx.helper.make_tensor_value_info(metadata["output"], onnx.TensorProto.FLOAT, [1, len(CLASSES)])
    graph = onnx.helper.make_graph(nodes, "g", [images], [output], [onnx.numpy_helper.from_array(weights, "weights")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = model_files.add_ends(model, metadata)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(metadata)})
    onnx.save(model, path)


@pytest.mark.parametrize("resizes", [False, True])
@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_it_gives_the_labels_of_predictor(rule: str, resizes: bool, pictures: Path, tmp_path: Path) -> None:
    """Of the same file, where predictor resizes by torchvision; and of one image in memory."""
    many: dict[str, dict[str, Any]] = {
        "plain": {},
        "oblong": {"image_size": [24, 40]},
        "calibrated": {"output": "probabilities", "gives_labels": True},
        "top": {"activation": "softmax", "min_labels": 1, "max_labels": 1},
        "two": {"min_labels": 2, "max_labels": 3, "thresholds": [0.45, 0.1, 0.9, 0.999]},
    }
    for name, values in many.items():
        path = tmp_path / f"{name}.onnx"
        save_model(path, rule, resizes, **values)
        classifier, model = predict_onnx.Classifier(path), predictor.load(path, "cpu")
        records = list(model.predict(pictures))
        assert [record.path for record in records] == list(map(str, predict_onnx.list_images([str(pictures)])))
        for record in records:
            found = classifier.measure(record.path)
            np.testing.assert_allclose(found, record.probabilities, rtol=0, atol=TOLERANCE, err_msg=record.path)
            is_near = np.abs(record.probabilities - model.thresholds).min() <= TOLERANCE
            assert is_near or classifier.decide(found) == record.ranked, record.path
            assert is_near or list(classifier.predict(Image.open(record.path))) == [
                record.classes[label] for label in record.ranked
            ]
        counts = {len(record.labels) for record in records}
        assert counts <= {2, 3} if name == "two" else counts == {1} if name == "top" else len(counts) > 1


def resize_with_16_bits(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.int64]:
    """Pixels (H, W, 3) as torch resizes them with AVX2, written out in whole numbers: columns first, then rows."""
    resized = pixels.astype(np.int64)
    for axis, count in ((1, width), (0, height)):
        length = resized.shape[axis]
        distances = np.abs((2 * np.arange(length) + 1) * count - (2 * np.arange(count)[:, None] + 1) * length)
        weights = np.maximum(0, 2 * max(length, count) - distances)
        shares = weights / weights.sum(axis=1, keepdims=True)
        bits = 0
        while bits < 22 and int(0.5 + shares.max() * 2 ** (bits + 1)) < 2**15:
            bits += 1
        whole = np.floor(shares * 2**bits + 0.5).astype(np.int64)
        sums = np.moveaxis(np.tensordot(whole, resized, (1, axis)), 0, axis)
        resized = np.clip((sums + 2**bits // 2) >> bits, 0, 255)
    return resized


def test_pixels_are_those_of_weights_of_16_bits() -> None:
    """Every one of them, whatever the processor: of images of one pixel a side, smaller, larger and much larger."""
    rng = np.random.default_rng(SEED_SHIFT)
    shapes = [*rng.integers(1, 90, (150, 4)).tolist(), (1, 37, 8, 9), (50, 1, 7, 60), (1, 1, 5, 4), (12, 9, 12, 9)]
    for height, width, *size in [*shapes, (700, 500, 20, 31), (272, 22, 151, 85), (6, 700, 300, 3)]:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = predict_onnx.resize_sides(pixels, *size)
        np.testing.assert_array_equal(found, resize_with_16_bits(pixels, *size), str((height, width, *size)))


def test_ties_go_to_the_first_class_as_in_predictor(pictures: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model.onnx", "squash", False, min_labels=1, max_labels=2)
    classifier, model = predict_onnx.Classifier(tmp_path / "model.onnx"), predictor.load(tmp_path / "model.onnx", "cpu")
    rng = np.random.default_rng(SEED_SHIFT)
    rows = (rng.integers(0, 5, (300, len(CLASSES))) / 4).astype(np.float32)
    assert [sorted(classifier.decide(row)) for row in rows] == model.decide(rows)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["predict_onnx.py", *arguments])
    predict_onnx.main()


def test_the_command_prints_labels_or_json(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    save_model(path, "letterbox", True, thresholds=[0.0, 0.99, 0.99, 0.0])
    arguments = [str(path), str(pictures / "photo.jpg"), str(pictures / "inner")]
    records = list(predictor.load(path, "cpu").predict([pictures / "photo.jpg", pictures / "inner"]))
    run(arguments, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{record.path}: {', '.join(record.describe())}".replace("\x1b", r"\x1b") for record in records]
    assert any(r"a\x1b[31m 0." in line for line in lines), "a name does nothing to a terminal"
    run([*arguments, "--json"], monkeypatch)
    for line, record in zip(capsys.readouterr().out.splitlines(), records, strict=True):
        values, expected = json.loads(line), record.json["res"]
        assert values.pop("scores") == pytest.approx(expected.pop("scores"), abs=2e-6)
        assert values == expected


def test_signs_that_a_terminal_lacks_are_escaped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model.onnx", "squash", False, thresholds=[1.0, 1.0, 0.0, 1.0])
    shutil.copy(pictures / "dot.png", tmp_path / "Öl €.png")
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    run([str(tmp_path / "model.onnx"), str(tmp_path / "Öl €.png")], monkeypatch)
    sys.stdout.flush()
    assert printed.getvalue().startswith(rf"{tmp_path}/\xd6l \u20ac.png: f\xe4x 0.".encode())


def test_what_cannot_be_read_is_named_and_the_others_go_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    save_model(path, "squash", False)
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    content = (pictures / "photo.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    Image.open(pictures / "photo.jpg").save(tmp_path / "text.tif")
    content = (tmp_path / "text.tif").read_bytes()
    assert content.count(b"\x11\x01\x04\x00") == 1  # where its pixels begin, a number
    (tmp_path / "text.tif").write_bytes(content.replace(b"\x11\x01\x04\x00", b"\x11\x01\x02\x00"))  # a text
    reasons = {
        "no.jpg": "it is no JPEG, PNG, BMP, WEBP, GIF, TIFF file, or is damaged",
        "half.jpg": "image file is truncated (",
        "none.jpg": "No such file or directory",
        "text.tif": "it is damaged (TypeError: ",
    }
    names = [str(tmp_path / name) for name in reasons]
    with pytest.raises(SystemExit, match=r"^4 pictures could not be read$"):
        run([str(path), *names, str(pictures / "dot.png")], monkeypatch)
    printed = capsys.readouterr()
    for line, name in zip(printed.err.splitlines(), names, strict=True):
        assert line.startswith(f"{name}: {reasons[Path(name).name]}")
        assert line.count(name) == 1
    assert printed.out.startswith(f"{pictures / 'dot.png'}: ")


def test_folders_and_patterns_give_pictures_or_say_that_there_are_none(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, empty, photos = tmp_path / "model.onnx", tmp_path / "empty", tmp_path / "photos"
    save_model(model, "squash", False)
    empty.mkdir()
    (empty / "a.txt").touch()
    for name in ("b-c/a.jpg", "b/a.JPG", "b/[1].png", "._a.jpg", ".cache/a.jpg", "a.txt"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "photo.jpg", photos / name)
    for place in (empty, tmp_path / "*.jpg", photos / "*"):
        with pytest.raises(SystemExit) as stopped:
            run([str(model), str(photos), str(place)], monkeypatch)
        words = "in" if place == empty else "match"
        assert stopped.value.code == f"no pictures {words} {place} ({', '.join(predict_onnx.ENDINGS)})"
    for place in (photos, photos / "**" / "*.[jJ]*", photos / "b" / "*", photos / "b" / "[1].png"):
        expected = [record.path for record in predictor.load(model, "cpu").predict(str(place))]
        assert list(map(str, predict_onnx.list_images([str(place)]))) == expected


def refuse(path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command says of the model `path` before it ends with status 1: one line, which names it once."""
    with pytest.raises(SystemExit) as stopped:
        run([str(path), str(picture)], monkeypatch)
    message = stopped.value.code  # a text: Python prints it, and ends with status 1
    assert isinstance(message, str)
    assert message.count(str(path)) == 1
    assert message.isprintable()
    return message.replace(str(path), "MODEL")


def test_a_bad_model_is_one_line(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, photo = tmp_path / "good.onnx", pictures / "photo.jpg"
    save_model(good, "squash", False)
    files = {
        "cut.onnx": good.read_bytes()[:999],
        "model.pt": b"PK\3\4",
        "model.xml": b"<?xml?><net/>",
        "empty.onnx": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        message = refuse(tmp_path / name, photo, monkeypatch)
        assert message.startswith("cannot open MODEL: it is no ONNX file, damaged, or of another version ("), name
    assert refuse(tmp_path / "none.onnx", photo, monkeypatch) == "there is no model MODEL"

    model = onnx.load(good)
    about = json.loads(model.metadata_props[0].value)

    def refuse_metadata(text: str | None) -> str:
        onnx.helper.set_model_props(model, {} if text is None else {METADATA: text})
        onnx.save(model, tmp_path / "other.onnx")
        return refuse(tmp_path / "other.onnx", photo, monkeypatch)

    assert refuse_metadata(None).startswith("MODEL does not say its classes and thresholds: ")
    for text in ("{", "[" * 100_000):
        assert refuse_metadata(text) == "MODEL: its metadata is no JSON"
    wrong = {"classes": [None, "cat", [1]], "thresholds": [None, 0.5, ["0.5"] * 4, [float("nan")] * 4]}
    wrong |= {"image_size": [None, 0, [32], 1e9, "32"], "resize_rule": ["crop", []], "output": ["labels", {}]}
    wrong |= {"activation": [None, "relu"], "min_labels": ["1", -1], "max_labels": [[2], 0.5]}
    for name, values in wrong.items():
        for value in values:
            message = refuse_metadata(json.dumps(about | {name: value}))
            assert message.startswith(f"MODEL: {name} in its metadata is {value!r}, "), message
    assert refuse_metadata("[]").startswith("MODEL: classes in its metadata is None, ")
    message = refuse_metadata(json.dumps(about | {"thresholds": [0.5] * 3}))
    assert message == "MODEL: its metadata has 3 thresholds for 4 classes"
    message = refuse_metadata(json.dumps(about | {"classes": ["cat", "dog"], "thresholds": [0.5] * 2}))
    assert message.startswith("MODEL gives (1, 4) numbers for an image, and has 2 classes: ")
    message = refuse_metadata(json.dumps(about | {"image_size": 64}))
    assert message.startswith("cannot run MODEL on uint8 (1, 3, 64, 64): ")


def test_a_failed_or_changed_file_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """In the words of predictor."""
    path, photo = tmp_path / "folder" / "1" / "model.onnx", pictures / "photo.jpg"
    path.parent.mkdir(parents=True)
    save_model(path, "squash", False)

    def refuse_alike() -> str:
        message = refuse(path, photo, monkeypatch)
        assert fails(lambda _: predictor.load(path, "cpu"), []) == "error: " + message.replace("MODEL", str(path), 1)
        return message

    report = model_files.report_path(path)
    for content in ({"sha256": model_files.hash_files(path)}, {}, []):
        report.write_text(json.dumps(content))
        run([str(path), str(photo)], monkeypatch)
    for marked in (path, tmp_path / "folder"):
        mark = model_files.mark_path(marked)
        mark.touch()
        message = f"MODEL did not pass its comparison with the checkpoint: export it again, or delete {mark.name} to "
        assert refuse_alike().startswith(message)
        mark.unlink()
    for hashes in ({path.name: "0" * 64}, {}, [], model_files.hash_files(path) | {"other.onnx": "0" * 64}):
        report.write_text(json.dumps({"sha256": hashes}))
        assert refuse_alike().startswith("MODEL has changed since model.onnx.json was written: ")
    report.write_text("{")
    with pytest.raises(SystemExit, match=f"^cannot read {re.escape(str(report))}: JSONDecodeError$"):
        run([str(path), str(photo)], monkeypatch)


def test_changed_weights_beside_a_file_are_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """In the words of predictor. Reports of earlier versions name the small file alone."""
    path, weights, photo = tmp_path / "model.onnx", tmp_path / "model.onnx.data", pictures / "photo.jpg"
    save_model(path, "squash", False)
    expected = predict_onnx.Classifier(path).measure(photo)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=weights.name)
    content, hashes = weights.read_bytes(), model_files.hash_files(path)
    assert {*hashes} == {path.name, weights.name}
    report = model_files.report_path(path)
    for names in ({*hashes}, {path.name}):
        report.write_text(json.dumps({"sha256": {name: hashes[name] for name in names}}))
        np.testing.assert_allclose(predict_onnx.Classifier(path).measure(photo), expected, rtol=0, atol=1e-6)

    report.write_text(json.dumps({"sha256": hashes}))
    for change in (lambda: weights.write_bytes(bytes([content[0] ^ 1]) + content[1:]), weights.unlink):
        change()
        message = refuse(path, photo, monkeypatch)
        assert message.startswith("MODEL has changed since model.onnx.json was written: ")
        assert fails(lambda _: predictor.load(path, "cpu"), []) == "error: " + message.replace("MODEL", str(path), 1)


def test_what_int8_moves_beyond_0_and_1_is_0_and_1(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in predictor."""
    path = tmp_path / "model.onnx"
    save_model(path, "squash", False)
    classifier = predict_onnx.Classifier(path)
    monkeypatch.setattr(classifier, "activate", lambda output: np.array([-0.009, 0.25, 1, 1.009], np.float32))
    found = classifier.measure(pictures / "photo.jpg")
    assert (found.dtype, found.tolist()) == (np.float32, [0, 0.25, 1, 1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [{}, {"activation": "softmax"}, {"output": "probabilities"}])
def test_probabilities_that_are_no_numbers_are_refused(
    values: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in predictor. Logits that are far too large are probabilities of 0 and 1, and nothing is said of them."""
    path, photo = tmp_path / "model.onnx", pictures / "photo.jpg"
    save_model(path, "squash", False, **values)
    model = onnx.load(path)
    (tensor,) = model.graph.initializer
    weights = onnx.numpy_helper.to_array(tensor)

    def change(factors: list[float]) -> None:
        changed = weights * np.array(factors, dtype=np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
        onnx.save(model, path)

    change([1e6] * 4)
    assert set(predict_onnx.Classifier(path).measure(photo)) <= {0, 1}
    change([1, 1, np.nan, 1])
    assert refuse(path, photo, monkeypatch).startswith(f"MODEL gives nan as a probability for {photo}: ")
    with pytest.raises(utils.InputError, match="gives nan as a probability for "):
        list(predictor.load(path, "cpu").predict(photo))


def test_the_example_of_the_docs_prints_the_labels(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(predictor.__file__).parent / "docs" / "exporting.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "onnxruntime" in block)
    monkeypatch.chdir(tmp_path)
    shutil.copy(pictures / "inner" / "turned6.jpg", "photo.jpg")
    save_model(Path("model_resize.onnx"), "letterbox", True, output="probabilities", gives_labels=True, min_labels=2)
    exec(code, {})
    (record,) = predictor.load("model_resize.onnx", "cpu").predict("photo.jpg")
    assert capsys.readouterr().out == f"{record.names}\n"
    assert len(record.names) >= 2


def test_it_needs_three_packages_only() -> None:
    tree = ast.parse(Path(predict_onnx.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


def test_a_reader_that_has_seen_enough_is_no_error(pictures: Path, tmp_path: Path) -> None:
    """As `| head -n 0`, which ends at once."""
    save_model(tmp_path / "model.onnx", "squash", False)
    command = [sys.executable, predict_onnx.__file__, str(tmp_path / "model.onnx"), str(pictures)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
