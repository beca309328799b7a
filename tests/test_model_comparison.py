"""model_comparison.py: multiply-adds and sizes against counts by hand, its formats, and the search."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import model_comparison
import models_factory
from utils import InputError


def test_multiply_adds_are_those_of_the_layers() -> None:
    """A convolution of 3 x 3 x 3 weights at 16 x 16 places for 4 channels, a linear layer, an attention layer."""
    convolution = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(1024, 5))
    assert model_comparison.count_multiply_adds(convolution, torch.zeros(1, 3, 16, 16)) == 4 * 27 * 256 + 1024 * 5
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens, width = 6, 8
    products = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 16
    assert model_comparison.count_multiply_adds(layer, torch.zeros(1, tokens, width)) == products


def test_csv_holds_a_row_for_each_backbone_and_head(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["shufflenet_v2_x0_5", "test_vit", "--HEADS", "linear,ml_decoder", "--IMAGE_SIZE", "64", "--csv"]
    model_comparison.main([*arguments, "--BATCH_SIZES", "1,2", "--NUM_CLASSES", "5", "--DEVICE", "cpu"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = [(row["backbone"], row["head"]) for row in rows]
    assert names == [(name, head) for name in ("shufflenet_v2_x0_5", "test_vit") for head in ("linear", "ml_decoder")]
    for row in rows:
        model = models_factory.make_model(row["backbone"], 5, row["head"], image_size=64)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert float(row["parameters_M"]) == pytest.approx(parameters / 1e6, abs=0.006)
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        assert float(row["file_MB"]) == pytest.approx(size / 1e6, abs=0.06)
        assert float(row["forward_ms_batch_2"]) > 0


def test_a_network_of_another_size_is_compared_at_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    model_comparison.main(["efficientformer_l1", "--IMAGE_SIZE", "64", "--BATCH_SIZES", "1", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:3] == ["backbone", "head", "image_size"]
    assert cells[2][:3] == ["efficientformer_l1", "linear_bn", "224"]
    model_comparison.main(["squeezenet1_1", "--IMAGE_SIZE", "64", "--BATCH_SIZES", "1"])
    head, _, row, _, note = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("backbone", "head", "image_size", "parameters_M", "multiply_adds_M", "file_MB", "forward_ms_batch_1"),
        "licence",
    ]
    assert row.split()[:3] == ["squeezenet1_1", "linear_bn", "64"]
    assert row.split()[-1] == "bsd-3-clause"
    assert note.startswith("80 classes; forward passes on ")
    model_comparison.main(["squeezenet1_1", "--IMAGE_SIZE", "64", "--BATCH_SIZES", "1", "--latex"])
    assert r"squeezenet1\_1 & linear\_bn & 64 & " in capsys.readouterr().out


def test_backbones_are_compared_at_a_height_and_a_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_comparison, "SECONDS", 0.0)
    model_comparison.main(["squeezenet1_1", "--IMAGE_SIZE", "64,96", "--BATCH_SIZES", "1", "--csv"])
    oblong = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    model_comparison.main(["squeezenet1_1", "--IMAGE_SIZE", "96,64", "--BATCH_SIZES", "1", "--csv"])
    turned = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (oblong["image_size"], turned["image_size"]) == ("64x96", "96x64")
    assert oblong["multiply_adds_M"] == turned["multiply_adds_M"]


def test_names_are_searched(capsys: pytest.CaptureFixture[str]) -> None:
    model_comparison.main(["--search", "hgnetv2_b4"])
    assert capsys.readouterr().out == "hgnetv2_b4     apache-2.0\npp_hgnetv2_b4  apache-2.0\n"
    model_comparison.main(["--search", "tresnet_*l"])
    assert capsys.readouterr().out.split()[::2] == ["tresnet_l", "tresnet_v2_l", "tresnet_xl"]
    with pytest.raises(InputError, match="no backbone matches"):
        model_comparison.main(["--search", "nothing_like_it"])
    with pytest.raises(InputError, match="there is no backbone 'resnet81'"):
        model_comparison.main(["resnet18", "resnet81"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--HEDS", "linear"], "there is no constant 'HEDS' (did you mean HEADS?)"),
        (["--csv", "--latex"], "--csv and --latex exclude each other"),
        (["--search"], "--search takes one pattern"),
    ],
)
def test_mistakes_import_no_torch(arguments: list[str], message: str) -> None:
    """The script in a process of its own, which then tells whether it had to import torch."""
    code = (
        "import sys, model_comparison\n"
        "try: model_comparison.main(sys.argv[1:])\nexcept ValueError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    folder = Path(model_comparison.__file__).parent
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    *lines, has_torch = done.stdout.splitlines()
    assert message in lines[0]
    assert has_torch == "False"


def test_script_searches_names() -> None:
    command = [sys.executable, "model_comparison.py", "--search", "hgnetv2_b4"]
    folder = Path(model_comparison.__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split()[::2] == ["hgnetv2_b4", "pp_hgnetv2_b4"]
