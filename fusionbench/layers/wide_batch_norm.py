"""Batch norms whose statistics are held in float32 while their network is held in half precision."""

from __future__ import annotations

from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class WideBatchNorm(_BatchNorm):
    """A BatchNorm1d, 2d or 3d that takes input, and has weights, of another type than its statistics.

    A running mean moves by a tenth of a difference, which bfloat16 would round away. Torch takes half input with all
    else in float32; so weight and bias are cast.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take whatever shape the norm that this one stands for takes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...)."""
        return _normalise(self, input)


class WideBatchNormAct(BatchNormAct2d):  # type: ignore[misc]  # timm has no types
    """The same for timm's batch norm with an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) and apply dropout and activation."""
        return self.act(self.drop(_normalise(self, x)))  # type: ignore[no-any-return]


# By class, since others may compute otherwise.
_WIDE = {
    nn.BatchNorm1d: WideBatchNorm,
    nn.BatchNorm2d: WideBatchNorm,
    nn.BatchNorm3d: WideBatchNorm,
    BatchNormAct2d: WideBatchNormAct,
}


def widen(norm: nn.Module) -> bool:
    """Let a batch norm have statistics of another type than its weights; it becomes of another class where it stands.

    Returns:
        Whether it is one, now or before.
    """
    norm.__class__ = _WIDE.get(type(norm), type(norm))
    return isinstance(norm, WideBatchNorm | WideBatchNormAct)


def _normalise(norm: WideBatchNorm | WideBatchNormAct, values: Tensor) -> Tensor:
    """Do what torch's batch norm does, weights in the type of the statistics."""
    mean_C: Tensor | None = norm.running_mean
    var_C: Tensor | None = norm.running_var
    rate = norm.momentum or 0.0
    kept = mean_C is not None and var_C is not None
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else rate
    if norm.training and not norm.track_running_stats:
        mean_C, var_C = None, None
    weight_C, bias_C = (own if own is None or mean_C is None else own.to(mean_C) for own in (norm.weight, norm.bias))
    return F.batch_norm(values, mean_C, var_C, weight_C, bias_C, norm.training or not kept, rate, norm.eps)
