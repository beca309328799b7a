"""models/published_weights.py: files named inside as ASL's and ML-Decoder's are, from a server of the test's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from file_server import Server
from random_models import compute_plain, draw_images, make_random_model
from timm.models import build_model_with_cfg, register_model
from torch import Tensor

import models_factory
import predictor
from dataset import downloads
from dataset.files import hash_file
from models import checkpoints, licences, published_weights
from models.published_weights import PUBLISHED, PublishedWeights, choose_weights, find_weights
from models_factory import MultiLabelModel
from utils import InputError

CLASSES = [f"class {number}" for number in range(5)]
NAMES = {"linear": "coco80_asl_tresnet_l", "ml_decoder": "open_images9605_ml_decoder_tresnet_m"}
GROUPS = 2  # of ML-Decoder's queries, for five classes


@register_model
def tresnet_of_a_test(pretrained: bool = False, **options: Any) -> Any:
    """A narrow TResNet of two blocks a layer, with all kinds of names that the published ones have."""
    small = {"layers": [2, 2, 2, 2], "width_factor": 0.25}
    return build_model_with_cfg(timm.models.TResNet, "tresnet_m", pretrained, **small, **options)


def make_tresnet(head: str) -> MultiLabelModel:
    model = make_random_model("tresnet_of_a_test", head, 5, **({"num_groups": GROUPS} if head == "ml_decoder" else {}))
    model.mean.zero_()
    model.std.fill_(255)
    return model


def name_in_backbone(key: str) -> str:
    """A name of timm's TResNet as the published code has it: Sequential(conv, InPlaceABN) in place of named children.

    A convolution of stride 2 is followed by blurring, in one more Sequential; a shortcut of stride 2 begins with
    pooling in both.
    """
    key = re.sub(r"downsample\.(\d)\.(conv|bn)", lambda found: f"downsample.{found[1]}.{int(found[2] == 'bn')}", key)
    inner = "0." if re.match(r"body\.(layer2\.0\.conv1|layer[34]\.0\.conv2)\.", key) else ""
    return re.sub(r"(conv\d)\.(conv|bn)\.", lambda found: f"{found[1]}.{inner}{int(found[2] == 'bn')}.", key)


def make_published_state(model: MultiLabelModel, head: str) -> dict[str, Tensor]:
    """The state dict of the published code for the same network: InPlace-ABN's weights may have either sign."""
    state: dict[str, Tensor] = {}
    for number, (key, value) in enumerate(model.backbone.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        name = name_in_backbone(key.removeprefix("network."))
        if key.endswith("bn.weight"):
            value = (value - 1e-5) * (-1) ** number
        state[name] = value.clone()
    own = model.head.state_dict()
    if head == "linear":
        return state | {"head.fc.weight": own["weight"], "head.fc.bias": own["bias"]}
    layer = "head.decoder.layers.0."
    for key, value in own.items():
        if key == "queries":
            state["head.decoder.query_embed.weight"] = value
        elif key == "weight":
            state["head.decoder.duplicate_pooling"] = value.transpose(1, 2)
        elif key == "bias":
            state["head.decoder.duplicate_pooling_bias"] = value
        elif key.startswith("embed."):
            state[key.replace("embed.", "head.decoder.embed_standart.")] = value
        elif key.startswith("attention."):
            state[key.replace("attention.", f"{layer}multihead_attn.")] = value
        elif key.startswith("feed_forward."):
            state[key.replace("feed_forward.0", f"{layer}linear1").replace("feed_forward.3", f"{layer}linear2")] = value
        else:
            state[layer + key] = value
    return state


def write_published(path: Path, model: MultiLabelModel, head: str, /, **changes: Any) -> Path:
    content = {
        "model": make_published_state(model, head),
        "num_classes": 5,
        "idx_to_class": dict(enumerate(CLASSES)),
        "epoch": 40,
    }
    torch.save(content | changes, path)
    return path


@pytest.fixture(params=["linear", "ml_decoder"])
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "FIRST_WAIT_SECONDS", 0.0)
    server = Server()
    yield server
    server.close()


def enter(monkeypatch: pytest.MonkeyPatch, head: str, server: Server | None = None, **changes: Any) -> PublishedWeights:
    """The entry of `head` in PUBLISHED, for a small network of the test's own, from `server`."""
    small = {"model_name": "tresnet_of_a_test", "num_classes": 5, "image_size": 64} | changes
    if server:
        small["url"] = f"{server.url}/{PUBLISHED[NAMES[head]].file_name}"
    entry = PUBLISHED[NAMES[head]]._replace(**small)
    monkeypatch.setitem(PUBLISHED, NAMES[head], entry)
    return entry


def test_a_published_file_is_downloaded_once_and_computes_the_same(
    head: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tresnet(head)
    published = write_published(tmp_path / "published.pth", model, head)
    entry = enter(monkeypatch, head, server)
    server.files[entry.file_name] = published.read_bytes()
    server.break_after = [100_000]  # the rest is asked for, not the whole again

    path = find_weights(NAMES[head], tmp_path / "weights")
    assert [start for _, start, _ in server.requests] == [None, "bytes=100000-"]
    expected = f"{tmp_path / 'weights' / entry.file_name}: SHA-256 {hash_file(published)}; none was published"
    assert expected in capsys.readouterr().out
    images = draw_images(4)
    restored = models_factory.restore_model(checkpoints.load(path), path).eval()
    torch.testing.assert_close(compute_plain(restored, images), compute_plain(model, images), rtol=0, atol=2e-5)
    assert compute_plain(model, images).std(dim=0).min() > 1e-3, "images differ"

    opened = predictor.load(path, "cpu")
    assert opened.classes == tuple(CLASSES)
    assert licences.find_licence(opened.metadata) == "mit"
    np.testing.assert_allclose(
        opened.compute(images), compute_plain(model, images).sigmoid().numpy(), rtol=0, atol=2e-5
    )
    server.requests.clear()
    assert find_weights(NAMES[head], tmp_path / "weights") == path
    assert not server.requests


def test_a_name_fills_backbone_and_head(
    head: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head class by class, in the order of one's own classes."""
    model = make_tresnet(head)
    entry = enter(monkeypatch, head, server)
    server.files[entry.file_name] = write_published(tmp_path / "published.pth", model, head).read_bytes()
    classes = CLASSES[::-1] if head == "linear" else CLASSES
    own = models_factory.make_model(
        "tresnet_of_a_test",
        5,
        head,
        NAMES[head],
        64,
        tmp_path,
        {"num_groups": GROUPS} if head == "ml_decoder" else {},
        classes,
    ).eval()
    assert own.loaded is not None
    assert own.loaded.head == "the head is taken over for 5 of 5 classes"
    assert own.loaded.licence == "mit"
    expected = compute_plain(model, draw_images(2))
    expected = expected.flip(1) if head == "linear" else expected
    torch.testing.assert_close(compute_plain(own, draw_images(2)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_file_of_another_hash_is_not_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_there: bool
) -> None:
    right = write_published(tmp_path / "published.pth", make_tresnet("linear"), "linear")
    entry = enter(monkeypatch, "linear", server, sha256=hash_file(right))
    server.files[entry.file_name] = b"another file"
    if was_there:
        (tmp_path / entry.file_name).write_bytes(b"another file")
    expected = "is not the file that was published as" if was_there else r"is not the file that was published: .*put"
    with pytest.raises(InputError, match=expected):
        find_weights(NAMES["linear"], tmp_path)
    assert not (tmp_path / f"{NAMES['linear']}.pt").exists()
    assert (tmp_path / entry.file_name).exists() == was_there, "one that somebody put there stays"
    (tmp_path / entry.file_name).unlink(missing_ok=True)
    server.files[entry.file_name] = right.read_bytes()
    assert find_weights(NAMES["linear"], tmp_path).is_file()


def test_without_the_server_it_is_said_where_the_file_goes_and_what_lies_there_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = enter(monkeypatch, "linear", server)
    server.status = 403
    with pytest.raises(InputError, match=rf"403.*put that file at {tmp_path / entry.file_name}, or see https://"):
        find_weights(NAMES["linear"], tmp_path)
    write_published(tmp_path / entry.file_name, make_tresnet("linear"), "linear")
    server.requests.clear()
    assert find_weights(NAMES["linear"], tmp_path).is_file()
    assert not server.requests


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("harmed", "w")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"idx_to_class": None}, "does not hold `model` and `idx_to_class`"),
        ({"idx_to_class": {0: "a", 1: "b"}}, "names 2 classes, expected 5"),
        ({"idx_to_class": dict.fromkeys(range(5), "a")}, "names 5 classes, expected 5 names, each once"),
        ({"args": Harmful()}, r"holds Python objects \(io\.open\)"),
        ({"drop": "head.fc.bias"}, "its head lacks `head.fc.bias`"),
        ({"add": "head.fc.0.weight"}, "its head has `head.fc.0.weight`"),
        ({"drop": "body.layer1.0.conv1.0.weight"}, r"lacks 1 tensors of tresnet_of_a_test, as body\.layer1"),
        ({"resize": "head.fc.weight"}, "the head's weight is of 4 classes, expected 5"),
    ],
)
def test_another_content_is_one_line_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    enter(monkeypatch, "linear")
    model = make_tresnet("linear")
    state = make_published_state(model, "linear")
    if key := changes.pop("drop", None):
        del state[key]
    if key := changes.pop("add", None):
        state[key] = torch.zeros(3)
    if key := changes.pop("resize", None):
        state[key] = state[key][:4]
    write_published(tmp_path / PUBLISHED[NAMES["linear"]].file_name, model, "linear", model=state, **changes)
    with pytest.raises(InputError, match=expected):
        find_weights(NAMES["linear"], tmp_path)
    assert not (tmp_path / f"{NAMES['linear']}.pt").exists()
    assert not (tmp_path / "harmed").exists()


def test_an_unknown_name_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file; the nearest name is coco80_asl_tresnet_l "):
        choose_weights("coco80_asl_tresnetl", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for weights in ("some.pth", "folder/file", "./file"):
        Path(weights).write_bytes(b"")
    for weights in ("default", "some.pth", "folder/file", "./file"):
        assert choose_weights(weights, None) == weights
    for weights in ("Default", "resnet18.a1_in1kk", "timm/resnet18", "hf-hub:timm/resnet18", "/nonexistent.pth"):
        with pytest.raises(InputError, match=r"no weights '[^']+', and no such file; .* default, those that were publ"):
            choose_weights(weights, None)
    with pytest.raises(InputError, match="the nearest name is default "):
        choose_weights("Default", None)
    (tmp_path / "coco80_asl_tresnet_l").write_bytes(b"")
    with pytest.raises(InputError, match="of published weights, and of a file here"):
        choose_weights("coco80_asl_tresnet_l", tmp_path)


def test_every_entry_says_what_there_is_to_know() -> None:
    names = models_factory.list_names()
    page = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for name, entry in PUBLISHED.items():
        row = f"| `{name}` | `{entry.model_name}` | `{entry.head}` | {entry.image_size} |"
        assert row in page
        assert f"{100 * entry.mean_ap:.1f} |\n" in page[page.index(row) :]
        assert entry.model_name in names
        assert entry.head in published_weights.CONVERTERS
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert re.fullmatch(r"https://\S+\.pth", entry.url)
        assert 0.5 < entry.mean_ap < 1, name
        assert str(entry.num_classes) in name
        assert licences.explain_licence(entry.licence).startswith("The pretrained weights stand under mit")
