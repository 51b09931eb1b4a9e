"""What a tuning method can be put into: linear layers and norms by the names of their sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from fusionbench.layers.per_view import ViewSelector


class Adaptable(nn.Module):
    """A network whose layers a tuning method may wrap; every encoder is one, and a strategy's own layers can be.

    Attributes:
        selector: Says which views a pass is for.
        exporters: For layers of a strategy's own, what writes each view's adapters into a folder in the format of the
            library that the tuning method is of; put there by who tunes them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.selector = ViewSelector()
        self.exporters: list[Callable[[Path], Path | None]] = []

    def linear_sites(self) -> dict[str, list[str]]:
        """Map a site's name (``fc1``, ``fc2``, ``gate``, ``qkv``, ``q``, ``k``, ``v``, ``proj``) to modules' names."""
        return {}

    def norm_sites(self) -> list[str]:
        """Return the module names of the norms in the layers and of the final one."""
        return []
