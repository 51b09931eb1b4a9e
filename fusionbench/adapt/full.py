"""Full fine-tuning."""

from typing import ClassVar

from fusionbench.adapt.base import Adaptation
from fusionbench.encoders.base import Encoder
from fusionbench.registry import register


@register
class Full(Adaptation):
    """Every weight is trained; each view has a backbone of its own."""

    trains_base: ClassVar[bool] = True

    def apply(self, encoder: Encoder, views: int) -> None:
        """Unfreeze everything."""
        encoder.requires_grad_(True)
