"""CosCat: concatenated features, and an adaptive choice between what they and each modality alone say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.errors import check_number
from fusionbench.fusion.base import Criterion, LateFusion, UnimodalState, linear
from fusionbench.layers.expert_gate import expert_weights, joined, modality_weights
from fusionbench.registry import register
from fusionbench.types import Batch, Output, Problem


@register
class CosCat(LateFusion):
    """CosCat: a classifier on concatenated features, weighed for each case against every modality's own classifier.

    CosCatNet (Zuo, Wang and Wang, Artificial Intelligence in Medicine 162, 2025): two encoders whose features are
    concatenated and classified, trained in stages, with adaptive fusion. Its code is not public, so beyond that all
    is ours: with ``v_m`` the vector of modality m and ``[v_1, …, v_M]`` their concatenation::

        y_m = W_m v_m + b_m        y_c = W_c [v_1, …, v_M] + b_c
        α = softmax(G [v_1, …, v_M] + c) over the M + 1 predictions        y = Σ_m α_m y_m + α_c y_c
        L = CE(y) + branch_weight (CE(y_c) + Σ_m CE(y_m))

    Stages: with stage-1 runs given, each modality's encoder and classifier start from its own run (stage 1), and all
    is trained together (stage 2). A missing modality is a zero vector in the concatenation, has no loss of its own, and
    its α_m is 0, the others being renormalised.

    Trainable beside the encoders, at width 768, M = 2 and 4 classes: heads 2 · 3,076 + 6,148, gate 1,536 · 3 + 3;
    16,911 in all; with MoR 2,966,223. EI's Table 3 prints 201.0 M (CLIP) and 202.0 M (DINOv2) fully tuned, the mean of
    three datasets, and so do these. Our CLIP is 200.2 M (-0.4 %), since its position embeddings keep their pretrained
    grid and are interpolated as it runs.

    Args:
        branch_weight: Weight of the losses of the single predictions.
    """

    modality_count: ClassVar[tuple[int, int | None]] = (2, None)

    def __init__(self, problem: Problem, pool: EncoderPool, *, branch_weight: float = 1.0) -> None:
        super().__init__(problem, pool)
        check_number("fusion.branch_weight", branch_weight, least=0)
        self.branch_weight = branch_weight
        total = sum(self.views.width(name) for name in self.names)
        self.heads = nn.ModuleDict({name: linear(self.views.width(name), self.classes) for name in self.names})
        self.head = linear(total, self.classes)
        self.gate = nn.Linear(total, len(self.names) + 1)
        self.register_buffer("owners", torch.arange(len(self.names)), persistent=False)
        self.owners: Tensor

    def combine(self, features: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Classify each vector (B, D_m) and their concatenation, and weigh the predictions; logits (B, K)."""
        together = joined([features[name] for name in self.names], present_BM)
        branches = {f"unimodal/{name}": self.heads[name](features[name]) for name in self.names}
        branches["concat"] = self.head(together)
        alpha_BE = expert_weights(self.gate(together), present_BM)
        scores_BEK = torch.stack(list(branches.values()), dim=1)
        return Output(
            (alpha_BE[..., None] * scores_BEK).sum(dim=1),
            branches,
            modality_weights(alpha_BE, self.owners, present_BM),
            {"gate/concat": alpha_BE[:, -1].detach().mean()},
            {f"unimodal/{n}": present_BM[:, i] for i, n in enumerate(self.names)} | {"concat": present_BM.any(dim=1)},
        )

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Return the fused loss and, weighted, that of each prediction on the cases that have its modality."""
        terms = super().losses(output, batch, criterion)
        if self.branch_weight:
            for name, logits in output.branches.items():
                terms[name] = self.branch_weight * criterion(logits, batch.target, output.branch_present[name])
        return terms

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Take over adapters and each modality's own head; the head on the concatenation and the gate stay fresh."""
        super().load_unimodal(states)
        for name, state in states.items():
            self.heads[name].load_state_dict(state.head)
