"""How a text-only decoder is made to read a vision transformer: a projection of its tokens, and cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench.encoders.vision_language import Memory, Past
from fusionbench.layers.gated_cross_attention import GatedCrossAttention
from fusionbench.layers.per_view import EachView


class Sight(nn.Module):
    """What a view reads pictures by: a projection to the decoder's width and cross-attention layers."""

    def __init__(self, projection: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.projection, self.layers = projection, nn.ModuleList(layers)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Project the vision tower's tokens."""
        out: Tensor = self.projection(tokens_BTD)
        return out


class EachSight(EachView):
    """The sight of each view; called, it projects the selected views' tokens."""

    def read(self, place: int, values_BND: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """Let the rows of each selected view, in equal parts, read their memory in a cross-attention layer."""
        views = self.selector.indices
        count = len(views)
        biases = [None] * count if memory.bias_BT is None else memory.bias_BT.chunk(count)
        parts = zip(views, values_BND.chunk(count), memory.tokens_BTD.chunk(count), biases, strict=True)
        out = []
        for view, values, tokens, bias in parts:
            layer = self._layer(view, place)
            out.append(layer(values, tokens if past is None else self._known(past, view, place, tokens), bias))
        return torch.cat(out)

    def _known(self, past: Past, view: int, place: int, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the memory, computed in the first pass alone."""
        if (view, place) not in past.pictures:
            past.pictures[view, place] = self._layer(view, place).keys_and_values(tokens_BTD)
        return past.pictures[view, place]

    def _layer(self, view: int, place: int) -> GatedCrossAttention:
        own: Any = self.each[view]
        layer: GatedCrossAttention = own.layers[place]
        return layer


def cross_layer(config: Any) -> GatedCrossAttention:  # noqa: ANN401 - a transformers config
    """Return a cross-attention layer of the same sizes as the decoder's own layers."""
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    return GatedCrossAttention(
        width,
        heads=heads,
        kv_heads=int(config.num_key_value_heads),
        head_width=int(getattr(config, "head_dim", None) or width // heads),
        hidden=int(config.intermediate_size),
        eps=float(config.rms_norm_eps),
        std=float(config.initializer_range),
    )
