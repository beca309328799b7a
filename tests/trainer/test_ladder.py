"""trainer/ladder.py: how long a rung takes, when it is stopped, what is kept, and what is said. Runs are made up."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna", reason="pip install -r requirements-search.txt")

import config
import metrics
import overrides
import search
import thresholds
from evaluation import saved_scores
from metrics import Difference
from trainer import best_model, ladder, ladder_report, records, search_trials
from trainer.ladder import Estimate, must_stop
from trainer.ladder_report import Tried
from trainer.run_files import RunFiles
from trainer.run_state import RunState
from trainer.search_loop import Space
from trainer.search_trials import Outcome, Why
from utils import InputError, Stopped

CLASSES = ("red", "green", "blue")


def record(epoch: int, *, frozen: bool, seconds: float, steps: int, preparation: float = 0.0) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "frozen": frozen,
        "seconds": seconds,
        "steps": steps,
        "preparation_seconds": preparation,
    }


# ---- how long a rung takes ----


def test_a_run_is_estimated_by_the_steps_of_each_kind() -> None:
    steps, frozen = [10, 10, 20, 20], [True, True, False, False]
    state = RunState(epoch=1, seconds=35.0, history=[record(1, frozen=True, seconds=35, steps=10, preparation=30)])
    assert ladder.estimate(state, steps, frozen) is None  # nothing is known of the epochs that train the backbone
    state = RunState(
        epoch=2,
        seconds=40.0,
        step=5,
        epoch_seconds=15.0,
        history=[*state.history, record(2, frozen=True, seconds=5, steps=10)],
    )
    # 3 s a step: 15 are left in this epoch, and 20 in the next
    assert ladder.estimate(state, steps, frozen) == Estimate(40 + 15 + 45 + 60, 45 + 60, 45)
    state = RunState(epoch=3, seconds=100.0, history=[*state.history, record(3, frozen=False, seconds=60, steps=20)])
    assert ladder.estimate(state, steps, frozen) == Estimate(160, 60, 0)


def test_a_frozen_run_is_its_own_trial_and_a_searched_head_takes_no_step() -> None:
    state = RunState(epoch=1, seconds=14.0, history=[record(1, frozen=True, seconds=14, steps=4, preparation=10)])
    assert ladder.estimate(state, [4, 4, 4], [True] * 3) == Estimate(22, 8, 8)
    state = RunState(epoch=1, seconds=30.0, history=[record(1, frozen=True, seconds=30, steps=0)])
    assert ladder.estimate(state, [0], [True]) == Estimate(30, 0, 0)
    assert ladder.estimate(state, [0, 7], [True, False]) is None


def test_an_epoch_that_is_not_closed_yet_tells_nothing_of_the_next_ones() -> None:
    """After its last step its seconds count its preparation, such as features that the next epochs have."""
    history = [record(1, frozen=True, seconds=630, steps=10, preparation=600)]
    state = RunState(epoch=1, seconds=630.0, step=10, epoch_seconds=90.0, history=history)
    assert ladder.estimate(state, [10, 10, 10], [True] * 3) == Estimate(630 + 90 + 30, 30, 30)
    assert ladder.estimate(RunState(step=10, epoch_seconds=630.0), [10, 10], [True] * 2) is None


@pytest.mark.parametrize(
    ("estimated", "seconds_left", "stops"),
    [
        (None, 60, False),  # nothing is known yet
        (None, 0, True),
        (Estimate(100, 50, 10), 60, False),  # it ends in time
        (Estimate(100, 50, 10), 40, False),  # it does not, but its trial does
        (Estimate(100, 50, 0), 40, True),  # the trial has ended
        (Estimate(100, 50, 45), 40, True),  # not even that one ends in time
        (Estimate(100, 50, 10), -1, True),
    ],
)
def test_when_a_run_is_stopped(estimated: Estimate | None, seconds_left: float, stops: bool) -> None:
    assert must_stop(estimated, seconds_left) == stops


def test_a_run_is_watched_by_what_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides.apply(["--NUM_EPOCHS=2", "--UNFREEZE_BACKBONE_EPOCH=2", "--TRAIN_BATCH_SIZE=10"], config)
    files = RunFiles(tmp_path / "run")
    files.folder.mkdir()
    watched = ladder.Watched(files, 40)
    assert (watched.steps, watched.frozen) == ([4, 4], [True, False])
    assert watched.look() is None
    history = [record(1, frozen=True, seconds=8, steps=4)]
    state = {"epoch": 1, "seconds": 8.0, "step": 1, "epoch_seconds": 5.0, "history": history}
    monkeypatch.setattr(ladder.checkpoints, "load", lambda path: {"training_state": {"state": state}})
    files.last.touch()
    assert watched.look() == Estimate(8 + 5 + 15, 15, 15)
    assert watched.seconds == 13
    config.RESUME = "never"
    assert ladder.Watched(files, 40).look() is None  # it is an earlier run's


# ---- whether a rung is better ----


def save(folder: Path, skill: float, rows: slice = slice(None), classes: tuple[str, ...] = CLASSES) -> RunFiles:
    """The scores of a made-up run, of which all see the same 60 images."""
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 3)) < 0.4).astype(np.int8)
    noise = rng.random((60, 3))
    probabilities = ((1 - skill) * noise + skill * targets).astype(np.float32)
    paths = [f"{index:02}.jpg" for index in range(60)]
    folder.mkdir(parents=True)
    scores = probabilities[rows], targets[rows], paths[rows], classes
    saved_scores.save_scores(folder / saved_scores.SCORES_FILE, *scores)
    return RunFiles(folder)


def test_runs_are_compared_on_the_images_that_both_have(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", 0.2), save(tmp_path / "b", 0.4, slice(50, 9, -1))
    found = ladder.compare_runs(a, b)
    scores_a, scores_b = (saved_scores.read_scores(each.folder / saved_scores.SCORES_FILE) for each in (a, b))
    expected_a, expected_b = scores_a.probabilities[50:9:-1], scores_b.probabilities
    targets = scores_b.targets
    tuned = [thresholds.tune_global(each, targets) for each in (expected_a, expected_b)]
    assert found.num_images == 41
    assert found.differences == metrics.compare(expected_a, expected_b, targets, *tuned)
    assert found.measured["mAP"] == metrics.measure(expected_b, targets, 0.5)["mAP"]
    assert found.differences["mAP"].low > 0


def test_runs_of_other_images_or_classes_are_not_compared(tmp_path: Path) -> None:
    first = save(tmp_path / "a", 0.2, slice(0, 30))
    with pytest.raises(InputError, match="same images"):
        ladder.compare_runs(first, save(tmp_path / "b", 0.2, slice(30, 60)))
    with pytest.raises(InputError, match="other classes"):
        ladder.compare_runs(first, save(tmp_path / "c", 0.2, classes=("red", "blue", "green")))


# ---- the ladder ----


class Runs:
    """Stands for training.py: what comes of each rung's run."""

    def __init__(self) -> None:
        self.skills: dict[str, Any] = {"probe": 0.1, "ml_decoder": 0.4, "adapters": 0.4, "all_weights": 0.3}
        self.states = dict.fromkeys(self.skills, "complete")
        self.begun: list[str] = []
        self.naming = ""  # the rung that is taken
        self.tuned: list[RunFiles] = []
        self.constants: dict[str, dict[str, Any]] = {}
        self.num_train: dict[str, int] = {}

    def tune(self, files: RunFiles) -> records.Selected:
        self.tuned.append(files)
        return records.Selected({}, None)

    def run(self, recipe: Path, log: Path, metric: str, watch: Callable[..., Why | None]) -> Outcome:
        name = recipe.stem
        self.begun.append(name)
        state = self.states[name]
        folder = recipe.parent / "runs" / name
        if state != "failed" and self.skills[name] is not None and not folder.exists():
            save(folder, self.skills[name])
        return Outcome(state, reason="the memory is full" if state == "failed" else "")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    made = Runs()

    def name_files(data: Any) -> RunFiles:
        made.constants[made.naming], made.num_train[made.naming] = overrides.resolved(config), len(data.train)
        return RunFiles(config.LOCAL_ROOT / "searches" / "ladder" / "runs" / made.naming)

    def read_data() -> SimpleNamespace:
        cross_validates = config.HEAD_FIT == "search" and config.UNFREEZE_BACKBONE_EPOCH == 0
        train = range(64 if cross_validates else 48)
        return SimpleNamespace(train=train, cross_validates=cross_validates, files_fingerprint="")

    real_take = ladder.Ladder.take

    def take(self: ladder.Ladder, rung: ladder.Rung) -> None:
        made.naming = rung.file
        real_take(self, rung)

    monkeypatch.setattr(ladder.Ladder, "take", take)
    monkeypatch.setattr(records, "name_files", name_files)
    monkeypatch.setattr(records, "tune_selected", made.tune)
    monkeypatch.setattr(best_model, "update", lambda files, *others, is_chosen: [f"copied: {files.run}, {is_chosen}"])
    monkeypatch.setattr(search_trials, "run", made.run)
    monkeypatch.setattr(ladder, "read_data", read_data)
    monkeypatch.setattr(ladder, "note_files", lambda data: data)
    return made


def climb(tmp_path: Path, *arguments: str, minutes: float = 30) -> str:
    given = [f"--LOCAL_ROOT={tmp_path}", *arguments]
    script: ModuleType = search
    overrides.apply(given, config, script)
    ladder.climb(Space(given, script, {}), minutes)
    return (tmp_path / "searches" / "ladder" / "best.py").read_text(encoding="utf-8")


def test_a_rung_is_kept_only_if_it_is_better(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = climb(tmp_path, "--MODEL_NAME=resnet34")
    assert runs.begun == ["probe", "ml_decoder", "adapters", "all_weights"]
    words = ast.get_docstring(ast.parse(recipe)) or ""
    assert words.startswith("ML-Decoder: the rung that python search.py kept.")
    lines = capsys.readouterr().out
    assert "ML-Decoder: better than the probe by ." in lines
    assert "Adapters: gained nothing over ML-Decoder" in lines or "Adapters: is not certain to be better" in lines
    assert "All weights: fell behind ML-Decoder" in lines
    assert "ML-Decoder won" in " ".join(words.split())
    assert [files.folder.name for files in runs.tuned] == ["ml_decoder"]
    assert lines.endswith("copied: runs/ml_decoder, True\n"), "the winner, whatever the F1 of other runs"
    overrides.apply([str(tmp_path / "searches" / "ladder" / "best.py")], config)
    assert (config.HEAD, config.MODEL_NAME, config.UNFREEZE_BACKBONE_EPOCH) == ("ml_decoder", "resnet34", 0)
    assert config.SAVE_EVERY_MINUTES == 10


def test_a_rung_builds_on_the_head_that_was_kept(runs: Runs, tmp_path: Path) -> None:
    runs.skills |= {"ml_decoder": 0.2, "adapters": 0.35, "all_weights": 0.5}
    climb(tmp_path)
    assert runs.constants["all_weights"]["HEAD"] == runs.constants["adapters"]["HEAD"] == "ml_decoder"
    assert (runs.constants["adapters"]["LORA_RANK"], runs.constants["all_weights"]["LORA_RANK"]) == (8, 0)
    assert [files.folder.name for files in runs.tuned] == ["all_weights"]
    runs.skills["ml_decoder"] = 0.05
    climb(tmp_path / "second")
    assert runs.constants["adapters"]["HEAD"] == "linear"


@pytest.mark.parametrize(("skill", "head"), [(0.2, "linear"), (0.5, "ml_decoder")])
def test_a_kernel_head_is_the_probe_and_what_trains_the_backbone_has_another(
    skill: float, head: str, runs: Runs, tmp_path: Path
) -> None:
    runs.skills |= {"probe": 0.3, "ml_decoder": skill, "adapters": 0.1, "all_weights": 0.1}
    climb(tmp_path, str(Path(ladder.__file__).parents[1] / "recipes" / "small_data.py"))
    heads = {name: constants["HEAD"] for name, constants in runs.constants.items()}
    assert heads == {"probe": "kernel", "ml_decoder": "ml_decoder", "adapters": head, "all_weights": head}
    kept = "probe" if skill < 0.3 else "ml_decoder"
    assert [files.folder.name for files in runs.tuned] == [kept]
    overrides.apply([str(tmp_path / "searches" / "ladder" / "best.py")], config)
    assert heads[kept] == config.HEAD
    # the probe alone holds no image back, whose number the time of the others depends on
    assert runs.num_train == {"probe": 64, "ml_decoder": 48, "adapters": 48, "all_weights": 48}


def test_what_a_rung_makes_no_use_of_is_for_those_above_it(runs: Runs, tmp_path: Path) -> None:
    runs.skills |= {"ml_decoder": 0.05, "all_weights": 0.5}
    climb(tmp_path, "--LAYER_DECAY=0.7", "--MIXUP_ALPHA=0.2")
    values = {name: (values["LAYER_DECAY"], values["MIXUP_ALPHA"]) for name, values in runs.constants.items()}
    used = (0.7, 0.2)
    assert values == {"probe": (1.0, 0.0), "ml_decoder": (1.0, 0.2), "adapters": used, "all_weights": used}
    climb(tmp_path / "second", str(Path(ladder.__file__).parents[1] / "recipes" / "fine_tuning.py"))
    warmups = {
        name: (values["WARMUP_EPOCHS"], values["GROWING_IMAGE_SIZES"]) for name, values in runs.constants.items()
    }
    used = (1.2, [256, 256, 256, 288, 288])
    assert warmups == {"probe": (0, []), "ml_decoder": (1.2, []), "adapters": used, "all_weights": used}


def test_a_run_that_has_finished_is_not_run_again(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "searches" / "ladder" / "runs" / "probe"
    save(folder, 0.1)
    (folder / "train_result.json").touch()
    climb(tmp_path)
    assert runs.begun == ["ml_decoder", "adapters", "all_weights"]
    climb(tmp_path, "--RESUME=never")
    assert runs.begun[3:] == ["probe", "ml_decoder", "adapters", "all_weights"]


def test_what_fails_or_is_stopped_is_said(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.states |= {"ml_decoder": "failed", "all_weights": "interrupted"}
    runs.skills |= {"adapters": 0.05, "all_weights": 0.6}
    recipe = climb(tmp_path)
    lines = capsys.readouterr().out
    assert "ML-Decoder: not tried to the end, the memory is full." in lines
    assert "All weights: better than the probe by ." in lines
    assert "how long all of it takes cannot be told yet" in lines
    assert "All weights: the rung" in recipe


def test_no_time_is_left(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    climb(tmp_path, minutes=0)
    assert runs.begun == ["probe"]  # without a first model there is nothing to say
    assert "All weights: not tried, no time was left." in capsys.readouterr().out


def test_without_a_first_model_it_ends_in_one_line(runs: Runs, tmp_path: Path) -> None:
    runs.states["probe"] = "failed"
    with pytest.raises(InputError, match="the probe: the memory is full"):
        climb(tmp_path)
    runs.states["probe"], runs.skills["probe"] = "interrupted", None
    with pytest.raises(InputError, match=r"SEARCH_MINUTES 0\.5 are too few for the probe: the same command"):
        climb(tmp_path / "second", minutes=0.5)


def test_constants_that_contradict_the_users_are_said(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the probe: it cannot run: LOSS asymmetric_angular"):
        climb(tmp_path, "--LOSS=asymmetric_angular", "--HEAD=cosine")


def test_a_signal_ends_the_ladder(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    def run(*arguments: Any) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        return runs.run(*arguments)

    monkeypatch.setattr(search_trials, "run", run)
    with pytest.raises(Stopped, match="the same command goes on"):
        climb(tmp_path)
    assert runs.begun == ["probe"]


KERNEL = ["--HEAD=kernel", "--HEAD_FIT=search", "--NUM_EPOCHS=1", "--UNFREEZE_BACKBONE_EPOCH=0"]


@pytest.mark.parametrize("arguments", [[], ["--LOSS=softmax"], ["--LABELS_PER_IMAGE=one"], ["--LOSS=focal"], KERNEL])
@pytest.mark.parametrize("head", ["the probe", "ML-Decoder"])
def test_the_constants_of_each_rung_fit_each_other(arguments: list[str], head: str, tmp_path: Path) -> None:
    overrides.apply(arguments, config)
    space = Space(arguments, search, {})
    rungs = {rung.name: rung for rung in ladder.list_rungs()}
    for rung in rungs.values():
        constants = ladder.make_constants(rung, {head: dict(rungs[head].constants)})
        with space.choose(constants, tmp_path / "rung.py"):
            assert config.FREEZE_BACKBONE_AT_START


# ---- what is said ----

GAIN, NONE, LOSS = (
    Difference(0.012, 0.004, 0.02, 0.002),
    Difference(0.003, -0.006, 0.012, 0.5),
    Difference(-0.03, -0.04, -0.02, 0.001),
)


@pytest.mark.parametrize(
    ("tried", "sentence"),
    [
        (
            Tried("the probe", 1.24, num_images=400, mAP=0.702, f1=0.6534, is_kept=True),
            "The probe: mAP .702 and F1 .653 on 400 held-out images, in 1.2 minutes.",
        ),
        (
            Tried("ML-Decoder", 3, num_images=400, against="the probe", gain=GAIN, f1_gain=LOSS, is_kept=True),
            "ML-Decoder: better than the probe by .012 (.004 to .020), F1 -.030 (-.040 to -.020), on 400 images, in 3 "
            "minutes.",
        ),
        (
            Tried("all weights", 5, False, 40.2, num_images=400, against="ML-Decoder", gain=NONE, f1_gain=NONE),
            "All weights: is not certain to be better than ML-Decoder in a trial of 5 minutes (mAP +.003 (-.006 to "
            ".012), F1 +.003 (-.006 to .012), on 400 images); all of it would take 40 minutes.",
        ),
        (
            Tried("adapters", 1, num_images=400, against="the probe", gain=LOSS, f1_gain=NONE),
            "Adapters: fell behind the probe in 1 minute (mAP -.030 (-.040 to -.020), F1 +.003 (-.006 to .012), on 400 "
            "images).",
        ),
        (
            Tried(
                "all weights", 5, False, 40, num_images=9, against="the probe", gain=GAIN, f1_gain=GAIN, is_kept=True
            ),
            "All weights: better than the probe by .012 (.004 to .020), F1 +.012 (.004 to .020), on 9 images, in a "
            "trial of 5 minutes; all of it would take 40 minutes.",
        ),
        (
            Tried("all weights", 1, False, 400),
            "All weights: no model to compare in a trial of 1 minute; all of it would take 400 minutes.",
        ),
        (Tried("adapters", 0, reason="no time was left"), "Adapters: not tried, no time was left."),
    ],
)
def test_each_rung_is_told_in_a_sentence(tried: Tried, sentence: str) -> None:
    assert ladder_report.describe_rung(tried) == sentence


def test_the_last_sentence_names_the_winner() -> None:
    probe = Tried("the probe", 1, num_images=400, mAP=0.69, f1=0.65, is_kept=True)
    decoder = Tried("ML-Decoder", 3, num_images=400, mAP=0.702, f1=0.66, gain=GAIN, f1_gain=GAIN, is_kept=True)
    lines = ladder_report.describe([probe, decoder, Tried("all weights", 0, reason="no time was left")])
    assert lines[-1] == "ML-Decoder won, with mAP .702 and F1 .660 on 400 images."
    assert len(lines) == 4
    lines = ladder_report.describe([probe, decoder._replace(num_images=12)])
    assert lines[-1].startswith("12 images are few to compare on: raise VAL_SPLIT, or train the recipes")
