"""The peers of benchmarks/peers: the plain loop computes what it claims, all get the same task, the table adds up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import seed_as_the_product
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import config
import dataset_readers
import losses
import overrides
from benchmarks import runs
from benchmarks.peers import __main__ as peers
from benchmarks.peers import pace, plain
from benchmarks.peers.pace import Length, Pace
from benchmarks.peers.task import Task, load_task, make_network, make_timm_network, read_targets
from trainer import build, run_files, training_data

Fails = Callable[[Callable[[list[str]], None], list[str]], str]
SIZE = 32


@pytest.fixture
def data(shared_dataset: Path, tmp_path: Path) -> Path:
    """The drawn images, linked as the peers find them."""
    for split in ("train", "test"):
        runs.link_dataset(dataset_readers.read_dataset(shared_dataset, split=split), tmp_path / "data", split)
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


def test_plain_trains_for_minutes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen epoch, then unfrozen ones until the time is over, here in the middle of one. The clock is not real."""
    clock = iter(range(10_000))  # a second passes whenever somebody looks
    monkeypatch.setattr(plain, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    # An epoch looks 11 times: what is left, 2 around the pass, 1 in it and 5 after batches, 2 around validation.
    task = replace(task, minutes=27 / 60)
    plain.train(task)
    rows = [line.split(",") for line in task.log.read_text().splitlines()]
    assert rows == [
        ["epoch", "frozen", "seconds", "images"],
        ["1", "True", "7.0", "36"],
        ["2", "False", "7.0", "36"],
        ["3", "False", "6.0", "32"],
    ]
    plain.test(task)
    assert np.load(task.probabilities).shape == (len(task.test), 3)
    assert np.load(task.val_probabilities).shape == (len(task.val), 3)


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


@pytest.fixture
def short_task(task: Task) -> Task:
    """A task by minutes, with a tiny network of timm."""
    return replace(task, model_name="timm/test_efficientnet", minutes=7 / 60)


def test_fastai_trains_for_minutes(short_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastai", reason="fastai is not installed: pip install -r requirements-benchmarks.txt")
    from benchmarks.peers import with_fastai

    learner = with_fastai.make_vision_learner(short_task, 17)
    assert [len(batch[0]) for batch in learner.dls.train] == [8, 8]
    assert [str(path) for path in learner.dls.valid_ds.items] == short_task.val
    assert isinstance(learner.loss_func, with_fastai.fastai.BCEWithLogitsLossFlat)

    found = with_fastai.measure_pace(short_task)
    assert min(found.frozen, found.unfrozen, found.validation) > 0
    # a second an image: no time for more than the least, a frozen and an unfrozen epoch of one batch
    monkeypatch.setattr(with_fastai, "measure_pace", lambda task: Pace(unfrozen=1, validation=0, frozen=1))
    with_fastai.train(short_task)
    epochs = [line.split(",")[:2] + line.split(",")[3:] for line in short_task.log.read_text().splitlines()[1:]]
    assert epochs == [["1", "True", "8"], ["2", "False", "8"]]
    with_fastai.test(short_task)
    assert np.load(short_task.probabilities).shape == (len(short_task.test), 3)
    assert np.load(short_task.val_probabilities).shape == (len(short_task.val), 3)


def test_fastai_starts_from_the_same_weights(short_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastai", reason="fastai is not installed: pip install -r requirements-benchmarks.txt")
    from benchmarks.peers import with_fastai

    network = make_timm_network(short_task)._replace(is_pretrained=True)
    monkeypatch.setattr(with_fastai, "make_timm_network", lambda task: network)
    learner = with_fastai.make_vision_learner(short_task, 8)
    state = learner.model[0].model.state_dict()
    assert len(network.state) > 50
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state.items())


# ---- the Hugging Face Trainer ----


def test_transformers_run(short_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is missing: pip install -r requirements-benchmarks.txt")
    from benchmarks.peers import with_transformers

    network = make_timm_network(short_task)
    seed_as_the_product(short_task.seed)
    expected = make_timm_network(short_task).state
    seed_as_the_product(short_task.seed)
    model = with_transformers.make_model(short_task)
    state = model.timm_model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    logits, targets = torch.randn(4, 3), torch.tensor([[0.0, 1, 1]] * 4)
    loss = model.loss_function(targets, logits, model.config)
    torch.testing.assert_close(loss, losses.LOSSES["bce_with_logits"]()(logits, targets).mean())

    grey = Image.new("RGB", (48, 36), (90, 120, 150))
    processor = with_transformers.make_processor(short_task)
    for transform in (processor.val_transforms, processor.train_transforms):
        assert transform(grey).shape == (3, SIZE, SIZE)
    colour = (torch.tensor([90, 120, 150]) / 255 - torch.tensor(network.mean)) / torch.tensor(network.std)
    torch.testing.assert_close(processor.val_transforms(grey)[:, 5, 7], colour)

    found = with_transformers.measure_pace(short_task)
    assert min(found.unfrozen, found.validation) > 0
    monkeypatch.setattr(with_transformers, "measure_pace", lambda task: Pace(unfrozen=1, validation=0))
    with_transformers.train(short_task)
    (row,) = short_task.log.read_text().splitlines()[1:]
    assert row.split(",")[:2] + row.split(",")[3:] == ["1", "False", "8"]  # no time for more than a step
    with_transformers.test(short_task)
    trained = with_transformers.transformers.TimmWrapperForImageClassification.from_pretrained(short_task.checkpoint)
    pixels = torch.stack([processor.val_transforms(Image.open(path).convert("RGB")) for path in short_task.test])
    with torch.no_grad():
        probabilities = trained.timm_model.eval()(pixels).sigmoid().numpy()
    np.testing.assert_allclose(np.load(short_task.probabilities), probabilities, atol=1e-5)
    assert np.load(short_task.val_probabilities).shape == (len(short_task.val), 3)


# ---- so many minutes ----


def test_epochs_in_a_time() -> None:
    found = Pace(unfrozen=0.1, validation=0.05, frozen=0.04)
    # an epoch of 1,000 images and 100 to validate on: 100 + 5 s
    assert pace.count_epochs(210, found, 1000, 100) == pytest.approx(2)
    assert pace.count_epochs(52.5, found, 1000, 100) == pytest.approx(0.5)
    # a frozen epoch of 40 + 5 s and two unfrozen ones fill 255 s exactly
    assert pace.plan_fine_tuning(255, found, 1000, 100, 32) == Length(2, 1000)
    # in 200 s there are as many, all shorter: 3 validations of 5 s leave 185 s for what takes 240
    assert pace.plan_fine_tuning(200, found, 1000, 100, 32) == Length(2, round(1000 * 185 / 240))
    # less than an epoch of each: both are shorter
    assert pace.plan_fine_tuning(80, found, 1000, 100, 32) == Length(1, 500)
    assert pace.plan_fine_tuning(1, found, 1000, 100, 32) == Length(1, 32)


def test_ours_trains_its_recipe_on_the_same_images(task: Task, data: Path) -> None:
    task = replace(task, minutes=5)
    more = ["--NUM_EPOCHS", "7", "--MODEL_NAME", "resnet50"]
    before = config.HEAD_BASE_LR, config.CROP_SCALE_MIN
    overrides.apply(peers.make_constants(task, data, more), config)
    ours = training_data.read_data()
    assert (ours.train.paths, ours.val.paths) == (task.train, task.val)
    assert (config.NUM_EPOCHS, config.MODEL_NAME, config.SEED) == (7, "resnet50", 3)
    assert before == (config.HEAD_BASE_LR, config.CROP_SCALE_MIN)
    assert Path(task.folder) == config.LOCAL_ROOT


def test_measure_minutes(task: Task, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold is fitted on the validation images; ours brings its F1 and a file of probabilities."""
    rng = np.random.default_rng(0)
    test = dataset_readers.read_dataset(data, split="test")
    probabilities = rng.random(test.targets.shape).astype(np.float32)
    val_targets = np.array([read_targets(path, 3) for path in task.val])
    folder = Path(task.folder)

    def pretend(name: str, *_: object) -> tuple[runs.Process, runs.Process]:
        epochs = [{"epoch": 1, "frozen": True, "seconds": 4.0}, {"epoch": 2, "frozen": False, "seconds": 6.0}]
        if name == "ours":
            (folder / "predictions").mkdir()
            lines = [[path, *map(str, row)] for path, row in zip(test.paths, probabilities.tolist(), strict=True)]
            text = "\n".join(map(",".join, [["image_path", *test.classes], *lines]))
            (folder / "predictions" / "predictions_x_probabilities.csv").write_text(text)
            result = {"mAP": 0.0, "f1_weighted": 0.75, "ECE": 0.0}
            result = {"metrics": result, "classes": {}, "num_images": len(test)}
            (folder / "predictions" / "evaluate_result.json").write_text(json.dumps(result))
        else:
            np.save(task.probabilities, probabilities)
            np.save(task.val_probabilities, np.where(val_targets == 1, 0.3, 0.1).astype(np.float32))
            epochs = [row | {"images": images} for row, images in zip(epochs, (36, 9), strict=True)]
        run_files.write_log(task.log, epochs)
        return runs.Process(1.0, 20.0, 30.0, 0.0), runs.Process(1.0, 2.0, 3.0, 0.0)

    monkeypatch.setattr(peers, "train_and_test", pretend)
    plain_figures, ours = (peers.measure_minutes(name, task, data, []) for name in ("plain", "ours"))
    assert [*plain_figures] == [*ours] == [*peers.MINUTES_TITLES]
    for figures in (plain_figures, ours):
        expected = average_precision_score(test.targets, probabilities, average="macro")
        assert figures["mAP"] == pytest.approx(expected, abs=1e-6)
        at_half = f1_score(test.targets, probabilities >= 0.5, average="weighted")
        assert figures["f1_at_half"] == pytest.approx(at_half)
        assert (figures["training"], figures["cpu_seconds"]) == (20, 30)
    assert plain_figures["f1"] == pytest.approx(f1_score(test.targets, probabilities >= 0.2, average="weighted"))
    assert ours["f1"] == 0.75
    assert (plain_figures["images_per_second"], plain_figures["epochs"]) == (4.5, 1.25)
    assert (ours["images_per_second"], ours["epochs"]) == (7.2, 2)


def test_rows_of_minutes_compare_with_ours() -> None:
    results = {
        "plain": [{"mAP": 0.5, "training": 300.0}],
        "ours": [{"mAP": 0.75, "training": 150.0}],
    }
    assert peers.make_rows(results, peers.MINUTES_TITLES, "ours") == [
        ["test mAP", "0.500 (-0.250)", "0.750"],
        ["training in all, s", "300.0 (0.50x)", "150.0"],
    ]


# ---- the same for all ----


def test_task_survives_its_file(task: Task) -> None:
    assert load_task(str(task.save())) == task


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
    assert "no frozen epochs" in fails(peers.main, [folder, "--only", "transformers,plain"])
    assert "say what ours trains" in fails(peers.main, [folder, "--only", "plain,ours", "--minutes", "5"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install -r requirements-benchmarks.txt" in fails(peers.main, [folder])
