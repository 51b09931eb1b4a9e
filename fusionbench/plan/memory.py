"""What a GPU and a node's main memory hold under each way of sharing the work.

DDP holds all on each GPU, and each gradient twice, since its buckets are copies. What ZeRO holds is in ``zero.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.plan.need import Need
from fusionbench.plan.optimizer import optimizer_cost
from fusionbench.plan.sizes import Sizes
from fusionbench.plan.zero import Zero
from fusionbench.sections import TrainerOptions


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
        sizes = self.sizes
        if options.strategy in STAGES:
            cost = optimizer_cost(self.optimizer, torch.float32)
            return Zero(options, sizes, cost, self.on_gpu).need(activations)
        cost = optimizer_cost(self.optimizer, torch.bfloat16 if options.precision == "bf16-true" else torch.float32)
        copies = 2 if options.processes > 1 else 1
        states = round(sizes.trained * cost.states)
        step = round(cost.at_once * sizes.trained if self.on_gpu else cost.one_by_one * sizes.largest)
        return Need(options, sizes.weight_bytes, copies * sizes.gradient_bytes, states, max(activations, step))
