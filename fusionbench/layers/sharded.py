"""Parameters that several processes hold in parts (ZeRO-3): whole numbers, values and states, and how they are made so.

Without DeepSpeed all of this is what torch does anyway. What gathers values must be called by every process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fusionbench.layers import deferred

Partition = Callable[[nn.Parameter], None]
_COPIES: ContextVar[Mapping[int, Tensor]] = ContextVar("copies", default=MappingProxyType({}))
_PARTITION: ContextVar[Partition | None] = ContextVar("partition", default=None)
Announced = Callable[[int, int], None]
_ANNOUNCED: ContextVar[Announced | None] = ContextVar("announced", default=None)


@contextmanager
def building(part: Partition, announced: Announced | None = None) -> Iterator[None]:
    """Let a network that is built now be held in parts: files' weights stay in their files until ``partition``.

    Args:
        part: Takes this process's part of a parameter and lets the rest go.
        announced: Told, before any is parted, how many numbers the largest parameter has, and how many parameters a
            module and those that it is in have of their own at most, since these are gathered together.
    """
    tokens = _PARTITION.set(part), _ANNOUNCED.set(announced)
    try:
        with deferred.deferring():
            yield
    finally:
        _PARTITION.reset(tokens[0])
        _ANNOUNCED.reset(tokens[1])


def announce(module: nn.Module) -> None:
    """Tell what parameters will be parted, if the network is built so."""
    announced = _ANNOUNCED.get()
    if announced is not None:
        announced(max((numel(parameter) for parameter in module.parameters()), default=0), together(module))


def together(module: nn.Module) -> int:
    """Return how many parameters a module within and those that it is in have of their own at most."""
    own = len(list(module.parameters(recurse=False)))
    return own + max((together(child) for child in module.children()), default=0)


def partition(parameter: nn.Parameter) -> None:
    """Part a parameter among the processes if the network is built so, else leave it alone."""
    part = _PARTITION.get()
    if part is not None:
        part(parameter)


def is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds a part only; DeepSpeed marks such parameters by these attributes."""
    return hasattr(parameter, "ds_id")


def numel(parameter: Tensor) -> int:
    """Return the number of elements of the whole parameter."""
    return int(parameter.ds_numel) if is_sharded(parameter) else parameter.numel()  # type: ignore[attr-defined]


def shape(parameter: Tensor) -> torch.Size:
    """Return the shape of the whole parameter."""
    return parameter.ds_shape if is_sharded(parameter) else parameter.shape  # type: ignore[attr-defined, no-any-return]


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], change: bool = False) -> Iterator[None]:
    """Hold parameters whole for a while, on the device that the process trains on.

    Args:
        parameters: Which; those that are whole are left alone.
        change: Values will be changed, by every process alike; they are then parted anew.
    """
    parted = [p for p in parameters if is_sharded(p)]
    if not parted:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parted, modifier_rank=0 if change else None):
        yield


@contextmanager
def copied(parameters: Iterable[nn.Parameter], keep: bool = True) -> Iterator[None]:
    """Hold copies in main memory for a while; within, ``value`` of these parameters needs no other process.

    One parameter at a time is whole on the device. All processes enter; those that do not keep copies only give their
    parts.

    Args:
        parameters: Of which.
        keep: Whether this process keeps copies.
    """
    copies = {}
    for parameter in parameters:
        if keep:
            copies[id(parameter)] = value(parameter)
        else:
            with gathered([parameter]):
                pass
    token = _COPIES.set(copies)
    try:
        yield
    finally:
        _COPIES.reset(token)


def value(parameter: nn.Parameter) -> Tensor:
    """Return a whole parameter in main memory, a copy if processes hold parts of it."""
    copy = _COPIES.get().get(id(parameter))
    if copy is not None:
        return copy
    if not is_sharded(parameter):
        return deferred.values(parameter).cpu().contiguous()
    with gathered([parameter]):
        return parameter.detach().to("cpu", copy=True).contiguous()


def state_dict(module: nn.Module, wanted: Callable[[nn.Parameter], bool] = lambda parameter: True) -> dict[str, Tensor]:
    """Return a module's state in main memory, parameters whole, in the order and by the names of ``state_dict``.

    Args:
        module: Of which.
        wanted: Which parameters; buffers are always in it.
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    state = module.state_dict()
    kept = [name for name in state if name not in own or wanted(own[name])]
    return {name: value(own[name]) if name in own else state[name].detach().cpu().contiguous() for name in kept}


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the tensors of a state that a module has, one at a time, whether whole, parted or still in their file."""
    own = {**dict(module.named_buffers()), **dict(module.named_parameters(remove_duplicate=False))}
    with torch.no_grad():
        for name in (name for name in state if name in own):
            with gathered([own[name]], change=True):  # type: ignore[list-item]
                deferred.load(own[name], state[name])


class LazyState(Mapping[str, Tensor]):
    """A state whose tensors are put together when they are asked for, while their shapes are known before."""

    @abstractmethod
    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor without putting it together."""
