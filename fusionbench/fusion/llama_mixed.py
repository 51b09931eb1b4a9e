"""LLaMA-II fusion, mixed: parallel, and further cross blocks on the sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from fusionbench.adapt.cross_stack import CrossStack
from fusionbench.adapt.views import EncoderPool
from fusionbench.fusion.cross_tokens import CrossFusion, parallel_tokens
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class LlamaMixed(CrossFusion):
    """Mixed fusion: cross blocks beside the encoders, as in early fusion, and further ones on the sum.

    Multimodal Medical Disease Classification with LLaMA II (Gapp et al., arXiv 2412.01306), with 3 text, 3 vision and
    3 cross layers, as the first author's public code builds it (that it is this paper's, and that its blocks "before
    the activation" are the paper's mixed fusion, is inferred). With e_t and e_v the embedded tokens::

        t_cross, v_cross = cross blocks(e_t, e_v)
        t, v = further cross blocks(encoder_t(e_t) + t_cross, encoder_v(e_v) + v_cross)        y = W (p(t) + p(v)) + b

    p, the cross blocks and what is ours are those of ``llama_late``; an encoder's tokens pass its final norm before
    the sum. How many further blocks there are is not published; one is ours. Published: mean AUC 96.82 on OpenI
    (r = 2).

    At Llama 2 7B (one frozen base of layers 0-2 for both modalities, 14 classes, pictures of 256² in patches of 32²,
    LoRA on q and v) 30,158,862, 30,617,614 and 31,535,118 parameters are trained with rank 2, 4 and 8, of
    1,577,918,478, 1,578,377,230 and 1,579,294,734 in all.

    Args:
        cross: Pretrained decoder layers that the cross blocks beside the encoders start from; as many blocks as there
            are numbers.
        cross_after: The same for the blocks on the sum.
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
        cross_after: Sequence[int] = (6,),
        readout: Literal["last", "mean"] = "last",
        through_vocabulary: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            problem, pool, cross=cross, readout=readout, through_vocabulary=through_vocabulary, dropout=dropout
        )
        self.after = CrossStack(pool, self.views, problem, "fusion.cross_after", cross_after)

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Run encoders and cross blocks side by side, add them, cross the sum, and classify."""
        rows = self.present_inputs(inputs, present_BM)
        summed = parallel_tokens(self, rows, present_BM)
        fused = self.after(summed, present_BM)
        return self.classify(fused, present_BM)
