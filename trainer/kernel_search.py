"""Finds the head `kernel` of a frozen backbone: a regression on how alike an image and those of training are.

    found = find_kernel_head(features, targets, fold_of)
    head = heads.Kernel(D, C, num_landmarks=count_landmarks(N))
    head.load_state_dict(found.state)

A linear head draws one border for a class; this one bends it, and so learns more from the same features. Arguments and
result are those of head_search.find_head.

Least squares with an L2 penalty (kernel ridge regression, Saunders et al. 1998) rank the images. Where labels are
missing at random, their expectation keeps the order that full labels would give (Menon et al. 2015); cross-entropy
loses more of it. Platt scaling then makes probabilities of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from heads import compute_similarities
from trainer.head_search import Entries, FoundHead, measure_loss, rotate, weigh_entries

MOST_LANDMARKS = 4000  # of 4,000 photographs, 2,000 lose .001 of mAP out of fold, and take a fifth of the time
NUM_AXES = 512  # of the features that have the largest variance; the rest is noise to distances
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # on squared weights; beside it the sum over images
SMALLEST_AXIS = 1e-5  # directions of the landmarks' similarities with a smaller share of the largest are left out
MOST_STEPS = 100  # of L-BFGS, for the two numbers of a class
LEAST_SLOPE = 1e-2  # of Platt scaling, for predictions whose mean square is 1


def count_landmarks(num_images: int) -> int:
    """The number of landmarks of a head that is found on so many images."""
    return min(num_images, MOST_LANDMARKS)


def find_kernel_head(
    features: NDArray[np.float32],
    targets: NDArray[np.floating],
    fold_of: NDArray[np.intp],
    weights: NDArray[np.floating] | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    device: torch.device | str = "cpu",
) -> FoundHead:
    """Kernel ridge regressions: each class gets the penalty of PENALTIES with the least squared error out of fold.

    The similarity of two images is exp(-d), where d is their squared distance over its mean: no width is searched for.
    Images beyond MOST_LANDMARKS train, too, through their similarities to the landmarks (Nystroem's method, Williams
    and Seeger 2000). An unknown entry counts as its class's frequency. `pos_weight` and `label_smoothing` are for the
    probabilities, and leave the order of the images as it is.
    """
    entries = weigh_entries(targets, weights, pos_weight, label_smoothing, device)
    folds = torch.from_numpy(fold_of).to(device)
    space = rotate(torch.from_numpy(features).to(device))
    coordinates, axes = space.coordinates[:, -NUM_AXES:], space.axes[:, -NUM_AXES:]
    scale = (2 * coordinates.square().sum(dim=1).mean()).rsqrt()  # twice: the mean square of a distance of two images
    coordinates, axes = coordinates * scale, axes * scale / space.std[:, None]

    # draws the same ones each time, wherever it computes
    drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[: count_landmarks(len(features))]
    landmarks = coordinates[drawn.to(device)]
    sizes, vectors = torch.linalg.eigh(compute_similarities(landmarks, landmarks))
    kept = sizes > SMALLEST_AXIS * sizes[-1]
    basis = vectors[:, kept] / sizes[kept].sqrt()  # (M, K); the products of mapped landmarks are their similarities
    mapped = compute_similarities(coordinates, landmarks) @ basis
    center = mapped.mean(dim=0)
    mapped -= center

    image_weights = torch.ones_like(mapped[:, 0]) if weights is None else torch.from_numpy(weights).to(mapped)
    known_weights = entries.known * image_weights[:, None]
    frequency = (known_weights * entries.labels).sum(dim=0) / known_weights.sum(dim=0).clamp_min(1e-9)
    wanted = torch.where(entries.known, entries.labels - frequency, 0.0)
    weighted = mapped if weights is None else mapped * image_weights[:, None]  # of many images that is a lot of memory
    ridge = _fit_ridge(mapped, weighted, wanted, image_weights, folds)
    slope, shift, num_steps = _fit_platt(ridge.out_of_fold, entries)
    out_of_fold = (ridge.out_of_fold * slope + shift).float()
    own = (mapped @ ridge.weight * slope + shift).float()
    num_axes = min(NUM_AXES, features.shape[1])
    state = {
        "weight": (basis @ ridge.weight * slope).T,
        "bias": shift - center @ ridge.weight * slope,
        "mean": space.mean,
        "axes": _widen(axes, num_axes),
        "landmarks": _widen(landmarks, num_axes),
    }
    return FoundHead(
        regression="kernel ridge",
        state={name: tensor.float().cpu().contiguous() for name, tensor in state.items()},
        penalties=ridge.penalties.cpu().double().numpy(),
        out_of_fold=out_of_fold.sigmoid().cpu().numpy(),
        out_of_fold_loss=measure_loss(out_of_fold, entries.labels, entries.known),
        train_loss=measure_loss(own, entries.labels, entries.known),
        num_folds=len(torch.unique(folds)),
        num_heads=len(PENALTIES) * len(torch.unique(folds)),
        num_steps=num_steps,
    )


class _Ridge(NamedTuple):
    """Ridge regressions of C classes on K numbers, each with the penalty that cross-validation chose."""

    weight: Tensor  # (K, C), of all images
    penalties: Tensor  # (C,)
    out_of_fold: Tensor  # (N, C) predictions


def _fit_ridge(mapped: Tensor, weighted: Tensor, wanted: Tensor, image_weights: Tensor, folds: Tensor) -> _Ridge:
    """Fit `wanted` (N, C) by `mapped` (N, K); `weighted` is `mapped` times `image_weights` (N,).

    Unknown entries count in the choice as they do in training: without them the penalty is too small where many are
    unknown.
    """
    products, sums = mapped.T @ weighted, weighted.T @ wanted
    predicted = torch.zeros(len(PENALTIES), *wanted.shape, device=mapped.device)
    for fold in torch.unique(folds):
        outside = folds == fold
        # what the other folds add up to is what all do, less this fold
        sizes, vectors = torch.linalg.eigh(products - mapped[outside].T @ weighted[outside])
        turned = vectors.T @ (sums - weighted[outside].T @ wanted[outside])
        seen = mapped[outside] @ vectors
        for number, penalty in enumerate(PENALTIES):
            predicted[number, outside] = seen @ (turned / (sizes.clamp_min(0)[:, None] + penalty))
    best = ((predicted - wanted).square() * image_weights[:, None]).sum(dim=1).argmin(dim=0)
    penalties = torch.tensor(PENALTIES, device=mapped.device)[best]
    sizes, vectors = torch.linalg.eigh(products)
    weight = vectors @ ((vectors.T @ sums) / (sizes.clamp_min(0)[:, None] + penalties))
    return _Ridge(weight, penalties, predicted.gather(0, best.expand(1, *wanted.shape))[0])


def _fit_platt(predicted: Tensor, entries: Entries) -> tuple[Tensor, Tensor, int]:
    """Slopes and shifts (C,) with which predictions (N, C) become logits, and the steps that L-BFGS took.

    Platt scaling (Platt 1999) with his targets, which keep few labels from making a class certain; a slope is above 0,
    so that the order stays.
    """
    # not every GPU has float64, and float32 would lose digits in a sum over many images
    values, soft_labels, weights = (
        tensor.cpu().double() for tensor in (predicted, entries.soft_labels, entries.weights)
    )
    sizes = values.square().mean(dim=0).sqrt()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    values = values / sizes
    positives, negatives = (weights * soft_labels).sum(dim=0), (weights * (1 - soft_labels)).sum(dim=0)
    soft_labels = soft_labels * (positives + 1) / (positives + 2) + (1 - soft_labels) / (negatives + 2)
    shares = weights / (positives + negatives).clamp_min(1e-9)
    usual = torch.logit((positives + 0.5) / (positives + negatives + 1))
    slope, shift = torch.ones_like(usual).requires_grad_(), usual.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [slope, shift], max_iter=MOST_STEPS, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def compute_loss() -> Tensor:
        solver.zero_grad()
        losses = functional.binary_cross_entropy_with_logits(values * slope + shift, soft_labels, reduction="none")
        loss = (losses * shares).sum()
        loss.backward()
        return loss

    solver.step(compute_loss)
    # predictions that are no better than none keep their order, and get nearly the same probability
    is_of_use = slope.detach() > LEAST_SLOPE
    slopes = torch.where(is_of_use, slope.detach(), LEAST_SLOPE) / sizes
    return (
        slopes.to(predicted),
        torch.where(is_of_use, shift.detach(), usual).to(predicted),
        solver.state[slope]["n_iter"],
    )


def _widen(rows: Tensor, num_columns: int) -> Tensor:
    """`rows` (N, R) with columns of 0 behind, `num_columns` in all: few images have fewer axes than features."""
    return functional.pad(rows, (0, num_columns - rows.shape[1]))
