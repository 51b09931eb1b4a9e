"""UniModel: the tokens of all modalities as one sequence in one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Encoder, Tokens
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy, UnimodalState, linear
from fusionbench.layers.per_view import EachView
from fusionbench.registry import register
from fusionbench.types import ModalitySpec, Output, Problem


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

    Where pictures and text have one node (``llama``), the pictures stand first and the text behind them, as the prompt
    of ``encoder.mutual_attention``. Where the encoder makes patch stems, each picture modality has one of its own; the
    adapter set is still one. Without a class token the pictures' last token, or their mean, is read; where attention is
    causal, so that they see nothing behind them, that of the whole sequence. From stage 1 the one encoder starts as
    that of the modality that stands first; stems of further modalities start afresh.
    """

    def __init__(self, problem: Problem, pool: EncoderPool) -> None:
        super().__init__(problem)
        self.own = _own(problem, pool)
        self.carrier = self.own[0]
        self.further = tuple(name for name in self.names if name not in self.own)
        self.views = pool.views({name: name for name in (self.carrier, *self.further)})
        self.each_stem = _furnish(self.views.encoder(self.carrier), [problem.modalities[name] for name in self.own])
        if self.each_stem:
            self.views.guests = {name: (self.carrier, place) for place, name in enumerate(self.own) if place}
        width = self.views.width(self.carrier)
        self.projections = nn.ModuleDict({n: nn.Linear(self.views.width(n), width) for n in self.further})
        self.modality = nn.Parameter(nn.init.normal_(torch.empty(len(self.names), width), std=0.02))
        self.head = linear(width, self.classes)

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Embed every modality, run the one encoder over all tokens, and classify its class token."""
        tokens = self.embed(self.present_inputs(inputs, present_BM))
        parts = {n: self._marked(tokens[n], i, present_BM[:, i]) for i, n in enumerate(self.names)}
        encoded = self.views.encode({self.carrier: self._sequence(parts)})
        return Output(self.head(self.views.pool(encoded)[self.carrier]))

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
                own = self._embed_own(name, rows[name])
                mask = None if own.mask is None else self.by_case(own.mask, name).flatten(1, 2)
                out[name] = Tokens(self.by_case(own.values, name).flatten(1, 2), mask)
        return out

    def joined(self, texts: Mapping[str, int]) -> tuple[int, int | None]:
        """Return how many tokens the one sequence has at least, and how many the one encoder takes (None: any number).

        Args:
            texts: Tokens of the longest text of each modality that is one.
        """
        pictures = {n: self.problem.modalities[n] for n in self.names if self.problem.modalities[n].is_image}
        tokens = {name: spec.instances * self._tokens(name) for name, spec in pictures.items()}
        return sum({**tokens, **texts}.values()), getattr(self.views.encoder(self.carrier), "longest", None)

    def load_unimodal(self, states: Mapping[str, UnimodalState]) -> None:
        """Start the encoders from stage 1; the one encoder keeps what the run of its first modality did not have."""
        if self.carrier in states:
            adapter = {**self.views.adapter(self.carrier), **states[self.carrier].adapter}
            states = {**states, self.carrier: replace(states[self.carrier], adapter=adapter)}
        super().load_unimodal(states)

    def _tokens(self, name: str) -> int:
        """Return how many tokens a picture is, 0 where that varies."""
        if self.each_stem and name in self.own:
            stem: Any = self.views.encoder(self.carrier).stem
            return int(stem.each[self.own.index(name)].count)
        return self.views.encoder(name if name in self.further else self.carrier).sequence or 0

    def _embed_own(self, name: str, rows: Tensor) -> Tokens:
        """Embed a modality by the one encoder: its own stem, if there are any, and the one adapter set."""
        if not self.each_stem:
            return self.views.embed({self.carrier: rows})[self.carrier]
        encoder = self.views.encoder(self.carrier)
        with encoder.selector.select((self.own.index(name),)):
            return encoder.embed(rows)

    def _sequence(self, parts: Mapping[str, Tokens]) -> Tokens:
        """Join all tokens; as its own, to be read at the end, the encoder takes what sees the rest."""
        is_image = self.problem.modalities[self.carrier].is_image
        alike = [n for n in self.own if self.problem.modalities[n].is_image == is_image]
        leading = alike if self.each_stem else [self.carrier]
        sequence, appended = parts[self.carrier], 0
        for name in (*leading[1:], *(n for n in self.names if n not in leading)):
            sequence = sequence.append(parts[name].values, parts[name].mask)
            appended += 0 if name in leading else parts[name].values.shape[1]
        self._check_length(sequence.values.shape[1])
        return replace(sequence, appended=appended if self._sees_behind(is_image) else 0)

    def _check_length(self, count: int) -> None:
        """Refuse a sequence that has more tokens than the encoder has positions.

        Raises:
            UserError: It has.
        """
        most = getattr(self.views.encoder(self.carrier), "longest", None)
        if most is not None and count > most:
            raise too_long(count, most)

    def _sees_behind(self, is_image: bool) -> bool:
        """Whether the one encoder's own tokens attend to those that are appended."""
        encoder = self.views.encoder(self.carrier)
        return not getattr(encoder, "causal", False) or bool(is_image and getattr(encoder, "mutual", False))

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


def too_long(count: int, most: int) -> UserError:
    """Return the one sentence for a joined sequence with more tokens than its encoder has positions."""
    return UserError(
        f"unimodel joins all modalities to one sequence of {count} tokens, but its encoder takes {most}: set "
        "data.text_length, give larger patches or fewer modalities, or leave out encoder.rope"
    )


def _own(problem: Problem, pool: EncoderPool) -> tuple[str, ...]:
    """Return the modalities that the one encoder embeds, pictures first: those of the first node that takes tokens.

    Raises:
        UserError: There is none.
    """
    for name in problem.modalities:
        encoder, _ = node = pool.nodes[name]
        if encoder.takes_tokens:
            same = [n for n in problem.modalities if pool.nodes[n] == node and (n == name or not encoder.from_scratch)]
            return tuple(sorted(same, key=lambda n: not problem.modalities[n].is_image))
    raise UserError(
        "unimodel needs one encoder that takes tokens, but none does; use timm_vit, hf_text or table for one"
    )


def _furnish(encoder: Encoder, specs: Sequence[ModalitySpec]) -> bool:
    """Give each picture modality a stem of its own, beside the one adapter set; false if the encoder has no stems."""
    if not isinstance(getattr(encoder, "stem", None), EachView):
        return False
    whole = all(p.requires_grad for p in encoder.parameters())
    encoder.furnish(specs)
    if whole:
        encoder.float().requires_grad_(True)  # furnishing freezes what is pretrained
    return True
