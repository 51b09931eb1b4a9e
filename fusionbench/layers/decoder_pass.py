"""What the layers of a decoder share in one pass over a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class DecoderPass(Generic[T]):
    """Attention mask, rotations and the like: made for the first layer and kept for those that follow.

    They depend on the sequence's length, type and device and on its padding mask alone, so they are made again where
    one of these is another than in the layer before. Masks are told apart as objects, without looking into them: a
    tuning method that puts a mask of its own together in each layer (``vpt`` on padded text) gains nothing.

    Args:
        make: Gives it for values (B, N, D), of which only shape, type and device may be read, and a mask (B, N).
    """

    def __init__(self, make: Callable[[Tensor, Tensor | None], T]) -> None:
        self._make = make
        self._of: tuple[object, ...] | None = None
        self._mask: Tensor | None = None
        self._made: T

    def __call__(self, values_BND: Tensor, mask_BN: Tensor | None) -> T:
        """Return it for a layer's input."""
        of = (values_BND.shape, values_BND.dtype, values_BND.device)
        if of != self._of or mask_BN is not self._mask:
            self._made = self._make(values_BND, mask_BN)
            self._of, self._mask = of, mask_BN
        return self._made
