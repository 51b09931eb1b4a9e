"""Prompt tokens beside a frozen encoder's own, for one or more views."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusionbench.layers.layer_adapter import Layer, LayerAdapter
from fusionbench.layers.per_view import ViewSelector


class _Prompts(LayerAdapter):
    """Prompts of ``layers`` layers, (V, L, P, D), uniform in ±√(3 / D), which is VPT's start for a ViT-B/16."""

    def __init__(self, views: int, selector: ViewSelector, *, layers: int, count: int, like: Tensor) -> None:
        super().__init__(selector)
        width = like.shape[-1]
        self.prompts = nn.Parameter(like.detach().new_empty(views, layers, count, width))
        nn.init.uniform_(self.prompts, -math.sqrt(3 / width), math.sqrt(3 / width))

    def of_layer(self, index: int, rows: int) -> Tensor:
        """Return a layer's prompts for each row, (G·B, P, D)."""
        chosen = self.picked(self.prompts)[:, index]
        return chosen.repeat_interleave(rows // len(chosen), dim=0)


class DeepPrompts(_Prompts):
    """Each layer sees prompts of its own behind the first token; they are gone after it (VPT-deep)."""

    def run(
        self, index: int, layer: Layer, values_BND: Tensor, mask_BN: Tensor | None, side: Tensor | None, appended: int
    ) -> tuple[Tensor, Tensor | None]:
        """Run one layer on the sequence with the layer's prompts in it."""
        prompts = self.of_layer(index, len(values_BND))
        return _run(layer, values_BND, mask_BN, prompts)[0], None


class ShallowPrompts(_Prompts):
    """Prompts enter before the first layer and go through all of them, beside the sequence (VPT-shallow)."""

    def run(
        self, index: int, layer: Layer, values_BND: Tensor, mask_BN: Tensor | None, side: Tensor | None, appended: int
    ) -> tuple[Tensor, Tensor | None]:
        """Run one layer on the sequence with the prompts in it as the layer before left them."""
        prompts = self.of_layer(0, len(values_BND)) if side is None else side
        return _run(layer, values_BND, mask_BN, prompts)


def _run(layer: Layer, values_BND: Tensor, mask_BN: Tensor | None, prompts_BPD: Tensor) -> tuple[Tensor, Tensor]:
    """Run a layer with prompts behind the first token and take the two apart again."""
    count = prompts_BPD.shape[1]
    prompts_BPD = prompts_BPD.to(values_BND.dtype)
    joined = torch.cat([values_BND[:, :1], prompts_BPD, values_BND[:, 1:]], dim=1)
    if mask_BN is not None:
        open_BP = mask_BN.new_ones(len(mask_BN), count)
        mask_BN = torch.cat([mask_BN[:, :1], open_BP, mask_BN[:, 1:]], dim=1)
    out = layer(joined, mask_BN)
    return torch.cat([out[:, :1], out[:, 1 + count :]], dim=1), out[:, 1 : 1 + count]
