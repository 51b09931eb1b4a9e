"""LLaMA-II fusion, serial: encoders first, cross blocks on what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from fusionbench.adapt.views import EncoderPool
from fusionbench.fusion.cross_tokens import CrossFusion, project
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class LlamaLate(CrossFusion):
    """Late (serial) fusion: the encoders' tokens go through cross blocks, in which image and text read each other.

    Multimodal Medical Disease Classification with LLaMA II (Gapp et al., arXiv 2412.01306), with 3 text, 3 vision and
    3 cross layers, as the first author's public code builds it (that it is this paper's is inferred)::

        t, v = cross blocks(encoder_t(report), encoder_v(image))        y = W (p(t) + p(v)) + b

    p is a norm, the last token that is no padding, and tanh(W' h + b'), shared by the modalities; a missing modality
    is not read and has no p. A cross block is in ``layers/cross_block.py``, what it starts from in
    ``adapt/cross_stack.py``. Published: mean AUC 96.67 on OpenI (r = 2).

    Ours: padding is masked; an encoder's tokens pass its final norm before they are crossed; the readout's norm is a
    fresh one; all images or slices of a case are one sequence; encoders other than ``llama`` serve as well, a linear
    layer bringing tokens of another width to the blocks'; with more than two modalities each reads all others.

    At Llama 2 7B (one frozen base of layers 0-2 for both modalities, 14 classes, pictures of 256² in patches of 32²,
    LoRA on q and v) 30,093,326, 30,486,542 and 31,272,974 parameters are trained with rank 2, 4 and 8, of
    1,375,469,582, 1,375,862,798 and 1,376,649,230 in all.

    Args:
        cross: Pretrained decoder layers that the cross blocks start from; as many blocks as there are numbers.
        readout: ``last``: a sequence's last token that is no padding; ``mean``: the mean of those.
        through_vocabulary: p goes through the vocabulary, D → V → D, as in the authors' code: at Llama 2 7B
            262,180,096 trained parameters in place of 16,781,312.
        dropout: Share of the pooled sum dropped in training.
    """

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        cross: Sequence[int] = (3, 4, 5),
        readout: Literal["last", "mean"] = "last",
        through_vocabulary: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            problem, pool, cross=cross, readout=readout, through_vocabulary=through_vocabulary, dropout=dropout
        )

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Encode, let the modalities read each other, and classify."""
        features = self.views.features(self.present_inputs(inputs, present_BM))
        encoded = project(self.projections, self.case_tokens({name: features[name] for name in self.names}))
        fused = self.cross(encoded, present_BM)
        return self.classify(fused, present_BM)
