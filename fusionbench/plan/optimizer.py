"""What an optimizer keeps for each number that it trains, and needs while it steps: counted, not looked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusionbench.plan.live_bytes import LiveBytes

_NUMBERS = 1024


@dataclass(frozen=True)
class OptimizerCost:
    """An optimizer's memory.

    Attributes:
        states: Bytes kept for each number that is trained.
        at_once: Bytes needed for each number while all parameters are stepped together, as is done on GPUs.
        one_by_one: The same while they are stepped one after the other, as on CPUs, for each number of the largest.
    """

    states: float
    at_once: float
    one_by_one: float


def optimizer_cost(make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype) -> OptimizerCost:
    """Let an optimizer take two steps on two small parameters and count.

    Args:
        make: Makes the optimizer of parameters.
        dtype: Of what is trained.
    """
    states, one_by_one = _count(make, dtype, at_once=False)
    _, at_once = _count(make, dtype, at_once=True)
    return OptimizerCost(states, at_once / 2, one_by_one)


def _count(make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, *, at_once: bool) -> tuple[float, float]:
    """Return the bytes kept for each number, and those needed beside in a step for each number of one parameter."""
    trained = [nn.Parameter(torch.ones(_NUMBERS, dtype=dtype)) for _ in range(2)]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make(trained)
    for group in optimizer.param_groups:
        group["foreach"] = at_once
    optimizer.step()
    states = [v for own in optimizer.state.values() for v in own.values() if isinstance(v, Tensor)]
    kept = [v for v in states if v.numel() == _NUMBERS]
    with LiveBytes([*trained, *(p.grad for p in trained if p.grad is not None), *states]) as live:
        optimizer.step()
    return sum(v.nbytes for v in kept) / (2 * _NUMBERS), live.peak / _NUMBERS
