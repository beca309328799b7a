"""export/onnx_models.py: networks that ONNX takes only in another form, large ones, and those that it does not take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from random_models import compute_plain, draw_images
from timm.layers import padding
from timm.layers.conv2d_same import Conv2dSame
from timm.models.hiera import Hiera
from torch import Tensor, nn

import models_factory
from export import engine_cache, engines, model_files, onnx_models
from export.engine_cache import KeptSource
from export.engines import ENGINES
from export.export_formats import EXPORT_FORMATS
from export.model_files import Export
from heads import HEADS
from models.backbones import VisionTransformerBackbone
from models_factory import MultiLabelModel
from utils import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def make_export(network: nn.Module, dynamic: tuple[str, ...] = ("batch",)) -> Export:
    metadata = {"image_size": 64, "dynamic": [*dynamic], "output": "logits", "classes": list("abcde"), "head": "linear"}
    metadata |= {"model_name": "network", "resize_rule": "squash", "exported_by": "a test", "thresholds": [0.5] * 5}
    return Export(network, metadata, lambda path: draw_images(1)[0], ["0", "1"])


def make_vit(head: str) -> nn.Module:
    """torchvision's ViT of one layer."""
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=64, patch_size=32, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32
    )
    nn.init.normal_(network.class_token)
    backbone = VisionTransformerBackbone(network, gives_map=head == "ml_decoder")
    return MultiLabelModel(backbone, HEADS[head](32, 5), (0.5,) * 3, (0.2,) * 3).eval()


def make_from_timm(name: str, head: str) -> nn.Module:
    torch.manual_seed(0)
    return models_factory.make_model(name, 5, head, image_size=64).eval()


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "all tokens of torchvision's ViT": lambda: make_vit("ml_decoder"),
    "class token of torchvision's ViT": lambda: make_vit("linear_bn"),
    "all tokens of timm": lambda: make_from_timm("test_vit", "ml_decoder"),
    "class token of timm": lambda: make_from_timm("test_vit", "linear_bn"),
    "map of timm": lambda: make_from_timm("test_resnet", "gcn"),
    "comparison with landmarks": lambda: make_from_timm("test_resnet", "kernel"),
    "parts of torchvision's network": lambda: make_from_timm("squeezenet1_1", "per_label_mlp"),
}


@pytest.mark.parametrize(
    ("backbone", "format"),
    [
        *((name, "torchscript") for name in BACKBONES),
        *((name, "pt2") for name in ("all tokens of torchvision's ViT", "map of timm")),
        *((name, "onnx") for name in ("all tokens of torchvision's ViT", "comparison with landmarks")),
    ],
)
def test_every_kind_of_backbone_takes_any_number_of_images(backbone: str, format: str, tmp_path: Path) -> None:
    """A trace is made of two images: len(images) would be a constant 2 in it."""
    model, path = BACKBONES[backbone](), tmp_path / f"model{EXPORT_FORMATS[format].ending}"
    EXPORT_FORMATS[format].save(make_export(model), path)
    run = ENGINES["onnxruntime" if format == "onnx" else "torch"](path, CPU).run
    for count in (1, 2, 5):
        expected = compute_plain(model, draw_images(count))
        torch.testing.assert_close(run(draw_images(count)), expected, rtol=1e-4, atol=1e-4)


HEADS_IN_FLOAT: dict[str, Callable[[], nn.Module]] = {
    "kernel": lambda: make_from_timm("test_resnet", "kernel"),
    "linear": lambda: make_from_timm("test_vit", "linear"),
    "per_label_mlp": lambda: make_from_timm("test_resnet", "per_label_mlp"),
    "cosine": lambda: make_from_timm("test_resnet", "cosine"),
    "ml_decoder": lambda: make_vit("ml_decoder"),
}


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("head", HEADS_IN_FLOAT)
def test_int8_leaves_the_head_in_float_to_the_output(head: str, output: str) -> None:
    """Of a head `linear` that is one product, of the many that a vision transformer has, and the sigmoid behind it."""
    network = HEADS_IN_FLOAT[head]()
    if output == "probabilities":
        network = model_files.Activated(network, torch.sigmoid).eval()
    model = onnx_models.make_onnx(network, models_factory.make_example(64), advice="")
    names = onnx_models.list_float_nodes(model)
    in_float = [node for node in model.graph.node if node.name in names]
    kinds = [node.op_type for node in in_float]
    assert [node.name for node in in_float] == names, "each once, in the order in which they compute"
    given = {tensor for node in in_float for tensor in node.output}
    takers = {node.name for node in model.graph.node if given.intersection(node.input)}
    assert takers <= {*names}, "what is computed from them is in float, too"
    assert list(in_float[-1].output) == [model.graph.output[0].name]
    assert (kinds[-1] == "Sigmoid") == (output == "probabilities")
    assert not {"Conv", "GlobalAveragePool"} & {*kinds}, "the backbone is not"
    if head == "kernel":
        assert kinds.count("MatMul") == 2, "to the axes, and with the landmarks"
        assert "Exp" in kinds
        return
    assert kinds[0] in ("Gemm", "MatMul")
    assert not {"Gemm", "MatMul"} & {*kinds[1:]}, "one product, the last"
    if head == "linear":
        assert kinds[1:] == ["Sigmoid"] * (output == "probabilities")
        assert any(tensor.endswith("head.weight") for tensor in in_float[0].input)
    elif head == "cosine":
        assert "Mul" in kinds, "the scale"
    else:
        assert "Add" in kinds, "the bias"


# ---- layers that ONNX takes in another form ----


class OfTimm(nn.Module):
    """A network of timm, with random weights where timm begins with zeros, for uint8 images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float() / 255)


def test_attention_in_five_dimensions_is_exported(tmp_path: Path) -> None:
    """As Hiera's is, and Nest's; ONNX knows four."""
    torch.manual_seed(0)
    network = Hiera(img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), num_classes=5)
    model = OfTimm(network).eval()
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    EXPORT_FORMATS["onnx"].save(make_export(model), tmp_path / "model.onnx")
    run = ENGINES["onnxruntime"](tmp_path / "model.onnx", CPU).run
    for count in (1, 2, 5):
        expected = compute_plain(model, draw_images(count))
        torch.testing.assert_close(run(draw_images(count)), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert fused
    assert all(module.fused_attn for module in fused), "the network itself goes on as it was"


def test_the_padding_of_exports_is_timms() -> None:
    given = padding.get_same_padding
    with onnx_models.use_plain_layers(nn.Identity()):
        plain = padding.get_same_padding
    assert padding.get_same_padding is given is not plain
    for size in range(1, 30):
        for kernel_size in (1, 2, 3, 5, 7):
            for stride in (1, 2, 3, 4):
                for dilation in (1, 2):
                    numbers = size, kernel_size, stride, dilation
                    assert plain(*numbers) == given(*numbers), numbers


def test_same_padding_is_exported_for_any_size(tmp_path: Path) -> None:
    """As in efficientnet_lite0, whose export with timm's own formula did not end in 15 minutes."""
    torch.manual_seed(0)
    layers = [Conv2dSame(8, 8, kernel, stride) for kernel, stride in ((3, 2), (5, 1), (5, 2), (2, 1), (3, 2))]
    model = OfTimm(nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()
    EXPORT_FORMATS["onnx"].save(make_export(model, ("batch", "size")), tmp_path / "model.onnx")
    run = ENGINES["onnxruntime"](tmp_path / "model.onnx", CPU).run
    for count, height, width in ((1, 64, 64), (2, 96, 160), (5, 65, 91), (1, 70, 63)):
        images = nn.functional.interpolate(draw_images(count).float(), (height, width)).to(torch.uint8)
        expected = compute_plain(model, images)
        torch.testing.assert_close(run(images), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


# ---- what ONNX does not take ----


class Branch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        means = images.float().mean(dim=(2, 3))
        return means * 2 if means.sum() > 5 else means


@pytest.mark.parametrize("way", ["export", "engine"])
def test_a_network_that_onnx_cannot_express_is_one_line(
    way: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """And what to do in its place; without the graphs that torch prints."""
    path, checkpoint = tmp_path / "model.onnx", tmp_path / "a.pt"
    checkpoint.write_bytes(b"a")
    source = KeptSource(lambda: Branch().eval(), 64, checkpoint, tmp_path, lambda path: draw_images(1)[0])
    make, advice = {
        "export": (
            lambda: EXPORT_FORMATS["onnx"].save(make_export(Branch().eval()), path),
            "EXPORT_FORMATS torchscript may still work",
        ),
        "engine": (
            lambda: engine_cache.open_kept(source, "onnxruntime", CPU),
            "set SERVING_ENGINE (of serving.py) or TEST_ENGINE (of testing.py) to torch",
        ),
    }[way]
    with pytest.raises(InputError) as error:
        make()
    reason = "what it computes depends on the values in the images (an if or a loop over them)"
    assert str(error.value) == f"ONNX cannot express this network: {reason}; {advice}"
    printed = capfd.readouterr()
    assert [line for line in printed.out.splitlines() if not line.startswith("making ")] == []
    assert printed.err == ""
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert logging.root.manager.disable == logging.NOTSET
    assert [*tmp_path.iterdir()] == [checkpoint]


class OfTwo(nn.Module):
    """A network whose code makes a constant of the number of images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)) + torch.arange(3.0).expand(len(images), -1)


def test_a_network_that_fixes_the_number_of_images_is_one_line(tmp_path: Path) -> None:
    """ONNX Runtime would refuse every other number, once the file is in use."""
    expected = r"^ONNX cannot express this network for any batch: its code takes that of the example, 2x3x64x64, for a "
    with pytest.raises(InputError, match=f"{expected}constant; EXPORT_FORMATS torchscript may still work$"):
        EXPORT_FORMATS["onnx"].save(make_export(OfTwo().eval()), tmp_path / "model.onnx")
    assert list_names(tmp_path) == set()


# ---- above 2 GB, which is set low here ----


class Mean(nn.Module):
    """Quick to convert, with a weight of some size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.float().mean(dim=(2, 3)))[:, :5]


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_models, "MAX_BYTES", 1000)


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_large_weights_lie_in_a_file_beside_the_model(low_limit: None, tmp_path: Path) -> None:
    model, path = Mean().eval(), tmp_path / "model.onnx"
    export = make_export(model)
    for name in ("onnx", "openvino"):  # both of one ONNX model
        EXPORT_FORMATS[name].save(export, path.with_suffix(EXPORT_FORMATS[name].ending))
    assert list_names(tmp_path) == {"model.onnx", "model.onnx.data", "model.xml", "model.bin"}
    assert engines.list_files(path) == [path, tmp_path / "model.onnx.data"]
    assert engines.list_files(tmp_path / "model.xml") == [tmp_path / "model.xml", tmp_path / "model.bin"]
    assert path.stat().st_size < 12_000 <= (tmp_path / "model.onnx.data").stat().st_size
    for file, engine in ((path, "onnxruntime"), (path, "openvino"), (tmp_path / "model.xml", "openvino")):
        run, metadata, _ = ENGINES[engine](file, CPU)
        assert metadata is not None
        assert metadata["classes"] == list("abcde")
        for count in (1, 2, 5):
            torch.testing.assert_close(run(draw_images(count)), compute_plain(model, draw_images(count)))


def test_the_kept_file_of_a_large_network_has_one_beside_it(low_limit: None, tmp_path: Path) -> None:
    checkpoint, model = tmp_path / "a.pt", Mean().eval()
    checkpoint.write_bytes(b"a")
    source = KeptSource(lambda: model, 64, checkpoint, tmp_path / "kept", lambda path: draw_images(1)[0])
    for _ in range(2):  # made, and found again
        run = engine_cache.open_kept(source, "onnxruntime", CPU)
        torch.testing.assert_close(run(draw_images(5)), compute_plain(model, draw_images(5)))
    (name,) = (name for name in list_names(tmp_path / "kept") if name.endswith(".onnx"))
    assert list_names(tmp_path / "kept") == {name, f"{name}.data"}


def test_int8_of_a_large_network_is_one_line(low_limit: None, tmp_path: Path) -> None:
    expected = (
        r"^this network has 0.0 GB of weights, more than the tools that make int8 take \(1e-06 GB\): export it in "
    )
    export = make_export(Mean().eval())
    for name in ("onnx_int8", "openvino_int8"):
        with pytest.raises(InputError, match=expected):
            EXPORT_FORMATS[name].save(export, tmp_path / "model.onnx")
    assert list_names(tmp_path) == set()


def test_a_file_is_never_beside_the_weights_of_another(
    low_limit: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or absent, wherever writing ends; a smaller model takes the weights of a larger one away."""
    path, export = tmp_path / "model.onnx", make_export(Mean().eval())
    EXPORT_FORMATS["onnx"].save(export, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*arguments: Any) -> None:
        raise InputError("no")

    with monkeypatch.context() as patch:
        patch.setattr(model_files, "require_sizes", fail)  # the last step before the files are put in their places
        with pytest.raises(InputError, match=r"^no$"):
            EXPORT_FORMATS["onnx"].save(export, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with monkeypatch.context() as patch:
        put = onnx_models.write_atomically

        def stop_after_weights(file: Path, write: Callable[[Path], object]) -> None:
            put(file, write)
            if file.name.endswith(".data"):
                raise InputError("killed")

        patch.setattr(onnx_models, "write_atomically", stop_after_weights)
        with pytest.raises(InputError, match=r"^killed$"):
            EXPORT_FORMATS["onnx"].save(export, path)
    assert list_names(tmp_path) == {"model.onnx.data"}, "new weights without a model, and not beside the old one"
    monkeypatch.setattr(onnx_models, "MAX_BYTES", 2**31)
    EXPORT_FORMATS["onnx"].save(export, path)
    assert list_names(tmp_path) == {"model.onnx"}
