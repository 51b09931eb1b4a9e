"""With what problems and batches the contract tries a strategy."""

from __future__ import annotations

from itertools import product

import torch
from tiny import SPECS, kinds_of, problem, step
from torch import Tensor

from fusionbench import registry
from fusionbench.fusion.base import Strategy
from fusionbench.types import Batch, Problem


def counts(name: str) -> list[int]:
    """Return how many modalities a strategy is tried with."""
    least, most = registry.describe("fusion", name).constants.get("modality_count", (1, None))
    return [m for m in (1, 2, 3, 4) if m >= least and (most is None or m <= most)]


def some(name: str, count: int, multilabel: bool = False) -> Problem:
    """Return a problem on the first of pictures, texts, tables and scans that a strategy takes."""
    fits = [modality for modality, spec in SPECS.items() if spec.kind in kinds_of(name)]
    return problem(fits[:count], multilabel=multilabel)


def up_to_three(name: str) -> Problem:
    """Return a problem on three modalities, or as many as a strategy takes."""
    return some(name, min(3, counts(name)[-1]))


def subsets(made: Problem) -> Tensor:
    """Return every non-empty subset of a problem's modalities, (2^M - 1, M)."""
    return torch.tensor([row for row in product([True, False], repeat=len(made.modalities)) if any(row)])


def accepts_missing(name: str) -> bool:
    """Whether a strategy takes cases that lack a modality."""
    return not registry.describe("fusion", name).constants.get("needs_all", False)


def spoil(made: Problem, cases: Batch) -> Batch:
    """Overwrite what is absent by NaN, or by other token ids."""
    inputs = {}
    for index, (name, value) in enumerate(cases.inputs.items()):
        absent = ~cases.present[:, index].reshape(-1, *[1] * (value.ndim - 1))
        rubbish = torch.full_like(value, float("nan") if value.is_floating_point() else 7)
        inputs[name] = torch.where(absent, rubbish, value)
    return cases._replace(inputs=inputs)


def gradients(network: Strategy, cases: Batch) -> dict[str, Tensor | None]:
    """Return the gradients of the sum of all losses."""
    network.zero_grad()
    _, losses = step(network, cases)
    sum(losses.values()).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def same_dropout(function, *arguments):
    """Call a function with the random numbers that every call here has."""
    torch.manual_seed(0)
    return function(*arguments)
