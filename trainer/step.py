"""The details of a training step that `training.take_step` leaves out: micro-batches, memory, clipping, undoing.

Gradients are those of the loss over the whole batch, so neither the number of processes nor that of micro-batches
changes a step. Exceptions are what looks at a micro-batch alone (BatchNorm in training, OHEM) or at what the processes
compute at the same time (GHM, and BatchNorm with SYNC_BATCHNORM), and mixup and CutMix, which pair the images of one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
import utils
from dataset import whole_files
from dataset.batches import Batch
from models.checkpoints import save_tensors
from trainer.build import Trainer
from utils import InputError

LookAtLogits = Callable[[Tensor, Batch], None]  # is shown logits (B, C), and the batch that they are of


def split_batch(batch: Batch, size: int) -> Iterator[tuple[Batch, bool]]:
    """Yield (micro-batch, whether it is the last) of about `size` images, at least two; 0: the whole batch.

    Every process makes as many of them, since a forward pass may exchange numbers (GHM, SYNC_BATCHNORM).
    """
    num_images = len(batch.images)
    count = distributed.find_least(max(1, min(-(-num_images // size), num_images // 2))) if size else 1
    micro_batches = zip(*(tensor.tensor_split(count) for tensor in batch), strict=True)
    for number, tensors in enumerate(micro_batches, 1):
        yield Batch(*tensors), number == count


def exchange_gradients(network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Let several processes exchange gradients once a step, in the backward pass of the last micro-batch."""
    if isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    return nullcontext()


def run_within_memory(
    trainer: Trainer,
    batch: Batch,
    statistics: list[tuple[Tensor, Tensor]],
    compute: Callable[[LookAtLogits | None], Tensor],
    look: LookAtLogits | None = None,
) -> Tensor:
    """`compute(look)`. Where the GPU's memory does not suffice, halve the micro-batches, from now on, and try again.

    Raises InputError where two images are too many, and with several processes: the others wait for this one.
    """
    while True:
        try:
            return compute(look)
        except torch.OutOfMemoryError as error:
            if distributed.count() > 1:
                raise InputError(
                    f"the GPU's memory is full: set MICRO_BATCH_SIZE to {max(2, len(batch.images) // 2)} or less"
                ) from error
            trainer.micro_batch_size = _halve(trainer.micro_batch_size or len(batch.images), error)
            trainer.optimizer.zero_grad(set_to_none=True)
            put_back(statistics)
        torch.cuda.empty_cache()  # outside the handler, whose error still holds the tensors


def _halve(size: int, error: torch.OutOfMemoryError) -> int:
    if size <= 2:
        raise InputError(
            "the GPU's memory is full with two images: lower IMAGE_SIZE, or choose a smaller model"
        ) from error
    size = max(2, (size + 1) // 2)
    utils.warn(f"the GPU's memory is full: from here on steps are computed {size} images at a time (MICRO_BATCH_SIZE)")
    return size


def clip_gradients(trainer: Trainer) -> bool:
    """Shorten the gradient to CLIP_GRADIENT_NORM, if set. Returns whether it is finite, alike in all processes."""
    trainer.scaler.unscale_(trainer.optimizer)
    groups = trainer.optimizer.param_groups
    parameters = [weight for group in groups for weight in group["params"] if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
    if trainer.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, trainer.clip_norm, norm)
    return bool(norm.isfinite())  # waits for the GPU, which then has nothing left but to move the weights


def count_step(trainer: Trainer) -> None:
    """Move the schedule on by a step, taken or left out: it counts steps, not updates.

    Before the first update, which makes the optimizer's state, the rates play no role, and torch warns of a schedule
    that moves them: then the step is counted only.
    """
    if trainer.optimizer.state:
        trainer.schedule.step()
    else:
        trainer.schedule.last_epoch += 1


def explains_overflow(trainer: Trainer) -> bool:
    """Whether a gradient that is not finite is the scaler's doing: fp16 starts too high, and lowers its scale."""
    return trainer.scaler.is_enabled() and trainer.scaler.get_scale() >= 1


def copy_statistics(trainer: Trainer) -> list[tuple[Tensor, Tensor]]:
    """(buffer, its copy) of all that a forward pass in training changes: BatchNorm's statistics, GHM's counts."""
    changing = [module for module in trainer.model.modules() if module.training]
    buffers = [buffer for module in changing for buffer in module.buffers(recurse=False)]
    buffers += trainer.objective.buffers()
    return [(buffer, buffer.clone()) for buffer in buffers]


@torch.no_grad()
def put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    """Undo what happened to the buffers since `copy_statistics`."""
    for buffer, copy in statistics:
        buffer.copy_(copy)


def save_batch(path: Path, batch: Batch, epoch: int, step: int) -> None:
    """Keep a batch for inspection: `torch.load` gives its tensors, and the epoch and step it is of."""
    content = {**batch._asdict(), "epoch": epoch, "step": step}
    whole_files.write_atomically(path, lambda temporary: save_tensors(temporary, content))
