"""export_onnx.py: every format passes its comparison on real photographs; what fails is marked, and refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from random_models import choose_thresholds, make_random_model
from torch import Tensor, nn

import config
import export_onnx
import models_factory
import predictor
import serving
import utils
from dataset import files, resize_rules, whole_files
from dataset.files import list_images
from evaluation import export_parity
from export import engines, export_formats, model_files, onnx_ends
from models import batchnorm_folding, checkpoints
from predictor import Record

pytestmark = pytest.mark.usefixtures("one_thread")

# without AVX2 torch rounds resized pixels in another way than exported files do
RESIZED_TOLERANCE = 2e-3 if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else 1e-5
CALIBRATION = {"platt": {"scale": [1.5, 0.5, 1.0, 2.0, 0.8] * 4, "bias": [0.5, -0.5, 0.0, 1.0, -1.0] * 4}}


@pytest.fixture(scope="module")
def paths(photographs: Path) -> list[str]:
    return list_images(photographs / "coco18-dev" / "images" / "test-resized")


@pytest.fixture(scope="module")
def checkpoint(photographs: Path, paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network of the photographs' 18 classes, each threshold amid its class's probabilities, near to none."""
    classes = (photographs / "coco18-dev" / "classes.txt").read_text().split("\n")
    classes = [name for name in classes if name]
    torch.manual_seed(0)
    model = make_random_model("test_resnet", num_classes=len(classes))
    transform = resize_rules.make_eval_transform("squash", 64)
    with torch.no_grad():
        probabilities = model(torch.stack([predictor.read_image(path, transform) for path in paths[:200]])).sigmoid()
    values = {"model_name": "test_resnet", "head": "linear_bn", "image_size": 64, "resize_rule": "squash"}
    values |= {
        "classes": classes,
        "thresholds": choose_thresholds(probabilities),
        "best_threshold": 0.4,
        "best_f1": 0.5,
        "epoch": 3,
    }
    calibration = {"platt": {name: numbers[: len(classes)] for name, numbers in CALIBRATION["platt"].items()}}
    path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    checkpoints.save(path, {"model_state": model.state_dict(), "calibration": calibration} | values)
    return path


def make_arguments(checkpoint: Path, folder: Path, photographs: Path, **values: Any) -> list[str]:
    values = {
        "MODEL_PATH": checkpoint,
        "LOCAL_ROOT": folder,
        "DATASET_FOLDER": photographs / "coco18-dev",
        "EXPORT_CHECK_IMAGES": 20,
        "INT8_CALIBRATION_IMAGES": 20,
    } | values
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all formats' files, made once."""
    before = dict(config.__dict__)
    folder = tmp_path_factory.mktemp("exported")
    formats = {"EXPORT_FORMATS": ",".join(FILES), "EXPORT_CHECK_IMAGES": 200}
    try:
        with pytest.MonkeyPatch.context() as patch:  # a random network's images differ little: int8 reorders them
            loose = export_parity.BUDGETS["int8"]._replace(flips=0.3, mAP_loss=0.1)
            patch.setitem(export_parity.BUDGETS, "int8", loose)
            export_onnx.main(make_arguments(checkpoint, folder, photographs, **formats))
    finally:
        config.__dict__.clear()
        config.__dict__.update(before)
    return folder / "exported_models"


FILES = {
    "onnx": "test_resnet_random.onnx",
    "openvino": "test_resnet_random.xml",
    "torchscript": "test_resnet_random_torchscript.pt",
    "pt2": "test_resnet_random_torchexport.pt2",
    "onnx_int8": "test_resnet_random_int8.onnx",
    "openvino_int8": "test_resnet_random_int8.xml",
    "hub": "test_resnet_random_hub",
    "web": "test_resnet_random_web",
    "triton": "test_resnet_random_triton",
    "openvino_server": "test_resnet_random_openvino_server",
}
PRECISIONS = {"onnx_int8": "int8", "openvino_int8": "int8", "web": "fp16"}  # of others fp32


def test_every_file_has_a_report_and_no_mark(exported: Path, checkpoint: Path) -> None:
    weights = {name.replace(".xml", ".bin") for name in FILES.values() if name.endswith(".xml")}
    reports = {f"{name}.json" for name in FILES.values()}
    assert {path.name for path in exported.iterdir()} == {*FILES.values(), *weights, *reports, "predict_onnx.py"}
    for name, file in FILES.items():
        report = json.loads((exported / f"{file}.json").read_text())
        assert (report["file"], report["parity"], report["problems"]) == (file, "passed", [])
        assert (report["checkpoint"], report["checkpoint_sha256"]) == (checkpoint.name, files.hash_file(checkpoint))
        assert report["precision"] == PRECISIONS.get(name, "fp32")
        assert (report["num_images"], report["num_entries"]) == (200, 3600)
        if report["precision"] != "fp16":  # of this network its differences may be of either kind
            assert (report["max_difference"] <= 1e-4) == (report["precision"] == "fp32")


def predict(path: Path, paths: list[str], **options: Any) -> list[Record]:
    return list(predictor.load(path, "cpu", **options).predict(paths, batch_size=32))


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("onnx", "auto"),
        ("openvino", "auto"),
        ("torchscript", "auto"),
        ("pt2", "auto"),
        ("onnx", "openvino"),
        ("hub", "auto"),
    ],
)
def test_files_predict_the_checkpoints_labels_on_200_photographs(
    name: str, engine: str, exported: Path, checkpoint: Path, paths: list[str]
) -> None:
    expected = predict(checkpoint, paths[:200])
    found = predict(exported / FILES[name], paths[:200], engine=engine)
    assert [record.labels for record in found] == [record.labels for record in expected]
    assert [record.names for record in found] == [record.names for record in expected]
    counts = np.array([len(record.labels) for record in expected])
    assert 100 < counts.sum() < 3500, "labels are neither none nor all"


def test_a_file_is_its_checkpoint_in_all_that_it_says(exported: Path, checkpoint: Path) -> None:
    stored = {k: v for k, v in checkpoints.load(checkpoint).items() if k not in checkpoints.TENSORS}
    for name, file in FILES.items():
        model = predictor.load(export_formats.EXPORT_FORMATS[name].find_model(exported / file), "cpu")
        rounded = {"thresholds": model.metadata["thresholds"]}  # those of probabilities are float32
        head = {"head": "linear"} if name == "hub" else {}  # with BatchNorm folded into it, as timm has it
        assert model.metadata.items() >= (stored | rounded | head).items()
        assert model.thresholds.tolist() == np.float32(stored["thresholds"]).tolist()
        assert model.threshold == 0.4


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_exported_file_takes_no_other_size_or_precision(
    engine: str, exported: Path, fails: Callable[..., str]
) -> None:
    path = exported / FILES["onnx"]
    for options, message in (
        ({"scales": (1.0, 1.5)}, f"{path} in engine {engine} takes images of 64 px only: set TEST_SCALES to (1.0,)"),
        ({"int8_images": ["a.jpg"]}, f"int8 is made of a checkpoint, and {path} is onnx: set TEST_INT8 = False"),
    ):
        found = fails(lambda _, options=options: predictor.load(path, "cpu", engine=engine, **options), [])
        assert found == f"error: {message}"


def test_probabilities_come_calibrated_with_their_thresholds(
    checkpoint: Path, photographs: Path, paths: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    """A fixed file of one image, too: it serves any number of them."""
    values = {"EXPORT_FORMATS": "torchscript,pt2,onnx", "EXPORT_OUTPUT": "probabilities", "CALIBRATION": "platt"}
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_DYNAMIC="()", **values)
    export_onnx.main(arguments)
    calibrated = predictor.load(checkpoint, "cpu", calibration="platt")
    expected = list(calibrated.predict(paths[:7]))
    for name in ("torchscript", "pt2", "onnx"):
        path = tmp_path / "exported_models" / FILES[name]
        model = predictor.load(path, "cpu")
        np.testing.assert_allclose(model.thresholds, calibrated.thresholds, atol=1e-6)
        for record, other in zip(model.predict(paths[:7], batch_size=4), expected, strict=True):
            np.testing.assert_allclose(record.probabilities, other.probabilities, atol=1e-5)
            assert record.labels == other.labels
        message = fails(lambda _, path=path: predictor.load(path, "cpu", calibration="temperature"), [])
        assert "this file gives probabilities of CALIBRATION platt: export it again for temperature" in message


def test_a_model_without_a_threshold_takes_the_constant(checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    """The files that are made say it; a hub folder has none, as its checkpoint, and takes it where it is opened."""
    path = tmp_path / "random.pt"
    checkpoints.save(path, checkpoints.load(checkpoint) | {"thresholds": None, "best_threshold": None})
    few = {"EXPORT_FORMATS": "torchscript,hub", "EXPORT_CHECK_IMAGES": 2}
    export_onnx.main(make_arguments(path, tmp_path, photographs, TH_MULTI_LABEL=0.35, **few))
    folder = tmp_path / "exported_models"
    for name in ("torchscript", "hub"):
        report = json.loads((folder / f"{FILES[name]}.json").read_text())
        assert (report["parity"], report["problems"]) == ("passed", [])
    made = predictor.load(folder / FILES["torchscript"], "cpu", default_threshold=0.9)
    assert made.thresholds.tolist() == np.full(18, 0.35, np.float32).tolist()
    hub = predictor.load(folder / FILES["hub"], "cpu", default_threshold=0.9)
    assert not hub.has_thresholds
    assert hub.thresholds.tolist() == np.full(18, 0.9, np.float32).tolist()


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_files_of_logits_say_that_they_have_no_calibration(
    output: str, checkpoint: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hub folder has all that were fitted, as the checkpoint has."""
    values = {"EXPORT_FORMATS": "torchscript,hub", "EXPORT_OUTPUT": output, "CALIBRATION": "platt"}
    export_onnx.main(make_arguments(checkpoint, tmp_path, photographs, **values | {"EXPORT_CHECK_IMAGES": 2}))
    printed = capsys.readouterr()
    found = [line for line in printed.err.splitlines() if "of logits" in line]
    expected = (
        "warning: torchscript: CALIBRATION platt is not in a file of logits, of which predict_onnx.py and other "
        "programs make uncalibrated probabilities: EXPORT_OUTPUT probabilities puts it in"
    )
    assert found == [expected] * (output == "logits")
    assert "hub: CALIBRATION platt is not in its logits but in its multilabel.json" in printed.out


def test_predict_onnx_gives_the_checkpoints_labels_on_200_photographs(
    exported: Path, checkpoint: Path, paths: list[str]
) -> None:
    """The copy that lies beside the file."""
    name = "predict_onnx"
    spec = importlib.util.spec_from_file_location(name, exported / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    predict_onnx: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(predict_onnx)
    classifier = predict_onnx.Classifier(exported / FILES["onnx"])
    for record in predict(checkpoint, paths[:200]):
        probabilities = classifier.measure(record.path)
        np.testing.assert_allclose(probabilities, record.probabilities, rtol=0, atol=RESIZED_TOLERANCE)
        assert classifier.decide(probabilities) == record.ranked
    for rule in resize_rules.RESIZE_RULES:
        transform = resize_rules.make_eval_transform(rule, (48, 64))
        for path in paths[:40]:
            found = np.asarray(predict_onnx.resize(predict_onnx.make_rgb(Image.open(path)), 48, 64, rule))
            difference = np.abs(found - predictor.read_image(path, transform).permute(1, 2, 0).numpy().astype(int))
            assert difference.max() <= 2 * (RESIZED_TOLERANCE > 1e-3), (rule, path)


def test_a_changed_predict_onnx_stays(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "predict_onnx.py"
    path.write_text("# mine")
    export_onnx.copy_predictor(tmp_path)
    assert path.read_text() == "# mine"
    assert capsys.readouterr().out == f"{path} is not as this version has it and stays: delete it to get the new one\n"
    path.unlink()
    for _ in range(2):
        export_onnx.copy_predictor(tmp_path)
        assert path.read_bytes() == (exported / "predict_onnx.py").read_bytes()
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def hard_photographs(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photographs as test images: turned, grey, transparent, small, large, of one pixel in height or width."""
    root = tmp_path_factory.mktemp("hard")
    folder = root / "images" / "test-resized"
    folder.mkdir(parents=True)
    for number, path in enumerate(paths[:20]):
        photo = Image.open(path).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        shapes = [(37, 41), (5, 300), (photo.width, 1), (1, photo.height), (801, 533)]
        if number % 4 == 1:
            photo = photo.convert("L")
        elif number % 4 == 2:
            photo.putalpha(photo.convert("L"))
        elif number % 4 == 3:
            photo = photo.resize(shapes[number // 4])
        ending = "png" if number % 4 == 2 else "jpg"
        photo.save(folder / f"{number:02}.{ending}", quality=95, exif=exif)
    return root


@pytest.mark.parametrize(
    ("rule", "size", "formats", "output"),
    [
        ("squash", [48, 80], "onnx,openvino,onnx_int8", "logits"),
        ("center_crop", 64, "onnx", "probabilities"),
        ("letterbox", [80, 48], "onnx,openvino", "labels"),
    ],
)
def test_files_that_resize_give_what_their_checkpoint_gives(
    rule: str,
    size: Any,
    formats: str,
    output: str,
    checkpoint: Path,
    hard_photographs: Path,
    tmp_path: Path,
) -> None:
    """For photographs of any shape and kind."""
    calibration = "platt" if output == "labels" else "none"
    values = checkpoints.load(checkpoint) | {"resize_rule": rule, "image_size": size, "min_labels": 1, "max_labels": 9}
    checkpoints.save(tmp_path / "model.pt", values)
    values = {"EXPORT_FORMATS": formats, "EXPORT_RESIZE": True, "EXPORT_OUTPUT": output, "EXPORT_CHECK_IMAGES": 20}
    values |= {"TRAIN_IMAGES_DIR": hard_photographs / "images" / "test-resized", "CALIBRATION": calibration}
    export_onnx.main(make_arguments(tmp_path / "model.pt", tmp_path, hard_photographs, **values))
    folder = tmp_path / "exported_models"
    for name in formats.split(","):
        file = folder / f"test_resnet_model_resize{export_formats.EXPORT_FORMATS[name].ending}"
        report = json.loads(model_files.report_path(file).read_text())
        assert (report["parity"], report["problems"], report["num_images"]) == ("passed", [], 20)
        if not name.endswith("int8"):
            assert report["max_difference"] <= RESIZED_TOLERANCE, name
        assert report["budget"]["max_difference"] == (
            0.6 if name.endswith("int8") else 0.05 if RESIZED_TOLERANCE > 1e-3 else 5e-4
        )
    file = folder / "test_resnet_model_resize.onnx"
    inputs = onnx.load(file).graph.input
    assert [(value.name, len(value.type.tensor_type.shape.dim)) for value in inputs] == [("image", 3)]
    model, images = predictor.load(file, "cpu"), list_images(hard_photographs / "images")
    expected = predict(tmp_path / "model.pt", images, calibration=calibration)
    for engine, count in (("onnxruntime", 20), ("openvino", 4)):
        records = predictor.load(file, "cpu", engine=engine).predict(images[:count], 8)
        for record, other in zip(records, expected[:count], strict=True):
            np.testing.assert_allclose(record.probabilities, other.probabilities, rtol=0, atol=RESIZED_TOLERANCE)
    config.MODEL_PATH = file
    with pytest.raises(utils.InputError, match="resizes by itself, and the queue would hold images in full size"):
        serving.load_model()
    opened = engines.ENGINES["onnxruntime"](file, torch.device("cpu"))
    assert (opened.decide is not None) == (output == "labels")
    if opened.decide:
        for image, record in zip(images, model.predict(images), strict=True):
            assert np.flatnonzero(opened.decide(model.prepare(image)[None])[0]).tolist() == record.labels


def test_labels_that_are_not_those_of_the_probabilities_fail(
    checkpoint: Path, photographs: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = onnx_ends.put_labels_behind
    monkeypatch.setattr(
        model_files,
        "put_labels_behind",
        lambda model, thresholds, *limits: put(model, [0.5] * len(thresholds), *limits),
    )
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_OUTPUT="labels")
    assert "1 of 1 files did not pass" in fails(export_onnx.main, arguments)
    report = json.loads((tmp_path / "exported_models" / f"{FILES['onnx']}.json").read_text())
    (problem,) = report["problems"]
    assert re.fullmatch(r"\d+ of the labels that it gives are not those of its probabilities", problem)


@pytest.mark.parametrize(
    ("path", "run", "expected"),
    [
        (
            "/m/best_model.pt",
            "timm-resnet18/linear_lr0.001_seed0_1a2b3c4d",
            "timm-resnet18_linear_lr0.001_seed0_1a2b3c4d",
        ),
        (
            "/m/a/linear_lr0.001_seed0_1a2b3c4d.pt",
            "a/linear_lr0.001_seed0_1a2b3c4d",
            "timm-resnet18_linear_lr0.001_seed0_1a2b3c4d",
        ),
        ("/m/a/seed0/model_epoch_006.pth", "a/seed0", "timm-resnet18_seed0_model_epoch_006"),
        ("/m/best_model.pt", None, "timm-resnet18_best_model"),
    ],
)
def test_the_name_of_a_file_says_which_run_it_is_of(path: str, run: str | None, expected: str) -> None:
    config.MODEL_PATH, config.BEST_MODEL_PATH = Path(path), Path("/m/best_model.pt")
    metadata = {"model_name": "timm/resnet18"} | ({"run": run} if run else {})
    assert export_onnx.name_file("onnx_int8", metadata) == f"{expected}_int8.onnx"
    assert export_onnx.name_file("openvino", metadata) == f"{expected}.xml"


class Bgr(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.flip(1))


def test_a_file_that_fails_is_marked_and_refused_until_it_passes(
    checkpoint: Path, photographs: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_FORMATS="torchscript")
    path = tmp_path / "exported_models" / FILES["torchscript"]
    with monkeypatch.context() as patch:
        fold = batchnorm_folding.fold_batchnorm
        patch.setattr(batchnorm_folding, "fold_batchnorm", lambda *inputs: Bgr(fold(*inputs)).eval())
        message = fails(export_onnx.main, arguments)
    assert message == f"error: 1 of 1 files did not pass: {path.name}"
    report = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert report["parity"] == "failed"
    assert path.is_file(), "nothing is removed"
    assert model_files.mark_path(path).read_text().splitlines() == report["problems"] != []
    refusal = fails(lambda _: predictor.load(path, "cpu"), [])
    assert "did not pass its comparison with the checkpoint: export it again" in refusal

    export_onnx.main(arguments)
    assert not model_files.mark_path(path).exists()
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["parity"] == "passed"
    predictor.load(path, "cpu")


def test_a_format_may_write_a_folder(
    checkpoint: Path,
    photographs: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its model is compared; report and mark lie beside it. A folder that no export has made stays as it is."""
    weights = []

    def save(export: model_files.Export, path: Path) -> None:
        assert export.checkpoint == checkpoint
        network = export.network if not weights else model_files.Activated(export.network, torch.neg).eval()
        with whole_files.replace_folder(path) as folder:
            (folder / "1").mkdir()
            model_files.save_torchscript(
                dataclasses.replace(export, network=network), folder / "1" / "m_torchscript.pt"
            )
            (folder / "README.md").write_text("For people.")

    form = export_formats.ExportFormat(save, "_folder", model="1/m_torchscript.pt")
    monkeypatch.setitem(export_formats.EXPORT_FORMATS, "onnx", form)
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_FORMATS="onnx")
    folder = tmp_path / "exported_models" / "test_resnet_random_folder"
    folder.mkdir(parents=True)
    (folder / "precious.txt").touch()
    both = make_arguments(checkpoint, tmp_path, photographs, EXPORT_FORMATS="onnx,torchscript")
    assert fails(export_onnx.main, both) == f"error: 1 of 2 files did not pass: {folder.name}"
    shown = capsys.readouterr()
    assert "is a folder that no export has made: move it away" in shown.err
    assert "not made" in shown.out
    assert predictor.load(folder.parent / FILES["torchscript"], "cpu").classes
    for file in folder.parent.glob("*torchscript*"):
        file.unlink()
    assert [file.name for file in folder.iterdir()] == ["precious.txt"]
    (folder / "precious.txt").unlink()
    folder.rmdir()

    export_onnx.main(arguments)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.json"}
    report = json.loads((folder.parent / f"{folder.name}.json").read_text())
    model = folder / "1" / "m_torchscript.pt"
    assert (report["file"], report["parity"]) == (folder.name, "passed")
    assert report["sha256"] == {"1/m_torchscript.pt": files.hash_file(model)}
    assert report["megabytes"] == pytest.approx((model.stat().st_size + len("For people.")) / 1e6)
    predictor.load(model, "cpu")

    weights.append("wrong from now on")
    assert fails(export_onnx.main, arguments) == f"error: 1 of 1 files did not pass: {folder.name}"
    with pytest.raises(utils.InputError, match=r"delete test_resnet_random_folder\.FAILED to use it all the same$"):
        predictor.load(model, "cpu")


def test_nothing_that_people_put_into_a_folder_is_lost(
    checkpoint: Path,
    photographs: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An edited card stays, however often the folder is made; with any other file of theirs nothing is replaced."""
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_FORMATS="hub", EXPORT_OUTPUT="probabilities")
    folder = tmp_path / "exported_models" / FILES["hub"]
    card = folder / "README.md"
    export_onnx.main(arguments)
    assert "hub gives logits, whatever EXPORT_OUTPUT says (probabilities)" in capsys.readouterr().out
    original = card.read_bytes()
    card.write_bytes(b"my words\r\n")
    for _ in range(2):
        export_onnx.main(arguments)
        assert card.read_bytes() == b"my words\r\n"
        assert f"{card} was edited and stays: delete it to get the new one" in capsys.readouterr().out
    card.unlink()
    export_onnx.main(arguments)
    assert card.read_bytes() == original

    for name in (".git/config", "2/model.onnx", "NOTES.md", "config.json"):
        file = folder / name
        before = file.read_bytes() if file.exists() else None
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"mine")
        message = fails(export_onnx.main, arguments) + capsys.readouterr().err
        assert f"would be replaced, but {name} {'is not of' if before is None else 'has changed since'} its" in message
        assert file.read_bytes() == b"mine"
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
    export_onnx.main(arguments)


@pytest.mark.parametrize("kind", [utils.InputError, RuntimeError])  # a runtime's own, for an operator it has not
def test_a_format_that_cannot_be_made_leaves_the_others(
    kind: type[Exception],
    checkpoint: Path,
    photographs: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*inputs: Any, **options: Any) -> None:
        raise kind("ONNX cannot express this network: aten::unheard_of")

    monkeypatch.setattr(model_files, "make_onnx", refuse)
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_FORMATS="onnx,torchscript")
    message = fails(export_onnx.main, arguments)
    assert message == f"error: 1 of 2 files did not pass: {FILES['onnx']}"
    assert f"warning: {FILES['onnx']}: ONNX cannot express this network: aten::unheard_of" in capsys.readouterr().err
    file = FILES["torchscript"]
    assert {path.name for path in (tmp_path / "exported_models").iterdir()} == {file, f"{file}.json"}


def test_a_missing_package_is_one_line_before_any_work(
    checkpoint: Path, photographs: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else find(name))
    arguments = make_arguments(checkpoint, tmp_path, photographs, EXPORT_FORMATS="onnx,openvino_int8")
    message = fails(export_onnx.main, arguments)
    assert message == "error: EXPORT_FORMATS openvino_int8 needs nncf: pip install -r requirements-export.txt"
    assert not (tmp_path / "exported_models").exists()


def test_only_checkpoints_are_exported(exported: Path, photographs: Path, fails: Callable[..., str]) -> None:
    path = exported / FILES["onnx"]
    message = fails(export_onnx.main, make_arguments(path, exported, photographs))
    assert message == f"error: exported files are made of checkpoints, and MODEL_PATH {path} is none"


def test_without_a_data_set_a_folder_of_photographs_serves(
    checkpoint: Path, photographs: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    folder = tmp_path / "none"
    message = fails(export_onnx.main, make_arguments(checkpoint, tmp_path, photographs, DATASET_FOLDER=folder))
    assert message == (
        f"error: there is no folder {folder}: set DATASET_FOLDER to where the data set is; or, to compare on "
        "photographs without labels, TEST_IMAGES_DIR to a folder of them"
    )


def test_constants_of_exports_have_no_paths() -> None:
    """Nor relative ones, that a tuple holds or that a constant of an earlier version names."""
    kept = {"MODEL_NAME": "timm/resnet18", "HEAD": "linear", "PRETRAINED_WEIGHTS": "default", "IMAGE_SIZE": [48, 80]}
    kept |= {"GROUP_PATTERN": "/([^/]+)/", "CLASSES": ["/m/01g317", "dog"], "SEED": 0, "SLICES": []}
    paths = {"TENSORBOARD_FOLDER": "runs", "EXCLUDE_LIST": "mine/list.txt", "LOCAL_ROOT": "data", "CURRICULUM": None}
    paths |= {"EXTRA_DATASET_FOLDERS": ["more", "other"], "TEACHER_CHECKPOINTS": ["teachers/a.pt"]}
    paths |= {"A_FORMER_FOLDER": "/home/me/x", "FORMER_LISTS": ["a", "/home/me/y"], "FORMER_FILE": "~/x.csv"}
    assert export_onnx.leave_out_paths(kept | paths) == kept


def test_training_images_serve_where_there_are_no_others(dataset: Path) -> None:
    """Evenly spaced over the sorted names, with their targets; without labels the folder's."""
    config.DATASET_FOLDER = dataset
    config.TRAIN_IMAGES_DIR, config.TRAIN_LABELS_DIR = (
        dataset / "images" / "train-resized",
        dataset / "labels" / "train",
    )
    config.IMAGES_DIR, config.TEST_LABELS_DIR = dataset / "none", dataset / "none"
    config.TEST_IMAGES_DIR = config.IMAGES_DIR / "test-resized"
    assert export_onnx.choose_check_split() == "train"
    paths, targets = export_onnx.sample_images("train", 4, ["red", "green", "blue"])
    assert [Path(path).stem for path in paths] == ["train000", "train010", "train020", "train030"]
    assert targets is not None
    labels = [(dataset / "labels" / "train" / f"{Path(path).stem}.cls").read_text().split() for path in paths]
    assert [np.flatnonzero(row).tolist() for row in targets] == [[int(label) for label in each] for each in labels]
    config.TEST_IMAGES_DIR = dataset / "images" / "test-resized"
    assert export_onnx.choose_check_split() == "test"
    paths, targets = export_onnx.sample_images("test", 4, ["red", "green", "blue"])
    assert [Path(path).stem for path in paths] == ["test000", "test003", "test006", "test009"]
    assert targets is None
    config.TEST_IMAGES_DIR = dataset / "misspelt"
    assert export_onnx.choose_check_split() == "test", "where it is an error that they are not there"


def test_damaged_images_are_left_out_of_a_sample_on_request(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.DATASET_FOLDER, config.CACHE_FOLDER = dataset, tmp_path / "cache"
    config.TEST_IMAGES_DIR, config.TEST_LABELS_DIR = dataset / "images" / "test-resized", dataset / "labels" / "test"
    (config.TEST_IMAGES_DIR / "test003.jpg").write_bytes(b"broken")
    paths, targets = export_onnx.sample_images("test", 4, ["red", "green", "blue"])
    assert [Path(path).stem for path in paths] == ["test000", "test003", "test006", "test009"]
    assert targets is not None
    assert capsys.readouterr().err == ""
    config.BAD_IMAGES = "skip"
    paths, fewer = export_onnx.sample_images("test", 4, ["red", "green", "blue"])
    assert [Path(path).stem for path in paths] == ["test000", "test006", "test009"]
    assert fewer is not None
    np.testing.assert_array_equal(fewer, targets[[0, 2, 3]])
    assert "warning: 1 of 4 images are left out: cannot read image" in capsys.readouterr().err
    config.TEST_LABELS_DIR = dataset / "none"
    paths, targets = export_onnx.sample_images("test", 4, ["red", "green", "blue"])
    assert [Path(path).stem for path in paths] == ["test000", "test006", "test009"]
    assert targets is None


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("test_resnet", "ml_decoder", {"cosine_scale": 20.0}),
        ("test_efficientnet", "gcn", {"reweights_channels": True, "cosine_scale": 20.0}),
        ("test_vit", "linear", {}),
        ("test_byobnet", "per_label_mlp", {"hidden": 16}),
        ("hgnetv2_b0", "cosine", {}),
    ],
)
def test_families_of_backbones_and_heads_export(
    name: str, head: str, options: dict[str, Any], photographs: Path, tmp_path: Path
) -> None:
    """Small relatives of the recipes' models; all of these themselves were exported by hand."""
    classes = [c for c in (photographs / "coco18-dev" / "classes.txt").read_text().split("\n") if c]
    torch.manual_seed(0)
    model = models_factory.make_model(name, len(classes), head, image_size=64, head_options=options)
    values = {"model_name": name, "head": head, "head_options": options, "image_size": 64, "classes": classes}
    values |= {"resize_rule": "letterbox", "best_threshold": 0.5, "model_state": model.state_dict()}
    checkpoints.save(tmp_path / "model.pt", values)
    few = {"EXPORT_CHECK_IMAGES": 3, "EXPORT_FORMATS": "onnx,openvino,torchscript"}
    export_onnx.main(make_arguments(tmp_path / "model.pt", tmp_path, photographs, **few))
    reports = [json.loads(path.read_text()) for path in (tmp_path / "exported_models").glob("*.json")]
    assert [report["parity"] for report in reports] == ["passed"] * 3
    assert max(report["max_difference"] for report in reports) <= export_parity.BUDGETS["fp32"].max_difference
