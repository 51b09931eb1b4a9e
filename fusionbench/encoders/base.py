"""The contract of an encoder: cut in three, ``embed → encode(tokens, start, stop) → pool``.

Late fusion, early intervention at any layer and prompt tuning all fit these cuts, with no hooks and no flags.
An encoder's keyword-only constructor arguments are its yaml options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionbench.errors import UserError
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.layer_adapter import Layer, LayerAdapter
from fusionbench.types import ModalitySpec


@dataclass(frozen=True)
class Tokens:
    """A sequence inside an encoder.

    Attributes:
        values: (B, N, D); the token at 0 is the class token where the encoder has one.
        mask: (B, N) bool, True where a token may be attended to; None: everywhere.
        appended: How many tokens at the end were put there by a strategy.
        side: (B, P, D) that a tuning method carries from layer to layer beside the sequence; None: nothing.
    """

    values: Tensor
    mask: Tensor | None = None
    appended: int = 0
    side: Tensor | None = None

    def append(self, extra_BND: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the sequence with tokens put at its end; ``mask_BN`` is False where one must not be attended to."""
        values = torch.cat([self.values, extra_BND.to(self.values.dtype)], dim=1)
        mask = self.mask
        if mask is not None or mask_BN is not None:
            old = torch.ones_like(self.values[..., 0], dtype=torch.bool) if mask is None else mask
            new = torch.ones_like(extra_BND[..., 0], dtype=torch.bool) if mask_BN is None else mask_BN
            mask = torch.cat([old, new], dim=1)
        return replace(self, values=values, mask=mask, appended=self.appended + extra_BND.shape[1])


class Encoder(Adaptable, ABC):
    """One backbone.

    Attributes:
        kinds: Kinds of modality that it reads.
        takes_tokens: Whether tokens can be added to its sequence.
        from_scratch: There are no pretrained weights, so it is trained whole, whatever the tuning method.
        width: D of its tokens.
        depth: L, the number of its layers.
        sequence: Tokens of an input of the modality's own size; None where that varies.
        checkpointing: Recompute layers in the backward pass to save memory.
        around: A tuning method's adapter around the layers, if it has one.
        embeds_by_view: The embedding holds adapters, so views that read the same input do not share it.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "slices")
    takes_tokens: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = False

    width: int
    depth: int
    sequence: int | None = None
    around: LayerAdapter | None

    def __init__(self, spec: ModalitySpec, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.embeds_by_view = False
        self.register_module("around", None)

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tokens:
        """Turn inputs into the sequence that enters the first layer: image (B, C, H, W), text (B, L), table (B, F)."""

    @abstractmethod
    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one layer, (B, N, D) to (B, N, D)."""

    @abstractmethod
    def pool(self, tokens: Tokens) -> Tensor:
        """Return (B, D): the final norm, if there is one, and the class token (or the mean, if the encoder says so)."""

    def embedding_site(self) -> str | None:
        """Return the name of the module that ends (text) or is (images) the embedding of a single token."""
        return None

    def furnish(self, specs: Sequence[ModalitySpec]) -> None:
        """Make what each view has of its own beside the tuning method's adapters, such as a stem without weights.

        Called once by the pool, after the tuning method was applied: what is made here is trained whatever the method,
        unless it says otherwise, and is a ``PerView``. An encoder built alone is furnished for one view.

        Args:
            specs: What the modality of each view is made of, in the order of the views.
        """

    def beyond_tokens(self) -> list[str]:
        """Name the modules that ``embed``, ``encode`` and ``pool`` never run, such as a mask decoder."""
        return []

    def keep_tokens(self) -> None:
        """Let go of these modules, for a strategy that asks for tokens and vectors alone and can never train them."""
        own = dict(self.named_modules())
        for parent, _, child in (name.rpartition(".") for name in self.beyond_tokens() if name in own):
            setattr(own[parent], child, nn.Identity())

    def bound_layers(self, tokens: Tokens) -> Callable[[int, Tensor, Tensor | None], Tensor]:
        """Return ``layer`` for one sequence; asked for once by each ``encode``, before the first layer.

        For encoders that must know more of a sequence than values and mask, or that make something for all layers.
        """
        return self.layer

    def encode(self, tokens: Tokens, start: int = 0, stop: int | None = None, views: tuple[int, ...] = (0,)) -> Tokens:
        """Run layers ``start`` to ``stop``, the rows being those of the given views in equal parts."""
        last = self.depth if stop is None else stop
        values, side, layers = tokens.values, tokens.side, self.bound_layers(tokens)
        for index in range(start, last):
            given = (partial(layers, index), index, values, side, tokens, views)
            if self.checkpointing and torch.is_grad_enabled():  # a frozen backbone never is in training mode
                values, side = checkpoint(self._layer, *given, use_reentrant=False)
            else:
                values, side = self._layer(*given)
        done = replace(tokens, values=values, side=side)
        return self.fold(done) if last == self.depth else done

    def fold(self, tokens: Tokens) -> Tokens:
        """Put what was carried beside the sequence into it, so that it can be read; done after the last layer."""
        if self.around is None:
            return tokens
        return replace(tokens, values=self.around.fold(tokens.values, tokens.side), side=None)

    def _layer(
        self, layer: Layer, index: int, values: Tensor, side: Tensor | None, tokens: Tokens, views: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """Run one layer for given views; selected in here, since checkpointing calls it again in the backward pass."""
        with self.selector.select(views):
            if self.around is None:
                return layer(values, tokens.mask), side
            return self.around.run(index, layer, values, tokens.mask, side, tokens.appended)


def attention_mask(mask_BN: Tensor | None) -> Tensor | None:
    """Turn a key mask into one that broadcasts over heads and queries, (B, 1, 1, N)."""
    return None if mask_BN is None else mask_BN[:, None, None, :]


def text_mask(ids_BL: Tensor, pad_id: int) -> Tensor:
    """Return which tokens of texts may be read, (B, L): no padding, but always the first, so that none is empty."""
    mask = ids_BL != pad_id
    mask[:, 0] = True
    return mask


def check_length(count: int, most: int, reader: str) -> None:
    """Refuse more tokens than there are positions for.

    Args:
        count: Tokens of an input.
        most: Positions.
        reader: What the sentence calls the model, e.g. ``decoder``.

    Raises:
        UserError: There are more tokens.
    """
    if count > most:
        raise UserError(f"an input has {count} tokens, the {reader} takes {most}: set data.text_length")


def mean_of_own(tokens: Tokens) -> Tensor:
    """Average the encoder's own, unmasked tokens, (B, D)."""
    own = tokens.values.shape[1] - tokens.appended
    values = tokens.values[:, :own]
    if tokens.mask is None:
        return values.mean(dim=1)
    weight = tokens.mask[:, :own, None].to(values.dtype)
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
