"""Skips as tokens, against torch's adaptive pooling and a plain loop."""

from __future__ import annotations

import pytest
import torch

from fusionbench.errors import UserError
from fusionbench.layers.skip_tokens import SkipTokens, grid_pool


@pytest.mark.parametrize("side", [(8, 8), (7, 5), (2, 3), (1, 1)])
def test_the_pooling_is_torchs(side: tuple[int, int]) -> None:
    skip = torch.randn(2, 3, *side)
    torch.testing.assert_close(grid_pool(skip, 4), torch.nn.functional.adaptive_avg_pool2d(skip, 4))


def test_tokens_are_the_places_of_the_grid_row_by_row() -> None:
    layer, skip = SkipTokens(3, 5, 2), torch.randn(1, 3, 4, 4)
    tokens = layer(skip)
    assert tokens.shape == (1, 4, 5)
    for row in range(2):
        for column in range(2):
            mean = skip[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1).mean(dim=1)
            wanted = layer.project.weight @ mean + layer.project.bias
            torch.testing.assert_close(tokens[0, 2 * row + column], wanted)


def test_a_grid_without_places_is_refused() -> None:
    with pytest.raises(UserError, match=r"'fusion.grid' must be at least 1, not 0"):
        SkipTokens(3, 5, 0)
