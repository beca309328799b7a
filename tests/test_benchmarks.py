"""What the scripts in benchmarks/ that run training.py share, and those that compare recipes by it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import config
import dataset_readers
import overrides
from benchmarks import ablation, gpu, head_search, label_queue, recipes, runs, suspects
from utils import InputError

Fails = Callable[[Callable[[list[str]], None], list[str]], str]


# ---- processes ----


def test_failing_process_is_named() -> None:
    with pytest.raises(InputError, match=r"^timeit ended with status 2"):
        runs.run_process("-m", "timeit", "--no-such-option")


def test_process_and_its_children_are_measured() -> None:
    """Half a second of work in a child process, and half a second of sleep, which costs no processor."""
    work = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    code = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {work!r}]); time.sleep(0.5)"
    process = runs.run_process("-c", code)
    assert process.cpu_seconds >= 0.5
    assert process.seconds >= 1


# ---- data sets made of links ----


def test_linked_data_set_is_the_same(shared_dataset: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        original = dataset_readers.read_dataset(shared_dataset, split=split)
        runs.link_dataset(original, tmp_path, split)
        linked = dataset_readers.read_dataset(tmp_path, split=split)
        assert linked.fingerprint() == original.fingerprint()
        assert Path(linked.paths[3]).read_bytes() == Path(original.paths[3]).read_bytes()


def test_select_evenly(shared_dataset: Path) -> None:
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    assert runs.select_evenly(table, 4).paths == [table.paths[i] for i in (0, 13, 26, 39)]
    assert runs.select_evenly(table, 0).paths == table.paths
    with pytest.raises(InputError, match="41 images are asked for but the data set has 40"):
        runs.select_evenly(table, 41)


def test_select_stratified(shared_dataset: Path) -> None:
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    first, again, other = (runs.select_stratified(table, 20, seed) for seed in (0, 0, 1))
    assert len(first) == 20
    assert first.paths == again.paths != other.paths
    positives = (table.targets == 1).sum(axis=0)
    assert np.abs((first.targets == 1).sum(axis=0) - positives / 2).max() <= 1
    assert runs.select_stratified(table, 0, 0) is runs.select_stratified(table, 40, 0) is table
    with pytest.raises(InputError, match="41 images are asked for"):
        runs.select_stratified(table, 41, 0)


def test_link_subset(shared_dataset: Path, tmp_path: Path) -> None:
    def read_names(folder: Path, split: str) -> list[str]:
        return [Path(path).name for path in dataset_readers.read_dataset(folder, split=split).paths]

    def link(*numbers: int) -> Path:
        return runs.link_subset(shared_dataset, tmp_path, *numbers)

    assert link(0, 0) == link(40, 0) == shared_dataset
    few = link(10, 0)
    assert len(read_names(few, "train")) == 10
    assert read_names(few, "test") == read_names(shared_dataset, "test")
    few.rename(tmp_path / f"{few.name}.partial")  # as a command leaves it that was killed
    assert link(10, 0) == few
    assert [*tmp_path.iterdir()] == [few]
    (few / "kept").touch()
    assert link(10, 0) == few
    assert (few / "kept").exists()

    held_out = link(0, 0, 10)
    train, test = read_names(held_out, "train"), read_names(held_out, "test")
    assert len(test) == 10
    assert sorted(train + test) == sorted(read_names(shared_dataset, "train"))
    fewer = link(15, 1, 10)
    assert read_names(fewer, "test") == test
    assert len(set(read_names(fewer, "train")) & set(train)) == 15


def test_subsets_of_two_data_sets_lie_apart(shared_dataset: Path, dataset: Path, tmp_path: Path) -> None:
    assert runs.link_subset(shared_dataset, tmp_path, 10, 0) != runs.link_subset(dataset, tmp_path, 10, 0)


# ---- training and testing ----


def pretend(called: list[tuple[str, ...]]) -> Callable[..., runs.Process]:
    """In the place of run_process: writes what testing.py would, and notes the command."""

    def run(*command: str) -> runs.Process:
        called.append(command)
        folder = Path(next(word for word in command if word.startswith("--LOCAL_ROOT=")).partition("=")[2])
        (folder / "cache").mkdir(exist_ok=True)
        (folder / "model.pt").touch()
        (folder / "predictions").mkdir(exist_ok=True)
        result = {
            "metrics": {"mAP": 0.5, "f1_weighted": 0.25, "ECE": 0.125},
            "classes": {"a": {"predicted": 12}, "b": {"predicted": 3}},
            "num_images": 10,
        }
        (folder / "predictions" / "evaluate_result.json").write_text(json.dumps(result))
        return runs.Process(startup=1.0, seconds=20.0, cpu_seconds=30.0, memory=100.0)

    return run


def test_run_once_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(runs, "run_process", pretend(called))
    folder, data = tmp_path / "run", tmp_path / "data"
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "features").touch()  # of a run that was killed
    figures = runs.run_once(folder, data, ["recipe.py", "--SEED=1"])
    assert figures == {"mAP": 0.5, "f1": 0.25, "ECE": 0.125, "labels": 1.5, "seconds": 20, "cpu_seconds": 30}
    assert [command[:3] for command in called] == [
        ("training.py", "recipe.py", "--SEED=1"),
        ("testing.py", "recipe.py", "--SEED=1"),
    ]
    assert f"--CACHE_FOLDER={folder / 'cache'}" in called[0]
    assert f"--DATASET_FOLDER={data}" in called[0]
    assert sorted(path.name for path in folder.iterdir()) == ["figures.json", "predictions"]

    assert runs.run_once(folder, data, ["recipe.py", "--SEED=1"]) == figures
    assert len(called) == 2
    runs.run_once(folder, data, ["recipe.py", "--SEED=2"])
    assert len(called) == 4


def test_describe() -> None:
    assert runs.describe([0.7]) == "0.700"
    assert runs.describe([0.7, 0.71, 0.705]) == "0.705 (0.010)"
    assert runs.describe([100.0, 120.0], 0) == "110 (20)"


# ---- recipes.py ----


def test_recipes(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(runs, "run_process", pretend(called))
    folder = ["--folder", str(tmp_path)]
    recipe = "recipes/frozen_features.py --HEAD linear"
    recipes.main([str(shared_dataset), recipe, "recipes/demo.py", "--train-images", "10,40", "--seeds", "3,4", *folder])
    commands = [command for command in called if command[0] == "training.py"]
    assert len(commands) == 2 * 2 * 2
    assert commands[1][1:6] == ("recipes/frozen_features.py", "--HEAD", "linear", "--SEED=4", "--SPLIT_SEED=4")
    assert f"--DATASET_FOLDER={runs.link_subset(shared_dataset, tmp_path, 10, 4)}" in commands[1]
    assert f"--DATASET_FOLDER={shared_dataset}" in commands[2]
    assert len({command[-5] for command in commands}) == 8  # a LOCAL_ROOT each
    rows = [line for line in capsys.readouterr().out.splitlines() if "0.500 (0.000)" in line]
    assert len(rows) == 4
    assert "0.250" in rows[0]
    assert "1.50 (0.00)" in rows[0]


# ---- ablation.py ----


def read_constants() -> dict[str, object]:
    return {constant.name: constant.value for constant in overrides.list_constants(config)}


def test_variants_can_be_trained() -> None:
    """Each by itself keeps to the types and the rules of config.py."""
    namespace = config.__dict__
    before = dict(namespace)
    variants = ablation.choose_variants(read_constants())
    assert len(variants) > 20
    for changes in variants.values():
        overrides.EDITED.clear()
        overrides.apply([f"--{name}={value}" for name, value in changes.items()], config)
        assert all(getattr(config, name) == value for name, value in changes.items())
        namespace.update(before)


def test_variants_leave_out_what_the_recipe_has(fails: Fails) -> None:
    base = read_constants()
    assert base["MIXUP_ALPHA"] == 0
    assert list(ablation.choose_variants(base, ["mixup"])) == [
        ablation.BASE,
        "MIXUP_ALPHA 0.2",
        "MIXUP_ALPHA 0.8",
    ]
    base["MIXUP_ALPHA"] = 0.2
    assert list(ablation.choose_variants(base, ["mixup"]).values()) == [{}, {"MIXUP_ALPHA": 0.0}, {"MIXUP_ALPHA": 0.8}]
    base["HEAD_BASE_LR"] = 0.5
    assert list(ablation.choose_variants(base, ["head_rate"]).values())[1:] == [
        {"HEAD_BASE_LR": 0.25},
        {"HEAD_BASE_LR": 1.0},
    ]
    assert "no ingredient 'mixin' (did you mean mixup?)" in fails(ablation.main, ["nowhere", "", "--only", "mixin"])


def test_ablation(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def pretend_once(folder: Path, data: Path, arguments: list[str]) -> runs.Figures:
        called.append((folder, data, arguments))
        if "--MIXUP_ALPHA=0.8" in arguments:
            raise InputError("training.py ended with status 1: see its message above")
        seed = int(arguments[-1].partition("=")[2])
        mean_ap = 0.6 + 0.1 * seed + ("--MIXUP_ALPHA=0.2" in arguments) * (0.05 - 0.02 * seed)
        return {"mAP": mean_ap, "cpu_seconds": 100.0}

    monkeypatch.setattr(ablation, "run_once", pretend_once)
    command = [
        str(shared_dataset),
        "recipes/coco18_efficientnet_lite0.py --NUM_EPOCHS 2",
        "--only",
        "mixup",
        "--seeds",
        "0,1",
    ]
    ablation.main([*command, "--held-out", "10", "--folder", str(tmp_path)])
    assert len({folder for folder, _, _ in called}) == len(called) == 6
    assert called[2][1:] == (
        runs.link_subset(shared_dataset, tmp_path, 0, 0, 10),
        ["recipes/coco18_efficientnet_lite0.py", "--NUM_EPOCHS", "2", "--MIXUP_ALPHA=0.2", "--SEED=0"],
    )
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["the", "recipe", "0.650", "(0.100)", "100", "(0)"] in lines
    assert ["MIXUP_ALPHA", "0.2", "0.690", "(0.080)", "+0.040", "+0.030", "+0.050", "100", "(0)"] in lines
    assert ["MIXUP_ALPHA", "0.8", "2", "of", "2", "failed"] in lines


# ---- head_search.py ----


def test_head_search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"NUM_IMAGES": 60, "NUM_FEATURES": 8, "NUM_CLASSES": 2, "RATES": [1e-2], "DECAYS": (0.0, 1e-3)}
    for name, value in sizes.items():
        monkeypatch.setattr(head_search, name, value)
    head_search.main([])
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first.startswith("60 x 8, 2 classes")
    assert second.startswith("10 heads by steps")
    assert third.startswith("55 logistic regressions")
    assert last.startswith("55 by scikit-learn")


# ---- wrong labels ----


def test_as_many_labels_are_taken_away_as_are_added() -> None:
    targets = (np.random.default_rng(0).random((200, 5)) < 0.2).astype(np.int8)
    noisy, is_wrong = suspects.flip_labels(targets, 0)
    count = round(0.05 * (targets == 1).sum())
    assert (is_wrong & (targets == 1)).sum() == (is_wrong & (targets == 0)).sum() == count > 0
    np.testing.assert_array_equal(noisy, np.where(is_wrong, 1 - targets, targets))
    np.testing.assert_array_equal(noisy, suspects.flip_labels(targets, 0)[0])
    assert (noisy != suspects.flip_labels(targets, 1)[0]).any()


def test_all_labels_are_ranked_and_suspects_come_first() -> None:
    targets = (np.random.default_rng(0).random((200, 5)) < 0.3).astype(np.int8)
    probabilities = (0.2 + 0.6 * targets + np.random.default_rng(1).normal(0, 0.05, targets.shape)).clip(0, 1)
    noisy, is_wrong = suspects.flip_labels(targets, 0)
    order, num_suspect = suspects.rank_labels(probabilities, noisy)
    assert sorted(order.tolist()) == list(range(1000))
    assert is_wrong.flat[order[: is_wrong.sum()]].all()
    assert 0 < num_suspect <= is_wrong.sum()


# ---- a queue of images to label ----


def test_how_many_photographs_are_needed() -> None:
    counts = [250, 500, 750]
    assert label_queue.find_count([0.5, 0.6, 0.7], counts, 0.65) == pytest.approx(625)
    assert label_queue.find_count([0.5, 0.6, 0.7], counts, 0.6) == pytest.approx(500)
    assert label_queue.find_count([0.5, 0.7, 0.6], counts, 0.65) == pytest.approx(437.5)
    assert label_queue.find_count([0.5, 0.6, 0.7], counts, 0.71) == float("inf")


# ---- the GPU's checks ----


def test_every_stage_of_the_gpu_benchmark_holds_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but `resume`, which starts processes. Scripts run in this process, which is quicker."""

    def run_here(place: gpu.Place, script: str, constants: list[str]) -> str:
        importlib.import_module(script.removesuffix(".py")).main(list(constants))
        return capsys.readouterr().out

    monkeypatch.setattr(gpu.Place, "run", run_here)
    gpu.main(["--small", "--device=cpu", f"--folder={tmp_path}", "--without=resume"])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["stages"].keys() == gpu.STAGES.keys() - {"resume"}
    lines = {line["what"]: line for stage in report["stages"].values() for line in stage["lines"]}
    assert {line["holds"] for line in lines.values()} == {True, None}
    assert lines["a step in fp16 that is not finite"]["value"] == "0 tensors changed"
    pictures = list((tmp_path / "data" / "images").rglob("*.jpg"))
    assert len(pictures) == gpu.SMALL.images + 16


def test_a_stage_that_fails_is_told_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    def fail(place: gpu.Place) -> Iterator[gpu.Line]:
        yield gpu.Line("the first thing", "7", holds=True)
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "STAGES", {"first": fail, "second": lambda place: iter([gpu.Line("it", "9", holds=True)])})
    message = fails(gpu.main, ["--small", "--device=cpu", f"--folder={tmp_path}", "--only=first,second"])
    assert "1 did not hold: first, the stage ended" in message
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [line["value"] for line in stages["second"]["lines"]] == ["9"]
    assert stages["first"]["lines"][0] == {"what": "the first thing", "value": "7", "holds": True}
    assert "RuntimeError: no kernel image" in stages["first"]["lines"][1]["value"]
    assert "no stage third" in fails(gpu.main, ["--only=third", f"--folder={tmp_path}"])
