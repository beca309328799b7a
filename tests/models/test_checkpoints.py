"""models/checkpoints.py: what is written is read back; what is not a checkpoint is refused; the old file survives."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

import config
import model_performance_table
import overrides
import utils
from dataset import json_files, whole_files
from models import checkpoints
from trainer import run_files, run_state
from utils import InputError


def make_checkpoint(**changes: Any) -> dict[str, Any]:
    return {
        "model_state": {"w": torch.arange(6.0).view(2, 3)},
        "model_name": "resnet18",
        "head": "linear_bn",
        "classes": ["a", "b"],
        "image_size": 32,
        "resize_rule": "squash",
        "best_f1": 0.5,
        "training_state": {"step": torch.tensor(3)},
        **changes,
    }


def test_round_trip_and_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.pt"
    checkpoints.save(path, make_checkpoint())
    loaded = checkpoints.load(path)
    assert torch.equal(loaded["model_state"]["w"], torch.arange(6.0).view(2, 3))
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar == {key: value for key, value in loaded.items() if key not in ("model_state", "training_state")}
    assert checkpoints.read_sidecar(path) == sidecar
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.json", "a.pt"]


def test_the_environment_names_the_projects_version(tmp_path: Path) -> None:
    environment = checkpoints.describe_environment("cpu")
    assert environment["version"] == utils.VERSION
    assert torch.__version__.startswith(environment["torch"])
    assert environment["device"] == "cpu"
    checkpoints.save(tmp_path / "a.pt", make_checkpoint(environment=environment))
    assert checkpoints.load(tmp_path / "a.pt")["environment"] == environment
    sidecar = checkpoints.read_sidecar(tmp_path / "a.pt")
    assert sidecar is not None
    assert sidecar["environment"] == environment
    row = model_performance_table.make_row({"metrics": {}, "config": {}, "dataset": {}, **sidecar}, "a.pt")
    assert row["version"] == utils.VERSION, "and not the version of the file's format"


def test_a_machine_without_git_trains_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has neither git nor a repository."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkpoints.describe_environment.__wrapped__("cpu")["git_commit"] == "unknown"


def test_a_checkpoint_from_before_the_version_opens(tmp_path: Path) -> None:
    environment = {"git_commit": "fedc", "torch": "2.14.1", "device": "cpu"}
    checkpoints.save(tmp_path / "a.pt", make_checkpoint(environment=environment))
    assert checkpoints.load(tmp_path / "a.pt")["environment"] == environment


def test_best_f1_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert checkpoints.read_best_f1(path) == -1
    checkpoints.save(path, make_checkpoint(best_f1=0.25))
    assert checkpoints.read_best_f1(path) == 0.25
    path.with_suffix(".json").write_text("{broken")
    assert checkpoints.read_best_f1(path) == 0.25, "without a sidecar the checkpoint itself is asked"


def test_only_f1_of_one_kind_is_compared(tmp_path: Path) -> None:
    """A checkpoint from before F1 was cross-fitted is asked for that F1, which it has among its metrics."""
    path, name = tmp_path / "a.pt", "f1_weighted_cross_fitted"
    checkpoints.save(path, make_checkpoint(best_f1=0.5, metrics={"f1_weighted": 0.5, name: 0.25}))
    assert checkpoints.read_best_f1(path, name) == 0.25
    assert checkpoints.read_best_f1(path, "f1_weighted") == checkpoints.read_best_f1(path) == 0.5
    checkpoints.save(path, make_checkpoint(best_f1=0.3, chosen_by=name, metrics={"f1_weighted": 0.5, name: 0.25}))
    assert checkpoints.read_best_f1(path, name) == 0.3
    checkpoints.save(path, make_checkpoint(best_f1=0.5))
    assert checkpoints.read_best_f1(path, name) == 0.5, "it has no other"


class Payload:
    """Pickles into a call that would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_executable_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(make_checkpoint(extra=Payload(tmp_path / "trace")), tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt: it holds Python objects that could run code"):
        checkpoints.load(tmp_path / "evil.pt")
    assert not (tmp_path / "trace").exists()


def test_damaged_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.pt", make_checkpoint())
    whole = (tmp_path / "a.pt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cannot load checkpoint .*cut\.pt: it is damaged or cut short"):
            checkpoints.load(tmp_path / "cut.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="is not a checkpoint of this project"):
        checkpoints.load(tmp_path / "other.pt")
    torch.save({"format": checkpoints.FORMAT, "version": 99}, tmp_path / "later.pt")
    with pytest.raises(InputError, match="version 99"):
        checkpoints.load(tmp_path / "later.pt")
    torch.save({"format": checkpoints.FORMAT, **make_checkpoint(version=torch.ones(2))}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"version tensor\(\[1\., 1\.\]\)"):
        checkpoints.load(tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"there is no checkpoint .*gone\.pt: run training\.py first"):
        checkpoints.load(tmp_path / "gone.pt")


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """torch.load itself compares no checksum: it gives other weights, without a word."""
    path = tmp_path / "a.pt"
    checkpoints.save(path, make_checkpoint())
    whole, saved = path.read_bytes(), checkpoints.load(path)
    tensor = whole.index(np.arange(6, dtype=np.float32).tobytes())
    changed = 0
    for position in [*range(tensor, tensor + 24), *range(0, len(whole), 7)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = checkpoints.load(path)
        except InputError as error:
            changed += "it is damaged" in str(error)
            continue
        assert {**loaded, "model_state": 0, "training_state": 0} == {**saved, "model_state": 0, "training_state": 0}
        assert torch.equal(loaded["model_state"]["w"], saved["model_state"]["w"]), f"byte {position} of {len(whole)}"
    assert changed > 24 + len(whole) / 7 / 3, "at least the tensor and the metadata; padding may change"
    for position in range(tensor, tensor + 24):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"^cannot load checkpoint [^\n]*a\.pt: it is damaged, '[^\n]+/data/\d'"):
            checkpoints.load(path)


def test_what_unpacks_to_more_than_the_file_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.pt", make_checkpoint())
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"^cannot load checkpoint [^\n]*b\.pt: it is packed, which no file of torch"):
        checkpoints.load(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "state",
    [
        None,
        [torch.zeros(2)],
        {5: torch.zeros(2)},
        {("a", 1): torch.zeros(2)},
        {"w": [1.0]},
        {"w": torch.zeros(2, 2).to_sparse()},
        {"w": torch.zeros(2, dtype=torch.complex64)},
        {"w": torch.empty(2, device="meta")},
    ],
    ids=["none", "list", "number as name", "tuple as name", "no tensor", "sparse", "complex", "without values"],
)
def test_weights_of_another_kind_are_one_line(state: Any, tmp_path: Path) -> None:
    torch.save({"format": checkpoints.FORMAT, "version": 1, **make_checkpoint(model_state=state)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"^[^\n]*a\.pt: model_state (is a|holds) [^\n]* expected names and [^\n]*$"):
        checkpoints.load(tmp_path / "a.pt")


def test_wrong_types_in_a_checkpoint_and_a_sidecar(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.pt", make_checkpoint(thresholds=["high", "low"]))
    with pytest.raises(InputError, match=r"a\.pt: thresholds is \['high', 'low'\], expected a list of numbers"):
        checkpoints.load(tmp_path / "a.pt")
    assert checkpoints.read_sidecar(tmp_path / "a.pt") is None


def test_the_best_f1_is_the_checkpoints_and_not_its_sidecars(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoints.save(path, make_checkpoint(best_f1=0.25))
    sidecar = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(sidecar | {"best_f1": 0.99}))
    assert checkpoints.read_best_f1(path) == 0.25
    checkpoints.save(path, make_checkpoint(best_f1=None))
    assert checkpoints.read_best_f1(path) == -1, "of an epoch without validation"


def test_the_old_checkpoint_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    checkpoints.save(path, make_checkpoint(best_f1=0.25))

    def fill(checkpoint: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(InputError, match=r"cannot write .*a\.pt: .*No space left"):
        checkpoints.save(path, make_checkpoint(best_f1=0.75))
    assert checkpoints.load(path)["best_f1"] == 0.25
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_torch_itself_reports_a_full_device(tmp_path: Path) -> None:
    """What torch.save raises on a full disk is what write_atomically turns into one line."""
    checkpoint = make_checkpoint(model_state={"w": torch.zeros(1_000_000)})
    with pytest.raises(InputError, match=r"cannot write .*a\.pt: No space left on device: free some space"):
        whole_files.write_atomically(
            tmp_path / "a.pt", lambda temporary: checkpoints.save_tensors(Path("/dev/full"), checkpoint)
        )


def test_configuration_name_follows_every_constant_that_decides() -> None:
    overrides.apply([], config)
    constants = overrides.resolved(config)
    first = run_files.name_configuration(constants, {"WEIGHT_DECAY": 0.0})
    assert first == run_files.name_configuration(constants, {"WEIGHT_DECAY": 0.0})
    assert first != run_files.name_configuration(constants, {"WEIGHT_DECAY": 0.1})
    for token in ("linear_bn", "224px", "bs32", "ep10", "lr0.001", "unfreeze4", "seed0"):
        assert token in first


def test_log_has_a_column_for_every_number(tmp_path: Path) -> None:
    run_files.write_log(tmp_path / "log.csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_f1": 0.75}])
    assert (tmp_path / "log.csv").read_text() == "epoch,loss,val_f1\n1,0.5,\n2,0.25,0.75\n"


def test_a_diary_has_a_line_of_every_run_that_ended_at_the_same_moment(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for line in range(10):
            run_files.add_to_diary(tmp_path / "runs.csv", {"finished": f"{line}", "model_name": f"{number}"})

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    names, *lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert names == "finished,model_name"
    assert sorted(lines) == [f"{line},{number}" for line in range(10) for number in range(4)]


def test_a_diary_keeps_the_columns_that_it_began_with(tmp_path: Path) -> None:
    diary = tmp_path / "runs.csv"
    run_files.add_to_diary(diary, {"model_name": "a", "device": "cpu"})
    run_files.add_to_diary(diary, {"model_name": "b", "version": "1.0.0", "device": "cuda"})
    assert diary.read_text() == "model_name,device\na,cpu\nb,cuda\n"


def test_early_stopping_counts_gains_above_the_least(tmp_path: Path) -> None:
    state = run_state.RunState()
    best = [state.note_validation(epoch, f1, 0.5, 0.1) for epoch, f1 in enumerate((0.3, 0.35, 0.39, 0.45, 0.4), 1)]
    assert best == [True, True, True, True, False]
    assert state.best_epoch == 4
    assert state.stopping_f1 == 0.45
    assert state.validations_without_gain == 1
    assert math.isclose(state.best_f1, 0.45)


def test_a_sidecar_holds_names_as_they_are(tmp_path: Path) -> None:
    content = {"classes": ["Löwe", "狮子"], "config": {"DATASET_FOLDER": "/caf\udce9"}}
    checkpoints.save_sidecar(tmp_path / "a.pt", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"Löwe",\n  "狮子"' in text
    assert json_files.read_json(tmp_path / "a.json").items() >= content.items()
