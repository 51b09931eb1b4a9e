"""A ladder of small mixers beside a frozen encoder's layers, for one or more views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.layers.layer_adapter import Layer, LayerAdapter
from fusionbench.layers.per_view import PerView, ViewSelector


class Ladder(LayerAdapter):
    """``y_i = y_{i-1} + g_i(b_i + y_{i-1})`` beside the layers' outputs b_i, read as b_L + y_L (LoSA, CVPR 2024).

    The layers themselves never see y, so no gradient of it goes through them and none of their activations is kept.

    Args:
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
        at: Indices of the layers after which there is a mixer g_i.
        width: D.
        tokens: T, the number of places that the token mixing has weights for.
        rank: R of both mixings.
    """

    def __init__(
        self, views: int, selector: ViewSelector, *, at: Sequence[int], width: int, tokens: int, rank: int
    ) -> None:
        super().__init__(selector)
        self.step_of = {layer: step for step, layer in enumerate(at)}
        self.steps = nn.ModuleList(LowRankMixer(views, selector, width, tokens, rank) for _ in at)

    def run(
        self, index: int, layer: Layer, values_BND: Tensor, mask_BN: Tensor | None, side: Tensor | None, appended: int
    ) -> tuple[Tensor, Tensor | None]:
        """Run one layer as it is and, where there is a mixer, refine what is carried beside it."""
        values_BND = layer(values_BND, mask_BN)
        if index not in self.step_of:
            return values_BND, side
        before = torch.zeros_like(values_BND) if side is None else _as_long(side, values_BND)
        own_BN = _own(values_BND, mask_BN, appended)
        return values_BND, before + self.steps[self.step_of[index]](values_BND + before, own_BN)

    def fold(self, values_BND: Tensor, side: Tensor | None) -> Tensor:
        """Return b + y."""
        return values_BND if side is None else values_BND + _as_long(side, values_BND)


class LowRankMixer(PerView):
    """Low-rank channel mixing and then low-rank token mixing, each behind a norm: ``W₂ GELU(W₁ norm(x))``.

    The token mixing's weights belong to T places along the sequence; a sequence of another length reads them by linear
    interpolation between its first and its last token, and its sum is scaled by T / N.

    Args:
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
        width: D.
        tokens: T.
        rank: R.
    """

    def __init__(self, views: int, selector: ViewSelector, width: int, tokens: int, rank: int) -> None:
        super().__init__(selector)
        self.rank, self.tokens = rank, tokens
        for mixing, size in {"channel": width, "token": tokens}.items():
            shapes = {"gain": (width,), "offset": (width,), "down": (rank, size), "down_bias": (rank,)}
            for key, shape in {**shapes, "up": (rank, size), "up_bias": (size,)}.items():
                self.register_parameter(f"{mixing}_{key}", nn.Parameter(torch.zeros(views, *shape)))
            nn.init.ones_(self.get_parameter(f"{mixing}_gain"))
            bound = 1 / math.sqrt(size)
            nn.init.uniform_(self.get_parameter(f"{mixing}_down"), -bound, bound)

    def forward(self, values_BND: Tensor, own_BN: Tensor) -> Tensor:
        """Return what is added to (B, N, D) rows of the selected views; only tokens in ``own_BN`` (bool) are mixed."""
        channel = self._mix_channels(self._norm(values_BND, "channel"))
        return channel + self._mix_tokens(self._norm(values_BND + channel, "token"), own_BN)

    def _norm(self, values_BND: Tensor, mixing: str) -> Tensor:
        gain, offset = (self._of(f"{mixing}_{key}")[:, None] for key in ("gain", "offset"))
        plain = self.by_view(F.layer_norm(values_BND, values_BND.shape[-1:], eps=1e-6))
        return (plain * gain + offset).reshape(values_BND.shape)

    def _mix_channels(self, values_BND: Tensor) -> Tensor:
        down, bias, up, out = (self._of(f"channel_{key}") for key in ("down", "down_bias", "up", "up_bias"))
        middle = F.gelu(torch.baddbmm(bias[:, None], self.by_view(values_BND), down.mT))
        return torch.baddbmm(out[:, None], middle, up).reshape(values_BND.shape)

    def _mix_tokens(self, values_BND: Tensor, own_BN: Tensor) -> Tensor:
        down, bias, up, out = (self._of(f"token_{key}") for key in ("down", "down_bias", "up", "up_bias"))
        table = torch.cat([down, up, out[:, None]], dim=1).mT  # (G, T, 2R + 1)
        at_BNR = _read(table, own_BN) * own_BN[..., None]
        down_BNR, up_BNR, out_BN1 = torch.split(at_BNR, [self.rank, self.rank, 1], dim=-1)
        share_B = (self.tokens / own_BN.sum(dim=1).clamp(min=1)).to(down.dtype)
        rows = len(values_BND) // len(bias)
        summed_BRD = (down_BNR * share_B[:, None, None]).mT @ values_BND
        middle = F.gelu(summed_BRD + bias.repeat_interleave(rows, dim=0)[..., None])
        mixed: Tensor = up_BNR @ middle + out_BN1
        return mixed

    def _of(self, name: str) -> Tensor:
        return self.picked(self.get_parameter(name))


def _read(table_GTK: Tensor, own_BN: Tensor) -> Tensor:
    """Interpolate each view's table at each row's own tokens, the first at place 0, the last at T - 1: (B, N, K)."""
    views, places, _ = table_GTK.shape
    rank_BN = (own_BN.cumsum(dim=1) - 1).clamp(min=0)
    last_B1 = rank_BN[:, -1:].clamp(min=1)
    position_BN = (rank_BN * (places - 1)).float() / last_B1
    low = position_BN.floor().long().clamp(max=places - 1)
    high = (low + 1).clamp(max=places - 1)
    view = torch.arange(views, device=low.device).repeat_interleave(len(low) // views)[:, None]
    return torch.lerp(table_GTK[view, low], table_GTK[view, high], (position_BN - low)[..., None].to(table_GTK.dtype))


def _own(values_BND: Tensor, mask_BN: Tensor | None, appended: int) -> Tensor:
    """Say which tokens are the encoder's own and may be read, (B, N)."""
    own_BN = torch.ones_like(values_BND[..., 0], dtype=torch.bool) if mask_BN is None else mask_BN.clone()
    own_BN[:, own_BN.shape[1] - appended :] = False
    return own_BN


def _as_long(side_BND: Tensor, values_BND: Tensor) -> Tensor:
    """Extend what is carried by zeros for tokens that a strategy has appended meanwhile."""
    return F.pad(side_BND, (0, 0, 0, values_BND.shape[1] - side_BND.shape[1]))
