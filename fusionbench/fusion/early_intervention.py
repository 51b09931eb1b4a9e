"""EI: early intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.fusion.base import Criterion, Strategy, UnimodalState, linear
from fusionbench.registry import register
from fusionbench.types import Batch, Output, Problem


@register
class EarlyIntervention(Strategy):
    """EI: class tokens of the other modalities enter each modality's encoder before its first layer.

    Early Intervention for Multimodal Imaging based Disease Recognition, arXiv 2603.17514. Each modality has two views
    of its encoder: an auxiliary one, whose class token steers the other modalities (Eq. 1), and a primary one, whose
    sequence is extended at its end by the others' intervention tokens (Eq. 2). A gate weighs the primary predictions
    (Eq. 3); the loss is Eq. 5-8. Algorithm 1 shows one adapter; the published parameter counts need one for each
    ordered pair of modalities, LayerNorm → Linear → GELU → Linear with 384 hidden units whatever the width.

    Defaults follow the authors' code where it and the paper differ, since it gives the published parameter counts:
    gate input and fused logits are detached, so the loss of the fused prediction trains the gate alone; the gate loss
    is the negative log-likelihood of the softmaxed weights (their corrected version). Ours: any encoder with a class
    token serves, vision or text, and widths may differ; a missing modality gives no intervention token (attention
    over it is masked), no branch loss and gate weight 0, the other weights being renormalised; where the prior's
    modality is missing, the next best takes its place.

    Args:
        acquire_layer: Layer l whose class token, after the final norm, becomes the intervention token; null: the last.
            The auxiliary head always reads the last.
        insert_layer: Layers of the primary encoder that run before the tokens are put in; 0: before the first.
        hidden: Width of an adapter's hidden layer.
        lambda_aux: λ1, weight of the auxiliary encoders' losses.
        lambda_gate: λ2, weight of the gate's loss.
        detach: ``false`` is Eq. 3 and 5 as printed: the fused loss reaches encoders and heads.
        prior: Which modality the gate is taught to trust: ``best``: the one whose stage-1 model has the best mAP on the
            training cases (the paper); a modality's name; ``per_sample``: for each case the modality with the smallest
            loss times its ``gaps`` (the code); ``none``: no gate loss.
        gaps: With ``per_sample``, a factor for each modality in order, e.g. ``[1, 0.001]``.
        primary_pool: Pooling of the primary class tokens over slices.
        aux_pool: Pooling over slices of the auxiliary logits and, apart from them, of the class tokens; the paper's is
            ``mean``.
    """

    adds_tokens: ClassVar[bool] = True
    modality_count: ClassVar[tuple[int, int | None]] = (2, None)

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        acquire_layer: int | None = None,
        insert_layer: int = 0,
        hidden: int = 384,
        lambda_aux: float = 0.3,
        lambda_gate: float = 0.1,
        detach: bool = True,
        prior: str = "best",
        gaps: Sequence[float] | None = None,
        primary_pool: Literal["mean", "max"] = "mean",
        aux_pool: Literal["mean", "max"] = "max",
    ) -> None:
        super().__init__(problem)
        names = self.names
        check_number("fusion.hidden", hidden, least=1)
        check_number("fusion.lambda_aux", lambda_aux, least=0)
        check_number("fusion.lambda_gate", lambda_gate, least=0)
        self.prior = _check_prior(prior, names)
        self.register_buffer("gaps", torch.tensor(_check_gaps(gaps, names)), persistent=False)
        self.gaps: Tensor
        self.acquire_layer, self.insert_layer = acquire_layer, insert_layer
        self.lambda_aux, self.lambda_gate, self.detach = lambda_aux, lambda_gate, detach
        self.primary_pool, self.aux_pool = primary_pool, aux_pool
        self.views = pool.views(
            {f"auxiliary/{n}": n for n in names} | {f"primary/{n}": n for n in names},
        )
        self._check_layers()
        width = {n: self.views.width(f"primary/{n}") for n in names}
        self.adapters = nn.ModuleDict(
            {f"{t}/{r}": _adapter(width[r], hidden, width[t]) for t in names for r in names if r != t}
        )
        self.auxiliary_heads = nn.ModuleDict({n: linear(width[n], self.classes) for n in names})
        self.heads = nn.ModuleDict({n: linear(width[n], self.classes) for n in names})
        self.gate = nn.Linear(sum(width.values()), len(names))
        self.register_buffer("ranking", _named_ranking(prior, names))
        self.ranking: Tensor

    def _check_layers(self) -> None:
        depth = min(self.views.depth(view) for view in self.views.address)
        if self.acquire_layer is not None and not 1 <= self.acquire_layer <= depth:
            raise UserError(f"fusion.acquire_layer must lie in 1 to {depth}, not {self.acquire_layer}")
        if not 0 <= self.insert_layer < depth:
            raise UserError(f"fusion.insert_layer must lie in 0 to {depth - 1}, not {self.insert_layer}")

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Run auxiliary encoders, intervened primary encoders, and the gate."""
        rows = self.present_inputs(inputs, present_BM)
        views = [f"{role}/{n}" for role in ("auxiliary", "primary") for n in self.names]
        sources = {view: rows[view.split("/", 1)[1]] for view in views}
        helpers = {v: x for v, x in sources.items() if v.startswith("auxiliary/")}
        stored = self.views.stored(helpers) if self.acquire_layer is None else {}
        embedded = self.views.embed({v: x for v, x in sources.items() if v not in stored})
        acquired, auxiliary = self._auxiliary({v: t for v, t in embedded.items() if v in helpers}, stored)
        primary = self._primary({v: t for v, t in embedded.items() if v.startswith("primary/")}, acquired, present_BM)
        branches = {f"primary/{n}": self.heads[n](primary[n]) for n in self.names}
        logits, alpha_BM = self._fuse(primary, branches, present_BM)
        here = {f"{role}/{n}": present_BM[:, i] for role in ("primary", "auxiliary") for i, n in enumerate(self.names)}
        return Output(logits, {**branches, **auxiliary}, alpha_BM, branch_present=here)

    @property
    def feature_views(self) -> tuple[str, ...]:
        """The auxiliary encoders where they run in one go; the primary ones read intervention tokens."""
        return () if self.acquire_layer else tuple(f"auxiliary/{n}" for n in self.names)

    def _auxiliary(
        self, tokens: Mapping[str, Tokens], stored: Mapping[str, Tokens]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each modality's class token to hand on (B, D) and its auxiliary logits (B, K).

        Args:
            tokens: Embedded, of the views that are not stored.
            stored: Encoded to the last layer already.
        """
        middle = tokens if self.acquire_layer is None else self.views.encode(tokens, 0, self.acquire_layer)
        last = self.views.pool({**stored, **self.views.encode(middle, self.acquire_layer or 0)})
        handed = last if self.acquire_layer is None else self.views.pool(middle)
        acquired, logits = {}, {}
        for name in self.names:
            view = f"auxiliary/{name}"
            acquired[name] = _over_slices(self.by_case(handed[view], name), self.aux_pool)
            scores = self.auxiliary_heads[name](self.by_case(last[view], name))
            logits[view] = _over_slices(scores, self.aux_pool)
        return acquired, logits

    def _primary(
        self, tokens: Mapping[str, Tokens], acquired: Mapping[str, Tensor], present_BM: Tensor
    ) -> dict[str, Tensor]:
        """Return each modality's class token (B, D), steered by the others' intervention tokens."""
        started = self.views.encode(tokens, 0, self.insert_layer) if self.insert_layer else tokens
        steered = {}
        for target in self.names:
            others = [n for n in self.names if n != target]
            extra = torch.stack([self.adapters[f"{target}/{r}"](acquired[r]) for r in others], dim=1)
            mask = None if self.problem.complete else present_BM[:, [self.names.index(r) for r in others]]
            sequence = started[f"primary/{target}"]
            slices = sequence.values.shape[0] // extra.shape[0]
            steered[f"primary/{target}"] = sequence.append(
                extra.repeat_interleave(slices, dim=0), None if mask is None else mask.repeat_interleave(slices, dim=0)
            )
        pooled = self.views.pool(self.views.encode(steered, self.insert_layer))
        return {n: _over_slices(self.by_case(pooled[f"primary/{n}"], n), self.primary_pool) for n in self.names}

    def _fuse(
        self, primary: Mapping[str, Tensor], branches: Mapping[str, Tensor], present_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weigh the primary predictions by the gate (Eq. 3)."""
        features = torch.cat([primary[n] * present_BM[:, i, None] for i, n in enumerate(self.names)], dim=-1)
        scores_BMK = torch.stack([branches[f"primary/{n}"] for n in self.names], dim=1)
        if self.detach:
            features, scores_BMK = features.detach(), scores_BMK.detach()
        alpha_BM = self.gate(features).masked_fill(~present_BM, float("-inf")).softmax(dim=-1)
        return (alpha_BM[..., None] * scores_BMK).sum(dim=1), alpha_BM

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Return the terms of Eq. 8: fused, each primary, λ1 × each auxiliary, λ2 × gate."""
        terms = {"fused": criterion(output.logits, batch.target)}
        for name, logits in output.branches.items():
            weight = self.lambda_aux if name.startswith("auxiliary/") else 1.0
            if weight:
                terms[name] = weight * criterion(logits, batch.target, output.branch_present[name])
        if self.lambda_gate and self.prior != "none":
            assert output.weights is not None
            wanted = self._wanted(output, batch, criterion)
            chosen = output.weights.gather(1, wanted[:, None]).clamp(min=0)
            terms["gate"] = self.lambda_gate * -torch.log(chosen + 1e-8).mean()
        return terms

    @torch.no_grad()
    def _wanted(self, output: Output, batch: Batch, criterion: Criterion) -> Tensor:
        """Return the index of the modality that the gate is taught to trust in each case, (B,)."""
        if self.prior == "per_sample":
            each = torch.stack([criterion.each(output.branches[f"primary/{n}"], batch.target) for n in self.names], 1)
            cost = each * self.gaps
        else:
            cost = self.ranking.to(batch.present.device).expand(len(batch.present), -1)
        return cost.masked_fill(~batch.present, float("inf")).argmin(dim=1)

    @property
    def needs_unimodal(self) -> bool:
        """The prior ``best`` compares the stage-1 runs."""
        return self.prior == "best" and self.lambda_gate > 0

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Start both roles from stage 1: the auxiliary keeps its head, the primary's is fresh; rank the modalities."""
        super().load_unimodal(states)
        for name, state in states.items():
            self.auxiliary_heads[name].load_state_dict(state.head)
        if self.prior == "best" and set(states) == set(self.names):
            order = sorted(self.names, key=lambda n: -states[n].train_score)
            self.ranking.copy_(torch.tensor([float(order.index(n)) for n in self.names]))


def _adapter(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width_in, eps=1e-6), nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out)
    )


def _over_slices(values_BS: Tensor, how: str) -> Tensor:
    """Pool (B, S, ...) over S."""
    return values_BS.amax(dim=1) if how == "max" else values_BS.mean(dim=1)


def _check_prior(prior: str, names: Sequence[str]) -> str:
    known = ("best", "per_sample", "none", *names)
    if prior not in known:
        raise UserError(f"unknown fusion.prior '{prior}'{nearest(prior, known)}")
    return prior


def _check_gaps(gaps: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    if gaps is None:
        return [1.0] * len(names)
    if len(gaps) != len(names):
        raise UserError(f"fusion.gaps has {len(gaps)} values for {len(names)} modalities ({', '.join(names)})")
    for gap in gaps:
        check_number("fusion.gaps", gap, least=0)
    return [float(gap) for gap in gaps]


def _named_ranking(prior: str, names: Sequence[str]) -> Tensor:
    """Rank a named modality first and the rest in order; the order itself until stage 1 says which is best."""
    return torch.tensor([-1.0 if n == prior else float(i) for i, n in enumerate(names)])
