"""The contract of a tuning method: it edits an encoder in place and says what of it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fusionbench.encoders.base import Encoder
from fusionbench.errors import UserError, check_number
from fusionbench.layers import sharded
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.frozen import misfits, trained_shapes
from fusionbench.layers.per_view import EachView, PerView


class Adaptation(ABC):
    """A tuning method. Its keyword-only constructor arguments are its yaml options.

    Attributes:
        trains_base: The backbone itself changes, so each view needs a copy of its own; else all views share one.
        starts_as_frozen: Before training, the encoder gives what the frozen one gives.
    """

    trains_base: ClassVar[bool] = False
    starts_as_frozen: ClassVar[bool] = True

    @abstractmethod
    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze or unfreeze the encoder and put ``views`` adapter sets into it."""

    def tune(self, layers: Adaptable, views: int) -> None:
        """Tune pretrained layers of a strategy's own: whole, unless the method works beside linear layers alone."""
        layers.requires_grad_(True)

    def export(self, encoder: Adaptable, view: int, folder: Path) -> Path | None:
        """Write a view's adapter set once more, in the format of the library that the method is of, if it is of one.

        Args:
            encoder: Holds the adapters.
            view: Which of its views.
            folder: Where to; made if need be.

        Returns:
            The folder, or None if there is no such format.
        """
        return None


def check_updates(ranks: Sequence[int], scale: float, sites: Sequence[str], option: str = "adapt.rank") -> None:
    """Refuse low-rank updates that cannot be.

    Args:
        ranks: Rank of each.
        scale: α / rank.
        sites: Which linear layers.
        option: The ranks' name in yaml.

    Raises:
        UserError: There is no rank or site, a site comes twice, or a number is out of range.
    """
    if not ranks:
        raise UserError(f"'{option}' is empty; give at least one rank, e.g. [2, 4, 8]")
    for rank in ranks:
        check_number(option, rank, least=1)
    check_number("adapt.scale", scale, above=0)
    if not sites or len(set(sites)) < len(sites):
        raise UserError(f"'adapt.sites' must name one or more layers, each once, e.g. [fc1, fc2], not {list(sites)}")


def adapter_state(encoder: Encoder, view: int) -> dict[str, Tensor]:
    """Return one view's adapter set by name, in main memory; for a trained base the whole of it, there uncopied."""
    if _trains_base(encoder):
        return sharded.state_dict(encoder)
    parts = {name: module.view_state(view) for name, module in _per_view(encoder).items()}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def load_adapter_state(encoder: Encoder, view: int, state: dict[str, Tensor]) -> None:
    """Put one view's adapter set back, by name.

    What an encoder has beyond its tokens (``Encoder.beyond_tokens``) may be in one of the two alone, since a strategy
    that asks for tokens has none of it; it then stays as it is.

    Raises:
        UserError: Names or shapes do not fit.
    """
    trains_base, beyond = _trains_base(encoder), tuple(f"{name}." for name in encoder.beyond_tokens())
    own: Mapping[str, Tensor | torch.Size] = trained_shapes(encoder) if trains_base else adapter_state(encoder, view)
    state = {name: value for name, value in state.items() if name in own or not name.startswith(beyond)}
    wrong = misfits({n: value for n, value in own.items() if n in state or not n.startswith(beyond)}, state)
    if wrong:
        raise UserError(f"the adapter does not fit {type(encoder).__name__}: {len(wrong)} tensors differ ({wrong[0]})")
    if trains_base:
        sharded.load_state(encoder, state)
        return
    for name, module in _per_view(encoder).items():
        keys = [key for key in module.view_state(view) if f"{name}.{key}" in state]
        if keys:
            module.load_view_state(view, {key: state[f"{name}.{key}"] for key in keys})


def own_modules(encoder: Encoder, place: int) -> dict[str, Tensor]:
    """Return by name, detached, the tensors of those modules of which each view has one, such as stems."""
    each = {name: module for name, module in _per_view(encoder).items() if isinstance(module, EachView)}
    parts = {name: module.view_state(place) for name, module in each.items() if place < len(module.each)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def all_is_frozen(encoder: Encoder, view: int) -> bool:
    """Whether nothing that one view goes through is trained; other views may have adapters or stems of their own."""
    per_view = {id(p) for module in _per_view(encoder).values() for p in module.parameters()}
    shared = (p for p in encoder.parameters() if id(p) not in per_view)
    return not any(p.requires_grad for p in shared) and not adapter_state(encoder, view)


def _trains_base(encoder: Encoder) -> bool:
    return all(p.requires_grad for p in encoder.parameters())


def _per_view(encoder: Encoder) -> dict[str, PerView]:
    return {name: module for name, module in encoder.named_modules() if isinstance(module, PerView)}
