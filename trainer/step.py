"""The details of a training step that `training.take_step` leaves out: micro-batches, memory, clipping, undoing.

Nothing here reads a number back from the device, since the processor would wait for it, and a fast GPU then for the
processor. What a step came to stays on the device (`TakenStep`) until `records.note_steps` reads several at once.

Gradients are those of the loss over the whole batch, so neither the number of processes nor that of micro-batches
changes a step. Exceptions are what looks at a micro-batch alone (BatchNorm in training, OHEM) or at what the processes
compute at the same time (GHM, and BatchNorm with SYNC_BATCHNORM), and mixup and CutMix, which pair the images of one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
import utils
from dataset import whole_files
from dataset.batches import Batch
from models.checkpoints import save_tensors
from trainer import optimizers
from trainer.build import Trainer
from utils import InputError

LookAtLogits = Callable[[Tensor, Batch], None]  # is shown logits (B, C), and the batch that they are of


class TakenStep(NamedTuple):
    """What a step came to, as scalars on the device."""

    loss: Tensor  # this process's part of the batch's mean loss
    is_finite: Tensor  # whether the gradient was; if not, the step was left out
    overflowed: Tensor  # whether the scaler explains that it was not: fp16 starts too high, and lowers its scale


class Statistics:
    """What a forward pass in training changes: BatchNorm's statistics, GHM's counts. A step may have to put them back.

    All `buffers` of one type become parts of one tensor, so that keeping them is one operation, not some hundred.
    """

    ALIGNMENT = 64  # numbers, at multiples of which a buffer begins: vectorised kernels want round addresses

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        by_type = sorted(buffers, key=lambda buffer: str(buffer.dtype))
        self.current = [self._join(list(group)) for _, group in groupby(by_type, key=lambda buffer: buffer.dtype)]
        self.kept = [torch.empty_like(tensor) for tensor in self.current]

    def _join(self, buffers: list[Tensor]) -> Tensor:
        """A tensor (n,) of which each of `buffers` becomes a part, with the values that it has."""
        lengths = [-(-buffer.numel() // self.ALIGNMENT) * self.ALIGNMENT for buffer in buffers]
        joined = torch.zeros(sum(lengths), dtype=buffers[0].dtype, device=buffers[0].device)
        for buffer, start in zip(buffers, accumulate(lengths[:-1], initial=0), strict=True):
            # as the buffer lies in memory, but without the gaps that a part of a larger tensor has
            part = joined.as_strided(buffer.shape, torch.empty_like(buffer, device="meta").stride(), start)
            part.copy_(buffer)
            buffer.set_(joined.untyped_storage(), part.storage_offset(), part.shape, part.stride())
        return joined

    def keep(self) -> None:
        """Keep the present values."""
        for kept, current in zip(self.kept, self.current, strict=True):
            kept.copy_(current)

    def put_back(self, where: Tensor) -> None:
        """Put the kept values back if `where`, a scalar, is True."""
        for kept, current in zip(self.kept, self.current, strict=True):
            torch.where(where, kept, current, out=current)


def split_batch(batch: Batch, size: int, num_images: int) -> Iterator[tuple[Batch, bool]]:
    """Yield (micro-batch, whether it is the last) of about `size` images, at least two; 0: the whole batch.

    Every process makes as many of them, since a forward pass may exchange numbers (GHM, SYNC_BATCHNORM). They all know
    `num_images` of the step, of which the smallest share has the rounded-down part (EpochBatches): it decides.
    """
    smallest = num_images // distributed.count()
    count = max(1, min(-(-smallest // size), smallest // 2)) if size else 1
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
    statistics: Statistics | None,
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
            if statistics:
                statistics.put_back(torch.ones((), dtype=torch.bool, device=trainer.device))
        torch.cuda.empty_cache()  # outside the handler, whose error still holds the tensors


def _halve(size: int, error: torch.OutOfMemoryError) -> int:
    if size <= 2:
        raise InputError(
            "the GPU's memory is full with two images: lower IMAGE_SIZE, or choose a smaller model"
        ) from error
    size = max(2, (size + 1) // 2)
    utils.warn(f"the GPU's memory is full: from here on steps are computed {size} images at a time (MICRO_BATCH_SIZE)")
    return size


def clip_gradients(trainer: Trainer) -> Tensor:
    """Shorten the gradient to CLIP_GRADIENT_NORM, if set. Returns whether it is finite, alike in all processes."""
    trainer.scaler.unscale_(trainer.optimizer)
    groups = trainer.optimizer.param_groups
    parameters = [weight for group in groups for weight in group["params"] if weight.grad is not None]
    # as torch's get_total_norm, which moves each norm to the device of the first one
    norms = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
        [weight.grad for weight in parameters if weight.grad is not None]
    )
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if trainer.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, trainer.clip_norm, norm)
    return norm.isfinite()


def move_weights(trainer: Trainer, is_finite: Tensor) -> None:
    """Let the optimizer take its step if `is_finite`, and move the schedule on either way: it counts steps."""
    optimizer = trainer.optimizer
    if optimizers.skips_on_device(optimizer):
        optimizers.step_if(optimizer, is_finite)
    elif is_finite:  # this waits for the device
        optimizer.step()
    trainer.scaler.update()  # in fp16: lowers its scale after an overflow
    optimizer.zero_grad(set_to_none=True)
    if optimizer.state:
        trainer.schedule.step()
    else:  # the optimizer has not moved yet: the rates play no role, and torch warns of a schedule that moves them
        trainer.schedule.last_epoch += 1


def explain_overflow(trainer: Trainer, is_finite: Tensor) -> Tensor:
    """Whether the scaler explains a gradient that is not finite: it can still lower its scale, which is 1 or more."""
    if not trainer.scaler.is_enabled():
        return torch.zeros_like(is_finite)
    scale = trainer.scaler.scale(torch.ones((), device=trainer.device))  # get_scale() would wait for the device
    return ~is_finite & (scale >= 1)


def find_statistics(trainer: Trainer) -> Statistics:
    """The `Statistics` of the trainer's model and objective, which change while the backbone is as frozen as now."""
    frozen = trainer.model.backbone_is_frozen
    if frozen not in trainer.statistics:
        changing = [module for module in trainer.model.modules() if module.training]
        buffers = [buffer for module in changing for buffer in module.buffers(recurse=False)]
        trainer.statistics = {frozen: Statistics([*buffers, *trainer.objective.buffers()])}
    return trainer.statistics[frozen]


def save_batch(path: Path, batch: Batch, epoch: int, step: int) -> None:
    """Keep a batch for inspection: `torch.load` gives its tensors, on the CPU, and the epoch and step it is of."""
    content = {name: tensor.cpu() for name, tensor in batch._asdict().items()} | {"epoch": epoch, "step": step}
    whole_files.write_atomically(path, lambda temporary: save_tensors(temporary, content))
