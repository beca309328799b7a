"""dataset/loading_processes.py: more processes where the model waited, and no more than shared memory has room for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset import loading, loading_processes
from dataset.image_sizes import Size
from dataset.loading_processes import ALONE, IN_USE, LoadingProcesses

BATCH_BYTES = 1_000_000


@pytest.mark.parametrize(
    ("before", "waiting_share", "expected"),
    [
        ((4, 2), 0.05, (4, 2)),
        ((4, 2), 0.06, (8, 2)),
        ((8, 2), 0.5, (15, 2)),
        ((15, 2), 0.5, (15, 4)),
        ((15, 4), 0.9, (15, 4)),
        ((20, 2), 0.9, (20, 4)),  # NUM_WORKERS said more than there are cores
        ((0, 2), 0.9, (0, 2)),  # as on a CPU
    ],
)
def test_a_model_that_waits_gets_more(before: tuple[int, int], waiting_share: float, expected: tuple[int, int]) -> None:
    assert LoadingProcesses(*before).grow(waiting_share, most=15) == expected


@pytest.mark.parametrize(
    ("processes", "num_batches", "expected"),
    [
        ((4, 2), 8, (4, 2)),
        ((4, 2), 7, (4, 1)),
        ((4, 4), 9, (4, 2)),
        ((4, 2), 4, (4, 1)),
        ((4, 2), 3, (3, 1)),
        ((4, 2), 1, (1, 1)),
        ((4, 2), 0, (0, 1)),
        ((4, 2), -5, (0, 1)),
    ],
)
def test_no_more_than_there_is_room_for(
    processes: tuple[int, int],
    num_batches: int,
    expected: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`num_batches` have room beside those in use."""
    found = SimpleNamespace(f_bavail=(num_batches + IN_USE) * BATCH_BYTES // 4096 + 1, f_frsize=4096)
    monkeypatch.setattr(loading_processes, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loading_processes.os, "statvfs", lambda folder: found)
    assert LoadingProcesses(*processes).fit(BATCH_BYTES, is_pinned=False) == expected
    said = capsys.readouterr().err
    assert bool(said) == (processes != expected)
    if said:
        needed = (processes[0] * processes[1] + IN_USE) / 1000
        assert f"{processes[0]} loading processes may need {needed:.2g} GB: " in said
        assert said.endswith(
            f"{LoadingProcesses(*expected).describe()} instead; give a container more (docker run --shm-size 8g)\n"
        )
    assert LoadingProcesses(*processes).fit(BATCH_BYTES, is_pinned=False) == expected, "as for the next loader"
    assert not capsys.readouterr().err
    assert ALONE.fit(10**12, is_pinned=False) == ALONE


def test_processes_on_a_machine_share_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(f_bavail=2 * (8 + IN_USE) * BATCH_BYTES // 1000, f_frsize=1000)
    monkeypatch.setattr(loading_processes, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loading_processes.os, "statvfs", lambda folder: found)
    for count, expected in ((2, (4, 2)), (4, (0, 1))):
        monkeypatch.setattr(loading_processes.distributed, "place", lambda count=count: (0, count))
        assert LoadingProcesses(4).fit(BATCH_BYTES, is_pinned=False) == expected
    assert LoadingProcesses(4).fit(BATCH_BYTES, is_pinned=True) == (4, 2), "batches do not stay there"


def test_a_system_without_that_folder_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_processes, "SHARED_MEMORY", tmp_path / "shm")
    assert LoadingProcesses(4).fit(10**15, is_pinned=True) == LoadingProcesses(4)


def test_files_that_a_gpu_decodes_count_with_their_size(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.jpg") for number in range(3)]
    for path, num_bytes in zip(paths, (10, 90_000, 200), strict=True):
        Path(path).write_bytes(bytes(num_bytes))
    size = Size(32, 64)
    assert loading.measure_sent_bytes(paths, size, False, False) == 3 * 32 * 64
    assert loading.measure_sent_bytes(paths, size, True, False) == 6.25 * 3 * 32 * 64
    assert loading.measure_sent_bytes(paths, size, True, True) == 90_000
    assert loading.measure_sent_bytes([paths[0]], size, True, True) == 6.25 * 3 * 32 * 64
