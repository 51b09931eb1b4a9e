"""LoRA."""

from collections.abc import Sequence

from fusionbench.adapt.base import Adaptation, check_updates
from fusionbench.adapt.sites import replace_linears
from fusionbench.encoders.base import Encoder
from fusionbench.layers.adaptable import Adaptable
from fusionbench.registry import register


@register
class LoRA(Adaptation):
    """One low-rank update beside each adapted linear layer (arXiv 2106.09685): the mixture with one rank and no router.

    The defaults are EI's baseline: rank 4 on fc1 and fc2 gives its 368,640 parameters on a ViT-B. Its α is not
    published; ours is 2 · rank, as for MoR.

    Args:
        rank: Rank of the update.
        scale: α / rank.
        sites: Which linear layers, of fc1, fc2, q, k, v, qkv, proj.
    """

    def __init__(self, *, rank: int = 4, scale: float = 2.0, sites: Sequence[str] = ("fc1", "fc2")) -> None:
        check_updates([rank], scale, sites)
        self.rank, self.scale, self.sites = rank, scale, sites

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and wrap its linear layers."""
        self.tune(encoder, views)

    def tune(self, layers: Adaptable, views: int) -> None:
        """Freeze layers and wrap the linear ones."""
        replace_linears(
            layers, self.sites, views=views, ranks=[self.rank], routed=False, bypass=False, scale=self.scale
        )
