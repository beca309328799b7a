"""Finds the head `kernel` of a frozen backbone: a regression on how alike an image and those of training are.

    found = find_kernel_head(features, targets, fold_of)
    head = heads.Kernel(D, C, num_landmarks=count_landmarks(N), num_axes=NUM_AXES)
    head.load_state_dict(found.state)

A linear head draws one border for a class; this one bends it, and so learns more from the same features. Arguments and
result are those of head_search.find_head.

Least squares with an L2 penalty (kernel ridge regression, Saunders et al. 1998) rank the images. Where labels are
missing at random, their expectation keeps the order that full labels would give (Menon et al. 2015); cross-entropy
loses more of it. Platt scaling then makes probabilities of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from heads import compute_similarities, project
from trainer.head_search import (
    Entries,
    FoundHead,
    count_effectively,
    fit_platt_by_folds,
    measure_loss,
    rotate,
    weigh_entries,
)

MOST_LANDMARKS = 4000  # of 4,000 photographs, 2,000 lose .001 of mAP out of fold, and take a fifth of the time
NUM_AXES = 512  # of the features that have the largest variance; of the rest only the length counts
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # on squared weights; beside it the sum over images
SMALLEST_AXIS = 1e-5  # directions of the landmarks' similarities with a smaller share of the largest are left out
AT_ONCE = 8192  # images that are compared with the landmarks at once, for want of memory


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
    fold_targets: NDArray[np.integer] | None = None,
) -> FoundHead:
    """Kernel ridge regressions: each class gets the penalty of PENALTIES with the least squared error out of fold.

    The similarity of two images is exp(-d), where d is their squared distance over its mean: no width is searched for.
    Images beyond MOST_LANDMARKS train, too, through their similarities to the landmarks (Nystroem's method, Williams
    and Seeger 2000). Of `weights` only shares count. An unknown entry counts as its class's frequency. `pos_weight` and
    `label_smoothing` are for the probabilities, and leave the order of the images as it is. `fold_targets` are those of
    `head_search.find_head`.
    """
    weights = None if weights is None else count_effectively(weights)

    entries = weigh_entries(targets, weights, pos_weight, label_smoothing, device)

    def weigh(fold: int | None) -> Entries:
        if fold is None or fold_targets is None:
            return entries
        return weigh_entries(fold_targets[fold], weights, pos_weight, label_smoothing, device)

    folds = torch.from_numpy(fold_of).to(device)
    rows = torch.from_numpy(features).to(device)
    comparison = _choose_landmarks(rows)
    mapped = torch.cat([comparison.map(some) for some in rows.split(AT_ONCE)])

    image_weights = torch.ones_like(mapped[:, 0]) if weights is None else torch.from_numpy(weights).to(mapped)
    center = image_weights @ mapped / image_weights.sum()
    mapped -= center

    def want(fold: int | None) -> Tensor:
        of_fold, counts = entries, image_weights
        if fold is not None and fold_targets is not None:
            of_fold, counts = weigh(fold), image_weights * (folds != fold)
        known_weights = of_fold.known * counts[:, None]
        frequency = (known_weights * of_fold.labels).sum(dim=0) / known_weights.sum(dim=0).clamp_min(1e-9)
        return torch.where(of_fold.known, of_fold.labels - frequency, 0.0)

    weighted = mapped if weights is None else mapped * image_weights[:, None]  # of many images that is a lot of memory
    ridge = _fit_ridge(mapped, weighted, want, image_weights, folds, differs=fold_targets is not None)
    platt, out_of_fold = fit_platt_by_folds(ridge.out_of_fold, weigh, folds)
    logits = mapped @ ridge.weight * platt.slope + platt.shift
    num_axes = min(NUM_AXES, features.shape[1])
    state = {
        "weight": (comparison.basis @ ridge.weight * platt.slope).T,
        "bias": platt.shift - center @ ridge.weight * platt.slope,
        "mean": comparison.mean,
        "scale": comparison.scale,
        "axes": _widen(comparison.axes, num_axes),
        "landmarks": _widen(comparison.landmarks, num_axes),
    }
    return FoundHead(
        regression="kernel ridge",
        state={name: tensor.float().cpu().contiguous() for name, tensor in state.items()},
        penalties=ridge.penalties.cpu().double().numpy(),
        out_of_fold=out_of_fold.sigmoid().cpu().numpy(),
        out_of_fold_loss=measure_loss(out_of_fold, entries.labels, entries.known),
        train_loss=measure_loss(logits, entries.labels, entries.known),
        num_folds=len(torch.unique(folds)),
        num_heads=len(PENALTIES) * len(torch.unique(folds)),
        num_steps=1,
    )


class _Comparison(NamedTuple):
    """Maps images to K numbers: the product of those of two images is their similarity."""

    mean: Tensor  # (D,) as `scale`, `axes` (D, R) and `landmarks` (M, R) in heads.Kernel
    scale: Tensor
    axes: Tensor
    landmarks: Tensor
    basis: Tensor  # (M, K)

    def map(self, rows: Tensor) -> Tensor:
        """(N, K) of features (N, D)."""
        points, outside = project((rows - self.mean) * self.scale, self.axes)
        return compute_similarities(points, outside, self.landmarks) @ self.basis


def _choose_landmarks(rows: Tensor) -> _Comparison:
    """Draw landmarks of features `rows` (N, D)."""
    space = rotate(rows)
    mean, axes = space.mean, space.axes[:, -NUM_AXES:]
    # the mean square of a distance of two images is twice that of one to the mean; of equal images it is 0
    mean_square = 2 * space.coordinates.square().sum(dim=1).mean()
    scale = mean_square.clamp_min(1e-12).rsqrt() / space.std
    # draws the same ones each time, wherever it computes
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: count_landmarks(len(rows))]
    landmarks, outside = project((rows[drawn.to(rows.device)] - mean) * scale, axes)
    # What of a landmark lies outside the axes makes it less similar to all images; in the head its weight says that.
    shares = (-outside).exp()
    sizes, vectors = torch.linalg.eigh(compute_similarities(landmarks, outside, landmarks) * shares)
    kept = sizes > SMALLEST_AXIS * sizes[-1]
    return _Comparison(mean, scale, axes, landmarks, shares[:, None] * vectors[:, kept] / sizes[kept].sqrt())


class _Ridge(NamedTuple):
    """Ridge regressions of C classes on K numbers, each with the penalty that cross-validation chose."""

    weight: Tensor  # (K, C), of all images
    penalties: Tensor  # (C,)
    out_of_fold: Tensor  # (N, C) predictions


def _fit_ridge(
    mapped: Tensor,
    weighted: Tensor,
    want: Callable[[int | None], Tensor],
    image_weights: Tensor,
    folds: Tensor,
    differs: bool,
) -> _Ridge:
    """Fit what `want` gives, (N, C) without a fold, or for None for all, by `mapped` (N, K).

    `differs`: that is not the same for each fold. `weighted` is `mapped` times `image_weights` (N,).

    Unknown entries count in the choice as they do in training: without them the penalty is too small where many are
    unknown.
    """
    wanted = want(None)
    products, sums = mapped.T @ weighted, weighted.T @ wanted
    predicted = torch.zeros(len(PENALTIES), *wanted.shape, device=mapped.device)
    for fold in torch.unique(folds).tolist():
        outside, wanted_without = folds == fold, want(fold) if differs else wanted
        sums_without = weighted.T @ wanted_without if differs else sums
        # what the other folds add up to is what all do, less this fold
        sizes, vectors = torch.linalg.eigh(products - mapped[outside].T @ weighted[outside])
        turned = vectors.T @ (sums_without - weighted[outside].T @ wanted_without[outside])
        seen = mapped[outside] @ vectors
        for number, penalty in enumerate(PENALTIES):
            predicted[number, outside] = seen @ (turned / (sizes.clamp_min(0)[:, None] + penalty))
    best = ((predicted - wanted).square() * image_weights[:, None]).sum(dim=1).argmin(dim=0)
    penalties = torch.tensor(PENALTIES, device=mapped.device)[best]
    sizes, vectors = torch.linalg.eigh(products)
    weight = vectors @ ((vectors.T @ sums) / (sizes.clamp_min(0)[:, None] + penalties))
    return _Ridge(weight, penalties, predicted.gather(0, best.expand(1, *wanted.shape))[0])


def _widen(rows: Tensor, num_columns: int) -> Tensor:
    """`rows` (N, R) with columns of 0 behind, `num_columns` in all: few images have fewer axes than features."""
    return functional.pad(rows, (0, num_columns - rows.shape[1]))
