"""utils.py: one-line errors, what is printed, progress in a pipe."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import io
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import utils
from utils import InputError, keep_freed_memory  # the tests replace it in utils


def test_durations_read_as_clocks() -> None:
    assert [utils.format_duration(seconds) for seconds in (0, 75, 3599.6, 4000)] == [
        "0:00",
        "1:15",
        "1:00:00",
        "1:06:40",
    ]


def test_bad_input_ends_a_script_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(arguments: list[str]) -> None:
        assert arguments == ["--A", "1"]
        raise InputError("no images in here")

    monkeypatch.setattr("sys.argv", ["script.py", "--A", "1"])
    with pytest.raises(SystemExit) as exit_info:
        utils.run_script(main)
    assert exit_info.value.code == "error: no images in here"


def test_a_long_error_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as error:
        utils.run_script(lambda _: raise_input_error("a" * 10_000))
    assert error.value.code == f"error: {'a' * utils.LONGEST_ERROR}..."


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(ZeroDivisionError):
        utils.run_script(lambda _: print(1 // 0))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: the memory is full: raise the limit (`ulimit -v"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "error: Cannot allocate memory: raise the limit (`ulimit -v"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: Cannot allocate memory: raise"),
        (
            RuntimeError("can't start new thread"),
            "error: Resource temporarily unavailable: raise the limit of processes",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files: raise the limit (`ulimit -n"),
        (OSError("Caught OSError in DataLoader worker\n[Errno 24] Too many open files"), "error: Too many open files:"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "error: Cannot allocate memory: raise"),
        (RuntimeError("received 0 items of ancdata"), "error: Too many open files: raise the limit"),
    ],
)
def test_what_there_is_too_little_of_is_one_line(error: Exception, line: str, fails: Any) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert fails(main, []).startswith(line)


def test_the_log_has_what_was_said_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "run" / "train.log"
    utils.warn("before")
    with suppress(KeyError), utils.keep_log():
        utils.say("early")
        utils.log_to(log)
        utils.warn("late")
        raise KeyError  # an error ends it, too
    utils.say("after")
    assert [line.split("  ", 1)[1] for line in log.read_text().splitlines()] == ["early", "warning: late"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J red", "\\x1b[2J red"), ("\x9b31m", "\\x9b31m"), ("\x1b]8;;http://x\x07", "\\x1b]8;;http://x\\x07"),
        ("over\rwritten", "over\\rwritten"), ("two\nlines", "two\\nlines"), ("back\bspace", "back\\x08space"),
        ("a\tb\0", "a\\tb\\x00"), ("\u202egnp.exe", "\\u202egnp.exe"), ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("a\u2028b", "a\\u2028b"), ("caf\udce9", "caf\\udce9"), ("\x7f\x85", "\\x7f\\x85"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert utils.make_visible(text) == shown
    utils.say("a line", text)
    utils.warn(text)
    utils.say(text, stream=sys.stderr)
    utils.make_console().print(text)
    out, err = capsys.readouterr()
    assert out == f"a line\n{shown}\n{shown}\n"
    assert err == f"warning: {shown}\n{shown}\n"
    with pytest.raises(SystemExit) as exit_info:
        utils.run_script(lambda _: raise_input_error(f"{text}."))
    assert exit_info.value.code == f"error: {shown}."


def raise_input_error(text: str) -> None:
    raise InputError(text)


@pytest.mark.parametrize("text", ["naïve café", "犬", "👩‍👩‍👧 family", "שלום‎", "नमस्ते", "O'Neil & \\ [x] $", "ﬁ…–±"])
def test_what_people_write_stays_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert utils.make_visible(text) == text
    utils.make_console().print(text)
    utils.say(text)
    assert capsys.readouterr().out == f"{text}\n{text}\n"


def test_nothing_to_say_is_no_empty_line(capsys: pytest.CaptureFixture[str]) -> None:
    utils.say()
    utils.say("")
    assert capsys.readouterr().out == "\n"


def test_a_terminal_that_lacks_a_letter_does_not_end_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    utils.run_script(lambda _: utils.say("caf\u00e9 – 犬"))
    assert stream.buffer.getvalue() == b"caf\\xe9 \\u2013 \\u72ac\n"  # pyright: ignore[reportAttributeAccessIssue]


def test_rich_reads_no_markup_in_names(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Group
    from rich.table import Table

    names = ["cat [indoor]", "[/red] dog", "[bold]x[/bold]", ":smile:", "two\nlines", "[link=http://x]y[/link]"]
    grid = Table(*names, title="title [red]", caption="[/] caption", title_style="bold")
    grid.add_row(*names)
    utils.make_console().print(Group(grid, "after [red]"), "[/red] too")
    out = capsys.readouterr().out
    for name in names:
        assert out.count(name.replace("\n", "\\n")) == 2, name
    assert "title [red]" in out
    assert "[/] caption" in out
    assert out.endswith("after [red]\n[/red] too\n")


@pytest.mark.parametrize(("columns", "width"), [("40", 40), ("0", 120), ("", 120), ("no", 120)])
def test_a_console_in_a_pipe_is_as_wide_as_columns_says(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())  # no terminal, also where the tests are run in one
    console = utils.make_console()
    assert console.width == width
    console.print("x" * 120)
    assert capsys.readouterr().out.count("x") == 120


def test_the_title_of_a_live_bar_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with utils.Progress("[/red] a\x1b[2Jb [x]", 10) as progress:
        assert progress.live
        progress.step(3)
        progress.show("[/blue] done")
    assert "[/red] a\\x1b[2Jb [x]" in stream.getvalue()
    assert "[/blue] done" in stream.getvalue()


def test_progress_in_a_pipe_prints_lines_without_control_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(utils.Progress, "SECONDS_BETWEEN_LINES", 0.0)
    with utils.Progress("epoch 1", 4) as progress:
        progress.step(2, loss=0.5)
        progress.step(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, "the last step needs no line: what comes after says it"
    assert lines[0].startswith("epoch 1  2/4  loss 0.5000  ")
    assert "images/s" in lines[0]
    assert "left" in lines[0]
    assert "\x1b" not in lines[0]


def test_progress_in_a_pipe_is_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    with utils.Progress("epoch 1", 1000) as progress:
        for _ in range(999):
            progress.step(1)
    assert capsys.readouterr().out == ""
    assert progress.done == 999
    assert 0 < progress.seconds < time.perf_counter()


@pytest.mark.parametrize("has_widgets", [True, False])
def test_lines_are_printed_under_the_bar_of_a_notebook(
    has_widgets: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jupyter flushes stdout before it displays anything."""
    shown: list[Any] = []

    def display(*things: Any) -> None:
        sys.stdout.flush()
        shown.extend(things)

    class Output:
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...
        def clear_output(self, wait: bool) -> None: ...
        def close(self) -> None: ...

    jupyter, pictures, widgets = (ModuleType(name) for name in ("IPython", "IPython.display", "ipywidgets"))
    vars(pictures)["display"], vars(widgets)["Output"] = display, Output
    widgets.__spec__ = importlib.util.spec_from_loader("ipywidgets", loader=None)
    monkeypatch.setitem(sys.modules, "IPython", jupyter)
    monkeypatch.setitem(sys.modules, "IPython.display", pictures)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets if has_widgets else None)
    monkeypatch.setattr(utils, "make_console", lambda: Console(force_jupyter=True))
    if not has_widgets:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with utils.Progress("epoch 1", 4) as progress:
        utils.say("a line")
        progress.step(2)
        utils.say("another line")
    assert [line for line in capsys.readouterr().out.splitlines() if "line" in line] == ["a line", "another line"]
    assert any(isinstance(thing, Output) for thing in shown) is has_widgets


def test_an_import_that_fails_for_want_of_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.excepthook", None)
    monkeypatch.setattr("resource.getrlimit", lambda _: (int(3e9), int(3e9)))
    utils.explain_failing_imports()
    assert "`ulimit -v` allows 3.0 GB of address space" in capsys.readouterr().err
    sys.excepthook(ImportError, ImportError("libtorch.so: failed to map segment from shared object"), None)
    assert capsys.readouterr().err.startswith("error: Cannot allocate memory: raise the limit (`ulimit -v unlimited`)")
    sys.excepthook(ImportError, ImportError("no such name"), None)
    assert "ImportError: no such name" in capsys.readouterr().err


def test_memory_is_kept_where_glibc_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Library:
        def mallopt(self, option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    keep_freed_memory()
    assert calls == [(-4, 0), (-1, -1)], "no separate blocks, no giving back: M_MMAP_MAX, M_TRIM_THRESHOLD"

    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed_memory()


def test_waiting_counts_what_loading_takes_and_not_what_is_done_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(utils.time, "perf_counter", lambda: clock[0])

    def load() -> Iterator[int]:
        for item in range(3):
            clock[0] += 2.0
            yield item

    waiting, seen = utils.Waiting(load()), []
    for item in waiting:
        seen.append(item)
        clock[0] += 10.0
    assert seen == [0, 1, 2]
    assert waiting.seconds == 6.0
