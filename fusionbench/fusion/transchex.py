"""TransCheX: a language and a vision stream of BERT layers that read each other in mixed layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError, check_number
from fusionbench.fusion.base import Strategy, linear
from fusionbench.layers.mixed_block import MixedBlock
from fusionbench.layers.projection import check_heads, projections
from fusionbench.registry import register
from fusionbench.types import Output, Problem

_HEAD_WIDTH = 64  # BERT's


@register
class TransCheX(Strategy):
    """TransCheX: a report's and an X-ray's BERT layers, then mixed layers in which each reads the other.

    The baseline of arXiv 2412.01306 (AUC 96.29 on OpenI), after ``transchex.py`` of MONAI (Hatamizadeh et al.). With
    the streams' tokens l and v from their encoders (``hf_text`` and ``hf_patches`` of 2 layers are the original's), a
    mixed layer updates both from what they were before it; there is no feed-forward part::

        l ← LN(l + dropout(A_l(l, v)))        v ← LN(v + dropout(A_v(v, l)))
        y = W dropout(tanh(P l_0 + p)) + b        l_0: the report's first token, in BERT [CLS]

    The published number is of MONAI up to 0.8, which differs: each layer of a stack read the stack's input, so that
    only the last one acted, and mixed layers updated the language stream alone. This is the form of today's MONAI. It
    names its layers unlike BERT's checkpoint, so by its code only the embeddings start from BERT; here all of the
    encoders do. Ours: padding is masked; the last mixed layer leaves out the update of v, which nothing reads; there
    may be more than one picture (and tables), whose tokens are one sequence; other widths are projected to the
    language stream's; encoders of any kind. An absent picture is not read, and where there is none nothing is added to
    l. An absent report is a single token of zeros: it asks by the query's bias alone, and is not read by v.

    Parameters at BERT-base width, with a 256² picture in 32² patches and 14 classes: embeddings 23,837,184, four layers
    of 7,087,872, stem 2,410,752, three cross readings of 2,363,904, pooler 590,592, head 10,766; 62,292,494 in all.

    Args:
        layers: Mixed layers.
        heads: Attention heads of a mixed layer; null: of 64 channels each, or one where 64 does not divide the width.
        dropout: Share dropped in training of attention weights, of what is read, and before the head (where MONAI's
            default is 0).
    """

    modality_count: ClassVar[tuple[int, int | None]] = (2, None)

    def __init__(
        self, problem: Problem, pool: EncoderPool, *, layers: int = 2, heads: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__(problem)
        check_number("fusion.layers", layers, least=1)
        check_number("fusion.dropout", dropout, least=0, below=1)
        self.language = _language(problem)
        self.vision = tuple(name for name in self.names if name != self.language)
        self.views = pool.token_views({name: name for name in self.names})
        width = self.views.width(self.language)
        heads = _heads(heads, width)
        self.projections = projections({name: self.views.width(name) for name in self.vision}, width)
        self.mixed = nn.ModuleList(MixedBlock(width, heads, dropout, both=i + 1 < layers) for i in range(layers))
        self.pooler = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.head = linear(width, self.classes)

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Encode both streams, let them read each other, and classify the report's first token; logits (B, K)."""
        tokens = self.case_tokens(self.views.features(self.present_inputs(inputs, present_BM)))
        language, language_mask = self._stream([self.language], tokens, present_BM)
        vision, vision_mask = self._stream(self.vision, tokens, present_BM)
        for block in self.mixed:
            language, vision = block(language, vision, language_mask, vision_mask)
        return Output(self.head(self.dropout(self.pooler(language[:, 0]).tanh())))

    def _stream(self, names: Sequence[str], tokens: Mapping[str, Tokens], present_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of some modalities as one sequence (B, N, D), zeros where absent, and its mask (B, N)."""
        values, masks = [], []
        for name in names:
            here_B1 = present_BM[:, self.names.index(name), None]
            own = tokens[name].values if name == self.language else self.projections[name](tokens[name].values)
            mask = tokens[name].mask
            values.append(torch.where(here_B1[..., None], own, own.new_zeros(())))
            masks.append(here_B1.expand(own.shape[:2]) if mask is None else mask & here_B1)
        return torch.cat(values, dim=1), torch.cat(masks, dim=1)


def _language(problem: Problem) -> str:
    texts = [name for name, spec in problem.modalities.items() if spec.kind == "text"]
    if len(texts) != 1:
        kinds = ", ".join(f"{name} ({spec.kind})" for name, spec in problem.modalities.items())
        raise UserError(
            f"fusion 'transchex' takes exactly one text beside one or more pictures, not {kinds}: choose by "
            "data.modalities"
        )
    return texts[0]


def _heads(heads: int | None, width: int) -> int:
    if heads is None:
        return width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else 1
    check_heads("fusion.heads", heads, width)
    return heads
