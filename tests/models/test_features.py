"""models/features.py and models/backbones.py: what each of FEATURES is, on networks of each kind, against their layers.

Also: checkpoints, class activation maps, exports and kept features with each; models/licences.py.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from random_models import compute_plain, draw_images
from torch import Tensor, nn

import config
import heads
import models_factory
from dataset.image_sizes import Size
from dataset_readers import read_dataset
from evaluation import activation_maps
from export.engines import ENGINES
from export.export_formats import EXPORT_FORMATS
from export.model_files import Export
from models import backbones, checkpoints, licences
from models.features import FEATURES, find_default
from models_factory import MultiLabelModel
from trainer import feature_cache
from utils import InputError

CPU = torch.device("cpu")
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make_pair(name: str, features: str) -> tuple[nn.Module, nn.Module]:
    """The backbone that gives `features`, and a copy that gives all positions; in eval mode."""
    torch.manual_seed(0)
    pooled = backbones.make_backbone(name, 64, gives_map=False, features=features)
    module = pooled.module.eval()
    plain: Any = copy.deepcopy(module)
    if isinstance(plain, nn.Sequential):
        del plain[-1]
    else:
        plain.pooling = plain.blocks = None
    with torch.no_grad():
        assert tuple(module(PIXELS).shape[1:]) == pooled.shape == (pooled.shape[0], 1, 1)
    return module, plain


@pytest.mark.parametrize("name", ["test_vit", "vit_b_32"])
def test_the_class_token_and_the_mean_of_patches(name: str) -> None:
    """Of timm's ViT and torchvision's, whose own forward pass gives the class token first, then the patches."""
    module, plain = make_pair(name, "class_and_mean")
    network: Any = plain.network
    with torch.no_grad():
        if name == "test_vit":
            tokens = network.forward_features(PIXELS)
        else:
            tokens = plain(PIXELS)
            torch.testing.assert_close(tokens[:, 0], network(PIXELS), msg="the network's own is the class token")
        expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        torch.testing.assert_close(module(PIXELS)[:, :, 0, 0], expected)


def test_each_of_the_two_alone_and_the_largest_of_the_patches() -> None:
    found = {}
    for features in ("class_token", "mean", "mean_and_max"):
        module, plain = make_pair("test_vit", features)
        with torch.no_grad():
            found[features], tokens = module(PIXELS)[:, :, 0, 0], plain(PIXELS)
    torch.testing.assert_close(found["class_token"], tokens[:, 0])
    torch.testing.assert_close(found["mean"], tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(found["mean_and_max"], torch.cat([found["mean"], tokens[:, 1:].amax(dim=1)], dim=1))


# one whose first token is a register, and maps: channels first, channels last, with layers behind pooling
@pytest.mark.parametrize(
    "name", ["test_vit2", "resnet18", "efficientnet_lite0", "swin_t", "test_convnext", "mobilenet_v3_small"]
)
def test_the_mean_and_the_maximum_of_a_map(name: str) -> None:
    module, plain = make_pair(name, "mean_and_max")
    with torch.no_grad():
        positions = plain(PIXELS)
        positions = positions[:, 1:].mT if name == "test_vit2" else positions.flatten(2)
        expected = torch.cat([positions.mean(dim=2), positions.amax(dim=2)], dim=1)
        torch.testing.assert_close(module(PIXELS)[:, :, 0, 0], expected)


def keep_outputs(modules: Any) -> list[Tensor]:
    outputs: list[Tensor] = []
    for module in modules:
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    return outputs


def test_the_last_blocks_of_a_vision_transformer_are_joined_as_dinov2s_evaluation_joins_them() -> None:
    """The class tokens of the last four blocks, each after the last norm, and the mean of the last one's patches."""
    module, plain = make_pair("test_vit", "last_blocks")
    network: Any = plain.network
    outputs = keep_outputs(network.blocks)
    with torch.no_grad():
        plain(PIXELS)
        normed = [network.norm(output) for output in outputs[-4:]]
        expected = torch.cat([*(tokens[:, 0] for tokens in normed), normed[-1][:, 1:].mean(dim=1)], dim=1)
        torch.testing.assert_close(module(PIXELS)[:, :, 0, 0], expected)


def test_the_last_blocks_of_one_without_a_class_token_are_means_of_patches() -> None:
    module, plain = make_pair("test_vit2", "last_blocks")
    network: Any = plain.network
    outputs = keep_outputs(network.blocks)
    with torch.no_grad():
        plain(PIXELS)
        means = [network.norm(tokens)[:, 1:].mean(dim=1) for tokens in outputs[-4:-1]]
        # its last layers behind pooling treat each position by itself, and so are part of the last block
        expected = torch.cat([*means, plain(PIXELS)[:, 1:].mean(dim=1)], dim=1)
        torch.testing.assert_close(module(PIXELS)[:, :, 0, 0], expected)


def test_the_last_blocks_of_a_convolutional_network_are_means_of_its_last_stages() -> None:
    module, plain = make_pair("test_resnet", "last_blocks")
    network: Any = plain.network
    outputs = keep_outputs([network.layer1, network.layer2, network.layer3, network.layer4])
    with torch.no_grad():
        plain(PIXELS)
        expected = torch.cat([output.mean(dim=(2, 3)) for output in outputs], dim=1)
        torch.testing.assert_close(module(PIXELS)[:, :, 0, 0], expected)


def test_what_a_network_lacks_is_one_line_that_lists_what_it_has() -> None:
    for name, features, has in (
        ("resnet18", "class_token", "own, mean, mean_and_max"),
        ("resnet18", "last_blocks", "own, mean, mean_and_max"),
        ("test_vit2", "class_and_mean", "own, mean, mean_and_max, last_blocks"),
        ("pit_ti_224", "mean", "own, class_token"),  # it gives no patches
        ("vit_b_32", "last_blocks", "own, class_token, mean, class_and_mean, mean_and_max"),
    ):
        with pytest.raises(InputError, match=rf"^{name} has no FEATURES {features}: choose {has}$"):
            models_factory.make_model(name, 3, image_size=64, features=features)
    with pytest.raises(InputError, match=r"coat_tiny has no FEATURES mean, since it gives no single feature map"):
        models_factory.make_model("coat_tiny", 3, image_size=64, features="mean")
    with pytest.raises(InputError, match="this head looks at all positions: set auto"):
        models_factory.make_model("test_vit", 3, "ml_decoder", image_size=64, features="mean")
    with pytest.raises(InputError, match=r"there are no FEATURES 'median': auto, own, class_token, "):
        models_factory.make_model("test_vit", 3, image_size=64, features="median")


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_a_step_trains_the_network_with_each(name: str) -> None:
    for features in FEATURES:
        try:
            model = models_factory.make_model(name, 3, image_size=64, features=features).train()
        except InputError as error:
            assert f"has no FEATURES {features}" in str(error)  # noqa: PT017
            continue
        before = {key: value.clone() for key, value in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(draw_images(2)).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        assert any(not torch.equal(before[key], value) for key, value in model.backbone.named_parameters("backbone"))


# ---- auto ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch14_dinov2", "class_and_mean"),
        ("vit_base_patch14_reg4_dinov2.lvd142m", "class_and_mean"),
        ("vit_small_patch16_dinov3", "class_and_mean"),
        ("vit_base_patch16_dinov3_qkvb.lvd1689m", "class_and_mean"),
        ("vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", "own"),
        ("vit_base_patch16_224.dino", "class_and_mean"),
        ("vit_small_patch8_224.dino", "last_blocks"),
        ("vit_small_patch16_224", "own"),  # other weights of the same network
        ("convnext_tiny.dinov3_lvd1689m", "own"),
        ("clip_vit_b16", "own"),
        ("efficientnet_lite0", "own"),
        ("resnet18", "own"),
    ],
)
def test_auto_is_what_the_authors_of_the_weights_use(name: str, expected: str) -> None:
    assert backbones.choose_features("auto", name, gives_map=False) == expected
    assert backbones.choose_features("auto", name, gives_map=True) == "own"
    assert backbones.choose_features("mean", name, gives_map=False) == "mean"


def test_auto_changes_nothing_for_networks_other_than_dinos() -> None:
    for name in timm.list_pretrained():
        assert (find_default(name) != "own") == ("dino" in name and name.startswith("vit_") and "eupe" not in name), (
            name
        )


def test_the_constant_names_them() -> None:
    assert config.__annotations__["FEATURES"].__args__ == ("auto", *FEATURES)
    assert models_factory.make_model("resnet18", 3, image_size=64, features="auto").features == "own"


# ---- files ----


def make_checkpoint(name: str, features: str, path: Path, says_features: bool = True) -> MultiLabelModel:
    torch.manual_seed(0)
    model = models_factory.make_model(name, 3, "linear", image_size=64, features=features).eval()
    model.mean += 1
    found: dict[str, Any] = {"model_state": model.state_dict(), "model_name": name, "head": "linear", "image_size": 64}
    found |= {"classes": ["a", "b", "c"], "resize_rule": "squash"}
    checkpoints.save(path, found | ({"features": features} if says_features else {}))
    return model


@pytest.mark.parametrize(("name", "features"), [("resnet18", "mean_and_max"), ("test_vit", "last_blocks")])
def test_a_checkpoint_says_what_its_head_sees(name: str, features: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = make_checkpoint(name, features, path)
    again = models_factory.restore_model(checkpoints.load(path), path).eval()
    assert again.features == features
    assert torch.equal(compute_plain(again, draw_images(2)), compute_plain(model, draw_images(2)))
    with pytest.raises(InputError, match=r"do not fit .* with head linear: head.weight is "):
        models_factory.restore_model(checkpoints.load(path) | {"features": "own"}, path)


def test_a_checkpoint_of_before_sees_the_networks_own(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = make_checkpoint("test_vit", "own", path, says_features=False)
    assert "features" not in checkpoints.load(path)
    again = models_factory.restore_model(checkpoints.load(path), path).eval()
    assert again.features == "own"
    assert torch.equal(compute_plain(again, draw_images(2)), compute_plain(model, draw_images(2)))


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_a_backbone_is_taken_from_a_model_of_other_features_and_the_head_is_not(name: str, tmp_path: Path) -> None:
    path, classes = tmp_path / "first.pt", ["a", "b", "c"]
    first = make_checkpoint(name, "mean_and_max" if name == "resnet18" else "class_token", path)
    second = models_factory.make_model(name, 3, "linear", str(path), 64, classes=classes, features="mean")
    assert second.loaded is not None
    assert second.loaded.missing == second.loaded.taken == ()
    assert second.loaded.head == f"the head is new (the file's sees FEATURES {first.features}, not mean)"
    for key, value in first.backbone.state_dict().items():
        assert torch.equal(value, second.backbone.state_dict()[key]), key
    assert torch.equal(second.mean, first.mean), "the normalisation comes with the weights"
    third = models_factory.make_model(name, 3, "linear", str(path), 64, classes=classes, features=first.features)
    assert third.loaded is not None
    assert third.loaded.taken == ("a", "b", "c")


def test_kept_features_of_another_kind_have_another_name(shared_dataset: Path) -> None:
    table, names = read_dataset(shared_dataset, split="test"), {}
    for features in ("own", "mean", "mean_and_max"):
        torch.manual_seed(0)
        model = models_factory.make_model("resnet18", 3, image_size=64, features=features)
        names[features] = feature_cache._identify(model, table, "squash")
        assert feature_cache.measure_features(model, 64) == (1024 if features == "mean_and_max" else 512, 1, 1)
    assert len({*names.values()}) == 3


# ---- maps ----


@pytest.mark.parametrize("name", ["test_vit", "efficientnet_lite0"])
def test_class_activation_maps_with_each(name: str) -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    for features in FEATURES:
        if name == "efficientnet_lite0" and "class" in features:
            continue
        model = models_factory.make_model(name, 3, "linear", image_size=96, features=features).eval()
        trace = activation_maps.follow(model, image)
        grid = activation_maps.find_grid(trace).values.shape[1:]
        assert grid == ((6, 6) if name == "test_vit" else (3, 3))
        for method in ("grad-cam", "grad-cam++"):
            found = activation_maps.METHODS[method](trace, [0, 1, 2])
            assert found.shape == (3, *grid)
            assert found.max() > 0
        if features == "mean" or (features == "own" and name == "efficientnet_lite0"):
            assert isinstance(model.head, heads.Linear)
            means = activation_maps.cam(trace, [0, 1, 2]).mean(dim=(1, 2))
            torch.testing.assert_close(means, (trace.logits - model.head.bias).detach(), rtol=1e-3, atol=1e-4)
        else:
            with pytest.raises(InputError, match="MAP_METHOD cam needs"):
                activation_maps.cam(trace, [0])


def test_the_gradient_of_a_maximum_is_seen_where_it_is() -> None:
    """grad-cam through mean and max: the weights are their gradients, averaged over positions, by hand."""
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, "linear", image_size=96, features="mean_and_max").eval()
    trace = activation_maps.follow(model, torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8))
    grid = activation_maps.find_grid(trace).values.detach()
    assert isinstance(model.head, heads.Linear)
    of_mean, of_max = model.head.weight.detach()[1].chunk(2)
    expected = torch.einsum("d,dhw->hw", (of_mean + of_max) / 9, grid).relu()  # each spreads one gradient over 9 places
    torch.testing.assert_close(activation_maps.grad_cam(trace, [1])[0], expected, rtol=1e-4, atol=1e-6)
    assert trace.size == Size(96, 96)


# ---- exported files ----


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "features", "format"),
    [
        ("test_vit", "class_and_mean", "torchscript"),
        ("test_vit", "last_blocks", "onnx"),  # it ends in the class token and the mean, too
        ("test_vit", "last_blocks", "torchscript"),
        ("test_resnet", "mean_and_max", "torchscript"),
        ("test_resnet", "mean_and_max", "openvino"),  # made from an ONNX file
        ("test_resnet", "last_blocks", "torchscript"),
        ("test_vit", "class_and_mean", "pt2"),
        ("test_resnet", "last_blocks", "pt2"),
    ],
)
def test_an_exported_file_takes_any_number_of_images(name: str, features: str, format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models_factory.make_model(name, 5, "linear", image_size=64, features=features).eval()
    metadata = {"image_size": 64, "dynamic": ["batch"], "output": "logits", "classes": list("abcde"), "head": "linear"}
    metadata |= {"model_name": name, "resize_rule": "squash", "exported_by": "a test", "thresholds": [0.5] * 5}
    export = Export(model, metadata, lambda path: draw_images(1)[0], ["0", "1"])
    path = tmp_path / f"model{EXPORT_FORMATS[format].ending}"
    EXPORT_FORMATS[format].save(export, path)
    engine = {"torchscript": "torch", "pt2": "torch", "onnx": "onnxruntime", "openvino": "openvino"}[format]
    run = ENGINES[engine](path, CPU).run
    for count in (1, 2, 5):
        expected = compute_plain(model, draw_images(count))
        torch.testing.assert_close(run(draw_images(count)), expected, rtol=1e-4, atol=1e-4)


# ---- licences ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", "bsd-3-clause"),
        ("vit_b_16", "bsd-3-clause"),
        ("vit_h_14", "cc-by-nc-4.0"),  # its default weights are SWAG's
        ("regnet_y_128gf", "cc-by-nc-4.0"),
        *((f"efficientnet_lite{number}", "apache-2.0") for number in range(5)),
        ("timm/resnet50", "apache-2.0"),
        ("timm/resnet50.tv_in1k", "bsd-3-clause"),
        ("convnextv2_tiny", "cc-by-nc-4.0"),
        ("vit_small_patch16_dinov3", "dinov3-license"),
        ("vit_small_patch14_dinov2", "apache-2.0"),
        ("res2net50d", "unknown"),
        ("tresnet_v2_l", "apache-2.0"),
        ("resnet50t", "no weights"),
    ],
)
def test_licences_of_weights(name: str, expected: str) -> None:
    assert licences.read_licence(name) == expected


def test_every_licence_that_torchvision_names_is_known() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        assert licences.read_licence(name) in ("bsd-3-clause", "cc-by-nc-4.0"), name
    with pytest.raises(InputError, match="there is no backbone"):
        licences.read_licence("resnet81")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"pretrained_licence": "gemma", "config": {"PRETRAINED_WEIGHTS": None}}, "gemma"),
        ({"config": {"PRETRAINED_WEIGHTS": "default"}}, "bsd-3-clause"),
        ({"config": {"PRETRAINED_WEIGHTS": None}}, "no weights"),
        ({"config": {"PRETRAINED_WEIGHTS": "weights.pth"}}, "unknown"),
        ({"model_name": "gone", "config": {"PRETRAINED_WEIGHTS": "default"}}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_licence_that_a_models_file_says(metadata: dict[str, Any], expected: str) -> None:
    assert licences.find_licence({"model_name": "resnet50"} | metadata) == expected


def test_what_licences_mean_for_a_model() -> None:
    """Every licence that timm names gets a sentence, and those that say so in their names are non-commercial."""
    names = {timm.get_pretrained_cfg(name).license or "unknown" for name in timm.list_pretrained()}  # pyright: ignore
    assert len(names) > 8
    for name in names:
        sentence = licences.explain_licence(name)
        assert name == "unknown" or name in sentence
        assert ("non-commercial" in sentence) is licences.forbids_commerce(name)
        assert licences.forbids_commerce(name) or not re.search("(^|-)nc-|noncommercial", name), name
    assert "commercial use and asks" in licences.explain_licence("mit")


def test_the_licence_goes_on_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    """Of a file that is no checkpoint nobody knows it."""
    first = models_factory.make_model("resnet18", 3, image_size=32)
    values = {"model_name": "resnet18", "head": "linear_bn", "classes": ["a", "b", "c"], "image_size": 32}
    values |= {"model_state": first.state_dict(), "resize_rule": "squash", "pretrained_licence": "cc-by-nc-4.0"}
    checkpoints.save(tmp_path / "first.pt", values)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    for name, expected in (("first.pt", "cc-by-nc-4.0"), ("weights.pth", "unknown")):
        loaded = models_factory.make_model("resnet18", 3, weights=str(tmp_path / name), image_size=32).loaded
        assert loaded is not None
        assert loaded.licence == expected
