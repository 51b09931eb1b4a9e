"""A block in which one sequence attends to another."""

from __future__ import annotations

from torch import Tensor, nn


class CrossAttention(nn.Module):
    """``x + A(LN x, LN c)``, then ``x + FF(LN x)``: a pre-norm transformer block that reads a context.

    Args:
        width: D of both sequences.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_query, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, values_BND: Tensor, context_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Return the sequence (B, N, D) after reading the context.

        Args:
            values_BND: What asks.
            context_BTD: What is read.
            mask_BT: False where not to read; a row without anything to read keeps its values up to the feed-forward
                part. None: everything is read.
        """
        query, context = self.norm_query(values_BND), self.norm_context(context_BTD)
        if mask_BT is None:
            read, _ = self.attention(query, context, context, need_weights=False)
        else:
            # A softmax over nothing is NaN: a row without an open key attends to all of them and drops the result.
            some_B1 = mask_BT.any(dim=1, keepdim=True)
            read, _ = self.attention(query, context, context, key_padding_mask=~mask_BT & some_B1, need_weights=False)
            read = read * some_B1[..., None]
        values_BND = values_BND + read
        out: Tensor = values_BND + self.feed_forward(values_BND)
        return out
