"""Shift, or scale and shift, of what a frozen module gives, for one or more views."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fusionbench.layers.per_view import PerView, ViewSelector

_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm2d, nn.GroupNorm, LayerNorm2d)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


def is_affine_site(module: nn.Module) -> bool:
    """Whether a module ends in an addition of its bias, so that a shift of its output is a change of that bias."""
    activated = not isinstance(getattr(module, "act", nn.Identity()), nn.Identity)  # timm's norms with an activation
    return isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST) and not activated


class OutputShift(PerView):
    """``f(x) + δ``: a bias of each view's own beside the frozen module's (BitFit, arXiv 2106.10199).

    δ (V, D) starts at zero, so the module's own bias stays in the frozen base, unchanged by training, and b + δ is
    what BitFit trains.

    Args:
        base: The module, one of those that ``is_affine_site`` knows; it is frozen.
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
    """

    def __init__(self, base: nn.Module, views: int, selector: ViewSelector) -> None:
        super().__init__(selector)
        self.base = base.requires_grad_(False)
        weight = base.weight
        assert isinstance(weight, Tensor)
        self.shift = nn.Parameter(weight.detach().new_zeros(views, weight.shape[0]))

    def forward(self, rows: Tensor) -> Tensor:
        """Map what the module takes, (G·B, ...), to what it gives, where G views are selected."""
        out: Tensor = self.base(rows)
        return out + self.rowwise(self.shift, out)

    def rowwise(self, parameter: Tensor, out: Tensor) -> Tensor:
        """Return each row's values of a parameter (V, D), shaped to be broadcast against the output."""
        chosen = self.picked(parameter)
        each = chosen.repeat_interleave(out.shape[0] // len(chosen), dim=0)
        spread = [1] * (out.ndim - 2)
        first = isinstance(self.base, _CHANNELS_FIRST)
        return each.reshape(len(each), -1, *spread) if first else each.reshape(len(each), *spread, -1)


class OutputAffine(OutputShift):
    """``γ f(x) + δ`` with γ (V, D) one and δ (V, D) zero at the start (SSF, arXiv 2210.08823, Eq. 3)."""

    def __init__(self, base: nn.Module, views: int, selector: ViewSelector) -> None:
        super().__init__(base, views, selector)
        self.gain = nn.Parameter(torch.ones_like(self.shift))

    def forward(self, rows: Tensor) -> Tensor:
        """Map what the module takes, (G·B, ...), to what it gives, where G views are selected."""
        out: Tensor = self.base(rows)
        return out * self.rowwise(self.gain, out) + self.rowwise(self.shift, out)
