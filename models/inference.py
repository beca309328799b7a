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
    """Yield probabilities (B, C) for each batch. Puts `model` in eval mode.

    `on_batch(batch, logits)` is called for each batch, for example to measure the loss. `activation` is a key of
    ACTIVATIONS. The arrays may be joined:

        probabilities = np.concatenate(list(compute_probabilities(model, loader, device)))
    """
    model.eval()
    for batch in batches:
        batch = batch.to(device)
        with torch.inference_mode(), autocast():
            logits = model(batch.images).float()
        if on_batch:
            on_batch(batch, logits)
        yield ACTIVATIONS[activation](logits).cpu().numpy()


# functions from logits (B, C) to probabilities (B, C)
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=1),  # for models that were trained with one label for each image
}
