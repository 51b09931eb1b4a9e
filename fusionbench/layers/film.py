"""Feature-wise linear modulation: a vector scales and shifts the channels of a feature map."""

from __future__ import annotations

from torch import Tensor, nn


class FiLM(nn.Module):
    """``(1 + γ) ⊙ skip + β`` with (γ, β) = Linear(vector), as MDF-MLLM modulates a U-Net's skips (arXiv 2509.21358).

    Ours, since the paper gives no form: γ is a residual and the layer starts at zero, so the map is unchanged at first.

    Args:
        width: D of the vector.
        channels: C of the feature map.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, skip_BCHW: Tensor, vector_BD: Tensor) -> Tensor:
        """Return the feature map (B, C, H, W), each channel scaled and shifted by what the vector (B, D) says."""
        gamma_BC11, beta_BC11 = self.project(vector_BD)[..., None, None].chunk(2, dim=1)
        out: Tensor = (1 + gamma_BC11) * skip_BCHW + beta_BC11
        return out
