"""A frozen linear layer under one or more views, its weight's rows and columns rescaled with a residual."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusionbench.layers.per_view import PerView, ViewSelector


class RescaledLinear(PerView):
    """``(W + W ∘ r cᵀ) h + b + δ``: row and column rescaling with a residual (RLRR, CVPR 2024, arXiv 2403.19067).

    W ∘ r cᵀ is never formed, since each view would need a matrix of its own: (W ∘ r cᵀ) h = r ∘ W(c ∘ h). A fused qkv
    layer has ``parts`` weights with columns c of their own, ``col`` (V, P, in); ``row`` and ``shift`` are (V, out).
    The authors start both r and c at random, so their start is not the pretrained model; ours has r = 0.

    Args:
        base: The layer to adapt; it is frozen.
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
        parts: P, how many weights of equal height lie in the layer.
    """

    def __init__(self, base: nn.Linear, views: int, selector: ViewSelector, parts: int = 1) -> None:
        super().__init__(selector)
        self.base = base.requires_grad_(False)
        like = base.weight.detach()
        self.col = nn.Parameter(like.new_empty(views, parts, base.in_features))
        self.row = nn.Parameter(like.new_zeros(views, base.out_features))
        self.shift = nn.Parameter(like.new_zeros(views, base.out_features))
        bound = math.sqrt(6 / base.in_features)  # Kaiming uniform, as the authors start c
        nn.init.uniform_(self.col, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (G·B, ..., in) to (G·B, ..., out), where G views are selected."""
        frozen = self.base(rows)
        scaled = self.by_view(rows)[:, :, None] * self.picked(self.col)[:, None]
        weight = self.base.weight.reshape(self.col.shape[1], -1, self.base.in_features)
        change = torch.einsum("gtpi,pwi->gtpw", scaled, weight).flatten(2)
        change = change * self.picked(self.row)[:, None] + self.picked(self.shift)[:, None]
        out: Tensor = frozen + change.reshape(frozen.shape)
        return out
