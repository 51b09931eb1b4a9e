"""A network on those rows of a batch alone that there are, since batch statistics see whatever they are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusionbench.layers.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct


class PresentRows:
    """Takes the rows of a batch that are present, and puts what was made of them back among zeros.

    A batch without any gives its first row, which stands for nothing: the network is called all the same, so that the
    processes of a sharded model make the same calls, but what comes out is zeros and ``alone`` keeps statistics clean.

    Args:
        present_R: (R,) bool; None: all are, and nothing is copied.
    """

    def __init__(self, present_R: Tensor | None) -> None:
        self.present = present_R
        if present_R is not None:
            kept = present_R.nonzero()[:, 0]
            self.none = len(kept) == 0
            self.kept = kept.new_zeros(1) if self.none else kept
            self.place_R = (present_R.cumsum(dim=0) - 1).clamp(min=0)

    def take(self, rows: Tensor) -> Tensor:
        """Turn (R, ...) into (P, ...), P rows being present."""
        return rows if self.present is None else rows[self.kept]

    def put(self, rows: Tensor) -> Tensor:
        """Turn (P, ...) into (R, ...), zeros where a row is absent."""
        if self.present is None:
            return rows
        here = self.present.reshape(-1, *[1] * (rows.ndim - 1))
        return torch.where(here, rows[self.place_R], rows.new_zeros(()))

    @contextmanager
    def alone(self, network: nn.Module) -> Iterator[None]:
        """Have batch norms neither take nor keep statistics of a batch of which no row is present.

        Those that go over all processes still take part, since other processes may have rows.
        """
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training] if self._is_empty() else []
        shared = [norm for norm in norms if isinstance(norm, SyncBatchNorm | SyncBatchNormAct)]
        alone = [norm for norm in norms if not isinstance(norm, SyncBatchNorm | SyncBatchNormAct)]
        _mark(shared, "idle", True)
        _mark(alone, "training", False)
        try:
            yield
        finally:
            _mark(shared, "idle", False)
            _mark(alone, "training", True)

    def _is_empty(self) -> bool:
        return self.present is not None and self.none


def _mark(norms: Sequence[nn.Module], name: str, value: bool) -> None:
    for norm in norms:
        setattr(norm, name, value)
