"""Platt scaling by scikit-learn: what the tests of heads that a search finds compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Rows = NDArray[np.float64]


def calibrate(predicted: Rows, labels: Rows, weights: Rows) -> Any:
    """scikit-learn's regression without a penalty, on Platt's targets: each image is a positive and a negative."""
    positives, negatives = (weights * labels).sum(), (weights * (1 - labels)).sum()
    wanted = labels * (positives + 1) / (positives + 2) + (1 - labels) / (negatives + 2)
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    rows = np.concatenate([predicted, predicted])[:, None]
    kinds = np.repeat([1, 0], len(labels))
    return regression.fit(rows, kinds, np.concatenate([weights * wanted, weights * (1 - wanted)]))


def calibrate_by_folds(predicted: Rows, labels: Rows, weights: Rows, fold_of: NDArray[np.intp]) -> Rows:
    """(N,) probabilities, each by a regression on the predictions of the other folds."""
    probabilities = np.empty(len(labels))
    for fold in np.unique(fold_of):
        outside = fold_of == fold
        platt = calibrate(predicted[~outside], labels[~outside], weights[~outside])
        probabilities[outside] = platt.predict_proba(predicted[outside][:, None])[:, 1]
    return probabilities
