"""trainer/watching.py: what is printed before a run, and at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import config
from dataset.table import Table
from trainer import watching
from trainer.doctor import Doctor
from trainer.training_data import Data


def make_table(rows: list[list[int]]) -> Table:
    return Table(
        [f"{number}.jpg" for number in range(len(rows))], np.array(rows, np.int8), tuple("abc"[: len(rows[0])])
    )


ONE_EACH = [[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 2


@pytest.mark.parametrize(
    ("rows", "is_said"),
    [
        (ONE_EACH, True),
        ([*ONE_EACH, [1, 1, 0]], False),
        ([*ONE_EACH, [0, 0, 0]], False),
        ([*ONE_EACH, [1, 0, -1]], False),
        ([[1]] * 6, False),
    ],
    ids=["one", "two", "none", "unknown", "one class"],
)
def test_a_set_of_one_label_an_image_is_said_once(
    rows: list[list[int]], is_said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, doctor = make_table(rows), Doctor()
    monkeypatch.setattr(Doctor, "look_at_data", lambda *arguments: None)  # which opens the files
    data = SimpleNamespace(table=table, train=table, val=table, val_is_drawn=False, fold=0, cross_validates=False)
    run: Any = SimpleNamespace(data=data, doctor=doctor)
    watching.see_data(run)
    out, err = capsys.readouterr()
    assert out.count(f"note: each of the {len(rows)} images has exactly one label; ") == is_said
    assert "more validation images would tell more" in err
    assert "VAL_SPLIT" not in err, "the val split is given"
    assert not any("LABELS_PER_IMAGE" in text for text in doctor.findings.values()), "it is no finding"
    config.LABELS_PER_IMAGE = "one"
    watching.see_data(run)
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("milestones", "num_epochs", "text"),
    [
        ((6, 8), 10, "multistep x0.1 after epochs 6, 8"),
        ((6, 8), 8, "multistep x0.1 after epochs 6"),
        ((6, 8), 4, "multistep x0.1 after epochs (none within 4 epochs)"),
        ((), 1, "multistep x0.1 after epochs (none within 1 epoch)"),
    ],
)
def test_only_drops_within_the_run_are_named(milestones: tuple[int, ...], num_epochs: int, text: str) -> None:
    config.LR_MILESTONES, config.NUM_EPOCHS, config.SCHEDULE = milestones, num_epochs, "multistep"
    run: Any = SimpleNamespace(trainer=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[])))
    assert watching._describe_rates(run).endswith(f", {text}")


def test_a_backbone_that_never_trains_has_no_rate() -> None:
    groups = [{"name": f"{part}, decayed", "initial_lr": rate} for part, rate in (("backbone", 0.25), ("head", 0.5))]
    run: Any = SimpleNamespace(trainer=SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups)))
    config.LORA_RANK = 0
    for epoch, starts_frozen, text in ((4, True, ""), (0, True, "head 0.5; "), (5, True, "head 0.5; "), (0, False, "")):
        config.NUM_EPOCHS, config.UNFREEZE_BACKBONE_EPOCH, config.FREEZE_BACKBONE_AT_START = 4, epoch, starts_frozen
        assert watching._describe_rates(run).startswith(text or "backbone 0.25, head 0.5; ")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("SEED", 1, " (features of 2 views kept)"),
        ("FROZEN_FEATURE_VIEWS", 0, ""),
        ("MIXUP_ALPHA", 0.2, " (no features kept, since batches change)"),
        ("CUTMIX_ALPHA", 1.0, " (no features kept, since batches change)"),
        ("MULTI_SCALE_SIZES", (192, 224), " (no features kept, since batches change)"),
        ("TEACHER_CHECKPOINTS", ("b.pt",), " (no features kept, since batches change)"),
    ],
)
def test_it_is_said_whether_frozen_features_are_kept(name: str, value: Any, text: str) -> None:
    config.NUM_EPOCHS, config.UNFREEZE_BACKBONE_EPOCH, config.FREEZE_BACKBONE_AT_START = 10, 4, True
    config.FROZEN_FEATURE_VIEWS, config.HEAD_FIT = 2, "steps"
    config.MIXUP_ALPHA, config.CUTMIX_ALPHA, config.MULTI_SCALE_SIZES, config.TEACHER_CHECKPOINTS = 0, 0, (), ()
    setattr(config, name, value)
    assert watching._describe_epochs() == f"10, the backbone is frozen in 1 to 3, trains from 4 on{text}"


@pytest.mark.parametrize(
    ("labels_per_image", "thresholds", "words"),
    [
        ("any", [0.056, 0.056, 0.056], ", threshold 0.0560"),
        ("any", [0.25, 0.056, 0.5], ", thresholds 0.0560 to 0.5000"),
        ("one", [0.5, 0.5, 0.5], ""),
    ],
)
def test_the_end_says_the_thresholds_that_are_saved(
    labels_per_image: str, thresholds: list[float], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.LABELS_PER_IMAGE = labels_per_image
    kinds = ("f1_weighted", "f1_macro", "exact_match")
    names = (*kinds, *(f"{kind}_cross_fitted" for kind in kinds), "mAP", "num_classes_in_mAP")
    selected = {"metrics": dict.fromkeys(names, 0.5), "best_f1": 0.5, "thresholds": thresholds, "epoch": 2}
    state = SimpleNamespace(best_f1=0.5, best_threshold=0.1859, best_epoch=2, epoch=3, seconds=1, history=[])
    run: Any = SimpleNamespace(state=state, files=SimpleNamespace(checkpoint="x.pt", curves="x.png"))
    run.state.cross_fits = False
    watching.print_result(run, selected, [])
    printed = capsys.readouterr().out
    assert f" classes, epoch 2{words}\n" in printed
    assert "0.1859" not in printed


@pytest.mark.parametrize(
    ("weights", "text"),
    [(None, ""), ([0.5, 1, 2, 1], ", weights 0.5 to 2"), ([0, 1, 0, 2], ", weights 0 to 2 (2 of weight 0)")],
)
def test_the_weights_of_a_curriculum_are_said(weights: list[float] | None, text: str) -> None:
    """So that a file that names other images than these shows."""
    table = make_table([[1, 0], [0, 1]] * 2)
    data = Data(table, table, table, "csv", weights=None if weights is None else np.array(weights, np.float32))
    assert watching._describe_splits(data) == f"4 training, 4 validation images{text}"
    expected = f"4 images, trained on and cross-validated{text}"
    assert watching._describe_splits(data._replace(cross_validates=True)) == expected
