"""LLaMA-II fusion, parallel: cross blocks on the embedded tokens beside the encoders, and the sum of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from fusionbench.adapt.views import EncoderPool
from fusionbench.fusion.cross_tokens import CrossFusion, parallel_tokens
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class LlamaEarly(CrossFusion):
    """Early (parallel) fusion: image and text read each other in cross blocks that run beside the encoders.

    Multimodal Medical Disease Classification with LLaMA II (Gapp et al., arXiv 2412.01306), with 3 text, 3 vision and
    3 cross layers, as the first author's public code builds it (that it is this paper's is inferred). With e_t and e_v
    the embedded tokens, before any layer::

        t_cross, v_cross = cross blocks(e_t, e_v)
        t = encoder_t(e_t) + t_cross        v = encoder_v(e_v) + v_cross        y = W (p(t) + p(v)) + b

    p, the cross blocks and what is ours are those of ``llama_late``; an encoder's tokens pass its final norm before
    the sum. Published: mean AUC 97.10 on OpenI (r = 2), the best of the three.

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
        """Run encoders and cross blocks side by side, add them, and classify."""
        rows = self.present_inputs(inputs, present_BM)
        fused = parallel_tokens(self, rows, present_BM)
        return self.classify(fused, present_BM)
