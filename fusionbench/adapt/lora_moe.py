"""LoRA-MoE."""

from collections.abc import Sequence

from fusionbench.adapt.base import Adaptation, check_updates
from fusionbench.adapt.sites import replace_linears
from fusionbench.encoders.base import Encoder
from fusionbench.errors import check_number
from fusionbench.layers.adaptable import Adaptable
from fusionbench.registry import register


@register
class LoRAMoE(Adaptation):
    """Several LoRA experts of one rank under a softmax router (arXiv 2312.09979), as EI's baseline builds it.

    The router has a bias, as the published parameter count says (1,247,308 with a 4-class head on a ViT-B); the
    original has none. The original's optional balance loss is not part of EI's baseline.

    Args:
        experts: Number of experts.
        rank: Rank of each.
        scale: α / rank.
        sites: Which linear layers, of fc1, fc2, qkv (or q, k, v), proj.
    """

    def __init__(
        self, *, experts: int = 3, rank: int = 4, scale: float = 2.0, sites: Sequence[str] = ("fc1", "fc2")
    ) -> None:
        check_number("adapt.experts", experts, least=1)
        check_updates([rank], scale, sites)
        self.ranks, self.scale, self.sites = [rank] * experts, scale, sites

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and wrap its linear layers."""
        self.tune(encoder, views)

    def tune(self, layers: Adaptable, views: int) -> None:
        """Freeze layers and wrap the linear ones."""
        replace_linears(layers, self.sites, views=views, ranks=self.ranks, routed=True, bypass=False, scale=self.scale)
