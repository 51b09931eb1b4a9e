"""Batch norms whose statistics are those of the batches of all processes, as if one process had them all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusionbench.layers.wide_batch_norm import WideBatchNorm, WideBatchNormAct


class SyncBatchNorm(WideBatchNorm):
    """A BatchNorm1d, 2d or 3d over all processes, on any device.

    ``torch.nn.SyncBatchNorm`` takes GPU tensors alone, and always counts what it is given. Here a process whose batch
    holds nothing that counts still takes part, as the processes of a sharded model must make the same calls.
    Statistics and their sums over processes are float32 at least; equal to one process's but for rounding, gradients
    included. In evaluation it is the plain batch norm.

    Attributes:
        idle: What comes in is no part of the statistics (``PresentRows.alone``).
    """

    idle: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...), where B may differ between processes."""
        return _normalise(self, input) if self.training else super().forward(input)


class SyncBatchNormAct(WideBatchNormAct):
    """The same for timm's batch norm with an activation behind it."""

    idle: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) and apply dropout and activation."""
        if not self.training:
            return super().forward(x)
        return self.act(self.drop(_normalise(self, x)))  # type: ignore[no-any-return]


def synchronise(module: nn.Module) -> nn.Module:
    """Let the batch norms that are trained take their statistics over all processes, if there are several.

    Norms become of another class where they stand, so names, parameters, hooks and state dict stay what they were.

    Args:
        module: The network, in which frozen norms stay plain.

    Returns:
        The same module.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return module
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and any(p.requires_grad for p in norm.parameters(recurse=False)):
            norm.__class__ = SyncBatchNormAct if isinstance(norm, BatchNormAct2d) else SyncBatchNorm
    return module


class _AllGather(torch.autograd.Function):
    """Stack a tensor of each process, (W, ...); a process's gradient is the sum of what all send back to it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def _normalise(norm: SyncBatchNorm | SyncBatchNormAct, values: Tensor) -> Tensor:
    """Normalise by the statistics of all processes, and keep their running means."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    shape = (1, -1, *[1] * (values.ndim - 2))
    mean_C, var_C, count = _statistics(wide, norm.idle)
    if norm.running_mean is not None and norm.running_var is not None:
        _keep(norm, mean_C.detach(), var_C.detach(), count)
        # Where nothing counts in any process, the kept statistics stand in.
        mean_C = torch.where(count > 0, mean_C, norm.running_mean.to(mean_C))
        var_C = torch.where(count > 0, var_C, norm.running_var.to(var_C))
    scale_C = torch.rsqrt(var_C + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift_C = (0 if norm.bias is None else norm.bias) - mean_C * scale_C
    return (wide * scale_C.view(shape) + shift_C.view(shape)).to(values.dtype)


def _statistics(values: Tensor, idle: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and the number of values () over all processes, in one exchange.

    The processes' own variances and the variance of their means add up, weighted (Chan et al. 1979), which keeps the
    precision that a mean of squares loses.
    """
    own_var_C, own_mean_C = torch.var_mean(values, dim=[d for d in range(values.ndim) if d != 1], correction=0)
    size = 0 if idle else values.numel() // values.shape[1]
    gathered: Tensor = _AllGather.apply(torch.cat([own_mean_C, own_var_C, own_mean_C.new_tensor([size])]))  # type: ignore[no-untyped-call]
    mean_WC, var_WC = gathered[:, :-1].chunk(2, dim=1)
    count_W1 = gathered[:, -1:].detach()
    count = count_W1.sum()
    share_W1 = count_W1 / count.clamp(min=1)
    mean_C = (share_W1 * mean_WC).sum(dim=0)
    return mean_C, (share_W1 * (var_WC + (mean_WC - mean_C).square())).sum(dim=0), count


@torch.no_grad()
def _keep(norm: SyncBatchNorm | SyncBatchNormAct, mean_C: Tensor, var_C: Tensor, count: Tensor) -> None:
    """Update the running statistics as torch's batch norm does, with the unbiased variance; not if nothing counts."""
    assert norm.num_batches_tracked is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    counts = count > 0
    norm.num_batches_tracked += counts
    rate = 1 / norm.num_batches_tracked.clamp(min=1) if norm.momentum is None else norm.momentum
    unbiased_C = var_C * (count / (count - 1).clamp(min=1))
    for kept, own in ((norm.running_mean, mean_C), (norm.running_var, unbiased_C)):
        kept.lerp_(own.to(kept.dtype), (rate * counts).to(kept.dtype))
