"""Files and folders written whole: complete or absent, whatever happens; and what killed processes left is removed.

    write_atomically(path, lambda temporary: torch.save(content, temporary))
    write_text(path, text)
    with replace_folder(folder) as new:
        ...         # fill the folder `new`

What is being written has the name `.NAME.SYSTEM-PROCESS.tmp`, beside the file that it will be.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils import InputError, explain, find_system_error

LEFTOVER_SECONDS = 3600  # a temporary file of another machine that was not changed for this time is left over


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is complete or absent: `write(temporary)` fills a temporary file, which is then renamed.

    The temporary file lies beside `path` and is flushed to disk first. Raises InputError if the file cannot be written;
    a file that was at `path` before then stays.

        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    """
    temporary = name_temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = find_system_error(error)
        if cause is None:
            raise
        raise InputError(f"cannot write {path}: {explain(cause)}") from error
    finally:
        with suppress(OSError):  # it was renamed, or it could not be made
            temporary.unlink()


@contextmanager
def make_temporary_folder(path: Path) -> Iterator[Path]:
    """Make a new folder beside `path`. At the end of `with` it is removed, if it is still there."""
    folder = name_temporary(path)
    try:
        folder.mkdir(parents=True)
        remove_leftovers(path.parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill. At the end of `with` it replaces `folder`; after an error `folder` is unchanged.

    Raises InputError if the folder cannot be written.
    """
    old = name_temporary(folder.with_name(f"{folder.name}.old"))
    try:
        with make_temporary_folder(folder) as new:
            yield new
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise InputError(f"cannot write {folder}: {explain(error)}") from error
    finally:
        shutil.rmtree(old, ignore_errors=True)


def name_temporary(path: Path) -> Path:
    """The name that the file or folder `path` has while this process writes it."""
    return path.with_name(f".{path.name}.{name_process()}.tmp")


def name_process() -> str:
    """A name for this process that no other has, on this machine or another, while both run."""
    return f"{_identify_system()}-{os.getpid()}"


def has_ended(process: str) -> bool | None:
    """Whether the process of this name, of `name_process`, has ended; None: it is not of this machine, or no name."""
    machine, _, number = process.partition("-")
    if machine != _identify_system() or not number.isdecimal() or os.name != "posix":
        return None
    return not _is_running(int(number))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose processes were killed while they wrote.

    A process of this machine is gone or not. Of another machine's, only the time of the last change tells.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = re.fullmatch(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.tmp", entry.name)
            if name is None:
                continue
            with suppress(FileNotFoundError):  # another process was quicker to remove it
                if name[1] == _identify_system() and os.name == "posix":
                    is_left = not _is_running(int(name[2]))
                else:
                    is_left = time.time() - entry.stat().st_mtime > LEFTOVER_SECONDS
                if is_left and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif is_left:
                    Path(entry.path).unlink()


@functools.cache
def _identify_system() -> str:
    """Eight digits that say where process numbers count: on this machine since it started, or in a container on it."""
    signs = [platform.node()]
    with suppress(OSError):  # Linux has both
        signs.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        signs.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(signs).encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # on Windows it would end the process
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all. Raises InputError if it cannot be written."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))
