"""evaluation/neighbours.py: F1 on the most novel images and on the rest, and which images are alike."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestNeighbors

from evaluation import neighbours
from evaluation.predictions import Compared


def test_f1_is_measured_apart_on_the_most_novel_tenth() -> None:
    rng = np.random.default_rng(0)
    probabilities, targets = rng.random((200, 4), dtype=np.float32), rng.integers(0, 2, (200, 4))
    targets[:, 0] = 1  # scikit-learn gives an image without labels another F1
    novelty = rng.permutation(200) / 200
    measured = neighbours.measure_by_novelty(novelty, probabilities, targets, 0.5)
    is_novel = novelty >= 0.9
    for name, rows in (("most_novel", is_novel), ("rest", ~is_novel)):
        expected = f1_score(targets[rows], probabilities[rows] >= 0.5, average="samples", zero_division=0)
        assert measured[f"f1_samples_{name}"] == pytest.approx(expected, abs=1e-9)
    assert measured["share_unlike"] == (novelty >= 0.99).mean() == 0.01
    text = neighbours.describe_f1(measured)
    assert f"{measured['f1_samples_most_novel']:.4f} on the most novel tenth, " in text
    assert neighbours.describe_novelty(novelty).startswith("2 of 200 images (1.0%) are unlike the training images: ")


def test_few_images_are_not_divided() -> None:
    measured = neighbours.measure_by_novelty(np.ones(99), np.ones((99, 2), np.float32), np.ones((99, 2)), 0.5)
    assert measured == {"share_unlike": 1.0, "f1_samples_most_novel": None, "f1_samples_rest": None}
    assert neighbours.describe_f1(measured) == ""


def test_images_that_are_alike_are_those_of_scikit_learn_without_the_image_itself() -> None:
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    features[7] = 3 * features[30]  # a copy counts
    rows = [7, 0, 30, 49]
    found = neighbours.find_alike(features, rows, most=4)
    search = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(features)
    distances, expected = search.kneighbors(features[rows])
    for row, near, cosines, theirs, away in zip(rows, found.rows, found.cosines, expected, distances, strict=True):
        others = [(index, 1 - distance) for index, distance in zip(theirs, away, strict=True) if index != row][:4]
        assert near.tolist() == [index for index, _ in others]
        np.testing.assert_allclose(cosines, [cosine for _, cosine in others], atol=1e-5)
    assert (found.rows[0, 0], found.rows[2, 0]) == (30, 7)


def test_of_two_images_each_is_nearest_to_the_other() -> None:
    assert neighbours.find_alike(np.eye(2), [1, 0]).rows.tolist() == [[0], [1]]


def test_images_that_a_model_was_trained_on_are_known_by_name_and_looks() -> None:
    nearest = np.array([[0, 1], [2, 0], [1, 2], [1, 0]])
    compared = Compared(np.zeros(4, np.float32), nearest, ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"])
    paths = ["/set/test/cat/1.jpg", "/set/test/cat/1.jpg", "/set/test/wildcat/2.jpg", "cat/2.jpg"]
    assert neighbours.count_seen(compared, paths) == 2, "like another one of that name; in another folder"
