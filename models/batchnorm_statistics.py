"""Keeps BatchNorm's running statistics unchanged during forward passes in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def keep_statistics(model: nn.Module) -> Iterator[None]:
    """Inside `with`, BatchNorm in training mode normalises by the batch and does not update its statistics.

    with keep_statistics(model):
        model(images)
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    momenta, old_counts = [norm.momentum for norm in norms], [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0  # the share of a batch in the statistics
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, old_count in zip(counts, old_counts, strict=True):
            count.copy_(old_count)
