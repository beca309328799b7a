"""The table of trained models, against values computed by hand and by pandas.

pytest tests/test_model_performance_table.py
"""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import checkpoints
import config
import model_performance_table as table
import overrides
import utils

REPOSITORY = Path(table.__file__).parent
CONSTANTS = overrides.resolved(config)
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
    kept = [(module, dict(vars(module))) for module in (config, table)]
    yield
    for module, values in kept:
        vars(module).update(values)


def make_sidecar(model_name: str, best_f1: float, mean_ap: float, epoch: int, **constants: Any) -> dict[str, Any]:
    return {
        "format": checkpoints.FORMAT,
        "version": checkpoints.VERSION,
        "model_name": model_name,
        "head": "linear_bn",
        "classes": ["cat", "dog"],
        "image_size": 224,
        "resize_rule": "squash",
        "best_threshold": 0.41,
        "best_f1": best_f1,
        "epoch": epoch,
        "metrics": {"mAP": mean_ap, "f1_weighted": best_f1, "CF1": mean_ap - 0.05, "OF1": mean_ap - 0.03},
        "config": {**CONSTANTS, "MODEL_NAME": model_name, **constants},
        "dataset": {"fingerprint": "0123abcd", "num_train": 3600, "num_val": 400},
        "environment": {"git_commit": "fedc", "torch": "2.14.1", "device": "cpu"},
        "seconds": 812.25,
        "saved": "2026-11-22T11:02:03",
    }


def write_run(root: Path, name: str, sidecar: dict[str, Any] | str | None) -> None:
    """An empty checkpoint with its sidecar: as given, as the given text, or none."""
    folder = root / (sidecar["model_name"] if isinstance(sidecar, dict) else "other")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pt").write_bytes(b"")
    if sidecar is not None:
        (folder / f"{name}.json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, model_name, best_f1, mean_ap, epoch, seed, batch_size, optimizer in RUNS:
        constants = {"SEED": seed, "TRAIN_BATCH_SIZE": batch_size, "OPTIMIZER": optimizer}
        write_run(tmp_path / "trained_models", name, make_sidecar(model_name, best_f1, mean_ap, epoch, **constants))
    return tmp_path / "trained_models"


@pytest.fixture
def show(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the script on `root` and give what it printed on stdout."""

    def run(*arguments: str, width: int | None = None) -> str:
        monkeypatch.delenv("COLUMNS", raising=False)
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        table.main(["--CHECKPOINTS_ROOT", str(root), *arguments])
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


def test_missing_values_come_last_either_way() -> None:
    rows = [{"x": None, "n": 0}, {"x": 1, "n": 1}, {"n": 2}, {"x": math.nan, "n": 3}, {"x": 2.5, "n": 4}]
    assert [row["n"] for row in table.sort_rows(rows, "x", ascending=True)] == [1, 4, 0, 2, 3]
    assert [row["n"] for row in table.sort_rows(rows, "x", ascending=False)] == [4, 1, 0, 2, 3]


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
                assert float(row[name]) == pytest.approx(value, rel=0, abs=0, nan_ok=True), name
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
    assert (last["best_f1_std"], last["mAP_std"], last["mAP"]) == ("", "", "0.1")
    # what differs within a group has no mean, what its runs agree in stays
    assert [row["TRAIN_BATCH_SIZE"] for row in rows] == ["", "32", "16"]
    assert [row["OPTIMIZER"] for row in rows] == ["", "adam", "adam"]
    assert [row["SEED"] for row in rows] == ["", "", "0"]


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
        "| model_name | best_f1 | LR_MILESTONES | epoch |",
        "| --- | ---: | --- | ---: |",
        "| resnet18 | 0.7000 | 6, 8 | 5 |",
        "| resnet50 | 0.6500 | 6, 8 | 4 |",
    ]
    assert len(lines) == 2 + len(RUNS)


def test_markdown_escapes_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    table.print_markdown([{"x": "a|b"}], ["x"])
    assert capsys.readouterr().out.splitlines()[-1] == "| a\\|b |"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.61239, "0.6124"),
        (1e-5, "1e-05"),
        (0.0, "0.0000"),
        (812.25, "812.2"),
        (5, "5"),
        (True, "True"),
        (None, "None"),
        (["a", 0.5], "a, 0.5000"),
        ("a\nb", "a b"),
    ],
)
def test_numbers_as_people_read_them(value: Any, text: str) -> None:
    assert table.format_value(value) == text


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_table_fits_the_terminal(show: Any, width: int) -> None:
    text = show(width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    header, rule, *rows = lines[: 2 + len(RUNS)]
    shown = header.split()
    assert tuple(shown) == table.COLUMNS[: len(shown)]
    assert [row.split()[0] for row in rows] == ["resnet18", "resnet50", "resnet18", "resnet50", "resnet18", "vgg16"]
    assert [row.split()[1] for row in rows] == ["0.7000", "0.6500", "0.6000", "0.5300", "0.5000", "nan"]
    if len(shown) < len(table.COLUMNS):  # one column more, and the gap before it, would not have fitted
        left_out = table.COLUMNS[len(shown)]
        column = [line.split(" | ")[len(shown)].strip(" |") for line in show("--markdown").splitlines()]
        assert len(rule) + 2 + max(map(len, column)) > width
        notes = " ".join(" ".join(lines[lines.index("") :]).split())  # as they were before they were wrapped
        assert f"left out for want of width: {left_out}" in notes
        assert notes.endswith("; --csv shows all")


def test_table_in_a_pipe_is_120_wide(show: Any) -> None:
    assert show() == show(width=120) != show(width=80)


def test_numbers_are_aligned_right(show: Any) -> None:
    lines = show("--COLUMNS", "model_name,best_f1,seconds,TRAIN_BATCH_SIZE").splitlines()[: 2 + len(RUNS)]
    assert {len(line) for line in lines} == {len("model_name  best_f1  seconds  TRAIN_BATCH_SIZE")}
    assert lines[2].endswith("              32")


def test_empty_columns_mean_all(show: Any) -> None:
    shown = show("--COLUMNS", "", width=4000).splitlines()[0].split()
    assert shown == list(read_rows(show("--csv"))[0])
    assert " more; --csv shows all" in " ".join(show("--COLUMNS", "").split())


def test_what_is_sorted_and_grouped_by_is_shown(show: Any) -> None:
    arguments = ("--COLUMNS", "mAP", "--SORT_BY", "OF1", "--GROUP_BY_COLUMNS", "HEAD,model_name")
    assert show(*arguments).splitlines()[0].split() == ["HEAD", "model_name", "OF1", "mAP"]
    grouped = show(*arguments, "--GROUP_MODE", "mean").splitlines()[0].split()
    assert grouped == ["HEAD", "model_name", "runs", "OF1", "mAP", "mAP_std"]


def test_best_value_is_bold_in_a_terminal(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = show()
    assert text.count("\x1b[1m") == 1
    assert "\x1b[1m 0.7000\x1b[0m" in text
    assert "\x1b[1m 0.5000\x1b[0m" in show("--SORT_ASCENDING", "True")


def test_notes_runs_on_different_data_sets(show: Any, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "note: these runs used 2 different data sets (column fingerprint): not comparable"
    assert "note:" not in show()
    other = make_sidecar("densenet121", 0.9, 0.9, 1)
    other["dataset"]["fingerprint"] = "another"
    write_run(root, "g", other)
    assert note in show()
    group = ("--GROUP_BY_COLUMNS", "HEAD")
    assert note not in show(*group)  # the best run alone
    assert note in show(*group, "--GROUP_MODE", "mean")
    table.main(["--csv", "--CHECKPOINTS_ROOT", str(root)])
    captured = capsys.readouterr()
    assert captured.err.strip() == note
    assert note not in captured.out


def test_skipped_checkpoints_are_listed_on_stderr(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(root, "alone", None)
    write_run(root, "broken", '{"format": ')
    write_run(root, "foreign", '{"format": "something else"}')
    write_run(root, "list", "[1, 2]")
    write_run(root, "newer", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "version": 99}))
    write_run(root, "odd", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "metrics": 3}))
    write_run(root, "text", json.dumps({**make_sidecar("vgg16", 0.5, 0.5, 1), "best_f1": "high"}))
    table.main(["--csv", "--CHECKPOINTS_ROOT", str(root)])
    captured = capsys.readouterr()
    assert len(read_rows(captured.out)) == len(RUNS)
    head, *lines = captured.err.splitlines()
    assert head == f"skipped 7 of 13 checkpoints in {root}:"
    assert lines[0] == "  other/alone.pt: there is no alone.json beside it"
    assert lines[1].startswith("  other/broken.pt: broken.json cannot be read: Expecting value: line 1")
    assert [line.split(":")[0].strip() for line in lines] == [
        f"other/{name}.pt" for name in ("alone", "broken", "foreign", "list", "newer", "odd", "text")
    ]
    assert "version 99, not 1" in lines[4]
    assert "metrics" in lines[5]


def test_refuses_a_folder_where_nothing_is_usable(tmp_path: Path) -> None:
    write_run(tmp_path, "alone", None)
    with pytest.raises(utils.InputError, match=r"none of the checkpoints in .* has a usable sidecar"):
        table.main(["--CHECKPOINTS_ROOT", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--SORT_BY", "best_f2"], "SORT_BY: there is no column 'best_f2' (did you mean best_f1?)"),
        (["--SORT_BY", "train_batchsize"], "did you mean TRAIN_BATCH_SIZE?"),
        (["--SORT_BY", "runs"], "SORT_BY: there is no column 'runs'"),
        (["--GROUP_BY_COLUMNS", "hed"], "GROUP_BY_COLUMNS: there is no column 'hed' (did you mean HEAD?)"),
        (["--COLUMNS", "epoch,qqqqqq"], "COLUMNS: there is no column 'qqqqqq'; --csv shows all"),
        (["--GROUP_MODE", "means"], "did you mean mean?"),
        (["--CHECKPOINT_GLOB", "*.pth"], "no checkpoint matches *.pth in"),
        (["--CHECKPOINT_GLOB", "/*.pt"], "CHECKPOINT_GLOB '/*.pt'"),
        (["--CHECKPOINT_GLOB", ""], "CHECKPOINT_GLOB ''"),
        (["--csv", "--markdown"], "--csv and --markdown exclude each other"),
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
        table.main(["--CHECKPOINTS_ROOT", str(tmp_path / "missing")])


def test_root_follows_the_constants_of_config(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--LOCAL_ROOT", str(root.parent)], ["--TRAINED_MODELS_FOLDER", str(root)]):
        table.main(["--csv", *arguments])
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


def test_script_imports_neither_torch_nor_pandas(root: Path) -> None:
    """The whole script in a process of its own, which then tells what it had to import."""
    code = (
        "import sys, model_performance_table as table; table.main(sys.argv[1:]);"
        "print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "--CHECKPOINTS_ROOT", str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "resnet50" in done.stdout


def test_script_from_the_command_line(root: Path) -> None:
    command = [sys.executable, "model_performance_table.py", "--CHECKPOINTS_ROOT", str(root)]
    done = subprocess.run([*command, "--csv"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert list_names(done.stdout) == ["b", "d", "c", "e", "a", "f"]
    assert done.stderr == ""
    failed = subprocess.run([*command, "--SORT_BY", "f1"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: SORT_BY: there is no column 'f1'")
    assert failed.stdout == ""
