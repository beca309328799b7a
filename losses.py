"""Losses and what makes one number of them: `LOSSES[name](**options)`, `ENTRY_WEIGHTS[name](**options)`, `Objective`.

A loss is a module, (logits (N, C), targets (N, C)) -> (N, C), unreduced. A target is 1 present, 0 absent, a fraction
where labels were mixed, smoothed or distilled, or NaN unknown: such an entry gives 0 and its logit no gradient. An
entry weight is a module of the same shapes whose result multiplies the loss. Half-precision logits are computed in
float32. `Objective` weighs and reduces, in one place. In the formulas p = sigmoid(logit), and y is the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

import distributed
from utils import InputError


def require(allowed: bool, name: str, value: object, rule: str) -> None:
    """Raise InputError unless an option's value is allowed."""
    if not allowed:
        raise InputError(f"{name} is {value}: it must be {rule}")


def prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits as float32 (float64 stays), targets of that type with 0 where unknown, and which are known: all (N, C)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, targets.nan_to_num(0.0).to(logits.dtype), ~targets.isnan()


# ---- losses ----


class Loss(nn.Module):
    """What the losses share: each has a `compute(logits, targets)` of known targets."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets, known = prepare(logits, targets)
        logits = torch.where(known, logits, logits.detach())  # also the terms of others do not move an unknown's logit
        return torch.where(known, self.compute(logits, targets), 0.0)

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


def focus(distance: Tensor, gamma: float | Tensor) -> Tensor:
    """`distance` to the power of `gamma`; its slope is finite also at 0, where that of a power below 1 is not."""
    return distance.clamp_min(torch.finfo(distance.dtype).tiny).pow(gamma)


class BCEWithLogits(Loss):
    """Binary cross-entropy; `pos_weight` (C,) multiplies the loss of each class's positives."""

    pos_weight: Tensor | None

    def __init__(self, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", pos_weight)

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight, reduction="none"
        )


class Focal(Loss):
    """Cross-entropy x (1 - pt)^gamma, pt = p y + (1 - p)(1 - y) (Lin et al. 2017).

    `alpha`, if not None, multiplies positives and 1 - alpha negatives. Raises InputError for options out of range.
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        require(gamma >= 0, "gamma", gamma, "0 or more")
        require(alpha is None or 0 <= alpha <= 1, "alpha", alpha, "None or between 0 and 1")
        self.gamma, self.alpha = gamma, alpha

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        distance = (-logits).sigmoid() * targets + logits.sigmoid() * (1 - targets)  # 1 - pt, without cancellation
        loss = loss * focus(distance, self.gamma)
        return loss if self.alpha is None else loss * (self.alpha * targets + (1 - self.alpha) * (1 - targets))


class Asymmetric(Loss):
    """Focal loss with a power of its own for negatives, and none of it for easy ones (Ridnik et al. 2021).

    -(y log p + (1 - y) log q) (1 - pt)^(gamma_positive y + gamma_negative (1 - y)), q = min(1 - p + clip, 1),
    pt = p y + q (1 - y); both logarithms end at that of 1e-8. `focusing_gradient`: whether the power, too, has a
    gradient. Raises InputError for options out of range.
    """

    SMALLEST = 1e-8

    def __init__(
        self,
        gamma_negative: float = 4.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
        focusing_gradient: bool = False,
    ) -> None:
        super().__init__()
        require(gamma_negative >= 0, "gamma_negative", gamma_negative, "0 or more")
        require(gamma_positive >= 0, "gamma_positive", gamma_positive, "0 or more")
        require(0 <= clip <= 1, "clip", clip, "between 0 and 1")
        self.gamma_negative, self.gamma_positive = gamma_negative, gamma_positive
        self.clip, self.focusing_gradient = clip, focusing_gradient

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        p, complement = logits.sigmoid(), (-logits).sigmoid()
        q = (complement + self.clip).clamp(self.SMALLEST, 1)
        loss = -(targets * p.clamp_min(self.SMALLEST).log() + (1 - targets) * q.log())
        distance = complement * targets + (p - self.clip).relu() * (1 - targets)  # 1 - pt, without cancellation
        weight = focus(distance, self.gamma_positive * targets + self.gamma_negative * (1 - targets))
        return loss * (weight if self.focusing_gradient else weight.detach())


class AsymmetricAngular(Loss):
    """Asymmetric loss with a margin, on logits = `scale` x cosine (Prokofiev and Sovrasov 2022).

    -(balance y log p+ + (1 - balance)(1 - y) log p-) w / scale, p+ = sigmoid(logit - scale margin),
    p- = sigmoid(-logit - scale margin), w = (p- y + p+ (1 - y))^(gamma_positive y + gamma_negative (1 - y)). Only where
    a gamma is above 0, `clip` counts: p- is then min(p- + clip, 1). Raises InputError for options out of range.
    """

    def __init__(
        self,
        scale: float = 23.0,
        margin: float = 0.0,
        balance: float = 0.7,
        gamma_negative: float = 0.0,
        gamma_positive: float = 0.0,
        clip: float = 0.05,
    ) -> None:
        super().__init__()
        require(scale > 0, "scale", scale, "above 0")
        require(margin >= 0, "margin", margin, "0 or more")
        require(0 <= balance <= 1, "balance", balance, "between 0 and 1")
        require(gamma_negative >= 0, "gamma_negative", gamma_negative, "0 or more")
        require(gamma_positive >= 0, "gamma_positive", gamma_positive, "0 or more")
        require(0 <= clip <= 1, "clip", clip, "between 0 and 1")
        self.scale, self.margin, self.balance = scale, margin, balance
        self.gamma_negative, self.gamma_positive = gamma_negative, gamma_positive
        self.clip = clip if gamma_negative > 0 or gamma_positive > 0 else 0.0

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        positive = logits - self.scale * self.margin
        negative = -logits - self.scale * self.margin
        p_negative = (negative.sigmoid() + self.clip).clamp_max(1)
        log_positive = functional.logsigmoid(positive)
        log_negative = p_negative.log() if self.clip else functional.logsigmoid(negative)  # log 0 would not be finite
        loss = -(self.balance * targets * log_positive + (1 - self.balance) * (1 - targets) * log_negative)
        distance = p_negative * targets + positive.sigmoid() * (1 - targets)
        gamma = self.gamma_positive * targets + self.gamma_negative * (1 - targets)
        return loss * focus(distance, gamma) / self.scale


class Softmax(Loss):
    """Cross-entropy of one label per image: entries -y log softmax(logits), so that a row sums to it.

    The softmax is over all classes. An unknown entry stands in it as a constant: its term is left out, and the others
    do not move its logit.
    """

    one_label = True

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -targets * logits.log_softmax(dim=1)


def count_pos_weight(targets: ArrayLike, cap: float | None = None) -> Tensor:
    """Negatives / positives of each class, (C,) float32, from an (N, C) 0 / 1 / -1 matrix; -1 and NaN left out.

    No weight exceeds `cap` (None or 0: no cap). A class without positives, or without negatives, gets 1.
    """
    targets = np.asarray(targets)
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    both = (positives > 0) & (negatives > 0)  # a weight of 0 would keep an ever-present class from being learned
    weight = np.where(both, negatives / np.maximum(positives, 1), 1.0)
    return torch.tensor(np.minimum(weight, cap) if cap else weight, dtype=torch.float32)


# ---- entry weights ----


class EntryWeight(nn.Module):
    """What the entry weights share: each has a `weigh(distance, targets, known)`, distance = |p - y|.

    Weights have no gradient, and are 0 where the target is unknown.
    """

    @torch.no_grad()
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets, known = prepare(logits, targets)
        # |p - y|, written so that (logit, 0) and (-logit, 1) are exactly as hard
        distance = (logits.sigmoid() * (1 - targets) - (-logits).sigmoid() * targets).abs()
        return torch.where(known, self.weigh(distance, targets, known), 0.0)

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        raise NotImplementedError


class GHM(EntryWeight):
    """Less weight where entries crowd: GHM-C (Li, Liu and Wang 2019).

    An entry's weight is known entries / (running count of its bin of |p - y| x bins that this batch fills). Training
    mode updates the running counts of those bins, momentum x old + (1 - momentum) x new; a bin without one takes the
    batch's count, in evaluation mode for this batch only. Raises InputError for options out of range.
    """

    counts: Tensor

    def __init__(self, bins: int = 30, momentum: float = 0.75) -> None:
        super().__init__()
        require(bins >= 1, "bins", bins, "1 or more")
        require(0 <= momentum < 1, "momentum", momentum, "0 or more and below 1")
        self.momentum = momentum
        self.register_buffer("counts", torch.zeros(bins))

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        bins = len(self.counts)
        index = (distance * bins).long().clamp(0, bins - 1)
        new = torch.zeros_like(self.counts).scatter_add(0, index.flatten(), known.flatten().to(self.counts.dtype))
        new = distributed.add_up(new)  # the crowd is that of all processes
        kept = torch.where(self.counts > 0, self.counts, new)
        if self.training:
            kept = torch.where(new > 0, torch.lerp(new, kept, self.momentum), kept)
            self.counts.copy_(kept)
        return new.sum() / (kept[index] * (new > 0).sum())


class OHEM(EntryWeight):
    """1 for the hardest share `keep` of the known entries by |p - y|, at least one and its equals; 0 for the others.

    Online hard example mining (Shrivastava, Gupta and Girshick 2016). Raises InputError for `keep` out of range.
    """

    def __init__(self, keep: float = 0.3) -> None:
        super().__init__()
        require(0 < keep <= 1, "keep", keep, "above 0 and at most 1")
        self.keep = keep

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        if not distance.numel():
            return distance
        hardest = distance.masked_fill(~known, -1.0).flatten().sort(descending=True).values
        num_kept = (self.keep * known.sum()).round().long().clamp_min(1)
        return (distance >= hardest.take(num_kept - 1)).to(distance.dtype)  # take: no wait for the GPU


class ClassWeights(EntryWeight):
    """positive y + negative (1 - y): each a weight for all classes or one for each, (C,); None: 1.

    Raises InputError for a weight below 0, and for a number of weights that is not that of the classes.
    """

    positive: Tensor
    negative: Tensor

    def __init__(
        self,
        positive: float | Sequence[float] | Tensor | None = None,
        negative: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("positive", positive), ("negative", negative)):
            weight = torch.as_tensor(1.0 if value is None else value, dtype=torch.float32)
            allowed = weight.dim() <= 1 and bool((weight >= 0).all())
            require(allowed, name, value, "one weight or one a class, 0 or more")
            self.register_buffer(name, weight)

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        for name, weight in self.named_buffers():
            allowed = weight.dim() == 0 or len(weight) == targets.shape[1]
            require(allowed, name, f"{weight.numel()} weights", f"one or as many as the classes, {targets.shape[1]}")
        return self.positive * targets + self.negative * (1 - targets)


class Threshold(EntryWeight):
    """0 where |p - y| is at most `margin`: learned well enough; else 1. Raises InputError for it out of range."""

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        require(0 <= margin < 1, "margin", margin, "0 or more and below 1")
        self.margin = margin

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        return (distance > self.margin).to(distance.dtype)


# ---- from entries to one number ----


def smooth_targets(targets: Tensor, smoothing: float, one_label: bool = False) -> Tensor:
    """(1 - e) y + e / 2, or with one label per image (1 - e) y + e / C: (N, C); NaN stays (Szegedy et al. 2016).

    Raises InputError for a `smoothing` e out of range.
    """
    require(0 <= smoothing < 1, "label smoothing", smoothing, "0 or more and below 1")
    return (1 - smoothing) * targets + smoothing / (targets.shape[1] if one_label else 2)


def count_items(targets: Tensor, weights: Tensor, one_label: bool) -> Tensor:
    """What a mean is over: the known entries, or with one label per image the images that have any, times `weights`."""
    known = ~targets.isnan()
    return ((known.any(dim=1, keepdim=True) if one_label else known) * weights[:, None]).sum()


def reduce_loss(
    loss: Tensor,
    targets: Tensor,
    weights: Tensor,
    reduction: str = "mean",
    one_label: bool = False,
    count: Tensor | None = None,
) -> Tensor:
    """One number from (N, C), each image weighed by `weights` (N,); 0 where no entry is known.

    "mean": over the known entries, or with one label per image over the images that have any; over `count` where these
    are part of a larger batch. "sum": over everything.
    """
    count = count_items(targets, weights, one_label) if count is None else count
    return REDUCTIONS[reduction]((loss * weights[:, None]).sum(), count)


class Objective(nn.Module):
    """What training minimises: (logits (N, C), targets (N, C), image weights (N,)) -> a scalar.

    In training mode `loss` of the smoothed targets times every one of `entry_weights` (name: module; of the targets as
    they are), reduced. In evaluation mode the mean of `loss` alone, so that epochs can be compared.
    """

    def __init__(
        self,
        loss: nn.Module,
        entry_weights: Mapping[str, nn.Module] | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        require(reduction in REDUCTIONS, "reduction", reduction, f"one of {', '.join(REDUCTIONS)}")
        self.loss, self.entry_weights = loss, nn.ModuleDict(entry_weights)
        self.label_smoothing, self.reduction = label_smoothing, reduction
        self.one_label: bool = getattr(loss, "one_label", False)  # then a mean is over images, not entries

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor, count: Tensor | None = None) -> Tensor:
        """`count`: of a larger batch that this is part of, which a mean is over then."""
        if not self.training:
            return reduce_loss(self.loss(logits, targets), targets, weights, one_label=self.one_label)
        loss, _ = self.weigh_entries(logits, targets)
        return reduce_loss(loss, targets, weights, self.reduction, self.one_label, count)

    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        """What a mean over this batch is over."""
        return count_items(targets, weights, self.one_label)

    def as_mean(self, loss: Tensor, count: Tensor) -> Tensor:
        """The reduced `loss` of a step as a mean, whatever `reduction` is: what can be compared and shown."""
        return loss if self.reduction == "mean" else REDUCTIONS["mean"](loss, count)

    def weigh_entries(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each entry in training, and the entry weights in it by name: all (N, C)."""
        loss = self.loss(logits, smooth_targets(targets, self.label_smoothing, self.one_label))
        factors = {name: module(logits, targets) for name, module in self.entry_weights.items()}
        for factor in factors.values():
            loss = loss * factor
        return loss, factors

    @torch.no_grad()
    def describe(self, logits: Tensor, targets: Tensor, weights: Tensor) -> list[str]:
        """Lines that say what the loss of a training step on this batch is made of; no state changes.

        A positive is a target of 0.5 or more.
        """
        known = ~targets.isnan()
        if not known.any():
            return ["no entry of the batch is known: its loss is 0"]
        loss, factors = copy.deepcopy(self).train().weigh_entries(logits, targets)
        mean, total = (reduce_loss(loss, targets, weights, name, self.one_label).item() for name in ("mean", "sum"))
        count = count_items(targets, weights, self.one_label).item()
        item, items = ("image", "images") if self.one_label else ("entry", "known entries")
        batch = f"{len(targets)} images x {targets.shape[1]} classes, {(~known).sum().item()} unknown"
        if (weights != 1).any():
            batch += f", image weights {weights.min().item():.4g} to {weights.max().item():.4g}"
        positive = (targets >= 0.5).to(loss.dtype)
        share_of_entries = reduce_loss(positive, targets, weights).item()
        share_of_loss = reduce_loss(loss * positive, targets, weights, "sum").item() / (total or 1.0)
        lines = [
            f"{type(self.loss).__name__}: {mean:.4g} an {item} x {count:.10g} {items} ({batch}) = {total:.4g}; "
            f"the step takes the {self.reduction}",
            f"positives: {share_of_entries:.1%} of the known entries, {share_of_loss:.1%} of the loss",
        ]
        for name, factor in factors.items():
            values = factor[known]
            lines.append(
                f"{name}: mean {values.mean().item():.4g}, {values.min().item():.4g} to {values.max().item():.4g}, "
                f"0 for {(values == 0).float().mean().item():.1%} of the known entries"
            )
        return lines


def make_loss(name: str, **options: Any) -> nn.Module:
    """The loss called `name` in LOSSES."""
    return LOSSES[name](**options)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "bce_with_logits": BCEWithLogits,
    "focal": Focal,
    "asymmetric": Asymmetric,
    "asymmetric_angular": AsymmetricAngular,
    "softmax": Softmax,
}
ENTRY_WEIGHTS: dict[str, Callable[..., nn.Module]] = {
    "ghm": GHM,
    "ohem": OHEM,
    "class_weights": ClassWeights,
    "threshold": Threshold,
}
REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of the loss's sum and what it is over
    "mean": lambda total, count: total / count.clamp_min(torch.finfo(count.dtype).tiny),
    "sum": lambda total, count: total,
}
