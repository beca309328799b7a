"""evaluation/run_rows.py: which runs are one row, which rows may be ranked together, and which cells are the best."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import draw_probabilities, draw_targets, make_ruler, make_sidecar, write_run, write_test

import model_performance_table
import overrides
from evaluation import run_rows
from utils import InputError

CONFIGURATION = ("configuration",)


def add_run(root: Path, name: str, best_f1: float = 0.5, **changes: Any) -> dict[str, Any]:
    """Write a run of resnet18; capital names are constants, others stand at the sidecar's top or in its data set."""
    sidecar = make_sidecar("resnet18", best_f1, best_f1 + 0.1, 3)
    for key, value in changes.items():
        part = sidecar["config"] if key.isupper() else sidecar["dataset"] if key.endswith("fingerprint") else sidecar
        part[key] = value
    write_run(root, name, sidecar)
    return sidecar


def read_rows(root: Path, columns: tuple[str, ...] = CONFIGURATION, averages: bool = True) -> Any:
    return run_rows.make_rows(model_performance_table.read_runs(root), columns, averages)


# ---- which runs are one row ----


def test_runs_that_differ_in_seed_alone_are_one_row(tmp_path: Path) -> None:
    found = {7: 0.5, 8: 0.62, 9: 0.53}
    for seed, best_f1 in found.items():
        add_run(tmp_path, f"seed{seed}", best_f1, SEED=seed)
    add_run(tmp_path, "other", 0.9, SEED=7, LOSS="focal")
    rows = read_rows(tmp_path)
    assert rows["runs"].tolist() == [1, 3]
    assert rows["checkpoints"].tolist() == [["resnet18/other.pt"], [f"resnet18/seed{seed}.pt" for seed in found]]
    assert rows["best_f1"].tolist() == pytest.approx([0.9, statistics.mean(found.values())])
    assert rows["best_f1_std"][1] == pytest.approx(statistics.stdev(found.values()))
    assert np.isnan(rows["best_f1_std"][0])
    assert rows["run"].tolist() == ["other", rows["configuration"][1]]
    assert rows["LOSS"].tolist() == ["focal", "bce_with_logits"]
    assert rows["SEED"].isna().tolist() == [False, True], "a mean of it would say nothing"
    each = read_rows(tmp_path, averages=False)
    assert each["runs"].tolist() == [1, 1, 1, 1]
    assert each["best_f1"].tolist() == [0.9, *found.values()]


@pytest.mark.filterwarnings("error")
def test_many_columns_that_runs_share_warn_of_nothing(tmp_path: Path) -> None:
    extra: dict[str, Any] = {f"EXTRA_{number}": number for number in range(120)}
    for seed in (7, 8):
        add_run(tmp_path, f"seed{seed}", SEED=seed, **extra)
    assert read_rows(tmp_path)["runs"].tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"LOSS": "focal"}, False),
        ({"SPLIT_SEED": 5}, False),
        ({"MICRO_BATCH_SIZE": 8}, False),
        ({"LORA_RANK": 8}, False),
        ({"fingerprint": "another"}, False),
        ({"threshold_policy": {"scope": "per_class"}}, False),
        ({"max_labels": 3}, False),
        ({"features": "mean"}, False),
        ({"DEVICE": "cuda"}, True),
        ({"LOCAL_ROOT": "/elsewhere"}, True),
        ({"FEATURES": "own", "features": "own"}, True),  # what auto means there
    ],
)
def test_what_makes_another_row(changes: dict[str, Any], is_same: bool, tmp_path: Path) -> None:
    add_run(tmp_path, "a", SEED=1, FEATURES="auto", features="own")
    add_run(tmp_path, "b", **{"SEED": 2, "FEATURES": "auto", "features": "own", **changes})
    assert len(read_rows(tmp_path)) == (1 if is_same else 2)


def test_other_files_under_the_same_names_are_another_row(tmp_path: Path) -> None:
    """An older run does not say the sizes of its files: it goes with the others of its row, where these agree."""
    for seed, files in enumerate(["x", "x", ""], start=1):
        add_run(tmp_path, f"s{seed}", SEED=seed, files_fingerprint=files)
    add_run(tmp_path, "s4", SEED=4)
    assert read_rows(tmp_path)["runs"].tolist() == [4]
    for name, seed in (("s5", 5), ("s6", 1)):  # with the SEED of s1, and no copy of it
        add_run(tmp_path, name, SEED=seed, files_fingerprint="y")
    rows = [[Path(name).stem for name in names] for names in read_rows(tmp_path)["checkpoints"]]
    assert rows == [["s1", "s2"], ["s3", "s4"], ["s5", "s6"]]


@pytest.mark.parametrize("name", overrides.AS_BEFORE)
def test_seeds_from_before_and_after_a_constant_came_are_one_row(name: str, tmp_path: Path) -> None:
    constants = overrides.AS_BEFORE | {"features": "own"}
    add_run(tmp_path, "newer", **{"SEED": 2, **constants})
    older = add_run(tmp_path, "older", **{"SEED": 1, **constants})
    del older["config"][name]
    if name == "FEATURES":
        del older["features"]
    write_run(tmp_path, "older", older)
    rows = read_rows(tmp_path)
    assert (rows["runs"].tolist(), rows[name].tolist()) == ([2], [overrides.AS_BEFORE[name]])
    assert name not in rows.attrs["varied"], "the table would say that the mean is over it"


def test_a_copy_is_no_second_run(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("copy", 1), ("b", 2)):
        add_run(tmp_path, name, SEED=seed)
    assert sorted(read_rows(tmp_path)["runs"]) == [1, 2]


def test_a_copied_checkpoint_takes_nobodys_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is called, and although it comes first; the runs of two folders are no copies of each other."""
    for name, seed in (("x", 1), ("y", 2)):
        add_run(tmp_path, name, SEED=seed, run=f"resnet18/{name}")
    for copy in ("resnet18/backup", "resnet18/z", "keep/y"):
        add_run(tmp_path, Path(copy).name, SEED=2, run="resnet18/y")
        (tmp_path / "keep").mkdir(exist_ok=True)
        if copy == "keep/y":
            for ending in (".pt", ".json"):
                (tmp_path / f"keep/y{ending}").write_bytes((tmp_path / f"resnet18/y{ending}").read_bytes())
    (row,) = read_rows(tmp_path).to_dict("records")
    assert row["checkpoints"] == ["resnet18/x.pt", "resnet18/y.pt"]
    assert capsys.readouterr().err.splitlines() == [
        "left out 3 of 5 checkpoints, copies of others:",
        "  keep/y.pt, of resnet18/y.pt",
        "  resnet18/backup.pt, of resnet18/y.pt",
        "  resnet18/z.pt, of resnet18/y.pt",
    ]
    for ending in (".pt", ".json"):
        (tmp_path / f"resnet18/y{ending}").unlink()
        (tmp_path / f"keep/y{ending}").unlink()
    (row,) = read_rows(tmp_path).to_dict("records")
    assert row["checkpoints"] == ["resnet18/backup.pt", "resnet18/x.pt"], "a renamed run is a run"
    assert run_rows.find_copies({"a/m/x.pt": "m/x", "b/m/x.pt": "m/x", "m/older.pt": None}) == {}


def test_tests_of_seeds_are_averaged_where_they_were_made_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    measured = []
    for seed in (1, 2, 3):
        add_run(tmp_path, f"s{seed}", SEED=seed)
        if seed < 3:
            measured.append(write_test(tmp_path, f"resnet18/s{seed}", draw_probabilities(rng, targets, 1), targets))
    (row,) = read_rows(tmp_path).to_dict("records")
    aps = [found["mAP"] for found in measured]
    assert row["test_mAP"] == pytest.approx(statistics.mean(aps))
    assert row["test_mAP_std"] == pytest.approx(statistics.stdev(aps))
    assert row["test_checkpoints"] == ["resnet18/s1.pt", "resnet18/s2.pt"]
    assert (row["test_ruler"], row["test_num_images"]) == ("itc", 300)
    assert "test_mAP_low" not in row
    runs = model_performance_table.read_runs(tmp_path)
    assert run_rows.count_untested(read_rows(tmp_path)) == 1
    assert run_rows.count_unlike_tests(runs, read_rows(tmp_path)) == 0
    write_test(tmp_path, "resnet18/s3", draw_probabilities(rng, targets, 1), targets, views="flip")
    runs, rows = model_performance_table.read_runs(tmp_path), read_rows(tmp_path)
    assert rows["test_checkpoints"].tolist() == [[]]
    assert "test_mAP" not in rows
    assert rows["best_f1"].tolist() == [0.5]
    assert run_rows.count_unlike_tests(runs, rows) == 1


def test_one_test_of_several_seeds_keeps_its_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    for seed in (1, 2):
        add_run(tmp_path, f"s{seed}", SEED=seed)
    measured = write_test(tmp_path, "resnet18/s2", draw_probabilities(rng, targets, 1), targets)
    (row,) = read_rows(tmp_path).to_dict("records")
    assert row["test_mAP"] == pytest.approx(measured["mAP"])
    assert (row["test_mAP_low"], row["test_mAP_high"]) == pytest.approx(
        (measured["mAP"] - 0.02, measured["mAP"] + 0.03)
    )


@pytest.mark.parametrize("averaged_is_tested", [True, False])
def test_folds_are_one_row_with_the_test_of_the_averaged_model(averaged_is_tested: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    aps = []
    for fold in (1, 2, 3):
        name = f"x_fold{fold}of3"
        add_run(tmp_path, name, 0.4 + fold / 10, fold=fold, fold_of="x_3folds_0a1b2c3d", FOLDS=3)
        aps.append(write_test(tmp_path, f"resnet18/{name}", draw_probabilities(rng, targets, 1), targets)["mAP"])
    together = make_sidecar("resnet18", 0.0, 0.0, 0, FOLDS=3) | {"best_f1": None, "epoch": None, "metrics": {}}
    write_run(tmp_path, "x_3folds_0a1b2c3d", together | {"fold": 0, "fold_of": "x_3folds_0a1b2c3d", "seconds": 9999.0})
    expected, tested = statistics.mean(aps), [f"resnet18/x_fold{fold}of3.pt" for fold in (1, 2, 3)]
    if averaged_is_tested:
        probabilities = draw_probabilities(rng, targets, 2)
        expected = write_test(tmp_path, "resnet18/x_3folds_0a1b2c3d", probabilities, targets)["mAP"]
        tested = ["resnet18/x_3folds_0a1b2c3d.pt"]
    (row,) = read_rows(tmp_path).to_dict("records")
    assert (row["runs"], row["run"], row["checkpoint"]) == (3, "0a1b2c3d", "resnet18/x_3folds_0a1b2c3d.pt")
    assert row["best_f1"] == pytest.approx(0.6)
    assert row["best_f1_std"] == pytest.approx(0.1)
    assert row["seconds"] == 812.25, "and not that of the averaged model"
    assert row["test_mAP"] == pytest.approx(expected)
    assert row["test_checkpoints"] == tested
    assert (row.get("test_mAP_std", np.nan) == row.get("test_mAP_std", np.nan)) is not averaged_is_tested
    rows = read_rows(tmp_path)
    assert run_rows.count_untested(rows) == 0


def test_validations_that_are_not_alike_are_not_averaged(tmp_path: Path) -> None:
    """Sorted by a test, a row may hold runs with other validation images, or with other kinds of best_f1."""
    for name, loss, val_fingerprint, chosen_by, best_f1 in (
        ("a1", "focal", "v", "f1_weighted", 0.5),
        ("a2", "focal", "v", "f1_weighted", 0.6),
        ("b1", "hill", "v", "f1_weighted", 0.5),
        ("b2", "hill", "w", "f1_weighted", 0.7),
        ("c1", "ldam", "v", "f1_weighted", 0.4),
        ("c2", "ldam", "v", "f1_macro", 0.6),
    ):
        add_run(tmp_path, name, best_f1, LOSS=loss, val_fingerprint=val_fingerprint, chosen_by=chosen_by)
    rows, nan = read_rows(tmp_path, ("LOSS",)), np.nan
    assert rows["LOSS"].tolist() == ["focal", "hill", "ldam"]
    assert rows["best_f1"].tolist() == pytest.approx([0.55, nan, nan], nan_ok=True)
    assert rows["mAP"].tolist() == pytest.approx([0.65, nan, 0.6], nan_ok=True)
    assert rows["mAP_std"].tolist() == pytest.approx(
        [statistics.stdev([0.6, 0.7]), nan, statistics.stdev([0.5, 0.7])], nan_ok=True
    )
    assert rows["epoch"].tolist() == [3, 3, 3]
    assert run_rows.count_unlike_validations(rows) == 2
    assert run_rows.count_unlike_validations(read_rows(tmp_path, averages=False)) == 0


# ---- which may be ranked together ----


def list_blocks(root: Path, sort_by: str, has_means: bool = True) -> list[tuple[str, list[str]]]:
    blocks = run_rows.find_blocks(model_performance_table.read_runs(root), sort_by, has_means)
    return [(line.removeprefix(run_rows.NOT_RANKED), block["run"].tolist()) for line, block in blocks]


def test_blocks_by_test_are_those_of_the_ruler(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    rulers = {"a": None, "b": make_ruler("others", 50), "c": None, "d": make_ruler(targets="new"), "e": "untested"}
    for name, ruler in rulers.items():
        add_run(tmp_path, name, LOSS="focal" if name == "a" else "hill")
        if ruler != "untested":
            write_test(tmp_path, f"resnet18/{name}", draw_probabilities(rng, targets, 1), targets, ruler=ruler)
    assert list_blocks(tmp_path, "test_mAP") == [
        ("", ["a", "c"]),
        ("other test images (300 and 50)", ["b"]),
        ("other test images (50 and 300)", ["d"]),
        ("without a test", ["e"]),
    ]
    assert list_blocks(tmp_path, "best_f1") == [("", ["a", "b", "c", "d", "e"])]


def test_blocks_by_validation_are_those_of_its_images_and_of_f1(tmp_path: Path) -> None:
    add_run(tmp_path, "a", val_fingerprint="v")
    add_run(tmp_path, "b", val_fingerprint="v", SPLIT_SEED=9)  # of a val split that is the data set's own
    add_run(tmp_path, "c", val_fingerprint="w")
    add_run(tmp_path, "d", val_fingerprint="w", chosen_by="f1_macro")
    add_run(tmp_path, "e", val_fingerprint="z", fingerprint="another")
    assert list_blocks(tmp_path, "mAP") == [
        ("", ["a", "b"]),
        ("other validation images", ["c", "d"]),
        ("another data set (column fingerprint)", ["e"]),
    ]
    assert list_blocks(tmp_path, "best_f1") == [
        ("", ["a", "b"]),
        ("other validation images", ["c"]),
        ("best_f1 is f1_weighted above and f1_macro below", ["d"]),
        ("another data set (column fingerprint); best_f1 is f1_macro above and f1_weighted below", ["e"]),
    ]


def test_folds_validate_on_all_images_together_and_each_on_its_own(tmp_path: Path) -> None:
    for fold in (1, 2):
        add_run(tmp_path, f"f{fold}", fold=fold, fold_of="x_2folds_0", FOLDS=2, val_fingerprint=f"part {fold}")
    add_run(tmp_path, "single", val_fingerprint="v")
    assert list_blocks(tmp_path, "mAP") == [
        ("", ["f1", "f2"]),
        ("other validation images (2 folds and 400)", ["single"]),
    ]
    assert [names for _, names in list_blocks(tmp_path, "mAP", has_means=False)] == [["f1"], ["f2"], ["single"]]


def test_validation_images_of_other_content_stand_in_a_block_of_their_own(tmp_path: Path) -> None:
    for name, files in (("a", "x"), ("b", "x"), ("c", "y")):
        add_run(tmp_path, name, LOSS=name, val_fingerprint="v", val_files_fingerprint=files)
    add_run(tmp_path, "older", LOSS="older", val_fingerprint="v")
    same_names = "validation images of the same names, "
    for sort_by in ("best_f1", "mAP"):
        assert list_blocks(tmp_path, sort_by) == [
            ("", ["a", "b"]),
            (f"{same_names}with other content", ["c"]),
            (f"{same_names}maybe with other content: an older run does not say", ["older"]),
        ]
    add_run(tmp_path, "c", LOSS="c", val_fingerprint="w", val_files_fingerprint="y")
    assert list_blocks(tmp_path, "mAP") == [("", ["a", "b", "older"]), ("other validation images", ["c"])]


def test_folds_of_other_files_are_another_row_with_their_averaged_model(tmp_path: Path) -> None:
    for seed, (name, best_f1) in enumerate([("x", 0.5), ("y", 0.7)]):
        constants: dict[str, Any] = {"SEED": seed, "FOLDS": 2, "fold_of": f"{name}_2folds"}
        for fold in (1, 2):
            of_val = {"val_fingerprint": f"part {fold}", "val_files_fingerprint": f"{name}{fold}"}
            changes = constants | of_val | {"fold": fold, "files_fingerprint": name}
            add_run(tmp_path, f"{name}_fold{fold}", best_f1 + fold / 10, **changes)
        add_run(tmp_path, f"{name}_2folds", fold=0, **constants)  # it does not say what its files are
    assert list_blocks(tmp_path, "best_f1") == [
        ("", ["x_2folds", "x_fold1", "x_fold2"]),
        ("validation images of the same names, with other content", ["y_2folds", "y_fold1", "y_fold2"]),
    ]
    rows = read_rows(tmp_path)
    assert rows["runs"].tolist() == [2, 2]
    assert rows["checkpoint"].tolist() == ["resnet18/x_2folds.pt", "resnet18/y_2folds.pt"]
    assert rows["best_f1"].tolist() == pytest.approx([0.65, 0.85]), "over images that are all of them together"
    assert run_rows.count_unlike_validations(rows) == 0


def test_of_validations_the_best_is_found_where_they_are_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)

    def add(name: str, best_f1: float, **changes: Any) -> None:
        add_run(tmp_path, name, best_f1, **changes)
        write_test(tmp_path, f"resnet18/{name}", draw_probabilities(rng, targets, 1), targets)

    def list_best() -> set[tuple[int, str]]:
        best = run_rows.find_best(read_rows(tmp_path), {}, "test_mAP")
        return {(row, name) for row, name in best if not name.startswith("test_")}

    add("a", 0.5, LOSS="a", val_fingerprint="v")
    add("b", 0.6, LOSS="b", val_fingerprint="v")
    assert list_best() == {(1, name) for name in ("best_f1", "mAP", "f1_weighted", "CF1", "OF1")}
    add("b", 0.6, LOSS="b", val_fingerprint="v", chosen_by="f1_macro")
    assert list_best() == {(1, name) for name in ("mAP", "f1_weighted", "CF1", "OF1")}, "other kinds of best_f1"
    for fold in (1, 2):
        add(f"c{fold}", 0.9, LOSS="c", FOLDS=2, fold=fold, fold_of="c_2folds", val_fingerprint=f"part {fold}")
    assert list_best() == set(), "the folds were validated on other images"
    for name in ("a", "b"):
        for ending in (".pt", ".json"):
            (tmp_path / f"resnet18/{name}{ending}").unlink()
    for fold in (1, 2):
        add(f"d{fold}", 0.8, LOSS="d", FOLDS=2, fold=fold, fold_of="d_2folds", val_fingerprint=f"part {fold}")
    assert list_best() == {(0, name) for name in ("best_f1", "mAP", "f1_weighted", "CF1", "OF1")}, "folds of all images"


def test_the_best_of_each_block_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = draw_targets(rng)
    for name, skill, images in (("a", 0.5, "x"), ("b", 1.5, "x"), ("c", 3.0, "y"), ("d", 2.0, "y")):
        sidecar = add_run(tmp_path, name, skill / 4, LOSS=name)
        sidecar["metrics"]["f1_weighted_standard_error"] = skill / 100
        write_run(tmp_path, name, sidecar)
        probabilities = draw_probabilities(rng, targets, skill)
        write_test(tmp_path, f"resnet18/{name}", probabilities, targets, ruler=make_ruler(images))
    rows = read_rows(tmp_path)
    best = run_rows.find_best(rows, {2: "other test images"}, "test_mAP")
    assert {row for row, name in best if name == "test_mAP"} == {0, 2}, "the first of the block, sorted or not"
    assert {row for row, name in best if name == "test_CF1"} == {1, 2}
    assert {row for row, name in best if name == "test_hamming_loss"} == {1, 2}
    assert {row for row, name in best if name == "best_f1"} == {1, 2}
    assert not {name for _, name in best} & {"epoch", "seconds", "best_threshold", "test_num_classes_in_mAP", "SEED"}
    assert "f1_weighted_standard_error" not in {name for _, name in best}, "neither side of it is better"
    in_one_block = run_rows.find_best(rows, {}, "best_f1")
    assert not {name for _, name in in_one_block if name.startswith("test_")}, "their rulers differ"


def test_rows_are_found_by_their_names(tmp_path: Path) -> None:
    for name, seed in (("linear_seed1_0a1b2c3d", 1), ("linear_seed2_99999999", 2)):
        add_run(tmp_path, name, SEED=seed)
    add_run(tmp_path, "other", LOSS="focal")
    rows = read_rows(tmp_path)
    for name in ("0a1b2c3d", "99999999", "resnet18/linear_seed1_0a1b2c3d.pt", "linear_seed2_99999999", rows["run"][0]):
        assert run_rows.find_row(rows, name, "AGAINST") == 0
    assert run_rows.find_row(rows, "other", "AGAINST") == 1
    with pytest.raises(
        InputError, match=r"^AGAINST: there is no run 'othr' \(did you mean other\?\); the column `run`"
    ):
        run_rows.find_row(rows, "othr", "AGAINST")
