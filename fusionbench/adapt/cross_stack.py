"""Cross blocks out of an encoder's own pretrained layers, tuned as the encoders are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.base import Tokens
from fusionbench.encoders.llama import Llama
from fusionbench.errors import UserError
from fusionbench.layers.cross_block import CrossBlock


class CrossStack(nn.Module):
    """Blocks one after the other, in which the modalities of a case read each other.

    They start from the pretrained decoder layers of the first modality whose encoder is ``llama``, and the tuning
    method works on them: beside a frozen layer with an adapter set for each direction, or else on a whole copy of the
    attention for each. Where no encoder is a Llama, there are no pretrained layers, so that random ones of the first
    modality's width are trained whole, with heads of gcd(D, 64) channels and 8 D / 3 hidden units.

    Args:
        pool: Where encoders come from.
        views: Of the modalities, by their names.
        option: Name of the option that ``layers`` is, for errors.
        layers: Which pretrained layer each block starts from.
        complete: Every case has every modality.

    Attributes:
        width: D that tokens must have.
    """

    def __init__(self, pool: EncoderPool, views: Views, option: str, layers: Sequence[int], *, complete: bool) -> None:
        super().__init__()
        if not layers or min(layers) < 0:
            raise UserError(f"'{option}' must name one or more decoder layers, counted from 0, not {list(layers)}")
        self.blocks = nn.ModuleList(_blocks(pool, views, option, layers))
        self.width = int(self.blocks[0].width)  # type: ignore[arg-type]
        self.complete = complete

    def forward(self, tokens: Mapping[str, Tokens], present_BM: Tensor) -> dict[str, Tokens]:
        """Return the tokens (B, N, D) after the last block; those of an absent modality must not be read."""
        dtype = next(self.blocks[0].norm.parameters()).dtype  # type: ignore[union-attr]
        states = {name: t.values.to(dtype) for name, t in tokens.items()}
        masks = self._masks(tokens, present_BM)
        for block in self.blocks:
            states = block(states, masks)
        return {name: replace(t, values=states[name]) for name, t in tokens.items()}

    def _masks(self, tokens: Mapping[str, Tokens], present_BM: Tensor) -> dict[str, Tensor] | None:
        """Return which tokens may be read, (B, N) by modality; None if all."""
        if self.complete and all(t.mask is None for t in tokens.values()):
            return None
        masks = {}
        for index, (name, t) in enumerate(tokens.items()):
            here = present_BM[:, index, None].expand(t.values.shape[:2])
            masks[name] = here if t.mask is None else here & t.mask
        return masks


def _blocks(pool: EncoderPool, views: Views, option: str, layers: Sequence[int]) -> list[CrossBlock]:
    """Build and tune the blocks."""
    width, directions = views.width(next(iter(views.address))), len(views.address)
    llamas = [options for kind, options in pool.nodes.values() if issubclass(kind, Llama)]
    decoder_layers = Llama.blocks(llamas[0], layers, option) if llamas else _random_layers(width, len(layers))
    blocks = [CrossBlock(layer) for layer in decoder_layers]
    for block in blocks:
        block.requires_grad_(True)
        if llamas:
            pool.tune(block, directions)
        if all(p.requires_grad for p in block.parameters()):
            block.separate(directions)
        if directions == 1:
            block.requires_grad_(False)  # a modality alone has nothing to read, so that nothing here would learn
    return blocks


def _random_layers(width: int, count: int) -> list[nn.Module]:
    """Return decoder layers without pretrained weights."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    heads = width // math.gcd(width, 64)
    config = LlamaConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=round(8 * width / 3))
    return [LlamaDecoderLayer(config, index) for index in range(count)]
