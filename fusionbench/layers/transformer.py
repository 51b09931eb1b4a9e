"""The transformer encoder that strategies put behind their encoders, and fixed positions for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def transformer(width: int, *, layers: int, heads: int, hidden: int, dropout: float = 0.0) -> nn.TransformerEncoder:
    """Return torch's encoder, post-norm with ReLU, batch first; ``src_key_padding_mask`` is True where not to attend.

    Args:
        width: D of the tokens.
        layers: Number of layers; each starts from random values of its own, where torch copies one.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
        dropout: Share dropped of attention weights, hidden units and residuals in training.
    """

    def layer() -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)

    encoder = nn.TransformerEncoder(layer(), layers, enable_nested_tensor=False)
    encoder.layers = nn.ModuleList(layer() for _ in range(layers))
    return encoder


def sinusoids(count: int, width: int) -> Tensor:
    """Return positions (count, width): sin(p / 10000^(2i/D)) at channel 2i and the cosine at 2i + 1."""
    rates = torch.pow(10000.0, -torch.arange(0, width, 2) / width)
    angles = torch.arange(count)[:, None] * rates
    table = torch.empty(count, width)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : width // 2]
    return table
