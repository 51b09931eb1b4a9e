"""LoSA."""

from typing import Literal

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.sites import need_layers
from fusionbench.encoders.base import Encoder
from fusionbench.errors import check_number
from fusionbench.layers.ladder import Ladder
from fusionbench.registry import register

_TOKENS = 197  # a picture of 224² in patches of 16², and its class token


@register
class LoSA(Adaptation):
    """Low-rank side adaptation: small mixers beside a frozen backbone refine what its layers give (CVPR 2024).

    Mercea et al., arXiv 2402.02887, Sec. 3: a parallel network, low-rank MLPs alternating between channels and tokens,
    reads the layers' outputs; no gradient flows through the backbone. No code is public. Ours: norms and biases as in
    MLP-Mixer, channels first, mixers after every second layer, up-projections that start at zero, and no mixing of
    tokens that a strategy appends or that are padding.

    Rank 4 after 6 of a ViT-B's 12 blocks is 59,952 + 54 · T parameters, T being the tokens that the token mixing has
    weights for. The published counts follow if T is each dataset's own, which explains why CLIP and DINOv2 differ:
    with the mean T of MMC-AMD, Derm7pt and MRNet, 689 (CLIP: 785, 1025, 257) and 923 (DINOv2 with registers: 1029,
    1374, 366), and a head for 4 classes the sums are 100,234 and 112,870; published are 100 K and 113 K. (A fit of
    two numbers by us: other ranks give them too; ``tokens: input`` counts so.) By default adapters do not depend on a
    picture's size: T is a picture of 224² in patches of 16², its weights are interpolated to the sequence, and the
    count is 70,590, with the head 73,666, 26 % and 35 % below the published means.

    Args:
        rank: Rank of both mixings.
        tokens: T; ``input`` takes the sequence of a picture of the modality's size, or where that is not fixed, 197.
        every: A mixer after every so many layers, the last one included.
    """

    def __init__(self, *, rank: int = 4, tokens: int | Literal["input"] = 197, every: int = 2) -> None:
        check_number("adapt.rank", rank, least=1)
        if tokens != "input":
            check_number("adapt.tokens", tokens, least=1)
        check_number("adapt.every", every, least=1)
        self.rank, self.tokens, self.every = rank, tokens, every

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and put the ladder beside its layers.

        Raises:
            UserError: The encoder is no transformer.
        """
        need_layers(encoder, "losa")
        encoder.requires_grad_(False)
        at = range(encoder.depth - 1, -1, -self.every)[::-1]
        tokens = (encoder.sequence or _TOKENS) if self.tokens == "input" else self.tokens
        encoder.around = Ladder(views, encoder.selector, at=at, width=encoder.width, tokens=tokens, rank=self.rank)
