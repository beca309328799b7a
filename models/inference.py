"""Runs a network over batches, and turns logits into probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dataset.batches import Batch


def compute_probabilities(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], Any] = nullcontext,
    on_batch: Callable[[Batch, torch.Tensor], None] | None = None,
    activation: str = "sigmoid",
) -> Iterator[NDArray[np.float32]]:
    """(B, C) probabilities of each batch, with `model` in eval mode; `on_batch(batch, logits)` may look on."""
    model.eval()
    for batch in batches:
        batch = batch.to(device)
        with torch.inference_mode(), autocast():
            logits = model(batch.images).float()
        if on_batch:
            on_batch(batch, logits)
        yield ACTIVATIONS[activation](logits).cpu().numpy()


# what turns logits (B, C) into probabilities
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=1),  # of a model trained on one label an image
}
