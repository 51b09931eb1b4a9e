"""Cross blocks out of an encoder's own pretrained layers, tuned as the encoders are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.base import Tokens
from fusionbench.encoders.llama import Llama
from fusionbench.encoders.llama_weights import precision, widen
from fusionbench.errors import UserError
from fusionbench.layers.cross_block import CrossBlock
from fusionbench.types import Problem


class CrossStack(nn.Module):
    """Blocks one after the other, in which the modalities of a case read each other.

    They start from the pretrained decoder layers of the first modality whose encoder is ``llama``, and the tuning
    method works on them: beside a frozen layer with an adapter set for each direction, or else on a whole copy of the
    attention for each. Where no encoder is a Llama, there are no pretrained layers, so that random ones of the first
    modality's width are trained whole, with heads of gcd(D, 64) channels and 8 D / 3 hidden units.

    Args:
        pool: Where encoders come from.
        views: Of the modalities, by their names.
        problem: Its modalities in their order, which is that of the directions: the m-th reads by the m-th weights.
        option: Name of the option that ``layers`` is, for errors.
        layers: Which pretrained layer each block starts from.

    Attributes:
        names: The modalities in their order.
        width: D that tokens must have.
        held: In which type frozen layers are held, the encoder's ``dtype``; what is trained and the norms, and so the
            tokens between blocks, are in float32, as they are there.
        complete: Every case has every modality.
    """

    def __init__(self, pool: EncoderPool, views: Views, problem: Problem, option: str, layers: Sequence[int]) -> None:
        super().__init__()
        if not layers or min(layers) < 0:
            raise UserError(f"'{option}' must name one or more decoder layers, counted from 0, not {list(layers)}")
        self.names = tuple(problem.modalities)
        self.complete = problem.complete
        found = _pretrained(pool, option, layers)
        made = _random_layers(views.width(self.names[0]), len(layers)) if found is None else found
        self.held: torch.dtype = next(made[0].parameters()).dtype
        blocks = [CrossBlock(layer) for layer in made]
        for block in blocks:
            _tune(block, None if found is None else pool, len(self.names), self.held)
        self.blocks = nn.ModuleList(blocks)
        self.width = int(self.blocks[0].width)  # type: ignore[arg-type]

    def forward(self, tokens: Mapping[str, Tokens], present_BM: Tensor) -> dict[str, Tokens]:
        """Return the tokens (B, N, D) after the last block; those of an absent modality must not be read.

        Args:
            tokens: Of every modality, in any order.
            present_BM: Which modalities a case has, in the order of ``names``, which is also that of the result.
        """
        dtype = next(self.blocks[0].norm.parameters()).dtype  # type: ignore[union-attr]
        states = {name: tokens[name].values.to(dtype) for name in self.names}
        masks = self._masks(tokens, present_BM)
        with precision(self.held, present_BM.device):
            for block in self.blocks:
                states = block(states, masks)
        return {name: replace(tokens[name], values=states[name]) for name in self.names}

    def _masks(self, tokens: Mapping[str, Tokens], present_BM: Tensor) -> dict[str, Tensor] | None:
        """Return which tokens may be read, (B, N) by modality; None if all."""
        if self.complete and all(t.mask is None for t in tokens.values()):
            return None
        masks = {}
        for index, name in enumerate(self.names):
            t = tokens[name]
            here = present_BM[:, index, None].expand(t.values.shape[:2])
            masks[name] = here if t.mask is None else here & t.mask
        return masks


def _pretrained(pool: EncoderPool, option: str, layers: Sequence[int]) -> list[nn.Module] | None:
    """Return layers of the first modality's decoder whose encoder is a Llama; None if there is none."""
    for kind, options in pool.nodes.values():
        if issubclass(kind, Llama):
            return Llama.blocks(options, layers, option)
    return None


def _tune(block: CrossBlock, pool: EncoderPool | None, directions: int, held: torch.dtype) -> None:
    """Let the pool's tuning method work on a block; without one, all is trained."""
    block.norm.float()
    block.norm_out.float()
    block.requires_grad_(True)
    if pool is not None:
        pool.tune(block, directions)
    widen(block, held)
    if all(p.requires_grad for p in block.parameters()):
        block.separate(directions)
    if directions == 1:
        block.requires_grad_(False)  # a modality alone has nothing to read, so that nothing here would learn


def _random_layers(width: int, count: int) -> list[nn.Module]:
    """Return decoder layers without pretrained weights."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    heads = width // math.gcd(width, 64)
    config = LlamaConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=round(8 * width / 3))
    return [LlamaDecoderLayer(config, index) for index in range(count)]
