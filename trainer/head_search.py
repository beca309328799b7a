"""Finds the head of a frozen backbone: many linear heads on kept features, compared by K-fold cross-validation.

    found = find_head(features, targets, fold_of)       # logistic regressions, one penalty for each class
    found.weight, found.bias                            # (C, D), (C,), of `heads.Linear`
    found.out_of_fold                                   # (N, C) probabilities, by heads that did not see the image

    results = search_heads(features, targets, [Way(rate=1e-3), Way(rate=1e-2, head="linear_bn")], fold_of)
    max(results, key=lambda result: result.mAP).way

Features are (N, D) float32, the mean over positions or what else a pooling head sees; targets (N, C) lie between 0 and
1, and NaN or -1 is unknown. `fold_of` (N,) says which fold holds an image out, 0 to K - 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import metrics
from losses import LOSSES, is_known, smooth_targets

# Penalties on the squared weights of standardised features; the loss beside it is a mean over images.
PENALTIES = tuple(2.0**power for power in range(-7, 4))
TRIAL_STEPS = 15  # of L-BFGS in a fold; more change the probabilities by less than the choice of the penalty
FINAL_STEPS = 60
SMALLEST_AXIS = 1e-6  # axes of the features with a smaller share of the largest variance are left out
HEADS_AT_ONCE = 256  # heads that are trained side by side: their weights and Adam's averages have to fit into memory


# ---- logistic regression ----


class Space(NamedTuple):
    """Standardised features along their principal axes, in which the steps of L-BFGS can be scaled axis by axis."""

    coordinates: Tensor  # (N, R)
    variances: Tensor  # (R,) mean square of each coordinate
    axes: Tensor  # (D, R), orthonormal columns
    mean: Tensor  # (D,) of the features
    std: Tensor  # (D,)


class FoundHead(NamedTuple):
    """The head that cross-validation chose, trained on all images."""

    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    penalties: NDArray[np.float64]  # (C,) that each class was trained with
    out_of_fold: NDArray[np.float32]  # (N, C) probabilities
    out_of_fold_loss: float  # mean binary cross-entropy of these probabilities over the known entries
    train_loss: float  # the same of the head itself, on the images that it was trained on
    num_heads: int  # logistic regressions that were compared
    num_steps: int  # of L-BFGS, in the last training


def find_head(
    features: NDArray[np.float32],
    targets: NDArray[np.floating],
    fold_of: NDArray[np.intp],
    weights: NDArray[np.floating] | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    device: torch.device | str = "cpu",
) -> FoundHead:
    """Logistic regressions with an L2 penalty by L-BFGS (Liu and Nocedal 1989), on standardised features.

    Each class gets the penalty of PENALTIES whose out-of-fold binary cross-entropy is least. Classes do not share
    anything, so this is as good as one search for each. `weights` (N,) are those of the images, `pos_weight` (C,)
    multiplies the loss of positives. A class of which no positive or no negative is known gets the same probability
    for all images.
    """
    images = torch.from_numpy(features).to(device)
    labels = torch.from_numpy(targets).to(device, torch.float32)
    entry_weights = _weigh_entries(labels, weights, pos_weight)
    labels = smooth_targets(torch.where(is_known(labels), labels, 0.0), label_smoothing)
    space = _rotate(images)
    folds, penalties = torch.from_numpy(fold_of).to(device), torch.tensor(PENALTIES, device=device)
    logits = torch.zeros(len(penalties), *labels.shape, device=device)
    for fold in torch.unique(folds):
        inside, outside = folds != fold, folds == fold
        fitted = _fit(space, inside, labels, entry_weights, penalties.expand(labels.shape[1], -1), TRIAL_STEPS)
        logits[:, outside] = fitted.compute_logits(space.coordinates[outside])
    # the loss of each penalty for each class, (P, C); weights that play a role in training play one here
    losses = functional.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none")
    best = (losses * entry_weights).mean(dim=1).argmin(dim=0)
    chosen = penalties[best]
    fitted = _fit(space, torch.ones_like(folds, dtype=torch.bool), labels, entry_weights, chosen[:, None], FINAL_STEPS)
    known = entry_weights > 0
    out_of_fold = logits.gather(0, best.expand(1, *labels.shape))[0]
    weight, bias = fitted.unrotate(space)
    return FoundHead(
        weight=weight,
        bias=bias,
        penalties=chosen.cpu().double().numpy(),
        out_of_fold=out_of_fold.sigmoid().cpu().numpy(),
        out_of_fold_loss=_measure_loss(out_of_fold, labels, known),
        train_loss=_measure_loss(fitted.compute_logits(space.coordinates)[0], labels, known),
        num_heads=len(penalties) * len(torch.unique(folds)),
        num_steps=fitted.num_steps,
    )


def _weigh_entries(labels: Tensor, weights: NDArray[np.floating] | None, pos_weight: Tensor | None) -> Tensor:
    """(N, C) how much each entry counts: 0 where it is unknown, or where its class has no positive or no negative."""
    known = is_known(labels)
    positives, negatives = (known * labels).nansum(dim=0), (known * (1 - labels)).nansum(dim=0)
    entry_weights = known * ((positives > 0) & (negatives > 0))
    if weights is not None:
        entry_weights = entry_weights * torch.from_numpy(weights).to(labels)[:, None]
    if pos_weight is not None:
        entry_weights = entry_weights * torch.where(known, 1 + labels * (pos_weight.to(labels) - 1), 0.0)
    return entry_weights.float()


def _rotate(images: Tensor) -> Space:
    """Standardise features (N, D), and turn them to their principal axes: R of them, at most N and D."""
    mean, std = images.mean(dim=0), images.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    standard = (images - mean) / std
    num_images, num_features = standard.shape
    if num_images >= num_features:
        variances, axes = torch.linalg.eigh(standard.T @ standard / num_images)
        kept = variances > SMALLEST_AXIS * variances[-1]
        variances, axes = variances[kept], axes[:, kept]
    else:  # the smaller of the two products has the same variances
        variances, sides = torch.linalg.eigh(standard @ standard.T / num_images)
        kept = variances > SMALLEST_AXIS * variances[-1]
        variances = variances[kept]
        axes = standard.T @ sides[:, kept] / (num_images * variances).sqrt()
    return Space(standard @ axes, variances, axes, mean, std)


class _Fitted(NamedTuple):
    """Weights (R, P * C) along the axes and biases (P * C,), for P penalties and C classes."""

    weight: Tensor
    bias: Tensor
    num_classes: int
    num_steps: int

    def compute_logits(self, coordinates: Tensor) -> Tensor:
        """(P, N, C) logits of images with `coordinates` (N, R)."""
        logits = coordinates @ self.weight + self.bias
        return logits.unflatten(1, (-1, self.num_classes)).transpose(0, 1)

    def unrotate(self, space: Space) -> tuple[Tensor, Tensor]:
        """(C, D) weights and (C,) biases for features as they are. Only for one penalty."""
        weight = (space.axes.double() @ self.weight.double()) / space.std.double()[:, None]
        bias = self.bias.double() - space.mean.double() @ weight
        return weight.T.float().contiguous(), bias.float()


def _fit(
    space: Space, rows: Tensor, labels: Tensor, entry_weights: Tensor, penalties: Tensor, num_steps: int
) -> _Fitted:
    """Logistic regressions on some `rows` (N,) bool, for each class with each of its `penalties` (C, P)."""
    coordinates, labels, entry_weights = space.coordinates[rows], labels[rows], entry_weights[rows]
    num_classes, num_penalties = penalties.shape
    weights_of_class = entry_weights.sum(dim=0)
    shares = entry_weights / weights_of_class.clamp_min(torch.finfo(torch.float32).tiny)
    frequency = ((shares * labels).sum(dim=0) * weights_of_class + 0.5) / (weights_of_class + 1)  # never 0 or 1
    bias = torch.logit(frequency).repeat(num_penalties).requires_grad_()
    # L-BFGS takes few steps where all directions are equally steep: the square root of the second derivative that the
    # loss would have along an axis, if all images had the class's frequency as their probability, scales it.
    penalty = penalties.T.flatten()
    curvature = (frequency * (1 - frequency)).repeat(num_penalties)
    scale = (curvature * space.variances[:, None] / 2 + 2 * penalty).rsqrt()
    scaled = torch.zeros_like(scale).requires_grad_()
    labels, shares = labels.repeat(1, num_penalties), shares.repeat(1, num_penalties)
    solver = torch.optim.LBFGS(
        [scaled, bias], max_iter=num_steps, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def compute_loss() -> Tensor:
        solver.zero_grad()
        weight = scaled * scale
        entries = functional.binary_cross_entropy_with_logits(coordinates @ weight + bias, labels, reduction="none")
        loss = (entries * shares).sum() + (penalty * weight.square()).sum()
        loss.backward()
        return loss

    solver.step(compute_loss)
    taken = solver.state[scaled]["n_iter"]
    return _Fitted((scaled * scale).detach(), bias.detach(), num_classes, taken)


def _measure_loss(logits: Tensor, labels: Tensor, known: Tensor) -> float:
    """The mean binary cross-entropy over the known entries; 0 where there are none."""
    if not known.any():
        return 0.0
    return functional.binary_cross_entropy_with_logits(logits[known], labels[known]).item()


# ---- heads trained by steps ----


@dataclass(frozen=True)
class Way:
    """How a head is trained on features by steps of Adam."""

    head: Literal["linear", "linear_bn"] = "linear"
    loss: str = "bce_with_logits"  # a key of losses.LOSSES, except two_way, whose sets reach over images
    loss_options: tuple[tuple[str, float | bool | None], ...] = ()
    rate: float = 1e-3
    weight_decay: float = 0.0  # Adam's: added to the gradient
    label_smoothing: float = 0.0
    pos_weight_cap: float | None = None  # of bce_with_logits; None: positives are not weighed
    epochs: int = 5
    batch_size: int = 32
    schedule: Literal["constant", "cosine"] = "cosine"


class HeadResult(NamedTuple):
    """What cross-validation says of a way."""

    way: Way
    mAP: float  # of the out-of-fold probabilities
    probabilities: NDArray[np.float32]  # (N, C) out-of-fold


def search_heads(
    features: NDArray[np.float32],
    targets: NDArray[np.floating],
    ways: Sequence[Way],
    fold_of: NDArray[np.intp],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[HeadResult]:
    """Train a head in each of the `ways` for each fold, on the images of the other folds, many heads at once.

    All heads see the same batches, as `seed` draws them; images of a head's own fold count for nothing in it. The
    features are standardised first, so that one rate means the same whatever the backbone.
    """
    images = torch.from_numpy(features).to(device)
    images = (images - images.mean(dim=0)) / images.std(dim=0, correction=0).clamp_min(1e-6)
    labels = torch.from_numpy(targets).to(device, torch.float32)
    folds = torch.from_numpy(fold_of).to(device)
    num_folds = int(folds.max()) + 1
    alike = defaultdict(list)  # ways that share the loss and the batches are trained side by side
    for number, way in enumerate(ways):
        alike[way.head, way.loss, way.loss_options, way.epochs, way.batch_size, way.schedule].append(number)
    results: dict[int, HeadResult] = {}
    at_once = max(1, HEADS_AT_ONCE // num_folds)
    for numbers in alike.values():
        for start in range(0, len(numbers), at_once):
            chosen = numbers[start : start + at_once]
            logits = _train_side_by_side([ways[number] for number in chosen], images, labels, folds, seed)
            for number, probabilities in zip(chosen, logits.sigmoid().cpu().numpy(), strict=True):
                average_precision = metrics.average_precision(probabilities, targets)
                results[number] = HeadResult(ways[number], float(np.nanmean(average_precision)), probabilities)
    return [results[number] for number in range(len(ways))]


def _train_side_by_side(ways: Sequence[Way], images: Tensor, labels: Tensor, folds: Tensor, seed: int) -> Tensor:
    """Out-of-fold logits (W, N, C) of heads that are trained in W `ways` that differ in numbers alone.

    Head h = way * K + fold. In what follows H = W * K is the number of heads.
    """
    first, num_folds = ways[0], int(folds.max()) + 1
    num_images, num_features = images.shape
    num_heads, num_classes = len(ways) * num_folds, labels.shape[1]
    fold_of_head = torch.arange(num_folds, device=images.device).repeat(len(ways))
    rates = torch.tensor([way.rate for way in ways], device=images.device).repeat_interleave(num_folds)[:, None, None]
    decays = torch.tensor([way.weight_decay for way in ways], device=images.device)
    decays = decays.repeat_interleave(num_folds)[:, None, None]
    known = is_known(labels)
    head_targets = _make_targets(ways, labels, known).repeat_interleave(num_folds, dim=0)  # (H, N, C)
    positive_weights = _count_pos_weights(ways, labels, folds, num_folds)  # (H, C)
    loss_of = LOSSES[first.loss](**dict(first.loss_options))

    generator = torch.Generator().manual_seed(seed)
    limit = num_features**-0.5  # as torch.nn.Linear begins
    start = torch.rand(num_features, num_classes, generator=generator).mul(2 * limit).sub(limit).to(images.device)
    weight = nn.Parameter(start.repeat(num_heads, 1, 1))  # (H, D, C)
    bias = nn.Parameter(torch.zeros(num_heads, 1, num_classes, device=images.device))
    parameters = [weight, bias]
    norm = _Norm(num_heads, num_classes, images.device) if first.head == "linear_bn" else None
    if norm:
        parameters += [norm.scale, norm.shift]
    optimizer = _Adam(parameters, rates, decays)
    # a last batch of fewer images is left out, as its BatchNorm statistics would be of few
    batch_size = min(first.batch_size, num_images)
    num_steps = first.epochs * (num_images // batch_size)
    step = 0
    for _ in range(first.epochs):
        order = torch.randperm(num_images, generator=generator).to(images.device)
        for rows in order[: num_images // batch_size * batch_size].split(batch_size):
            counts = (folds[rows] != fold_of_head[:, None]).float()[:, :, None]  # (H, B, 1)
            logits = images[rows] @ weight + bias
            if norm:
                logits = norm(logits, counts)
            targets = head_targets[:, rows]
            entries = loss_of(logits.flatten(0, 1), targets.flatten(0, 1))
            if entries.dim() == 1:  # a loss of whole images
                loss = (entries.view(num_heads, -1) * counts[:, :, 0]).sum(dim=1) / counts.sum(dim=(1, 2)).clamp_min(1)
            else:
                entries = entries.view_as(targets) * (1 + (targets >= 0.5) * (positive_weights[:, None] - 1))
                num_known = (counts * known[rows]).sum(dim=(1, 2)).clamp_min(1)
                loss = (entries * counts).sum(dim=(1, 2)) / num_known
            loss.sum().backward()  # heads share no weight, so each gets the gradient of its own loss
            factor = 0.5 * (1 + math.cos(math.pi * step / num_steps)) if first.schedule == "cosine" else 1.0
            optimizer.step(factor)
            step += 1
    with torch.no_grad():
        result = torch.zeros(len(ways), num_images, num_classes, device=images.device)
        for fold in range(num_folds):
            rows, heads = folds == fold, slice(fold, None, num_folds)
            logits = images[rows] @ weight[heads] + bias[heads]
            result[:, rows] = norm.apply_running(logits, heads) if norm else logits
    return result


def _make_targets(ways: Sequence[Way], labels: Tensor, known: Tensor) -> Tensor:
    """(W, N, C) the targets of each way: smoothed, and NaN where unknown."""
    unknown = torch.full_like(labels, torch.nan)
    return torch.stack([torch.where(known, smooth_targets(labels, way.label_smoothing), unknown) for way in ways])


def _count_pos_weights(ways: Sequence[Way], labels: Tensor, folds: Tensor, num_folds: int) -> Tensor:
    """(W * K, C) what the loss of positives is multiplied with: negatives / positives outside the fold, capped."""
    rows = []
    for way in ways:
        for fold in range(num_folds):
            inside = labels[folds != fold]
            if way.pos_weight_cap is None:
                rows.append(torch.ones_like(inside[0]))
                continue
            positives, negatives = (inside == 1).sum(dim=0), (inside == 0).sum(dim=0)
            ratio = torch.where((positives > 0) & (negatives > 0), negatives / positives.clamp_min(1), 1.0)
            rows.append(ratio.clamp_max(way.pos_weight_cap or torch.inf))
    return torch.stack(rows)


class _Norm:
    """BatchNorm1d over the logits (H, B, C) of H heads, each with its own statistics over the images that count."""

    def __init__(self, num_heads: int, num_classes: int, device: torch.device) -> None:
        self.scale = nn.Parameter(torch.ones(num_heads, 1, num_classes, device=device))
        self.shift = nn.Parameter(torch.zeros(num_heads, 1, num_classes, device=device))
        self.running_mean = torch.zeros(num_heads, 1, num_classes, device=device)
        self.running_var = torch.ones(num_heads, 1, num_classes, device=device)

    def __call__(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Normalise by the statistics of this batch, in which `counts` (H, B, 1) are 1 or 0."""
        number = counts.sum(dim=1, keepdim=True).clamp_min(2)
        mean = (logits * counts).sum(dim=1, keepdim=True) / number
        var = ((logits - mean).square() * counts).sum(dim=1, keepdim=True) / number
        with torch.no_grad():  # torch keeps a tenth of the newest, and the unbiased variance
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(var * number / (number - 1), 0.1)
        return (logits - mean) * (var + 1e-5).rsqrt() * self.scale + self.shift

    def apply_running(self, logits: Tensor, heads: slice) -> Tensor:
        """Normalise logits of some `heads` by their running statistics."""
        deviation = (self.running_var[heads] + 1e-5).sqrt()
        return (logits - self.running_mean[heads]) / deviation * self.scale[heads] + self.shift[heads]


class _Adam:
    """Adam (Kingma and Ba 2015) over stacked parameters (H, ...), with a rate and a weight decay for each of H heads.

    torch's own takes one rate for a tensor; a tensor for each head would be hundreds of small operations a step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rates: Tensor, decays: Tensor) -> None:
        self.parameters, self.rates, self.decays = parameters, rates, decays
        self.decayed = bool(decays.any())
        self.means = [torch.zeros_like(parameter) for parameter in parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]
        self.num_steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """A step at `factor` times the rates; then the gradients are cleared."""
        self.num_steps += 1
        bias1, bias2 = 1 - 0.9**self.num_steps, 1 - 0.999**self.num_steps
        for parameter, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            gradient: Any = parameter.grad
            if self.decayed:
                gradient = gradient + self.decays * parameter
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter -= factor * self.rates / bias1 * mean / ((square / bias2).sqrt() + 1e-8)
            parameter.grad = None
