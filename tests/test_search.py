"""search.py: three real runs; and with a stand-in for runs: going on, joining, failing, its time, the winner."""

from __future__ import annotations

import ast
import csv
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_small_run
from launching import launch

import config
import model_performance_table
import models_factory
import overrides
import search
import training
from dataset import augmentations, loading
from dataset.table import Table
from tools import convert
from trainer import head_search, search_features, search_loop, search_trials, validation
from trainer.head_search import Way
from trainer.search_study import Trials
from trainer.search_trials import Outcome, Why
from utils import InputError, Stopped

SPACE = 'HEAD = choices("linear", "cosine")\nHEAD_BASE_LR = log_range(1e-3, 1e-1)\nUNFREEZE_BACKBONE_EPOCH = 2\n'


class Time:
    """Stands for the module time: it goes on when a trial says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(search_loop, "time", time)
    return time


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, clock: Time) -> list[dict[str, Any]]:
    """The constants of each run that a stand-in ran: a minute long, best at a rate of 0.01."""
    constants: list[dict[str, Any]] = []

    def run(recipe: Path, log: Path, metric: str, watch: Callable[..., Why | None]) -> Outcome:
        constants.append(read_recipe(recipe))
        clock.now += 60.0
        return Outcome("complete", make_figure(constants[-1]), run=Path("/runs/x.pt"), dataset="f")

    monkeypatch.setattr(search_trials, "run", run)
    return constants


def make_figure(constants: dict[str, Any]) -> float:
    return 0.9 - abs(np.log10(constants["HEAD_BASE_LR"]) + 2) / 10 - 0.1 * (constants["HEAD"] == "linear")


def read_recipe(path: Path) -> dict[str, Any]:
    """All constants of config.py that a recipe stands for."""
    before = dict(vars(config))
    overrides.apply([str(path)], config)
    constants = overrides.resolved(config)
    config.__dict__.clear()
    config.__dict__.update(before)
    return constants


@pytest.fixture
def space(tmp_path: Path) -> list[str]:
    """Arguments of search.py."""
    (tmp_path / "rates.py").write_text(SPACE)
    return [str(tmp_path / "rates.py"), f"--LOCAL_ROOT={tmp_path}", "--NUM_EPOCHS=7"]


def read_csv(tmp_path: Path) -> list[dict[str, str]]:
    with open(tmp_path / "searches" / "rates" / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- real runs ----


def test_three_real_runs(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In processes that have torch already. One of the three heads cannot be trained with this loss."""

    class Process:
        def __init__(self, recipe: Path, log: Path) -> None:
            log.touch()
            self.process = launch("training", [str(recipe)], log)

        def poll(self) -> int | None:
            return self.process.exitcode

        @property
        def returncode(self) -> int | None:
            return self.process.exitcode

    monkeypatch.setattr(search_trials, "start", Process)
    (tmp_path / "heads.py").write_text('HEAD = choices("cosine", "gcn", "linear")\nLOSS = "asymmetric_angular"\n')
    arguments = [str(tmp_path / "heads.py"), *make_small_run(shared_dataset, tmp_path), "--NUM_EPOCHS=1"]
    search.main([*arguments, "--SEARCH_TRIALS=3", "--SEARCH_METRIC=mAP"])

    runs = model_performance_table.read_runs(tmp_path / "trained_models")
    assert sorted(runs.HEAD) == ["cosine", "gcn"]
    with open(tmp_path / "searches" / "heads" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    complete = {row["HEAD"]: float(row["mAP"]) for row in rows if row["state"] == "complete"}
    assert complete == pytest.approx(dict(zip(runs.HEAD, runs.mAP, strict=True)))
    (failed,) = (row for row in rows if row["state"] == "failed")
    assert (failed["HEAD"], failed["mAP"]) == ("linear", "")
    assert "which HEAD linear does not give" in failed["reason"]
    best = max(complete, key=lambda head: complete[head])
    assert read_recipe(tmp_path / "searches" / "heads" / "best.py")["HEAD"] == best
    (run,) = (row["run"] for row in rows if row["HEAD"] == best and row["state"] == "complete")
    assert Path(run).is_file()
    assert run in capsys.readouterr().out.replace("\n", "")


# ---- a stand-in for runs ----


def test_the_winner_is_a_recipe_that_says_what_was_tried(
    runs: list[dict[str, Any]], space: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main([*space, "--SEARCH_TRIALS=12", "--SEARCH_MINUTES=60"])
    figures = [make_figure(constants) for constants in runs]
    assert len(figures) == 12
    recipe = tmp_path / "searches" / "rates" / "best.py"
    assert read_recipe(recipe) == runs[int(np.argmax(figures))]
    assert (runs[0]["NUM_EPOCHS"], runs[0]["UNFREEZE_BACKBONE_EPOCH"]) == (7, 2)
    tree = ast.parse(recipe.read_text())
    assert {node.targets[0].id for node in tree.body[1:] if isinstance(node, ast.Assign)} == {  # pyright: ignore
        "LOCAL_ROOT", "NUM_EPOCHS", "HEAD", "HEAD_BASE_LR", "UNFREEZE_BACKBONE_EPOCH",
    }  # fmt: skip
    words = ast.get_docstring(tree) or ""
    assert "12 trials: 12 complete" in words
    assert "* HEAD = choices('linear', 'cosine')\n* HEAD_BASE_LR = log_range(0.001, 0.1)" in words
    best_five = [f"* {figure:.4f}: " for figure in sorted(figures, reverse=True)[:5]]
    assert [line[:10] for line in words.splitlines() if line[:3] == "* 0"] == best_five
    assert "PED-ANOVA): HEAD" in words
    rows = read_csv(tmp_path)
    assert [float(row["best_f1"]) for row in rows] == pytest.approx(sorted(figures, reverse=True))
    assert {row["seconds"] for row in rows} == {"60.0"}
    out = capsys.readouterr().out
    assert "each trial is a run of training.py: UNFREEZE" not in out
    assert "each trial is a run of training.py: the backbone trains" in out
    assert "the search ends: there are 12 trials" in out


def test_numbers_that_are_tried_are_short_and_within_their_range(runs: list[dict[str, Any]], space: list[str]) -> None:
    search.main([*space, "--SEARCH_TRIALS=8"])
    rates = [constants["HEAD_BASE_LR"] for constants in runs]
    assert all(0.001 <= rate <= 0.1 and rate == float(f"{rate:.3g}") for rate in rates)
    assert len(set(rates)) == 8


def test_the_same_command_goes_on(
    runs: list[dict[str, Any]], space: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main([*space, "--SEARCH_TRIALS=2"])
    capsys.readouterr()
    search.main([*space, "--SEARCH_TRIALS=5"])
    assert "goes on after 2 trials" in capsys.readouterr().out
    assert len(runs) == len(read_csv(tmp_path)) == 5
    assert len({(constants["HEAD"], constants["HEAD_BASE_LR"]) for constants in runs}) == 5
    search.main([*space, "--SEARCH_TRIALS=5"])
    assert len(runs) == 5


def test_two_at_once_share_the_trials(
    runs: list[dict[str, Any]], space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins, and ends, while the first trial of the first one runs."""
    run = search_trials.run

    def run_and_join(*arguments: Any) -> Outcome:
        monkeypatch.setattr(search_trials, "run", run)
        search.main([*space, "--SEARCH_TRIALS=4"])
        return run(*arguments)

    monkeypatch.setattr(search_trials, "run", run_and_join)
    search.main([*space, "--SEARCH_TRIALS=6"])
    rows = read_csv(tmp_path)
    assert sorted(int(row["trial"]) for row in rows) == [0, 1, 2, 3, 4, 5]
    assert {row["state"] for row in rows} == {"complete"}
    assert len(runs) == 6


@pytest.mark.parametrize(("minutes", "count", "reason"), [(5, 5, "5 minutes are over"), (5.5, 5, "a trial takes 1:00")])
def test_a_trial_that_would_not_end_in_time_is_not_begun(
    minutes: float, count: int, reason: str, runs: list[Any], space: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    search.main([*space, f"--SEARCH_MINUTES={minutes}"])
    assert len(runs) == count
    assert f"the search ends: {reason}" in capsys.readouterr().out


def test_a_trial_under_way_when_the_time_is_over_is_gone_on_with(
    runs: list[Any], space: list[str], tmp_path: Path, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun = search_trials.run, []

    def run_long(recipe: Path, log: Path, metric: str, watch: Callable[..., Why | None]) -> Outcome:
        begun.append(read_recipe(recipe))
        assert watch(None, None) is None
        clock.now += 601.0
        assert watch(None, None) is Why.INTERRUPTED
        return Outcome("interrupted")

    monkeypatch.setattr(search_trials, "run", run_long)
    with pytest.raises(InputError, match="no trial came to its end: 10 minutes are over"):
        search.main(space)
    monkeypatch.setattr(search_trials, "run", run)
    search.main([*space, "--SEARCH_TRIALS=1"])
    assert runs == begun
    assert [row["state"] for row in read_csv(tmp_path)] == ["complete", "interrupted"]


def test_a_signal_ends_the_search_with_what_it_has(
    runs: list[Any], space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    run = search_trials.run

    def run_and_signal(recipe: Path, log: Path, metric: str, watch: Callable[..., Why | None]) -> Outcome:
        if len(runs) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            assert watch(None, None) is Why.INTERRUPTED
            return Outcome("interrupted")
        return run(recipe, log, metric, watch)

    monkeypatch.setattr(search_trials, "run", run_and_signal)
    with pytest.raises(Stopped, match="the same command goes on with the search"):
        search.main(space)
    assert read_recipe(tmp_path / "searches" / "rates" / "best.py") in runs


def test_a_killed_search_loses_the_trial_under_way_alone(
    runs: list[Any], space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.main([*space, "--SEARCH_TRIALS=2"])
    varied: dict[str, Any] = {}
    overrides.apply(space, config, search, varied=varied)
    fixed = search_loop.Space(space, search, varied).list_fixed()
    trials = Trials(tmp_path / "searches" / "rates", varied, "best_f1", fixed)
    trials.study.ask(trials.distributions)  # and nobody holds its lock
    search.main([*space, "--SEARCH_TRIALS=5"])
    rows = {int(row["trial"]): row for row in read_csv(tmp_path)}
    assert (rows[2]["state"], rows[2]["reason"]) == ("killed", "its search was killed")
    assert [rows[number]["state"] for number in (0, 1, 3, 4)] == ["complete"] * 4


def test_a_failed_trial_does_not_end_the_search(
    runs: list[Any], space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = search_trials.run

    def run_or_fail(recipe: Path, *others: Any) -> Outcome:
        return Outcome("failed", reason="the GPU's memory is full") if len(runs) == 1 else run(recipe, *others)

    def run_first(recipe: Path, *others: Any) -> Outcome:
        monkeypatch.setattr(search_trials, "run", fail_once)
        return run(recipe, *others)

    def fail_once(recipe: Path, *others: Any) -> Outcome:
        outcome = run_or_fail(recipe, *others)
        monkeypatch.setattr(search_trials, "run", run)
        return outcome

    monkeypatch.setattr(search_trials, "run", run_first)
    search.main([*space, "--SEARCH_TRIALS=4"])
    rows = read_csv(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 3 + ["failed"]
    assert rows[3]["reason"] == "the GPU's memory is full"


def test_trials_that_all_fail_end_it(
    runs: list[Any], space: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search_trials, "run", lambda *_: Outcome("failed", reason="no image has a label"))
    with pytest.raises(InputError, match="no trial came to its end: no image has a label"):
        search.main(space)
    assert capsys.readouterr().out.count("failed: no image has a label") == search_loop.MOST_FAILURES


def test_other_images_are_no_trial_of_this_search(
    runs: list[Any], space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.main([*space, "--SEARCH_TRIALS=1"])
    monkeypatch.setattr(search_trials, "run", lambda *_: Outcome("complete", 0.99, dataset="others"))
    search.main([*space, "--SEARCH_TRIALS=2"])
    assert read_csv(tmp_path)[1]["reason"].startswith("it saw other images or labels than trial 0: move")


def test_other_data_are_told_by_images_and_labels_and_by_their_files_where_these_are_known() -> None:
    assert not search_loop.differ("f 1", "f 1")
    assert not search_loop.differ("f", "f 1"), "of an earlier search the files are not known"
    assert not search_loop.differ("", "f 1")
    assert search_loop.differ("f 1", "f 2")
    assert search_loop.differ("f", "g 1")


HEAD_FITS = 'HEAD_FIT = choices("steps", "search")\nUNFREEZE_BACKBONE_EPOCH = 0\nNUM_EPOCHS = 1\nHEAD = "linear"\n'
OTHER_IMAGES = "its figure is over other images than that of trial {}: HEAD_FIT search with UNFREEZE_BACKBONE_EPOCH 0 "


@pytest.mark.parametrize("has_val_split", [False, True])
def test_figures_over_other_images_are_not_ranked_together(
    has_val_split: bool, runs: list[Any], shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is searched for on a frozen backbone is validated on all images, any other on VAL_SPLIT.

    So the second kind of trial does not run, unless the data set has a val split of its own.
    """

    def run(recipe: Path, *others: Any) -> Outcome:
        runs.append(read_recipe(recipe))
        is_searched = runs[-1]["HEAD_FIT"] == "search"
        figure, images = (0.9, "all") if is_searched else (0.5, "some")
        val_dataset = "own" if has_val_split else images
        return Outcome("complete", figure, run=tmp_path / "x.pt", dataset="f", val_dataset=val_dataset)

    monkeypatch.setattr(search_trials, "run", run)
    root = tmp_path / "set"
    convert.convert_dataset(shared_dataset, "auto", "train_list", root)
    if has_val_split:
        (root / "val_list.txt").write_text((root / "test_list.txt").read_text())
    (tmp_path / "rates.py").write_text(HEAD_FITS)
    search.main([str(tmp_path / "rates.py"), f"--LOCAL_ROOT={tmp_path}", f"--DATASET_FOLDER={root}"])
    first, second = read_csv(tmp_path)
    assert {first["HEAD_FIT"], second["HEAD_FIT"]} == {"steps", "search"}
    if has_val_split:
        assert (first["state"], second["state"], len(runs)) == ("complete", "complete", 2)
        return
    assert [constants["HEAD_FIT"] for constants in runs] == [first["HEAD_FIT"]]
    assert (first["state"], second["state"], second["best_f1"]) == ("complete", "failed", "")
    assert second["reason"].startswith(OTHER_IMAGES.format(0))


def test_figures_over_other_images_are_not_ranked_together_where_both_kinds_run_at_once(
    runs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither trial knows of the other's figure as it begins: the one that ends later has failed."""
    (tmp_path / "rates.py").write_text(HEAD_FITS)
    arguments = [str(tmp_path / "rates.py"), f"--LOCAL_ROOT={tmp_path}"]

    def run(recipe: Path, *others: Any) -> Outcome:
        constants = read_recipe(recipe)
        runs.append(constants)
        if len(runs) == 1:
            search.main(arguments)  # tries the other kind, and ends
        return Outcome("complete", 0.5, run=tmp_path / "x.pt", dataset="f", val_dataset=constants["HEAD_FIT"])

    monkeypatch.setattr(search_trials, "run", run)
    search.main(arguments)
    complete, failed = read_csv(tmp_path)
    assert len(runs) == 2
    assert (complete["state"], failed["state"], failed["trial"]) == ("complete", "failed", "0")
    assert failed["reason"].startswith(OTHER_IMAGES.format(complete["trial"]))


def test_a_space_with_few_choices_ends_when_all_are_tried(
    runs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rates.py").write_text('HEAD = choices("linear", "cosine")\n')
    search.main([str(tmp_path / "rates.py"), f"--LOCAL_ROOT={tmp_path}"])
    assert sorted(constants["HEAD"] for constants in runs) == ["cosine", "linear"]
    assert len(read_csv(tmp_path)) == 2
    assert "what is drawn was tried before" in capsys.readouterr().out


def test_trials_below_the_median_are_stopped(
    runs: list[Any], space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fifth trial on, and not in its first epochs."""
    asked: list[list[Why | None]] = []

    def run(recipe: Path, log: Path, metric: str, watch: Callable[..., Why | None]) -> Outcome:
        level = 0.5 + len(asked) / 100 if len(asked) < 5 else 0.1
        asked.append([watch(epoch, level) for epoch in (1, 2, 3)])
        return Outcome("complete", level) if asked[-1][-1] is None else Outcome("pruned", reason=asked[-1][-1].value)

    monkeypatch.setattr(search_trials, "run", run)
    search.main([*space, "--SEARCH_TRIALS=6"])
    assert asked == [[None, None, None]] * 5 + [[None, None, Why.PRUNED]]
    assert read_csv(tmp_path)[-1]["state"] == "pruned"
    # an epoch of a longer run is another thing
    asked.clear()
    (tmp_path / "lengths.py").write_text(SPACE + "NUM_EPOCHS = range_of(3, 30)\n")
    search.main([str(tmp_path / "lengths.py"), f"--LOCAL_ROOT={tmp_path}", "--SEARCH_TRIALS=6"])
    assert asked == [[None, None, None]] * 6


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("SEED = choices(0, 1)\n", [], r"HEAD was choices\('linear', 'cosine'\) and is 'linear_bn'"),
        (SPACE, ["--SEED=1"], "SEED was 0 and is 1"),
        (SPACE, ["--SEARCH_METRIC=mAP"], "SEARCH_METRIC was best_f1 and is mAP"),
        (SPACE, ["--MICRO_BATCH_SIZE=2"], "MICRO_BATCH_SIZE was not there and is 2"),
    ],
)
def test_the_trials_of_another_search_are_not_gone_on_with(
    text: str, arguments: list[str], message: str, runs: list[Any], space: list[str], tmp_path: Path
) -> None:
    search.main([*space, "--SEARCH_TRIALS=1"])
    (tmp_path / "rates.py").write_text(text)
    with pytest.raises(InputError, match=f"is of another search: {message}; give the space another file name"):
        search.main([*space, *arguments])


def test_a_journal_that_is_damaged_is_named(runs: list[Any], space: list[str], tmp_path: Path) -> None:
    search.main([*space, "--SEARCH_TRIALS=1"])
    journal = tmp_path / "searches" / "rates" / "trials.journal"
    journal.write_text("no json\n" + journal.read_text())
    with pytest.raises(InputError, match=r"trials\.journal is damaged .* move its folder away"):
        search.main(space)


@pytest.mark.parametrize("has_space", [True, False])
def test_folds_are_refused_before_any_trial(has_space: bool, runs: list[Any], space: list[str], tmp_path: Path) -> None:
    """A trial, and a rung of the ladder, is one run: of several folds only the first would count."""
    with pytest.raises(InputError, match=r"search\.py compares single runs, and FOLDS is 3: set FOLDS = 0"):
        search.main([*(space if has_space else space[1:]), "--FOLDS=3"])
    assert (runs, (tmp_path / "searches").exists()) == ([], False)


def test_a_command_to_copy_stays_on_its_line(
    space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the terminal says on how many images the figure is."""
    monkeypatch.setenv("COLUMNS", "80")
    path = Path("/runs") / ("x" * 90) / "model.pt"
    monkeypatch.setattr(search_trials, "run", lambda *_: Outcome("complete", 0.5, run=path, num_images=25))
    search.main([*space, "--SEARCH_TRIALS=2"])
    lines = capsys.readouterr().out.splitlines()
    assert f"it is trained; to test it: python testing.py --MODEL_PATH {path}" in lines
    assert f"the best as a recipe: {tmp_path}/searches/rates/best.py" in lines
    words = "The figure is over the 25 validation images; it chose the best of 2, so it is a little too good."
    assert f"2 trials: 2 complete. {words}" in lines
    assert words.split()[-1] in (tmp_path / "searches" / "rates" / "best.py").read_text()


def test_without_optuna_one_line_says_what_to_install(space: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"search\.py needs optuna: pip install -r requirements-search\.txt"):
        search.main(space)


# ---- heads on kept features ----

HEADS_SPACE = (
    'HEAD = choices("linear", "linear_bn")\nHEAD_BASE_LR = log_range(1e-3, 1e-1)\n'
    "USE_POS_WEIGHT = choices(True, False)\n"
    'UNFREEZE_BACKBONE_EPOCH = 0\nSCHEDULE = "cosine"\nNUM_EPOCHS = choices(1, 2)\nTRAIN_BATCH_SIZE = 8\n'
)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", ""),
        ('MODEL_NAME = choices("resnet18", "resnet50")', "MODEL_NAME varies"),
        ("SEED = choices(0, 1)\nIMAGE_SIZE = choices(64, 96)", "IMAGE_SIZE, SEED vary"),
        ("UNFREEZE_BACKBONE_EPOCH = 2", "the backbone trains (UNFREEZE_BACKBONE_EPOCH 0 keeps it frozen)"),
        ("UNFREEZE_BACKBONE_EPOCH = 3", ""),
        ("FREEZE_BACKBONE = False", "the backbone trains (UNFREEZE_BACKBONE_EPOCH 0 keeps it frozen)"),
        ("FROZEN_FEATURE_VIEWS = 0", "FROZEN_FEATURE_VIEWS is 0"),
        ('HEAD = choices("linear", "ml_decoder")', "HEAD is ml_decoder"),
        ('LOSS = choices("focal", "two_way")', "LOSS is two_way"),
        ('OPTIMIZER = "sgd"', "OPTIMIZER is sgd"),
        ("MIXUP_ALPHA = 0.2", "MIXUP_ALPHA is 0.2"),
        ("WARMUP_EPOCHS = 0.5", "WARMUP_EPOCHS is 0.5"),
        (
            'SCHEDULE = "multistep"',
            "SCHEDULE is multistep, with LR_MILESTONES (with SCHEDULE cosine many heads train at once)",
        ),
        ('SCHEDULE = "multistep"\nLR_MILESTONES = ()', ""),
    ],
)
def test_which_spaces_are_heads_on_kept_features(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "heads.py").write_text(HEADS_SPACE + line)
    varied: dict[str, Any] = {}
    overrides.apply([str(tmp_path / "heads.py")], config, search, varied=varied)
    assert search_loop.explain_runs(varied) == reason


@pytest.fixture
def features() -> search_features.Features:
    """90 images of which two of three classes can be told."""
    rng = np.random.default_rng(0)
    targets = (rng.random((90, 3)) < 0.4).astype(np.float32)
    rows = np.concatenate([targets[:, :2], np.zeros((90, 4), np.float32)], axis=1)
    rows += rng.normal(0, 0.3, rows.shape).astype(np.float32)
    targets[:5, 2] = np.nan
    table = Table([f"{row}.jpg" for row in range(90)], np.nan_to_num(targets, nan=-1).astype(np.int8), ("a", "b", "c"))
    return search_features.Features(
        rows=rows,
        targets=targets,
        fold_of=np.arange(90) % 5,
        dataset="f",
        device=torch.device("cpu"),
        table=table,
    )


def test_heads_are_searched_on_kept_features(
    features: search_features.Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each trial's figure is that of its way alone; the winner is a recipe for training.py."""
    monkeypatch.setattr(search_features, "read_features", lambda trained_heads: features)
    (tmp_path / "heads.py").write_text(HEADS_SPACE)
    arguments = [str(tmp_path / "heads.py"), f"--LOCAL_ROOT={tmp_path}"]
    search.main([*arguments, "--SEARCH_TRIALS=20", "--SEARCH_METRIC=mAP"])
    with open(tmp_path / "searches" / "heads" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert {row["state"] for row in rows} == {"complete"}
    for row in (rows[0], rows[-1]):
        way = Way(
            head=row["HEAD"],  # pyright: ignore[reportArgumentType]
            rate=float(row["HEAD_BASE_LR"]),
            pos_weight_cap=config.POS_WEIGHT_CAP if row["USE_POS_WEIGHT"] == "True" else None,
            epochs=int(row["NUM_EPOCHS"]),
            batch_size=8,
        )
        (result,) = head_search.search_heads(features.rows, features.targets, [way], features.fold_of)
        assert float(row["mAP"]) == pytest.approx(result.mAP, abs=1e-3)
    best = read_recipe(tmp_path / "searches" / "heads" / "best.py")
    assert (str(best["HEAD"]), str(best["HEAD_BASE_LR"])) == (rows[0]["HEAD"], rows[0]["HEAD_BASE_LR"])
    out = capsys.readouterr().out
    assert "many at once" in out
    assert "over all 90 training images, each by heads that did not see it; it chose the best of 20, so it is" in out
    assert f"to train it: python training.py {tmp_path}/searches/heads/best.py\n" in out


@pytest.mark.parametrize("num_images", [90, 240])
def test_a_heads_f1_is_what_a_run_with_as_many_validation_images_chooses_by(
    num_images: int, features: search_features.Features
) -> None:
    rows = np.resize(np.arange(90), num_images)
    more = features._replace(rows=features.rows[rows], targets=features.targets[rows], fold_of=rows % 5)
    (outcome,) = search_features.try_ways(more, [Way(epochs=1, rate=0.1, batch_size=8)], "best_f1")
    (result,) = head_search.search_heads(more.rows, more.targets, [Way(epochs=1, rate=0.1, batch_size=8)], more.fold_of)
    scores = validation.Scores(result.probabilities, more.targets, 0.0)
    assert outcome.figure == validation.measure_scores(scores, validation.cross_fits(num_images)).f1


def test_heads_that_cannot_be_trained_count_as_trials(
    features: search_features.Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every other one contradicts a constant: none is drawn in its place beyond the number of trials."""
    monkeypatch.setattr(search_features, "read_features", lambda trained_heads: features)
    choose = search_loop.Space.choose

    def choose_some(space: search_loop.Space, values: Any, recipe: Path) -> Any:
        if recipe.stem.isdigit() and int(recipe.stem) % 2:
            raise InputError("they contradict each other")
        return choose(space, values, recipe)

    monkeypatch.setattr(search_loop.Space, "choose", choose_some)
    (tmp_path / "heads.py").write_text(HEADS_SPACE)
    search.main([str(tmp_path / "heads.py"), f"--LOCAL_ROOT={tmp_path}", "--SEARCH_TRIALS=12"])
    with open(tmp_path / "searches" / "heads" / "trials.csv", newline="") as file:
        assert sorted(row["state"] for row in csv.DictReader(file)) == ["complete"] * 6 + ["failed"] * 6
    assert "\n12 trials: " in capsys.readouterr().out


def test_the_constants_of_a_head_are_its_way() -> None:
    overrides.apply(
        [
            "--HEAD=linear", "--LOSS=asymmetric", "--HEAD_BASE_LR=0.02", "--NUM_EPOCHS=7", "--WEIGHT_DECAY=0.1",
            "--TRAIN_BATCH_SIZE=64", "--LABEL_SMOOTHING=0.1", "--SCHEDULE=cosine", "--ASL_CLIP=0.2",
        ],
        config,
    )  # fmt: skip
    options = {"gamma_negative": 4.0, "gamma_positive": 0.0, "clip": 0.2, "focusing_gradient": False}
    assert search_features.make_way() == Way(
        head="linear", loss="asymmetric", loss_options=tuple(sorted(options.items())), rate=0.02, weight_decay=0.1,
        label_smoothing=0.1, pos_weight_cap=None, epochs=7, batch_size=64, schedule="cosine",
    )  # fmt: skip
    overrides.apply(["--SCHEDULE=multistep", "--LR_MILESTONES=()", "--POS_WEIGHT_CAP=5"], config)
    way = search_features.make_way()
    assert (way.head, way.loss, way.schedule, way.pos_weight_cap) == ("linear_bn", "bce_with_logits", "constant", 5.0)


def test_a_head_that_fails_does_not_take_others_along(
    features: search_features.Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three heads are too many for the memory, and one does not fit it at all."""
    train, sizes = head_search.search_heads, []

    def train_few(rows: Any, targets: Any, ways: Any, *others: Any, **options: Any) -> Any:
        sizes.append(len(ways))
        if len(ways) > 2 or any(way.batch_size == 64 for way in ways):
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        return train(rows, targets, ways, *others, **options)

    monkeypatch.setattr(head_search, "search_heads", train_few)
    ways = [Way(epochs=1, rate=rate, batch_size=size) for rate, size in ((0.1, 8), (0.01, 8), (0.1, 64), (0.02, 8))]
    outcomes = search_features.try_ways(features, ways, "mAP")
    assert [outcome.state for outcome in outcomes] == ["complete", "complete", "failed", "complete"]
    assert outcomes[2].reason == "CUDA out of memory"
    assert sizes == [4, 2, 2, 1, 1]


def test_a_full_memory_is_free_again_before_fewer_heads_are_tried(
    features: search_features.Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, filled = head_search.search_heads, []

    def fill(rows: Any, targets: Any, ways: Any, *others: Any, **options: Any) -> Any:
        assert [tensor() for tensor in filled] == [None] * len(filled)
        weights = torch.ones(1000)
        if len(ways) == 1:
            return train(rows, targets, ways, *others, **options)
        filled.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(head_search, "search_heads", fill)
    outcomes = search_features.try_ways(features, [Way(epochs=1, batch_size=8)] * 3, "mAP")
    assert [outcome.state for outcome in outcomes] == ["complete"] * 3
    assert len(filled) == 2


def test_each_set_of_constants_is_one_head(
    features: search_features.Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also among those that are drawn together, before any of them has ended."""
    monkeypatch.setattr(search_features, "read_features", lambda trained_heads: features)
    fixed = 'UNFREEZE_BACKBONE_EPOCH = 0\nSCHEDULE = "cosine"\nNUM_EPOCHS = 1\nTRAIN_BATCH_SIZE = 8\n'
    (tmp_path / "rates.py").write_text('HEAD = choices("linear", "linear_bn")\n' + fixed)
    trained: list[int] = []
    search_heads = head_search.search_heads

    def note(rows: Any, targets: Any, ways: list[Way], *rest: Any, **options: Any) -> Any:
        trained.append(len(ways))
        return search_heads(rows, targets, ways, *rest, **options)

    monkeypatch.setattr(head_search, "search_heads", note)
    search.main([str(tmp_path / "rates.py"), f"--LOCAL_ROOT={tmp_path}"])
    assert trained == [2]
    assert sorted(row["HEAD"] for row in read_csv(tmp_path)) == ["linear", "linear_bn"]


def test_a_head_that_runs_would_begin_with_ends_the_search(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Any
) -> None:
    """Heads on kept features begin at random. It is said before features are computed, whichever HEAD comes first."""
    small_run = make_small_run(dataset, tmp_path)
    training.main([*small_run, "--HEAD=linear", "--NUM_EPOCHS=1"])
    (weights,) = tmp_path.glob("trained_models/mobilenet_v2/*.pt")
    monkeypatch.setattr(search_features, "read_whole_features", None)
    space = tmp_path / "rates.py"
    space.write_text('HEAD = choices("linear_bn", "linear")\nSCHEDULE = "cosine"\nUNFREEZE_BACKBONE_EPOCH = 0\n')
    line = fails(search.main, [str(space), *small_run, f"--PRETRAINED_WEIGHTS={weights}", "--FREEZE_BACKBONE=True"])
    assert f"runs begin with the head of {weights}, and heads on kept features cannot: set TAKE_OVER_HEAD to" in line


def test_a_head_whose_rate_is_too_high_is_a_failed_trial(features: search_features.Features) -> None:
    good, bad = Way(epochs=1, batch_size=8), Way(epochs=1, batch_size=8, rate=float("inf"))
    outcomes = search_features.try_ways(features, [good, bad], "mAP")
    assert [outcome.state for outcome in outcomes] == ["complete", "failed"]
    assert outcomes[1].reason == "its probabilities are no numbers: HEAD_BASE_LR is too high for this loss"


def test_features_are_those_that_runs_keep(dataset: Path, tmp_path: Path) -> None:
    """Of all training images, each row of its image, and the folds hold each of them out once."""
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    overrides.apply(
        [
            *make_small_run(dataset, tmp_path), f"--PRETRAINED_WEIGHTS={tmp_path / 'weights.pth'}",
            "--FREEZE_BACKBONE=True", "--UNFREEZE_BACKBONE_EPOCH=0",
        ],
        config,
    )  # fmt: skip
    features = search_features.read_features()
    assert features.rows.shape == (40, 1280)
    assert sorted(np.unique(features.fold_of, return_counts=True)[1]) == [8] * 5
    present = np.array(
        [[class_ in path.read_text().split() for class_ in "012"] for path in sorted(dataset.glob("labels/train/*"))]
    )
    assert sorted(map(tuple, features.targets)) == sorted(map(tuple, present.astype(np.float32)))
    assert np.array_equal(features.targets, features.table.targets)
    model = models_factory.make_model("mobilenet_v2", 3, weights=str(tmp_path / "weights.pth"), image_size=32).eval()
    loader = loading.make_loader(features.table, augmentations.make_eval_transform(config.RESIZE_RULE, 32), 8)
    with torch.no_grad():
        expected = torch.cat([model.extract_features(batch.images).mean(dim=(2, 3)) for batch in loader])
    np.testing.assert_allclose(features.rows, expected, atol=1e-4)
    assert len([*(tmp_path / "cache").glob("features_*.npy")]) == 2
