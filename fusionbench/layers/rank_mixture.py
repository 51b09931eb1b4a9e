"""A frozen linear layer under one or more views, each with a mixture of low-rank updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionbench.layers.per_view import PerView, ViewSelector


class RankMixtureLinear(PerView):
    """``Wh + b + Σ_k w_k s B_k A_k h``: LoRA, LoRA-MoE and MoR in one layer (EI, arXiv 2603.17514, Eq. 4).

    The A_k of all ranks lie side by side in ``down`` (V, R, in) and the B_k in ``up`` (V, out, R), R being the sum of
    the ranks; the router's rows are appended to ``down``, so one view's update is two matrix products, several views'
    are two batched ones. The routing weights w are a softmax for each token, multiplied into the R-wide middle.
    The scale s = α / r = 2 is the authors' code's; Eq. 4 leaves it out.

    Args:
        base: The layer to adapt; it is frozen.
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
        ranks: Rank of each expert.
        routed: Whether a router weighs the experts; without, each has weight 1.
        bypass: Whether the router has a further output whose share of the update is dropped.
        scale: s.
    """

    def __init__(
        self,
        base: nn.Linear,
        views: int,
        selector: ViewSelector,
        *,
        ranks: Sequence[int],
        routed: bool,
        bypass: bool,
        scale: float = 2.0,
    ) -> None:
        super().__init__(selector)
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.bypass = int(bypass)
        total = sum(ranks)
        like = base.weight.detach()
        self.down = nn.Parameter(like.new_empty(views, total, base.in_features))
        self.up = nn.Parameter(like.new_zeros(views, base.out_features, total))
        self.experts = len(ranks) + self.bypass if routed else 0
        if routed:
            self.route_weight = nn.Parameter(like.new_empty(views, self.experts, base.in_features))
            self.route_bias = nn.Parameter(like.new_empty(views, self.experts))
        expert_of_rank = torch.tensor([expert for expert, rank in enumerate(ranks) for _ in range(rank)])
        self.register_buffer("expert_of_rank", expert_of_rank, persistent=False)
        self.expert_of_rank: Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A and the router as ``nn.Linear`` does (Kaiming uniform, a = √5); B is zero, so nothing changes yet."""
        bound = 1 / math.sqrt(self.base.in_features)
        nn.init.uniform_(self.down, -bound, bound)
        nn.init.zeros_(self.up)
        if self.experts:
            nn.init.uniform_(self.route_weight, -bound, bound)
            nn.init.uniform_(self.route_bias, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (G·B, ..., in) to (G·B, ..., out), where G views are selected."""
        hidden = self.by_view(rows)
        frozen = self.base(rows)
        adapted = torch.baddbmm(self.by_view(frozen), self._middle(hidden), self.picked(self.up).mT)
        return adapted.reshape(frozen.shape)

    def _middle(self, hidden: Tensor) -> Tensor:
        """Return the weighted ``s w_k A_k h`` of all ranks, (G, T, R)."""
        down = self.picked(self.down)
        if not self.experts:
            return torch.bmm(hidden, down.mT) * self.scale
        both = torch.cat([down, self.picked(self.route_weight)], dim=1)
        low, logits = torch.split(torch.bmm(hidden, both.mT), [down.shape[1], self.experts], dim=-1)
        logits = logits + self.picked(self.route_bias)[:, None]
        weights = logits.float().softmax(dim=-1).to(low.dtype)[..., self.bypass :]
        weighted: Tensor = low * (weights * self.scale)[..., self.expert_of_rank]
        return weighted
