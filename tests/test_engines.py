"""engines.py: each engine gives the plain model's logits; files are made once, for one checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import engines
import models_factory
from engines import ENGINES, Source
from models_factory import MultiLabelModel
from utils import InputError

# BatchNorm after a concatenation or before an activation has nothing to be folded into:
# 58 dense layers' norm1, 3 transitions, norm5
LEFT = {"densenet121": 62}


def make_random_model(name: str) -> MultiLabelModel:
    """Random weights and, unlike those of a new network, random BatchNorm statistics and scales."""
    torch.manual_seed(0)
    model = models_factory.make_model(name, 5, image_size=64)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(tensor, low, high)
    return model.eval()


def draw_images(count: int) -> Tensor:
    """Patches of colour, uint8 (count, 3, 64, 64): they differ more between images than noise does."""
    patches = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return patches.repeat_interleave(16, 2).repeat_interleave(16, 3)


def compute_plain(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def count_batchnorm(module: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in module.modules())


def require_packages(name: str) -> None:
    packages = {"torch": [], "onnxruntime": ["onnxruntime"], "openvino": ["openvino", "nncf"]}[name]
    for package in [*packages, *(["onnx", "onnxscript"] if packages else [])]:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-export.txt")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are no quicker on several, and much slower where other processes hold a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> MultiLabelModel:
    return make_random_model("resnet18")


@pytest.fixture(scope="module")
def source(model: MultiLabelModel, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """One for all tests of this file, so that its ONNX file is made once."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "model.pt").write_bytes(b"the content of a checkpoint")
    images = draw_images(24)
    for i in range(24):
        (folder / f"{i}.jpg").write_bytes(b"stands for an image")
    return Source(
        make_model=lambda: model,
        image_size=64,
        device=torch.device("cpu"),
        checkpoint=folder / "model.pt",
        folder=folder / "kept",
        read_image=lambda path: images[int(Path(path).stem)],
    )


@pytest.fixture(scope="module")
def int8_source(source: Source) -> Source:
    return replace(source, calibration=[str(source.checkpoint.parent / f"{i}.jpg") for i in range(24)])


def refuse() -> nn.Module:
    raise AssertionError("the model was made again")


# ---- folding ----


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "mobilenet_v2", "efficientnet_b0", "efficientnet_lite0", "pp_lcnet_x1_0"]
)
def test_folding_keeps_the_logits_and_leaves_no_batchnorm_behind_a_layer(name: str) -> None:
    model, images = make_random_model(name), draw_images(3)
    folded = engines.fold_batchnorm(model, engines.make_example(64))
    expected = compute_plain(model, images)
    tolerance = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(compute_plain(folded, images), expected, rtol=0, atol=tolerance)
    assert count_batchnorm(folded) == LEFT.get(name, 0)
    assert count_batchnorm(model) > LEFT.get(name, 0), "the model itself stays as it was"


def test_a_backbone_folds_alone() -> None:
    backbone = make_random_model("efficientnet_lite0").backbone
    pixels = torch.rand(2, 3, 64, 64)
    folded = engines.fold_batchnorm(backbone, pixels)
    torch.testing.assert_close(compute_plain(folded, pixels), compute_plain(backbone, pixels), rtol=1e-4, atol=1e-4)
    assert count_batchnorm(folded) == 0
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


class Twice(nn.Module):
    """A convolution that runs twice, or whose output goes past BatchNorm as well: through a module or an addition."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm, self.other, self.way = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid(), way
        nn.init.constant_(self.norm.running_mean, 0.5)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.way == "runs":
            return self.norm(self.conv(y))
        return self.norm(y) + (self.other(y) if self.way == "module" else y)


@pytest.mark.parametrize("way", ["runs", "module"])
def test_a_layer_that_serves_twice_is_not_folded(way: str) -> None:
    module, example = Twice(way).eval(), torch.rand(2, 3, 4, 4)
    folded = engines.fold_batchnorm(module, example)
    assert count_batchnorm(folded) == 1
    torch.testing.assert_close(compute_plain(folded, example), compute_plain(module, example))


def test_a_fold_that_would_change_the_output_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    module, example = Twice("addition").eval(), torch.rand(2, 3, 4, 4)
    folded = engines.fold_batchnorm(module, example)
    assert "warning: BatchNorm is not folded: it would change the output of Twice by" in capsys.readouterr().err
    assert torch.equal(compute_plain(folded, example), compute_plain(module, example))


def test_batchnorm_over_another_axis_than_linears_is_not_folded() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()  # (B, 6 tokens, 6)
    assert count_batchnorm(engines.fold_batchnorm(module, torch.rand(2, 6, 4))) == 1
    assert count_batchnorm(engines.fold_batchnorm(module, torch.rand(2, 4))) == 0


# ---- engines ----


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_gives_the_models_logits_for_any_batch_size(
    name: str, source: Source, model: MultiLabelModel
) -> None:
    require_packages(name)
    engine = ENGINES[name](source)
    for count in (4, 1, 7):
        images = draw_images(count)
        logits = engine(images)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, compute_plain(model, images), rtol=0, atol=1e-4)
    first = engine(draw_images(2))
    engine(255 - draw_images(2))
    assert torch.equal(first, engine(draw_images(2))), "a later batch does not overwrite logits, nor change them"


def test_int8_ranks_images_as_float_does(int8_source: Source, model: MultiLabelModel) -> None:
    require_packages("openvino")
    images = draw_images(64)
    found = ENGINES["openvino"](int8_source)(images).numpy()
    expected = compute_plain(model, images).numpy()
    for column in range(5):
        assert np.corrcoef(found[:, column], expected[:, column])[0, 1] > 0.9
    assert np.abs(found - expected).max() > 1e-4, "it does run in int8"


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_kept_file_serves_without_making_the_model(precision: str, source: Source, int8_source: Source) -> None:
    require_packages("openvino")
    chosen = int8_source if precision == "int8" else source
    images = draw_images(3)
    logits = ENGINES["openvino"](chosen)(images)
    (file,) = chosen.folder.glob(f"model_{precision}_*.onnx")
    assert torch.equal(ENGINES["openvino"](replace(chosen, make_model=refuse))(images), logits)
    assert [path.name for path in chosen.folder.glob(f"*{precision}*")] == [file.name], "nor is anything left beside it"


def test_a_kept_files_name_follows_what_it_depends_on(source: Source, int8_source: Source, tmp_path: Path) -> None:
    require_packages("openvino")
    changed, same = tmp_path / "changed" / "model.pt", tmp_path / "same" / "model.pt"
    for path, content in ((changed, b"another"), (same, source.checkpoint.read_bytes())):
        path.parent.mkdir()
        path.write_bytes(content)
    assert engines.name_file(replace(source, checkpoint=same)) == engines.name_file(source)
    others = [
        replace(source, checkpoint=changed),
        int8_source,
        replace(int8_source, calibration=int8_source.calibration[:-1]),
    ]
    names = [engines.name_file(other) for other in (source, *others)]
    image = Path(int8_source.calibration[0])
    image.write_bytes(b"another image")
    names.append(engines.name_file(int8_source))
    assert len(set(names)) == 5


def test_a_conversion_that_changes_the_logits_keeps_no_file(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_packages("onnxruntime")
    export, other = engines.export_onnx, make_random_model("resnet18")
    other.head.norm.bias.data += 1  # pyright: ignore
    monkeypatch.setattr(engines, "export_onnx", lambda model, example: export(other, example))
    with pytest.raises(InputError, match=r"converting .*model\.pt changes its output by"):
        ENGINES["onnxruntime"](replace(source, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_says_what_to_install(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hide: Callable[[str], Any] = lambda name: None if name in ("openvino", "onnxscript") else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    message = "engine openvino needs openvino, onnxscript: pip install -r requirements-export.txt"
    with pytest.raises(InputError, match=f"^{message}$"):
        ENGINES["openvino"](source)
    assert (Path(engines.__file__).parent / "requirements-export.txt").is_file()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_of_files_are_for_cpus(name: str, source: Source) -> None:
    require_packages(name)
    with pytest.raises(InputError, match=f"engine {name} runs on a CPU, not on cuda:0: choose engine torch"):
        ENGINES[name](replace(source, device=torch.device("cuda:0")))


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_int8_is_openvinos(name: str, int8_source: Source) -> None:
    require_packages("openvino")
    require_packages(name)
    with pytest.raises(InputError, match=f"engine {name} runs float models only: choose openvino for int8"):
        ENGINES[name](int8_source)


def test_a_calibration_image_that_is_gone_is_one_line(int8_source: Source) -> None:
    require_packages("openvino")
    with pytest.raises(InputError, match=r"^cannot read image .*gone\.jpg: No such file or directory$"):
        ENGINES["openvino"](replace(int8_source, calibration=["gone.jpg"]))
