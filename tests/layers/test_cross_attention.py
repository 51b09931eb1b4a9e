"""The cross-attention block against a plain loop, and with nothing to read."""

from __future__ import annotations

import torch
from plain_blocks import attend, norm
from tiny import perturb
from torch import Tensor
from torch.nn import functional as F

from fusionbench.layers.cross_attention import CrossAttention


def plain(block: CrossAttention, x_ND: Tensor, y_TD: Tensor, open_: list[bool]) -> Tensor:
    """Return the block's result for one case from its equations."""
    if any(open_):
        query = torch.stack([norm(x, block.norm_query) for x in x_ND])
        context = torch.stack([norm(y, block.norm_context) for y in y_TD])
        x_ND = x_ND + attend(query, context, block.attention, open_)
    first, up, _, down = block.feed_forward
    hidden = F.gelu(torch.stack([norm(x, first) for x in x_ND]) @ up.weight.T + up.bias)
    return x_ND + hidden @ down.weight.T + down.bias


def test_it_is_what_the_equations_say() -> None:
    block = perturb(CrossAttention(8, 2, 12))
    values, context = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[True, False, True, True, False], [True] * 5, [False] * 5])
    out, unmasked = block(values, context, mask), block(values, context)
    for row in range(3):
        torch.testing.assert_close(out[row], plain(block, values[row], context[row], mask[row].tolist()))
        torch.testing.assert_close(unmasked[row], plain(block, values[row], context[row], [True] * 5))


def test_a_row_with_nothing_to_read_gives_finite_gradients_and_none_to_the_context() -> None:
    block = CrossAttention(8, 2, 8)
    context = torch.randn(1, 3, 8, requires_grad=True)
    block(torch.randn(1, 2, 8), context, torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert not context.grad.any()
    assert all(p.grad.isfinite().all() for p in block.parameters())
