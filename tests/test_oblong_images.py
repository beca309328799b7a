"""Images that are not square, from training to each way of using the model: nowhere do height and width change places.

What single modules do with them is tested beside those: dataset/, models_factory.py, class_activation_maps.py.
"""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_small_run
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image, ImageOps

import class_activation_maps
import config
import export_onnx
import model_performance_table
import models_factory
import predictor
import testing
import training
from dataset.files import list_images
from evaluation import export_parity
from models import checkpoints
from server.application import Service, look_at, make_app
from server.request_queue import BatchQueue

HEIGHT, WIDTH = 48, 96
FILES = {"onnx": ".onnx", "openvino": ".xml", "pt2": "_torchexport.pt2", "onnx_int8": "_int8.onnx"} | {
    "torchscript": "_torchscript.pt"
}


def make_arguments(dataset: Path, folder: Path) -> list[str]:
    values = {
        "MODEL_NAME": "test_resnet",
        "IMAGE_SIZE": f"{HEIGHT},{WIDTH}",
        "GROWING_IMAGE_SIZES": 32,
        "RESIZE_RULE": "letterbox",
        "IMAGE_CACHE": "memory",
        "NUM_EPOCHS": 3,
        "BACKBONE_BASE_LR": 0.01,
        "HEAD_BASE_LR": 0.03,
        "MODEL_PATH": folder / "trained_models" / "best_model.pt",
    }
    return [*make_small_run(dataset, folder), *(f"--{name}={value}" for name, value in values.items())]


@pytest.fixture(scope="module")
def folder(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, and of what export_onnx.py makes of it. The sizes of its batches are in sizes.json."""
    folder, before = tmp_path_factory.mktemp("oblong"), dict(config.__dict__)
    extract, sizes = models_factory.MultiLabelModel.extract_features, []

    def note(model: models_factory.MultiLabelModel, images: torch.Tensor) -> torch.Tensor:
        sizes.append((model.training, *images.shape[2:]))
        return extract(model, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_factory.MultiLabelModel, "extract_features", note)
        training.main(make_arguments(shared_dataset, folder))
        (folder / "sizes.json").write_text(json.dumps(sizes))
        patch.undo()
        loose = export_parity.BUDGETS["int8"]._replace(flips=1.0, mAP_loss=1.0)
        patch.setitem(export_parity.BUDGETS, "int8", loose)
        options = [f"--EXPORT_FORMATS={','.join(FILES)}", "--EXPORT_CHECK_IMAGES=8", "--INT8_CALIBRATION_IMAGES=8"]
        export_onnx.main([*make_arguments(shared_dataset, folder), *options])
    config.__dict__.clear()
    config.__dict__.update(before)
    return folder


@pytest.fixture(scope="module")
def paths(shared_dataset: Path) -> list[str]:
    return list_images(shared_dataset / "images" / "test-resized")


@pytest.fixture(scope="module")
def expected(folder: Path, paths: list[str]) -> NDArray[np.float32]:
    """Probabilities (N, C) of the checkpoint's tensors, for pictures that PIL made."""
    checkpoint = checkpoints.load(folder / "trained_models" / "best_model.pt")
    model = models_factory.make_model("test_resnet", 3, image_size=(HEIGHT, WIDTH)).eval()
    model.load_state_dict(checkpoint["model_state"])
    pictures = []
    for path in paths:
        with Image.open(path) as image:
            pictures.append(np.asarray(ImageOps.pad(image.convert("RGB"), (WIDTH, HEIGHT), Image.Resampling.BILINEAR)))
    with torch.no_grad():
        return model(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)).sigmoid().numpy()


def predict(path: Path, paths: list[str], **options: Any) -> NDArray[np.float32]:
    return np.stack([record.probabilities for record in predictor.load(path, "cpu", **options).predict(paths)])


def test_a_run_says_its_size_as_height_and_width(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = (folder / "trained_models").glob("*/*.pt")
    assert path.name.startswith(f"linear_bn_{HEIGHT}x{WIDTH}px_bs8_")
    checkpoint = checkpoints.load(path)
    assert checkpoint["image_size"] == checkpoint["config"]["IMAGE_SIZE"] == [HEIGHT, WIDTH]
    runs = model_performance_table.read_runs(folder / "trained_models")
    assert (runs.image_size.item(), runs.IMAGE_SIZE.item()) == (f"{HEIGHT}x{WIDTH}",) * 2


def test_images_grow_in_proportion(folder: Path) -> None:
    sizes = json.loads((folder / "sizes.json").read_text())
    trained = [(height, width) for is_training, height, width in sizes if is_training]
    assert list(dict.fromkeys(trained)) == [(32, 64), (HEIGHT, WIDTH)]
    assert {(height, width) for is_training, height, width in sizes if not is_training} == {(32, 64), (HEIGHT, WIDTH)}


def test_a_checkpoint_predicts_as_its_network_does(
    folder: Path, paths: list[str], expected: NDArray[np.float32]
) -> None:
    path = folder / "trained_models" / "best_model.pt"
    np.testing.assert_allclose(predict(path, paths), expected, atol=0.02)  # PIL's pixels are others by up to 1
    assert np.ptp(expected, axis=0).max() > 0.2, "the pictures are told apart"
    larger = predictor.load(path, "cpu", scales=(1.0, 1.5))
    assert larger.sizes == [(HEIGHT, WIDTH), (HEIGHT * 1.5, WIDTH * 1.5)]
    assert next(iter(larger.predict(paths))).probabilities.shape == (3,)


def find_exported(folder: Path, ending: str) -> Path:
    """The exported file; its name says which run it is of."""
    (checkpoint,) = (folder / "trained_models").glob("*/*.pt")
    return folder / "exported_models" / f"test_resnet_{checkpoint.stem}{ending}"


@pytest.mark.parametrize("format", FILES)
def test_exported_files_predict_what_the_checkpoint_does(format: str, folder: Path, paths: list[str]) -> None:
    path = find_exported(folder, FILES[format])
    expected = predict(folder / "trained_models" / "best_model.pt", paths)
    np.testing.assert_allclose(predict(path, paths), expected, atol=0.1 if "int8" in format else 1e-4)
    assert predictor.load(path, "cpu").metadata["image_size"] == [HEIGHT, WIDTH]
    if format.startswith("onnx"):
        model = onnx.load(path)
        (given,) = model.graph.input
        assert [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:] == [3, HEIGHT, WIDTH]
        assert f"uint8 RGB (B, 3, {HEIGHT}, {WIDTH}), resized by 'letterbox'" in model.doc_string


def test_a_checkpoint_in_another_engine(folder: Path, paths: list[str], tmp_path: Path) -> None:
    path = folder / "trained_models" / "best_model.pt"
    found = predict(path, paths, engine="onnxruntime", cache_folder=tmp_path)
    np.testing.assert_allclose(found, predict(path, paths), atol=1e-4)


def test_the_service_answers_what_the_predictor_does(folder: Path, paths: list[str]) -> None:
    path = find_exported(folder, FILES["onnx"])
    model = predictor.load(path, "cpu")
    service = Service(model, "onnxruntime", BatchQueue(partial(look_at, model), 4, 0.002, 8), max_pixels=10_000)
    with TestClient(make_app(service, max_bytes=100_000)) as client:
        files = {"files": ("a.jpg", io.BytesIO(Path(paths[0]).read_bytes()))}
        (answer,) = client.post("/predict", files=files).raise_for_status().json()["predictions"]
    np.testing.assert_allclose(answer["probabilities"], predict(path, paths[:1])[0], atol=1e-5)


def test_testing_and_maps(folder: Path, shared_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = make_arguments(shared_dataset, folder)
    testing.main(arguments)
    assert f", {HEIGHT}x{WIDTH} px" in capsys.readouterr().out
    class_activation_maps.main([*arguments, "--MAP_MAX_IMAGES=2"])
    assert f"{HEIGHT}x{WIDTH} px" in (folder / "class_activation_maps" / "index.html").read_text()


def test_an_interrupted_run_goes_on(
    folder: Path, shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(run: Any, *others: Any) -> None:
        if run.state.epoch == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("trainer.records.save_epoch", stop)
        with pytest.raises(InterruptedError):
            training.main(make_arguments(shared_dataset, tmp_path))
    training.main(make_arguments(shared_dataset, tmp_path))
    assert "resumes  after epoch 1" in capsys.readouterr().out
    one, other = (checkpoints.load(place / "trained_models" / "best_model.pt") for place in (folder, tmp_path))
    for name, tensor in one["model_state"].items():
        assert torch.equal(tensor, other["model_state"][name])
