"""Runs in float64. A few steps magnify rounding, Adam's most of all where a gradient is nothing but rounding; with 53
bits what comes of it stays far below what any fault changes, whatever processor computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def float64() -> Iterator[None]:
    """Networks made inside have float64 weights, and take float32 (kept features) as float64."""

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.double() if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x for x in inputs)

    hook = nn.modules.module.register_module_forward_pre_hook(widen)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        hook.remove()
