"""The cross-modal block of MDF-MLLM: a U-Net's skip joins the vision tokens that a language model reads."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.errors import UserError, check_number, nearest
from fusionbench.layers.projection import check_heads
from fusionbench.layers.skip_tokens import SkipTokens

_QUERIES = ("unet", "vision")


class Fused(NamedTuple):
    """What a decoder layer shall read instead of the vision tokens.

    Attributes:
        tokens: (B, T', D).
        bias: (B, T'), added to the attention logits of each token: 0 open, log g gated, -inf closed; None: all open.
        map: (B, G, G), how much each place of the skip counts, summing to 1; None: not asked for.
    """

    tokens: Tensor
    bias: Tensor | None
    map: Tensor | None


class CrossModal(nn.Module):
    """Scaled cross-attention between one skip and the vision tokens, for one decoder layer (arXiv 2509.21358).

    The paper's form is not known to us; both directions are ours. P (B, G², D) are the skip's tokens (``SkipTokens``),
    V the vision tokens, heads of width d; queries, keys and values have no bias and no output projection.

    * ``unet``: F = P + α softmax(W_q P (W_k V)ᵀ / √d) W_v V. The layer reads [V, F], F under the additive bias log g
      with a learned gate g in (0, 1); g → 0 is exactly the unfused model.
    * ``vision``: V + α softmax(W_q V (W_k P)ᵀ / √d) W_v P, with as many tokens as before; α = 0 is the unfused model.

    Args:
        width: D of the vision tokens, the language model's.
        channels: C of the skip.
        heads: Attention heads.
        grid: G, places to a side to which the skip is averaged.
        query: Which side asks.
        alpha: Where the scalar α starts.
        learn_alpha: Whether α is learned or stays.
        gate: Where g starts; 0 and 1 stay, closed and open. With ``vision`` there is none.
    """

    alpha: Tensor
    gate_logit: Tensor

    def __init__(
        self,
        width: int,
        channels: int,
        *,
        heads: int = 8,
        grid: int = 16,
        query: Literal["unet", "vision"] = "unet",
        alpha: float = 0.1,
        learn_alpha: bool = True,
        gate: float = 0.1,
    ) -> None:
        super().__init__()
        _check(width, heads, query, alpha, gate)
        self.heads, self.grid, self.query = heads, grid, query
        self.skip = SkipTokens(channels, width, grid)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        _scalar(self, "alpha", torch.tensor([float(alpha)]), learned=learn_alpha)
        logit = torch.tensor([float(gate)], dtype=torch.float64).logit().float()
        _scalar(self, "gate_logit", logit, learned=query == "unet" and 0 < gate < 1)

    @property
    def log_gate(self) -> Tensor:
        """Return log g, (1,); the gate is held as a logit, so that it is exact however far the gate closes."""
        return F.logsigmoid(self.gate_logit)

    def forward(
        self, skip_BCHW: Tensor, vision_BTD: Tensor, present_B: Tensor | None = None, maps: bool = False
    ) -> Fused:
        """Fuse a skip with the vision tokens.

        Args:
            skip_BCHW: (B, C, H, W), finite also where there is no picture.
            vision_BTD: (B, T, D).
            present_B: (B,) bool, False where there is no picture, all of whose tokens are closed; None: all have one.
            maps: Also tell how much each place of the skip counts. That is the mean over heads and vision tokens of
                softmax over the places of the attention logits: with ``vision`` the attention itself; with ``unet``
                the same logits, but normalised over the places that ask.

        Returns:
            (B, T + G², D) with ``unet``, (B, T, D) with ``vision``.
        """
        skip_BPD, vision = self.skip(skip_BCHW), vision_BTD.to(self.k.weight.dtype)
        asks, answers = (skip_BPD, vision) if self.query == "unet" else (vision, skip_BPD)
        query, key, value = self._split(self.q(asks)), self._split(self.k(answers)), self._split(self.v(answers))
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = (asks + self.alpha * read).to(vision_BTD.dtype)
        if self.query == "unet":
            tokens = torch.cat([vision_BTD, tokens], dim=1)
        picture = self._map(query, key) if maps else None
        return Fused(tokens, self._bias(tokens, vision_BTD.shape[1], present_B), picture)

    def _split(self, tokens_BND: Tensor) -> Tensor:
        """Turn (B, N, D) into (B, heads, N, d)."""
        rows, count, _ = tokens_BND.shape
        return tokens_BND.reshape(rows, count, self.heads, -1).transpose(1, 2)

    def _bias(self, tokens_BTD: Tensor, own: int, present_B: Tensor | None) -> Tensor | None:
        """Return the additive bias (B, T') of the tokens, of which the first ``own`` are the vision tokens."""
        if self.query == "vision" and present_B is None:
            return None
        open_B = tokens_BTD.new_zeros(len(tokens_BTD))
        if present_B is not None:
            open_B = open_B.masked_fill(~present_B, -math.inf)
        gate = self.log_gate.to(open_B.dtype).expand(tokens_BTD.shape[1] - own)
        return open_B[:, None] + torch.cat([gate.new_zeros(own), gate])

    @torch.no_grad()
    def _map(self, query: Tensor, key: Tensor) -> Tensor:
        """Return how much each place of the skip counts, (B, G, G), in float32."""
        logits = (query @ key.mT).float() / math.sqrt(query.shape[-1])
        by_place = logits.mT if self.query == "unet" else logits  # (B, heads, T, P)
        return by_place.softmax(dim=-1).mean(dim=(1, 2)).reshape(-1, self.grid, self.grid)


def _check(width: int, heads: int, query: str, alpha: float, gate: float) -> None:
    check_heads("fusion.heads", heads, width)
    check_number("fusion.alpha", alpha, least=0)
    check_number("fusion.gate", gate, least=0)
    if gate > 1:
        raise UserError(f"'fusion.gate' must lie in 0 to 1, not {gate}")
    if query not in _QUERIES:
        raise UserError(f"'fusion.query' cannot be '{query}'{nearest(query, _QUERIES)}")


def _scalar(module: nn.Module, name: str, value: Tensor, learned: bool) -> None:
    """Give a module a number, (1,), that is learned or stays; sharded, a parameter cannot be without an axis."""
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)
