"""Late fusion by averaging predictions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.fusion.base import Criterion, LateFusion, UnimodalState, linear
from fusionbench.registry import register
from fusionbench.types import Batch, Output, Problem


@register
class Mean(LateFusion):
    """The mean of each modality's own logits over the modalities that a case has.

    Each modality's head is trained by its own loss, so the mean is an ensemble of experts that share nothing (ours).
    """

    def __init__(self, problem: Problem, pool: EncoderPool) -> None:
        super().__init__(problem, pool)
        self.heads = nn.ModuleDict({name: linear(self.views.width(name), self.classes) for name in self.names})

    def combine(self, features: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Average the logits of what is present."""
        branches = {name: self.heads[name](features[name]) for name in self.names}
        weights_BM = present_BM / present_BM.sum(dim=1, keepdim=True).clamp(min=1)
        logits = sum(weights_BM[:, i, None] * branches[name] for i, name in enumerate(self.names))
        here = {name: present_BM[:, i] for i, name in enumerate(self.names)}
        assert isinstance(logits, Tensor)
        return Output(logits, branches, weights_BM, branch_present=here)

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Train each modality's head on the cases that have it."""
        here = output.branch_present
        return {f"branch/{n}": criterion(z, batch.target, here[n]) for n, z in output.branches.items()}

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Take over adapters and heads."""
        super().load_unimodal(states)
        for name, state in states.items():
            self.heads[name].load_state_dict(state.head)
