"""dataset/whole_files.py: files are complete or absent, errors say what to do, and leftovers go."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import utils
from dataset import whole_files
from utils import InputError  # the tests replace it in utils


def test_writing_is_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    whole_files.write_text(path, "first")

    def break_off(temporary: Path) -> None:
        temporary.write_text("sec")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"cannot write .*a\.txt: No space left on device: free some space, or choose"):
        whole_files.write_atomically(path, break_off)
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_killed_processes_began_to_write_is_removed(tmp_path: Path) -> None:
    """Also beside another file: what is written first tidies up. Processes that run, here or elsewhere, keep theirs."""

    def begin(name: str, hours: int = 0) -> str:
        file = tmp_path / name
        file.touch()
        os.utime(file, (time.time() - 3600.0 * hours,) * 2)
        return name

    def begin_and_die() -> None:
        file = whole_files.name_temporary(tmp_path / "dead.txt")
        file.touch()
        folder = whole_files.name_temporary(tmp_path / "pictures")
        folder.mkdir()
        (folder / "1.jpg").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=begin_and_die)
    process.start()
    process.join()
    begin(".a.txt.01234567-7.tmp", hours=2)  # of another machine
    begin(".a.txt.7.tmp", hours=2)  # of an earlier version
    kept = [
        begin(whole_files.name_temporary(tmp_path / "mine.txt").name, hours=2),
        begin(f".root.txt.{whole_files._identify_system()}-1.tmp", hours=2),
        begin(".a.txt.01234567-8.tmp"),
        begin(".a.txt.8.tmp"),
        begin(".split.tmp", hours=2),
    ]
    whole_files.write_text(tmp_path / "b.txt", "text")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*kept, "b.txt"])


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device: free some space"),
        (errno.EDQUOT, "Disk quota exceeded: free some space"),
        (errno.EACCES, "Permission denied: you may not write there"),
        (errno.EROFS, "Read-only file system: the disk can only be read"),
        (errno.EMFILE, "Too many open files: raise the limit (`ulimit -n"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_an_error_of_the_system_says_what_to_do(number: int, advice: str, tmp_path: Path) -> None:
    """Also where the library that writes says something else for it, as torch.save does."""

    def fail(temporary: Path) -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    with pytest.raises(InputError) as error:
        whole_files.write_atomically(tmp_path / "a.pt", fail)
    assert str(error.value).startswith(f"cannot write {tmp_path / 'a.pt'}: {advice}")
    assert ("free some space" in str(error.value)) == ("free some space" in advice)


def test_a_name_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, advice in (
        (tmp_path / "file" / "a" / "b.txt", "Not a directory: a file lies where a folder has to be"),
        (tmp_path / "file" / "b.txt", "File exists: a file lies where a folder has to be"),
        (tmp_path / "folder", "Is a directory: a file lies where"),
        (tmp_path / ("long" * 70), "File name too long: choose a shorter name"),
    ):
        with pytest.raises(InputError, match=f"{path}: {advice}"):
            whole_files.write_text(path, "text")
        with pytest.raises(InputError), utils.keep_log():
            utils.log_to(path)


def test_a_mistake_of_the_program_is_not_called_an_error_of_the_disk(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        whole_files.write_atomically(tmp_path / "a.pt", fail)


def test_a_full_gpu_memory_is_one_line(tmp_path: Path) -> None:
    """Also where features are computed while they are written."""

    def compute(file: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    def main(arguments: list[str]) -> None:
        whole_files.write_atomically(tmp_path / "features.npy", compute)

    with pytest.raises(SystemExit) as exit_info:
        utils.run_script(main)
    assert str(exit_info.value).startswith("error: the GPU's memory is full: lower TEST_BATCH_SIZE")
    assert "\n" not in str(exit_info.value)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for content in ("first", "second"):
        with whole_files.replace_folder(folder) as new:
            (new / content).write_text(content)
        assert [file.name for file in folder.iterdir()] == [content]
    with suppress(KeyError), whole_files.replace_folder(folder) as new:
        (new / "third").touch()
        raise KeyError
    assert [file.name for file in folder.iterdir()] == ["second"]
    error = r"cannot write .*second/pictures: Not a directory: a file lies where a folder has to be"
    with pytest.raises(InputError, match=error), whole_files.replace_folder(folder / "second" / "pictures"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["pictures"]
