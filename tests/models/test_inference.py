"""models/inference.py: probabilities are those of the weights as they are now."""

from __future__ import annotations

import copy

import numpy as np
import torch
from random_models import compute_plain, draw_images
from timm.models.levit import Attention
from torch import Tensor, nn

from dataset.batches import Batch
from models import inference


class Levit(nn.Module):
    """One layer of LeViT, on the mean colours of a picture's quarters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 8), Attention(8, key_dim=4, num_heads=2, resolution=(2, 2))

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(2).transpose(1, 2)
        return self.attention(self.embed(quarters)).mean(dim=1)


def test_weights_that_change_between_two_validations_are_seen() -> None:
    """As averaged weights do: they are never in training, where timm drops what it keeps of the biases."""
    torch.manual_seed(0)
    model, images = Levit(), draw_images(3)
    nn.init.normal_(model.embed.weight, std=20.0)  # so that the quarters differ
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.ones_(norm.weight)  # LeViT's last one begins with zeros
    batch = Batch(images, torch.zeros(3, 8), torch.ones(3))
    first = next(inference.compute_probabilities(model, [batch], torch.device("cpu")))
    nn.init.normal_(model.attention.attention_biases, std=5.0)
    fresh = copy.deepcopy(model).train().eval()
    second = next(inference.compute_probabilities(model, [batch], torch.device("cpu")))
    np.testing.assert_allclose(second, compute_plain(fresh, images).sigmoid().numpy(), rtol=1e-5)
    assert np.abs(second - first).max() > 0.01
