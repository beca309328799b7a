"""POST /map: the picture under the colours of where the served model sees a class, and what is refused."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from test_serving import make_header, make_model, make_picture, make_service, read_error
from test_serving_limits import read_metrics

import models_factory
import predictor
from evaluation import activation_maps, map_maker
from models import checkpoints
from predictor import Predictor
from server.application import MAP_SIDE, Service, look_at, make_app
from server.request_queue import BatchQueue
from utils import InputError

CLASSES = ("red", "löwe", "2", "blue sky")


def draw_picture(width: int = 90, height: int = 60) -> bytes:
    """A picture with a shape in it, so that places differ."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[height // 4 : height // 2, width // 2 : width * 3 // 4] = 250, 40, 10
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = models_factory.make_model("resnet18", len(CLASSES), weights=None)
    path = tmp_path_factory.mktemp("maps") / "model.pt"
    metadata = {"model_name": "resnet18", "head": "linear_bn", "image_size": 64, "resize_rule": "letterbox"}
    checkpoints.save(
        path, metadata | {"model_state": network.state_dict(), "classes": [*CLASSES], "best_threshold": 0.5}
    )
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Predictor:
    return predictor.load(checkpoint, "cpu", engine="torch")


def serve(model: Predictor) -> Service:
    return Service(model, "torch", BatchQueue(partial(look_at, model), 4, 0.002, 8), max_pixels=10_000_000)


@pytest.fixture
def service(model: Predictor) -> Service:
    return serve(model)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service, max_bytes=100_000), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, label: str | int = 1, content: bytes | None = None, **headers: str) -> Any:
    files = {"files": ("a.png", draw_picture() if content is None else content)}
    return client.post("/map", files=files, data={"label": str(label)}, headers=headers)


def compute_map(checkpoint: Path, model: Predictor, label: int) -> torch.Tensor:
    """A map (h, w) of the network as it was saved, with its BatchNorm."""
    trace = activation_maps.follow(
        models_factory.restore_model(checkpoints.load(checkpoint), checkpoint), model.prepare(draw_picture())
    )
    return activation_maps.grad_cam(trace, [label])[0]


def test_the_map_is_that_of_the_class(client: TestClient, checkpoint: Path, model: Predictor) -> None:
    assert client.get("/health").json()["maps"] is True
    photograph, pictures = Image.open(io.BytesIO(draw_picture())), []
    for label in range(len(CLASSES)):
        answer = ask(client, label)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        pictures.append(np.asarray(Image.open(io.BytesIO(answer.content))).astype(int))
        expected = activation_maps.draw_map(
            photograph, compute_map(checkpoint, model, label), "letterbox", model.image_size
        )
        assert np.abs(pictures[-1] - np.asarray(expected)).mean() < 6  # of 255: JPEG
    assert any(np.abs(pictures[0] - other).mean() > 12 for other in pictures[1:]), "another for another class"


def test_a_class_is_named_or_numbered(client: TestClient) -> None:
    for name, index in (("red", 0), ("löwe", 1), ("lo\u0308we", 1), ("blue sky", 3), ("2", 2)):
        assert ask(client, name).content == ask(client, index).content


def test_the_picture_has_a_largest_side(client: TestClient) -> None:
    answer = ask(client, content=draw_picture(1000, 500))
    assert Image.open(io.BytesIO(answer.content)).size == (MAP_SIDE, MAP_SIDE // 2)
    assert Image.open(io.BytesIO(ask(client).content)).size == (90, 60)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("green", "label: there is no class 'green': GET /labels lists them"),
        ("4", "label: there is no class 4; they are 0 to 3"),
        ("9" * 1000, f"label: there is no class {'9' * 80}; they are 0 to 3"),
        ("-1", "label: there is no class '-1': GET /labels lists them"),
        ("", "label: there is no class '': GET /labels lists them"),
    ],
)
def test_a_class_that_is_none_is_refused(client: TestClient, label: str, message: str) -> None:
    assert read_error(ask(client, label), 422) == message


def test_a_wrong_form_is_refused(client: TestClient) -> None:
    file = ("files", ("a.png", draw_picture()))
    for request, status, message in (
        ({"files": [file]}, 400, "the field 'label' is missing: send the name of a class, or its index"),
        ({"files": [file, file], "data": {"label": "0"}}, 400, "Too many files. Maximum number of files is 1."),
        ({"files": [file], "data": {"label": ["0", "1"]}}, 400, "the field 'label' is there 2 times: send it once"),
        ({"files": [file], "data": {"threshold": "1"}}, 400, "unknown field 'threshold': send one file, and a label"),
        ({"json": {"image": "AAAA"}}, 415, "send a file and a label as multipart/form-data, not application/json"),
    ):
        assert read_error(client.post("/map", **request), status) == message  # pyright: ignore[reportArgumentType]


def test_limits_are_those_of_predict(service: Service, client: TestClient) -> None:
    assert "which is more than 10 million" in read_error(ask(client, content=make_header(5000, 5000)), 413)
    assert "cannot read image a.png" in read_error(ask(client, content=b"no image"), 415)
    assert "cannot read image a.png" in read_error(ask(client, content=draw_picture()[:60]), 422)
    assert "the request is larger than" in read_error(ask(client, content=bytes(100_001)), 413)
    with service.queue.hold(8):
        response = ask(client)
        assert read_error(response, 503).startswith("8 of at most 8 images are waiting")
        assert response.headers["retry-after"] == "1"
    assert ask(client).status_code == 200
    assert client.get("/health").json()["queue_length"] == 0
    found = read_metrics(client.get("/metrics").text)
    assert found["serving_requests_total", "/map", "200"] == 1
    assert found["serving_requests_total", "/map", "413"] == 2


def test_the_token_is_asked_for(service: Service) -> None:
    with TestClient(make_app(service, max_bytes=100_000, token="secret")) as client:
        assert "the token is missing" in read_error(ask(client), 401)
        assert ask(client, authorization="Bearer secret").status_code == 200


def test_maps_and_answers_at_the_same_time_are_as_one_by_one(service: Service) -> None:
    """A map's hooks and gradients are of its own pass: the network has one thread."""
    picture = draw_picture()

    async def ask_all() -> tuple[list[Any], list[bytes]]:
        async with service.run(None):  # pyright: ignore[reportArgumentType]
            alone = [await service.map(picture, "a", label) for label in (0, 1)]
            (first,) = await service.compute([picture], ["a"])
            computing = [service.compute([picture], ["a"]) for _ in range(4)]
            mapping = [service.map(picture, "a", label) for label in (0, 1)]
            answers = await asyncio.gather(*computing, *mapping)
            rows = [row for found in answers[:4] for row in found]
            assert answers[4:] == alone
            return [first, *rows], alone

    (first, *rows), (one, other) = asyncio.run(ask_all())
    for row in rows:
        np.testing.assert_allclose(row.probabilities, first.probabilities, atol=1e-5)
    assert one != other


def test_a_server_without_maps_says_what_to_set() -> None:
    """In another engine, and for an exported file."""
    with TestClient(make_app(make_service(make_model()), max_bytes=100_000)) as client:
        assert client.get("/health").json()["maps"] is False
        message = read_error(ask(client, "red", content=make_picture()), 409)
    assert message == (
        "Maps of where the model sees a class need a checkpoint in PyTorch. "
        "Start the server with --SERVING_ENGINE torch, and a checkpoint (.pt) as MODEL_PATH."
    )


def test_a_network_without_maps_is_found_at_the_start(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(trace: Any) -> Any:
        raise InputError("no layer of this backbone gives a map")

    monkeypatch.setattr(activation_maps, "find_grid", find_none)
    with TestClient(make_app(serve(model), max_bytes=100_000)) as client:
        assert client.get("/health").json()["maps"] is False
        assert read_error(ask(client), 409) == "There are no maps: no layer of this backbone gives a map."


def test_a_checkpoint_in_another_engine_is_read_from_its_file(checkpoint: Path, model: Predictor) -> None:
    """As the page of a test does it; the server does not, since the network would lie in memory twice."""
    other = Predictor(lambda images: images, model.metadata, checkpoint, model.device)
    image = model.prepare(draw_picture())
    expected = map_maker.MapMaker(model).compute(image, [0, 3])
    found = map_maker.MapMaker(other).compute(image, [0, 3])
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
    assert map_maker.MapMaker(other, reads_file=False).compute(image, [0]) is None
