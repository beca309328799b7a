"""trainer/best_model.py: which run BEST_MODEL_PATH is of, after runs that can be compared and others."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import config
import overrides
from dataset.table import Table
from evaluation import saved_scores
from evaluation.saved_scores import SavedScores
from models import checkpoints
from trainer import best_model
from trainer.run_files import RunFiles

TABLE = Table([f"{row}.jpg" for row in range(4)], np.eye(4, 2, dtype=np.int8), ("red", "green"))


@pytest.fixture(autouse=True)
def root(tmp_path: Path) -> Path:
    overrides.apply([f"--LOCAL_ROOT={tmp_path}"], config)
    return config.TRAINED_MODELS_FOLDER


def end_run(name: str, best_f1: float | None, *, table: Table = TABLE, is_chosen: bool = False, **values: Any) -> str:
    """End a run as training does; what is said of BEST_MODEL_PATH."""
    files, checkpoint, scores = save_run(name, best_f1, table, **values)
    return "\n".join(best_model.update(files, checkpoint, scores, is_chosen))


def save_run(
    name: str, best_f1: float | None, table: Table = TABLE, **values: Any
) -> tuple[RunFiles, dict[str, Any], SavedScores]:
    """A run that has tuned its thresholds. Every weight is its F1."""
    files = RunFiles(config.TRAINED_MODELS_FOLDER / "resnet18" / name)
    files.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "model_state": {"weight": torch.full((2,), -1.0 if best_f1 is None else best_f1)},
        "model_name": "resnet18",
        "head": "linear",
        "classes": [*table.classes],
        "image_size": 32,
        "resize_rule": "squash",
        "best_f1": best_f1,
        "chosen_by": "f1_weighted",
        "epoch": 3,
        "run": files.run,
        "thresholds": [0.5] * len(table.classes),
        "dataset": {"val_fingerprint": table.fingerprint(), "val_files_fingerprint": "these"},
    } | values
    checkpoint = {name: value for name, value in checkpoint.items() if value is not None or name == "best_f1"}
    probabilities = np.full(table.targets.shape, 0.5, np.float32)
    identity = saved_scores.identify(checkpoint)
    scores = SavedScores(probabilities, table.targets, table.paths, table.classes, identity)
    saved_scores.save_with_scores(files.checkpoint, checkpoint, scores)
    return files, checkpoint, scores


def read_best() -> str:
    """Which run BEST_MODEL_PATH is of; its sidecar, scores and thresholds are of the same one."""
    best = checkpoints.load(config.BEST_MODEL_PATH)
    sidecar = checkpoints.read_sidecar(config.BEST_MODEL_PATH)
    assert sidecar is not None
    assert sidecar["run"] == best["run"]
    folder = saved_scores.find_folder(config.BEST_MODEL_PATH)
    scores = saved_scores.read_scores(folder / saved_scores.SCORES_FILE)
    assert scores.identity == saved_scores.identify(best)
    assert len(np.load(folder / saved_scores.THRESHOLDS_FILE)) == len(best["classes"])
    own = checkpoints.load(config.TRAINED_MODELS_FOLDER / f"{best['run']}.pt")
    assert torch.equal(best["model_state"]["weight"], own["model_state"]["weight"])
    return best["run"].removeprefix("resnet18/")


def test_of_runs_on_the_same_images_the_best_one_stays(root: Path) -> None:
    assert end_run("a", 0.5) == f"{root}/best_model.pt is a copy of it, the only run so far on these validation images"
    assert end_run("b", 0.7).splitlines() == [
        f"{root}/best_model.pt is a copy of it, the highest F1 of 2 runs on the same validation images",
        "       before, it was a copy of resnet18/a, whose F1 on the same validation images is 0.5000",
    ]
    assert read_best() == "b"
    said = end_run("c", 0.6)
    assert said.splitlines() == [
        f"{root}/best_model.pt is a copy of resnet18/b: on the same validation images its F1 is 0.7000, this run's "
        "0.6000",
        f"       this run is --MODEL_PATH {root}/resnet18/c.pt",
    ]
    assert read_best() == "b"
    end_run("c", 0.8)
    assert read_best() == "c"


def test_last_takes_each_run(root: Path) -> None:
    overrides.apply([f"--LOCAL_ROOT={root.parent}", "--BEST_MODEL=last"], config)
    end_run("a", 0.7)
    assert end_run("b", 0.5).splitlines() == [
        f"{root}/best_model.pt is a copy of it",
        "       before, it was a copy of resnet18/a, and BEST_MODEL is 'last'",
    ]
    assert end_run("b", 0.6) == f"{root}/best_model.pt is a copy of it", "it was of this run before"
    assert read_best() == "b"


OTHER_IMAGES = Table([*TABLE.paths[:3], "9.jpg"], TABLE.targets, TABLE.classes)
OTHER_LABELS = Table(TABLE.paths, 1 - TABLE.targets, TABLE.classes)
OTHER_CLASSES = Table(TABLE.paths, TABLE.targets, ("red", "blue"))
ON_OTHERS = "which was validated on other images or labels"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"table": OTHER_IMAGES}, ON_OTHERS),
        ({"table": OTHER_LABELS}, ON_OTHERS),
        ({"table": OTHER_CLASSES}, ON_OTHERS),
        ({"dataset": {"val_fingerprint": TABLE.fingerprint(), "val_files_fingerprint": "others"}}, ON_OTHERS),
        ({"chosen_by": "f1_macro"}, "which was chosen by another kind of F1 (f1_weighted)"),
    ],
)
def test_a_run_that_cannot_be_compared_takes_its_place_and_says_so(values: Any, words: str, root: Path) -> None:
    end_run("a", 0.9)
    end_run("b", 0.8)
    assert end_run("other", 0.1, **values).splitlines()[1:] == [f"       before, it was a copy of resnet18/a, {words}"]
    assert read_best() == "other"
    lines = end_run("c", 0.7).splitlines()
    assert lines[0].startswith(f"{root}/best_model.pt is a copy of resnet18/a: ")
    unlike = words.replace("(f1_weighted)", "(f1_macro)")
    assert lines[2:] == [f"       before, it was a copy of resnet18/other, {unlike}"]
    assert read_best() == "a", "the best on these images, whatever was there in between"
    assert "before, " not in end_run("d", 0.6), "it was of that run, and stays so"


def test_a_better_copy_whose_run_is_gone_is_named_when_it_is_replaced() -> None:
    end_run("a", 0.9)
    (config.TRAINED_MODELS_FOLDER / "resnet18" / "a.pt").unlink()
    assert end_run("b", 0.5).splitlines()[1:] == [
        "       before, it was a copy of resnet18/a, whose F1 on the same validation images is 0.9000, but whose own "
        "checkpoint is gone, cannot be read, or trains again"
    ]


def test_the_average_of_folds_has_no_f1_to_compare_by(root: Path) -> None:
    end_run("a", 0.9)
    lines = end_run("5folds", None, dataset={}, fold=0).splitlines()
    assert lines[0] == f"{root}/best_model.pt is a copy of it"
    assert lines[1].endswith("a copy of resnet18/a, and one of the two has no F1 on validation images that are known")
    assert read_best() == "5folds"
    assert "before, it was a copy of resnet18/5folds, and one of the two has no F1" in end_run("b", 0.95)
    assert read_best() == "b"


def test_a_winner_is_copied_whatever_the_others_reached() -> None:
    end_run("a", 0.9)
    said = end_run("winner", 0.3, is_chosen=True)
    assert said.endswith("before, it was a copy of resnet18/a, and this run was chosen among others")
    assert read_best() == "winner"


def test_a_model_of_which_nothing_is_known_is_said_to_be_replaced() -> None:
    end_run("a", 0.9)
    config.BEST_MODEL_PATH.with_suffix(".json").write_text("{")
    assert end_run("b", 0.95).splitlines()[1:] == [
        "       before, it was a copy of a run that it did not name, and one of the two has no F1 on validation images "
        "that are known"
    ]


@pytest.mark.parametrize("f1", [float("nan"), 0.0])
def test_an_undefined_f1_is_below_any_other(f1: float) -> None:
    end_run("a", 0.1)
    end_run("b", f1)
    assert read_best() == "a"
    end_run("c", f1, table=OTHER_IMAGES)
    end_run("d", 0.0, table=OTHER_IMAGES)
    assert read_best() == "d"


def test_the_present_one_keeps_the_thresholds_that_it_was_given_since(root: Path) -> None:
    end_run("a", 0.9)
    tuned = checkpoints.load(config.BEST_MODEL_PATH) | {"thresholds": [0.1, 0.2]}
    checkpoints.save(config.BEST_MODEL_PATH, tuned)
    end_run("b", 0.5)
    assert checkpoints.load(config.BEST_MODEL_PATH)["thresholds"] == [0.1, 0.2]
    end_run("a", 0.9)
    assert checkpoints.load(config.BEST_MODEL_PATH)["thresholds"] == [0.5, 0.5], "that run itself has ended again"


def test_a_run_that_has_not_ended_or_is_damaged_is_no_rival(capsys: pytest.CaptureFixture[str]) -> None:
    unfinished, checkpoint, _ = save_run("unfinished", 0.99)
    del checkpoint["thresholds"]  # which it gets at its end
    checkpoints.save(unfinished.checkpoint, checkpoint)
    damaged, _, _ = save_run("damaged", 0.98)
    damaged.checkpoint.write_bytes(damaged.checkpoint.read_bytes()[:100])
    replaced, checkpoint, _ = save_run("replaced", 0.97)
    checkpoints.save_alone(replaced.checkpoint, checkpoint | {"best_f1": 0.96})  # its sidecar is not yet written
    end_run("a", 0.5)
    assert read_best() == "a"
    assert "damaged.pt: it is damaged or cut short; " in capsys.readouterr().err


def test_runs_of_before_are_compared_by_their_saved_scores() -> None:
    end_run("old", 0.9, dataset={})
    end_run("older", 0.8, dataset={}, run=None)
    end_run("new", 0.5)
    assert read_best() == "old"
    (config.TRAINED_MODELS_FOLDER / "resnet18" / "old" / saved_scores.SCORES_FILE).unlink()
    end_run("newer", 0.6)
    assert read_best() == "older", "what the other one was validated on is not known any more"


def test_runs_that_end_together_leave_the_best_one() -> None:
    names = [f"run{number}" for number in range(6)]
    draw = np.random.default_rng(0).permutation(6) / 10
    threads = [threading.Thread(target=end_run, args=pair) for pair in zip(names, draw.tolist(), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_best() == names[int(draw.argmax())]


def test_killed_while_it_is_written_the_next_end_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    end_run("a", 0.5)
    end_run("other", 0.1, table=OTHER_IMAGES)

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    for step in ("save_thresholds", "save_alone", "save_sidecar"):
        module = saved_scores if step == "save_thresholds" else checkpoints
        files, checkpoint, scores = save_run("b", 0.4)
        with monkeypatch.context() as patch:
            patch.setattr(module, step, die)
            with pytest.raises(KeyboardInterrupt):
                best_model.update(files, checkpoint, scores)
        best_model.update(files, checkpoint, scores)
        assert read_best() == "a"
        end_run("other", 0.1, table=OTHER_IMAGES)
