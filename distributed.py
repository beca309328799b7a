"""Lets several processes train or test together, one on each device: `torchrun --nproc-per-node=2 training.py`.

    with distributed.start("auto") as device:
        loss = distributed.add_up(loss)                 # the sum over all processes
        rows = distributed.join(rows)                   # the rows (n, ...) of all processes, in order

All processes have to call such a function, and all get the result. A process that is alone gets back what it gave. Only
rank 0 prints (utils.say) and writes files. Python objects and flags are exchanged by gloo on the CPU, so that nobody
waits for a GPU.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from models.devices import choose_device
from utils import InputError, Stopped

# words in the messages of errors that mean that another process has gone
LOST_CONTACT = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "process group", "broken pipe")
# the option of DistributedDataParallel that shares buffers in every forward pass; older versions of torch call it
# broadcast_buffers
SHARE_BUFFERS = "broadcast_buffers"
if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters:
    SHARE_BUFFERS = "forward_sync_buffers"
PATIENCE = timedelta(minutes=30)  # how long the beginning, and the exchange of tensors, wait for another process
# How long flags, objects and `wait` wait for it: rank 0 alone searches heads, finds missing labels and evaluates, which
# may take hours. When a process dies, torchrun ends the others; without torchrun each ends when it next waits for the
# dead one, whose connections are closed. Nobody ends those that wait for a process that hangs.
PATIENCE_WITH_FIRST = timedelta(days=7)

_gloo: Any = None  # the group of all processes that exchanges by gloo


def count() -> int:
    """The number of processes; 1 if this process is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is rank 0, the process that prints and writes."""
    return rank() == 0


def place() -> tuple[int, int]:
    """Returns (the number of this process among those on this machine, from 0, how many these are)."""
    if not dist.is_initialized():
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", count()))


@contextmanager
def start(device_name: str, connect: bool = True) -> Iterator[torch.device]:
    """Connect the processes that torchrun has started, until the end of `with`. Yields the device of this process.

    A process that was started without torchrun is alone. So is each of several that do not `connect`: none of these
    waits for another. Raises InputError if the device is not available, and if the contact with another process is
    lost.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield choose_device(device_name)
        return
    global _gloo
    device, has_failed = _choose_device(device_name), True
    if not connect:
        with nullcontext() if os.environ.get("RANK", "0") == "0" else _without_output():
            yield device
        return
    try:
        store, number, total = next(rendezvous("env://", timeout=PATIENCE))
        # after a restart, torchrun's store still holds the addresses of the processes that died
        attempt = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=attempt, rank=number, world_size=total, timeout=PATIENCE)
        _gloo = dist.new_group(backend="gloo", timeout=PATIENCE_WITH_FIRST)
        with nullcontext() if is_first() else _without_output():
            yield device
        has_failed = False
    except Stopped:  # all processes stop together
        has_failed = False
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in LOST_CONTACT):
            reason = str(error).splitlines()[0]
            raise InputError(
                f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost contact with another, whose own "
                f"message says why; the same command goes on from what was saved last ({reason:.200})"
            ) from error
        raise
    finally:
        _gloo = None
        # After an error NCCL would wait for processes that wait for this one. torchrun ends them once it has ended.
        if dist.is_initialized() and not (has_failed and device.type == "cuda"):
            dist.destroy_process_group()


@contextmanager
def _without_output() -> Iterator[None]:
    """Discard what is printed to stdout."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _choose_device(name: str) -> torch.device:
    """The GPU number LOCAL_RANK, or the CPU if `name` is "cpu" or there is no GPU; "cuda:0" counts as "cuda"."""
    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind = name.partition(":")[0]
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if kind not in ("auto", "cuda"):
        raise InputError(f"DEVICE is {name!r}: several processes take cpu, or a GPU of NVIDIA each (cuda)")
    if num_local > torch.cuda.device_count():
        raise InputError(
            f"{num_local} processes were started on a machine with {torch.cuda.device_count()} GPUs: one each"
        )
    torch.cuda.set_device(local_rank)  # first of all: each process would also take memory of the first GPU
    return choose_device(f"cuda:{local_rank}")


def add_up(tensor: Tensor) -> Tensor:
    """Replace `tensor` by the sum of this tensor over all processes, in place and on its device. Returns it."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def agree(*flags: bool) -> list[bool]:
    """For each flag, whether it is True in at least one process."""
    if count() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=_gloo)
    return [bool(flag) for flag in raised.tolist()]


def collect(value: Any) -> list[Any]:
    """The `value` of every process, in the order of ranks. It may be any object that can be pickled."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_gloo)
    return values


def join(rows: NDArray[Any]) -> NDArray[Any]:
    """Join the rows (n, ...) of all processes in the order of ranks: with shares of `slice_rows`, rows in order."""
    return np.concatenate(collect(rows)) if count() > 1 else rows


def copy_first(tensors: Sequence[Tensor]) -> None:
    """Copy the `tensors` of rank 0 to all processes, in place."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_first(make: Callable[[], Any]) -> Any:
    """Call `make` in rank 0 only, and return its result in all processes."""
    if count() == 1:
        return make()
    values = [make() if is_first() else None]
    dist.broadcast_object_list(values, 0, group=_gloo)
    return values[0]


def wait() -> None:
    """Wait until all processes have called this."""
    if count() > 1:
        dist.barrier(group=_gloo)


def slice_rows(num_rows: int, batch_size: int) -> slice:
    """The rows that are this process's share of `num_rows`.

    It consists of whole batches, so that several processes compute the same batches as one. Example: 10 rows in
    batches of 4 are slice(0, 4) and slice(4, 10) for two processes.
    """
    num_batches = -(-num_rows // batch_size)
    start = num_batches * rank() // count() * batch_size
    stop = num_batches * (rank() + 1) // count() * batch_size
    return slice(start, min(stop, num_rows))


def wrap(network: torch.nn.Module, device: torch.device, has_unused: bool) -> torch.nn.Module:
    """Wrap `network` in DistributedDataParallel, which averages gradients over all processes.

    Parameters that are frozen now are left out. When `requires_grad` changes, the network has to be wrapped again:
    otherwise the gradients of these parameters would not be averaged, without any message. `has_unused`: some
    parameters may get no gradient in a step. A process that is alone gets `network` itself.
    """
    if count() == 1:
        return network
    wait()  # rank 0 may still be looking at the data, and DistributedDataParallel waits no longer than PATIENCE
    options: dict[str, Any] = {SHARE_BUFFERS: False}  # Trainer.share_statistics shares them once an epoch instead
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        **options,
        gradient_as_bucket_view=True,
        find_unused_parameters=has_unused,
    )
