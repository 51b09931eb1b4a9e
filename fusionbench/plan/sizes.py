"""A network in numbers: all that the memory of weights, gradients and a step depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fusionbench.layers.sharded import together


@dataclass(frozen=True)
class Sizes:
    """A network in numbers.

    Attributes:
        all: All numbers of parameters.
        module: Numbers of the largest module's own parameters.
        weight_bytes: Bytes of parameters and buffers as they are without ZeRO.
        gradient_bytes: Bytes of what is trained as it is without ZeRO.
        groups: Numbers of each parameter that is trained, by group of the optimizer, in the groups' order.
        together: Parameters that a module and those that it is in have of their own at most.
        buffer_bytes: Bytes of buffers as they are without ZeRO, which leaves them whole in each process.
        buffers: Numbers in them, of floating point.
    """

    all: int
    module: int
    weight_bytes: int
    gradient_bytes: int
    groups: tuple[tuple[int, ...], ...]
    together: int = 1
    buffer_bytes: int = 0
    buffers: int = 0

    @classmethod
    def of(cls, network: nn.Module, groups: Sequence[nn.Parameter | Mapping[str, Any]] | None = None) -> Sizes:
        """Count a network, which may be of shapes alone, cast as it is without ZeRO.

        Args:
            network: What is trained.
            groups: What the optimizer takes; all that is trained in one group if it is not said.
        """
        parameters = list(network.parameters())
        trained = [p for p in parameters if p.requires_grad]
        return cls(
            _numbers(parameters),
            max(_numbers(m.parameters(recurse=False)) for m in network.modules()),
            sum(t.nbytes for t in (*parameters, *network.buffers())),
            sum(p.nbytes for p in trained),
            _grouped(trained if groups is None else groups),
            together(network),
            sum(b.nbytes for b in network.buffers()),
            sum(b.numel() for b in network.buffers() if b.is_floating_point()),
        )

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(sum(group) for group in self.groups)

    @property
    def largest(self) -> int:
        """Numbers of the largest parameter that is trained."""
        return max((number for group in self.groups for number in group), default=0)

    def sub_groups(self, most: int, shares: int) -> list[int]:
        """Return a process's numbers in each sub-group of ZeRO's stage 3, which is closed when it is full.

        As ``_create_fp16_sub_groups`` of deepspeed/runtime/zero/stage3.py does.

        Args:
            most: ``sub_group_size``.
            shares: Processes, each of which has a part of every parameter.
        """
        found = []
        for group in self.groups:
            now = 0
            for number in group:
                now += -(-number // shares)
                if now >= most:
                    found.append(now)
                    now = 0
            found += [now] if now else []
        return found


def _grouped(groups: Sequence[nn.Parameter | Mapping[str, Any]]) -> tuple[tuple[int, ...], ...]:
    if groups and isinstance(groups[0], Mapping):
        return tuple(tuple(p.numel() for p in group["params"]) for group in groups if isinstance(group, Mapping))
    return (tuple(p.numel() for p in groups if isinstance(p, nn.Parameter)),)


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
