"""dataset/device_decoding.py: which files a GPU decodes, and that all others become what they were before.

torchvision's decoder on the CPU stands in for that of the GPU, which has the same signature.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dataset import augmentations, decoding, device_decoding, loading
from dataset.augmentations import Augmentation
from dataset.batches import Batch
from dataset.decoding import decode_bytes
from dataset.device_decoding import File, SentFiles, decode_jpegs, find_size
from dataset.loading import LoadingOptions
from dataset.loading_processes import LoadingProcesses
from dataset.table import Table
from utils import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
CPU = torch.device("cpu")
ON_DEVICE = LoadingOptions(makes_on_device=True, decodes_on_device=True)
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def say_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has said nothing yet."""
    monkeypatch.setattr(decoding, "_said", set())
    monkeypatch.setattr(warnings, "showwarning", decoding._hear_warning)
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # not installed
    device_decoding.find_decoder.cache_clear()


def draw(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turn(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def lose_half(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10] + b"\xff\xd9"


TAKEN: dict[str, Callable[[], bytes]] = {
    "4:4:4": lambda: encode(draw(), subsampling=0, quality=90),
    "4:2:2": lambda: encode(draw(), subsampling=1),
    "4:2:0": lambda: encode(draw(), subsampling=2),
    "grey": lambda: encode(draw().convert("L")),
    "upright": lambda: encode(draw(), exif=turn(1)),
    "optimised": lambda: encode(draw(), optimize=True),
    "bytes behind": lambda: encode(draw()) + b"more",
}
LEFT: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: encode(draw(), progressive=True),
    "turned": lambda: encode(draw(), exif=turn(6)),
    "CMYK": lambda: encode(draw().convert("CMYK")),
    "PNG": lambda: encode(draw(), "PNG"),
    "WebP": lambda: encode(draw(), "WEBP"),
    "half": lambda: lose_half(encode(draw())),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_gpu_decodes(kind: str) -> None:
    data = TAKEN[kind]()
    assert find_size(data) == (48, 64)
    (image,) = decode_jpegs([(torch.frombuffer(bytearray(data), dtype=torch.uint8), kind)], CPU)
    expected = decode_bytes(data, kind)
    assert image.shape == (3, 48, 64)
    assert (image.permute(1, 2, 0).numpy().astype(int) - expected).__abs__().max() <= 2


@pytest.mark.parametrize("kind", LEFT)
def test_a_gpu_does_not_decode(kind: str) -> None:
    assert find_size(LEFT[kind]()) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"no image", encode(draw())[:300]])
def test_what_is_no_image_is_left_to_the_cpu(data: bytes) -> None:
    assert find_size(data) is None


def test_a_jpeg_that_is_too_large_is_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_decoding, "MAX_PIXELS", 64 * 48 - 1)
    assert find_size(encode(draw())) is None


def make_decoder(refused: bytes, error: RuntimeError) -> Callable[[list[Tensor], torch.device], list[Tensor]]:
    """A decoder that gives black pictures, and refuses a batch with the file `refused`."""

    def decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
        if any(file.numpy().tobytes() == refused for file in files):
            raise error
        return [torch.zeros(3, 48, 64, dtype=torch.uint8) for _ in files]

    return decode


def test_a_file_that_the_decoder_refuses_is_decoded_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [encode(draw(seed)) for seed in range(3)]
    files = [(torch.frombuffer(bytearray(data), dtype=torch.uint8), "a.jpg") for data in contents]
    decoder = make_decoder(contents[1], RuntimeError("nvjpegDecode failed: 4"))
    monkeypatch.setattr(device_decoding, "find_decoder", lambda device: decoder)
    first, second, third = decode_jpegs(files, CPU)
    assert not first.any()
    assert not third.any()
    assert np.array_equal(second.permute(1, 2, 0), decode_bytes(contents[1], ""))
    decoder = make_decoder(contents[1], torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        decode_jpegs(files, CPU)


def test_torchcodec_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's decoder is to go; torchcodec's takes a list of files, too."""
    calls: list[Any] = []
    module = ModuleType("torchcodec.decoders")
    module.decode_jpeg = lambda *given, **named: calls.append((given, named))  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    files = [torch.zeros(2, dtype=torch.uint8)]
    device_decoding.find_decoder(CPU)(files, CPU)
    assert calls[1:] == [((files,), {"mode": "RGB", "device": CPU})], "the first one is the trial"


def test_a_device_that_decodes_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(files: list[Tensor], device: torch.device) -> list[Tensor]:
        raise RuntimeError("torchvision not compiled with nvJPEG support\nException raised from ...")

    monkeypatch.setattr(device_decoding, "DECODERS", (device_decoding.use_torchcodec, lambda: refuse))
    expected = r"no JPEG can be decoded on cpu \(torchvision not compiled with nvJPEG support\): pip install torchcodec"
    with pytest.raises(InputError, match=expected):
        device_decoding.find_decoder(CPU)


# ---- a loader ----


def make_table(folder: Path) -> Table:
    """Files of each kind, and more of the plain one."""
    kinds = {**TAKEN, **LEFT} | {f"plain {seed}": lambda seed=seed: encode(draw(seed, (80, 50))) for seed in range(4)}
    paths = []
    for number, make in enumerate(kinds.values()):
        path = folder / f"{number:02}.jpg"
        path.write_bytes(make())
        paths.append(str(path))
    return Table(paths, np.eye(len(paths), 3, dtype=np.int8), ("a", "b", "c"))


def load(table: Table, options: LoadingOptions, shuffle: bool = True) -> DataLoader[Batch]:
    transform = augmentations.make_train_transform(Augmentation("crop_flip"), 24)
    loader = loading.make_loader(table, transform, 5, shuffle=shuffle, seed=3, options=options)
    loading.set_epoch(loader, 2)
    return loader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_are_those_of_the_cpu(num_workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = make_table(tmp_path)
    plain = list(load(table, LoadingOptions()))
    warned = capfd.readouterr().err
    assert warned.count("part of the picture is lost") == 1
    decoding._said.clear()
    sent = list(load(table, ON_DEVICE._replace(processes=LoadingProcesses(num_workers))))
    assert capfd.readouterr().err == warned, "the damaged file is named, once"
    assert any(isinstance(batch.images, SentFiles) for batch in sent)
    for ours, other in zip(sent, plain, strict=True):
        assert len(ours.images) == len(other.images)
        assert torch.equal(ours.targets, other.targets)
        assert (ours.to(CPU).images.int() - other.images.int()).abs().max() <= 3


def test_only_files_are_sent_that_the_gpu_decodes(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    files = [batch.images for batch in load(table, ON_DEVICE, shuffle=False)]
    names = [sent.name for batch in files if isinstance(batch, SentFiles) for sent in batch.sent if sent.name]
    assert names == [path for number, path in enumerate(table.paths) if not 7 <= number < 13]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0broken"])
def test_an_unreadable_image_is_the_same_line(data: bytes, tmp_path: Path) -> None:
    table = make_table(tmp_path)
    Path(table.paths[3]).write_bytes(data)
    messages = []
    for options in (LoadingOptions(), ON_DEVICE, ON_DEVICE._replace(processes=LoadingProcesses(1))):
        with pytest.raises(InputError, match=r"^cannot read image [^\n]*03\.jpg: [^\n]+$") as error:
            list(load(table, options))
        messages.append(str(error.value))
    assert len(set(messages)) == 1
    Path(table.paths[3]).unlink()
    with pytest.raises(InputError, match=r"^cannot read image [^\n]*03\.jpg: No such file or directory$"):
        list(load(table, ON_DEVICE))


def test_a_file_that_is_sent_is_as_it_was(tmp_path: Path) -> None:
    data = encode(draw())
    planner = loading.make_planner(augmentations.make_eval_transform("squash", 24))
    sent = device_decoding.take_file(data, "a.jpg", lambda height, width: planner(height, width, 0))
    assert isinstance(sent, File)
    assert (sent.data, sent.name) == (data, "a.jpg")
