"""export/litert_models.py: files of LiteRT give what the network does, and are opened as data."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import METADATA, compute_plain, draw_images, make_export, make_random_model
from torch import Tensor, nn

import models_factory
import predictor
from export import engines
from export.litert_models import save_litert
from models import batchnorm_folding
from utils import InputError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("litert_torch", "ai_edge_litert")),
        reason="LiteRT is not installed: pip install -r requirements-litert.txt",
    ),
]

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return batchnorm_folding.fold_batchnorm(make_random_model("test_resnet"), models_factory.make_example(64))


@pytest.fixture(scope="module")
def file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    save_litert(make_export(network), path)
    return path


def test_a_file_gives_the_networks_probabilities(file: Path, network: nn.Module) -> None:
    """Of several images, too, which it takes one by one."""
    model = predictor.load(file, "cpu")
    expected = compute_plain(network, draw_images(5)).sigmoid().numpy()
    np.testing.assert_allclose(model.compute(draw_images(5)), expected, rtol=0, atol=1e-5)
    assert model.classes == tuple("abcde")
    with pytest.raises(InputError, match=r"takes images of 64 x 64 px only|takes images of 64 px only"):
        predictor.load(file, "cpu", scales=(1.0, 1.5))


def test_a_file_says_what_it_is(file: Path) -> None:
    assert engines.recognise(file) == "litert"
    assert engines.open_litert(file, CPU).metadata == METADATA | {"precision": "fp32", "dynamic": []}
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read("multilabel.json"))["classes"] == list("abcde")
    assert list(file.parent.iterdir()) == [file]


def test_damage_is_one_line(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    content = file.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"^(cannot open [^\n]* as LiteRT: it is damaged|[^\n]* does not say)[^\n]*$"):
        predictor.load(path, "cpu")
    changed = bytearray(content)
    changed[content.rindex(b"test_resnet")] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"does not say its classes and image size"):
        predictor.load(path, "cpu")


def test_what_it_does_not_take_is_one_line(tmp_path: Path) -> None:
    class Eigenvalues(nn.Module):
        """An operator that its converter lacks."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.linalg.eigvals(images.float().mean(dim=1)).real

    with pytest.raises(InputError, match=r"^LiteRT cannot express this network: [^\n]+; another of EXPORT_FORMATS may"):
        save_litert(make_export(Eigenvalues().eval()), tmp_path / "model.tflite")
    with pytest.raises(InputError, match=r"^LiteRT takes one size only: leave size out of EXPORT_DYNAMIC$"):
        save_litert(make_export(Eigenvalues().eval(), ("batch", "size")), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []
