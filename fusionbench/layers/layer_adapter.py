"""The contract of an adapter that works around an encoder's layers rather than inside of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from fusionbench.layers.per_view import PerView

Layer = Callable[[Tensor, Tensor | None], Tensor]


class LayerAdapter(PerView):
    """Runs each layer of an encoder and may carry tokens of its own from layer to layer, beside the sequence."""

    @abstractmethod
    def run(
        self, index: int, layer: Layer, values_BND: Tensor, mask_BN: Tensor | None, side: Tensor | None, appended: int
    ) -> tuple[Tensor, Tensor | None]:
        """Run one layer and return the sequence (B, N, D) and what is carried on.

        Args:
            index: Which layer.
            layer: Runs the frozen layer on a sequence and its mask.
            values_BND: The sequence; the rows are those of the selected views in equal parts.
            mask_BN: True where a token may be attended to; None: everywhere.
            side: What the layer before carried on, (B, P, D); None: nothing yet.
            appended: How many tokens at the end a strategy has put there.
        """

    def fold(self, values_BND: Tensor, side: Tensor | None) -> Tensor:
        """Return the sequence as a reader shall see it, after the last layer or before a pooling further down."""
        return values_BND
