"""Late fusion by concatenation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fusionbench.adapt.views import EncoderPool
from fusionbench.fusion.base import LateFusion, linear
from fusionbench.registry import register
from fusionbench.types import Output, Problem


@register
class Concat(LateFusion):
    """One linear layer on the modalities' vectors side by side, zeros for an absent one: the plainest fusion."""

    def __init__(self, problem: Problem, pool: EncoderPool) -> None:
        super().__init__(problem, pool)
        self.head = linear(sum(self.views.width(name) for name in self.names), self.classes)

    def combine(self, features: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Concatenate and classify."""
        parts = [features[name] * present_BM[:, i, None] for i, name in enumerate(self.names)]
        return Output(self.head(torch.cat(parts, dim=-1)))
