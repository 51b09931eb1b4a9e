"""A feature map of a U-Net as a fixed number of tokens for a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionbench.errors import check_number


class SkipTokens(nn.Module):
    """``P = Linear(pool(skip))``: a feature map averaged to a grid, whose places are projected to tokens.

    MDF-MLLM (arXiv 2509.21358) patches the skips and projects them to the language model's width; the average over a
    grid is our choice.

    Args:
        channels: C of the feature map.
        width: D of the tokens.
        grid: G, places to a side of the grid.
    """

    def __init__(self, channels: int, width: int, grid: int) -> None:
        super().__init__()
        check_number("fusion.grid", grid, least=1)
        self.grid = grid
        self.project = nn.Linear(channels, width)

    def forward(self, skip_BCHW: Tensor) -> Tensor:
        """Turn (B, C, H, W) into (B, G·G, D), row by row; a map smaller than the grid is repeated."""
        tokens: Tensor = self.project(grid_pool(skip_BCHW, self.grid).flatten(2).mT)
        return tokens


def grid_pool(map_BCHW: Tensor, grid: int) -> Tensor:
    """Average a feature map over the bins of torch's adaptive pooling, (B, C, H, W) to (B, C, G, G).

    Done as two products, since the gradient of torch's own is not deterministic on a GPU.
    """
    rows_GH, columns_GW = (_bins(side, grid, map_BCHW) for side in map_BCHW.shape[-2:])
    return rows_GH @ map_BCHW @ columns_GW.mT


def _bins(side: int, grid: int, like: Tensor) -> Tensor:
    """Return the share (G, side) of every row or column in each bin, ⌊i side / G⌋ to ⌈(i + 1) side / G⌉ - 1."""
    place_1N = torch.arange(side, device=like.device)[None]
    bin_G1 = torch.arange(grid, device=like.device)[:, None]
    inside = ((place_1N >= bin_G1 * side // grid) & (place_1N < -(-(bin_G1 + 1) * side // grid))).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
