"""What the tests share: constants put back after each test, a small data set, the real photographs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import config
import overrides
import utils

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data"
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 210)}


@pytest.fixture(autouse=True, scope="session")
def freed_memory() -> None:
    """Hundreds of runs in one process would keep all that each of them freed."""
    utils.keep_freed_memory = lambda: None


@pytest.fixture(autouse=True)
def constants() -> Iterator[None]:
    """Overrides edit the modules config and those of the scripts: put them back after each test."""
    scripts = [sys.modules[Path(file).stem] for file in overrides.SCRIPTS if Path(file).stem in sys.modules]
    before = [(module, dict(vars(module))) for module in (config, *scripts)]
    yield
    for module, values in before:
        vars(module).clear()
        vars(module).update(values)


def write_dataset(root: Path, num_train: int = 40, num_test: int = 12) -> Path:
    """Pictures with coloured bars, one class a colour, in the layout of config.py. Some have no label."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    for split, count in (("train", num_train), ("test", num_test)):
        images, labels = root / "images" / f"{split}-resized", root / "labels" / split
        images.mkdir()
        labels.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(90, 130, (36, 48, 3), dtype=np.uint8)
            present = [label for label in range(3) if rng.random() < (0.6, 0.4, 0.3)[label]]
            for label in present:
                left = int(rng.integers(0, 36))
                pixels[:, left : left + 12] = list(COLOURS.values())[label]
            Image.fromarray(pixels).save(images / f"{split}{index:03}.jpg", quality=95)
            (labels / f"{split}{index:03}.cls").write_text("".join(f"{label}\n" for label in present))
    return root


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set that no test changes."""
    return write_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A small data set of a test's own."""
    return write_dataset(tmp_path / "set")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder with the real photographs."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"real photographs are not here: {PHOTOGRAPHS.name}/ beside the project is missing")
    return PHOTOGRAPHS


@pytest.fixture
def small_run(shared_dataset: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that takes seconds: random MobileNetV2 (its checkpoints are small), 32 pixels, 2 epochs."""
    return make_small_run(shared_dataset, tmp_path)


def make_small_run(dataset: Path, folder: Path) -> list[str]:
    values = {
        "LOCAL_ROOT": folder,
        "DATASET_FOLDER": dataset,
        "TENSORBOARD_FOLDER": folder / "runs",
        "MODEL_NAME": "mobilenet_v2",
        "IMAGE_SIZE": 32,
        "NUM_EPOCHS": 2,
        "PRETRAINED_WEIGHTS": None,
        "FREEZE_BACKBONE": False,
        "TRAIN_BATCH_SIZE": 8,
        "VAL_SPLIT": 0.25,
        "DEVICE": "cpu",
    }
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], None], list[str]], str]:
    """Run a script's main as the command line would; the one line it ends with, and status 1."""
    import utils

    def run(main: Callable[[list[str]], None], arguments: list[str]) -> str:
        monkeypatch.setattr("sys.argv", ["script.py", *arguments])
        with contextlib.suppress(Exception), pytest.raises(SystemExit) as exit_info:
            utils.run_script(main)
        message = exit_info.value.code
        assert isinstance(message, str), "a text as exit code is printed to stderr and makes status 1"
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return run
