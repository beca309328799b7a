"""Timing two ways of doing the same, in turns, so that a busy machine slows both: for the other scripts here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Way = Callable[[], object]
HEADER = f"{'plain':>10}{'ours':>10}{'ratio':>8}{'lowest':>9}{'highest':>9}"


def measure_in_turns(plain: Way, ours: Way, rounds: int, wait: Way = lambda: None) -> list[tuple[float, float]]:
    """(seconds of plain, seconds of ours) for each round, after one that is not counted.

    Which one goes first alternates. `wait` returns when a GPU has done its work.
    """
    seconds = []
    for i in range(rounds + 1):
        taken = {}
        for way in (plain, ours) if i % 2 else (ours, plain):
            wait()
            start = time.perf_counter()
            way()
            wait()
            taken[way] = time.perf_counter() - start
        seconds.append((taken[plain], taken[ours]))
    return seconds[1:]


def print_row(title: str, seconds: list[tuple[float, float]], num_items: int | None = None) -> None:
    """Median seconds of both ways, or items a second, and the median, lowest and highest ratio of a round."""
    ratios = [plain / ours for plain, ours in seconds]
    medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
    cells = [f"{num_items / median:10.0f}" if num_items else f"{median:10.4f}" for median in medians]
    spread = f"{statistics.median(ratios):8.2f}{min(ratios):9.2f}{max(ratios):9.2f}"
    print(f"{title:32}{''.join(cells)}{spread}", flush=True)
