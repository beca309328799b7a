"""What every script needs: how it ends, what it prints, its log, its memory, progress.

    utils.run_script(training.main)                 # bad input ends the script with one line
    with utils.Progress("epoch 1", 5000) as progress:
        progress.step(32, loss=0.3)

Nothing in this file knows about labels or models.
"""

from __future__ import annotations

import difflib
import errno
import functools
import importlib.util
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from constants.other_systems import WORDS

if TYPE_CHECKING:
    from rich.console import Console

VERSION = "1.0.0"
NEEDED = ("numpy", "PIL", "simplejpeg", "torch", "torchvision")  # packages that scripts import when they start
LONGEST_ERROR = 4000  # letters of a line that says an error: names and values in it may have any length
ADDRESS_SPACE = 4e9  # bytes; torch with CUDA's libraries maps 3.6 GB when it is imported

# ---- how a script ends ----


class InputError(ValueError):
    """Bad input. The message is the one line that a person sees: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        # The message of an error in a data loading process begins with that process's traceback.
        super().__init__(message.rpartition("InputError: ")[2].strip())


class Stopped(BaseException):
    """A signal has ended the run. The same command goes on from what was saved.

    Like KeyboardInterrupt it is no Exception: a signal that comes while a file is read does not mean a damaged file.
    """

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
        text = make_visible(str(error))
        status = f"error: {text[:LONGEST_ERROR]}{'...' if len(text) > LONGEST_ERROR else ''}"
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in NEEDED and name not in Path(__file__).with_name("requirements.txt").read_text():
            raise
        status = f"error: {_advise_to_install([name])}"
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        shortage = _explain_shortage(error)
        if shortage is None:
            raise
        status = f"error: {shortage}"
    except Stopped as stopped:
        print(make_visible(str(stopped)), file=sys.stderr)
        status = Stopped.STATUS
    # Not within `except`: there the error keeps alive what `main` held, and loading processes do not end by themselves.
    if status:
        sys.exit(status)


def explain_failing_imports() -> None:
    """From now on, let an import that fails for want of memory or open files end the script with one line.

    C++ libraries may abort instead, before Python hears of it: a limit that is probably too low is said beforehand.
    """

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        shortage = _explain_shortage(error)
        if shortage is None:
            sys.__excepthook__(kind, error, traceback)
        else:
            print(f"error: {shortage}", file=sys.stderr)

    sys.excepthook = show
    with suppress(ImportError):  # Windows has no such limits
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
            warn(
                f"`ulimit -v` allows {limit / 1e9:.1f} GB of address space, of which torch alone may need "
                f"{ADDRESS_SPACE / 1e9:.0f}: where this ends without a word, raise it"
            )


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


def _explain_shortage(error: BaseException) -> str | None:
    """What there is too little of and what to do, where that is what `error` says: memory, open files, processes."""
    torch = sys.modules.get("torch")  # without it, it is no error of a GPU
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU's memory is full: lower TEST_BATCH_SIZE (validation, testing, frozen features), "
            "MICRO_BATCH_SIZE (training) or IMAGE_SIZE"
        )
    cause = find_system_error(error)
    if cause is not None and cause.errno in SHORTAGES:
        return explain(cause)
    for words, number in SHORTAGE_WORDS.items():
        if words in str(error).lower():
            return explain(OSError(number, os.strerror(number)))
    return explain(OSError(errno.ENOMEM, "the memory is full")) if isinstance(error, MemoryError) else None


def first_line(error: BaseException) -> str:
    """The first line of what `error` says; the name of its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def suggest(word: str, words: Iterable[str]) -> str:
    """Suggest the one of `words` that is nearest to `word`, for the end of an error message.

    Returns ` (did you mean X?)`, or ` (here it is X)` if `word` belongs to another system and is called X in this
    project, or "" if none is near. Example: suggest("bacth_size", ["batch_size"]) is " (did you mean batch_size?)".
    """
    meaning = WORDS.get(word.lower().replace("-", "_"))
    if meaning:
        missing = meaning.removeprefix("nothing: ")
        return f" (here it is {meaning})" if missing == meaning else f" (there is none here: {missing})"
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


@functools.lru_cache
def warn_once(message: str) -> None:
    """Print a warning the first time only, where several splits or loaders find the same."""
    warn(message)


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
        _log.parent.mkdir(parents=True, exist_ok=True)
        with open(_log, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"cannot write {_log}: {explain(error)}") from error


# ---- files ----

NO_SPACE = "free some space, or choose another folder"
NO_RIGHT = "you may not write there: choose another folder, or have its permissions changed"
NO_FOLDER = "a file lies where a folder has to be, or a folder where the file has to be: choose another name"
NO_FILES = "raise the limit (`ulimit -n 65536`), or lower NUM_WORKERS"
NO_MEMORY = "raise the limit (`ulimit -v unlimited`), end other programs, or lower NUM_WORKERS and the batch size"
ADVICE = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: "a limit (`ulimit -f`) or the file system forbids files of that size: choose another folder",
    errno.EACCES: NO_RIGHT,
    errno.EPERM: NO_RIGHT,
    errno.EROFS: "the disk can only be read: choose another folder",
    errno.ENOTDIR: NO_FOLDER,
    errno.EISDIR: NO_FOLDER,
    errno.EEXIST: NO_FOLDER,
    errno.ENAMETOOLONG: "choose a shorter name, or a folder with a shorter one",
    errno.EMFILE: NO_FILES,
    errno.ENFILE: NO_FILES,
    errno.ENOMEM: NO_MEMORY,
    errno.EAGAIN: "raise the limit of processes and threads (`ulimit -u`), end other programs, or lower NUM_WORKERS",
}
SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
SHORTAGE_WORDS = {  # in what torch and Python raise instead of an OSError
    "can't allocate memory": errno.ENOMEM,
    "cannot allocate memory": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    "too many open files": errno.EMFILE,
    "failed to map segment": errno.ENOMEM,  # of a library that is imported
    "items of ancdata": errno.EMFILE,  # a loading process sends tensors as open files
}


def explain(error: OSError) -> str:
    """What the system says, and what to do: "No space left on device: free some space, or choose another folder"."""
    text, advice = error.strerror or str(error), ADVICE.get(error.errno or 0)
    return f"{text}: {advice}" if advice else text


def find_system_error(error: BaseException | None) -> OSError | None:
    """`error`, or what it was raised for, if that is an error of the system: torch.save says only "unexpected pos"."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


# ---- memory ----


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
        self.title, self.total, self.done, self.values = make_visible(title), total, 0, ""
        self.start = self.last_line = time.perf_counter()
        console = make_console()
        self.live = None
        # the bar of a notebook is a widget; without that package rich warns, and shows nothing
        if console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets")):
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as LiveProgress

            title_column = TextColumn("{task.description}", markup=False)
            text_column = TextColumn("{task.fields[text]}", markup=False)
            self.live = LiveProgress(
                title_column,
                BarColumn(),
                text_column,
                console=console,
                transient=True,
                # A terminal's lines go above the bar. In a notebook they are no part of the widget, and Jupyter flushes
                # stdout before it displays anything: displayed by rich, they would flush and display without end.
                redirect_stdout=not console.is_jupyter,
                redirect_stderr=not console.is_jupyter,
            )
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
    """Yields `batches`, and adds up in `seconds` how long the loop waited for them, in `later_seconds` after the first.

    The first one is awaited while loading begins.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.seconds, self.later_seconds = batches, 0.0, 0.0

    def __iter__(self) -> Iterator[Any]:
        start, is_first = time.perf_counter(), True
        for batch in self.batches:
            seconds = time.perf_counter() - start
            self.seconds += seconds
            self.later_seconds += 0.0 if is_first else seconds
            is_first = False
            yield batch
            start = time.perf_counter()


def track(batches: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """Yield `batches`, and show progress over the `total` images in them."""
    with Progress(title, total) as progress:
        for batch in batches:
            yield batch
            progress.step(len(batch.images))
