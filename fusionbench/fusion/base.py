"""The contract of a fusion strategy, and the short cut for those that fuse one vector for each modality.

A strategy owns its encoders: it asks the pool for views and decides what flows between them. Its keyword-only
constructor arguments are its yaml options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.base import Tokens
from fusionbench.types import Batch, Output, Problem


class Criterion(Protocol):
    """The loss that the task chose: cross-entropy, or BCE when multi-label."""

    def __call__(self, logits: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Average the loss of logits (B, K) over the cases where ``present`` (B,) is true; 0 if none is."""

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each case, (B,)."""


@dataclass
class UnimodalState:
    """What a stage-1 run hands on.

    Attributes:
        adapter: The adapter set of its one view.
        head: State of its linear head.
        train_score: Its mAP on the training cases, from which EI takes the modality prior.
    """

    adapter: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    train_score: float = float("nan")


class Strategy(nn.Module, ABC):
    """A fusion strategy.

    Attributes:
        needs_all: Cases with a missing modality cannot be handled, so data that have any are refused.
        adds_tokens: Tokens are put into the encoders' sequences, so encoders must take some.
        modality_count: How many modalities it takes at least and at most; None: no limit.
        encoders: Kind of modality to the encoders that it may have; empty: any kind by any encoder.
        unencoded: Kinds that it reads without an encoder of their own; one that a config gives them is not built.
        score_names: The names that ``scores`` may return, which ``trainer.monitor`` may then be.
        part_metrics: Part to the validation metric by which ``trainer.stop: per_part`` stops it, ``<monitor>`` being
            ``trainer.monitor``; a part without one is trained to the end.
        views: Its encoders.
        draws: Whether ``forward`` also makes maps that nothing but a picture of them needs.
    """

    needs_all: ClassVar[bool] = False
    adds_tokens: ClassVar[bool] = False
    modality_count: ClassVar[tuple[int, int | None]] = (1, None)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    unencoded: ClassVar[tuple[str, ...]] = ()
    score_names: ClassVar[tuple[str, ...]] = ()
    part_metrics: ClassVar[Mapping[str, str]] = {}

    views: Views
    draws: bool = False

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.names = tuple(problem.modalities)
        self.classes = len(problem.classes)

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Predict.

        Args:
            inputs: Each modality's image (B, S, C, H, W), text (B, L) or table (B, F).
            present_BM: Which modalities a case has; the inputs of absent ones are never read.
        """

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Return the named terms whose sum is minimised, weights included."""
        return {"fused": criterion(output.logits, batch.target)}

    def scores(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return further scores of each case, (B,), higher being better, nan where a case has none.

        Their means over the cases that have one stand beside the classification's metrics, e.g. ``dice``.
        """
        return {}

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return what is trained, by the part that it belongs to; a parameter is in one part only.

        ``optimizer.parts`` gives a part a learning rate, ``trainer.stop: per_part`` an end of its own.
        """
        return {"all": [p for p in self.parameters() if p.requires_grad]}

    @property
    def feature_views(self) -> tuple[str, ...]:
        """The views that it reads by ``views.features`` or ``views.stored``, whose features are therefore stored.

        A strategy that puts tokens of its own into a view leaves that view out.
        """
        return tuple(self.views.address)

    @property
    def needs_unimodal(self) -> bool:
        """Whether it learns from stage-1 runs something that it cannot do without."""
        return False

    def settle(self) -> None:
        """Take out of what is trained what stage-1 runs alone have trained; ``load_unimodal`` does so by itself."""

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Start each modality's views from its stage-1 run; heads stay fresh unless a strategy says otherwise."""
        for view in self.views.address:
            modality = view.rsplit("/", 1)[-1]
            if modality in states:
                self.views.load_adapter(view, states[modality].adapter)

    def present_inputs(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """Replace what is absent by zeros, whatever it holds, and give each image of a case a row of its own.

        Images come out as (B·S, C, H, W); the rest keeps its shape. Complete data are not copied.
        """
        clean = {}
        for index, name in enumerate(self.names):
            value = inputs[name]
            if not self.problem.complete:
                here = present_BM[:, index].reshape(-1, *[1] * (value.ndim - 1))
                value = torch.where(here, value, torch.zeros_like(value))
            clean[name] = value.flatten(0, 1) if self.problem.modalities[name].is_image else value
        return clean

    def by_case(self, rows: Tensor, modality: str) -> Tensor:
        """Turn (B·S, ...) back into (B, S, ...); S is 1 for text and tables."""
        spec = self.problem.modalities[modality]
        slices = spec.instances if spec.is_image else 1
        return rows.reshape(-1, slices, *rows.shape[1:])

    def case_tokens(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Gather each modality's encoded tokens of all its images, normed as the encoder's vector is.

        A sequence of one token pools to that token behind the final norm, whatever the encoder. What a strategy
        appended is dropped. An absent modality's tokens are finite and must not be read.

        Args:
            tokens: Encoded, by a view's name that is its modality's: values (B·S, N, D).

        Returns:
            Values (B, S·N, D); the mask (B, S·N) is False at padding, and None where the encoder has none.
        """
        own = {name: t.values[:, : t.values.shape[1] - t.appended] for name, t in tokens.items()}
        normed = self.views.pool({name: Tokens(v.flatten(0, 1)[:, None]) for name, v in own.items()})
        out = {}
        for name, value in own.items():
            values = self.by_case(normed[name].reshape(value.shape), name).flatten(1, 2)
            mask = tokens[name].mask
            mask = None if mask is None else self.by_case(mask[:, : value.shape[1]], name).flatten(1, 2)
            out[name] = Tokens(values, mask)
        return out


class LateFusion(Strategy):
    """Encodes each modality to one vector, averaged over its images, and leaves the rest to ``combine``."""

    def __init__(self, problem: Problem, pool: EncoderPool) -> None:
        super().__init__(problem)
        self.views = pool.token_views({name: name for name in self.names})

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Encode every modality in one call and combine the vectors."""
        pooled = self.views.pool(self.views.features(self.present_inputs(inputs, present_BM)))
        features = {name: self.by_case(pooled[name], name).mean(dim=1) for name in self.names}
        return self.combine(features, present_BM)

    @abstractmethod
    def combine(self, features: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Predict from each modality's vector (B, D_m); those of absent modalities are finite and must not be read."""


def linear(width: int, classes: int) -> nn.Linear:
    """Return a classification head, N(0, 0.01²) weights and zero bias."""
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
