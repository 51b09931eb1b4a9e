"""The contract of a decoder that reads text from left to right and, in some of its layers, a picture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusionbench.encoders.base import Encoder, Tokens
from fusionbench.errors import UserError, nearest
from fusionbench.layers.decoder_mask import decoder_mask
from fusionbench.layers.decoder_pass import DecoderPass


class Memory(NamedTuple):
    """What a cross-attention layer reads.

    Attributes:
        tokens_BTD: In the decoder's width.
        bias_BT: Added to the attention logits of each token: 0 is open, log g is gated, -inf is closed. A row that is
            closed everywhere passes the layer unchanged. None: everything is open.
    """

    tokens_BTD: Tensor
    bias_BT: Tensor | None = None


def _no_words() -> Any:  # noqa: ANN401 - transformers' DynamicCache
    from transformers import DynamicCache

    return DynamicCache()


@dataclass(frozen=True)
class Past:
    """What a decoder has read of some texts while it writes on: each layer's keys and values, computed once.

    Attributes:
        words: transformers' cache of its own layers, in which those of the text grow by every pass.
        pictures: Those of the memory of every other layer, by view and layer.
    """

    words: Any = field(default_factory=_no_words)
    pictures: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)


class VisionLanguage(Encoder):
    """A decoder some of whose layers attend to a picture (cross-attention), the others to the text before a token.

    A strategy that shows it pictures runs the layers itself, with masks, positions and memories of its own: it embeds
    ids, calls ``run_layer`` for 0 to ``depth - 1``, and reads ``vocabulary``. As an encoder of text alone it runs with
    a causal mask and without memory, and what stands behind a token never acts on it, so it takes no further tokens. A
    class of its own names ``kinds`` and ``takes_tokens`` in its body, where the registry looks.

    Attributes:
        cross_layers: Places, in the whole stack, of the layers that read the picture, rising. ``depth`` counts all.
        longest: How many positions the decoder has, for a strategy's prompt and answers as well as for text.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)
    takes_tokens: ClassVar[bool] = False

    cross_layers: tuple[int, ...]
    longest: int

    @abstractmethod
    def see(self, images_BCHW: Tensor) -> Tensor:
        """Turn pictures, normalised as the data does it, into vision tokens (B, T, D) in the decoder's width."""

    @abstractmethod
    def decoder_layer(
        self,
        index: int,
        values_BND: Tensor,
        mask_BNN: Tensor,
        positions_BN: Tensor,
        memory: Memory | None,
        past: Past | None = None,
    ) -> Tensor:
        """Run one layer as ``run_layer`` does, which cares for checkpointing."""

    @abstractmethod
    def vocabulary(self, values_BND: Tensor) -> Tensor:
        """Apply the final norm and the language head: the logits (B, N, V) of the next token at each place."""

    def run_layer(
        self,
        index: int,
        values_BND: Tensor,
        mask_BNN: Tensor,
        positions_BN: Tensor,
        memory: Memory | None,
        past: Past | None = None,
    ) -> Tensor:
        """Run one layer of the stack, for the views that are selected, (B, N, D) to (B, N, D).

        Args:
            index: Its place in the whole stack.
            values_BND: The sequence, or with ``past`` that of it which was not read before.
            mask_BNN: (B, N, P + N) bool, True where the query (dim 1) may attend to the key (dim 2), of which the first
                P were read before; without ``past`` P is 0.
            positions_BN: (B, N) int, by which queries and keys are rotated.
            memory: What a layer of ``cross_layers`` reads; with None it changes nothing. The others do not look at it.
            past: What was read before, to which this pass is added; the memory's tokens must be the same in all passes.
                Nothing is recomputed then, whatever ``checkpointing`` says: a second reading would be added again.
        """
        if past is not None or not (self.checkpointing and torch.is_grad_enabled()):
            return self.decoder_layer(index, values_BND, mask_BNN, positions_BN, memory, past)
        views = self.selector.indices
        given = (index, values_BND, mask_BNN, positions_BN, memory)
        out: Tensor = checkpoint(self._selected, views, *given, use_reentrant=False)
        return out

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one layer on text alone: causal, padding closed and without a place."""
        return self.bound_layers(Tokens(values_BND, mask_BN))(index, values_BND, mask_BN)

    def bound_layers(self, tokens: Tokens) -> Callable[[int, Tensor, Tensor | None], Tensor]:
        """Return the layers for text alone, with one mask and one row of places for all."""
        shared = DecoderPass(_text_alone)

        def run(index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
            mask_BNN, places_BN = shared(values_BND, mask_BN)
            return self.decoder_layer(index, values_BND, mask_BNN, places_BN, None)

        return run

    def _selected(
        self,
        views: tuple[int, ...],
        index: int,
        values_BND: Tensor,
        mask_BNN: Tensor,
        positions_BN: Tensor,
        memory: Memory | None,
    ) -> Tensor:
        """Select the views in here, since checkpointing calls it again in the backward pass."""
        with self.selector.select(views):
            return self.decoder_layer(index, values_BND, mask_BNN, positions_BN, memory)


def _text_alone(values_BND: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which token sees which, (B, N, N), and places that padding has no part in, (B, N)."""
    open_BN = torch.ones_like(values_BND[..., 0], dtype=torch.bool) if mask_BN is None else mask_BN
    mask_BNN = decoder_mask(torch.zeros_like(open_BN, dtype=torch.long), open_BN)[:, 0]
    return mask_BNN, (open_BN.cumsum(dim=1) - 1).clamp(min=0)


class Pixels(nn.Module):
    """Turns pictures as the data normalises them into those that a vision tower was trained on.

    Args:
        normalize: What they were normalised by, as in the transform's option of that name: ``clip``, ``imagenet``,
            ``half``, ``none``, or means and standard deviations; None: ``clip``, the transform's default.
        mean: Of the tower's training pictures, by channel, for values in 0..1.
        deviation: Standard deviations of the same.
        size: Height and width in pixels to which pictures are resized (bilinear, antialiased); None: they stay.

    Raises:
        UserError: There is no such normalisation.
    """

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(
        self,
        normalize: str | Sequence[Sequence[float]] | None,
        *,
        mean: Sequence[float],
        deviation: Sequence[float],
        size: int | None = None,
    ) -> None:
        super().__init__()
        from fusionbench.data.transforms import NORMALIZE

        known = "clip" if normalize is None else normalize
        if isinstance(known, str) and known not in NORMALIZE:
            raise UserError(f"unknown encoder.normalize '{known}'{nearest(known, NORMALIZE)}")
        given = torch.tensor(NORMALIZE[known] if isinstance(known, str) else [list(row) for row in known])
        wanted = torch.tensor([list(mean), list(deviation)])
        self.register_buffer("scale_C11", (given[1] / wanted[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("shift_C11", ((given[0] - wanted[0]) / wanted[1]).view(3, 1, 1), persistent=False)
        self.size = size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, 3, H, W) to the tower's normalisation and size."""
        if self.size is not None and images_BCHW.shape[-2:] != (self.size, self.size):
            wide = images_BCHW.to(torch.promote_types(images_BCHW.dtype, torch.float32))  # bfloat16 has no kernel
            sized = F.interpolate(wide, size=(self.size, self.size), mode="bilinear", antialias=True)
            images_BCHW = sized.to(images_BCHW.dtype)
        return images_BCHW * self.scale_C11 + self.shift_C11
