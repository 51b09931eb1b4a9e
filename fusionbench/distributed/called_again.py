"""Modules that are called several times before a backward pass let their parameters go after each call's own.

Stage 3 gathers a module's parameters for its backward and counts, anew at each call, how many gradients of inputs are
still to come (DeepSpeed 0.19, parameter_offload.py, _post_backward_module_hook). So of several calls the last alone
lets them go, and all of a backbone that serves several modalities or passes would be gathered at the pass's end. A call
none of whose positional inputs needs a gradient has no such end, and what it gathers stays as DeepSpeed leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def watch(network: nn.Module, let_go: Callable[[nn.Module], None]) -> list[RemovableHandle]:
    """Let each call of a module let its parameters go; to be asked for when DeepSpeed has put its hooks.

    Args:
        network: Sharded by stage 3.
        let_go: DeepSpeed's own end of a module's backward.

    Returns:
        What removes it.
    """
    holders = [module for module in network.modules() if any(not p.ds_persist for p in _own(module))]
    # The first hook of all is the last in the backward pass, when DeepSpeed's own has done what it does.
    return [module.register_forward_pre_hook(partial(_enter, let_go), prepend=True) for module in holders]


class _Entered(torch.autograd.Function):
    """Tells when the gradients of all inputs of one call are there."""

    @staticmethod
    def forward(ctx: Any, done: Callable[[], None], *inputs: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.done = done
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        ctx.done()
        return None, *gradients


def _enter(let_go: Callable[[nn.Module], None], module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.requires_grad]
    if not places or not torch.is_grad_enabled():
        return inputs
    seen: tuple[Tensor, ...] = _Entered.apply(partial(_done, let_go, module), *(inputs[i] for i in places))  # type: ignore[no-untyped-call]
    entered = dict(zip(places, seen, strict=True))
    return tuple(entered.get(i, value) for i, value in enumerate(inputs))


def _done(let_go: Callable[[nn.Module], None], module: nn.Module) -> None:
    if any(module.ds_id in parameter.ds_active_sub_modules for parameter in _own(module)):
        let_go(module)


def _own(module: nn.Module) -> list[Any]:
    return list(module.parameters(recurse=False))
