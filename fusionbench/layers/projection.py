"""Tokens of several widths brought to one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fusionbench.errors import UserError


def projections(widths: Mapping[str, int], width: int) -> nn.ModuleDict:
    """Return, by modality, a linear layer to ``width``, or nothing where the tokens already have it."""
    return nn.ModuleDict({n: nn.Identity() if w == width else nn.Linear(w, width) for n, w in widths.items()})


def check_heads(option: str, heads: int, width: int) -> None:
    """Refuse a number of attention heads that does not divide the tokens' width.

    Raises:
        UserError: Names the option, the number and the width.
    """
    if heads < 1 or width % heads:
        raise UserError(f"'{option}' must divide the tokens' width {width}, but {heads} does not")
