"""Rotations of a decoder's tokens: none, by place, and with padding in between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionbench.layers.decoder_positions import DecoderPositions


class Angles(nn.Module):
    """Turns a position into itself as the angle, in both halves of a head."""

    def forward(self, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = places[..., None].to(values.dtype).expand(*places.shape, 2)
        return angles.cos(), angles.sin()


def test_without_a_rotary_embedding_nothing_is_rotated() -> None:
    cos, sin = DecoderPositions(None, 4)(torch.randn(2, 3, 8), None)
    assert torch.equal(cos.expand(2, 3, 4), torch.ones(2, 3, 4))
    assert not sin.any()


def test_positions_count_what_may_be_read() -> None:
    positions = DecoderPositions(Angles(), 2)
    values = torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, True, True], [True, True, False, True]])
    wanted = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 1.0, 2.0]])
    torch.testing.assert_close(positions(values, mask)[1][..., 0], wanted.sin())
    torch.testing.assert_close(positions(values, None)[0][..., 1], wanted[:1].cos())
