"""evaluation/run_pair.py: two runs beside each other, class by class."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import CLASSES, draw_probabilities, draw_targets, make_ruler, make_sidecar, write_run, write_test

import metrics
import model_performance_table
from dataset.frames import pd
from evaluation import run_pair, run_rows
from utils import InputError


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """The folder of four runs; {run: its probabilities}; the targets. B is better than a at cats, and worse at dogs."""
    root, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(5)
    targets, probabilities = draw_targets(rng, 600), {}
    probabilities["a"] = draw_probabilities(rng, targets, 1)
    probabilities["b"] = probabilities["a"].copy()
    probabilities["b"][:, 0] = draw_probabilities(rng, targets, 2)[:, 0]
    probabilities["b"][:, 1] = draw_probabilities(rng, targets, 0.3)[:, 1]
    probabilities["elsewhere"] = probabilities["a"]
    for name in (*probabilities, "untested"):
        write_run(root, name, make_sidecar("resnet18", 0.5, 0.5, 3, LOSS="focal" if name == "b" else "hill"))
    for name, scores in probabilities.items():
        ruler = make_ruler("others", 20) if name == "elsewhere" else None
        write_test(root, f"resnet18/{name}", scores, targets, ruler=ruler)
    return root, probabilities, targets


def read_pair(root: Path, *names: str) -> Any:
    rows = run_rows.make_rows(model_performance_table.read_runs(root), (), averages=False)
    return pd.concat([rows.iloc[[run_rows.find_row(rows, name, "")]] for name in names], ignore_index=True)


def test_classes_are_those_of_metrics_sorted_by_what_they_gained(
    tested: tuple[Path, dict[str, Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    root, probabilities, targets = tested
    run_pair.print_pair(read_pair(root, "a", "b"), ["LOSS"], root, "--csv")
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["class"] for row in rows] == ["cat", CLASSES[2], "bird", "dog"]
    order = [CLASSES.index(row["class"]) for row in rows]
    expected = metrics.compare_classes(probabilities["a"], probabilities["b"], targets, 0.5, 0.5)
    for name in ("AP", "F1"):
        for ending, values in zip(("", "_low", "_high"), expected[name][:3], strict=True):
            found = [float(row[f"delta_{name}{ending}"]) for row in rows]
            assert found == pytest.approx(values[order].tolist(), abs=1e-9)
        p = expected[name].p
        holm = [max(min(1, (p[p >= other]).size * other) for other in p[p <= value]) for value in p]
        assert [float(row[f"delta_{name}_p"]) for row in rows] == pytest.approx([holm[c] for c in order], abs=1e-9)
    by_class = metrics.measure_classes(probabilities["b"], targets, 0.5)
    assert [float(row["AP_B"]) for row in rows] == pytest.approx(by_class["AP"][order].tolist())
    assert [int(row["positives"]) for row in rows] == targets.sum(axis=0)[order].tolist()
    assert "AP gained: cat; lost: dog\n" in err
    assert "A: resnet18/a.pt\nB: resnet18/b.pt\n" in err


def test_what_people_read(
    tested: tuple[Path, dict[str, Any], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, probabilities, targets = tested
    monkeypatch.setenv("COLUMNS", "140")
    run_pair.print_pair(read_pair(root, "a", "b"), ["LOSS"], root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["A: resnet18/a.pt", "B: resnet18/b.pt"]
    assert next(line for line in lines if line.startswith("LOSS")).split() == ["LOSS", "hill", "focal"]
    value, low, high, _ = metrics.compare(probabilities["a"], probabilities["b"], targets, 0.5, 0.5)["mAP"]
    texts = [f"{number:+.3f}".replace("-", "−").replace("0.", ".") for number in (value, low, high)]
    assert f"{texts[0]} [{texts[1]}, {texts[2]}]" in next(line for line in lines if line.startswith("mAP"))
    assert next(line for line in lines if line.startswith("bird")).count("≈") == 2
    assert "≈" not in next(line for line in lines if line.startswith("cat"))
    assert "AP gained: cat; lost: dog" in lines
    assert any(line.startswith("OF1 ") for line in lines)
    assert not any(line.startswith("f1_micro") for line in lines), "OF1 is the same number"


def test_where_no_class_is_distinguishable_it_says_so(
    tested: tuple[Path, dict[str, Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tested[0]
    run_pair.print_pair(read_pair(root, "a", "a"), [], root)
    out = capsys.readouterr().out
    assert "no constant differs" in out
    assert "of no class is AP distinguishable from unchanged (smallest corrected p 1.00)" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("untested", "--diff: no metrics can be compared: B has no test: python testing.py"),
        ("elsewhere", r"--diff: the two cannot be compared: other test images \(600 and 20\); test both on the same"),
    ],
)
def test_what_cannot_be_compared_is_said_after_the_constants(
    name: str, message: str, tested: tuple[Path, dict[str, Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        run_pair.print_pair(read_pair(tested[0], "b", name), ["LOSS"], tested[0])
    assert "LOSS" in capsys.readouterr().out


def test_of_many_classes_the_changed_ones_are_shown() -> None:
    change = np.linspace(0.5, -0.5, 101)
    p = np.where(np.abs(change) > 0.45, 0.01, 1.0)
    p[50] = 0.01  # small, and distinguishable
    classes = pd.DataFrame({"class": [f"c{n}" for n in range(101)], "delta_AP": change, "delta_AP_p": p})
    shown = run_pair.shorten(classes)
    assert len(shown) == run_pair.MAX_CLASSES
    assert {"c0", "c9", "c50", "c100", "c10", "c90"} <= set(shown["class"])
    assert shown["delta_AP"].is_monotonic_decreasing
    unknown = classes.assign(delta_AP=np.nan, delta_AP_p=np.nan)
    assert "(too few positives for a p)" in run_pair.describe_classes(unknown, [1, 1])[0]
    (line, *_) = run_pair.describe_classes(classes, [1, 1])
    assert line.startswith("AP gained: c0, c1, ")
    assert line.endswith("; 40 of 101 classes are shown, --csv has all")
    for num_tests, ending in (
        ([1, 1], "paired over images"),
        ([2, 3], "paired over images and over seeds"),
        ([3, 1], "paired over images and over seeds; a row with one test stands for that model alone"),
    ):
        assert run_pair.describe_classes(classes, num_tests)[1].endswith(ending)
