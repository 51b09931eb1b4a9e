"""Parameters of many views in one module: stacked on dim 0, picked for those views that a pass is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusionbench.layers import sharded


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

    def view_state(self, view: int) -> dict[str, Tensor]:
        """Return a copy of one view's part of the module by name, in main memory."""
        return {key: sharded.value(own)[view].clone() for key, own in self.named_parameters(recurse=False)}

    def load_view_state(self, view: int, state: Mapping[str, Tensor]) -> None:
        """Put one view's part back, by name."""
        own = dict(self.named_parameters(recurse=False))
        for key, value in state.items():
            own[key].data[view].copy_(value)


class EachView(PerView):
    """A module of its own for each view, for what can't be one batched product.

    Args:
        selector: Tells which views a pass is for.
        modules: One for each view.
    """

    def __init__(self, selector: ViewSelector, modules: Iterable[nn.Module]) -> None:
        super().__init__(selector)
        self.each = nn.ModuleList(modules)

    def forward(self, rows: Tensor) -> Tensor:
        """Map each view's rows, in equal parts, by its own module."""
        views = self.selector.indices
        parts = zip(views, rows.chunk(len(views)), strict=True)
        return torch.cat([self.each[view](part) for view, part in parts])

    def view_state(self, view: int) -> dict[str, Tensor]:
        """Return a copy of one view's module by name, in main memory."""
        return {key: value.clone() for key, value in sharded.state_dict(self.each[view]).items()}

    def load_view_state(self, view: int, state: Mapping[str, Tensor]) -> None:
        """Put one view's module back, by name."""
        sharded.load_state(self.each[view], state)
