"""dataset/tar_shards/: shards in object storage and on web servers; transfers go on where they broke.

A small server speaks as much of S3 as is needed here, and can break. With moto installed, its server is asked, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib.util
import io
import multiprocessing
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest

from dataset.formats.base import ReadOptions
from dataset.tar_shards import read_bytes, resuming
from dataset.tar_shards.addresses import Address, expand_numbers, open_address, read_address
from dataset.tar_shards.index import list_shards
from dataset.tar_shards.object_storage import ObjectStream
from dataset.tar_shards.resuming import BrokenTransfer, RefusedTransfer, ResumedStream
from dataset.tar_shards.scanning import read_members
from dataset_readers import read_dataset
from utils import InputError

needs_s3fs = pytest.mark.skipif(
    importlib.util.find_spec("s3fs") is None, reason="s3fs is not installed (requirements-shards.txt)"
)
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
EMPTY = "<?xml version='1.0'?><ListBucketResult><Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>"


class Storage(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of objects, with ranges; what is to go wrong stands in `faults`."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]
    faults: ClassVar[dict[str, list[str]]]  # path: what befalls its next requests for content
    seen: ClassVar[Counter[str]]  # "GET /bucket/key"
    ranges: ClassVar[list[str]]
    knows_ranges = True

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.seen[f"{self.command} {path}"] += 1
        fault = self.faults[path].pop(0) if self.command == "GET" and self.faults.get(path) else ""
        if "list-type" in self.path:
            self.send(200, EMPTY.encode())
        elif "/secret" in path:
            self.send(403, ERROR.format("AccessDenied", "Access Denied").encode())
        elif path not in self.objects:
            self.send(404, ERROR.format("NoSuchKey", "The specified key does not exist.").encode())
        elif fault == "busy":
            self.send(503, ERROR.format("SlowDown", "Reduce your request rate.").encode())
        else:
            if fault == "changed":
                self.objects[path] = self.objects[path][::-1]
            self.send_object(self.objects[path], fault)

    def send_object(self, data: bytes, fault: str) -> None:
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": "Sat, 01 Jan 2028 00:00:00 GMT"}
        if (expected := self.headers.get("If-Match")) and expected != headers["ETag"]:
            self.send(412, ERROR.format("PreconditionFailed", "It has changed").encode())
            return
        status, wanted = 200, self.headers.get("Range")
        if wanted and self.command == "GET":
            self.ranges.append(wanted)
        if wanted and self.knows_ranges:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            assert match
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self.send(status, data, headers, len(data) // 2 if fault == "breaks" else None)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[type[Storage], str]]:
    """(the server's handler, its address), with credentials where programs look for them."""

    class Mine(Storage):
        objects: ClassVar[dict[str, bytes]] = {}
        faults: ClassVar[dict[str, list[str]]] = {}
        seen: ClassVar[Counter[str]] = Counter()
        ranges: ClassVar[list[str]] = []

    monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        server.handle_error = lambda request, client_address: None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        set_credentials(monkeypatch, tmp_path, url)
        yield Mine, url
        server.shutdown()


def set_credentials(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if importlib.util.find_spec("s3fs"):
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # it keeps the endpoint of the last test


def make_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def make_shards() -> dict[str, bytes]:
    """{name of a shard: its bytes}, of two images each."""
    shards = {}
    for number in range(3):
        members = {}
        for image in range(2):
            members[f"{number}{image}.jpg"] = bytes([number, image]) * 3000
            members[f"{number}{image}.json"] = b'{"labels": ["cat"]}'
        shards[f"train-{number:06}.tar"] = make_tar(members)
    return shards


def read_stream(url: str, size: int = 1000) -> bytes:
    with open_address(read_address(url, Path(), "shards.txt:1")) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


# ---- what a line stands for ----


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s3://b/train-{000000..000002}.tar", ["s3://b/train-000000.tar", "s3://b/train-000001.tar", "s3://b/train-000002.tar"]),
        ("train-{8..10}.tar", ["train-8.tar", "train-9.tar", "train-10.tar"]),
        ("train-{08..10}.tar", ["train-08.tar", "train-09.tar", "train-10.tar"]),
        ("{1..2}/train-{0..1}.tar", ["1/train-0.tar", "1/train-1.tar", "2/train-0.tar", "2/train-1.tar"]),
        ("train-{7}.tar", ["train-{7}.tar"]),
        ("pipe:cat train-{0..9}.tar", ["pipe:cat train-{0..9}.tar"]),
    ],
)  # fmt: skip
def test_numbers_in_braces_are_expanded(line: str, expected: list[str]) -> None:
    assert expand_numbers(line, "shards.txt:1") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("s3://b/train-{3..1}.tar", r"shards\.txt:7: the numbers of \{3\.\.1\} do not rise"),
        ("s3://b/{0..9999}/train-{0..9999}.tar", r"shards\.txt:7: .* stands for more than 1,000,000 shards"),
        ("s3://train-0.tar", r"shards\.txt:7: .* is no address in object storage: s3://BUCKET/train-000000\.tar"),
        ("s3:b/train-0.tar", r"shards\.txt:7: .* is no address in object storage"),
    ],
)
def test_mistakes_in_a_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "shards.txt").write_text("\n" * 6 + line)
    with pytest.raises(InputError, match=message):
        list_shards(tmp_path)


def test_secrets_of_an_address_are_not_written_down() -> None:
    address = read_address("https://me:word@host:8000/a/train-0.tar?X-Amz-Signature=abc#x", Path(), "")
    assert address.public == "https://host:8000/a/train-0.tar"
    assert read_address("s3://bucket/a?b/train-0.tar", Path(), "").public == "s3://bucket/a?b/train-0.tar"


# ---- object storage ----


@needs_s3fs
@pytest.mark.parametrize("with_index", [False, True])
def test_a_data_set_in_object_storage(storage: Any, tmp_path: Path, with_index: bool) -> None:
    handler, _ = storage
    shards = make_shards()
    handler.objects.update({f"/bucket/data/{name}": data for name, data in shards.items()})
    (tmp_path / "shards.txt").write_text("s3://bucket/data/train-{000000..000002}.tar\n")
    options = ReadOptions(cache_folder=tmp_path / "cache", shard_cache_gb=1.0)
    if with_index:
        read_dataset(tmp_path, split="train", options=options)
        handler.seen.clear()
    table = read_dataset(tmp_path, split="train", options=options)
    names = ["00.jpg", "01.jpg", "10.jpg", "11.jpg", "20.jpg", "21.jpg"]
    assert [path.rpartition("/")[2] for path in table.paths] == names
    assert table.classes == ("cat",)
    assert (sum(handler.seen.values()) == 0) == with_index, "with an index, nothing is read before it is needed"
    handler.seen.clear()
    assert [read_bytes(path) for path in table.paths[2:]] == [bytes([n, i]) * 3000 for n in (1, 2) for i in (0, 1)]
    assert {path for path, _ in handler.seen.items() if path.startswith("GET")} == {
        "GET /bucket/data/train-000001.tar", "GET /bucket/data/train-000002.tar",
    }  # fmt: skip
    kept = {path.read_bytes() for path in (tmp_path / "cache" / "shards").glob("*.tar")}
    assert kept == {shards["train-000001.tar"], shards["train-000002.tar"]}


@needs_s3fs
def test_processes_that_were_forked_read_too(storage: Any, tmp_path: Path) -> None:
    """As loading processes do: what reads from the storage has threads of its own, which a fork does not copy."""
    handler, _ = storage
    handler.objects.update({f"/bucket/{name}": data for name, data in make_shards().items()})
    (tmp_path / "shards.txt").write_text("s3://bucket/train-{000000..000002}.tar\n")
    options = ReadOptions(cache_folder=tmp_path / "cache", shard_cache_gb=1.0)
    table = read_dataset(tmp_path, split="train", options=options)  # whose shards are read for their index
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[int]] = context.Queue()
    processes = [
        context.Process(target=lambda: results.put([len(read_bytes(path)) for path in table.paths])) for _ in range(2)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [[6000] * 6] * 2
    for process in processes:
        process.join()


@needs_s3fs
def test_a_transfer_from_object_storage_goes_on(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are asked for one by one. What s3fs itself gives up is asked for again from there."""
    handler, _ = storage
    monkeypatch.setattr("dataset.tar_shards.object_storage.BLOCK_BYTES", 4000)
    data = bytes(range(256)) * 100
    handler.objects["/bucket/train-0.tar"] = data
    handler.faults["/bucket/train-0.tar"] = ["", "breaks", "busy"]
    assert read_stream("s3://bucket/train-0.tar") == data
    assert handler.faults["/bucket/train-0.tar"] == []
    starts = [int(wanted.partition("=")[2].partition("-")[0]) for wanted in handler.ranges]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert len([start for start in starts if start == 0]) == 1


@needs_s3fs
def test_object_storage_that_says_no(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, _ = storage
    for url, message in (
        ("s3://bucket/nowhere/train-0.tar", "404: there is no such object"),
        ("s3://bucket/secret/train-0.tar", r"403: these credentials may not read it \("),
    ):
        handler.seen.clear()
        with pytest.raises(RefusedTransfer, match=message):
            read_stream(url)
        assert max(handler.seen.values()) == 1, "it is not asked again"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RefusedTransfer, match="no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACC"):
        read_stream("s3://bucket/train-0.tar")


@needs_s3fs
def test_an_object_that_is_replaced_meanwhile(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, _ = storage
    monkeypatch.setattr("dataset.tar_shards.object_storage.BLOCK_BYTES", 4000)
    handler.objects["/bucket/train-0.tar"] = bytes(range(256)) * 100
    handler.faults["/bucket/train-0.tar"] = ["", "changed"]
    with pytest.raises(BrokenTransfer):
        read_stream("s3://bucket/train-0.tar")


@needs_s3fs
def test_a_shard_is_told_in_one_line(storage: Any, tmp_path: Path) -> None:
    handler, _ = storage
    handler.objects.update({f"/bucket/{name}": data for name, data in make_shards().items()})
    (tmp_path / "shards.txt").write_text("s3://bucket/train-{000000..000002}.tar\n")
    options = ReadOptions(cache_folder=tmp_path / "cache", shard_cache_gb=1.0)
    table = read_dataset(tmp_path, split="train", options=options)
    del handler.objects["/bucket/train-000001.tar"]
    with pytest.raises(InputError, match=r"cannot fetch train-000001\.tar as .*shards\.txt:1 says: 404: there is") as e:
        read_bytes(table.paths[2])
    assert "\n" not in str(e.value)
    address = Address("s3", "s3://bucket/train-000001.tar", "shards.txt:1")
    with pytest.raises(InputError, match=r"cannot read s3://bucket/train-000001\.tar \(shards\.txt:1\): 404"):
        list(read_members(address))


def test_without_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"reading s3://b/train-0\.tar needs s3fs: pip install -r requirements-shards"):
        ObjectStream("s3://b/train-0.tar")


@needs_s3fs
def test_images_of_a_shard_are_streamed(storage: Any) -> None:
    handler, _ = storage
    handler.objects["/bucket/a.tar"] = make_tar({"x/1.jpg": b"one", "x/1.json": b"{}", "x/2.PNG": bytes(3_000_000)})
    found = [(member.name, len(member.data)) for member in read_members(Address("s3", "s3://bucket/a.tar"))]
    assert found == [("x/1.jpg", 3), ("x/2.PNG", 3_000_000)]


@needs_s3fs
def test_with_the_server_of_moto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's notion of S3: it was run once; the package is too large to be installed for the tests."""
    server_module = pytest.importorskip("moto.server", reason="moto[s3,server], 150 MB, is not installed")
    boto3: Any = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        set_credentials(monkeypatch, tmp_path, f"http://{host}:{port}")
        client: Any = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for name, data in make_shards().items():
            client.put_object(Bucket="bucket", Key=f"data/{name}", Body=data)
        (tmp_path / "shards.txt").write_text("s3://bucket/data/train-{000000..000002}.tar\n")
        options = ReadOptions(cache_folder=tmp_path / "cache", shard_cache_gb=1.0)
        table = read_dataset(tmp_path, split="train", options=options)
        assert [read_bytes(path) for path in table.paths] == [bytes([n, i]) * 3000 for n in range(3) for i in (0, 1)]
        monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.0)
        with pytest.raises(RefusedTransfer, match="404: there is no such object"):
            read_stream("s3://bucket/data/train-000003.tar")
        with pytest.raises(RefusedTransfer, match="404: there is no such object"):
            read_stream("s3://elsewhere/data/train-000003.tar")
    finally:
        server.stop()


# ---- web servers ----


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_transfer_from_a_web_server_goes_on(storage: Any, knows_ranges: bool) -> None:
    handler, url = storage
    handler.knows_ranges = knows_ranges
    data = bytes(range(256)) * 100
    handler.objects["/train-0.tar"] = data
    handler.faults["/train-0.tar"] = ["breaks", "busy", "breaks"]
    assert read_stream(f"{url}/train-0.tar") == data
    assert handler.seen["GET /train-0.tar"] == 4
    half = len(data) // 2
    rest = (len(data) - half) // 2 if knows_ranges else 0
    assert handler.ranges == [f"bytes={half}-", f"bytes={half + rest}-"]


@pytest.mark.parametrize(
    ("faults", "message", "requests"),
    [
        (["busy"] * 9, "503", 1),
        (["breaks", *["busy"] * 9], "503", 1 + resuming.TRIES - 1),
        (["breaks", "changed"], "it was replaced while it was read", 2),
    ],
)
def test_a_web_server_that_does_not_get_better(storage: Any, faults: list[str], message: str, requests: int) -> None:
    handler, url = storage
    handler.objects["/train-0.tar"] = bytes(range(256)) * 100
    handler.faults["/train-0.tar"] = [*faults]
    with pytest.raises(BrokenTransfer, match=message):
        read_stream(f"{url}/train-0.tar")
    assert handler.seen["GET /train-0.tar"] == requests


@pytest.mark.parametrize(("path", "status"), [("/nowhere/train-0.tar", "404"), ("/secret/train-0.tar", "403")])
def test_a_web_server_that_says_no_is_not_asked_again(storage: Any, path: str, status: str) -> None:
    handler, url = storage
    address = Address("web", f"{url}{path}", "shards.txt:3")
    with pytest.raises(InputError, match=rf"cannot read {url}{path} \(shards\.txt:3\): HTTP Error {status}"):
        list(read_members(address))
    with pytest.raises(RefusedTransfer):
        resuming.try_again(lambda: open_address(address))
    assert handler.seen[f"GET {path}"] == 2


def test_tries_count_from_the_last_byte_that_came() -> None:
    class Halting:
        def __init__(self, position: int) -> None:
            self.position = position
            self.version: tuple[object, ...] = (1,)

        def read(self, size: int) -> bytes:
            opened.append(self.position)
            if self.position == 10 or len(opened) % resuming.TRIES == 0:
                self.position = min(self.position + 1, 10)
                return b"x" * (opened[-1] < 10)
            raise BrokenTransfer("halted")

        def close(self) -> None:
            closed.append(self.position)

    opened: list[int] = []
    closed: list[int] = []
    with contextlib.ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.0)
        stream = ResumedStream(Halting)
        assert b"".join(iter(lambda: stream.read(5), b"")) == b"x" * 10
    assert closed
