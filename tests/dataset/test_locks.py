"""dataset/locks.py: one process has a folder, the next one is told who; a lock ends with its process."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from dataset import locks
from utils import InputError

CONTEXT = multiprocessing.get_context("fork")


@contextmanager
def another_process(folder: Path, with_child: bool = False) -> Iterator[BaseProcess]:
    """A process that owns `folder`; and a child of it, as a loading process is, which lives on."""
    ours, theirs = CONTEXT.Pipe()

    def run() -> None:
        ours.close()
        with locks.own(folder):
            if with_child and os.fork() == 0:
                theirs.poll(20)
                os._exit(0)
            theirs.send("ready")
            theirs.poll(20)

    process = CONTEXT.Process(target=run)
    process.start()
    theirs.close()
    assert ours.recv() == "ready"
    try:
        yield process
    finally:
        ours.close()  # ends the waiting
        process.join()


def test_the_second_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with another_process(tmp_path / "run") as process:
        expected = rf"run is in use by process {process.pid} on .* since 2.*: wait for its end, or end it"
        with pytest.raises(InputError, match=expected), locks.own(tmp_path / "run"):
            pass
        with locks.own(tmp_path / "another"):
            pass
    with locks.own(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / locks.LOCK).read_text()
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("with_child", [False, True])
def test_a_killed_process_has_nothing(with_child: bool, tmp_path: Path) -> None:
    """Also where its loading processes have not noticed yet."""
    with another_process(tmp_path, with_child) as process:
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with locks.own(tmp_path):
            pass


def test_an_error_of_the_owner_is_not_one_of_the_lock_and_ends_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the owner"), locks.own(tmp_path):
        raise OSError("of the owner")
    with locks.own(tmp_path):
        pass


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    counts: list[int] = []

    def work() -> None:
        for _ in range(20):
            with locks.hold(tmp_path / "a.lock"):
                inside.append(1)
                time.sleep(0.0005)
                counts.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 60


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locks.own(tmp_path):
        assert "has no locks: see to it that no other process writes there" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = r"cannot write .*\.lock: Not a directory: a file lies where a folder has to be"
    with pytest.raises(InputError, match=expected), locks.own(tmp_path / "file" / "run"):
        pass
