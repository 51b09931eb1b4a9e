"""Token sequences of several views as one batch, so that a backbone sees them in one pass."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from fusionbench.encoders.base import Tokens


def token_shape(tokens: Tokens) -> Hashable:
    """Return what sequences must have in common to be joined."""
    side = None if tokens.side is None else tuple(tokens.side.shape)
    return tuple(tokens.values.shape), tokens.values.dtype, tokens.mask is None, tokens.appended, side


def join(parts: Sequence[Tokens]) -> Tokens:
    """Put sequences of one shape below each other along the batch, B rows each."""
    if len(parts) == 1:
        return parts[0]
    masks = [p.mask for p in parts if p.mask is not None]
    sides = [p.side for p in parts if p.side is not None]
    return replace(
        parts[0],
        values=torch.cat([p.values for p in parts]),
        mask=torch.cat(masks) if masks else None,
        side=torch.cat(sides) if sides else None,
    )


def split(tokens: Tokens, parts: int) -> list[Tokens]:
    """Undo ``join`` of this many parts."""
    if parts == 1:
        return [tokens]
    masks = tokens.mask.chunk(parts) if tokens.mask is not None else [None] * parts
    sides = tokens.side.chunk(parts) if tokens.side is not None else [None] * parts
    chunks = zip(tokens.values.chunk(parts), masks, sides, strict=True)
    return [replace(tokens, values=v, mask=m, side=s) for v, m, s in chunks]
