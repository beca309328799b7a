"""models/low_rank.py: W + B A against both branches computed apart; what trains, what is saved, what a run resumes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_small_run
from random_models import compute_plain, draw_images, make_random_model
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock

import models_factory
import predictor
import training
from models import checkpoints, low_rank
from models.low_rank import LowRank
from models.recomputation import find_blocks
from trainer import records
from utils import InputError

RANK = 3


def adapt(network: nn.Module) -> list[LowRank]:
    """Low-rank parts that are not 0, as after some steps. Returns them in the order of the layers."""
    low_rank.adapt(network, RANK)
    parts = [module for module in network.modules() if isinstance(module, LowRank)]
    for part in parts:
        assert not part.b.any(), "the start is the pretrained network"
        nn.init.normal_(part.b, std=0.1)
    return parts


# ---- the formula ----


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 6), (5, 8)),
        (nn.Conv2d(8, 6, 1, stride=2), (2, 8, 4, 4)),
        (nn.Conv2d(8, 6, 3, padding=1, bias=False), (2, 8, 4, 4)),
    ],
    ids=["linear", "1 x 1", "3 x 3"],
)
def test_a_layer_adds_what_goes_through_a_and_then_b(layer: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    plain = compute_plain(layer, x)
    (part,) = adapt(layer)
    assert (part.a.shape[0], part.b.shape) == (RANK, (6, RANK))
    if isinstance(layer, nn.Linear):
        added = (x @ part.a.T) @ part.b.T
    else:
        kernel = part.a.view(RANK, *layer.weight.shape[1:])
        narrow = nn.functional.conv2d(x, kernel, stride=layer.stride, padding=layer.padding)  # pyright: ignore
        added = nn.functional.conv2d(narrow, part.b[:, :, None, None])
    torch.testing.assert_close(layer(x), plain + added, atol=1e-5, rtol=1e-5)


def test_torchs_attention_adapts_queries_keys_and_values_too() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x, reference = torch.randn(2, 5, 8), copy.deepcopy(attention)
    parts = adapt(attention)
    assert [part.b.shape[0] for part in parts] == [8, 24], "of the output, then of queries, keys and values together"
    with torch.no_grad():
        for weight, part in ((reference.out_proj.weight, parts[0]), (reference.in_proj_weight, parts[1])):
            weight.add_(part.b @ part.a)
    for context in (torch.enable_grad, torch.inference_mode):  # the second takes torch's fast path
        with context():
            torch.testing.assert_close(attention(x, x, x)[0], reference(x, x, x)[0], atol=1e-6, rtol=1e-5)


def test_the_rank_is_at_most_the_layers() -> None:
    (part,) = adapt(nn.Linear(50, 2))
    assert (part.a.shape, part.b.shape) == ((2, 50), (2, 2))


def test_convolutions_in_groups_stand_still_and_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(InputError, match="LORA_RANK finds no linear layer and no convolution in the backbone"):
        adapt(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)))


# ---- merging ----


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "timm/test_vit", "timm/test_efficientnet", "timm/test_convnext"]
)
def test_merged_it_is_a_plain_model_of_the_same_logits(name: str) -> None:
    model, images = make_random_model(name), draw_images(4)
    keys, before, num_blocks = [*model.state_dict()], compute_plain(model, images), len(find_blocks(model.backbone))
    adapt(model.backbone)
    logits = compute_plain(model, images)
    assert (logits - before).abs().max() > 1e-3, "else merging would have nothing to do"
    assert len(find_blocks(model.backbone)) == num_blocks
    merged = low_rank.merge(model)
    assert [*merged.state_dict()] == keys
    restored = models_factory.make_model(name, 5, image_size=64).eval()
    restored.load_state_dict(merged.state_dict())
    torch.testing.assert_close(compute_plain(restored, images), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(compute_plain(merged, images), logits, atol=1e-5, rtol=0)


def test_functional_attention_of_torchvision_merges() -> None:
    block = SwinTransformerBlock(8, 2, window_size=[2, 2], shift_size=[1, 1]).eval()
    x = torch.randn(1, 4, 4, 8)
    plain = compute_plain(block, x)
    assert len(adapt(block)) == 4
    assert not torch.allclose(compute_plain(block, x), plain, atol=1e-3)
    torch.testing.assert_close(compute_plain(low_rank.merge(block), x), compute_plain(block, x), atol=1e-5, rtol=0)


def test_merging_leaves_the_original_and_its_copies_as_they_were() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    (part,) = adapt(layer)
    average = copy.deepcopy(layer)
    expected = compute_plain(layer, x)
    low_rank.merge(layer)
    for network in (layer, average):
        assert torch.equal(compute_plain(network, x), expected)
    with torch.no_grad():
        part.b.zero_()
    assert not torch.equal(compute_plain(layer, x), expected)
    assert torch.equal(compute_plain(average, x), expected)
    plain = nn.Linear(4, 4)
    assert low_rank.merge(plain) is plain


# ---- training ----


def test_only_the_parts_and_the_head_train() -> None:
    model = make_random_model("timm/test_efficientnet")
    parts = adapt(model.backbone)
    model.keeps_statistics = True
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    for frozen in (True, False):
        model.freeze_backbone(frozen)
        found = {id(parameter) for parameter in model.backbone.parameters() if parameter.requires_grad}
        assert found == (set() if frozen else trained)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.1)
    model.train()(draw_images(4)).square().sum().backward()
    optimizer.step()
    moved = {key for key, value in model.backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.endswith((".weight.0.a", ".weight.0.b"))}


class Stopped(Exception):
    pass


@pytest.fixture
def arguments(shared_dataset: Path, tmp_path: Path) -> list[str]:
    """A run whose backbone is frozen for an epoch, with kept features, and then trains for two."""
    own = tmp_path / "own.pth"
    torch.manual_seed(0)
    torch.save(models_factory.make_model("mobilenet_v2", 3, image_size=32).state_dict(), own)
    return [
        *make_small_run(shared_dataset, tmp_path),
        *f"--PRETRAINED_WEIGHTS={own} --FREEZE_BACKBONE=1 --UNFREEZE_BACKBONE_EPOCH=2 --NUM_EPOCHS=3".split(),
        *["--BACKBONE_BASE_LR=0.1", "--LORA_RANK=2", "--LAYER_DECAY=0.9", "--EMA_DECAY=0.5", "--OPTIMIZER=adamw"],
        *["--DECAY_NORMS_AND_BIASES=0", "--WEIGHT_DECAY=0.1", "--SAVE_EVERY_N_EPOCHS=1"],
    ]


def read(folder: Path, pattern: str) -> dict[str, Any]:
    (path,) = folder.glob(pattern)
    return checkpoints.load(path)


def test_a_run_saves_plain_models_and_shares_features_with_others(
    arguments: list[str], shared_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.main(arguments)
    assert "low-rank parts of 2 in the backbone" in capsys.readouterr().out
    files = {path.name for path in tmp_path.glob("cache/features_*")}
    training.main([*arguments, "--LORA_RANK=0", "--NUM_EPOCHS=1"])
    now = {path.name for path in tmp_path.glob("cache/features_*")}
    assert files <= now
    assert len(now - files) == 1, "those of whole images, which new images are compared with"
    original = torch.load(tmp_path / "own.pth", weights_only=True)
    folder = next(tmp_path.glob("trained_models/*/*_ep3_*/"))
    for path in (folder / "last.pt", folder / "model_epoch_001.pth", folder / "model_epoch_003.pth"):
        state = checkpoints.load(path)["model_state"]
        assert [*state] == [*original]
        moved = {key for key, value in state.items() if key[:4] == "back" and not torch.equal(value, original[key])}
        assert all(state[key].dim() == 4 and state[key].shape[1] > 1 for key in moved), "no norm, nothing depthwise"
        assert bool(moved) is ("001" not in path.name)
    model = predictor.load(folder.parent / f"{folder.name}.pt", "cpu")
    assert len([*model.predict(shared_dataset / "images" / "test-resized")]) == 12


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        own = [*arguments, f"--LOCAL_ROOT={folder}"]
        if stops:
            save_last = records.save_last

            def stop(run: Any, save_last: Any = save_last) -> None:
                save_last(run)
                if run.state.epoch == 2:
                    raise Stopped

            monkeypatch.setattr(records, "save_last", stop)
            with pytest.raises(Stopped):
                training.main(own)
            monkeypatch.setattr(records, "save_last", save_last)
        training.main(own)
        last, best = read(folder, "trained_models/*/*/last.pt"), read(folder, "trained_models/*/*.pt")
        unmerged = last["training_state"]["unmerged"]
        assert any(value.any() for key, value in unmerged.items() if key.endswith(".b"))
        results.append((last["model_state"], unmerged, last["training_state"]["engine"], best["model_state"]))
    assert_equal(*results)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    else:
        assert one == other
