"""trainer/novelty.py: a run leaves what images are compared with; where it is missing, a test makes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_small_run

import distributed
import predictor
import testing
import training
from models import checkpoints, novelty
from models.novelty import REFERENCE_FILE
from trainer import novelty as references
from utils import InputError

# of random weights, all images would be alike
PRETRAINED = ["--MODEL_NAME=efficientnet_lite0", "--PRETRAINED_WEIGHTS=default"]
FROZEN = [*PRETRAINED, "--FREEZE_BACKBONE=True", "--UNFREEZE_BACKBONE_EPOCH=0", "--NUM_EPOCHS=1"]
SEARCH = [*FROZEN, "--HEAD=linear", "--HEAD_FIT=search", "--USE_POS_WEIGHT=False"]
QUICK = ["--BOOTSTRAP_SAMPLES=0"]


def find_run(folder: Path) -> tuple[Path, Path]:
    """The checkpoint of the only run, and its folder."""
    (path,) = (folder / "trained_models").glob("*/*.pt")
    return path, path.with_suffix("")


def check(reference: novelty.Reference, checkpoint: Path, images: Path) -> None:
    """It is of the model in `checkpoint`, and its features are those of its images, in the folder `images`."""
    assert reference.identity == novelty.identify(checkpoints.load(checkpoint))
    model = predictor.load(checkpoint, "cpu")
    features = model.measure_features([str(images / name) for name in reference.names], batch_size=7)
    np.testing.assert_allclose(reference.features, novelty.normalise(features), atol=2e-3)
    cosines = novelty.normalise(features) @ reference.features.T
    for row, record in enumerate(model.predict([images / name for name in reference.names])):
        assert cosines[row, reference.names.index(record.nearest[0])] >= cosines[row, row] - 1e-4


@pytest.mark.parametrize(
    "constants",
    [SEARCH, [*FROZEN, "--AUGMENTATION=none"], FROZEN, [*FROZEN, "--HEAD=ml_decoder", "--AUGMENTATION=none"]],
    ids=["search", "whole pictures", "views", "maps"],
)
def test_a_frozen_backbone_leaves_a_reference_from_its_kept_features(
    shared_dataset: Path, tmp_path: Path, constants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novelty, "MOST_IMAGES", 20)
    monkeypatch.setattr(predictor.Predictor, "measure_features", None)
    training.main([*make_small_run(shared_dataset, tmp_path), *constants])
    monkeypatch.undo()
    checkpoint, run = find_run(tmp_path)
    reference = novelty.read_reference(run / REFERENCE_FILE)
    assert 12 <= len(reference.names) <= 20, "of what random weights take for copies, one is kept"
    check(reference, checkpoint, shared_dataset / "images" / "train-resized")


def test_views_and_a_trained_backbone_leave_one_of_a_few_images(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs over 32 images and 8 validation images are 2 x (3 x 32 + 8) passes, of which 10 images are 5 %."""
    monkeypatch.setattr(references, "LEAST_IMAGES", 3)
    training.main([*make_small_run(shared_dataset, tmp_path), *PRETRAINED])
    checkpoint, run = find_run(tmp_path)
    reference = novelty.read_reference(run / REFERENCE_FILE)
    assert 7 <= len(reference.names) <= 10, "of what random weights take for copies, one is kept"
    validated = {Path(path).name for path in np.load(run / "validation_scores.npz")["paths"]}
    assert not validated & {*reference.names}
    check(reference, checkpoint, shared_dataset / "images" / "train-resized")

    other = tmp_path / "other"  # two views of 32 images, of which 5 % are three images
    training.main([*make_small_run(shared_dataset, other), *FROZEN, "--NUM_EPOCHS=3"])
    assert 2 <= len(novelty.read_reference(find_run(other)[1] / REFERENCE_FILE).names) <= 3


def test_a_test_of_labelled_images_makes_what_the_run_did_not(
    shared_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*make_small_run(shared_dataset, tmp_path), *PRETRAINED]
    training.main(arguments)
    (checkpoint, run), images = find_run(tmp_path), shared_dataset / "images"
    (run / REFERENCE_FILE).unlink()
    tests = [f"--MODEL_PATH={checkpoint}", *QUICK, "--PREDICTION_FILES=records"]
    capsys.readouterr()

    testing.main([*arguments, *tests, f"--TEST_IMAGES_DIR={images / 'test-resized' / '*.jpg'}"])
    out = capsys.readouterr().out
    assert not (run / REFERENCE_FILE).exists(), "of images without labels the test would take longer for nothing"
    assert f"novelty  not known: there is no {REFERENCE_FILE} of this model; a test of labelled images makes it" in out

    testing.main([*arguments, *tests])
    out = capsys.readouterr().out
    reference = novelty.read_reference(run / REFERENCE_FILE)
    num_train = len(reference.names)
    assert 25 <= num_train <= 32
    assert f"saved: {run / REFERENCE_FILE}, {num_train} training images that others are compared with" in out
    assert f"novelty  compared with {num_train} training images" in out
    check(reference, checkpoint, images / "train-resized")
    made = (run / REFERENCE_FILE).stat().st_mtime_ns

    with monkeypatch.context() as patch:  # an import of trainer.novelty, and of all that trains, would now fail
        patch.delattr("trainer.novelty")
        patch.setitem(sys.modules, "trainer.novelty", None)
        testing.main([*arguments, *tests])
    assert (run / REFERENCE_FILE).stat().st_mtime_ns == made
    whole = (run / REFERENCE_FILE).read_bytes()
    (run / REFERENCE_FILE).write_bytes(whole[:200])
    capsys.readouterr()
    testing.main([*arguments, *tests])
    assert f"cannot read {run / REFERENCE_FILE}: it is damaged" in capsys.readouterr().err
    assert novelty.read_reference(run / REFERENCE_FILE).names == reference.names, "the test has made it again"
    records = [*predictor.load(checkpoint, "cpu").predict(images / "test-resized")]
    (file,) = (path for path in (tmp_path / "predictions").glob("*_records.json") if "test-resized" not in path.name)
    for written, record in zip(json.loads(file.read_text()), records, strict=True):
        assert written["novelty"] == pytest.approx(record.novelty, abs=1e-5)
        assert written["nearest"] == [*record.nearest]
        assert len(record.nearest) == 5
    share = np.mean([record.novelty is not None and record.novelty >= 0.99 for record in records])
    result = json.loads((tmp_path / "predictions" / "evaluate_result.json").read_text())
    assert result["novelty"]["share_unlike"] == share


def test_other_training_images_are_no_reference(
    shared_dataset: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.main([*make_small_run(shared_dataset, tmp_path), "--NUM_EPOCHS=1"])
    next((dataset / "labels" / "train").iterdir()).write_text("0\n1\n2\n")
    testing.main([*make_small_run(dataset, tmp_path), *QUICK])
    assert f"the training images of {dataset} are not those of its run\n" in capsys.readouterr().out
    assert not [*tmp_path.rglob(REFERENCE_FILE)]


@pytest.mark.parametrize(
    ("count", "rank", "failing", "ends"),
    [
        (1, 0, "read_kept_features", False),
        (1, 0, "_keep", False),
        (2, 0, "read_kept_features", True),
        (2, 1, "read_kept_features", True),
        (2, 0, "_keep", False),
    ],
)
def test_a_process_that_others_wait_for_does_not_go_on_without_them(
    count: int,
    rank: int,
    failing: str,
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They wait while features are computed. What rank 0 does alone ends no run."""

    def fail(*arguments: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(references, "read_kept_features", lambda *_: None)
    monkeypatch.setattr(references, failing, fail)
    monkeypatch.setattr(references, "choose_size", lambda run: 5)
    monkeypatch.setattr(distributed, "count", lambda: count)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    run: Any = SimpleNamespace(data=SimpleNamespace(fold=0, train=range(9)))
    if ends:
        with pytest.raises(InputError, match="the disk is full"):
            references.keep_reference(run)
    else:
        references.keep_reference(run)
        assert "no reference for the novelty of images: the disk is full; testing.py" in capsys.readouterr().err
