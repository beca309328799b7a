"""EXPORT_FORMATS web: the exported folder behind a server of files, in headless Chromium.

ONNX Runtime Web is fetched once by npm, and kept in pytest's cache; without npm, or without a registry, these tests are
skipped. Names of classes are hostile throughout.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsers import Browser, wait_until
from conftest import NO_PHOTOGRAPHS, PHOTOGRAPHS
from PIL import Image, ImageColor, ImageOps
from random_models import choose_thresholds, make_random_model

import config
import export_onnx
import metrics
import predictor
import thresholds
from dataset import augmentations
from dataset.files import list_images
from evaluation import pages, palette
from export import web_folder
from models import checkpoints
from predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("<img src=x onerror=fail()>", "</script><script>fail()</script>", '"&amp;\u202e ${0}', "grass", "sky")
LIMIT = 2e-2  # between two decoders of pictures, and weights of 16 and of 32 bits
COUNT = 20
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of ONNX Runtime Web, as npm fetches it."""
    path = request.config.cache.mkdir("onnxruntime-web") / web_folder.RUNTIME_PACKAGE
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"there is no {path.name}, and no npm to fetch it")
        folder = tmp_path_factory.mktemp("npm")
        name = f"onnxruntime-web@{web_folder.RUNTIME_VERSION}"
        command = [npm, "pack", name, "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm cannot fetch {name}: {done.stderr.strip().splitlines()[-1:]}")
        shutil.move(folder / path.name, path)
    return path


def draw_pictures(folder: Path) -> list[str]:
    """20 pictures: coarse patches of colour in several sizes and kinds of file, some turned, some transparent."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(COUNT):
        height, width = (int(side) for side in rng.integers(40, 400, 2))
        colours = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        picture = colours.resize((width, height), Image.Resampling.BICUBIC)
        options: dict[str, Any] = {}
        match number % 5:
            case 0:
                name, options = f"{number}.jpg", {"quality": 90}
                exif = Image.Exif()
                exif[0x0112] = number % 8 + 1
                options["exif"] = exif
            case 1:
                name, options = f"{number}.jpg", {"quality": 75, "progressive": True, "subsampling": "4:2:0"}
            case 2:
                name = f"{number}.png"
                alpha = Image.fromarray(rng.integers(0, 256, (3, 3), dtype=np.uint8)).resize(picture.size)
                picture.putalpha(alpha)
            case 3:
                name = f"{number}.png"
                picture = ImageOps.grayscale(picture) if number % 2 else picture.quantize(64)
            case _:
                name, options = f"{number}.webp", {"lossless": True}
        picture.save(folder / name, **options)
        paths.append(str(folder / name))
    return paths


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "drawn")


@pytest.fixture(scope="module")
def real() -> list[str]:
    """20 photographs; none where there are none."""
    folder = PHOTOGRAPHS / "coco18-dev" / "images" / "test-resized"
    return list_images(folder)[::7][:COUNT] if folder.is_dir() else []


@pytest.fixture(scope="module")
def checkpoint(drawn: list[str], real: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network, with thresholds, calibration and doubt that all pictures together have on both their sides."""
    model = make_random_model("test_resnet", num_classes=len(CLASSES))
    transform = augmentations.make_eval_transform("letterbox", (64, 96))
    images = torch.stack([predictor.read_image(path, transform) for path in [*drawn, *real]])
    with torch.no_grad():
        logits = model(images)
    spread = logits.std(dim=0)
    scale, bias = (0.2 / spread).tolist(), (-0.2 * logits.mean(dim=0) / spread).tolist()
    chosen_thresholds = choose_thresholds(logits.sigmoid())
    predicted = metrics.predict(logits.sigmoid().numpy(), chosen_thresholds)
    calibrated = torch.sigmoid(logits * torch.tensor(scale) + torch.tensor(bias))
    doubts = torch.from_numpy(thresholds.measure_doubt(calibrated.numpy(), predicted))[:, None]
    values = {
        "model_name": "test_resnet",
        "head": "linear_bn",
        "image_size": [64, 96],
        "resize_rule": "letterbox",
        "classes": list(CLASSES),
        "thresholds": chosen_thresholds,
        "best_threshold": 0.4,
        "best_f1": 0.5,
        "epoch": 3,
        "calibration": {"platt": {"scale": scale, "bias": bias}},
        "abstention": {"share": 0.5, "cut": choose_thresholds(doubts)[0]},
        "pretrained_licence": "cc-by-nc-4.0",
    }
    path = tmp_path_factory.mktemp("checkpoint") / "random.pt"
    checkpoints.save(path, {"model_state": model.state_dict()} | values)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, package: Path, drawn: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, made by the script, which has compared its model with the checkpoint's."""
    before, folder = dict(config.__dict__), tmp_path_factory.mktemp("exported")
    values = {
        "MODEL_PATH": checkpoint,
        "LOCAL_ROOT": folder,
        "CACHE_FOLDER": package.parent,
        "TEST_IMAGES_DIR": Path(drawn[0]).parent,
        "CALIBRATION": "platt",
        "EXPORT_FORMATS": "web",
        "EXPORT_FOLDER": folder,
    }
    try:
        export_onnx.main([f"--{name}={value}" for name, value in values.items()])
    finally:
        config.__dict__.clear()
        config.__dict__.update(before)
    return folder / "test_resnet_random_web"


class Host(SimpleHTTPRequestHandler):
    """A host of files: it sends `headers` with each, and notes what it is asked for."""

    asked: list[str]
    headers_of_all: dict[str, str]

    def end_headers(self) -> None:
        for name, value in self.headers_of_all.items():
            self.send_header(name, value)
        super().end_headers()

    def do_POST(self) -> None:
        self.send_error(405)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # the page was left while it loaded
            super().copyfile(source, outputfile)

    def log_message(self, format: str, *values: Any) -> None:
        self.asked.append(self.requestline)


@contextmanager
def serve(folder: Path, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(the address of `folder`, the requests so far)."""
    asked: list[str] = []
    handler = type("Handler", (Host,), {"asked": asked, "headers_of_all": headers or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def site(exported: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the page, under a sub-path, and the requests so far."""
    with serve(exported.parent) as (address, asked):
        yield f"{address}{exported.name}/", asked


@pytest.fixture
def page(browser: Browser, site: tuple[str, list[str]]) -> Browser:
    """The page, with the model loaded and without pictures."""
    if not browser.evaluate(f"location.href === {json.dumps(site[0])} && model !== null"):
        browser.events.clear()
        open_page(browser, site[0])
    browser.evaluate("[...pictures].forEach(drop)")
    return browser


def open_page(browser: Browser, address: str) -> None:
    browser.open(address)
    wait_until(lambda: browser.evaluate("model !== null || !document.querySelector('#failure').hidden"), 60)
    assert browser.evaluate("document.querySelector('#failure').textContent") == ""


def predict(page: Browser, paths: list[str]) -> list[dict[str, Any]]:
    """What the page shows of each picture: name, probabilities, labels, doubt."""
    page.drop(*map(Path, paths))
    wait_until(lambda: page.evaluate("pictures.size > 0 && !waiting.length && !running"), 60)
    return page.evaluate(
        """[...pictures].reverse().map(picture => ({
            name: picture.file.name,
            probabilities: picture.probabilities,
            doubt: !picture.doubt.hidden,
            error: picture.error.textContent,
            labels: [...picture.labels.children].map(label => label.textContent),
        }))"""
    )


def test_the_model_passed_its_comparison_and_says_what_it_is(exported: Path, package: Path) -> None:
    report = json.loads(exported.with_name(f"{exported.name}.json").read_text())
    assert (report["parity"], report["precision"]) == ("passed", "fp16")
    facts = json.loads((exported / "model.json").read_text())
    files = {"index.html", "model.json", "model.onnx", "README.md", web_folder.SCRIPT, f"{web_folder.WASM}.gz"}
    assert {file.name for file in exported.iterdir()} == files
    for file in (facts["model"], facts["runtime"]["script"], facts["runtime"]["wasm"]):
        assert (exported / file["address"].partition("?")[0]).stat().st_size == file["bytes"]
    assert "non-commercial" in facts["licence_text"]
    assert (facts["calibration"], facts["resize_rule"], facts["image_size"]) == ("platt", "letterbox", [64, 96])
    assert f"python -m http.server -d {exported.name}" in (exported / "README.md").read_text()


@pytest.mark.parametrize("kind", ["drawn", "real"])
def test_the_labels_of_20_pictures_are_the_predictors(
    page: Browser, checkpoint: Path, kind: str, drawn: list[str], real: list[str]
) -> None:
    paths = {"drawn": drawn, "real": real}[kind]
    if not paths:
        pytest.skip(NO_PHOTOGRAPHS)
    model = predictor.load(checkpoint, "cpu", calibration="platt")
    assert len({tuple(record.labels) for record in model.predict(paths)}) > 1
    shown = predict(page, paths)
    assert len(shown) == COUNT
    largest = compare(shown, model, paths)
    print(f"{kind}: the largest difference of a probability is {largest:.1e}")


def compare(shown: list[dict[str, Any]], model: Predictor, paths: list[str]) -> float:
    """The largest difference of a probability, if the page says of all pictures what the predictor says."""
    by_name = {one["name"]: one for one in shown}
    largest = 0.0
    for record in model.predict(paths):
        one = by_name[Path(record.path).name]
        assert one["error"] == ""
        differences = np.abs(record.probabilities - one["probabilities"])
        largest = max(largest, float(differences.max()))
        assert largest <= LIMIT, (record.path, largest)
        assert one["labels"] == [show(record.classes[label]) for label in record.ranked] or one["labels"] == [
            "no label"
        ]
        assert one["labels"] != ["no label"] or not record.labels
        assert one["doubt"] == record.abstains
    return largest


def show(name: str) -> str:
    return name.replace("\u202e", "\\u202e")


def test_the_model_gives_the_same_in_several_threads(
    browser: Browser, exported: Path, checkpoint: Path, drawn: list[str]
) -> None:
    with serve(exported, ISOLATION) as (address, _):
        open_page(browser, address)
        assert browser.evaluate("crossOriginIsolated")
        model = predictor.load(checkpoint, "cpu", calibration="platt")
        compare(predict(browser, drawn[:3]), model, drawn[:3])
        browser.open("about:blank")


def test_names_are_text_and_so_is_the_licence(page: Browser, drawn: list[str]) -> None:
    predict(page, drawn[:1])
    names = page.evaluate("[...document.querySelectorAll('#classes li')].map(name => name.textContent)")
    assert names == list(map(show, CLASSES))
    rows = page.evaluate("[...document.querySelectorAll('.scores th')].map(name => name.textContent)")
    assert sorted(rows) == sorted(map(show, CLASSES))
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 1, "the picture"
    assert "for non-commercial use only (cc-by-nc-4.0)" in page.evaluate("document.querySelector('footer').innerText")
    megabytes = page.evaluate("document.querySelector('#about').textContent").split(", ")[2]
    assert 3 < float(megabytes.removesuffix(" MB")) < 6
    assert page.evaluate("document.querySelector('#loading').hidden")
    assert not [event for event in page.events if event["method"] == "Runtime.exceptionThrown"]


def test_nothing_leaves_the_page(
    page: Browser, site: tuple[str, list[str]], exported: Path, drawn: list[str], tmp_path: Path
) -> None:
    """All that is asked for are the folder's files; a script on the page reaches no other server, nor does a worker."""
    address, asked = site
    predict(page, drawn[:2])
    sent = [event["params"]["request"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    assert {request["method"] for request in sent} == {"GET"}
    own = {f"{address}{file.name}" for file in exported.iterdir()} | {address}
    assert {request["url"].partition("?")[0] for request in sent if not request["url"].startswith("blob:")} <= own
    assert {line.split()[0] for line in asked} == {"GET"}
    with serve(tmp_path, {"Access-Control-Allow-Origin": "*"}) as (elsewhere, reached):
        tries = f"""(async () => {{
            const to = {json.dumps(elsewhere)}, blocked = [];
            addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            const code = `fetch("${{to}}worker").then(() => postMessage("reached"), () => postMessage("blocked"))`;
            const worker = new Worker(URL.createObjectURL(new Blob([code])));
            const inWorker = await new Promise((resolve) => {{ worker.onmessage = ({{data}}) => resolve(data); }});
            const inPage = await fetch(to + "page").then(() => "reached", () => "blocked");
            navigator.sendBeacon(to + "beacon", "x");
            const image = new Image();
            await new Promise((resolve) => {{
                image.onerror = image.onload = resolve;
                image.src = to + "image.png";
            }});
            try {{ new WebSocket(to.replace("http", "ws")); }} catch {{}}
            const form = document.body.appendChild(make("form", {{ method: "post", action: to + "form" }}));
            form.submit();
            document.body.append(make("iframe", {{ src: to + "frame" }}), make("script", {{ src: to + "script.js" }}));
            document.body.append(make("script", {{ textContent: "document.title = 'run'" }}));
            await new Promise((resolve) => setTimeout(resolve, 300));
            return {{ inWorker, inPage, blocked: [...new Set(blocked)].sort() }};
        }})()"""
        found = page.evaluate(tries)
        assert (found["inWorker"], found["inPage"], reached) == ("blocked", "blocked", [])
    expected = {"connect-src", "img-src", "form-action", "frame-src", "script-src-elem"}
    assert {*found["blocked"]} >= expected
    assert page.evaluate("document.title") != "run"
    assert page.evaluate("location.href") == address
    page.open("about:blank")


def test_the_runtime_comes_from_elsewhere_only_as_it_is_known(
    browser: Browser,
    exported: Path,
    package: Path,
    tmp_path: Path,
    drawn: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the package the page asks another server, for these files alone; one with a byte more is refused."""
    folder, other = tmp_path / "site", tmp_path / "other"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("ort*"))
    with tarfile.open(package) as archive:
        for name in web_folder.RUNTIME_FILES:
            archive.extract(f"package/dist/{name}", other, filter="data")
    with serve(other, {"Access-Control-Allow-Origin": "*"}) as (elsewhere, reached), serve(folder) as (address, _):
        monkeypatch.setattr(web_folder, "RUNTIME_ADDRESS", f"{elsewhere}package/dist/")
        facts = json.loads((folder / "model.json").read_text())
        for key, name in {"script": web_folder.SCRIPT, "wasm": web_folder.WASM}.items():
            facts["runtime"][key] = web_folder.locate_runtime({}, name)
        (folder / "model.json").write_text(json.dumps(facts))
        (folder / "index.html").write_text(web_folder.make_page(pages.render, facts))
        open_page(browser, address)
        assert predict(browser, drawn[:1])[0]["error"] == ""
        assert len(reached) == 2
        blocked = f"fetch('{elsewhere}package/x').then(() => 'reached', () => 'blocked')"
        assert browser.evaluate(blocked) == "blocked", "another path on that server"

        with (other / "package" / "dist" / web_folder.SCRIPT).open("a") as script:
            script.write(" ")
        browser.open("about:blank")
        browser.send("Network.setCacheDisabled", cacheDisabled=True)
        browser.open(address)
        wait_until(lambda: not browser.evaluate("find('failure').hidden"), 60)
        assert browser.evaluate("find('failure').textContent").startswith("the model does not load: ")
        browser.send("Network.setCacheDisabled", cacheDisabled=False)
        browser.open("about:blank")


def test_a_folder_without_its_model_says_so(browser: Browser, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "site", ignore=shutil.ignore_patterns("*.onnx"))
    with serve(tmp_path / "site") as (address, _):
        browser.open(address)
        wait_until(lambda: not browser.evaluate("document.querySelector('#failure').hidden"))
        failure = browser.evaluate("document.querySelector('#failure').textContent")
        assert failure.startswith("the model does not load: model.onnx?")
        assert failure.endswith(": status 404")
        browser.open("about:blank")


def test_a_page_from_a_disk_says_how_it_is_served(browser: Browser, exported: Path) -> None:
    browser.open((exported / "index.html").as_uri())
    wait_until(lambda: not browser.evaluate("document.querySelector('#failure').hidden"))
    assert "python -m http.server -d FOLDER" in browser.evaluate("document.querySelector('#failure').textContent")


def test_a_file_that_is_no_picture_says_so(page: Browser, tmp_path: Path, drawn: list[str]) -> None:
    (tmp_path / "a <b>.jpg").write_bytes(b"no image")
    broken, whole = predict(page, [str(tmp_path / "a <b>.jpg"), drawn[0]])
    assert broken["error"].startswith("cannot read a <b>.jpg: it is damaged, or of a kind that this browser")
    assert whole["error"] == ""
    assert len(whole["probabilities"]) == len(CLASSES)


def test_a_large_picture_is_scaled_down(page: Browser, tmp_path: Path) -> None:
    """16.8 million pixels of one colour give what a hundredth of them gives."""
    for name, (width, height) in {"large.png": (8200, 2050), "small.png": (820, 205)}.items():
        Image.new("RGB", (width, height), (30, 160, 90)).save(tmp_path / name, compress_level=1)
    large, small = predict(page, [str(tmp_path / name) for name in ("large.png", "small.png")])
    assert (large["error"], small["error"]) == ("", "")
    np.testing.assert_allclose(large["probabilities"], small["probabilities"], atol=1e-3)


CAMERA = """
navigator.mediaDevices.enumerateDevices = async () => [{ kind: "videoinput" }];
navigator.mediaDevices.getUserMedia = async () => {
  const canvas = document.createElement("canvas");
  canvas.width = 64; canvas.height = 48;
  const context = canvas.getContext("2d");
  setInterval(() => { context.fillStyle = "rgb(30 160 90)"; context.fillRect(0, 0, 64, 48); }, 20);
  window.stream = canvas.captureStream(30);
  return window.stream;
};
offerCamera();
"""


def test_the_camera_takes_a_picture(page: Browser) -> None:
    assert page.evaluate("document.querySelector('#camera').hidden"), "this machine has none"
    page.evaluate(CAMERA)
    wait_until(lambda: not page.evaluate("document.querySelector('#camera').hidden"))
    page.evaluate("document.querySelector('#camera').click()")
    wait_until(lambda: page.evaluate("document.querySelector('#viewfinder video').videoWidth") == 64)
    page.evaluate("document.querySelector('#shoot').click()")
    wait_until(lambda: page.evaluate("pictures.size") == 1)
    wait_until(lambda: page.evaluate("!waiting.length && !running"))
    assert page.evaluate("document.querySelector('h2').textContent") == "camera 1.jpg"
    assert page.evaluate("document.querySelector('article .error').textContent") == ""
    assert not page.evaluate("document.querySelector('#viewfinder').open")
    assert page.evaluate("stream.getTracks().every(track => track.readyState === 'ended')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_in_its_width(page: Browser, drawn: list[str], scheme: str) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=3, mobile=True)
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        predict(page, drawn[:2])
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        expected = {"light": palette.LIGHT, "dark": palette.DARK}[scheme]["page"]
        assert found == f"rgb{ImageColor.getrgb(expected)}"
    finally:
        page.send("Emulation.clearDeviceMetricsOverride")
        page.send("Emulation.setEmulatedMedia", features=[])
