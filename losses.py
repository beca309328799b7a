"""Losses, weights on the entries of a loss, and the objective that makes one number of both.

    loss = LOSSES["focal"](gamma=2.0)
    loss(logits, targets)                                               # (N, C), not reduced
    objective = Objective(loss, {"ohem": ENTRY_WEIGHTS["ohem"](keep=0.3)})
    objective(logits, targets, image_weights).backward()                # a scalar

There are N images and C classes; an entry is one class of one image. Logits are (N, C) and of any floating type:
half precision is computed in float32. Targets are (N, C): 1 is present, 0 is absent, NaN or -1 is unknown, and a
fraction comes from labels that were mixed, smoothed or distilled. An unknown entry has loss 0, and its logit gets no
gradient. A loss over the set of an image's labels, `zlpr` or `two_way`, is one number an image, (N,).
An entry weight is a module of the same shapes; its result is multiplied with the loss. What changes from epoch to epoch
has a method `start_epoch(epoch)`, the first being 1.

In the formulas p = sigmoid(logit), and y is the target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

import distributed
from utils import InputError


def require(allowed: bool, name: str, value: object, rule: str) -> None:
    """Raise InputError unless the option called `name` has an allowed value; `rule` says which values are allowed."""
    if not allowed:
        raise InputError(f"{name} is {value}: it must be {rule}")


def prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits in float32 or float64, the targets in the same type with 0 for unknown, and which are known."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    known = is_known(targets)
    return logits, torch.where(known, targets, 0).to(logits.dtype), known


def is_known(targets: Tensor) -> Tensor:
    """Which targets are known, neither NaN nor below 0."""
    return targets >= 0


# ---- losses ----


class Loss(nn.Module):
    """The base of all losses: it leaves out unknown entries. A new loss defines `compute`.

    Called with logits (N, C) and targets (N, C), a loss returns the loss of each entry, (N, C).
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets, known = prepare(logits, targets)
        # In softmax the logit of an unknown entry is also in the terms of the other classes. They must not move it.
        logits = torch.where(known, logits, logits.detach())
        return torch.where(known, self.compute(logits, targets), 0.0)

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each entry (N, C). The targets lie between 0 and 1; unknown ones are 0 and left out later."""
        raise NotImplementedError


def focus(distance: Tensor, gamma: float | Tensor) -> Tensor:
    """`distance` to the power of `gamma`, with a finite gradient.

    The gradient of a power below 1 is infinite at distance 0. The smallest normal number stands in for 0.
    """
    return distance.clamp_min(torch.finfo(distance.dtype).tiny).pow(gamma)


class BCEWithLogits(Loss):
    """Binary cross-entropy, -(y log p + (1 - y) log(1 - p)).

    `pos_weight` is None or (C,): it multiplies the loss of the positives of each class. `count_pos_weight` makes it.
    """

    pos_weight: Tensor | None

    def __init__(self, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", pos_weight)

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight, reduction="none"
        )


class Focal(Loss):
    """Focal loss: binary cross-entropy x (1 - pt)^gamma, with pt = p y + (1 - p)(1 - y) (Lin et al. 2017).

    `gamma`, 0 or more: the higher it is, the less do entries count that are already learned.
    `alpha`, from 0 to 1, multiplies the positives, and 1 - alpha the negatives; None multiplies neither.
    Raises InputError for an option out of range.
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
        if self.alpha is None:
            return loss
        return loss * (self.alpha * targets + (1 - self.alpha) * (1 - targets))


class Asymmetric(Loss):
    """Asymmetric loss: a focal loss that treats positives and negatives differently (Ridnik et al. 2021).

        -(y log p + (1 - y) log q) (1 - pt)^(gamma_positive y + gamma_negative (1 - y))
        q = min(1 - p + clip, 1),  pt = p y + q (1 - y)

    `gamma_negative` and `gamma_positive`, 0 or more, are the powers of the focal factor (1 - pt).
    `clip`, from 0 to 1: a negative with p <= clip has loss 0. Neither logarithm gets lower than log 1e-8.
    `focusing_gradient` says whether the focal factor has a gradient; without it, the factor is a constant weight.
    Raises InputError for an option out of range.
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
        if not self.focusing_gradient:
            weight = weight.detach()
        return loss * weight


class AsymmetricAngular(Loss):
    """Asymmetric loss with a margin, on logits = `scale` x cosine (Prokofiev and Sovrasov 2022).

        -(balance y log p+ + (1 - balance)(1 - y) log p-) w / scale
        p+ = sigmoid(logit - scale margin),  p- = sigmoid(-logit - scale margin)
        w = (p- y + p+ (1 - y))^(gamma_positive y + gamma_negative (1 - y))

    The logits come from a head with the same `scale` (heads.SCALE_OPTIONS); sigmoid(logit) is the probability.
    `margin`, 0 or more, is subtracted from the cosine of a positive and added to that of a negative: both get harder.
    `balance`, from 0 to 1, is the weight of positives. `gamma_negative` and `gamma_positive`, 0 or more, are powers
    as in `Asymmetric`. If one of them is above 0, `clip`, from 0 to 1, counts too: p- is then min(p- + clip, 1).
    Raises InputError for an option out of range.
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
        # Without `clip`, p_negative can be rounded to 0, whose logarithm is not finite. That of logsigmoid is.
        log_negative = p_negative.log() if self.clip else functional.logsigmoid(negative)
        loss = -(self.balance * targets * log_positive + (1 - self.balance) * (1 - targets) * log_negative)
        distance = p_negative * targets + positive.sigmoid() * (1 - targets)
        gamma = self.gamma_positive * targets + self.gamma_negative * (1 - targets)
        return loss * focus(distance, gamma) / self.scale


class Softmax(Loss):
    """Cross-entropy for one label per image: an entry has -y log softmax(logits), and a row sums to the image's loss.

    The softmax is over all C classes. The logit of an unknown entry is a constant in it, and the entry has no term.
    """

    by_image = True  # a mean is over images, not over entries
    one_label = True

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -targets * logits.log_softmax(dim=1)


# ---- losses for labels that are missing ----


class Hill(Loss):
    """Punishes a negative less again once it is quite probable, since its label may be missing (Zhang et al. 2021).

        positives: -(1 - p')^gamma log p',  p' = sigmoid(logit - margin)
        negatives: (peak - p) p^2;  with a peak of 1.5 the gradient by the logit, 3 p^2 (1 - p)^2, falls from p = .5 on

    Raises InputError for a `gamma` or `margin` below 0, and a `peak` of 1 or less.
    """

    def __init__(self, gamma: float = 2.0, margin: float = 1.0, peak: float = 1.5) -> None:
        super().__init__()
        require(gamma >= 0, "gamma", gamma, "0 or more")
        require(margin >= 0, "margin", margin, "0 or more")
        require(peak > 1, "peak", peak, "above 1")
        self.gamma, self.margin, self.peak = gamma, margin, peak

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.sigmoid()
        return targets * focus_on_positives(logits, self.margin, self.gamma) + (1 - targets) * (self.peak - p) * p**2


class SPLC(Loss):
    """Takes a negative for a label that is missing once the model is sure of it (Zhang et al. 2021).

        positives: as in `Hill`;  negatives: -p^gamma log(1 - p)

    From the epoch `first_epoch` on, a negative (a target below 0.5) with p > `sure` counts as a positive; in evaluation
    mode it never does, so that epochs can be compared. Only `start_epoch` says which epoch it is. Raises InputError for
    a `gamma` or `margin` below 0, and where `sure` is not between 0 and 1.
    """

    def __init__(self, gamma: float = 2.0, margin: float = 1.0, sure: float = 0.6, first_epoch: int = 2) -> None:
        super().__init__()
        require(gamma >= 0, "gamma", gamma, "0 or more")
        require(margin >= 0, "margin", margin, "0 or more")
        require(0 < sure < 1, "sure", sure, "above 0 and below 1")
        self.gamma, self.margin, self.sure, self.first_epoch = gamma, margin, sure, first_epoch
        self.start_epoch(1)

    def start_epoch(self, epoch: int) -> None:
        self.corrects = epoch >= self.first_epoch

    def compute(self, logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.sigmoid()
        if self.corrects and self.training:
            targets = torch.where((targets < 0.5) & (p.detach() > self.sure), 1.0, targets)
        negatives = -focus(p, self.gamma) * functional.logsigmoid(-logits)
        return targets * focus_on_positives(logits, self.margin, self.gamma) + (1 - targets) * negatives


def focus_on_positives(logits: Tensor, margin: float, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p, with p = sigmoid(logits - margin): the focal margin loss of positives, entry by entry."""
    shifted = logits - margin
    return -focus((-shifted).sigmoid(), gamma) * functional.logsigmoid(shifted)


class SetLoss(nn.Module):
    """The base of losses over sets of entries. A new one defines `compute_images`.

    Called with logits (N, C) and targets (N, C), it returns the loss of each image, (N,). Unknown entries are in no
    set. A fraction y is in the set of positives with weight y, and in that of negatives with 1 - y.
    """

    by_image = True  # a mean is over images

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets, known = prepare(logits, targets)
        return self.compute_images(logits, targets * known, (1 - targets) * known)

    def compute_images(self, logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of each image (N,). `positive` and `negative` (N, C) weigh the entries; unknown ones weigh 0."""
        raise NotImplementedError


class ZLPR(SetLoss):
    """Each positive above 0, each negative below it, and so each positive above each negative (Su et al. 2022).

    log(1 + sum over positives of e^-logit) + log(1 + sum over negatives of e^logit)
    """

    def compute_images(self, logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        of_positives = functional.softplus(log_sum(-logits, positive, dim=1))
        return of_positives + functional.softplus(log_sum(logits, negative, dim=1))


class TwoWay(SetLoss):
    """Positives above negatives, among the classes of an image and among the images of a class (Kobayashi 2023).

        softplus(Tn lse over negatives of logit / Tn + Tp lse over positives of -logit / Tp),  lse = log sum exp

    It is the mean over images with a positive plus the mean over classes with a positive in the batch; an image's part
    is such that the mean over all images with a known label gives this. What it compares depends on the batch: with
    MICRO_BATCH_SIZE and several processes these are smaller. Tp is `positive_temperature`, Tn `negative_temperature`,
    both above 0; else InputError is raised.
    """

    def __init__(self, positive_temperature: float = 4.0, negative_temperature: float = 1.0) -> None:
        super().__init__()
        for name, value in (("positive", positive_temperature), ("negative", negative_temperature)):
            require(value > 0, f"{name}_temperature", value, "above 0")
        self.positive_temperature, self.negative_temperature = positive_temperature, negative_temperature

    def compute_images(self, logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        def compare(dim: int) -> tuple[Tensor, Tensor]:
            """The loss of each set along `dim`, and which sets have a positive."""
            above, below = self.positive_temperature, self.negative_temperature
            gap = below * log_sum(logits / below, negative, dim) + above * log_sum(-logits / above, positive, dim)
            return functional.softplus(gap), positive.sum(dim) > 0

        images, has_positive = compare(dim=1)
        classes, is_present = compare(dim=0)
        is_counted = (positive + negative).sum(dim=1) > 0
        share = is_counted.sum() / has_positive.sum().clamp_min(1).to(images.dtype)
        of_classes = (classes * is_present).sum() / is_present.sum().clamp_min(1)
        return images * has_positive * share + of_classes * is_counted


def log_sum(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """log(sum of weights x e^values) along `dim`; of nothing a number so low that its exponential is 0.

    An infinity would do, but for its gradient.
    """
    lowest = torch.finfo(values.dtype).min / 1e4
    return torch.where(weights > 0, values + weights.clamp_min(torch.finfo(values.dtype).tiny).log(), lowest).logsumexp(
        dim
    )


def count_pos_weight(targets: ArrayLike, cap: float | None = None) -> Tensor:
    """Negatives / positives of each class: the `pos_weight` of BCEWithLogits, (C,) float32.

    `targets` is an (N, C) matrix: 1 present, 0 absent; -1 and NaN are unknown and left out. No weight exceeds `cap`;
    None and 0 mean no cap. A class without positives, or without negatives, gets 1.

        count_pos_weight([[1, 0], [0, 0], [0, 1], [0, -1]], cap=2.5)    # tensor([2.5, 2.0])
    """
    targets = np.asarray(targets)
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    # A class that is always present has no negatives. The weight would be 0, and the class would not be learned.
    has_both = (positives > 0) & (negatives > 0)
    weight = np.where(has_both, negatives / np.maximum(positives, 1), 1.0)
    if cap:
        weight = np.minimum(weight, cap)
    return torch.tensor(weight, dtype=torch.float32)


# ---- entry weights ----


class EntryWeight(nn.Module):
    """The base of all entry weights. A new one defines `weigh`.

    Called with logits (N, C) and targets (N, C), it returns weights (N, C) to multiply the loss with. They have no
    gradient, and are 0 for unknown entries.
    """

    @torch.no_grad()
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets, known = prepare(logits, targets)
        # |p - y|, computed so that logit x with target 0 and logit -x with target 1 give exactly the same number
        distance = (logits.sigmoid() * (1 - targets) - (-logits).sigmoid() * targets).abs()
        return torch.where(known, self.weigh(distance, targets, known), 0.0)

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """The weights (N, C). `distance` = |p - y| says how far off each entry is, `known` which targets are known."""
        raise NotImplementedError


class GHM(EntryWeight):
    """Less weight for entries that are like many others: GHM-C (Li, Liu and Wang 2019).

    |p - y| is divided into `bins` bins of equal width. The weight of an entry is

        known entries of the batch / (running count of the entry's bin x number of bins with entries of the batch)

    In training mode, a bin with entries of the batch gets the running count momentum x old + (1 - momentum) x new. A
    bin without a running count takes that of the batch; evaluation mode does not keep it.
    `bins` is 1 or more, `momentum` 0 or more and below 1; else InputError is raised.
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
        bin_of = (distance * bins).long().clamp(0, bins - 1)
        ones = known.flatten().to(self.counts.dtype)
        batch_counts = torch.zeros_like(self.counts).scatter_add(0, bin_of.flatten(), ones)
        batch_counts = distributed.add_up(batch_counts)  # the processes share one batch, so they count together
        running_counts = torch.where(self.counts > 0, self.counts, batch_counts)
        if self.training:
            updated = torch.lerp(batch_counts, running_counts, self.momentum)
            running_counts = torch.where(batch_counts > 0, updated, running_counts)
            self.counts.copy_(running_counts)
        return batch_counts.sum() / (running_counts[bin_of] * (batch_counts > 0).sum())


class OHEM(EntryWeight):
    """Weight 1 for the hardest entries, 0 for the others: online hard example mining (Shrivastava et al. 2016).

    The hardest entries are the share `keep` of the known ones with the largest |p - y|. At least one is kept, and
    those as hard as the last one too. `keep` is above 0 and at most 1; else InputError is raised.
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
        limit = hardest.gather(0, num_kept[None] - 1)  # an index by a number in Python would wait for the GPU
        return (distance >= limit).to(distance.dtype)


class ClassWeights(EntryWeight):
    """Weights for positives and negatives: positive y + negative (1 - y).

    `positive` and `negative` are one weight for all classes, or (C,) with one for each class; None means 1.
    Raises InputError for a weight below 0 and, when it is called, for a number of weights other than C.
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
    """Weight 0 for entries that are learned well enough, |p - y| <= `margin`; 1 for the others.

    `margin` is 0 or more and below 1; else InputError is raised.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        require(0 <= margin < 1, "margin", margin, "0 or more and below 1")
        self.margin = margin

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        return (distance > self.margin).to(distance.dtype)


class RejectLarge(EntryWeight):
    """Weight 0 for the negatives with the largest loss, whose labels may be missing: LL-R (Kim et al. 2022).

    Their number is the share `growth` x (epoch - 1) of the batch's known entries. Only `start_epoch` says which epoch
    it is. Where more are equally large than are to be rejected, none of these is. Raises InputError for a `growth` that
    is not between 0 and 1.
    """

    def __init__(self, growth: float = 0.002) -> None:
        super().__init__()
        require(0 <= growth <= 1, "growth", growth, "between 0 and 1")
        self.growth = growth
        self.start_epoch(1)

    def start_epoch(self, epoch: int) -> None:
        self.share = min(self.growth * (epoch - 1), 1.0)

    def weigh(self, distance: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        is_negative = known & (targets < 0.5)
        if not self.share or not distance.numel():
            return torch.ones_like(distance)
        hardest = torch.where(is_negative, distance, -1.0).flatten().sort(descending=True).values
        num_rejected = (self.share * known.sum()).ceil().long().clamp_max(distance.numel() - 1)
        return (~(is_negative & (distance > hardest.gather(0, num_rejected[None])))).to(distance.dtype)


# ---- from entries to one number ----


def smooth_targets(targets: Tensor, smoothing: float, one_label: bool = False) -> Tensor:
    """Smooth targets (N, C) (Szegedy et al. 2016): (1 - e) y + e / 2, or (1 - e) y + e / C with one label per image.

    `smoothing` is e, 0 or more and below 1; else InputError is raised. NaN stays NaN.
    """
    require(0 <= smoothing < 1, "label smoothing", smoothing, "0 or more and below 1")
    num_choices = targets.shape[1] if one_label else 2  # one of C classes, or present and absent
    return (1 - smoothing) * targets + smoothing / num_choices


def count_items(targets: Tensor, weights: Tensor, by_image: bool) -> Tensor:
    """How many items a mean loss is over, a scalar; each item counts as often as its image's weight (N,) says.

    Items are the known entries or, with `by_image`, the images with a known entry.
    """
    known = is_known(targets)
    items = known.any(dim=1, keepdim=True) if by_image else known
    return (items * weights[:, None]).sum()


def take_mean(total: Tensor, count: Tensor) -> Tensor:
    """The mean of `count` items that sum to `total`. Without items the total is 0, and so is the mean."""
    return total / count.clamp_min(torch.finfo(count.dtype).tiny)


def take_sum(total: Tensor, count: Tensor) -> Tensor:
    """The total itself, whatever the count."""
    return total


def reduce_loss(
    loss: Tensor,
    targets: Tensor,
    weights: Tensor,
    reduction: str = "mean",
    by_image: bool = False,
    count: Tensor | None = None,
) -> Tensor:
    """Reduce the loss of entries (N, C), or of images (N,), to a scalar; each image is multiplied with its weight.

    `weights` are (N,). `reduction` "mean" divides by `count_items`: known entries or, with `by_image`, images. "sum"
    does not divide. `count` replaces `count_items` where these images are a part of a larger batch. Without a known
    entry the result is 0.
    """
    if count is None:
        count = count_items(targets, weights, by_image)
    return REDUCTIONS[reduction]((loss * (weights if loss.dim() == 1 else weights[:, None])).sum(), count)


class Objective(nn.Module):
    """What training minimises: (logits (N, C), targets (N, C), image weights (N,)) -> a scalar.

    In training mode it is `loss` of the smoothed targets, multiplied with each of `entry_weights`, and reduced by
    `reduction`, "mean" or "sum". Entry weights see the targets as they are, not smoothed. In evaluation mode it is
    the mean of `loss` alone, so that epochs can be compared.

    `entry_weights` maps names to modules, `label_smoothing` is 0 or more and below 1. Raises InputError for another
    reduction, and in training for another smoothing.
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
        self.by_image: bool = getattr(loss, "by_image", False)  # True: a mean is over images, not over entries
        self.one_label: bool = getattr(loss, "one_label", False)  # True: the classes share the smoothing

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor, count: Tensor | None = None) -> Tensor:
        """The scalar to minimise. A mean is over `count` items, if given: those of a batch that these are a part of."""
        if not self.training:
            return reduce_loss(self.loss(logits, targets), targets, weights, by_image=self.by_image)
        loss, _ = self.weigh_entries(logits, targets)
        return reduce_loss(loss, targets, weights, self.reduction, self.by_image, count)

    def start_epoch(self, epoch: int) -> None:
        """Tell the loss and the entry weights which epoch begins; the first is 1."""
        for module in (self.loss, *self.entry_weights.values()):
            if isinstance(module, SPLC | RejectLarge):
                module.start_epoch(epoch)

    def count(self, targets: Tensor, weights: Tensor) -> Tensor:
        """How many items a mean over this batch is over, a scalar."""
        return count_items(targets, weights, self.by_image)

    def as_mean(self, loss: Tensor, count: Tensor) -> Tensor:
        """The reduced `loss` as a mean over `count` items, whatever `reduction` is, so that it can be compared."""
        return loss if self.reduction == "mean" else take_mean(loss, count)

    def weigh_entries(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss in training, of entries or images, and the entry weights that it contains by name."""
        loss = self.loss(logits, smooth_targets(targets, self.label_smoothing, self.one_label))
        factors = {name: module(logits, targets) for name, module in self.entry_weights.items()}
        for factor in factors.values():
            loss = loss * factor
        return loss, factors

    @torch.no_grad()
    def describe(self, logits: Tensor, targets: Tensor, weights: Tensor) -> list[str]:
        """Lines of text that say what the loss of a training step on this batch is made of. No state changes.

        A positive is a target of 0.5 or more.
        """
        known = is_known(targets)
        if not known.any():
            return ["no entry of the batch is known: its loss is 0"]
        training_copy = copy.deepcopy(self).train()  # GHM would count this batch twice otherwise
        loss, factors = training_copy.weigh_entries(logits, targets)
        mean = reduce_loss(loss, targets, weights, "mean", self.by_image).item()
        total = reduce_loss(loss, targets, weights, "sum", self.by_image).item()
        count = self.count(targets, weights).item()
        item, items = ("image", "images") if self.by_image else ("entry", "known entries")
        batch = f"{len(targets)} images x {targets.shape[1]} classes, {(~known).sum().item()} unknown"
        if (weights != 1).any():
            batch += f", image weights {weights.min().item():.4g} to {weights.max().item():.4g}"
        is_positive = (targets >= 0.5).to(loss.dtype)
        share_of_entries = reduce_loss(is_positive, targets, weights).item()
        share_of_loss = ""
        if loss.dim() == 2:
            loss_of_positives = reduce_loss(loss * is_positive, targets, weights, "sum").item()
            share_of_loss = f", {loss_of_positives / total if total else 0.0:.1%} of the loss"
        lines = [
            f"{type(self.loss).__name__}: {mean:.4g} an {item} x {count:.10g} {items} ({batch}) = {total:.4g}; "
            f"the step takes the {self.reduction}",
            f"positives: {share_of_entries:.1%} of the known entries{share_of_loss}",
        ]
        for name, factor in factors.items():
            values = factor[known]
            lines.append(
                f"{name}: mean {values.mean().item():.4g}, {values.min().item():.4g} to {values.max().item():.4g}, "
                f"0 for {(values == 0).float().mean().item():.1%} of the known entries"
            )
        return lines


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "bce_with_logits": BCEWithLogits,
    "focal": Focal,
    "asymmetric": Asymmetric,
    "asymmetric_angular": AsymmetricAngular,
    "softmax": Softmax,
    "hill": Hill,
    "splc": SPLC,
    "zlpr": ZLPR,
    "two_way": TwoWay,
}
ENTRY_WEIGHTS: dict[str, Callable[..., nn.Module]] = {
    "ghm": GHM,
    "ohem": OHEM,
    "class_weights": ClassWeights,
    "threshold": Threshold,
    "reject_large": RejectLarge,
}
REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": take_mean, "sum": take_sum}  # of (total, count)
