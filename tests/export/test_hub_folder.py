"""Folders in the layout of Hugging Face's hub: written, opened by timm and by predictor.load, and from a small hub."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import make_small_run
from fastapi.testclient import TestClient
from PIL import Image
from random_models import compute_plain, draw_images, make_random_model
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import _hub as timm_hub
from torch import Tensor

import config
import models_factory
import predictor
import serving
import testing
from dataset.files import hash_file
from dataset_readers import read_dataset
from evaluation import export_parity, hub_card
from export import engines, hub_folder, model_files
from export.model_files import Export
from models import checkpoints, hub_folders
from models.hub_folders import locate
from server.application import Service, look_at, make_app
from server.request_queue import BatchQueue
from utils import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["cat", "dog, wolf", "=fox", "größer", "no"]


def write_checkpoint(path: Path, name: str, head: str, **values: Any) -> Path:
    options = values.pop("options", {})
    model = make_random_model(name, head, len(CLASSES), **options)
    about = {
        "model_state": model.state_dict(),
        "model_name": name,
        "head": head,
        "head_options": options,
        "classes": CLASSES,
        "image_size": 64,
        "resize_rule": "squash",
        "thresholds": [0.1, 0.3, 0.5, 0.7, 0.9],
        "best_threshold": 0.4,
        "calibration": {"platt": {"scale": [1.5] * 5, "bias": [0.5] * 5}},
        "pretrained_licence": "dinov3-license",
        "metrics": {"mAP": 0.5, "OF1": float("nan")},
    }
    checkpoints.save(path, about | values)
    return path


def export(checkpoint: Path, folder: Path, **metadata: Any) -> Path:
    """The folder as export_onnx.py makes it."""
    values = checkpoints.load(checkpoint)
    source = Export(
        network=torch.nn.Identity(),
        metadata={"config": {}, "checkpoint_sha256": hash_file(checkpoint), "exported_by": "torch"} | metadata,
        read_image=lambda path: torch.zeros(3, 1, 1),
        checkpoint=checkpoint,
        make_card=partial(hub_card.make_card, values, checkpoint, folder),
    )
    hub_folder.save_hub(source, folder)
    return folder


def open_with_timm(folder: Path, images: Tensor) -> Tensor:
    """The logits that somebody without this project gets: images normalised by what config.json says."""
    network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    return compute_plain(network, (images / 255 - mean) / std)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    return export(write_checkpoint(root / "model.pt", "test_resnet", "linear_bn"), root / "model_hub")


TIMMS = [("test_resnet", "linear_bn"), ("test_vit", "linear"), ("test_efficientnet", "linear")]


@pytest.mark.parametrize(("name", "head"), TIMMS)
def test_timm_opens_it_with_equal_logits(name: str, head: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.pt", name, head)
    found = export(checkpoint, tmp_path / "model_hub")
    images = draw_images(6)
    expected = compute_plain(make_random_model(name, head, len(CLASSES)), images)
    assert expected.std(dim=0).min() > 1e-3, "images differ"
    torch.testing.assert_close(open_with_timm(found, images), expected, rtol=1e-5, atol=1e-5)
    network: Any = timm.create_model(f"local-dir:{found}", pretrained=True)
    assert network.pretrained_cfg["label_names"] == CLASSES
    data = resolve_model_data_config(network)
    assert (*data["input_size"], data["crop_pct"], data["crop_mode"]) == (3, 64, 64, 1.0, "squash")

    opened = predictor.load(found, "cpu")
    np.testing.assert_allclose(opened.compute(images), expected.sigmoid().numpy(), rtol=0, atol=1e-6)
    assert (opened.classes, opened.thresholds.tolist()) == (
        tuple(CLASSES),
        np.float32([0.1, 0.3, 0.5, 0.7, 0.9]).tolist(),
    )
    own, folded = checkpoints.load(checkpoint), checkpoints.load(found)
    for key, value in own["model_state"].items():
        if not key.startswith("head."):
            assert torch.equal(folded["model_state"][key], value), key
    for key in own.keys() - {"model_state", "head", "head_options"}:
        assert str(folded[key]) == str(own[key]), key  # NaN is not equal to itself


OTHERS = [
    ("resnet18", "linear", {}, "resnet18 is a network of torchvision"),
    ("test_resnet", "ml_decoder", {}, "the head ml_decoder is none of timm's, which are linear"),
    ("test_resnet", "gcn", {}, "the head gcn is none of timm's"),
    ("test_resnet", "cosine", {}, "the head cosine is none of timm's"),
]


@pytest.mark.parametrize(("name", "head", "options", "reason"), OTHERS)
def test_what_timm_cannot_compute_it_refuses_and_predictor_opens(
    name: str, head: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = export(write_checkpoint(tmp_path / "model.pt", name, head, options=options), tmp_path / "model_hub")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{found}", pretrained=True)
    card = (found / "README.md").read_text()
    assert f"timm alone does not open it: {reason}" in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "pytorch"
    images = draw_images(3)
    expected = compute_plain(make_random_model(name, head, len(CLASSES), **options), images).sigmoid().numpy()
    np.testing.assert_allclose(predictor.load(found, "cpu").compute(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "features", "is_timms"), [("test_resnet", "mean_and_max", True), ("test_vit", "class_and_mean", False)]
)
def test_features_are_timms_where_it_has_such_a_pooling(
    name: str, features: str, is_timms: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = models_factory.make_model(name, 5, "linear", image_size=64, features=features)
    path = tmp_path / "model.pt"
    write_checkpoint(path, name, "linear", model_state=model.state_dict(), features=features)
    found = export(path, tmp_path / "model_hub")
    expected = compute_plain(model.eval(), draw_images(2))
    if is_timms:
        torch.testing.assert_close(open_with_timm(found, draw_images(2)), expected, rtol=1e-5, atol=1e-5)
    else:
        assert f"FEATURES {features} are no pooling that timm has" in (found / "README.md").read_text()
        with pytest.raises(RuntimeError, match="Unknown model"):
            timm.create_model(f"local-dir:{found}", pretrained=True)
    opened = predictor.load(found, "cpu").compute(draw_images(2))
    np.testing.assert_allclose(opened, expected.sigmoid().numpy(), rtol=0, atol=1e-6)


def test_where_timm_computes_something_else_its_names_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hub_folder.fold_head

    def fold_wrongly(head: torch.nn.Module, name: str) -> torch.nn.Linear:
        linear = real(head, name)
        linear.bias.data += 0.01
        return linear

    monkeypatch.setattr(hub_folder, "fold_head", fold_wrongly)
    found = export(write_checkpoint(tmp_path / "model.pt", "test_resnet", "linear_bn"), tmp_path / "model_hub")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{found}", pretrained=True)
    assert "its test_resnet gives logits that differ by 0.0" in (found / "README.md").read_text()


def test_the_comparison_opens_it_with_timm(folder: Path, tmp_path: Path) -> None:
    """A folder whose tensors were changed by somebody, all hashes with them, so that the two openings differ."""
    paths = []
    for number, image in enumerate(draw_images(3)):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    reference = export_parity.make_reference(folder.with_name("model.pt"), paths, None, "platt")
    report = export_parity.compare(folder, reference, "platt", folder / ".")
    assert (report["parity"], report["problems"]) == ("passed", [])
    assert report["max_difference_timm"] < 1e-5

    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (broken / "config.json").write_text(json.dumps(config))
    report = export_parity.compare(broken, reference, "platt", broken)
    assert report["parity"] == "failed"
    assert any("timm alone gives probabilities that differ by" in problem for problem in report["problems"])


# ---- the files beside the tensors ----


def test_all_files_may_be_read_by_the_same_people(folder: Path) -> None:
    """safetensors writes files that their owner alone may read, and a server of files runs as somebody else."""
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes == dict.fromkeys(modes, modes["config.json"])


def test_tags_and_card_say_what_the_model_is(folder: Path) -> None:
    lines = (folder / "selected_tags.csv").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "tag_id,name,category,count",
        "0,cat,0,0",
        '1,"dog, wolf",0,0',
        "2,=fox,0,0",
        "3,größer,0,0",
        "4,no,0,0",
    ]
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "other",
        "license_name": "dinov3-license",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "multi-label", "timm", "test_resnet"],
    }
    assert "It was not tested: the numbers below are of its validation images" in body
    assert "| mAP | 0.500 |" in body
    assert "OF1" not in body
    assert "| dog, wolf | 0.300 |" in body
    assert "By timm alone:" in body
    assert "by up to 0.012 in a probability, and one got other labels" in body
    huggingface_hub.ModelCard.load(folder / "README.md")


def test_the_card_of_a_tested_run_keeps_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_checkpoint(tmp_path / "model.pt", "test_resnet", "linear")
    head = "license: mit\nlibrary_name: pytorch\nmetrics:\n- f1\nmodel-index:\n- name: x\n"
    tested = f"---\n{head}---\n\n# Title\n\nWords.\n\n## Results\n\n| a |\n"
    monkeypatch.setattr(hub_card, "find_tested_card", lambda *arguments: tested)
    _, head, body = (export(checkpoint, tmp_path / "model_hub") / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(head)
    assert (found["license_name"], found["library_name"]) == ("dinov3-license", "timm")
    assert (found["metrics"], found["model-index"]) == (["f1"], [{"name": "x"}])
    assert body.index("# Title") < body.index("Words.") < body.index("## How it is opened") < body.index("## Results")
    assert body.rstrip().endswith("| a |")


# ---- what is refused ----


def test_a_folder_that_changed_or_lacks_something_is_one_line(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        InputError, match=r"model\.safetensors has changed since multilabel\.json beside it was written"
    ):
        predictor.load(copy)
    torch.save(load_file(folder / "model.safetensors"), weights)
    metadata = json.loads((copy / "multilabel.json").read_text()) | {"weights_sha256": hash_file(weights)}
    (copy / "multilabel.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=r"model\.safetensors is not safetensors, whatever its name says"):
        predictor.load(copy)
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"has no model\.safetensors, and pytorch_model\.bin is a pickle, which is not"
    ):
        predictor.load(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"copy has no model\.safetensors$"):
        engines.recognise(copy)
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match="there is no model"):
        predictor.load(copy)


def test_marks_and_reports_of_the_export_count(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy_hub")
    model_files.mark_path(copy).write_text("")
    with pytest.raises(InputError, match=r"did not pass its comparison.* delete copy_hub\.FAILED"):
        predictor.load(copy)
    model_files.mark_path(copy).write_text(model_files.NOT_COMPARED)
    with pytest.raises(InputError, match=r"was not compared with the checkpoint, since its export was interrupted"):
        predictor.load(copy)
    predictor.load(copy, allow_failed=True)
    model_files.mark_path(copy).unlink()
    model_files.report_path(copy).write_text(json.dumps({"sha256": model_files.hash_files(copy)}))
    (copy / "README.md").write_text("other words")
    assert predictor.load(copy).path == copy / "model.safetensors"
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with pytest.raises(InputError, match=r"copy_hub has changed since copy_hub\.json was written"):
        predictor.load(copy)


def test_it_is_opened_as_checkpoints_are(folder: Path, tmp_path: Path) -> None:
    assert engines.recognise(folder) == engines.recognise(folder / "model.safetensors") == "checkpoint"
    calibrated = predictor.load(folder, "cpu", calibration="platt")
    assert calibrated.calibration == "platt"
    with pytest.raises(InputError, match="name cache_folder"):
        predictor.load(folder, engine="onnxruntime")


# ---- folders of others ----


NO_MAPS = "There are no maps: timm resizes the images of this model, which is not undone here."


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_others(tmp_path_factory.mktemp("others") / "tagger", 5)


def save_others(path: Path, num_classes: int) -> Path:
    """A tagger as timm itself writes it, 48 x 48 pixels, with a random head."""
    torch.manual_seed(0)
    network: Any = timm.create_model(
        "test_vit", num_classes=num_classes, img_size=48, global_pool="avg", class_token=False
    )
    torch.nn.init.normal_(network.get_classifier().weight)
    data = {
        "input_size": (3, 48, 48),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.4,) * 3,
        "std": (0.3,) * 3,
    }
    timm_hub.save_for_hf(network, path, data_config=data, safe_serialization=True)
    return path


def write_tags(folder: Path, names: list[str] = CLASSES) -> None:
    lines = ["tag_id,name,category,count", *(f'{9 + n},"{name}",0,{100 * n}' for n, name in enumerate(names))]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def compute_with_timm(folder: Path, image: Image.Image) -> Tensor:
    """The logits (C,) that timm alone gives."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(network))
    return compute_plain(network, transform(image)[None])[0]


@pytest.mark.parametrize("is_tagger", [True, False])
def test_what_timm_wrote_gives_what_timm_gives(
    others: Path, tmp_path: Path, is_tagger: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(others, tmp_path / "folder")
    if is_tagger:
        write_tags(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    image = image.resize((240, 160), Image.Resampling.BICUBIC)
    logits = compute_with_timm(folder, image)
    expected = logits.sigmoid() if is_tagger else logits.softmax(0)

    model = predictor.load(folder, "cpu")
    record = next(model.predict(image))
    np.testing.assert_allclose(record.probabilities, expected.numpy(), rtol=0, atol=1e-5)
    assert model.classes == (tuple(CLASSES) if is_tagger else ("0", "1", "2", "3", "4"))
    assert record.labels == ([*np.flatnonzero(expected >= 0.5)] if is_tagger else [int(expected.argmax())])
    kind = "any number of labels an image" if is_tagger else "one label an image, since there is no selected_tags.csv"
    assert f"test_vit, {kind}" in capsys.readouterr().out


def test_the_server_serves_it_without_maps(others: Path) -> None:
    config.MODEL_PATH, config.DEVICE = others, "cpu"
    model, engine = serving.load_model()
    service = Service(model, engine, BatchQueue(partial(look_at, model), 4, 0.002, 8), max_pixels=1_000_000)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    content = io.BytesIO()
    image.save(content, "PNG")
    files = {"files": ("a.png", content.getvalue())}
    with TestClient(make_app(service, max_bytes=1_000_000), raise_server_exceptions=False) as client:
        assert client.get("/health").json()["maps"] is False
        (answer,) = client.post("/predict", files=files).raise_for_status().json()["predictions"]
        refused = client.post("/map", files=files, data={"label": "0"})
    expected = compute_with_timm(others, image).softmax(0).numpy()
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=0, atol=1e-5)
    assert (refused.status_code, refused.json()["errorMsg"]) == (409, NO_MAPS)


def test_a_labelled_test_of_it_writes_its_report_without_maps(shared_dataset: Path, tmp_path: Path) -> None:
    """All classes are said of all images, so that there are mistakes to show."""
    folder = save_others(tmp_path / "tagger", 3)
    write_tags(folder, ["red", "green", "blue"])
    arguments = [f"--MODEL_PATH={folder}", "--TH_MULTI_LABEL=0", "--BOOTSTRAP_SAMPLES=0"]
    testing.main([*make_small_run(shared_dataset, tmp_path), *arguments])
    result = json.loads((tmp_path / "predictions" / "evaluate_result.json").read_text())
    targets = read_dataset(shared_dataset, split="test").targets
    assert (result["num_images"], result["metrics"]["OR"]) == (12, 1)
    assert result["metrics"]["OP"] == pytest.approx(targets.mean())
    page = (tmp_path / "predictions" / "report.html").read_text(encoding="utf-8")
    assert NO_MAPS in page
    assert "data:image/jpeg;base64," in page, "photographs of mistakes"
    assert "Grad-CAM" not in page


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(architecture="resnet_of_tomorrow"), "has no network 'resnet_of_tomorrow'"),
        (lambda c: c.pop("architecture"), "is not of timm: it names no architecture"),
        (lambda c: c["model_args"].update(checkpoint_path="/etc/passwd"), "expected options of test_vit alone"),
        (lambda c: c.update(model_args=[1]), "expected names and values"),
        (lambda c: c["model_args"].update(embed_dim=1_000_000), "not its own"),
        (lambda c: c["model_args"].update(depth=7), "does not fit test_vit"),
        (lambda c: c["model_args"].update(no_such_option=7), "does not fit test_vit"),
        (lambda c: c.update(num_classes=0), "num_classes is 0: it gives features"),
        (lambda c: c["pretrained_cfg"].update(input_size=[1, 48, 48]), "input_size is .*expected 3 channels"),
        (lambda c: c["pretrained_cfg"].update(crop_mode="artistic"), "not by 'artistic'"),
        (lambda c: c["pretrained_cfg"].update(std=[0, 0, 0]), "std must be three numbers"),
        (lambda c: c.update(label_names=["a", "b"]), "names 2 classes, and its network has 5"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(
    others: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    folder = shutil.copytree(others, tmp_path / "folder")
    change_config(folder, change)
    with pytest.raises(InputError, match=expected):
        predictor.load(folder)


def test_tags_of_another_model_are_one_line(others: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(others, tmp_path / "folder")
    write_tags(folder, CLASSES[:4])
    with pytest.raises(InputError, match="names 4 classes, and its network has 5"):
        predictor.load(folder)
    (folder / "selected_tags.csv").write_text("tag_id,tag\n0,a\n")
    with pytest.raises(InputError, match=r"selected_tags\.csv:1: the column 'name' stands 0 times"):
        predictor.load(folder)


# ---- the hub ----


class Hub:
    """A hub that holds `folders`, by OWNER/NAME, each of one commit."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.requests: list[tuple[str, str]] = []  # method and path
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, sends=False)

            def do_GET(self) -> None:
                hub.answer(self, sends=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, sends: bool) -> None:
        self.requests.append((handler.command, handler.path))
        repository, _, rest = handler.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        folder = self.folders.get(repository)
        error = "RepoNotFound" if folder is None else "RevisionNotFound"
        if folder is not None and revision in ("main", self.COMMIT):
            error = "" if (folder / name).is_file() else "EntryNotFound"
        handler.send_response(404 if error else 200)
        if error:
            handler.send_header("X-Error-Code", error)
        handler.send_header("X-Repo-Commit", self.COMMIT)
        data = b"" if error or folder is None else (folder / name).read_bytes()
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("ETag", f'"{hash(data)}"')
        handler.end_headers()
        if sends:
            handler.wfile.write(data)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    hub_folders._download.cache_clear()
    yield hub
    hub.close()
    hub_folders._download.cache_clear()


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_downloaded_once_and_opened(
    hub: Hub, folder: Path, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.folders["owner/name"] = folder
    address = kind("hf-hub:owner/name")
    model = predictor.load(address, "cpu")
    images = draw_images(2)
    assert np.array_equal(model.compute(images), predictor.load(folder, "cpu").compute(images))
    assert model.thresholds.tolist() == np.float32([0.1, 0.3, 0.5, 0.7, 0.9]).tolist()
    got = [path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert got == ["config.json", "multilabel.json", "selected_tags.csv", "model.safetensors"]
    assert checkpoints.load(address)["classes"] == CLASSES
    assert engines.recognise(address) == "checkpoint"

    hub_folders._download.cache_clear()  # as in another process, without a network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert locate(address) == model.path
    assert len(hub.requests) == count


def test_a_tagger_of_others_is_opened_at_its_address(hub: Hub, others: Path, tmp_path: Path) -> None:
    hub.folders["smiling/tagger"] = shutil.copytree(others, tmp_path / "tagger")
    write_tags(hub.folders["smiling/tagger"])
    model = predictor.load("hf-hub:smiling/tagger@main", "cpu")
    assert model.classes == tuple(CLASSES)
    assert (model.min_labels, model.max_labels) == (0, 0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf-hub:owner/other", "there is none, or it is private: hf auth login"),
        ("hf-hub:owner/name@v9", "there is no revision 'v9' of it"),
        ("hf-hub:a/b/c", "is no address of a model: hf-hub:OWNER/NAME"),
        ("hf-hub:owner/pickle", r"has no model\.safetensors, and what else may hold its weights is a pickle"),
        ("hf-hub:owner/empty", r"has no config\.json: it is no model in the layout of timm"),
    ],
)
def test_an_address_without_a_model_is_one_line(
    hub: Hub, folder: Path, tmp_path: Path, address: str, expected: str
) -> None:
    hub.folders |= {"owner/name": folder, "owner/pickle": tmp_path / "pickle", "owner/empty": tmp_path / "empty"}
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"PK")
    (tmp_path / "pickle" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=expected):
        predictor.load(address)
    assert not any("pytorch_model" in path for _, path in hub.requests)


@pytest.mark.parametrize("is_offline", [True, False])
def test_without_a_network_it_is_one_line(hub: Hub, is_offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its client's attempts
    if is_offline:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(InputError, match="cannot open hf-hub:owner/name: the hub cannot be reached"):
        predictor.load("hf-hub:owner/name")
    assert not hub.requests


def test_safetensors_of_fp16_are_opened(others: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(others, tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value.half() for key, value in tensors.items()}, folder / "model.safetensors")
    images = torch.randint(0, 256, (2, 3, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    half, whole = (predictor.load(path, "cpu").compute(images) for path in (folder, others))
    np.testing.assert_allclose(half, whole, rtol=0, atol=0.02)
    assert not np.array_equal(half, whole)
