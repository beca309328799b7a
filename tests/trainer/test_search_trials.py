"""trainer/search_trials.py: a run of its own process, watched, stopped, failed, read. A small script stands for it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import config
from trainer import search_trials
from trainer.run_files import RunFiles
from trainer.search_trials import Outcome, Why

STANDS_FOR_TRAINING = """
import json, os, signal, sys, time
from pathlib import Path

folder = Path({folder!r})
case = Path(sys.argv[1]).read_text()
if case == "refuses":
    print("warning: a word")
    sys.exit("error: HEAD is 'liner'")
if case == "breaks":
    raise ZeroDivisionError("of what")
if case == "dies":
    os.kill(os.getpid(), signal.SIGKILL)

def save(*_):
    (run / "last.pt").touch()
    (run / "last.json").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
run = folder / "resnet18" / "linear_0123"
run.mkdir(parents=True)
print("images are read")
print("     run  linear_0123", flush=True)
rows = ["epoch,val_f1,val_mAP"]
for epoch in range(1, 4):
    rows.append(f"{{epoch}},{{'' if epoch == 2 else epoch / 10}},{{epoch / 20}}")
    (run / "log.csv").write_text("\\n".join(rows) + "\\n")
    time.sleep(0.1)
if case == "goes on":
    time.sleep(60)
best = {{"score": 0.3, "metrics": {{"mAP": 0.15 if case != "is no number" else float("nan")}}}}
(run / "train_result.json").write_text(json.dumps({{"models": {{"best": best}}}}).replace("NaN", '"NaN"'))
dataset = {{"fingerprint": "f", "val_fingerprint": "v", "files_fingerprint": "s", "num_val": 12}}
(folder / "resnet18" / "linear_0123.json").write_text(json.dumps({{"dataset": dataset}}))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a case of the script above; what `watch` gives for each epoch, and for None, ends it."""
    folder = tmp_path / "trained"
    (tmp_path / "training.py").write_text(STANDS_FOR_TRAINING.format(folder=str(folder)))
    monkeypatch.setattr(search_trials, "TRAINING", tmp_path / "training.py")
    monkeypatch.setattr(search_trials, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(config, "TRAINED_MODELS_FOLDER", folder)

    def run(case: str, metric: str = "best_f1", stop: dict[int | None, Why] | None = None) -> tuple[Outcome, list]:
        (tmp_path / "trial.py").write_text(case)
        seen: list[tuple[int, float]] = []

        def watch(epoch: int | None, figure: float | None) -> Why | None:
            if epoch is not None and figure is not None:
                seen.append((epoch, figure))
            return (stop or {}).get(epoch) if epoch is not None or seen else None

        return search_trials.run(tmp_path / "trial.py", tmp_path / "trial.log", metric, watch), seen

    return run


@pytest.mark.parametrize(("metric", "figure"), [("best_f1", 0.3), ("mAP", 0.15)])
def test_a_run_that_ends(run, metric: str, figure: float, tmp_path: Path) -> None:
    outcome, seen = run("ends", metric)
    checkpoint = tmp_path / "trained" / "resnet18" / "linear_0123.pt"
    assert outcome == Outcome("complete", figure, run=checkpoint, dataset="f s", val_dataset="v", num_images=12)
    assert dict(seen).items() <= ({1: 0.1, 3: 0.3} if metric == "best_f1" else {1: 0.05, 2: 0.1, 3: 0.15}).items()


def test_a_run_that_is_pruned_leaves_nothing_to_go_on_with(run, tmp_path: Path) -> None:
    outcome, seen = run("goes on", stop={3: Why.PRUNED})
    assert (outcome.state, outcome.figure, outcome.reason) == ("pruned", None, "it cannot be better")
    assert seen[-1] == (3, 0.3)
    folder = tmp_path / "trained" / "resnet18" / "linear_0123"
    assert {path.name for path in folder.iterdir()} == {"log.csv", "stopped_early.txt"}
    assert "It cannot be resumed" in (folder / "stopped_early.txt").read_text()


def test_a_run_that_is_interrupted_can_go_on(run, tmp_path: Path) -> None:
    outcome, _ = run("goes on", stop={None: Why.INTERRUPTED})
    assert (outcome.state, outcome.reason) == ("interrupted", "the search ends")
    assert (tmp_path / "trained" / "resnet18" / "linear_0123" / "last.pt").exists()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("refuses", "HEAD is 'liner'"),
        ("breaks", "ZeroDivisionError: of what"),
        ("dies", "it was ended by SIGKILL: the memory may have been full"),
        ("is no number", "its mAP is no number"),
    ],
)
def test_a_run_that_fails_says_why(run, case: str, reason: str) -> None:
    assert run(case, "mAP")[0][:3] == ("failed", None, reason)


def test_the_process_ends_with_an_error_in_the_search(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a second Ctrl-C while it waits."""
    begun, start = [], search_trials.start
    monkeypatch.setattr(search_trials, "start", lambda *names: begun.append(start(*names)) or begun[0])
    monkeypatch.setattr(search_trials, "read_epochs", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("goes on")
    assert begun[0].poll() in (75, -signal.SIGTERM)


def test_results_that_cannot_be_read(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "linear_0123")
    files.folder.mkdir()
    for content in ("{", "[]", json.dumps({"models": {"best": {"score": None}}})):
        files.result.write_text(content)
        outcome = search_trials.read_result(files, "best_f1")
        assert outcome.state == "failed"
        assert "train_result.json cannot be read" in outcome.reason
