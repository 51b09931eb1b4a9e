"""The same training steps under DDP and under DeepSpeed's ZeRO-3, for a rank of a pair of processes."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from tiny import batch, criterion
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionbench.distributed.deepspeed_config import deepspeed_config, fitted
from fusionbench.distributed.zero import prepare_deepspeed
from fusionbench.fusion.base import Strategy
from fusionbench.sections import TrainerOptions
from fusionbench.task import FusionTask
from fusionbench.types import Batch, Problem

RATE = 0.1


class Steps(NamedTuple):
    """What came of some training steps.

    Attributes:
        losses: Each step's.
        logits: In evaluation, afterwards.
        weights: What is trained, by name.
        sharded: Numbers of parameters that the process holds, and how many there are.
    """

    losses: Tensor
    logits: Tensor
    weights: dict[str, Tensor]
    sharded: tuple[int, int]


class Both(NamedTuple):
    """The steps under DDP and under ZeRO-3, or the traceback of what went wrong."""

    ddp: Steps | None
    zero: Steps | None
    error: str = ""


class Step(FusionTask):
    """The task with its training step as its forward, as Lightning has it under DDP and DeepSpeed."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy.problem, lambda: strategy, torch.optim.SGD, None, criterion(strategy.problem))
        self.configure_model()

    def forward(self, cases: Batch) -> tuple[Tensor, Tensor]:
        output = super().forward(cases)
        losses = self.strategy.losses(output, cases, self.criterion)
        return torch.stack(list(losses.values())).sum(), output.logits


def prepare() -> None:
    """Get DeepSpeed ready in this process, and be quiet about what the pair does on purpose."""
    warnings.simplefilter("ignore")
    prepare_deepspeed(on_gpu=False)


def batches(made: Problem, patterns: Sequence[Tensor]) -> list[Batch]:
    """Return a batch for each pattern of what is present (B, M), of other cases on each rank."""
    torch.manual_seed(7 + dist.get_rank())
    return [batch(made, present=present) for present in patterns]


def compare(network: Strategy, cases: Sequence[Batch]) -> Both:
    """Train copies of a network by both; ``cases`` are this rank's, the last of them for evaluation."""
    try:
        return Both(under_ddp(copy.deepcopy(network), cases), under_zero(network, cases))
    except Exception:
        return Both(None, None, traceback.format_exc())


def under_ddp(network: Strategy, cases: Sequence[Batch]) -> Steps:
    """Take the steps under DDP."""
    model = DistributedDataParallel(Step(network), find_unused_parameters=True)
    optimizer = sgd(network)

    def descend(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    losses, logits = run(model, cases, descend)
    total = sum(p.numel() for p in network.parameters())
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    return Steps(losses, logits, weights, (total, total))


def under_zero(network: Strategy, cases: Sequence[Batch]) -> Steps:
    """Take the steps under ZeRO-3, with every parameter partitioned, however small."""
    import deepspeed

    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    config = fitted(deepspeed_config(TrainerOptions(strategy="zero3", accelerator="cpu")), trained)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    model = Step(network)
    engine, *_ = deepspeed.initialize(model=model, optimizer=sgd(network), config=config, dist_init_required=False)

    def descend(loss: Tensor) -> None:
        engine.backward(loss)
        engine.step()

    losses, logits = run(engine, cases, descend)
    parameters = dict(network.named_parameters())
    sharded = sum(p.ds_tensor.numel() for p in parameters.values()), sum(p.ds_numel for p in parameters.values())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        weights = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}
    engine.destroy()
    return Steps(losses, logits, weights, sharded)


def run(model: nn.Module, cases: Sequence[Batch], descend: Callable[[Tensor], None]) -> tuple[Tensor, Tensor]:
    """Train on all batches but the last, and predict that one."""
    losses = []
    for number, one in enumerate(cases[:-1]):
        torch.manual_seed(number)  # of dropout
        loss, _ = model(one)
        descend(loss)
        losses.append(loss.detach())
    model.eval()
    with torch.no_grad():
        _, logits = model(cases[-1])
    return torch.stack(losses), logits


def sgd(network: nn.Module) -> torch.optim.SGD:
    """Return plain descent, whose steps show every difference of a gradient as large as it is."""
    return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=RATE)
