"""Weights whose values still lie in their file, so that a large model is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_DEFERRING = ContextVar("deferring", default=False)


class Deferred(nn.Parameter):
    """A parameter of its final shape and type whose values come from a memory-mapped tensor when it is settled.

    It takes no memory of its own. Until then it reads as nan, so that nobody takes its values for real ones. Turning
    into what it stands for is by ``__class__``, as torch's ``UninitializedParameter`` does.

    Attributes:
        source: The values, as the file has them.
        held: What they are cast to first, whatever the parameter is turned into afterwards.
    """

    source: Tensor
    held: torch.dtype

    def __new__(cls, source: Tensor, held: torch.dtype, requires_grad: bool = True) -> Deferred:
        """Make one for a tensor of a file, which is to be held in another type."""
        made: Deferred = super().__new__(cls, _nothing(source.shape, held), requires_grad)
        made.source, made.held = source, held
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Deferred:
        """Copy what it stands for, not its memory."""
        if id(self) not in memo:
            memo[id(self)] = Deferred(self.source, self.held, self.requires_grad)
            memo[id(self)].data = self.data
        copied: Deferred = memo[id(self)]
        return copied


@contextmanager
def deferring() -> Iterator[None]:
    """Let weights that are read from files now stay there, each until it is settled."""
    token = _DEFERRING.set(True)
    try:
        yield
    finally:
        _DEFERRING.reset(token)


def held_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a file's tensor in a type; in a context that defers, as a parameter which has its values later."""
    if _DEFERRING.get() and tensor.is_floating_point():
        return Deferred(tensor, dtype)
    return tensor.to(dtype)


def widen(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Turn a parameter into another type, one whose values come later too."""
    is_deferred = isinstance(parameter, Deferred)
    parameter.data = _nothing(parameter.shape, dtype) if is_deferred else parameter.data.to(dtype)


def _nothing(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return nan in every place, out of one number's memory."""
    return torch.full((), torch.nan, dtype=dtype).expand(shape)


def values(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's values, detached, also if they come later."""
    if isinstance(parameter, Deferred):
        return parameter.source.to(parameter.held).to(parameter.dtype)
    return parameter.detach()


def load(parameter: Tensor, given: Tensor) -> None:
    """Give a parameter, or a buffer, other values; one whose values come later will have these."""
    if isinstance(parameter, Deferred):
        parameter.source, parameter.held = given, parameter.dtype
    else:
        parameter.copy_(given)


def settle(parameter: nn.Parameter) -> nn.Parameter:
    """Give a parameter its values if they are still those of a file; it is then an ordinary one, as others are."""
    if isinstance(parameter, Deferred):
        parameter.data = values(parameter)
        del parameter.source, parameter.held
        parameter.__class__ = nn.Parameter  # type: ignore[assignment]
    return parameter
