"""What a GPU and a node's main memory hold under each way of sharing the work.

DDP holds all on each GPU, and each gradient twice, since its buckets are copies. ZeRO (arXiv 1910.02054) shares out
among N processes: stage 2 gradients and optimizer states, stage 3 the parameters too, frozen ones among them. As
DeepSpeed has it, with ZeRO the network is held in half precision unless it is float32, a float32 copy of what is
trained counts as optimizer state (in stage 3 not if the network is float32 itself), and gradients pass through buckets
that are allocated in full. In stage 3 what is gathered at a time is limited by ``max_live_parameters``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fusionbench.distributed.deepspeed_config import deepspeed_config, fitted
from fusionbench.plan.optimizer import OptimizerCost, optimizer_cost
from fusionbench.sections import TrainerOptions

# DeepSpeed's own, in numbers, where our config says nothing (deepspeed/runtime/zero/config.py).
_LIVE, _PREFETCH = 1_000_000_000, 50_000_000
_MASTER = 4  # bytes of a number in the float32 copy


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU, and of main memory on each node.

    Attributes:
        options: Under which options.
        weights: Parameters and buffers; with stage 3 those gathered as well.
        gradients: With the buckets in which they travel.
        optimizer: States, and with ZeRO the float32 copy.
        activations: Whatever else is alive at the peak of a forward and backward pass, or of a step of the optimizer.
        main: Main memory on each node for what is offloaded.
    """

    options: TrainerOptions
    weights: int
    gradients: int
    optimizer: int
    activations: int
    main: int = 0

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Sizes:
    """A network in numbers.

    Attributes:
        trained: Numbers that are trained.
        all: All numbers of parameters.
        largest: Numbers of the largest parameter that is trained.
        module: Numbers of the largest module's own parameters.
        weight_bytes: Bytes of parameters and buffers as they are without ZeRO.
        gradient_bytes: Bytes of what is trained as it is without ZeRO.
    """

    trained: int
    all: int
    largest: int
    module: int
    weight_bytes: int
    gradient_bytes: int

    @classmethod
    def of(cls, network: nn.Module) -> Sizes:
        """Count a network, which may be of shapes alone, cast as it is without ZeRO."""
        parameters = list(network.parameters())
        trained = [p for p in parameters if p.requires_grad]
        return cls(
            _numbers(trained),
            _numbers(parameters),
            max((p.numel() for p in trained), default=0),
            max(_numbers(m.parameters(recurse=False)) for m in network.modules()),
            sum(t.nbytes for t in (*parameters, *network.buffers())),
            sum(p.nbytes for p in trained),
        )


@dataclass(frozen=True)
class Memory:
    """Says what options need.

    Args:
        sizes: Of the network.
        optimizer: Makes the optimizer.
        on_gpu: Whether parameters are stepped together, as on GPUs, or one by one.
    """

    sizes: Sizes
    optimizer: Callable[[Any], torch.optim.Optimizer]
    on_gpu: bool

    def need(self, options: TrainerOptions, activations: int) -> Need:
        """Return what options need with the given bytes of activations."""
        if options.strategy in ("zero2", "zero3"):
            return self._zero(options, activations)
        sizes, cost = self.sizes, self._cost(_dtype(options))
        copies = 2 if options.processes > 1 else 1
        states = round(sizes.trained * cost.states)
        step = self._step(cost, sizes.trained, sizes.largest)
        return Need(options, sizes.weight_bytes, copies * sizes.gradient_bytes, states, max(activations, step))

    def _zero(self, options: TrainerOptions, activations: int) -> Need:
        told: dict[str, Any] = fitted(deepspeed_config(options), self.sizes.trained)["zero_optimization"]
        sizes, shares, stage = self.sizes, options.processes, told["stage"]
        width = 4 if options.precision == "32-true" else 2
        cost = self._cost(torch.float32)
        weights = sizes.all * width
        if stage == 3:
            live = max(told.get("stage3_max_live_parameters", _LIVE), sizes.module)
            gathered = min(sizes.all, live + told.get("stage3_prefetch_bucket_size", _PREFETCH))
            part, weights = weights // shares, gathered * width
        buckets = 2 if stage == 2 and told.get("overlap_comm") else 1
        bucket = buckets * told["reduce_bucket_size"] * width
        own = sizes.trained / shares
        has_copy = stage == 2 or width == 2 or options.offload != "none"
        states = round(own * (cost.states + _MASTER * has_copy))
        gradients = round(own * width)
        step = self._step(cost, round(own), round(own)) + round(own * _MASTER * (width == 2))
        need = Need(options, weights, bucket + gradients, states, max(activations, step))
        if options.offload != "none":
            need = replace(need, optimizer=0, gradients=bucket, activations=activations)
            need = replace(need, main=options.devices * (states + gradients + round(own * _MASTER)))
        if stage == 3 and options.offload == "all":
            return replace(need, main=need.main + options.devices * part * (options.offload_folder is None))
        return replace(need, weights=need.weights + part) if stage == 3 else need

    def _cost(self, dtype: torch.dtype) -> OptimizerCost:
        return optimizer_cost(self.optimizer, dtype)

    def _step(self, cost: OptimizerCost, together: int, largest: int) -> int:
        return round(cost.at_once * together if self.on_gpu else cost.one_by_one * largest)


def _dtype(options: TrainerOptions) -> torch.dtype:
    return torch.bfloat16 if options.precision == "bf16-true" else torch.float32


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
