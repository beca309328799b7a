"""The server under load and under attack: are all accepted uploads answered, and does an honest client get through?

    python benchmarks/serving_attacks.py load [--uploads 100000] [--clients 200]
    python benchmarks/serving_attacks.py attacks [NAME ...] [--seconds 10] [--server FOLDER]

`load` sends uploads, a twentieth of them broken, and ends the server by SIGTERM while they go on. Every upload that the
server's log has as answered must have reached its client. `attacks` lets one honest client upload a photograph every
50 ms, first alone and then while others attack; `--server` names the folder of another version of this project. The
model is a tiny network of random weights: what is measured is the server. Clients and server share the machine's cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import asyncio
import base64
import collections
import io
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from multiprocessing.sharedctypes import Synchronized

import numpy as np
from PIL import Image

import utils

ROOT = Path(__file__).resolve().parents[1]
CLASSES, IMAGE_SIZE = 5, 64
BROKEN_SHARE = 0.05
HONEST_PAUSE = 0.05  # seconds
PATIENCE = 30.0  # seconds that a client waits for an answer
MEGABYTE = 2**20
FORK = multiprocessing.get_context("fork")


# ---- the server ----


def make_checkpoint(path: Path) -> None:
    import torch

    import models_factory
    from models import checkpoints

    torch.manual_seed(0)
    name = "timm/test_resnet"
    model = models_factory.make_model(name, CLASSES, weights=None, image_size=IMAGE_SIZE)
    about = {"model_name": name, "head": "linear_bn", "image_size": IMAGE_SIZE, "resize_rule": "squash"}
    classes = [f"class {index}" for index in range(CLASSES)]
    checkpoints.save(path, about | {"model_state": model.state_dict(), "classes": classes, "best_threshold": 0.5})


class Server:
    """serving.py of `folder` in a process of its own, with a model in `work`."""

    def __init__(self, folder: Path, work: Path, **constants: object) -> None:
        checkpoint = work / "model.pt"
        if not checkpoint.exists():
            making = FORK.Process(target=make_checkpoint, args=(checkpoint,))  # here, torch would slow the clients
            making.start()
            making.join()
        constants = {"LOCAL_ROOT": work, "MODEL_PATH": checkpoint, "DEVICE": "cpu", "SERVING_PORT": 0} | constants
        command = [sys.executable, "serving.py", *(f"--{name}={value}" for name, value in constants.items())]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        found = filter(None, (re.search(r"http://\S+:(\d+)", line) for line in self.process.stdout))
        address = next(found, None)
        if address is None:
            raise utils.InputError("serving.py did not start")
        self.port = int(address[1])
        time.sleep(1)  # older versions say where they listen before they do

    def read_rss(self) -> float:
        """Resident memory in MB."""
        with suppress(OSError):
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
            return int(found[1]) / 1024 if found else 0.0
        return 0.0

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# ---- requests ----


def make_photograph(side: int, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((side, side)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_request(body: bytes, kind: str, path: str = "/predict", length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    return (head + f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body


def make_upload(image: bytes, name: str = "a.jpg") -> bytes:
    part = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return make_request(part + image + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


def make_json(text: bytes) -> bytes:
    return make_request(text, "application/json")


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer. Raises OSError or EOFError if there is none."""
        self.writer.write(request)
        with suppress(ConnectionError):  # it was refused while it was sent: the answer may be there
            await self.writer.drain()
        return await self.read_answer()

    async def read_answer(self) -> tuple[int, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.I)
        body = await self.reader.readexactly(int(length[1])) if length else b""
        return int(head.split(maxsplit=2)[1]), body


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


# ---- attacks: each is a client of many, which goes on until it is cancelled ----

Attack = Callable[[Connection], Awaitable[object]]


def repeat(make: Callable[[], bytes]) -> Callable[[], Attack]:
    def prepare() -> Attack:
        request = make()
        return lambda connection: connection.ask(request)

    return prepare


def trickle(start: bytes, piece: bytes = b"a") -> Callable[[], Attack]:
    async def send(connection: Connection) -> None:
        connection.writer.write(start)
        while not connection.reader.at_eof():
            connection.writer.write(piece)
            await connection.writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(connection.reader.read(1000), 1)

    return lambda: send


def flood(start: bytes, piece: bytes) -> Callable[[], Attack]:
    async def send(connection: Connection) -> None:
        connection.writer.write(start)
        while True:
            connection.writer.write(piece)
            await connection.writer.drain()

    return lambda: send


async def stay_silent(connection: Connection) -> None:
    await connection.reader.read(1)


async def never_read(connection: Connection) -> None:
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    connection.writer.write(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    await asyncio.sleep(60)


def make_flat_png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make_many_scans() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + b"\xff\xd9"


def make_parts(count: int) -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    return make_request(part * count + b"--b--\r\n", "multipart/form-data; boundary=b")


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
FORM = HEAD + b"Content-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
LARGE = (20 * MEGABYTE) - 1000

# name: (clients, attack)
ATTACKS: dict[str, tuple[int, Callable[[], Attack]]] = {
    "JSON, 3 MB of thresholds": (
        4,
        repeat(lambda: make_json(b'{"image": "AAAA", "threshold": [' + b"2," * 1_500_000 + b"2]}")),
    ),
    "JSON, 75,000 unknown names": (
        4,
        repeat(lambda: make_json(json.dumps({f"name{index}": index for index in range(75_000)}).encode())),
    ),
    "JSON, 2 MB deep": (4, repeat(lambda: make_json(b'{"image": ' + b"[" * 2 * MEGABYTE))),
    "JSON, integers of 4,000 digits": (
        4,
        repeat(lambda: make_json(b'{"threshold": [' + b",".join([b"9" * 4000] * 1000) + b"]}")),
    ),
    "JSON, 18 MB of base64": (
        4,
        repeat(lambda: make_json(b'{"image": "' + base64.b64encode(bytes(13_500_000)) + b'"}')),
    ),
    "JSON, 18 MB of blanks in base64": (4, repeat(lambda: make_json(b'{"image": "' + b"A " * 9_000_000 + b'"}'))),
    "half heads": (300, trickle(HEAD + b"X-Half: ")),
    "endless head": (8, flood(HEAD + b"X-Endless: ", b"a" * 65536)),
    "silent connections": (1500, lambda: stay_silent),
    "slow bodies": (300, trickle(FORM + b"Content-Length: 1000000\r\n\r\n" + PART)),
    "endless body that nobody reads": (
        8,
        flood(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", b"a" * 65536),
    ),
    "256 uploads of 20 MB": (256, repeat(lambda: make_upload(bytes(LARGE)))),
    "chunks of 1 byte": (16, flood(FORM + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10_000)),
    "100,000 parts": (8, repeat(lambda: make_parts(100_000))),
    "answers that are not read": (100, lambda: never_read),
    "300 requests at once": (100, repeat(lambda: b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 300)),
    "images of 50 megapixels": (16, repeat(lambda: make_upload(make_flat_png(7000)))),
    "images of 12 megapixels": (64, repeat(lambda: make_upload(make_flat_png(3500)))),
    "JPEGs of 2,000 scans": (16, repeat(lambda: make_upload(make_many_scans()))),
}


def attack_in_process(name: str, port: int, counts: Synchronized[int], refusals: Synchronized[int]) -> None:
    """Attack by as many clients as the attack has, until this process is ended."""
    num_clients, prepare = ATTACKS[name]
    attack = prepare()

    async def be_client() -> None:
        while True:
            try:
                async with connect(port) as connection:
                    counts.value += 1
                    answer = await attack(connection)
                    refusals.value += isinstance(answer, tuple) and answer[0] >= 400
            except (OSError, EOFError, asyncio.LimitOverrunError):
                refusals.value += 1
                await asyncio.sleep(0.05)

    async def main() -> None:
        await asyncio.gather(*(be_client() for _ in range(num_clients)))

    asyncio.run(main())


# ---- the honest client ----


async def be_honest(port: int, seconds: float, look: Callable[[], object]) -> tuple[list[float], int]:
    """(seconds of each upload, how many failed). What is not answered in time counts with the time it took."""
    upload = make_upload(make_photograph(480))
    times, num_failed, pending = [], 0, set()

    async def send() -> None:
        nonlocal num_failed
        start = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE), connect(port) as connection:
                status, _ = await connection.ask(upload)
            num_failed += status != 200
        except (OSError, EOFError, TimeoutError):
            num_failed += 1
        times.append(time.perf_counter() - start)

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        task = asyncio.create_task(send())
        pending.add(task)
        task.add_done_callback(pending.discard)
        look()
        await asyncio.sleep(HONEST_PAUSE)
    await asyncio.gather(*pending)
    return times, num_failed


def format_times(times: list[float]) -> str:
    p50, p99 = np.quantile(times, (0.5, 0.99))
    return f"{p50:.3f} / {p99:.3f}"


def measure_attacks(names: Iterable[str], seconds: float, folder: Path, work: Path) -> None:
    print(
        f"{'attack':<34}{'clients':>8}{'tried':>8}{'refused':>9}{'alone p50 / p99 s':>19}{'attacked':>16}"
        f"{'failed':>12}{'MB':>14}"
    )
    for name in names:
        server = Server(folder, work)
        try:
            peak = [server.read_rss()]
            alone, _ = asyncio.run(be_honest(server.port, seconds / 2, lambda: None))
            counts, refusals = FORK.Value("i", 0), FORK.Value("i", 0)
            attacker = FORK.Process(target=attack_in_process, args=(name, server.port, counts, refusals), daemon=True)
            attacker.start()
            time.sleep(2)
            look = lambda: peak.append(server.read_rss())  # noqa: E731, B023
            times, num_failed = asyncio.run(be_honest(server.port, seconds, look))
            attacker.kill()
            attacker.join()
            failed = f"{num_failed} of {len(times)}"
            memory = f"{peak[0]:.0f} -> {max(peak):.0f}"
            print(
                f"{name:<34}{ATTACKS[name][0]:>8}{counts.value:>8}{refusals.value:>9}{format_times(alone):>19}"
                f"{format_times(times):>16}{failed:>12}{memory:>14}",
                flush=True,
            )
        finally:
            server.end()


# ---- load ----


def make_broken(rng: random.Random, image: bytes) -> bytes:
    """A request that must be refused, or, if it ends early, gets no answer."""
    whole = make_upload(image)
    return rng.choice([
        make_upload(image[: len(image) // 2]),
        make_upload(b"no image"),
        make_upload(b""),
        whole.replace(b"--b--", b""),
        whole.replace(b"multipart/form-data", b"text/plain"),
        whole[: len(whole) // 2],
        make_json(b'{"image": "AAAA", "threshold": [2, 2, 2]}'),
        make_json(b'{"image"'),
        b"no HTTP\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
    ])  # fmt: skip


class Load:
    """Clients that upload over and over, each on a connection that it keeps."""

    def __init__(self, port: int, num_uploads: int) -> None:
        self.port, self.left, self.rng = port, num_uploads, random.Random(0)
        self.images = [make_photograph(64, seed) for seed in range(50)]
        self.expected: dict[int, list[float]] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.times: list[float] = []
        self.is_ending = False

    async def be_client(self) -> None:
        while self.left > 0 and not self.is_ending:
            with suppress(OSError, EOFError):
                async with connect(self.port) as connection:
                    while self.left > 0:
                        self.left -= 1
                        if self.rng.random() < BROKEN_SHARE:
                            await self.send_broken(connection)
                            break  # with a new connection
                        await self.upload(connection)

    async def send_broken(self, connection: Connection) -> None:
        request = make_broken(self.rng, self.rng.choice(self.images))
        self.counts["broken"] += 1
        try:
            async with asyncio.timeout(2):
                status, _ = await connection.ask(request)
            self.counts["broken refused"] += status >= 400
            self.counts["broken answered 200"] += status == 200
        except TimeoutError:
            self.counts["broken left"] += 1

    async def upload(self, connection: Connection) -> None:
        index = self.rng.randrange(len(self.images))
        start = time.perf_counter()
        self.counts["uploads"] += 1
        try:
            status, body = await connection.ask(make_upload(self.images[index], f"{self.left}.jpg"))
        except (OSError, EOFError):
            self.counts["closed at the end" if self.is_ending else "lost"] += 1
            raise
        self.times.append(time.perf_counter() - start)
        self.counts[f"status {status}"] += 1
        if status == 200:
            (prediction,) = json.loads(body)["predictions"]
            expected = self.expected.setdefault(index, prediction["probabilities"])
            self.counts["wrong"] += not np.allclose(prediction["probabilities"], expected, atol=1e-4)


def measure_load(num_uploads: int, num_clients: int, work: Path) -> None:
    log = work / "requests.log"
    log.unlink(missing_ok=True)
    server = Server(ROOT, work, SERVING_LOG=log)
    load = Load(server.port, num_uploads)
    memory: list[float] = []

    async def main() -> None:
        clients = [asyncio.create_task(load.be_client()) for _ in range(num_clients)]
        while load.left > num_clients * 2 and not all(client.done() for client in clients):
            memory.append(server.read_rss())
            await asyncio.sleep(0.2)
        load.is_ending = True
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)

    start = time.perf_counter()
    try:
        asyncio.run(main())
        status = server.process.wait(60)
    finally:
        server.process.kill()
    seconds = time.perf_counter() - start
    answered = sum(line.split()[2:5] == ["POST", "/predict", "200"] for line in log.read_text().splitlines())
    print(f"{os.cpu_count()} cores, {num_clients} clients, {seconds:.0f} s, exit status {status}")
    for name, count in sorted(load.counts.items()):
        print(f"  {name:<22}{count:>8}")
    print(f"  {'200 in the log':<22}{answered:>8}")
    print(f"  p50 / p99 s {format_times(load.times)}, {len(load.times) / seconds:.0f} answers/s")
    tenths = np.array_split(memory, 10)
    print("  MB in each tenth of the time: " + ", ".join(f"{statistics.median(tenth):.0f}" for tenth in tenths))
    lost = load.counts["lost"] + load.counts["wrong"] + abs(answered - load.counts["status 200"])
    if lost or status:
        raise utils.InputError(f"{lost} answers were lost or wrong")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "attacks"))
    parser.add_argument("names", nargs="*", help="attacks, by a part of their names")
    parser.add_argument("--uploads", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--server", type=Path, default=ROOT)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        if options.what == "load":
            measure_load(options.uploads, options.clients, Path(work))
        else:
            chosen = [name for name in ATTACKS if not options.names or any(part in name for part in options.names)]
            measure_attacks(chosen, options.seconds, options.server, Path(work))


if __name__ == "__main__":
    utils.run_script(main)
