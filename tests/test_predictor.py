"""predictor.py: records in the order of the images, decoded ahead by threads or processes, never far ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import augmentations
import checkpoints
import models_factory
import predictor
from predictor import BATCHES_AHEAD
from utils import InputError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, image_size=32)
    values = {"model_name": "resnet18", "head": "linear_bn", "image_size": 32, "resize_rule": "squash"}
    classes = ["red", "green", "blue"]
    path = tmp_path / "model.pt"
    checkpoints.save(path, {"model_state": model.state_dict(), "classes": classes, "best_threshold": 0.52} | values)
    return path


@pytest.fixture
def images(shared_dataset: Path) -> list[Path]:
    return sorted((shared_dataset / "images" / "test-resized").iterdir())


def test_predictor_streams_lists_and_folders_alike(checkpoint: Path, images: list[Path]) -> None:
    model = predictor.load(checkpoint, "cpu")
    records = list(model.predict(images[0].parent, batch_size=7))
    assert [Path(record.path) for record in records] == images
    chosen = images[3:6]
    again = list(model.predict(chosen[::-1], batch_size=1))
    assert [Path(record.path) for record in again] == chosen[::-1]
    for record, other in zip(again, records[5:2:-1], strict=True):
        np.testing.assert_allclose(record.probabilities, other.probabilities, atol=1e-5)
        assert record.names == [("red", "green", "blue")[label] for label in record.labels]


def test_processes_give_what_threads_do(checkpoint: Path, images: list[Path]) -> None:
    model = predictor.load(checkpoint, "cpu")
    by_threads = list(model.predict(images, batch_size=5))
    by_processes = list(model.predict(images, batch_size=5, num_workers=1))
    assert [record.path for record in by_processes] == [record.path for record in by_threads]
    for record, other in zip(by_processes, by_threads, strict=True):
        np.testing.assert_array_equal(record.probabilities, other.probabilities)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_one_line_after_the_batches_before_it(
    checkpoint: Path, images: list[Path], tmp_path: Path, num_workers: int
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    records = predictor.load(checkpoint, "cpu").predict([*images[:4], broken, *images[4:]], 4, num_workers)
    assert [Path(next(records).path) for _ in range(4)] == images[:4]
    with pytest.raises(InputError, match=rf"^cannot read image {broken}: [^\n]+$"):
        next(records)


def test_no_images_give_no_records(checkpoint: Path) -> None:
    assert list(predictor.load(checkpoint, "cpu").predict([])) == []


def test_an_unknown_engine_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"there is no engine 'openvin' \(did you mean openvino\?\); known: torch, "):
        predictor.load(checkpoint, "cpu", engine="openvin")


def test_items_read_out_of_order_come_in_order() -> None:
    second_is_read = threading.Event()

    def read(path: str) -> Tensor:
        if path == "0":
            assert second_is_read.wait(60), "no other thread went on"
        if path == "1":
            second_is_read.set()
        return torch.tensor(int(path))

    batches = predictor.read_ahead([str(i) for i in range(11)], read, batch_size=4, num_threads=2)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_no_more_is_read_than_a_few_batches_ahead() -> None:
    started: list[str] = []

    def read(path: str) -> Tensor:
        started.append(path)
        return torch.zeros(1)

    batches = predictor.read_ahead([str(i) for i in range(1000)], read, batch_size=3, num_threads=2)
    for taken in range(1, 5):
        next(batches)
        assert 3 * taken <= len(started) <= 3 * (taken + BATCHES_AHEAD)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(started) <= 3 * (4 + BATCHES_AHEAD), "nor does reading go on when nobody takes more"


def test_views_are_averaged_as_probabilities(checkpoint: Path, images: list[Path]) -> None:
    """Flip and scales: the mean of what the model says of each view by itself, recomputed one view at a time."""
    model = predictor.restore_model(checkpoints.load(checkpoint), checkpoint).eval()
    found = list(predictor.load(checkpoint, "cpu", flip=True, scales=(1.0, 1.5)).predict(images, batch_size=5))
    for record, path in zip(found, images, strict=True):
        views = [
            predictor.read_image(str(path), augmentations.make_eval_transform("squash", size)) for size in (32, 48)
        ]
        with torch.no_grad():
            expected = torch.cat([model(view[None]).sigmoid() for image in views for view in (image, image.flip(2))])
        np.testing.assert_allclose(record.probabilities, expected.mean(dim=0).numpy(), atol=1e-5)


def test_a_network_of_one_size_refuses_other_scales(tmp_path: Path) -> None:
    model = models_factory.make_model("levit_128s", 3, image_size=64)
    values = {"model_name": "levit_128s", "head": "linear_bn", "image_size": 64, "resize_rule": "squash"}
    values |= {"classes": ["red", "green", "blue"], "best_threshold": 0.5, "model_state": model.state_dict()}
    checkpoints.save(tmp_path / "vit.pt", values)
    with pytest.raises(InputError, match=r"levit_128s does not take images of 96 px: set TEST_SCALES to \(1.0,\)"):
        predictor.load(tmp_path / "vit.pt", "cpu", scales=(1.0, 1.5))


def test_a_softmax_models_probabilities_sum_to_one(checkpoint: Path, images: list[Path]) -> None:
    stored = checkpoints.load(checkpoint)
    checkpoints.save(checkpoint, stored | {"activation": "softmax"})
    model = predictor.restore_model(stored, checkpoint).eval()
    for record in predictor.load(checkpoint, "cpu").predict(images[:4]):
        image = predictor.read_image(record.path, augmentations.make_eval_transform("squash", 32))
        with torch.no_grad():
            expected = model(image[None]).softmax(dim=1)[0].numpy()
        np.testing.assert_allclose(record.probabilities, expected, atol=1e-5)
        assert record.probabilities.sum() == pytest.approx(1, abs=1e-5)
