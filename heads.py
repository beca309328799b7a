"""Heads: they turn the features of a backbone into one logit for each class.

    head = HEADS["linear"](2048, 80)        # num_features D, num_classes C, then the head's options by keyword
    logits = head(features)                 # (B, D, h, w) or (B, T, D) -> (B, C)
    set_prior(head, count_frequencies(targets))

    head = HEADS["gcn"](2048, 80)
    head.set_graph(count_adjacency(targets), read_embeddings(Path("glove.6B.300d.txt"), classes))

Features are a map (B, D, h, w) or tokens (B, T, D), with any number of positions h x w or T. Options are plain Python
values. What is computed from data is set afterwards and kept in the state dict; its shapes follow from the options.

Every head has three attributes. `pools` says whether the head uses nothing of the features but `pool(features)`: such a
head gives the same logits for these means as (B, D, 1, 1). `bias` is the parameter (C,) that is added last, or None.
`by_class` names the tensors of the state dict that consist of a part for each class, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from dataset.array_files import read_array
from dataset.class_names import show_names, to_nfc
from utils import InputError, first_line


def pool(features: Tensor) -> Tensor:
    """The mean over all positions: (B, D, h, w) or (B, T, D) -> (B, D)."""
    return features.mean(dim=(2, 3)) if features.dim() == 4 else features.mean(dim=1)


def _as_tokens(features: Tensor) -> Tensor:
    """Each position as a token: (B, D, h, w) or (B, T, D) -> (B, T, D)."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def _measure_cosines(features: Tensor, weight: Tensor) -> Tensor:
    """Cosines (B, C) of the angles between features (B, D) and weights (C, D)."""
    return functional.linear(functional.normalize(features, dim=-1), functional.normalize(weight, dim=-1))


class Linear(nn.Linear):
    """The mean over positions, then Linear(D -> C)."""

    pools = True
    by_class = ("weight", "bias")

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(pool(input))


class LinearBN(nn.Module):
    """The mean over positions, then Linear(D -> C) and BatchNorm1d(C). In training a batch needs two images."""

    pools = True
    by_class = ("linear.weight", "linear.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")

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
    """The mean over positions, then a small network for each class.

    Each network is Linear(D -> hidden), ReLU, Dropout, Linear(hidden -> 1). They are computed together.
    """

    pools = True
    by_class = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")

    def __init__(self, num_features: int, num_classes: int, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, num_classes * hidden)
        self.dropout = nn.Dropout(dropout)
        # This layer is never called. Row c of its weight is Linear(hidden -> 1) of class c: same shape, same
        # initial range.
        self.output = nn.Linear(hidden, num_classes)

    @property
    def bias(self) -> Tensor:
        return self.output.bias

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.dropout(self.hidden(pool(features)).relu())
        hidden = hidden.unflatten(1, self.output.weight.shape)
        # (hidden * weight).sum(dim=2) is faster, but OpenVINO 2026.4 computes it wrong for all images but the first.
        return torch.einsum("bch,ch->bc", hidden, self.output.weight) + self.bias


class Cosine(nn.Module):
    """Logits = scale x cosine between the mean over positions and the weights of a class (Prokofiev, Sovrasov 2022)."""

    pools = True
    bias = None
    by_class = ("weight",)

    def __init__(self, num_features: int, num_classes: int, scale: float = 23.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(functional.normalize(torch.randn(num_classes, num_features), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * _measure_cosines(pool(features), self.weight)


class Kernel(nn.Module):
    """The mean over positions, compared with M landmarks, which are training images: a kernel machine.

    A logit is the sum of weight x exp(-squared distance) over the landmarks, plus a bias. Distances are those of
    (features - mean) x scale, both (D,), to landmarks within the space of the orthonormal `axes` (D, R),
    R = min(num_axes, D): what of an image lies outside that space counts, too. trainer/kernel_search.py finds all of
    these; a new head has random ones. Raises InputError for less than one landmark or axis.
    """

    pools = True
    by_class = ("weight", "bias")
    mean: Tensor
    scale: Tensor
    axes: Tensor
    landmarks: Tensor

    def __init__(self, num_features: int, num_classes: int, num_landmarks: int = 1000, num_axes: int = 512) -> None:
        super().__init__()
        if min(num_landmarks, num_axes) < 1:
            raise InputError(f"kernel needs at least one landmark and axis, not {num_landmarks} and {num_axes}")
        num_axes = min(num_axes, num_features)
        self.weight = nn.Parameter(torch.empty(num_classes, num_landmarks))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.register_buffer("axes", torch.empty(num_features, num_axes))
        self.register_buffer("landmarks", torch.empty(num_landmarks, num_axes))
        # for features of length 1 in each direction, and the landmarks, the mean square of a distance is about 1
        nn.init.normal_(self.weight, std=num_landmarks**-0.5)
        nn.init.constant_(self.scale, (2 * num_features) ** -0.5)
        nn.init.eye_(self.axes)
        nn.init.normal_(self.landmarks, std=(2 * num_axes) ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        points, outside = project((pool(features) - self.mean) * self.scale, self.axes)
        return functional.linear(compute_similarities(points, outside, self.landmarks), self.weight, self.bias)


def project(rows: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (B, R) of `rows` (B, D) along orthonormal `axes` (D, R), and the squared distances (B,) to these."""
    points = rows @ axes
    # rounding may leave less than 0 where a row lies along the axes
    return points, (rows.square().sum(dim=1) - points.square().sum(dim=1)).relu()


def compute_similarities(points: Tensor, outside: Tensor, landmarks: Tensor) -> Tensor:
    """exp(-squared distance) of images to each of `landmarks` (M, R): (B, M), in 0...1.

    Of the distance, `points` (B, R) are the images' coordinates in the space of the landmarks, and `outside` (B,) what
    their squared distance to that space is.
    """
    lengths, landmark_lengths = (rows.square().sum(dim=1) for rows in (points, landmarks))
    distances = lengths[:, None] + landmark_lengths - 2 * points @ landmarks.T
    # rounding may leave less than 0 of the distance of two equal points
    return (-(distances.relu() + outside[:, None])).exp()


class MLDecoder(nn.Module):
    """ML-Decoder: a transformer decoder layer whose queries look at all positions (Ridnik et al. 2021, 2111.12933).

    There are G = min(C, num_groups) queries. They are random, are not trained, and do not look at each other. Query g
    gives the logits of ceil(C / G) classes, from class g * ceil(C / G) on. With `cosine_scale`, a logit is
    cosine_scale x cosine, as in `Cosine`; None and 0 turn that off. Raises InputError for less than one group.
    """

    pools = False
    by_class = ("bias",)
    by_group = ("queries", "weight")
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
        self.norm1 = nn.LayerNorm(self.WIDTH)
        self.norm2 = nn.LayerNorm(self.WIDTH)
        self.norm3 = nn.LayerNorm(self.WIDTH)
        self.dropout = nn.Dropout(self.DROPOUT)
        # Each group has a Linear(WIDTH -> group_size) of its own, initialised as Glorot's normal distribution does it.
        std = (2 / (self.WIDTH + group_size)) ** 0.5
        self.weight = nn.Parameter(torch.randn(num_groups, group_size, self.WIDTH) * std)
        self.bias = None if cosine_scale else nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        return self.attend(features, need_attention=False)[0]

    def attend(self, features: Tensor, need_attention: bool = True) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C), and how much each query looked at each position (B, G, T).

        The latter is the mean over attention heads; without `need_attention` it is None, which is faster.
        """
        tokens = self.embed(_as_tokens(features)).relu()
        queries = self.queries.expand(tokens.shape[0], -1, -1)  # len() would fix the batch size of an exported model
        queries = self.norm1(queries + self.dropout(queries))
        seen, attention = self.attention(queries, tokens, tokens, need_weights=need_attention)
        queries = self.norm2(queries + self.dropout(seen))
        queries = self.norm3(queries + self.dropout(self.feed_forward(queries)))
        weight = self.weight
        if self.cosine_scale:
            queries = self.cosine_scale * functional.normalize(queries, dim=2)
            weight = functional.normalize(weight, dim=2)
        logits = torch.einsum("bgd,gcd->bgc", queries, weight).flatten(1)[:, : self.num_classes]
        if self.bias is not None:
            logits = logits + self.bias
        return logits, attention


class GCN(nn.Module):
    """ML-GCN: a graph of classes gives the weights (C, D) of the classifier (Chen et al. 2019).

    Two layers x -> A x W turn class embeddings (C, embedding_size) into the weights; A (C, C) is the graph. A logit is
    the product of the weights of a class and the maximum of the features over positions.

    With `reweights_channels` (Prokofiev and Sovrasov 2022) the graph weighs channels: the mean over positions (B, D)
    is multiplied with the sigmoid of the maximum of the weights over classes (D,), and a `Linear` makes the logits.
    With `cosine_scale`, a logit is cosine_scale x cosine; None and 0 turn that off.

    Call `set_graph` before training: until then each class is linked to itself only, and its embedding is random.
    """

    pools = False  # True with reweights_channels
    by_class = ("embeddings", "classifier.weight", "classifier.bias")
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
        # The embeddings have a length of about 1, so that the first products with the features are small.
        self.register_buffer("embeddings", torch.randn(num_classes, embedding_size) / embedding_size**0.5)
        self.layer1 = nn.Linear(embedding_size, self.HIDDEN, bias=False)
        self.layer2 = nn.Linear(self.HIDDEN, num_features, bias=False)
        for layer in (self.layer1, self.layer2):
            limit = layer.out_features**-0.5  # as in the published code
            nn.init.uniform_(layer.weight, -limit, limit)
        self.classifier = None
        if reweights_channels and cosine_scale:
            self.classifier = Cosine(num_features, num_classes, cosine_scale)
        elif reweights_channels:
            self.classifier = Linear(num_features, num_classes)

    @property
    def bias(self) -> Tensor | None:
        return None if self.classifier is None else self.classifier.bias

    def set_graph(self, adjacency: Tensor | None = None, embeddings: Tensor | None = None) -> None:
        """Set the graph (C, C), from `count_adjacency`, and the embeddings (C, embedding_size), from `read_embeddings`.

        None leaves what is set. Raises InputError for another shape.
        """
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
            return self.cosine_scale * _measure_cosines(features, weight)
        return functional.linear(features, weight)


def count_adjacency(targets: ArrayLike, threshold: float = 0.4, share: float = 0.25) -> Tensor:
    """The graph for `GCN.set_graph`: which classes come together, (C, C) float32, normalised as in ML-GCN.

    `targets` is an (N, C) matrix: 1 present, 0 absent; -1 and NaN are unknown and left out. Class i is linked to class
    j if P(j | i) >= `threshold`, over the images where both are known. A class that is never present links to none.
    All links to a class together have the weight `share`, the class itself has 1.
    """
    targets = np.asarray(targets)
    present = (targets == 1).astype(np.float64)
    known = present + (targets == 0)
    links = present.T @ present / np.maximum(present.T @ known, 1) >= threshold
    np.fill_diagonal(links, False)
    # Chen et al. 2019, equations 6 to 8, but as their code computes them. The class itself has weight 1, not
    # 1 - share. With D = diag(row sums)^-1/2, the result is (A D)^T D: a class receives from those that imply it.
    adjacency = share * links / (links.sum(axis=0) + 1e-6) + np.eye(len(links))
    scale = adjacency.sum(axis=1) ** -0.5
    return torch.tensor(scale[:, None] * adjacency.T * scale, dtype=torch.float32)


def read_embeddings(path: Path, classes: Sequence[str]) -> Tensor:
    """Class embeddings (C, E) float32 for `GCN.set_graph`, from a matrix or from word vectors.

    A `.npy` file holds a matrix with one row for each class. Any other file is text with lines `word v1 v2 ...`, as
    GloVe's; the embedding of a class is then the mean of the vectors of the words in its name, in lower case.
    Raises InputError for a file that cannot be read, a matrix of another shape, values that are not finite numbers,
    and classes with words that the file lacks.
    """
    try:
        rows = read_array(path) if path.suffix == ".npy" else _average_word_vectors(path, classes)
        matrix = np.asarray(rows, dtype=np.float64)
        if matrix.ndim != 2 or len(matrix) != len(classes):
            raise ValueError(f"a row for each of {len(classes)} classes is needed, its shape is {matrix.shape}")
        if not np.isfinite(matrix).all():
            raise ValueError("not all values are finite")
    except Exception as error:  # numpy reports a damaged header by many kinds of error
        reason = first_line(error)
        raise InputError(f"cannot use embeddings {path}: {reason}") from error
    return torch.tensor(matrix, dtype=torch.float32)


def _average_word_vectors(path: Path, classes: Sequence[str]) -> list[NDArray[np.float64]]:
    """A row (E,) for each class: the mean of the vectors of the words in its name. Raises ValueError, OSError."""
    words_of = {name: to_nfc(name).lower().replace("_", " ").split() for name in classes}
    wanted = {word for words in words_of.values() for word in words}
    vectors: dict[str, NDArray[np.float64]] = {}
    size = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and len(line.split()) == 2 and line.replace(" ", "").strip().isdecimal():
                continue  # word2vec's and fastText's files begin with the number of words and of numbers
            size = size or len(line.split()) - 1  # the first vector says how long all are
            if to_nfc(line.partition(" ")[0]) not in wanted:
                continue  # most lines: they are not parsed
            word, *values = line.rstrip().rsplit(" ", size)  # from the right: some of GloVe's words contain a space
            try:
                vectors[to_nfc(word)] = np.array(values, dtype=np.float64).reshape(size)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    lacking = [name for name in classes if not words_of[name] or not set(words_of[name]) <= vectors.keys()]
    if lacking:
        raise ValueError(
            f"it lacks words of {len(lacking)} of {len(classes)} classes: {show_names(lacking)}; "
            "give a .npy matrix with a row a class instead"
        )
    return [np.mean([vectors[word] for word in words_of[name]], axis=0) for name in classes]


def set_prior(head: nn.Module, frequencies: Tensor, where: Tensor | None = None) -> None:
    """Set the final bias of `head` to log(p / (1 - p)), so that the first predictions are the class frequencies p (C,).

    Only for the classes `where`, booleans (C,); None: for all. `count_frequencies` gives `frequencies`. The method is
    that of focal loss (Lin et al. 2017, section 3.3); it also replaces sampling (Chen et al. 2019, "Is Sampling
    Heuristics Necessary in Training Deep Object Detectors").
    Raises InputError for a head without a final bias, and for frequencies that are not C numbers between 0 and 1.
    """
    bias = getattr(head, "bias", None)
    if bias is None:
        raise InputError(
            f"a {type(head).__name__} head with these options has no final bias: set USE_PRIOR_BIAS to False"
        )
    if frequencies.shape != bias.shape or not ((frequencies > 0) & (frequencies < 1)).all():
        raise InputError(f"class frequencies must be {len(bias)} numbers between 0 and 1, not {frequencies.tolist()}")
    with torch.no_grad():
        bias.copy_(frequencies.logit() if where is None else torch.where(where, frequencies.logit(), bias))


def count_frequencies(targets: ArrayLike) -> Tensor:
    """The share of images that have each class, (C,) float32, for `set_prior`.

    `targets` is an (N, C) matrix: 1 present, 0 absent; -1 and NaN are unknown and left out. No share is 0 or 1: with n
    known images, a class that is never present counts as present in half an image, and one that is always present as
    present in n - 1/2. Without known images see `fill_frequencies`.
    """
    targets = np.asarray(targets)
    positives = (targets == 1).sum(axis=0)
    num_known = ((targets == 0) | (targets == 1)).sum(axis=0)
    positives = np.clip(positives, 0.5, np.maximum(num_known - 0.5, 0.5))
    frequencies = torch.tensor(positives / np.maximum(num_known, 1), dtype=torch.float32)
    return fill_frequencies(frequencies, torch.from_numpy(num_known > 0))


def fill_frequencies(frequencies: Tensor, is_known: Tensor) -> Tensor:
    """`frequencies` (C,) with the mean of the known classes, booleans (C,), for each of the others.

    Of a class without any known label nothing is learned. At a probability of 1/2 it would be predicted on every image;
    at the mean frequency of the classes it is usually predicted on none. Without any known class all are 1/2.
    """
    usual = frequencies[is_known].mean() if is_known.any() else frequencies.new_tensor(0.5)
    return torch.where(is_known, frequencies, usual)


def copy_classes(
    head: nn.Module, classes: Sequence[str], state: Mapping[str, Tensor], old_classes: Sequence[str]
) -> list[str] | None:
    """Fill `head` from `state`, the state dict of an earlier head of the same kind with the classes `old_classes`.

    What belongs to a class is taken from the class of the same name, and stays new where there is none. What all
    classes share is taken as it is; GCN's graph, which is counted in the training labels, is not. A class of MLDecoder
    shares its query with a group of classes, and is taken only if these are the same. Returns the classes that were
    taken, or None, with nothing changed, if the earlier head has other tensors or other shapes.
    """
    own = {key: value for key, value in head.state_dict().items() if key != "adjacency"}
    state = {key: value for key, value in state.items() if key != "adjacency"}
    if own.keys() != state.keys():
        return None
    groups, old_groups = _group(head, classes), _group(head, old_classes, state)
    filled = {}
    for key, value in own.items():
        labels: list[Hashable] = [()]  # what all classes share is one part
        old_labels = labels
        if key in getattr(head, "by_group", ()):
            labels, old_labels = _label_rows(value, groups), _label_rows(state[key], old_groups)
        elif key in getattr(head, "by_class", ()):
            labels = list(zip(classes, groups, strict=True))
            old_labels = list(zip(old_classes, old_groups, strict=True))
        try:
            parts = value.clone().reshape(len(labels), -1)
            old_parts = state[key].reshape(len(old_labels), -1)
        except RuntimeError:  # its rows are not a whole number for each class
            return None
        if parts.shape[1] != old_parts.shape[1] or value.shape[1:] != state[key].shape[1:]:
            return None
        row_of = {label: row for row, label in enumerate(old_labels)}
        rows = [row for row, label in enumerate(labels) if label in row_of]
        parts[rows] = old_parts[[row_of[labels[row]] for row in rows]].to(parts.dtype)
        filled[key] = parts.reshape(value.shape)
    head.load_state_dict(filled, strict=False)
    old = dict(zip(old_classes, old_groups, strict=True))
    return [name for name, group in zip(classes, groups, strict=True) if old.get(name) == group]


def _group(head: nn.Module, classes: Sequence[str], state: Mapping[str, Tensor] | None = None) -> list[tuple[str, ...]]:
    """The group of classes that each class shares its query with, (): it shares none. `state`: of an earlier head."""
    if not isinstance(head, MLDecoder):
        return [()] * len(classes)
    size = (head.weight if state is None else state["weight"]).shape[1]
    return [tuple(classes[index - index % size : index - index % size + size]) for index in range(len(classes))]


def _label_rows(rows: Tensor, groups: Sequence[tuple[str, ...]]) -> list[Hashable]:
    """A label for each of the `rows` (G, ...) of MLDecoder: its group of classes, or a number, for rows without any."""
    used = dict.fromkeys(groups)
    return [*used, *range(len(used), len(rows))]


HEADS: dict[str, Callable[..., nn.Module]] = {
    "linear": Linear,
    "linear_bn": LinearBN,
    "per_label_mlp": PerLabelMLP,
    "cosine": Cosine,
    "kernel": Kernel,
    "ml_decoder": MLDecoder,
    "gcn": GCN,
}

# The heads whose logits can be scale x cosine, and the option that sets the scale. The angular loss needs such a head.
SCALE_OPTIONS = {"cosine": "scale", "ml_decoder": "cosine_scale", "gcn": "cosine_scale"}


def needs_map(name: str, **options: Any) -> bool:
    """Whether the head called `name` uses more than the mean over positions: `not head.pools`, before it is made."""
    if options.get("reweights_channels", False):
        return False
    return not getattr(HEADS[name], "pools", False)
