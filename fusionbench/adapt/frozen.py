"""No tuning."""

from fusionbench.adapt.base import Adaptation
from fusionbench.encoders.base import Encoder
from fusionbench.registry import register


@register
class Frozen(Adaptation):
    """The backbone stays as it is; heads and fusion alone are trained (linear probing)."""

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze everything."""
        encoder.requires_grad_(False)
