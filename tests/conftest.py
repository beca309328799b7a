"""What the tests share: constants put back after each test, a small data set, the real photographs, random seeds.

TEST_SEED_SHIFT=1 make test    the same tests on other random data: 1 is added to every seed that a file in tests/ gives
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import config
import overrides
import utils

if TYPE_CHECKING:
    from browsers import Browser

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data"
NO_PHOTOGRAPHS = f"there is no folder {PHOTOGRAPHS.parent.name}/{PHOTOGRAPHS.name} beside the project"
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 210)}


SEED_SHIFT = int(os.environ.get("TEST_SEED_SHIFT", "0"))


def shift(seed: Any) -> Any:
    """`seed` (a number, text, or list of numbers) plus SEED_SHIFT, where the caller's caller is a file in tests/."""
    if seed is None or not Path(sys._getframe(2).f_code.co_filename).is_relative_to(Path(__file__).parent):
        return seed
    if isinstance(seed, str):
        return f"{seed} {SEED_SHIFT}"
    return [*seed, SEED_SHIFT] if isinstance(seed, list) else seed + SEED_SHIFT


def shift_seeds() -> None:
    """Make what takes a seed add SEED_SHIFT to it. Seeds that the product gives stay as they are."""
    default_rng, manual_seed = np.random.default_rng, torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(shift(seed))

    class Random(random.Random):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(shift(seed))

    np.random.default_rng = lambda seed=None: default_rng(shift(seed))
    torch.manual_seed = lambda seed: manual_seed(shift(seed))
    torch.Generator, random.Random = Generator, Random  # pyright: ignore[reportAttributeAccessIssue]


def make_products_rng(seed: int) -> np.random.Generator:
    """What the product draws from: for a test that repeats its draws, so without SEED_SHIFT."""
    return np.random.Generator(np.random.PCG64(seed))


def seed_as_the_product(seed: int) -> None:
    """Seed torch as the product does with `seed`: for a test that repeats what it draws, so without SEED_SHIFT."""
    torch.default_generator.manual_seed(seed)


if SEED_SHIFT:
    shift_seeds()


def keep_instruction_sets_from_openvino() -> None:
    """Let ONEDNN_MAX_CPU_ISA, if it is set, hold for PyTorch alone: OpenVINO reads it, too, and crashes under it.

    Its own choice of kernels does not follow the variable: "MVN node bad combination", or a segmentation fault
    (2026.4 with SSE41). It reads it once, when the first model is compiled.
    """
    kept = os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    if kept is None or importlib.util.find_spec("openvino") is None:
        return
    openvino: Any = importlib.import_module("openvino")
    values = openvino.opset13.parameter([2, 2], np.float32)
    model = openvino.Model([openvino.opset13.matmul(values, values, False, False)], [values])
    openvino.compile_model(model, "CPU")
    os.environ["ONEDNN_MAX_CPU_ISA"] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    keep_instruction_sets_from_openvino()
    os.environ.pop("COLUMNS", None)  # tables are as wide as in a pipe, whatever terminal the tests run in
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(SEED_SHIFT)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a seed does not depend on the tests before it."""
    random.seed(SEED_SHIFT)
    np.random.seed(SEED_SHIFT)
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much was not tested where the photographs are missing."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if count := sum(NO_PHOTOGRAPHS in reason for reason in reasons):
        terminalreporter.write_line(f"{count} tests were skipped for want of photographs: {NO_PHOTOGRAPHS}")


@pytest.fixture(autouse=True, scope="session")
def freed_memory() -> None:
    """Hundreds of runs in one process would keep all that each of them freed."""
    utils.keep_freed_memory = lambda: None


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are no quicker on several, and much slower where other processes hold a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def keep_constants() -> Iterator[None]:
    """Overrides edit the modules config and those of the scripts: put them back afterwards."""
    scripts = [sys.modules[Path(file).stem] for file in overrides.SCRIPTS if Path(file).stem in sys.modules]
    before = [(module, dict(vars(module))) for module in (config, *scripts)]
    yield
    overrides.EDITED.clear()
    for module, values in before:
        vars(module).clear()
        vars(module).update(values)


@pytest.fixture(autouse=True, scope="module")
def constants_of_module() -> Iterator[None]:
    """Fixtures of a module run scripts, too, before the first test's `constants` sees what was there."""
    with keep_constants():
        yield


@pytest.fixture(autouse=True)
def constants() -> Iterator[None]:
    with keep_constants():
        yield


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
        pytest.skip(NO_PHOTOGRAPHS)
    return PHOTOGRAPHS


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One page of a headless Chromium."""
    from browsers import BROWSERS, Browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is installed")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


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
        "SEED": SEED_SHIFT,
        "SPLIT_SEED": SEED_SHIFT,
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
