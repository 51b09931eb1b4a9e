"""How many parameters each part of a strategy has, and how many of them are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from fusionbench.fusion.base import Strategy


@dataclass(frozen=True)
class Part:
    """A part of a strategy.

    Attributes:
        name: What it is, and of which modalities.
        trained: Parameters that are trained.
        frozen: Parameters that are not.
    """

    name: str
    trained: int
    frozen: int


def parts(made: Strategy, fusion: str, encoders: Mapping[str, str], method: str) -> list[Part]:
    """Return each backbone, beside it what is trained in one that is frozen, and what is the strategy's own.

    Args:
        made: The strategy, which may be of shapes alone.
        fusion: Its name.
        encoders: Name of each modality's encoder.
        method: Name of the tuning method.
    """
    found = []
    for key, backbone in made.views.backbones.items():
        views = [view for view, (own, _) in made.views.address.items() if own == key]
        modalities = list(dict.fromkeys(view.rsplit("/", 1)[-1] for view in views))
        trained, frozen = _counts(backbone.parameters())
        name = f"{encoders[modalities[0]]} of {' and '.join(modalities)}"
        if frozen:
            count = f"{len(views)} view{'' if len(views) == 1 else 's'} of it"
            found += [Part(name, 0, frozen), Part(f"  {method}, {count}", trained, 0)]
        else:
            found.append(Part(name, trained, 0))
    inside = {id(p) for p in made.views.parameters()}
    return [*found, Part(fusion, *_counts(p for p in made.parameters() if id(p) not in inside))]


def _counts(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return how many numbers are trained, and how many frozen."""
    sizes = [(p.numel(), p.requires_grad) for p in parameters]
    return sum(n for n, trained in sizes if trained), sum(n for n, trained in sizes if not trained)
