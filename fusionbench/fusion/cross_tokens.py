"""What the LLaMA-II fusions share: their parts, and the token sequences that cross blocks work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from fusionbench.adapt.cross_stack import CrossStack
from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError, check_number
from fusionbench.fusion.base import Strategy, linear
from fusionbench.layers.decoder_readout import DecoderReadout
from fusionbench.layers.projection import projections
from fusionbench.types import Output, Problem


class CrossFusion(Strategy):
    """An encoder for each modality, cross blocks, readout and head; how they are wired is a strategy's own.

    Args:
        problem: Modalities and classes.
        pool: Where encoders come from.
        cross: Pretrained decoder layers that the cross blocks start from.
        readout: Which token stands for a sequence.
        through_vocabulary: Whether it goes through the vocabulary.
        dropout: Share of the pooled sum dropped in training.
    """

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        cross: Sequence[int],
        readout: Literal["last", "mean"],
        through_vocabulary: bool,
        dropout: float,
    ) -> None:
        super().__init__(problem)
        check_number("fusion.dropout", dropout, least=0, below=1)
        self.views = pool.views({name: name for name in self.names})
        self.cross = CrossStack(pool, self.views, problem, "fusion.cross", cross)
        width = self.cross.width
        self.projections = projections({name: self.views.width(name) for name in self.names}, width)
        words = vocabulary(self.views, self.names) if through_vocabulary else None
        self.readout = DecoderReadout(width, token=readout, vocabulary=words, dropout=dropout)
        self.head = linear(width, self.classes)

    def classify(self, tokens: Mapping[str, Tokens], present_BM: Tensor) -> Output:
        """Read each sequence's token, add those of the modalities that are there, and classify the sum."""
        return Output(self.head(self.readout({name: (t.values, t.mask) for name, t in tokens.items()}, present_BM)))


def project(layers: nn.ModuleDict, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
    """Bring each modality's tokens to one width by its own layer."""
    return {name: replace(t, values=layers[name](t.values)) for name, t in tokens.items()}


def raw_tokens(strategy: Strategy, embedded: Mapping[str, Tokens]) -> dict[str, Tokens]:
    """Gather the embedded tokens of all images of a case into one sequence, as they enter the first layer.

    Args:
        strategy: Knows how many images a modality has.
        embedded: Values (B·S, N, D) by modality.

    Returns:
        Values (B, S·N, D) and masks (B, S·N), in the strategy's order of modalities; ``embedded`` may have another.
    """
    out = {}
    for name in strategy.names:
        t = embedded[name]
        mask = None if t.mask is None else strategy.by_case(t.mask, name).flatten(1, 2)
        out[name] = Tokens(strategy.by_case(t.values, name).flatten(1, 2), mask)
    return out


def parallel_tokens(strategy: CrossFusion, rows: Mapping[str, Tensor], present_BM: Tensor) -> dict[str, Tokens]:
    """Return ``t = t_enc + t_cross``: encoders and cross blocks both start from the embedded tokens.

    Args:
        strategy: Embedded and encoded tokens go through the same projections.
        rows: As ``present_inputs`` gives them.
        present_BM: Which modalities a case has.
    """
    stored = strategy.views.stored(rows)
    embedded = strategy.views.embed(rows)
    encoded = strategy.views.encode({name: t for name, t in embedded.items() if name not in stored})
    own = project(strategy.projections, strategy.case_tokens({name: {**stored, **encoded}[name] for name in rows}))
    crossed = strategy.cross(project(strategy.projections, raw_tokens(strategy, embedded)), present_BM)
    return {name: replace(t, values=t.values + crossed[name].values) for name, t in own.items()}


def vocabulary(views: Views, names: Sequence[str]) -> int:
    """Return how many words the first text encoder has an embedding of.

    Args:
        views: Of the modalities, by their names.
        names: The modalities in their order.

    Raises:
        UserError: No modality is text.
    """
    for name in names:
        tables = [m.num_embeddings for m in views.encoder(name).modules() if isinstance(m, nn.Embedding)]
        if "text" in views.encoder(name).kinds and tables:
            return max(tables)  # beside words, BERT has tables of positions and segments
    raise UserError("'fusion.through_vocabulary' needs a modality of kind text; leave it out or set it to false")
