"""What a head that pools sees of a network: which tokens, or which numbers of a map, as one row (B, D', 1, 1).

    pooling = Pooling("class_and_mean", num_prefix_tokens=1)
    pooling(tokens)                                     # (B, T, D) -> (B, 2 D, 1, 1)
    find_default("vit_small_patch14_dinov2.lvd142m")    # "class_and_mean"

models/backbones.py puts a `Pooling` behind a network, and says which FEATURES the network has.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

OWN = "own"  # the network's own input of its classifier
LAST_BLOCKS = "last_blocks"
NUM_BLOCKS = 4  # that LAST_BLOCKS joins, as DINOv2's linear evaluation does at most

# keys: FEATURES that are made of the network's last map or tokens; values: the parts that are joined
PARTS: dict[str, tuple[str, ...]] = {
    "class_token": ("class",),
    "mean": ("mean",),
    "class_and_mean": ("class", "mean"),
    "mean_and_max": ("mean", "max"),
}
FEATURES = (OWN, *PARTS, LAST_BLOCKS)

# patterns of timm's names ARCHITECTURE.TAG -> what the authors of these weights give to a linear classifier. For all
# other networks "auto" is OWN, which is what their authors probe, or their own classifiers see:
# * CLIP: the class token before the projection (Radford et al. 2021, 2103.00020); SigLIP: the output of its attention
#   pooling (Zhai et al. 2023, 2303.15343);
# * ViT, DeiT, MAE: the class token (Dosovitskiy et al. 2021, 2010.11929; He et al. 2022, 2111.06377);
# * EVA-02, BEiT: the mean of the patches (Fang et al. 2023, 2303.11331; Bao et al. 2022, 2106.08254);
# * Swin (Liu et al. 2021, 2103.14030), ConvNeXt (Liu et al. 2022, 2201.03545), convolutions: the mean of the map.
FEATURES_OF: dict[str, str] = {
    # The model cards of DINOv2 (Oquab et al. 2023, 2304.07193) and DINOv3 (Simeoni et al. 2025, 2508.10104): "with a
    # linear layer applied on the class token and the average of the patch tokens". The evaluation in DINOv2's
    # repository also tries the class tokens of the last four blocks, which is LAST_BLOCKS. EUPE is not DINOv3.
    r"vit_\w+_dinov2\..*": "class_and_mean",
    r"vit_\w+_dinov3(_qkvb)?\.(?!eupe).*": "class_and_mean",
    # The commands in the README of DINO (Caron et al. 2021, 2104.14294): for ViT-B the class token and the mean of the
    # patches; for ViT-S the class tokens of the last four blocks, without the mean that LAST_BLOCKS adds
    r"vit_base_\w+\.dino": "class_and_mean",
    r"vit_small_\w+\.dino": LAST_BLOCKS,
}


def find_default(full_name: str) -> str:
    """The FEATURES that "auto" means for weights that timm calls `full_name`: ARCHITECTURE.TAG."""
    return next((features for pattern, features in FEATURES_OF.items() if re.fullmatch(pattern, full_name)), OWN)


class Pooling(nn.Module):
    """A map (B, D, h, w) or tokens (B, T, D) -> the parts of `features` joined, (B, D', 1, 1).

    The first of the tokens is the class token, where there is one; `num_prefix_tokens` counts it and the registers,
    which are no patches.
    """

    def __init__(self, features: str, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.parts, self.num_prefix_tokens = PARTS[features], num_prefix_tokens

    def forward(self, features: Tensor) -> Tensor:
        patches, positions = features, (2, 3)
        if features.dim() == 3:
            patches, positions = features[:, self.num_prefix_tokens :], (1,)
        made = []
        for part in self.parts:
            if part == "class":
                made.append(features[:, 0])
            elif part == "mean":
                made.append(patches.mean(dim=positions))
            else:
                made.append(patches.amax(dim=positions))
        return torch.cat(made, dim=1)[:, :, None, None]
