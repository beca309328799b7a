"""BatchNorm over the images of all processes: torch's SyncBatchNorm on GPUs, and one for CPUs, where torch has none.

    model = sync_batchnorm.convert(model, device)

The formulas are those of Ioffe and Szegedy (2015); mean and variance, and in the backward pass the two sums over the
batch, are added up over the processes, so that these compute together what one would alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import distributed


def convert(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, its parameters and buffers the same, with every BatchNorm synchronised while it trains."""
    if device.type == "cuda":
        return convert_sync_batchnorm(model)  # timm's: torch's own loses the activation in timm's BatchNorm
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _derive(type(module))
    return model


@cache
def _derive(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Sync{kind.__name__}", (_Synchronised, kind), {})


class _Synchronised(_BatchNorm):
    """What `convert` puts before a BatchNorm's own class, whose forward pass stays for evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.count() == 1:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._note(mean, variance * count / (count - 1))  # the unbiased variance, as BatchNorm keeps it
        if isinstance(self, BatchNormAct2d):
            for name in ("drop", "act"):
                output = self.get_submodule(name)(output)
        return output

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance, part)


class _Normalise(torch.autograd.Function):
    """(input, weight, bias, eps) -> (output, mean, biased variance, count), the last three of all processes' images."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        axes = [axis for axis in range(input.dim()) if axis != 1]
        x = _widen(input)
        total, count = _add_up(x.sum(axes), x.new_tensor([x.numel() / x.shape[1]]))
        mean = total / count
        (squares,) = _add_up((x - _spread(mean, x)).square().sum(axes))
        variance = squares / count
        output = nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps).to(input.dtype)
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale, count = ctx.saved_tensors
        axes = [axis for axis in range(input.dim()) if axis != 1]
        gradient = _widen(gradients[0])
        normalised = (_widen(input) - _spread(mean, input)) * _spread(scale, input)
        of_bias, of_weight = gradient.sum(axes), (gradient * normalised).sum(axes)
        sum_, product = _add_up(of_bias, of_weight)
        of_input = gradient - _spread(sum_ / count, input) - normalised * _spread(product / count, input)
        of_input = of_input * _spread(scale if weight is None else scale * weight, input)
        return of_input.to(input.dtype), *((None, None) if weight is None else (of_weight, of_bias)), None


def _add_up(*tensors: Tensor) -> list[Tensor]:
    """The sums over all processes of one-dimensional `tensors`, in one exchange."""
    sums = distributed.add_up(torch.cat(tensors))
    return list(sums.split([len(tensor) for tensor in tensors]))


def _widen(tensor: Tensor) -> Tensor:
    """`tensor` in float32 where it is bf16, as under autocast."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """`values` (C,) along axis 1 of `like` (N, C, ...)."""
    return values.view(-1, *[1] * (like.dim() - 2))
