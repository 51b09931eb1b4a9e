"""A transformer over a table's columns."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionbench.encoders.base import Encoder, Tokens, attention_mask
from fusionbench.encoders.weights import only_random
from fusionbench.errors import UserError, check_number
from fusionbench.registry import register
from fusionbench.types import ModalitySpec


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads = heads

    def forward(self, x_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_BND)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask(mask_BN))
        x_BND = x_BND + self.proj(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x_BND + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x_BND))))
        return out


@register
class Table(Encoder):
    """Each column becomes a token ``x_f w_f + b_f`` beside a class token (FT-Transformer, arXiv 2106.11959, Sec. 3.3).

    Values arrive standardised on the training cases. There are no pretrained weights: it is always trained whole.

    Args:
        width: D.
        depth: Number of layers.
        heads: Attention heads.
        weights: Only ``random`` is possible.
    """

    kinds: ClassVar[tuple[str, ...]] = ("table",)
    from_scratch: ClassVar[bool] = True

    def __init__(
        self, spec: ModalitySpec, *, width: int = 64, depth: int = 3, heads: int = 4, weights: str = "random"
    ) -> None:
        super().__init__(spec)
        only_random("table", weights)
        for option, value in {"width": width, "depth": depth, "heads": heads}.items():
            check_number(f"encoder.{option}", value, least=1)
        if width % heads:
            raise UserError(f"'encoder.width' must be a multiple of 'encoder.heads', but {width} is not one of {heads}")
        self.width, self.depth = width, depth
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(len(spec.columns), width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(spec.columns), width).uniform_(-bound, bound))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).uniform_(-bound, bound))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn (B, F) into class token and column tokens, (B, 1 + F, D)."""
        columns = inputs[..., None] * self.weight + self.bias
        return Tokens(torch.cat([self.cls_token.expand(len(inputs), -1, -1), columns], dim=1))

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one transformer block."""
        out: Tensor = self.blocks[index](values_BND, mask_BN)
        return out

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the normalised class token."""
        out: Tensor = self.norm(tokens.values[:, 0])
        return out
