"""Any number of tokens averaged to a given number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def adaptive_pool(values_BND: Tensor, count: int, mask_BN: Tensor | None = None) -> Tensor:
    """Average a sequence's tokens in ``count`` bins of equal share, (B, N, D) to (B, count, D).

    Bin i of a sequence of n open tokens averages those from ⌊i n / count⌋ to ⌈(i + 1) n / count⌉ - 1, as torch's
    adaptive average pooling does; a short sequence's tokens are repeated.

    Args:
        values_BND: The tokens.
        count: Number of bins.
        mask_BN: True where a token counts, at least once in each row; None: everywhere.
    """
    if mask_BN is None:
        return F.adaptive_avg_pool1d(values_BND.transpose(1, 2), count).transpose(1, 2)
    place_B1N = (mask_BN.cumsum(dim=1) - 1)[:, None]
    bins = torch.arange(count, device=values_BND.device)[None, :, None]
    open_B11 = mask_BN.sum(dim=1)[:, None, None]
    start, stop = bins * open_B11 // count, -(-(bins + 1) * open_B11 // count)
    inside = (mask_BN[:, None] & (place_B1N >= start) & (place_B1N < stop)).to(values_BND.dtype)
    return (inside / inside.sum(dim=-1, keepdim=True)) @ values_BND
