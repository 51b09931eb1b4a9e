"""The memory of a forward and backward pass, from shapes alone.

The network runs on torch's fake tensors, which have shapes and types but no values, under ``LiveBytes``. So what each
layer keeps for its gradient, what checkpointing drops and computes again, and what is needed in between is not modelled
but happens, and an 11B model costs no memory and runs on any machine. The tensors say that they are on the CPU, since
its attention, like a GPU's, keeps no matrix of queries and keys, which that of ``meta`` tensors does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from fusionbench.errors import UserError
from fusionbench.fusion.base import Criterion, Strategy
from fusionbench.plan.live_bytes import LiveBytes
from fusionbench.types import Batch


class Rehearsal:
    """Trains a network of shapes alone, one micro-batch at a time.

    Args:
        network: A strategy built in ``skeleton``; its tensors become fake ones and, with ``bf16-true``, bfloat16.
        criterion: The loss on logits.
        precision: The trainer's option.
    """

    def __init__(self, network: Strategy, criterion: Criterion, precision: str) -> None:
        self.network, self.criterion, self.plugin = network, criterion, _plugin(precision)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.plugin.convert_module(network)
        with self._mode:
            network.to_empty(device="cpu")
        network.train()

    def activations(self, cases: Batch) -> int:
        """Return the most bytes alive at once beside weights and gradients, in a forward and backward pass.

        Args:
            cases: A micro-batch of shapes alone, on ``meta``.

        Raises:
            UserError: What the network does depends on the values of its inputs.
        """
        live = LiveBytes([*self.network.parameters(), *self.network.buffers()])
        trained = [p for p in self.network.parameters() if p.requires_grad]
        hooks: list[Any] = [
            p.register_post_accumulate_grad_hook(lambda p: live.forget(_grad(p)))  # type: ignore[no-untyped-call]
            for p in trained
        ]
        try:
            with self._mode, live:
                self._step(self.plugin.convert_input(_fake(cases)))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            kind = type(self.network).__name__
            raise UserError(
                f"{kind} does what depends on the data ({error}), so it cannot be planned: fit it"
            ) from None
        finally:
            for hook in hooks:
                hook.remove()
            self.network.zero_grad()
        return live.peak

    def _step(self, cases: Batch) -> None:
        context: AbstractContextManager[Any] = self.plugin.forward_context()
        with context:
            output = self.network(cases.inputs, cases.present)
            terms = self.network.losses(output, cases, self.criterion)
            loss = torch.stack(list(terms.values())).sum()
        del output, terms
        loss.backward()  # type: ignore[no-untyped-call]


def _plugin(precision: str) -> Precision:
    """Return Lightning's plugin, of which casts and contexts are taken; float16 weighs as much as bfloat16."""
    if precision == "bf16-true":
        return HalfPrecision("bf16-true")
    return Precision() if precision == "32-true" else MixedPrecision("bf16-mixed", "cpu")


def _fake(cases: Batch) -> Batch:
    """Return the same shapes as tensors that say that they are on the CPU."""

    def fake(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device="cpu")

    return cases._replace(
        inputs={name: fake(value) for name, value in cases.inputs.items()},
        present=fake(cases.present),
        target=fake(cases.target),
        extras={name: fake(value) for name, value in cases.extras.items()},
    )


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
