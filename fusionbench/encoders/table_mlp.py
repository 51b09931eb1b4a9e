"""A multilayer perceptron over a table."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fusionbench.encoders.base import Encoder, Tokens
from fusionbench.encoders.weights import only_random
from fusionbench.errors import check_number
from fusionbench.registry import register
from fusionbench.types import ModalitySpec


@register
class TableMLP(Encoder):
    """A perceptron on all columns at once, for late fusion; values arrive standardised on the training cases.

    There are no pretrained weights: it is always trained whole.

    Args:
        width: D, of the hidden layers and of the result.
        depth: Number of hidden layers.
        dropout: Share of hidden units dropped in training.
        weights: Only ``random`` is possible.
    """

    kinds: ClassVar[tuple[str, ...]] = ("table",)
    takes_tokens: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = True

    def __init__(
        self, spec: ModalitySpec, *, width: int = 64, depth: int = 2, dropout: float = 0.0, weights: str = "random"
    ) -> None:
        super().__init__(spec)
        only_random("table_mlp", weights)
        check_number("encoder.width", width, least=1)
        check_number("encoder.depth", depth, least=0)
        check_number("encoder.dropout", dropout, least=0, below=1)
        self.width, self.depth = width, depth
        self.first = nn.Linear(len(spec.columns), width)
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))
            for _ in range(depth)
        )

    def embed(self, inputs: Tensor) -> Tokens:
        """Turn (B, F) into one token, (B, 1, D)."""
        return Tokens(self.first(inputs)[:, None])

    def layer(self, index: int, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run one hidden layer, with a residual."""
        out: Tensor = values_BND + self.hidden[index](values_BND)
        return out

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the one token."""
        return tokens.values[:, 0]
