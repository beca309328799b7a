"""models/devices.py: what each "auto" becomes on a CPU and on a GPU, and the line that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models import devices
from models.devices import choose_settings
from utils import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that computes in bf16, in a machine of 16 cores."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def test_devices() -> None:
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=f"DEVICE '{name}' is not to be had here"):
            devices.choose_device(name)


def test_autocast_computes_in_the_precision() -> None:
    for precision, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        autocast, scales = devices.make_autocast(precision, CPU)
        with autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert not scales
    assert devices.make_autocast("fp16", CPU)[1]


@pytest.mark.usefixtures("h100")
def test_what_auto_becomes() -> None:
    cpu, gpu = choose_settings(CPU, precision="auto"), choose_settings(GPU, precision="auto")
    assert cpu == (CPU, "off", True, False, False, 0, False, False)
    assert gpu == (GPU, "bf16", True, False, False, 15, True, False)
    assert choose_settings(GPU, changes_pixels=True).makes_pictures_on_gpu
    assert not choose_settings(CPU, changes_pixels=True).makes_pictures_on_gpu
    assert choose_settings(torch.device("mps"), precision="auto") == (
        torch.device("mps"), "off", False, False, False, 15, False, False,
    )  # fmt: skip


@pytest.mark.usefixtures("h100")
def test_what_a_constant_says_holds() -> None:
    asked: dict[str, Any] = {"num_workers": 3, "pictures_on": "cpu", "compiles": True, "changes_pixels": True}
    for device in (CPU, GPU):
        for precision in ("off", "bf16", "fp16"):
            settings = choose_settings(device, precision=precision, **asked)
            assert (settings.precision, settings.num_workers, settings.compiles) == (precision, 3, True)
            assert not settings.makes_pictures_on_gpu
    settings = choose_settings(GPU, pictures_on="gpu", num_workers=0)
    assert (settings.makes_pictures_on_gpu, settings.decodes_on_gpu, settings.num_workers) == (True, True, 0)
    with pytest.raises(InputError, match="PICTURES_ON is gpu, and the device is cpu: set it to auto"):
        choose_settings(CPU, pictures_on="gpu")


def test_an_older_gpu_gets_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_settings(GPU, precision="auto").precision == "fp16"


@pytest.mark.parametrize(("cores", "processes", "expected"), [(4, 1, 3), (1, 1, 1), (64, 1, 16), (64, 8, 7), (8, 8, 1)])
def test_loading_processes_share_the_cores(
    cores: int, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert devices.count_loading_processes(GPU) == expected
    assert devices.count_loading_processes(CPU) == 0


@pytest.mark.usefixtures("h100")
def test_one_line_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [*nn.Linear(2, 2).parameters()]
    fused, plain = torch.optim.AdamW(weights, fused=True), torch.optim.RAdam(weights)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert choose_settings(CPU, num_workers=1).describe() == (
        "on cpu (2 threads): float32, channels_last, pictures on the CPU, 1 loading process"
    )
    text = choose_settings(GPU, precision="auto", changes_pixels=True).describe(fused)
    assert text == (
        "on cuda (NVIDIA H100): bf16, fused AdamW, channels_last, pictures on the GPU, "
        "15 loading processes, not compiled"
    )
    text = choose_settings(GPU, pictures_on="gpu", num_workers=0, compiles=True).describe(plain)
    assert text == (
        "on cuda (NVIDIA H100): float32 (convolutions in TF32), RAdam, channels_last, pictures decoded and made on the "
        "GPU, no loading processes, compiled (the first steps take minutes)"
    )
