"""Which cases an epoch draws, in which order, and the seed of each draw's augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from fusionbench.errors import UserError, nearest

MODES = ("balanced", "shuffle")


class EpochSampler(Sampler[tuple[int, int]]):
    """Draw an epoch of training cases as ``(index, draw_seed)``.

    ``balanced`` is early intervention's oversampling: each class, or each distinct set of labels, is repeated
    ``floor(N_max / N_c)`` times and topped up to ``N_max`` by cases chosen at random, here anew in each epoch.
    ``shuffle`` draws every case once.

    A draw's seed depends only on ``seed``, the epoch, the case, and how many times the case was drawn before, so
    augmentation is the same for any number of workers and ranks.

    Args:
        labels: (N,) classes, or (N, K) 0/1 when multi-label.
        mode: ``balanced`` or ``shuffle``.
        seed: Not negative.
        rank: This process's place among ``world_size``; all ranks draw equally many, the first draws being repeated to
            fill up.
        world_size: How many processes share an epoch.

    Raises:
        UserError: The mode is unknown, or there are no cases.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        mode: Literal["balanced", "shuffle"],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"unknown sampling '{mode}'{nearest(mode, MODES)}")
        if not len(labels):
            raise UserError("there are no cases to draw from; the training split is empty")
        _, group = np.unique(labels, axis=0, return_inverse=True)
        self._classes = [np.flatnonzero(group.reshape(-1) == c) for c in range(group.max() + 1)]
        if mode == "shuffle":
            self._classes = [np.arange(len(labels))]
        self._largest = max(len(cases) for cases in self._classes)
        self._seed, self._epoch = seed, 0
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Count the draws of this rank in an epoch."""
        return -(-self._largest * len(self._classes) // self._world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self._seed, self._epoch])
        draws = [draw for cases in self._classes for draw in self._draw(cases, rng)]
        order = rng.permutation(len(draws))
        for position in _shard(order, self._rank, self._world_size):
            index, occurrence = draws[position]
            seed = np.random.SeedSequence([self._seed, self._epoch, index, occurrence]).generate_state(1)
            yield index, int(seed[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self._epoch = epoch

    def _draw(self, cases: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return (index, occurrence) of one class, ``self._largest`` in all."""
        times, remainder = divmod(self._largest, len(cases))
        whole = [(int(index), occurrence) for occurrence in range(times) for index in cases]
        return whole + [(int(index), times) for index in rng.choice(cases, remainder, replace=False)]


class EvalSampler(Sampler[tuple[int, int]]):
    """Give every case once, in order, as ``(index, 0)``.

    Ranks get equally many; the first cases are repeated to fill up, and dropped later by their case id.

    Args:
        n: Number of cases.
        rank: This process's place among ``world_size``.
        world_size: How many processes share the cases.
    """

    def __init__(self, n: int, rank: int = 0, world_size: int = 1) -> None:
        self._indices = _shard(np.arange(n), rank, world_size)

    def __len__(self) -> int:
        """Count the cases of this rank, repeats included."""
        return len(self._indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((int(index), 0) for index in self._indices)


def _shard(order: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return every ``world_size``-th entry from ``rank`` on, of ``order`` repeated until all ranks get equally many."""
    total = -(-len(order) // world_size) * world_size
    return np.resize(order, total)[rank::world_size]
