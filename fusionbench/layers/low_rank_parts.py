"""A frozen fused linear layer under one or more views, with a low-rank update beside some of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionbench.layers.per_view import PerView, ViewSelector


class LowRankParts(PerView):
    """LoRA (arXiv 2106.09685) on, e.g., the queries and values of a fused qkv layer, each with matrices of its own.

    Part p of the output becomes ``W_p h + b_p + s B_p A_p h``; the other parts stay as they are. The A_p lie side by
    side in ``down`` (V, P·R, in), the B_p in ``up`` (V, P, out / of, R).

    Args:
        base: The layer to adapt; it is frozen.
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
        parts: Which of its parts to adapt, in rising order.
        of: How many parts of equal height the layer has.
        rank: R.
        scale: s = α / R.
    """

    def __init__(
        self,
        base: nn.Linear,
        views: int,
        selector: ViewSelector,
        *,
        parts: Sequence[int],
        of: int,
        rank: int,
        scale: float,
    ) -> None:
        super().__init__(selector)
        self.base = base.requires_grad_(False)
        self.of, self.scale = of, scale
        like = base.weight.detach()
        self.down = nn.Parameter(like.new_empty(views, len(parts) * rank, base.in_features))
        self.up = nn.Parameter(like.new_zeros(views, len(parts), base.out_features // of, rank))
        self.register_buffer("parts", torch.tensor(parts), persistent=False)
        self.parts: Tensor
        bound = 1 / math.sqrt(base.in_features)  # Kaiming uniform, a = √5, as in RankMixtureLinear
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (G·B, ..., in) to (G·B, ..., out), where G views are selected."""
        frozen = self.base(rows)
        low = torch.bmm(self.by_view(rows), self.picked(self.down).mT) * self.scale
        low = low.reshape(*low.shape[:2], len(self.parts), -1)
        update = torch.einsum("gtpr,gpwr->gtpw", low, self.picked(self.up))
        by_part = frozen.reshape(*low.shape[:2], self.of, -1)
        out: Tensor = by_part.index_add(2, self.parts, update.to(frozen.dtype)).reshape(frozen.shape)
        return out
