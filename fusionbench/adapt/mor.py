"""MoR."""

from collections.abc import Sequence

from fusionbench.adapt.base import Adaptation, check_updates
from fusionbench.adapt.sites import replace_linears
from fusionbench.encoders.base import Encoder
from fusionbench.layers.adaptable import Adaptable
from fusionbench.registry import register


@register
class MoR(Adaptation):
    """Mixture of Low-varied-Ranks Adaptation: LoRAs of several ranks, a router with a bypass (EI, Sec. 3.4, Eq. 4).

    As the authors' code has it, where the paper leaves it open: fc1 and fc2 of every block; α = 2 · rank; a router with
    bias whose softmax is taken for each token (the paper says "per instance"); weights are not renormalised when the
    bypass takes its share. 1,474,656 parameters on a ViT-B, 1,428,552 without bypass.

    Args:
        ranks: Rank of each expert.
        bypass: Whether the router may reject the update by a further output.
        scale: α / rank, the same for every expert.
        sites: Which linear layers, of fc1, fc2, qkv (or q, k, v), proj.
    """

    def __init__(
        self,
        *,
        ranks: Sequence[int] = (2, 4, 8),
        bypass: bool = True,
        scale: float = 2.0,
        sites: Sequence[str] = ("fc1", "fc2"),
    ) -> None:
        check_updates(ranks, scale, sites, "adapt.ranks")
        self.ranks, self.bypass, self.scale, self.sites = ranks, bypass, scale, sites

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and wrap its linear layers."""
        self.tune(encoder, views)

    def tune(self, layers: Adaptable, views: int) -> None:
        """Freeze layers and wrap the linear ones."""
        replace_linears(
            layers, self.sites, views=views, ranks=self.ranks, routed=True, bypass=self.bypass, scale=self.scale
        )
