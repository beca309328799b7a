"""serving.py: what is answered, what is refused and when, and a real server that ends as it should.

The stand-in model's probabilities are a picture's mean red, green and blue, as shares of 255.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

import models_factory
import predictor
import serving
import utils
from export import engines
from models import checkpoints
from predictor import Predictor
from server import application
from server.application import PADDLEX_PATH, Answer, Service, look_at, make_app
from server.request_queue import BatchQueue

COLOUR = (51, 204, 102)  # probabilities .2, .8, .4
ROOT = Path(__file__).resolve().parents[1]


def make_model(**metadata: Any) -> Predictor:
    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.logit(images.double().mean(dim=(2, 3)) / 255).float()

    values: dict[str, Any] = {
        "model_name": "mean_colour",
        "classes": ["red", "green", "blue"],
        "image_size": 32,
        "resize_rule": "squash",
        "best_threshold": 0.5,
        "thresholds": [0.1, 0.3, 0.6],
    }
    return Predictor(run, values | metadata, Path("folder/mean_colour.pt"), torch.device("cpu"))


def make_service(model: Predictor | None = None, size: int = 8) -> Service:
    model = model or make_model()
    return Service(model, "torch", BatchQueue(partial(look_at, model), 4, 0.002, size), max_pixels=10_000)


def make_picture(colour: tuple[int, int, int] = COLOUR, side: int = 40, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, kind)
    return buffer.getvalue()


def make_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says how large it is, and has no pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def service() -> Service:
    return make_service()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service, max_bytes=100_000), raise_server_exceptions=False) as client:
        yield client


def read_error(response: httpx2.Response, status: int) -> str:
    """The message of an error, which has the form of every error."""
    error = response.json()
    assert (response.status_code, error["errorCode"]) == (status, status)
    assert set(error) == {"logId", "errorCode", "errorMsg"}
    assert "\n" not in error["errorMsg"]
    return error["errorMsg"]


def test_answer_says_file_labels_and_all_probabilities(client: TestClient) -> None:
    files = [("files", ("a.png", make_picture())), ("any name", ("b.png", make_picture((255, 0, 0))))]
    first, second = client.post("/predict", files=files).raise_for_status().json()["predictions"]
    assert (first["file"], second["file"]) == ("a.png", "b.png")
    assert first["probabilities"] == pytest.approx([0.2, 0.8, 0.4], abs=1e-6)
    green, red = first["labels"]  # the most probable first; blue is below its threshold
    assert (green["index"], green["name"], red["index"], red["name"]) == (1, "green", 0, "red")
    assert (green["probability"], red["probability"]) == (first["probabilities"][1], first["probabilities"][0])
    assert (green["threshold"], red["threshold"]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert [label["name"] for label in second["labels"]] == ["red"]


def test_an_answer_says_how_novel_an_image_is_where_that_is_known(service: Service, client: TestClient) -> None:
    files = [("files", ("a.png", make_picture())), ("files", ("b.png", make_picture((255, 0, 0))))]
    for one in client.post("/predict", files=files).json()["predictions"]:
        assert set(one) == {"file", "labels", "probabilities"}
    service.queue.compute_batch = lambda images: [
        Answer(answer.probabilities, float(answer.probabilities[0])) for answer in look_at(service.model, images)
    ]
    first, second = client.post("/predict", files=files).raise_for_status().json()["predictions"]
    assert first["novelty"] == pytest.approx(0.2, abs=1e-6)
    assert second["novelty"] == 1
    image = {"image": base64.b64encode(make_picture()).decode()}
    assert set(client.post(PADDLEX_PATH, json=image).json()["result"]) == {"categories", "image"}, "PaddleX has none"


def test_an_answer_says_whether_the_model_leaves_the_image_to_a_person(client: TestClient) -> None:
    files = [("files", ("a.png", make_picture())), ("files", ("b.png", make_picture((255, 0, 0))))]
    asked = {"image": base64.b64encode(make_picture()).decode()}
    plain = client.post("/predict", files=files).json()["predictions"], client.post("/predict", json=asked).json()
    # expected wrong entries of the first: .8 + .2 + .4, of two labels; of the second 0
    model = make_model(abstention={"share": 0.1, "cut": 0.4})
    with TestClient(make_app(make_service(model), max_bytes=100_000)) as abstaining:
        answers = abstaining.post("/predict", files=files).json()["predictions"]
        paddlex = abstaining.post("/predict", json=asked).json()
    assert [answer["abstains"] for answer in answers] == [True, False]
    assert [[label["name"] for label in answer["labels"]] for answer in answers] == [["green", "red"], ["red"]]
    assert paddlex["result"]["abstains"] is True
    assert "abstains" not in {*plain[0][0], *plain[1]["result"]}, "of a model that decides on every image"


def test_a_threshold_of_the_request_takes_the_models_place(client: TestClient) -> None:
    files = {"files": ("a.png", make_picture())}
    (answer,) = client.post("/predict", files=files, data={"threshold": "0.35"}).json()["predictions"]
    assert [(label["name"], label["threshold"]) for label in answer["labels"]] == [
        ("green", pytest.approx(0.35)),
        ("blue", pytest.approx(0.35)),
    ]


@pytest.mark.parametrize(
    ("limits", "threshold", "names"),
    [
        ({"min_labels": 2}, 1.0, ["green", "blue"]),
        ({"max_labels": 1}, 0.0, ["green"]),
        ({}, 1.0, []),
    ],
)
def test_labels_keep_to_the_models_least_and_most(limits: dict[str, int], threshold: float, names: list[str]) -> None:
    with TestClient(make_app(make_service(make_model(**limits)), max_bytes=100_000)) as client:
        files = {"files": ("a.png", make_picture())}
        (answer,) = client.post("/predict", files=files, data={"threshold": str(threshold)}).json()["predictions"]
        labels = client.get("/labels").json()
    assert [label["name"] for label in answer["labels"]] == names
    assert (labels["min_labels"], labels["max_labels"]) == (limits.get("min_labels", 0), limits.get("max_labels", 0))


@pytest.mark.parametrize("path", ["/predict", PADDLEX_PATH])
@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({}, [1, 0]),
        ({"threshold": None, "inferenceParams": None, "visualize": None}, [1, 0]),
        ({"threshold": 0.35}, [1, 2]),
        ({"threshold": [0.3, 0.9, 0.3]}, [2]),
        ({"threshold": {"2": 0.35}}, [1, 2, 0]),
        ({"threshold": {"default": 0.9, "0": 0.15}}, [0]),
        ({"inferenceParams": {"threshold": 0.35}}, [1, 2]),
        ({"inferenceParams": {"threshold": {"default": 0.9, "0": 0.15}}}, [0]),
        ({"inferenceParams": {"topK": 1}}, [1]),
        ({"inferenceParams": {"topK": 9}, "threshold": 0.0}, [1, 2, 0]),
        ({"inferenceParams": {"topK": 2, "threshold": 0.0}}, [1, 2]),
        ({"visualize": True}, [1, 0]),
    ],
)
def test_json_is_answered_as_paddlex_does(client: TestClient, path: str, asked: Any, ids: list[int]) -> None:
    image = base64.encodebytes(make_picture()).decode()  # with line ends
    body = {"image": image} | asked
    answer = client.post(path, json=body).raise_for_status().json()
    assert set(answer) == {"logId", "errorCode", "errorMsg", "result"}
    assert (answer["errorCode"], answer["errorMsg"]) == (0, "Success")
    categories = answer["result"]["categories"]
    assert [category["id"] for category in categories] == ids
    for category in categories:
        assert category["name"] == ("red", "green", "blue")[category["id"]]
        assert category["score"] == pytest.approx((0.2, 0.8, 0.4)[category["id"]], abs=1e-6)
    with Image.open(io.BytesIO(base64.b64decode(answer["result"]["image"]))) as picture:
        assert picture.format == "JPEG"


def test_the_documented_client_of_paddlex_saves_the_picture(client: TestClient, tmp_path: Path) -> None:
    """What PaddleX's documentation tells its users to write, in Python, with another library for requests."""
    image_path, output_image_path = tmp_path / "demo.jpg", tmp_path / "out.jpg"
    image_path.write_bytes(make_picture(side=60, kind="JPEG"))
    image_data = base64.b64encode(image_path.read_bytes()).decode("ascii")
    response = client.post("/multilabel-image-classification", json={"image": image_data})
    assert response.status_code == 200
    result = response.json()["result"]
    output_image_path.write_bytes(base64.b64decode(result["image"]))
    assert [category["name"] for category in result["categories"]] == ["green", "red"]
    with Image.open(output_image_path) as saved:
        assert saved.height > 60
        middle = saved.width // 2
        colour = np.asarray(saved)[16:44, middle - 14 : middle + 14].mean(axis=(0, 1))
        np.testing.assert_allclose(colour, COLOUR, atol=5)
        band = np.asarray(saved).astype(int)[60:]
        assert (band.sum(axis=2) > 400).any(), "the labels are written there"


def test_the_picture_has_the_labels_of_the_answer(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    draw = predictor.draw_labels
    monkeypatch.setattr(predictor, "draw_labels", lambda pixels, texts: drawn.append(texts) or draw(pixels, texts))
    image = base64.b64encode(make_picture()).decode()
    for asked in ({}, {"inferenceParams": {"topK": 1}}, {"threshold": 1.0}):
        client.post(PADDLEX_PATH, json={"image": image} | asked).raise_for_status()
    assert drawn == [["green 0.80", "red 0.20"], ["green 0.80"], ["no label"]]


def test_an_answer_has_no_picture_on_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "encode_picture", lambda record: pytest.fail("it was drawn"))
    body = {"image": base64.b64encode(make_picture()).decode(), "visualize": False}
    result = client.post(PADDLEX_PATH, json=body).raise_for_status().json()["result"]
    assert set(result) == {"categories"}


def test_the_picture_of_an_answer_is_not_larger_than_it_may_be() -> None:
    service = make_service()
    service.max_pixels = 20_000_000
    wide = io.BytesIO()
    Image.new("RGB", (4000, 1000), COLOUR).save(wide, "PNG")
    with TestClient(make_app(service, max_bytes=1_000_000)) as client:
        body = {"image": base64.b64encode(wide.getvalue()).decode()}
        answer = client.post(PADDLEX_PATH, json=body).raise_for_status().json()
    with Image.open(io.BytesIO(base64.b64decode(answer["result"]["image"]))) as picture:
        assert picture.width == application.MAX_PICTURE_SIDE
        assert 500 < picture.height < 700


@pytest.mark.parametrize("path", ["/predict", PADDLEX_PATH])
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"image":', 400, "the body is not JSON"),
        ("{}", 422, "image: Field required"),
        ('{"image": "http://127.0.0.1/a.jpg"}', 422, "not in base64 .*addresses are not fetched"),
        ('{"image": "bild\u00e4"}', 422, "not in base64"),
        ('{"image": "aGFsbG8="}', 415, "cannot read image image: it is text, not an image: 'hallo'"),
        ('{"image": "", "treshold": 0.5}', 422, "treshold: Extra inputs are not permitted"),
        ('{"image": "", "inferenceParams": {"topk": 1}}', 422, r"inferenceParams\.topk: .* there is threshold, topK$"),
        ('{"image": "", "inferenceParams": [1]}', 422, "inferenceParams: send an object"),
        ('{"image": "", "inferenceParams": {"topK": 0}}', 422, r"inferenceParams\.topK: .*1 or more"),
        ('{"image": "", "inferenceParams": {"topK": true}}', 422, r"inferenceParams\.topK: .*1 or more"),
        ('{"image": "", "inferenceParams": {"threshold": 2}}', 422, "threshold: .*less than or equal to 1"),
        ('{"image": "", "threshold": 0.5, "inferenceParams": {"threshold": 0.5}}', 422, "threshold: it is there twice"),
        ('{"image": "", "visualize": 1}', 422, "visualize: send true or false"),
        ('{"image": "", "threshold": 2}', 422, "threshold: .*less than or equal to 1"),
        ('{"image": "", "threshold": NaN}', 422, "threshold: "),
        ('{"image": "PNG", "threshold": [0.5]}', 422, "threshold: 1 numbers for 3 classes"),
        ('{"image": "PNG", "threshold": {"3": 0.5}}', 422, "threshold: there is no class 3; they are 0 to 2"),
    ],
)
def test_wrong_json_is_refused(client: TestClient, path: str, body: str, status: int, message: str) -> None:
    body = body.replace("PNG", base64.b64encode(make_picture()).decode())
    response = client.post(path, content=body.encode(), headers={"content-type": "application/json"})
    assert re.search(message, read_error(response, status))


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"no image", 415, r"cannot read image bad\.jpg: it is text, not an image: 'no image'"),
        (b"", 415, r"bad\.jpg: the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "it is a PostScript document"),
        (make_picture(kind="JPEG")[:-10], 422, r"cannot read image bad\.jpg: image file is truncated"),
        (make_header(40, 40), 422, r"cannot read image bad\.jpg: "),
        (make_header(101, 100), 413, r"image bad\.jpg has 101 x 100 pixels, which is more than 0\.01 million"),
        (make_header(60_000, 60_000), 413, r"cannot read image bad\.jpg: .* could be decompression bomb"),
    ],
)
def test_a_bad_image_refuses_its_request_alone(client: TestClient, content: bytes, status: int, message: str) -> None:
    good, bad = ("files", ("good.png", make_picture())), ("files", ("bad.jpg", content))
    assert re.search(message, read_error(client.post("/predict", files=[good, bad, good]), status))
    assert client.post("/predict", files=[good]).status_code == 200
    assert client.get("/health").json()["queue_length"] == 0


def test_pixels_are_counted_before_they_are_decoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(application, "decode_bytes", lambda data, name: decoded.append(name))
    read_error(client.post("/predict", files={"files": ("a.png", make_picture(side=101))}), 413)
    assert not decoded


def test_bad_images_are_named_up_to_three(client: TestClient) -> None:
    files = [("files", (f"{index}.jpg", b"no image")) for index in range(5)]
    message = read_error(client.post("/predict", files=files), 415)
    assert [f"{index}.jpg" in message for index in range(5)] == [True, True, True, False, False]
    assert message.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"files": {"files": ("a.png", make_picture())}, "data": {"treshold": "0.5"}}, 400, "unknown field 'treshold'"),
        ({"files": {"files": ("a.png", make_picture())}, "data": {"threshold": "x"}}, 422, "threshold: .*valid number"),
        ({"files": {"files": ("a.png", make_picture())}, "data": {"threshold": "nan"}}, 422, "threshold: "),
        ({"files": {"threshold": (None, "0.5")}}, 400, "there is no file"),
        ({"files": [("files", ("a.png", make_picture()))] * 9}, 400, "Too many files. Maximum number of files is 8"),
        ({"data": {"threshold": "0.5"}}, 415, "not application/x-www-form-urlencoded"),
        ({"content": b"x"}, 415, "not nothing"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"files": {"files": ("a.png", b"x" * 100_001)}}, 413, r"the request is larger than 0\.0953674 MB"),
    ],
)
def test_a_wrong_request_is_refused(client: TestClient, request_: dict[str, Any], status: int, message: str) -> None:
    assert re.search(message, read_error(client.post("/predict", **request_), status))


def test_other_paths_and_methods_have_errors_of_the_same_form(client: TestClient) -> None:
    assert read_error(client.get("/nothing"), 404) == "Not Found"
    assert read_error(client.get("/predict"), 405) == "Method Not Allowed"


def test_a_failing_model_fails_its_requests_and_serves_the_next(service: Service) -> None:
    compute, fails = service.queue.compute_batch, [True]

    def compute_or_fail(images: torch.Tensor) -> Any:
        if fails.pop() if fails else False:
            raise RuntimeError("out of memory at address 0x1234")
        return compute(images)

    service.queue.compute_batch = compute_or_fail
    with TestClient(make_app(service, max_bytes=100_000), raise_server_exceptions=False) as client:
        files = {"files": ("a.png", make_picture())}
        assert "0x1234" not in read_error(client.post("/predict", files=files), 500)
        assert client.post("/predict", files=files).status_code == 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5])
def test_probabilities_that_are_no_numbers_are_one_error_that_names_the_model(
    value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 3), value)

    model = make_model(output="probabilities")
    model.run = run
    with TestClient(make_app(make_service(model), max_bytes=100_000), raise_server_exceptions=False) as client:
        files = [("files", ("a.png", make_picture()))] * 2
        image = base64.b64encode(make_picture()).decode()
        for response in (client.post("/predict", files=files), client.post(PADDLEX_PATH, json={"image": image})):
            message = read_error(response, 500)
            assert message.startswith(f"the model mean_colour.pt gives {value:g} as a probability for ")
            assert message.endswith("its weights are not finite, or too large; train it again")
            assert message.count("the model ") == 1
        assert client.get("/health").json()["queue_length"] == 0
    assert "warning: the model folder/mean_colour.pt gives" in capsys.readouterr().err


def test_an_image_without_probabilities_fails_alone() -> None:
    """Those that it is computed with are of other requests."""
    model, batches = make_model(), list[int]()
    colours = [COLOUR, (255, 0, 0), (102, 51, 204)]
    run = model.run
    model.run = lambda images: torch.where(images[:, :1, 0, 0] == 255, torch.nan, run(images))

    def compute(images: torch.Tensor) -> list[Answer]:
        batches.append(len(images))
        return look_at(model, images)

    async def ask() -> list[Any]:
        queue = BatchQueue(compute, 4, 30, size=8)
        running = asyncio.create_task(queue.run())
        images = [torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 32, 32) for colour in colours]
        with queue.hold(3):
            answers = await asyncio.gather(*(queue.compute(image) for image in images), return_exceptions=True)
        running.cancel()
        return answers

    first, second, third = asyncio.run(ask())
    assert batches == [3, 1, 1, 1]
    for answer, colour in ((first, colours[0]), (third, colours[2])):
        np.testing.assert_allclose(answer.probabilities, np.array(colour) / 255, atol=1e-6)
    assert isinstance(second, utils.InputError)
    assert "gives nan as a probability for " in str(second)


def call(app: FastAPI, receive: Callable[[], Any], **headers: str) -> tuple[int, dict[bytes, bytes]]:
    """POST /predict in so many words: the status and headers that `app` sends."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = {"content-type": "multipart/form-data; boundary=b"} | headers
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in pairs.items()],
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_an_endless_upload_is_refused_while_it_is_read(service: Service) -> None:
    read = []

    async def receive() -> dict[str, Any]:
        start = b"" if read else b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        read.append(len(start) + 1000)
        return {"type": "http.request", "body": start + b"x" * 1000, "more_body": True}

    assert call(make_app(service, max_bytes=50_000), receive)[0] == 413
    assert 50_000 < sum(read) <= 51_100


def test_what_is_too_large_by_its_header_is_not_read(service: Service) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    assert call(make_app(service, max_bytes=50_000), receive, content_length="50001")[0] == 413


def test_a_full_queue_turns_requests_away_unread(service: Service) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    with service.queue.hold(8):
        status, headers = call(make_app(service, max_bytes=50_000), receive)
    assert (status, headers[b"retry-after"]) == (503, b"1")


def test_more_images_than_there_is_room_for_are_turned_away(service: Service) -> None:
    files = [("files", ("a.png", make_picture()))] * 3
    with TestClient(make_app(service, max_bytes=100_000)) as client:
        with service.queue.hold(6):
            response = client.post("/predict", files=files)
            assert read_error(response, 503) == "6 of at most 8 images are waiting: try again in 1 s"
            assert response.headers["retry-after"] == "1"
            assert client.post("/predict", files=files[:2]).status_code == 200
        assert client.post("/predict", files=files).status_code == 200


def run_queue(batches: list[int], wait_seconds: float, use: Callable[[BatchQueue], Any], gate: Any = None) -> None:
    """Let `use` put images into a queue of batches up to 4, of whose sizes `batches` keeps a list."""

    def compute(images: torch.Tensor) -> Any:
        if gate:
            assert gate.wait(60)
        batches.append(len(images))
        return images[:, :, 0, 0].numpy().astype(np.float32)

    async def main() -> None:
        queue = BatchQueue(compute, 4, wait_seconds, size=100)
        running = asyncio.create_task(queue.run())
        await use(queue)
        running.cancel()

    asyncio.run(main())


def make_image(value: int) -> torch.Tensor:
    return torch.full((3, 2, 2), value, dtype=torch.uint8)


def test_queue_gives_each_image_its_own_row_in_full_batches() -> None:
    batches: list[int] = []

    async def use(queue: BatchQueue) -> None:
        with queue.hold(10):
            rows = await asyncio.gather(*(queue.compute(make_image(value)) for value in range(10)))
        assert [row.tolist() for row in rows] == [[value] * 3 for value in range(10)]

    run_queue(batches, 0.002, use)
    assert batches == [4, 4, 2]


def test_queue_computes_a_lone_image_at_once_and_waits_for_one_on_its_way() -> None:
    batches: list[int] = []

    async def use(queue: BatchQueue) -> None:
        start = time.perf_counter()
        with queue.hold(1):
            await queue.compute(make_image(0))
        assert time.perf_counter() - start < 30, "nothing else was on its way, and it waited"
        with queue.hold(2):
            first = asyncio.create_task(queue.compute(make_image(0)))
            await asyncio.sleep(0.2)
            await asyncio.gather(first, queue.compute(make_image(1)))

    run_queue(batches, 30, use)
    assert batches == [1, 2]


def test_queue_waits_no_longer_than_it_may() -> None:
    batches: list[int] = []

    async def use(queue: BatchQueue) -> None:
        with queue.hold(2):
            await queue.compute(make_image(0))  # the other never comes

    run_queue(batches, 0.01, use)
    assert batches == [1]


def test_queue_gathers_what_comes_while_the_model_computes() -> None:
    batches: list[int] = []
    gate = threading.Event()

    async def use(queue: BatchQueue) -> None:
        async def ask(value: int) -> None:
            with queue.hold(1):
                await queue.compute(make_image(value))

        async def let_others_run() -> None:
            for _ in range(100):
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(ask(0))]
        await let_others_run()
        tasks += [asyncio.create_task(ask(value)) for value in range(3)]
        await let_others_run()
        gate.set()
        await asyncio.gather(*tasks)

    run_queue(batches, 0, use, gate)
    assert batches == [1, 3]


def test_labels_and_health(client: TestClient) -> None:
    labels = client.get("/labels").json()
    assert [(one["index"], one["name"]) for one in labels["classes"]] == [(0, "red"), (1, "green"), (2, "blue")]
    assert [one["threshold"] for one in labels["classes"]] == pytest.approx([0.1, 0.3, 0.6])
    assert labels["threshold"] == pytest.approx(0.3), "the middle one in use"
    health = client.get("/health").json()
    assert 0 <= health.pop("uptime_seconds") < 60
    assert re.fullmatch(r"[0-9a-f-]{36}", health.pop("logId"))
    assert health == {
        "errorCode": 0,  # as PaddleX's path of this name answers
        "errorMsg": "Healthy",
        "model": "mean_colour",
        "file": "mean_colour.pt",
        "sha256": None,
        "trained": None,
        "version": utils.VERSION,
        "engine": "torch",
        "novelty": False,
        "maps": False,
        "queue_length": 0,
    }


def test_page_and_docs_need_nothing_from_elsewhere(client: TestClient) -> None:
    page, docs = client.get("/").text, client.get("/docs").text
    for text in (page, docs):
        assert not re.search(r"(src|href)=.https?:|url\(|@import|import\(", text)
    for path in re.findall(r'(?:src|href)="(/static[^"]+)"', docs):
        assert client.get(path).status_code == 200
    operations = client.get("/openapi.json").json()["paths"]
    assert {(path, method) for path, methods in operations.items() for method in methods} == {
        ("/predict", "post"), ("/map", "post"), (PADDLEX_PATH, "post"), ("/labels", "get"), ("/health", "get")
    }  # fmt: skip
    content = operations["/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    fields = content["application/json"]["schema"]["properties"]
    assert list(fields) == ["image", "threshold", "inferenceParams", "visualize"]
    assert "$defs" not in str(content), "OpenAPI would look for it elsewhere"
    assert list(fields["inferenceParams"]["properties"]) == ["threshold", "topK"]


class Process:
    """The real server, with a small model of random weights, in PyTorch."""

    def __init__(self, folder: Path) -> None:
        network = models_factory.make_model("mobilenet_v2", 3, weights=None)
        metadata = {"model_name": "mobilenet_v2", "head": "linear_bn", "image_size": 32, "resize_rule": "squash"}
        self.checkpoint = folder / "model.pt"
        content = {"model_state": network.state_dict(), "classes": ["a", "b", "c"], "best_threshold": 0.5}
        checkpoints.save(self.checkpoint, metadata | content)
        values = {"MODEL_PATH": self.checkpoint, "SERVING_PORT": 0, "SERVING_ENGINE": "torch", "DEVICE": "cpu"}
        arguments = [f"--{name}={value}" for name, value in values.items()]
        command = [sys.executable, "serving.py", *arguments]
        self.log = open(folder / "log.txt", "w+")  # noqa: SIM115  # until the process ends
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line + self.read_log()
        self.port = int(found[1])
        assert "Ctrl-C ends it" in line
        self.client = httpx2.Client(base_url=found[0], timeout=60)
        digest = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()
        assert self.client.get("/health").json()["sha256"] == digest, "it listens once it says so"

    def read_log(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def predict(self, name: str, content: bytes) -> httpx2.Response:
        return self.client.post("/predict", files={"files": (name, content)})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    server = Process(tmp_path_factory.mktemp("server"))
    yield server
    server.process.kill()
    server.process.wait()
    server.log.close()
    server.client.close()


def test_server_says_what_the_predictor_says_to_many_clients(server: Process, shared_dataset: Path) -> None:
    files = sorted((shared_dataset / "images" / "train-resized").glob("*.jpg"))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda file: server.predict(file.name, file.read_bytes()), files))
    model = predictor.load(server.checkpoint, "cpu", engine="torch")
    for file, answer, record in zip(files, answers, model.predict(files), strict=True):
        (prediction,) = answer.raise_for_status().json()["predictions"]
        assert prediction["file"] == file.name
        # a batch of another size rounds otherwise
        assert prediction["probabilities"] == pytest.approx(record.probabilities.tolist(), abs=1e-5)
        near = np.abs(record.probabilities - model.thresholds).min() < 1e-5
        assert near or sorted(label["index"] for label in prediction["labels"]) == record.labels


def test_server_lives_on_after_bad_requests(server: Process) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: server.predict("a.jpg", b"no image").status_code, range(16)))
    assert set(statuses) == {415}
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n")
        connection.sendall(b"Content-Length: 1000\r\n\r\n--b")  # and leaves
    declared = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(declared.encode())
        assert b"415" in connection.recv(100)  # it has no type
    assert server.predict("a.png", make_picture()).status_code == 200
    assert server.client.get("/health").json()["queue_length"] == 0


def test_a_port_in_use_is_one_line(server: Process, fails: Callable[..., str]) -> None:
    arguments = [f"--MODEL_PATH={server.checkpoint}", f"--SERVING_PORT={server.port}"]
    assert f"cannot serve at 127.0.0.1 port {server.port}: Address already in use" in fails(serving.main, arguments)


def test_other_machines_have_no_access(server: Process) -> None:
    listening = Path("/proc/net/tcp")
    if not listening.is_file():
        pytest.skip("only Linux lists its sockets in /proc/net/tcp")
    local = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert f"0100007F:{server.port:04X}" in local
    assert f"00000000:{server.port:04X}" not in local


def test_sigterm_lets_requests_in_flight_end(server: Process) -> None:
    """Last: it ends the server."""
    slow = make_picture(side=2000)  # 4 million pixels
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.predict, "slow.png", slow) for _ in range(6)]
        lengths = (server.client.get("/health").json()["queue_length"] for _ in range(1000))
        assert any(length >= 4 for length in lengths), "none was seen waiting"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.poll() is None
        statuses = [answer.result().status_code for answer in answers]
    assert statuses == [200] * 6
    assert server.process.wait(30) == 0
    assert server.read_log() == ""
    with pytest.raises(httpx2.ConnectError):
        server.client.get("/health")


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("checkpoint", "openvino"),
        ("onnx", "onnxruntime"),
        ("openvino", "openvino"),
        ("torchscript", "torch"),
        ("pt2", "torch"),
    ],
)
def test_a_checkpoint_runs_in_the_chosen_engine_and_a_file_in_its_own(
    kind: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {}

    def load(path: Path, device: str, **options: Any) -> Predictor:
        loaded.update(options)
        return make_model()

    monkeypatch.setattr(engines, "recognise", lambda path: kind)
    monkeypatch.setattr(predictor, "load", load)
    serving.SERVING_ENGINE = "openvino"
    assert serving.load_model()[1] == loaded["engine"] == engine


def test_a_missing_package_is_one_line(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PACKAGES", ("fastapi", "no_such_package"))
    expected = "error: serving needs no_such_package: pip install -r requirements-serving.txt"
    assert fails(serving.main, []) == expected


def test_a_missing_model_is_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no model" in fails(serving.main, [f"--MODEL_PATH={tmp_path / 'no.pt'}", "--SERVING_PORT=0"])
