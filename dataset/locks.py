"""Locks that end with their process, however it ends: of a run's folder, of a file that several runs write.

    with locks.own(folder):             # InputError, which says who has it, where another process does
        ...
    with locks.hold(path):              # waits until no other process or thread holds it
        ...

Processes on several machines see each other's locks where their shared disk has locks, as NFS has.
"""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils import InputError, explain, warn

LOCK = ".lock"  # the file in a folder that `own` holds
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # the disk has none

_held: set[int] = set()  # descriptors of the files that this process holds


@contextmanager
def hold(path: Path, wait: bool = True, note: str = "", keep: bool = False) -> Iterator[bool]:
    """Hold the file `path` against other processes and threads; False where it is taken and we do not `wait`.

    The file, which is made with its folder if it is missing, gets the `note`. Unless it is to be kept, it is removed at
    the end. Raises InputError where it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, is_ours = _open(path, wait)
        if is_ours and note:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, note.encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {explain(error)}") from error
    try:
        yield is_ours
    finally:
        if is_ours and not keep and descriptor in _held:  # not so in a process that was forked
            with suppress(OSError):  # its folder was deleted
                path.unlink()
        _close(descriptor)


@contextmanager
def own(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made if it is missing. Raises InputError, with who has it, where another process does."""
    path = folder / LOCK
    note = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with hold(path, wait=False, note=note) as is_ours:
        if not is_ours:
            holder = "another process"
            with suppress(OSError):  # some disks do not let others read it
                holder = path.read_text() or holder
            raise InputError(f"{folder} is in use by {holder}: wait for its end, or end it")
        yield


def _open(path: Path, wait: bool) -> tuple[int, bool]:
    """(a descriptor of the file `path`, whether it is locked). While it waited, the file may have been removed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        try:
            if not _lock(descriptor, path, wait):
                return descriptor, False
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor, True
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)


def _lock(descriptor: int, path: Path, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f"the disk of {path} has no locks: see to it that no other process writes there")
    return True


def _close(descriptor: int) -> None:
    if descriptor in _held:  # not so in a process that was forked
        _held.remove(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """Close what is held, in a process that was forked: a loading process may outlive a run that is killed."""
    for descriptor in [*_held]:
        _close(descriptor)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)
