"""Where each trained parameter and its optimizer state lie in the files of ZeRO's processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies.

    Attributes:
        group: In which flat tensor of each process.
        start: Where in it begins the process's part, or with stage 2 the parameter in all processes' parts joined.
        shape: Of the whole parameter.
    """

    group: int
    start: int
    shape: torch.Size


class Layout:
    """What the processes' optimizers hold, by parameter.

    Each process has flat tensors, one for a group of parameters. With stage 3 these are the process's parts of all of
    the group's parameters one behind the other, each as long as on every process, the last process's padded. With
    stage 2 the processes' tensors joined are the group's whole parameters one behind the other.

    Args:
        shapes: Name and shape of the parameters, by flat tensor, in order.
        parts: The optimizer's state of each process, by rank.
    """

    def __init__(self, shapes: Sequence[Mapping[str, torch.Size]], parts: Sequence[Mapping[str, Any]]) -> None:
        self.world = len(parts)
        self.by_part = "fp32_flat_groups" in parts[0]  # stage 3
        values, optimizer = (
            ("fp32_flat_groups", "optimizer_state_dict")
            if self.by_part
            else ("single_partition_of_fp32_groups", "base_optimizer_state")
        )
        self.flat: list[list[Tensor]] = [[part[values][group] for part in parts] for group in range(len(shapes))]
        self.optimizers: list[Mapping[str, Any]] = [part[optimizer] for part in parts]
        paddings = parts[0].get("param_alignment_paddings") or [[0] * len(group) for group in shapes]
        self.places = self._places(shapes, paddings)

    @property
    def names(self) -> list[str]:
        """The parameters, in the order in which the optimizer of one process has them."""
        return list(self.places)

    def _places(
        self, shapes: Sequence[Mapping[str, torch.Size]], paddings: Sequence[Sequence[int]]
    ) -> dict[str, _Place]:
        places = {}
        for group, (named, padded) in enumerate(zip(shapes, paddings, strict=True)):
            start = 0
            for (name, shape), padding in zip(named.items(), padded, strict=True):
                size = torch.Size(shape)
                places[name] = _Place(group, start, size)
                start += self._part(size.numel()) if self.by_part else size.numel() + padding
        return places

    def _part(self, numel: int) -> int:
        return -(-numel // self.world)

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a trained parameter."""
        return self.places[name].shape

    def parameter(self, name: str) -> Tensor:
        """Return a trained parameter in float32."""
        place = self.places[name]
        return self._whole(place, self.flat[place.group])

    def _whole(self, place: _Place, flats: Sequence[Tensor]) -> Tensor:
        """Put together what lies at a parameter's place in a flat tensor of each process."""
        numel = place.shape.numel()
        if self.by_part:
            part = self._part(numel)
            joined = torch.cat([flat.reshape(-1).narrow(0, place.start, part) for flat in flats])[:numel]
        else:
            joined = _stretch(flats, place.start, numel)
        return joined.reshape(place.shape).clone()

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state as it would be with one process: numbered by parameter, in groups."""
        options = self.optimizers[0]["param_groups"]
        group_of = {flat: number for number, group in enumerate(options) for flat in group["params"]}
        numbers: list[list[int]] = [[] for _ in options]
        state = {}
        for number, place in enumerate(self.places.values()):
            numbers[group_of[place.group]].append(number)
            state[number] = self._state(place)
        groups = [{**group, "params": own} for group, own in zip(options, numbers, strict=True)]
        return {"state": {n: own for n, own in state.items() if own}, "param_groups": groups}

    def _state(self, place: _Place) -> dict[str, Any]:
        """Return one parameter's state: its own stretch of what is as long as the flat tensor, all else as it is."""
        held: list[Mapping[str, Any]] = [optimizer["state"].get(place.group, {}) for optimizer in self.optimizers]
        own = {}
        for key, first in held[0].items():
            is_flat = isinstance(first, Tensor) and first.ndim > 0
            # A copy of what all parameters share, since torch's optimizers count steps in place.
            own[key] = self._whole(place, [each[key] for each in held]) if is_flat else deepcopy(first)
        return own


def _stretch(flats: Sequence[Tensor], start: int, numel: int) -> Tensor:
    """Return a stretch of several flat tensors joined, without joining them."""
    pieces, before = [], 0
    for flat in flats:
        low, high = max(start - before, 0), min(start + numel - before, flat.numel())
        if low < high:
            pieces.append(flat.reshape(-1)[low:high])
        before += flat.numel()
    return torch.cat(pieces)
