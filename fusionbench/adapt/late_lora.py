"""LateLoRA."""

from collections.abc import Sequence

from fusionbench.adapt.base import Adaptation, check_updates
from fusionbench.adapt.sites import need_layers, replace_linears
from fusionbench.encoders.base import Encoder
from fusionbench.errors import check_number
from fusionbench.registry import register


@register
class LateLoRA(Adaptation):
    """LoRA in the later layers alone, on queries and values (EI's baseline of that name, Table 7).

    Rank 4 on q and v of the last 6 of a ViT-B's 12 blocks gives 73,728 parameters, 76,804 with a head for 4 classes;
    published are 77 K. Where the encoder has one fused qkv layer, its q and v rows get updates of their own. α is not
    published; ours is 2 · rank, as for ``lora``.

    Args:
        rank: Rank of the update.
        scale: α / rank.
        sites: Which linear layers, of q, k, v, qkv, proj, fc1, fc2.
        last: How many of the last layers; null: half of them, rounded up.
    """

    def __init__(
        self, *, rank: int = 4, scale: float = 2.0, sites: Sequence[str] = ("q", "v"), last: int | None = None
    ) -> None:
        check_updates([rank], scale, sites)
        if last is not None:
            check_number("adapt.last", last, least=1)
        self.rank, self.scale, self.sites, self.last = rank, scale, sites, last

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and wrap linear layers of its later half."""
        need_layers(encoder, "late_lora")
        replace_linears(
            encoder,
            self.sites,
            views=views,
            ranks=[self.rank],
            routed=False,
            bypass=False,
            scale=self.scale,
            last=self.last or encoder.depth - encoder.depth // 2,
        )
