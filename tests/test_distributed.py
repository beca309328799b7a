"""Several processes, over gloo: each image once, the same steps as one process, one weight in all, a death survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import make_small_run
from launching import finish, launch_together

import distributed
import models_factory
import predictor
import utils
from dataset.loading import EpochBatches
from models import checkpoints, novelty
from utils import InputError

ROOT = Path(__file__).resolve().parents[1]
MODEL = ["--MODEL_NAME=squeezenet1_1", "--HEAD=linear", "--IMAGE_SIZE=48"]  # no BatchNorm: it looks at a share alone


# ---- shares ----


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [20, 41, 47, 50])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_make_up_the_batches_of_one_process(parts: int, num_images: int, shuffle: bool) -> None:
    def read(part: int, parts: int, first_step: int = 0) -> list[list[int]]:
        batches = EpochBatches(num_images, 10, shuffle, seed=3)
        batches.share, batches.epoch, batches.first_step = (part, parts), 7, first_step
        return list(batches)

    whole, shares = read(0, 1), [read(part, parts) for part in range(parts)]
    if not shuffle:
        assert [key for share in shares for batch in share for key in batch] == [k for batch in whole for k in batch]
        return
    assert len({len(share) for share in shares}) == 1, "all take as many steps"
    for step, batch in enumerate(zip(*shares, strict=True)):
        assert min(map(len, batch)) >= 2
        joined = sorted(key for own in batch for key in own)
        last = [key for rest in whole[step:] for key in rest] if step == len(shares[0]) - 1 else whole[step]
        assert joined == sorted(last)
    assert read(0, parts, first_step=2) == shares[0][2:]


def test_a_step_counts_the_images_of_all() -> None:
    for num_images in (40, 41, 44):
        batches = EpochBatches(num_images, 10, shuffle=True, seed=0)
        batches.share = (1, 2)
        sizes = [batches.count_images(step) for step in range(len(batches))]
        assert sum(sizes) == num_images
        assert sizes[:3] == [10, 10, 10]


def test_alone_a_process_gets_back_what_it_gives() -> None:
    rows = np.arange(6).reshape(3, 2)
    assert distributed.join(rows) is rows
    assert distributed.agree(True, False) == [True, False]
    assert distributed.collect("a") == ["a"]
    assert distributed.from_first(lambda: 3) == 3
    assert distributed.add_up(torch.ones(2)).tolist() == [1, 1]
    assert (distributed.count(), distributed.rank(), distributed.place()) == (1, 0, (0, 1))
    with distributed.start("cpu") as device:
        assert device == torch.device("cpu")


def test_processes_that_do_not_connect_wait_for_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "rendezvous", pytest.fail)
    with distributed.start("cpu", connect=False) as device:
        utils.say("of the second process")
        assert device == torch.device("cpu")
        assert (distributed.count(), distributed.rank()) == (1, 0)
    utils.say("after it")
    assert capsys.readouterr().out == "after it\n"


def pretend_torchrun(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    for name, value in {"WORLD_SIZE": 2, "RANK": local_rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_each_process_takes_its_own_gpu_before_anything_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs on a GPU before that would run on the first one, and take memory there in every process."""
    calls: list[str] = []
    pretend_torchrun(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(f"set {device}"))
    monkeypatch.setattr(torch, "empty", lambda *size, device: calls.append(str(device)))
    with distributed.start(name, connect=False) as device:
        assert device == torch.device("cuda", 1)
    assert calls == ["set 1", "cuda:1", "set cuda:1"]


def test_several_processes_take_cpus_or_gpus_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_torchrun(monkeypatch, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cpu", "auto"):
        with distributed.start(name, connect=False) as device:
            assert device == torch.device("cpu")
    for name, expected in (
        ("mps", "DEVICE is 'mps': several processes take cpu, or"),
        ("cuda", "a machine with 0 GPU"),
    ):
        with pytest.raises(InputError, match=expected), distributed.start(name, connect=False):
            pass


@pytest.mark.parametrize(
    ("device", "ending", "waits"),
    [
        ("cuda:0", None, True),
        ("cuda:0", utils.Stopped("saved"), True),
        ("cuda:0", InputError("bad"), False),
        ("cuda:0", KeyError("bad"), False),
        ("cpu", InputError("bad"), True),
    ],
)
def test_a_process_that_fails_on_a_gpu_waits_for_nobody(
    device: str, ending: BaseException | None, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL's end waits for the other processes, and these may wait for this one."""
    calls = []
    pretend_torchrun(monkeypatch, 0)
    monkeypatch.setattr(distributed, "_choose_device", lambda name: torch.device(device))
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    for name, value in {"init_process_group": None, "new_group": None, "is_initialized": True, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("waits"))
    with suppress(utils.Stopped, InputError, KeyError), distributed.start(device):
        if ending:
            raise ending
    assert calls == ["waits"] * waits


def test_what_only_the_first_process_does_may_take_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it in the group of gloo. An exchange of tensors that nobody answers ends sooner."""
    patience: dict[str, timedelta] = {}
    pretend_torchrun(monkeypatch, 1)
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, timeout, **__: patience.update({name: timeout}))
    with distributed.start("cpu"):
        pass
    assert patience["init_process_group"] <= timedelta(hours=1)
    assert timedelta(days=2) <= patience["new_group"]
    assert patience["new_group"] / timedelta(milliseconds=1) < 2**31, "C++ counts milliseconds"


# ---- training ----


def run(dataset: Path, folder: Path, count: int, *options: str, script: str = "saving_weights") -> dict[str, Any]:
    """A run of `count` processes to its end; what it left to resume from."""
    folder.mkdir()
    processes = launch_together(script, [*make_small_run(dataset, folder), *MODEL, *options], count, folder)
    assert finish(*processes) == [0] * count, [path.read_text() for path in sorted(folder.glob("*.txt"))]
    (last,) = folder.glob("trained_models/*/*/last.pt")
    return checkpoints.load(last)


FREEZING = ["--NUM_EPOCHS=3", "--UNFREEZE_BACKBONE_EPOCH=2", "--FREEZE_BACKBONE=True", "--EMA_DECAY=0.9"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for what is frozen at first."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.manual_seed(0)
    torch.save(models_factory.make_model("squeezenet1_1", 3, "linear", image_size=48).state_dict(), path)
    return path


@pytest.fixture(scope="module", params=["kept features", "anew"])
def alone(request: Any, weights: Path, shared_dataset: Path, tmp_path_factory: Any) -> tuple[list[str], dict[str, Any]]:
    """(options, what a run of one process left)."""
    options = [*FREEZING, f"--PRETRAINED_WEIGHTS={weights}", f"--FROZEN_FEATURE_VIEWS={int('kept' in request.param)}"]
    return options, run(shared_dataset, tmp_path_factory.mktemp("alone") / "run", 1, *options)


@pytest.mark.parametrize("count", [2, 3])
def test_freezing_and_unfreezing_stays_in_step_and_is_what_one_process_does(
    count: int, alone: tuple[list[str], dict[str, Any]], shared_dataset: Path, tmp_path: Path
) -> None:
    options, expected = alone
    found = run(shared_dataset, tmp_path / "run", count, *options)
    ranks = [torch.load(tmp_path / "run" / f"rank_{rank}.pt") for rank in range(count)]
    assert len(ranks[0]) == 4, "each of three epochs, and the end"
    for epoch in range(3):
        for name, value in ranks[0][epoch].items():
            assert all(torch.equal(value, rank[epoch][name]) for rank in ranks[1:]), f"{name} in epoch {epoch + 1}"
    moved = [not torch.equal(a, b) for a, b in zip(ranks[0][0].values(), ranks[0][2].values(), strict=True)]
    assert sum(moved) > 10, "the backbone trained, too"
    for name, value in expected["model_state"].items():
        torch.testing.assert_close(found["model_state"][name], value, atol=1e-6, rtol=1e-6)  # kept features: float32
    for one, two in zip(*(last["training_state"]["state"]["history"] for last in (found, expected)), strict=True):
        for name in ("train_loss", "val_loss", "val_mAP", "val_f1", "threshold"):
            assert one[name] == pytest.approx(two[name], abs=1e-6), name
    outputs = [(tmp_path / "run" / f"{rank}.txt").read_text() for rank in range(count)]
    assert f"{count} processes" in outputs[0]
    assert not any(outputs[1:]), "the first speaks for all"


def test_batchnorm_is_one_after_each_epoch(shared_dataset: Path, tmp_path: Path) -> None:
    """Each process has its own statistics within an epoch, and the first one's after it; also in parts."""
    run(shared_dataset, tmp_path / "run", 2, "--MODEL_NAME=mobilenet_v2", "--HEAD=linear_bn", "--MICRO_BATCH_SIZE=2")
    one, two = (torch.load(tmp_path / "run" / f"rank_{rank}.pt") for rank in range(2))
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


SYNCHRONISED = ["--MODEL_NAME=resnet18", "--HEAD=linear_bn", "--OPTIMIZER=sgd", "--NUM_EPOCHS=1", "--SYNC_BATCHNORM=1"]


@pytest.fixture(scope="module")
def alone_with_batchnorm(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(shared_dataset, tmp_path_factory.mktemp("batchnorm") / "run", 1, *SYNCHRONISED)


@pytest.mark.parametrize("count", [2, 3])
def test_synchronised_batchnorm_is_one_processs(
    count: int, alone_with_batchnorm: dict[str, Any], shared_dataset: Path, tmp_path: Path
) -> None:
    found = run(shared_dataset, tmp_path / "run", count, *SYNCHRONISED)
    for name, value in alone_with_batchnorm["model_state"].items():
        torch.testing.assert_close(found["model_state"][name], value, atol=1e-9, rtol=1e-6)


def test_a_death_ends_the_run_in_one_line_and_it_goes_on(shared_dataset: Path, tmp_path: Path) -> None:
    options = ["--NUM_EPOCHS=3", "--SAVE_EVERY_MINUTES=0.00001", "--AUGMENTATION=crop_flip"]
    whole = run(shared_dataset, tmp_path / "whole", 2, *options, script="training")
    folder = tmp_path / "killed"
    folder.mkdir()
    arguments = [*make_small_run(shared_dataset, folder), *MODEL, *options]
    assert finish(*launch_together("training", arguments, 2, folder, "3 0.01")) == [1, -signal.SIGKILL]
    text = (folder / "0.txt").read_text()
    assert "error: process 0 of 2 has lost contact with another" in text
    assert "Traceback" not in text
    assert finish(*launch_together("training", arguments, 2, folder)) == [0, 0], (folder / "0.txt").read_text()
    (last,) = folder.glob("trained_models/*/*/last.pt")
    resumed = checkpoints.load(last)
    assert "resumes" in (folder / "0.txt").read_text()
    for name, value in whole["model_state"].items():
        assert torch.equal(resumed["model_state"][name], value)


def test_torchrun_starts_again_after_a_death(shared_dataset: Path, tmp_path: Path) -> None:
    """`--max-restarts`: one of two processes is killed, and both go on from last.pt."""
    arguments = [*make_small_run(shared_dataset, tmp_path), *MODEL, "--NUM_EPOCHS=3", "--SAVE_EVERY_MINUTES=0.00001"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "training.py", *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and not list(tmp_path.glob("trained_models/*/*/last.pt")):
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        assert process.wait() == 0, output.read_text()
    text = output.read_text()
    assert "resumes  after epoch" in text
    assert "epoch   3" in text
    (last,) = tmp_path.glob("trained_models/*/*/last.pt")
    assert checkpoints.load(last)["training_state"]["state"]["finished"]


@pytest.mark.parametrize("batch_size", [5, 64])
def test_testing_shares_the_images_out_and_writes_what_one_process_does(
    batch_size: int, shared_dataset: Path, tmp_path: Path
) -> None:
    """Also with fewer batches than processes."""
    run(shared_dataset, tmp_path / "run", 1, "--NUM_EPOCHS=1", script="training")
    written = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        options = [f"--PREDICTIONS_FOLDER={folder}", f"--TEST_BATCH_SIZE={batch_size}", "--BOOTSTRAP_SAMPLES=20"]
        options += ["--PREDICTION_FILES=probabilities"]
        arguments = [*make_small_run(shared_dataset, tmp_path / "run"), *MODEL, *options]
        assert finish(*launch_together("testing", arguments, count, folder)) == [0] * count, (
            folder / "0.txt"
        ).read_text()
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".csv")})
        assert not list(folder.glob(".predictions_*")), "what was kept on the way is gone"
    assert written[0] == written[1] == written[2]
    assert len(written[0]) >= 4


@pytest.mark.parametrize("has_labels", [True, False])
def test_all_processes_compare_images_with_what_the_first_one_has(
    has_labels: bool, shared_dataset: Path, tmp_path: Path
) -> None:
    """On two machines, of which only the first has that file, a test comes to what it does in one process."""
    run(shared_dataset, tmp_path / "run", 1, "--NUM_EPOCHS=1", script="training")
    (checkpoint,) = tmp_path.glob("run/trained_models/*/*.pt")
    images = sorted((shared_dataset / "images" / "train-resized").iterdir())[:20]
    reference = novelty.Reference(
        features=novelty.normalise(predictor.load(checkpoint, "cpu").measure_features([*map(str, images)])),
        names=[path.name for path in images],
        distances=np.linspace(0, 0.01, len(images), dtype=np.float32),
        identity=novelty.identify(checkpoints.load(checkpoint)),
    )
    novelty.save_reference(checkpoint.with_suffix("") / novelty.REFERENCE_FILE, reference)
    written = []
    for script, count in (("testing", 1), ("reference_on_first", 2)):
        folder = tmp_path / script
        folder.mkdir()
        options = [f"--MODEL_PATH={checkpoint}", f"--PREDICTIONS_FOLDER={folder}", "--PREDICTION_FILES=records"]
        options += ["--TEST_BATCH_SIZE=5", "--BOOTSTRAP_SAMPLES=20"]
        if not has_labels:
            options.append(f"--TEST_LABELS_DIR={tmp_path / 'none'}")
        arguments = [*make_small_run(shared_dataset, tmp_path / "run"), *MODEL, *options]
        assert finish(*launch_together(script, arguments, count, folder)) == [0] * count, (folder / "0.txt").read_text()
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"})
    assert written[0] == written[1]
    assert ("evaluate_result.json" in written[0]) is has_labels
    (records,) = (json.loads(content) for name, content in written[0].items() if name.endswith("_records.json"))
    assert [len(record["nearest"]) for record in records] == [novelty.NUM_NEAREST] * 12
    assert all(0 <= record["novelty"] <= 1 for record in records)


def test_too_few_images_for_two_in_each_process(shared_dataset: Path, tmp_path: Path) -> None:
    arguments = [*make_small_run(shared_dataset, tmp_path), "--TRAIN_BATCH_SIZE=3"]
    assert finish(*launch_together("training", arguments, 2, tmp_path)) == [1, 1]
    assert "error: 3 images a step for 2 processes: each needs at least two" in (tmp_path / "0.txt").read_text()
