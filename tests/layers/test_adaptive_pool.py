"""Adaptive pooling of masked sequences against a plain loop, and against torch's where nothing is masked."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import pooled

from fusionbench.layers.adaptive_pool import adaptive_pool


@pytest.mark.parametrize("count", [1, 3, 7, 16])
def test_each_row_is_pooled_over_its_open_tokens(count: int) -> None:
    values, mask = torch.randn(4, 7, 5), torch.rand(4, 7) > 0.4
    mask[:, 0] = True
    mask[3] = True
    out = adaptive_pool(values, count, mask)
    for row in range(4):
        torch.testing.assert_close(out[row], pooled(values[row][mask[row]], count))
    torch.testing.assert_close(adaptive_pool(values, count)[3], out[3])


def test_what_is_masked_is_not_read() -> None:
    values, mask = torch.randn(1, 6, 2), torch.tensor([[True, True, False, True, False, False]])
    before = adaptive_pool(values, 2, mask)
    values[~mask] = 1e6
    assert torch.equal(adaptive_pool(values, 2, mask), before)
