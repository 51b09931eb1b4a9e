"""VPT."""

from typing import ClassVar, Literal

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.sites import need_layers
from fusionbench.encoders.base import Encoder
from fusionbench.errors import check_number
from fusionbench.layers.prompts import DeepPrompts, ShallowPrompts
from fusionbench.registry import register


@register
class VPT(Adaptation):
    """Visual prompt tuning: learnt tokens behind the class token of a frozen transformer (arXiv 2203.12119, Sec. 3.2).

    5 prompts in each of a ViT-B's 12 layers are 46,080 parameters, 49,156 with a head for 4 classes; published are
    49 K. Ours: no dropout on prompts; it serves text encoders as well. Masks and tokens that a strategy appends act as
    without prompts, and no strategy sees the prompts.

    Args:
        prompts: Number of prompts in a layer.
        depth: ``deep``: each layer has prompts of its own, which end with it; ``shallow``: prompts enter before the
            first layer and go through all.
    """

    starts_as_frozen: ClassVar[bool] = False

    def __init__(self, *, prompts: int = 5, depth: Literal["deep", "shallow"] = "deep") -> None:
        check_number("adapt.prompts", prompts, least=1)
        self.prompts, self.depth = prompts, depth

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and put prompts around its layers.

        Raises:
            UserError: The encoder is no transformer.
        """
        need_layers(encoder, "vpt")
        encoder.requires_grad_(False)
        deep = self.depth == "deep"
        like = next(encoder.parameters()).new_empty(encoder.width)
        encoder.around = (DeepPrompts if deep else ShallowPrompts)(
            views, encoder.selector, layers=encoder.depth if deep else 1, count=self.prompts, like=like
        )
