"""evaluation/export_parity.py: the gate lets a file pass that says what its checkpoint says, and catches each planted
error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from random_models import choose_thresholds, make_random_model
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import models_factory
import predictor
from dataset import augmentations
from dataset.files import list_images
from evaluation import export_parity
from export import export_formats, model_files
from models import batchnorm_folding, checkpoints
from models_factory import MultiLabelModel
from utils import InputError

CLASSES = ["a", "b", "c", "d", "e"]
FORMAT = export_formats.EXPORT_FORMATS["torchscript"]  # the quickest to make


@pytest.fixture(scope="module")
def paths(photographs: Path) -> list[str]:
    return list_images(photographs / "coco18-dev" / "images" / "test-resized")[:40]


@pytest.fixture(scope="module")
def checkpoint(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network whose thresholds lie amid its probabilities."""
    model = make_random_model("test_resnet", "cosine", scale=8.0)
    transform = augmentations.make_eval_transform("squash", 64)
    with torch.no_grad():
        probabilities = model(torch.stack([predictor.read_image(path, transform) for path in paths])).sigmoid()
    thresholds = choose_thresholds(probabilities)
    values = {"model_name": "test_resnet", "head": "cosine", "head_options": {"scale": 8.0}, "image_size": 64}
    values |= {"resize_rule": "squash", "classes": CLASSES, "thresholds": thresholds, "best_threshold": 0.5}
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    checkpoints.save(path, {"model_state": model.state_dict(), "min_labels": 0, "max_labels": 0} | values)
    return path


@pytest.fixture(scope="module")
def reference(checkpoint: Path, paths: list[str]) -> export_parity.Reference:
    targets = np.random.default_rng(0).integers(0, 2, (len(paths), 5)).astype(np.int8)
    return export_parity.make_reference(checkpoint, paths, targets)


def restore(checkpoint: Path) -> MultiLabelModel:
    return models_factory.restore_model(checkpoints.load(checkpoint), checkpoint).eval()


def save(network: nn.Module, checkpoint: Path, path: Path, **values: Any) -> None:
    metadata = {k: v for k, v in checkpoints.load(checkpoint).items() if k not in checkpoints.TENSORS}
    metadata |= {"output": "logits", "dynamic": ["batch"], "checkpoint_sha256": "0", "exported_by": "a test"}
    FORMAT.save(model_files.Export(network.eval(), metadata | values, lambda path: torch.empty(0)), path)


def test_a_faithful_file_passes_with_figures_that_hold(
    checkpoint: Path, reference: export_parity.Reference, paths: list[str], tmp_path: Path
) -> None:
    """Recomputed: the differences in float64, mAP by scikit-learn."""
    path = tmp_path / "model_torchscript.pt"
    save(batchnorm_folding.fold_batchnorm(restore(checkpoint), models_factory.make_example(64)), checkpoint, path)
    report = export_parity.compare(path, reference)
    assert (report["parity"], report["problems"], report["flips"]) == ("passed", [], 0)
    found = np.stack([record.probabilities for record in predictor.load(path, "cpu").predict(paths, 16)])
    difference = np.abs(found.astype(np.float64) - reference.probabilities)
    assert report["max_difference"] == pytest.approx(difference.max(), abs=1e-9)
    assert report["mean_difference"] == pytest.approx(difference.mean(), abs=1e-9)
    assert reference.targets is not None
    expected = average_precision_score(reference.targets, reference.probabilities, average="macro")
    assert report["mAP_checkpoint"] == pytest.approx(expected, abs=1e-9)
    assert (report["num_images"], report["num_entries"]) == (40, 200)
    assert report["megabytes"] == pytest.approx(path.stat().st_size / 1e6)
    assert report["milliseconds_per_image"] > 0
    assert report["checkpoint"] == "model.pt"
    assert str(checkpoint.parent) not in str(report), "no path of this machine"


def test_the_reference_is_the_plain_network(
    checkpoint: Path, reference: export_parity.Reference, paths: list[str]
) -> None:
    """Image by image, BatchNorm as it was trained: equal but for the order of a picture's bytes in memory."""
    model, transform = restore(checkpoint), augmentations.make_eval_transform("squash", 64)
    for path, row in zip(paths[:10], reference.probabilities, strict=False):
        with torch.no_grad():
            expected = model(predictor.read_image(path, transform)[None]).sigmoid()[0]
        np.testing.assert_allclose(row, expected.numpy(), rtol=0, atol=1e-6)


class Bgr(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.flip(1))


def leave_out_normalisation(model: MultiLabelModel) -> nn.Module:
    model.std.fill_(1.0)
    return model


def leave_out_pixel_scale(model: MultiLabelModel) -> nn.Module:
    """Mean and deviation in 0-1, of pixels in 0-255."""
    model.mean.div_(255)
    model.std.div_(255)
    return model


def leave_out_angular_scale(model: MultiLabelModel) -> nn.Module:
    model.head.scale = 1.0  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


def forget_an_activation(model: MultiLabelModel) -> nn.Module:
    return model_files.Activated(model, torch.sigmoid)  # in a file that says logits


def keep(model: MultiLabelModel) -> nn.Module:
    return model


BEYOND = "largest difference of a probability"
PLANTED: dict[str, tuple[Callable[[MultiLabelModel], nn.Module], dict[str, Any], str]] = {
    "BGR": (Bgr, {}, BEYOND),
    "resize rule": (keep, {"resize_rule": "center_crop"}, BEYOND),
    "normalisation scale": (leave_out_normalisation, {}, BEYOND),
    "pixel scale": (leave_out_pixel_scale, {}, BEYOND),
    "angular scale": (leave_out_angular_scale, {}, BEYOND),
    "activation twice": (forget_an_activation, {}, BEYOND),
    "softmax for sigmoid": (keep, {"activation": "softmax"}, BEYOND),
    "swapped classes": (keep, {"classes": ["b", "a", "c", "d", "e"]}, "its classes are others, or in another order"),
    "thresholds": (keep, {"thresholds": [0.01] * 5}, "its thresholds differ by up to"),
    "a hair's threshold": (keep, {"thresholds": None, "best_threshold": 0.5}, "its thresholds differ by up to"),
    "limits of labels": (keep, {"max_labels": 1}, "its limits of labels an image are others"),
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_caught(
    error: str, checkpoint: Path, reference: export_parity.Reference, tmp_path: Path
) -> None:
    plant, values, problem = PLANTED[error]
    save(plant(restore(checkpoint)), checkpoint, tmp_path / "model_torchscript.pt", **values)
    report = export_parity.compare(tmp_path / "model_torchscript.pt", reference)
    assert report["parity"] == "failed"
    assert any(line.startswith(problem) for line in report["problems"]), report["problems"]


def test_a_flip_is_no_matter_only_within_rounding_of_its_threshold() -> None:
    budget = export_parity.BUDGETS["fp32"]
    measured = {"max_difference": 5e-5, "mean_difference": 1e-6, "flips": 2, "flips_within_rounding": 2}
    assert export_parity.find_problems(measured, budget, 1000) == []
    (problem,) = export_parity.find_problems(measured | {"flips_within_rounding": 1}, budget, 1000)
    assert problem.startswith("share of labels that flip, not by rounding, 0.001: more than 0")


@pytest.mark.parametrize(
    ("capability", "resizes", "precision", "expected"),
    [
        ("AVX2", False, "fp32", "fp32"),
        ("AVX512", True, "fp32", "resized fp32"),
        ("DEFAULT", True, "fp32", "resized fp32 without AVX2"),
        ("DEFAULT", False, "fp32", "fp32"),
        ("AVX2", True, "fp16", "fp16"),
        ("DEFAULT", True, "fp16", "resized fp16 without AVX2"),
        ("DEFAULT", True, "int8", "int8"),
    ],
)
def test_a_file_that_resizes_gets_more_room_where_torch_rounds_otherwise(
    capability: str, resizes: bool, precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model: Any = SimpleNamespace(resizes=resizes, metadata={"precision": precision})
    assert export_parity.choose_budget(model) == export_parity.BUDGETS[expected]


@pytest.mark.parametrize("precision", export_parity.BUDGETS)
def test_each_budget_bounds_each_figure(precision: str) -> None:
    budget = export_parity.BUDGETS[precision]
    within = {"max_difference": budget.max_difference, "mean_difference": budget.mean_difference}
    within |= {"flips": int(budget.flips * 10000), "flips_within_rounding": 0, "mAP_change": -budget.mAP_loss}
    assert export_parity.find_problems(within, budget, 10000) == []
    for name in ("max_difference", "mean_difference", "flips"):
        assert len(export_parity.find_problems(within | {name: within[name] * 1.1 + 1}, budget, 10000)) == 1
    assert len(export_parity.find_problems(within | {"mAP_change": -1.1 * budget.mAP_loss}, budget, 10000)) == 1
    assert len(export_parity.find_problems(within | {"max_difference": float("nan")}, budget, 10000)) == 1


def test_a_file_without_a_pass_is_refused_but_to_the_gate(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model_torchscript.pt"
    save(restore(checkpoint), checkpoint, path)
    model_files.mark_path(path).write_text("a problem\n")
    with pytest.raises(
        InputError, match=r"model_torchscript\.pt did not pass its comparison with the checkpoint: export it again"
    ):
        predictor.load(path, "cpu")
    assert predictor.load(path, "cpu", allow_failed=True).classes == tuple(CLASSES)


def test_the_table_shows_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"max_difference": 1.5e-6, "mean_difference": 2e-7, "flips": 3, "flips_within_rounding": 1}
    figures |= {"megabytes": 13.71, "milliseconds_per_image": 8.04, "num_entries": 3600, "mAP_change": -0.00123}
    made = {"file": "made.onnx", "parity": "passed"} | figures
    export_parity.print_table([made, {"file": "not_made.xml", "parity": "not made", "problems": ["why"]}])
    lines = capsys.readouterr().out.splitlines()
    (first,), (second,) = ([line.split() for line in lines if name in line] for name in ("made.onnx", "not_made.xml"))
    assert first == ["made.onnx", "13.7", "8.0", "1.5e-06", "2.0e-07", "3", "in", "3600", "-0.0012", "passed"]
    assert second == ["not_made.xml", "not", "made"]
