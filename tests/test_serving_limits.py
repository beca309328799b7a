"""What others may do to the server: at the socket, with bodies, with images; and who may use it, and what it notes.

The stand-in model is that of test_serving.py. Attacks are small, and limits are lowered to match: their full size is in
benchmarks/serving_attacks.py.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from test_serving import call, make_header, make_model, make_picture, make_service, read_error

import overrides
import serving
import utils
from server import application, connections, monitoring, parsing
from server.application import PADDLEX_PATH, Service, make_app
from server.connections import Limits, Server
from server.errors import make_error
from server.image_readers import ImageReaders, Lane
from server.monitoring import Monitor, RequestLog
from server.uploads import UploadLimits, derive_limits
from utils import InputError

THRESHOLDS = np.array([0.1, 0.3, 0.6], dtype=np.float32)
JSON = {"content-type": "application/json"}
FORM = "multipart/form-data; boundary=b"
PICTURE = base64.b64encode(make_picture()).decode()


@pytest.fixture
def service() -> Service:
    return make_service()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service, max_bytes=100_000), raise_server_exceptions=False) as client:
        yield client


def refuse(status: int, message: str, function: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(HTTPException, match=message) as caught:
        function(*arguments)
    assert caught.value.status_code == status


# ---- JSON ----


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ('{"image": "AAAA", "threshold": [' + "2," * 50 + "2]}", 422, "more than the 9 values that there may be"),
        ("{" + ",".join(f'"name{index}": 1' for index in range(50)) + "}", 422, "more than the 9 values"),
        ('{"image": ' + "[" * 50, 422, "more than the 9 values"),
        ('{"image": ' + "[" * 15, 400, "the body is not JSON"),
        ('{"threshold": 1' + "0" * 5000 + "}", 400, "the body is not JSON: Exceeds the limit"),
        ('{"threshold": 1e5000, "image": ""}', 422, "threshold: .*less than or equal to 1"),
        ('{"threshold": -Infinity, "image": ""}', 422, "threshold: .*greater than or equal to 0"),
        ('{"threshold": true, "image": ""}', 422, "threshold: a number from 0 to 1 is wanted, not bool"),
        ('{"threshold": "0.5", "image": ""}', 422, "threshold: a number from 0 to 1 is wanted, not str"),
        ('{"threshold": [0.5, 0.5, null], "image": ""}', 422, "threshold: a number .* not NoneType"),
        ('{"threshold": {"01": 0.5}, "image": ""}', 422, "there is no class 01; they are 0 to 2"),
        ('{"threshold": {"-1": 0.5}, "image": ""}', 422, "there is no class -1"),
        ('{"threshold": {"\u0663": 0.5}, "image": ""}', 422, "there is no class \u0663"),
        ('{"image": "AAAA", "image": "BBBB"}', 400, "the field 'image' is there twice"),
        ('{"threshold": {"1": 0.5, "1": 0.6}, "image": ""}', 400, "the field '1' is there twice"),
        ('{"image": ["AAAA"]}', 422, "image: send the image file in base64"),
        ('{"image": "\\ud800"}', 422, "image: not in base64 .*not ASCII"),
        ('{"image": "' + "AAAA" * 40 + '"}', 413, "the image is larger than"),
        ('["AAAA"]', 422, "send an object"),
        ("7", 422, "send an object"),
    ],
)
def test_json_is_refused_at_its_first_fault(text: str, status: int, message: str) -> None:
    refuse(status, message, parsing.parse_json, text.encode(), THRESHOLDS, 99)


def test_what_json_may_not_hold_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    refuse(422, "more than", parsing.load_json, b"[" + b"1," * 200 + b"1]", 100)


def test_json_may_have_a_threshold_for_each_of_many_classes() -> None:
    values = [round(index / 5000, 4) for index in range(5000)]
    for asked in (values, {str(index): value for index, value in enumerate(values)}):
        body = json.dumps({"image": "aGFs\nbG8=", "threshold": asked}).encode()
        request = parsing.parse_json(body, np.zeros(5000, dtype=np.float32), 99)
        assert request.content == b"hallo"
        np.testing.assert_allclose(request.thresholds, values, atol=1e-7)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_json_of_another_type_is_415(client: TestClient, kind: str) -> None:
    body = json.dumps({"image": PICTURE})
    message = read_error(client.post(PADDLEX_PATH, content=body, headers={"content-type": kind}), 415)
    assert message == f"send application/json, not {kind}"


def test_json_is_capped_at_an_image_in_base64(client: TestClient) -> None:
    limits = derive_limits(max_bytes=100_000, num_classes=3, queue_size=8)
    assert limits.form_bytes == 100_000
    image = base64.encodebytes(bytes(100_000)).decode()
    largest = json.dumps({"image": image, "threshold": [0.123456789012345678] * 3})
    assert len(largest) <= limits.json_bytes < len(largest) + 5000
    assert "it is 100,000 zero bytes" in read_error(client.post("/predict", content=largest, headers=JSON), 415)
    longer = json.dumps({"image": image + " " * 5000})
    assert "the request is larger than" in read_error(client.post("/predict", content=longer, headers=JSON), 413)


def test_bodies_are_parsed_beside_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, str] = {}

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            threads[name] = threading.current_thread().name
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return function(*arguments)

        return run

    for name in ("parse_json", "parse_form", "measure_images"):
        monkeypatch.setattr(application, name, note(name, getattr(application, name)))
    assert client.post("/predict", json={"image": PICTURE}).status_code == 200
    assert client.post("/predict", files={"files": ("a.png", make_picture())}).status_code == 200
    assert set(threads) == {"parse_json", "parse_form", "measure_images"}


# ---- forms ----


def make_form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + end


def name_part(name: str, more: str = "") -> str:
    return f'Content-Disposition: form-data; name="{name}"{more}'


A_FILE = (name_part("files", '; filename="a.png"'), b"content")
A_FIELD = (name_part("threshold"), b"0.5")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (make_form(*[A_FILE] * 4), "Too many files. Maximum number of files is 3"),
        (make_form(*[(name_part(f"f{index}"), b"1") for index in range(20)]), "at most 8 fields"),
        (make_form((name_part("threshold"), b"0" * 2000), A_FILE), "at most 8 fields of 1024 bytes"),
        (make_form((name_part("x" * 5000), b"1")), "Maximum header size exceeded"),
        (make_form((name_part("files") + "\r\nX: y" * 20, b"1")), "Maximum header count exceeded"),
        (make_form(A_FILE, A_FILE, end=b""), "cut short: its last boundary is missing"),
        (make_form(A_FILE)[:-20], "cut short"),
        (make_form(A_FILE, A_FIELD, A_FIELD), "'threshold' is there 2 times"),
        (b"no form", "the form cannot be read"),
        (
            make_form((name_part("tresh\udcffold".encode(errors="surrogateescape").decode("latin-1")), b"1"), A_FILE),
            "field",
        ),
    ],
)
def test_a_wrong_form_is_refused(body: bytes, message: str) -> None:
    refuse(400, message, parsing.parse_form, FORM, body, 3)


def test_a_large_file_of_a_form_is_not_written_to_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"):
        monkeypatch.setattr(f"tempfile.{function}", lambda *_, **__: pytest.fail("a file was written"))
    content = os.urandom(3_000_000)
    form = parsing.parse_form(FORM, make_form((A_FILE[0], content), A_FIELD), 3)
    assert form == (["a.png"], [content], 0.5)


def test_a_name_of_a_file_cannot_choose_how_it_is_decoded(client: TestClient) -> None:
    body = make_form((name_part("files", r'; filename="\ud800.png"'), make_picture()))
    headers = {"content-type": "multipart/form-data; charset=unicode_escape; boundary=b"}
    (prediction,) = client.post("/predict", content=body, headers=headers).raise_for_status().json()["predictions"]
    assert prediction["file"] == r"\ud800.png"


def test_errors_are_one_line_that_can_be_printed() -> None:
    assert make_error(400, "a\nb\x1b[31m\u202e \ud800").errorMsg == r"a b\x1b[31m\u202e \ud800"
    assert len(make_error(400, "x" * 100_000).errorMsg) == 1000


# ---- bodies ----


def make_limited(service: Service, **limits: Any) -> FastAPI:
    values = {"form_bytes": 50_000, "json_bytes": 70_000, "total_bytes": 100_000} | limits
    return make_app(service, max_bytes=50_000, limits=UploadLimits(**values))


def send_pieces(size: int, pause: float) -> Callable[[], Any]:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    return receive


@pytest.mark.parametrize(
    "limits",
    [
        {"seconds": 0.05},
        {"free_seconds": 0.05, "bytes_per_second": 1000.0},
    ],
)
def test_a_slow_body_is_given_up(service: Service, limits: dict[str, float]) -> None:
    assert call(make_limited(service, form_bytes=100, **limits), send_pieces(1, 0.02))[0] == 408


def test_a_body_as_quick_as_the_floor_is_read_to_its_limit(service: Service) -> None:
    app = make_limited(service, free_seconds=10.0, bytes_per_second=1000.0)
    assert call(app, send_pieces(10_000, 0.01))[0] == 413


def test_bodies_that_arrive_take_no_place_in_the_queue_and_share_their_memory(service: Service) -> None:
    """Ten bodies (the queue has eight places) wait for their end; the memory has room for a small one beside them."""
    app = make_limited(service, form_bytes=40_000, total_bytes=100_000)
    begun, may_end = [], asyncio.Event()

    def body(size: int) -> Callable[[], Any]:
        sent = []

        async def receive() -> dict[str, Any]:
            if sent:
                begun.append(size)
                await may_end.wait()
                return {"type": "http.request", "body": b"", "more_body": False}
            sent.append(size)
            return {"type": "http.request", "body": b"x" * size, "more_body": True}

        return receive

    async def post(receive: Callable[[], Any], length: int = 0) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", FORM.encode()), (b"content-length", str(length).encode())][: 1 + bool(length)]
        path = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
        await app(path, receive, send)
        return sent[0]["status"]

    async def main() -> list[int]:
        waiting = [asyncio.create_task(post(body(8000))) for _ in range(10)]
        while len(begun) < 10:
            await asyncio.sleep(0)
        small = asyncio.create_task(post(body(5000)))
        while len(begun) < 11:
            await asyncio.sleep(0)
        statuses = [await post(body(20_000)), await post(body(1), length=20_000)]  # more than what is left
        may_end.set()
        statuses += await asyncio.gather(*waiting, small)
        return statuses

    assert asyncio.run(main()) == [503, 503] + [400] * 11, "400: they are no forms"
    (value,) = (line for line in app.state.monitor.render().decode().splitlines() if line.startswith("serving_body_b"))
    assert float(value.split()[1]) == 0


def test_the_memory_of_bodies_holds_at_least_four_large_ones() -> None:
    limits = derive_limits(max_bytes=20 * 2**20, num_classes=80, queue_size=256)
    assert limits.total_bytes == 256 * 2**20
    limits = derive_limits(max_bytes=20 * 2**20, num_classes=80, queue_size=1)
    assert limits.total_bytes == 4 * limits.json_bytes


# ---- images ----


def encode(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 40)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        encode("EPS"),
        encode("PDF"),
        encode("ICO"),
        encode("TGA"),
        encode("PPM"),
        b"BLP2" + bytes(200),
        b"SIMPLE  =                    T",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
)
def test_formats_outside_the_list_are_not_opened(client: TestClient, content: bytes) -> None:
    message = read_error(client.post("/predict", files={"files": ("a.jpg", content)}), 415)
    assert re.fullmatch(r"cannot read image a\.jpg: it is (no JPEG, PNG, .* file|an? .*|text.*)", message)


def make_large_frame() -> bytes:
    """A GIF whose screen is 1 x 1, with a frame of 60,000 x 60,000."""
    screen, frame = struct.pack("<HH", 1, 1), struct.pack("<HHHH", 0, 0, 60_000, 60_000)
    return b"GIF89a" + screen + b"\x00\x00\x00," + frame + b"\x00\x02\x02\x44\x01\x00;"


def make_large_tile() -> bytes:
    """A TIFF of 40 x 40 pixels, whose only tile has 20,000 x 20,000."""
    content = zlib.compress(bytes(10**6))
    tags = {256: 40, 257: 40, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 134, 325: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def make_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times more."""
    data = encode("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (count + 1) + b"\xff\xd9"


def make_long_text() -> bytes:
    """A PNG with a text of 100 million letters, packed into 100 KB."""
    text = b"zTXt" + b"name\x00\x00" + zlib.compress(b"a" * 10**8, 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    picture = make_picture()
    return picture[:33] + chunk + picture[33:]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (make_large_frame(), 413, "decompression bomb|pixels"),
        (make_large_tile(), 413, "20000 x 20000 pixels, which is more than"),
        (make_scans(100), 413, r"image a\.jpg has 1\d\d scans, which is more than 64"),
        (make_long_text()[:90_000], 422, "cannot read image"),
        (make_header(2**31 - 1, 2**31 - 1), 413, "decompression bomb"),
    ],
)
def test_small_files_with_much_work_are_refused(client: TestClient, content: bytes, status: int, message: str) -> None:
    assert len(content) < 100_000
    assert re.search(message, read_error(client.post("/predict", files={"files": ("a.jpg", content)}), status))
    assert client.post("/predict", files={"files": ("a.png", make_picture())}).status_code == 200


def test_a_progressive_jpeg_is_more_work_than_its_pixels() -> None:
    plain, progressive = encode("JPEG"), make_scans(20)
    works = application.measure_images([plain, progressive], ["", ""], 10_000)
    num_scans = progressive.count(b"\xff\xda")
    assert works == [1600, 1600 * (num_scans // 3)]
    assert num_scans > 20


def read_in_turns(works: list[int], run: Callable[..., Any]) -> list[tuple[int, set[int]]]:
    """[(index of an image, those that are read at the same time)], the first that begins first; all come at once."""
    begun: list[tuple[int, set[int]]] = []
    present: set[int] = set()
    lock, gate = threading.Lock(), threading.Event()

    def read(index: int) -> None:
        with lock:
            present.add(index)
            begun.append((index, set(present)))
        assert gate.wait(30)
        with lock:
            present.remove(index)

    async def main() -> None:
        tasks = [asyncio.create_task(run(work, lambda i=i: read(i))) for i, work in enumerate(works)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    return begun


def test_small_images_overtake_a_large_one_until_they_were_as_much_work() -> None:
    lane = Lane(1)
    order = [index for index, _ in read_in_turns([50, 40, 30, 9, 15, 20], lane.run)]
    assert order == [0, 3, 4, 1, 5, 2], "9 + 15 overtake 40, which 9 + 15 + 20 would not; then 20 overtakes 30"
    assert (lane.num_free, lane.waiting, lane.overtaken) == (1, [], 0)
    lane.pool.shutdown()


def test_large_images_are_decoded_one_at_a_time_beside_small_ones() -> None:
    readers = ImageReaders(max_work=100)
    begun = read_in_turns([100, 26, 25, 60, 25, 1], readers.run)
    readers.close()
    assert sorted(index for index, _ in begun) == list(range(6))
    assert all(len(present & {0, 1, 3}) <= 1 for _, present in begun)
    assert any(len(present) >= 2 for _, present in begun), "the small ones do not wait for the large one"


def test_an_image_that_fails_leaves_its_room_to_the_next() -> None:
    async def main() -> None:
        readers = ImageReaders(100)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await readers.run(100, lambda: 1 // 0)
        assert await readers.run(100, lambda: "read") == "read"
        readers.close()

    asyncio.run(main())


# ---- the socket ----

UNLIMITED = Limits(connections=100, body_bytes=200_000, linger_seconds=0.1)


@contextmanager
def serve(app: FastAPI, limits: Limits, refused: list[tuple[str, int]] | None = None) -> Iterator[int]:
    """A server with `app` in a thread. Yields its port."""
    listens = threading.Event()

    def record(client: str, status: int) -> None:
        if refused is not None:
            refused.append((client, status))

    listener = serving.bind("127.0.0.1", 0)
    server = Server(app, limits, record, listens.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert listens.wait(30)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return make_app(make_service(), max_bytes=100_000)


@pytest.fixture(scope="module")
def port(app: FastAPI) -> Iterator[int]:
    with serve(app, UNLIMITED) as port:
        yield port


def open_socket(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.sendall(data)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with connection, suppress(ConnectionResetError):  # there may be data that the server has not read
        while data := connection.recv(65536):
            received += data
    return received


def read_status(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n", [431]),
        (GET + b"X: " + b"a" * 20_000, [431]),
        (GET + b"a:\r\n" * 4000, [431]),
        (b"GET /" + b"a" * 20_000, [431]),
        (POST + b"Content-Length: -1\r\n\r\n", [400]),
        (POST + b"Content-Length: +5\r\n\r\n", [400]),
        (POST + b"Content-Length: 5 000\r\n\r\n", [400]),
        (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", [400]),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", [400]),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", [400]),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n", [400]),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", [400]),
        (POST + f"Content-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\na\r\n" * 3000, [400]),
        (
            POST + b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n0\r\n" + b"T: y\r\n" * 4000,
            [431],
        ),
        (POST + f"Content-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n1".encode() + b";x=y" * 60_000, [413]),
        (b"CONNECT other:443 HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
        (b"GET http://\xff\xfe/ HTTP/1.1\r\n\r\n", [400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]),
    ],
)
def test_what_is_no_request_is_answered_and_closed(port: int, request_: bytes, statuses: list[int]) -> None:
    received = read_to_end(open_socket(port, request_))
    assert read_status(received) == statuses
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["errorCode"] == statuses[0]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND"])
def test_other_methods_are_405(port: int, method: str) -> None:
    request = f"{method} /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert read_status(read_to_end(open_socket(port, request.encode()))) == [405]


def test_an_upgrade_to_a_websocket_gets_a_plain_answer(port: int) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    )
    with open_socket(port, GET + upgrade) as connection:
        assert read_status(connection.recv(65536)) == [200]


def test_requests_that_come_at_once_are_answered_in_order(port: int) -> None:
    received = read_to_end(
        open_socket(port, GET + b"\r\n" + b"GET /nothing HTTP/1.1\r\n\r\n" + GET + b"Connection: close\r\n\r\n")
    )
    assert read_status(received) == [200, 404, 200]


def test_a_client_cannot_ask_for_ever_without_an_answer(port: int) -> None:
    received = read_to_end(open_socket(port, (GET + b"\r\n") * 50))
    assert read_status(received) in ([], [200])
    assert (
        read_status(read_to_end(open_socket(port, (GET + b"\r\n") * 10 + GET + b"Connection: close\r\n\r\n")))
        == [200] * 11
    )


def send_until_it_fails(connection: socket.socket) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        connection.send(b"\r\n")
        time.sleep(0.05)


def test_clients_that_do_not_do_their_part_are_left(app: FastAPI, capfd: pytest.CaptureFixture[str]) -> None:
    """All at once: each of them needs seconds until the server has had enough."""
    refused: list[tuple[str, int]] = []
    limits = UNLIMITED._replace(head_seconds=0.5, stalled_seconds=0.5)
    with serve(app, limits, refused) as port:
        silent = open_socket(port)
        half = open_socket(port, GET + b"X: y")
        second = open_socket(port, GET + b"\r\n")
        assert read_status(second.recv(65536)) == [200]
        second.sendall(GET)  # half a head
        endless = open_socket(port, GET + b"Content-Length: 9999999\r\n\r\nabc")  # answered, though its body goes on
        unread = socket.create_connection(("127.0.0.1", port), 30)
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.setblocking(False)
        unread.send(
            b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 10
        )  # a megabyte each
        assert read_status(read_to_end(silent)) == []
        assert read_status(read_to_end(half)) == [408]
        assert read_status(read_to_end(second)) == [408]
        assert read_status(read_to_end(endless)) == [200]
        unread.setblocking(True)
        with unread, pytest.raises(ConnectionError):
            send_until_it_fails(unread)
    assert capfd.readouterr().err == ""
    assert refused == [("127.0.0.1", 408)] * 2


def test_a_new_connection_takes_the_place_of_the_one_that_dawdles(app: FastAPI) -> None:
    refused: list[tuple[str, int]] = []
    with serve(app, UNLIMITED._replace(connections=3), refused) as port:
        begin = GET + b"X: "
        oldest = open_socket(port, begin)
        time.sleep(0.1)
        others = [open_socket(port, POST + f"Content-Type: {FORM}\r\nContent-Length: 10\r\n\r\n".encode())]
        time.sleep(0.1)
        others.append(open_socket(port, begin))
        time.sleep(0.1)
        honest = open_socket(port, GET + b"Connection: close\r\n\r\n")
        assert read_status(read_to_end(oldest)) == [503]
        assert read_status(read_to_end(honest)) == [200]
        for connection in others:
            connection.close()
    assert refused == [("127.0.0.1", 503)]


def test_limits_of_connections_follow_the_queue_and_the_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert connections.derive_limits(256, 3000)[:2] == (576, 8000 + 2**20)
    assert connections.derive_limits(2000, 3000).connections == 924


# ---- token ----

TOKEN = "not-to-be-seen"


def test_a_token_opens_what_is_closed_without_it(service: Service) -> None:
    with TestClient(make_app(service, max_bytes=100_000, token=TOKEN)) as client:
        files = {"files": ("a.png", make_picture())}
        for given in (
            None,
            "",
            TOKEN,
            f"Bearer {TOKEN}x",
            "Bearer ",
            "Bearer",
            f"Basic {TOKEN}",
            "Bearer \xe4",
        ):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            answer = client.post("/predict", files=files, headers=headers)
            found = "wrong" if given in (f"Bearer {TOKEN}x", "Bearer \xe4") else "missing"
            assert (
                read_error(answer, 401) == f"the token is {found}: send Authorization: Bearer TOKEN, that of the server"
            )
            assert answer.headers["www-authenticate"] == "Bearer"
            for path in ("/labels", "/metrics", "/nothing"):
                assert client.get(path, headers=headers).status_code == 401
        for path in ("/", "/health", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
            assert client.get(path).status_code == 200
        assert "HTTPBearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]
        for scheme in ("bearer", "Bearer"):
            headers = {"authorization": f"{scheme} {TOKEN}"}
            assert client.post("/predict", files=files, headers=headers).status_code == 200
        for path in ("/labels", "/metrics"):
            assert client.get(path, headers=headers).status_code == 200


def test_without_the_token_no_body_is_read(service: Service) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    assert call(make_app(service, max_bytes=50_000, token=TOKEN), receive)[0] == 401


def test_the_token_is_not_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import config

    with pytest.raises(SystemExit):
        overrides.apply([f"--SERVING_TOKEN={TOKEN}", "--help", "SERVING_TOKEN"], config, serving)
    printed = capsys.readouterr().out
    assert "--SERVING_TOKEN (set, not shown)" in printed
    recipe = tmp_path / "recipe.py"
    recipe.write_text("SERVING_TOKEN = 1234567\n")
    for arguments in ([f"--SERVING_TOKEN={TOKEN} {TOKEN}"], [str(recipe)]):
        with pytest.raises(InputError, match="SERVING_TOKEN is \\(set, not shown\\)") as caught:
            overrides.apply(arguments, config, serving)
        printed += str(caught.value)
    overrides.apply([f"--SERVING_TOKEN={TOKEN}"], config, serving)
    printed += json.dumps(overrides.resolved(config))  # what goes into checkpoints
    assert TOKEN not in printed
    assert "1234567" not in printed


@pytest.mark.parametrize(
    ("address", "token", "warning"),
    [
        ("127.0.0.1", None, ""),
        ("127.3.2.1", None, ""),
        ("::1", None, ""),
        ("0.0.0.0", None, "everybody there may use the server: set SERVING_TOKEN"),
        ("::", None, "everybody there may use the server"),
        ("fe80::1%eth0", None, "everybody there may use the server"),
        ("192.168.1.2", TOKEN, "nothing is encrypted, SERVING_TOKEN neither"),
    ],
)
def test_other_machines_access_is_warned_of(
    address: str, token: str | None, warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.SERVING_HOST, serving.SERVING_TOKEN = address, token
    serving.warn_of_others(address)
    printed = capsys.readouterr().err
    assert warning in printed
    assert printed.count("\n") == bool(warning)
    assert TOKEN not in printed


# ---- numbers and the log ----


def read_metrics(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_by_known_paths(client: TestClient) -> None:
    files = [("files", ("a.png", make_picture()))] * 2
    for _ in range(3):
        client.post("/predict", files=files)
    client.post("/predict", files={"files": ("a.png", b"no image")})
    for index in range(30):
        client.get(f"/unknown/{index}")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = read_metrics(answer.text)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "serving_requests_total"}
    assert requests == {("/predict", "200"): 3, ("/predict", "415"): 1, ("other", "404"): 30}
    assert found["serving_images_total",] == 6
    assert found["serving_request_seconds_count", "/predict"] == 4
    assert (found["serving_queued_images",], found["serving_body_bytes",]) == (0, 0)


def test_a_refusal_at_the_socket_is_counted(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.log")
    monitor = Monitor({"/predict"}, log)
    monitor.record("10.0.0.1", 431)
    log.close()
    assert read_metrics(monitor.render().decode())["serving_requests_total", "other", "431"] == 1
    assert (tmp_path / "requests.log").read_text().split()[1:] == ["10.0.0.1", "-", "-", "431", "0", "0.0"]


def test_the_log_has_a_line_for_each_request(service: Service, tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "folder" / "requests.log")
    with TestClient(make_app(service, max_bytes=100_000, token=TOKEN, log=log), client=("10.0.0.1", 9)) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        client.post("/predict?secret=1", content=b"abc", headers=headers | {"content-type": FORM})
        client.get("/a%0Ab%20c%1B[31m%C3%A4", headers=headers)
        client.get("/labels")
    log.close()
    text = (tmp_path / "folder" / "requests.log").read_text()
    lines = [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} (.*) \d+\.\d", line) for line in text.splitlines()]
    assert [line and line[1] for line in lines] == [
        "10.0.0.1 POST /predict 400 3",
        "10.0.0.1 GET /a%0Ab%20c%1B%5B31m%C3%A4 404 0",
        "10.0.0.1 GET /labels 401 0",
    ]
    assert TOKEN not in text


def test_a_log_that_cannot_be_written_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FullDisk(io.StringIO):
        is_full = True

        def flush(self) -> None:
            if self.is_full:
                self.seek(0)
                self.truncate()
                raise OSError(28, "No space left on device")

    log = RequestLog(tmp_path / "requests.log")
    log.file.close()
    file = FullDisk()
    monkeypatch.setattr(log, "file", file)
    for _ in range(3):
        log._append(["line\n"])
    file.is_full = False
    log._append(["last\n"])
    log.close()
    assert file.getvalue() == "3 lines are missing here\nlast\n"
    assert capsys.readouterr().err.count("No space left on device; requests are answered without it") == 1
    assert log.lines.maxsize == monitoring.MAX_LINES


def test_a_log_at_no_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write SERVING_LOG .*requests\.log: "):
        RequestLog(tmp_path / "file" / "requests.log")


def test_health_says_which_model_it_is() -> None:
    service = make_service(make_model(saved="2026-11-28T09:00:00"))
    service.sha256 = "ab12"
    with TestClient(make_app(service, max_bytes=100_000)) as client:
        health = client.get("/health").json()
    assert (health["sha256"], health["trained"]) == ("ab12", "2026-11-28T09:00:00")
    assert health["version"] == utils.VERSION
