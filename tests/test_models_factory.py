"""models_factory.py and heads.py: every backbone with every head; pretrained weights; freezing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import functional

import heads
import models_factory
from dataset_readers import read_dataset
from utils import InputError

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", heads.HEADS)
@pytest.mark.parametrize("name", models_factory.list_names())
def test_every_backbone_with_every_head_learns(name: str, head: str) -> None:
    model = models_factory.make_model(name, 5, head=head, image_size=64)
    logits = model.train()(IMAGES)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


@pytest.mark.parametrize("name", models_factory.list_names())
def test_the_cut_network_computes_what_the_whole_one_did(name: str) -> None:
    """Pooled features times the original classifier give the original logits: nothing was lost in cutting."""
    parts = models_factory.BACKBONES[name]
    network = parts.make().eval()
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(pixels)
        features = parts.cut(network).eval()(pixels)
        torch.testing.assert_close(classifier(heads.pool(features)), expected, rtol=1e-4, atol=1e-4)


def test_vgg_keeps_its_hidden_layers() -> None:
    model = models_factory.make_model("vgg16", 5)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(25088, 4096), (4096, 4096), (4096, 5)]


def test_normalisation_is_the_first_layer() -> None:
    model = models_factory.make_model("resnet18", 3, image_size=64).eval()
    scaled = functional.normalize(
        IMAGES.float() / 255, list(models_factory.IMAGENET_MEAN), list(models_factory.IMAGENET_STD)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), model.head(model.backbone(scaled)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(IMAGES), model(IMAGES.float()))


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


def test_lite0_package_weights_classify_as_imagenet_does(photographs: Path) -> None:
    """The renamed weights load strictly, and the network sees in photographs what is in them."""
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(models_factory.BACKBONES["efficientnet_lite0"].read_default("efficientnet_lite0", None))
    parts = models_factory.BACKBONES["efficientnet_lite0"]
    zebra_like, others = [], []
    table = read_dataset(photographs / "coco-mini80", split="train")
    zebra = table.classes.index("zebra")
    shown = [*np.flatnonzero(table.targets[:, zebra])[:5], *np.flatnonzero(table.targets[:, zebra] == 0)[:5]]
    for index in shown:
        with Image.open(table.paths[index]) as image:
            pixels = functional.to_tensor(image.convert("RGB").resize((224, 224)))
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
    backbone = models_factory.BACKBONES[name].cut(network)
    assert all(torch.equal(value, model.backbone.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_weights_from_a_file_may_have_another_number_of_classes(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=7)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "own.pth")
    model = models_factory.make_model("resnet18", 5, weights=str(tmp_path / "own.pth"), image_size=64)
    assert torch.equal(
        model.backbone.get_parameter("layer1.0.conv1.weight"), network.get_parameter("layer1.0.conv1.weight")
    )


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"do not fit the network: \d+ of its \d+ tensors"):
        models_factory.make_model("mobilenet_v2", 5, weights=str(tmp_path / "resnet18.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="not a state dict"):
        models_factory.make_model("resnet18", 5, weights=str(tmp_path / "list.pth"))
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(InputError, match=r"cannot read weights .*text\.pth"):
        models_factory.make_model("resnet18", 5, weights=str(tmp_path / "text.pth"))


def test_without_network_the_message_says_where_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("<urlopen error no route>")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(InputError) as error:
        models_factory.make_model("resnet18", 5, weights="default", weights_folder=tmp_path)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    assert url in str(error.value)
    assert str(tmp_path / url.rsplit("/", 1)[1]) in str(error.value)
    assert "PRETRAINED_WEIGHTS = None" in str(error.value)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"there is no backbone 'resnet81' \(did you mean resnet18\?\)"):
        models_factory.make_model("resnet81", 5)
    with pytest.raises(InputError, match="there is no head 'liner'"):
        models_factory.make_model("resnet18", 5, head="liner")
