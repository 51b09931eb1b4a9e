"""The transformer encoder against a plain loop, and positions against their formula."""

from __future__ import annotations

import math

import pytest
import torch
from plain_blocks import transform

from fusionbench.errors import UserError
from fusionbench.layers.projection import check_heads
from fusionbench.layers.transformer import sinusoids, transformer


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "inference"])
def test_it_is_what_the_equations_say(grad: bool) -> None:
    encoder = transformer(8, layers=2, heads=2, hidden=12, dropout=0.5).eval()
    values, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, False, True, False, True]])
    with torch.set_grad_enabled(grad):  # without gradients torch takes a fused path of its own
        out = encoder(values, src_key_padding_mask=~mask)
    for row in range(2):
        wanted = transform(values[row], encoder, mask[row].tolist())
        torch.testing.assert_close(out[row][mask[row]], wanted[mask[row]], rtol=1e-4, atol=1e-5)


def test_layers_start_from_values_of_their_own() -> None:
    first, second = transformer(8, layers=2, heads=2, hidden=8).layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


@pytest.mark.parametrize("width", [6, 7])
def test_positions(width: int) -> None:
    table = sinusoids(5, width)
    for place in range(5):
        for channel in range(width):
            angle = place / 10000 ** ((channel - channel % 2) / width)
            wanted = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[place, channel].item() == pytest.approx(wanted, abs=1e-6)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"'fusion\.heads' must divide the tokens' width 16, but 3 does not"):
        check_heads("fusion.heads", 3, 16)
