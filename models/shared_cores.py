"""Ends the spinning of torch's threads while other programs need the same cores.

    with share_cores():
        ...         # training, testing

torch computes one operation on several threads, which then wait for each other. They spin: they look again and again,
for some milliseconds, before they sleep. That is the quickest way while every thread has a core of its own. But where
another program runs on the same cores, a spinning thread keeps the core from the thread that it waits for. Two runs
side by side then take many times as long (benchmarks/side_by_side.py).

libgomp, torch's thread library on Linux, spins for a short time only while a process has more threads than cores
(`gomp_throttled_spin_count_var` in its source). So an idle second team of threads ends the spinning, and the end of
this team brings it back. As many threads compute as before, so results are the same to the last bit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SECONDS_BETWEEN_LOOKS = 1.0
LEAST_LACK = 0.2  # cores; less of a lack is noise, such as a browser in the background
PARALLEL_SIZE = 1 << 20  # entries of a tensor that torch adds up on several threads; it does so from 32,768 on
CPU_TIMES = Path("/proc/stat")  # Linux only, as libgomp is


@contextmanager
def share_cores() -> Iterator[None]:
    """Within `with`, threads of torch spin only while there is a core for each of them. Changes no result."""
    if torch.get_num_threads() == 1 or not CPU_TIMES.is_file():
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), daemon=True, name="shared cores")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def lacks_cores(num_cores: int, num_threads: int, used_by_others: float) -> bool:
    """Whether `num_threads` threads have less than a core each. Others use `used_by_others` of `num_cores` cores."""
    return used_by_others + num_threads > num_cores + LEAST_LACK


def read_busy_seconds(cores: Collection[int]) -> float:
    """How long `cores` have been computing, for any program, since the machine started."""
    names, seconds = {f"cpu{core}" for core in cores}, 0.0
    for line in CPU_TIMES.read_text().splitlines():
        name, *ticks = line.split()
        if name in names:  # man 5 proc: user, nice, system, idle, iowait, irq, softirq, ...
            user, nice, system, _, _, irq, softirq = map(int, ticks[:7])
            seconds += (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return seconds


def _watch(ended: threading.Event) -> None:
    """Hold a second team of threads whenever cores are lacking, until `ended` is set."""
    cores = os.sched_getaffinity(0)
    num_threads = torch.get_num_threads()
    all_gone = threading.Event()  # set: the second team ends
    team: threading.Thread | None = None
    last_busy, last_own, last_time = read_busy_seconds(cores), time.process_time(), time.monotonic()
    while not ended.wait(SECONDS_BETWEEN_LOOKS):
        busy, own, now = read_busy_seconds(cores), time.process_time(), time.monotonic()
        used_by_others = (busy - last_busy - (own - last_own)) / (now - last_time)
        last_busy, last_own, last_time = busy, own, now
        is_lacking = lacks_cores(len(cores), num_threads, used_by_others)
        if is_lacking and team is None:
            all_gone.clear()
            team = threading.Thread(target=_hold_team, args=(all_gone,), daemon=True, name="second team")
            team.start()
        elif not is_lacking and team is not None:
            all_gone.set()
            team.join()
            team = None
    all_gone.set()
    if team is not None:
        team.join()


def _hold_team(all_gone: threading.Event) -> None:
    """Have libgomp make a team of threads for this thread. It is gone when this thread ends."""
    torch.ones(PARALLEL_SIZE).add_(1)
    all_gone.wait()
