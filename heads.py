"""From a backbone's features to one logit a class: `HEADS[name](num_features, num_classes, **options)`.

A head takes a feature map (B, D, h, w) or tokens (B, T, D) of any size and gives logits (B, C). Options are plain
Python values; what data decides is set afterwards and kept in the state dict, in shapes that follow from the options:

    head = HEADS["gcn"](2048, 80)
    head.set_graph(count_adjacency(targets), read_embeddings(Path("glove.6B.300d.txt"), classes))
    set_prior(HEADS["linear"](2048, 80), count_frequencies(targets))

A head's `pools` says whether all it uses of the features is `pool(features)`: then (B, D, 1, 1) of these means serve
as well. Its `bias` is the parameter (C,) added last, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from utils import InputError


def pool(features: Tensor) -> Tensor:
    """Mean over all positions: (B, D, h, w) or (B, T, D) -> (B, D)."""
    return features.mean(dim=(2, 3)) if features.dim() == 4 else features.mean(dim=1)


class Linear(nn.Linear):
    """Mean over positions, then Linear(D -> C)."""

    pools = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(pool(input))


class LinearBN(nn.Module):
    """Mean over positions, then Linear(D -> C) and BatchNorm1d(C)."""

    pools = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)
        self.norm = nn.BatchNorm1d(num_classes)

    @property
    def bias(self) -> Tensor:
        return self.norm.bias

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.linear(pool(features)))


class PerLabelMLP(nn.Module):
    """Mean over positions, then a network for each class: Linear(D -> hidden), ReLU, Dropout, Linear(hidden -> 1)."""

    pools = True

    def __init__(self, num_features: int, num_classes: int, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, num_classes * hidden)
        self.dropout = nn.Dropout(dropout)
        # never called, but its row c has the shape and the initial range of class c's Linear(hidden -> 1)
        self.output = nn.Linear(hidden, num_classes)

    @property
    def bias(self) -> Tensor:
        return self.output.bias

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.dropout(self.hidden(pool(features)).relu())
        hidden = hidden.unflatten(1, self.output.weight.shape)
        # (hidden * weight).sum(dim=2) is quicker, but OpenVINO 2026.4 gets it wrong for all images but the first
        return torch.einsum("bch,ch->bc", hidden, self.output.weight) + self.bias


def _cosine(features: Tensor, weight: Tensor) -> Tensor:
    """Cosines (B, C) of the angles between the rows of (B, D) and those of (C, D)."""
    return functional.linear(functional.normalize(features, dim=-1), functional.normalize(weight, dim=-1))


class Cosine(nn.Module):
    """Mean over positions; logits are scale x its cosine with each class's weights (Prokofiev and Sovrasov 2022)."""

    pools = True
    bias = None

    def __init__(self, num_features: int, num_classes: int, scale: float = 23.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(functional.normalize(torch.randn(num_classes, num_features), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * _cosine(pool(features), self.weight)


class MLDecoder(nn.Module):
    """A transformer decoder layer whose fixed queries look at all positions (Ridnik et al. 2021, arXiv 2111.12933).

    The queries are G = min(C, num_groups); query g gives the logits of the classes from g * ceil(C / G) on. There is no
    attention among them. With `cosine_scale` (None or 0: off) a logit is that times a cosine, as in `Cosine`.
    """

    pools = False
    WIDTH, DROPOUT = 768, 0.1

    def __init__(
        self, num_features: int, num_classes: int, num_groups: int = 100, cosine_scale: float | None = None
    ) -> None:
        super().__init__()
        if num_groups < 1:
            raise InputError(f"ml_decoder needs at least one group of classes, not {num_groups}")
        num_groups = min(num_classes, num_groups)
        group_size = -(-num_classes // num_groups)  # rounded up
        self.num_classes, self.cosine_scale = num_classes, cosine_scale
        self.embed = nn.Linear(num_features, self.WIDTH)
        self.queries = nn.Parameter(torch.randn(num_groups, self.WIDTH), requires_grad=False)
        self.attention = nn.MultiheadAttention(self.WIDTH, 8, dropout=self.DROPOUT, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(self.WIDTH, 2048), nn.ReLU(), nn.Dropout(self.DROPOUT), nn.Linear(2048, self.WIDTH)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(self.WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(self.DROPOUT)
        # Glorot's normal range for each group's Linear by itself
        std = (2 / (self.WIDTH + group_size)) ** 0.5
        self.weight = nn.Parameter(torch.randn(num_groups, group_size, self.WIDTH) * std)
        self.bias = None if cosine_scale else nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        return self.attend(features, need_attention=False)[0]

    def attend(self, features: Tensor, need_attention: bool = True) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C), and how much each query looked at each position, (B, G, T), the mean over attention heads."""
        tokens = self.embed(_as_tokens(features)).relu()
        queries = self.queries.expand(tokens.shape[0], -1, -1)  # len() would fix the batch size of an export
        queries = self.norm1(queries + self.dropout(queries))
        seen, attention = self.attention(queries, tokens, tokens, need_weights=need_attention)
        queries = self.norm2(queries + self.dropout(seen))
        queries = self.norm3(queries + self.dropout(self.feed_forward(queries)))
        weight = self.weight
        if self.cosine_scale:
            queries = self.cosine_scale * functional.normalize(queries, dim=2)
            weight = functional.normalize(weight, dim=2)
        logits = torch.einsum("bgd,gcd->bgc", queries, weight).flatten(1)[:, : self.num_classes]
        return logits if self.bias is None else logits + self.bias, attention


def _as_tokens(features: Tensor) -> Tensor:
    """(B, D, h, w) or (B, T, D) -> (B, T, D)."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


class GCN(nn.Module):
    """Class weights (C, D) from a graph: two layers x -> A x W over class embeddings (Chen et al. 2019, ML-GCN).

    A logit is the product of its class's weights and the features' maximum over positions. With `reweights_channels`
    (Prokofiev and Sovrasov 2022) the sigmoid of their maximum over classes multiplies the mean over positions, and
    a `Linear` follows. With `cosine_scale` (None or 0: off) a logit is that times a cosine.
    `set_graph` gives the graph; until then each class is linked to itself only and its embedding is random.
    """

    pools = False  # with reweights_channels it is True
    HIDDEN = 1024
    adjacency: Tensor
    embeddings: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        embedding_size: int = 300,
        reweights_channels: bool = False,
        cosine_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.pools, self.cosine_scale = reweights_channels, cosine_scale
        self.register_buffer("adjacency", torch.eye(num_classes))
        # of about unit length: the products with unnormalised features start small
        self.register_buffer("embeddings", torch.randn(num_classes, embedding_size) / embedding_size**0.5)
        self.layer1 = nn.Linear(embedding_size, self.HIDDEN, bias=False)
        self.layer2 = nn.Linear(self.HIDDEN, num_features, bias=False)
        for layer in (self.layer1, self.layer2):
            nn.init.uniform_(layer.weight, -(layer.out_features**-0.5), layer.out_features**-0.5)  # as published
        self.classifier = None
        if reweights_channels:
            self.classifier = (
                Cosine(num_features, num_classes, cosine_scale) if cosine_scale else Linear(num_features, num_classes)
            )

    @property
    def bias(self) -> Tensor | None:
        return None if self.classifier is None else self.classifier.bias

    def set_graph(self, adjacency: Tensor | None = None, embeddings: Tensor | None = None) -> None:
        """Take `count_adjacency`'s (C, C) and `read_embeddings`' (C, E); None leaves what is there."""
        for name, value in (("adjacency", adjacency), ("embeddings", embeddings)):
            if value is not None:
                buffer = self.get_buffer(name)
                if value.shape != buffer.shape:
                    raise InputError(f"the gcn head's {name} must be {tuple(buffer.shape)}, not {tuple(value.shape)}")
                buffer.copy_(value)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.leaky_relu(self.adjacency @ self.layer1(self.embeddings), 0.2)
        weight = self.adjacency @ self.layer2(hidden)
        if self.classifier is not None:
            features = pool(features) * weight.amax(dim=0).sigmoid()
            return self.classifier(features[:, None])
        features = _as_tokens(features).amax(dim=1)
        if self.cosine_scale:
            return self.cosine_scale * _cosine(features, weight)
        return functional.linear(features, weight)


def count_adjacency(targets: ArrayLike, threshold: float = 0.4, share: float = 0.25) -> Tensor:
    """ML-GCN's normalised adjacency (C, C) float32 from an (N, C) 0 / 1 / -1 matrix; -1 and NaN left out.

    Class i is linked to j where P(j | i) >= `threshold`, among images where both are known. The links to a class
    weigh `share` together and the class itself 1. A class that is never present links to none.
    """
    targets = np.asarray(targets)
    present = (targets == 1).astype(np.float64)
    known = present + (targets == 0)
    links = present.T @ present / np.maximum(present.T @ known, 1) >= threshold
    np.fill_diagonal(links, False)
    # Chen et al. 2019, eq. 6-8, as their code has it: 1, not 1 - share, for the class itself; and (A D)^T D with D =
    # diag(row sums)^-1/2, so that a class receives from those that imply it
    adjacency = share * links / (links.sum(axis=0) + 1e-6) + np.eye(len(links))
    scale = adjacency.sum(axis=1) ** -0.5
    return torch.tensor(scale[:, None] * adjacency.T * scale, dtype=torch.float32)


def read_embeddings(path: Path, classes: Sequence[str]) -> Tensor:
    """Class embeddings (C, E) float32: a `.npy` matrix, or the words of a text file of lines `word v1 v2 ...` (GloVe).

    From words, a class is the mean of those in its name, in lower case. Raises InputError for a file that cannot be
    read, a matrix of another shape, values that are no finite numbers, and classes with words that the file lacks.
    """
    try:
        matrix = np.asarray(np.load(path) if path.suffix == ".npy" else _read_words(path, classes), dtype=np.float64)
        if matrix.ndim != 2 or len(matrix) != len(classes):
            raise ValueError(f"a row for each of {len(classes)} classes is needed, its shape is {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError("not all values are finite")
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"cannot use embeddings {path}: {error}") from error
    return torch.tensor(matrix, dtype=torch.float32)


def _read_words(path: Path, classes: Sequence[str]) -> list[NDArray[np.float64]]:
    words = {name: name.lower().replace("_", " ").split() for name in classes}
    wanted, vectors, size = {word for name in classes for word in words[name]}, {}, 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            size = size or len(line.split()) - 1
            if line.partition(" ")[0] in wanted:
                word, *values = line.rstrip().rsplit(" ", size)  # some of GloVe's words have a space in them
                try:
                    vectors[word] = np.array(values, dtype=np.float64).reshape(size)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
    lacking = [name for name in classes if not words[name] or not vectors.keys() >= set(words[name])]
    if lacking:
        raise ValueError(
            f"it lacks words of {len(lacking)} of {len(classes)} classes: {', '.join(lacking[:10])}"
            f"{', ...' if len(lacking) > 10 else ''}; give a .npy matrix with a row a class instead"
        )
    return [np.mean([vectors[word] for word in words[name]], axis=0) for name in classes]


def set_prior(head: nn.Module, frequencies: Tensor) -> None:
    """Set the final bias to log(p / (1 - p)) of the class frequencies (C,), so that training starts from them.

    As for focal loss (Lin et al. 2017, section 3.3) and in place of sampling (Chen et al. 2019, "Is Sampling Heuristics
    Necessary in Training Deep Object Detectors"). Raises InputError for a head that adds no bias to its logits.
    """
    bias = getattr(head, "bias", None)
    if bias is None:
        raise InputError(
            f"a {type(head).__name__} head with these options has no final bias: set USE_PRIOR_BIAS to False"
        )
    if frequencies.shape != bias.shape or not ((frequencies > 0) & (frequencies < 1)).all():
        raise InputError(f"class frequencies must be {len(bias)} numbers between 0 and 1, not {frequencies.tolist()}")
    with torch.no_grad():
        bias.copy_(frequencies.logit())


def count_frequencies(targets: ArrayLike) -> Tensor:
    """Share of images with each class, (C,) float32, from an (N, C) 0 / 1 / -1 matrix; -1 and NaN left out.

    Never 0 or 1: a class of none or all of n images counts as one of half an image, or n - 1/2. Without any it is 1/2.
    """
    targets = np.asarray(targets)
    positives, known = (targets == 1).sum(axis=0), ((targets == 0) | (targets == 1)).sum(axis=0)
    inside = np.clip(positives, 0.5, np.maximum(known - 0.5, 0.5))
    return torch.tensor(inside / np.maximum(known, 1), dtype=torch.float32)


HEADS: dict[str, Callable[..., nn.Module]] = {
    "linear": Linear,
    "linear_bn": LinearBN,
    "per_label_mlp": PerLabelMLP,
    "cosine": Cosine,
    "ml_decoder": MLDecoder,
    "gcn": GCN,
}

# the heads whose logits can be scale x cosine, which the angular loss needs -> the option that sets the scale
SCALE_OPTIONS = {"cosine": "scale", "ml_decoder": "cosine_scale", "gcn": "cosine_scale"}


def needs_map(name: str, **options: Any) -> bool:
    """Whether a head with these options uses more than the mean over positions: `not pools`, before it is made."""
    return not (getattr(HEADS[name], "pools", False) or options.get("reweights_channels", False))
