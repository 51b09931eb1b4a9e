"""DynMM: a gate sends each case to one modality's expert or to that of all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.fusion.base import Criterion, Strategy, UnimodalState, linear
from fusionbench.layers import deferred
from fusionbench.layers.expert_gate import expert_weights, joined, modality_weights
from fusionbench.registry import register
from fusionbench.types import Batch, Output, Problem


@dataclass
class GatedOutput(Output):
    """An output with what the resource term is made of.

    Attributes:
        multimodal: (B,), the gate's weight of the multimodal expert; gradients flow through it.
    """

    multimodal: Tensor = field(default_factory=lambda: torch.empty(0))


@register
class DynMM(Strategy):
    """DynMM: a gate weighs, or chooses between, experts for single modalities and one for all of them together.

    Dynamic Multimodal Fusion, arXiv 2204.00102, modality level. With ``y_m = W_m u_m + b_m`` from modality m alone,
    ``y_c = W_c [v_1, …, v_M] + b_c`` from all, and a gate MLP with one hidden layer (ReLU)::

        g = softmax(MLP([v_1, …, v_M]) / temperature)        y = Σ_m g_m y_m + g_c y_c
        L = CE(y) + resource_weight · mean(g_c)

    Unimodal experts and the multimodal one have encoders of their own, as EI's parameter counts say. Ours: each
    modality may have an expert (the published program keeps one, for text); the gate reads the multimodal expert's
    vectors, detached, where the published one reads fixed features, so no encoder is skipped and ``gate/cost`` is what
    a gate that came first would spend; a soft gate stays soft at test; a missing modality is a zero vector in the
    concatenation and its expert's weight is 0, the others being renormalised.

    ``experts: frozen`` trains the gate and the multimodal head alone: encoders and unimodal heads are those of the
    stage-1 runs, which it cannot do without. No stage-1 run has a multimodal expert, so that one reads the same
    stage-1 encoders and its head is trained (ours; the published program freezes a trained one). ``trained`` starts
    from stage-1 runs where there are any.

    Trainable beside 2M encoders at width 768, M = 2 and 4 classes: heads 2 · 3,076 + 6,148, gate 1,536 · 128 + 128 +
    128 · 3 + 3; 209,423 in all; with MoR 6,108,047. EI's Table 3 prints 402.2 M (CLIP) and 404.3 M (DINOv2) fully
    tuned, the mean of three datasets, and so do these. Our CLIP is 400.6 M (-0.4 %), since its position embeddings keep
    their pretrained grid and are interpolated as it runs.

    Args:
        gate: ``soft``: the weighted mean of the experts; ``straight_through``: the expert with the largest weight,
            in training and at test, with the soft gate's gradient.
        temperature: Divides the gate's logits.
        hidden: Width of the gate's hidden layer.
        resource_weight: λ, weight of the mean share of the multimodal expert.
        experts: Whether the experts are ``trained`` with the gate or ``frozen`` as stage 1 left them.
        unimodal: The one modality that has an expert of its own; null: each has.
    """

    modality_count: ClassVar[tuple[int, int | None]] = (2, None)

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        gate: Literal["soft", "straight_through"] = "soft",
        temperature: float = 1.0,
        hidden: int = 128,
        resource_weight: float = 0.1,
        experts: Literal["trained", "frozen"] = "trained",
        unimodal: str | None = None,
    ) -> None:
        super().__init__(problem)
        check_number("fusion.temperature", temperature, above=0)
        check_number("fusion.hidden", hidden, least=1)
        check_number("fusion.resource_weight", resource_weight, least=0)
        if unimodal is not None and unimodal not in self.names:
            raise UserError(f"there is no modality '{unimodal}' for fusion.unimodal{nearest(unimodal, self.names)}")
        self.hard, self.temperature = gate == "straight_through", temperature
        self.resource_weight, self.frozen, self.settled = resource_weight, experts == "frozen", False
        self.own = (unimodal,) if unimodal else self.names
        self.views = pool.token_views(self._roles())
        width = {n: self.views.width(self._joint_view(n)) for n in self.names}
        self.heads = nn.ModuleDict({n: linear(width[n], self.classes) for n in self.own})
        self.head = linear(sum(width.values()), self.classes)
        self.gate = nn.Sequential(
            nn.Linear(sum(width.values()), hidden), nn.ReLU(), nn.Linear(hidden, len(self.own) + 1)
        )
        self.register_buffer("owners", torch.tensor([self.names.index(n) for n in self.own]), persistent=False)
        self.owners: Tensor
        if self.frozen:
            self.register_load_state_dict_post_hook(DynMM._settle_experts)  # type: ignore[no-untyped-call]

    def _roles(self) -> dict[str, str]:
        """Return the views by name; frozen experts are all stage 1's, so that each modality needs but one."""
        joint = {self._joint_view(n): n for n in self.names}
        return {f"unimodal/{n}": n for n in self.own} | joint

    def _joint_view(self, name: str) -> str:
        """Return the view through which the multimodal expert sees a modality."""
        return f"unimodal/{name}" if self.frozen else f"multimodal/{name}"

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> GatedOutput:
        """Ask every expert and weigh what they say; logits (B, K)."""
        rows = self.present_inputs(inputs, present_BM)
        encoded = self.views.features({view: rows[_modality(view)] for view in self.views.address})
        pooled = self.views.pool(encoded)
        vectors = {view: self.by_case(pooled[view], _modality(view)).mean(dim=1) for view in pooled}
        together = joined([vectors[self._joint_view(n)] for n in self.names], present_BM)
        branches = {f"unimodal/{n}": self.heads[n](vectors[f"unimodal/{n}"]) for n in self.own}
        branches["multimodal"] = self.head(together)
        share_BE = self._share(together, present_BM)
        scores_BEK = torch.stack(list(branches.values()), dim=1)
        return GatedOutput(
            (share_BE[..., None] * scores_BEK).sum(dim=1),
            branches,
            modality_weights(share_BE, self.owners, present_BM),
            self._diagnostics(share_BE.detach(), encoded),
            {f"unimodal/{n}": present_BM[:, self.names.index(n)] for n in self.own}
            | {"multimodal": present_BM.any(dim=1)},
            multimodal=share_BE[:, -1],
        )

    def _share(self, together: Tensor, present_BM: Tensor) -> Tensor:
        """Return the gate's weights (B, E), one-hot when straight-through, the multimodal expert's in the last column.

        ``soft - soft.detach()`` is exactly 0 and brings the gradient.
        """
        soft_BE = expert_weights(self.gate(together.detach()) / self.temperature, present_BM[:, self.owners])
        if not self.hard:
            return soft_BE
        chosen_BE = F.one_hot(soft_BE.argmax(dim=1), soft_BE.shape[1]).to(soft_BE.dtype)
        return chosen_BE + (soft_BE - soft_BE.detach())

    def _diagnostics(self, share_BE: Tensor, encoded: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """Return the mean weight of each expert, and the expected encoding cost as a share of encoding everything."""
        rates = dict(zip((*self.own, "multimodal"), share_BE.mean(dim=0), strict=True))
        flops = {n: self._flops(n, encoded[self._joint_view(n)].values.shape[1]) for n in self.names}
        total = sum(flops.values())
        cost = rates["multimodal"] + torch.stack([rates[n] * (flops[n] / total) for n in self.own]).sum()
        return {f"gate/{name}": rate for name, rate in rates.items()} | {"gate/cost": cost}

    def _flops(self, name: str, tokens: int) -> int:
        """Return a case's FLOPs in a modality's encoder by a transformer's formula; for a CNN no more than a guess."""
        view, spec = self._joint_view(name), self.problem.modalities[name]
        width, rows = self.views.width(view), spec.instances if spec.is_image else 1
        return rows * self.views.depth(view) * tokens * width * (24 * width + 4 * tokens)

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Return the fused loss and the resource term."""
        assert isinstance(output, GatedOutput)
        terms = super().losses(output, batch, criterion)
        if self.resource_weight:
            terms["resource"] = self.resource_weight * output.multimodal.mean()
        return terms

    @property
    def needs_unimodal(self) -> bool:
        """Frozen experts are those of the stage-1 runs."""
        return self.frozen

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Take over adapters and unimodal heads; frozen experts are settled by it, once."""
        super().load_unimodal(states)
        for name in set(states) & set(self.own):
            self.heads[name].load_state_dict(states[name].head)
        self.settle()

    def settle(self) -> None:
        """Settle frozen experts."""
        if self.frozen:
            self._settle_experts()

    def _settle_experts(self, *_: object) -> None:
        """Train the experts no more; also the hook after a checkpoint was loaded, which holds them as they were."""
        self.settled |= any(p.requires_grad for p in self.views.parameters())
        _settle(self.views)
        _settle(self.heads)
        self.train(self.training)

    def train(self, mode: bool = True) -> DynMM:
        """Keep settled encoders in evaluation mode: no dropout, no running statistics."""
        super().train(mode)
        if self.settled:
            self.views.eval()
        return self


def _modality(view: str) -> str:
    return view.split("/", 1)[1]


def _settle(module: nn.Module) -> None:
    """Turn trained parameters into buffers, which no optimizer sees.

    A checkpoint leaves frozen parameters out, as those can be had from the encoder's weights; these cannot.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, deferred.values(parameter))
