"""Backbones of your own: a class or function, and a line in OWN_BACKBONES at the end. MODEL_NAME is then its name.

    class TwoLayers(nn.Module):
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)    # of pixels in 0-1; without them ImageNet's

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 32, 7, 4, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())

        def forward(self, pixels: Tensor) -> Tensor:    # normalised (B, 3, H, W) -> a map (B, D, h, w)
            return self.layers(pixels)

    OWN_BACKBONES = {"two_layers": TwoLayers}

Tokens (B, T, D) will do as well as a map. Each is called without arguments. Nobody publishes weights of it: train it
with `--PRETRAINED_WEIGHTS None --FREEZE_BACKBONE False`, or set PRETRAINED_WEIGHTS to a file of your own. A checkpoint
holds the name: keep the line as long as a model of it is in use.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

OWN_BACKBONES: dict[str, Callable[[], nn.Module]] = {}
