"""Counted operations against arithmetic, attention by every path included."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fusionbench.layers.flops import count_flops

QUERY, KEYS = torch.randn(2, 3, 17, 8), torch.randn(2, 3, 5, 8)
ATTENTION = 2 * 2 * 3 * 17 * 5 * (8 + 8)


def test_a_multiply_accumulate_is_two_operations():
    layer, rows = nn.Linear(7, 5), torch.randn(11, 7)
    assert count_flops(lambda: layer(rows)) == 2 * 11 * 7 * 5


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts(masked):
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool) if masked else None
    assert count_flops(lambda: scaled_dot_product_attention(QUERY, KEYS, KEYS, attn_mask=mask)) == ATTENTION


def test_the_fused_path_of_the_attention_module_counts_and_is_as_before_afterwards():
    module, tokens = nn.MultiheadAttention(24, 3, batch_first=True).eval(), torch.randn(2, 17, 24)
    linear, attention = 4 * 2 * 2 * 17 * 24 * 24, 2 * 2 * 3 * 17 * 17 * 16
    assert count_flops(lambda: module(tokens, tokens, tokens, need_weights=False)) == linear + attention
    assert torch.backends.mha.get_fastpath_enabled()
