"""export/pt2_models.py: a file of torch.export is a program, says nothing of this machine; a changed byte is found."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import compute_plain, draw_images, make_export, make_random_model
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

import models_factory
import predictor
from export import engines
from export.pt2_models import save_pt2
from models import batchnorm_folding
from utils import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return batchnorm_folding.fold_batchnorm(make_random_model("test_resnet"), models_factory.make_example(64))


@pytest.fixture(scope="module")
def file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "model_torchexport.pt2"
    save_pt2(make_export(network), path)
    return path


def test_a_file_holds_no_code_of_this_project_and_no_path_of_this_machine(file: Path, network: nn.Module) -> None:
    content = file.read_bytes()
    for word in (str(Path(__file__).parents[2]), "site-packages", "models_factory", "MultiLabelModel"):
        assert word.encode() not in content
    opened = torch.export.load(file).module()
    torch.testing.assert_close(opened(draw_images(3)), compute_plain(network, draw_images(3)))


def test_same_padding_is_exported_for_any_size(tmp_path: Path) -> None:
    """As in efficientnet_lite0."""
    torch.manual_seed(0)
    layers = [Conv2dSame(8, 8, kernel, stride) for kernel, stride in ((3, 2), (5, 1), (5, 2), (2, 1), (3, 2))]

    class Network(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.float() / 255)

    network = Network(nn.Conv2d(3, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    path = tmp_path / "model_torchexport.pt2"
    save_pt2(make_export(network, ("batch", "size")), path)
    run = engines.open_pt2(path, CPU).run
    for count, height, width in ((1, 64, 64), (2, 96, 160), (5, 65, 91), (1, 70, 63)):
        images = nn.functional.interpolate(draw_images(count).float(), (height, width)).to(torch.uint8)
        torch.testing.assert_close(run(images), compute_plain(network, images))


def test_a_file_of_one_size_says_so_to_another(file: Path) -> None:
    run = engines.open_pt2(file, CPU).run
    with pytest.raises(InputError, match=r"^cannot run [^\n]* on uint8 images \(B, 3, H, W\) of its size: [^\n]+$"):
        run(torch.zeros(1, 3, 96, 64, dtype=torch.uint8))


def test_a_network_that_depends_on_pixels_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean(dim=(2, 3)) * (1 if images.sum() > 0 else 2)

    with pytest.raises(
        InputError, match=r"^torch\.export cannot express this network: [^\n]+; EXPORT_FORMATS torchscript may still w"
    ):
        save_pt2(make_export(Branch().eval()), tmp_path / "model_torchexport.pt2")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_program_moves_to_another_device(file: Path) -> None:
    """The device "meta", which every machine has: a tensor that stayed on the CPU would be refused there."""
    logits = engines.open_pt2(file, torch.device("meta")).run(draw_images(2))
    assert (logits.device.type, logits.shape) == ("meta", (2, 5))


# ---- files from others ----


class Program:
    """A pickle that writes a file as soon as it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


def rewrite(file: Path, path: Path, name: str, content: bytes) -> Path:
    """Copy `file` to `path` with other `content` under the `name` inside, with checksums that are right."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w") as archive:
        for entry in source.namelist():
            archive.writestr(entry, content if entry.partition("/")[2] == name else source.read(entry))
    return path


def plant_pickle(file: Path, path: Path, trace: Path) -> Path:
    buffer = io.BytesIO()
    torch.save(((Program(trace),), {}), buffer, pickle_module=pickle)
    return rewrite(file, path, "data/sample_inputs/model.pt", buffer.getvalue())


def plant_size(file: Path, path: Path, trace: Path) -> Path:
    """Python where the size of a batch stands."""
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("models/model.json"))
        program = archive.read(name).decode()
    (symbol,) = json.loads(program)["range_constraints"]
    size = json.dumps(f"Symbol('{symbol}', positive=True, integer=True)")
    evil = json.dumps(f"[open({str(trace)!r}, 'w').close(), {json.loads(size)}][1]")
    assert f'"expr_str": {size}' in program
    return rewrite(file, path, "models/model.json", program.replace(size, evil).encode())


@pytest.mark.parametrize("plant", [plant_pickle, plant_size])
def test_a_program_is_not_read_unless_its_name_says_what_it_is(plant: Any, file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in ("best_model.pt", "model.pt2", "model.onnx", "model_torchscript.pt"):
        path = plant(file, tmp_path / name, trace)
        with pytest.raises(
            InputError, match=r"is a file of torch\.export, a program [^\n]* a name that ends in _torchexport\.pt2$"
        ):
            predictor.load(path, "cpu")
    assert not trace.exists()
    named = plant(file, tmp_path / "model_torchexport.pt2", trace)
    with contextlib.suppress(InputError):
        predictor.load(named, "cpu")
    assert trace.exists(), "it is a program indeed, as soon as it is read"


@pytest.mark.parametrize("inside", ["data/weights/weight_0", "models/model.json", "extra/multilabel.json"])
def test_a_changed_byte_is_found(inside: str, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / file.name
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.partition("/")[2] == inside)
        content[content.index(archive.read(entry))] ^= 1
    path.write_bytes(content)
    message = (
        rf"^cannot open [^\n]* as torch\.export: it is damaged, [^\n]*{inside}[^\n]* has changed since it was writ"
    )
    with pytest.raises(InputError, match=message):
        predictor.load(path, "cpu")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"^[^\n]* damaged[^\n]*$"):
        predictor.load(path, "cpu")
    assert capfd.readouterr() == ("", "")


def test_a_file_of_another_version_is_one_line(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = rewrite(file, tmp_path / file.name, "archive_version", b"999")
    with pytest.raises(
        InputError, match=r"^cannot open [^\n]* as torch\.export: it is damaged, or of another version \("
    ):
        predictor.load(path, "cpu")
    path = rewrite(file, tmp_path / file.name, "models/model.json", b"{}")
    with pytest.raises(
        InputError, match=r"^cannot open [^\n]* as torch\.export: it is damaged, or of another version \("
    ):
        predictor.load(path, "cpu")
    assert capfd.readouterr() == ("", "")
