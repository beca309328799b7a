"""export/onnx_ends.py: resizing in ONNX gives torchvision's pixels, and labels are those of metrics.predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import SEED_SHIFT
from numpy.typing import NDArray

import metrics
from dataset.resize_rules import RESIZE_RULES, make_eval_transform
from export import onnx_ends
from export.engines import ENGINES
from utils import InputError

CPU = torch.device("cpu")
NUM_CLASSES = 7
SHAPES = [(40, 56), (56, 40), (20, 30), (1, 37), (50, 1), (1, 1), (97, 131), (300, 71), (64, 64), (333, 200)]


def make_value(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def make_identity(height: int, width: int, opset: int = 18) -> onnx.ModelProto:
    """A network that gives its pixels."""
    node = onnx.helper.make_node("Cast", ["images"], ["logits"], to=onnx.TensorProto.FLOAT)
    shape = [1, 3, height, width]
    inputs, outputs = (
        [make_value("images", onnx.TensorProto.UINT8, shape)],
        [make_value("logits", onnx.TensorProto.FLOAT, shape)],
    )
    graph = onnx.helper.make_graph([node], "network", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def draw_noise(height: int, width: int) -> torch.Tensor:
    """Noise over a gradient: a shift by a part of a pixel changes it."""
    pixels = np.random.default_rng(SEED_SHIFT).integers(0, 128, (3, height, width), dtype=np.uint8)
    rising = (np.linspace(0, 127, height)[:, None] + np.linspace(0, 127, width)) / 2
    return torch.from_numpy(pixels + rising.astype(np.uint8))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_resizing_gives_torchvisions_pixels(rule: str, engine: str, tmp_path: Path) -> None:
    """Of images larger and smaller than the network's, of one pixel in height or width, and of its own size."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("without AVX2 torch computes in float32, and resizes images of one pixel's width wrongly")
    for size in ((64, 64), (48, 96), (75, 31)):
        model = onnx_ends.put_resizing_before(make_identity(*size), rule, size)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, tmp_path / "model.onnx")
        run, transform = ENGINES[engine](tmp_path / "model.onnx", CPU).run, make_eval_transform(rule, size)
        for shape in SHAPES:
            image = draw_noise(*shape)
            difference = (run(image[None])[0] - transform(image).float()).abs()
            assert difference.max() <= 2, (size, shape)  # weights are rounded in other ways
            assert (difference > 0).float().mean() <= 0.2, (size, shape)


def resize_with_16_bits(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels (H, W, 3) as torch resizes them with AVX2, in whole numbers: columns first, then rows."""
    resized = pixels.astype(np.int64)
    for axis, count in ((1, size[1]), (0, size[0])):
        scale = resized.shape[axis] / count
        places = np.arange(resized.shape[axis]) + 0.5
        distances = np.abs(places - (np.arange(count)[:, None] + 0.5) * scale) / max(scale, 1.0)
        weights = np.maximum(0.0, 1.0 - distances)
        weights /= weights.sum(axis=1, keepdims=True)
        bits = 0
        while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
            bits += 1
        whole = np.floor(weights * 2**bits + 0.5).astype(np.int64)
        sums = np.moveaxis(np.tensordot(whole, resized, (1, axis)), 0, axis)
        resized = np.clip((sums + 2**bits // 2) >> bits, 0, 255)
    return resized


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_pixels_are_those_of_weights_of_16_bits(engine: str, tmp_path: Path) -> None:
    """Whatever the processor, but for a pixel in a thousand: with halves, as of 64 from 48, rounding is all."""
    size = (56, 48)
    onnx.save(onnx_ends.put_resizing_before(make_identity(*size), "squash", size), tmp_path / "model.onnx")
    run = ENGINES[engine](tmp_path / "model.onnx", CPU).run
    for shape in ((64, 64), (40, 50), (97, 131), (200, 333), (1, 37), (56, 48)):
        image = draw_noise(*shape)
        found = run(image[None])[0].permute(1, 2, 0).numpy()
        difference = np.abs(found - resize_with_16_bits(image.permute(1, 2, 0).numpy(), size))
        assert difference.max() <= 1, shape
        assert (difference > 0).mean() <= 1e-3, shape


@pytest.mark.parametrize("rule", ["center_crop", "letterbox"])
def test_sides_are_rounded_as_in_torchvision(rule: str, tmp_path: Path) -> None:
    """Hundreds of shapes, among them those whose side is a half: a white image shows its border, a ramp its cut."""
    rng = np.random.default_rng(SEED_SHIFT)
    sizes = [(14, 14), (7, 13), (10, 6)]
    shapes = [*rng.integers(1, 60, (150, 2)).tolist(), (28, 25), (28, 27), (20, 10), (12, 8), (40, 11), (200, 3)]
    for size in sizes:
        model = onnx_ends.put_resizing_before(make_identity(*size), rule, size)
        onnx.save(model, tmp_path / "model.onnx")
        run, transform = ENGINES["onnxruntime"](tmp_path / "model.onnx", CPU).run, make_eval_transform(rule, size)
        for height, width in shapes:
            image = torch.full((3, height, width), 255, dtype=torch.uint8)
            if rule == "center_crop":
                image[0] = torch.linspace(0, 255, height)[:, None]
                image[1] = torch.linspace(0, 255, width)
            difference = (run(image[None])[0] - transform(image).float()).abs()
            assert difference.max() <= 2 * (rule == "center_crop"), (size, height, width)


def test_what_came_before_antialiased_resizing_is_refused() -> None:
    with pytest.raises(InputError, match="EXPORT_RESIZE needs ONNX opset 18, and this network is of 17"):
        onnx_ends.put_resizing_before(make_identity(8, 8, opset=17), "squash", 8)


def make_probabilities() -> NDArray[np.float32]:
    """Some are equal to each other and to thresholds."""
    rng = np.random.default_rng(SEED_SHIFT)
    rows = np.concatenate([rng.random((200, NUM_CLASSES)), rng.integers(0, 5, (200, NUM_CLASSES)) / 4])
    return rows.astype(np.float32)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("limits", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 3), (9, 9)])
def test_labels_are_those_of_the_metrics(limits: tuple[int, int], engine: str, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["images"], ["probabilities"])
    shape = ["batch", NUM_CLASSES]
    graph = onnx.helper.make_graph(
        [node],
        "network",
        [make_value("images", onnx.TensorProto.FLOAT, shape)],
        [make_value("probabilities", onnx.TensorProto.FLOAT, shape)],
    )
    plain = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    thresholds = [0.25, 0.5, 0.75, 0.1, 0.9, 1.0, 0.6]
    model = onnx_ends.put_labels_behind(plain, thresholds, *limits)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    opened, probabilities = ENGINES[engine](tmp_path / "model.onnx", CPU), make_probabilities()
    assert opened.decide is not None
    labels = opened.decide(torch.from_numpy(probabilities))
    assert labels.dtype == torch.bool
    expected = metrics.predict(probabilities, thresholds, *limits)
    assert 0 < expected.sum() < expected.size or limits == (9, 9)
    np.testing.assert_array_equal(labels.numpy(), expected)
    assert [output.name for output in plain.graph.output] == ["probabilities"], "the network's own model is as it was"
    assert torch.equal(opened.run(torch.from_numpy(probabilities)), torch.from_numpy(probabilities))
