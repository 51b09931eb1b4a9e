"""The patch stem against a plain loop, its padding, and which pictures it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.layers.patch_stem import PatchStem


def plain(stem: PatchStem, picture: Tensor, patch: int) -> Tensor:
    """Return the tokens of one picture (3, H, W), patch by patch."""
    weight, bias = stem.conv.weight, stem.conv.bias
    tokens = []
    for top in range(0, picture.shape[1], patch):
        for left in range(0, picture.shape[2], patch):
            part = picture[:, top : top + patch, left : left + patch]
            full = torch.zeros(3, patch, patch)
            full[:, : part.shape[1], : part.shape[2]] = part
            value = (weight * full).sum(dim=(1, 2, 3)) + bias
            normed = (value - value.mean()) / (value.var(unbiased=False) + stem.norm.eps).sqrt()
            tokens.append(normed * stem.norm.weight + stem.norm.bias + stem.position[0, len(tokens)])
    return torch.stack(tokens)


@pytest.mark.parametrize("size", [12, 10])
def test_it_is_a_convolution_a_norm_and_positions(size: int) -> None:
    stem = PatchStem(6, patch=4, size=size)
    torch.nn.init.normal_(stem.position)
    torch.nn.init.normal_(stem.norm.bias)
    pixels = torch.randn(2, 3, size, size)
    tokens = stem(pixels)
    assert tokens.shape == (2, stem.count, 6) == (2, 9, 6)
    for row in range(2):
        torch.testing.assert_close(tokens[row], plain(stem, pixels[row], 4), rtol=1e-4, atol=1e-5)


def test_positions_start_at_zero_and_are_trained() -> None:
    stem = PatchStem(6, patch=4, size=8)
    assert not stem.position.any()
    stem(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in stem.parameters())


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match="8 x 12 pixels has 6 patches of 4, but its encoder was built for 4: give all"):
        PatchStem(6, patch=4, size=8)(torch.randn(1, 3, 8, 12))


def test_a_patch_has_pixels() -> None:
    with pytest.raises(UserError, match=r"'encoder\.patch' must be at least 1, not 0"):
        PatchStem(6, patch=0, size=8)
