"""The token sequences that cross blocks work on: one for each modality of a case, all of one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from fusionbench.adapt.cross_stack import CrossStack
from fusionbench.adapt.views import Views
from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy


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


def parallel_tokens(
    strategy: Strategy, projections: nn.ModuleDict, cross: CrossStack, rows: Mapping[str, Tensor], present_BM: Tensor
) -> dict[str, Tokens]:
    """Return ``t = t_enc + t_cross``: encoders and cross blocks both start from the embedded tokens.

    Args:
        strategy: Its views are named after the modalities.
        projections: To the blocks' width; embedded and encoded tokens go through the same.
        cross: Runs on the embedded tokens.
        rows: As ``present_inputs`` gives them.
        present_BM: Which modalities a case has.
    """
    stored = strategy.views.stored(rows)
    embedded = strategy.views.embed(rows)
    encoded = strategy.views.encode({name: t for name, t in embedded.items() if name not in stored})
    own = project(projections, strategy.case_tokens({name: {**stored, **encoded}[name] for name in rows}))
    crossed = cross(project(projections, raw_tokens(strategy, embedded)), present_BM)
    return {name: replace(t, values=t.values + crossed[name].values) for name, t in own.items()}


def sequences(tokens: Mapping[str, Tokens]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return values and mask of each modality's tokens, as a readout takes them."""
    return {name: (t.values, t.mask) for name, t in tokens.items()}


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
