"""One step of training: a batch's gradients, in parts where memory is short, over all processes; then weights move.

    part_of_mean_loss = take_step(engine, network, batch, epoch, step)      # None: the step was left out

The batch is this process's share. Gradients are those of the loss over the whole batch, so neither the number of
processes nor that of parts changes a step, except what looks at a part alone (BatchNorm in training, OHEM; GHM, and
BatchNorm with SYNC_BATCHNORM, at the parts that processes compute at a time) or at a share alone: mixup and CutMix pair
its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
import optimization
import utils
from dataset_readers import Batch
from training_engine import Engine
from utils import InputError


def take_step(
    engine: Engine,
    network: nn.Module,
    batch: Batch,
    epoch: int,
    step: int,
    look: Callable[[Tensor, Batch], None] | None = None,
) -> Tensor | None:
    """Train `network`, the model or its head, on a batch: this process's part of the mean loss, which is their sum.

    None where the gradient is not finite: weights, averages and statistics then stay as they were. `look` is shown the
    logits of the batch's first part, and that part.
    """
    batch = engine.change_batch(batch.to(engine.device), epoch, step)
    before = _copy_statistics(engine)
    loss = _compute_gradients(engine, network, batch, before, look)
    if engine.sam_rho:
        with optimization.climb(engine.model, engine.sam_rho):
            engine.objective.entry_weights.eval()  # counts are kept of the first pass alone
            _compute_gradients(engine, network, batch, [])  # nothing else changes
            engine.objective.entry_weights.train()
    is_finite = _clip(engine)
    if is_finite or engine.scaler.is_enabled():
        engine.scaler.step(engine.optimizer)  # leaves out what overflowed
        engine.scaler.update()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.schedule.step()
    if not is_finite:
        _put_back(before)
        return None
    if engine.average:
        engine.average.update_parameters(engine.model)
    return loss


def explains_overflow(engine: Engine) -> bool:
    """Whether a gradient that is not finite is the scaler's doing: fp16 starts too high, and lowers its scale."""
    return engine.scaler.is_enabled() and engine.scaler.get_scale() >= 1


def _compute_gradients(
    engine: Engine,
    network: nn.Module,
    batch: Batch,
    before: list[tuple[Tensor, Tensor]],
    look: Callable[[Tensor, Batch], None] | None = None,
) -> Tensor:
    """Add the batch's gradients up, part by part; its mean loss, over this process's share of the entries.

    Where the GPU's memory does not suffice, the parts are halved, from now on.
    """
    objective, processes = engine.objective, distributed.count()
    count = distributed.add_up(objective.count(batch.targets, batch.weights))
    while True:
        total = torch.zeros((), device=engine.device)
        try:
            for part, is_last in _split(batch, engine.micro_batch_size):
                shares = isinstance(network, DistributedDataParallel)
                with network.no_sync() if shares and not is_last else nullcontext():  # one exchange a step
                    with engine.autocast():
                        logits = network(part.images)
                    if look:
                        look(logits.detach(), part)
                        look = None
                    loss = objective(logits, part.targets, part.weights, count)
                    engine.scaler.scale(loss * processes).backward()  # processes' gradients are averaged
                total += loss.detach()
            return objective.as_mean(total, count)
        except torch.OutOfMemoryError as error:
            if processes > 1:  # the others wait for this one's gradients
                raise InputError(
                    f"the GPU's memory is full: set MICRO_BATCH_SIZE to {max(2, len(batch.images) // 2)} or less"
                ) from error
            engine.micro_batch_size = _halve(engine.micro_batch_size or len(batch.images), error)
            engine.optimizer.zero_grad(set_to_none=True)
            _put_back(before)
        torch.cuda.empty_cache()  # outside the handler, whose error still holds the tensors


def _halve(size: int, error: torch.OutOfMemoryError) -> int:
    if size <= 2:
        raise InputError("the GPU's memory is full with two images: lower IMAGE_SIZE, or choose a smaller model") from (
            error
        )
    size = max(2, (size + 1) // 2)
    utils.warn(f"the GPU's memory is full: from here on steps are computed {size} images at a time (MICRO_BATCH_SIZE)")
    return size


def _split(batch: Batch, size: int) -> Iterator[tuple[Batch, bool]]:
    """(part, whether it is the last) of `size` images or so, 0: of all; as many parts in every process, of two or more.

    What a part's forward pass exchanges (GHM, SYNC_BATCHNORM) needs as many in each.
    """
    num_images = len(batch.images)
    num_parts = distributed.find_least(max(1, min(-(-num_images // size), num_images // 2))) if size else 1
    parts = zip(*(tensor.tensor_split(num_parts) for tensor in batch), strict=True)
    for number, part in enumerate(parts, 1):
        yield Batch(*part), number == num_parts


def _clip(engine: Engine) -> bool:
    """Shorten the gradient to CLIP_GRADIENT_NORM, if that is set; whether it is finite: the same in all processes."""
    engine.scaler.unscale_(engine.optimizer)
    parameters = [p for group in engine.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if engine.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, engine.clip_norm, norm)
    return bool(norm.isfinite())  # waits for the GPU, which then has nothing left but to move the weights


def _copy_statistics(engine: Engine) -> list[tuple[Tensor, Tensor]]:
    """(buffer, its copy) of all that a forward pass in training changes: BatchNorm's statistics, GHM's counts."""
    changing = [module for module in engine.model.modules() if module.training]
    buffers = [buffer for module in changing for buffer in module.buffers(recurse=False)]
    buffers += engine.objective.buffers()
    return [(buffer, buffer.clone()) for buffer in buffers]


@torch.no_grad()
def _put_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, copy in copies:
        buffer.copy_(copy)


def save_batch(path: Path, batch: Batch, epoch: int, step: int) -> None:
    """Keep a batch for inspection: `torch.load` gives its tensors and where it stood."""
    content = {**batch._asdict(), "epoch": epoch, "step": step}
    utils.write_atomically(path, lambda temporary: torch.save(content, temporary))
