"""One modality alone: every comparison's yardstick, and stage 1 of EI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from fusionbench.adapt.views import EncoderPool
from fusionbench.errors import UserError, nearest
from fusionbench.fusion.base import Strategy, UnimodalState, linear
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class Unimodal(Strategy):
    """One modality alone, an encoder with a linear head.

    EI trains this in its first stage (Sec. 4.1); ``slice_pool: max`` is what the authors' code does there with several
    slices: the largest logit of each class over the slices.

    Args:
        modality: Which one; null: the only one there is.
        slice_pool: ``mean``: average the slices' vectors; ``max``: the largest logit over the slices.
    """

    needs_all: ClassVar[bool] = True

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        modality: str | None = None,
        slice_pool: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__(problem)
        if modality is None and len(self.names) > 1:
            raise UserError(f"unimodal needs 'fusion.modality', one of {', '.join(self.names)}")
        if modality is not None and modality not in self.names:
            raise UserError(f"there is no modality '{modality}' for unimodal{nearest(modality, self.names)}")
        self.modality = modality or self.names[0]
        self.slice_pool = slice_pool
        self.views = pool.token_views({self.modality: self.modality})
        self.head = linear(self.views.width(self.modality), self.classes)

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Encode the one modality and classify."""
        name = self.modality
        rows = {name: self.present_inputs(inputs, present_BM)[name]}
        pooled = self.by_case(self.views.pool(self.views.features(rows))[name], name)
        if self.slice_pool == "max":
            return Output(self.head(pooled).amax(dim=1))
        return Output(self.head(pooled.mean(dim=1)))

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Take over adapter and head."""
        super().load_unimodal(states)
        if self.modality in states:
            self.head.load_state_dict(states[self.modality].head)
