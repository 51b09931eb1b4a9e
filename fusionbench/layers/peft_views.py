"""Frozen linear layers under one or more views, each with a LoRA adapter as peft makes and names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fusionbench.layers import sharded
from fusionbench.layers.low_rank_parts import LowRankParts
from fusionbench.layers.per_view import PerView, ViewSelector

if TYPE_CHECKING:  # importing peft takes seconds
    from peft.tuners.lora import Linear as PeftLayer


class PeftLinear(PerView):
    """``W h + b + s B A dropout(h)`` with the A, B and s of a peft layer that holds one named adapter for each view.

    LoRA (arXiv 2106.09685, Sec. 4.1). Each view's A (R, in) and B (out, R) are peft's own modules, in float32 also
    beside a base of half precision. The pass is ours: peft trains mixed batches only in an order of adapters, and
    so of dropout's draws, that differs from process to process. The base runs once over the rows of all views.

    Args:
        layer: What peft has put into a linear layer's place; its base is frozen.
        selector: Tells which views a pass is for.
        dropout: Share of the adapters' inputs that is dropped in training.
    """

    def __init__(self, layer: PeftLayer, selector: ViewSelector, dropout: float) -> None:
        super().__init__(selector)
        self.base: nn.Module = layer.get_base_layer().requires_grad_(False)
        self.lora_A = nn.ModuleList(layer.lora_A.values()).requires_grad_(True)
        self.lora_B = nn.ModuleList(layer.lora_B.values()).requires_grad_(True)
        self.dropout = dropout
        self.scales = tuple(float(layer.scaling[name]) for name in layer.lora_A)
        _widen([*self.lora_A.parameters(), *self.lora_B.parameters()])
        self.train(self.base.training)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (G·B, ..., in) to (G·B, ..., out), where G views are selected."""
        frozen: Tensor = self.base(rows)
        views = self.selector.indices
        updates = [self._update(view, own) for view, own in zip(views, rows.chunk(len(views)), strict=True)]
        return (frozen + torch.cat(updates)).to(frozen.dtype)

    def _update(self, view: int, rows: Tensor) -> Tensor:
        down = self.lora_A[view]
        kept = dropout(rows.to(next(down.parameters()).dtype), self.dropout, self.training)
        out: Tensor = self.lora_B[view](down(kept)) * self.scales[view]
        return out

    def view_state(self, view: int) -> dict[str, Tensor]:
        """Return a copy of one view's A and B in main memory, by the names that peft's files have."""
        return {key: sharded.value(own).clone() for key, own in self._of(view).items()}

    def load_view_state(self, view: int, state: Mapping[str, Tensor]) -> None:
        """Put one view's A and B back."""
        for key, own in self._of(view).items():
            own.data.copy_(state[key])

    def peft_state(self, view: int) -> dict[str, Tensor]:
        """Return one view's tensors as peft's files hold them."""
        return self.view_state(view)

    def _of(self, view: int) -> dict[str, nn.Parameter]:
        both = {"lora_A": self.lora_A[view], "lora_B": self.lora_B[view]}
        return {f"{name}.{key}": own for name, module in both.items() for key, own in module.named_parameters()}


class PeftParts(LowRankParts):
    """Adapters of some parts of a fused layer, which peft can train only as a whole but can read.

    What peft reads is one adapter of rank P·R: the A_p below one another, and a B whose blocks outside each part's own
    rows and ranks are zero. Input dropout and float32 are as in ``PeftLinear``; all parts share a draw.

    Args:
        base: The fused layer; it is frozen.
        views: V, how many adapter sets to hold.
        selector: Tells which views a pass is for.
        parts: Which of its parts to adapt, in rising order.
        of: How many parts of equal height the layer has.
        rank: R.
        scale: s = α / R.
        dropout: Share of the adapters' inputs that is dropped in training.
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
        dropout: float,
    ) -> None:
        super().__init__(base, views, selector, parts=parts, of=of, rank=rank, scale=scale)
        self.dropout = dropout
        _widen([self.down, self.up])
        self.train(base.training)

    def by_view(self, rows: Tensor) -> Tensor:
        """Turn what the adapters read, (G·B, ..., D), into (G, T, D), some of it dropped in training."""
        return super().by_view(dropout(rows.to(self.down.dtype), self.dropout, self.training))

    def peft_state(self, view: int) -> dict[str, Tensor]:
        """Return one view's tensors as peft's files hold them: A (P·R, in) and B (out, P·R)."""
        down, up = sharded.value(self.down)[view], sharded.value(self.up)[view]
        blocks = up.new_zeros(self.of, up.shape[1], *up.shape[::2])
        blocks[self.parts.cpu(), :, torch.arange(len(up))] = up
        return {"lora_A.weight": down.clone(), "lora_B.weight": blocks.flatten(2).flatten(0, 1)}


def _widen(parameters: Iterable[nn.Parameter]) -> None:
    """Turn parameters of half precision into float32, in which small steps of an optimizer are not lost."""
    for own in parameters:
        own.data = own.data.to(torch.promote_types(own.dtype, torch.float32))
