"""Finds the head of a frozen backbone: many linear heads on kept features, compared by K-fold cross-validation.

    found = find_head(features, targets, fold_of)       # logistic regressions and Platt scaling, class by class
    found.state                                         # {"weight": (C, D), "bias": (C,)}, of `heads.Linear`
    found.out_of_fold                                   # (N, C) probabilities, by heads that did not see the image

    results = search_heads(features, targets, [Way(rate=1e-3), Way(rate=1e-2, head="linear_bn")], fold_of)
    results[1].mAP                                      # out of fold, as results[1].probabilities

Features are (N, D) float32, the mean over positions or what else a pooling head sees; targets (N, C) lie between 0 and
1, and NaN or -1 is unknown. `fold_of` (N,) says which fold holds an image out, 0 to K - 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import calibration
import metrics
from heads import fill_frequencies
from losses import LOSSES, SPLC, count_pos_weight, is_known, smooth_targets

# Penalties on the squared weights of standardised features; the loss beside it is a mean over images.
PENALTIES = tuple(2.0**power for power in range(-7, 4))
TRIAL_STEPS = 15  # of L-BFGS in a fold; more change the probabilities by less than the choice of the penalty
FINAL_STEPS = 60
SMALLEST_STD = 1e-3  # features with a smaller share of the median standard deviation are not made larger
SMALLEST_AXIS = 1e-6  # axes of the features with a smaller share of the largest variance are left out
SMOOTHING = 0.3  # of the labels that logistic regressions learn from: with hard ones the hardest images decide too much
LEAST_SLOPE = 1e-2  # of Platt scaling, for predictions whose mean square is 1
LOGITS_AT_ONCE = 2**26  # of images x penalties x classes; L-BFGS keeps ten times as many numbers
HEADS_AT_ONCE = 256  # heads that are trained side by side: their weights and Adam's averages have to fit into memory


# ---- logistic regression ----


class Space(NamedTuple):
    """Standardised features along their principal axes, in which the steps of L-BFGS can be scaled axis by axis."""

    coordinates: Tensor  # (N, R)
    variances: Tensor  # (R,) mean square of each coordinate
    axes: Tensor  # (D, R), orthonormal columns
    mean: Tensor  # (D,) of the features
    std: Tensor  # (D,)


class Entries(NamedTuple):
    """What a head learns from: for N images and C classes, all (N, C)."""

    known: Tensor  # bool
    labels: Tensor  # 0 to 1; 0 where unknown
    soft_labels: Tensor  # the same after label smoothing
    weights: Tensor  # what counts how much; 0 where unknown


class FoundHead(NamedTuple):
    """The head that cross-validation chose, trained on all images."""

    regression: str  # "logistic", "kernel ridge"
    state: dict[str, Tensor]  # the head's state dict, on the CPU: other processes, too, get it
    penalties: NDArray[np.float64]  # (C,) that each class was trained with
    out_of_fold: NDArray[np.float32]  # (N, C) probabilities
    out_of_fold_loss: float  # mean binary cross-entropy of these probabilities over the known entries
    train_loss: float  # the same of the head itself, on the images that it was trained on
    num_folds: int
    num_heads: int  # regressions that were compared
    num_steps: int  # of L-BFGS, in the last training; least squares take one

    @property
    def weight(self) -> Tensor:
        return self.state["weight"]

    @property
    def bias(self) -> Tensor:
        return self.state["bias"]


def find_head(
    features: NDArray[np.float32],
    targets: NDArray[np.floating],
    fold_of: NDArray[np.intp],
    weights: NDArray[np.floating] | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    device: torch.device | str = "cpu",
    fold_targets: NDArray[np.integer] | None = None,
) -> FoundHead:
    """Logistic regressions with an L2 penalty by L-BFGS (Liu and Nocedal 1989), on standardised features.

    They learn from labels smoothed by SMOOTHING, or by `label_smoothing` where that is more, which rank images better.
    Platt scaling, fitted on their logits of images that they did not see, then makes probabilities of the labels with
    `label_smoothing`. Each class gets the penalty of PENALTIES whose out-of-fold cross-entropy with the labels that
    they learn from is least. Classes do not share anything, so this is as good as one search for each. Of `weights`
    (N,), those of the images, only shares count; `pos_weight` (C,) multiplies the loss of positives. A class of which
    no positive or no negative is known gets the same probability for all images: its frequency, or that of
    `heads.fill_frequencies`. `fold_targets` (K, N, C) take the place of `targets` in the heads that hold out fold 0 to
    K - 1.
    """
    images = torch.from_numpy(features).to(device)
    weights = None if weights is None else count_effectively(weights)
    entries = weigh_entries(targets, weights, pos_weight, label_smoothing, device)
    known, labels = entries.known, entries.labels
    # smoothed first and then weighed, which with pos_weight ranks better than the other way round
    smoothing = max(SMOOTHING, label_smoothing)
    learned = weigh_entries(targets, weights, pos_weight, smoothing, device)

    def weigh(fold: int | None, smoothing: float, of_all: Entries) -> Entries:
        if fold is None or fold_targets is None:
            return of_all
        return weigh_entries(fold_targets[fold], weights, pos_weight, smoothing, device)

    soft_labels, entry_weights = learned.soft_labels, learned.weights
    space = rotate(images)
    folds, penalties = torch.from_numpy(fold_of).to(device), torch.tensor(PENALTIES, device=device)
    predicted, chosen = torch.empty_like(labels), torch.empty_like(labels[0])
    at_once = max(1, LOGITS_AT_ONCE // (len(labels) * len(penalties)))
    for classes in torch.arange(labels.shape[1], device=device).split(at_once):
        wanted, wanted_weights = soft_labels[:, classes], entry_weights[:, classes]
        logits = torch.zeros(len(penalties), *wanted.shape, device=device)
        for fold in torch.unique(folds).tolist():
            inside, outside = folds != fold, folds == fold
            of_fold = weigh(fold, smoothing, learned)
            fitted = _fit(
                space,
                inside,
                of_fold.soft_labels[:, classes],
                of_fold.weights[:, classes],
                penalties.expand(len(classes), -1),
                TRIAL_STEPS,
            )
            logits[:, outside] = fitted.compute_logits(space.coordinates[outside])
        # the loss of each penalty for each class, (P, C); weights that play a role in training play one here
        losses = functional.binary_cross_entropy_with_logits(logits, wanted.expand_as(logits), reduction="none")
        best = (losses * wanted_weights).mean(dim=1).argmin(dim=0)
        chosen[classes] = penalties[best]
        predicted[:, classes] = logits.gather(0, best.expand(1, *wanted.shape))[0]
    fitted = _fit(
        space, torch.ones_like(folds, dtype=torch.bool), soft_labels, entry_weights, chosen[:, None], FINAL_STEPS
    )
    # Both are measured from their mean, which of the head's own logits is the bias, as that of the coordinates is 0. A
    # class that nothing is learned of has no more than the rounding of its frequency in each fold.
    is_learned = (fitted.weight != 0).any(dim=0)
    platt, out_of_fold = fit_platt_by_folds(
        (predicted - predicted.mean(dim=0)) * is_learned, lambda fold: weigh(fold, label_smoothing, entries), folds
    )
    fitted = fitted._replace(weight=fitted.weight * platt.slope, bias=platt.shift)
    weight, bias = fitted.unrotate(space)
    return FoundHead(
        regression="logistic",
        state={"weight": weight, "bias": bias},
        penalties=chosen.cpu().double().numpy(),
        out_of_fold=out_of_fold.sigmoid().cpu().numpy(),
        out_of_fold_loss=measure_loss(out_of_fold, labels, known),
        train_loss=measure_loss(fitted.compute_logits(space.coordinates)[0], labels, known),
        num_folds=len(torch.unique(folds)),
        num_heads=len(penalties) * len(torch.unique(folds)),
        num_steps=fitted.num_steps,
    )


def count_effectively(weights: NDArray[np.floating]) -> NDArray[np.floating]:
    """`weights` (N,) of images with the same shares, whose sum is their effective number (Kish 1965).

    As many images with equal weights say as much as these do.
    """
    return weights * (weights.sum() / max(np.square(weights).sum(), np.finfo(np.float32).tiny))


def weigh_entries(
    targets: NDArray[np.floating],
    weights: NDArray[np.floating] | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    device: torch.device | str,
) -> Entries:
    """The `targets` (N, C) as soft labels with weights, which cross-entropy takes. The arguments are `find_head`'s."""
    labels = torch.from_numpy(targets).to(device, torch.float32)
    known = is_known(labels)
    labels = torch.where(known, labels, 0.0)
    positive = smooth_targets(labels, label_smoothing) * (1.0 if pos_weight is None else pos_weight.to(labels))
    negative = 1 - smooth_targets(labels, label_smoothing)
    # -(w y log p + (1 - y) log(1 - p)) is the cross-entropy with a target between 0 and 1, times a weight
    entry_weights, soft_labels = known * (positive + negative), positive / (positive + negative)
    if weights is not None:
        entry_weights = entry_weights * torch.from_numpy(weights).to(labels)[:, None]
    return Entries(known, labels, soft_labels, entry_weights)


def rotate(images: Tensor) -> Space:
    """Standardise features (N, D), and turn them to their principal axes: R of them, at most N and D."""
    mean, std = images.mean(dim=0), images.std(dim=0, correction=0)
    # a feature that hardly ever changes would count, where it does, for more than all others together
    std = torch.where(std > SMALLEST_STD * std.median(), std, 1.0)
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
        """(C, D) weights and (C,) biases for features as they are, on the CPU. Only for one penalty."""
        # not every GPU has float64
        axes, mean, std, weight, bias = (
            tensor.cpu().double() for tensor in (space.axes, space.mean, space.std, self.weight, self.bias)
        )
        weight = (axes @ weight) / std[:, None]
        bias = bias - mean @ weight
        return weight.T.float().contiguous(), bias.float()


def _fit(
    space: Space, rows: Tensor, labels: Tensor, entry_weights: Tensor, penalties: Tensor, num_steps: int
) -> _Fitted:
    """Logistic regressions on some `rows` (N,) bool, for each class with each of its `penalties` (C, P)."""
    coordinates, labels, entry_weights = space.coordinates[rows], labels[rows], entry_weights[rows]
    num_classes, num_penalties = penalties.shape
    weights_of_class = entry_weights.sum(dim=0)
    shares = entry_weights / weights_of_class.clamp_min(torch.finfo(torch.float32).tiny)
    positives, negatives = (entry_weights * labels).sum(dim=0), (entry_weights * (1 - labels)).sum(dim=0)
    frequency = (positives + 0.5) / (positives + negatives + 1)  # never 0 or 1
    # a class whose labels are all alike keeps its frequency: its logits would have no end
    lowest = labels.where(entry_weights > 0, torch.inf).amin(dim=0)
    highest = labels.where(entry_weights > 0, -torch.inf).amax(dim=0)
    shares = shares * (highest > lowest)
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


def measure_loss(logits: Tensor, labels: Tensor, known: Tensor) -> float:
    """The mean binary cross-entropy over the known entries; 0 where there are none."""
    if not known.any():
        return 0.0
    return functional.binary_cross_entropy_with_logits(logits[known], labels[known]).item()


# ---- probabilities of predictions ----


class Platt(NamedTuple):
    """Slopes and shifts (C,) with which predictions become logits."""

    slope: Tensor
    shift: Tensor


def fit_platt_by_folds(
    predicted: Tensor, weigh: Callable[[int | None], Entries], folds: Tensor
) -> tuple[Platt, Tensor]:
    """Platt scaling by all out-of-fold predictions (N, C), and their logits (N, C) by that of the other folds.

    `weigh` gives the entries that count without a fold, or for None those of all.
    """
    logits = torch.empty_like(predicted)
    for fold in torch.unique(folds).tolist():
        inside, outside = folds != fold, folds == fold
        platt = _fit_platt(predicted[inside], Entries(*(values[inside] for values in weigh(fold))))
        logits[outside] = predicted[outside] * platt.slope + platt.shift
    return _fit_platt(predicted, weigh(None)), logits


def _fit_platt(predicted: Tensor, entries: Entries) -> Platt:
    """Platt scaling of predictions (N, C): for each class a logistic regression on this one number.

    With the targets of Platt (1999), which keep few labels from making a class certain. A slope is above 0, so that the
    order stays.
    """
    # not every GPU has float64, and float32 would lose digits in a sum over many images
    values, soft_labels, weights = (
        tensor.cpu().double().numpy() for tensor in (predicted, entries.soft_labels, entries.weights)
    )
    sizes = np.sqrt(np.square(values).mean(axis=0))
    sizes = np.where(sizes > 0, sizes, 1.0)
    positives, negatives = (weights * soft_labels).sum(axis=0), (weights * (1 - soft_labels)).sum(axis=0)
    wanted = soft_labels * (positives + 1) / (positives + 2) + (1 - soft_labels) / (negatives + 2)
    frequency = torch.from_numpy((positives + 0.5) / (positives + negatives + 1))
    usual = fill_frequencies(frequency, torch.from_numpy(positives + negatives > 0)).logit().numpy()
    ones = np.ones(len(values))
    slope, shift = np.transpose(
        [
            calibration.fit_logistic(
                [calibration.Entries(np.stack((column / size, ones)), targets, counts=counts)], np.array((1.0, start))
            )
            for column, size, targets, counts, start in zip(values.T, sizes, wanted.T, weights.T, usual, strict=True)
        ]
    )
    # predictions that are no better than none keep their order, and get nearly the same probability
    is_of_use = slope > LEAST_SLOPE
    slope, shift = np.where(is_of_use, slope, LEAST_SLOPE) / sizes, np.where(is_of_use, shift, usual)
    return Platt(*(torch.from_numpy(each).to(predicted) for each in (slope, shift)))


# ---- heads trained by steps ----


@dataclass(frozen=True)
class Way:
    """How a head is trained on features by steps of Adam."""

    head: Literal["linear", "linear_bn"] = "linear"
    loss: str = "bce_with_logits"  # a key of losses.LOSSES; no softmax, nor two_way, whose sets reach over images
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
    mAP: float  # of the out-of-fold probabilities; NaN where one is not finite, as with too high a rate
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
    features stay as they are, so that a rate means what it does in a run of training.py.
    """
    images = torch.from_numpy(features).to(device)
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
                mAP = math.nan
                if np.isfinite(probabilities).all():
                    mAP = float(np.nanmean(metrics.average_precision(probabilities, targets)))
                results[number] = HeadResult(ways[number], mAP, probabilities)
    return [results[number] for number in range(len(ways))]


def _train_side_by_side(ways: Sequence[Way], images: Tensor, labels: Tensor, folds: Tensor, seed: int) -> Tensor:
    """Out-of-fold logits (W, N, C) of heads that are trained in W `ways` that differ in numbers alone.

    There are H = W * K heads for K folds; head h is of way h // K and holds out fold h % K.
    """
    first, num_folds = ways[0], int(folds.max()) + 1
    num_images, num_features = images.shape
    num_heads, num_classes = len(ways) * num_folds, labels.shape[1]
    way_of = torch.arange(num_heads, device=images.device) // num_folds
    fold_of = torch.arange(num_heads, device=images.device) % num_folds
    rates, decays, smoothings = (
        torch.tensor([float(getattr(way, name)) for way in ways], device=images.device)[way_of, None]
        for name in ("rate", "weight_decay", "label_smoothing")
    )  # (H, 1)
    decays_weights = any(way.weight_decay for way in ways)
    known = is_known(labels)
    loss_options: dict[str, Any] = dict(first.loss_options)
    if any(way.pos_weight_cap is not None for way in ways):
        loss_options["pos_weight"] = _count_pos_weights(ways, labels, folds, num_folds)  # (H, C)
    loss_of = LOSSES[first.loss](**loss_options)

    generator = torch.Generator().manual_seed(seed)
    limit = num_features**-0.5  # as torch.nn.Linear begins
    start = torch.rand(num_features, 1, num_classes, generator=generator).mul(2 * limit).sub(limit).to(images.device)
    # Adam takes one rate for a tensor. Its steps do not depend on the scale of the gradient, so heads whose parameters
    # are multiplied with their rate, here, step at that rate where Adam's is 1.
    # A bias before BatchNorm would change nothing but BatchNorm's mean.
    names = ["scale", "shift"] if first.head == "linear_bn" else ["shift"]
    ones = torch.ones(num_heads, num_classes, device=images.device)
    scaled = {"weight": start / rates} | {name: ones * (name == "scale") / rates for name in names}
    for tensor in scaled.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(scaled.values(), lr=1.0, eps=1e-12, fused=True)
    norm = _Norm(num_heads, num_classes, images.device) if first.head == "linear_bn" else None
    # a rest of less than half a batch joins the last one, as its BatchNorm statistics would be of few images
    steps_of_epoch = max(1, math.floor(num_images / first.batch_size + 0.5))
    num_steps = first.epochs * steps_of_epoch
    starts = range(first.batch_size, steps_of_epoch * first.batch_size, first.batch_size)
    batches = (
        rows.to(images.device)
        for _ in range(first.epochs)
        for rows in torch.randperm(num_images, generator=generator).tensor_split(list(starts))
    )
    for step, rows in enumerate(batches):
        if isinstance(loss_of, SPLC) and step % steps_of_epoch == 0:
            loss_of.start_epoch(step // steps_of_epoch + 1)
        counts = (folds[rows, None] != fold_of)[:, :, None].float()  # (B, H, 1)
        # the rates multiply the logits instead of the weights, which are some hundred times as many
        logits = (images[rows] @ scaled["weight"].flatten(1)).unflatten(1, (num_heads, num_classes)) * rates
        if norm:
            logits = norm(logits, counts) * (scaled["scale"] * rates)
        logits = logits + scaled["shift"] * rates
        targets = torch.where(known[rows], labels[rows], torch.nan)[:, None]
        targets = (1 - smoothings) * targets + smoothings / 2  # (B, H, C)
        if getattr(loss_of, "by_image", False):
            entries = loss_of(logits.flatten(0, 1), targets.flatten(0, 1)).view(-1, num_heads)
            counts = counts[:, :, 0] * known[rows].any(dim=1, keepdim=True)
            losses = (entries * counts).sum(dim=0) / counts.sum(dim=0).clamp_min(1)
        else:
            entries = loss_of(logits, targets)
            losses = (entries * counts).sum(dim=(0, 2)) / (counts * known[rows, None]).sum(dim=(0, 2)).clamp_min(1)
        optimizer.zero_grad()
        losses.sum().backward()  # heads share no weight, so each gets the gradient of its own loss
        if decays_weights:
            for tensor in scaled.values():
                assert tensor.grad is not None
                tensor.grad.addcmul_(tensor.detach(), decays * rates.square())
        if first.schedule == "cosine":
            optimizer.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimizer.step()
    with torch.no_grad():
        parameters = {name: tensor * rates for name, tensor in scaled.items()}
        result = torch.zeros(len(ways), num_images, num_classes, device=images.device)
        for fold in range(num_folds):
            rows, heads = folds == fold, fold_of == fold
            logits = torch.einsum("nd,dwc->wnc", images[rows], parameters["weight"][:, heads])
            if norm:
                logits = norm.apply_running(logits, heads) * parameters["scale"][heads, None]
            result[:, rows] = logits + parameters["shift"][heads, None]
    return result


def _count_pos_weights(ways: Sequence[Way], labels: Tensor, folds: Tensor, num_folds: int) -> Tensor:
    """(W * K, C) what the loss of positives is multiplied with, by the labels outside the fold."""
    rows = []
    for way in ways:
        for fold in range(num_folds):
            if way.pos_weight_cap is None:
                rows.append(torch.ones(labels.shape[1]))
            else:
                rows.append(count_pos_weight(labels[folds != fold].cpu(), way.pos_weight_cap))
    return torch.stack(rows).to(labels.device)


class _Norm:
    """BatchNorm1d, without its last two parameters, over logits (B, H, C) of H heads: each counts its own images."""

    def __init__(self, num_heads: int, num_classes: int, device: torch.device) -> None:
        self.mean = torch.zeros(num_heads, num_classes, device=device)
        self.var = torch.ones(num_heads, num_classes, device=device)

    def __call__(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Normalise by the statistics of this batch, in which `counts` (B, H, 1) are 1 or 0."""
        number = counts.sum(dim=0).clamp_min(2)
        mean = (logits * counts).sum(dim=0) / number
        var = ((logits - mean).square() * counts).sum(dim=0) / number
        with torch.no_grad():  # torch keeps a tenth of the newest, and the unbiased variance
            self.mean.lerp_(mean, 0.1)
            self.var.lerp_(var * number / (number - 1), 0.1)
        return (logits - mean) * (var + 1e-5).rsqrt()

    def apply_running(self, logits: Tensor, heads: Tensor) -> Tensor:
        """Normalise logits (W, N, C) of some `heads` by their running statistics."""
        return (logits - self.mean[heads, None]) * (self.var[heads, None] + 1e-5).rsqrt()
