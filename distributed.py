"""Several processes that train or test together, one a device: `torchrun --nproc-per-node=2 training.py`.

    with distributed.start("auto") as device:
        loss = distributed.add_up(loss)                 # over all processes
        rows = distributed.join(rows)                   # each one's (n, ...) rows, in order, everywhere

Alone, a process gets back what it gives. Only the first prints (utils.say) and writes. What is said about a run goes
through gloo, on the CPU: a GPU is not waited for.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

import utils
from utils import InputError

LOST_CONTACT = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "process group", "broken pipe")
# what newer versions of torch call it, and older ones
OF_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)
PATIENCE = timedelta(minutes=30)  # with another process, which may be reading labels or validating

_talk: Any = None  # over gloo, of all processes


def count() -> int:
    """The number of processes; 1 alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def place() -> tuple[int, int]:
    """(this process's number among those of its machine, how many these are)."""
    if not dist.is_initialized():
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", count()))


@contextmanager
def start(device_name: str) -> Iterator[torch.device]:
    """The device of this process, one of those that torchrun started or alone; inside, they can talk.

    Raises InputError for a device that is not to be had, and where contact with another process is lost.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield utils.choose_device(device_name)
        return
    global _talk
    device = _choose_device(device_name)
    try:
        store, number, total = next(rendezvous("env://", timeout=PATIENCE))
        # after a restart torchrun's store still has the addresses of those that died
        attempt = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=attempt, rank=number, world_size=total, timeout=PATIENCE)
        _talk = dist.new_group(backend="gloo", timeout=PATIENCE)
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            original = sys.stdout
            sys.stdout = original if is_first() else nowhere
            try:
                yield device
            finally:
                sys.stdout = original
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in LOST_CONTACT):
            reason = str(error).splitlines()[0]
            raise InputError(
                f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost contact with another, whose own "
                f"message says why; the same command goes on from what was saved last ({reason:.200})"
            ) from error
        raise
    finally:
        _talk = None
        if dist.is_initialized():
            dist.destroy_process_group()


def _choose_device(name: str) -> torch.device:
    """GPU number LOCAL_RANK, unless `name` says cpu or there is none."""
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind = utils.choose_device(name if name in ("auto", "cpu") else name.partition(":")[0]).type
    if kind != "cuda":
        return torch.device("cpu")
    if here > torch.cuda.device_count():
        raise InputError(f"{here} processes were started on a machine with {torch.cuda.device_count()} GPUs: one each")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def add_up(tensor: Tensor) -> Tensor:
    """The sum of every process's `tensor`, in place, on its device."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def agree(*flags: bool) -> list[bool]:
    """Each flag, True if it is so in any process."""
    if count() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=_talk)
    return [bool(flag) for flag in raised.tolist()]


def find_least(number: int) -> int:
    """The least of every process's `number`."""
    if count() == 1:
        return number
    least = torch.tensor(number)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=_talk)
    return int(least)


def collect(thing: Any) -> list[Any]:
    """Every process's `thing`, in the order of their numbers, everywhere."""
    if count() == 1:
        return [thing]
    things: list[Any] = [None] * count()
    dist.all_gather_object(things, thing, group=_talk)
    return things


def join(rows: NDArray[Any]) -> NDArray[Any]:
    """Every process's (n, ...) rows, one after the other, everywhere: those of shares that are read in order."""
    return np.concatenate(collect(rows)) if count() > 1 else rows


def copy_first(tensors: Sequence[Tensor]) -> None:
    """Give every process the first one's `tensors`, in place."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, everywhere."""
    if count() == 1:
        return make()
    things = [make() if is_first() else None]
    dist.broadcast_object_list(things, 0, group=_talk)
    return things[0]


def wait() -> None:
    """Go on when all processes are here."""
    if count() > 1:
        dist.barrier(group=_talk)


def slice_rows(num_rows: int, batch_size: int) -> slice:
    """The stretch of rows that is this process's share, in whole batches, which are then those of one process."""
    num_batches = -(-num_rows // batch_size)
    start, stop = (num_batches * part // count() * batch_size for part in (rank(), rank() + 1))
    return slice(start, min(stop, num_rows))


def wrap(network: torch.nn.Module, device: torch.device, has_unused: bool) -> torch.nn.Module:
    """`network` with gradients averaged over all processes, as its parameters' `requires_grad` is now.

    Wrap anew when that changes: what was frozen then would be left out of the averaging, silently.
    """
    if count() == 1:
        return network
    options: dict[str, Any] = {OF_BUFFERS: False}  # Engine.share_statistics shares them, once an epoch
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        **options,
        gradient_as_bucket_view=True,
        find_unused_parameters=has_unused,
    )
