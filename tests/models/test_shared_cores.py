"""models/shared_cores.py: a second team of threads is there exactly while cores are lacking, and changes no result."""

import itertools
import os
import threading
import time

import pytest
import torch
from torch import Tensor, nn

from models import shared_cores
from models.shared_cores import lacks_cores, read_busy_seconds, share_cores


@pytest.mark.parametrize(
    ("num_cores", "num_threads", "used_by_others", "expected"),
    [
        (2, 2, 0.0, False),
        (2, 2, 0.1, False),
        (2, 2, 0.9, True),
        (2, 1, 1.0, False),  # a core each
        (16, 8, 8.0, False),
        (16, 8, 8.5, True),
        (4, 8, 0.0, True),  # more threads than cores
    ],
)
def test_when_cores_are_lacking(num_cores: int, num_threads: int, used_by_others: float, expected: bool) -> None:
    assert lacks_cores(num_cores, num_threads, used_by_others) == expected


@pytest.mark.skipif(not shared_cores.CPU_TIMES.is_file(), reason="only Linux has /proc/stat")
def test_busy_seconds_count_this_process_too() -> None:
    cores = os.sched_getaffinity(0)
    before, start = read_busy_seconds(cores), time.process_time()
    while time.process_time() - start < 0.3:
        pass
    assert read_busy_seconds(cores) - before > 0.25  # the system counts in hundredths of a second
    assert read_busy_seconds(()) == 0


@pytest.mark.skipif(not shared_cores.CPU_TIMES.is_file(), reason="only Linux has /proc/stat")
def test_a_second_team_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    is_crowded = threading.Event()
    seconds = itertools.count(step=1000)  # between two looks, others computed for 1,000 s, or for less than none
    monkeypatch.setattr(shared_cores, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(shared_cores, "read_busy_seconds", lambda _: next(seconds) if is_crowded.is_set() else 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def has_team() -> bool:
        return any(thread.name == "second team" for thread in threading.enumerate())

    def wait_until(expected: bool) -> None:
        while has_team() != expected:
            time.sleep(0.01)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with share_cores():
        assert not has_team()
        is_crowded.set()
        wait_until(True)
        is_crowded.clear()
        wait_until(False)
        is_crowded.set()
        wait_until(True)
    assert not has_team()
    assert not any(thread.name == "shared cores" for thread in threading.enumerate())


def test_a_second_team_changes_no_bit() -> None:
    def take_steps() -> list[Tensor]:
        torch.default_generator.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        optimizer = torch.optim.Adam(network.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.randn(8, 3, 32, 32)).logsumexp(1).mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in network.parameters()]

    threads_before = torch.get_num_threads()
    torch.set_num_threads(2)
    gone = threading.Event()
    try:
        alone = take_steps()
        team = threading.Thread(target=shared_cores._hold_team, args=(gone,))
        team.start()
        crowded = take_steps()
    finally:
        gone.set()
        torch.set_num_threads(threads_before)
    team.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, crowded, strict=True))


def test_one_thread_needs_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with share_cores():
        assert not any(thread.name == "shared cores" for thread in threading.enumerate())
