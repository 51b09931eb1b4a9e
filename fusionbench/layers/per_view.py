"""Parameters of many views in one module: stacked on dim 0, picked for those views that a pass is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class ViewSelector:
    """Says which views the rows of the current pass belong to; shared by all adapted layers of a backbone."""

    def __init__(self) -> None:
        self.indices: tuple[int, ...] = (0,)

    @contextmanager
    def select(self, indices: tuple[int, ...]) -> Iterator[None]:
        """Let the rows that go in now be, in equal parts and in this order, those of the given views."""
        before, self.indices = self.indices, indices
        try:
            yield
        finally:
            self.indices = before


class PerView(nn.Module):
    """A module whose own parameters hold one slice for each view on dim 0; its children are shared by all views.

    Whatever derives from it is part of a view's adapter set: saved, loaded and handed on by name, slice by slice.

    Args:
        selector: Tells which views a pass is for.
    """

    def __init__(self, selector: ViewSelector) -> None:
        super().__init__()
        self.selector = selector

    def picked(self, parameter: Tensor) -> Tensor:
        """Return the slices of the G views that a pass is for, (G, ...), without a copy where they lie in a row."""
        views = self.selector.indices
        first, last = views[0], views[-1]
        if views == tuple(range(first, last + 1)):
            return parameter[first : last + 1]
        return parameter[list(views)]

    def by_view(self, rows: Tensor) -> Tensor:
        """Turn (G·B, ..., D) into (G, T, D), T being all tokens of a view."""
        return rows.reshape(len(self.selector.indices), -1, rows.shape[-1])
