"""A picture as tokens for a language model: a patch convolution with a norm and learned positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusionbench.errors import UserError, check_number


class PatchStem(nn.Module):
    """``LayerNorm(Conv(x)) + p`` (LLaMA-II fusion, arXiv 2412.01306, as in the authors' code), without a class token.

    The convolution's kernel and stride are the patch; the learned positions p start at zero. Ours: a picture whose
    sides are no multiple of the patch is padded with zeros at the right and bottom.

    Args:
        width: D of the tokens.
        patch: Height and width of a patch in pixels.
        size: Height and width of the pictures in pixels.

    Attributes:
        count: N, how many patches a picture has.
    """

    def __init__(self, width: int, patch: int, size: int) -> None:
        super().__init__()
        check_number("encoder.patch", patch, least=1)
        self.patch = patch
        self.count = math.ceil(size / patch) ** 2
        self.conv = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(1, self.count, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn (B, 3, H, W) into (B, N, D), row by row.

        Raises:
            UserError: The picture has another number of patches than there are positions.
        """
        bottom, right = (-side % self.patch for side in pixels.shape[-2:])
        patches: Tensor = self.conv(nn.functional.pad(pixels, (0, right, 0, bottom))).flatten(2).mT
        if patches.shape[1] != self.count:
            height, width = pixels.shape[-2:]
            raise UserError(
                f"a picture of {height} x {width} pixels has {patches.shape[1]} patches of {self.patch}, but its "
                f"encoder was built for {self.count}: give all pictures of a modality one size"
            )
        tokens: Tensor = self.norm(patches) + self.position
        return tokens
