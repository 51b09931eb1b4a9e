"""Which way of sharing the work fits, the one with the least communication first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusionbench.plan.need import Need
from fusionbench.sections import TrainerOptions

ROOM = 0.9  # our choice: a tenth is left for CUDA's own and for what its allocator cannot use
_WAYS = (
    ("ddp", "none"),
    ("zero2", "none"),
    ("zero3", "none"),
    ("zero2", "optimizer"),
    ("zero3", "optimizer"),
    ("zero3", "all"),
)


@dataclass(frozen=True)
class Choice:
    """What fits.

    Attributes:
        need: And what it needs.
        cases: Cases of a micro-batch on each GPU.
        parts: Into how many micro-batches the config's own is cut.
    """

    need: Need
    cases: int
    parts: int = 1


def ways(options: TrainerOptions) -> list[TrainerOptions]:
    """Return the options under each strategy and offload, in the order in which more is sent between GPUs."""
    alone = "auto" if options.processes == 1 else "ddp"
    found = []
    for name, offload in _WAYS:
        given: dict[str, Any] = {"strategy": alone if name == "ddp" else name, "offload": offload}
        found.append(replace(options, **given, offload_folder=options.offload_folder if offload == "all" else None))
    return found


@dataclass(frozen=True)
class Limits:
    """What there is.

    Attributes:
        gpu: Bytes of each GPU's memory.
        main: Bytes of a node's main memory.
    """

    gpu: float
    main: float = math.inf

    def holds(self, need: Need) -> bool:
        """Whether each GPU has room for it."""
        return need.total <= ROOM * self.gpu

    def fits(self, need: Need) -> bool:
        """Whether each GPU and each node has room for it."""
        return self.holds(need) and need.main <= self.main


def first_that_fits(needs: Callable[[int], Sequence[Need]], cases: int, limits: Limits) -> Choice | None:
    """Return the first way that fits, or else with the largest part of the micro-batch with which any does.

    Args:
        needs: What each way needs, in order, by the cases of a micro-batch.
        cases: Of the config's micro-batch.
        limits: What there is.
    """
    for part in _divisors(cases):
        for need in needs(cases // part):
            if limits.fits(need):
                return Choice(need, cases // part, part)
    return None


def nearest_to_fit(needs: Sequence[Need], limits: Limits) -> Need:
    """Return what is nearest to fitting where nothing does: on the GPUs with the least main memory, or else the least.

    Args:
        needs: What each way needs.
        limits: What there is.
    """
    held = [need for need in needs if limits.holds(need)]
    if held:
        return min(held, key=lambda need: need.main)
    return min(needs, key=lambda need: need.total)


def overrides(choice: Choice, given: TrainerOptions, batch_size: int) -> list[str]:
    """Return a choice as what is typed behind ``fusionbench fit``, where it differs from what is given.

    Args:
        choice: What was chosen.
        given: The config's options.
        batch_size: The config's.
    """
    limit = given.limit_train_batches and given.limit_train_batches * choice.parts  # as many cases an epoch as before
    accumulate = given.accumulate * choice.parts
    chosen = replace(choice.need.options, accumulate=accumulate, limit_train_batches=limit)
    names = ("strategy", "devices", "offload", "offload_folder", "accumulate", "limit_train_batches")
    values = {name: getattr(chosen, name) for name in names if getattr(chosen, name) != getattr(given, name)}
    told = [f"trainer.{name}={'null' if value is None else value}" for name, value in values.items()]
    return [*told, *([f"data.batch_size={batch_size // choice.parts}"] if choice.parts > 1 else [])]


def _divisors(number: int) -> Iterator[int]:
    """Yield the numbers that divide one, rising."""
    return (d for d in range(1, number + 1) if number % d == 0)
