"""trainer/random_state.py: a seed repeats every source, and a state that was kept goes on with the same numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trainer import random_state


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


def test_seeding_repeats_every_source() -> None:
    random_state.seed_everything(5)
    first = draw()
    random_state.seed_everything(5)
    assert draw() == first
    assert len(set(first + draw())) == 6


def test_a_state_that_was_kept_goes_on_with_the_same_numbers() -> None:
    cpu = torch.device("cpu")
    random_state.seed_everything(5)
    draw()
    state = random_state.get_random_state(cpu)
    expected = draw()
    random_state.seed_everything(6)
    random_state.set_random_state(state, cpu)
    assert draw() == expected


def test_beside_a_gpu_kernels_are_deterministic_and_memory_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        random_state.seed_everything(5)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        torch.use_deterministic_algorithms(before)
