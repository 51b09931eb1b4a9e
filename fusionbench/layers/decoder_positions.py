"""Where the tokens of a decoder stand: the cosines and sines by which queries and keys are rotated (RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DecoderPositions:
    """Positions 0, 1, ... of the tokens that may be read, so that padding between them takes none.

    No module, so that a cast of the network to bfloat16 does not round the frequencies.

    Args:
        rotary: transformers' rotary embedding of the decoder; None: every rotation is by zero, so positions are unused.
        head_width: Width of an attention head.
    """

    def __init__(self, rotary: nn.Module | None, head_width: int) -> None:
        self.rotary, self.head_width = rotary, head_width

    def __call__(self, values_BND: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (B or 1, N or 1, head width) each, in the dtype of the tokens."""
        if self.rotary is None:
            ones = values_BND.new_ones(1, 1, self.head_width)
            return ones, torch.zeros_like(ones)
        if mask_BN is None:
            places = torch.arange(values_BND.shape[1], device=values_BND.device)[None]
        else:
            places = (mask_BN.cumsum(dim=1) - 1).clamp(min=0)
        cos, sin = self.rotary.to(values_BND.device)(values_BND, places)
        return cos, sin
