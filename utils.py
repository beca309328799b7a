"""Devices, processes, progress and printing for every script; nothing here knows about labels."""

from __future__ import annotations

import difflib
import glob
import importlib.util
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from other_systems import WORDS

if TYPE_CHECKING:  # torch takes seconds to import, and model_performance_table.py needs none of it
    import torch

VERSION = "1.0.0"
NEEDED = ("numpy", "PIL", "simplejpeg", "torch", "torchvision")  # packages that scripts import when they start
LEFTOVER_SECONDS = 3600  # without a change, after which a temporary file is no living process's, here or elsewhere


class InputError(ValueError):
    """Bad input: the message is the one line a person sees (what, where, what to do)."""

    def __init__(self, message: str) -> None:
        # an error of a data loading process comes back with that process's traceback before it
        super().__init__(message.rpartition("InputError: ")[2].strip())


class Stopped(Exception):
    """A signal has ended the run; the same command goes on from what was saved."""

    STATUS = 75  # EX_TEMPFAIL of sysexits.h: neither an error nor a finished run


def run_script(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main` on the command line; bad input becomes one line on stderr and exit status 1."""
    status: int | str = 0
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except InputError as error:
        status = f"error: {error}"
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in NEEDED and name not in Path(__file__).with_name("requirements.txt").read_text():
            raise
        status = f"error: {_advise_to_install([name])}"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except RuntimeError as error:
        if not _is_full_gpu(error):
            raise
        status = (
            "error: the GPU's memory is full: lower TEST_BATCH_SIZE (validation, testing, frozen features), "
            "MICRO_BATCH_SIZE (training) or IMAGE_SIZE"
        )
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        status = Stopped.STATUS
    if status:  # here the error is gone, and with it what `main` still held: loading processes end by themselves
        sys.exit(status)


def require_environment() -> None:
    """Raise InputError, which says what to run, where Python lacks packages that scripts import when they start."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(_advise_to_install(missing))


def _advise_to_install(names: list[str]) -> str:
    return (
        f"{sys.executable} lacks {', '.join(names)}: run `make setup`, then `.venv/bin/python {sys.argv[0]}`; or "
        "`pip install -r requirements.txt`"
    )


def _is_full_gpu(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def suggest(word: str, words: Iterable[str]) -> str:
    """` (did you mean X?)` with the one of `words` nearest to a misspelt one; empty where none is near.

    A word of another system gives ` (X here)`, what it is in this one.
    """
    meaning = WORDS.get(word.lower().replace("-", "_"))
    if meaning:
        return f" ({meaning} here)"
    by_upper = {candidate.upper(): candidate for candidate in words}
    near = difflib.get_close_matches(word.upper(), by_upper, n=1)
    return f" (did you mean {by_upper[near[0]]}?)" if near else ""


_log: Path | None = None
_early: list[str] | None = None  # lines from before it is known where the log is; None: there will be no log


@contextmanager
def keep_log() -> Iterator[None]:
    """What is said inside (`say`, `warn`) is also kept: in the text file `log_to` names, now or later."""
    global _log, _early
    _early = []
    try:
        yield
    finally:
        _log = _early = None


def log_to(path: Path) -> None:
    """Name the file of `keep_log`; what has been said so far is added to it, too."""
    global _log, _early
    path.parent.mkdir(parents=True, exist_ok=True)
    _log, lines = path, "".join(_early or ())
    _early = None
    _write_log(lines)


def say(text: str) -> None:
    """A line or more on stdout, and in the run's log."""
    print(text, flush=True)
    _add_to_log(text)


def warn(message: str) -> None:
    """One line on stderr about something that does not stop the run; of several processes, the first says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr, flush=True)
        _add_to_log(f"warning: {message}")


def _add_to_log(text: str) -> None:
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n"
    if _log:
        _write_log(line)
    elif _early is not None:
        _early.append(line)


def _write_log(text: str) -> None:
    assert _log
    try:
        with open(_log, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"cannot write {_log}: {error.strerror} (free some space)") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename: complete or absent.

    Raises InputError when the file cannot be written; what was at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if _is_full_gpu(error):
            raise
        raise InputError(f"cannot write {path}: {error} (free some space or choose another folder)") from error
    finally:
        with suppress(OSError):  # what keeps it from being written keeps it from being there
            temporary.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed had begun to write as `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError):  # another process removes it, too
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` in the end; an error leaves that as it was.

    Raises InputError when it cannot be written.
    """
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        new.mkdir(parents=True)
        yield new
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error} (free some space or choose another folder)") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8 in `path`, complete or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU where there is none."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"DEVICE {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


def choose_num_workers(num_workers: int | None, device: torch.device) -> int:
    """`num_workers`, or for None: none on a CPU, which the model needs itself; beside a GPU the cores, up to 12."""
    if num_workers is not None:
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if device.type == "cpu" else min(cores, 12)


def choose_precision(precision: str, device: torch.device) -> str:
    """ "off", "bf16" or "fp16": MIXED_PRECISION, or for "auto" what suits `device`.

    A GPU gets bf16 where it computes in it, else fp16. A CPU gets float32: whether bf16 is quicker depends on the
    model and the processor (benchmarks/training_step.py measures it), and a choice by the clock would not repeat.
    """
    import torch

    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def make_autocast(precision: str, device: torch.device) -> tuple[Callable[[], Any], bool]:
    """(a maker of autocast contexts, whether gradients need scaling) for "off", "bf16" or "fp16" on `device`."""
    import torch

    if precision == "off":
        return nullcontext, False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype=dtype), precision == "fp16"


def keep_freed_memory() -> None:
    """Let the process keep the memory it frees for its next use (glibc; elsewhere nothing changes).

    glibc hands large blocks back to the system at once, which clears their pages anew for the next step: up to a third
    of a training step on a CPU.
    """
    import ctypes

    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux with glibc
        return
    mmap_max, trim_threshold = -4, -1  # malloc.h
    set_option(mmap_max, 0)
    set_option(trim_threshold, -1)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; on a GPU also choose deterministic kernels."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Where Python's, numpy's, torch's and the GPU's random numbers are, in tensors and plain types."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (name, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest)}
    return state | {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where `get_random_state` was called."""
    import numpy as np
    import torch

    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def format_duration(seconds: float) -> str:
    """`75` -> `1:15`, `4000` -> `1:06:40`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Progress over `total` images: a live bar in a terminal or notebook, a line now and then in a pipe.

    Each step says how many images it was and may say more (`loss=...`); the values shown are the latest.
    """

    SECONDS_BETWEEN_LINES = 20.0

    def __init__(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as LiveProgress

        self.title, self.total, self.done, self.values = title, total, 0, ""
        self.start = self.last_line = time.perf_counter()
        console = Console()
        self.live = None
        if console.is_terminal or console.is_jupyter:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self.live = LiveProgress(*columns, console=console, transient=True)
            self.task = self.live.add_task(title, total=total, text="")

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def step(self, num_images: int, **values: float) -> None:
        self.done += num_images
        if values:
            self.values = "".join(f"  {name} {value:.4f}" for name, value in values.items())
        rate = self.done / max(self.seconds, 1e-9)
        left = format_duration((self.total - self.done) / max(rate, 1e-9))
        self.show(f"{self.done}/{self.total}{self.values}  {rate:.1f} images/s  {left} left")

    def show(self, text: str) -> None:
        """Show `text` in the live bar, or now and then as a line."""
        if self.live:
            self.live.update(self.task, completed=self.done, text=text)
        elif time.perf_counter() - self.last_line > self.SECONDS_BETWEEN_LINES and self.done < self.total:
            self.last_line = time.perf_counter()
            print(f"{self.title}  {text}", flush=True)


class Waiting:
    """Yields `batches`, and adds up in `seconds` how long each was waited for."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


def track(batches: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Yield `batches` (whose `images` say how many they are) while showing progress."""
    with Progress(title, total) as progress:
        for batch in batches:
            yield batch
            progress.step(len(batch.images))
