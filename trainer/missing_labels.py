"""Labels that are missing: which classes an image probably has though nobody wrote them down (ABSENT_MEANS "unknown").

    predicted = predict_left_out(features, targets)             # (N, C), each image by a model without it
    rejected = reject_probable_negatives(targets, predicted)    # 1 present, 0 absent, -1 unknown
    of_folds = reject_for_folds(features, targets, fold_of)     # (K, N, C), what the heads of each fold learn from

A missing label harms more as a negative than it could help: a few per cent of all entries, but those nearest to the
positives. They are found before training, because a model that has trained on them has learned that they are absent.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PENALTY = 4.0  # on squared weights of standardised features, whose mean square is 1: much, since labels are wrong
QUANTILE = 0.7  # of the predictions of a class's positives: a negative above it is rejected
LEAST_POSITIVES = 10  # of a class: the quantile of fewer predictions is one of noise, and half of all negatives may go


def predict_left_out(
    features: NDArray[np.float32] | Tensor, targets: NDArray[np.int8], penalty: float = PENALTY
) -> NDArray[np.float32]:
    """(N, C) predictions of `targets` (N, C) by ridge regressions on `features` (N, D), each without the image itself.

    Least squares: where labels are missing at random, its expectation is that of the full labels times a factor for
    each class, so that the order of the images is that of the full labels (Menon et al. 2015). An unknown target
    counts as the frequency of its class. All N regressions without one image come out of a single one, by the diagonal
    h of its hat matrix: (prediction - h target) / (1 - h) (Allen 1974).
    """
    images = torch.as_tensor(features)
    images = images - images.mean(dim=0)
    images = images / images.square().mean(dim=0).sqrt().clamp_min(1e-6)
    labels = torch.from_numpy(targets).to(images)
    known = labels >= 0
    frequency = (labels * known).sum(dim=0) / known.sum(dim=0).clamp_min(1)
    labels = torch.where(known, labels, frequency) - frequency
    matrix = images.T @ images / len(images) + penalty * torch.eye(images.shape[1]).to(images)
    solved = torch.linalg.solve(matrix, images.T / len(images))  # (D, N)
    share_of_itself = ((images * solved.T).sum(dim=1) + 1 / len(images))[:, None]
    predicted = images @ (solved @ labels)
    return ((predicted - share_of_itself * labels) / (1 - share_of_itself) + frequency).cpu().numpy()


def reject_probable_negatives(
    targets: NDArray[np.int8],
    predicted: NDArray[np.floating],
    quantile: float = QUANTILE,
    least: int = LEAST_POSITIVES,
) -> NDArray[np.int8]:
    """`targets` (N, C) with -1 for each negative whose prediction is above the `quantile` of its class's positives.

    The rule goes by the order within a class alone: `predicted` (N, C) may be probabilities or logits. They have to
    come from models that have not seen the image. Of a class with fewer than `least` positives nothing is rejected.

        targets, predicted = np.array([[1], [0], [0]], np.int8), np.array([[0.6], [0.7], [0.1]])
        reject_probable_negatives(targets, predicted, least=1)      # [[1], [-1], [0]]
    """
    rejected = targets.copy()
    for column in range(targets.shape[1]):
        is_positive = targets[:, column] == 1
        if is_positive.sum() >= max(least, 1):
            limit = np.quantile(predicted[is_positive, column], quantile)
            rejected[(targets[:, column] == 0) & (predicted[:, column] > limit), column] = -1
    return rejected


def reject_for_folds(
    features: NDArray[np.float32], targets: NDArray[np.int8], fold_of: NDArray[np.intp]
) -> NDArray[np.int8]:
    """(K, N, C): `targets` (N, C) as the heads of each fold learn from them, which hold it out; K folds, 0 to K - 1.

    What is rejected there does not depend on the labels of the fold: the negatives that all labels together reject
    would tell the heads which labels the images have that they are measured on.
    """
    result = np.repeat(targets[None], fold_of.max() + 1, axis=0)
    for fold in range(len(result)):
        inside = fold_of != fold
        predicted = predict_left_out(features[inside], targets[inside])
        result[fold, inside] = reject_probable_negatives(targets[inside], predicted)
    return result
