"""The peers of benchmarks/peers: the plain loop computes what it claims, all get the same task, the table adds up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import seed_as_the_product
from PIL import Image
from sklearn.metrics import average_precision_score

import config
import dataset_readers
import losses
import overrides
from benchmarks.peers import __main__ as peers
from benchmarks.peers import plain
from benchmarks.peers.task import Task, load_task, make_network, read_targets
from trainer import build, run_files, training_data
from utils import InputError

Fails = Callable[[Callable[[list[str]], None], list[str]], str]
SIZE = 32


@pytest.fixture
def data(shared_dataset: Path, tmp_path: Path) -> Path:
    """The drawn images, linked as the peers find them."""
    for split in ("train", "test"):
        peers.link_dataset(dataset_readers.read_dataset(shared_dataset, split=split), tmp_path / "data", split)
    return tmp_path / "data"


@pytest.fixture
def task(data: Path, tmp_path: Path) -> Task:
    """A task of seconds: a random MobileNetV2."""
    (tmp_path / "run").mkdir()
    task = peers.make_task(data, tmp_path / "run", seed=3, frozen_epochs=1, unfrozen_epochs=1)
    return replace(task, weights=None, model_name="mobilenet_v2", image_size=SIZE, batch_size=8)


def read_pixels(path: str, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """An image squashed and normalised, written out."""
    image = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()


def make_initial_network(task: Task) -> torch.nn.Sequential:
    seed_as_the_product(task.seed)
    return make_network(task)[0]


# ---- the plain loop ----


def test_plain_images_and_targets(task: Task, data: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = plain.LabelledImages(task.train, 3, plain.make_eval_transform(task, mean, std))
    table = dataset_readers.read_dataset(data, split="train")
    expected = dict(zip(table.paths, table.targets.tolist(), strict=True))
    assert images.targets.tolist() == [expected[path] for path in task.train]
    pixels, targets = images[5]
    torch.testing.assert_close(pixels, read_pixels(task.train[5], mean, std), rtol=0, atol=1e-5)
    assert targets.tolist() == expected[task.train[5]]


def test_plain_training_images_are_crops(task: Task) -> None:
    transform = plain.make_train_transform(task, (0.0,) * 3, (1.0,) * 3)
    left_to_right = Image.fromarray(np.tile(np.arange(0, 200, 4, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    torch.manual_seed(0)
    crops = [transform(left_to_right)[0] * 255 for _ in range(40)]
    assert {crop.shape for crop in crops} == {(SIZE, SIZE)}
    rising = [bool(crop[0, -1] > crop[0, 0]) for crop in crops]
    assert 5 < sum(rising) < 35  # mirrored or not
    # a part of the image, seldom all of it, and never less than half of its area (4/3 is the narrowest shape)
    spans = [float((crop[0, -1] - crop[0, 0]).abs()) / 196 for crop in crops]
    assert min(spans) > 0.4
    assert min(spans) < 0.8


def test_plain_pos_weight() -> None:
    targets = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    targets[:, 2] = 0
    torch.testing.assert_close(plain.count_pos_weight(targets), losses.count_pos_weight(targets))


def test_plain_threshold_is_the_best_of_99() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 4)) < (0.1, 0.3, 0.5, 0.0)).astype(int)
    probabilities = np.clip(rng.normal(0.3 + 0.3 * targets, 0.2), 0, 1)

    def weighted_f1(threshold: float) -> float:
        predicted = probabilities >= threshold
        hits = (predicted & (targets == 1)).sum(axis=0)
        f1 = 2 * hits / np.maximum(predicted.sum(axis=0) + targets.sum(axis=0), 1)
        return float((f1 * targets.sum(axis=0)).sum() / targets.sum())

    threshold, f1 = plain.find_threshold(probabilities, targets)
    scores = [weighted_f1(i / 100) for i in range(1, 100)]
    assert f1 == pytest.approx(max(scores))
    assert threshold == (1 + int(np.argmax(scores))) / 100


def test_plain_frozen_epoch_moves_only_the_head_and_the_statistics(task: Task) -> None:
    task = replace(task, unfrozen_epochs=0)
    plain.train(task)
    before, after = make_initial_network(task), torch.load(task.checkpoint)["model"]
    names = {name for name, _ in before.named_parameters()}
    changed = {name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after[name])}
    assert {name for name in changed & names if name.startswith("0.")} == set()
    assert "1.linear.weight" in changed
    statistics = {name for name in after if name.startswith("0.") and name.endswith("running_mean")}
    assert statistics
    assert statistics <= changed


def test_plain_run_and_predictions(task: Task) -> None:
    plain.train(task)
    saved = torch.load(task.checkpoint)
    assert [line.split(",")[:2] for line in task.log.read_text().splitlines()] == [
        ["epoch", "frozen"],
        ["1", "True"],
        ["2", "False"],
    ]
    unfrozen = replace(task, frozen_epochs=0)
    plain.train(unfrozen)
    before, after = make_initial_network(task).state_dict(), torch.load(task.checkpoint)["model"]
    assert not torch.equal(before["0.features.0.0.weight"], after["0.features.0.0.weight"])

    torch.save(saved, task.checkpoint)
    plain.test(task)
    model, mean, std = make_network(task)
    model.load_state_dict(saved["model"])
    with torch.no_grad():
        expected = model.eval()(torch.stack([read_pixels(path, mean, std) for path in task.test])).sigmoid().numpy()
    probabilities = np.load(task.probabilities)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    predictions = json.loads((Path(task.folder) / "predictions.json").read_text())
    chosen = probabilities >= saved["threshold"]
    assert predictions == {Path(p).stem: np.flatnonzero(row).tolist() for p, row in zip(task.test, chosen, strict=True)}


# ---- fastai ----


def test_fastai_run(task: Task) -> None:
    pytest.importorskip("fastai", reason="fastai is not installed: pip install -r requirements-benchmarks.txt")
    from benchmarks.peers import with_fastai

    learner = with_fastai.make_learner(task, with_fastai.Timer())
    for images, paths in ((learner.dls.train_ds, task.train), (learner.dls.valid_ds, task.val)):
        assert [str(path) for path in images.items] == paths
        assert [images[i][1].tolist() for i in range(len(paths))] == [read_targets(path, 3) for path in paths]

    with_fastai.train(task)
    epochs = [line.split(",")[:2] for line in task.log.read_text().splitlines()[1:]]
    assert epochs == [["1", "True"], ["2", "False"]]
    with_fastai.test(task)
    probabilities = np.load(task.probabilities)
    assert probabilities.shape == (len(task.test), 3)
    with_fastai.test(replace(task, test=task.test[::-1]))
    np.testing.assert_allclose(np.load(task.probabilities), probabilities[::-1], atol=1e-5)

    frozen = replace(task, unfrozen_epochs=0)
    with_fastai.train(frozen)
    after = with_fastai.fastai.load_learner(frozen.checkpoint).model.state_dict()
    seed_as_the_product(task.seed)
    before = make_network(task)[0].state_dict()
    assert torch.equal(before["0.features.0.0.weight"], after["0.features.0.0.weight"])
    assert not torch.equal(before["1.linear.weight"], after["1.linear.weight"])


# ---- the same for all ----


def test_task_survives_its_file(task: Task) -> None:
    assert load_task(str(task.save())) == task


def test_linked_data_set_is_the_same(shared_dataset: Path, data: Path) -> None:
    for split in ("train", "test"):
        original = dataset_readers.read_dataset(shared_dataset, split=split)
        linked = dataset_readers.read_dataset(data, split=split)
        assert linked.fingerprint() == original.fingerprint()
        assert Path(linked.paths[3]).read_bytes() == Path(original.paths[3]).read_bytes()


def test_select_evenly(shared_dataset: Path) -> None:
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    assert peers.select_evenly(table, 4).paths == [table.paths[i] for i in (0, 13, 26, 39)]
    assert peers.select_evenly(table, 0).paths == table.paths
    with pytest.raises(InputError, match="41 images are asked for but the data set has 40"):
        peers.select_evenly(table, 41)


def test_ours_trains_the_same_task(task: Task, data: Path) -> None:
    overrides.apply(peers.make_constants(replace(task, weights="default"), data, []), config)
    ours = training_data.read_data()
    assert (ours.train.paths, ours.val.paths) == (task.train, task.val)
    assert [build.is_frozen(epoch) for epoch in range(1, config.NUM_EPOCHS + 1)] == [True, False]
    assert (config.BACKBONE_BASE_LR, config.HEAD_BASE_LR, config.SEED) == (1e-4, 1e-3, 3)
    assert config.TRAINED_MODELS_FOLDER.is_relative_to(task.folder)


def test_constants_of_ours_come_last_but_for_folders(task: Task, data: Path) -> None:
    more = ["--NUM_EPOCHS", "7", "--LOCAL_ROOT", "elsewhere"]
    overrides.apply(peers.make_constants(task, data, ["--FREEZE_BACKBONE_AT_START=False", *more]), config)
    assert config.NUM_EPOCHS == 7
    assert Path(task.folder) == config.LOCAL_ROOT


# ---- measuring and printing ----


def test_measure_runs_plain_and_ours(task: Task, data: Path) -> None:
    task = replace(task, frozen_epochs=0)  # ours refuses to freeze a random backbone
    table = dataset_readers.read_dataset(data, split="test")
    for name in ("plain", "ours"):
        folder = Path(task.folder) / name
        folder.mkdir()
        own = replace(task, folder=str(folder))
        figures = peers.measure(name, own, data, [])
        assert set(figures) == set(peers.TITLES) - {"frozen_epoch"}
        assert figures["unfrozen_epoch"] + figures["startup"] < figures["training"]
        if name == "plain":
            expected = average_precision_score(table.targets, np.load(own.probabilities), average="macro")
            assert figures["mAP"] == pytest.approx(expected)
        else:
            assert 0 < figures["mAP"] <= 1


def test_failing_process_is_named() -> None:
    with pytest.raises(InputError, match=r"^timeit ended with status 2"):
        peers.run_process("-m", "timeit", "--no-such-option")


def test_average_epochs(tmp_path: Path) -> None:
    epochs = [(1, True, 8.0), (2, True, 1.0), (3, False, 4.0)]
    history = [{"epoch": epoch, "frozen": frozen, "seconds": seconds} for epoch, frozen, seconds in epochs]
    run_files.write_log(tmp_path / "log.csv", history)
    assert peers.average_epochs(tmp_path / "log.csv") == {"frozen_epoch": 4.5, "unfrozen_epoch": 4.0}
    run_files.write_log(tmp_path / "log.csv", history[2:])
    assert peers.average_epochs(tmp_path / "log.csv") == {"unfrozen_epoch": 4.0}


def test_rows_compare_within_a_turn() -> None:
    results = {
        "ours": [{"training": 1.0, "mAP": 0.5}, {"training": 2.0, "mAP": 0.75}, {"training": 4.0, "mAP": 0.5}],
        "plain": [{"training": 4.0, "mAP": 0.25}, {"training": 6.0, "mAP": 0.625}, {"training": 10.0, "mAP": 0.5}],
    }
    assert peers.make_rows(results) == [
        ["training in all, s", "2.0 (3.00x)", "6.0"],  # of 4, 3 and 2.5; the ratio of medians would be the same 3
        ["test mAP", "0.500 (+0.125)", "0.500"],  # of +0.25, +0.125 and 0, where the medians do not differ
    ]
    assert peers.make_rows({"ours": results["ours"]}) == [["training in all, s", "2.0"], ["test mAP", "0.500"]]


def test_wrong_arguments(fails: Fails, shared_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(shared_dataset)
    assert "no peer 'plane' (did you mean plain?)" in fails(peers.main, [folder, "--only", "plane,ours"])
    assert "nothing to measure" in fails(peers.main, [folder, "--only", "plain", "--rounds", "0"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install -r requirements-benchmarks.txt" in fails(peers.main, [folder])
