"""A stack of layers each of which is computed again in the backward pass, so that only what enters them is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class States(NamedTuple):
    """What a stack of layers gives, by transformers' names.

    Attributes:
        last_hidden_state: (B, N, D), what leaves the last layer.
        hidden_states: The same of every layer.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]


class Recomputed(nn.Module):
    """Layers of a transformer in their order; takes the place of the module that ran them, names of tensors included.

    For towers whose own checkpointing cannot be had by public means: a whole tower that is computed again at once holds
    all of its activations then.

    Args:
        layers: Each maps ``(values, mask)`` to values.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> States:
        """Run all layers.

        Args:
            hidden_states: (B, N, D).
            attention_mask: What the layers take for a mask.
        """
        states = []
        for layer in self.layers:
            hidden_states = _run(layer, hidden_states, attention_mask)
            states.append(hidden_states)
        return States(hidden_states, tuple(states))


def _run(layer: Callable[..., Any], *given: Tensor | None) -> Tensor:
    """Run a layer so that it keeps its input alone, if anything is to be kept at all."""
    if not torch.is_grad_enabled():
        out: Tensor = layer(*given)
        return out
    kept: Tensor = checkpoint(layer, *given, use_reentrant=False)
    return kept
