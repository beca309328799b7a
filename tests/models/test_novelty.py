"""models/novelty.py: the nearest are the nearest, novelty is the share it says, and a file of another model is left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from random_models import make_random_model
from sklearn.neighbors import NearestNeighbors

from models import novelty
from models.novelty import REFERENCE_FILE, Reference
from utils import InputError

Features = NDArray[np.float32]


def draw_features(count: int, seed: int = 0) -> Features:
    """Rows as a network's last ReLU makes them: not negative, of very different lengths."""
    rng = np.random.default_rng(seed)
    return (np.maximum(rng.normal(size=(count, 24)), 0) * rng.uniform(0.1, 50, (count, 1))).astype(np.float32)


def name_rows(features: Features) -> list[str]:
    return [f"{row}.jpg" for row in range(len(features))]


def make_reference(features: Features, sources: list[str] | None = None) -> Reference:
    reference = novelty.make_reference(features, name_rows(features), "me", sources)
    assert reference is not None
    return reference


def measure_by_hand(train: Features, image: Features) -> float:
    """The share of training images that have a nearer neighbour among the others than the image has, in float64."""

    def distance(a: Features, b: Features) -> float:
        left, right = a.astype(np.float64), b.astype(np.float64)
        return 1 - float(left @ right) / math.sqrt(float(left @ left) * float(right @ right))

    own = min(distance(image, row) for row in train)
    others = [min(distance(row, other) for j, other in enumerate(train) if j != i) for i, row in enumerate(train)]
    return sum(other < own for other in others) / len(others)


def test_the_nearest_are_those_of_scikit_learn() -> None:
    train, images = draw_features(300), draw_features(40, seed=1)
    nearest = make_reference(train).find_nearest(images, 7)
    distances, rows = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(train).kneighbors(images)
    np.testing.assert_allclose(1 - nearest.cosines, distances, atol=1e-3)  # features are float16
    assert (nearest.rows[:, 0] == rows[:, 0]).mean() > 0.9
    assert (np.diff(nearest.cosines, axis=1) <= 0).all()


def test_of_fewer_images_than_asked_for_all_are_named() -> None:
    nearest = make_reference(draw_features(3)).find_nearest(draw_features(2, seed=1))
    assert [sorted(row) for row in nearest.rows.tolist()] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_novelty_is_the_share_of_training_images_that_are_nearer_to_the_rest(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(novelty, "ROWS_AT_ONCE", rows_at_once)
    train = draw_features(60)
    images = np.concatenate([draw_features(20, seed=1), -draw_features(2, seed=2)])
    reference = make_reference(train)
    found = reference.measure_novelty(reference.find_nearest(images).cosines[:, 0])
    expected = [measure_by_hand(train, image) for image in images]
    np.testing.assert_allclose(found, expected, atol=1.01 / len(train))  # float16 may turn round two that are as far
    assert found[-2:].tolist() == [1, 1], "opposite to all of them: farther away than any"
    assert len({*found.tolist()}) > 5


def test_training_images_are_not_novel_and_their_length_does_not_matter() -> None:
    train = draw_features(50)
    reference = make_reference(train)
    nearest = reference.find_nearest(train * 7)
    assert nearest.rows[:, 0].tolist() == [*range(50)]
    assert reference.measure_novelty(nearest.cosines[:, 0]).max() == 0


@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_copies_change_nothing(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    """With each picture twice, every training image would lie at no distance, and every other would be novel."""
    monkeypatch.setattr(novelty, "ROWS_AT_ONCE", rows_at_once)
    train = draw_features(50)
    noise = 1 + 0.001 * np.random.default_rng(3).normal(size=train.shape)  # as saving a JPEG again makes
    twice = np.concatenate([train, train * noise]).astype(np.float32)
    once, both = make_reference(train), make_reference(twice)
    assert both.names == once.names
    np.testing.assert_array_equal(both.distances, once.distances)


def test_images_of_one_source_are_not_compared_with_each_other() -> None:
    """Ten frames of each film are alike; an image of another film is farther away, and no more novel than a film is."""
    films = draw_features(30)
    noise = 1 + 0.1 * np.random.default_rng(3).normal(size=(10, *films.shape))
    frames = (films * noise).reshape(-1, films.shape[1]).astype(np.float32)
    sources = [f"film {row % 30}" for row in range(300)]
    images = draw_features(20, seed=1)

    def measure(reference: Reference) -> float:
        return float(reference.measure_novelty(reference.find_nearest(images).cosines[:, 0]).mean())

    assert measure(make_reference(frames)) > 0.9
    assert measure(make_reference(frames, sources)) < 0.8
    np.testing.assert_array_equal(  # "": not known
        make_reference(frames, [""] * 300).distances, make_reference(frames).distances
    )


def test_of_one_picture_or_one_source_there_is_no_reference() -> None:
    one = draw_features(1)
    assert novelty.make_reference(one, ["a"], "me") is None
    assert novelty.make_reference(np.repeat(one, 5, axis=0), [*"abcde"], "me") is None
    assert novelty.make_reference(draw_features(5), [*"abcde"], "me", ["film"] * 5) is None
    assert novelty.make_reference(one[:0], [], "me") is None


def test_an_image_without_features_is_as_far_as_can_be() -> None:
    reference = make_reference(draw_features(20))
    cosines = reference.find_nearest(np.zeros((1, 24), np.float32)).cosines
    assert reference.measure_novelty(cosines[:, 0]).tolist() == [1]


def test_features_of_another_model_are_one_line() -> None:
    with pytest.raises(InputError, match=r"^neighbours\.npz has 24 features an image, and the model 23: [^\n]+$"):
        make_reference(draw_features(20)).find_nearest(np.ones((1, 23), np.float32))


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 3]), (9, [0, 3, 6])])
def test_rows_are_spread_evenly(count: int, expected: list[int]) -> None:
    assert novelty.choose_rows(count, 3) == expected


def test_a_reference_has_no_more_images_than_are_of_use() -> None:
    assert len(novelty.choose_rows(9000, 5000)) == novelty.MOST_IMAGES


# ---- files ----


def test_a_file_gives_the_same_novelty(tmp_path: Path) -> None:
    names = ["a/1.jpg", "caf\udce9.jpg", "日本.png", *name_rows(draw_features(47))]
    reference = novelty.make_reference(draw_features(50), names, "me")
    assert reference is not None
    novelty.save_reference(tmp_path / "new" / REFERENCE_FILE, reference)
    found = novelty.read_reference(tmp_path / "new" / REFERENCE_FILE)
    assert (found.names, found.identity) == (names, "me")
    images = draw_features(30, seed=1)
    for one in (reference, found):
        np.testing.assert_array_equal(one.find_nearest(images).rows, reference.find_nearest(images).rows)
        cosines = one.find_nearest(images).cosines[:, 0]
        expected = reference.measure_novelty(reference.find_nearest(images).cosines[:, 0])
        np.testing.assert_allclose(one.measure_novelty(cosines), expected, atol=1e-9)


def test_the_file_is_no_larger_than_it_has_to_be(tmp_path: Path) -> None:
    novelty.save_reference(tmp_path / REFERENCE_FILE, make_reference(draw_features(100)))
    assert (tmp_path / REFERENCE_FILE).stat().st_size < 100 * 24 * 2 + 100 * 4 * (1 + len("99.jpg")) + 1500


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": np.zeros((3, 2), np.int8)}, "features is int8 with 2 dimensions"),
        ({"features": np.zeros((3, 2, 1), np.float16)}, "features is float16 with 3 dimensions"),
        ({"features": np.zeros((4, 2), np.float16)}, "4 rows, 3 names, 3 distances"),
        ({"features": np.full((3, 2), np.nan, np.float16)}, "its numbers are not finite, or not in order"),
        ({"distances": np.zeros(0, np.float32)}, "3 rows, 3 names, 0 distances"),
        ({"distances": np.array([0.3, 0.2, 0.1], np.float32)}, "its numbers are not finite, or not in order"),
        ({"names": np.zeros(3)}, "names is float64 with 1 dimensions"),
        ({"names": np.array(["a", None, "c"], dtype=object)}, "[^)]*"),
        ({"names": np.array(["a", "b/../../c", "d"])}, "it names images outside the folder of the training images"),
        ({"names": np.array(["a", "/b", "d"])}, "it names images outside the folder of the training images"),
        ({"identity": np.array(["a"])}, "identity is <U1 with 1 dimensions"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    arrays = {
        "features": np.ones((3, 2), np.float16),
        "names": np.array(["a", "b", "c"]),
        "distances": np.array([0.1, 0.2, 0.3], np.float32),
        "identity": np.array("me"),
    }
    path = tmp_path / REFERENCE_FILE
    np.savez(path, **arrays)
    assert novelty.read_reference(path).names == ["a", "b", "c"]
    np.savez(path, **(arrays | changes))
    with pytest.raises(InputError, match=rf"^cannot read {path}: it is damaged, [^\n]*\({reason}\); a test of "):
        novelty.read_reference(path)


def test_a_file_cut_short_or_without_an_array_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / REFERENCE_FILE
    np.savez(path, features=np.ones((3, 2), np.float16))
    with pytest.raises(InputError, match=r"^cannot read [^\n]+$"):
        novelty.read_reference(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"^cannot read [^\n]+$"):
        novelty.read_reference(path)


# ---- which model a file is of ----


def make_metadata(**values: Any) -> dict[str, Any]:
    metadata = {"model_name": "resnet18", "image_size": 64, "resize_rule": "squash"}
    return metadata | {"model_state": make_random_model("resnet18").state_dict()} | values


def test_the_backbone_and_how_it_is_fed_identify_a_model_and_the_head_does_not() -> None:
    metadata = make_metadata()
    identity = novelty.identify(metadata)
    assert len(identity) == 16
    assert novelty.identify(make_metadata(image_size=[64, 64], best_threshold=0.3, features="own")) == identity
    state = metadata["model_state"]
    assert novelty.identify(metadata | {"model_state": state | {"head.linear.bias": torch.ones(5)}}) == identity
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    others = [
        metadata | {"image_size": 96},
        metadata | {"resize_rule": "letterbox"},
        metadata | {"features": "mean_and_max"},
        metadata | {"model_state": state | {"mean": state["mean"] + 1}},
        metadata | {"model_state": state | {"backbone.bn1.running_mean": torch.zeros(64)}},
        metadata | {"model_state": half},
    ]
    assert len({identity, *map(novelty.identify, others)}) == 1 + len(others)


def test_a_reference_is_found_in_the_runs_folder_or_beside_the_checkpoint(tmp_path: Path) -> None:
    metadata = make_metadata(run="resnet18/x")
    checkpoint, run = tmp_path / "resnet18" / "x.pt", tmp_path / "resnet18" / "x"
    best = tmp_path / "best_model.pt"
    reference = make_reference(draw_features(20))._replace(identity=novelty.identify(metadata))
    assert novelty.find_reference(checkpoint, metadata) is None
    novelty.save_reference(run / REFERENCE_FILE, reference)
    for path in (checkpoint, best):
        found = novelty.find_reference(path, metadata)
        assert found is not None
        assert found.names == reference.names
    assert novelty.find_reference(best, make_metadata()) is None, "it does not know its run"
    assert novelty.find_reference(checkpoint, metadata | {"image_size": 96}) is None, "of another model"
    novelty.save_reference(tmp_path / REFERENCE_FILE, reference)
    assert novelty.find_reference(best, make_metadata()) is not None
    (run / REFERENCE_FILE).write_bytes(b"")
    assert novelty.find_reference(best, metadata) is not None, "the one in its own folder is whole"
