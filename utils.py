"""What every script needs: how it ends, its log, files written completely, devices, progress.

    utils.run_script(training.main)                 # bad input ends the script with one line
    with utils.Progress("epoch 1", 5000) as progress:
        progress.step(32, loss=0.3)

Nothing in this file knows about labels or models.
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from other_systems import WORDS

if TYPE_CHECKING:  # torch takes seconds to import; a mistake on the command line and the table must not wait for it
    import torch
    from rich.console import Console

VERSION = "1.0.0"
NEEDED = ("numpy", "PIL", "simplejpeg", "torch", "torchvision")  # packages that scripts import when they start
LEFTOVER_SECONDS = 3600  # a temporary file that was not changed for this time belongs to a process that was killed

# ---- how a script ends ----


class InputError(ValueError):
    """Bad input. The message is the one line that a person sees: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        # The message of an error in a data loading process begins with that process's traceback.
        super().__init__(message.rpartition("InputError: ")[2].strip())


class Stopped(Exception):
    """A signal has ended the run. The same command goes on from what was saved."""

    STATUS = 75  # EX_TEMPFAIL of sysexits.h: neither an error nor a finished run


def run_script(main: Callable[[list[str]], None]) -> None:
    """Call a script's `main` with the command line. Bad input becomes one line on stderr and exit status 1."""
    status: int | str = 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name in letters that this terminal lacks must not end the script
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the program that reads the output has ended, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except InputError as error:
        status = f"error: {make_visible(str(error))}"
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
        print(make_visible(str(stopped)), file=sys.stderr)
        status = Stopped.STATUS
    # Not within `except`: there the error keeps alive what `main` held, and loading processes do not end by themselves.
    if status:
        sys.exit(status)


def require_environment() -> None:
    """Raise InputError, which says what to run, if packages of NEEDED are not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(_advise_to_install(missing))


def _advise_to_install(names: list[str]) -> str:
    return (
        f"{sys.executable} lacks {', '.join(names)}: run `make setup`, then `.venv/bin/python {sys.argv[0]}`; or "
        "`pip install -r requirements.txt`"
    )


def _is_full_gpu(error: BaseException) -> bool:
    """Whether `error` says that the GPU's memory is full. Does not import torch: without it, it is no such error."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def suggest(word: str, words: Iterable[str]) -> str:
    """Suggest the one of `words` that is nearest to `word`, for the end of an error message.

    Returns ` (did you mean X?)`, or ` (X here)` if `word` belongs to another system and is called X in this project,
    or "" if none is near. Example: suggest("bacth_size", ["batch_size"]) is " (did you mean batch_size?)".
    """
    meaning = WORDS.get(word.lower().replace("-", "_"))
    if meaning:
        return f" ({meaning} here)"
    by_upper = {candidate.upper(): candidate for candidate in words}
    near = difflib.get_close_matches(word.upper(), by_upper, n=1)
    return f" (did you mean {by_upper[near[0]]}?)" if near else ""


# ---- what is printed, and the log of a run ----
# Names of classes and files come from anywhere. What prints one goes through `say`, `warn` or `make_console`.

# control characters, which a terminal obeys; what turns the direction of writing around it; what ends a line; and half
# a surrogate pair, which stands for a byte of a file name that is no UTF-8, and which no terminal takes
HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_log: Path | None = None
_early: list[str] | None = None  # lines that were printed before `log_to` named a file; None: no log is kept


@contextmanager
def keep_log() -> Iterator[None]:
    """Until the end of `with`, keep all lines of `say` and `warn`, for the file that `log_to` names."""
    global _log, _early
    _early = []
    try:
        yield
    finally:
        _log = _early = None


def log_to(path: Path) -> None:
    """Name the text file of `keep_log`. Lines that were printed before are added to it, too."""
    global _log, _early
    path.parent.mkdir(parents=True, exist_ok=True)
    _log, lines = path, "".join(_early or ())
    _early = None
    _write_log(lines)


def make_visible(text: str) -> str:
    r"""`text` on one line, with an escape in place of each character that would do something to a terminal.

    >>> print(make_visible("cat" + chr(27) + "[2J"))
    cat\x1b[2J
    """
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(*lines: str, stream: TextIO | None = None) -> None:
    """Print lines to `stream`, which is stdout unless it is given, and add them to the run's log.

    A line end within one of the `lines` is shown as an escape, as in a name that holds one.
    """
    if not lines:
        return
    text = "\n".join(map(make_visible, lines))
    print(text, file=stream or sys.stdout, flush=True)
    _add_to_log(text)


def warn(message: str) -> None:
    """Print one line to stderr about something that does not stop the run. Only rank 0 prints it."""
    if os.environ.get("RANK", "0") == "0":
        say(f"warning: {message}", stream=sys.stderr)


def make_console() -> Console:
    """A console of rich that shows every text as it is: no markup in brackets, control characters as escapes.

    It is as wide as the terminal (or the variable COLUMNS), and has 120 columns in a pipe.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # what rich makes of every str in a table or line
            kept = {name: options[name] for name in ("style", "justify", "overflow") if name in options}
            return Text(make_visible(text), **kept)

    follows_window = sys.stdout.isatty() and "COLUMNS" not in os.environ
    return PlainConsole(width=None if follows_window else shutil.get_terminal_size((120, 24)).columns)


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


# ---- files ----


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is complete or absent: `write(temporary)` fills a temporary file, which is then renamed.

    The temporary file lies beside `path` and is flushed to disk first. Raises InputError if the file cannot be written;
    a file that was at `path` before then stays.

        write_atomically(path, lambda temporary: torch.save(content, temporary))
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
        with suppress(OSError):  # it was renamed, or it could not be made
            temporary.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that processes left when they were killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError):  # another process was quicker to remove it
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill. At the end of `with` it replaces `folder`; after an error `folder` is unchanged.

    Raises InputError if the folder cannot be written.
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
    """Write `text` to `path` as UTF-8, completely or not at all. Raises InputError if it cannot be written."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


# ---- devices ----


def choose_device(name: str) -> torch.device:
    """The device called `name`, such as "cpu" or "cuda:1". "auto" is the first GPU, or the CPU if there is none.

    Raises InputError if the device is not available.
    """
    import torch

    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"DEVICE {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


def choose_num_workers(num_workers: int | None, device: torch.device) -> int:
    """The number of processes that load data: `num_workers`, or for None a number that suits `device`.

    Beside a GPU that is the number of cores, at most 12. On a CPU it is 0, since the model itself needs the cores.
    """
    if num_workers is not None:
        return num_workers
    if device.type == "cpu":
        return 0
    if hasattr(os, "sched_getaffinity"):  # the cores that this process may use
        return min(len(os.sched_getaffinity(0)), 12)
    return min(os.cpu_count() or 1, 12)


def choose_precision(precision: str, device: torch.device) -> str:
    """Returns "off", "bf16" or "fp16": `precision`, or for "auto" what suits `device`.

    A GPU gets bf16 if it can compute in it, otherwise fp16. A CPU gets "off", which is float32: whether bf16 is quicker
    there depends on the model and the processor (benchmarks/training_step.py measures it), and a choice by measured
    time could be another one in the next run.
    """
    import torch

    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def make_autocast(precision: str, device: torch.device) -> tuple[Callable[[], Any], bool]:
    """Returns (a function that makes autocast contexts on `device`, whether gradients need scaling).

    `precision` is "off", "bf16" or "fp16". Use: `with autocast(): logits = model(images)`.
    """
    import torch

    if precision == "off":
        return nullcontext, False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return partial(torch.autocast, device.type, dtype=dtype), precision == "fp16"


def keep_freed_memory() -> None:
    """Let the process keep memory that it frees, and use it again. Changes nothing on systems without glibc.

    glibc gives large blocks back to the system at once. The system then has to clear their pages for the next step,
    which takes up to a third of a training step on a CPU.
    """
    import ctypes

    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux with glibc
        return
    mmap_max, trim_threshold = -4, -1  # malloc.h
    set_option(mmap_max, 0)
    set_option(trim_threshold, -1)


# ---- progress ----


def format_duration(seconds: float) -> str:
    """Write a time in seconds as minutes and seconds: `75` -> `1:15`, `4000` -> `1:06:40`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Shows progress over `total` images: a live bar in a terminal or notebook, a line from time to time elsewhere.

    with Progress("testing", total=5000) as progress:
        progress.step(32, loss=0.3)     # 32 more images are done; the latest loss is shown, too
    """

    SECONDS_BETWEEN_LINES = 20.0

    def __init__(self, title: str, total: int) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as LiveProgress

        self.title, self.total, self.done, self.values = make_visible(title), total, 0, ""
        self.start = self.last_line = time.perf_counter()
        console = make_console()
        self.live = None
        if console.is_terminal or console.is_jupyter:
            title_column = TextColumn("{task.description}", markup=False)
            text_column = TextColumn("{task.fields[text]}", markup=False)
            self.live = LiveProgress(title_column, BarColumn(), text_column, console=console, transient=True)
            self.task = self.live.add_task(self.title, total=total, text="")

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def step(self, num_images: int, **values: float) -> None:
        """Count `num_images` more images, and show `values` from now on; without values the last ones stay."""
        self.done += num_images
        if values:
            self.values = "".join(f"  {name} {value:.4f}" for name, value in values.items())
        rate = self.done / max(self.seconds, 1e-9)
        left = format_duration((self.total - self.done) / max(rate, 1e-9))
        self.show(f"{self.done}/{self.total}{self.values}  {rate:.1f} images/s  {left} left")

    def show(self, text: str) -> None:
        """Show `text` in the live bar, or as a line if the last line was printed long ago."""
        if self.live:
            self.live.update(self.task, completed=self.done, text=text)
        elif time.perf_counter() - self.last_line > self.SECONDS_BETWEEN_LINES and self.done < self.total:
            self.last_line = time.perf_counter()
            print(f"{self.title}  {text}", flush=True)


class Waiting:
    """Yields `batches`, and adds up in `seconds` how long the loop waited for them."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()


def track(batches: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Yield `batches`, and show progress over the `total` images in them."""
    with Progress(title, total) as progress:
        for batch in batches:
            yield batch
            progress.step(len(batch.images))
