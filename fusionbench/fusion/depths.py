"""At which of a language model's layers the skips of a U-Net come in."""

from __future__ import annotations

from collections.abc import Sequence

from fusionbench.errors import UserError

# 3, 18, 28 and 38 are the first, fourth, sixth and eighth of Llama 3.2's cross-attention layers 3, 8, ..., 38.
_PLACES, _OF = (0, 3, 5, 7), 7


def fused_layers(cross_layers: Sequence[int], skips: int, chosen: Sequence[int] | None) -> tuple[int, ...]:
    """Return the decoder layers that read a skip, rising.

    Raises:
        UserError: A chosen layer reads no picture, or there are too many.
    """
    if chosen is None:
        last = len(cross_layers) - 1
        few = last + 1 <= len(_PLACES)
        return tuple(cross_layers) if few else tuple(cross_layers[round(place * last / _OF)] for place in _PLACES)
    for index in chosen:
        if index not in cross_layers:
            raise UserError(
                f"'fusion.layers' names layer {index}, but pictures are read by layers {list(cross_layers)}"
            )
    if not 1 <= len(chosen) <= skips or list(chosen) != sorted(set(chosen)):
        raise UserError(f"'fusion.layers' must name 1 to {skips} layers, each once and rising, not {list(chosen)}")
    return tuple(chosen)
