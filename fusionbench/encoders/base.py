"""The contract of an encoder: cut in three, ``embed → encode(tokens, start, stop) → pool``.

Late fusion, early intervention at any layer and prompt tuning all fit these cuts, with no hooks and no flags.
An encoder's keyword-only constructor arguments are its yaml options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionbench.layers.rank_mixture import ViewSelector
from fusionbench.types import ModalitySpec


@dataclass(frozen=True)
class Tokens:
    """A sequence inside an encoder.

    Attributes:
        values: (B, N, D); the token at 0 is the class token where the encoder has one.
        mask: (B, N) bool, True where a token may be attended to; None: everywhere.
        appended: How many tokens at the end were put there by a strategy.
    """

    values: Tensor
    mask: Tensor | None = None
    appended: int = 0

    def append(self, extra_BND: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the sequence with tokens put at its end; ``mask_BN`` is False where one must not be attended to."""
        values = torch.cat([self.values, extra_BND.to(self.values.dtype)], dim=1)
        mask = self.mask
        if mask is not None or mask_BN is not None:
            old = torch.ones_like(self.values[..., 0], dtype=torch.bool) if mask is None else mask
            new = torch.ones_like(extra_BND[..., 0], dtype=torch.bool) if mask_BN is None else mask_BN
            mask = torch.cat([old, new], dim=1)
        return Tokens(values, mask, self.appended + extra_BND.shape[1])


class Encoder(nn.Module, ABC):
    """One backbone.

    Attributes:
        kinds: Kinds of modality that it reads.
        takes_tokens: Whether tokens can be added to its sequence.
        from_scratch: There are no pretrained weights, so it is trained whole, whatever the tuning method.
        width: D of its tokens.
        depth: L, the number of its layers.
        checkpointing: Recompute layers in the backward pass to save memory.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "slices")
    takes_tokens: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = False

    width: int
    depth: int

    def __init__(self, spec: ModalitySpec, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.selector = ViewSelector()

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tokens:
        """Turn inputs into the sequence that enters the first layer: image (B, C, H, W), text (B, L), table (B, F)."""

    @abstractmethod
    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one layer, (B, N, D) to (B, N, D)."""

    @abstractmethod
    def pool(self, tokens: Tokens) -> Tensor:
        """Return (B, D): the final norm, if there is one, and the class token (or the mean, if the encoder says so)."""

    def linear_sites(self) -> dict[str, list[str]]:
        """Map a site's name (``fc1``, ``fc2``, ``qkv``, ``q``, ``k``, ``v``, ``proj``) to its layers' module names."""
        return {}

    def encode(self, tokens: Tokens, start: int = 0, stop: int | None = None, views: tuple[int, ...] = (0,)) -> Tokens:
        """Run layers ``start`` to ``stop``, the rows being those of the given views in equal parts."""
        values = tokens.values
        for index in range(start, self.depth if stop is None else stop):
            if self.checkpointing and torch.is_grad_enabled():  # a frozen backbone never is in training mode
                values = checkpoint(self._layer, index, values, tokens.mask, views, use_reentrant=False)
            else:
                values = self._layer(index, values, tokens.mask, views)
        return replace(tokens, values=values)

    def _layer(self, index: int, values: Tensor, mask: Tensor | None, views: tuple[int, ...]) -> Tensor:
        """Run one layer for given views; selected in here, since checkpointing calls it again in the backward pass."""
        with self.selector.select(views):
            return self.layer(index, values, mask)


def attention_mask(mask_BN: Tensor | None) -> Tensor | None:
    """Turn a key mask into one that broadcasts over heads and queries, (B, 1, 1, N)."""
    return None if mask_BN is None else mask_BN[:, None, None, :]


def mean_of_own(tokens: Tokens) -> Tensor:
    """Average the encoder's own, unmasked tokens, (B, D)."""
    own = tokens.values.shape[1] - tokens.appended
    values = tokens.values[:, :own]
    if tokens.mask is None:
        return values.mean(dim=1)
    weight = tokens.mask[:, :own, None].to(values.dtype)
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
