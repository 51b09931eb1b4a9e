"""RLRR."""

from functools import partial

from torch import nn

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.sites import need_layers, wrap
from fusionbench.encoders.base import Encoder
from fusionbench.layers.output_affine import OutputAffine
from fusionbench.layers.rescaled import RescaledLinear
from fusionbench.registry import register


@register
class RLRR(Adaptation):
    """Residual low-rank rescaling: rows and columns of each weight rescaled (CVPR 2024, arXiv 2403.19067).

    Every linear layer of every block becomes ``(W + W ∘ r cᵀ) h + b + δ``, and, as in the authors' code, the output of
    every norm and of the patch convolution is scaled and shifted (SSF). On a ViT-B, with q, k and v counted as three
    layers: 12 · (20,736 + 3,072) in the blocks, 1,536 in the final norm and 1,536 behind the patches, 288,768 in all;
    with a head for 4 classes 291,844, which is the published 292 K for CLIP and DINOv2 (CLIP's ``norm_pre`` is left
    alone). Ours: r starts at zero and scales at one, so the start is the pretrained model; in a text encoder the norm
    that ends the embedding takes the patches' place.
    """

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and wrap its linear layers, norms and embedding.

        Raises:
            UserError: The encoder is no transformer.
        """
        need_layers(encoder, "rlrr")
        encoder.requires_grad_(False)
        norms, embedding = encoder.norm_sites(), encoder.embedding_site()
        for site, layers in encoder.linear_sites().items():
            for name in layers:
                wrap(encoder, name, partial(_rescaled, encoder=encoder, views=views, parts=3 if site == "qkv" else 1))
        for name in norms if embedding is None else [*norms, embedding]:
            wrap(encoder, name, partial(OutputAffine, views=views, selector=encoder.selector))
        encoder.embeds_by_view = embedding is not None


def _rescaled(base: nn.Linear, encoder: Encoder, views: int, parts: int) -> nn.Module:
    return RescaledLinear(base, views, encoder.selector, parts)
