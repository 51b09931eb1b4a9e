"""TransCheX's mixed layer: two sequences read each other, as BERT's attention does, and nothing else."""

from __future__ import annotations

from torch import Tensor, nn


class CrossReading(nn.Module):
    """``LN(x + dropout(A(x, c)))``: post-norm attention of one sequence to another, without a feed-forward part.

    Args:
        width: D of both sequences.
        heads: Attention heads.
        dropout: Share dropped of the attention weights, and of what was read.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        for weight in (self.attention.in_proj_weight, self.attention.out_proj.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, values_BND: Tensor, context_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the sequence (B, N, D) after reading the context.

        Args:
            values_BND: What asks.
            context_BTD: What is read.
            mask_BT: False where not to read; a row without anything to read is normed and no more.
        """
        # A softmax over nothing is NaN: a row without an open key attends to all of them and drops the result.
        some_B1 = mask_BT.any(dim=1, keepdim=True)
        closed_BT = ~mask_BT & some_B1
        read, _ = self.attention(values_BND, context_BTD, context_BTD, key_padding_mask=closed_BT, need_weights=False)
        out: Tensor = self.norm(values_BND + self.dropout(read) * some_B1[..., None])
        return out


class MixedBlock(nn.Module):
    """Language reads vision and vision reads language, both as they were before the layer.

    Args:
        width: D of both sequences.
        heads: Attention heads.
        dropout: Share dropped of the attention weights, and of what was read.
        both: Whether vision is updated too; the last layer of a stack whose vision is not read any more does without.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, both: bool = True) -> None:
        super().__init__()
        self.language = CrossReading(width, heads, dropout)
        self.vision = CrossReading(width, heads, dropout) if both else None

    def forward(
        self, language_BLD: Tensor, vision_BND: Tensor, language_mask_BL: Tensor, vision_mask_BN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return both sequences, (B, L, D) and (B, N, D); masks are False where not to be read."""
        language = self.language(language_BLD, vision_BND, vision_mask_BN)
        if self.vision is None:
            return language, vision_BND
        return language, self.vision(vision_BND, language_BLD, language_mask_BL)
