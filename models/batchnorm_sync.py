"""Synchronised BatchNorm: normalises by the images of all processes together.

    model = batchnorm_sync.convert(model, device)

On GPUs it is torch's SyncBatchNorm. On CPUs torch has none, so this file holds one. The formulas are those of Ioffe and
Szegedy (2015). Mean and variance are those of all processes' images, joined as in Chan et al. (1979): several processes
compute what one process with all the images would compute.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import distributed

Network = TypeVar("Network", bound=nn.Module)


def convert(model: Network, device: torch.device) -> Network:
    """Make every BatchNorm of `model` synchronised in training. Parameters and buffers stay. Returns the model."""
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        converted: Any = convert_sync_batchnorm(model)  # torch's own loses the activation in timm's BatchNorm
        return converted
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _derive(type(module))
    return model


@cache
def _derive(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """A subclass of the BatchNorm class `kind` that is synchronised in training."""
    return type(f"Sync{kind.__name__}", (_Synchronised, kind), {})


class _Synchronised(_BatchNorm):
    """The forward pass that `convert` adds to a BatchNorm's class; in evaluation the class's forward pass runs."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.count() == 1:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._update_statistics(mean, variance * count / (count - 1))  # BatchNorm keeps the unbiased variance
        for name in ("drop", "act"):  # timm's BatchNormAct2d has them inside
            if hasattr(self, name):
                output = self.get_submodule(name)(output)
        return output

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Normalise(torch.autograd.Function):
    """(input, weight, bias, eps) -> (output, mean, biased variance, count).

    Input and output are (N, C, ...). Mean and variance (C,) and the count of values in a channel are those of the
    images of all processes.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        x = _widen(input)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        means = x.mean(axes)
        variances = (x - _spread(means, x)).square_().mean(axes)  # torch.var_mean takes several times as long on CPUs
        row = torch.cat((x.new_tensor([x.numel() / x.shape[1]]), means, variances))
        # Every process fills its row of a table of zeros; the sum of all tables then holds every process's row.
        table = row.new_zeros(distributed.count(), len(row))
        table[distributed.rank()] = row
        counts, means, variances = distributed.add_up(table).split((1, len(means), len(means)), dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(input, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        output = nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
        return output.to(input.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance, count = ctx.saved_tensors
        x, needed = _widen(input), [True, True, True]
        # First the gradient as if mean and variance were constants; then what is due to their dependence on the input.
        of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            _widen(gradients[0]), x, weight, mean, variance, None, None, False, ctx.eps, needed
        )
        scale = (variance + ctx.eps).rsqrt()
        factor = scale if weight is None else scale * weight
        of_weights, of_biases = distributed.add_up(torch.stack((of_weight, of_bias))) * factor / count
        slope = of_weights * scale
        of_input.addcmul_(x, _spread(slope, x), value=-1).sub_(_spread(of_biases - slope * mean, x))
        if weight is None:
            of_weight = of_bias = None
        return of_input.to(input.dtype), of_weight, of_bias, None


def _widen(tensor: Tensor) -> Tensor:
    """`tensor` in float32 at least: under autocast it comes in bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `values` (C,) so that they lie along axis 1 of `like` (N, C, ...)."""
    return values.view(-1, *[1] * (like.dim() - 2))
