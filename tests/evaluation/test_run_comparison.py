"""evaluation/run_comparison.py: differences between rows are those of metrics.py, corrected as Holm says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import draw_probabilities, draw_targets, make_ruler, make_sidecar, write_run, write_test

import metrics
import model_performance_table
from evaluation import run_comparison, run_rows, test_results
from utils import InputError

SKILLS = {"a1": 1.0, "a2": 1.05, "b": 1.0, "c": 0.6, "elsewhere": 2.0, "untested": 0.0}


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """The folder of six runs, a1 and a2 of one configuration; {run: its probabilities}; the targets of all."""
    root, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(3)
    targets, probabilities = draw_targets(rng), {}
    for name, skill in SKILLS.items():
        constants = {"SEED": int(name[1]), "LOSS": "a"} if name[0] == "a" else {"LOSS": name}
        write_run(root, name, make_sidecar("resnet18", skill / 4, 0.5, 3, **constants))
        probabilities[name] = draw_probabilities(rng, targets, skill)
        if name != "untested":
            ruler = make_ruler("others") if name == "elsewhere" else None
            limits = {"max_labels": 2} if name == "c" else {}
            write_test(root, f"resnet18/{name}", probabilities[name], targets, 0.45, ruler, **limits)
    return root, probabilities, targets


def read_rows(root: Path) -> Any:
    return run_rows.make_rows(model_performance_table.read_runs(root), ("configuration",), averages=True)


def test_differences_are_those_over_images_and_seeds(tested: tuple[Path, dict[str, Any], Any]) -> None:
    root, probabilities, targets = tested
    rows = read_rows(root)
    assert rows["LOSS"].tolist() == ["a", "b", "c", "elsewhere", "untested"]
    folders = run_comparison.list_folders(rows, root)
    compared, problems = run_comparison.add_differences(rows[:3], folders[:3], ["mAP", "f1_weighted", "exact_match"])
    assert problems == []
    base = np.stack([probabilities["a1"], probabilities["a2"]])
    expected = metrics.compare_groups(base, probabilities["b"][None], targets, 0.45, 0.45)
    for name in ("mAP", "f1_weighted", "exact_match"):
        found = [compared[f"delta_test_{name}{ending}"][1] for ending in ("", "_low", "_high")]
        assert found == pytest.approx(expected[name][:3])
    means = [np.mean([metrics.measure(one, targets, 0.45)["exact_match"] for one in base]), 0.0]
    means[1] = metrics.measure(probabilities["c"], targets, 0.45, max_labels=2)["exact_match"]
    assert compared["delta_test_exact_match"][2] == pytest.approx(means[1] - means[0]), "each run with its own limits"
    others = [metrics.compare_groups(base, probabilities[name][None], targets, 0.45, 0.45)["mAP"].p for name in "bc"]
    first, second = sorted(others)
    holm = {first: min(1, 2 * first), second: min(1, max(2 * first, second))}
    assert compared["delta_test_mAP_p"][1:3].tolist() == pytest.approx([holm[p] for p in others])
    assert compared["delta_test_mAP"].isna().tolist() == [True, False, False]
    assert compared["is_reference"].tolist() == [True, False, False]
    assert compared.attrs["metrics"] == rows.attrs["metrics"]


def test_a_run_whose_scores_are_gone_is_named(tested: tuple[Path, dict[str, Any], Any]) -> None:
    root = tested[0]
    rows, file = read_rows(root), root / "resnet18" / "c" / test_results.SCORES_FILE
    content = file.read_bytes()
    file.unlink()
    try:
        folders = run_comparison.list_folders(rows, root)
        compared, problems = run_comparison.add_differences(rows[:3], folders[:3], ["mAP"])
        assert compared["delta_test_mAP"].isna().tolist() == [True, False, True]
        (problem,) = problems
        assert "resnet18/c holds no whole test: python testing.py --MODEL_PATH " in problem
        with pytest.raises(InputError, match="c holds no whole test"):
            run_comparison.compare_rows(rows, {}, "c", "best_f1", root)
    finally:
        file.write_bytes(content)


def test_scores_that_give_other_numbers_are_not_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    write_run(tmp_path, "a", make_sidecar("resnet18", 0.5, 0.5, 1))
    mean_ap = write_test(tmp_path, "resnet18/a", draw_probabilities(rng, targets, 1), targets)["mAP"]
    file = tmp_path / "resnet18" / "a" / test_results.SCORES_FILE
    with np.load(file) as arrays:
        changed = {**arrays, "probabilities": 1 - arrays["probabilities"]}
    np.savez(file, **changed)
    with pytest.raises(InputError, match=rf"resnet18/a give mAP 0\.\d+, its numbers say {mean_ap:.3f}: test the run"):
        run_comparison.resample_test(file.parent)


def test_the_reference_and_what_is_said_of_it(
    tested: tuple[Path, dict[str, Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tested[0]
    rows = read_rows(root)
    compared, legend = run_comparison.compare_rows(rows, {}, "best", "best_f1", root)
    assert compared["LOSS"].tolist() == rows["LOSS"].tolist()
    assert compared["delta_test_mAP"].isna().tolist() == [True, False, False, True, True], "other images, or no test"
    assert [value is True for value in compared["is_reference"]] == [True, False, False, False, False], (
        "elsewhere is alone"
    )
    assert legend[0].startswith(
        f"Δ: from {rows['run'][0]}, of these the first by best_f1, on the same 300 test images; ["
    )
    assert legend[0].endswith("paired over images and over seeds; a row with one test stands for that model alone")
    assert "after Holm's correction for 2 comparisons; an interval is of its own comparison" in legend[1]
    left = "tested by another ruler, and so without Δ: 1 row (--SORT_BY test_mAP says how it differs)"
    assert legend[2:] == ["it was chosen by best_f1, without a look at the test images", left]
    _, legend = run_comparison.compare_rows(rows, {}, "best", "test_mAP", root)
    assert "it was chosen on these test images: a part of its lead is luck" in legend[2]
    compared, legend = run_comparison.compare_rows(rows, {}, "b", "best_f1", root)
    assert [value is True for value in compared["is_reference"]] == [False, True, False, False, False]
    assert legend[0].startswith("Δ: from b, on the same 300 test images")
    assert legend[2:] == [left]
    compared, legend = run_comparison.compare_rows(rows, {1: "other validation images"}, "best", "best_f1", root)
    assert [value is True for value in compared["is_reference"]] == [True, False, False, False, False]
    assert "after Holm's correction for 2 comparisons" in legend[1], "blocks of validation share the test images"
    assert legend[-1].startswith("best_f1 does not rank blocks: that this is the best one holds for its own; --AGAINST")
    write_test(root, "resnet18/untested", tested[1]["b"], tested[2], 0.45, make_ruler("others"))
    compared, legend = run_comparison.compare_rows(read_rows(root), {}, "best", "best_f1", root)
    (root / "resnet18" / "untested" / test_results.RESULT_FILE).unlink()
    assert compared["is_reference"].tolist() == [True, False, False, True, False], "of each ruler"
    assert "; from elsewhere, of these the first by best_f1, on the same 300 test images; [95" in legend[0]
    assert "for 2 and 1 comparisons" in legend[1]
    _, legend = run_comparison.compare_rows(rows, {}, "elsewhere", "best_f1", root)
    assert legend[0].startswith("Δ: no other row was tested by the same ruler")
    for against, message in (("untested", "untested has no test: python testing.py"), ("x", "there is no run 'x'")):
        with pytest.raises(InputError, match=message):
            run_comparison.compare_rows(rows, {}, against, "best_f1", root)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("num_tests", "words"),
    [
        ([], ""),
        ([1, 1], ""),
        ([3, 2], " and over seeds"),
        ([3, 1, 2], " and over seeds; a row with one test stands for that model alone"),
    ],
)
def test_one_test_says_nothing_of_seeds(num_tests: list[int], words: str) -> None:
    assert run_comparison.describe_seeds(num_tests) == words


def test_seeds_of_a_row_that_is_not_compared_are_not_spoken_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    for name, loss, seed in (("a1", "a", 1), ("a2", "a", 2), ("b", "b", 1), ("c", "c", 1)):
        write_run(tmp_path, name, make_sidecar("resnet18", 0.5, 0.5, 1, LOSS=loss, SEED=seed))
        ruler = make_ruler("others") if loss == "a" else None
        write_test(tmp_path, f"resnet18/{name}", draw_probabilities(rng, targets, 1), targets, ruler=ruler)
    rows = read_rows(tmp_path)
    assert rows["runs"].tolist() == [2, 1, 1]
    _, legend = run_comparison.compare_rows(rows, {}, "best", "best_f1", tmp_path)
    assert legend[0].endswith("[95 % interval], paired over images")


def test_runs_that_were_not_tested_alike_have_a_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    for seed, ruler in ((1, None), (2, make_ruler("others", 20)), (3, None)):
        write_run(tmp_path, f"s{seed}", make_sidecar("resnet18", 0.5, 0.5, 1, SEED=seed))
        if seed < 3:
            write_test(tmp_path, f"resnet18/s{seed}", draw_probabilities(rng, targets, 1), targets, ruler=ruler)
    rows = read_rows(tmp_path)
    name = rows["run"].iloc[0]
    reason = r"is of several runs that were not tested alike \(other test images \(300 and 20\)\): name one of them, or"
    with pytest.raises(InputError, match=rf"^AGAINST: row {name} {reason}"):
        run_comparison.compare_rows(rows, {}, "best", "best_f1", tmp_path)
    write_run(tmp_path, "other", make_sidecar("resnet18", 0.5, 0.5, 1, LOSS="other"))
    write_test(tmp_path, "resnet18/other", draw_probabilities(rng, targets, 1), targets)
    with pytest.raises(InputError, match=rf"^AGAINST: {name} {reason}"):
        run_comparison.compare_rows(read_rows(tmp_path), {}, name, "best_f1", tmp_path)
    write_test(tmp_path, "resnet18/s2", draw_probabilities(rng, targets, 1), targets, views="flip")
    assert "(other views, or another calibration)" in run_comparison.explain_no_test(
        rows["checkpoints"].iloc[0], tmp_path
    )
    assert run_comparison.explain_no_test(["resnet18/s3.pt"], tmp_path) == run_comparison.NO_TEST


@pytest.mark.parametrize(
    ("sort_by", "labels", "names"),
    [
        ("best_f1", "any", ["f1_weighted", "mAP"]),
        ("best_f1", "one", ["f1_macro", "mAP"]),
        ("test_mAP", "any", ["mAP", "f1_weighted"]),
        ("test_CF1", "any", ["CF1", "mAP", "f1_weighted"]),
        ("mAP_std", "any", ["mAP", "f1_weighted"]),
        ("test_accuracy", "one", ["exact_match", "mAP", "f1_macro"]),
        ("test_num_images", "any", ["mAP", "f1_weighted"]),
        ("LOSS", "any", ["mAP", "f1_weighted"]),
    ],
)
def test_what_is_compared(sort_by: str, labels: str, names: list[str], tmp_path: Path) -> None:
    write_run(tmp_path, "a", make_sidecar("resnet18", 0.5, 0.5, 1, LABELS_PER_IMAGE=labels))
    assert run_comparison.choose_metrics(sort_by, read_rows(tmp_path)) == names
