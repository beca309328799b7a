"""Runs of a script's main in processes of their own, quickly: torch is imported once, in a server that forks them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import utils
from trainer import records

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training", "testing"])


def launch(script: str, arguments: list[str], output: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """`python SCRIPT ARGUMENTS` in a process of its own, begun; what it prints goes to the file `output`."""
    process = CONTEXT.Process(target=_run, args=(script, arguments, str(output), environment or {}))
    process.start()
    return process


def launch_together(
    script: str, arguments: list[str], count: int, folder: Path, kill_last_at_save: str = ""
) -> list[BaseProcess]:
    """`count` processes as torchrun would start them; what they print goes to 0.txt, 1.txt, ... in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    return [
        launch(
            script,
            arguments,
            folder / f"{rank}.txt",
            common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            | ({"KILL_AT_SAVE": kill_last_at_save} if rank == count - 1 and kill_last_at_save else {}),
        )
        for rank in range(count)
    ]


def finish(*processes: BaseProcess) -> list[int | None]:
    """The exit statuses, once all have ended."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _kill_at_save(number: str, seconds: str) -> None:
    """End this process without warning `seconds` after its `number`-th saving begins; at the latest four later."""
    save, begun = records.save_last, []

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_or_die(*arguments: Any) -> None:
        begun.append(arguments)
        if len(begun) == int(number):
            threading.Timer(float(seconds), kill).start()
        elif len(begun) == int(number) + 4:
            kill()
        save(*arguments)

    records.save_last = save_or_die


def _run(script: str, arguments: list[str], output: str, environment: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loading processes, as in a script; here it is forkserver
    os.environ |= environment
    if moment := environment.get("KILL_AT_SAVE"):
        _kill_at_save(*moment.split())
    if limit := environment.get("FILE_SIZE_LIMIT"):  # bytes; a disk that is full for a part of a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [f"{script}.py", *arguments]
    utils.run_script(importlib.import_module(script).main)
