"""The table of trained models, against values computed by hand and by pandas.

pytest tests/test_model_performance_table.py
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import (
    CONSTANTS,
    draw_probabilities,
    draw_targets,
    make_ruler,
    make_sidecar,
    write_run,
    write_test,
)

import config
import model_performance_table
import overrides
import utils
from dataset.frames import pd
from evaluation import run_rows, tables

REPOSITORY = Path(model_performance_table.__file__).parent
# name, model_name, best_f1, mAP, epoch, SEED, TRAIN_BATCH_SIZE, OPTIMIZER
RUNS = [
    ("a", "resnet18", 0.50, 0.60, 3, 0, 32, "adam"),
    ("b", "resnet18", 0.70, 0.72, 5, 1, 32, "sgd"),
    ("c", "resnet18", 0.60, 0.66, 7, 2, 64, "adam"),
    ("d", "resnet50", 0.65, 0.80, 4, 0, 32, "adam"),
    ("e", "resnet50", 0.53, 0.70, 6, 1, 32, "adam"),
    ("f", "vgg16", math.nan, 0.10, 1, 0, 16, "adam"),
]


@pytest.fixture(autouse=True)
def _restore_constants() -> Iterator[None]:
    kept = [(module, dict(vars(module))) for module in (config, model_performance_table)]
    yield
    for module, values in kept:
        vars(module).update(values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, model_name, best_f1, mean_ap, epoch, seed, batch_size, optimizer in RUNS:
        constants = {"SEED": seed, "TRAIN_BATCH_SIZE": batch_size, "OPTIMIZER": optimizer}
        sidecar = make_sidecar(model_name, best_f1, mean_ap, epoch, **constants)
        sidecar["threshold_policy"] = {"of": name}  # else d and e, which differ in SEED alone, were one row
        write_run(tmp_path / "trained_models", name, sidecar)
    return tmp_path / "trained_models"


@pytest.fixture
def show(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the script on `root` and give what it printed on stdout."""

    def run(*arguments: str, width: int | None = None) -> str:
        monkeypatch.delenv("COLUMNS", raising=False)
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        model_performance_table.main(["--CHECKPOINTS_ROOT", str(root), *arguments])
        return capsys.readouterr().out

    return run


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def list_names(text: str) -> list[str]:
    """The runs' names in the order of a CSV."""
    return [Path(row["checkpoint"]).stem for row in read_rows(text)]


def read_frame(root: Path) -> Any:  # pandas types an item of a frame as a dozen things
    """The same runs as a pandas table, read on another way."""
    sidecars = [json.loads(path.read_text()) for path in sorted(root.glob("*/*.json"))]
    rows = [{**s["config"], **s["metrics"], **s, "name": name} for name, s in zip("abcdef", sidecars, strict=True)]
    return pd.DataFrame(rows)


def test_default_order_is_best_f1_with_nan_last(show: Any) -> None:
    assert list_names(show("--csv")) == ["b", "d", "c", "e", "a", "f"]


@pytest.mark.parametrize("column", ["best_f1", "mAP", "epoch", "SEED", "TRAIN_BATCH_SIZE", "OPTIMIZER", "model_name"])
@pytest.mark.parametrize("ascending", [True, False])
def test_order_is_that_of_a_stable_pandas_sort(show: Any, root: Path, column: str, ascending: bool) -> None:
    expected = read_frame(root).sort_values(column, ascending=ascending, kind="stable", na_position="last")
    assert list_names(show("--csv", "--SORT_BY", column, "--SORT_ASCENDING", str(ascending))) == list(expected["name"])


def test_f1_that_was_cross_fitted_stands_in_a_block_of_its_own(root: Path, show: Any) -> None:
    line = "not ranked with the rows above: best_f1 is f1_weighted above and f1_weighted_cross_fitted below"
    for chosen_by, is_said in (("f1_weighted", False), ("f1_weighted_cross_fitted", True)):
        write_run(root, "g", make_sidecar("resnet18", 0.99, 0.6, 3) | {"chosen_by": chosen_by})
        assert (line in show(width=200)) is is_said
        assert list_names(show("--csv"))[0] == ("b" if is_said else "g")
        assert line not in show("--SORT_BY", "mAP", width=200)


def test_folds_of_a_configuration_are_one_row(root: Path, show: Any) -> None:
    """Mean and sample standard deviation, and the file of the model that their weights were averaged to."""
    found = {1: (0.6, 0.5, 4), 2: (0.83, 0.6, 6), 3: (0.7, 0.7, 5)}
    for fold, (best_f1, mean_ap, epoch) in found.items():
        sidecar = make_sidecar("resnet18", best_f1, mean_ap, epoch, FOLDS=3) | {"fold": fold, "fold_of": "x_3folds_0"}
        write_run(root, f"x_fold{fold}of3", sidecar)
    together = make_sidecar("resnet18", math.nan, math.nan, 0, FOLDS=3) | {"best_f1": None, "epoch": None}
    write_run(root, "x_3folds_0", together | {"metrics": {}, "fold": 0, "fold_of": "x_3folds_0"})
    for fold in (1, 2):  # of another configuration, which is not finished
        sidecar = make_sidecar("vgg16", 0.1 * fold, 0.5, 1, FOLDS=5) | {"fold": fold, "fold_of": "y_5folds_0"}
        write_run(root, f"y_fold{fold}of5", sidecar)
    rows = read_rows(show("--csv"))
    assert [Path(row["checkpoint"]).stem for row in rows] == ["b", "d", "c", "e", "a", "f", "x_3folds_0", ""]
    assert [row["block"] for row in rows] == ["1"] * 6 + ["2", "3"], "F1 over other validation images"
    assert rows[6]["checkpoint"] == "resnet18/x_3folds_0.pt"
    for name, values in zip(("best_f1", "mAP", "epoch"), zip(*found.values(), strict=True), strict=True):
        assert float(rows[6][name]) == pytest.approx(statistics.mean(values))
        assert float(rows[6][f"{name}_std"]) == pytest.approx(statistics.stdev(values))
    assert rows[0]["best_f1_std"] == ""
    text = show(width=200)
    assert ".710 ± .115" in text
    assert "11 runs in 8 groups: mean ± sample standard deviation over FOLDS; sorted by best_f1" in text, (
        "a model of averaged weights is no run"
    )
    assert "--GROUP_BY_COLUMNS checkpoint shows each run" in text
    assert "not ranked with the rows above: other validation images (400 and 3 folds)" in text
    single = list_names(show("--csv", "--GROUP_BY_COLUMNS", "checkpoint"))
    assert {"x_fold1of3", "x_fold2of3", "x_fold3of3", "y_fold1of5"} <= set(single)
    means = read_rows(show("--csv", "--GROUP_BY_COLUMNS", "MODEL_NAME", "--GROUP_MODE", "mean"))
    assert [(row["model_name"], row["runs"], row["block"]) for row in means] == [
        ("resnet18", "3", "1"), ("resnet50", "2", "1"), ("vgg16", "1", "1"), ("resnet18", "3", "2"), ("vgg16", "2", "3")
    ]  # fmt: skip  # no mean spans two blocks


def test_missing_values_come_last_either_way() -> None:
    rows = pd.DataFrame([{"x": None}, {"x": 1}, {}, {"x": math.nan}, {"x": 2.5}])
    assert list(run_rows.sort_rows(rows, "x", ascending=True).index) == [1, 4, 0, 2, 3]
    assert list(run_rows.sort_rows(rows, "x", ascending=False).index) == [4, 1, 0, 2, 3]


def test_lists_and_mixed_values_are_sorted_as_text() -> None:
    rows = pd.DataFrame({"lists": [[6, 8], [], None, [3]], "mixed": ["b", 2, None, True]})
    assert list(run_rows.sort_rows(rows, "lists", ascending=True).index) == [3, 0, 1, 2]
    assert list(run_rows.sort_rows(rows, "mixed", ascending=False).index) == [0, 3, 1, 2]


def test_runs_are_a_frame_with_numeric_columns(root: Path) -> None:
    older = make_sidecar("densenet121", 0.9, 0.9, 1, FOCAL_ALPHA=0.25)
    older["best_threshold"] = None
    del older["config"]["SEED"]
    write_run(root, "linear_224px_seed0_0a1b2c3d", older)
    runs: Any = model_performance_table.read_runs(root, "*/*.pt")
    assert list(runs["checkpoint"]) == [
        "densenet121/linear_224px_seed0_0a1b2c3d.pt",
        *(f"{run[1]}/{run[0]}.pt" for run in RUNS),
    ]
    assert list(runs["run"]) == ["0a1b2c3d", *"abcdef"]
    for column in ("best_f1", "mAP", "seconds", "epoch", "TRAIN_BATCH_SIZE", "SEED", "FOCAL_ALPHA", "best_threshold"):
        assert runs[column].dtype.kind in "if", column
    assert runs["mAP"].tolist() == [0.9, *(run[3] for run in RUNS)]
    assert runs["FOCAL_ALPHA"].tolist() == pytest.approx([0.25, *[math.nan] * len(RUNS)], nan_ok=True)
    assert runs["SEED"].isna().tolist() == [True, *[False] * len(RUNS)]
    assert runs["GROUP_PATTERN"].isna().all()
    assert runs["LR_MILESTONES"][0] == [6, 8]
    assert set(runs.attrs["metrics"]) == {
        "best_f1", "best_threshold", "epoch", "seconds", "mAP", "f1_weighted", "CF1", "OF1"
    }  # fmt: skip


def test_csv_equals_the_sidecars(show: Any, root: Path) -> None:
    rows = {row["checkpoint"]: row for row in read_rows(show("--csv"))}
    assert len(rows) == len(RUNS)
    for path in root.glob("*/*.json"):
        sidecar = json.loads(path.read_text())
        row = rows[path.with_suffix(".pt").relative_to(root).as_posix()]
        top = {key: sidecar[key] for key in ("model_name", "head", "best_f1", "best_threshold", "epoch", "seconds")}
        for name, value in {**sidecar["config"], **sidecar["dataset"], **sidecar["metrics"], **top}.items():
            if isinstance(value, list):
                assert json.loads(row[name]) == value, name
            elif isinstance(value, float):
                assert float(row[name] or "nan") == pytest.approx(value, rel=0, abs=0, nan_ok=True), name
            else:
                assert row[name] == ("" if value is None else str(value)), name


def test_csv_reads_back_into_pandas(show: Any, root: Path) -> None:
    frame: Any = pd.read_csv(io.StringIO(show("--csv")))
    expected = read_frame(root).sort_values("best_f1", ascending=False, kind="stable")
    for column in ("best_f1", "mAP", "TRAIN_BATCH_SIZE", "SEED", "OPTIMIZER"):
        pd.testing.assert_series_equal(frame[column], expected[column].reset_index(drop=True), check_exact=True)
    assert list(frame.columns[:5]) == ["model_name", "best_f1", "best_threshold", "epoch", "mAP"]
    assert set(overrides.resolved(config)) <= set(frame.columns)


def test_best_of_each_group(show: Any) -> None:
    group = ("--csv", "--GROUP_BY_COLUMNS", "model_name")
    assert list_names(show(*group)) == ["b", "d", "f"]
    assert list_names(show(*group, "--SORT_ASCENDING", "True")) == ["a", "e", "f"]
    assert list_names(show(*group, "--SORT_BY", "mAP")) == ["d", "b", "f"]
    assert list_names(show("--csv", "--GROUP_BY_COLUMNS", "MODEL_NAME,OPTIMIZER")) == ["b", "d", "c", "f"]


def test_mean_of_each_group_by_hand(show: Any) -> None:
    rows = read_rows(show("--csv", "--GROUP_BY_COLUMNS", "model_name", "--GROUP_MODE", "mean"))
    assert [row["model_name"] for row in rows] == ["resnet18", "resnet50", "vgg16"]  # 0.6, 0.59, NaN
    first, second, last = rows
    assert float(first["best_f1"]) == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert float(first["best_f1_std"]) == pytest.approx(0.1)  # sqrt((0.1² + 0.1² + 0²) / (3 - 1))
    assert float(first["mAP"]) == pytest.approx(0.66)
    assert float(first["mAP_std"]) == pytest.approx(0.06)
    assert float(first["epoch"]) == 5.0
    assert float(second["mAP"]) == pytest.approx(0.75)
    assert float(second["mAP_std"]) == pytest.approx(math.sqrt(0.05**2 + 0.05**2))
    assert [row["runs"] for row in rows] == ["3", "2", "1"]
    assert float(first["CF1"]) == pytest.approx(0.61)
    assert float(first["CF1_std"]) == pytest.approx(0.06)
    assert float(first["epoch_std"]) == 2.0
    assert (float(first["seconds"]), float(first["seconds_std"])) == (812.25, 0)
    assert (last["best_f1_std"], last["mAP_std"], last["mAP"]) == ("", "", "0.1")
    # what differs within a group has no mean, what its runs agree in stays
    assert [row["TRAIN_BATCH_SIZE"] for row in rows] == ["", "32", "16"]
    assert [row["OPTIMIZER"] for row in rows] == ["", "adam", "adam"]
    assert [row["SEED"] for row in rows] == ["", "", "0"]


def test_mean_and_deviation_stand_in_one_cell(show: Any) -> None:
    lines = show("--GROUP_BY_COLUMNS", "model_name", "--GROUP_MODE", "mean", "--COLUMNS", "best_f1,mAP,epoch,seconds")
    rows = [re.split("  +", line.strip()) for line in lines.splitlines()]
    assert rows[0] == ["model_name", "runs", "best_f1", "mAP", "epoch", "seconds"]
    assert rows[2] == ["resnet18", "3", ".600 ± .100", ".660 ± .060", "5.0 ± 2.0", "812.2 ± 0.0"]
    assert rows[3] == ["resnet50", "2", ".590 ± .085", ".750 ± .071", "5.0 ± 1.4", "812.2 ± 0.0"]  # .12 / sqrt(2)
    assert rows[4] == ["vgg16", "1", "–", ".100", "1.0", "812.2"]
    assert rows[6] == [
        "6 runs in 3 groups: mean ± sample standard deviation over TRAIN_BATCH_SIZE, SEED, OPTIMIZER; sorted by best_f1"
    ]
    assert rows[7] == ["note: 1 of the runs have no best_f1: its means are without them"]


def test_mean_says_over_what_it_is_taken(show: Any) -> None:
    text = show("--GROUP_BY_COLUMNS", "model_name,OPTIMIZER,TRAIN_BATCH_SIZE", "--GROUP_MODE", "mean")
    assert "6 runs in 5 groups: mean ± sample standard deviation over SEED; " in text
    text = show("--GROUP_BY_COLUMNS", "HEAD", "--GROUP_MODE", "mean")
    assert "mean ± sample standard deviation over MODEL_NAME, TRAIN_BATCH_SIZE, SEED, OPTIMIZER; sorted" in text


def test_mean_equals_that_of_pandas(show: Any, root: Path) -> None:
    group = ("--GROUP_BY_COLUMNS=TRAIN_BATCH_SIZE", "--GROUP_MODE=mean")
    rows = read_rows(show("--csv", *group, "--SORT_BY=TRAIN_BATCH_SIZE", "--SORT_ASCENDING=true"))
    groups = read_frame(root).groupby("TRAIN_BATCH_SIZE")
    assert [int(row["runs"]) for row in rows] == list(groups.size())
    for column in ("best_f1", "mAP", "CF1", "OF1", "epoch"):
        values = [float(row[column] or "nan") for row in rows]
        assert values == pytest.approx(list(groups[column].mean()), nan_ok=True)
    for column in ("best_f1", "mAP"):
        values = [float(row[f"{column}_std"] or "nan") for row in rows]
        assert values == pytest.approx(list(groups[column].std()), nan_ok=True)


def test_mean_can_be_sorted_by_its_spread(show: Any) -> None:
    text = show("--csv", "--GROUP_BY_COLUMNS=model_name", "--GROUP_MODE=mean", "--SORT_BY", "mAP_std")
    assert [row["model_name"] for row in read_rows(text)] == ["resnet50", "resnet18", "vgg16"]


def test_markdown_is_a_github_table_of_columns(show: Any) -> None:
    lines = show("--markdown", "--COLUMNS", "model_name,best_f1,LR_MILESTONES,epoch").splitlines()
    assert lines[:4] == [
        "| model_name   |   best_f1 | LR_MILESTONES   |   epoch |",
        "|:-------------|----------:|:----------------|--------:|",
        "| resnet18     |  **0.70** | 6, 8            |       5 |",
        "| resnet50     |      0.65 | 6, 8            |       4 |",
    ]
    assert len(lines) == 2 + len(RUNS)


def test_latex_is_a_table_of_columns(show: Any) -> None:
    columns = ("--COLUMNS", "model_name,best_f1")
    assert show("--latex", *columns).splitlines()[:6] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"model\_name & best\_f1 \\",
        r"\midrule",
        r"resnet18 & \textbf{0.70} \\",
        r"resnet50 & 0.65 \\",
    ]
    grouped = show("--latex", *columns, "--GROUP_BY_COLUMNS", "model_name", "--GROUP_MODE", "mean")
    assert r"resnet18 & 3 & \textbf{.600 $\pm$ .100} \\" in grouped.splitlines()
    assert r"vgg16 & 1 & -- \\" in grouped.splitlines()


def test_markdown_escapes_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_markdown(pd.DataFrame({"x": ["a|b"]}))
    assert capsys.readouterr().out.splitlines()[-1] == "| a\\|b |"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.61239, 0.5], ["0.6124", "0.5000"]),
        ([0.5, 0.25], ["0.50", "0.25"]),
        ([1e-5, 0.01, 0.0], ["1e-05", "0.01", "0.00"]),
        ([812.25, 3.0], ["812.2", "3.0"]),
        ([5, 12], ["5", "12"]),
        ([5.0, math.nan], ["5", "–"]),
        ([math.inf, 0.5], ["inf", "0.5"]),
        ([0, 0], ["0", "0"]),
        ([True, False], ["True", "False"]),
        ([None, "default"], ["–", "default"]),
        ([["a", 0.5], []], ["a, 0.5", ""]),
        (["a\nb", 0.1234567], ["a b", "0.123457"]),
    ],
)
def test_numbers_as_people_read_them(values: list[Any], texts: list[str]) -> None:
    assert tables.format_column(pd.Series(values)) == texts


def test_long_names_are_broken_after_underscores() -> None:
    assert tables.wrap_name("TRAIN_BATCH_SIZE", 3) == "TRAIN_\nBATCH_\nSIZE"
    assert tables.wrap_name("TRAIN_BATCH_SIZE", 11) == "TRAIN_\nBATCH_SIZE"
    assert tables.wrap_name("mAP", 2) == "mAP"


def test_default_columns_are_metrics_what_differs_and_the_run(show: Any) -> None:
    lines = show(width=120).splitlines()
    shown = ["best_f1", "mAP", "MODEL_NAME", "TRAIN_BATCH_SIZE", "SEED", "OPTIMIZER", "CF1", "OF1", "epoch", "run"]
    assert lines[0].split() == shown
    assert lines[2].split() == ["0.70", "0.72", "resnet18", "32", "1", "sgd", "0.67", "0.69", "5", "b"]
    grouped = show("--GROUP_BY_COLUMNS", "model_name,OPTIMIZER").splitlines()
    assert grouped[0].split() == ["model_name", "OPTIMIZER", *shown[:2], "TRAIN_BATCH_SIZE", "SEED", *shown[6:]]
    assert grouped[4].split() == ["resnet18", "adam", "0.60", "0.66", "64", "2", "0.61", "0.63", "7", "c"]


def test_what_all_runs_share_stands_below(show: Any) -> None:
    lines = show(width=300).splitlines()
    assert lines[len(RUNS) + 3 : len(RUNS) + 5] == ["6 runs; sorted by best_f1", "first: resnet18/b.pt"]
    (shared,) = (line for line in lines if line.startswith("all share "))
    assert len(shared) <= model_performance_table.MAX_SHARED
    items = shared.removeprefix("all share ").removesuffix(" …").rstrip(",").split(", ")
    names = [item.split()[0] for item in items]
    assert names == [name for name in CONSTANTS if name in names]
    assert not {"MODEL_NAME", "TRAIN_BATCH_SIZE", "OPTIMIZER", "SEED", "LOCAL_ROOT", "EXCLUDE_LIST"} & set(names)
    assert len(names) > 5


@pytest.mark.parametrize(("num_frozen", "are_named"), [(0, False), (1, True), (len(RUNS), True)])
def test_what_a_frozen_backbone_alone_uses_is_named_where_a_run_had_one(
    num_frozen: int, are_named: bool, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, nothing in the line would say that UNFREEZE_BACKBONE_EPOCH plays no part."""
    monkeypatch.setattr(model_performance_table, "MAX_SHARED", 100_000)
    for number, path in enumerate(sorted(root.glob("*/*.json"))):
        sidecar = json.loads(path.read_text())
        sidecar["config"]["FREEZE_BACKBONE_AT_START"] = number < num_frozen
        path.write_text(json.dumps(sidecar))
    model_performance_table.main(["--markdown", "--CHECKPOINTS_ROOT", str(root)])
    (shared,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("all share "))
    for name in ("UNFREEZE_BACKBONE_EPOCH", "FROZEN_FEATURE_VIEWS"):
        assert (f"{name} {CONSTANTS[name]}" in shared) is are_named
    assert f"NUM_EPOCHS {CONSTANTS['NUM_EPOCHS']}" in shared


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_table_fits_the_terminal(show: Any, width: int) -> None:
    columns = ["best_f1", "mAP", "MODEL_NAME", "TRAIN_BATCH_SIZE", "SEED", "OPTIMIZER", "CF1", "OF1", "epoch", "run"]
    lines = show(width=width).splitlines()
    assert max(map(len, lines)) <= width
    top = next(index for index, line in enumerate(lines) if line.startswith("─"))
    rows = [line.split() for line in lines[top + 1 : top + 1 + len(RUNS)]]
    notes = " ".join(" ".join(lines[lines.index("") :]).split())  # as they were before they were wrapped
    left_out = re.search(r"left out for want of width: (.*); --csv shows all$", notes)
    names = left_out[1].split(", ") if left_out else []
    shown = [name for name in columns if name not in names]
    order = ["epoch", "OF1", "CF1", "mAP", "OPTIMIZER", "TRAIN_BATCH_SIZE"]  # SEED and MODEL_NAME tell all rows apart
    assert names[::-1] == order[: len(names)]
    assert [len(row) for row in rows] == [len(shown)] * len(RUNS)
    assert [row[0] for row in rows] == ["0.70", "0.65", "0.60", "0.53", "0.50", "–"]
    assert [row[-1] for row in rows] == ["b", "d", "c", "e", "a", "f"]
    assert bool(names) == (width < 80)
    if names:  # one column more, and the gap before it, would not have fitted
        parts = names[0].replace("_", "_ ").split()
        cells = [line.split("|")[columns.index(names[0]) + 1].strip() for line in show("--markdown").splitlines()[2:]]
        assert len(lines[top]) + 2 + max(map(len, [*parts, *cells])) > width


def test_of_a_path_the_name_of_the_file_or_run_is_shown() -> None:
    run = "/home/u/trained models/resnet18/linear_bn_224px_bs32_ep10_0a1b2c3d.pt"
    for value, shown in (
        (run, "0a1b2c3d"),
        ([run, "~/x/best_model.pt"], "0a1b2c3d, best_model"),
        ("C:\\data\\curriculum.txt", "curriculum.txt"),
        ("resnet18/linear_0a1b2c3d.pt", "resnet18/linear_0a1b2c3d.pt"),  # the column `checkpoint`: what one copies
        (r"/(\w+)/", r"/(\w+)/"),
        (3, "3"),
    ):
        assert tables.format_column(pd.Series([value, "other"], dtype=object)) == [shown, "other"]
    twins = ["/a/best_model.pt", "/b/best_model.pt"]
    assert tables.format_column(pd.Series(twins)) == twins, "cut, they would be the same"


def test_table_in_a_pipe_is_120_wide(show: Any) -> None:
    assert show() == show(width=120) != show(width=80)


def test_numbers_are_aligned_right(show: Any) -> None:
    lines = show("--COLUMNS", "model_name,best_f1,seconds,TRAIN_BATCH_SIZE").splitlines()[: 2 + len(RUNS)]
    assert lines[0] == "model_name  best_f1  seconds  TRAIN_BATCH_SIZE"
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[2].endswith("              32")


def test_empty_columns_mean_all(show: Any) -> None:
    shown = show("--COLUMNS", "", width=5000).splitlines()[0].split()
    assert shown == list(read_rows(show("--csv"))[0])
    assert " more; --csv shows all" in " ".join(show("--COLUMNS", "").split())


def test_what_is_sorted_and_grouped_by_is_shown(show: Any) -> None:
    arguments = ("--COLUMNS", "mAP", "--SORT_BY", "OF1", "--GROUP_BY_COLUMNS", "HEAD,model_name")
    assert show(*arguments).splitlines()[0].split() == ["HEAD", "model_name", "OF1", "mAP"]
    grouped = show(*arguments, "--GROUP_MODE", "mean").splitlines()[0].split()
    assert grouped == ["HEAD", "model_name", "runs", "OF1", "mAP"]


def test_best_row_is_bold_in_a_terminal(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def list_bold(*arguments: str) -> list[str]:
        return [
            line.split("\x1b[1m")[1].split("\x1b")[0].strip() for line in show(*arguments).splitlines() if "[1m" in line
        ]

    assert list_bold("--COLUMNS", "best_f1,mAP") == ["0.70", "0.80"]
    assert list_bold("--COLUMNS", "best_f1,mAP", "--SORT_ASCENDING", "True") == ["0.50", "0.80"]
    assert list_bold("--COLUMNS", "run", "--SORT_BY", "SEED") == ["2"]
    assert list_bold("--COLUMNS", "run", "--SORT_BY", "SEED", "--SORT_ASCENDING", "True") == ["0", "0", "0"]
    assert list_bold("--COLUMNS", "run", "--SORT_BY", "OPTIMIZER") == []


def test_runs_that_were_chosen_by_different_metrics_stand_apart(show: Any, root: Path) -> None:
    line = "not ranked with the rows above: best_f1 is f1_weighted above and f1_macro below"
    assert line not in show()
    other = make_sidecar("densenet121", 0.9, 0.9, 1)
    other["config"]["LABELS_PER_IMAGE"] = "one"
    write_run(root, "g", other)
    assert line in show()
    assert list_names(show("--csv"))[-1] == "g"
    assert line not in show("--SORT_BY", "mAP")


def test_runs_on_different_data_sets_stand_apart(show: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "not ranked with the rows above: another data set (column fingerprint)"
    assert "not ranked" not in show()
    other = make_sidecar("densenet121", 0.9, 0.9, 1)
    other["dataset"]["fingerprint"] = "another"
    write_run(root, "g", other)
    assert line in show()
    means = read_rows(show("--csv", "--GROUP_BY_COLUMNS", "HEAD", "--GROUP_MODE", "mean"))
    assert [row["runs"] for row in means] == ["6", "1"]
    assert list_names(show("--csv", "--GROUP_BY_COLUMNS", "HEAD")) == ["b", "g"], "the best of each"
    model_performance_table.main(["--csv", "--CHECKPOINTS_ROOT", str(root)])
    captured = capsys.readouterr()
    assert captured.err.strip() == f"block 2: {line}"
    assert line not in captured.out


def test_skipped_checkpoints_are_listed_on_stderr(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(root, "alone", None)
    write_run(root, "broken", '{"format": ')
    write_run(root, "foreign", '{"format": "something else"}')
    write_run(root, "list", "[1, 2]")
    write_run(root, "newer", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "version": 99}))
    write_run(root, "odd", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "metrics": 3}))
    write_run(root, "text", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "best_f1": "high"}))
    write_run(root, "unmeasured", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "metrics": {"mAP": [0.5]}}))
    model_performance_table.main(["--csv", "--CHECKPOINTS_ROOT", str(root)])
    captured = capsys.readouterr()
    assert len(read_rows(captured.out)) == len(RUNS)
    head, *lines = captured.err.splitlines()
    assert head == f"skipped 8 of 14 checkpoints in {root}:"
    assert lines[0] == "  other/alone.pt: there is no alone.json beside it"
    broken = root / "other" / "broken.json"
    assert lines[1] == f"  other/broken.pt: {broken}:1: Expecting value: this is not JSON"
    assert [line.split(":")[0].strip() for line in lines] == [
        f"other/{name}.pt" for name in ("alone", "broken", "foreign", "list", "newer", "odd", "text", "unmeasured")
    ]
    assert "version 99, not 1" in lines[4]
    assert "metrics" in lines[5]
    assert lines[6].endswith("text.json: best_f1 is 'high', which is no number")
    assert lines[7].endswith("unmeasured.json: mAP is [0.5], which is no number")


@pytest.mark.parametrize("mode", [(), ("--csv",), ("--markdown",), ("--latex",)])
@pytest.mark.parametrize("group", [(), ("--GROUP_BY_COLUMNS=HEAD",), ("--GROUP_BY_COLUMNS=HEAD", "--GROUP_MODE=mean")])
def test_a_foreign_value_does_not_end_the_table(
    show: Any, root: Path, mode: tuple[str, ...], group: tuple[str, ...]
) -> None:
    odd = make_sidecar("resnet18", 0.99, 0.99, 1, SEED="[red]", HEAD={"a": 1}, LOSS=10**400, WEIGHT_DECAY=1e300)
    odd["metrics"] |= {"SAM_RHO": 0.5, "checkpoint": 1.0, "mAP_std": 0.1, "runs": 7, "val_ruler": 0.5}
    odd["dataset"] = {"fingerprint": {"b": 2}, "run": [1], "best_f1": "high"}
    write_run(root, "odd", odd)
    text = show(*mode, *group, width=1000)
    assert "0.99" in text or ".990" in text
    if not group:
        assert "odd" in text
        assert mode or "[red]" in text


ODD_SIDECARS = {
    "deep": "[" * 200_000,
    "deep objects": '{"a":' * 100_000,
    "5,000 digits": '{"format": ' + "9" * 5000 + "}",
    "empty": "",
    "nul": "\0" * 100,
    "a deep constant": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1, X=[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]])),
    "50,000 constants": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1, **{f"k{number}": 1 for number in range(50_000)})),
    "50,000 names": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1) | {f"k{number}": 1 for number in range(50_000)}),
    "half a character": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1, SEED="\ud800")),
    "a number as a name": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1) | {"model_name": 5}),
    "classes": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1) | {"classes": "cat"}),
    "thresholds": json.dumps(make_sidecar("vgg16", 0.5, 0.5, 1) | {"thresholds": [0.5]}),
    "endless F1": json.dumps(make_sidecar("vgg16", math.inf, 0.5, 1)),
}


@pytest.mark.parametrize("kind", ODD_SIDECARS)
def test_an_odd_sidecar_is_named_and_the_others_are_shown(
    kind: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(root, "odd", ODD_SIDECARS[kind])
    model_performance_table.main(["--csv", "--CHECKPOINTS_ROOT", str(root)])
    captured = capsys.readouterr()
    assert len(read_rows(captured.out)) == len(RUNS)
    head, line = captured.err.splitlines()
    assert head == f"skipped 1 of {len(RUNS) + 1} checkpoints in {root}:"
    assert line.startswith("  other/odd.pt: ")
    assert "odd.json" in line
    assert len(line) < 500


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_sidecar_that_is_no_file_is_named(
    make: Callable[[Path], Any], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(root, "odd", None)
    make(root / "other" / "odd.json")
    assert len(model_performance_table.read_runs(root)) == len(RUNS)
    assert "other/odd.pt: cannot read" in capsys.readouterr().err


def test_refuses_a_folder_where_nothing_is_usable(tmp_path: Path) -> None:
    write_run(tmp_path, "alone", None)
    with pytest.raises(utils.InputError, match=r"none of the checkpoints in .* has a usable sidecar"):
        model_performance_table.main(["--CHECKPOINTS_ROOT", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--SORT_BY", "best_f2"], "SORT_BY: there is no column 'best_f2' (did you mean best_f1?)"),
        (["--SORT_BY", "train_batchsize"], "did you mean TRAIN_BATCH_SIZE?"),
        (["--SORT_BY", "test_mAP"], "SORT_BY: there is no test_mAP, since no run has a test: python testing.py"),
        (["--AGAINST", "best"], "AGAINST: no run here has a test: python testing.py"),
        (["--AGAINST"], "--AGAINST needs a value"),
        (["--plot", "x.png"], "--plot: no run here has a test"),
        (["--plot"], "--plot needs FILE.png: --plot FILE.png"),
        (["--diff", "a"], "--diff needs A and B: --diff A B"),
        (["--diff", "a", "--csv"], "--diff needs A and B: --diff A B"),
        (["--diff", "a", "zz"], "--diff: there is no run 'zz'"),
        (["--diff", "a", "b"], "--diff: no metrics can be compared: A has no test: python testing.py"),
        (["--GROUP_BY_COLUMNS", "hed"], "GROUP_BY_COLUMNS: there is no column 'hed' (did you mean HEAD?)"),
        (["--COLUMNS", "epoch,qqqqqq"], "COLUMNS: there is no column 'qqqqqq'; --csv shows all"),
        (["--GROUP_MODE", "means"], "did you mean mean?"),
        (["--CHECKPOINT_GLOB", "*.pth"], "no checkpoint matches *.pth in"),
        (["--CHECKPOINT_GLOB", "/*.pt"], "CHECKPOINT_GLOB '/*.pt'"),
        (["--CHECKPOINT_GLOB", ""], "CHECKPOINT_GLOB ''"),
        (["--csv", "--markdown"], "--csv and --markdown exclude each other"),
        (["--latex", "--csv"], "--csv and --latex exclude each other"),
        (["--SORT_BY", "differing"], "SORT_BY: there is no column 'differing'"),
        (["--GROUP_BY_COLUMNS=HEAD", "--GROUP_MODE=mean", "--SORT_BY=SEED"], "SORT_BY is 'SEED', which differs"),
    ],
)
def test_bad_input_is_one_line(show: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(utils.InputError) as caught:
        show(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(utils.InputError, match=r"missing is no folder; training\.py makes it"):
        model_performance_table.main(["--CHECKPOINTS_ROOT", str(tmp_path / "missing")])


def test_root_follows_the_constants_of_config(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--LOCAL_ROOT", str(root.parent)], ["--TRAINED_MODELS_FOLDER", str(root)]):
        model_performance_table.main(["--csv", *arguments])
        assert list_names(capsys.readouterr().out) == ["b", "d", "c", "e", "a", "f"]


def test_constants_may_come_from_a_recipe(show: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "by_epoch.py"
    recipe.write_text('SORT_BY = "epoch"\nSORT_ASCENDING = True\n')
    assert list_names(show(str(recipe), "--csv")) == ["f", "a", "d", "b", "e", "c"]


def test_columns_of_older_runs_may_be_absent(show: Any, root: Path) -> None:
    older = make_sidecar("densenet121", 0.9, 0.9, 1)
    del older["config"]["SEED"], older["environment"], older["dataset"]
    write_run(root, "g", older)
    rows = read_rows(show("--csv", "--SORT_BY", "SEED"))
    assert (rows[-1]["model_name"], rows[-1]["SEED"], rows[-1]["fingerprint"]) == ("densenet121", "", "")


def test_constants_newer_than_all_runs_can_be_named(show: Any, root: Path) -> None:
    for path in root.glob("*/*.json"):
        sidecar = json.loads(path.read_text())
        del sidecar["config"]["SEED"], sidecar["config"]["HEAD"]
        path.write_text(json.dumps(sidecar))
    assert list_names(show("--csv", "--SORT_BY", "SEED")) == list("abcdef")
    assert list_names(show("--csv", "--GROUP_BY_COLUMNS", "HEAD")) == ["b"]
    assert "HEAD" not in show("--COLUMNS", "HEAD,mAP").splitlines()[0]


@pytest.mark.parametrize("arguments", [["--help"], ["--SORTBY", "mAP"], ["--csv", "--latex"]])
def test_help_and_mistakes_import_neither_torch_nor_pandas(arguments: list[str]) -> None:
    """The whole script in a process of its own, which then tells what it had to import."""
    code = (
        "import sys, model_performance_table as table\n"
        "try: table.main(sys.argv[1:])\nexcept (SystemExit, ValueError): pass\n"
        "print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_script_from_the_command_line(root: Path) -> None:
    command = [sys.executable, "model_performance_table.py", "--CHECKPOINTS_ROOT", str(root)]
    done = subprocess.run([*command, "--csv"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert list_names(done.stdout) == ["b", "d", "c", "e", "a", "f"]
    assert done.stderr == ""
    code = "import sys, model_performance_table as table; table.main(sys.argv[1:]); print('torch' in sys.modules)"
    command[1:2] = ["-c", code]
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    for name in "ab":
        write_test(root, f"resnet18/{name}", draw_probabilities(rng, targets, 1), targets)
    command += ["--AGAINST", "best"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    command[1:3] = ["model_performance_table.py"]
    failed = subprocess.run([*command, "--SORT_BY", "f1"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: SORT_BY: there is no column 'f1'")
    assert failed.stdout == ""


# ---- what was measured on test images ----

SKILLS = {"linear": 1.0, "mlp": 1.03, "gcn": 0.4}


@pytest.fixture
def tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three heads x two seeds, tested on the same images; a run without a test, and one tested on other images."""
    root, rng = tmp_path / "tested_models", np.random.default_rng(11)
    targets = draw_targets(rng)
    runs = [(head, seed) for head in SKILLS for seed in (1, 2)] + [("cosine", 1), ("ml_decoder", 1)]
    for head, seed in runs:
        skill = SKILLS.get(head, 1.5)
        sidecar = make_sidecar("resnet18", 0.5 + skill / 10 + seed / 1000, 0.6, 3, HEAD=head, SEED=seed)
        write_run(root, f"{head}{seed}", sidecar)
        if head != "cosine":
            ruler = make_ruler("others") if head == "ml_decoder" else None
            write_test(root, f"resnet18/{head}{seed}", draw_probabilities(rng, targets, skill), targets, ruler=ruler)
    return root


def test_the_tests_of_runs_are_columns(tested: Path, show: Any) -> None:
    runs: Any = model_performance_table.read_runs(tested)
    assert len(runs) == 8, "one row a checkpoint"
    result = json.loads((tested / "resnet18" / "gcn1" / "test_result.json").read_text())
    row = runs[runs["checkpoint"] == "resnet18/gcn1.pt"].iloc[0]
    assert row["test_mAP"] == result["metrics"]["mAP"]
    assert [row["test_mAP_low"], row["test_mAP_high"]] == result["intervals"]["mAP"]
    assert (row["test_ruler"], row["test_num_images"], row["test_views"]) == ("itc", 300, "")
    assert runs["test_mAP"].isna().tolist() == [True, *[False] * 7]
    assert {"mAP", "test_mAP", "test_f1_weighted"} <= set(runs.attrs["metrics"])
    assert "test_mAP_low" not in runs.attrs["metrics"]


def test_best_f1_sorts_and_tests_stand_beside(tested: Path, show: Any) -> None:
    lines = show("--CHECKPOINTS_ROOT", str(tested), width=160).splitlines()
    header = lines[0].split()
    assert header == ["best_f1", "mAP", "test_mAP", "HEAD", "test_f1_weighted", "CF1", "OF1", "epoch", "runs", "run"]
    row = next(line.rstrip() for line in lines if " mlp " in line)
    assert re.search(r"\.60[45] ± \.001 .* \.\d{3} ± \.\d{3} .* mlp .* 2  [0-9a-f]{8}$", row), row
    assert re.search(r"\.\d{3} \[\.\d{3}, \.\d{3}\]  ml_decoder ", "\n".join(lines)), "one run has an interval"
    notes = "\n".join(lines)
    assert "8 runs in 5 groups: mean ± sample standard deviation over SEED; sorted by best_f1" in notes
    assert "test_…: of test images, [95 % interval] over them; all other metrics are of validation images" in notes
    narrow = show("--CHECKPOINTS_ROOT", str(tested), "--GROUP_BY_COLUMNS", "checkpoint", width=70)
    assert "intervals of test_mAP" in narrow
    assert "test_…: of test images; all other metrics are of validation images" in narrow
    note = "note: test_… are by several rulers (column test_ruler): --SORT_BY test_mAP puts them apart"
    assert note in notes
    assert note not in show("--CHECKPOINTS_ROOT", str(tested), "--SORT_BY", "test_mAP", width=160)


def test_sorted_by_a_test_other_rulers_stand_apart(tested: Path, show: Any) -> None:
    arguments = ("--CHECKPOINTS_ROOT", str(tested), "--SORT_BY", "test_mAP")
    rows = read_rows(show("--csv", *arguments))
    assert [row["HEAD"] for row in rows][3:] == ["ml_decoder", "cosine"], "although its number is higher"
    assert [row["block"] for row in rows] == ["1", "1", "1", "2", "3"]
    assert float(rows[0]["test_mAP"]) > float(rows[1]["test_mAP"]) > float(rows[2]["test_mAP"])
    line = "not ranked with the rows above: other test images (300 each)"
    text = show(*arguments, width=140)
    assert text.index(line) < text.index("ml_decoder") < text.index("not ranked with the rows above: without a test")
    assert text.splitlines()[6] == line
    columns = ("--COLUMNS", "HEAD,test_mAP")
    markdown = show("--markdown", *arguments, *columns)
    assert f"\n\n*{line}*\n\n| HEAD" in markdown
    assert markdown.count("| HEAD") == 3
    assert markdown.count("**") == 2, "the best of the only block with several"
    latex = show("--latex", *arguments, *columns).splitlines()
    place = latex.index(rf"\multicolumn{{2}}{{p{{0.9\linewidth}}}}{{\emph{{{line}}}}} \\")
    assert latex[place - 1] == r"\midrule"
    assert latex[place + 1] == r"\addlinespace"
    assert latex[place + 2].startswith(r"ml\_decoder & .")
    assert latex[4].count(r"\textbf{") == 1


def test_of_errors_the_lowest_is_the_best(tested: Path, show: Any) -> None:
    runs: Any = model_performance_table.read_runs(tested)
    lowest = runs[runs["HEAD"].isin(SKILLS)].groupby("HEAD")["test_ECE"].min().sort_values()
    arguments = ("--CHECKPOINTS_ROOT", str(tested), "--SORT_BY", "test_ECE")
    by_head = (*arguments, "--GROUP_BY_COLUMNS", "HEAD")
    rows = read_rows(show("--csv", *by_head, "--AGAINST", "best"))[: len(SKILLS)]
    assert [row["HEAD"] for row in rows] == lowest.index.tolist()
    assert [float(row["test_ECE"]) for row in rows] == pytest.approx(lowest.tolist()), "the best run of each"
    assert [row["is_reference"] for row in rows] == ["True", "False", "False"]
    bold = [line for line in show("--markdown", *by_head, "--COLUMNS", "test_ECE").splitlines() if "**" in line]
    assert [line.split("|")[1].strip() for line in bold] == [lowest.index[0]]
    assert show("--csv", *arguments) == show("--csv", *arguments, "--SORT_ASCENDING", "True")
    losses = [row["test_hamming_loss"] for row in read_rows(show("--csv", *arguments[:-1], "test_hamming_loss"))]
    assert [float(loss) for loss in losses[:3]] == sorted(map(float, losses[:3]))


def test_sorted_by_a_test_a_mean_is_over_validations_that_are_alike(tmp_path: Path, show: Any) -> None:
    root, rng = tmp_path / "splits", np.random.default_rng(2)
    targets, aps = draw_targets(rng), []
    for seed in (1, 2):
        write_run(root, f"s{seed}", make_sidecar("resnet18", 0.5 + seed / 10, 0.6, 3, SPLIT_SEED=seed))
        aps.append(write_test(root, f"resnet18/s{seed}", draw_probabilities(rng, targets, 1), targets)["mAP"])
    group = ("--CHECKPOINTS_ROOT", str(root), "--GROUP_BY_COLUMNS", "HEAD", "--GROUP_MODE", "mean")
    (row,) = read_rows(show("--csv", *group, "--SORT_BY", "test_mAP"))
    assert float(row["test_mAP"]) == pytest.approx(statistics.mean(aps))
    assert not {"best_f1", "best_f1_std", "mAP", "val_ruler"} & set(row)
    note = "note: 1 group without metrics of validation, or without best_f1: their runs were validated on different"
    assert note in " ".join(show(*group, "--SORT_BY", "test_mAP").split())
    assert "without metrics of validation" not in show(*group, width=300), "by best_f1 they are two blocks"


def test_against_the_best_there_are_marks(tested: Path, show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--CHECKPOINTS_ROOT", str(tested), "--AGAINST", "best", "--COLUMNS", "HEAD,test_mAP,run")
    rows = {row["HEAD"]: row for row in read_rows(show("--csv", *arguments, "--SORT_BY", "test_mAP"))}
    ranked = sorted(SKILLS, key=lambda head: -float(rows[head]["test_mAP"]))
    assert rows[ranked[0]]["delta_test_mAP"] == ""
    for head in ranked[1:]:
        difference = float(rows[head]["test_mAP"]) - float(rows[ranked[0]]["test_mAP"])
        assert float(rows[head]["delta_test_mAP"]) == pytest.approx(difference)
        assert float(rows[head]["delta_test_mAP_low"]) < difference < float(rows[head]["delta_test_mAP_high"])
    assert "delta_test_f1_weighted" in rows["gcn"]
    assert rows["ml_decoder"]["delta_test_mAP"] == "", "the first of its own block"
    text = show(*arguments, "--SORT_BY", "test_mAP", width=140)
    assert re.split("  +", text.splitlines()[0].strip()) == ["HEAD", "test_mAP", "Δ test_mAP", "run"]
    no_value = show(*arguments[:4], "--COLUMNS", "HEAD", "--SORT_BY", "HEAD", width=140).splitlines()[0]
    assert re.split("  +", no_value.strip()) == ["Δ test_mAP", "Δ test_f1_weighted", "HEAD"]
    for head in ranked[1:]:
        p = float(rows[head]["delta_test_mAP_p"])
        cells = next(line for line in text.splitlines() if line.startswith(f"{head} "))
        shown = re.search(r"[−+]\.\d{3} \[[−+]\.\d{3}, [−+]\.\d{3}\]( ≈)? +\w+$", cells.rstrip())
        assert shown, cells
        assert bool(shown[1]) is (p >= 0.05)
    assert "it was chosen on these test images" in text
    latex = show("--latex", *arguments, "--SORT_BY", "test_mAP")
    assert r"$\Delta$ test\_mAP" in latex
    assert re.search(r"^% ≈: not distinguishable from it", latex, re.MULTILINE)
    assert "≈" not in latex.split("% ")[0]
    by_validation = show(*arguments, width=140)
    assert "it was chosen by best_f1, without a look at the test images" in by_validation
    assert "Δ: from linear1" in show(
        *arguments[:2], "--AGAINST", "linear1", "--GROUP_BY_COLUMNS", "checkpoint", width=140
    )


def test_a_narrow_terminal_keeps_what_tells_rows_apart(tmp_path: Path, show: Any) -> None:
    """HEAD and FEATURES name each row; HEAD_FIT and NUM_EPOCHS only repeat what HEAD says."""
    root, rng = tmp_path / "narrow", np.random.default_rng(1)
    targets = draw_targets(rng)
    for number, (head, features, fit) in enumerate(
        [("linear", "mean", "search"), ("linear", "own", "search"), ("mlp", "own", "steps")]
    ):
        constants = {"NUM_EPOCHS": 1 if fit == "search" else 6, "HEAD": head, "HEAD_FIT": fit, "FEATURES": features}
        sidecar = make_sidecar("resnet18", 0.5 + number / 10, 0.6, 3, **constants)
        write_run(root, f"run{number}", sidecar | {"features": features})
        write_test(root, f"resnet18/run{number}", draw_probabilities(rng, targets, 1), targets)
    headers = {
        (width, against): re.split("  +", show("--CHECKPOINTS_ROOT", str(root), *against, width=width).split("─")[0])
        for width in (40, 80, 100)
        for against in ((), ("--AGAINST", "best"))
    }
    for texts in headers.values():
        words = {word for text in texts for word in text.split()}
        assert {"HEAD", "FEATURES", "run"} <= words
    assert "NUM_" not in "".join(headers[40, ()])
    assert "CF1" not in "".join(headers[40, ("--AGAINST", "best")])
    wide = show("--CHECKPOINTS_ROOT", str(root), width=200).splitlines()[0].split()
    assert {"CF1", "OF1", "epoch", "NUM_EPOCHS", "HEAD_FIT"} <= set(wide)
    frame = pd.DataFrame({"a": [1, 1, 2, 2], "b": [5, 5, 5, 5], "c": [1, 2, 3, 3], "d": ["x", "y", "x", "y"]})
    assert run_rows.choose_telling(frame, ["a", "b", "c", "d"]) == ["c", "d"]


def test_two_runs_beside_each_other(tested: Path, show: Any) -> None:
    text = show("--CHECKPOINTS_ROOT", str(tested), "--diff", "gcn1", "mlp2", width=100)
    assert text.splitlines()[:2] == ["A: resnet18/gcn1.pt", "B: resnet18/mlp2.pt"]
    constants = [line.split() for line in text.splitlines() if line.startswith(("HEAD", "SEED"))]
    assert constants == [["HEAD", "gcn", "mlp"], ["SEED", "1", "2"]]
    rows = read_rows(show("--csv", "--CHECKPOINTS_ROOT", str(tested)))
    name = next(row["run"] for row in rows if row["HEAD"] == "gcn")
    text = show("--CHECKPOINTS_ROOT", str(tested), "--diff", name, "mlp1", width=100)
    assert "SEED" not in text, "it is none of what tells these two apart"
    assert f"A: {name}, the mean of 2 runs: gcn1, gcn2" in text
    words = "paired over images and over seeds; a row with one test stands for that model alone"
    assert words in " ".join(text.split()), "mlp1 is one run"
    assert show("--CHECKPOINTS_ROOT", str(tested), "--diff", "best", "best").startswith("A: resnet18/ml_decoder1.pt\n")


def test_a_forest_plot_is_saved_beside_the_table(tested: Path, show: Any, tmp_path: Path) -> None:
    text = show("--CHECKPOINTS_ROOT", str(tested), "--AGAINST", "best", "--plot", str(tmp_path / "forest.png"))
    assert "sorted by best_f1" in text
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")


def test_a_stale_or_damaged_test_is_left_out_with_a_reason(tested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sidecar = json.loads((tested / "resnet18" / "gcn1.json").read_text())
    (tested / "resnet18" / "gcn1.json").write_text(json.dumps(sidecar | {"epoch": 4}))
    sidecar = json.loads((tested / "resnet18" / "gcn2.json").read_text())
    (tested / "resnet18" / "gcn2.json").write_text(json.dumps(sidecar | {"thresholds": [0.3, 0.4]}))
    (tested / "resnet18" / "mlp1" / "test_result.json").write_text("{")
    runs: Any = model_performance_table.read_runs(tested)
    assert runs["test_mAP"].isna().sum() == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "left out 3 tests that testing.py has to make anew:"
    assert lines[1] == "  resnet18/gcn1.pt: its weights are of another epoch or training"
    assert lines[2] == "  resnet18/gcn2.pt: its thresholds or its calibration were tuned again"
    assert lines[3].startswith("  resnet18/mlp1.pt: ")
    assert "test_result.json:1: " in lines[3]


def test_before_split_seed_the_seed_drew_the_split(tmp_path: Path) -> None:
    older, newer = make_sidecar("resnet18", 0.5, 0.5, 1, SEED=7), make_sidecar("resnet18", 0.6, 0.6, 1, SEED=8)
    del older["config"]["SPLIT_SEED"]
    for name, sidecar in (("a", older), ("b", newer)):
        write_run(tmp_path, name, sidecar)
    assert model_performance_table.read_runs(tmp_path)["SPLIT_SEED"].tolist() == [7, 0]
