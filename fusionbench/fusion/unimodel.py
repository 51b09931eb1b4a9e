"""UniModel: the tokens of all modalities as one sequence in one encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy, linear
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class UniModel(Strategy):
    """UniModel: the tokens of all modalities form one sequence in one encoder, with one adapter set.

    EI's baseline without modality-specific encoders (arXiv 2603.17514, Sec. 4.2), told there in a sentence. The one
    encoder is that of the first modality whose encoder takes further tokens; its own sequence stands first, so its
    class token is read at the end. Every modality that has the same encoder node is embedded by it. With MoR on a
    ViT-B, 2 modalities and 4 classes, 1,479,268 parameters are trained: 1,474,656, the head, and two embeddings.

    Ours: a learned embedding of the modality is added to its tokens; class tokens and registers of further modalities
    are tokens like their patches; all slices of a scan enter, as a set. A modality of another encoder node (text, a
    table, a CNN) goes through that encoder whole, since its first layer alone would leave the rest of it dead; then its
    normed tokens are projected to the one encoder's width. An absent modality's tokens are masked in attention, all but
    the class token that is read at the end, which is the same then whatever the input.
    """

    def __init__(self, problem: Problem, pool: EncoderPool) -> None:
        super().__init__(problem)
        self.carrier = _carrier(problem, pool)
        node = pool.nodes[self.carrier]
        shared = {n for n in self.names if n == self.carrier or (pool.nodes[n] == node and not node[0].from_scratch)}
        self.further = tuple(name for name in self.names if name not in shared)
        self.views = pool.views({name: name for name in (self.carrier, *self.further)})
        width = self.views.width(self.carrier)
        self.projections = nn.ModuleDict({n: nn.Linear(self.views.width(n), width) for n in self.further})
        self.modality = nn.Parameter(nn.init.normal_(torch.empty(len(self.names), width), std=0.02))
        self.head = linear(width, self.classes)

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Embed every modality, run the one encoder over all tokens, and classify its class token."""
        tokens = self.embed(self.present_inputs(inputs, present_BM))
        parts = {n: self._marked(tokens[n], i, present_BM[:, i]) for i, n in enumerate(self.names)}
        sequence = parts[self.carrier]
        for name in self.names:
            if name != self.carrier:
                sequence = sequence.append(parts[name].values, parts[name].mask)
        name = self.carrier
        return Output(self.head(self.views.pool(self.views.encode({name: sequence}))[name]))

    @property
    def feature_views(self) -> tuple[str, ...]:
        """The modalities that are encoded before they join the one sequence."""
        return self.further

    def embed(self, rows: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Return each modality's tokens in the one encoder's width: values (B, S·N, D), mask (B, S·N) or None."""
        further = {name: rows[name] for name in self.further}
        encoded = self.case_tokens(self.views.features(further))
        out = {}
        for name in self.names:
            if name in encoded:
                out[name] = Tokens(self.projections[name](encoded[name].values), encoded[name].mask)
            else:
                own = self.views.embed({self.carrier: rows[name]})[self.carrier]
                mask = None if own.mask is None else self.by_case(own.mask, name).flatten(1, 2)
                out[name] = Tokens(self.by_case(own.values, name).flatten(1, 2), mask)
        return out

    def _marked(self, tokens: Tokens, index: int, present_B: Tensor) -> Tokens:
        """Add the modality's embedding, and mask the tokens where a case lacks it."""
        values = tokens.values + self.modality[index]
        if self.problem.complete:
            return Tokens(values, tokens.mask)
        mask = present_B[:, None].expand(values.shape[:2])
        mask = mask if tokens.mask is None else mask & tokens.mask
        if self.names[index] == self.carrier:
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)
        return Tokens(values, mask)


def _carrier(problem: Problem, pool: EncoderPool) -> str:
    """Return the first modality whose encoder takes further tokens.

    Raises:
        UserError: There is none.
    """
    for name in problem.modalities:
        if pool.nodes[name][0].takes_tokens:
            return name
    raise UserError(
        "unimodel needs one encoder that takes tokens, but none does; use timm_vit, hf_text or table for one"
    )
